"""Every setting of a server as a flag, and where each value comes from.

The flags are made from the fields of `ServerConfig`, so that none is forgotten, and from the table of
network settings below. Order of precedence: flag, ``AGENTRUN_*`` variable, standard variable (``PORT``,
``WEB_CONCURRENCY`` …), ``.env``, what the command presets, default. It is realised in one place, the
environment: `apply` puts flags, ``.env`` and presets into it before the user's module is imported, and
remembers who set what. A `ServerConfig` built there reads them, and so do worker and reload processes,
which inherit them.
"""

import ipaddress
import os
import types
import typing
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from agentrun_server.cli.dotenv import DotenvError, parse_dotenv
from agentrun_server.config import ENV_PREFIX, ServerConfig, parse_setting
from agentrun_server.errors import ConfigurationError

__all__ = [
    "NETWORK_SETTINGS",
    "SERVER_SETTINGS",
    "Origin",
    "Origins",
    "SectionedCommand",
    "Setting",
    "apply",
    "env_file_option",
    "flag_values",
    "origin_of",
    "read_env_file",
    "resolve",
    "setting_options",
    "value_text",
    "warn_of_unknown",
]

Kind = Literal["value", "switch", "list", "path"]
Origin = Literal["flag", "env", "file", ".env", "preset", "default"]
Origins = dict[str, Origin]
"""Who put a variable into the environment, for the variables that this process put there itself."""

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: its flag, its variables, and how its text is read."""

    name: str
    section: str
    help: str
    default: Any
    parse: Callable[[str], Any]
    kind: Kind = "value"
    flag: str = ""
    metavar: str = "TEXT"
    choices: tuple[str, ...] = ()
    secret: bool = False
    """It has no flag, and its value is never shown."""
    standard: tuple[str, ...] = ()
    """Variables of general use, read when ours is not set, and ignored when they hold something else."""

    @property
    def variable(self) -> str:
        """The environment variable of ours."""
        return ENV_PREFIX + self.name.upper()

    @property
    def flags(self) -> tuple[str, ...]:
        """Each spelling on the command line."""
        if self.secret:
            return ()
        flag = self.flag or "--" + self.name.replace("_", "-")
        return (flag, "--no-" + flag[2:]) if self.kind == "switch" else (flag,)

    def option(self) -> Callable[[_F], _F]:
        """Return the click option; its value is the text for the environment, or None when not given."""
        declaration = "/".join(self.flags)
        text = self.help + self._default_help()
        if self.kind == "switch":
            return click.option(declaration, self.name, default=None, help=text, callback=_switch_text)
        return click.option(
            declaration,
            self.name,
            default=None,
            multiple=self.kind == "list",
            metavar="[" + "|".join(self.choices) + "]" if self.choices else self.metavar,
            help=text,
            callback=self._checked,
        )

    def _default_help(self) -> str:
        if self.kind == "switch":
            return f"  [default: {'on' if self.default else 'off'}]"
        return "" if self.default in (None, (), "") else f"  [default: {value_text(self.default)}]"

    def _checked(self, _ctx: click.Context, param: click.Parameter, value: Any) -> str | None:
        """Refuse on the command line what would be refused in the environment, and name the flag."""
        text = ",".join(value) if self.kind == "list" else value
        if value is None or (self.kind == "list" and not value):
            return None
        try:
            self.parse(text)
        except ValueError as exc:
            raise click.BadParameter(_reason(exc, text), param=param) from exc
        return typing.cast("str", text)


def _switch_text(_ctx: click.Context, _param: click.Parameter, value: bool | None) -> str | None:
    return None if value is None else ("true" if value else "false")


def _reason(exc: ValueError, text: str) -> str:
    reason = str(exc)
    if reason.startswith(("could not convert", "invalid literal")):
        return f"{text!r} is not a number"
    return reason


def value_text(value: Any) -> str:
    """Write a setting's value the way it is written in the environment."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(typing.cast("Sequence[str]", value))
    return str(value)


# --- network settings -----------------------------------------------------------------------------


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return number

    return parse


