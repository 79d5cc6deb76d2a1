"""`TrustedHostsMiddleware`: the server answers under its own names alone.

A browser lets a page read what the page's own host answers. Whoever owns a domain can let its name point to 127.0.0.1,
or into a network, once the page is there (DNS rebinding): then its requests reach a server that nobody outside can
reach, as requests to its own host, which neither CORS nor a firewall is in the way of. What the page cannot choose is
``Host``: it names the domain that the browser asked for.

* ``Host`` is all that counts. ``X-Forwarded-Host`` is never read: a proxy that knows the name can pass it on as
  ``Host``, and where two headers say the same, one of them is the one that nobody checked. Nor are ports: the same
  machine has them all.
* A name that is not one of the server's is answered 421: the request "does not match an origin for which the server has
  been configured" (RFC 9110, sections 7.4 and 15.5.20). A request of which no name can be read, since ``Host`` is
  missing, comes twice or is none, is answered 400, as RFC 9112 demands (section 3.2). Clients repeat neither.
* Names are compared without regard to case, a dot at the end and the form of an address.
"""

import logging
import re
from collections.abc import Collection, Iterable
from typing import Final

from agentrun_middleware.answers import Refusal, refuse
from agentrun_middleware.asgi import ASGIApp, Receive, Scope, Send
from agentrun_middleware.client_address import parse_address

__all__ = ["TrustedHostsMiddleware", "parse_host"]

logger = logging.getLogger("agentrun_middleware.trusted_hosts")

_LONGEST: Final = 270  # a name has 253 characters (RFC 1035), a port six with its colon
_HOST: Final = re.compile(
    rb"(?:\[(?P<literal>[0-9a-f:.]*:[0-9a-f:.]*)\]|(?P<name>(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63})\.?)(?P<port>:[0-9]{0,5})?"
)

_NO_NAME = Refusal(400, "The request needs one valid Host header.", "invalid_http_request")
_MISDIRECTED = Refusal(
    421, "This server is not known under the host name of the request (see trusted_hosts).", "misdirected_request"
)


class TrustedHostsMiddleware:
    """Passes on requests and WebSocket handshakes that name one of the server's own hosts.

    Args:
        app: the app behind.
        hosts: names and addresses, exact or with ``*.`` in front for all below a domain, which is not one of them:
            ``agents.example.com``, ``*.example.com``, ``127.0.0.1``, ``[::1]``. Names of other scripts in their form of
            ASCII.
        exempt_paths: paths of requests that pass whatever they name, below the point where the app is mounted; for
            probes, which ask by address.

    Raises:
        ValueError: there is no host, or one is none.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], exempt_paths: Iterable[str] = ()) -> None:
        if isinstance(hosts, str):
            raise ValueError("trusted_hosts is a list, not one string")
        if not hosts:
            raise ValueError("trusted_hosts is empty: name the hosts that this server has")
        self._app = app
        self._names = frozenset(_parse_entry(host) for host in hosts if not host.startswith("*."))
        self._domains = tuple(f".{_parse_domain(host)}" for host in hosts if host.startswith("*."))
        self._exempt = frozenset(exempt_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind = scope["type"]
        if kind == "websocket" or (kind == "http" and _path(scope) not in self._exempt):
            refusal = self._judge([value for name, value in scope["headers"] if name == b"host"])
            if refusal is not None:
                await refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _judge(self, hosts: list[bytes]) -> Refusal | None:
        """Return how a request with these Host headers is refused, None when it is not."""
        host = parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return _NO_NAME
        if host in self._names or host.endswith(self._domains):
            return None
        logger.warning("host not trusted", extra={"host": host})
        return _MISDIRECTED


def parse_host(value: bytes) -> str | None:
    """Return the name or address in a Host header, in the one form it is compared in; None when it is neither.

    Read are names of letters, digits, ``-`` and ``_`` in labels, IPv4 addresses, and IPv6 addresses in brackets, each
    with or without a port. What else a URI may hold in this place (RFC 3986, section 3.2.2) is in no server's name.
    """
    match = _match(value)
    return None if match is None else _canonical(match)


def _match(value: bytes) -> re.Match[bytes] | None:
    value = value.strip(b" \t").lower()
    return _HOST.fullmatch(value) if len(value) <= _LONGEST else None


def _canonical(match: re.Match[bytes]) -> str | None:
    literal: bytes | None = match["literal"]
    if literal is None:
        return match["name"].decode("ascii")
    address = parse_address(literal.decode("ascii"))
    return None if address is None else str(address)


def _parse_entry(text: str) -> str:
    bare = f"[{text}]" if text.count(":") > 1 and "[" not in text else text  # an address of IPv6 as it is
    match = _match(bare.encode("ascii", "replace"))
    name = None if match is None or match["port"] is not None else _canonical(match)
    if name is None:
        raise ValueError(
            f"trusted_hosts: {text!r} is neither a host name in ASCII nor an address; ports and schemes are left out"
        )
    return name


def _parse_domain(text: str) -> str:
    name = _parse_entry(text[2:])
    if parse_address(name) is not None:
        raise ValueError(f"trusted_hosts: {text!r}: there is nothing below an address")
    return name


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    return path.removeprefix(root)
