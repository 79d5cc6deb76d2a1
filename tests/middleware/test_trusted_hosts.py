"""Hosts: under which names the server answers, and what is made of a Host header that is none."""

import logging
from typing import Any

import pytest

from agentrun_middleware.trusted_hosts import TrustedHostsMiddleware, parse_host
from agentrun_server import AgentRunServer, ServerConfig
from tests.middleware.calls import CONNECT, Answer, Behind, call, http_scope, websocket_scope
from tests.support.properties import EXAMPLES
from tests.support.serve import serve
from tests.support.websocket import WebSocket

# After `properties`: it says how often each property is tried.
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

HOSTS = ["agents.example.com", "*.example.org", "127.0.0.1", "[::1]", "2001:db8::1"]
MISDIRECTED = (421, "invalid_request_error", "misdirected_request")
NO_NAME = (400, "invalid_request_error", "invalid_http_request")


async def ask(*hosts: str, **more: Any) -> Answer:
    """Ask with these Host headers; an answer with the status 200 has passed."""
    behind = Behind()
    app = TrustedHostsMiddleware(behind, hosts=HOSTS, exempt_paths=["/livez"])
    answer = await call(app, http_scope(headers=[("host", host) for host in hosts], **more))
    assert len(behind.scopes) == (answer.status == 200)
    return answer


@pytest.mark.parametrize(
    "host",
    [
        "agents.example.com", "AGENTS.Example.COM", "agents.example.com.", "agents.example.com:8000",
        "agents.example.com.:443", "agents.example.com:", " agents.example.com\t",
        "a.example.org", "a.b.example.org", "x_y.EXAMPLE.org.:1",
        "127.0.0.1", "127.0.0.1:8000", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]:80",
        "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[2001:DB8::1]", "[2001:db8:0::0001]:65535",
    ],
)  # fmt: skip
async def test_the_servers_own_names_pass_however_they_are_written(host: str) -> None:
    assert (await ask(host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "example.com", "example.org", "agents.example.com.evil.example", "xagents.example.com",
        "evilexample.org", "a.agents.example.com", "localhost", "127.0.0.2", "127.1", "0x7f.0.0.1", "2130706433",
        "0.0.0.0", "[::]", "[::2]:8000", "xn--gents-eua.example.com", "-", "_", "8000",
    ],
)  # fmt: skip
async def test_another_name_is_misdirected(host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "agentrun_middleware.trusted_hosts")
    assert (await ask(host)).refusal() == MISDIRECTED
    assert [record.getMessage() for record in caplog.records] == ["host not trusted"]


@pytest.mark.parametrize(
    "host",
    [
        "", " ", ":8000", ".", "..", "agents.example.com..", ".agents.example.com", "agents..example.com",
        "user@agents.example.com", "user:secret@agents.example.com", "agents.example.com@evil.example",
        "http://agents.example.com", "agents.example.com/", "agents.example.com#", "agents.example.com\\evil.example",
        "agents.example.com:port", "agents.example.com:80:80", "agents.example.com:123456", "agents.example.com:-1",
        "agents.example.com, agents.example.com", "agents.example.com agents.example.com", "agents.example.com\0",
        "agents.example.com\n", "%61gents.example.com", "\xe4gents.example.com", "agents\xad.example.com", "*",
        "*.example.org", "::1", "[::1", "::1]", "[[::1]]", "[127.0.0.1]", "[::1%25lo]", "[::1%lo]", "[fe80::1%eth0]",
        "[v1.fe80::a]", "[]", "[:::]", "[1::2::3]", "a" * 64 + ".example.org", "a." * 150 + "example.org",
    ],
)  # fmt: skip
async def test_what_is_no_name_is_a_bad_request(host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "agentrun_middleware.trusted_hosts")
    assert (await ask(host)).refusal() == NO_NAME
    assert not caplog.records  # nothing that a stranger made up


@pytest.mark.parametrize("hosts", [[], ["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "evil.example"], ["", "127.0.0.1"]])
async def test_there_is_one_host_and_no_more(hosts: list[str]) -> None:
    assert (await ask(*hosts)).refusal() == NO_NAME


@pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded", "x-host", "x-original-host", ":authority"])
async def test_no_other_header_says_the_host(name: str) -> None:
    app = TrustedHostsMiddleware(Behind(), hosts=HOSTS)
    own = "host=127.0.0.1" if name == "forwarded" else "127.0.0.1"
    assert (await call(app, http_scope(headers=[("host", "evil.example"), (name, own)]))).refusal() == MISDIRECTED
    theirs = own.replace("127.0.0.1", "evil.example")
    assert (await call(app, http_scope(headers=[("host", "127.0.0.1"), (name, theirs)]))).status == 200


async def test_probes_pass_whatever_they_name() -> None:
    for hosts in ([], ["evil.example"], ["\xe4"], ["a", "b"]):
        assert (await ask(*hosts, path="/livez")).status == 200
        assert (await ask(*hosts, path="/mounted/livez", root_path="/mounted")).status == 200
    for path in ("/livez/", "/v1/livez", "//livez", "/LIVEZ"):
        assert (await ask("evil.example", path=path)).status == 421
    assert (await ask("evil.example", path="/mounted/livez")).status == 421


@pytest.mark.parametrize("denial", [True, False])
async def test_a_websocket_is_refused_before_it_is_one(denial: bool) -> None:
    behind = Behind()
    app = TrustedHostsMiddleware(behind, hosts=HOSTS, exempt_paths=["/livez"])
    for path in ("/ws", "/livez"):  # a probe is no WebSocket
        scope = websocket_scope(path, denial=denial, headers=[("host", "evil.example")])
        answer = await call(app, scope, [CONNECT])
        if denial:
            assert answer.refusal() == MISDIRECTED
        else:
            assert answer.messages == [{"type": "websocket.close", "code": 1008, "reason": "misdirected_request"}]
    assert not behind.scopes
    await call(app, websocket_scope(headers=[("host", "a.example.org")]), [CONNECT])
    assert behind.scope["type"] == "websocket"


async def test_the_lifespan_has_no_host() -> None:
    behind = Behind()
    await call(TrustedHostsMiddleware(behind, hosts=HOSTS), {"type": "lifespan"})
    assert behind.scope == {"type": "lifespan"}


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "*", "*.", "*.*.example.com", "a.*.com", "http://example.com", "example.com:8000", "[::1]:8000",
        "::1]", "\xe4.example", "münchen.example", "user@example.com", "example.com/", "a b", "*.127.0.0.1", "*.[::1]",
        "..", "[::1", "1::2::3",
    ],
)  # fmt: skip
def test_a_setting_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"^trusted_hosts: "):
        TrustedHostsMiddleware(Behind(), hosts=["example.com", host])


