"""``POST …/chat/completions``."""

import asyncio
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from json import loads as from_json
from typing import Any

from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.errors import APIError, NotFoundError
from agentrun_server.invoker.agent import NOTHING, Agent
from agentrun_server.observability.logs import get_logger
from agentrun_server.protocols.openai_chat.decode import PLAIN, ChatOptions, decode, parse_json
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder, plain_completion
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from agentrun_server.runs.drive import drive
from agentrun_server.runs.idempotency import HEADER, Claim, read_claim
from agentrun_server.runs.pump import pump
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.registry import Runs
from agentrun_server.runs.run import RunStatus
from agentrun_server.server.asgi import Scope
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.chat_runs import KIND, ChatEntry, ChatRuns, ChatScript
from agentrun_server.server.completions import completion_record
from agentrun_server.server.handler import check_media_type, prompt_tokens, raw_request, storage_unavailable
from agentrun_server.server.recorded import RecordedHandler
from agentrun_server.server.request_session import RequestSession, name_session, open_session
from agentrun_server.server.resources import owner_of
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import Change, ConflictError, Create, StorageError, StorageUnavailableError

__all__ = ["ChatHandler"]

logger = get_logger("agentrun_server.runs")

_SHORT = 64 * 1024
"""Characters of an answer that is certainly within every limit."""


