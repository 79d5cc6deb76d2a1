"""``agentrun-server config``: the settings a server started here would have, and where each comes from."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import click

from agentrun_server.cli.settings import (
    NETWORK_SETTINGS,
    SERVER_SETTINGS,
    Origin,
    Origins,
    SectionedCommand,
    Setting,
    apply,
    env_file_option,
    flag_values,
    origin_of,
    read_env_file,
    resolve,
    setting_options,
    value_text,
    warn_of_unknown,
)
from agentrun_server.config import ServerConfig
from agentrun_server.errors import ConfigurationError
from agentrun_server.storage.opening import HIDDEN, shown_storage_url, shown_url

__all__ = ["Row", "config_command", "effective"]

_SETTINGS = (*NETWORK_SETTINGS, *SERVER_SETTINGS)


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting as it stands."""

    setting: Setting
    value: Any = dataclasses.field(repr=False)
    shown: Any
    """The value as it may be shown."""
    origin: Origin
    variable: str


def effective(environ: Mapping[str, str], origins: Origins) -> list[Row]:
    """Return every setting as a server started with `environ` would have it.

    Raises:
        ConfigurationError: a value cannot be read, or cannot work.
    """
    rows: list[Row] = []
    for setting in _SETTINGS:
        variable, origin = origin_of(setting, environ, origins)
        value = resolve(setting, environ)
        rows.append(Row(setting, value, _shown(setting, value, environ), origin, variable))
    return rows


def _shown(setting: Setting, value: Any, environ: Mapping[str, str]) -> Any:
    """Return `value` with what is secret hidden; of a URL the rest is shown, and of a store where it is."""
    if value is None or not setting.secret:
        return value
    if setting.name == "store_url":
        return shown_storage_url(value, environ)
    return shown_url(value) if setting.name.endswith("_url") else HIDDEN


@click.command("config", cls=SectionedCommand, short_help="Show the settings and where they come from.")
@env_file_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@setting_options(NETWORK_SETTINGS, SERVER_SETTINGS)
def config_command(env_file: str | None, as_json: bool, **params: Any) -> None:
    """Show the settings a server started here would have, and where each comes from.

    It takes the flags of `run`. Arguments in the app's own code, ServerConfig(...), win over all of them
    and are not seen from here.
    """
    environ = dict(os.environ)
    flags = flag_values(_SETTINGS, params)
    origins = apply(_SETTINGS, environ, flags=flags, env_file=read_env_file(env_file))
    try:
        rows = effective(environ, origins)
        _check_together(rows)
    except ConfigurationError as exc:
        raise click.ClickException(str(exc)) from exc
    if as_json:
        click.echo(json.dumps({row.setting.name: _as_json(row) for row in rows}, indent=2))
    else:
        _print_table(rows)
    warn_of_unknown(_SETTINGS, environ)


def _check_together(rows: list[Row]) -> None:
    """Let `ServerConfig` refuse what only it can judge: ranges, and values that do not go together."""
    names = {field.name for field in dataclasses.fields(ServerConfig)}
    ServerConfig(**{row.setting.name: row.value for row in rows if row.setting.name in names})


def _as_json(row: Row) -> dict[str, Any]:
    return {"value": row.shown, "source": row.origin, "variable": row.variable or row.setting.variable}


def _print_table(rows: list[Row]) -> None:
    width = max(len(row.setting.name) for row in rows)
    value_width = min(max(len(value_text(row.shown)) for row in rows), 40)
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.setting.section, []).append(row)
    for number, (section, members) in enumerate(sections.items()):
        click.echo(("\n" if number else "") + section)
        for row in members:
            source = row.origin if row.origin in ("default", "flag") else f"{row.origin} {row.variable}"
            click.echo(f"  {row.setting.name:<{width}}  {value_text(row.shown):<{value_width}}  {source}")
