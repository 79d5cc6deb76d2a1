"""API keys as credentials: judged one by one, and with the official clients against a real server."""

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.middleware import Middleware

from agentrun_middleware import api_key
from agentrun_middleware.api_key import APIKeyMiddleware, APIKeyVerifier, KeyFile, KeyRecord, Pepper
from agentrun_middleware.asgi import ASGIApp, Receive, Scope, Send
from agentrun_middleware.authentication import (
    AuthenticationMiddleware,
    CredentialRefusedError,
    VerifierUnavailableError,
)
from agentrun_middleware.key_file import KeyFileError, NewKey
from agentrun_middleware.key_record import new_key
from agentrun_middleware.principal import Principal
from agentrun_middleware.state import principal_of
from agentrun_server import AgentRequest, AgentRunServer
from tests.support.clock import within
from tests.support.serve import Served, serve

PEPPER = "p" * 32


class Clock:
    """Seconds, which pass when the test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> KeyFile:
    return KeyFile(tmp_path / "keys.json", clock=clock)


def wrong(key: str) -> str:
    """Return `key` with another last character."""
    return key[:-1] + ("b" if key.endswith("a") else "a")


async def reason(verifier: APIKeyVerifier, credential: str) -> str:
    """Return why `credential` is refused; the reason never holds it."""
    with pytest.raises(CredentialRefusedError) as caught:
        await verifier.verify(credential)
    text = str(caught.value)
    assert credential not in text
    assert credential[12:] not in text or len(credential) <= 12
    return text


# --- one key


async def test_a_good_key_says_who_calls(keys: KeyFile) -> None:
    new = keys.create("alice's laptop", subject="alice", scopes=["chat", "models:research"])
    assert await APIKeyVerifier(keys.path).verify(new.key) == Principal(
        subject="alice",
        issuer="api_key",
        scopes=frozenset({"chat", "models:research"}),
        claims={"key_id": new.record.id, "key_name": "alice's laptop"},
    )


async def test_the_issuer_can_be_named(keys: KeyFile) -> None:
    new = keys.create("laptop")
    principal = await APIKeyVerifier(keys.path, issuer="https://agents.example").verify(new.key)
    assert principal.id == f"https://agents.example|{new.record.id}"


async def test_every_refusal_has_its_reason(keys: KeyFile, clock: Clock) -> None:
    good, revoked, short = keys.create("good"), keys.create("revoked"), keys.create("short", expires_in=60)
    keys.revoke(revoked.record.id)
    verifier = APIKeyVerifier(keys, wall_clock=clock)
    stranger = new_key()
    swapped = f"ar_{revoked.record.id}_{good.key[12:]}"
    assert await reason(verifier, stranger) == f"there is no API key {stranger[3:11]}"
    assert await reason(verifier, wrong(good.key)) == f"it is not the API key {good.record.id}"
    assert await reason(verifier, swapped) == f"it is not the API key {revoked.record.id}"
    assert await reason(verifier, revoked.key) == f"the API key {revoked.record.id} is revoked"
    for malformed in ("ar_", good.key + "x", good.key[:-1], good.key.replace("_", "-", 2), "ar_" * 350_000):
        assert await reason(verifier, malformed) == "it has not the form of an API key"
    clock.now += 59.9
    assert (await verifier.verify(short.key)).subject == short.record.id
    clock.now += 0.1
    assert await reason(verifier, short.key) == f"the API key {short.record.id} is expired"
    assert (await verifier.verify(good.key)).subject == good.record.id


async def test_a_replaced_key_is_good_until_its_grace_ends(keys: KeyFile, clock: Clock) -> None:
    old = keys.create("laptop", subject="alice")
    new = keys.replace(old.record.id, grace=24 * 3600)
    verifier = APIKeyVerifier(keys, wall_clock=clock)
    assert (await verifier.verify(old.key)).id == (await verifier.verify(new.key)).id == "api_key|alice"
    clock.now += 24 * 3600
    assert await reason(verifier, old.key) == f"the API key {old.record.id} is expired"
    assert (await verifier.verify(new.key)).subject == "alice"


def test_keys_are_told_from_other_credentials_by_how_they_begin(keys: KeyFile) -> None:
    new = keys.create("laptop")
    verifier = APIKeyVerifier(keys)
    assert verifier.recognises(new.key)
    assert not any(verifier.recognises(other) for other in ("", "eyJh.eyJp.c2ln", "sk-" + new.key, new.key.upper()))


async def test_hashes_are_compared_in_constant_time_and_once_whatever_the_key(
    keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, revoked = keys.create("laptop"), keys.create("revoked")
    keys.revoke(revoked.record.id)
    verifier = APIKeyVerifier(keys)
    work: list[str] = []
    real_digest = hmac.digest

    def digest(key: bytes, message: bytes, name: str) -> bytes:
        work.append("hash")
        return real_digest(key, message, name)

    def compare_digest(one: str, other: str) -> bool:
        work.append(f"compare {len(one)} {len(other)}")
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(hmac, "digest", digest)
    monkeypatch.setattr(api_key, "compare_digest", compare_digest)
    for key in (new.key, wrong(new.key), new_key(), revoked.key):
        work.clear()
        with suppress(CredentialRefusedError):
            await verifier.verify(key)
        assert work == ["hash", "compare 64 64"]


async def test_nobody_is_asked_about_what_has_not_the_form_of_a_key() -> None:
    asked: list[str] = []

    async def function(key_id: str) -> None:
        asked.append(key_id)

    verifier = APIKeyVerifier(function, pepper=PEPPER)
    for credential in ("ar_", "ar_' or 1=1--_" + "x" * 32, new_key() + "\n", new_key().replace("_", "\u0663", 1)):
        assert await reason(verifier, credential) == "it has not the form of an API key"
    assert asked == []
    await reason(verifier, new_key())
    assert len(asked) == 1


async def test_a_function_finds_the_keys_of_a_database() -> None:
    key = new_key()
    rows = {key[3:11]: KeyRecord(id=key[3:11], hash=Pepper(PEPPER).hash(key), name="laptop", created_at=0)}
    clock = Clock()

    async def function(key_id: str) -> KeyRecord | None:
        return rows.get(key_id)

    verifier = APIKeyVerifier(function, pepper=PEPPER, cache_ttl=10, clock=clock)
    assert (await verifier.verify(key)).subject == key[3:11]
    rows.clear()
    assert (await verifier.verify(key)).subject == key[3:11]
    clock.now += 10
    assert await reason(verifier, key) == f"there is no API key {key[3:11]}"
    await verifier.aclose()


async def test_a_store_that_fails_condemns_nobody() -> None:
    def function(key_id: str) -> None:
        raise ConnectionError

    with pytest.raises(VerifierUnavailableError, match="ConnectionError"):
        await APIKeyVerifier(function, pepper=PEPPER).verify(new_key())


async def test_the_time_limit_of_a_function_can_be_set() -> None:
    async def function(key_id: str) -> None:
        await asyncio.Event().wait()

    with pytest.raises(VerifierUnavailableError, match=r"within 0\.01 s"):
        await within(APIKeyVerifier(function, pepper=PEPPER, timeout=0.01).verify(new_key()))


def test_arguments_that_cannot_work_are_refused(keys: KeyFile, tmp_path: Path) -> None:
    async def function(key_id: str) -> None: ...

    keys.create("laptop")
    with pytest.raises(ValueError, match="need the pepper"):
        APIKeyVerifier(function)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        APIKeyVerifier(function, pepper="short")
    with pytest.raises(ValueError, match="ttl"):
        APIKeyVerifier(function, pepper=PEPPER, cache_ttl=-1)
    with pytest.raises(ValueError, match="has its pepper"):
        APIKeyVerifier(keys, pepper=PEPPER)
    with pytest.raises(ValueError, match="issuer"):
        APIKeyVerifier(keys, issuer="")
    with pytest.raises(KeyFileError, match="another pepper"):
        APIKeyVerifier(keys.path, pepper=PEPPER)
    with pytest.raises(KeyFileError, match="there is no file"):
        APIKeyVerifier(tmp_path / "typo.json")


# --- in front of a server, with the official clients


async def hello(request: AgentRequest) -> AsyncIterator[str]:
    assert request.principal is not None
    yield "hello "
    yield request.principal.subject


def behind(keys: KeyFile, clock: Clock, **arguments: Any) -> Middleware:
    verifier = APIKeyVerifier(keys, clock=clock, wall_clock=clock)
    return Middleware(AuthenticationMiddleware, verifiers=[verifier], **arguments)


@asynccontextmanager
async def client(served: Served, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=5) as opened:
        yield opened


async def ask(served: Served, key: str) -> str | None:
    async with client(served, key) as opened:
        answer = await opened.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        return answer.choices[0].message.content


async def test_the_official_client_sends_its_key_and_the_agent_knows_the_caller(keys: KeyFile) -> None:
    new = keys.create("laptop", subject="alice")
    server = AgentRunServer(hello, middleware=[Middleware(APIKeyMiddleware, keys=keys.path)])
    async with serve(server) as served:
        assert await ask(served, new.key) == "hello alice"
        async with client(served, new.key) as opened:
            stream = await opened.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello alice"
        with pytest.raises(openai.AuthenticationError) as caught:
            await ask(served, wrong(new.key))
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            await ask(served, new_key())


async def test_a_running_server_refuses_a_key_as_soon_as_it_is_revoked(keys: KeyFile, clock: Clock) -> None:
    async with serve(AgentRunServer(hello, middleware=[behind(_begun(keys), clock)])) as served:
        new = keys.create("laptop")
        clock.now += 1
        assert await ask(served, new.key) == f"hello {new.record.id}"
        keys.revoke(new.record.id)
        clock.now += 1
        with pytest.raises(openai.AuthenticationError):
            await ask(served, new.key)


def _begun(keys: KeyFile) -> KeyFile:
    keys.create("first")
    return keys


async def test_a_running_server_refuses_a_key_as_soon_as_it_has_expired(keys: KeyFile, clock: Clock) -> None:
    new = keys.create("laptop", expires_in=3600)
    async with serve(AgentRunServer(hello, middleware=[behind(keys, clock)])) as served:
        assert await ask(served, new.key) == f"hello {new.record.id}"
        clock.now += 3600
        with pytest.raises(openai.AuthenticationError):
            await ask(served, new.key)


async def test_a_key_without_a_required_scope_is_answered_403(keys: KeyFile) -> None:
    able, unable = keys.create("able", scopes=["chat", "admin"]), keys.create("unable", scopes=["admin"])
    arguments: dict[str, Any] = {"keys": keys.path, "required_scopes": ["chat"], "realm": "agents"}
    async with serve(AgentRunServer(hello, middleware=[Middleware(APIKeyMiddleware, **arguments)])) as served:
        assert await ask(served, able.key) == f"hello {able.record.id}"
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await ask(served, unable.key)
    assert caught.value.code == "insufficient_scope"
    expected = 'Bearer realm="agents", error="insufficient_scope", scope="chat"'
    assert caught.value.response.headers["www-authenticate"] == expected


async def test_when_the_file_is_gone_callers_are_asked_to_come_again(keys: KeyFile, clock: Clock) -> None:
    new = keys.create("laptop")
    async with serve(AgentRunServer(hello, middleware=[behind(keys, clock)])) as served:
        keys.path.unlink()
        clock.now += 1
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(served, new.key)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "5"


async def test_public_paths_need_no_key(keys: KeyFile) -> None:
    keys.create("laptop")
    middleware = Middleware(APIKeyMiddleware, keys=keys, public_paths=["/v1/models"])
    async with serve(AgentRunServer(hello, middleware=[middleware])) as served:
        assert (await served.ask("GET", "/v1/models")).status == 200
        assert (await served.ask("GET", "/v1/models/")).status == 401
        assert (await served.chat()).error()["code"] == "missing_api_key"


async def test_a_key_of_a_megabyte_is_refused(keys: KeyFile) -> None:
    new = keys.create("laptop")
    async with serve(AgentRunServer(hello, middleware=[Middleware(APIKeyMiddleware, keys=keys)])) as served:
        for size, status in ((8 * 1024, 401), (32 * 1024, 401), (1024 * 1024, 431)):
            key = new.key + "x" * size
            answer = await served.ask("GET", "/v1/models", headers=[("authorization", f"Bearer {key}")])
            assert answer.status == status
        assert (await served.ask("GET", "/v1/models", headers=[("api-key", new.key)])).status == 200


def azure_app(seen: list[Scope]) -> ASGIApp:
    """An app with the paths of Azure's service, which this server does not have."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        seen.append(scope)
        principal = principal_of(scope)
        message = {"role": "assistant", "content": f"hello {principal.subject if principal else None}"}
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    return app


