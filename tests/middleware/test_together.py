"""The middlewares in the order in which they belong, in front of a server."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrun_middleware.access_log import AccessLogMiddleware
from agentrun_middleware.asgi import ASGIApp
from agentrun_middleware.authentication import AuthenticationMiddleware, CredentialRefusedError
from agentrun_middleware.body_limit import BodyLimitMiddleware
from agentrun_middleware.client_address import ClientAddressMiddleware
from agentrun_middleware.principal import Principal
from agentrun_middleware.request_id import RequestIDMiddleware
from agentrun_middleware.security_headers import DEFAULTS, SecurityHeadersMiddleware
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import CONNECT, call, websocket_scope
from tests.support.raw_client import CHAT, Response, chat_body
from tests.support.serve import Served, serve

PROXIED = [("x-forwarded-for", "6.6.6.6, 192.0.2.1"), ("x-forwarded-proto", "https")]
ALICE = [("authorization", "Bearer alice")]


class Names:
    """Believes everybody who says that he is Alice."""

    def recognises(self, credential: str) -> bool:
        return True

    async def verify(self, credential: str) -> Principal:
        if credential != "alice":
            raise CredentialRefusedError("another name")
        return Principal(credential, "names")

    async def aclose(self) -> None:
        pass


def stack() -> ASGIApp:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "hi "
        yield request.principal.subject

    app: ASGIApp = AgentRunServer(agent, config=ServerConfig(trust_request_id=True, access_log=False))
    app = AuthenticationMiddleware(app, verifiers=[Names()])
    app = BodyLimitMiddleware(app, max_bytes=1000)
    app = SecurityHeadersMiddleware(app, hsts=60)
    app = ClientAddressMiddleware(app, trusted_proxies=["127.0.0.1"])
    app = RequestIDMiddleware(app)
    return AccessLogMiddleware(app)


@pytest.fixture
async def served(http: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Served]:
    caplog.set_level(logging.INFO, "agentrun_middleware.access")
    async with serve(stack(), http=http) as served:
        yield served


@pytest.mark.parametrize(
    ("headers", "body", "status", "logged"),
    [
        (ALICE, chat_body(), 200, {"complete": True, "subject": "alice", "issuer": "names"}),
        (ALICE, chat_body(stream=False), 200, {"complete": True, "subject": "alice"}),
        ([], chat_body(), 401, {"complete": True}),
        ([("authorization", "Bearer bob")], chat_body(), 401, {"complete": True}),
        (ALICE, b"x" * 1001, 413, {"complete": True}),
        (ALICE, b"no json", 400, {"complete": True, "subject": "alice"}),
    ],
)
async def test_each_does_its_part_whatever_the_answer_is(
    served: Served,
    caplog: pytest.LogCaptureFixture,
    headers: list[tuple[str, str]],
    body: bytes,
    status: int,
    logged: dict[str, Any],
) -> None:
    answer = await served.ask("POST", CHAT, body, [*PROXIED, *headers])
    assert answer.status == status
    check_headers(answer)
    (record,) = [record for record in caplog.records if record.name == "agentrun_middleware.access"]
    expected = {
        "method": "POST",
        "path": CHAT,
        "status": status,
        "bytes_sent": len(answer.body),
        "client": "192.0.2.1",
        "request_id": answer.header("x-request-id"),
        **logged,
    }
    assert {key: vars(record)[key] for key in expected} == expected


def check_headers(answer: Response) -> None:
    """Check that each header is there, once."""
    expected = {**DEFAULTS, "strict-transport-security": "max-age=60"}
    if answer.header("content-type") != "application/json":
        expected["cache-control"] = "no-cache, no-transform"
    assert {name: answer.header(name) for name in expected} == expected
    assert (answer.header("x-request-id") or "").startswith("req_")


@pytest.mark.parametrize(
    ("headers", "denial", "status", "logged"),
    [
        (ALICE, True, 101, {"complete": True, "subject": "alice", "issuer": "names"}),
        ([], True, 401, {"complete": True}),
        ([("authorization", "Bearer bob")], True, 401, {"complete": True}),
        ([], False, 403, {"complete": True}),
    ],
)
async def test_each_does_its_part_for_a_websocket_too(
    caplog: pytest.LogCaptureFixture, headers: list[tuple[str, str]], denial: bool, status: int, logged: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, "agentrun_middleware.access")
    scope = websocket_scope("/v1/responses", denial=denial, headers=[*PROXIED, *headers], client=("127.0.0.1", 1))
    answer = await call(stack(), scope, [CONNECT, {"type": "websocket.disconnect", "code": 1000}])
    if status == 403:
        assert answer.messages == [{"type": "websocket.close", "code": 1008, "reason": "missing_api_key"}]
    elif status == 101:
        assert [message["type"] for message in answer.messages] == ["websocket.accept"]
        assert (answer.header("x-request-id") or "").startswith("req_")
    else:
        assert answer.refusal()[0] == status
        expected = {**DEFAULTS, "strict-transport-security": "max-age=60"}
        assert {name: answer.header(name) for name in expected} == expected
    (record,) = [record for record in caplog.records if record.name == "agentrun_middleware.access"]
    expected_line = {"method": "WEBSOCKET", "status": status, "client": "192.0.2.1", **logged}
    assert {key: vars(record)[key] for key in expected_line} == expected_line
    assert vars(record)["request_id"].startswith("req_")
