"""`ClientAddressMiddleware`: the address of the caller, not of the proxy in between.

A proxy writes into ``X-Forwarded-For`` who called it; but so can any caller, and only the last entries come from
proxies of one's own. So the header is believed only from a peer that is one of them, and is read from the right:
entries of own proxies are passed over, and the first that is none of them is the caller. What stands to the left of it
the caller may have made up.

It is the one header that is read. ``Forwarded`` (RFC 7239) tells the same, and where a proxy writes only one of two, a
client can write the other. The server's own handling of these headers must be off (uvicorn: ``--no-proxy-headers``),
because it would replace the peer before this middleware sees it.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from agentrun_middleware.asgi import ASGIApp, Receive, Scope, Send

__all__ = ["ClientAddressMiddleware", "TrustedProxies", "parse_address", "parse_forwarded"]

Address: TypeAlias = IPv4Address | IPv6Address

MAX_ENTRIES: Final = 20
"""Entries that are looked at, from the right: more proxies in a row there are not."""

_PEER = "agentrun_middleware.peer"
"""Key of the scope: the peer, when ``client`` is no longer it."""

_MAPPED = IPv6Network("::ffff:0:0/96")
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[0-9.]+)(?=:))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)


class ClientAddressMiddleware:
    """Puts the caller's address and scheme into ``scope["client"]`` and ``scope["scheme"]``.

    In place, so that what stands in front, for example an access log, sees it too. From ``X-Forwarded-Proto`` comes the
    scheme, if it is ``http`` or ``https`` and there is one value only. The request of a peer that is not trusted is
    left as it is.

    Args:
        app: the app behind.
        trusted_proxies: addresses and networks (CIDR) of the proxies.
        trust_unix_socket: trust every peer on a unix socket, for servers that listen on one for their proxy.

    Raises:
        ValueError: see `TrustedProxies`.
    """

    def __init__(self, app: ASGIApp, *, trusted_proxies: Collection[str], trust_unix_socket: bool = False) -> None:
        self._app = app
        self._proxies = TrustedProxies(trusted_proxies, unix_socket=trust_unix_socket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the caller's address."""
        if scope["type"] in ("http", "websocket") and self._proxies.sent(scope):
            self._read_headers(scope)
        await self._app(scope, receive, send)

    def _read_headers(self, scope: Scope) -> None:
        forwarded: list[bytes] = []
        schemes: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == b"x-forwarded-proto":
                schemes.append(value)
        client = self._proxies.find_client(forwarded)
        if client is not None:
            scope.setdefault(_PEER, scope.get("client"))
            scope["client"] = client
        scheme = schemes[0].strip(b" \t").lower() if len(schemes) == 1 else b""
        if scheme in (b"http", b"https"):
            text = scheme.decode("ascii")
            scope["scheme"] = text if scope["type"] == "http" else text.replace("http", "ws")


class TrustedProxies:
    """The peers whose headers are believed.

    Args:
        networks: addresses and networks (CIDR), IPv4 or IPv6.
        unix_socket: every peer on a unix socket is one of them.

    Raises:
        ValueError: a network is not valid, all addresses are in it, or there is nothing to trust.
    """

    def __init__(self, networks: Collection[str], *, unix_socket: bool = False) -> None:
        if isinstance(networks, str):
            raise ValueError("trusted_proxies is a list, not one string")
        if not networks and not unix_socket:
            raise ValueError("trusted_proxies is empty: name the proxies whose headers are to be believed")
        self._networks = tuple(_parse_network(text) for text in networks)
        self._unix_socket = unix_socket
        self._knows = lru_cache(maxsize=256)(self._is_peer)  # the same few peers send all requests

    def sent(self, scope: Scope) -> bool:
        """Return whether the peer that sent the request is trusted."""
        peer = scope[_PEER] if _PEER in scope else scope.get("client")
        if peer and peer[0]:
            return self._knows(peer[0])
        # ASGI: ``server`` is (path, None) on a unix socket. Elsewhere a peer without an address has just left.
        server = scope.get("server")
        return self._unix_socket and server is not None and server[1] is None

    def find_client(self, forwarded: Collection[bytes]) -> tuple[str, int] | None:
        """Return address and port (0: unknown) of the caller, from the lines of ``X-Forwarded-For``.

        That is the rightmost that is not trusted. Where all are trusted, or an entry cannot be read, it is the last one
        that could be: an own proxy itself. None when that is not even the rightmost one.
        """
        client: tuple[str, int] | None = None
        for entry in reversed(b",".join(forwarded).rsplit(b",", MAX_ENTRIES)[-MAX_ENTRIES:]):
            parsed = parse_forwarded(entry.decode("latin-1"))
            if parsed is None:
                break
            address, port = parsed
            client = str(address), port
            if not self._has(address):
                break
        return client

    def _is_peer(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and self._has(address)

    def _has(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse_address(text: str) -> Address | None:
    """Return the address, None if `text` is none.

    An IPv4-mapped IPv6 address is the IPv4 address, so that each caller has one name only. The zone of an address is
    left out: it means something only on the machine that wrote it.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def parse_forwarded(entry: str) -> tuple[Address, int] | None:
    """Return address and port (0: unknown) of one entry of ``X-Forwarded-For``, None if it is anything else.

    Read are ``192.0.2.1``, ``192.0.2.1:4711``, ``2001:db8::1``, ``[2001:db8::1]`` and ``[2001:db8::1]:4711``.
    """
    text = entry.strip(" \t")
    match = _WITH_PORT.fullmatch(text)
    if match is None:
        address, port = parse_address(text), 0
    elif match["v6"] is not None and ":" not in match["v6"]:
        return None  # an IPv4 address in brackets
    else:
        address, port = parse_address(match["v6"] or match["v4"]), int(match["port"] or 0)
    return None if address is None or port > 65535 else (address, port)


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    if text == "*":
        raise ValueError(
            "trusted_proxies may not be '*': whoever reaches the server could then write any address into "
            "X-Forwarded-For. Name the proxies, as addresses or networks such as 10.0.0.0/8"
        )
    try:
        network = ip_network(text)
    except ValueError as exc:
        raise ValueError(f"trusted_proxies: {exc}") from None
    if network.prefixlen == 0:
        raise ValueError(f"trusted_proxies may not be {text}, which is every address there is; name the proxies")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError(f"trusted_proxies: {text} is IPv4; write it as IPv4")
    return network
