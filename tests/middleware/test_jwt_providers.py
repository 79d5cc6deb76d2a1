"""`JWTMiddleware` in front of a server, with an identity provider on the loopback that rotates, hangs, lies and dies.

And what the official clients make of it, with a token in place of an API key.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from starlette.middleware import Middleware

from agentrun_middleware.authentication import CredentialRefusedError
from agentrun_middleware.jwks import JWKS
from agentrun_middleware.jwks_fetcher import Document, FetchError, JWKSFetcher
from agentrun_middleware.jwt import Issuer, JWTMiddleware, JWTVerifier
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.tokens import AUDIENCE, CANARY, ISSUER, Signer, base64url, claims, signer
from tests.support.clock import eventually, within
from tests.support.jwks_server import (
    Answer,
    JWKSServer,
    gzip_bomb,
    hangs,
    jwks,
    publishes,
    raw,
    redirects,
    resets,
    says,
    trickles,
)
from tests.support.raw_client import Response
from tests.support.serve import Served, serve

HOUR = 3600.0
FIRST, SECOND = signer("ES256"), signer("ES256", "second")


@dataclass
class Clock:
    """Seconds that pass when the test says so; keys are fetched by it. Tokens live by the clock on the wall."""

    now: float = 1000.0
    patience: float = 5.0
    """Real seconds for which a provider is waited for."""

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, kw_only=True)
class Published(Issuer):
    """An issuer whose keys age by a clock of the test's."""

    clock: Clock

    def make_keys(self) -> JWKS:
        assert self.jwks_url is not None
        over_http = JWKSFetcher(self.jwks_url, allow_private=True)

        async def fetch() -> Document:
            try:
                return await within(over_http(), self.clock.patience)
            except TimeoutError:
                raise FetchError("no whole answer") from None

        return JWKS(self.jwks_url, family="ES", allow_private=True, clock=self.clock, draw=lambda: 0.5, fetcher=fetch)


async def fetch_ended() -> None:
    """Wait until nobody fetches keys."""
    await eventually(lambda: not any(task.get_name() == "fetch JWKS" for task in asyncio.all_tasks()))


def published(provider: JWKSServer, clock: Clock | None = None, **changes: Any) -> Published:
    settings = {"issuer": ISSUER, "audience": AUDIENCE, "algorithms": ["ES256"], "jwks_url": provider.url}
    return Published(**{**settings, "clock": clock or Clock(), "allow_private": True, **changes})


_numbers = itertools.count()


def token(by: Signer = FIRST, kid: str | None = "k1", **changes: Any) -> str:
    """Return a token that nobody has seen before."""
    header = {} if kid is None else {"kid": kid}
    return by.token(claims(jti=str(next(_numbers)), **changes), **header)


async def agent(request: AgentRequest) -> AsyncIterator[str]:
    yield "hello "
    await asyncio.sleep(0)
    yield request.principal.subject


@asynccontextmanager
async def behind(*issuers: Issuer, **settings: Any) -> AsyncIterator[Served]:
    middleware = [Middleware(JWTMiddleware, issuers=issuers, **settings)]
    async with serve(AgentRunServer(agent, middleware=middleware, config=ServerConfig(access_log=False))) as served:
        yield served


async def ask(served: Served, credential: str) -> Response:
    return await served.chat(headers=[("authorization", f"Bearer {credential}")])


async def status(served: Served, credential: str) -> int:
    return (await ask(served, credential)).status


# --- in good times


async def test_keys_are_fetched_once_and_only_when_they_are_needed() -> None:
    async with (
        JWKSServer(FIRST.jwk("k1"), SECOND.jwk("k2")) as provider,
        behind(published(provider)) as served,
    ):
        assert (await served.ask("GET", "/health")).status == 200
        assert (await served.chat()).status == 401
        assert provider.fetches == 0
        tokens = [*(token() for _ in range(20)), token(SECOND, "k2")]
        assert await asyncio.gather(*(status(served, one) for one in tokens)) == [200] * 21
        assert provider.fetches == 1
    await eventually(lambda: provider.connections == 0)