def test_hosts_are_a_list_and_not_empty() -> None:
    with pytest.raises(ValueError, match="not one string"):
        TrustedHostsMiddleware(Behind(), hosts="example.com")
    with pytest.raises(ValueError, match="is empty"):
        TrustedHostsMiddleware(Behind(), hosts=[])


async def test_settings_are_written_as_one_likes() -> None:
    app = TrustedHostsMiddleware(Behind(), hosts=["*.Example.com.", "LOCALHOST", "0::1"])
    for host in ("a.example.com", "localhost", "[::1]"):
        assert (await call(app, http_scope(headers=[("host", host)]))).status == 200


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=300) | st.from_regex(rb"[\[\]:.a-fA-F0-9%@_-]{0,60}", fullmatch=True))
def test_whatever_comes_has_one_name_or_none(value: bytes) -> None:
    name = parse_host(value)
    if name is not None:
        assert name == name.lower()
        assert not name.endswith(".")
        # Whoever takes it literally gets the same again.
        assert parse_host(f"[{name}]".encode() if ":" in name else name.encode()) == name


# --- in front of a server


async def echo(_: Any) -> str:
    return "hi"


def named(**more: Any) -> AgentRunServer:
    config: dict[str, Any] = {"trusted_hosts": ["agents.example.com"], "access_log": False, **more}
    return AgentRunServer(echo, config=ServerConfig(**config))


PREFLIGHT = (
    "OPTIONS /v1/models HTTP/1.1\r\nHost: evil.example\r\nOrigin: https://a.test\r\nAccess-Control-Request-Method: GET"
)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/models HTTP/1.1\r\nHost: agents.example.com", 200),
        ("GET /v1/models HTTP/1.1\r\nHost: evil.example", 421),
        ("GET /v1/models HTTP/1.0", 400),
        # The name of an absolute target counts in place of Host: RFC 9112, section 3.2.2.
        ("GET http://evil.example/v1/models HTTP/1.1\r\nHost: agents.example.com", 421),
        ("GET http://agents.example.com/v1/models HTTP/1.1\r\nHost: evil.example", 200),
        ("GET http://agents.example.com@evil.example/v1/models HTTP/1.1\r\nHost: agents.example.com", 400),
        ("GET http://AGENTS.EXAMPLE.COM:99/v1/models HTTP/1.1\r\nHost: evil.example", 200),
        ("GET /v1/models HTTP/1.1\r\nHost: agents.example.com\r\nHost: agents.example.com", 400),
        ("GET /v1/models HTTP/1.1\r\nHost: agents.example.com\r\nHost: evil.example", 400),
        ("GET /v1/models HTTP/1.1\r\nHost:", 400),
        ("GET /v1/models HTTP/1.1\r\nHost: user@agents.example.com", 400),
        ("GET /nothing HTTP/1.1\r\nHost: evil.example", 421),
        ("GET /auth/verify HTTP/1.1\r\nHost: evil.example", 421),
        (PREFLIGHT, 421),
        ("GET /livez HTTP/1.1\r\nHost: 10.1.2.3", 200),
        ("GET /readyz HTTP/1.1\r\nHost: evil.example", 200),
        ("GET /health HTTP/1.0", 200),
    ],
)  # fmt: skip
async def test_on_the_wire(head: str, status: int) -> None:
    async with serve(named(cors_origins=["https://a.test"])) as served, served.client() as client:
        await client.send(f"{head}\r\n\r\n".encode())
        answer = await client.response()
        assert answer.status == status
        if status == 421:
            assert answer.error()["code"] == "misdirected_request"
            assert answer.header("x-request-id")
            assert answer.header("access-control-allow-origin") is None


async def test_a_websocket_on_the_wire_is_of_the_same_host() -> None:
    async with serve(named()) as served, served.client() as client:
        refused = await WebSocket(client).ask()  # of localhost
        assert (refused.status, refused.error()["code"]) == (421, "misdirected_request")
    async with serve(named(trusted_hosts=["localhost"])) as served, served.client() as client:
        websocket = WebSocket(client)
        await websocket.open()
        # Its messages are requests to the same host.
        assert (await websocket.turn("hi"))["type"] == "response.completed"
