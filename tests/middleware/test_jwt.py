"""`JWTMiddleware` and the verifier inside it; `test_hostile_tokens` sends them the corpus of what must not pass."""

import asyncio
import base64
import copy
import json
import pickle
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware import Middleware

from agentrun_middleware import jwt as jwt_module
from agentrun_middleware.authentication import CredentialRefusedError, VerifierUnavailableError
from agentrun_middleware.jwks import JWKS
from agentrun_middleware.jwks_fetcher import Document, FetchError
from agentrun_middleware.jwt import Issuer, JWTMiddleware, JWTVerifier
from agentrun_middleware.principal import Principal, is_subject
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import Behind, call, http_scope, websocket_scope
from tests.middleware.tokens import ALGORITHMS, AUDIENCE, CANARY, ISSUER, Signer, base64url, claims, decoded, signer
from tests.support.clock import within
from tests.support.properties import json_objects
from tests.support.serve import serve


def issuer(algorithm: str = "HS256", **changes: Any) -> Issuer:
    """Return an issuer whose tokens `signer(algorithm)` makes."""
    key = signer(algorithm).verification_key
    return Issuer(**{"issuer": ISSUER, "audience": AUDIENCE, "algorithms": [algorithm], "key": key, **changes})


def verifier(algorithm: str = "HS256", **changes: Any) -> JWTVerifier:
    return JWTVerifier([issuer(algorithm, **changes)])


async def refusal(judge: JWTVerifier, token: str) -> str:
    """Return why `token` is refused; the reason holds nothing of it."""
    assert judge.recognises(token)
    with pytest.raises(CredentialRefusedError) as caught:
        await judge.verify(token)
    reason = str(caught.value)
    assert not any(part in reason for part in [*token.split("."), CANARY])
    return reason


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


