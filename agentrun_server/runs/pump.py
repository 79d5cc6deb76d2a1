"""From what the agent yields to what is sent: when bytes go out.

* Pieces that are ready together are sent together: in one write when the agent has to wait, or at 64 KB.
* A piece for which the agent had to wait is sent at once.
* An agent that does not wait for more than a millisecond is interrupted: what it has said is sent, and the event loop
  gets a turn. So one talkative agent cannot starve the others, whether its answer is a stream or not, and one that
  blocks the event loop between two pieces holds none of them back for longer than it blocks.
* An outlet that takes nothing more makes `Outlet.write` wait, and with it the agent.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol

from agentrun_server.core.events import TypedEvent
from agentrun_server.invoker.coerce import coerce
from agentrun_server.runs.drive import drive
from agentrun_server.runs.run import Run

__all__ = ["Encoder", "Outlet", "Silent", "pump"]

_CHUNK_SIZE = 256
"""What a piece of text takes on the wire beside itself, about."""
_MAX_BATCH = 64 * 1024
_MAX_DELAY = 0.001


class Outlet(Protocol):
    """Where what an encoder writes goes: to a connection, or into a log."""

    run: Run
    first_event: float
    """When the agent said something first; 0 before."""
    last_write: float

    def push(self, text: str, now: float) -> bool:
        """Take whole events if there is room for them; tell whether they were taken. `now` is the time."""
        ...

    async def write(self, text: str) -> None:
        """Take whole events. Waits while there is no room for them."""
        ...

    def before_wait(self) -> None:
        """Hear that the agent waits."""
        ...

    def watch(self) -> None:
        """Look from now on whether anybody still wants the answer."""
        ...


class Encoder(Protocol):
    """What the pump needs of a protocol's encoder."""

    @property
    def ended(self) -> bool:
        """Nothing more of the agent will be shown."""
        ...

    @property
    def plain(self) -> bool:
        """A piece of text means nothing but itself now: many can be fed together."""
        ...

    def feed_texts(self, texts: list[str]) -> str:
        """Take pieces of text, of which none is empty, while `plain`; as `feed` for each."""
        ...

    def feed(self, item: str | TypedEvent) -> str:
        """Take an item; return what it becomes on the wire, or an empty string."""
        ...


class Silent:
    """An encoder whose writing nobody reads: what counts is what it has gathered at the end."""

    __slots__ = ("_encoder",)

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def ended(self) -> bool:
        """Nothing more of the agent will be shown."""
        return self._encoder.ended

    @property
    def plain(self) -> bool:
        """A piece of text means nothing but itself now."""
        return self._encoder.plain

    def feed_texts(self, texts: list[str]) -> str:
        """Take pieces of text."""
        self._encoder.feed_texts(texts)
        return ""

    def feed(self, item: str | TypedEvent) -> str:
        """Take an item."""
        self._encoder.feed(item)
        return ""


async def pump(outlet: Outlet, source: AsyncGenerator[Any, None], encoder: Encoder, begun: str = "") -> str:
    """Run the agent to its end and send what it says, behind what has `begun`; return what has not been sent yet.

    Raises:
        asyncio.CancelledError: the run was stopped, whatever the agent made of its cancellation.
        Exception: what the agent or the encoder raised. The agent is closed by then.
    """
    pumping = _Pump(outlet, encoder, begun)
    await drive(pumping.run(source), pumping.before_wait)
    return pumping.take()


class _Pump:
    """One run of an agent: what it has said and has not been sent, and whether it had to wait (`waited`).

    What has not been sent is `parts`, ready for the wire, and behind them `texts`, which are encoded together.
    """

    __slots__ = ("encoder", "outlet", "parts", "texts", "waited")

    def __init__(self, outlet: Outlet, encoder: Encoder, begun: str) -> None:
        self.outlet = outlet
        self.encoder = encoder
        self.parts = [begun] if begun else []
        self.texts: list[str] = []
        self.waited = False

    def take(self) -> str:
        """Return what has not been sent, and forget it."""
        if self.texts:
            self.encode_texts()
        text = "".join(self.parts)
        self.parts.clear()
        return text

    def encode_texts(self) -> None:
        """Make parts of the texts."""
        written = self.encoder.feed_texts(self.texts)
        self.texts.clear()
        if written:
            self.parts.append(written)

    def before_wait(self) -> Coroutine[Any, Any, None] | None:
        """Send what is there before the agent waits, and watch the client from now on."""
        self.waited = True
        self.outlet.before_wait()
        return self._flush_or_keep() if self.parts or self.texts else None

    async def _flush_or_keep(self) -> None:
        text = self.take()
        if not text:
            return  # an answer that is no stream is written at its end
        try:
            await self.outlet.write(text)
        except asyncio.CancelledError:
            # For the agent, which may have set itself a time limit, and go on: what was not sent is not lost.
            self.parts.insert(0, text)
            raise

    async def _flush(self) -> None:
        text = self.take()
        if text:
            await self.outlet.write(text)

    async def run(self, source: AsyncGenerator[Any, None]) -> None:
        """Feed the encoder until the agent or the answer has ended, then close the agent."""
        try:
            await self._feed(source)
        except Exception:
            # What the agent said before it failed is the client's: the error follows it in the stream.
            await self._flush()
            raise
        finally:
            await _close(source)
        if self.outlet.run.stop_reason is not None:
            raise asyncio.CancelledError  # the agent took it for an ordinary end

    # What runs for each token is in this loop; a call would cost more than what it does.
    async def _feed(self, source: AsyncGenerator[Any, None]) -> None:
        outlet, encoder, parts, texts = self.outlet, self.encoder, self.parts, self.texts
        feed, clock, run = encoder.feed, time.monotonic, outlet.run
        size = 0
        turn = outlet.last_write  # when the event loop last had one
        async for item in source:
            if type(item) is str and item and encoder.plain:
                if self.waited and not parts and not texts and run.stop_reason is None and outlet.first_event:
                    # Almost every token of a model: it was waited for, and goes alone.
                    text = feed(item)
                    turn = clock()
                    if text and not outlet.push(text, turn):
                        await outlet.write(text)
                    self.waited = False
                    if encoder.ended:
                        return
                    continue
                texts.append(item)
                size += len(item) + _CHUNK_SIZE
            else:
                if texts:
                    self.encode_texts()
                text = feed(item) if type(item) is str and item else _feed_all(encoder, item)
                if text:
                    parts.append(text)
                    size += len(text)
            now = clock()
            if self.waited or size >= _MAX_BATCH or now - turn > _MAX_DELAY:
                if run.stop_reason is not None:
                    return
                await self._flush()
                if not self.waited:
                    outlet.watch()
                    await asyncio.sleep(0)
                    now = clock()
                self.waited = False
                turn, size = now, 0
            if not outlet.first_event:
                outlet.first_event = now
            if encoder.ended:
                return


async def _close(source: AsyncGenerator[Any, None]) -> None:
    try:
        await source.aclose()
    except BaseExceptionGroup as group:
        # A task group around a `yield` puts the request to close into a group, with what else it has to say.
        _, errors = group.split(GeneratorExit)
        if errors is not None:
            raise errors from None


def _feed_all(encoder: Encoder, item: Any) -> str:
    """Feed what `item` means: nothing, one event or several."""
    written = ""
    for event in coerce(item):
        written += encoder.feed(event)
        if encoder.ended:
            break
    return written