def _seconds(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("expected a whole number of seconds, at least 1")
    return number


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text.strip()


def _switch(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("expected true or false")


def _existing_file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError(f"there is no file {text!r}")
    return text


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise ValueError(f"there is no folder {text!r}")
    return text


def _root_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("must start with '/'")
    return text.rstrip("/")


LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
_LEVEL_NAMES = {"warn": "warning", "fatal": "critical"}


def _log_level(text: str) -> str:
    level = text.strip().lower()
    level = _LEVEL_NAMES.get(level, level)
    if level not in LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(LOG_LEVELS)}")
    return level


def _host_of_shell(text: str) -> str:
    """Read ``HOST`` only when it is an address: shells and build tools put other things there."""
    if text.strip().lower() == "localhost":
        return "localhost"
    return str(ipaddress.ip_address(text.strip()))


_NETWORK = "Where it listens"
_PROCESS = "Processes"
_LOGS = "Logs and pages"

NETWORK_SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="host", section=_NETWORK, default="127.0.0.1", parse=_text, metavar="ADDRESS",
        standard=("HOST",),
        help="Address to listen on; 0.0.0.0 for every interface, as containers need.",
    ),
    Setting(
        name="port", section=_NETWORK, default=8000, parse=_whole(0, 65535), metavar="PORT",
        standard=("PORT",),
        help="Port to listen on; 0 lets the system choose, and the address is printed.",
    ),
    Setting(
        name="uds", section=_NETWORK, default=None, parse=_text, metavar="PATH",
        help="Listen on a Unix domain socket instead.",
    ),
    Setting(
        name="root_path", section=_NETWORK, default="", parse=_root_path, metavar="PATH",
        help="Prefix that a proxy in front has taken off the path.",
    ),
    Setting(
        name="ssl_certfile", section=_NETWORK, default=None, parse=_existing_file, metavar="FILE",
        help="Certificate chain, to serve HTTPS.",
    ),
    Setting(
        name="ssl_keyfile", section=_NETWORK, default=None, parse=_existing_file, metavar="FILE",
        help="Private key of the certificate, when it is not in the same file.",
    ),
    Setting(
        name="timeout_keep_alive", section=_NETWORK, default=75, parse=_seconds, metavar="SECONDS",
        help="Close a connection that has been idle for so long.",
    ),
    Setting(
        name="backlog", section=_NETWORK, default=2048, parse=_whole(1, 65535), metavar="N",
        help="Connections that may wait to be accepted.",
    ),
    Setting(
        name="workers", section=_PROCESS, default=1, parse=_whole(1, 1024), metavar="N",
        standard=("WEB_CONCURRENCY",),
        help="Number of processes. Limits such as --max-concurrent-runs hold for each of them.",
    ),
    Setting(
        name="log_level", section=_LOGS, default="info", parse=_log_level, choices=LOG_LEVELS,
        standard=("LOG_LEVEL",),
        help="Least severe log line to write.",
    ),
)  # fmt: skip
"""Settings of the listening process; `ServerConfig` knows nothing of them."""

TARGET_SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="app_dir", section=_PROCESS, default=".", parse=_folder, metavar="FOLDER",
        help="Folder that TARGET is imported from.",
    ),
    Setting(
        name="factory", section=_PROCESS, default=False, kind="switch",
        parse=_switch,
        help="TARGET is a function without arguments that returns the app or agent.",
    ),
)  # fmt: skip
"""How TARGET is read; worker and reload processes read them too."""


# --- settings of ServerConfig ---------------------------------------------------------------------

_MODELS = "Models and answers"
_TIMES = "Time limits of a run"
_ADMISSION = "How many at once"
_REQUEST = "Limits of a request"
_BROWSER = "Browsers"
_CALLERS = "Who may call, and how much"
_STORE = "What is kept"