class Clock:
    """Seconds since the epoch, which pass when the test says so."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


# --- algorithms and keys


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_algorithm_is_understood_as_the_standards_have_it(algorithm: str) -> None:
    principal = await verifier(algorithm).verify(signer(algorithm).token())
    assert (principal.subject, principal.issuer) == (CANARY, ISSUER)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_of_another_library_are_understood(algorithm: str) -> None:
    token = jwt.encode(claims(), signer(algorithm).key, algorithm)
    assert (await verifier(algorithm).verify(token)).subject == CANARY


@pytest.mark.parametrize("family", ["HS", "RS", "PS", "ES"])
async def test_several_algorithms_of_a_family_may_be_used_with_one_key(family: str) -> None:
    names = [f"{family}{size}" for size in (256, 384, 512)]
    judge = verifier(names[0], algorithms=names)
    for name in names[:1] if family == "ES" else names:
        assert (await judge.verify(Signer(name, signer(names[0]).key).token())).subject == CANARY


async def test_each_curve_is_for_its_own_algorithm() -> None:
    names = ["ES256", "ES384", "ES512"]
    judge = verifier("ES256", algorithms=names, key={name: signer(name).verification_key for name in names})
    for name in names:
        assert (await judge.verify(signer(name).token(kid=name))).subject == CANARY
    assert await refusal(judge, Signer("ES256", signer("ES384").key).token(kid="ES384")) == "no such signing key (kid)"
    assert await refusal(judge, signer("ES384").token(kid="ES256")) == "no such signing key (kid)"


@pytest.mark.parametrize("header", [{}, {"kid": "whatever"}, {"kid": ""}])
async def test_a_single_key_without_a_name_is_for_every_token(header: dict[str, Any]) -> None:
    assert (await verifier().verify(signer("HS256").token(**header))).subject == CANARY


async def test_a_single_key_with_a_name_is_for_tokens_that_name_it_or_none() -> None:
    judge = verifier("ES256", key={"k1": signer("ES256").verification_key})
    assert (await judge.verify(signer("ES256").token(kid="k1"))).subject == CANARY
    assert (await judge.verify(signer("ES256").token())).subject == CANARY
    assert await refusal(judge, signer("ES256").token(kid="k2")) == "no such signing key (kid)"


async def test_among_several_keys_a_token_must_name_its_own() -> None:
    signers = {"k1": signer("ES256"), "k2": signer("ES256", "second")}
    judge = verifier("ES256", key={kid: one.verification_key.decode() for kid, one in signers.items()})
    for kid, one in signers.items():
        assert (await judge.verify(one.token(kid=kid))).subject == CANARY
    assert await refusal(judge, signers["k1"].token()) == "no such signing key (kid)"
    assert await refusal(judge, signers["k1"].token(kid="k2")) == "the signature is wrong"


async def test_secrets_may_be_several_too() -> None:
    judge = verifier(key={"old": signer("HS256").key, "new": signer("HS256", "new").key.decode()})
    assert (await judge.verify(signer("HS256", "new").token(kid="new"))).subject == CANARY
    assert await refusal(judge, signer("HS256", "new").token(kid="old")) == "the signature is wrong"


# --- times


@pytest.mark.parametrize("leeway", [0.0, 30.0, 600.0])
async def test_clocks_may_differ_by_the_leeway(leeway: float) -> None:
    """With a few seconds to spare on the side of what is accepted: time passes while a test runs."""
    judge = verifier(leeway=leeway)
    now, by = int(time.time()), int(leeway)

    async def verified(**times: Any) -> bool:
        try:
            await judge.verify(signer("HS256").token(claims(**times)))
        except CredentialRefusedError:
            return False
        return True

    assert await verified(exp=now - by + 5)
    assert not await verified(exp=now - by - 1)
    assert await verified(nbf=now + by, iat=now + by, exp=now + 900)
    assert not await verified(nbf=now + by + 5)
    assert not await verified(iat=now + by + 5, exp=now + 900)


@pytest.mark.parametrize(
    ("limit", "lifetime", "good"),
    [(60, 60, True), (60, 90, True), (60, 91, False), (3600, 3600, True), (3600, 3631, False), (None, 10**9, True)],
)
async def test_nobody_gets_a_token_for_longer_than_max_lifetime(limit: float | None, lifetime: int, good: bool) -> None:
    judge, now = verifier(max_lifetime=limit), int(time.time())
    for iat in (now, now - 30):
        token = signer("HS256").token(claims(iat=iat, exp=iat + lifetime))
        if good:
            await judge.verify(token)
        else:
            assert await refusal(judge, token) == "it is valid for longer than max_lifetime"


async def test_without_iat_the_lifetime_counts_from_now() -> None:
    judge, now = verifier(max_lifetime=60), int(time.time())
    await judge.verify(signer("HS256").token(claims(without=["iat"], exp=now + 60)))
    too_long = signer("HS256").token(claims(without=["iat"], exp=now + 120))
    assert await refusal(judge, too_long) == "it is valid for longer than max_lifetime"


@pytest.mark.parametrize("limit", [None, 10**12])
async def test_a_time_beyond_reason_is_none_whatever_the_limit(limit: float | None) -> None:
    judge = verifier(max_lifetime=limit)
    await judge.verify(signer("HS256").token(claims(exp=10**11 - 1)))
    for exp in (10**11, 10**400, 1e300):
        assert await refusal(judge, signer("HS256").token(claims(exp=exp))) == "exp is no time"


# --- who and for whom


async def test_any_of_several_audiences_will_do() -> None:
    judge = verifier(audience=("one", "two"))
    for audience in ("one", "two", ["other", "two"], ["one", "two"]):
        await judge.verify(signer("HS256").token(claims(aud=audience)))
    assert await refusal(judge, signer("HS256").token(claims(aud="three"))) == "it is meant for somebody else (aud)"
    assert await refusal(judge, signer("HS256").token(claims(aud="one two"))) == "it is meant for somebody else (aud)"


async def test_each_issuer_has_its_own_keys_algorithms_and_limits() -> None:
    judge = JWTVerifier(
        [
            issuer("RS256", issuer="https://a.example", audience="for-a", max_lifetime=60),
            issuer("ES256", issuer="https://b.example", audience="for-b", max_lifetime=None, types=["at+jwt"]),
            issuer("HS512", issuer="urn:c", audience="for-c"),
        ]
    )

    def token(algorithm: str, iss: str, aud: str, lifetime: int, typ: str = "at+jwt") -> str:
        now = int(time.time())
        return signer(algorithm).token(claims(iss=iss, aud=aud, iat=now, exp=now + lifetime), typ=typ)

    assert (await judge.verify(token("RS256", "https://a.example", "for-a", 60))).issuer == "https://a.example"
    assert (await judge.verify(token("ES256", "https://b.example", "for-b", 10**8))).issuer == "https://b.example"
    assert (await judge.verify(token("HS512", "urn:c", "for-c", 60, typ="jwt"))).id == f"urn:c|{CANARY}"
    too_long = token("RS256", "https://a.example", "for-a", 10**8)
    assert await refusal(judge, too_long) == "it is valid for longer than max_lifetime"
    other_type = token("ES256", "https://b.example", "for-b", 60, typ="jwt")
    assert await refusal(judge, other_type) == "another type of token (typ)"


@pytest.mark.parametrize(
    ("types", "accepted", "refused"),
    [
        (("at+jwt",), ["at+jwt", "AT+JWT", "application/at+jwt"], ["JWT", "", None, "application/", "application/jwt"]),
        (("AT+JWT",), ["at+jwt"], ["jwt", None]),
        (("application/at+jwt",), ["application/AT+jwt"], ["at+jwt", None]),
        (("",), ["", None], ["JWT", "application/"]),
        ((), [], ["JWT", "", None]),
        (None, ["JWT", "dpop+jwt", "", None], []),
    ],
)
async def test_types_of_tokens_are_those_that_are_listed(
    types: Sequence[str] | None, accepted: list[str | None], refused: list[str | None]
) -> None:
    judge = verifier(types=types)

    def token(typ: str | None) -> str:
        header = {"alg": "HS256"} if typ is None else {"alg": "HS256", "typ": typ}
        return signer("HS256").compact(header, claims())

    for typ in accepted:
        assert (await judge.verify(token(typ))).subject == CANARY
    for typ in refused:
        assert await refusal(judge, token(typ)) == "another type of token (typ)"


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ({}, set()),
        ({"scope": "chat"}, {"chat"}),
        ({"scope": "chat admin"}, {"chat", "admin"}),
        ({"scope": "  chat   chat "}, {"chat"}),
        ({"scope": ""}, set()),
        ({"scope": ["chat", "admin"]}, {"chat", "admin"}),
        ({"scope": []}, set()),
        ({"scope": ["", "chat"]}, {"chat"}),
        ({"scp": "chat admin"}, {"chat", "admin"}),
        ({"scp": ["chat", "admin"]}, {"chat", "admin"}),
        ({"scope": "chat", "scp": "admin"}, {"chat"}),
        ({"scope": None, "scp": ["admin"]}, {"admin"}),
        ({"scope": "", "scp": "admin"}, set()),
        ({"scope": "models:* https://api.example/read a/b:c!#$%&'()*+,-.;<=>?@[]^_`{|}~"}, None),
        ({"roles": ["admin"], "permissions": ["chat"]}, set()),
    ],
)
async def test_scopes_are_read_as_the_standard_and_large_providers_write_them(
    said: dict[str, Any], scopes: set[str] | None
) -> None:
    principal = await verifier().verify(signer("HS256").token(claims(**said)))
    assert set(principal.scopes) == (set(said["scope"].split()) if scopes is None else scopes)


# --- requests


@asynccontextmanager
async def asked_who(**settings: Any) -> AsyncIterator[tuple[Any, list[Principal]]]:
    """Serve an agent that remembers who asked it."""
    asked: list[Principal] = []

    async def agent(request: AgentRequest) -> str:
        asked.append(request.principal)
        return "yes"

    arguments = {"algorithms": ["HS256"], "key": signer("HS256").key, "issuer": ISSUER, "audience": AUDIENCE}
    middleware = [Middleware(JWTMiddleware, **{**arguments, **settings})]
    server = AgentRunServer(agent, middleware=middleware, config=ServerConfig(access_log=False))
    async with serve(server) as served:
        yield served, asked


async def test_the_agent_knows_who_asks() -> None:
    said = claims(scope="chat models:*", name="\u5f20\u4e09", groups=["a", {"b": [1, 2.5, None, True]}], n=10**300)
    async with asked_who() as (served, asked):
        assert (await served.chat(headers=bearer(signer("HS256").token(said)))).status == 200
        assert (await served.chat(headers=bearer(signer("HS256").token(said)), stream=True)).status == 200
    for principal in asked:
        assert (principal.subject, principal.issuer, principal.id) == (CANARY, ISSUER, f"{ISSUER}|{CANARY}")
        assert principal.scopes == {"chat", "models:*"}
        assert json.loads(json.dumps(principal.claims)) == said
        assert json.loads(json.dumps(copy.deepcopy(principal.claims))) == said
        assert pickle.loads(pickle.dumps(principal)) == copy.deepcopy(principal) == principal
        assert "groups" not in repr(principal)


async def test_no_request_can_change_what_the_next_one_sees() -> None:
    judge = verifier()
    token = signer("HS256").token(claims(groups=["a", {"b": []}]))
    said: Any = (await judge.verify(token)).claims
    changes: Sequence[Callable[[], object]] = (
        lambda: said.__setitem__("sub", "root"),
        lambda: said.__delitem__("sub"),
        lambda: said.update(sub="root"),
        lambda: said.setdefault("admin", True),
        lambda: said.pop("sub"),
        lambda: said.clear(),
        lambda: said["groups"][1].update(b=1),
        lambda: said["groups"].append("admin"),
        lambda: said["groups"][1]["b"].append("admin"),
    )
    for change in changes:
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert (await judge.verify(token)).claims is said
    assert said["groups"] == ("a", {"b": ()})


async def test_the_gateway_is_told_who_asks() -> None:
    async with asked_who() as (served, _):
        token = signer("HS256").token(claims(scope="b a"))
        answer = await served.ask("GET", "/auth/verify", headers=bearer(token))
        assert answer.status == 204
        assert answer.body == b""
        said = {name: value for name, value in answer.headers if name.startswith("x-auth-")}
        assert said == {"x-auth-subject": CANARY, "x-auth-issuer": ISSUER, "x-auth-scopes": "a b"}


async def test_a_required_scope_that_is_missing_is_forbidden() -> None:
    async with asked_who(required_scopes=["chat", "admin"], realm="agents") as (served, asked):
        for scope in ("chat", "admin", "", "chatadmin"):
            answer = await served.chat(headers=bearer(signer("HS256").token(claims(scope=scope))))
            assert (answer.status, answer.error()["code"]) == (403, "insufficient_scope")
            expected = 'Bearer realm="agents", error="insufficient_scope", scope="admin chat"'
            assert answer.header("www-authenticate") == expected
        assert asked == []
        both = signer("HS256").token(claims(scope=["chat", "more", "admin"]))
        assert (await served.chat(headers=bearer(both))).status == 200


async def test_public_paths_need_no_token() -> None:
    async with asked_who(public_paths=["/v1/models"]) as (served, _):
        assert (await served.ask("GET", "/v1/models")).status == 200
        for path in ("/v1/models/", "/v1/models/m", "/V1/models", "/openai/v1/models", "/v1/models%2f", "//v1/models"):
            assert (await served.ask("GET", path)).status == 401
        assert (await served.chat()).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND"])
async def test_every_method_needs_a_token(method: str) -> None:
    app = Behind()
    middleware = JWTMiddleware(app, issuers=[issuer()])
    assert (await call(middleware, http_scope(method=method))).status == 401
    assert app.scopes == []
    assert (await call(middleware, http_scope(method=method, headers=bearer(signer("HS256").token())))).status == 200


async def test_a_websocket_is_authenticated_at_its_handshake() -> None:
    app = Behind()
    middleware = JWTMiddleware(app, issuers=[issuer()])
    refused = await call(middleware, websocket_scope(denial=True))
    assert (refused.status, app.scopes) == (401, [])
    await call(middleware, websocket_scope(headers=bearer(signer("HS256").token())))
    assert app.scope["state"]["principal"].subject == CANARY


async def test_a_token_in_the_log_of_the_server_is_only_a_subject(capfd: pytest.CaptureFixture[str]) -> None:
    token = signer("HS256").token()

    async def agent(request: AgentRequest) -> str:
        return "yes"

    server = AgentRunServer(agent, middleware=[Middleware(JWTMiddleware, issuers=[issuer()])])
    async with serve(server) as served:
        assert (await served.chat(headers=bearer(token))).status == 200
    written = capfd.readouterr().out
    assert f'"subject":"{CANARY}"' in written
    assert not any(part in written for part in token.split("."))


# --- tokens that were verified are remembered


@asynccontextmanager
async def remembering(**settings: Any) -> AsyncIterator[tuple[JWTVerifier, Clock]]:
    clock = Clock()
    judge = JWTVerifier([issuer(leeway=0.0)], clock=clock, **settings)
    yield judge, clock
    await judge.aclose()


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was looked at."""
    seen: list[str] = []
    check = JWTVerifier._check_signature

    async def counted(self: JWTVerifier, token: str, *args: Any) -> None:
        seen.append(token)
        await check(self, token, *args)

    monkeypatch.setattr(JWTVerifier, "_check_signature", counted)
    return seen


