"""Routes that read and change stored objects: a function from a call to a JSON object, answered here.

Every object belongs to an owner; what belongs to somebody else is not there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from agentrun_server.core.request import Headers
from agentrun_server.errors import AgentFailedError, APIError, InvalidRequestError
from agentrun_server.observability.logs import get_logger
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_chat.decode import parse_json
from agentrun_server.runs.run import StopReason
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.aside import aside
from agentrun_server.server.attachment import Attachment, ClientLeftError
from agentrun_server.server.exchange import principal_of
from agentrun_server.server.handler import check_media_type, storage_unavailable
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import SchemaVersionError, StorageUnavailableError

__all__ = ["Resource", "ResourceCall", "owner_of", "read_query", "resource"]

logger = get_logger("agentrun_server.server")

T = TypeVar("T")

_MAX_QUERY_FIELDS = 64


@dataclass(frozen=True, slots=True)
class ResourceCall:
    """One request for a stored object."""

    params: Mapping[str, str]
    """The parts of the path that vary."""
    query: Mapping[str, str]
    headers: Headers
    owner: str
    principal: Any
    read_body: Callable[[], Awaitable[bytes]]
    meter: dict[str, Any] | None
    """Where a rate limit in front wants to read what the answer cost; see `agentrun_middleware.state`."""

    async def json(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object; nothing at all is an empty one.

        Raises:
            APIError: it is none, too long, or too slow.
        """
        return _parsed(await self.read_body())

    async def decoded(self, decode: Callable[[dict[str, Any]], T]) -> T:
        """Return what `decode` makes of the body.

        Raises:
            APIError: the body is no JSON object, too long, or too slow; or `decode` refuses it.
        """
        body = await self.read_body()
        return await aside(lambda: decode(_parsed(body)), len(body))

    def count(self, tokens: int) -> None:
        """Tell the rate limit in front what the answer costs; nothing, unless this is called."""
        if self.meter is not None:
            self.meter["total_tokens"] = tokens


def _parsed(body: bytes) -> dict[str, Any]:
    return parse_json(body) if body.strip() else {}


Resource: TypeAlias = Callable[[ResourceCall], Awaitable[dict[str, Any]]]
"""Answers a call with a JSON object and 200, or raises an `APIError`."""


def owner_of(principal: Any) -> str:
    """Return whose objects `principal` may see: issuer and subject; empty where nobody is authenticated."""
    if principal is None:
        return ""
    known = getattr(principal, "id", None)
    if isinstance(known, str) and known:
        return known
    subject = getattr(principal, "subject", None)
    if not isinstance(subject, str) or not subject:
        raise AgentFailedError(
            "The caller cannot be told from others: its principal has no subject.", code="internal_error"
        )
    issuer = getattr(principal, "issuer", None)
    return f"{issuer if isinstance(issuer, str) else ''}|{subject}"


def resource(handle: Resource, services: Services) -> Callable[[Mapping[str, str]], ASGIApp]:
    """Return the route of `handle`, for `Routes.add`."""

    def make(params: Mapping[str, str]) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await _answer(handle, services, params, scope, receive, send)

        return app

    return make


async def _answer(
    handle: Resource, services: Services, params: Mapping[str, str], scope: Scope, receive: Receive, send: Send
) -> None:
    attachment = Attachment(scope, receive, send, services.config)
    attachment.task = task = asyncio.current_task()
    assert task is not None, "an ASGI app runs in a task"
    sweeper: Sweeper = services.sweeper
    sweeper.add(attachment)
    try:
        headers = Headers(scope["headers"])
        check_media_type(headers, services.config.max_body_bytes)
        if scope["method"] in ("GET", "HEAD"):
            attachment.watch()  # a list that nobody waits for any more is not looked through to its end
        principal, meter = principal_of(scope), (scope.get("state") or {}).get("usage")
        owner = owner_of(principal)
        call = ResourceCall(params, read_query(scope), headers, owner, principal, attachment.read_body, meter)
        await attachment.answer(200, dumps(await handle(call)).encode())
    except APIError as error:
        await attachment.fail(error)
    except (StorageUnavailableError, SchemaVersionError):
        await attachment.fail(storage_unavailable().retry_after(1.0))
    except ClientLeftError:
        pass
    except asyncio.CancelledError:
        if attachment.run.stop_reason is None:
            attachment.stop(StopReason.SHUTDOWN)
            raise
        task.uncancel()  # it was `Attachment.stop`
    except Exception:
        logger.exception("request failed", extra={"request_id": attachment.request_id})
        await attachment.fail(AgentFailedError("The server had an error.", code="internal_error"))
    finally:
        try:
            await attachment.detach()
        finally:
            sweeper.discard(attachment)


def read_query(scope: Scope) -> Mapping[str, str]:
    """Return the query; of a name that comes twice the last counts.

    Raises:
        InvalidRequestError: it is no query.
    """
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            max_num_fields=_MAX_QUERY_FIELDS,
            errors="strict",
        )
    except ValueError:
        raise InvalidRequestError("The query of the request is malformed.", param="query") from None
    return dict(pairs)