async def test_the_arguments_of_one_issuer_do_the_same() -> None:
    """As users write it: no issuer object, no clock."""
    rsa = signer("RS256")
    async with JWKSServer(rsa.jwk("k1")) as provider:
        settings = {"algorithms": ["RS256"], "jwks_url": provider.url, "allow_private": True}
        async with behind(issuer=ISSUER, audience=AUDIENCE, **settings) as served:
            assert await status(served, token(rsa)) == 200
            assert await status(served, token(rsa, kid=None)) == 200
            assert await status(served, token(rsa, kid="k2")) == 401
            assert await status(served, token(FIRST)) == 401
            assert await status(served, rsa.token(alg="HS256")) == 401


async def test_a_token_with_the_published_key_as_a_secret_is_refused() -> None:
    secret = {"kty": "oct", "k": base64url(signer("HS256").key), "kid": "oct", "alg": "HS256"}
    async with JWKSServer(FIRST.jwk("k1"), secret) as provider, behind(published(provider)) as served:
        assert await status(served, token()) == 200
        assert await status(served, token(signer("HS256"), "oct")) == 401
        assert await status(served, token(Signer("HS256", FIRST.verification_key), "k1")) == 401


async def test_several_providers_do_not_vouch_for_each_other() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as one, JWKSServer(SECOND.jwk("k1")) as two:
        issuers = [
            published(one, clock, issuer="https://one.example"),
            published(two, clock, issuer="https://two.example"),
        ]
        async with behind(*issuers) as served:
            assert await status(served, token(FIRST, iss="https://one.example")) == 200
            assert await status(served, token(SECOND, iss="https://two.example")) == 200
            assert await status(served, token(SECOND, iss="https://one.example")) == 401
            assert await status(served, token(FIRST, iss="https://two.example")) == 401
            await two.stop()
            clock.now += HOUR
            assert await status(served, token(FIRST, iss="https://one.example")) == 200


# --- rotation


async def test_keys_rotate_while_requests_flow_and_no_good_token_is_refused() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        makers = [lambda: token(FIRST, "k1")]
        answers: list[int] = []
        stop = asyncio.Event()

        async def keep_asking(number: int) -> None:
            while not stop.is_set():
                answers.append(await status(served, makers[number % len(makers)]()))
                await asyncio.sleep(0)

        asking = [asyncio.create_task(keep_asking(number)) for number in range(6)]

        async def pass_requests(count: int = 30) -> None:
            so_far = len(answers)
            await eventually(lambda: len(answers) >= so_far + count)

        await pass_requests()
        provider.publish(FIRST.jwk("k1"), SECOND.jwk("k2"))
        clock.now += 31
        makers.append(lambda: token(SECOND, "k2"))  # the issuer begins to use its new key
        await pass_requests()
        assert provider.fetches == 2
        makers[:] = makers[1:]  # and ends to use the old one
        await pass_requests()
        stop.set()
        await within(asyncio.gather(*asking))
        assert set(answers) == {200}

        provider.publish(SECOND.jwk("k2"))
        clock.now += HOUR
        assert await status(served, token(SECOND, "k2")) == 200
        await provider.fetched(3)
        await eventually(lambda: provider.connections == 0)
        assert await status(served, token(FIRST, "k1")) == 401
        assert await status(served, token(SECOND, "k2")) == 200


async def test_a_new_key_is_known_thirty_seconds_after_it_was_published() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        assert await status(served, token()) == 200
        provider.publish(FIRST.jwk("k1"), SECOND.jwk("k2"))
        clock.now += 29
        assert await status(served, token(SECOND, "k2")) == 401
        assert provider.fetches == 1
        clock.now += 1
        assert await status(served, token(SECOND, "k2")) == 200
        assert provider.fetches == 2


async def test_a_token_that_is_remembered_ends_with_its_key() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        stolen = token()
        assert [await status(served, stolen) for _ in range(3)] == [200] * 3
        provider.publish(SECOND.jwk("k2"))
        clock.now += 31
        assert await status(served, token(SECOND, "k2")) == 200
        assert [await status(served, stolen) for _ in range(3)] == [401] * 3


# --- a provider that does not answer


