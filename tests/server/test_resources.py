"""What every route of a stored object does, whichever object it is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun_server.errors import AgentFailedError, APIError, NotFoundError
from agentrun_server.runs.run import StopReason
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.resources import ResourceCall, owner_of, read_query, resource
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import SchemaVersionError, StorageUnavailableError
from tests.support.clock import eventually, within
from tests.support.raw_client import Response
from tests.support.stored import Bench, bench


class Handler:
    """A handler that does what the test says, and tells what came."""

    def __init__(self) -> None:
        self.calls: list[ResourceCall] = []
        self.services: Services | None = None
        self.reads = True
        self.body: Any = None
        self.error: BaseException | None = None
        self.answer: dict[str, Any] = {"ok": True}
        self.arrived = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.ended = asyncio.Event()

    async def __call__(self, call: ResourceCall) -> dict[str, Any]:
        self.calls.append(call)
        self.arrived.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.reads:
                self.body = await call.json()
            if self.error is not None:
                raise self.error
            return self.answer
        finally:
            self.ended.set()

    def add_to(self, services: Services, _: Any, routes: Routes) -> None:
        """Add a route for it."""
        self.services = services
        for method in ("GET", "POST", "DELETE"):
            routes.add(method, "/things/{thing}", resource(self, services))

    @property
    def request(self) -> Attachment:
        """The one request that is open."""
        assert self.services is not None
        (found,) = self.services.sweeper.active
        assert isinstance(found, Attachment)
        return found


@pytest.fixture
async def handler() -> Handler:
    return Handler()


@pytest.fixture
async def api(tmp_path: Path, handler: Handler) -> AsyncIterator[Bench]:
    async with bench(tmp_path, handler.add_to, max_body_bytes=1000) as running:
        yield running


async def test_a_handler_is_given_the_call_and_its_object_is_the_answer(api: Bench, handler: Handler) -> None:
    answer = await api.ask("POST", "/things/t1?a=1&b=&a=2&c=%E2%9C%93", {"x": [1, "\u2028"]})
    assert (answer.status, answer.header("content-type"), answer.json()) == (200, "application/json", {"ok": True})
    (call,) = handler.calls
    assert (call.params, call.query) == ({"thing": "t1"}, {"a": "2", "b": "", "c": "✓"})
    assert (call.owner, call.principal.subject) == ("test|alice", "alice")
    assert call.headers["Authorization"] == "Bearer alice"
    assert handler.body == {"x": [1, "\u2028"]}


@pytest.mark.parametrize("body", [None, b"", b" \n"])
async def test_no_body_is_an_empty_object(api: Bench, handler: Handler, body: bytes | None) -> None:
    assert (await api.ask("POST", "/things/t1", body)).status == 200
    assert handler.body == {}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_type"),
        (b'{"a": NaN}', 400, "invalid_json"),
        (b'{"a": "\xff"}', 400, "invalid_json"),
        (b" " * 1001, 413, "request_too_large"),
    ],
)
async def test_a_body_that_is_no_object_is_refused(api: Bench, body: bytes, status: int, code: str) -> None:
    answer = await api.ask("POST", "/things/t1", body)
    assert (answer.status, answer.error()["code"]) == (status, code)


async def test_a_body_that_nobody_reads_does_no_harm(api: Bench, handler: Handler) -> None:
    handler.reads = False
    assert (await api.ask("DELETE", "/things/t1", b"{")).json() == {"ok": True}


@pytest.mark.parametrize("query", ["a=%ff", "&".join(f"a{n}=1" for n in range(65))])
async def test_a_query_that_is_none_is_refused(api: Bench, handler: Handler, query: str) -> None:
    answer = await api.ask("GET", f"/things/t1?{query}")
    assert (answer.status, answer.error()["param"]) == (400, "query")
    assert not handler.calls


def test_a_query_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(APIError) as refused:
        read_query({"query_string": "a=\xfc".encode("latin-1")})
    assert refused.value.param == "query"


async def test_a_media_type_that_is_certainly_not_json_is_refused(api: Bench, handler: Handler) -> None:
    headers = [("authorization", "Bearer alice"), ("content-type", "multipart/form-data; boundary=x")]
    answer = await api.served.ask("POST", "/v1/things/t1", b"x", headers)
    assert answer.status == 415
    assert not handler.calls


async def test_an_error_of_the_handler_is_the_answer(api: Bench, handler: Handler) -> None:
    handler.error = NotFoundError("No such thing.", code="thing_not_found", param="thing")
    answer = await api.ask("GET", "/things/t1")
    assert (answer.status, answer.error()) == (
        404,
        {
            "message": "No such thing.",
            "type": "invalid_request_error",
            "param": "thing",
            "code": "thing_not_found",
        },
    )


@pytest.mark.parametrize("error", [StorageUnavailableError, SchemaVersionError])
async def test_a_store_that_cannot_be_used_is_worth_another_try(api: Bench, handler: Handler, error: type) -> None:
    handler.error = error("host=secret.example password=secret")
    answer = await api.ask("GET", "/things/t1")
    assert (answer.status, answer.error()["code"], answer.header("retry-after")) == (503, "storage_unavailable", "1")
    assert b"secret" not in answer.body


async def test_what_nobody_expected_is_logged_and_not_told(
    api: Bench, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    handler.error = RuntimeError("the secret reason")
    answer = await api.ask("GET", "/things/t1")
    assert (answer.status, answer.error()["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "the secret reason" in caplog.text


# --- the connection


async def begun(api: Bench, handler: Handler) -> "asyncio.Task[Response]":
    """Make a request that hangs in the handler."""
    handler.gate = asyncio.Event()
    asking = asyncio.create_task(api.ask("GET", "/things/t1"))
    await within(handler.arrived.wait())
    return asking


async def test_a_client_that_leaves_before_its_body_is_whole_ends_the_request(api: Bench, handler: Handler) -> None:
    async with api.served.client() as client:
        head = [("authorization", "Bearer alice"), ("content-length", "10")]
        await client.request("POST", "/v1/things/t1", b"{", head)
        await within(handler.arrived.wait())
        client.rst()
    await within(handler.ended.wait())
    assert handler.body is None
    await nothing_open(api, handler)


async def test_a_request_that_the_server_stops_is_told(api: Bench, handler: Handler) -> None:
    asking = await begun(api, handler)
    handler.request.stop(StopReason.SHUTDOWN)
    answer = await within(asking)
    assert (answer.status, answer.error()["code"]) == (503, "server_shutting_down")
    await within(handler.ended.wait())
    await nothing_open(api, handler)


async def test_a_large_object_is_answered_whole(api: Bench, handler: Handler) -> None:
    handler.answer = {"text": "é" * 300_000}
    assert (await api.ask("GET", "/things/t1")).json() == handler.answer
    await nothing_open(api, handler)


async def nothing_open(api: Bench, handler: Handler) -> None:
    assert handler.services is not None
    sweeper = handler.services.sweeper
    await eventually(lambda: not sweeper.active and not api.served.requests)


# --- owners


@pytest.mark.parametrize(
    ("principal", "owner"),
    [
        (None, ""),
        (SimpleNamespace(id="issuer|alice", subject="x"), "issuer|alice"),
        (SimpleNamespace(id=7, issuer="issuer", subject="alice"), "issuer|alice"),
        (SimpleNamespace(issuer="issuer", subject="alice"), "issuer|alice"),
        (SimpleNamespace(issuer=None, subject="alice"), "|alice"),
        (SimpleNamespace(subject="alice"), "|alice"),
    ],
)
def test_an_owner_is_issuer_and_subject(principal: Any, owner: str) -> None:
    assert owner_of(principal) == owner


@pytest.mark.parametrize(
    "principal", [SimpleNamespace(), SimpleNamespace(subject=""), SimpleNamespace(id="", subject=7)]
)
def test_a_caller_that_cannot_be_told_from_others_owns_nothing(principal: Any) -> None:
    """Else all of them would see what each of them has stored."""
    with pytest.raises(AgentFailedError):
        owner_of(principal)
