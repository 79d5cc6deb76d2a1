"""Claims that are missing, of the wrong type, of the wrong time, about somebody else or from somebody else."""

import json
import time
from collections.abc import Iterator

from cryptography.hazmat.primitives.serialization import Encoding

from tests.middleware.hostile.forge import (
    ALGORITHM,
    DAY,
    EARLY,
    EXPIRED,
    INSUFFICIENT,
    MISSING,
    NO_SUBJECT,
    OTHER_AUDIENCE,
    OTHER_ISSUER,
    SCOPES,
    SECRET_AND_PUBLIC,
    SIGNATURE,
    TOO_LONG_VALID,
    UNREADABLE,
    UNSAFE_SUBJECT,
    Case,
    Make,
    Row,
    before_member,
    cases,
    claimed,
    claiming,
    crossed,
    offset,
    raw_payload,
    rows,
    with_member,
)
from tests.middleware.tokens import AUDIENCE, ISSUER, Signer, claims, signer

__all__ = ["names", "scopes", "several_issuers", "times"]


def _literally(name: str, *literals: str) -> Iterator[Row]:
    """Yield a row for each way to write a claim, as it stands."""
    return rows(
        lambda literal: raw_payload(with_member(f'"{name}":{literal}'.encode()), without=[name]),
        literals,
    )


def times() -> Iterator[Case]:
    fronts = SECRET_AND_PUBLIC
    yield from cases(
        "exp",
        EXPIRED,
        fronts,
        ("an hour ago", offset(exp=-3600, iat=-7200)),
        ("longer ago than clocks may differ", offset(exp=-31)),
        *claimed("exp", 0, -1, 1, 0.5, -(10**10), 946684800),
    )
    yield from cases("exp", MISSING, fronts, ("missing", claiming(without=["exp"])))
    yield from cases(
        "exp",
        UNREADABLE,
        fronts,
        *_literally("exp", "NaN", "Infinity", "1e309", "9" * 5000, "+1", "01"),
    )
    yield from cases(
        "exp",
        "exp is no time",
        fronts,
        *claimed("exp", "never", "", " ", "2099-01-01T00:00:00Z", "1e10", "0x7fffffff", [], [9999999999], {}, {"a": 1}),
        *claimed("exp", "9999999999", " 9999999999 ", "9_999_999_999", "\uff19" * 10, 10**11, 10**400, -(10**400)),
        *claimed("exp", None, True, False),
        *_literally("exp", "1e300", "9" * 4000),
        ("in milliseconds", lambda forge: forge.issuer.token(claims(exp=int(time.time() * 1000) + 300_000))),
    )
    yield from cases(
        "lifetime",
        TOO_LONG_VALID,
        fronts,
        ("a day and a minute", offset(iat=0, exp=DAY + 60)),
        ("a day and a minute, as a float", offset(iat=0, exp=DAY + 60.5)),
        ("for ever", claiming(exp=9_999_999_999)),
        ("from long ago", offset(iat=-10 * DAY, exp=300)),
        ("from the beginning", claiming(iat=0)),
        ("from before the beginning", claiming(iat=-1)),
        ("two days without iat", offset(without=["iat"], exp=2 * DAY)),
    )
    yield from cases(
        "nbf",
        EARLY,
        fronts,
        ("in an hour", offset(nbf=3600)),
        ("in a while", offset(nbf=90)),
    )
    yield from cases("nbf", UNREADABLE, fronts, *_literally("nbf", "NaN", "-Infinity", "1e309"))
    yield from cases(
        "nbf",
        "nbf is no time",
        fronts,
        *claimed("nbf", None, "now", "", "0", [], [0], {}, True, False, 10**12, -(10**12), 10**400),
        *_literally("nbf", "1e300"),
    )
    yield from cases(
        "iat",
        EARLY,
        fronts,
        ("in an hour", offset(iat=3600, exp=7200)),
        ("in a while", offset(iat=90)),
    )
    yield from cases(
        "iat",
        "iat is no time",
        fronts,
        *claimed("iat", None, "now", "", [], {}, "0", True, False, -(10**12), 10**400, -(10**400)),
        *_literally("iat", "-1e300"),
    )
    yield from cases("iat", UNREADABLE, fronts, *_literally("iat", "NaN", "-Infinity", "-1e309"))


