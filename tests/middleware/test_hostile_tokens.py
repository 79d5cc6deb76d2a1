"""`JWTMiddleware` against the corpus of hostile tokens: in front of a server over real sockets, and on its own.

Every case must get exactly the answer that is given for its status, so that an answer tells nothing of what was wrong;
the log gets the reason, and nothing of what was sent.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import groupby
from typing import Any, Final

import pytest
from starlette.middleware import Middleware

from agentrun_middleware.asgi import Scope
from agentrun_middleware.jwt import JWTMiddleware
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import Behind, call, http_scope, websocket_scope
from tests.middleware.hostile_tokens import ACCEPTED, CASES, FRONTS, Case, Forge, Sent, front_settings
from tests.middleware.tokens import CANARY
from tests.support.raw_client import CHAT, Response, chat_body
from tests.support.serve import Served, serve

EXPECTED: Final[Mapping[str, tuple[int, str, str, str]]] = {
    # code → status, message, the type of the error, WWW-Authenticate
    "invalid_api_key": (
        401,
        "Incorrect API key provided, or it has expired.",
        "invalid_request_error",
        'Bearer realm="api", error="invalid_token"',
    ),
    "missing_api_key": (
        401,
        "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY.",
        "invalid_request_error",
        'Bearer realm="api"',
    ),
    "invalid_request": (
        400,
        "Send one credential, in the Authorization header (Bearer) or in the api-key header.",
        "invalid_request_error",
        'Bearer realm="api", error="invalid_request"',
    ),
    "insufficient_scope": (
        403,
        "Your API key does not allow this request.",
        "invalid_request_error",
        'Bearer realm="api", error="insufficient_scope", scope="chat"',
    ),
}
OF_EVERY_ANSWER: Final = {"date", "server", "x-request-id", "openai-processing-ms", "openai-version"}
OF_EVERY_REFUSAL: Final = {"content-type", "content-length", "www-authenticate"}


def code_of(case: Case) -> str:
    if case.status == 401:
        return "missing_api_key" if case.reason == "no credential" else "invalid_api_key"
    return {400: "invalid_request", 403: "insufficient_scope"}[case.status]


def check_refusal(case: Case, status: int, body: bytes, challenge: str | None) -> None:
    code = code_of(case)
    expected_status, message, kind, expected_challenge = EXPECTED[code]
    assert (status, expected_status) == (case.status, case.status)
    assert json.loads(body) == {"error": {"message": message, "type": kind, "param": None, "code": code}}
    assert challenge == expected_challenge


def grouped(cases: tuple[Case, ...]) -> list[Any]:
    """Return the cases of one fault and one front together: they share a server."""

    def key(case: Case) -> tuple[str, str]:
        return case.name.partition(":")[0], case.front

    return [
        pytest.param(front, list(members), id=f"{group}, {front}")
        for (group, front), members in groupby(sorted(cases, key=key), key)
    ]


class Findings:
    """Collects which cases fail, so that one does not hide the others."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def of(self, case: Case, *details: str) -> Iterator[None]:
        """Note an exception as one of `case`."""
        try:
            yield
        except Exception as error:
            self._found.append(f"{', '.join([case.name, *details])}: {type(error).__name__}: {error}"[:600])

    def none(self) -> None:
        """Fail when there are any."""
        if self._found:
            pytest.fail("\n\n".join(self._found), pytrace=False)


