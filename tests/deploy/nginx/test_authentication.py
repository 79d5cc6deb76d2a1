"""Who passes nginx, what the server is told of them, and that nothing else is open."""

import re
from collections.abc import AsyncIterator

import pytest

from agentrun_server import AgentRequest
from tests.deploy.nginx.behind import ALICE, GOOD, ISSUER, Echo, Headers, bearer, guarded, token
from tests.support.nginx import CONF, InFront, needs_nginx, shipped
from tests.support.raw_client import CHAT, Response, chat_body
from tests.support.serve import serve

pytestmark = needs_nginx


async def echo(request: AgentRequest) -> AsyncIterator[str]:
    yield str(request.messages[-1].text)


def key(text: str) -> Headers:
    return (("authorization", f"Bearer {text}"),)


def shown(answer: Response) -> tuple[int, bytes, str | None]:
    """Return what of a refusal must be the same whoever refuses."""
    return answer.status, answer.body, answer.header("www-authenticate")


# --- who passes

CREDENTIALS: dict[str, tuple[Headers, int, str]] = {
    "none": ((), 401, "missing_api_key"),
    "another scheme": ((("authorization", "Basic YTpi"),), 401, "missing_api_key"),
    "empty": ((("authorization", "Bearer "),), 401, "missing_api_key"),
    "nonsense": (key("nonsense"), 401, "invalid_api_key"),
    "expired": (bearer("use", iat=1, exp=2), 401, "invalid_api_key"),
    "longer than 8 KiB": (key("x" * 9000), 401, "invalid_api_key"),
    "without the scope": (bearer("other"), 403, "insufficient_scope"),
    "two different": ((*bearer("use"), ("api-key", token("use", sub="bob"))), 400, "invalid_request"),
    "not printable": ((("authorization", "Bearer caf\xe9"),), 400, "invalid_request"),
    "good": (bearer("use"), 200, ""),
    "good, as Azure's": ((("api-key", token("use")),), 200, ""),
}


async def test_nginx_refuses_what_the_server_refuses_and_says_the_same(in_front: InFront) -> None:
    asked: list[str] = []

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        asked.append(request.principal.subject)
        yield "hello"

    server = guarded(agent, auth_required_scopes=["use"])
    async with serve(server) as served, in_front(served.port) as front:
        for name, (headers, status, code) in CREDENTIALS.items():
            answer = await front.chat(headers=headers)
            assert answer.status == status, name
            if status == 200:
                assert asked.pop() == "alice", name
            else:
                assert answer.error()["code"] == code, name
                assert shown(answer) == shown(await served.chat(headers=headers)), name
        assert asked == []
        await front.logged(status=401, path=CHAT, upstream="")  # the request itself was not passed on


async def test_a_credential_in_the_query_is_refused_by_the_server(in_front: InFront) -> None:
    async with serve(guarded(echo)) as served, in_front(served.port) as front:
        answer = await front.ask("GET", "/v1/models?api_key=x", headers=bearer())
        assert (answer.status, answer.error()["code"]) == (400, "invalid_request")


async def test_what_the_server_refuses_later_passes_as_it_is(in_front: InFront) -> None:
    server = guarded({"a": echo, "b": echo})
    async with serve(server) as served, in_front(served.port) as front:
        refused = await front.chat(model="b", headers=bearer("models:a"))
        assert shown(refused) == shown(await served.chat(model="b", headers=bearer("models:a")))
        assert refused.status == 403
        unknown = await front.ask("GET", "/nope", headers=bearer())
        assert (unknown.status, unknown.error()["code"]) == (404, "unknown_url")
        assert unknown.header("x-request-id") == (await front.logged(path="/nope"))["request_id"]


# --- what the server is told


