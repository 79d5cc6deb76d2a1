"""How the cases of the corpus are written down: a table's row says how a credential is made, by a `Forge`.

`FRONTS` are the settings of `JWTMiddleware` that they are sent to.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from agentrun_middleware.jwt import Issuer
from tests.middleware.tokens import ALGORITHMS, AUDIENCE, ISSUER, Signer, claims, signer

__all__ = [
    "ALGORITHM",
    "CRITICAL",
    "DAY",
    "EARLY",
    "EXPIRED",
    "FORM",
    "FRONTS",
    "INSUFFICIENT",
    "IN_QUERY",
    "KEY",
    "LONG",
    "MISSING",
    "NONE_SENT",
    "NOT_PRINTABLE",
    "NO_KID",
    "NO_SUBJECT",
    "OTHER_AUDIENCE",
    "OTHER_ISSUER",
    "PUBLIC",
    "SCOPES",
    "SECRET_AND_PUBLIC",
    "SIGNATURE",
    "SINGLE",
    "TOO_LONG_VALID",
    "TWO_CREDENTIALS",
    "TWO_HEADERS",
    "TWO_KEYS",
    "TYPE",
    "UNREADABLE",
    "UNSAFE_SUBJECT",
    "Case",
    "Forge",
    "Make",
    "Row",
    "Sent",
    "before_member",
    "cases",
    "claimed",
    "claiming",
    "crossed",
    "front_settings",
    "offset",
    "pem",
    "raw_payload",
    "rows",
    "sized",
    "utf8",
    "with_header",
    "with_member",
]

SINGLE: Final = ("HS256", "RS256", "ES256", "EdDSA")
PUBLIC: Final = ("RS256", "ES256", "EdDSA")
SECRET_AND_PUBLIC: Final = ("HS256", "ES256")

# Reasons, as the log has them.
FORM = "no form of credential that is known here"
LONG = "longer than 8 KiB"
NONE_SENT = "no credential"
UNREADABLE = "it cannot be decoded"
ALGORITHM = "an algorithm that its issuer does not use"
CRITICAL = "critical header extensions"
TYPE = "another type of token (typ)"
NO_KID = "kid is no text"
KEY = "no such signing key (kid)"
SIGNATURE = "the signature is wrong"
EXPIRED = "it has expired"
EARLY = "it is not valid yet"
MISSING = "exp, iss, aud or sub is missing"
OTHER_ISSUER = "another issuer (iss)"
OTHER_AUDIENCE = "it is meant for somebody else (aud)"
TOO_LONG_VALID = "it is valid for longer than max_lifetime"
NO_SUBJECT = "sub is no text"
UNSAFE_SUBJECT = "sub is no name that is safe to pass on"
SCOPES = "scope is no list of scopes"
INSUFFICIENT = "a required scope is missing"
NOT_PRINTABLE = "the credential is not one word of printable ASCII"
IN_QUERY = "a credential in the query"
TWO_HEADERS = "more than one Authorization header"
TWO_KEYS = "more than one api-key header"
TWO_CREDENTIALS = "two different credentials"

DAY: Final = 24 * 3600


@dataclass(frozen=True)
class Sent:
    """What a request shows: headers (bytes as characters, as in ISO 8859-1) and a query."""

    headers: tuple[tuple[str, str], ...] = ()
    query: str = ""

    @classmethod
    def bearer(cls, credential: str) -> "Sent":
        """Return what nearly all clients send."""
        return cls((("authorization", f"Bearer {credential}"),))


@dataclass(frozen=True)
class Forge:
    """Who makes a case: someone who can see the settings `front` and, with the issuer's key, is not trusted by it."""

    front: str
    attacker_url: str
    """A server of the attacker's, which nobody may ask."""

    @property
    def issuer(self) -> Signer:
        """Whose tokens are good."""
        return signer(self.front if self.front in ALGORITHMS else "RS256" if self.front == "kids" else "HS256")

    @property
    def attacker(self) -> Signer:
        """Someone with a key of the same kind."""
        return signer(self.issuer.algorithm, "attacker")

    def good(self, **header: Any) -> str:
        """Return a good token."""
        if self.front == "scopes":
            return self.issuer.token(claims(scope="chat"), **header)
        if self.front == "kids":
            return self.issuer.token(claims(), **{"kid": "first", **header})
        if self.front == "issuers":
            return signer("RS256", "a").token(claims(iss="https://a.example", aud="for-a"), **header)
        return self.issuer.token(claims(), **header)


