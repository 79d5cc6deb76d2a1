"""Headers that lead a reader astray: to an attacker's key, to another meaning, to another kind of token."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from tests.middleware.hostile.forge import (
    CRITICAL,
    FORM,
    KEY,
    NO_KID,
    PUBLIC,
    SECRET_AND_PUBLIC,
    SIGNATURE,
    TYPE,
    Case,
    Forge,
    Make,
    cases,
    pem,
    rows,
    with_header,
)
from tests.middleware.tokens import ISSUER, base64url, claims, signer

__all__ = ["STRANGE_KIDS", "headers"]


def _attackers(header: Callable[[Forge], Mapping[str, Any]]) -> Make:
    """Return what makes a token that the attacker has signed, with a header that leads to the attacker's key."""
    return lambda forge: forge.attacker.token(claims(), **header(forge))


def _detached(forge: Forge) -> str:
    """The payload is not encoded (RFC 7797)."""
    header = base64url(json.dumps({"alg": forge.issuer.algorithm, "b64": False, "crit": ["b64"]}).encode())
    payload = json.dumps(claims(), separators=(",", ":"))
    signature = forge.issuer.sign(f"{header}.{payload}".encode())
    return f"{header}..{base64url(signature)}"


STRANGE_KIDS: Final = (
    *("", "first", "FIRST", "../../../../etc/passwd", "/dev/null", "file:///dev/null", "C:\\Windows\\win.ini"),
    *("' OR '1'='1", "x' UNION SELECT 'key' --", "| id", "$(id)", "`id`", "first\0", "\0", "first\r\nx: y", "${7*7}"),
    *("first ", "\uff46irst", "\u202efirst", "__class__", "0", "*", "." * 1000, "A" * 5000),
)


def headers() -> Iterator[Case]:
    yield from cases(
        "crit",
        CRITICAL,
        SECRET_AND_PUBLIC,
        ("an extension nobody knows", with_header(crit=["exp2"], exp2=1)),
        ("an extension that is not there", with_header(crit=["nothing"])),
        ("b64", with_header(crit=["b64"], b64=True)),
        ("alg", with_header(crit=["alg"])),
        ("exp", with_header(crit=["exp"], exp=0)),
        *rows(lambda value: with_header(crit=value), ([], "b64", None, 0, {}, [1], [[]])),
        ("b64 false", with_header(crit=["b64"], b64=False)),
        ("b64 false without crit", with_header(b64=False)),
        ("b64 true without crit", with_header(b64=True)),
        ("b64 null", with_header(b64=None)),
    )
    yield from cases("crit", FORM, SECRET_AND_PUBLIC, ("b64 false, and a payload that is elsewhere", _detached))
    yield from cases(
        "a key of the attacker's",
        SIGNATURE,
        PUBLIC,
        ("jwk", _attackers(lambda forge: {"jwk": forge.attacker.jwk("evil"), "kid": "evil"})),
        ("jku", _attackers(lambda forge: {"jku": f"{forge.attacker_url}/jwks.json", "kid": "evil"})),
        ("jku with the issuer in it", _attackers(lambda f: {"jku": f"{f.attacker_url}/?{ISSUER}", "kid": "evil"})),
        ("x5u", _attackers(lambda forge: {"x5u": f"{forge.attacker_url}/cert.pem"})),
        ("x5c", _attackers(lambda f: {"x5c": [base64.b64encode(f.attacker.public(Encoding.DER)).decode()]})),
        ("x5t", _attackers(lambda _: {"x5t": base64url(bytes(20)), "x5t#S256": base64url(bytes(32))})),
        ("kid a URL", _attackers(lambda forge: {"kid": f"{forge.attacker_url}/jwks.json"})),
        ("kid the key", _attackers(lambda forge: {"kid": pem(forge.attacker).decode()})),
        ("iss in the header a URL", _attackers(lambda forge: {"iss": forge.attacker_url})),
        (
            "all of them",
            _attackers(
                lambda f: {
                    **{name: f"{f.attacker_url}/{name}" for name in ("jku", "x5u", "kid", "iss")},
                    "jwk": f.attacker.jwk("evil"),
                }
            ),
        ),
    )
    yield from cases(
        "a key of the attacker's",
        SIGNATURE,
        ["HS256"],
        ("jwk with a secret", _attackers(lambda f: {"jwk": {"kty": "oct", "k": base64url(f.attacker.key)}})),
        *rows(lambda kid: _attackers(lambda _: {"kid": kid}), STRANGE_KIDS),
    )
    not_text: tuple[Any, ...] = (0, 1, -1, 1.5, True, False, None, [], ["first"], {}, {"first": 1})
    yield from cases("kid", NO_KID, ["HS256", "kids"], *rows(lambda value: with_header(kid=value), not_text))
    yield from cases(
        "kid",
        KEY,
        ["kids"],
        *rows(lambda kid: with_header(kid=kid), (kid for kid in STRANGE_KIDS if kid != "first")),
        ("none", lambda forge: forge.issuer.token()),
        ("somebody else's", lambda _: signer("RS256", "attacker").token(kid="third")),
    )
    yield from cases(
        "kid",
        SIGNATURE,
        ["kids"],
        ("of another key of the issuer", with_header(kid="second")),
        ("of a good key, signed by somebody else", lambda _: signer("RS256", "attacker").token(kid="first")),
    )
    kinds = ("dpop+jwt", "logout+jwt", "secevent+jwt", "JOSE", "JWE", "id_token", "jwt ", " jwt", "jwt\0", "at+jwt+x")
    look_alikes = ("\uff2a\uff37\uff34", "JW\u0422", "application/", "text/jwt", "application/application/jwt", "at")
    yield from cases(
        "typ",
        TYPE,
        SECRET_AND_PUBLIC,
        *rows(lambda kind: with_header(typ=kind), (*kinds, *look_alikes)),
        *rows(lambda value: with_header(typ=value), (None, 0, 1, True, [], ["JWT"], {}, {"JWT": 1})),
    )
