"""Serving with uvicorn, as this server wants it: limits on what comes in, our log, our drain."""

import gc
import resource
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrun_server.config import ServerConfig
from agentrun_server.observability.logs import get_logger, log_config
from agentrun_server.server.asgi import ASGIApp

if TYPE_CHECKING:
    import uvicorn

__all__ = ["build_config", "calm_garbage_collector", "run"]

logger = get_logger("agentrun_server.server")

_HTTP_PROTOCOL = "agentrun_server.server.http.protocol:GuardedHttpToolsProtocol"
_CANNOT_START = 3
_TERMINATED = 128 + signal.SIGTERM
"""uvicorn's exit status for a server that did not start."""
_LAST_RESORT = 15
"""Seconds uvicorn waits for connections after our drain has ended; by then none should be busy."""


def build_config(
    app: ASGIApp | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    log_level: str = "info",
    timeout_keep_alive: int = 75,
    **options: Any,
) -> "uvicorn.Config":
    """Return uvicorn's configuration for `app` (or an import string, which `workers` and `reload` need).

    `timeout_keep_alive` is longer than a proxy's (nginx: 60 s), so that the proxy closes first and no request is lost.
    `options` go to `uvicorn.Config` and win over what is set here.
    """
    import uvicorn

    config = getattr(app, "config", None)
    log_format = config.log_format if isinstance(config, ServerConfig) else ServerConfig().log_format
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": workers,
        "http": _HTTP_PROTOCOL,
        "loop": "uvloop",
        "ws": "none",
        "lifespan": "auto",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "log_level": log_level,
        "log_config": log_config(log_format, log_level),
        "timeout_keep_alive": timeout_keep_alive,
        "timeout_graceful_shutdown": _LAST_RESORT,
    }
    return uvicorn.Config(app, **(settings | options))


def run(
    app: ASGIApp | str,
    *,
    reload: bool = False,
    reload_dirs: Sequence[str] = (),
    sockets: Sequence[socket.socket] | None = None,
    **options: Any,
) -> None:
    """Serve `app` until a signal ends it.

    `sockets` are bound ones to listen on, in place of host and port; other `options` are those of `build_config`.

    Raises:
        SystemExit: the server, or a worker, could not start (status 3).
    """
    import uvicorn

    raise_file_limit()
    calm_garbage_collector()
    if reload_dirs:
        options["reload_dirs"] = list(reload_dirs)
    config = build_config(app, reload=reload, **options)
    try:
        if config.should_reload or config.workers > 1:
            _supervise(config, list(sockets) if sockets is not None else [config.bind_socket()])
        else:
            _serve(uvicorn.Server(config), list(sockets) if sockets is not None else None)
    finally:
        if config.uds is not None:
            Path(config.uds).unlink(missing_ok=True)


def _serve(server: "uvicorn.Server", sockets: list[socket.socket] | None) -> None:
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after its shutdown
        server.run(sockets)
    if not server.started:
        raise SystemExit(_CANNOT_START)
    if signal.SIGTERM in server._captured_signals:  # process 1 of a container outlives the signal it raises
        raise SystemExit(_TERMINATED)


def _supervise(config: "uvicorn.Config", sockets: list[socket.socket]) -> None:
    import uvicorn
    from uvicorn.supervisors import ChangeReload, Multiprocess

    if config.should_reload:
        ChangeReload(config, target=uvicorn.Server(config).run, sockets=sockets).run()
        return

    class Workers(Multiprocess):
        terminated = False

        def handle_term(self) -> None:
            self.terminated = True
            super().handle_term()

    workers = Workers(config, sockets=sockets)
    workers.run()
    if workers.terminated:
        raise SystemExit(_TERMINATED)
    if any(process.exitcode == _CANNOT_START for process in workers.processes):
        raise SystemExit(_CANNOT_START)


def calm_garbage_collector() -> None:
    """Look for reference cycles less often: a request leaves none behind, and each look costs as much as its parsing.

    For processes that serve and do nothing else.
    """
    gc.set_threshold(10_000, 20, 20)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every stream is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.warning("cannot raise the limit of open files", extra={"limit": soft})