Make = Callable[[Forge], str | Sent]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One credential. `make` returns it, or the whole of what is sent."""

    name: str
    front: str
    make: Make
    status: int
    reason: str
    over_http: bool
    """HTTP can carry it; a server need not even show an app all that is wrong otherwise."""

    def sent(self, attacker_url: str) -> Sent:
        """Return what the request shows."""
        made = self.make(Forge(self.front, attacker_url))
        return made if isinstance(made, Sent) else Sent.bearer(made)


Row = tuple[str, Make]
"""What it is called, and how it is made."""


def rows(make: Callable[[Any], Make], values: Iterable[Any]) -> Iterator[Row]:
    """Yield a row for each of `values`, named after it."""
    for value in values:
        shown = ascii(value)
        yield shown if len(shown) < 50 else f"{shown[:24]}...{shown[-16:]} ({len(shown)})", make(value)


def cases(
    group: str, reason: str, fronts: Iterable[str], *rows: Row, status: int = 401, over_http: bool = True
) -> Iterator[Case]:
    """Yield a case for each row and front."""
    for name, make in rows:
        for front in fronts:
            yield Case(
                name=f"{group}: {name} [{front}]",
                front=front,
                make=make,
                status=status,
                reason=reason,
                over_http=over_http,
            )


# --- settings


def _settings(algorithm: str) -> dict[str, Any]:
    key = signer(algorithm).verification_key
    return {"algorithms": [algorithm], "key": key, "issuer": ISSUER, "audience": AUDIENCE}


def _named_keys() -> dict[str, Any]:
    keys = {"first": signer("RS256").verification_key, "second": signer("RS256", "second").verification_key}
    return {**_settings("RS256"), "key": keys}


def _issuers() -> dict[str, Any]:
    def issuer(name: str, algorithm: str) -> Issuer:
        return Issuer(
            issuer=f"https://{name}.example",
            audience=f"for-{name}",
            algorithms=[algorithm],
            key=signer(algorithm, name).verification_key,
        )

    return {"issuers": [issuer("a", "RS256"), issuer("b", "ES256"), issuer("c", "HS256"), issuer("d", "RS256")]}


FRONTS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "HS256": lambda: _settings("HS256"),
    "RS256": lambda: _settings("RS256"),
    "ES256": lambda: _settings("ES256"),
    "EdDSA": lambda: _settings("EdDSA"),
    "kids": _named_keys,
    "issuers": _issuers,
    "scopes": lambda: {**_settings("HS256"), "required_scopes": ["chat"]},
}


def front_settings(front: str) -> dict[str, Any]:
    """Return the arguments of `JWTMiddleware` for a front."""
    return FRONTS[front]()


# --- what makes tokens


def utf8(text: str) -> str:
    """Return `text` as it stands in a header: each byte a character."""
    return text.encode().decode("latin-1")


def pem(key: Signer) -> bytes:
    """Return a public key in PEM."""
    return key.public(Encoding.PEM)


def sized(forge: Forge, size: int) -> str:
    """Return a token that is rightly signed and has exactly `size` characters."""
    for filler in range(4):
        header = {"alg": forge.issuer.algorithm, "typ": "JWT", "x": "x" * filler}
        missing = size - len(forge.issuer.compact(header, claims(pad="")))
        for length in range(missing * 3 // 4 - 3, missing * 3 // 4 + 4):
            token = forge.issuer.compact(header, claims(pad="x" * length))
            if len(token) == size:
                return token
    raise AssertionError("no token of that size")


def raw_payload(payload: Callable[[bytes], bytes], **changes: Any) -> Make:
    """Return what makes a token whose payload is any bytes, made from those of a good one; rightly signed."""
    return lambda forge: forge.issuer.compact(
        {"alg": forge.issuer.algorithm, "typ": "JWT"}, payload(json.dumps(claims(**changes)).encode())
    )


def with_member(member: bytes) -> Callable[[bytes], bytes]:
    """Return what adds a member, as it stands, at the end of an object."""
    return lambda text: text[:-1] + b"," + member + b"}"


def before_member(member: bytes) -> Callable[[bytes], bytes]:
    """Return what adds a member, as it stands, at the beginning of an object."""
    return lambda text: b"{" + member + b"," + text[1:]


def with_header(**header: Any) -> Make:
    """Return what makes a good token but for what is in its header."""
    return lambda forge: forge.good(**header)


def claiming(*, without: Collection[str] = (), **changes: Any) -> Make:
    """Return what makes a good token but for its claims."""
    return lambda forge: forge.issuer.token(claims(without=without, **changes))


def claimed(name: str, *values: Any) -> Iterator[Row]:
    """Yield a row for each of `values` of a claim."""
    return rows(lambda value: claiming(**{name: value}), values)


def offset(*, without: Collection[str] = (), **offsets: float) -> Make:
    """Return what makes a token whose times are so many seconds from now."""

    def make(forge: Forge) -> str:
        now = int(time.time())
        times: dict[str, Any] = {name: now + seconds for name, seconds in offsets.items()}
        return forge.issuer.token(claims(without=without, **times))

    return make


def crossed(iss: Any, by: Signer, /, *, aud: Any = "for-a", **header: Any) -> Make:
    """Return what makes a token in the name of one issuer that another has signed."""
    return lambda _: by.token(claims(iss=iss, aud=aud), **header)