# Section, help and unit of each field. A field without an entry still becomes a flag; a test asks for its
# words.
_DESCRIPTIONS: Mapping[str, tuple[str, str, str]] = {
    "strict_models": (_MODELS, "With one agent: answer 404 to model names other than its own.", ""),
    "cors_origins": (
        _BROWSER, "Origin that a browser may call from; can be repeated. '*' allows any, without credentials.",
        "ORIGIN",
    ),
    "heartbeat_interval": (_MODELS, "Time between comments in a silent stream, or 'none'.", "SECONDS"),
    "response_hold": (
        _MODELS, "Hold back a stream's head for its first event; early failures get a real status.",
        "SECONDS",
    ),
    "reasoning_field": (_MODELS, "Key that carries reasoning text.", ""),
    "offered_agent_events": (_MODELS, "Activity a request may ask for, joined by commas.", "KINDS"),
    "agent_events": (
        _MODELS, "Activity sent to every caller, joined by commas: tools, steps, progress, io.",
        "KINDS",
    ),
    "human_input_tool": (_MODELS, "Client tool that a request for human input calls.", "NAME"),
    "strict_fields": (_MODELS, "Refuse unknown request fields instead of handing them to the agent.", ""),
    "debug": (_LOGS, "Show callers the text of an agent's exception. Never in production.", ""),
    "first_event_timeout": (_TIMES, "Stop an agent that is silent for so long; 'none' never.", "SECONDS"),
    "run_timeout": (_TIMES, "Stop an agent after so long; 'none' never.", "SECONDS"),
    "write_timeout": (_TIMES, "Drop a client that reads nothing for so long; 'none' never.", "SECONDS"),
    "cancel_grace": (_TIMES, "Time for a cancelled agent to clean up.", "SECONDS"),
    "on_disconnect": (_TIMES, "What happens to the agent when its client leaves.", ""),
    "max_concurrent_runs": (_ADMISSION, "Agents running at once.", "N"),
    "max_queued_runs": (_ADMISSION, "Requests that may wait for a place; more are answered 429.", "N"),
    "queue_timeout": (_ADMISSION, "Time a request may wait for a place.", "SECONDS"),
    "max_sync_threads": (_ADMISSION, "Sync agents running at once; each has a thread of its own.", "N"),
    "max_websockets": (_ADMISSION, "WebSockets of one process.", "N"),
    "max_websockets_per_owner": (_ADMISSION, "Those of one caller; 'none' for no limit of its own.", "N"),
    "drain_timeout": (_ADMISSION, "After SIGTERM, open answers may finish for so long.", "SECONDS"),
    "max_body_bytes": (_REQUEST, "Largest request body.", "BYTES"),
    "body_timeout": (_REQUEST, "Time without progress in which a body must arrive.", "SECONDS"),
    "max_header_bytes": (_REQUEST, "Largest request head.", "BYTES"),
    "max_header_count": (_REQUEST, "Most header lines of a request.", "N"),
    "header_timeout": (_REQUEST, "Time in which a request head must arrive.", "SECONDS"),
    "max_messages": (_REQUEST, "Most messages of a conversation.", "N"),
    "max_choices": (_REQUEST, "Largest 'n'; each choice is a run of its own.", "N"),
    "max_output_bytes": (_REQUEST, "End a longer answer with finish reason 'length'.", "BYTES"),
    "auth_jwks_url": (_CALLERS, "Where the issuer of JSON web tokens publishes its signing keys.", "URL"),
    "auth_jwt_key": (_CALLERS, "Secret or public key that signs tokens, in place of a JWKS URL.", ""),
    "auth_keys_file": (_CALLERS, "File of API keys; 'agentrun-server keys' makes them.", "FILE"),
    "auth_keys_pepper": (_CALLERS, "Secret that API keys are hashed with.", ""),
    "auth_issuer": (_CALLERS, "'iss' of the tokens.", "NAME"),
    "auth_audience": (_CALLERS, "'aud' under which tokens are meant for this server; can be repeated.", "NAME"),
    "auth_jwt_algorithms": (_CALLERS, "How tokens are signed, joined by commas: algorithms of one family.", "NAMES"),
    "auth_leeway": (_CALLERS, "How far clocks may differ.", "SECONDS"),
    "auth_max_lifetime": (_CALLERS, "Refuse tokens that are valid for longer; 'none' for no limit.", "SECONDS"),
    "auth_jwks_private": (_CALLERS, "The JWKS URL may lead to a private address.", ""),
    "auth_jwks_ca_file": (_CALLERS, "Certificate authorities for the JWKS URL, in place of the usual ones.", "FILE"),
    "auth_required_scopes": (_CALLERS, "Scopes that every caller must have, joined by commas.", "SCOPES"),
    "auth_public_paths": (_CALLERS, "Paths that need no credential, joined by commas.", "PATHS"),
    "auth_model_scopes": (_CALLERS, "Whether a caller needs the scope 'models:NAME' to use a model.", ""),
    "trusted_proxies": (_CALLERS, "Networks of proxies whose X-Forwarded-For is believed, joined by commas.", "CIDR"),
    "trusted_hosts": (_CALLERS, "Hosts under which the server answers, joined by commas; '*' any.", "HOSTS"),
    "rate_limit_requests": (_CALLERS, "Requests a minute for each caller.", "N"),
    "rate_limit_tokens": (_CALLERS, "Tokens a minute for each caller.", "N"),
    "rate_limit_redis_url": (_CALLERS, "Redis that holds the limits of all processes together.", ""),
    "server_tool_items": (_MODELS, "Whether responses show calls of the agent's own tools.", ""),
    "approval_items": (_MODELS, "Ask for confirmation by mcp_approval_request items.", ""),
    "server_label": (_MODELS, "Who runs the agent's own tools, in items of responses.", "NAME"),
    "store_url": (_STORE, "Where responses and conversations are kept: sqlite, sqlite:///PATH, postgresql://….", ""),
    "store_durable": (_STORE, "SQLite: sync to the disk before anything is acknowledged.", ""),
    "store_ttl": (_STORE, "Delete responses so long after they were last used; 'none' never.", "SECONDS"),
    "session_ttl": (_STORE, "Delete sessions so long after they were last used; 'none' never.", "SECONDS"),
    "store_max_bytes": (_STORE, "Delete the oldest responses when the store is larger; 'none' never.", "BYTES"),
    "bus_redis_url": (_STORE, "Redis by which replicas wake each other.", ""),
    "worker_lease": (_STORE, "Take a worker for dead that has not been heard of for so long.", "SECONDS"),
    "store_patience": (_STORE, "Let runs wait so long for a store that is away; 'none': --worker-lease.", "SECONDS"),
    "idempotent_models": (_STORE, "Models that are run again when their worker dies, joined by commas.", "MODELS"),
    "max_background_runs": (_STORE, "Background runs of one process, running and queued.", "N"),
    "max_background_runs_per_owner": (_STORE, "Those of one caller; 'none' for no limit of its own.", "N"),
    "max_background_bytes": (_STORE, "What background runs of one process were asked, together.", "BYTES"),
    "conversation_busy": (_STORE, "What a turn does while another one of its conversation runs.", ""),
    "conversation_wait": (_STORE, "Time a turn waits for the one before it.", "SECONDS"),
    "idempotency_ttl": (_STORE, "Time an Idempotency-Key is remembered with its answer.", "SECONDS"),
    "memory_collection_name": (_STORE, "Turn sessions on, and keep their memory under this name.", "NAME"),
    "trust_session_headers": (_STORE, "Believe Open WebUI's headers for chat and user.", ""),
    "access_log": (_LOGS, "Write a log line for each request.", ""),
    "log_format": (_LOGS, "Form of the log; auto: text on a terminal, JSON elsewhere.", ""),
    "trust_request_id": (_LOGS, "Take over X-Request-ID from the client; only behind a gateway.", ""),
    "docs": (_LOGS, "Serve /docs and /openapi.json.", ""),
}  # fmt: skip

