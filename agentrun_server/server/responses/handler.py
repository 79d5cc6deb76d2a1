"""``POST …/responses``: a response, streamed or whole, at once or in the background, stored or not.

One that is not stored is answered as a chat is: the agent runs in the request's own task. One that is stored is a
`Recording`: it belongs to the server, its events are durable before they are sent, and the request reads its log like
anybody else who comes later.
"""

import asyncio
import time
from functools import partial
from typing import Final

from agentrun_server.core.request import Headers
from agentrun_server.errors import APIError
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses.encode import DONE, ResponseEncoder
from agentrun_server.runs.idempotency import Claim, read_claim
from agentrun_server.runs.pump import Silent, pump
from agentrun_server.runs.registry import Runs
from agentrun_server.runs.run import RunStatus
from agentrun_server.runs.turns import ConversationLockedError
from agentrun_server.server.asgi import Scope
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.handler import check_media_type, prompt_tokens, raw_request, storage_unavailable
from agentrun_server.server.recorded import REPLAYED, RecordedHandler
from agentrun_server.server.request_session import open_session
from agentrun_server.server.responses.question import Question, QuestionReader, conversation_not_found
from agentrun_server.server.responses.runs import (
    ResponseRun,
    ResponseRuns,
    encode_error,
    response_settings,
)
from agentrun_server.server.responses.stored import response_of
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import ConflictError, Record
from agentrun_server.storage.opening import Storage

__all__ = ["ResponsesHandler"]

_TWIN_WAIT: Final = 2.0
"""Seconds in which a request finds its twin by its key, when that one has the turn of the conversation already."""
_TWIN_LOOK: Final = 0.05


