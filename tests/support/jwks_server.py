"""An identity provider on the loopback that does as it is told: it publishes keys, rotates them, hangs, lies and dies.

::

    key = key_pair("RSA", "k1")
    async with JWKSServer(key) as provider:
        ...  # provider.url, key.sign(claims)
        provider.publish(key_pair("RSA", "k2"))
        provider.answer = says(b"<html>", status=200)

It speaks HTTP by single bytes, so that it can answer in ways that no HTTP library would.
"""

import asyncio
import base64
import datetime as dt
import gzip
import json
import socket
import ssl
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.clock import eventually, within

__all__ = [
    "Answer",
    "Authority",
    "Connection",
    "JWKSServer",
    "KeyPair",
    "gzip_bomb",
    "hangs",
    "jwks",
    "key_pair",
    "publishes",
    "raw",
    "redirects",
    "resets",
    "says",
    "trickles",
]

Headers = Iterable[tuple[str, str]]

_CURVES: Mapping[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
    "secp256k1": ec.SECP256K1(),
}
_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "Ed448": "EdDSA"}


# --- keys


@dataclass(frozen=True)
class KeyPair:
    """What an issuer signs with, and what it publishes of it."""

    kind: str
    kid: str | None
    private: Any = field(repr=False)

    @property
    def algorithm(self) -> str:
        """The shortest algorithm it is for."""
        return _ALGORITHMS.get(self.kind, "RS256")

    def jwk(self, **members: Any) -> dict[str, Any]:
        """Return the public key as a JWK; `members` are added, or left out where they are ``...``."""
        public = self.private.public_key()
        if self.kind.startswith("RSA"):
            numbers = public.public_numbers()
            jwk = {"kty": "RSA", "n": _uint(numbers.n), "e": _uint(numbers.e)}
        elif self.kind in _CURVES:
            numbers = public.public_numbers()
            size = (public.curve.key_size + 7) // 8
            jwk = {"kty": "EC", "crv": self.kind, "x": _uint(numbers.x, size), "y": _uint(numbers.y, size)}
        else:
            jwk = {"kty": "OKP", "crv": self.kind, "x": _base64url(public.public_bytes_raw())}
        named = {} if self.kid is None else {"kid": self.kid}
        return {name: value for name, value in {**jwk, **named, "use": "sig", **members}.items() if value is not ...}

    def pem(self) -> str:
        """Return the public key in PEM."""
        public = self.private.public_key()
        text: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return text.decode()

    def private_pem(self) -> str:
        """Return the private key in PEM."""
        text: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return text.decode()

    def sign(self, claims: Mapping[str, Any], algorithm: str | None = None, **headers: Any) -> str:
        """Return a token that says `claims`; `headers` go into its header, and None takes one out."""
        named = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(dict(claims), self.private, algorithm or self.algorithm, headers={**named, **headers})


def _uint(number: int, size: int | None = None) -> str:
    return _base64url(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def key_pair(kind: str = "P-256", kid: str | None = "k1", *, number: int = 0) -> KeyPair:
    """Return a key: the same for the same arguments, since RSA takes its time.

    `kind` is RSA, RSA-<bits>, P-256, P-384, P-521, secp256k1, Ed25519 or Ed448.
    """
    if kind.startswith("RSA"):
        return KeyPair(kind, kid, rsa.generate_private_key(65537, int(kind[4:] or 2048)))
    if kind in _CURVES:
        return KeyPair(kind, kid, ec.generate_private_key(_CURVES[kind]))
    if kind == "Ed448":
        return KeyPair(kind, kid, ed448.Ed448PrivateKey.generate())
    assert kind == "Ed25519", kind
    return KeyPair(kind, kid, ed25519.Ed25519PrivateKey.generate())


def jwks(*keys: KeyPair | Mapping[str, Any]) -> bytes:
    """Return a set of keys as it is published."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, KeyPair) else key for key in keys]}).encode()


# --- what the provider does


class Connection:
    """One request that has been read, to be answered by single bytes."""

    def __init__(self, server: "JWKSServer", head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.server = server
        self.head = head
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def left(self) -> None:
        """Wait until the other side has gone."""
        while await self._reader.read(65536):
            pass

    def reset(self) -> None:
        """End the connection as a killed process does."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Answer = Callable[[Connection], Awaitable[None]]


def says(body: bytes, status: int = 200, headers: Headers = (("content-type", "application/json"),)) -> Answer:
    """Answer in good order; a content-length among `headers` is sent in place of the true one."""

    async def answer(connection: Connection) -> None:
        await connection.send(_head(status, body, headers) + body)

    return answer


def publishes(*headers: tuple[str, str]) -> Answer:
    """Answer with the keys that are published at that moment."""

    async def answer(connection: Connection) -> None:
        body = connection.server.document
        await connection.send(_head(200, body, (("content-type", "application/jwk-set+json"), *headers)) + body)

    return answer


def _head(status: int, body: bytes, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers)]
    if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def raw(data: bytes) -> Answer:
    """Send bytes, whatever they are, and end the connection."""

    async def answer(connection: Connection) -> None:
        await connection.send(data)

    return answer


