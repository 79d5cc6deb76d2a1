"""``agentrun-server run`` and ``dev``: serve a target.

Start-up time counts here: nothing is imported before the target but click and what `target` needs, and a
single process imports the target itself, so that its errors are told without a detour. With several
workers, or with reload, other processes import it (`worker`), and this one only checks that it is there.
"""

import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from agentrun_server.cli import listen, worker
from agentrun_server.cli.settings import (
    NETWORK_SETTINGS,
    SERVER_SETTINGS,
    TARGET_SETTINGS,
    SectionedCommand,
    apply,
    env_file_option,
    flag_values,
    origin_of,
    read_env_file,
    resolve,
    setting_options,
    warn_of_unknown,
)
from agentrun_server.cli.target import TargetError, check_target, load_app, print_target_error
from agentrun_server.config import ServerConfig
from agentrun_server.errors import ConfigurationError

__all__ = ["DEV_PRESETS", "Network", "answer_here_only", "dev_command", "network_of", "prepare", "run_command"]

DEV_PRESETS = {
    "AGENTRUN_LOG_FORMAT": "text",
    "AGENTRUN_DOCS": "true",
    "AGENTRUN_DEBUG": "true",
    "AGENTRUN_DRAIN_TIMEOUT": "1",
}
"""What `dev` sets unless it is set elsewhere. The short drain: a reload waits for no long answer."""

_HERE = ("localhost", "*.localhost", "127.0.0.1", "::1")
"""Names that lead nowhere but to this machine (RFC 6761, section 6.3)."""

_ALL = (*NETWORK_SETTINGS, *TARGET_SETTINGS, *SERVER_SETTINGS)


@dataclass(frozen=True, kw_only=True)
class Network:
    """The settings of the listening process; the fields of `NETWORK_SETTINGS`."""

    host: str
    port: int
    uds: str | None
    root_path: str
    ssl_certfile: str | None
    ssl_keyfile: str | None
    timeout_keep_alive: int
    backlog: int
    workers: int
    log_level: str


def network_of(environ: Mapping[str, str]) -> Network:
    """Read the network settings.

    Raises:
        ConfigurationError: one cannot be read, or two contradict each other.
    """
    network = Network(**{setting.name: resolve(setting, environ) for setting in NETWORK_SETTINGS})
    if network.ssl_keyfile is not None and network.ssl_certfile is None:
        raise ConfigurationError("--ssl-keyfile needs --ssl-certfile")
    return network


def prepare(params: Mapping[str, Any], env_file: str | None, presets: Mapping[str, str] | None = None) -> Network:
    """Put flags, ``.env`` and `presets` into the environment, and refuse settings that cannot work."""
    flags = flag_values(_ALL, params)
    apply(_ALL, os.environ, flags=flags, env_file=read_env_file(env_file), presets=presets)
    warn_of_unknown(_ALL, os.environ)
    if params.get("uds") and (params.get("host") or params.get("port")):
        raise click.UsageError("--uds takes the place of --host and --port")
    try:
        ServerConfig()
        return network_of(os.environ)
    except ConfigurationError as exc:
        raise click.ClickException(str(exc)) from exc


# --- the commands ---------------------------------------------------------------------------------


@click.command("run", cls=SectionedCommand)
@click.argument("target", required=False)
@env_file_option
@click.option("--reload", is_flag=True, help="Start again when a file in the app's folder changes.")
@setting_options(_ALL)
def run_command(target: str | None, env_file: str | None, reload: bool, **params: Any) -> None:
    """Serve TARGET.

    TARGET is module:attribute or path/to/file.py:attribute. It may be an AgentRunServer, any ASGI app, or
    an agent: a function, a generator function, a callable object, or a mapping of model ids to agents.
    Without it, [tool.agentrun-server] app in pyproject.toml is served, or the first of server, agent and
    app in app.py or main.py.

    Every option that is not about TARGET can be given as an environment variable: AGENTRUN_ and its name,
    as in AGENTRUN_PORT. A flag wins over the environment, the environment over .env. What may hold a secret
    has a variable alone, as AGENTRUN_STORE_URL and AGENTRUN_AUTH_JWT_KEY; `config` lists them all.
    """
    network = prepare(params, env_file)
    if reload and params.get("workers"):
        raise click.UsageError("--reload runs one process; leave out --workers")
    _serve(target, network, reload=reload)