_FLAG_NAMES = {"cors_origins": "--cors-origin"}


def _server_settings() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(ServerConfig)
    return tuple(
        _server_setting(field.name, field.metadata, hints[field.name])
        for field in fields(ServerConfig)
        if "parse" in field.metadata  # the nested ones have no variable and no flag
    )


def _server_setting(name: str, metadata: Mapping[str, Any], hint: Any) -> Setting:
    section, text, metavar = _DESCRIPTIONS.get(name, ("Other", name.replace("_", " ").capitalize() + ".", ""))
    default = metadata["default"]
    kind: Kind = "switch" if hint is bool else "list" if isinstance(default, (list, tuple)) else "value"
    return Setting(
        name=name,
        section=section,
        help=text,
        default=default,
        parse=metadata["parse"],
        kind=kind,
        flag=_FLAG_NAMES.get(name, ""),
        metavar=metavar or "TEXT",
        choices=_choices(hint),
        secret=metadata["secret"],
    )


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the members of a ``Literal``, also of one that may be None."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(value for part in parts if typing.get_origin(part) is Literal for value in typing.get_args(part))


SERVER_SETTINGS: tuple[Setting, ...] = _server_settings()
"""One setting for each field of `ServerConfig` that has an environment variable."""


# --- from the command line into the environment ---------------------------------------------------


def setting_options(*groups: Sequence[Setting]) -> Callable[[_F], _F]:
    """Return a decorator that gives a click command one option for each setting."""

    def decorate(function: _F) -> _F:
        for setting in reversed([setting for group in groups for setting in group if not setting.secret]):
            function = setting.option()(function)
        return function

    return decorate


def env_file_option(function: _F) -> _F:
    """Give a click command ``--env-file``."""
    return click.option(
        "--env-file",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="File of KEY=VALUE lines; never overrides the environment.  [default: .env, when there is one]",
    )(function)


