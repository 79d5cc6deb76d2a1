"""Answering with what is in the log of a run: of one that this request has started, or of its twin's.

What is told is what is kept: when a run is taken from the worker that has it, its reader goes on with what the next one
writes, and is told of its end by its record.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from agentrun_server.errors import APIError
from agentrun_server.runs.entry import Entry
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.registry import Runs, storage_lost
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.handler import RunHandler
from agentrun_server.storage.contracts import Record

__all__ = ["REPLAYED", "RecordedHandler", "error_of"]

REPLAYED: Final = ((b"idempotent-replayed", b"true"),)


class RecordedHandler(RunHandler):
    """Answers requests whose run may be a `Recording`."""

    async def _take_place(self, attachment: Attachment, recording: Recording) -> None:
        """Wait for a place for a run.

        Raises:
            APIError: there is none, or the server is shutting down.
        """
        if not self._admission.try_enter():
            attachment.watch()
            await self._admission.enter()
        recording.enter(self._admission.leave)

    async def _show(
        self,
        attachment: Attachment,
        runs: Runs,
        recording: Recording,
        *,
        stream: bool,
        goes_on: bool,
        end: str,
        encode_error: Callable[[APIError, int], str],
        whole: Callable[[], str],
        kept: Callable[[Record], str],
    ) -> None:
        """Answer with a run of this request's.

        Args:
            attachment: the request.
            runs: of the server.
            recording: the run.
            stream: with its events, else with the object that they are.
            goes_on: the run does not end when the client leaves.
            end: what is sent behind the last event.
            encode_error: ends a stream with an error that is not in the log, behind so many events.
            whole: returns the object, when the run has ended.
            kept: returns the object that is in the record of a run which others have ended.

        Raises:
            APIError: the answer has another status.
        """
        attachment.run.move(RunStatus.IN_PROGRESS)
        attachment.reads_log = recording.attended = True
        attachment.begin()
        try:
            attachment.watch()
            reading = _Reading(attachment, end, encode_error if stream else None)
            if not await reading.send(recording.journal.follow()):
                return
            if _is_others(recording):
                await reading.go_on(runs, recording.journal.entry, kept)
                return
            # What is not in the log is told by an error; and an error by its status, while that is possible.
            if not recording.journal.settled or (not reading.sent if stream else recording.error is not None):
                raise recording.error or storage_lost()
            await reading.finish(whole)
        finally:
            # Who left ends its run, unless that is meant to go on.
            if not goes_on and not (attachment.disconnected and self._config.on_disconnect == "continue"):
                recording.stop(StopReason.DISCONNECTED)
            recording.attended = False
            recording.count()
            attachment.first_event = recording.first_event
            attachment.run.move(recording.run.status)
            attachment.exchange.note(_facts(recording))

    async def _replay(
        self,
        attachment: Attachment,
        runs: Runs,
        record: Record,
        *,
        stream: bool,
        end: str,
        encode_error: Callable[[APIError, int], str],
        whole: Callable[[Record], str],
    ) -> None:
        """Answer with the run of another request that had the same key; wait for its end, if it runs still.

        Raises:
            NotFoundError: the run has been deleted.
            APIError: that one was answered so.
        """
        attachment.reads_log = True
        attachment.run.move(RunStatus.IN_PROGRESS)
        attachment.begin()
        attachment.watch()
        attachment.exchange.note({"run_id": record.id, "replayed": True})
        reading = _Reading(attachment, end, encode_error if stream else None, headers=REPLAYED)
        await reading.go_on(runs, record, whole)


class _Reading:
    """What one request is sent of a run.

    Args:
        attachment: the request.
        end: what is sent behind the last event.
        encode_error: ends the stream with an error that is not in the log, behind so many events; None: the answer is
            no stream.
        headers: of an answer that is none.
    """

    def __init__(
        self,
        attachment: Attachment,
        end: str,
        encode_error: Callable[[APIError, int], str] | None,
        *,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self._attachment = attachment
        self._end = end
        self._is_stream = encode_error is not None
        self._headers = headers
        self.sent = 0
        """Events, from the first one of the log on."""
        if encode_error is not None:
            attachment.encode_error = lambda error: encode_error(error, self.sent)

    async def send(self, batches: AsyncGenerator[list[bytes], None]) -> bool:
        """Send the next events of the log; False when the client has left."""
        async with aclosing(batches):
            async for batch in batches:
                self.sent += len(batch)
                if self._is_stream:
                    await self._attachment.send(b"".join(batch))
                    if self._attachment.disconnected:
                        return False
        return True

    async def go_on(self, runs: Runs, run: Record | Entry, kept: Callable[[Record], str]) -> None:
        """Send what is written of a run behind what was sent, whoever writes it, and tell how it has ended.

        Raises:
            NotFoundError: it has been deleted.
            APIError: it has failed, and that was not sent.
        """
        if not await self.send(runs.follow(run, self.sent - 1)):
            return
        ended = await runs.reload(run)
        self._attachment.run.move(RunStatus(ended.status))
        error = error_of(ended)
        if error is not None:
            if not self.sent:  # what was sent ends with it
                error.headers = (*error.headers, *self._headers)
                raise error
            self._attachment.exchange.note({"error": error.code})
        await self.finish(lambda: kept(ended))

    async def finish(self, whole: Callable[[], str]) -> None:
        """Send the end."""
        if self._is_stream:
            await self._attachment.finish(self._end)
        else:
            await self._attachment.answer(200, whole().encode(), self._headers)


def _is_others(recording: Recording) -> bool:
    """Tell whether others go on with a run of ours, or end it. One whose store is away may be nobody's for long."""
    journal = recording.journal
    return journal.entry.begun and not journal.settled and journal.given_up is not StopReason.STORAGE


def _facts(recording: Recording) -> dict[str, Any]:
    """Return what the log line of a request says of the run it showed."""
    facts: dict[str, Any] = {"run_id": recording.id}
    if recording.run.stop_reason is not None:
        facts["stopped"] = recording.run.stop_reason
    if recording.error is not None:
        facts["error"] = recording.error.code
    return facts


def error_of(record: Record) -> APIError | None:
    """Return the error that the request for a run was answered with; None when it was answered with the run itself."""
    failure = record.body.get("failure")
    if failure is None:
        return None
    error = failure["error"]
    return APIError(
        error["message"], code=error["code"], param=error["param"], type=error["type"], status_code=failure["status"]
    ).no_retry()
