"""``POST …/chat/completions``: one request from its first byte to its last."""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrun_server.config import ServerConfig
from agentrun_server.core.ids import IdSource
from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.core.usage import utf8_size
from agentrun_server.errors import (
    AgentError,
    AgentFailedError,
    APIError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from agentrun_server.invoker.agent import NOTHING, Agent
from agentrun_server.invoker.threads import Threads
from agentrun_server.observability.logs import get_logger
from agentrun_server.protocols.openai_chat.decode import PLAIN, ChatOptions, decode, parse_json
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder, plain_completion
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from agentrun_server.runs.drive import drive
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.server.admission import Admission
from agentrun_server.server.agents import Agents
from agentrun_server.server.asgi import Message, Receive, Scope, Send
from agentrun_server.server.attachment import Attachment, ClientLeftError
from agentrun_server.server.exchange import EXCHANGE, Exchange
from agentrun_server.server.streaming import pump
from agentrun_server.server.sweeper import Sweeper

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ChatHandler"]

logger = get_logger("agentrun_server.agent")

_SHORT = 64 * 1024
"""Characters of an answer that is certainly within every limit."""

_ERROR_TYPES = {429: "rate_limit_error"}
_RETRY_ADVICE = frozenset({b"retry-after", b"x-should-retry"})


class ChatHandler:
    """Answers Chat Completions requests with the server's agents."""

    def __init__(
        self,
        agents: Agents,
        config: ServerConfig,
        admission: Admission,
        threads: Threads,
        sweeper: Sweeper,
        new_id: IdSource,
    ) -> None:
        self._agents = agents
        self._config = config
        self._admission = admission
        self._threads = threads
        self._sweeper = sweeper
        self._new_id = new_id
        self._short = min(_SHORT, config.max_output_bytes // 4)
        self._settings = ChatSettings(config.reasoning_field, config.human_input_tool, config.max_output_bytes)

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
            # One that names a time to come back was raised before agent code ran, or asks for it on purpose.
            if attachment.run_started and not any(name in _RETRY_ADVICE for name, _ in error.headers):
                error.no_retry()
            await attachment.fail(error)
        except ClientLeftError:
            pass
        except asyncio.CancelledError:
            if attachment.run.stop_reason is not None:
                task.uncancel()  # it was `Attachment.stop`
            elif task.cancelling():
                attachment.stop(StopReason.SHUTDOWN)
                raise
            else:
                await attachment.fail(self._agent_failed(attachment, "the agent cancelled itself"))
        except GeneratorExit:
            raise  # the event loop is gone, and nothing can be waited for
        except BaseException as exc:  # agents raise SystemExit too, and groups of anything
            await attachment.fail(self._agent_failed(attachment, exc))
            if isinstance(exc, KeyboardInterrupt):
                raise  # it may be the user's, where no server has caught the signal
        finally:
            self._close(attachment)
            try:
                await attachment.detach()
            finally:
                self._sweeper.discard(attachment)

    async def _answer(self, attachment: Attachment, scope: Scope) -> None:
        headers = Headers(scope["headers"])
        _check_media_type(headers, self._config.max_body_bytes)
        body = await attachment.read_body()
        config = self._config
        request, options = decode(
            parse_json(body),
            headers,
            max_messages=config.max_messages,
            max_choices=config.max_choices,
            strict_fields=config.strict_fields,
            activity=config.agent_events,
            offered=config.offered_agent_events,
        )
        state = scope.get("state")
        if state:
            request.principal = state.get("principal")
            attachment.meter = state.get("usage")
        agent = self._agents.find(request.model, request.principal)
        request.request_id = attachment.exchange.request_id
        request._raw_request = partial(_raw_request, scope, body)
        attachment.request = request
        if not self._admission.try_enter():
            attachment.watch()
            await self._admission.enter()
        attachment.enter(self._admission.leave)
        attachment.run.move(RunStatus.IN_PROGRESS)
        attachment.run_started = attachment.last_write = now = time.monotonic()
        if config.run_timeout is not None:
            request.deadline = now + config.run_timeout
        if request.stream:
            await self._stream(attachment, agent, request, options)
        else:
            await self._complete(attachment, agent, request, options)
        attachment.run.move(RunStatus.COMPLETED)

    async def _stream(self, attachment: Attachment, agent: Agent, request: AgentRequest, options: ChatOptions) -> None:
        encoder = ChunkEncoder(
            options,
            self._settings,
            self._new_id,
            id=self._new_id("chatcmpl-"),
            created=int(time.time()),
            model=request.model,
            prompt_tokens=partial(_prompt_tokens, request),
        )
        attachment.encode_error = encoder.fail
        if attachment.meter is not None:
            attachment.used = partial(encoder.usage, partial(_prompt_tokens, request))
        rest = ""
        for left in range(options.n - 1, -1, -1):
            rest = await pump(attachment, agent.open(request, self._threads), encoder, rest)
            rest += encoder.finish_choice(more=left > 0)
        await attachment.finish(rest + encoder.finish())

    async def _complete(
        self, attachment: Attachment, agent: Agent, request: AgentRequest, options: ChatOptions
    ) -> None:
        given: Any = NOTHING
        if agent.is_async_function and options.n == 1:
            given = await drive(agent.target(request), attachment.before_wait)
            if attachment.run.stop_reason is not None:
                raise asyncio.CancelledError  # the agent took it for an ordinary end
            attachment.first_event = time.monotonic()
            # Who counts tokens wants the encoder that counts them.
            if options is PLAIN and type(given) is str and len(given) <= self._short and attachment.meter is None:
                text = plain_completion(
                    given,
                    id=self._new_id("chatcmpl-"),
                    created=int(time.time()),
                    model=request.model,
                    prompt_tokens=_prompt_tokens(request),
                )
                await attachment.answer(200, text.encode())
                return
        encoder = CompletionEncoder(options, self._settings, self._new_id)
        if attachment.meter is not None:
            attachment.used = partial(encoder.usage, partial(_prompt_tokens, request))
        for left in range(options.n - 1, -1, -1):
            await pump(attachment, agent.open(request, self._threads, given), encoder)
            encoder.finish_choice(more=left > 0)
        usage = encoder.usage(partial(_prompt_tokens, request))
        text = encoder.completion(
            id=self._new_id("chatcmpl-"), created=int(time.time()), model=request.model, usage=usage
        )
        await attachment.answer(200, text.encode())

    def _agent_failed(self, attachment: Attachment, cause: BaseException | str) -> APIError:
        """Log why, and return what the caller may know of it."""
        attachment.run.move(RunStatus.FAILED)
        if isinstance(cause, AgentError):
            status = cause.status_code
            kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
            return AgentFailedError(
                cause.message, code=cause.code, param=cause.param, status_code=status, type=kind
            ).no_retry()
        request_id = attachment.exchange.request_id
        logger.error(
            "agent failed: %s",
            cause if isinstance(cause, str) else type(cause).__name__,
            exc_info=_from_agent(cause) if isinstance(cause, BaseException) else None,
            extra={"request_id": request_id},
        )
        message = "The agent failed to answer."
        if self._config.debug:
            message = f"{type(cause).__name__}: {cause}"
        return AgentFailedError(message).no_retry()

    def _close(self, attachment: Attachment) -> None:
        """Bring the run to a terminal state, and note for the log how it went."""
        run = attachment.run
        run.move(RunStatus.CANCELLED)
        request = attachment.request
        if request is None:
            return
        request._cancel()
        if attachment.used is not None and attachment.meter is not None:
            usage = attachment.used()
            attachment.meter["total_tokens"] = usage.input_tokens + usage.output_tokens
        facts: dict[str, Any] = {"model": request.model, "stream": request.stream, "run": run.status}
        if attachment.first_event:
            facts["first_event_ms"] = round((attachment.first_event - attachment.run_started) * 1000, 1)
        if run.stop_reason is not None:
            facts["stopped"] = run.stop_reason
        elif attachment.disconnected:
            facts["client_left"] = True  # and the run went on without it
        attachment.exchange.note(facts)


def _from_agent(exc: BaseException) -> BaseException:
    """Return `exc` with a traceback that begins in the agent's code; ours tell its author nothing."""
    frame = exc.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("agentrun_server."):
        frame = frame.tb_next
    return exc.with_traceback(frame or exc.__traceback__)


def _check_media_type(headers: Headers, max_body_bytes: int) -> None:
    """Refuse what is certainly not JSON. A form type is let pass: curl's ``-d`` sends it with JSON bodies."""
    first = headers.first.get
    encoding = first(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise UnsupportedMediaTypeError("Compressed request bodies are not supported.")
    kind = first(b"content-type")
    if kind is not None and kind[:10].lower() == b"multipart/":
        raise UnsupportedMediaTypeError("Expected a JSON body (content-type: application/json).")
    length = first(b"content-length")
    if length is not None and length.isdigit() and int(length) > max_body_bytes:
        raise PayloadTooLargeError(f"The request body is longer than {max_body_bytes} bytes.")


def _prompt_tokens(request: AgentRequest) -> int:
    size = 0
    for message in request.messages:
        content = message.get("content")
        size += utf8_size(content if type(content) is str else message.text)
    return (size + 3) // 4


def _raw_request(scope: Scope, body: bytes) -> "Request":
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
