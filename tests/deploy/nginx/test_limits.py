"""How much one address may ask for, and how long a request may be."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.deploy.nginx.behind import GOOD, Echo, Headers, Speaker, bearer, both, guarded, scripted
from tests.support.clock import eventually, within
from tests.support.nginx import ONE_WORKER, InFront, needs_nginx, shipped
from tests.support.raw_client import CHAT, Response, chat_body
from tests.support.serve import serve

pytestmark = needs_nginx


def is_limited(answer: Response) -> None:
    assert (answer.status, answer.error()["code"]) == (429, "rate_limit_exceeded")
    assert answer.error()["type"] == "rate_limit_error"
    assert answer.header("retry-after") == "1"


@both
async def test_trap_5_an_address_that_asks_too_often_is_refused_before_its_credential_is_looked_at(
    conf: Path, in_front: InFront
) -> None:
    app = Echo()
    asks = 200
    async with (
        serve(app) as served,
        in_front(served.port, conf=conf) as front,
        front.client() as client,
    ):
        found = []
        for _ in range(asks):
            await client.request("GET", "/v1/models")
            found.append(await client.response())
        refused = [answer for answer in found if answer.status == 429]
        assert all(answer.status != 429 for answer in found[:101]), "a hundred at once are fine"
        assert refused
        for answer in refused:
            is_limited(answer)
        assert len(app.checks) + len(app.calls) == asks - len(refused)


OPEN = "limit_conn open 100;"


@both
async def test_an_address_has_so_many_requests_open_at_once(conf: Path, in_front: InFront) -> None:
    assert OPEN in shipped(conf)
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, conf=conf, edits={OPEN: "limit_conn open 2;"}) as front,
        front.client() as first,
        front.client() as second,
    ):
        for client in (first, second):
            await client.chat(headers=bearer())
        await eventually(lambda: len(speaker.requests) == 2)
        is_limited(await front.chat(headers=bearer()))
        assert len(speaker.requests) == 2
        speaker.finish()
        speaker.finish()
        await first.rest()
        await second.rest()
        await front.logged(status=200)
        assert (await front.ask("GET", "/v1/models", headers=bearer())).status == 200, "there is room again"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_each_stream_of_http_2_is_an_open_request(in_front: InFront) -> None:
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, edits={OPEN: "limit_conn open 2;"}) as front,
    ):
        process = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--http2", "--noproxy", "*", "--cacert", str(front.certificate), "--parallel"),
            *(
                "--parallel-immediate",
                "--header",
                f"{bearer()[0][0]}: {bearer()[0][1]}",
                "--json",
                chat_body().decode(),
            ),
            *("--write-out", "%{http_code}\n", *[front.url + CHAT] * 4),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await eventually(lambda: len(front.access_log()) == len(speaker.requests) == 2)
        assert [line["status"] for line in front.access_log()] == [429, 429]
        speaker.finish()
        speaker.finish()
        await within(process.communicate())


@both
async def test_of_ipv6_a_whole_network_counts_as_one(conf: Path, in_front: InFront) -> None:
    app = Echo()
    edits = {
        "limit_req zone=requests burst=100 nodelay;": (
            "limit_req zone=requests; set_real_ip_from 127.0.0.1; real_ip_header X-From;"
        ),
        "rate=20r/s": "rate=1r/m",
    }
    addresses = {
        "2001:db8:0:1::1": 200,
        "2001:db8:0:1:a:b:c:d": 429,  # the same /64
        "2001:db8:0:2::1": 200,
        "2001:db8:a0a:0a0a::1": 200,  # bytes of a line feed in it
        "2001:db8:a0a:0a0a::2": 429,
        "192.0.2.1": 200,
        "192.0.2.2": 200,
        "10.10.10.10": 200,
        "192.0.2.1 ": 429,
    }
    async with serve(app) as served, in_front(served.port, conf=conf, edits=edits) as front:
        for address, status in addresses.items():
            came: Headers = (*GOOD, ("x-from", address))
            assert (await front.ask("GET", "/v1/models", headers=came)).status == status, address
    assert app.calls[0].headers["x-forwarded-for"] == "2001:db8:0:1::1"


# --- sizes


@both
async def test_what_is_within_the_limits_passes_whole(conf: Path, in_front: InFront) -> None:
    app = Echo()
    long = "x" * 8000
    async with serve(app) as served, in_front(served.port, conf=conf) as front:
        headers: Headers = (*GOOD, ("x-long", long), ("cookie", "c" * 15_000))
        body = bytes(range(256)) * (10 * 1024 * 4)
        assert len(body) == 10 * 1024 * 1024
        assert (await front.ask("POST", f"/v1/{'p' * 8000}?{'q' * 7000}", body, headers)).status == 200
        (call,) = app.calls
        assert call.body == body
        assert call.headers["content-length"] == str(len(body))
        assert (call.headers["x-long"], len(call.headers["cookie"])) == (long, 15_000)
        assert (len(call.raw_path), len(call.query)) == (8004, 7000)


@both
async def test_a_chunked_body_passes_with_its_length_and_not_longer_than_others(conf: Path, in_front: InFront) -> None:
    app = Echo()
    coded: Headers = (*GOOD, ("transfer-encoding", "chunked"))
    async with serve(app) as served, in_front(served.port, conf=conf) as front:
        assert (await front.ask("POST", "/v1/x", b"5\r\nhello\r\n0\r\n\r\n", coded)).status == 200
        (call,) = app.calls
        assert (call.body, call.headers["content-length"]) == (b"hello", "5")
        assert "transfer-encoding" not in call.headers
        async with front.client() as client:
            piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
            await client.request("POST", "/v1/x", piece * 10 + b"1\r\nx\r\n0\r\n\r\n", coded)
            assert (await client.response()).error()["code"] == "request_too_large"
    assert len(app.calls) == 1


async def test_who_has_no_credential_cannot_send_a_body(in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port) as front, front.client() as client:
        await client.request("POST", "/v1/x", b"", (("content-length", "10485760"),))
        assert (await client.response()).status == 401, "before the body came"


@both
async def test_a_slow_body_waits_in_nginx_and_not_in_the_server(conf: Path, in_front: InFront) -> None:
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with (
        scripted(script) as port,
        in_front(port, conf=conf, edits=ONE_WORKER) as front,
        front.client() as client,
    ):
        await client.request("POST", "/v1/x", b"he", (("content-length", "5"),))
        await front.has_caught_up()
        assert not asked.is_set()
        await client.send(b"llo")
        assert (await client.response()).status == 200
        assert asked.is_set()
