import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from agentrun_middleware.asgi import Message, Receive, Scope, Send
from agentrun_middleware.principal import Principal
from agentrun_middleware.rate_limit import RateLimitMiddleware, caller_of
from agentrun_middleware.state import PRINCIPAL, USAGE, principal_of, set_state
from agentrun_middleware.token_bucket import (
    NANOSECONDS,
    BucketsUnavailableError,
    Limits,
    LocalBuckets,
    Rate,
    Standing,
)
from agentrun_server import AgentRequest, AgentRunServer
from tests.support.clock import eventually, within
from tests.support.serve import serve

ALICE = Principal("alice", "https://issuer.example")
BOB = Principal("bob", "https://issuer.example")


class Clock:
    """Time in nanoseconds, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * NANOSECONDS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def buckets(clock: Clock) -> LocalBuckets:
    return LocalBuckets(clock=clock)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def limits(self) -> dict[str, str]:
        """Return the ``x-ratelimit-…`` headers, without what their names have in common."""
        prefix = "x-ratelimit-"
        return {name.removeprefix(prefix): value for name, value in self.headers.items() if name.startswith(prefix)}


def request(path: str = "/v1/chat/completions", **scope: Any) -> Scope:
    return {"type": "http", "path": path, "headers": [], "client": ("192.0.2.1", 4711), **scope}


async def nothing_to_receive() -> Message:
    raise NotImplementedError


async def ask(app: RateLimitMiddleware, scope: Scope | None = None, **changes: Any) -> Answer:
    """Make one request; return the answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(request(**changes) if scope is None else scope, nothing_to_receive, send)
    head = sent[0]
    assert head["type"] == "http.response.start"
    headers = [(name.decode(), value.decode()) for name, value in head["headers"]]
    assert len(dict(headers)) == len(headers), f"a header comes twice: {headers}"
    return Answer(head["status"], dict(headers), b"".join(message["body"] for message in sent[1:]))


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200; whatever it costs is nobody's business."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