class ChatHandler(RecordedHandler):
    """Answers Chat Completions requests with the server's agents."""

    def __init__(self, services: Services, runs: Runs | None) -> None:
        super().__init__(services)
        config = services.config
        self._runs = runs
        self._goes_on = config.on_disconnect == "continue"
        if runs is not None:
            runs.kinds = {**runs.kinds, KIND: ChatRuns(config.idempotency_ttl)}
        self._short = min(_SHORT, config.max_output_bytes // 4)
        self._settings = ChatSettings(config.reasoning_field, config.human_input_tool, config.max_output_bytes)

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
        if self._runs is not None and self._is_kept(request, headers):
            await self._answer_kept(attachment, self._runs, _Question(agent, request, options, headers, body))
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

    # --- answers that are kept

    def _is_kept(self, request: AgentRequest, headers: Headers) -> bool:
        """Tell whether anything of the answer is stored."""
        return HEADER in headers.first or self._services.sessions is not None or self._is_stored(request)

    def _is_stored(self, request: AgentRequest) -> bool:
        """Tell whether the answer can be fetched by its id."""
        store = request.params.get("store")
        # A stream that may lose its client, unless the client does not want it to be stored.
        return store is True or (store is None and self._goes_on and request.stream)

    async def _answer_kept(self, attachment: Attachment, runs: Runs, question: "_Question") -> None:
        owner = owner_of(question.request.principal)
        claim = read_claim(question.headers, owner, "chat", question.body, self._config.idempotency_ttl)
        # Copies: agents add to the messages of their request, or change them.
        messages = deepcopy(question.request.messages) if self._is_stored(question.request) else None
        metadata = dict(question.request.metadata or {})
        script = ChatScript(
            question.request,
            question.options,
            self._settings,
            self._new_id,
            partial(question.agent.open, question.request, self._threads),
        )

        def completion() -> list[Change]:
            if script.answer is None or messages is None:
                return []
            record = completion_record(
                from_json(script.answer),
                messages,
                owner=owner,
                metadata=metadata,
                ttl=self._config.store_ttl,
                now=time.time(),
            )
            return [Create(record)]

        session = open_session(self._services, attachment, question.request, question.headers)
        if claim is None:
            await self._answer_and_store(attachment, runs, question, script, completion, session)
        else:
            await self._answer_once(attachment, runs, question, script, completion, claim, session)

    async def _answer_and_store(
        self,
        attachment: Attachment,
        runs: Runs,
        question: "_Question",
        script: ChatScript,
        completion: Callable[[], list[Change]],
        session: RequestSession | None,
    ) -> None:
        """Answer as always, and store what is to be stored before the end of the answer is told."""
        must_store = question.request.params.get("store") is True
        if must_store:
            await runs.storage()  # before the agent runs for nothing
        attachment.used = script.usage
        if session is None:
            last = await self._perform(attachment, question, script)
        else:
            attachment.watch()
            ended = False
            try:
                await session.take_turn(self._new_id("turn_"), self._config)
                last = await self._perform(attachment, question, script)
                ended = True
            finally:
                # One that was cut off has said something; one that failed has not.
                cut = attachment.run.stop_reason is not None and bool(script.text)
                await session.end(script.text, failed=not ended and not cut)
        try:
            changes = completion()
            if changes:
                await (await runs.storage()).store.commit(changes)
        except StorageError:
            if must_store:
                raise
            # It is kept only in case the client should lose it.
            logger.warning("an answer cannot be stored", extra={"request_id": attachment.request_id}, exc_info=True)
        attachment.run.move(RunStatus.COMPLETED)
        if question.request.stream:
            await attachment.finish(b"".join(last).decode())
        else:
            await attachment.answer(200, script.whole().encode())

    async def _perform(self, attachment: Attachment, question: "_Question", script: ChatScript) -> list[bytes]:
        await self._enter(attachment)
        if question.request.stream:
            attachment.encode_error = ChunkEncoder.fail
        return await script.perform(attachment)

    async def _answer_once(
        self,
        attachment: Attachment,
        runs: Runs,
        question: "_Question",
        script: ChatScript,
        completion: Callable[[], list[Change]],
        claim: Claim,
        session: RequestSession | None,
    ) -> None:
        """Answer with the run of this request, or with that of the one that came before it with the same key."""
        storage, stream = await runs.storage(), question.request.stream
        named = "" if session is None else session.session.id
        while True:
            known = await claim.find(storage.store, time.time())
            if known is not None:
                if session is not None and known.body.get("session"):
                    name_session(attachment, known.body["session"])
                try:
                    await self._replay(
                        attachment,
                        runs,
                        known,
                        stream=stream,
                        end="",
                        encode_error=_encode_error,
                        whole=lambda ended: str(ended.body["answer"]),
                    )
                except NotFoundError:
                    continue  # its agent never began, and the key is free
                return
            if session is not None:
                name_session(attachment, session.session.id)
            identity = self._new_id("run_")
            entry = ChatEntry(
                kind=KIND,
                id=identity,
                owner=claim.owner,
                body={"model": question.request.model, "session": named},
                companions=(claim.change(KIND, identity, time.time()),),
                ttl=self._config.idempotency_ttl,
                script=script,
                claim=claim,
                session=named,
                completion=completion,
            )
            recording = Recording(self._config, attachment.request_id, script)
            recording.request, recording.meter = question.request, attachment.meter
            journal = runs.journal(storage, entry, recording, keep_events=stream)
            await self._take_place(attachment, recording)
            try:
                await journal.begin(RunStatus.IN_PROGRESS)
            except ConflictError:
                recording.release()  # its twin was faster
                continue
            except BaseException:
                recording.release()
                raise
            break
        if session is not None:
            recording.before = partial(self._take_turn, session, identity)
            recording.behind = partial(self._end_session, session, script, recording)
        runs.start(recording)
        await self._show(
            attachment,
            recording,
            stream=stream,
            goes_on=True,  # who sends a key means to come again for the answer
            end="",
            encode_error=_encode_error,
            whole=script.whole,
        )

    async def _take_turn(self, session: RequestSession, run: str) -> None:
        try:
            await session.take_turn(run, self._config)
        except StorageUnavailableError:
            raise storage_unavailable().retry_after(1.0) from None

    async def _end_session(self, session: RequestSession, script: ChatScript, recording: Recording) -> None:
        cut = recording.run.stop_reason is not None and bool(script.text)
        await session.end(script.text, failed=script.answer is None and not cut)


@dataclass(frozen=True, slots=True)
class _Question:
    """A request that was read."""

    agent: Agent
    request: AgentRequest
    options: ChatOptions
    headers: Headers
    body: bytes


def _encode_error(error: APIError, _: int) -> str:
    return ChunkEncoder.fail(error)