async def test_azures_client_sends_its_key_in_a_header_of_its_own(keys: KeyFile) -> None:
    new = keys.create("laptop", subject="alice")
    seen: list[Scope] = []

    async def azure(served: Served, key: str) -> str | None:
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=served.url, api_key=key, api_version="2024-10-21", max_retries=0, timeout=5
        ) as opened:
            answer = await opened.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            return answer.choices[0].message.content

    async with serve(APIKeyMiddleware(azure_app(seen), keys=keys)) as served:
        assert await azure(served, new.key) == "hello alice"
        with pytest.raises(openai.AuthenticationError):
            await azure(served, new_key())
    (scope,) = seen
    headers = dict(scope["headers"])
    assert scope["path"] == "/openai/deployments/m/chat/completions"
    assert scope["query_string"] == b"api-version=2024-10-21"
    assert headers[b"api-key"].decode() == new.key
    assert b"authorization" not in headers


async def test_azures_client_lists_the_models_of_a_real_server(keys: KeyFile) -> None:
    new = keys.create("laptop")
    server = AgentRunServer({"research": hello}, middleware=[Middleware(APIKeyMiddleware, keys=keys)])
    async with (
        serve(server) as served,
        openai.AsyncAzureOpenAI(
            base_url=f"{served.url}/openai/v1", api_key=new.key, api_version="2024-10-21", max_retries=0, timeout=5
        ) as opened,
    ):
        assert [model.id async for model in opened.models.list()] == ["research"]


