"""The layer in front, from settings: who passes, what they may use, what is counted; and `GET /auth/verify`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from starlette.middleware import Middleware

from agentrun_middleware.principal import Principal
from agentrun_middleware.state import set_state
from agentrun_server import AgentRequest, AgentRunServer, ConfigurationError, ServerConfig, Usage
from agentrun_server.core.request import AgentRequest as Request
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from tests.support.clock import eventually
from tests.support.raw_client import Response
from tests.support.serve import serve

KEY = "for-tests-only-" + "k" * 60
ISSUER = "https://issuer.test"
AUTH: dict[str, Any] = {
    "auth_jwt_key": KEY,
    "auth_jwt_algorithms": ["HS256"],
    "auth_issuer": ISSUER,
    "auth_audience": ["agents"],
}
CHAT = "/v1/chat/completions"


def bearer(*scopes: str, **claims: Any) -> tuple[tuple[str, str], ...]:
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": "agents", "sub": "alice", "iat": now, "exp": now + 60, "scope": " ".join(scopes)}
    return (("authorization", f"Bearer {jwt.encode({**payload, **claims}, KEY, algorithm='HS256')}"),)


async def echo(request: AgentRequest) -> AsyncIterator[str]:
    yield str(request.messages[-1].text)


def guarded(agent: Any = echo, **settings: Any) -> AgentRunServer:
    return AgentRunServer(agent, config=ServerConfig(**{**AUTH, **settings}))


def models_of(answer: Response) -> list[str]:
    return [model["id"] for model in answer.json()["data"]]


# --- settings


async def test_without_settings_there_is_nothing_in_front() -> None:
    async with serve(AgentRunServer(echo)) as served:
        assert (await served.chat()).status == 200
        assert (await served.chat(headers=(("authorization", "Bearer anything"),))).status == 200


@pytest.mark.parametrize("hosts", [(), ("*",)])
async def test_a_server_that_trusts_any_host_has_nothing_that_looks(hosts: tuple[str, ...]) -> None:
    server = AgentRunServer(echo, config=ServerConfig(trusted_hosts=hosts))
    assert server._stack == server._dispatch


@pytest.mark.parametrize("hosts", [("*", "example.com"), ("https://example.com",), ("",), "example.com"])
def test_hosts_that_cannot_be_stop_the_server(hosts: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^trusted_hosts"):
        AgentRunServer(echo, config=ServerConfig(trusted_hosts=hosts))


async def test_a_host_is_looked_at_before_a_credential() -> None:
    async with serve(guarded(trusted_hosts=["example.com"])) as served:
        assert (await served.chat(headers=(("authorization", "Bearer nonsense"),))).status == 421
    async with serve(guarded(trusted_hosts=["localhost"])) as served:
        assert (await served.chat(headers=(("authorization", "Bearer nonsense"),))).status == 401
        assert (await served.chat(headers=bearer())).status == 200


async def test_settings_put_authentication_in_front() -> None:
    seen: list[Any] = []

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        seen.append(request.principal)
        yield "ok"

    async with serve(guarded(agent)) as served:
        assert (await served.chat()).status == 401
        assert (await served.chat(headers=(("authorization", "Bearer nonsense"),))).status == 401
        assert not seen, "no agent has run"
        assert (await served.chat(headers=bearer("models:*", tenant="acme"))).status == 200
    (principal,) = seen
    assert (principal.subject, principal.issuer, principal.scopes) == ("alice", ISSUER, {"models:*"})
    assert principal.claims["tenant"] == "acme"


async def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_AUTH_JWT_KEY", KEY)
    monkeypatch.setenv("AGENTRUN_AUTH_JWT_ALGORITHMS", "HS256,HS512")
    monkeypatch.setenv("AGENTRUN_AUTH_ISSUER", ISSUER)
    monkeypatch.setenv("AGENTRUN_AUTH_AUDIENCE", "agents,others")
    async with serve(AgentRunServer(echo)) as served:
        assert (await served.chat()).status == 401
        assert (await served.chat(headers=bearer())).status == 200


async def test_probes_are_open_and_everything_else_is_not() -> None:
    async with serve(guarded()) as served:
        for path in ("/health", "/livez", "/readyz"):
            assert (await served.ask("GET", path)).status == 200
        for path in ("/", "/v1/models", "/health/", "/healthz", "/nope", "//health", "/docs", "/openapi.json"):
            assert (await served.ask("GET", path)).status == 401, path


async def test_documentation_and_added_routes_stand_behind_it_too() -> None:
    server = guarded(docs=True)

    @server.app.get("/mine")
    async def mine() -> str:
        return "secret"

    async with serve(server) as served:
        for path in ("/docs", "/openapi.json", "/mine"):
            assert (await served.ask("GET", path)).status == 401, path
            assert (await served.ask("GET", path, headers=bearer())).status == 200, path


async def test_public_paths_and_required_scopes() -> None:
    server = guarded(auth_public_paths=["/v1/models"], auth_required_scopes=["agents:use"])
    async with serve(server) as served:
        assert (await served.ask("GET", "/v1/models")).status == 200
        assert (await served.ask("GET", "/v1/models/")).status == 401
        refused = await served.chat(headers=bearer())
        assert (refused.status, refused.error()["code"]) == (403, "insufficient_scope")
        assert (await served.chat(headers=bearer("agents:use"))).status == 200


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"auth_issuer": ISSUER}, "auth_issuer"),
        ({"auth_audience": ["a"]}, "auth_audience"),
        ({"auth_required_scopes": ["a"]}, "auth_required_scopes"),
        ({"auth_public_paths": ["/a"]}, "auth_public_paths"),
        ({"auth_keys_pepper": "p" * 40}, "auth_keys_pepper"),
        ({"rate_limit_redis_url": "redis://127.0.0.1:1/0"}, "rate_limit_redis_url"),
        ({**AUTH, "auth_issuer": None}, "auth_issuer"),
        ({**AUTH, "auth_audience": ()}, "auth_audience"),
        ({**AUTH, "auth_jwt_algorithms": ["HS256", "RS256"]}, "famil"),
        ({**AUTH, "auth_jwt_algorithms": ["none"]}, "none"),
        ({**AUTH, "auth_jwt_key": "too short"}, ""),
        ({**AUTH, "auth_jwks_url": "https://issuer.test/keys"}, "exactly one"),
        ({**AUTH, "auth_public_paths": ["v1"]}, "public path"),
        ({"trusted_proxies": ["everyone"]}, ""),
    ],
)
def test_settings_that_cannot_work_or_check_nothing_stop_the_start(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        AgentRunServer(echo, config=ServerConfig(**settings))
    assert named in str(raised.value)
    assert KEY not in str(raised.value)
    assert "p" * 40 not in str(raised.value)


# --- models


AGENTS = {"research": echo, "chat": echo}


@pytest.mark.parametrize(
    ("scopes", "listed"),
    [
        ((), ["research", "chat"]),
        (("profile",), ["research", "chat"]),
        (("models:research",), ["research"]),
        (("models:chat", "models:gone"), ["chat"]),
        (("models:*",), ["research", "chat"]),
        (("models:gone",), []),
        (("models:",), []),
    ],
)
async def test_the_list_has_what_the_caller_may_use_and_the_rest_is_refused(
    scopes: tuple[str, ...], listed: list[str]
) -> None:
    async with serve(guarded(AGENTS)) as served:
        assert models_of(await served.ask("GET", "/v1/models", headers=bearer(*scopes))) == listed
        for model in AGENTS:
            expected = 200 if model in listed else 403
            assert (await served.chat(model=model, headers=bearer(*scopes))).status == expected
            assert (await served.ask("GET", f"/v1/models/{model}", headers=bearer(*scopes))).status == expected


async def test_a_refusal_tells_nobody_whether_the_model_exists() -> None:
    async with serve(guarded(AGENTS)) as served:
        refused = await served.chat(model="chat", headers=bearer("models:research"))
        unknown = await served.chat(model="nope", headers=bearer("models:research"))
        assert refused.status == unknown.status == 403
        assert refused.error() == unknown.error()
        assert (
            refused.header("www-authenticate") == 'Bearer realm="api", error="insufficient_scope", scope="models:chat"'
        )
        assert (await served.chat(model="nope", headers=bearer("models:*"))).status == 404
        quoted = await served.chat(model='a"b', headers=bearer("models:research"))
        assert quoted.header("www-authenticate") == 'Bearer realm="api", error="insufficient_scope"'


async def test_a_single_agent_answers_to_any_name_but_the_scope_names_its_own() -> None:
    async with serve(guarded()) as served:
        assert (await served.chat(model="gpt-4o", headers=bearer("models:agentrun"))).status == 200
        assert (await served.chat(model="gpt-4o", headers=bearer("models:gpt-4o"))).status == 403


async def test_model_scopes_can_be_required() -> None:
    async with serve(guarded(AGENTS, auth_model_scopes="required")) as served:
        assert models_of(await served.ask("GET", "/v1/models", headers=bearer())) == []
        assert (await served.chat(model="chat", headers=bearer("profile"))).status == 403
        assert (await served.chat(model="chat", headers=bearer("models:chat"))).status == 200


async def test_the_router_in_an_app_of_ones_own_knows_the_caller() -> None:
    from fastapi import FastAPI

    from agentrun_middleware.jwt import JWTMiddleware
    from agentrun_server import OpenAIProtocolHandler

    server = AgentRunServer(AGENTS)
    app = FastAPI()
    app.include_router(OpenAIProtocolHandler().as_fastapi_router(server.agent_invoker), prefix="/v1")
    protected = JWTMiddleware(app, algorithms=["HS256"], key=KEY, issuer=ISSUER, audience="agents")
    async with serve(protected) as served:
        assert models_of(await served.ask("GET", "/v1/models", headers=bearer("models:chat"))) == ["chat"]
        assert (await served.ask("GET", "/v1/models/research", headers=bearer("models:chat"))).status == 403
        assert (await served.chat(model="research", headers=bearer("models:chat"))).status == 403


async def test_protocols_of_a_users_own_are_held_to_the_scopes() -> None:
    server = AgentRunServer(AGENTS)
    request = Request(messages=[], model="research", principal=Principal("alice", ISSUER, frozenset({"models:chat"})))
    with pytest.raises(Exception, match="do not have access"):
        await server.agent_invoker.invoke(request)


async def test_a_route_of_a_users_own_cannot_forget_who_is_calling() -> None:
    server = guarded(AGENTS)

    @server.app.post("/ask/{model}")
    async def ask(model: str) -> list[str]:
        request = Request(messages=[{"role": "user", "content": "hi"}], model=model)  # without a principal
        return [str(item) for item in await server.agent_invoker.invoke(request)]

    async with serve(server) as served:
        assert (await served.ask("POST", "/ask/chat", b"", headers=bearer("models:chat"))).status == 200
        assert (await served.ask("POST", "/ask/research", b"", headers=bearer("models:chat"))).status == 403
        assert (await served.ask("POST", "/ask/research", b"", headers=bearer())).status == 200


async def test_scopes_of_a_foreign_principal_may_be_one_text() -> None:
    principal = SimpleNamespace(scopes="openid models:chat")
    async with serve(AgentRunServer(AGENTS, middleware=[says(principal)])) as served:
        assert models_of(await served.ask("GET", "/v1/models")) == ["chat"]
        assert (await served.chat(model="research")).status == 403


# --- GET /auth/verify


async def test_verify_tells_a_gateway_who_is_calling() -> None:
    async with serve(guarded()) as served:
        answer = await served.ask("GET", "/auth/verify", headers=bearer("models:chat", "a"))
        assert (answer.status, answer.body) == (204, b"")
        assert answer.header("x-auth-subject") == "alice"
        assert answer.header("x-auth-issuer") == ISSUER
        assert answer.header("x-auth-scopes") == "a models:chat"
        assert answer.header("cache-control") == "no-store"
        nothing = await served.ask("GET", "/auth/verify", headers=bearer())
        assert nothing.header("x-auth-scopes") == "", "so that a gateway replaces what the client may have said"
        assert answer.header("content-length") is None, "a 204 has none (RFC 9110, section 8.6)"
        assert (await served.ask("HEAD", "/auth/verify", headers=bearer())).status == 204
        assert (await served.ask("POST", "/auth/verify", b"{}", headers=bearer())).status == 405


@pytest.mark.parametrize(
    ("scopes", "told"),
    [
        ("openid models:chat", "models:chat openid"),
        ("  openid  models:chat ", "models:chat openid"),
        ("admin", "admin"),
        ("", ""),
        (" ", ""),
        (["openid", "models:chat"], "models:chat openid"),
        (None, ""),
    ],
)
async def test_verify_tells_the_scopes_of_a_foreign_principal_in_either_form(scopes: Any, told: str) -> None:
    async with serve(AgentRunServer(echo, middleware=[says(SimpleNamespace(scopes=scopes))])) as served:
        answer = await served.ask("GET", "/auth/verify")
        assert (answer.status, answer.header("x-auth-scopes")) == (204, told)


async def test_verify_refuses_as_any_other_path_does() -> None:
    async with serve(guarded(auth_required_scopes=["use"])) as served:
        missing = await served.ask("GET", "/auth/verify")
        assert (missing.status, missing.header("www-authenticate")) == (401, 'Bearer realm="api"')
        wrong = await served.ask("GET", "/auth/verify", headers=(("authorization", "Bearer x.y.z"),))
        assert (wrong.status, wrong.header("www-authenticate")) == (401, 'Bearer realm="api", error="invalid_token"')
        assert (await served.ask("GET", "/auth/verify", headers=bearer())).status == 403


async def test_verify_never_says_yes_where_nobody_checks() -> None:
    async with serve(AgentRunServer(echo)) as served:
        for headers in ((), bearer(), (("x-auth-subject", "root"),)):
            answer = await served.ask("GET", "/auth/verify", headers=headers)
            assert (answer.status, answer.error()["code"]) == (401, "missing_api_key")


async def test_verify_sends_a_gateway_to_the_next_server_while_this_one_drains() -> None:
    release = asyncio.Event()

    async def waiting(_: AgentRequest) -> str:
        await release.wait()
        return "ok"

    server = guarded(waiting)
    async with serve(server) as served, served.client() as client:
        await client.chat(stream=False, headers=bearer())
        await eventually(lambda: len(server._sweeper.active) == 1)
        server.drain.begin(lambda: None)
        answer = await served.ask("GET", "/auth/verify", headers=bearer())
        assert (answer.status, answer.error()["code"]) == (503, "server_shutting_down")
        assert answer.header("retry-after") == "1"
        release.set()
        assert (await client.response()).status == 200


@dataclass
class ForeignPrincipal:
    """What a middleware of somebody else may say."""

    subject: str = "bob\r\nx-auth-scopes: admin"
    issuer: int = 5
    scopes: tuple[str, ...] = ("a", "ü")
    more: list[str] = field(default_factory=list)


def says(principal: object) -> Any:
    def make(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                set_state(scope, "principal", principal)
            await app(scope, receive, send)

        return middleware

    return Middleware(make)


async def test_verify_passes_nothing_on_that_is_not_safe_in_a_header() -> None:
    async with serve(AgentRunServer(echo, middleware=[says(ForeignPrincipal())])) as served:
        answer = await served.ask("GET", "/auth/verify")
        assert answer.status == 204
        assert not [name for name, _ in answer.headers if name.startswith("x-auth")], answer.headers


@pytest.mark.parametrize("principal", ["alice", {"sub": "alice", "scopes": ["models:x"]}, 7])
async def test_a_principal_of_any_form_reaches_the_agent(principal: object) -> None:
    seen: list[Any] = []

    async def agent(request: AgentRequest) -> str:
        seen.append(request.principal)
        return "ok"

    async with serve(AgentRunServer(agent, middleware=[says(principal)])) as served:
        assert (await served.chat()).status == 200
        assert (await served.ask("GET", "/v1/models")).status == 200
        assert (await served.ask("GET", "/auth/verify")).status == 204
    assert seen == [principal]


# --- what a run costs


class Meter:
    """A middleware that reads what a run cost, as a rate limit does."""

    def __init__(self) -> None:
        self.read: list[dict[str, Any]] = []

    def __call__(self, app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                usage: dict[str, Any] = {}
                set_state(scope, "usage", usage)
                try:
                    await app(scope, receive, send)
                finally:
                    self.read.append(usage)
            else:
                await app(scope, receive, send)

        return middleware


async def plain(_: AgentRequest) -> str:
    return "x" * 40


async def counted(_: AgentRequest) -> AsyncIterator[Any]:
    yield "hello"
    yield Usage(input_tokens=100, output_tokens=23)


async def failing(_: AgentRequest) -> AsyncIterator[str]:
    yield "x" * 40
    raise RuntimeError("half way")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("agent", "expected"), [(plain, 11), (counted, 123), (failing, 11)])
async def test_what_a_run_cost_is_told_to_who_asks(agent: Any, expected: int, stream: bool) -> None:
    meter = Meter()
    async with serve(AgentRunServer(agent, middleware=[Middleware(meter)])) as served:
        await served.chat(stream=stream, messages=[{"role": "user", "content": "abcd"}])
    assert meter.read == [{"total_tokens": expected}]


async def test_a_request_that_ran_nothing_cost_nothing() -> None:
    meter = Meter()
    async with serve(AgentRunServer(echo, middleware=[Middleware(meter)])) as served:
        await served.ask("POST", CHAT, b"{")
        await served.ask("GET", "/v1/models")
    assert meter.read == [{}, {}]


async def test_token_limits_count_what_agents_report() -> None:
    config = ServerConfig(**AUTH, rate_limit_tokens=120)
    async with serve(AgentRunServer(counted, config=config)) as served:
        assert (await served.chat(headers=bearer())).status == 200
        refused = await served.chat(headers=bearer())
        assert (refused.status, refused.error()["code"]) == (429, "rate_limit_exceeded")
        other = await served.chat(headers=bearer(sub="bob"))
        assert other.status == 200, "a bucket for each caller"
        assert (await served.ask("GET", "/auth/verify", headers=bearer())).status == 204, "a gateway asks for nothing"


@pytest.mark.parametrize("by_settings", [True, False])
async def test_request_limits_are_for_each_caller_whoever_has_authenticated_them(by_settings: bool) -> None:
    from agentrun_middleware.jwt import JWTMiddleware

    by_hand = Middleware(JWTMiddleware, algorithms=["HS256"], key=KEY, issuer=ISSUER, audience="agents")
    config = ServerConfig(**(AUTH if by_settings else {}), rate_limit_requests=2)
    async with serve(AgentRunServer(echo, config=config, middleware=[] if by_settings else [by_hand])) as served:
        answers = [await served.chat(headers=bearer()) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[-1].header("retry-after") is not None
        assert answers[0].header("x-ratelimit-limit-requests") == "2"
        assert (await served.chat(headers=bearer(sub="bob"))).status == 200
        assert (await served.chat()).status == 401, "who is nobody has no bucket"


# --- around it


async def test_the_log_says_who_called(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(guarded(log_format="json")) as served:
        await served.chat(headers=bearer())
        await served.chat()
    known, unknown = map(json.loads, capsys.readouterr().out.splitlines())
    assert (known["status"], known["subject"]) == (200, "alice")
    assert unknown["status"] == 401
    assert "subject" not in unknown


async def test_preflights_are_answered_before_authentication() -> None:
    async with serve(guarded(cors_origins=["https://ui.test"])) as served:
        headers = (("origin", "https://ui.test"), ("access-control-request-method", "POST"))
        assert (await served.ask("OPTIONS", CHAT, headers=headers)).status == 200
        refused = await served.chat(headers=(("origin", "https://ui.test"),))
        assert (refused.status, refused.header("access-control-allow-origin")) == (401, "https://ui.test")


async def test_the_clients_address_is_what_a_trusted_proxy_says(capsys: pytest.CaptureFixture[str]) -> None:
    forwarded = (("x-forwarded-for", "203.0.113.7"),)
    for trusted, expected in ((["127.0.0.0/8"], "203.0.113.7"), (["10.0.0.0/8"], "127.0.0.1"), ([], "127.0.0.1")):
        server = AgentRunServer(echo, config=ServerConfig(trusted_proxies=trusted, log_format="json"))
        async with serve(server, proxy_headers=False) as served:
            await served.chat(headers=forwarded)
        assert json.loads(capsys.readouterr().out)["client"] == expected


async def test_middleware_sees_the_lifespan() -> None:
    seen: list[str] = []

    def watching(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["type"])
            await app(scope, receive, send)
            if scope["type"] == "lifespan":
                seen.append("end")

        return middleware

    for docs in (False, True):
        seen.clear()
        server = AgentRunServer(echo, config=ServerConfig(docs=docs), middleware=[Middleware(watching)])
        async with serve(server) as served:
            assert (await served.chat()).status == 200
        assert seen == ["lifespan", "http", "end"]


@pytest.mark.parametrize("deployment", [None, "chat"])
async def test_azures_client_chats_with_its_key_header_and_its_path(deployment: str | None) -> None:
    from openai import AsyncAzureOpenAI, PermissionDeniedError

    token = bearer("models:chat")[0][1].removeprefix("Bearer ")
    async with (
        serve(guarded(AGENTS)) as served,
        AsyncAzureOpenAI(
            azure_endpoint=served.url, api_key=token, api_version="2026-01-01", azure_deployment=deployment
        ) as client,
    ):
        answer = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "hi"
        with pytest.raises(PermissionDeniedError):
            await client.chat.completions.create(model="research", messages=[{"role": "user", "content": "hi"}])
        assert (await served.ask("GET", "/openai/deployments/chat/chat/completions")).status == 401


async def test_a_prefix_of_ones_own_has_no_path_of_azures() -> None:
    from agentrun_server import OpenAIProtocolConfig

    config = ServerConfig(openai=OpenAIProtocolConfig(prefix="/mine"))
    async with serve(AgentRunServer(echo, config=config)) as served:
        assert (await served.ask("POST", "/openai/deployments/a/chat/completions", b"{}")).status == 404


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("trust", [False, True])
async def test_a_request_has_one_id_whoever_gives_it(
    outside: bool, trust: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentrun_middleware.request_id import RequestIDMiddleware

    seen: list[str] = []

    async def agent(request: AgentRequest) -> str:
        seen.append(request.request_id)
        return "ok"

    entry = Middleware(RequestIDMiddleware, trust=trust)
    inner = AgentRunServer(agent, config=ServerConfig(log_format="json"), middleware=[] if outside else [entry])
    async with serve(RequestIDMiddleware(inner, trust=trust) if outside else inner) as served:
        answer = await served.chat(headers=(("x-request-id", "of-the-client"),))
    ids = [value for name, value in answer.headers if name == "x-request-id"]
    assert ids == seen == [json.loads(capsys.readouterr().out)["request_id"]]
    assert (ids == ["of-the-client"]) is (trust and outside), "inside, the server has given it already"