async def test_identity_comes_from_the_check_alone(in_front: InFront) -> None:
    app = Echo()
    forged: Headers = tuple((name, "forged") for name in ALICE)
    async with serve(app) as served, in_front(served.port) as front:
        assert (await front.ask("GET", "/v1/models", headers=GOOD + forged)).status == 200
        (call,) = app.calls
        assert {name: call.headers.get(name) for name in ALICE} == ALICE
        assert call.headers["authorization"] == "Bearer good", "for the server to check again"
        line = await front.logged(path="/v1/models")
        assert (line["subject"], line["issuer"]) == ("alice", ISSUER)


STRIPPED = re.findall(r'^    proxy_set_header (\S+) "";', shipped(CONF), re.MULTILINE)


async def test_trap_3_what_gateways_say_of_a_request_is_taken_from_clients(in_front: InFront) -> None:
    """And the names with underscores, which some servers take for the same."""
    app = Echo()
    known = {"x-auth-roles", "x-auth-user", "x-auth-email", "x-forwarded-user", "x-remote-user", "x-original-uri"}
    names = (
        {name.lower() for name in STRIPPED} - {"connection"} | known | {"forwarded", "x-real-ip", "x-forwarded-host"}
    )
    forged = tuple((name, "forged") for name in [*names, *(name.replace("-", "_") for name in names), "x_auth_subject"])
    async with serve(app) as served, in_front(served.port) as front:
        assert (await front.ask("GET", "/v1/models", headers=GOOD + forged)).status == 200
        assert (await front.ask("GET", "/livez", headers=forged)).status == 200
    assert "forged" not in str(app.calls)
    assert "forged" not in str(app.checks)
    without = {'proxy_set_header X-Auth-Roles "";\n': ""}
    async with serve(app) as served, in_front(served.port, edits=without) as front:
        await front.ask("GET", "/v1/models", headers=GOOD + forged)
    assert app.calls[-1].headers["x-auth-roles"] == "forged", "what is not named passes"


async def test_trap_2_one_header_set_in_a_location_lets_all_the_others_through(in_front: InFront) -> None:
    app = Echo()
    edits = {"proxy_pass http://$replica;": "proxy_pass http://$replica; proxy_set_header X-Harmless yes;"}
    forged: Headers = (("x-auth-subject", "root"), ("x-auth-roles", "admin"))
    async with serve(app) as served:
        async with in_front(served.port, edits=edits) as front:
            await front.ask("GET", "/", headers=GOOD + forged)
        assert app.calls[-1].headers["x-auth-subject"] == "root"
        async with in_front(served.port) as front:
            await front.ask("GET", "/", headers=GOOD + forged)
        assert app.calls[-1].headers["x-auth-subject"] == "alice"


def test_trap_2_headers_are_set_in_one_place_and_for_the_check_alone() -> None:
    text = shipped(CONF)
    locations = re.findall(r"^        location ([^{]+) \{\n(.*?)^        \}", text, re.DOTALL | re.MULTILINE)
    assert [name for name, body in locations if "proxy_set_header" in body] == ["= /_auth"]
    with_headers = {name: re.findall(r"add_header (\S+)", body) for name, body in locations if "add_header" in body}
    assert set(with_headers) == {"= /_error"}
    assert {"Strict-Transport-Security", "X-Content-Type-Options"} <= set(with_headers["= /_error"])


async def test_the_address_the_scheme_and_the_id_are_nginxs_own(in_front: InFront) -> None:
    app = Echo()
    forged: Headers = (
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "ftp"),
        ("x-request-id", "forged"),
    )
    async with serve(app) as served, in_front(served.port) as front:
        answer = await front.ask("GET", "/v1/models", headers=GOOD + forged)
        line = await front.logged(path="/v1/models")
    for call in (*app.calls, *app.checks):
        assert call.headers["x-forwarded-for"] == "127.0.0.1"
        assert call.headers["x-forwarded-proto"] == "https"
        assert call.headers["x-request-id"] == line["request_id"] != "forged"
        assert call.headers["host"] == "localhost"
    assert answer.status == 200


