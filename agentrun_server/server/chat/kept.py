"""Chat completions of which something is stored: the answer, its run, or what a session remembers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from json import loads as from_json
from typing import Final

from agentrun_server.errors import APIError, NotFoundError
from agentrun_server.observability.logs import get_logger
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder
from agentrun_server.runs.idempotency import Claim, read_claim
from agentrun_server.runs.patience import Patience, patiently
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.registry import Runs
from agentrun_server.runs.run import RunStatus
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.chat.completions import completion_record
from agentrun_server.server.chat.question import ChatQuestion, chat_settings, is_stored
from agentrun_server.server.chat.runs import KIND, ChatEntry, ChatRuns, ChatScript
from agentrun_server.server.handler import storage_unavailable
from agentrun_server.server.recorded import RecordedHandler
from agentrun_server.server.request_session import RequestSession, name_session, open_session
from agentrun_server.server.resources import owner_of
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import (
    Change,
    ConflictError,
    Create,
    Record,
    StorageError,
    StorageUnavailableError,
)
from agentrun_server.storage.opening import Storage

__all__ = ["KeptChat"]

_TWIN_LOOK: Final = 0.05
logger = get_logger("agentrun_server.runs")


class KeptChat(RecordedHandler):
    """Answers Chat Completions requests of which something is stored."""

    def __init__(self, services: Services, runs: Runs) -> None:
        super().__init__(services)
        self._runs = runs
        runs.kinds = {**runs.kinds, KIND: ChatRuns(services.config.idempotency_ttl)}
        self._settings = chat_settings(services.config)

    async def answer(self, attachment: Attachment, question: ChatQuestion) -> None:
        """Answer a request, and store what is to be stored of the answer."""
        runs = self._runs
        owner = owner_of(question.request.principal)
        claim = read_claim(question.headers, owner, "chat", question.body, self._config.idempotency_ttl)
        # Copies: agents add to the messages of their request, or change them.
        messages = deepcopy(question.request.messages) if is_stored(question.request, self._config) else None
        metadata = dict(question.request.metadata or {})
        script = ChatScript(
            question.request,
            question.options,
            self._settings,
            self._new_id,
            partial(question.agent.open, question.request, self._threads),
        )

        def completion(run: str) -> list[Change]:
            if script.answer is None or messages is None:
                return []
            record = completion_record(
                from_json(script.answer),
                messages,
                owner=owner,
                metadata=metadata,
                ttl=self._config.store_ttl,
                now=time.time(),
                run=run,
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
        question: ChatQuestion,
        script: ChatScript,
        completion: Callable[[str], list[Change]],
        session: RequestSession | None,
    ) -> None:
        """Answer as always, and store what is to be stored before the end of the answer is told."""
        # As the client asked for it: the agent may change its request.
        must_store, stream = question.request.params.get("store") is True, question.request.stream
        if must_store:
            await runs.storage()  # before the agent runs for nothing
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
            changes = completion("")
            if changes:
                worked = time.monotonic() - attachment.run_started
                await _create(await runs.storage(), changes, runs.patience(worked) if must_store else Patience(0.0))
        except StorageError:
            if must_store:
                raise
            # It is kept only in case the client should lose it.
            logger.warning("an answer cannot be stored", extra={"request_id": attachment.request_id}, exc_info=True)
        attachment.run.move(RunStatus.COMPLETED)
        if stream:
            await attachment.finish(b"".join(last).decode())
        else:
            await attachment.answer(200, script.whole().encode())

    async def _perform(self, attachment: Attachment, question: ChatQuestion, script: ChatScript) -> list[bytes]:
        await self._enter(attachment)
        attachment.used = script.usage
        if question.request.stream:
            attachment.encode_error = ChunkEncoder.fail
        return await script.perform(attachment)

    async def _answer_once(
        self,
        attachment: Attachment,
        runs: Runs,
        question: ChatQuestion,
        script: ChatScript,
        completion: Callable[[str], list[Change]],
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
                        whole=_kept,
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
            if session is None:
                await self._take_place(attachment, recording)
            try:
                await journal.begin(RunStatus.IN_PROGRESS)
            except ConflictError:
                recording.release()  # its twin was faster, or the lease was lost: after a pause, to know which
                await asyncio.sleep(_TWIN_LOOK)
                continue
            except BaseException:
                recording.release()
                raise
            break
        if session is not None:
            recording.before = partial(self._take_turn, session, recording)
            recording.behind = partial(self._end_session, session, script, recording)
        runs.start(recording)
        await self._show(
            attachment,
            runs,
            recording,
            stream=stream,
            goes_on=True,  # who sends a key means to come again for the answer
            end="",
            encode_error=_encode_error,
            whole=script.whole,
            kept=_kept,
        )

    async def _take_turn(self, session: RequestSession, recording: Recording) -> None:
        try:
            await session.take_turn(recording.id, self._config)
        except StorageUnavailableError:
            raise storage_unavailable().retry_after(1.0) from None
        # Now, and not before: a run that waits for its turn must not keep the place of the one that has it.
        if not self._admission.try_enter():
            await self._admission.enter()
        recording.enter(self._admission.leave)

    async def _end_session(self, session: RequestSession, script: ChatScript, recording: Recording) -> None:
        cut = recording.run.stop_reason is not None and bool(script.text)
        await session.end(script.text, failed=script.answer is None and not cut)


async def _create(storage: Storage, changes: Sequence[Change], patience: Patience) -> None:
    """Create what has an id that nobody else can have."""
    unsure = False

    async def create() -> None:
        nonlocal unsure
        try:
            await storage.store.commit(changes)
        except StorageUnavailableError:
            unsure = True
            raise
        except ConflictError:
            if not unsure:
                raise  # else it is there: the try before was made after all

    await patiently(create, patience)


def _kept(ended: Record) -> str:
    return str(ended.body["answer"])


def _encode_error(error: APIError, _: int) -> str:
    return ChunkEncoder.fail(error)