async def test_keys_and_pepper_are_in_no_log_line_and_no_answer(
    keys: KeyFile, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    good: NewKey = keys.create("good", scopes=["chat"])
    revoked, unable = keys.create("revoked"), keys.create("unable")
    keys.revoke(revoked.record.id)
    pepper = keys.pepper_path.read_text().strip()
    secrets = [key[12:] for key in (good.key, revoked.key, unable.key)]
    secrets += [pepper, *(record.hash for record in keys.read().records.values())]
    answers: list[str] = []

    async with serve(AgentRunServer(hello, middleware=[behind(keys, clock, required_scopes=["chat"])])) as served:

        async def send(*headers: tuple[str, str]) -> int:
            answer = await served.ask("GET", "/v1/models", headers=headers)
            answers.append(repr(answer))
            return answer.status

        assert await send(("authorization", f"Bearer {good.key}")) == 200
        assert await send(("authorization", f"Bearer {good.key}!")) == 401
        assert await send(("authorization", f"Bearer {wrong(good.key)}"), ("api-key", good.key)) == 400
        assert await send(("authorization", f"Bearer {revoked.key}")) == 401
        assert await send(("api-key", unable.key)) == 403
        assert (await served.ask("GET", f"/v1/models?key={good.key}")).status == 400
        keys.path.write_text(keys.path.read_text() + pepper)
        clock.now += 1
        assert await send(("api-key", good.key)) == 200
        keys.path.unlink()
        clock.now += 1
        assert await send(("api-key", good.key)) == 503

    lines = [repr(record.__dict__) for record in caplog.records]
    assert [line for line in lines if f"the API key {revoked.record.id} is revoked" in line]
    for secret in secrets:
        assert not [line for line in (*lines, *answers) if secret in line]
