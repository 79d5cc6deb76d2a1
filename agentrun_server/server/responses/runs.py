"""Responses as runs: how one is started, taken up by another worker, and ended when nobody runs it any more."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.errors import APIError
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses.compaction import expand
from agentrun_server.protocols.openai_responses.decode import ResponseOptions, ResponsesCall, decode
from agentrun_server.protocols.openai_responses.encode import DONE, ResponseEncoder, ResponseSettings
from agentrun_server.protocols.openai_responses.messages import to_messages
from agentrun_server.protocols.openai_responses.objects import OWN_KEYS, error_event, response
from agentrun_server.protocols.openai_responses.replay import read_log
from agentrun_server.runs.entry import Entry, Outcome
from agentrun_server.runs.history import conversation_items, is_kept, response_context
from agentrun_server.runs.idempotency import Claim
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.registry import Revived, Runs
from agentrun_server.runs.response_entry import KIND, ResponseEntry, ended_body
from agentrun_server.runs.script import ResponseScript
from agentrun_server.server.handler import prompt_tokens
from agentrun_server.server.responses.question import Question
from agentrun_server.server.services import Services
from agentrun_server.server.stored_principal import dump_principal, load_principal
from agentrun_server.storage.contracts import Change, Record, Update

__all__ = ["ResponseRun", "ResponseRuns", "encode_error", "response_settings"]


@dataclass(frozen=True, slots=True)
class ResponseRun:
    """A response that is run here."""

    recording: Recording
    call: ResponsesCall
    encoder: ResponseEncoder
    entry: ResponseEntry


class ResponseRuns:
    """Makes recordings of responses; a `KindOfRun`."""

    def __init__(self, services: Services, runs: Runs) -> None:
        config = services.config
        self._services = services
        self._config = config
        self._runs = runs
        self._new_id = services.new_id
        self.settings = response_settings(services)

    def encoder(self, call: ResponsesCall, identity: str, created_at: int) -> ResponseEncoder:
        """Return a fresh encoder for a response."""
        return ResponseEncoder(
            call,
            self.settings,
            self._new_id,
            id=identity,
            created_at=created_at,
            prompt_tokens=partial(prompt_tokens, call.request),
        )

    def another(self, run: ResponseRun) -> ResponseEncoder:
        """Return a fresh encoder for the response of `run`, which writes nothing more itself."""
        return self.encoder(run.call, run.entry.id, int(run.entry.body["response"]["created_at"]))

    def make(self, question: Question, identity: str, claim: Claim | None, turn: str, request_id: str) -> ResponseRun:
        """Return the run of `question`, which has the `turn` of its conversation. It has no journal yet."""
        call = question.call
        background, now = call.background, time.time()
        encoder = self.encoder(call, identity, int(now))
        status: Any = "queued" if background else "in_progress"
        body: dict[str, Any] = {
            "response": response(call.echo, id=identity, created_at=int(now), status=status),
            "input": list(question.items),
            "history": list(question.history),
            "conversation": call.conversation or "",
            "turn": turn,
            "background": background,
            "streamed": call.request.stream or background,
            "model": call.request.model,
            "made": [item["id"] for item in question.items if item["id"] in question.made],
            "attempt": 1,
        }
        if background:  # another worker may have to run it
            body |= {
                "call": question.body,
                "principal": dump_principal(call.request.principal),
                "request_id": request_id,
                "size": question.size,
            }
        entry = ResponseEntry(
            id=identity,
            owner=question.owner,
            body=body,
            companions=() if claim is None else (claim.change(KIND, identity, now),),
            ttl=self._ttl(is_kept=call.store),
            input=question.items,
            made=question.made,
            conversation=call.conversation or "",
            turn=turn,
            new_id=self._new_id,
        )
        source = partial(question.agent.open, call.request, self._services.threads)
        return self._run(entry, encoder, call, source, request_id)

    def _run(
        self, entry: ResponseEntry, encoder: ResponseEncoder, call: ResponsesCall, source: Any, request_id: str
    ) -> ResponseRun:
        request, background = call.request, call.background
        script = ResponseScript(
            encoder,
            source,
            prompt_tokens=partial(prompt_tokens, request),
            clock=time.time,
            body=partial(ended_body, entry.body),
            queued=background,
            is_open=entry.begun,
            silent=not entry.body["streamed"],
        )
        recording = Recording(
            self._config,
            request_id,
            script,
            enter=self._wait_turn if background else None,
            resumable=background and not {"*", request.model}.isdisjoint(self._config.idempotent_models),
            hold=self._config.response_hold if request.stream and not background else None,
        )
        recording.request = request
        return ResponseRun(recording, call, encoder, entry)

    async def _wait_turn(self) -> Callable[[], None]:
        await self._services.admission.enter_patiently()
        return self._services.admission.leave

    # --- runs that nobody runs

    def conclude(
        self, record: Record, events: Sequence[bytes], error: APIError | None
    ) -> tuple[Entry, list[bytes], Outcome]:
        """Return the last events of a run that nobody runs any more, failed or (without `error`) cancelled."""
        encoder = self.encoder(_call_of(record), record.id, int(record.body["response"]["created_at"]))
        encoder.take_up(events)
        entry = self._entry_of(record)
        script = ResponseScript(
            encoder,
            _nothing,
            prompt_tokens=_no_tokens,
            clock=time.time,
            body=partial(ended_body, record.body),
            is_open=True,
        )
        written = script.cancel() if error is None else script.fail(error)
        return entry, written, script.outcome()

    async def revive(self, record: Record, events: Sequence[bytes], *, attempt: int) -> Revived | None:
        """Return what runs a response again; None when that cannot be."""
        body, log = record.body, read_log(events)
        # A client may have run a tool already that it was asked to run: it must not be asked again.
        if not body.get("call") or log.obstacle or log.calls_client:
            return None
        call = decode(dict(body["call"]), Headers(), self._new_id, max_items=self._config.max_messages)
        request = call.request
        request.principal, request.request_id = load_principal(body["principal"]), body.get("request_id", record.id)
        try:
            agent = self._services.agents.find(request.model, request.principal)
            context = expand(await self._context(record), self._new_id, max_items=self._config.max_messages)
            request.messages = to_messages([*context, *body["input"]], call.instructions)
        except APIError:
            return None  # what it needs is not there any more
        encoder = self.encoder(call, record.id, int(body["response"]["created_at"]))
        encoder.take_up(events)
        entry, changes = self._entry_of(record), list[Change]()
        if entry.turn:
            mine = self._runs.turns.holder(record.id)
            changes.append(Update(kind="conversation", id=entry.conversation, status=mine, expect_status={entry.turn}))
            entry.turn = mine
        entry.body = {**body, "turn": entry.turn, "attempt": attempt}
        source = partial(agent.open, request, self._services.threads)
        run = self._run(entry, encoder, call, source, request.request_id)
        return Revived(run.recording, entry, entry.body, changes)

    async def _context(self, record: Record) -> list[Any]:
        store = (await self._runs.storage()).store
        conversation = record.body["conversation"]
        if conversation:
            return await conversation_items(store, conversation, record.owner, max_items=self._config.max_messages)
        history = record.body["history"]
        if not history:
            return []
        before = await store.get(KIND, history[-1], record.owner)
        if before is None:
            return []
        return await response_context(store, before, record.owner, max_items=self._config.max_messages)

    def _ttl(self, *, is_kept: bool) -> float | None:
        # One that is not kept had to be written down for the turn of its conversation; the sweeper takes it away.
        return self._config.store_ttl if is_kept else 0.0

    def _entry_of(self, record: Record) -> ResponseEntry:
        body = record.body
        return ResponseEntry(
            id=record.id,
            owner=record.owner,
            body=body,
            ttl=self._ttl(is_kept=is_kept(record)),
            input=body["input"],
            made=frozenset(body["made"]),
            conversation=body["conversation"],
            turn=body["turn"],
            new_id=self._new_id,
            begun=True,
        )


def response_settings(services: Services) -> ResponseSettings:
    """Return what the configuration says about responses."""
    config = services.config
    return ResponseSettings(
        server_tool_items=config.server_tool_items,
        approval_items=config.approval_items,
        server_label=config.server_label,
        human_input_tool=config.human_input_tool,
        max_output_bytes=config.max_output_bytes,
    )


def encode_error(error: APIError, number: int) -> str:
    """Return the end of a stream that shows another request's run and cannot go on; `number` is that of the error."""
    event = {"type": "error", "sequence_number": number, **error_event(error)}
    return f"event: error\ndata: {dumps(event)}\n\n{DONE}"


def _call_of(record: Record) -> ResponsesCall:
    """Return what an encoder needs to know to end a response."""
    shown: Mapping[str, Any] = record.body["response"]
    return ResponsesCall(
        request=AgentRequest(protocol="openai_responses", model=record.body["model"]),
        items=[],
        instructions=None,
        options=ResponseOptions(client_tools={}),
        echo={key: value for key, value in shown.items() if key not in OWN_KEYS},
        store=True,
        background=record.body["background"],
        previous_response_id=None,
        conversation=None,
        include=frozenset(),
    )


def _nothing() -> Any:
    raise AssertionError("a run that nobody runs is only ended")


def _no_tokens() -> int:
    return 0