@pytest.fixture
async def attacker_url() -> AsyncIterator[str]:
    """A server that a token may name and nobody may ask."""
    visits = 0

    async def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    async with await asyncio.start_server(visited, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert visits == 0


class Log:
    """Everything that is logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def take(self) -> list[logging.LogRecord]:
        """Return the records since the last call."""
        records = list(self._caplog.records)
        self._caplog.clear()
        return records


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    caplog.set_level(logging.DEBUG)
    access = logging.getLogger("agentrun_server.access")
    handler = logging.NullHandler()
    access.addHandler(handler)  # then its lines go through `logging`
    yield Log(caplog)
    access.removeHandler(handler)


def check_log(case: Case, sent: Sent, records: list[logging.LogRecord]) -> None:
    """The reason is there, once, and nothing of what was sent."""
    (refused,) = [record for record in records if record.name == "agentrun_middleware.authentication"]
    assert refused.getMessage() == "authentication refused"
    assert refused.levelno == logging.INFO
    assert (vars(refused)["status"], vars(refused)["reason"]) == (case.status, case.reason)
    assert re.fullmatch(r"[0-9a-f]{16}|", vars(refused)["credential_sha256"])
    assert not any(record.levelno > logging.INFO or record.exc_info for record in records)
    written = " ".join(repr(vars(record)) for record in records)
    for word in secret_words(sent):
        assert word not in written


def secret_words(sent: Sent) -> set[str]:
    """Return pieces of what was sent that are long enough to be recognised."""
    texts = [value for _, value in sent.headers] + [sent.query]
    words = {word[:24] for text in texts for word in re.findall(r"[A-Za-z0-9_-]{12,}", text[:20_000])}
    return words | {CANARY}


# --- over real sockets


class Agent:
    """Remembers who asked it."""

    def __init__(self) -> None:
        self.asked_by: list[str] = []

    async def __call__(self, request: AgentRequest) -> str:
        self.asked_by.append(request.principal.subject)
        return "yes"


@asynccontextmanager
async def behind_the_middleware(front: str) -> AsyncIterator[tuple[Served, Agent]]:
    agent = Agent()
    server = AgentRunServer(
        agent,
        middleware=[Middleware(JWTMiddleware, **front_settings(front))],
        config=ServerConfig(access_log=True),
    )
    async with serve(server) as served:
        yield served, agent


async def ask(served: Served, sent: Sent, method: str = "POST", path: str = CHAT) -> Response:
    body = chat_body(stream=False) if method == "POST" else None
    return await served.ask(method, f"{path}?{sent.query}" if sent.query else path, body, sent.headers)


@pytest.mark.parametrize(("front", "cases"), grouped(CASES))
async def test_no_hostile_token_reaches_the_agent(front: str, cases: list[Case], attacker_url: str, log: Log) -> None:
    findings = Findings()
    async with behind_the_middleware(front) as (served, agent):
        for case in cases:
            if not case.over_http:
                continue
            for method, path in (("POST", CHAT), ("GET", "/auth/verify")):
                with findings.of(case, method, path):
                    sent = case.sent(attacker_url)
                    log.take()
                    answer = await ask(served, sent, method, path)
                    check_refusal(case, answer.status, answer.body, answer.header("www-authenticate"))
                    assert {name for name, _ in answer.headers} == OF_EVERY_ANSWER | OF_EVERY_REFUSAL
                    check_log(case, sent, log.take())
        findings.none()
        assert agent.asked_by == []
        good = Sent.bearer(Forge(front, attacker_url).good())
        assert (await ask(served, good)).status == 200
        assert (await ask(served, good, "GET", "/auth/verify")).status == 204
        assert agent.asked_by == [CANARY]


@pytest.mark.parametrize(("front", "cases"), grouped(ACCEPTED))
async def test_what_is_good_all_the_same_passes(front: str, cases: list[Case], attacker_url: str) -> None:
    findings = Findings()
    async with behind_the_middleware(front) as (served, agent):
        for case in cases:
            with findings.of(case):
                sent = case.sent(attacker_url)
                assert (await ask(served, sent)).status == 200
                verified = await ask(served, sent, "GET", "/auth/verify")
                assert (verified.status, verified.header("x-auth-subject")) == (204, agent.asked_by[-1])
        findings.none()
        assert len(agent.asked_by) == len(cases)


# --- in this process


def scopes_of(sent: Sent) -> Iterator[tuple[str, Scope]]:
    """Yield what a server could say of a request or handshake that shows `sent`."""
    shown: dict[str, Any] = {"headers": sent.headers, "query_string": sent.query.encode()}
    yield "request", http_scope("/v1/chat/completions", method="POST", **shown)
    yield "websocket", websocket_scope(**shown)
    yield "websocket with denial", websocket_scope(denial=True, **shown)


@pytest.mark.parametrize(("front", "cases"), grouped(CASES))
async def test_no_hostile_token_passes_by_any_way_in(
    front: str, cases: list[Case], attacker_url: str, log: Log
) -> None:
    findings, behind = Findings(), Behind()
    middleware = JWTMiddleware(behind, **front_settings(front))
    for case in cases:
        sent = case.sent(attacker_url)
        for way, scope in scopes_of(sent):
            with findings.of(case, way):
                log.take()
                answer = await call(middleware, scope)
                if way == "websocket":
                    assert answer.messages == [{"type": "websocket.close", "code": 1008, "reason": code_of(case)}]
                else:
                    check_refusal(case, answer.status, answer.body, answer.header("www-authenticate"))
                    assert {name.decode() for name, _ in answer.headers} == OF_EVERY_REFUSAL
                check_log(case, sent, log.take())
    findings.none()
    assert behind.scopes == []
    for _, scope in scopes_of(Sent.bearer(Forge(front, attacker_url).good())):
        await call(middleware, scope)
    assert [scope["state"]["principal"].subject for scope in behind.scopes] == [CANARY] * 3


async def test_what_http_cannot_carry_is_refused_before_anybody_looks_at_it(attacker_url: str) -> None:
    findings = Findings()
    async with behind_the_middleware("HS256") as (served, agent):
        for case in CASES:
            sent = case.sent(attacker_url)
            if case.over_http or case.front != "HS256" or size_of(sent) > 1_000_000:
                continue
            with findings.of(case):
                assert (await ask(served, sent)).status in (400, 431)
        findings.none()
        assert agent.asked_by == []


def size_of(sent: Sent) -> int:
    return sum(len(value) for _, value in sent.headers)


# --- the corpus itself


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in (*CASES, *ACCEPTED)]
    assert len(set(names)) == len(names)


def test_every_front_lets_good_tokens_pass_and_refuses_others() -> None:
    assert {case.front for case in CASES} == {case.front for case in ACCEPTED} == set(FRONTS)
