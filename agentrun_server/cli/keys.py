"""``agentrun-server keys``: make, list and revoke API keys.

A new key goes to standard output, alone and once; everything about it goes to standard error. Neither a key nor a
pepper is ever an argument: the command line can be read by everybody on the machine, and the shell remembers it.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from agentrun_middleware.key_file import KeyFile, KeyFileError, NewKey
from agentrun_middleware.key_record import KeyRecord, Pepper, id_of, is_key_id, moment
from agentrun_server.cli.settings import SERVER_SETTINGS, apply, env_file_option, read_env_file, resolve
from agentrun_server.errors import ConfigurationError

__all__ = ["keys_command"]

_F = TypeVar("_F", bound=Callable[..., Any])

_DURATION = re.compile(r"([0-9]{1,10})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 36500 * 86400

_MAX_STDIN = 64 * 1024


# --- what the commands share


def _file_option(function: _F) -> _F:
    return click.option("--file", metavar="PATH", help="The key file.  [default: AGENTRUN_AUTH_KEYS_FILE]")(function)


def _environment(env_file: str | None) -> dict[str, str]:
    """Return the environment that a server started here would see: the same file, the same pepper."""
    environ = dict(os.environ)
    apply(SERVER_SETTINGS, environ, flags={}, env_file=read_env_file(env_file))
    return environ


def _setting(name: str, environ: dict[str, str]) -> Any:
    setting = next(setting for setting in SERVER_SETTINGS if setting.name == name)
    try:
        return resolve(setting, environ)
    except ConfigurationError as exc:
        raise click.ClickException(str(exc)) from exc


def _key_file(path: str | None, environ: dict[str, str]) -> KeyFile:
    path = path or _setting("auth_keys_file", environ)
    if path is None:
        raise click.UsageError("Which key file? Give --file PATH, or set AGENTRUN_AUTH_KEYS_FILE.")
    return KeyFile(path, _pepper(environ))


def _pepper(environ: dict[str, str]) -> Pepper | None:
    text = _setting("auth_keys_pepper", environ)
    try:
        return None if text is None else Pepper(text)
    except ValueError as exc:
        raise click.ClickException(f"AGENTRUN_AUTH_KEYS_PEPPER: {exc}") from exc


def _checked_id(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no id, without repeating it: it may be a whole key."""
    if value is None or is_key_id(value):
        return value
    whole = id_of(value)
    if whole is not None:
        raise click.BadParameter(
            f"This is a whole key, and other users may have seen it now. Its id is {whole}.", param=param
        )
    raise click.BadParameter("An id has 8 digits and lower-case letters; 'keys list' shows them.", param=param)