def names() -> Iterator[Case]:
    yield from _issuer()
    yield from _audience()
    yield from _subject()
    fronts = SECRET_AND_PUBLIC
    yield from cases(
        "scope",
        SCOPES,
        fronts,
        *claimed("scope", 0, 1, 1.5, True, False, {}, {"chat": 1}, [1], [None], [["chat"]], [{"chat": 1}], ["a b"]),
        *claimed("scope", 'a"b', "a\\b", "chat\r\nx: y", "chat\tx", "chat\0", "ch\u00e4t", "chat\u00a0x", "a" * 256),
        *claimed("scope", ["chat", 'a"b'], ["chat\n"], ["chat", None]),
    )
    yield from cases("scp", SCOPES, fronts, *claimed("scp", "chat\nx", {"chat": True}, [1, 2], 0, False))
    yield from cases("jti", "jti is no text", fronts, *claimed("jti", None, 1, [], {}, True))


def _issuer() -> Iterator[Case]:
    fronts = SECRET_AND_PUBLIC
    yield from cases("iss", MISSING, fronts, ("missing", claiming(without=["iss"])), *claimed("iss", None))
    strings = {
        "somebody else": "https://evil.example/",
        "empty": "",
        "without the slash": ISSUER.rstrip("/"),
        "with two slashes": ISSUER + "/",
        "only its beginning": ISSUER[:-3],
        "with something behind": ISSUER + ".evil.example",
        "with something in front": "x" + ISSUER,
        "in upper case": ISSUER.upper(),
        "http": ISSUER.replace("https", "http"),
        "with a port": "https://issuer.example:443/",
        "with a user": "https://issuer.example@evil.example/",
        "with a space": ISSUER + " ",
        "with a line end": ISSUER + "\n",
        "with NUL": ISSUER + "\0",
        "with a look-alike letter": ISSUER.replace("i", "\u0456"),
        "percent-encoded": ISSUER.replace("i", "%69"),
        "of what it is for": AUDIENCE,
    }
    yield from cases("iss", OTHER_ISSUER, fronts, *((name, claiming(iss=text)) for name, text in strings.items()))
    yield from cases(
        "iss",
        OTHER_ISSUER,
        fronts,
        *claimed("iss", 0, 1, True, False, [], [ISSUER], [ISSUER, "x"], {}, {ISSUER: 1}),
    )


def _audience() -> Iterator[Case]:
    fronts = SECRET_AND_PUBLIC
    ours = AUDIENCE
    yield from cases("aud", MISSING, fronts, ("missing", claiming(without=["aud"])), *claimed("aud", None))
    yield from cases(
        "aud",
        OTHER_AUDIENCE,
        fronts,
        *claimed("aud", "other", "*", ISSUER, "agen", "agents", "AGENT", "agent ", " agent", "agent\n", "agent\0"),
        *claimed("aud", "agent,other", "agent other", "\u0430gent", "%61gent", 1, 1.5, True),
        *claimed(
            "aud", ["other"], ["agents", "agen"], [""], [ours, 1], [1, ours], [[ours]], [None], [True], [{ours: 1}]
        ),
        *claimed("aud", {ours: 1}, {"aud": ours}, "", [], {}, 0, False),
    )


def _subject() -> Iterator[Case]:
    fronts = SECRET_AND_PUBLIC
    yield from cases("sub", MISSING, fronts, ("missing", claiming(without=["sub"])), *claimed("sub", None))
    yield from cases("sub", NO_SUBJECT, fronts, *claimed("sub", 0, 1, 1.5, True, False, [], ["root"], {}, {"root": 1}))
    yield from cases(
        "sub",
        UNSAFE_SUBJECT,
        fronts,
        *claimed("sub", "", " ", "a b", " root", "root ", "root\n", "root\r", "root\0", "root\x7f", "root\r\nx-y: z"),
        *claimed("sub", "r\u00f6\u00f6t", "\u0440oot", "root\u200b", "\u202eroot", "\ud800", "\uff52oot"),
        *claimed(
            "sub", "a,b", "a;", 'a"', "a'", "<a>", "$a", "%61", "a\\", "{}", "(a)", "*", "a&b", "?", "#", "[1]", "`a`"
        ),
        *claimed("sub", "a" * 256, "a" * 5000),
    )


