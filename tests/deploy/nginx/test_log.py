"""What nginx writes down: a JSON line for each request, and no key, no query and no question in any log."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.deploy.nginx.behind import GOOD, ISSUER, Echo, Headers, Speaker, bearer, both, guarded, scripted
from tests.support.clock import within
from tests.support.nginx import InFront, Nginx, needs_nginx
from tests.support.raw_client import CHAT, chat_body
from tests.support.serve import serve

pytestmark = needs_nginx

CANARY = "canary"


async def test_a_line_says_what_was_asked_by_whom_and_what_it_took(in_front: InFront) -> None:
    speaker = Speaker()
    speaker.say("hello")
    speaker.finish()
    async with serve(guarded(speaker)) as served, in_front(served.port) as front:
        answer = await front.chat(stream=True, headers=bearer())
        line = await front.logged(path=CHAT)
        replica = f"127.0.0.1:{served.port}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", line.pop("time"))
    for time in ("upstream_connect", "upstream_first_byte", "upstream_duration"):
        assert re.fullmatch(r"\d+\.\d{3}", line.pop(time))
    assert isinstance(line.pop("duration"), float)
    assert line.pop("bytes") > len(answer.body)
    assert line == {
        "client": "127.0.0.1",
        "method": "POST",
        "path": CHAT,
        "protocol": "HTTP/1.1",
        "tls": "TLSv1.3",
        "status": 200,
        "client_left": False,
        "request_id": answer.header("x-request-id"),
        "subject": "alice",
        "issuer": ISSUER,
        "upstream": replica,
        "upstream_status": "200",
        "upstream_request_id": answer.header("x-request-id"),
    }


async def everything_that_may_leak(front: Nginx) -> None:
    """Send the canary wherever a client can put it."""
    secret: Headers = (
        ("authorization", f"Bearer {CANARY}"),
        ("cookie", CANARY),
        ("referer", f"https://x/?{CANARY}"),
        ("user-agent", CANARY),
        ("x-request-id", CANARY),
        ("x-forwarded-for", CANARY),
    )
    body = chat_body(text=CANARY)
    for headers in (secret, (*GOOD, *secret[1:])):
        for target in (f"/v1/x?api_key={CANARY}", f"/v1/x#{CANARY}", f"/metrics?{CANARY}", f"/%00?{CANARY}"):
            await front.ask("POST", target, body, headers)
        await front.ask("GET", f"http://{CANARY}@x/v1/x?{CANARY}", None, headers)
    await front.raw(f"GET /v1/x?{CANARY} HTTP/7.1\r\n\r\n".encode())
    await front.raw(f"{CANARY} /v1/x HTTP/1.1\r\n\r\n".encode())
    await front.raw(f"GET /?{'a' * 17_000}{CANARY} HTTP/1.1\r\n\r\n".encode())
    await front.raw(f"GET /v1/x?{CANARY}\r\n".encode())


async def ask_until_limited(front: Nginx) -> None:
    async with front.client() as client:
        for _ in range(200):
            await client.request("GET", f"/v1/x?{CANARY}", None, (("authorization", f"Bearer {CANARY}"),))
            if (await client.response()).status == 429:
                return
    raise AssertionError("there is no limit")


@both
async def test_no_log_has_a_key_a_query_or_a_question(conf: Path, in_front: InFront) -> None:
    async def dies(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serve(Echo()) as served:
        dead = served.port
    async with scripted(dies) as dying, serve(Echo()) as served:
        for port in (served.port, dying, dead):
            async with in_front(port, conf=conf) as front:
                await everything_that_may_leak(front)
                if port == served.port:
                    await ask_until_limited(front)
                assert len(front.access_log()) >= 10
                for log in ("access", "error", "start"):
                    assert CANARY not in front.read_log(log), log


async def test_errors_in_nginxs_own_words_would_quote_the_query(in_front: InFront) -> None:
    """Why of the errors of requests only the worst are kept."""
    edits = {"error.log crit;": "error.log error;"}
    async with serve(Echo()) as served:
        dead = served.port
    async with in_front(dead, edits=edits) as front:
        await front.ask("GET", f"/v1/x?api_key={CANARY}", headers=GOOD)
        assert f"api_key={CANARY}" in front.read_log("error")


@both
async def test_every_line_is_json_and_ascii_whatever_is_asked(conf: Path, in_front: InFront) -> None:
    paths = {
        b'/a"b\\c': '/a"b\\c',
        b"/caf\xc3\xa9": "/caf",
        b"/a%0ab%22": "/a%0ab%22",
        b"/\xff\xfe": "/",
        b"/a?b": "/a",
        b"/a%3Fb": "/a%3Fb",
    }
    async with serve(Echo()) as served, in_front(served.port, conf=conf) as front:
        for sent, logged in paths.items():
            await front.raw(b"GET " + sent + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            await front.logged(path=logged)
        await front.raw(b"GET /old\r\n")  # HTTP/0.9
        assert (await front.logged(path="/old"))["protocol"] == ""
        assert len(front.access_log()) == len(paths) + 1


@both
async def test_a_line_of_an_error_says_what_was_asked(conf: Path, in_front: InFront) -> None:
    """And not, as nginx's own variables would, that somebody asked for the page of the error."""
    async with serve(Echo()) as served, in_front(served.port, conf=conf) as front:
        await front.ask("DELETE", "/metrics")
        line = await front.logged(status=404)
        assert (line["method"], line["path"]) == ("DELETE", "/metrics")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@both
async def test_the_line_of_what_got_no_answer_is_json_too(conf: Path, in_front: InFront) -> None:
    """Over HTTP/2 nginx resets a stream whose head is too long; its own word for that status, 000, is no number."""
    edits = {"large_client_header_buffers 4 16k;": "large_client_header_buffers 4 4k;"}
    async with serve(Echo()) as served, in_front(served.port, conf=conf, edits=edits) as front:
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--http2", "--noproxy", "*", "--cacert", str(front.certificate), f"{front.url}/v1/x"),
            *(part for _ in range(5) for part in ("--header", f"x: {'a' * 4000}")),
        )
        assert await within(process.wait()) != 0
        assert (await front.logged(path="/v1/x"))["status"] == 0