def costing(*tokens: Any) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return an app whose answers cost these `tokens`, one after the other."""
    costs = iter(tokens)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        scope["state"]["usage"]["total_tokens"] = next(costs)

    return app


async def echo(request: AgentRequest) -> AsyncIterator[str]:
    """Stream what the caller said."""
    yield request.messages[-1].text


# --- requests


async def test_a_burst_passes_and_the_next_is_answered_429(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=60, requests_burst=3, buckets=buckets)
    assert [(await ask(app)).status for _ in range(5)] == [200, 200, 200, 429, 429]


async def test_without_a_burst_the_requests_of_a_minute_may_come_at_once(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=7, buckets=buckets)
    assert [(await ask(app)).status for _ in range(8)] == [200] * 7 + [429]


async def test_a_refused_request_does_not_reach_the_app(buckets: LocalBuckets) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await hello(scope, receive, send)

    limited = RateLimitMiddleware(app, requests_per_minute=1, buckets=buckets)
    await ask(limited, path="/first")
    await ask(limited, path="/second")
    assert seen == ["/first"]


async def test_whoever_waits_as_told_passes_and_whoever_does_not_is_told_again(
    buckets: LocalBuckets, clock: Clock
) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=40, requests_burst=1, buckets=buckets)
    await ask(app)
    told = (await ask(app)).headers["retry-after-ms"]
    assert told == "1500"
    clock.advance(1.499)
    again = await ask(app)
    assert (again.status, again.headers["retry-after-ms"]) == (429, "1")
    clock.advance(0.001)
    assert (await ask(app)).status == 200


async def test_a_refusal_is_openais_error_object_and_says_when_to_come_again(
    buckets: LocalBuckets, clock: Clock
) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=20, requests_burst=2, buckets=buckets)
    await ask(app)
    await ask(app)
    clock.advance(0.75)
    refused = await ask(app)
    assert json.loads(refused.body) == {
        "error": {
            "message": "Rate limit reached on requests per min (RPM): Limit 20. Please try again in 2.25s.",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert refused.headers == {
        "content-type": "application/json",
        "content-length": str(len(refused.body)),
        "retry-after": "3",
        "retry-after-ms": "2250",
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "5.25s",
    }


async def test_a_refusal_never_names_the_caller(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=1, buckets=buckets)
    state = {PRINCIPAL: Principal("s3cret-subject", "https://s3cret-issuer.example")}
    await ask(app, state=state)
    refused = await ask(app, state=state)
    assert refused.status == 429
    assert b"s3cret" not in refused.body
    assert "s3cret" not in str(refused.headers)


async def test_the_wait_told_is_at_most_a_minute_but_the_reset_is_the_truth(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=0.1, buckets=buckets)
    await ask(app)
    refused = await ask(app)
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("60", "60000")
    assert refused.limits()["reset-requests"] == "10m0s"
    assert b"Limit 0.1. Please try again in 10m0s." in refused.body


async def test_every_answer_that_passes_says_what_is_left(buckets: LocalBuckets, clock: Clock) -> None:
    app = RateLimitMiddleware(
        hello, requests_per_minute=60, tokens_per_minute=6_000_000, tokens_burst=2_000_000, buckets=buckets
    )
    answer = await ask(app)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"hello", "text/plain")
    assert answer.limits() == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1s",
        "limit-tokens": "2000000",
        "remaining-tokens": "2000000",
        "reset-tokens": "0s",
    }
    clock.advance(0.6)
    assert (await ask(app)).limits()["reset-requests"] == "1.4s"


async def test_a_large_limit_is_written_out(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=10_000_000, requests_burst=1, buckets=buckets)
    await ask(app)
    assert b"Limit 10000000. Please try again in 1ms." in (await ask(app)).body


async def test_the_headers_stand_at_the_head_of_a_stream(buckets: LocalBuckets) -> None:
    """The app sends its pieces as it likes, and they are passed on as they are."""
    passed: list[Message] = []
    pieces: list[Message] = [
        {"type": "http.response.body", "body": b"one", "more_body": True},
        {"type": "http.response.body", "body": b"two", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ]

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (b"x-ratelimit-remaining-requests", b"0") in passed[0]["headers"]
        for piece in pieces:
            await send(piece)

    async def send(message: Message) -> None:
        passed.append(message)

    await RateLimitMiddleware(stream, requests_per_minute=1, buckets=buckets)(request(), nothing_to_receive, send)
    assert all(sent is piece for sent, piece in zip(passed[1:], pieces, strict=True))


async def test_the_message_of_the_app_is_left_as_it_was(buckets: LocalBuckets) -> None:
    head: Message = {"type": "http.response.start", "status": 204}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(head)
        await send({"type": "http.response.body", "body": b""})

    limited = RateLimitMiddleware(app, requests_per_minute=60, buckets=buckets)
    assert (await ask(limited)).limits()["remaining-requests"] == "59"
    assert (await ask(limited)).limits()["remaining-requests"] == "58"
    assert head == {"type": "http.response.start", "status": 204}


async def test_a_limit_that_the_app_tells_itself_is_not_told_twice(buckets: LocalBuckets) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"X-RateLimit-Remaining-Requests", b"3")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    answer = await ask(RateLimitMiddleware(app, requests_per_minute=60, buckets=buckets))
    assert answer.headers == {
        "X-RateLimit-Remaining-Requests": "3",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-reset-requests": "1s",
    }


# --- tokens


async def test_what_an_answer_cost_is_taken_when_it_has_ended(buckets: LocalBuckets, clock: Clock) -> None:
    app = RateLimitMiddleware(costing(40, 70, 1), tokens_per_minute=60, tokens_burst=100, buckets=buckets)
    assert (await ask(app)).limits() == {"limit-tokens": "100", "remaining-tokens": "100", "reset-tokens": "0s"}
    assert (await ask(app)).limits() == {"limit-tokens": "100", "remaining-tokens": "60", "reset-tokens": "40s"}
    refused = await ask(app)  # 60 were left and 70 were used
    assert refused.status == 429
    assert refused.limits() == {"limit-tokens": "100", "remaining-tokens": "0", "reset-tokens": "1m50s"}
    assert refused.headers["retry-after"] == "11"
    assert json.loads(refused.body)["error"]["message"] == (
        "Rate limit reached on tokens per min (TPM): Limit 60. Please try again in 11s."
    )
    clock.advance(11)
    assert (await ask(app)).status == 200


async def test_a_caller_waits_for_the_bucket_that_takes_longest(buckets: LocalBuckets) -> None:
    def limited(requests: int, tokens: int) -> RateLimitMiddleware:
        return RateLimitMiddleware(
            costing(tokens),
            requests_per_minute=requests,
            requests_burst=1,
            tokens_per_minute=60,
            tokens_burst=10,
            buckets=LocalBuckets(clock=Clock()),
        )

    for requests, tokens, name, seconds in ((6, 12, b"requests", "10"), (6, 22, b"tokens", "13")):
        app = limited(requests, tokens)
        await ask(app)
        refused = await ask(app)
        assert refused.headers["retry-after"] == seconds
        assert b"reached on " + name in refused.body


async def test_the_tokens_of_an_app_that_fails_are_taken(buckets: LocalBuckets) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["usage"]["total_tokens"] = 60
        raise LookupError("the agent failed")

    limited = RateLimitMiddleware(app, tokens_per_minute=60, buckets=buckets)
    with pytest.raises(LookupError):
        await ask(limited)
    assert (await ask(limited)).status == 429


async def test_the_tokens_of_an_answer_that_is_cut_short_are_taken(buckets: LocalBuckets) -> None:
    running = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["usage"]["total_tokens"] = 60
        running.set()
        await asyncio.Event().wait()

    limited = RateLimitMiddleware(app, tokens_per_minute=60, buckets=buckets)
    task = asyncio.create_task(ask(limited))
    await within(running.wait())
    task.cancel()
    with suppress(asyncio.CancelledError):
        await within(task)
    assert (await ask(limited)).status == 429


@pytest.mark.parametrize("tokens", [None, 0, 0.0])
async def test_an_answer_that_cost_nothing_takes_nothing(buckets: LocalBuckets, tokens: object) -> None:
    app = RateLimitMiddleware(costing(tokens, tokens), tokens_per_minute=60, buckets=buckets)
    await ask(app)
    assert (await ask(app)).limits()["remaining-tokens"] == "60"


async def test_an_app_that_says_nothing_is_charged_for_requests_alone(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=60, tokens_per_minute=60, buckets=buckets)
    await ask(app)
    answer = (await ask(app)).limits()
    assert (answer["remaining-requests"], answer["remaining-tokens"]) == ("58", "60")


@pytest.mark.parametrize("tokens", [2.5, 3])
async def test_part_of_a_token_counts_as_part_of_one(buckets: LocalBuckets, tokens: float) -> None:
    app = RateLimitMiddleware(costing(tokens, 0), tokens_per_minute=60, buckets=buckets)
    await ask(app)
    answer = (await ask(app)).limits()
    assert (answer["remaining-tokens"], answer["reset-tokens"]) == ("57", f"{tokens:g}s")


@pytest.mark.parametrize(
    "tokens",
    [
        *(-1, -0.5, float("nan"), float("inf"), True, False, "12", b"12", [12], {"n": 1}, 1j, 10**9 + 1),
        pytest.param(10**5000, id="longer than Python writes"),
    ],
)
async def test_what_cannot_be_a_number_of_tokens_is_ignored_and_logged(
    buckets: LocalBuckets, caplog: pytest.LogCaptureFixture, tokens: object
) -> None:
    app = RateLimitMiddleware(costing(tokens, 0), tokens_per_minute=60, buckets=buckets)
    await ask(app)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("agentrun_middleware.rate_limit", logging.WARNING)
    assert record.__dict__["total_tokens_type"] == type(tokens).__name__
    assert (await ask(app)).limits()["remaining-tokens"] == "60"


async def test_the_app_is_told_nothing_of_tokens_when_they_are_not_limited(buckets: LocalBuckets) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert USAGE not in scope.get("state", {})
        await hello(scope, receive, send)

    await ask(RateLimitMiddleware(app, requests_per_minute=60, buckets=buckets))


async def test_requests_do_not_share_what_the_app_writes_into(buckets: LocalBuckets) -> None:
    """Not even if the server hands the same state to each request."""
    of_the_lifespan: dict[str, Any] = {}
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["usage"])
        await hello(scope, receive, send)

    limited = RateLimitMiddleware(app, tokens_per_minute=60, buckets=buckets)
    await ask(limited, state=of_the_lifespan)
    await ask(limited, state=of_the_lifespan)
    assert seen[0] is not seen[1]
    assert of_the_lifespan == {}


async def test_a_name_clash_with_the_state_of_the_lifespan_is_not_taken_for_usage(buckets: LocalBuckets) -> None:
    of_the_lifespan = {USAGE: {"total_tokens": 60}}
    app = RateLimitMiddleware(hello, tokens_per_minute=60, buckets=buckets)
    await ask(app, state=of_the_lifespan)
    assert (await ask(app, state=of_the_lifespan)).status == 200


async def test_two_limits_in_a_row_both_take_what_an_answer_cost(clock: Clock) -> None:
    """One limit for each caller, and one for the network it calls from."""
    mine, ours = LocalBuckets(clock=clock), LocalBuckets(clock=clock)
    inner = RateLimitMiddleware(costing(60, 0), tokens_per_minute=60, buckets=mine)
    outer = RateLimitMiddleware(inner, tokens_per_minute=600, key=lambda scope: scope["client"][0], buckets=ours)
    await ask(outer, state={PRINCIPAL: ALICE})
    refused = await ask(outer, state={PRINCIPAL: ALICE})
    assert (refused.status, refused.limits()["limit-tokens"]) == (429, "60")
    assert (await ask(outer, state={PRINCIPAL: BOB})).limits()["limit-tokens"] == "60"
    assert (await ours.take("192.0.2.1", Limits(tokens=Rate(600)))).tokens == 6 * NANOSECONDS


async def test_work_that_outlives_its_request_is_charged_when_it_ends(clock: Clock) -> None:
    """And by every limit in front of it."""
    mine, ours = LocalBuckets(clock=clock), LocalBuckets(clock=clock)
    charges: list[Callable[[float], None]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        charges.append(scope["state"]["usage"]["charge"])
        await hello(scope, receive, send)

    inner = RateLimitMiddleware(app, tokens_per_minute=60, buckets=mine)
    outer = RateLimitMiddleware(inner, tokens_per_minute=600, key=lambda scope: scope["client"][0], buckets=ours)
    await ask(outer, state={PRINCIPAL: ALICE})
    charges[0](45)
    charges[0](15)
    assert (await ask(outer, state={PRINCIPAL: ALICE})).status == 429
    assert (await ask(outer, state={PRINCIPAL: BOB})).limits()["remaining-tokens"] == "60"
    assert (await ours.take("192.0.2.1", Limits(tokens=Rate(600)))).tokens == 6 * NANOSECONDS


# --- who is calling


def at(host: str) -> Scope:
    return request(client=(host, 4711))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (at("192.0.2.1"), request(client=("192.0.2.1", 4712)), True),
        (at("192.0.2.1"), at("192.0.2.2"), False),
        (at("2001:db8:1:2::1"), at("2001:DB8:1:2:ffff:ffff:ffff:ffff"), True),
        (at("2001:db8:1:2::1"), at("2001:db8:1:3::1"), False),
        (at("fe80::1%eth0"), at("fe80::2"), True),
        (at("::ffff:192.0.2.1"), at("192.0.2.1"), True),
        (at("::ffff:192.0.2.1"), at("::ffff:192.0.2.2"), False),
        (at("not:an:address"), at("not:an:address"), True),
        (at("not:an:address"), at("nor:this"), False),
        (request(client=None), request(client=None), True),
        (request(client=None), {"type": "http", "path": "/", "headers": []}, True),
        (request(client=None), at("192.0.2.1"), False),
        (at("192.0.2.1"), request(state={PRINCIPAL: ALICE}), False),
        (request(state={PRINCIPAL: ALICE}), request(state={PRINCIPAL: ALICE}, client=None), True),
        (request(state={PRINCIPAL: ALICE}), request(state={PRINCIPAL: BOB}), False),
        (request(state={PRINCIPAL: ALICE}), request(state={PRINCIPAL: Principal("alice", "other")}), False),
        (at("x|y"), request(state={PRINCIPAL: Principal("y", "x")}), False),
    ],
)
async def test_a_caller_is_a_principal_or_else_an_address(
    buckets: LocalBuckets, one: Scope, other: Scope, same: bool
) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=1, buckets=buckets)
    assert (caller_of(one) == caller_of(other)) is same
    assert (await ask(app, one)).status == 200
    assert (await ask(app, other)).status == (429 if same else 200)


async def test_another_key_may_be_given(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=1, key=lambda scope: scope["path"], buckets=buckets)
    assert [(await ask(app, path=path)).status for path in ("/a", "/b", "/a")] == [200, 200, 429]


async def test_a_caller_may_have_limits_of_its_own(buckets: LocalBuckets) -> None:
    generous = Limits(requests=Rate(600))

    def limits(scope: Scope) -> Limits | None:
        principal = principal_of(scope)
        return generous if principal is not None and principal.subject == "alice" else None

    app = RateLimitMiddleware(hello, requests_per_minute=6, limits=limits, buckets=buckets)
    assert (await ask(app, state={PRINCIPAL: ALICE})).limits()["limit-requests"] == "600"
    assert (await ask(app, state={PRINCIPAL: BOB})).limits()["limit-requests"] == "6"


async def test_a_caller_may_be_without_limits(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=1, limits=lambda scope: Limits(), buckets=buckets)
    answers = [await ask(app) for _ in range(3)]
    assert [(answer.status, answer.limits()) for answer in answers] == [(200, {})] * 3
    assert len(buckets) == 0


async def test_limits_alone_limit_whom_they_limit(buckets: LocalBuckets) -> None:
    one = Limits(requests=Rate(1))
    app = RateLimitMiddleware(hello, limits=lambda scope: one if scope["path"] == "/a" else None, buckets=buckets)
    assert [(await ask(app, path=path)).status for path in ("/a", "/a", "/b", "/b")] == [200, 429, 200, 200]


# --- which requests


async def test_exempt_paths_are_not_counted_and_are_compared_exactly(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=2, exempt_paths={"/auth/verify"}, buckets=buckets)
    assert [(await ask(app, path="/auth/verify")).limits() for _ in range(5)] == [{}] * 5
    almost = ["/auth/verify/", "/AUTH/verify", "/auth/verify/x"]
    assert [(await ask(app, path=path)).status for path in almost] == [200, 200, 429]
    assert (await ask(app, path="/auth/verify")).status == 200


async def shake_hands(app: RateLimitMiddleware, extensions: Mapping[str, Any]) -> list[Message]:
    """Open a WebSocket; return what is sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = request(path="/ws", type="websocket", extensions=extensions)
    await app(scope, receive, send)
    return sent