@click.command("dev", cls=SectionedCommand)
@click.argument("target", required=False)
@env_file_option
@setting_options([setting for setting in _ALL if setting.name != "workers"])
def dev_command(target: str | None, env_file: str | None, **params: Any) -> None:
    """Serve TARGET while you write it.

    As run, but it starts again when a file changes, logs as text, serves /docs, shows callers what went
    wrong in the agent, and listens on this machine only.
    """
    network = prepare(params, env_file, DEV_PRESETS)
    if not params.get("host"):
        os.environ["AGENTRUN_HOST"] = "127.0.0.1"  # not that of a container's environment
        network = network_of(os.environ)
    if network.uds is None and not _is_loopback(network.host):
        raise click.UsageError("dev listens on this machine only; to be reached from others, use run")
    answer_here_only(network)
    _serve(target, network, reload=True)


def answer_here_only(network: Network) -> None:
    """Let a server that listens on the loopback answer under names of this machine alone, unless they are set.

    Nobody else reaches it, but web pages do, by a name of their own that points here.
    """
    setting = next(setting for setting in SERVER_SETTINGS if setting.name == "trusted_hosts")
    is_set = origin_of(setting, os.environ, {})[1] != "default"
    if network.uds is None and _is_loopback(network.host) and not is_set:
        os.environ[setting.variable] = ",".join((*_HERE, network.host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- serving --------------------------------------------------------------------------------------


def _serve(target: str | None, network: Network, *, reload: bool) -> None:
    target = target or os.environ.get(worker.TARGET) or None
    try:
        app_dir, factory = (resolve(setting, os.environ) for setting in TARGET_SETTINGS)
    except ConfigurationError as exc:
        raise click.ClickException(str(exc)) from exc
    app_dir = str(Path(app_dir).resolve())
    try:
        if not reload and network.workers == 1:
            serve_app(load_app(target, app_dir=app_dir, factory=factory), network)
            return
        check_target(target, app_dir=app_dir)
    except TargetError as exc:
        print_target_error(exc)
        sys.exit(1)
    os.environ |= {worker.APP_DIR: app_dir, worker.FACTORY: "true" if factory else "false"}
    if target is not None:
        os.environ[worker.TARGET] = target
    serve_app(worker.IMPORT_STRING, network, factory=True, reload=reload, reload_dirs=_watched(target, app_dir))


def _watched(target: str | None, app_dir: str) -> Sequence[str]:
    """Return the folders a change in which starts the server again."""
    file = Path((target or "").rpartition(":")[0] or target or "")
    outside = file.suffix == ".py" and not file.resolve().is_relative_to(app_dir)
    return [app_dir, str(file.resolve().parent)] if outside else [app_dir]


def serve_app(
    app: Any,
    network: Network,
    *,
    factory: bool = False,
    reload: bool = False,
    reload_dirs: Sequence[str] = (),
) -> None:
    """Serve an app, or the import string of one, until the process is told to stop."""
    try:
        if network.uds is not None:
            listen.clear_socket(network.uds)
        else:
            listen.check_address(network.host, network.port)
    except listen.AddressError as exc:
        raise click.ClickException(str(exc)) from exc
    from agentrun_server.server import serve

    serve.run(
        app,
        host=network.host,
        port=network.port,
        workers=1 if reload else network.workers,
        reload=reload,
        factory=factory,
        uds=network.uds,
        log_level=network.log_level,
        root_path=network.root_path,
        timeout_keep_alive=network.timeout_keep_alive,
        backlog=network.backlog,
        ssl_certfile=network.ssl_certfile,
        ssl_keyfile=network.ssl_keyfile,
        reload_dirs=reload_dirs if reload else (),
    )