def redirects(status: int, location: str) -> Answer:
    """Send the caller elsewhere."""
    return says(b"", status, (("location", location),))


def hangs(first: bytes = b"") -> Answer:
    """Send `first` and then nothing, for as long as the caller has patience."""

    async def answer(connection: Connection) -> None:
        await connection.send(first)
        await connection.left()

    return answer


def trickles(interval: float = 0.005) -> Answer:
    """Send a good head, then a blank every now and then, for ever: something always happens, but it never ends."""

    async def answer(connection: Connection) -> None:
        await connection.send(_head(200, b"", (("content-length", "100000"),)))
        left = asyncio.ensure_future(connection.left())
        try:
            while not left.done():
                await connection.send(b" ")
                await asyncio.wait((left,), timeout=interval)
        finally:
            left.cancel()

    return answer


def resets(after: bytes) -> Answer:
    """Send `after`, then end the connection as a killed process does."""

    async def answer(connection: Connection) -> None:
        await connection.send(after)
        connection.reset()

    return answer


def gzip_bomb(size: int) -> Answer:
    """Send `size` blanks, compressed to next to nothing, though nobody said that this is understood."""
    return says(gzip.compress(b" " * size), headers=(("content-encoding", "gzip"),))


# --- the provider


class JWKSServer:
    """A provider of `keys`. ``async with`` starts and stops it; `answer` says what it does with a request."""

    def __init__(self, *keys: KeyPair | Mapping[str, Any], tls: ssl.SSLContext | None = None) -> None:
        self.document = jwks(*keys)
        self.answer: Answer = publishes()
        self.heads: list[str] = []
        """The request heads that have come, each with its lines."""
        self.server_names: list[str | None] = []
        """What clients asked for in their TLS handshakes (SNI)."""
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        if tls is not None:
            tls.sni_callback = lambda _, name, __: self.server_names.append(name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where the keys are, by address."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/keys"

    @property
    def fetches(self) -> int:
        """How many requests have come."""
        return len(self.heads)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def publish(self, *keys: KeyPair | Mapping[str, Any]) -> None:
        """Rotate: from now on these are the keys."""
        self.document = jwks(*keys)

    def hold(self) -> None:
        """Answer no request until `release`."""
        self._answers.clear()

    def release(self) -> None:
        """Answer what has been held, and all that comes."""
        self._answers.set()

    async def fetched(self, count: int) -> None:
        """Wait until `count` requests have come, since the very first."""
        await eventually(lambda: self.fetches >= count)

    async def start(self) -> None:
        """Listen: at the first start on any port, later on the same."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: nothing listens any more, and connections end."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.release()
        for writer in self._open:
            writer.transport.abort()
        await eventually(lambda: not self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = await within(reader.readuntil(b"\r\n\r\n"))
            self.heads.append(head.decode("latin-1"))
            await self._answers.wait()
            await self.answer(Connection(self, self.heads[-1], reader, writer))
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the caller has gone, which is what some tests are about
        finally:
            writer.transport.abort()
            self._open.discard(writer)


# --- TLS


class Authority:
    """A certificate authority of a test."""

    def __init__(self, name: str = "Test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._certificate(self._name, self._key.public_key())
        signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.own = (
            own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(signs, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def write(self, folder: Path) -> str:
        """Write the certificate of the authority to a file in `folder`; return its path."""
        path = folder / "authority.pem"
        path.write_bytes(self.own.public_bytes(Encoding.PEM))
        return str(path)

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return the context of a server whose certificate is for `names`, hosts or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test server")])
        certificate = (
            self._certificate(subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "server.pem")
            path.write_bytes(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                + certificate.public_bytes(Encoding.PEM)
            )
            context.load_cert_chain(path)
        return context

    def _certificate(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(issuer, critical=False)
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
