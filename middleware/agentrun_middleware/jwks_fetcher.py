"""Fetches the key set of an identity provider: one GET that trusts nobody on the way.

* https only, verified against the name in the URL; http for the loopback.
* The name is resolved once, every address it has must be public (unless `allow_private`), and the connection goes to
  an address that was looked at: a name that changes its mind in between (DNS rebinding) gains nothing.
* No redirects, no proxies from the environment, no cookies, nothing compressed; status 200 alone.
* 256 KiB and 5 seconds at most, for everything together. No connection is kept: the next fetch is minutes away.

The content type is not looked at: providers send many, and whether it is a key set shows when it is parsed.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from agentrun_middleware.public_address import is_loopback, is_public

if TYPE_CHECKING:
    import httpx2

__all__ = ["Document", "FetchError", "JWKSFetcher", "Resolve"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host name and a port to IP addresses, the best first."""

_MAX_BYTES: Final = 256 * 1024
_TOTAL_SECONDS: Final = 5.0
_MAX_ATTEMPTS: Final = 3
"""How many addresses of a host are tried."""
_LOOPBACK_NAME: Final = "localhost"
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}

_VISIBLE = re.compile(r"[\x21-\x7e]+", re.ASCII)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_MAX_AGE = re.compile(r'(?:^|[\s,])max-age="?(\d{1,10})\b', re.ASCII | re.IGNORECASE)


class FetchError(Exception):
    """There is no document; the text is the reason, for the log."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a provider has published."""

    body: bytes
    max_age: float | None
    """Seconds for which it is fresh (RFC 9111, section 4.2.1), None when the provider does not say."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A URL, parsed once: what was checked is what is connected to."""

    scheme: str
    host: str
    port: int
    authority: str
    target: str
    address: IPv4Address | IPv6Address | None
    """`host`, where it is one."""


class JWKSFetcher:
    """Fetches from one URL; a call is a fetch.

    Args:
        url: https; http for ``localhost`` and loopback addresses.
        allow_private: the host may have addresses that are not public. The loopback is allowed to a URL that names it.
        ca_file: certificate authorities in PEM, in place of the usual ones.
        timeout: seconds that a fetch may take.
        resolve: in place of the system's resolver.

    Raises:
        ValueError: the URL or the file cannot work; the text does not repeat the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        allow_private: bool = False,
        ca_file: str | None = None,
        timeout: float = _TOTAL_SECONDS,
        resolve: Resolve | None = None,
    ) -> None:
        self._endpoint = _parse(url, allow_private)
        self._allow_private = allow_private
        self._timeout = timeout
        self._resolve = resolve or _ask_the_system
        self._context = _context_from(ca_file) if ca_file is not None else None
        self._ready = False

    @property
    def name(self) -> str:
        """The URL without its query, for the log."""
        endpoint = self._endpoint
        return f"{endpoint.scheme}://{endpoint.authority}{endpoint.target.partition('?')[0]}"

    async def __call__(self) -> Document:
        """Return what is published now.

        Raises:
            FetchError: that cannot be had.
        """
        try:
            async with asyncio.timeout(self._timeout):
                if self._context is None or not self._ready:
                    # Some 200 ms of imports and certificates, once: not in the event loop.
                    self._context = await asyncio.to_thread(_prepare, self._endpoint.scheme, self._context)
                    self._ready = True
                return await self._fetch(self._context)
        except TimeoutError:
            raise FetchError(f"no whole answer within {self._timeout:g} s") from None

    async def _fetch(self, context: ssl.SSLContext) -> Document:
        import httpx2

        try:
            addresses = await self._addresses()
            attempt_seconds = self._timeout / len(addresses)
            for address in addresses[:-1]:
                try:
                    return await self._get(address, context, attempt_seconds)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    continue
            return await self._get(addresses[-1], context, attempt_seconds)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as exc:
            raise FetchError(f"{type(exc).__name__}: {exc}"[:200]) from exc

    async def _addresses(self) -> Sequence[str]:
        """Return the addresses to try.

        Raises:
            FetchError: the host has an address that it may not have.
            OSError: it has none.
        """
        host = self._endpoint.host
        if self._endpoint.address is not None:
            return [host]
        found = [ip_address(text) for text in await self._resolve(host, self._endpoint.port)]
        if not found:
            raise OSError("the host has no address")
        if host == _LOOPBACK_NAME:
            if not all(map(is_loopback, found)):
                raise FetchError("localhost is not on the loopback here")
        elif not self._allow_private and not all(is_public(address) for address in found):
            raise FetchError("the host has an address that is not public")
        return [str(address) for address in _alternating(found)[:_MAX_ATTEMPTS]]

    async def _get(self, address: str, context: ssl.SSLContext, connect_seconds: float) -> Document:
        import httpx2

        endpoint = self._endpoint
        opened = _Opened()
        request = httpx2.Request(
            "GET",
            httpx2.URL(
                scheme=endpoint.scheme, host=address, port=endpoint.port, raw_path=endpoint.target.encode("ascii")
            ),
            headers={
                "host": endpoint.authority,
                "accept": "application/jwk-set+json, application/json;q=0.9, */*;q=0.1",
                "accept-encoding": "identity",
                "connection": "close",
                "user-agent": "agentrun-middleware",
            },
            # The certificate must be that of the name, whatever the address. The limit on the whole is in `__call__`.
            extensions={
                "sni_hostname": endpoint.host,
                "timeout": {"connect": connect_seconds},
                "trace": opened.note,
            },
        )
        # A bare transport: redirects, cookies, proxies and decoding are things of a client.
        async with opened, httpx2.AsyncHTTPTransport(verify=context, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            try:
                return await _read(response)
            finally:
                await response.aclose()


class _Opened:
    """The connection of a request, closed in any case: httpcore2 forgets one that is cancelled in its handshake."""

    def __init__(self) -> None:
        self._stream: Any = None

    async def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn what the transport does (the ``trace`` extension of httpx2)."""
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            await self._stream.aclose()