async def test_a_handshake_counts_as_one_request(buckets: LocalBuckets) -> None:
    async def accept(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})

    app = RateLimitMiddleware(accept, requests_per_minute=1, buckets=buckets)
    accepted, message = await shake_hands(app, {})
    assert (b"x-ratelimit-remaining-requests", b"0") in accepted["headers"]
    assert message == {"type": "websocket.send", "text": "hello"}
    assert (await shake_hands(app, {}))[0] == {
        "type": "websocket.close",
        "code": 1013,
        "reason": "rate_limit_exceeded",
    }
    assert (await shake_hands(app, {"websocket.http.response": {}}))[0]["status"] == 429
    assert (await ask(app)).status == 429


async def test_what_is_neither_a_request_nor_a_handshake_is_refused(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(hello, requests_per_minute=1, buckets=buckets)
    with pytest.raises(ValueError, match="unknown kind of connection"):
        await ask(app, type="webtransport")


class Buckets:
    """A store that says what the test wants, and remembers whether it was closed."""

    def __init__(self, standing: Standing | None = None) -> None:
        self.standing = standing
        self.closed = 0

    async def take(self, caller: str, limits: Limits) -> Standing:
        if self.standing is None:
            raise BucketsUnavailableError
        return self.standing

    def charge(self, caller: str, cost: int) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed += 1


async def test_the_lifespan_passes_and_its_end_closes_the_store() -> None:
    store = Buckets()
    heard: list[tuple[str, int]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Message) -> None:
        heard.append((message["type"], store.closed))

    limited = RateLimitMiddleware(app, requests_per_minute=1, buckets=store)
    await limited({"type": "lifespan"}, nothing_to_receive, send)
    assert heard == [("lifespan.startup.complete", 0), ("lifespan.shutdown.complete", 1)]
    assert store.closed == 1


async def test_a_store_that_cannot_say_is_answered_503() -> None:
    answer = await ask(RateLimitMiddleware(hello, requests_per_minute=1, buckets=Buckets()))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert json.loads(answer.body)["error"] == {
        "message": "The rate limit cannot be checked at the moment.",
        "type": "server_error",
        "param": None,
        "code": "rate_limit_unavailable",
    }


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing is limited"),
        ({"requests_burst": 5}, "nothing is limited"),
        ({"requests_per_minute": 0}, "a rate is more than 0"),
        ({"tokens_per_minute": float("nan")}, "a rate is more than 0"),
        ({"requests_per_minute": 60, "requests_burst": 0}, "a burst is a whole number"),
        ({"requests_per_minute": 60, "tokens_burst": 5}, "tokens_burst is of use only together with tokens_per_minute"),
        ({"tokens_per_minute": 60, "requests_burst": 5}, "requests_burst is of use only"),
        ({"requests_per_minute": 60, "exempt_paths": "/auth/verify"}, "a list, not one string"),
        ({"requests_per_minute": 60, "exempt_paths": ["auth/verify"]}, "begins with '/'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RateLimitMiddleware(hello, **arguments)


# --- OpenAI's client


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as OpenAI does, for ten tokens."""
    completion = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    }
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(completion).encode()})
    scope.get("state", {}).get(USAGE, {})["total_tokens"] = 10


async def complete(url: str, max_retries: int) -> Any:
    """Ask for one completion; return the answer with its headers."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=max_retries) as client:
        return await within(
            client.chat.completions.with_raw_response.create(
                model="m", messages=[{"role": "user", "content": "hello"}]
            ),
            20,
        )


async def test_openais_client_raises_its_rate_limit_error(buckets: LocalBuckets) -> None:
    app = RateLimitMiddleware(chat, requests_per_minute=30, requests_burst=1, buckets=buckets)
    async with serve(app, lifespan=False) as served:
        answer = await complete(served.url, 0)
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"] == "2s"
        with pytest.raises(openai.RateLimitError) as caught:
            await complete(served.url, 0)
    assert (caught.value.status_code, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.type == "rate_limit_error"
    assert caught.value.response.headers["retry-after-ms"] == "2000"
    assert "Please try again in 2s." in caught.value.message


async def test_openais_client_waits_as_it_is_told_and_succeeds() -> None:
    """Left to itself, it comes again after half a second at most, and is refused again."""
    app = RateLimitMiddleware(chat, requests_per_minute=50, requests_burst=1)  # one in 1.2 seconds
    async with serve(app, lifespan=False) as served:
        await complete(served.url, 0)
        answer = await complete(served.url, 1)
    assert answer.parse().choices[0].message.content == "hello"
    assert answer.retries_taken == 1


async def test_openais_client_is_told_of_tokens(buckets: LocalBuckets, clock: Clock) -> None:
    app = RateLimitMiddleware(chat, tokens_per_minute=60, tokens_burst=5, buckets=buckets)
    async with serve(app, lifespan=False) as served:
        await complete(served.url, 0)
        await eventually(lambda: served.requests == 0)
        with pytest.raises(openai.RateLimitError, match=r"tokens per min \(TPM\): Limit 60. Please try again in 6s."):
            await complete(served.url, 0)
        clock.advance(6)
        await complete(served.url, 0)


async def test_a_stream_of_an_agent_tells_the_limits_at_its_head(buckets: LocalBuckets) -> None:
    server = AgentRunServer(invoke_agent=echo)
    app = RateLimitMiddleware(server, requests_per_minute=60, buckets=buckets)
    async with (
        serve(app, lifespan=False) as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0) as client,
    ):
        answer = await within(
            client.chat.completions.with_raw_response.create(
                model="m", messages=[{"role": "user", "content": "hello"}], stream=True
            )
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in answer.parse() if chunk.choices]
    assert answer.headers["x-ratelimit-remaining-requests"] == "59"
    assert "".join(pieces) == "hello"


async def test_the_tokens_of_a_client_that_has_left_are_taken(buckets: LocalBuckets) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        scope["state"]["usage"]["total_tokens"] = 61

    limited = RateLimitMiddleware(app, tokens_per_minute=60, buckets=buckets)
    async with serve(limited, lifespan=False) as served:
        async with served.client() as client:
            await client.request("GET", "/")
            await client.head()
            client.rst()
        await eventually(lambda: served.requests == 0)
        assert (await served.ask("GET", "/")).status == 429


async def test_a_state_that_stands_already_is_kept(buckets: LocalBuckets) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["state"] == {"principal": ALICE, "usage": {"charge": scope["state"]["usage"]["charge"]}}
        await hello(scope, receive, send)

    scope = request()
    set_state(scope, PRINCIPAL, ALICE)
    assert (await ask(RateLimitMiddleware(app, tokens_per_minute=1, buckets=buckets), scope)).status == 200