def read_env_file(path: str | None) -> dict[str, str]:
    """Return the pairs of the file at `path`, or of ``./.env`` when that is a file and `path` is None."""
    file = Path(path or ".env")
    if path is None and not file.is_file():  # a folder called .env is a virtual environment
        return {}
    try:
        return parse_dotenv(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise click.UsageError(f"{file} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"{file} is not UTF-8 text") from exc
    except DotenvError as exc:
        raise click.UsageError(f"{file}: {exc}") from exc


def flag_values(settings: Sequence[Setting], params: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables for the flags that were given, from a click command's parameters."""
    return {setting.variable: params[setting.name] for setting in settings if params.get(setting.name) is not None}


def apply(
    settings: Sequence[Setting],
    environ: MutableMapping[str, str],
    *,
    flags: Mapping[str, str],
    env_file: Mapping[str, str],
    presets: Mapping[str, str] | None = None,
) -> Origins:
    """Put flags, ``.env`` and a command's presets into `environ`; return which variables came from where.

    A flag overrides. A pair of ``.env`` or a preset is taken only when neither its variable nor another one
    of the same setting is set: ``PORT`` given by the platform wins over ``AGENTRUN_PORT`` in a file.
    """
    origins: Origins = {}
    for values, origin in ((env_file, ".env"), (presets or {}, "preset")):
        fresh = [name for name in values if not _is_set(name, settings, environ)]
        for name in fresh:
            environ[name] = values[name]
            origins[name] = typing.cast("Origin", origin)
    for name, value in flags.items():
        environ[name] = value
        origins[name] = "flag"
    return origins


def warn_of_unknown(settings: Sequence[Setting], environ: Mapping[str, str]) -> None:
    """Point at variables that look like a mistyped one of `settings`, on stderr; other programs may have theirs."""
    known = {setting.variable for setting in settings}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and known.isdisjoint((name, name.removesuffix("_FILE"))):
            import difflib

            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if near:
                click.echo(f"Warning: {name} is not a setting; did you mean {near[0]}?", err=True)


def _is_set(name: str, settings: Sequence[Setting], environ: Mapping[str, str]) -> bool:
    for setting in settings:
        variable = setting.variable
        if name in (variable, variable + "_FILE", *setting.standard):
            environ = _own_variables(setting, environ)
            return (
                variable in environ
                or variable + "_FILE" in environ
                or any(_usable(setting, standard, environ) for standard in setting.standard)
            )
    return name in environ


def _usable(setting: Setting, standard: str, environ: Mapping[str, str]) -> bool:
    text = environ.get(standard)
    if text is None:
        return False
    try:
        (_host_of_shell if standard == "HOST" else setting.parse)(text)
    except ValueError:
        return False
    return True


def _own_variables(setting: Setting, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Leave out Kubernetes' ``AGENTRUN_PORT=tcp://…``, which it sets for a service called "agentrun"."""
    if setting.name == "port" and environ.get(setting.variable, "").startswith(("tcp://", "udp://")):
        return {name: value for name, value in environ.items() if name != setting.variable}
    return environ


def origin_of(setting: Setting, environ: Mapping[str, str], origins: Origins) -> tuple[str, Origin]:
    """Return the variable that `setting` is read from and who set it; ``("", "default")`` when nobody did."""
    environ = _own_variables(setting, environ)
    if setting.variable in environ:
        return setting.variable, origins.get(setting.variable, "env")
    if setting.variable + "_FILE" in environ:
        return setting.variable + "_FILE", "file"
    for standard in setting.standard:
        if _usable(setting, standard, environ):
            return standard, origins.get(standard, "env")
    return "", "default"


def resolve(setting: Setting, environ: Mapping[str, str] | None = None) -> Any:
    """Return the value of `setting` from the environment, or its default.

    Raises:
        ConfigurationError: our variable is set to something that cannot be read. A standard one is ignored
        then.
    """
    environ = _own_variables(setting, os.environ if environ is None else environ)
    variable, _ = origin_of(setting, environ, {})
    if variable in setting.standard:
        return setting.parse(environ[variable])
    try:
        return parse_setting(setting.name, setting.parse, setting.default, environ)
    except ConfigurationError as exc:
        raise ConfigurationError(str(exc).replace("invalid literal for int() with base 10", "not a number")) from exc


# --- help -----------------------------------------------------------------------------------------


class SectionedCommand(click.Command):
    """A command whose help lists its options by section: there are too many for one list."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        by_name = {s.name: s for s in (*NETWORK_SETTINGS, *TARGET_SETTINGS, *SERVER_SETTINGS)}
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):  # the text above describes it
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                setting = by_name.get(param.name or "")
                sections.setdefault(setting.section if setting else "Options", []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