async def test_the_check_is_told_the_credential_and_nothing_else_of_the_request(in_front: InFront) -> None:
    app = Echo()
    more: Headers = (("cookie", "a=b"), ("x-anything", "1"), ("api-key", "good"))
    async with serve(app) as served, in_front(served.port) as front:
        assert (await front.ask("POST", "/v1/x?query=1", b"{}", GOOD + more)).status == 200
    (check,) = app.checks
    assert (check.method, check.raw_path, check.query, check.body) == ("GET", "/auth/verify", "", b"")
    assert set(check.headers) == {
        "host", "authorization", "api-key", "x-request-id", "x-forwarded-for", "x-forwarded-proto",
    }  # fmt: skip
    assert (app.calls[0].body, app.calls[0].query) == (b"{}", "query=1")


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
async def test_an_upgrade_is_not_passed_on(protocol: str, in_front: InFront) -> None:
    """A server that took it up would speak with the client past all checks."""
    app = Echo()
    upgrade: Headers = (
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", protocol),
        ("http2-settings", "AAMAAABk"),
    )
    async with serve(app) as served, in_front(served.port) as front:
        assert (await front.ask("GET", "/v1/realtime", headers=GOOD + upgrade)).status == 200
    assert "upgrade" not in app.calls[0].headers
    assert "connection" not in app.calls[0].headers


# --- what is open


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
async def test_probes_are_open_with_and_without_tls(path: str, in_front: InFront) -> None:
    async with serve(guarded(echo)) as served, in_front(served.port) as front:
        assert (await front.ask("GET", path)).status == 200
        async with front.plain_client() as client:
            await client.request("GET", path)
            assert (await client.response()).status == 200
            await client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            assert b" 200 OK\r\n" in await client.ended(), "without a host, as simple probes are"
        assert front.access_log() == [], "probes are not logged"


async def test_trap_12_what_nginx_takes_for_a_probe_is_one_to_the_server(in_front: InFront) -> None:
    app = Echo()
    paths = ("/v1/models/../../livez", "/x/..%2f/livez", "//livez", "/./livez", "/v1//../livez?x", "/livez#x")
    async with serve(app) as served:
        async with in_front(served.port) as front:
            for path in paths:
                assert (await front.ask("GET", path)).status == 200, path
        assert app.calls == [], "open, and nothing but the probe"
        edits = {
            "auth_request off; access_log off; proxy_pass http://agents/livez;": (
                "auth_request off; access_log off; proxy_pass http://agents;"
            )
        }
        async with in_front(served.port, edits=edits) as front:
            await front.ask("GET", "/v1/models/../../livez")
    assert app.calls[0].raw_path == "/v1/models/../../livez", "passed as it was written it would be another path, open"


INTERNAL = (
    "/auth/verify", "/auth/verify?x=1", "/%61uth/verify", "//auth/verify", "/v1/../auth/verify", "/auth//verify",
    "/auth/./verify", "/auth%2fverify", "/v1/..%2fauth/verify", "/auth/verify#x", "http://x/auth/verify",
    "/_auth", "/%5fauth", "/_error", "//_error", "/docs", "/docs/", "/docs/oauth2-redirect", "/redoc",
    "/openapi.json", "/metrics", "/metrics/x", "/x/../metrics", "/%6detrics",
)  # fmt: skip


async def test_what_is_internal_is_not_found_from_outside(in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port) as front:
        for path in INTERNAL:
            for headers in ((), GOOD):
                answer = await front.ask("GET", path, headers=headers)
                assert (answer.status, answer.error()["code"]) == (404, "unknown_url"), path
    assert app.calls == app.checks == []


OTHERS = (
    "/", "/v1/models", "/v1%2fmodels", "/v1/models/..", "/livez/", "/livezz", "/LIVEZ", "/livez;x", "/livez%0a",
    "/readyz%3f", "/auth/verify/", "/AUTH/VERIFY", "/auth%252fverify", "/auth/verify;x", "/.well-known/x",
)  # fmt: skip


