"""``agentrun-server healthcheck``: tells whether the server on this machine is ready.

Meant for a container's HEALTHCHECK, which runs it every few seconds: it uses the standard library alone.
The whole check, name resolution included, is bounded by its timeout, because it runs in a thread that
nobody has to wait for.
"""

import os
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from agentrun_server.cli.settings import NETWORK_SETTINGS, resolve
from agentrun_server.errors import ConfigurationError

if TYPE_CHECKING:
    from http.client import HTTPConnection

__all__ = ["check", "default_url", "healthcheck_command"]

_MAX_BODY = 4096
"""Bytes of an error that are read."""


def default_url(environ: Mapping[str, str]) -> str:
    """Return where `run` would listen with this environment, as an address one can connect to."""
    by_name = {setting.name: setting for setting in NETWORK_SETTINGS}
    host: str = resolve(by_name["host"], environ)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - every interface has a loopback
    scheme = "https" if resolve(by_name["ssl_certfile"], environ) else "http"
    port = resolve(by_name["port"], environ)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check(url: str, path: str, *, timeout: float, uds: str | None = None) -> str | None:
    """Ask for `path`; return None when the answer is 200, otherwise what is wrong."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(_ask(url, path, timeout, uds)), daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome[0] if outcome else f"no answer within {timeout:g} s"


def _ask(url: str, path: str, timeout: float, uds: str | None) -> str | None:
    import http.client

    try:
        connection = _connection(url, timeout, uds)
    except ValueError as exc:
        return f"{url!r} is not an address: {exc}"
    except OSError as exc:
        return f"{uds}: {exc.strerror or exc}"
    try:
        connection.request("GET", path, headers={"User-Agent": "agentrun-server-healthcheck"})
        response = connection.getresponse()
        status, body = response.status, b"" if response.status == 200 else response.read(_MAX_BODY)
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except (OSError, http.client.HTTPException) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return f"{uds or url}: {reason}"
    finally:
        connection.close()
    return None if status == 200 else f"{path} answered {status}{_reason(body)}"


def _reason(body: bytes) -> str:
    """Return what an error of our server says, such as that the store cannot be reached."""
    import json

    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return ""
    return f": {message}" if isinstance(message, str) and message.isprintable() else ""


def _connection(url: str, timeout: float, uds: str | None) -> "HTTPConnection":
    import http.client
    import socket
    from urllib.parse import urlsplit

    if uds is not None:
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # so that it does not connect itself
        connection.sock.settimeout(timeout)
        try:
            connection.sock.connect(uds)
        except OSError:
            connection.close()
            raise
        return connection
    parts = urlsplit(url if "://" in url else "http://" + url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected http:// or https://")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    import ssl

    context = ssl.create_default_context()
    if parts.hostname in {"localhost", "127.0.0.1", "::1"}:
        # The certificate names the service, not this address, and nobody stands between a machine and itself.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)


@click.command("healthcheck", short_help="Tell whether the server is ready.")
@click.argument("url", required=False)
@click.option("--path", default="/readyz", show_default=True, metavar="PATH", help="What to ask for.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time for the whole check.",
)
@click.option("--uds", metavar="PATH", help="Ask over this Unix domain socket.  [default: AGENTRUN_UDS]")
def healthcheck_command(url: str | None, path: str, timeout: float, uds: str | None) -> None:
    """Exit with 0 when the server is ready, with 1 and one line when it is not.

    URL is the server's address; by default that of a `run` with the same environment (AGENTRUN_HOST,
    AGENTRUN_PORT, HOST, PORT). /livez instead of /readyz asks only whether it is alive.
    """
    if url is None and uds is None:
        uds = os.environ.get("AGENTRUN_UDS") or None
    try:
        address = url or default_url(os.environ)
    except ConfigurationError as exc:
        problem: str | None = str(exc)
    else:
        problem = check(address, path, timeout=timeout, uds=uds)
    if problem is not None:
        click.echo(f"unhealthy: {problem}", err=True)
        sys.exit(1)
