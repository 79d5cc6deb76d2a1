"""Whatever nginx itself answers is OpenAI's error object with the headers clients read, also to what is no request."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.deploy.nginx.behind import GOOD, Echo, both, scripted
from tests.server.http.corpus import CASES, Case
from tests.support.clock import within
from tests.support.nginx import APP_AUTH_CONF, InFront, Nginx, needs_nginx, shipped
from tests.support.raw_client import CHAT, Response, request_bytes
from tests.support.serve import serve

pytestmark = needs_nginx

HOST = b"host: localhost\r\n"
AUTH = b"authorization: Bearer good\r\n"


_JSON = (("content-type", "application/json"),)


async def answers(front: Nginx, data: bytes) -> list[Response]:
    """Send bytes; return all the answers that come before nginx closes."""
    received = await front.raw(data)
    found = []
    if received.startswith(b"{"):  # HTTP/0.9 has but a body
        return [Response(400 if "error" in json.loads(received) else 200, _JSON, received)]
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:])
        headers = tuple((name.lower(), value) for name, _, value in pairs)
        answer = Response(int(lines[0].split()[1]), headers)
        length = 0 if data.startswith(b"HEAD") else int(answer.header("content-length") or 0)
        found.append(Response(answer.status, headers, rest[:length]))
        received = rest[length:]
    return found


def is_well_formed(answer: Response) -> None:
    """Check what every error of nginx's own has."""
    answer.error()
    assert re.fullmatch(r"[0-9a-f]{32}", answer.header("x-request-id") or "")
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("strict-transport-security") == "max-age=31536000"
    assert answer.header("server") == "nginx", "and no version"