def several_issuers() -> Iterator[Case]:
    a, b, c, d = (f"https://{name}.example" for name in "abcd")
    key_a, key_b, key_c, key_d = signer("RS256", "a"), signer("ES256", "b"), signer("HS256", "c"), signer("RS256", "d")
    public_a = Signer("HS256", key_a.public(Encoding.PEM))
    group, front = "several issuers", ["issuers"]
    yield from cases(
        group,
        ALGORITHM,
        front,
        ("a's name, b's key and algorithm", crossed(a, key_b)),
        ("b's name, a's key and algorithm", crossed(b, key_a, aud="for-b")),
        ("a's name, c's secret", crossed(a, key_c)),
        ("a's name, a's public key as a secret", crossed(a, public_a)),
        ("c's name, a's key", crossed(c, key_a, aud="for-c")),
        ("a's name, none", crossed(a, key_a, alg="none")),
        ("a's name, b's algorithm, a's key", crossed(a, key_a, alg="ES256")),
    )
    yield from cases(
        group,
        SIGNATURE,
        front,
        ("a's name, d's key of the same kind", crossed(a, key_d)),
        ("d's name, a's key of the same kind", crossed(d, key_a, aud="for-d")),
        ("a's name and algorithm, b's key", crossed(a, key_b, alg="RS256")),
        ("a's name and algorithm, c's secret", crossed(a, key_c, alg="RS256")),
        ("c's name and algorithm, b's key", crossed(c, key_b, aud="for-c", alg="HS256")),
        ("c's name and algorithm, a's public key as a secret", crossed(c, public_a, aud="for-c")),
        ("a's name, d's key and its name in the header", crossed(a, key_d, iss=d)),
        ("a's name, d's key and its name as kid", crossed(a, key_d, kid=d)),
    )
    yield from cases(
        group,
        OTHER_AUDIENCE,
        front,
        ("a's token for b", crossed(a, key_a, aud="for-b")),
        ("b's token for a", crossed(b, key_b, aud="for-a")),
        ("c's token for b and d", crossed(c, key_c, aud=["for-b", "for-d"])),
        ("d's token for a", crossed(d, key_d, aud="for-a")),
    )
    strings = (ISSUER, "", a + "/", a.upper(), f"{a} {b}", f"{a},{b}", "https://e.example")
    yield from cases(
        group,
        OTHER_ISSUER,
        front,
        *rows(lambda value: crossed(value, key_a), (*strings, None, 0, True, [], [a], [a, b], {}, {a: 1})),
        ("no iss", lambda _: key_a.token(claims(without=["iss"], aud="for-a"))),
    )

    def twice(first: str, last: str, key: Signer) -> Make:
        text = json.dumps(claims(iss=last, aud=["for-a", "for-b"])).encode()
        return lambda _: key.compact({"alg": key.algorithm}, before_member(f'"iss":"{first}"'.encode())(text))

    yield from cases(
        group,
        UNREADABLE,
        front,
        ("a's name and then b's, a's key", twice(a, b, key_a)),
        ("a's name and then b's, b's key", twice(a, b, key_b)),
        ("a payload that is no object", lambda _: key_a.compact({"alg": "RS256"}, [{"iss": a}])),
        ("a payload that is no JSON", lambda _: key_a.compact({"alg": "RS256"}, b"\xff")),
        ("a payload of 2500 lists", lambda _: key_a.compact({"alg": "RS256"}, b"[" * 2500 + b"]" * 2500)),
    )


def scopes() -> Iterator[Case]:
    yield from cases(
        "scopes",
        INSUFFICIENT,
        ["scopes"],
        ("none", claiming()),
        *claimed("scope", "", " ", "chats", "cha", "CHAT", "chat.read", "chat,admin", "*", "-chat", "models:chat"),
        *claimed("scope", None, [], [""], ["chats"], ["CHAT", "cha"]),
        ("null in both", claiming(scope=None, scp=None)),
        ("in scp, but scope speaks first", claiming(scope="other", scp="chat")),
        ("in scp, but scope is empty", claiming(scope="", scp=["chat"])),
        *(
            (f"under the name {name}", claiming(**{name: "chat"}))
            for name in ("scopes", "Scope", "roles", "permissions", "SCP")
        ),
        ("in the header", lambda forge: forge.issuer.token(claims(), scope="chat")),
        status=403,
    )