class ResponsesHandler(RecordedHandler):
    """Answers requests for responses. Without `runs` nothing is stored."""

    def __init__(self, services: Services, runs: Runs | None) -> None:
        super().__init__(services)
        self._runs = runs
        self._questions = QuestionReader(services.config, services.agents, services.new_id, runs)
        self._settings = response_settings(services)
        self._kind = None if runs is None else ResponseRuns(services, runs)
        if runs is not None and self._kind is not None:
            runs.kinds = {**runs.kinds, "response": self._kind}

    async def _answer(self, attachment: Attachment, scope: Scope) -> None:
        headers = Headers(scope["headers"])
        check_media_type(headers, self._config.max_body_bytes)
        body = await attachment.read_body()
        state = scope.get("state") or {}
        question = await self._questions.read(body, headers, state.get("principal"), attachment.request_id)
        call = question.call
        call.request._raw_request = partial(raw_request, scope, body)
        attachment.request = call.request
        attachment.meter = state.get("usage")
        # The conversation is kept as such: the session is the agent's own memory beside it.
        open_session(self._services, attachment, call.request, headers, conversation=call.conversation or "")
        # A turn of a conversation is stored there, whether its response is or not.
        if self._runs is None or not (call.store or call.conversation):
            await self._answer_unstored(attachment, question)
            return
        claim = None
        if call.store:
            claim = read_claim(headers, question.owner, "responses", body, self._config.idempotency_ttl)
        begun = await self._begin(attachment, self._runs, question, claim)
        if isinstance(begun, Record):
            attachment.exchange.extra_headers = ()  # the session of this request has had no part in it
            await self._answer_again(attachment, self._runs, begun, stream=call.request.stream)
        else:
            # Who sends a key means to come again for the answer.
            goes_on = call.background or claim is not None
            await self._answer_stored(attachment, self._runs, begun, question, goes_on=goes_on)

    # --- not stored

    async def _answer_unstored(self, attachment: Attachment, question: Question) -> None:
        call, request = question.call, question.call.request
        encoder = ResponseEncoder(
            call,
            self._settings,
            self._new_id,
            id=self._new_id("resp_"),
            created_at=int(time.time()),
            prompt_tokens=partial(prompt_tokens, request),
        )
        await self._enter(attachment)
        attachment.used = partial(encoder.usage, partial(prompt_tokens, request))
        source = question.agent.open(request, self._threads)
        if request.stream:
            attachment.encode_error = encoder.fail
            rest = await pump(attachment, source, encoder)
            rest += encoder.finish(int(time.time()))
            attachment.run.move(_status(encoder))
            await attachment.finish(rest)
        else:
            await pump(attachment, source, Silent(encoder))
            encoder.finish(int(time.time()))
            attachment.run.move(_status(encoder))
            await attachment.answer(200, dumps(encoder.response).encode())

    # --- stored

    async def _begin(
        self, attachment: Attachment, runs: Runs, question: Question, claim: Claim | None
    ) -> ResponseRun | Record:
        """Start the run; or return the record of the one that this request asked for before."""
        storage = await runs.storage()
        conversation = question.call.conversation
        while True:
            known = await claim.find(storage.store, time.time()) if claim is not None else None
            if known is not None:
                return known
            identity = self._new_id("resp_")
            if conversation is None:
                try:
                    return await self._start(attachment, storage, runs, question, identity, claim)
                except ConflictError:
                    await self._check_twin(claim)
                continue  # its twin was faster
            known = await self._take_turn(storage, runs, conversation, identity, claim)
            if known is not None:
                return known
            started = False
            try:
                # What was said while this turn waited comes before it.
                question = await self._questions.with_context(question)
                run = await self._start(attachment, storage, runs, question, identity, claim)
                started = True
                return run
            except ConflictError:
                await self._check_twin(claim)
            finally:
                if not started:
                    await runs.turns.release("conversation", conversation, identity)

    @staticmethod
    async def _check_twin(claim: Claim | None) -> None:
        """Look whether another request can have been faster; after a pause, since the lease may be what was lost.

        Raises:
            APIError: there is none that could.
        """
        if claim is None:
            raise storage_unavailable().retry_after(1.0)
        await asyncio.sleep(_TWIN_LOOK)

    async def _take_turn(
        self, storage: Storage, runs: Runs, conversation: str, run: str, claim: Claim | None
    ) -> Record | None:
        """Wait for the turn of the conversation, unless this request turns out to be the twin of the one that has it.

        Raises:
            APIError: it is not to be had, or there is no such conversation.
        """
        config = self._config
        wait = config.conversation_wait if config.conversation_busy == "wait" else 0.0
        try:
            await runs.turns.take("conversation", conversation, run, wait=wait)
        except KeyError:
            raise conversation_not_found(conversation) from None
        except ConversationLockedError:
            deadline = time.monotonic() + _TWIN_WAIT
            while claim is not None and time.monotonic() < deadline:
                known = await claim.find(storage.store, time.time())
                if known is not None:
                    return known
                await asyncio.sleep(_TWIN_LOOK)
            raise
        return None

    async def _start(
        self,
        attachment: Attachment,
        storage: Storage,
        runs: Runs,
        question: Question,
        identity: str,
        claim: Claim | None,
    ) -> ResponseRun:
        """Write down what must be known before the agent runs, and start it.

        Raises:
            APIError: there is no place for it.
            ConflictError: its twin has begun.
            StorageError: nothing can be written now.
        """
        assert self._kind is not None, "there is a storage"
        background = question.call.background
        turn = runs.turns.holder(identity) if question.call.conversation is not None else ""
        run = self._kind.make(question, identity, claim, turn, attachment.request_id)
        recording = run.recording
        recording.meter = attachment.meter
        journal = runs.journal(storage, run.entry, recording, keep_events=run.entry.body["streamed"])
        if background:
            recording.room = room = runs.background.take(question.owner, question.size)
            try:
                await journal.begin(RunStatus.QUEUED, recording.script.open())
            except BaseException:
                room.give_back()
                raise
        else:
            await self._take_place(attachment, recording)
            if claim is not None or turn:
                try:
                    await journal.begin(RunStatus.IN_PROGRESS)
                except BaseException:
                    recording.release()
                    raise
        runs.start(recording)
        return run

    # --- the answer

    async def _answer_stored(
        self, attachment: Attachment, runs: Runs, run: ResponseRun, question: Question, *, goes_on: bool
    ) -> None:
        call = question.call
        if call.background and not call.request.stream:
            attachment.reads_log = True
            attachment.exchange.note({"run_id": run.entry.id})
            await attachment.answer(200, dumps(run.entry.body["response"]).encode())
            return
        await self._show(
            attachment,
            runs,
            run.recording,
            stream=call.request.stream,
            goes_on=goes_on,
            end=DONE,
            encode_error=partial(self._encode_error, run),
            whole=lambda: dumps(run.encoder.response),
            kept=_kept,
        )

    def _encode_error(self, run: ResponseRun, error: APIError, sent: int) -> str:
        assert self._kind is not None, "there is a storage"
        encoder = self._kind.another(run)
        encoder.go_on_at(sent)
        return encoder.fail(error)

    async def _answer_again(self, attachment: Attachment, runs: Runs, record: Record, *, stream: bool) -> None:
        if record.body["background"] and not stream:
            response = response_of(record)
            if response["status"] != RunStatus.QUEUED:
                attachment.run.move(RunStatus.IN_PROGRESS)
                attachment.run.move(RunStatus(response["status"]))
            attachment.reads_log = True
            attachment.exchange.note({"run_id": record.id, "replayed": True})
            await attachment.answer(200, dumps(response).encode(), REPLAYED)
            return
        await self._replay(
            attachment,
            runs,
            record,
            stream=stream,
            end=DONE,
            encode_error=encode_error,
            whole=_kept,
        )


def _kept(ended: Record) -> str:
    return dumps(response_of(ended))


def _status(encoder: ResponseEncoder) -> RunStatus:
    response = encoder.response
    assert response is not None, "it has ended"
    return RunStatus(response["status"])