async def test_every_other_path_needs_a_credential(in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port) as front:
        for path in OTHERS:
            assert (await front.ask("GET", path)).status == 401, path
        for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "PROPFIND", "FOO"):
            assert (await front.ask(method, "/v1/models")).status == 401, method
    assert app.calls == []


async def test_trap_12_a_path_is_passed_as_it_was_written(in_front: InFront) -> None:
    app = Echo()
    paths = ("/v1%2fmodels", "/v1/models%20x", "/a/%2e%2e/b", "/caf%C3%A9", "//v1//models", "/a%2Fb%25")
    async with serve(app) as served:
        async with in_front(served.port) as front:
            for path in paths:
                assert (await front.ask("GET", f"{path}?a=%2f&b", headers=GOOD)).status == 200
        assert [(call.raw_path, call.query) for call in app.calls] == [(path, "a=%2f&b") for path in paths]
        edits = {"proxy_pass http://$replica;": "proxy_pass http://agents/;"}
        async with in_front(served.port, edits=edits) as front:
            await front.ask("GET", "/v1%2fmodels", headers=GOOD)
    assert app.calls[-1].raw_path == "/v1/models", "with a path behind it, proxy_pass would write another"


async def test_trap_4_a_return_comes_before_the_check(in_front: InFront) -> None:
    text = shipped(CONF)
    assert set(re.findall(r"return (\S+);", text)) == {"403", "404"}, "so no location gives anything away by it"
    edits = {"location = /docs { return 404; }": "location = /docs { auth_request /_auth; return 200 SECRET; }"}
    app = Echo()
    async with serve(app) as served, in_front(served.port, edits=edits) as front:
        answer = await front.ask("GET", "/docs")
        assert (answer.status, answer.body) == (200, b"SECRET")


async def test_browsers_may_ask_what_they_may_ask_without_a_credential(in_front: InFront) -> None:
    server = guarded(echo, cors_origins=["https://ui.test"])
    preflight: Headers = (("origin", "https://ui.test"), ("access-control-request-method", "POST"))
    async with serve(server) as served, in_front(served.port) as front:
        answer = await front.ask("OPTIONS", CHAT, headers=preflight)
        assert (answer.status, answer.header("access-control-allow-origin")) == (200, "https://ui.test")
    async with serve(guarded(echo)) as served, in_front(served.port) as front:
        assert (await front.ask("OPTIONS", CHAT, headers=preflight)).status == 401, "the server decides"
    app = Echo()
    async with serve(app) as served, in_front(served.port) as front:
        await front.ask("OPTIONS", CHAT, headers=(*GOOD, ("x-auth-subject", "root")))
    assert "x-auth-subject" not in app.calls[0].headers


# --- without TLS


async def test_without_tls_everything_is_refused_and_nobody_is_sent_on(in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port) as front:
        for path in ("/", CHAT, "/v1/models", "/auth/verify", "/docs", "/livez/x", "/livez%00", "/_error"):
            async with front.plain_client() as client:
                await client.request("POST", path, chat_body(), GOOD)
                answer = await client.response()
            expected = {"/_error": (404, "unknown_url"), "/livez%00": (400, "invalid_http_request")}
            assert (answer.status, answer.error()["code"]) == expected.get(path, (403, "https_required")), path
            assert answer.header("location") is None
            assert answer.header("strict-transport-security") is None, "RFC 6797, section 7.2"
            line = await front.logged(request_id=answer.header("x-request-id"))
            assert (line["status"], line["tls"]) == (answer.status, "")
    assert app.calls == app.checks == []


async def test_http_on_the_port_of_tls_is_refused_in_json(in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port) as front:
        client = front.plain_client()
        client._address = ("127.0.0.1", front.port)
        async with client:
            await client.request("POST", CHAT, chat_body(), GOOD)
            answer = await client.response()
        assert (answer.status, answer.error()["code"]) == (403, "https_required")
    assert app.calls == app.checks == []