async def test_a_token_is_verified_once_and_then_known(decodings: list[str]) -> None:
    async with remembering() as (judge, _):
        token = signer("HS256").token()
        first = await judge.verify(token)
        assert [await judge.verify(token) for _ in range(10)] == [first] * 10
        assert decodings == [token]


async def test_who_is_known_can_be_recalled_at_once() -> None:
    async with remembering(cache_seconds=60.0) as (judge, clock):
        token, other = signer("HS256").token(), signer("HS256").token(claims(jti="other"))
        assert judge.recall(token) is None
        principal = await judge.verify(token)
        assert judge.recall(token) is principal
        assert judge.recall(other) is None
        clock.now += 60.1
        assert judge.recall(token) is None
        assert not judge._verified


async def test_it_is_forgotten_after_cache_seconds(decodings: list[str]) -> None:
    async with remembering(cache_seconds=60.0) as (judge, clock):
        token = signer("HS256").token()
        await judge.verify(token)
        clock.now += 59.9
        await judge.verify(token)
        assert len(decodings) == 1
        clock.now += 0.2
        await judge.verify(token)
        assert len(decodings) == 2


async def test_it_is_forgotten_when_it_expires(decodings: list[str]) -> None:
    async with remembering(cache_seconds=1000.0) as (judge, clock):
        token = signer("HS256").token(claims(exp=int(clock.now) + 100))
        await judge.verify(token)
        clock.now += 98
        await judge.verify(token)
        assert len(decodings) == 1
        clock.now += 2
        with pytest.raises(CredentialRefusedError, match="expired"):
            await judge.verify(token)
        assert not judge._verified


