"""``GET …/responses/{id}``, as an object or as a stream that goes on after any event; and ``…/cancel``."""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses.encode import DONE, obfuscated
from agentrun_server.protocols.openai_responses.queries import read_resume
from agentrun_server.runs.registry import Runs
from agentrun_server.server.asgi import ASGIApp, Scope
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.exchange import principal_of
from agentrun_server.server.handler import RunHandler
from agentrun_server.server.resources import ResourceCall, owner_of, read_query, resource
from agentrun_server.server.responses.runs import encode_error
from agentrun_server.server.responses.stored import find_response, response_of
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.errors import StorageUnavailableError

__all__ = ["ResponseReading"]


class ResponseReading:
    """Shows the responses of a server while they run and afterwards, and cancels them."""

    def __init__(self, services: Services, runs: Runs) -> None:
        self._services = services
        self._runs = runs

    def add_to(self, routes: Routes) -> None:
        """Add the routes."""
        routes.add("GET", "/responses/{response_id}", self._read)
        routes.add("POST", "/responses/{response_id}/cancel", resource(self.cancel, self._services))

    def _read(self, params: Mapping[str, str]) -> ASGIApp:
        return _Reading(self._services, self._runs, params["response_id"])

    async def cancel(self, call: ResourceCall) -> dict[str, object]:
        """End a response that runs in the background; one that has ended stays as it is."""
        storage = await self._runs.storage()
        try:
            record = await find_response(storage.store, call.params["response_id"], call.owner)
        except StorageUnavailableError:
            self._runs.stop_here(call.params["response_id"], call.owner)
            raise
        if not record.body["background"]:
            raise InvalidRequestError(
                "Only responses that run in the background can be cancelled; close the connection of others.",
                param="response_id",
            )
        return response_of(await self._runs.cancel(record))


class _Reading(RunHandler):
    """One request for one response."""

    def __init__(self, services: Services, runs: Runs, response_id: str) -> None:
        super().__init__(services)
        self._runs = runs
        self._response_id = response_id

    async def _answer(self, attachment: Attachment, scope: Scope) -> None:
        query = read_query(scope)
        wanted = read_resume(query)
        storage = await self._runs.storage()
        record = await find_response(storage.store, self._response_id, owner_of(principal_of(scope)))
        if not wanted.stream:
            whole = dumps(response_of(record)).encode()
            del record  # megabytes, perhaps, which no slow reader need hold
            await attachment.answer(200, whole)
            return
        if not record.body["streamed"]:
            raise InvalidRequestError(
                "This response cannot be streamed: it was made with neither 'stream' nor 'background'.", param="stream"
            )
        record = replace(record, body={})  # for the same reason
        attachment.reads_log = True
        number = wanted.starting_after + 1
        attachment.encode_error = lambda error: encode_error(error, number)
        attachment.begin()
        attachment.watch()
        async with aclosing(self._runs.follow(record, wanted.starting_after)) as batches:
            async for batch in batches:
                number += len(batch)
                events = [obfuscated(event, self._new_id) for event in batch] if wanted.include_obfuscation else batch
                await attachment.send(b"".join(events))
                if attachment.disconnected:
                    return
        await attachment.finish(DONE)
