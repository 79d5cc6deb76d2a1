"""``POST …/chat/completions``. What is to be stored of it, `agentrun_server.server.chat.kept` answers."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.invoker.agent import NOTHING, Agent
from agentrun_server.protocols.openai_chat.decode import PLAIN, ChatOptions, decode, parse_json
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder, plain_completion
from agentrun_server.runs.drive import drive
from agentrun_server.runs.pump import pump
from agentrun_server.runs.run import RunStatus
from agentrun_server.server.asgi import Scope
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.chat.question import ChatQuestion, chat_settings, is_stored
from agentrun_server.server.handler import RunHandler, check_media_type, prompt_tokens, raw_request
from agentrun_server.server.services import Services

if TYPE_CHECKING:
    from agentrun_server.server.chat.kept import KeptChat

__all__ = ["ChatHandler"]

_IDEMPOTENCY_KEY: Final = b"idempotency-key"  # as in `agentrun_server.runs.idempotency`, which takes long to import

_SHORT = 64 * 1024
"""Characters of an answer that is certainly within every limit."""


class ChatHandler(RunHandler):
    """Answers Chat Completions requests with the server's agents.

    Args:
        services: of the server.
        kept: returns who answers requests of which something is stored; None: nothing ever is.
        remembers: sessions are on.
    """

    def __init__(
        self, services: Services, kept: "Callable[[], KeptChat] | None" = None, *, remembers: bool = False
    ) -> None:
        super().__init__(services)
        config = services.config
        self._kept = kept
        self._remembers = remembers
        self._short = min(_SHORT, config.max_output_bytes // 4)
        self._settings = chat_settings(config)

    async def _answer(self, attachment: Attachment, scope: Scope) -> None:
        headers = Headers(scope["headers"])
        config = self._config
        check_media_type(headers, config.max_body_bytes)
        body = await attachment.read_body()
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
        request.request_id = attachment.request_id
        request._raw_request = partial(raw_request, scope, body)
        attachment.request = request
        if self._kept is not None and self._is_kept(request, headers):
            await self._kept().answer(attachment, ChatQuestion(agent, request, options, headers, body))
            return
        await self._enter(attachment)
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
            prompt_tokens=partial(prompt_tokens, request),
        )
        attachment.encode_error = encoder.fail
        if attachment.meter is not None:
            attachment.used = partial(encoder.usage, partial(prompt_tokens, request))
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
                    prompt_tokens=prompt_tokens(request),
                )
                await attachment.answer(200, text.encode())
                return
        encoder = CompletionEncoder(options, self._settings, self._new_id)
        if attachment.meter is not None:
            attachment.used = partial(encoder.usage, partial(prompt_tokens, request))
        for left in range(options.n - 1, -1, -1):
            await pump(attachment, agent.open(request, self._threads, given), encoder)
            encoder.finish_choice(more=left > 0)
        usage = encoder.usage(partial(prompt_tokens, request))
        text = encoder.completion(
            id=self._new_id("chatcmpl-"), created=int(time.time()), model=request.model, usage=usage
        )
        await attachment.answer(200, text.encode())

    def _is_kept(self, request: AgentRequest, headers: Headers) -> bool:
        """Tell whether anything of the answer is stored."""
        return self._remembers or _IDEMPOTENCY_KEY in headers.first or is_stored(request, self._config)
