"""Good tokens in places where none may be, or beside others."""

from collections.abc import Iterator
from typing import Final

from tests.middleware.hostile.forge import (
    FORM,
    IN_QUERY,
    NONE_SENT,
    NOT_PRINTABLE,
    SECRET_AND_PUBLIC,
    SIGNATURE,
    TWO_CREDENTIALS,
    TWO_HEADERS,
    TWO_KEYS,
    Case,
    Forge,
    Make,
    Sent,
    cases,
    utf8,
)
from tests.middleware.tokens import ISSUER, claims

__all__ = ["requests"]


def _sent(*headers: tuple[str, str], query: str = "") -> Make:
    """Return what sends `headers`, with a good token in place of each ``{token}``, and another of each ``{other}``."""

    def make(forge: Forge) -> Sent:
        token, other = forge.good(), forge.issuer.token(claims(jti="other"))

        def fill(text: str) -> str:
            return text.replace("{token}", token).replace("{other}", other)

        return Sent(tuple((name, fill(value)) for name, value in headers), fill(query))

    return make


_BEARER: Final = ("authorization", "Bearer {token}")


def requests() -> Iterator[Case]:
    front = ["HS256"]
    schemes = ["Basic", "Digest", "Token", "JWT", "DPoP", "Negotiate", "ApiKey", "Bearer:", "Bearer,", "Bearers"]
    plain = ["x-api-key", "apikey", "x-auth-token", "x-access-token", "x-jwt-assertion", "x-goog-api-key", "token"]
    other = ["proxy-authorization", "x-authorization", "x-forwarded-authorization", "authorization_"]
    cookies = ["access_token", "token", "jwt", "authorization", "session", "__Host-token"]
    yield from cases(
        "no credential",
        NONE_SENT,
        front,
        ("nothing", _sent()),
        *((f"the scheme {scheme}", _sent(("authorization", f"{scheme} {{token}}"))) for scheme in schemes),
        ("no scheme", _sent(("authorization", "{token}"))),
        ("no space", _sent(("authorization", "Bearer{token}"))),
        ("a tab for a space", _sent(("authorization", "Bearer\t{token}"))),
        ("a colon", _sent(("authorization", "Bearer:{token}"))),
        ("the scheme in quotes", _sent(("authorization", '"Bearer" {token}'))),
        ("another scheme before", _sent(("authorization", "Basic YTpi, Bearer {token}"))),
        ("a look-alike scheme", _sent(("authorization", utf8("\u0392earer") + " {token}"))),
        ("Bearer alone", _sent(("authorization", "Bearer"))),
        ("Bearer and spaces", _sent(("authorization", "Bearer   "))),
        ("an empty header", _sent(("authorization", ""))),
        ("an empty api-key", _sent(("api-key", ""))),
        *((f"in a cookie, {name}", _sent(("cookie", f"{name}={{token}}"))) for name in cookies),
        *((f"in the header {name}", _sent((name, "{token}"))) for name in plain),
        *((f"in the header {name}, with Bearer", _sent((name, "Bearer {token}"))) for name in other),
        ("in a protocol of WebSocket", _sent(("sec-websocket-protocol", "bearer, {token}"))),
        (
            "names of who is calling",
            _sent(("x-auth-subject", "root"), ("x-auth-issuer", ISSUER), ("x-auth-scopes", "chat")),
        ),
        (
            "names of proxies",
            _sent(("x-forwarded-user", "root"), ("x-remote-user", "root"), ("x-forwarded-for", "127.0.0.1")),
        ),
        ("a claim to come from the loopback", _sent(("x-real-ip", "127.0.0.1"), ("forwarded", "for=127.0.0.1"))),
        ("another path in headers", _sent(("x-original-url", "/health"), ("x-rewrite-url", "/health"))),
    )
    query_names = ("access_token", "token", "jwt", "api_key", "api-key", "key", "id_token", "authorization", "bearer")
    spelled = ("ACCESS_TOKEN", "access%5Ftoken", "%61ccess_token", "access_token%20", "+token", "a=b&token", "a;token")
    yield from cases(
        "in the query",
        IN_QUERY,
        front,
        *((name, _sent(query=f"{name}={{token}}")) for name in (*query_names, *spelled)),
        ("and in the header", _sent(_BEARER, query="access_token={token}")),
        ("empty, and in the header", _sent(_BEARER, query="access_token")),
        ("and not one of its own", _sent(_BEARER, query="access_token=x")),
        status=400,
    )
    yield from cases(
        "twice",
        TWO_HEADERS,
        front,
        ("the same", _sent(_BEARER, _BEARER)),
        ("two good ones", _sent(_BEARER, ("authorization", "Bearer {other}"))),
        ("a bad one first", _sent(("authorization", "Bearer x"), _BEARER)),
        ("a bad one last", _sent(_BEARER, ("authorization", "Bearer x"))),
        ("Basic as well", _sent(_BEARER, ("authorization", "Basic YTpi"))),
        ("an empty one as well", _sent(_BEARER, ("authorization", ""))),
        ("in other letters", _sent(_BEARER, ("AUTHORIZATION", "Bearer {token}"))),
        status=400,
    )
    yield from cases(
        "twice", TWO_KEYS, front, ("api-key", _sent(("api-key", "{token}"), ("Api-Key", "{token}"))), status=400
    )
    yield from cases(
        "twice",
        TWO_CREDENTIALS,
        front,
        ("a good one and another in api-key", _sent(_BEARER, ("api-key", "x"))),
        ("another and a good one in api-key", _sent(("authorization", "Bearer x"), ("api-key", "{token}"))),
        ("two good ones, one in api-key", _sent(_BEARER, ("api-key", "{other}"))),
        (
            "the same but for case",
            lambda f: Sent((("authorization", f"Bearer {(t := f.good())}"), ("api-key", t.swapcase()))),
        ),
        status=400,
    )
    yield from cases(
        "api-key",
        SIGNATURE,
        SECRET_AND_PUBLIC,
        ("of somebody else", lambda forge: Sent((("api-key", forge.attacker.token()),))),
        (
            "of somebody else, in both headers",
            lambda forge: Sent((("authorization", f"bearer {(t := forge.attacker.token())}"), ("api-key", t))),
        ),
    )
    yield from cases("api-key", FORM, front, ("with =", lambda forge: Sent((("api-key", forge.good() + "="),))))
    yield from cases(
        "api-key",
        NOT_PRINTABLE,
        front,
        ("with Bearer", lambda f: Sent((("api-key", f"Bearer {f.good()}"),))),
        status=400,
    )