def _duration(_ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the seconds of a whole number and its unit: ``90d``, ``24h``, ``30m``, ``10s``."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else -1
    if not 0 <= seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is not a time like 90d, 24h or 30m, of at most 36500d", param=param)
    return seconds


def _lifetime(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the seconds of a duration of some length; 0 for ``never``."""
    if value == "never":
        return 0
    seconds = _duration(ctx, param, value)
    if seconds == 0:
        raise click.BadParameter("a key that has expired is of no use", param=param)
    return seconds


def _warn_if_open(file: KeyFile) -> None:
    if file.read().too_open:
        click.echo(f"Warning: {file.path} may be read or changed by others: chmod 600 {file.path}", err=True)


# --- the commands


@click.group("keys", short_help="Make, list and revoke API keys.")
def keys_command() -> None:
    """Make, list and revoke the API keys of a server.

    A running server sees a change within a second.
    """


@keys_command.command("create", short_help="Make a key and print it, once.")
@click.option("--name", metavar="TEXT", help="What you call it; needed unless it replaces another.")
@click.option("--subject", metavar="TEXT", help="Who calls with it, as the agent sees it.  [default: the key's id]")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="What it may do; can be repeated.")
@click.option(
    "--expires", callback=_lifetime, metavar="TIME", help="When it ends: in 90d, 24h, 30m, or never.  [default: never]"
)
@click.option("--replaces", metavar="ID", callback=_checked_id, help="Take over name, subject and scopes of this key.")
@click.option("--grace", callback=_duration, metavar="TIME", help="How long the replaced key goes on.  [default: 24h]")
@_file_option
@env_file_option
@click.option("--json", "as_json", is_flag=True, help="Print the key and what is known of it as JSON.")
def create_command(
    name: str | None,
    subject: str | None,
    scopes: tuple[str, ...],
    expires: int | None,
    replaces: str | None,
    grace: int | None,
    file: str | None,
    env_file: str | None,
    as_json: bool,
) -> None:
    """Make a key and print it. It is kept nowhere and cannot be shown again.

    The first key makes the file, and beside it the file PATH.pepper with the secret that keys are hashed
    with, unless AGENTRUN_AUTH_KEYS_PEPPER holds one.
    """
    if replaces is None:
        if name is None:
            raise click.UsageError("Give the key a name: --name TEXT.")
        if grace is not None:
            raise click.UsageError("--grace is about the key that is replaced: give --replaces ID too.")
    elif name is not None or subject is not None or scopes:
        raise click.UsageError("The new key takes name, subject and scopes of the one it replaces.")
    keys = _key_file(file, _environment(env_file))
    lifetime = expires or None
    try:
        if replaces is None:
            new = keys.create(name or "", subject=subject or "", scopes=scopes, expires_in=lifetime)
        else:
            _check_end(keys, replaces, said=expires is not None)
            new = keys.replace(replaces, grace=24 * 3600 if grace is None else grace, expires_in=lifetime)
        _print_new(new, keys, replaces, as_json=as_json)
        _warn_if_open(keys)
    except KeyFileError as exc:
        raise click.ClickException(str(exc)) from exc
    except ValueError as exc:  # a name, subject or scope that cannot be
        raise click.UsageError(str(exc)) from exc


def _check_end(keys: KeyFile, key_id: str, *, said: bool) -> None:
    """Refuse to replace a key that ends by one that does not, unless that was said."""
    old = keys.read().records.get(key_id)
    if old is not None and old.expires_at is not None and old.revoked_at is None and not said:
        raise click.UsageError(
            f"The key {key_id} ends at {moment(old.expires_at)}. Say how long the new one lives: "
            "--expires 90d, or --expires never."
        )


def _print_new(new: NewKey, keys: KeyFile, replaces: str | None, *, as_json: bool) -> None:
    record = new.record
    if as_json:
        click.echo(json.dumps({"key": new.key, **record.shown()}, indent=2))
    else:
        click.echo(new.key)
    end = "never ends" if record.expires_at is None else f"ends at {moment(record.expires_at)}"
    scopes = ", ".join(sorted(record.scopes)) or "none"
    click.echo(f"Key {record.id} ({record.name}) is in {keys.path}.", err=True)
    click.echo(f"Subject {record.subject}, scopes: {scopes}; it {end}. It is not shown again.", err=True)
    if replaces is not None:
        old = keys.read().records[replaces]
        click.echo(f"The key {replaces} that it replaces ends at {moment(old.expires_at or 0)}.", err=True)


@keys_command.command("list", short_help="Show the keys, without the keys themselves.")
@_file_option
@env_file_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(file: str | None, env_file: str | None, as_json: bool) -> None:
    """Show all keys: id, name, subject, scopes, times, state, and the last characters of each."""
    keys = _key_file(file, _environment(env_file))
    try:
        records = list(keys.read().records.values())
        _warn_if_open(keys)
    except KeyFileError as exc:
        raise click.ClickException(str(exc)) from exc
    now = time.time()
    if as_json:
        click.echo(json.dumps([{**record.shown(), "state": record.state(now)} for record in records], indent=2))
    else:
        _print_table(records, now)


def _print_table(records: list[KeyRecord], now: float) -> None:
    rows = [("ID", "NAME", "SUBJECT", "SCOPES", "CREATED", "EXPIRES", "STATE", "HINT")]
    rows += [
        (
            record.id,
            record.name,
            record.subject,
            ",".join(sorted(record.scopes)) or "-",
            moment(record.created_at),
            "never" if record.expires_at is None else moment(record.expires_at),
            record.state(now),
            f"...{record.hint}",
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys_command.command("revoke", short_help="Refuse a key from now on.")
@click.argument("key_id", metavar="ID", callback=_checked_id)
@_file_option
@env_file_option
def revoke_command(key_id: str, file: str | None, env_file: str | None) -> None:
    """Refuse the key with this id from now on. 'keys list' shows the ids."""
    keys = _key_file(file, _environment(env_file))
    try:
        before = keys.read().records.get(key_id)
        record = keys.revoke(key_id)
        _warn_if_open(keys)
    except KeyFileError as exc:
        raise click.ClickException(str(exc)) from exc
    word = "was revoked before," if before is not None and before.revoked_at is not None else "is revoked"
    click.echo(f"Key {key_id} ({record.name}) {word} at {moment(record.revoked_at or 0)}.", err=True)


@keys_command.command("hash", short_help="Print the hash of a key, for a store of your own.")
@_file_option
@env_file_option
def hash_command(file: str | None, env_file: str | None) -> None:
    """Print the hash of a key that is asked for, or read from standard input.

    The pepper is AGENTRUN_AUTH_KEYS_PEPPER, else that of the key file.
    """
    environ = _environment(env_file)
    if file is None and _setting("auth_keys_pepper", environ) is None and _setting("auth_keys_file", environ) is None:
        raise click.UsageError("Which pepper? Set AGENTRUN_AUTH_KEYS_PEPPER, or name its key file: --file PATH.")
    try:
        pepper = _pepper(environ) or _key_file(file, environ).pepper()
    except KeyFileError as exc:
        raise click.ClickException(str(exc)) from exc
    key = _read_key()
    if id_of(key) is None:
        raise click.ClickException("this is no API key: ar_, 8 characters, _, 32 characters")
    click.echo(pepper.hash(key))


def _read_key() -> str:
    if sys.stdin.isatty():
        text: str = click.prompt("Key", hide_input=True, err=True)
    else:
        text = sys.stdin.read(_MAX_STDIN)
    return text.strip()