# --- statuses

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "garbage": (b"GARBAGE\r\n\r\n", 400, "invalid_http_request"),
    "NUL in the path": (b"GET /%00 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "invalid_http_request"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_http_request"),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400, "invalid_http_request"),
    "a path in the host": (b"GET / HTTP/1.1\r\nhost: x/healthz?\r\n\r\n", 400, "invalid_http_request"),
    "two lengths": (
        b"POST / HTTP/1.1\r\n" + HOST + AUTH + b"content-length: 0\r\ncontent-length: 5\r\n\r\nhello",
        400,
        "invalid_http_request",
    ),
    "length and coding": (
        b"POST / HTTP/1.1\r\n" + HOST + AUTH + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "invalid_http_request",
    ),
    "coding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\n" + HOST + AUTH + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "invalid_http_request",
    ),
    "bad chunk": (
        b"POST / HTTP/1.1\r\n" + HOST + AUTH + b"transfer-encoding: chunked\r\n\r\nnonsense\r\n",
        400,
        "invalid_http_request",
    ),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + AUTH + b"connection: close\r\n\r\n", 405, "method_not_allowed"),
    "long body": (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 10485761\r\n\r\n", 413, "request_too_large"),
    "long target": (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri_too_long"),
    "long header": (
        b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 17_000 + b"\r\n\r\n",
        431,
        "request_header_fields_too_large",
    ),
    "long headers": (
        b"GET / HTTP/1.1\r\n" + HOST + (b"x: " + b"a" * 15_000 + b"\r\n") * 5 + b"\r\n",
        431,
        "request_header_fields_too_large",
    ),
    "unknown coding": (
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
        "not_implemented",
    ),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http_request"),
    "HTTP/3.0": (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505, "http_version_not_supported"),
    "not found": (b"GET /metrics HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n", 404, "unknown_url"),
}


@both
async def test_what_nginx_refuses_is_refused_in_json(conf: Path, in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port, conf=conf) as front:
        for name, (data, status, code) in REFUSED.items():
            async with front.client() as client:
                await client.send(data)
                answer = await client.response()
            assert (answer.status, answer.error()["code"]) == (status, code), name
            is_well_formed(answer)
            assert answer.header(RUN) == ("false" if status >= 500 else None), "or stock clients would try again"
            line = await front.logged(request_id=answer.header("x-request-id"))
            assert line["status"] == status, name
    assert app.calls == []


@both
async def test_nginx_is_no_tunnel(conf: Path, in_front: InFront) -> None:
    """Older versions take ``CONNECT /`` for well-formed, newer ones ``CONNECT host:port``; none connects."""
    app = Echo()
    async with serve(app) as served, in_front(served.port, conf=conf) as front:
        for target in (b"x:443", b"/", b"http://x/"):
            async with front.client() as client:
                await client.send(b"CONNECT " + target + b" HTTP/1.1\r\nhost: x:443\r\n" + AUTH + b"\r\n")
                answer = await client.response()
                assert answer.status in (400, 405), target
                is_well_formed(answer)
    assert app.calls == []


@both
async def test_a_hostile_request_is_refused_in_json_or_passed_on_as_one(conf: Path, in_front: InFront) -> None:
    """The corpus of the server's own tests. nginx forgives more than the server does, but never sends two for one."""
    app = Echo()
    edits = {
        "limit_req zone=requests burst=100 nodelay;": "",
        "client_header_timeout 10s;": "client_header_timeout 3s;",  # the handshake is within it
        "client_body_timeout 15s;": "client_body_timeout 1s; lingering_timeout 1s;",
        "keepalive_timeout 75s;": "keepalive_timeout 1s;",
    }
    host = b"Host: localhost:9000\r\n"
    some = asyncio.Semaphore(50)

    async def play(case: Case) -> int:
        more = AUTH if case.name.startswith("pipeline") else AUTH + b"connection: close\r\n"
        async with some:
            found = await answers(front, case.data.replace(host, host + more))
        for answer in found:
            if answer.status != 200:
                assert answer.status in (400, 401, 405, 413, 414, 431, 501, 505), case.name
                answer.error()
        return sum(answer.status == 200 for answer in found)

    async with serve(app) as served, in_front(served.port, conf=conf, edits=edits) as front:
        passed = await asyncio.gather(*(play(case) for case in CASES if not case.is_head))
        assert len(app.calls) == sum(passed) > 0
        assert {call.method for call in app.calls} <= {"GET", "POST", "PROPFIND", "OPTIONS"}
        assert front.access_log()


@both
async def test_trap_1_a_page_with_a_name_cannot_be_reached_by_what_is_no_request(conf: Path, in_front: InFront) -> None:
    text = shipped(conf)
    (page,) = re.findall(r"error_page 400 .*;", text)
    edits = {
        page: "error_page 400 @refused;",
        "location = /docs {": "location @refused { return 400; }\nlocation = /docs {",
    }
    async with serve(Echo()) as served, in_front(served.port, conf=conf, edits=edits) as front:
        for name in ("garbage", "NUL in the path"):
            (answer,) = await answers(front, REFUSED[name][0])
            assert (answer.status, answer.header("content-type")) == (500, "text/html"), name


# --- the server behind

RUN = "x-should-retry"


async def test_an_agent_that_may_have_run_is_not_run_again(in_front: InFront) -> None:
    """Stock clients repeat a 502 and a 504, unless they are told not to."""
    asked: list[str] = []
    slow = asyncio.Event()

    async def dies(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append("dies")
        writer.close()

    async def hangs(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append("hangs")
        await slow.wait()

    async def talks_nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append("nonsense")
        writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000)

    impatient = {"proxy_read_timeout 1h;": "proxy_read_timeout 50ms;"}
    for script, status, code in (
        (dies, 502, "bad_gateway"),
        (hangs, 504, "gateway_timeout"),
        (talks_nonsense, 502, "bad_gateway"),
    ):
        edits = impatient if script is hangs else {}
        async with scripted(script) as port, in_front(port, edits=edits) as front:
            answer = await front.chat()
            assert (answer.status, answer.error()["code"]) == (status, code)
            assert answer.header(RUN) == "false"
            is_well_formed(answer)
            line = await front.logged(path=CHAT)
            assert (line["upstream_status"], line["upstream"]) == (str(status), f"127.0.0.1:{port}")
    slow.set()
    assert asked == ["dies", "hangs", "nonsense"], "each once"


async def test_a_replica_that_goes_between_check_and_request_has_run_nothing(in_front: InFront) -> None:
    async def vouches_and_goes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        server.close()
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(vouches_and_goes, "127.0.0.1", 0)
    async with in_front(server.sockets[0].getsockname()[1]) as front:
        answer = await front.chat()
        assert (answer.status, answer.error()["code"]) == (502, "bad_gateway")
        assert answer.header(RUN) is None
    await server.wait_closed()


async def test_what_never_reached_an_agent_may_be_sent_again(in_front: InFront) -> None:
    async with serve(Echo()) as served:
        dead = served.port
    async with in_front(dead, conf=APP_AUTH_CONF) as front:
        answer = await front.chat()
        assert (answer.status, answer.error()["code"]) == (502, "bad_gateway")
        assert answer.header(RUN) is None
        is_well_formed(answer)


@both
async def test_the_servers_own_answers_pass_as_they_are(conf: Path, in_front: InFront) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = b"strict-transport-security: max-age=1\r\nx-content-type-options: nosniff\r\nretry-after: 9\r\n"
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-type: text/plain\r\n" + own + b"content-length: 2\r\n\r\nno")
        writer.close()

    async with scripted(script) as port, in_front(port, conf=conf) as front:
        answer = await front.chat()
        assert (answer.status, answer.body, answer.header("content-type")) == (503, b"no", "text/plain")
        assert answer.header("retry-after") == "9"
        assert answer.header("strict-transport-security") == "max-age=31536000", "once"
        assert answer.header("x-content-type-options") == "nosniff"


@both
async def test_an_answer_cannot_send_nginx_elsewhere(conf: Path, in_front: InFront) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-accel-redirect: /auth/verify\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with scripted(script) as port, in_front(port, conf=conf) as front:
        answer = await front.chat()
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer.header("x-accel-redirect") is None


# --- other ways to ask


@both
async def test_an_error_to_head_has_no_body(conf: Path, in_front: InFront) -> None:
    async with (
        serve(Echo()) as served,
        in_front(served.port, conf=conf) as front,
        front.client() as client,
    ):
        await client.request("HEAD", "/metrics")
        answer = await client.response(head_only=True)
        assert (answer.status, answer.header("content-type")) == (404, "application/json")
        await client.request("GET", "/livez")
        assert (await client.response()).status == 200, "the connection goes on"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_errors_are_the_same_over_http_2(in_front: InFront) -> None:
    async with serve(Echo()) as served, in_front(served.port) as front:
        for path, status, code in (
            ("/metrics", 404, "unknown_url"),
            ("/v1/models", 401, "missing_api_key"),
            ("/%00", 400, "invalid_http_request"),
        ):
            process = await asyncio.create_subprocess_exec(
                *("curl", "--silent", "--http2", "--noproxy", "*", "--cacert", str(front.certificate)),
                *("--write-out", "\n%{http_code} %{http_version} %{content_type}", front.url + path),
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await within(process.communicate())
            body, _, told = said.decode().rpartition("\n")
            assert (told, f'"code": "{code}"' in body) == (f"{status} 2 application/json", True), (path, said)


# --- what nginx does not answer


@both
async def test_trap_11_a_slow_body_is_closed_without_an_answer(conf: Path, in_front: InFront) -> None:
    app = Echo()
    edits = {"client_body_timeout 15s;": "client_body_timeout 50ms;"}
    head = request_bytes("POST", "/v1/x", None, (*GOOD, ("content-length", "5")))
    async with serve(app) as served, in_front(served.port, conf=conf, edits=edits) as front:
        assert await front.raw(head + b"he") == b""
        assert (await front.logged(path="/v1/x"))["status"] == 408
    assert app.calls == []


@both
async def test_trap_11_a_slow_head_is_closed_without_an_answer(conf: Path, in_front: InFront) -> None:
    edits = {"client_header_timeout 10s;": "client_header_timeout 1s;"}  # the handshake is within it
    async with serve(Echo()) as served, in_front(served.port, conf=conf, edits=edits) as front:
        assert await front.raw(b"GET / HTTP/1.1\r\nhost: x\r\n") == b""


async def test_trap_11_a_client_that_closes_its_half_has_left(in_front: InFront) -> None:
    go_on = asyncio.Event()
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        go_on.set()
        assert await reader.read() == b""
        left.set()

    async with (
        scripted(script) as port,
        in_front(port) as front,
        front.client() as client,
    ):
        await client.request("GET", "/v1/x")
        await within(go_on.wait())
        client.fin()
        await within(left.wait())
        assert (await front.logged(path="/v1/x"))["status"] == 499
