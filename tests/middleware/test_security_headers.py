from collections.abc import Mapping

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from agentrun_middleware.asgi import Message, Receive, Scope, Send
from agentrun_middleware.security_headers import DEFAULTS, SecurityHeadersMiddleware
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import Answer, Behind, call, http_scope, websocket_scope
from tests.support.serve import serve

JSON = ("content-type", "application/json")
POLICY = "content-security-policy"
HSTS = "strict-transport-security"


def said(answer: Answer) -> dict[str, str]:
    """Return the headers of an answer, each of which must be there once."""
    names = [name for name, _ in answer.headers]
    assert len(set(names)) == len(names), names
    return {name.decode(): value.decode() for name, value in answer.headers}


async def test_an_answer_says_what_owasp_asks_of_an_api() -> None:
    answer = await call(SecurityHeadersMiddleware(Behind([JSON])), http_scope())
    assert said(answer) == {
        "content-type": "application/json",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-store",
    }


@pytest.mark.parametrize("status", [200, 204, 302, 304, 404, 500])
async def test_so_does_one_of_every_status_with_or_without_a_content_type(status: int) -> None:
    answer = await call(SecurityHeadersMiddleware(Behind(status=status)), http_scope())
    assert said(answer) == DEFAULTS


@pytest.mark.parametrize("name", [*DEFAULTS, HSTS])
async def test_what_the_app_says_stands_and_is_not_said_twice(name: str) -> None:
    app = Behind([(name, "its own")])
    answer = await call(SecurityHeadersMiddleware(app, hsts=60), http_scope(scheme="https"))
    assert said(answer) == {**DEFAULTS, HSTS: "max-age=60", name: "its own"}


async def test_it_stands_too_if_the_app_writes_names_with_capitals_or_twice() -> None:
    headers = [(b"Cache-Control", b"max-age=60"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    answer = await call(SecurityHeadersMiddleware(app), http_scope())
    assert answer.headers[:3] == headers
    assert sorted(name for name, _ in answer.headers[3:]) == sorted(
        name.encode() for name in DEFAULTS if name != "cache-control"
    )


async def test_the_message_of_the_app_is_not_changed_and_its_other_keys_are_kept() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": (), "a server's own": True}
    body: Message = {"type": "http.response.body", "body": b""}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send(body)

    answer = await call(SecurityHeadersMiddleware(app), http_scope())
    assert start["headers"] == ()
    assert answer.messages[0]["a server's own"] is True
    assert answer.messages[1] is body


class TestHTML:
    @pytest.mark.parametrize(
        "kind", ["text/html", "text/html; charset=utf-8", "Text/HTML;charset=utf-8", "application/xhtml+xml"]
    )
    async def test_a_page_gets_no_policy_that_would_break_it(self, kind: str) -> None:
        answer = await call(SecurityHeadersMiddleware(Behind([("content-type", kind)])), http_scope())
        assert said(answer) == {"content-type": kind, **{k: v for k, v in DEFAULTS.items() if k != POLICY}}

    async def test_a_page_gets_the_policy_that_was_given_for_pages(self) -> None:
        policy = "default-src 'self'"
        page = await call(
            SecurityHeadersMiddleware(Behind([("content-type", "text/html")]), html_policy=policy), http_scope()
        )
        other = await call(SecurityHeadersMiddleware(Behind([JSON]), html_policy=policy), http_scope())
        assert page.header(POLICY) == policy
        assert other.header(POLICY) == DEFAULTS[POLICY]

    @pytest.mark.parametrize("kind", ["", "application/json", "text/plain", "image/svg+xml", "text/event-stream"])
    async def test_nothing_else_is_a_page(self, kind: str) -> None:
        answer = await call(SecurityHeadersMiddleware(Behind([("content-type", kind)])), http_scope())
        assert answer.header(POLICY) == DEFAULTS[POLICY]


class TestHSTS:
    @pytest.mark.parametrize(("scheme", "value"), [("https", "max-age=600"), ("http", None)])
    async def test_it_is_sent_over_https_alone(self, scheme: str, value: str | None) -> None:
        answer = await call(SecurityHeadersMiddleware(Behind(), hsts=600), http_scope(scheme=scheme))
        assert answer.header(HSTS) == value

    async def test_it_is_off_unless_asked_for(self) -> None:
        answer = await call(SecurityHeadersMiddleware(Behind()), http_scope(scheme="https"))
        assert answer.header(HSTS) is None

    async def test_it_is_sent_with_pages_too_and_zero_takes_it_back(self) -> None:
        app = Behind([("content-type", "text/html")])
        answer = await call(SecurityHeadersMiddleware(app, hsts=0), http_scope(scheme="https"))
        assert answer.header(HSTS) == "max-age=0"

    async def test_a_value_of_ones_own_is_sent_over_https_alone(self) -> None:
        app = SecurityHeadersMiddleware(Behind(), headers={"Strict-Transport-Security": "max-age=9; includeSubDomains"})
        assert (await call(app, http_scope(scheme="https"))).header(HSTS) == "max-age=9; includeSubDomains"
        assert (await call(app, http_scope())).header(HSTS) is None


class TestOverrides:
    async def test_a_header_can_be_changed_left_out_and_added(self) -> None:
        headers = {"X-Frame-Options": "SAMEORIGIN", "permissions-policy": None, "x-robots-tag": "noindex"}
        answer = await call(SecurityHeadersMiddleware(Behind(), headers=headers), http_scope())
        expected = {**DEFAULTS, "x-frame-options": "SAMEORIGIN", "x-robots-tag": "noindex"}
        del expected["permissions-policy"]
        assert said(answer) == expected

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-frame-options": "DENY\r\nset-cookie: a=1"},
            {"x-frame-options": ""},
            {"x-frame-options": " DENY"},
            {"x-frame-options": "DENY\n"},
            {"x-frame-options": "ÄÖ"},
            {"x frame options": "DENY"},
            {"x-frame-options:": "DENY"},
            {"": "DENY"},
        ],
    )
    def test_what_cannot_be_sent_is_refused_at_start(self, headers: Mapping[str, str]) -> None:
        with pytest.raises(ValueError, match="no header that can be sent"):
            SecurityHeadersMiddleware(Behind(), headers=headers)

    def test_so_are_a_bad_policy_and_a_negative_time(self) -> None:
        with pytest.raises(ValueError, match="no header that can be sent"):
            SecurityHeadersMiddleware(Behind(), html_policy="default-src\n")
        with pytest.raises(ValueError, match="hsts must not be negative"):
            SecurityHeadersMiddleware(Behind(), hsts=-1)