async def test_while_no_key_was_ever_fetched_the_answer_is_503_and_never_401() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider:
        provider.answer = hangs()
        async with behind(published(provider, clock)) as served:
            clock.patience = 0.1
            answers = await asyncio.gather(*(ask(served, token()) for _ in range(20)))
            for answer in answers:
                assert answer.status == 503
                assert answer.error() == {
                    "message": "Authentication is not available at the moment.",
                    "type": "server_error",
                    "param": None,
                    "code": "authentication_unavailable",
                }
                assert answer.header("www-authenticate") is None
                seconds, milliseconds = answer.header("retry-after"), answer.header("retry-after-ms")
                assert seconds is not None
                assert milliseconds is not None
                assert 1 <= int(seconds) <= 60
                assert 0 < int(milliseconds) <= int(seconds) * 1000
            assert provider.fetches == 1
            assert (await served.ask("GET", "/health")).status == 200
            assert (await served.chat()).status == 401, "whoever shows nothing can be told so at any time"
            assert await status(served, token(kid="k2")) == 503

            await fetch_ended()
            provider.answer = publishes()
            clock.now, clock.patience = clock.now + 31, 5.0
            assert await status(served, token()) == 200
            assert await status(served, token(SECOND, "k1")) == 401


async def test_a_caller_who_leaves_while_keys_are_fetched_leaves_nothing_behind() -> None:
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider)) as served:
        provider.hold()
        headers = [("authorization", f"Bearer {token()}")]
        async with served.client() as client:
            await client.chat(headers=headers)
            await provider.fetched(1)
            client.rst()
        waiting = asyncio.create_task(ask(served, token()))
        provider.release()
        assert (await within(waiting)).status == 200
        assert provider.fetches == 1


async def test_a_server_that_stops_ends_the_fetch_that_nobody_waits_for() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider:
        async with behind(published(provider, clock)) as served:
            assert await status(served, token()) == 200
            provider.hold()
            clock.now, clock.patience = clock.now + 500, 600.0
            assert await status(served, token()) == 200
            await provider.fetched(2)
        await fetch_ended()


async def dies(provider: JWKSServer) -> None:
    await provider.stop()


def answers(answer: Answer) -> Callable[[JWKSServer], Any]:
    async def change(provider: JWKSServer) -> None:
        provider.answer = answer

    return change