async def _read(response: "httpx2.Response") -> Document:
    if response.status_code != 200:
        raise FetchError(f"status {response.status_code}")
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise FetchError("the answer is compressed, which was not asked for")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > _MAX_BYTES:
            raise FetchError(f"more than {_MAX_BYTES} bytes")
    return Document(bytes(body), _max_age(response.headers))


def _max_age(headers: "httpx2.Headers") -> float | None:
    """Return for how long an answer is fresh from now on: what it says, less the time it lay in caches (``Age``)."""
    found = _MAX_AGE.search(headers.get("cache-control", ""))
    if found is None:
        return None
    age = headers.get("age", "")
    return max(0.0, float(found[1]) - (float(age) if re.fullmatch(r"\d{1,10}", age, re.ASCII) else 0.0))


def _alternating(addresses: Sequence[IPv4Address | IPv6Address]) -> list[IPv4Address | IPv6Address]:
    """Return `addresses`, the kinds in turn: where one kind leads nowhere, the second attempt is of the other."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return [address for address in chain.from_iterable(zip_longest(first, second)) if address is not None]


async def _ask_the_system(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _prepare(scheme: str, context: ssl.SSLContext | None) -> ssl.SSLContext:
    """Import all that a fetch needs; return `context`, or one with the certificate authorities of this machine."""
    import httpx2

    if context is None:
        # On http nobody is trusted. Left to itself the transport would load the authorities each time.
        context = httpx2.create_ssl_context() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    httpx2.AsyncHTTPTransport(verify=context, trust_env=False)  # which imports the rest
    return context


def _context_from(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # SSLError is one too
        raise ValueError(f"ca_file: no certificates can be read from it ({exc})") from None


def _parse(url: str, allow_private: bool) -> _Endpoint:
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise ValueError("jwks_url: printable ASCII only, without a backslash; write other names in Punycode")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("jwks_url: no URL") from None
    if "@" in parts.netloc:
        raise ValueError("jwks_url: no user name or password")
    if "#" in url:
        raise ValueError("jwks_url: no fragment")
    host = parts.hostname or ""
    address = _literal(host)
    bare = f"[{host}]" if isinstance(address, IPv6Address) else host
    is_host = address is not None or (len(host) <= 253 and _NAME.fullmatch(host) is not None)
    if not is_host or port == 0 or parts.netloc.lower() not in (bare, f"{bare}:{port}"):
        raise ValueError("jwks_url: no host, or no port, that can be connected to")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host, address)):
        raise ValueError("jwks_url: https is needed, or http on the loopback")
    # A name that turns out to be the loopback is refused; a URL that says so is what its writer meant.
    if not (allow_private or address is None or is_loopback(address) or is_public(address)):
        raise ValueError("jwks_url: its address is not public, which must be allowed (allow_private)")
    default = _DEFAULT_PORTS[parts.scheme]
    authority = bare if port in (None, default) else f"{bare}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Endpoint(parts.scheme, host, port or default, authority, target, address)


def _is_loopback(host: str, address: IPv4Address | IPv6Address | None) -> bool:
    return host == _LOOPBACK_NAME or (address is not None and is_loopback(address))


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    if "%" in host:
        return None  # a zone (RFC 4007), which means something on one machine alone
    try:
        return ip_address(host)
    except ValueError:
        return None
