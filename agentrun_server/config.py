"""Settings of a server, read once.

Order of precedence: argument, then command-line flag, then ``AGENTRUN_*`` environment variable, then ``.env`` (command
line only), then the default written here. A field that is not given as an argument takes its value from the
environment variable named after it (``max_body_bytes`` → ``AGENTRUN_MAX_BODY_BYTES``) when the config is built; the
command line puts its flags and ``.env`` into the environment before it imports the user's module.

Times are seconds, sizes are bytes. ``none`` or ``off`` in the environment means ``None`` where a setting allows it.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from agentrun_server.errors import ConfigurationError

__all__ = ["ENV_PREFIX", "MIN_BODY_RATE", "OpenAIProtocolConfig", "ProtocolConfig", "ServerConfig", "parse_setting"]

ENV_PREFIX = "AGENTRUN_"

MIN_BODY_RATE = 8 * 1024
"""Bytes a second; a slower body makes no progress: it is a trickle meant to hold the connection."""

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_NONE = frozenset({"none", "off", "null", ""})


def _bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("expected true or false")


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None  # Python's own message repeats the value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _optional_float(text: str) -> float | None:
    return None if text.strip().lower() in _NONE else _float(text)


def _optional_int(text: str) -> int | None:
    return None if text.strip().lower() in _NONE else _int(text)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_setting(name: str, parse: Callable[[str], T], default: T, environ: Mapping[str, str]) -> T:
    """Return the setting `name` from `environ` (or the file named by ``<NAME>_FILE``), else `default`.

    Raises:
        ConfigurationError: the variable is set to something `parse` refuses; the value itself is not repeated.
    """
    variable = ENV_PREFIX + name.upper()
    text = environ.get(variable)
    if text is None:
        path = environ.get(variable + "_FILE")
        if path is None:
            return default
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs start-up time
                text = file.read().strip()
        except OSError as exc:
            raise ConfigurationError(f"{variable}_FILE cannot be read: {exc.strerror}") from exc
    try:
        return parse(text)
    except ValueError as exc:
        raise ConfigurationError(f"{variable} is not a valid value: {exc}") from exc


def _choice(*values: str) -> Callable[[str], Any]:
    def parse(text: str) -> str:
        lowered = text.strip().lower()
        if lowered not in values:
            raise ValueError(f"expected one of {', '.join(values)}")
        return lowered

    return parse


def _optional_text(text: str) -> str | None:
    """Read a text or ``none``. Nothing at all is a slip: an empty variable must not turn a check off."""
    text = text.strip()
    if not text:
        raise ValueError("must not be empty; write none for no value")
    return None if text.lower() in _NONE else text


def _setting(name: str, parse: Callable[[str], Any], default: Any, *, secret: bool = False) -> Any:
    """Declare a dataclass field whose default is looked up in the environment when the config is built.

    A secret is shown nowhere and has no flag: other users of the machine can read command lines.
    Typed `Any`, as `dataclasses.field` itself is to a type checker: the annotation of the field counts.
    """
    factory: Any = lambda: parse_setting(name, parse, default, os.environ)  # noqa: E731
    metadata = {"default": default, "parse": parse, "secret": secret}
    return dataclasses.field(default_factory=factory, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """What every protocol can be told: where it is served, and whether it is served at all."""

    prefix: str | None = None
    enable: bool = True

    def __post_init__(self) -> None:
        prefix = self.prefix
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise ConfigurationError(f"prefix must start with '/' and not end with one: {prefix!r}")


@dataclass(frozen=True, kw_only=True)
class OpenAIProtocolConfig(ProtocolConfig):
    """Settings of the OpenAI protocol.

    Without `prefix` the routes stand under ``/v1``, ``/openai/v1`` and without any prefix; with it, under it alone.
    `model_name` is the id under which a single agent is listed by ``GET /v1/models``.
    """

    model_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a server. Every field may be given as ``AGENTRUN_<FIELD>`` instead, except the nested ones."""

    openai: OpenAIProtocolConfig | None = None

    # --- models
    strict_models: bool = _setting("strict_models", _bool, False)
    """With one agent: answer 404 to model names other than its own. (Several agents: always.)"""

    # --- CORS, off unless origins are given
    cors_origins: Sequence[str] | None = _setting("cors_origins", _list, ())
    """Origins a browser may call from. ``["*"]`` allows any, without credentials."""

    # --- the answer
    heartbeat_interval: float | None = _setting("heartbeat_interval", _optional_float, 15.0)
    """A silent stream gets a comment this often, so that proxies keep it open."""
    response_hold: float = _setting("response_hold", _float, 10.0)
    """How long the head of a stream waits for the first event, so that an early failure has a real status."""
    reasoning_field: Literal["both", "reasoning_content", "reasoning", "none"] = _setting(
        "reasoning_field", _choice("both", "reasoning_content", "reasoning", "none"), "both"
    )
    """Which key carries reasoning text in Chat Completions."""
    agent_events: Sequence[str] = _setting("agent_events", _list, ())
    """Kinds of ``x_agent`` activity sent to every caller: tools, steps, progress, io. A request can ask for more."""
    offered_agent_events: Sequence[str] = _setting("offered_agent_events", _list, ("tools", "steps", "progress", "io"))
    """Kinds a request can ask for. ``io`` shows what the agent's own tools are given and return."""
    human_input_tool: str = _setting("human_input_tool", str, "request_human_input")
    """Name of the client tool that a HITL event calls, when the client declares such a tool."""
    strict_fields: bool = _setting("strict_fields", _bool, False)
    """Refuse unknown request fields, as OpenAI does, instead of handing them to the agent."""
    debug: bool = _setting("debug", _bool, False)
    """Show callers the text of an agent's exception. Never in production."""

    # --- time limits of a run
    first_event_timeout: float | None = _setting("first_event_timeout", _optional_float, 300.0)
    run_timeout: float | None = _setting("run_timeout", _optional_float, 1800.0)
    write_timeout: float | None = _setting("write_timeout", _optional_float, 60.0)
    """A client that reads nothing for this long is dropped."""
    cancel_grace: float = _setting("cancel_grace", _float, 10.0)
    """How long a cancelled agent may clean up before the server stops waiting for it."""
    on_disconnect: Literal["cancel", "continue"] = _setting("on_disconnect", _choice("cancel", "continue"), "cancel")

    # --- admission
    max_concurrent_runs: int = _setting("max_concurrent_runs", _int, 4096)
    max_queued_runs: int = _setting("max_queued_runs", _int, 256)
    queue_timeout: float = _setting("queue_timeout", _float, 10.0)
    max_sync_threads: int = _setting("max_sync_threads", _int, 256)
    """Sync agents running at once; each has a thread of its own. More wait in the queue."""
    max_websockets: int = _setting("max_websockets", _int, 1000)
    """WebSockets of one process; each may run 16 responses at once."""
    max_websockets_per_owner: int | None = _setting("max_websockets_per_owner", _optional_int, 250)
    """Those of one caller; None: no limit of its own. Without authentication nobody is told from others."""
    drain_timeout: float = _setting("drain_timeout", _float, 30.0)
    """After SIGTERM, open answers may finish for this long."""

    # --- limits of a request
    max_body_bytes: int = _setting("max_body_bytes", _int, 10 * 1024 * 1024)
    body_timeout: float = _setting("body_timeout", _float, 15.0)
    """Time without progress in which a body must arrive; a trickle slower than 8 KiB/s does not count as progress."""
    max_header_bytes: int = _setting("max_header_bytes", _int, 64 * 1024)
    max_header_count: int = _setting("max_header_count", _int, 200)
    header_timeout: float = _setting("header_timeout", _float, 10.0)
    max_messages: int = _setting("max_messages", _int, 2048)
    max_choices: int = _setting("max_choices", _int, 8)
    """Largest `n`; each choice is a run of the agent of its own."""
    max_output_bytes: int = _setting("max_output_bytes", _int, 50 * 1024 * 1024)
    """An answer longer than this ends with finish reason ``length``."""

    # --- who may call; nothing is checked unless one of the first three is set
    auth_jwks_url: str | None = _setting("auth_jwks_url", _optional_text, None)
    """Where the issuer of JSON web tokens publishes its signing keys."""
    auth_jwt_key: str | None = _setting("auth_jwt_key", _optional_text, None, secret=True)
    """The secret (HS algorithms) or public key in PEM that signs tokens, in place of `auth_jwks_url`."""
    auth_keys_file: str | None = _setting("auth_keys_file", _optional_text, None)
    """File of API keys, made with ``agentrun-server keys``."""
    auth_keys_pepper: str | None = _setting("auth_keys_pepper", _optional_text, None, secret=True)
    """Secret that API keys are hashed with; without it, the file ``<auth_keys_file>.pepper``."""
    auth_issuer: str | None = _setting("auth_issuer", _optional_text, None)
    """``iss`` of the tokens."""
    auth_audience: Sequence[str] = _setting("auth_audience", _list, ())
    """``aud`` under which tokens are meant for this server."""
    auth_jwt_algorithms: Sequence[str] = _setting("auth_jwt_algorithms", _list, ("RS256",))
    """How tokens are signed: algorithms of one family."""
    auth_leeway: float = _setting("auth_leeway", _float, 30.0)
    """How far clocks may differ."""
    auth_max_lifetime: float | None = _setting("auth_max_lifetime", _optional_float, 24 * 3600.0)
    """Tokens that are valid for longer are refused."""
    auth_jwks_private: bool = _setting("auth_jwks_private", _bool, False)
    """The host of `auth_jwks_url` may have a private address."""
    auth_jwks_ca_file: str | None = _setting("auth_jwks_ca_file", _optional_text, None)
    """Certificate authorities for `auth_jwks_url`, in place of the usual ones."""
    auth_required_scopes: Sequence[str] = _setting("auth_required_scopes", _list, ())
    """Scopes that every caller must have."""
    auth_public_paths: Sequence[str] = _setting("auth_public_paths", _list, ())
    """Paths that need no credential, compared exactly. Probes never need one."""
    auth_model_scopes: Literal["optional", "required"] = _setting(
        "auth_model_scopes", _choice("optional", "required"), "optional"
    )
    """``optional``: a caller with scopes like ``models:research`` may use these models alone, one without any may use
    all. ``required``: nobody may use a model without its scope."""
    trusted_proxies: Sequence[str] = _setting("trusted_proxies", _list, ())
    """Networks (CIDR) of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed."""
    trusted_hosts: Sequence[str] = _setting("trusted_hosts", _list, ())
    """Hosts under which the server answers, exact or as ``*.example.com``; none, or ``*``: any."""

    # --- how much each caller may ask for
    rate_limit_requests: float | None = _setting("rate_limit_requests", _optional_float, None)
    """Requests a minute."""
    rate_limit_tokens: float | None = _setting("rate_limit_tokens", _optional_float, None)
    """Tokens a minute, of questions and answers together."""
    rate_limit_redis_url: str | None = _setting("rate_limit_redis_url", _optional_text, None, secret=True)
    """Redis that holds the limits of all workers and replicas together; without it, each has its own."""

    # --- the Responses API
    server_tool_items: Literal["mcp_call", "hidden"] = _setting(
        "server_tool_items", _choice("mcp_call", "hidden"), "mcp_call"
    )
    """Whether responses show calls of the agent's own tools, with arguments and outputs."""
    approval_items: bool = _setting("approval_items", _bool, False)
    """Ask for confirmation by ``mcp_approval_request`` items, on which some clients fail."""
    server_label: str = _setting("server_label", str, "agent")
    """Who runs the agent's own tools, in items."""

    # --- what is kept
    store_url: str | None = _setting("store_url", _optional_text, "sqlite", secret=True)
    """``sqlite`` (the file ``agentrun.db`` in ``$AGENTRUN_HOME``, else in ``~/.agentrun``), ``sqlite:///path``,
    ``postgresql://…``; None: nothing is kept."""
    store_durable: bool = _setting("store_durable", _bool, True)
    """SQLite: sync to the disk before anything is acknowledged, so that not even a power cut loses it."""
    store_ttl: float | None = _setting("store_ttl", _optional_float, 30 * 24 * 3600.0)
    """Delete responses and completions this long after they were last used; conversations stay."""
    session_ttl: float | None = _setting("session_ttl", _optional_float, 90 * 24 * 3600.0)
    """Delete a session this long after it was last used, with all that is in it."""
    store_max_bytes: int | None = _setting("store_max_bytes", _optional_int, None)
    """Delete the oldest responses and completions when the store is larger."""
    bus_redis_url: str | None = _setting("bus_redis_url", _optional_text, None, secret=True)
    """Redis by which replicas wake each other; without it they look into the store every second."""
    worker_lease: float = _setting("worker_lease", _float, 30.0)
    """A worker that has not been heard of for this long is dead, and others end its runs or run them again."""
    store_patience: float | None = _setting("store_patience", _optional_float, None)
    """A run whose store is away waits for it this long; None: for `worker_lease`, when it is others' at the latest."""
    idempotent_models: Sequence[str] = _setting("idempotent_models", _list, ())
    """Models whose background runs are run again when their worker dies, up to three times; ``*`` for all."""
    max_background_runs: int = _setting("max_background_runs", _int, 1024)
    """Background runs of one process, running and queued."""
    max_background_runs_per_owner: int | None = _setting("max_background_runs_per_owner", _optional_int, 256)
    """Those of one caller, who may have the same share of `max_background_bytes`; None: no limit of its own. Without
    authentication nobody is told from others."""
    max_background_bytes: int = _setting("max_background_bytes", _int, 256 * 1024 * 1024)
    """What the background runs of one process were asked, together, with what was said before."""
    conversation_busy: Literal["wait", "refuse"] = _setting("conversation_busy", _choice("wait", "refuse"), "wait")
    """What happens to a turn of a conversation while another one runs: it waits, or is answered 409."""
    conversation_wait: float = _setting("conversation_wait", _float, 60.0)
    """How long a turn waits for the one before it."""
    idempotency_ttl: float = _setting("idempotency_ttl", _float, 24 * 3600.0)
    """How long an ``Idempotency-Key`` is remembered with its answer."""
    memory_collection_name: str | None = _setting("memory_collection_name", _optional_text, None)
    """Turn sessions on (``request.session``); their memory is kept under this name."""
    trust_session_headers: bool = _setting("trust_session_headers", _bool, False)
    """Believe Open WebUI's headers for chat and user; only behind a gateway or with a key of Open WebUI alone."""

    # --- observability
    access_log: bool = _setting("access_log", _bool, True)
    log_format: Literal["auto", "json", "text"] = _setting("log_format", _choice("auto", "json", "text"), "auto")
    """``auto``: text on a terminal, JSON lines elsewhere."""
    trust_request_id: bool = _setting("trust_request_id", _bool, False)
    """Take over ``X-Request-ID`` from the client; only behind a gateway that sets it."""
    docs: bool = _setting("docs", _bool, False)
    """Serve ``/docs`` and ``/openapi.json``."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, so that a typing slip shows at start and not under load."""
        for name in ("max_concurrent_runs", "max_sync_threads", "max_body_bytes", "max_header_bytes",
                     "max_header_count", "max_messages", "max_choices", "max_output_bytes",
                     "max_background_runs", "max_background_bytes", "max_websockets"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1")
        for name in ("max_background_runs_per_owner", "max_websockets_per_owner"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, or None for no limit of its own")
        for name in ("heartbeat_interval", "first_event_timeout", "run_timeout", "write_timeout",
                     "body_timeout", "header_timeout", "store_ttl", "session_ttl", "worker_lease",
                     "idempotency_ttl"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be more than 0 seconds (or None, where a limit can be off)")
        if self.store_patience is not None and not 0 < self.store_patience <= self.worker_lease:
            raise ConfigurationError(
                "store_patience must be more than 0 seconds, and not more than worker_lease: then the run is others'"
            )
        for name in ("rate_limit_requests", "rate_limit_tokens", "auth_max_lifetime"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} must be more than 0, or None for no limit")
        for name in (
            "max_queued_runs",
            "queue_timeout",
            "cancel_grace",
            "drain_timeout",
            "response_hold",
            "conversation_wait",
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigurationError(f"{name} must be a finite number, not negative")
        for name in ("agent_events", "offered_agent_events"):
            unknown = set(getattr(self, name)) - {"tools", "steps", "progress", "io"}
            if unknown:
                raise ConfigurationError(f"{name} knows tools, steps, progress and io, not {sorted(unknown)}")