async def test_the_leeway_counts_for_what_is_remembered_too(decodings: list[str]) -> None:
    clock = Clock()
    judge = JWTVerifier([issuer(leeway=50.0)], clock=clock, cache_seconds=1000.0)
    token = signer("HS256").token(claims(exp=int(clock.now) + 100))
    await judge.verify(token)
    clock.now += 148
    await judge.verify(token)
    assert len(decodings) == 1
    clock.now += 2
    with pytest.raises(CredentialRefusedError, match="expired"):
        await judge.verify(token)
    assert not judge._verified


async def test_nothing_is_remembered_when_that_is_turned_off(decodings: list[str]) -> None:
    async with remembering(cache_seconds=0.0) as (judge, _):
        token = signer("HS256").token()
        for _ in range(3):
            await judge.verify(token)
        assert decodings == [token] * 3
        assert not judge._verified


async def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(
    monkeypatch: pytest.MonkeyPatch, decodings: list[str]
) -> None:
    monkeypatch.setattr(jwt_module, "_MAX_CACHED", 4)
    async with remembering() as (judge, _):
        tokens = [signer("HS256").token(claims(jti=str(number))) for number in range(6)]
        for token in tokens:
            await judge.verify(token)
            assert len(judge._verified) <= 4
        del decodings[:]
        for token in reversed(tokens):
            await judge.verify(token)
        assert decodings == [tokens[1], tokens[0]]


async def test_what_is_remembered_holds_no_token() -> None:
    async with remembering() as (judge, _):
        token = signer("HS256").token()
        await judge.verify(token)
        ((digest, verified),) = judge._verified.items()
        assert len(digest) == 32
        assert token.rpartition(".")[2] not in repr(verified)


async def test_no_two_tokens_share_what_is_remembered(decodings: list[str]) -> None:
    async with remembering() as (judge, _):
        tokens = {f"user-{number}": signer("HS256").token(claims(sub=f"user-{number}")) for number in range(50)}
        for _ in range(3):
            for subject, token in tokens.items():
                assert (await judge.verify(token)).subject == subject
        assert len(decodings) == 50


async def test_a_token_that_differs_in_one_character_is_another() -> None:
    """The last character of a signature has bits that say nothing: other readers take either for the same."""
    async with remembering() as (judge, _):
        token = signer("HS256").token()
        await judge.verify(token)
        for last in set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") - {token[-1]}:
            await refusal(judge, token[:-1] + last)
        for other in (token + "=", token + "==", token + ".", token + " ", token + "A", token[:-1]):
            if judge.recognises(other):
                await refusal(judge, other)
        await judge.verify(token)