class TestWebSockets:
    async def test_a_handshake_refused_with_an_answer_has_the_headers(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})

        scope = websocket_scope(denial=True, scheme="wss")
        answer = await call(SecurityHeadersMiddleware(app, hsts=60), scope)
        assert said(answer) == {**DEFAULTS, HSTS: "max-age=60"}

    async def test_one_that_is_accepted_is_left_alone(self) -> None:
        answer = await call(SecurityHeadersMiddleware(Behind()), websocket_scope())
        assert answer.headers == []


async def test_the_lifespan_passes() -> None:
    app = Behind()
    scope: Scope = {"type": "lifespan"}
    await call(SecurityHeadersMiddleware(app), scope)
    assert app.scope is scope


class TestOnTheWire:
    async def test_a_stream_keeps_its_own_cache_control(self, http: str) -> None:
        async def agent(request: AgentRequest) -> str:
            return "hi"

        async with serve(SecurityHeadersMiddleware(AgentRunServer(agent)), http=http) as served:
            stream = await served.chat(stream=True)
            plain = await served.chat()
        assert stream.header("cache-control") == "no-cache, no-transform"
        assert stream.header("x-content-type-options") == "nosniff"
        assert plain.header("cache-control") == "no-store"
        assert plain.header(POLICY) == DEFAULTS[POLICY]

    async def test_the_documentation_of_the_server_is_a_page_that_works(self, http: str) -> None:
        def agent(request: AgentRequest) -> str:
            raise NotImplementedError

        server = AgentRunServer(agent, config=ServerConfig(docs=True))
        async with serve(SecurityHeadersMiddleware(server), http=http) as served:
            page = await served.ask("GET", "/docs")
            schema = await served.ask("GET", "/openapi.json")
        assert (page.status, page.header(POLICY)) == (200, None)
        assert (schema.status, schema.header(POLICY)) == (200, DEFAULTS[POLICY])

    async def test_a_page_of_an_app_brings_its_own_policy(self, http: str) -> None:
        app = FastAPI()

        @app.get("/")
        async def page() -> HTMLResponse:
            return HTMLResponse("<p>hi</p>", headers={"Content-Security-Policy": "default-src 'self'"})

        async with serve(SecurityHeadersMiddleware(app), http=http) as served:
            answer = await served.ask("GET", "/")
        assert answer.header(POLICY) == "default-src 'self'"
