"""Whatever the check of a credential comes to, the caller gets the status that is meant."""

import asyncio
import re

import pytest

from tests.deploy.nginx.behind import GOOD, Echo, Headers
from tests.support.nginx import CONF, InFront, needs_nginx, shipped
from tests.support.serve import serve

pytestmark = needs_nginx


def answers(status: int) -> Headers:
    return (("authorization", f"Bearer answer-{status}"),)


MEANT = {
    400: (400, "invalid_request"),
    401: (401, "missing_api_key"),
    403: (403, "insufficient_scope"),
    404: (500, "internal_error"),
    429: (429, "rate_limit_exceeded"),
    500: (503, "authentication_unavailable"),
    502: (503, "authentication_unavailable"),
    503: (503, "authentication_unavailable"),
    504: (503, "authentication_unavailable"),
}


async def test_trap_6_a_check_that_fails_is_answered_as_what_it_is(in_front: InFront) -> None:
    app = Echo({"retry-after": "7", "www-authenticate": 'Bearer realm="api", scope="a"'})
    async with serve(app) as served, in_front(served.port) as front:
        for told, (status, code) in MEANT.items():
            answer = await front.ask("POST", f"/v1/{told}", b"{}", answers(told))
            assert (answer.status, answer.error()["code"]) == (status, code), told
            assert answer.header("retry-after") == ("7" if status in (429, 503) else None), told
            challenged = 'Bearer realm="api", scope="a"' if status in (400, 401, 403) else None
            assert answer.header("www-authenticate") == challenged, told
            assert answer.header("x-should-retry") is None, "nothing has run"
            line = await front.logged(path=f"/v1/{told}")
            assert (line["status"], line["method"]) == (status, "POST"), told
    assert app.calls == []


async def test_trap_6_without_care_it_would_be_an_error_of_nginx(in_front: InFront) -> None:
    found = re.findall(r"if \(\$verifier_status ~ .*\n", shipped(CONF))
    assert len(found) == 3
    app = Echo({"www-authenticate": "Bearer"})
    edits = dict.fromkeys(found, "\n") | {"~^40[03]$ $verifier_challenge;": ""}
    async with serve(app) as served, in_front(served.port, edits=edits) as front:
        for status in (400, 429, 503):
            assert (await front.ask("GET", "/", headers=answers(status))).status == 500
        assert (await front.ask("GET", "/", headers=answers(401))).header("www-authenticate") == "Bearer"
        assert (await front.ask("GET", "/", headers=answers(403))).header("www-authenticate") is None


async def test_without_a_word_from_the_verifier_the_wait_is_a_second(in_front: InFront) -> None:
    async with serve(Echo()) as served, in_front(served.port) as front:
        for status in (429, 503):
            assert (await front.ask("GET", "/", headers=answers(status))).header("retry-after") == "1"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_a_dead_verifier_lets_nobody_pass(method: str, in_front: InFront) -> None:
    async with serve(Echo()) as served:
        dead = served.port
    async with in_front(dead) as front:
        answer = await front.ask(method, "/v1/x", headers=GOOD)
        assert (answer.status, answer.error()["code"]) == (503, "authentication_unavailable"), "and not the check's 502"
        assert answer.header("retry-after") == "1"
        assert answer.header("x-should-retry") is None
        assert (await front.ask("GET", "/livez")).error()["code"] == "bad_gateway"


@pytest.mark.parametrize(("says", "status"), [(b"", 503), (b"nonsense\r\n\r\n", 500)], ids=["nothing", "nonsense"])
async def test_a_verifier_that_talks_no_http_lets_nobody_pass(says: bytes, status: int, in_front: InFront) -> None:
    answered = asyncio.Event()

    async def verifier(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        if not says:
            await answered.wait()
        writer.close()

    edits = {"proxy_read_timeout 10s;": "proxy_read_timeout 20ms;"}
    async with await asyncio.start_server(verifier, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with in_front(port, edits=edits) as front:
            answer = await front.ask("GET", "/v1/x", headers=GOOD)
            assert (answer.status, answer.error()["type"]) == (status, "server_error")
        answered.set()


def test_trap_7_no_answer_of_the_verifier_is_kept_on_disk() -> None:
    assert "proxy_cache" not in shipped(CONF)
