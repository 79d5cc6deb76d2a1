"""Answering with what is in the log of a run: of one that this request has started, or of its twin's."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from agentrun_server.errors import APIError
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
        recording: Recording,
        *,
        stream: bool,
        goes_on: bool,
        end: str,
        encode_error: Callable[[APIError, int], str],
        whole: Callable[[], str],
    ) -> None:
        """Answer with a run of this request's.

        Args:
            attachment: the request.
            recording: the run.
            stream: with its events, else with the object that they are.
            goes_on: the run does not end when the client leaves.
            end: what is sent behind the last event.
            encode_error: ends a stream with an error that is not in the log, behind so many events.
            whole: returns the object, when the run has ended.

        Raises:
            APIError: the answer has another status.
        """
        attachment.run.move(RunStatus.IN_PROGRESS)
        attachment.reads_log = recording.attended = True
        attachment.begin()
        try:
            if stream:
                await self._send_events(attachment, recording, end, encode_error)
            else:
                attachment.watch()
                await recording.journal.wait_closed()
                self._check(recording)
                await attachment.answer(200, whole().encode())
        finally:
            recording.attended = False
            recording.count()
            attachment.first_event = recording.first_event
            attachment.run.move(recording.run.status)
            attachment.exchange.note({"run_id": recording.id})
            # Who left ends its run, unless that is meant to go on.
            if not goes_on and not (attachment.disconnected and self._config.on_disconnect == "continue"):
                recording.stop(StopReason.DISCONNECTED)

    async def _send_events(
        self, attachment: Attachment, recording: Recording, end: str, encode_error: Callable[[APIError, int], str]
    ) -> None:
        sent = 0
        attachment.encode_error = lambda error: encode_error(error, sent)
        attachment.watch()
        async with aclosing(recording.journal.follow()) as batches:
            async for batch in batches:
                sent += len(batch)
                await attachment.send(b"".join(batch))
                if attachment.disconnected:
                    return
        if not recording.journal.settled or not sent:
            self._check(recording)
            raise storage_lost()
        await attachment.finish(end)

    @staticmethod
    def _check(recording: Recording) -> None:
        if recording.error is not None:
            raise recording.error
        if not recording.journal.settled:
            raise storage_lost()

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
        attachment.begin()
        attachment.watch()
        sent = 0
        if stream:
            attachment.encode_error = lambda error: encode_error(error, sent)
        async with aclosing(runs.follow(record, -1)) as batches:
            async for batch in batches:
                sent += len(batch)
                if stream:
                    await attachment.send(b"".join(batch))
        ended = await runs.reload(record)
        attachment.run.move(RunStatus.IN_PROGRESS)
        attachment.run.move(RunStatus.COMPLETED)
        attachment.exchange.note({"run_id": record.id, "replayed": True})
        error = error_of(ended)
        if error is not None and not sent:  # what was sent ends with it
            raise error
        if stream:
            await attachment.finish(end)
        else:
            await attachment.answer(200, whole(ended).encode(), REPLAYED)


def error_of(record: Record) -> APIError | None:
    """Return the error that the request for a run was answered with; None when it was answered with the run itself."""
    failure = record.body.get("failure")
    if failure is None:
        return None
    error = failure["error"]
    return APIError(
        error["message"], code=error["code"], param=error["param"], type=error["type"], status_code=failure["status"]
    ).no_retry()