LIES: dict[str, Answer] = {
    "an error": says(b"no", 500),
    "a page": says(b"<html>Sign in</html>", headers=(("content-type", "text/html"),)),
    "nothing": says(b""),
    "null": says(b"null"),
    "no keys": says(b'{"keys": []}'),
    "a list": says(b"[]"),
    "keys that are none": says(b'{"keys": [1, null, "x", {}]}'),
    "keys of another kind": says(jwks(signer("RS256").jwk("k1"))),
    "a secret": says(jwks({"kty": "oct", "k": base64url(b"x" * 32), "kid": "k1"})),
    "a key that is for encryption": says(jwks(FIRST.jwk("k1", use="enc", alg="ECDH-ES"))),
    "a point that is on no curve": says(jwks(FIRST.jwk("k1", y=FIRST.jwk()["x"]))),
    "too many keys": says(jwks(*(FIRST.jwk(f"k{number}") for number in range(101)))),
    "300 KB": says(b" " * 300_000 + jwks(FIRST.jwk("k1"))),
    "half of it": resets(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH\r\n"),
    "deep nesting": says(b"[" * 100_000),
    "a bomb": gzip_bomb(10_000_000),
    "no end": trickles(),
    "silence": hangs(),
    "a redirect to itself": redirects(302, "/keys"),
    "a status that is not 200": says(jwks(FIRST.jwk("k1")), 203),
}


def patience_for(lie: str) -> float:
    return 0.05 if lie in ("silence", "no end") else 5.0


@pytest.mark.parametrize("lie", LIES)
async def test_a_provider_that_lies_at_first_is_waited_for_and_never_believed(lie: str) -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider:
        provider.answer = LIES[lie]
        async with behind(published(provider, clock)) as served:
            clock.patience = patience_for(lie)
            assert await status(served, token()) == 503
            await fetch_ended()
            provider.answer = publishes()
            clock.now, clock.patience = clock.now + 31, 5.0
            assert await status(served, token()) == 200
            assert provider.fetches == 2


@pytest.mark.parametrize("lie", LIES)
async def test_a_provider_that_begins_to_lie_takes_nothing_away(lie: str) -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        assert await status(served, token()) == 200
        provider.answer, clock.patience = LIES[lie], patience_for(lie)
        for fetches in range(2, 5):
            clock.now += 600
            assert await status(served, token()) == 200
            await provider.fetched(fetches)
            await fetch_ended()
        assert await status(served, token(SECOND, "k2")) == 401
        assert await status(served, token()) == 200


async def test_a_redirect_leads_nowhere() -> None:
    async with JWKSServer(SECOND.jwk("k1")) as attacker, JWKSServer(FIRST.jwk("k1")) as provider:
        for code in (301, 302, 303, 307, 308):
            provider.answer = redirects(code, attacker.url)
            async with behind(published(provider)) as served:
                assert await status(served, token(SECOND)) == 503
        assert attacker.fetches == 0


@pytest.mark.parametrize("fault", [dies, answers(says(b"no", 503)), answers(hangs())], ids=["dead", "503", "silent"])
async def test_a_provider_that_fails_for_an_hour_costs_no_good_token(fault: Callable[[JWKSServer], Any]) -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        assert await status(served, token()) == 200
        await fault(provider)
        clock.patience = 0.02
        for _ in range(60):
            clock.now += 60
            assert await status(served, token()) == 200
            await fetch_ended()
        assert await status(served, token(SECOND, "k2")) == 401
        assert provider.fetches <= 1 + 61

        await provider.stop()
        await provider.start()
        provider.answer = publishes()
        provider.publish(FIRST.jwk("k1"), SECOND.jwk("k2"))
        clock.now, clock.patience = clock.now + 61, 5.0
        assert await status(served, token(SECOND, "k2")) == 200


async def test_keys_that_nobody_could_confirm_for_a_day_do_not_count_any_more() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        assert await status(served, token()) == 200
        await provider.stop()
        clock.now += 23 * HOUR
        assert await status(served, token()) == 200
        clock.now += 2 * HOUR
        assert await status(served, token()) == 503


# --- a flood


async def test_ten_thousand_invented_key_names_cost_a_fetch_in_thirty_seconds_and_nobody_else() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider:
        judge = JWTVerifier([published(provider, clock)])
        assert (await judge.verify(token())).subject == CANARY
        payload, signature = base64url(json.dumps(claims()).encode()), base64url(bytes(64))
        good = 0
        for number in range(10_000):
            header = base64url(json.dumps({"alg": "ES256", "kid": f"invented-{number}"}).encode())
            with pytest.raises(CredentialRefusedError, match="no such signing key"):
                await judge.verify(f"{header}.{payload}.{signature}")
            clock.now += 0.01
            if number % 100 == 0:
                good += (await judge.verify(token())).subject == CANARY
        assert good == 100
        # 100 seconds have passed.
        assert 1 < provider.fetches <= 1 + 4
        provider.publish(FIRST.jwk("k1"), SECOND.jwk("k2"))
        clock.now += 30
        assert (await judge.verify(token(SECOND, "k2"))).subject == CANARY
        await judge.aclose()


async def test_a_flood_while_the_provider_is_silent_holds_up_nobody_with_a_known_key() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider, clock)) as served:
        assert await status(served, token()) == 200
        provider.hold()
        clock.now += 31
        flood = [asyncio.create_task(status(served, token(SECOND, f"invented-{number}"))) for number in range(50)]
        await provider.fetched(2)
        assert [await status(served, token()) for _ in range(20)] == [200] * 20
        provider.release()
        assert set(await within(asyncio.gather(*flood))) == {401}
        assert provider.fetches == 2


# --- the official clients

QUESTION: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def options(served: Served, credential: Any) -> dict[str, Any]:
    return {"base_url": f"{served.url}/v1", "api_key": credential, "max_retries": 0, "timeout": 5}


async def asked_by_async_client(served: Served, credential: Any) -> list[str]:
    async with openai.AsyncOpenAI(**options(served, credential)) as client:
        whole = await client.chat.completions.create(**QUESTION)
        async with await client.chat.completions.create(**QUESTION, stream=True) as stream:
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        models = [model.id async for model in client.models.list()]
    assert models
    return [whole.choices[0].message.content or "", "".join(pieces)]


