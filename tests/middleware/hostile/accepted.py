"""The neighbours of the hostile: unusual, but good."""

from collections.abc import Iterator

from tests.middleware.hostile.forge import (
    DAY,
    SECRET_AND_PUBLIC,
    SINGLE,
    Case,
    Forge,
    Sent,
    cases,
    claimed,
    claiming,
    crossed,
    offset,
    raw_payload,
    rows,
    sized,
    with_header,
    with_member,
)
from tests.middleware.hostile.headers import STRANGE_KIDS
from tests.middleware.tokens import AUDIENCE, P256_ORDER, base64url, claims, decoded, signer

__all__ = ["accepted"]


def _both(forge: Forge) -> Sent:
    token = forge.good()
    return Sent((("authorization", f"bearer {token}"), ("api-key", token)))


def _ecdsa_twin(forge: Forge) -> str:
    signed, _, signature = forge.good().rpartition(".")
    r, s = decoded(signature)[:32], int.from_bytes(decoded(signature)[32:])
    return f"{signed}.{base64url(r + (P256_ORDER - s).to_bytes(32))}"


def accepted() -> Iterator[Case]:
    fronts = SECRET_AND_PUBLIC
    yield from cases(
        "good",
        "",
        SINGLE,
        ("an ordinary one", lambda forge: forge.good()),
        ("of exactly 8 KiB", lambda forge: sized(forge, 8 * 1024)),
        status=200,
    )
    yield from cases(
        "good",
        "",
        fronts,
        ("without typ", lambda forge: forge.issuer.compact({"alg": forge.issuer.algorithm}, claims())),
        *((f"typ {kind}", with_header(typ=kind)) for kind in ("", "jwt", "at+jwt", "AT+JWT", "application/at+jwt")),
        *rows(lambda kid: with_header(kid=kid), STRANGE_KIDS),
        (
            "with jku, x5u and jwk",
            lambda forge: forge.good(jku=forge.attacker_url, x5u=forge.attacker_url, jwk={}),
        ),
        ("cty JWT on claims", with_header(cty="JWT")),
        ("without iat", claiming(without=["iat"])),
        ("nbf in the past", offset(nbf=-60)),
        ("times with fractions", offset(iat=-0.5, exp=300.25, nbf=-3.5)),
        ("expired within the leeway", offset(exp=-15, iat=-60)),
        ("from a clock that is ahead", offset(iat=15, nbf=15)),
        ("for a whole day", offset(iat=0, exp=DAY)),
        ("for several", claiming(aud=["other", AUDIENCE])),
        ("for several, ours twice", claiming(aud=[AUDIENCE, AUDIENCE])),
        ("the longest subject", claiming(sub="a" * 255)),
        ("an unusual subject", claiming(sub="auth0|A.b_c-d@e:f+g/h=~1")),
        ("no scope", claiming(scope="")),
        ("spaces between scopes", claiming(scope="  a  b ")),
        ("strange claims", claiming(name="\u5f20\u4e09 \U0001f600\r\n", n=10**300, f=-0.0, x=None, y=[[], {}, [{}]])),
        ("ten lists in each other", raw_payload(with_member(b'"x":' + b"[" * 10 + b"]" * 10))),
        ("line ends in its JSON", raw_payload(lambda text: b"\r\n\t " + text + b"\n")),
        ("an escaped name", raw_payload(lambda text: text.replace(b'"sub"', b'"\\u0073ub"'))),
        ("lower-case bearer", lambda forge: Sent((("authorization", f"bearer {forge.good()}"),))),
        ("mixed-case bearer", lambda forge: Sent((("Authorization", f"bEaReR {forge.good()}"),))),
        ("spaces around", lambda forge: Sent((("authorization", f"Bearer    {forge.good()}   "),))),
        ("tabs around", lambda forge: Sent((("authorization", f"Bearer \t{forge.good()}\t"),))),
        ("as api-key", lambda forge: Sent((("api-key", forge.good()),))),
        ("the same in both headers", _both),
        ("a cookie beside it", lambda f: Sent((("authorization", f"Bearer {f.good()}"), ("cookie", "token=x")))),
        ("Basic beside api-key", lambda f: Sent((("authorization", "Basic YTpi"), ("api-key", f.good())))),
        ("a harmless query", lambda f: Sent((("authorization", f"Bearer {f.good()}"),), "tokens=1&keys=2&q=a%3Dtoken")),
        status=200,
    )
    yield from cases(
        "good",
        "",
        ["ES256"],
        # ECDSA allows it: whoever has a token can write another one with the same meaning, and no more.
        ("the other number s of its signature", _ecdsa_twin),
        status=200,
    )
    yield from cases(
        "good",
        "",
        ["kids"],
        ("the first key", lambda forge: forge.good()),
        ("the second key", lambda _: signer("RS256", "second").token(kid="second")),
        status=200,
    )
    yield from cases(
        "good",
        "",
        ["issuers"],
        *(
            (f"of {name}", crossed(f"https://{name}.example", signer(algorithm, name), aud=f"for-{name}"))
            for name, algorithm in (("a", "RS256"), ("b", "ES256"), ("c", "HS256"), ("d", "RS256"))
        ),
        status=200,
    )
    yield from cases(
        "good",
        "",
        ["scopes"],
        *claimed("scope", "chat", "a chat b", ["chat"], ["a", "chat"]),
        *((f"scp {value!r}", claiming(scp=value)) for value in ("chat", ["chat", "a"])),
        ("scope null, scp chat", claiming(scope=None, scp="chat")),
        status=200,
    )