async def test_a_refusal_is_not_remembered() -> None:
    async with remembering() as (judge, _):
        token = signer("HS256").token()
        wrong = signer("HS256", "attacker").token()
        for _ in range(3):
            assert await refusal(judge, wrong) == "the signature is wrong"
        assert not judge._verified
        await judge.verify(token)
        assert await refusal(judge, wrong) == "the signature is wrong"


# --- published keys, as values: no network


class Provider:
    """Publishes keys, as far as the verifier can see. `gate` holds fetches back."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys: tuple[dict[str, Any], ...] | None = keys
        self.fetches = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Document:
        self.fetches += 1
        self.asked.set()
        await self.gate.wait()
        if self.keys is None:
            raise FetchError("it is down")
        return Document(json.dumps({"keys": self.keys}).encode(), 300.0)


@dataclass(frozen=True, kw_only=True)
class Publishing(Issuer):
    """An issuer whose keys are fetched by a function."""

    provider: Provider
    clock: Callable[[], float]

    def make_keys(self) -> JWKS:
        assert self.jwks_url is not None
        return JWKS(self.jwks_url, family="ES", clock=self.clock, draw=lambda: 0.5, fetcher=self.provider)


def published(provider: Provider, clock: Clock) -> JWTVerifier:
    return JWTVerifier(
        [
            Publishing(
                issuer=ISSUER,
                audience=AUDIENCE,
                algorithms=["ES256"],
                jwks_url="https://issuer.example/keys",
                provider=provider,
                clock=clock,
            )
        ],
        clock=clock,
    )


FIRST, SECOND = signer("ES256"), signer("ES256", "second")


async def test_a_key_that_its_issuer_withdraws_ends_what_is_remembered() -> None:
    clock, provider = Clock(), Provider(FIRST.jwk("k1"), SECOND.jwk("k2"))
    judge = published(provider, clock)
    old = FIRST.token(kid="k1")
    await judge.verify(old)
    await judge.verify(old)
    assert provider.fetches == 1
    provider.keys = (SECOND.jwk("k2"),)
    clock.now += 31
    unknown = await refusal(judge, FIRST.token(claims(jti="x"), kid="k3"))  # makes it look for new keys
    assert (provider.fetches, unknown) == (2, "no such signing key (kid)")
    assert await refusal(judge, old) == "no such signing key (kid)"
    await judge.verify(SECOND.token(kid="k2"))


async def test_a_key_that_is_replaced_under_its_name_ends_what_is_remembered() -> None:
    clock, provider = Clock(), Provider(FIRST.jwk("k1"))
    judge = published(provider, clock)
    old = FIRST.token(kid="k1")
    await judge.verify(old)
    provider.keys = (SECOND.jwk("k1"),)
    clock.now += 31
    await refusal(judge, FIRST.token(kid="k2"))
    assert await refusal(judge, old) == "the signature is wrong"
    await judge.verify(SECOND.token(kid="k1"))


async def test_a_key_that_is_added_leaves_what_is_remembered(decodings: list[str]) -> None:
    clock, provider = Clock(), Provider(FIRST.jwk("k1"))
    judge = published(provider, clock)
    old = FIRST.token(kid="k1")
    await judge.verify(old)
    provider.keys = (SECOND.jwk("k2"), FIRST.jwk("k1"))
    clock.now += 31
    await judge.verify(SECOND.token(kid="k2"))
    await judge.verify(old)
    assert decodings.count(old) == 1


async def test_a_token_that_waited_while_keys_changed_is_not_remembered(decodings: list[str]) -> None:
    """Whether its own key has been withdrawn meanwhile, nobody has looked: the next request decides anew."""
    clock, provider = Clock(), Provider(FIRST.jwk("k1"))
    judge = published(provider, clock)
    await judge.verify(FIRST.token(kid="k1"))
    provider.keys = (SECOND.jwk("k2"),)
    clock.now += 31
    new = SECOND.token(kid="k2")
    for _ in range(3):
        await judge.verify(new)
    assert decodings.count(new) == 2


async def test_many_tokens_at_once_wait_for_one_fetch_and_each_gets_its_own_answer() -> None:
    clock, provider = Clock(), Provider(FIRST.jwk("k1"))
    provider.gate.clear()
    judge = published(provider, clock)
    good = [FIRST.token(claims(sub=f"user-{number}"), kid="k1") for number in range(100)]
    bad = [SECOND.token(claims(sub=f"user-{number}"), kid="k1") for number in range(100)]
    waiting = [asyncio.ensure_future(judge.verify(token)) for pair in zip(good, bad, strict=True) for token in pair]
    await within(provider.asked.wait())
    provider.gate.set()
    results = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert provider.fetches == 1
    assert [result.subject for result in results[::2] if isinstance(result, Principal)] == [
        f"user-{number}" for number in range(100)
    ]
    assert all(isinstance(result, CredentialRefusedError) for result in results[1::2])


async def test_many_requests_with_one_token_are_all_answered() -> None:
    clock, provider = Clock(), Provider(FIRST.jwk("k1"))
    provider.gate.clear()
    judge = published(provider, clock)
    token = FIRST.token(kid="k1")
    waiting = [asyncio.ensure_future(judge.verify(token)) for _ in range(50)]
    await within(provider.asked.wait())
    provider.gate.set()
    assert {principal.subject for principal in await within(asyncio.gather(*waiting))} == {CANARY}
    assert len(judge._verified) == 1


async def test_without_keys_nobody_can_say_and_nobody_is_refused() -> None:
    clock, provider = Clock(), Provider()
    provider.keys = None
    judge = published(provider, clock)
    with pytest.raises(VerifierUnavailableError) as caught:
        await judge.verify(FIRST.token(kid="k1"))
    assert 0 < caught.value.retry_after <= 60
    provider.keys = (FIRST.jwk("k1"),)
    clock.now += 31
    assert (await judge.verify(FIRST.token(kid="k1"))).subject == CANARY


async def test_a_token_that_cannot_be_good_costs_no_fetch() -> None:
    provider = Provider(FIRST.jwk("k1"))
    judge = published(provider, Clock())
    for token in (
        FIRST.token(kid="k1", alg="ES384"),
        FIRST.token(kid="k1", alg="none"),
        FIRST.token(kid="k1", typ="dpop+jwt"),
        FIRST.token(kid="k1", crit=["x"]),
        FIRST.token(kid=["k1"]),
        FIRST.compact({"alg": "ES256", "kid": "k1"}, b"no JSON"),
        signer("HS256").token(kid="k1"),
    ):
        await refusal(judge, token)
    assert provider.fetches == 0


async def test_a_lifespan_that_ends_ends_the_fetch() -> None:
    provider = Provider(FIRST.jwk("k1"))
    provider.gate.clear()
    judge = published(provider, Clock())
    waiting = asyncio.ensure_future(judge.verify(FIRST.token(kid="k1")))
    await within(provider.asked.wait())
    await within(judge.aclose())
    with pytest.raises(VerifierUnavailableError):
        await within(waiting)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


# --- settings that cannot work


def _pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


SECRET = signer("HS256").key.decode()
PUBLIC = signer("RS256").verification_key.decode()
PRIVATE = signer("RS256").private_pem.decode()
URL = "https://issuer.example/keys"
GOOD: Mapping[str, Any] = {"algorithms": ["HS256"], "key": SECRET, "issuer": ISSUER, "audience": AUDIENCE}
RSA = {"algorithms": ["RS256"], "key": PUBLIC}
PUBLISHED = {"algorithms": ["RS256"], "key": None, "jwks_url": URL}

BAD_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "two families": {"algorithms": ["HS256", "RS256"]},
    "two families of RSA": {**RSA, "algorithms": ["RS256", "PS256"]},
    "no algorithms": {"algorithms": []},
    "none": {"algorithms": ["none"]},
    "none in other letters": {"algorithms": ["HS256", "NONE"]},
    "an unknown algorithm": {"algorithms": ["HS1"]},
    "an algorithm in lower case": {"algorithms": ["hs256"]},
    "an algorithm that is no text": {"algorithms": [None]},
    "one string of algorithms": {"algorithms": "HS256"},
    "a key and a URL": {**RSA, "jwks_url": URL},
    "neither key nor URL": {"key": None},
    "HS and a URL": {**PUBLISHED, "algorithms": ["HS256"]},
    "a URL without TLS": {**PUBLISHED, "jwks_url": "http://issuer.example/keys"},
    "a URL of a file": {**PUBLISHED, "jwks_url": "file:///etc/passwd"},
    "a URL with a password": {**PUBLISHED, "jwks_url": f"https://u:{SECRET}@issuer.example/keys"},
    "a private address": {**PUBLISHED, "jwks_url": "https://10.0.0.1/keys"},
    "an empty URL": {**PUBLISHED, "jwks_url": ""},
    "authorities that are not there": {**PUBLISHED, "ca_file": "/nowhere/ca.pem"},
    "a short secret": {"key": SECRET[:31]},
    "a secret too short for the longest": {"algorithms": ["HS256", "HS512"], "key": SECRET[:48]},
    "an empty secret": {"key": ""},
    "an empty secret in bytes": {"key": b""},
    "a secret that is a public key": {"key": PUBLIC},
    "a secret that is a public key without its first line": {"key": "".join(PUBLIC.splitlines()[1:-1])},
    "a secret that is a public key in DER": {"key": signer("RS256").public(Encoding.DER)},
    "a secret that is a public key in DER and base64": {"key": base64.b64encode(signer("ES256").public(Encoding.DER))},
    "a secret that is a private key": {"key": PRIVATE},
    "one short secret of two": {"key": {"a": SECRET, "b": SECRET[:8]}},
    "no keys": {"key": {}},
    "a list of keys": {"key": [SECRET]},
    "a key that is a number": {"key": 12345678901234567890},
    "a private key": {**RSA, "key": PRIVATE},
    "a private key of an elliptic curve": {"algorithms": ["ES256"], "key": signer("ES256").private_pem},
    "a private key among public ones": {**RSA, "key": {"a": PUBLIC, "b": PRIVATE}},
    "a public and a private key in one": {**RSA, "key": PUBLIC + PRIVATE},
    "two public keys in one": {**RSA, "key": PUBLIC + PUBLIC},
    "half a public key": {**RSA, "key": PUBLIC[: len(PUBLIC) // 2]},
    "a secret for RS256": {**RSA, "key": SECRET},
    "an RSA key for ES256": {"algorithms": ["ES256"], "key": PUBLIC},
    "an elliptic curve for RS256": {**RSA, "key": signer("ES256").verification_key},
    "another curve": {"algorithms": ["ES256"], "key": signer("ES384").verification_key},
    "secp256k1": {"algorithms": ["ES256"], "key": signer("ES256K").verification_key},
    "a short RSA key": {**RSA, "key": _pem(rsa.generate_private_key(65537, 1024))},
    "a DSA key": {**RSA, "key": _pem(dsa.generate_private_key(1024))},
    "a path": {**RSA, "key": "/etc/keys/public.pem"},
    "no issuer": {"issuer": ""},
    "an issuer that is none": {"issuer": None},
    "a list of issuers as issuer": {"issuer": [ISSUER]},
    "no audience": {"audience": ""},
    "an empty list of audiences": {"audience": []},
    "an audience that is empty": {"audience": ["agent", ""]},
    "an audience that is no text": {"audience": [1]},
    "an audience in bytes": {"audience": b"agent"},
    "a negative leeway": {"leeway": -1},
    "a leeway of an hour": {"leeway": 3600},
    "a leeway without end": {"leeway": float("inf")},
    "a leeway that is no number": {"leeway": float("nan")},
    "no lifetime": {"max_lifetime": 0},
    "a negative lifetime": {"max_lifetime": -1},
    "a lifetime that is no number": {"max_lifetime": float("nan")},
    "one string of types": {"types": "at+jwt"},
    "one string of scopes": {"required_scopes": "chat"},
    "a scope with a space": {"required_scopes": ["chat admin"]},
    "one string of paths": {"public_paths": "/health"},
    "a path without a slash": {"public_paths": ["health"]},
    "a realm with a quote": {"realm": 'a"b'},
    "issuers and an issuer": {"issuers": [issuer()]},
    "issuers and a key": {"issuers": [issuer()], "issuer": "", "audience": (), "algorithms": ()},
    "issuers and a URL": {
        "issuers": [issuer()],
        "issuer": "",
        "audience": (),
        "algorithms": (),
        "key": None,
        "jwks_url": URL,
    },
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_cannot_work_are_refused_and_keys_are_not_repeated(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        JWTMiddleware(Behind(), **{**GOOD, **BAD_SETTINGS[name]})
    texts = [str(error) for error in chain_of(caught.value)]
    assert texts[0]
    for secret in pieces_of_keys():
        assert not any(secret in text for text in texts)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that a traceback would show with it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def pieces_of_keys() -> Iterator[str]:
    yield from (SECRET[:8], SECRET[8:31])
    for text in (PUBLIC, PRIVATE):
        yield from (line for line in text.splitlines() if not line.startswith("-"))


@pytest.mark.parametrize(
    "settings", [GOOD, {**GOOD, **RSA}, {**GOOD, **PUBLISHED}], ids=["HS256", "RS256", "published"]
)
def test_settings_that_work_are_accepted(settings: dict[str, Any]) -> None:
    JWTMiddleware(Behind(), **settings)


async def test_every_argument_reaches_the_issuer() -> None:
    now = int(time.time())
    unusual = signer("HS256").token(claims(exp=now - 300, iat=now - 10**6), typ="x")
    arguments: dict[str, Any] = {"leeway": 600.0, "max_lifetime": None, "types": ["x"]}
    for left_out in (None, *arguments):
        settings = {name: value for name, value in arguments.items() if name != left_out}
        answer = await call(JWTMiddleware(Behind(), **GOOD, **settings), http_scope(headers=bearer(unusual)))
        assert answer.status == (200 if left_out is None else 401)


def test_an_issuer_is_refused_before_anybody_uses_it() -> None:
    with pytest.raises(ValueError, match="a secret, which nobody publishes"):
        issuer(key=None, jwks_url=URL)
    with pytest.raises(ValueError, match="exactly one"):
        issuer(jwks_url=URL)


def test_two_entries_for_one_issuer_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry for each iss"):
        JWTVerifier([issuer(), issuer("RS256")])
    with pytest.raises(ValueError, match="at least one"):
        JWTVerifier([])


def test_nothing_shows_a_key() -> None:
    settings = {**GOOD, "key": {"k1": SECRET}}
    middleware = JWTMiddleware(Behind(), **settings)
    named = Issuer(**settings)
    verifiers: Any = middleware._verifiers
    (trust,) = verifiers[0]._trusted.values()
    shown = [named, trust, trust.keys, *trust.keys._keys, *verifiers, middleware, settings | {"key": named}]
    for thing in shown:
        for text in (repr(thing), str(thing), f"{thing}"):
            assert not any(secret in text for secret in pieces_of_keys())


async def test_an_error_while_a_token_is_judged_shows_neither_token_nor_key() -> None:
    for token in (signer("HS256", "attacker").token(), signer("HS256").token(claims(aud="other", sub="x"))):
        with pytest.raises(CredentialRefusedError) as caught:
            await verifier().verify(token)
        shown = "".join(traceback.format_exception(caught.value))
        assert not any(secret in shown for secret in [*pieces_of_keys(), *token.split(".")])


# --- properties

PROPERTY_ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
GOOD_TOKENS = {name: signer(name).token(claims(exp=int(time.time()) + 12 * 3600)) for name in PROPERTY_ALGORITHMS}
JUDGES = {algorithm: verifier(algorithm) for algorithm in PROPERTY_ALGORITHMS}

characters = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


def judged(algorithm: str, token: str) -> Principal | None:
    """Return whose `token` is, None when it is refused. With known keys nothing waits, so no event loop is needed."""
    judge = JUDGES[algorithm]
    if not judge.recognises(token):
        return None
    try:
        judge.verify(token).send(None)
    except StopIteration as end:
        principal: Principal = end.value
        return principal
    except CredentialRefusedError:
        return None
    raise AssertionError("it waited")


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str]:
    """An algorithm, and a good token of it in which something may have been changed."""
    algorithm = draw(st.sampled_from(PROPERTY_ALGORITHMS))
    token = GOOD_TOKENS[algorithm]
    for _ in range(draw(st.integers(1, 3))):
        token = draw(st.sampled_from(EDITS))(draw, token)
    return algorithm, token


def _replace(draw: st.DrawFn, token: str) -> str:
    at = draw(st.integers(0, len(token)))
    return token[:at] + draw(characters) + token[at + 1 :]


def _insert(draw: st.DrawFn, token: str) -> str:
    at = draw(st.integers(0, len(token)))
    return token[:at] + draw(st.text(characters, min_size=1, max_size=4)) + token[at:]


def _delete(draw: st.DrawFn, token: str) -> str:
    at = draw(st.integers(0, len(token)))
    return token[:at] + token[at + draw(st.integers(1, 8)) :]


def _swap(draw: st.DrawFn, token: str) -> str:
    parts = draw(st.permutations([*token.split("."), *draw(st.sampled_from(list(GOOD_TOKENS.values()))).split(".")]))
    return ".".join(parts[:3])


def _other_part(draw: st.DrawFn, token: str) -> str:
    parts = token.split(".")
    other = draw(st.sampled_from(list(GOOD_TOKENS.values()))).split(".")
    at = draw(st.integers(0, 2))
    return ".".join(other[at] if at == number else part for number, part in enumerate(parts))


def _flip(draw: st.DrawFn, token: str) -> str:
    """Flip one bit of the bytes that a part stands for."""
    parts = token.split(".")
    at = draw(st.integers(0, len(parts) - 1))
    try:
        data = bytearray(decoded(parts[at]))
    except ValueError:
        return token
    if data:
        bit = draw(st.integers(0, len(data) * 8 - 1))
        data[bit // 8] ^= 1 << (bit % 8)
    parts[at] = base64url(bytes(data))
    return ".".join(parts)


def _edit(draw: st.DrawFn, token: str) -> str:
    """Change the header or the payload as JSON, and leave the signature."""
    parts = token.split(".")
    at = draw(st.integers(0, min(1, len(parts) - 1)))
    try:
        said = json.loads(decoded(parts[at]))
    except ValueError:
        return token
    if isinstance(said, dict):
        known = st.sampled_from(["alg", "typ", "kid", "exp", "sub", "iss", "aud", "scope", "iat", "x"])
        values: st.SearchStrategy[Any] = st.sampled_from(["none", "HS256", "root", "", None, 0, 10**10, [], True])
        said |= draw(st.dictionaries(known, values, min_size=1, max_size=2))
    parts[at] = base64url(json.dumps(said).encode())
    return ".".join(parts)


EDITS = (_replace, _insert, _delete, _swap, _other_part, _flip, _edit)


@given(mutated())
def test_a_token_in_which_anything_was_changed_is_refused(case: tuple[str, str]) -> None:
    algorithm, token = case
    principal = judged(algorithm, token)
    assert (principal is not None) == (token == GOOD_TOKENS[algorithm])


@given(header=json_objects, payload=json_objects, algorithm=st.sampled_from(["HS256", "ES256"]), good=st.booleans())
def test_whatever_an_issuer_signs_is_a_caller_with_a_safe_name_or_refused(
    header: dict[str, object], payload: dict[str, object], algorithm: str, good: bool
) -> None:
    if good:
        header = {**header, "alg": algorithm, "typ": "JWT"}
        payload = {**claims(), **payload}
    check_signed(algorithm, signer(algorithm).compact(header, payload))


@given(
    changes=st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "sub", "iss", "aud", "scope", "scp", "jti"]),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()), st.just(10**400)
        ),
        min_size=1,
    )
)
def test_claims_of_any_kind_are_a_caller_with_a_safe_name_or_refused(changes: dict[str, Any]) -> None:
    check_signed("HS256", signer("HS256").token({**claims(), **changes}))


@given(header=st.binary(max_size=64), payload=st.binary(max_size=64), signature=st.binary(max_size=64))
def test_bytes_of_any_kind_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    check_signed("HS256", ".".join(map(base64url, (header, payload, signature))))


@given(st.text(st.characters(max_codepoint=0xFF), max_size=80))
def test_text_of_any_kind_is_refused(text: str) -> None:
    app = Behind()
    answer = asyncio.run(call(JWTMiddleware(app, issuers=[issuer()]), http_scope(headers=bearer(text))))
    assert answer.status in (400, 401)
    assert app.scopes == []


def check_signed(algorithm: str, token: str) -> None:
    principal = judged(algorithm, token)
    if principal is None:
        return
    assert is_subject(principal.subject)
    assert principal.issuer == ISSUER
    assert all(scope and not set(scope) & set(' "\\') and scope.isascii() for scope in principal.scopes)
    json.dumps(copy.deepcopy(principal.claims), allow_nan=False)
