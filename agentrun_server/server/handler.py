"""A request that runs an agent, from its first byte to its last: what is the same in every protocol."""

import asyncio
from typing import TYPE_CHECKING, Any

from agentrun_server.core import messages
from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.core.usage import utf8_size
from agentrun_server.errors import (
    APIError,
    PayloadTooLargeError,
    ServiceUnavailableError,
    UnsupportedMediaTypeError,
)
from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.failure import agent_failure, without_retry
from agentrun_server.runs.run import TERMINAL, RunStatus, StopReason
from agentrun_server.server.asgi import Message, Receive, Scope, Send
from agentrun_server.server.attachment import Attachment, ClientLeftError
from agentrun_server.server.exchange import EXCHANGE, Exchange
from agentrun_server.server.services import Services
from agentrun_server.storage.errors import SchemaVersionError, StorageUnavailableError

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["RunHandler", "check_media_type", "prompt_tokens", "raw_request", "storage_unavailable"]

logger = get_logger("agentrun_server.run")


class RunHandler:
    """Answers requests with the server's agents; subclasses say how, in `_answer`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._agents = services.agents
        self._config = services.config
        self._admission = services.admission
        self._threads = services.threads
        self._sweeper = services.sweeper
        self._new_id = services.new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing is raised but the cancellation of this task by someone else."""
        attachment = Attachment(scope, receive, send, self._config)
        attachment.task = task = asyncio.current_task()
        assert task is not None, "an ASGI app runs in a task"
        self._sweeper.add(attachment)
        try:
            await self._answer(attachment, scope)
        except APIError as error:
            attachment.run.move(RunStatus.FAILED)
            await attachment.fail(without_retry(error) if attachment.run_started else error)
        except (StorageUnavailableError, SchemaVersionError):  # another replica may know the newer schema
            attachment.run.move(RunStatus.FAILED)
            away = storage_unavailable()
            await attachment.fail(away.no_retry() if attachment.run_started else away.retry_after(1.0))
        except ClientLeftError:
            pass
        except asyncio.CancelledError:
            if attachment.run.stop_reason is not None:
                task.uncancel()  # it was `Attachment.stop`
            elif task.cancelling():
                attachment.stop(StopReason.SHUTDOWN)
                raise
            else:
                await attachment.fail(self._failed(attachment, "the agent cancelled itself"))
        except BaseException as exc:  # agents raise SystemExit too, and groups of anything
            if isinstance(exc, GeneratorExit) and attachment.is_thrown_away:
                raise
            await attachment.fail(self._failed(attachment, exc))
            if isinstance(exc, KeyboardInterrupt):
                raise  # it may be the user's, where no server has caught the signal
        finally:
            self._close(attachment)
            try:
                await attachment.detach()
            finally:
                self._sweeper.discard(attachment)

    async def _answer(self, attachment: Attachment, scope: Scope) -> None:
        raise NotImplementedError

    async def _enter(self, attachment: Attachment) -> None:
        """Wait for a place, and begin the run.

        Raises:
            APIError: there is none, or the server is shutting down.
        """
        if not self._admission.try_enter():
            attachment.watch()
            await self._admission.enter()
        attachment.enter(self._admission.leave)
        attachment.run.move(RunStatus.IN_PROGRESS)
        attachment.begin()

    def _failed(self, attachment: Attachment, cause: BaseException | str) -> APIError:
        attachment.run.move(RunStatus.FAILED)
        return agent_failure(cause, attachment.request_id, debug=self._config.debug)

    def _close(self, attachment: Attachment) -> None:
        """Bring the run to a terminal state, and note for the log how it went."""
        run = attachment.run
        if not attachment.reads_log:  # else it is another's, and may go on
            run.move(RunStatus.CANCELLED)
        request = attachment.request
        if request is None:
            return
        attachment.cancel_request()
        attachment.count()
        facts: dict[str, Any] = {"model": request.model, "stream": request.stream, "run": run.status}
        if attachment.first_event:
            facts["first_event_ms"] = round((attachment.first_event - attachment.run_started) * 1000, 1)
        if run.stop_reason is not None and run.status in TERMINAL:
            facts["stopped"] = run.stop_reason
        elif attachment.disconnected:
            facts["client_left"] = True  # and the run went on without it
        attachment.exchange.note(facts)


def storage_unavailable() -> ServiceUnavailableError:
    """Return the answer when nothing can be read or written."""
    return ServiceUnavailableError(
        "What is stored cannot be reached now. Please try again.", code="storage_unavailable"
    )


def check_media_type(headers: Headers, max_body_bytes: int) -> None:
    """Refuse what is certainly not JSON. A form type is let pass: curl's ``-d`` sends it with JSON bodies."""
    first = headers.first.get
    encoding = first(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise UnsupportedMediaTypeError("Compressed request bodies are not supported.")
    kind = first(b"content-type")
    if (kind is not None and kind[:10].lower() == b"multipart/") or (
        b"origin" in headers.first and _is_unasked(headers)
    ):
        raise UnsupportedMediaTypeError("Expected a JSON body (content-type: application/json).")
    length = first(b"content-length")
    if length is not None and length.isdigit() and int(length) > max_body_bytes:
        raise PayloadTooLargeError(f"The request body is longer than {max_body_bytes} bytes.")


def _is_unasked(headers: Headers) -> bool:
    """Tell whether a web page of any site may have sent a body like this.

    Browsers ask the server first (CORS), unless it could be a form, which pages could always send: the answer is kept
    from them, but what they ask for would be done, wherever the browser's place in the network is all it takes.
    """
    first = headers.first.get
    if b"authorization" in headers.first or b"api-key" in headers.first or first(b"content-length", b"0") == b"0":
        return False
    kind = first(b"content-type", b"").partition(b";")[0].strip().lower()
    return kind in (b"", b"text/plain", b"application/x-www-form-urlencoded")


def prompt_tokens(request: AgentRequest) -> int:
    """Estimate the tokens of the question, at four bytes each. What the agent has added to it may be anything."""
    size = 0
    for message in request.messages:
        if isinstance(message, messages.Message):
            content = message.get("content")
            size += utf8_size(content if type(content) is str else message.text)
    return (size + 3) // 4


def raw_request(scope: Scope, body: bytes) -> "Request":
    """Return the Starlette request, whose body can be read again."""
    from starlette.requests import Request

    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            # The body has been read: what can still come is the client's leaving.
            exchange: Exchange = scope[EXCHANGE]
            await exchange.wait_client_left()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)