async def asked_by_sync_client(served: Served, credential: Any) -> list[str]:
    def ask() -> list[str]:
        with openai.OpenAI(**options(served, credential)) as client:
            whole = client.chat.completions.create(**QUESTION)
            with client.chat.completions.create(**QUESTION, stream=True) as stream:
                pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            models = [model.id for model in client.models.list()]
        assert models
        return [whole.choices[0].message.content or "", "".join(pieces)]

    return await asyncio.to_thread(ask)


CLIENTS = pytest.mark.parametrize("asked_by", [asked_by_async_client, asked_by_sync_client], ids=["async", "sync"])
AskedBy = Callable[[Served, Any], Any]


@asynccontextmanager
async def with_a_provider(**settings: Any) -> AsyncIterator[Served]:
    async with JWKSServer(FIRST.jwk("k1")) as provider, behind(published(provider), **settings) as served:
        yield served


@CLIENTS
async def test_a_token_is_an_api_key_to_the_official_clients(asked_by: AskedBy) -> None:
    async with with_a_provider() as served:
        assert await asked_by(served, token(sub="alice")) == ["hello alice"] * 2


BAD: Mapping[str, Callable[[], str]] = {
    "forged": lambda: token(SECOND),
    "an unknown key": lambda: token(kid="k2"),
    "expired": lambda: token(exp=int(time.time()) - HOUR),
    "for somebody else": lambda: token(aud="other"),
    "an OpenAI key": lambda: "sk-proj-0123456789",
    "one letter": lambda: "x",
}


@CLIENTS
@pytest.mark.parametrize("name", BAD)
async def test_the_official_clients_understand_that_a_token_is_no_good(asked_by: AskedBy, name: str) -> None:
    bad = BAD[name]()
    async with with_a_provider() as served:
        with pytest.raises(openai.AuthenticationError) as caught:
            await asked_by(served, bad)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "invalid_request_error")
    assert "Incorrect API key provided" in error.message
    assert error.response.headers["www-authenticate"] == 'Bearer realm="api", error="invalid_token"'
    assert bad not in str(error) or len(bad) == 1


@CLIENTS
async def test_the_official_clients_understand_that_a_scope_is_missing(asked_by: AskedBy) -> None:
    async with with_a_provider(required_scopes=["chat"]) as served:
        assert await asked_by(served, token(sub="alice", scope="chat")) == ["hello alice"] * 2
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await asked_by(served, token(scope="other"))
    error = caught.value
    assert (error.status_code, error.code) == (403, "insufficient_scope")
    assert error.response.headers["www-authenticate"].endswith('error="insufficient_scope", scope="chat"')


@CLIENTS
async def test_the_official_clients_understand_that_nobody_can_say(asked_by: AskedBy) -> None:
    async with JWKSServer(FIRST.jwk("k1")) as provider:
        provider.answer = says(b"no", 500)
        async with behind(published(provider)) as served:
            with pytest.raises(openai.InternalServerError) as caught:
                await asked_by(served, token())
    assert (caught.value.status_code, caught.value.code) == (503, "authentication_unavailable")


async def test_a_client_that_is_told_to_wait_comes_back_and_is_let_in() -> None:
    clock = Clock()
    async with JWKSServer(FIRST.jwk("k1")) as provider:
        provider.answer = says(b"no", 500)
        async with behind(published(provider, clock)) as served:
            patient = {**options(served, token(sub="alice")), "max_retries": 3}
            async with openai.AsyncOpenAI(**patient) as client:
                asking = asyncio.create_task(client.chat.completions.create(**QUESTION))
                await provider.fetched(1)
                await fetch_ended()
                provider.answer = publishes()
                clock.now += 31
                answer = await within(asking, 20)
    assert answer.choices[0].message.content == "hello alice"


async def test_a_client_that_renews_its_token_goes_on_when_the_old_one_has_ended() -> None:
    tokens = iter([token(sub="alice", exp=int(time.time()) - HOUR), token(sub="alice")])

    async def current() -> str:
        return next(tokens)

    async with with_a_provider() as served, openai.AsyncOpenAI(**options(served, current)) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(**QUESTION)
        answer = await client.chat.completions.create(**QUESTION)
    assert answer.choices[0].message.content == "hello alice"
