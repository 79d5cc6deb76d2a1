"""Serving with uvicorn, as this server wants it: limits on what comes in, our log, our drain."""

import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentrun_server.config import ServerConfig
from agentrun_server.observability.logs import get_logger, log_config
from agentrun_server.server.asgi import ASGIApp

if TYPE_CHECKING:
    import uvicorn

__all__ = ["build_config", "run"]

logger = get_logger("agentrun_server.server")

_HTTP_PROTOCOL = "agentrun_server.server.http_protocol:GuardedHttpToolsProtocol"
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


def run(app: ASGIApp | str, *, reload: bool = False, reload_dirs: Sequence[str] = (), **options: Any) -> None:
    """Serve `app` until a signal ends it; `options` are those of `build_config`.

    Raises:
        SystemExit: the server could not start (status 3), or a worker was lost for good.
    """
    import uvicorn
    from uvicorn.supervisors import ChangeReload, Multiprocess

    raise_file_limit()
    if reload_dirs:
        options["reload_dirs"] = list(reload_dirs)
    config = build_config(app, reload=reload, **options)
    server = uvicorn.Server(config)
    if config.should_reload:
        ChangeReload(config, target=server.run, sockets=[config.bind_socket()]).run()
    elif config.workers > 1:
        Multiprocess(config, sockets=[config.bind_socket()]).run()
    else:
        try:
            server.run()
        except KeyboardInterrupt:
            return  # uvicorn raises the signal again after its shutdown
        if not server.started:
            raise SystemExit(3)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every stream is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.warning("cannot raise the limit of open files", extra={"limit": soft})
