"""From what the agent yields to what the client reads: when bytes are sent.

* Pieces that are ready together are sent together: in one write when the agent has to wait, or at 16 KB.
* A piece for which the agent had to wait is sent at once.
* An agent that does not wait for more than a millisecond is interrupted: what it has said is sent, and the event loop
  gets a turn. So one talkative agent cannot starve the others, whether its answer is a stream or not, and one that
  blocks the event loop between two pieces holds none of them back for longer than it blocks.
* A client that does not read makes `Attachment.write` wait, and with it the agent.
"""

import asyncio
import time
from typing import Any, Protocol

from agentrun_server.core.events import TypedEvent
from agentrun_server.invoker.coerce import coerce
from agentrun_server.runs.drive import Stepper
from agentrun_server.server.attachment import Attachment

__all__ = ["Encoder", "pump"]

_MAX_BATCH = 16 * 1024
_MAX_DELAY = 0.001


class Encoder(Protocol):
    """What the pump needs of a protocol's encoder."""

    @property
    def ended(self) -> bool:
        """Nothing more of the agent will be shown."""
        ...

    def feed(self, item: str | TypedEvent) -> str:
        """Take an item; return what it becomes on the wire, or an empty string."""
        ...


# One loop on purpose: what runs for each token is here, and a call would cost more than what it does.
async def pump(  # noqa: C901
    attachment: Attachment, steps: Stepper[Any], encoder: Encoder, begun: str = ""
) -> str:
    """Run the agent to its end and send what it says, behind what has `begun`; return what has not been sent yet.

    Raises:
        asyncio.CancelledError: the run was stopped, whatever the agent made of its cancellation.
        Exception: what the agent or the encoder raised. The agent is closed by then.
    """
    feed, advance, clock, run = encoder.feed, steps.advance, time.monotonic, attachment.run
    parts = [begun] if begun else []
    size = len(begun)
    turn = attachment.last_write  # when the event loop last had one
    try:
        while not encoder.ended:
            step = advance()
            try:
                pending = step.send(None)
            except StopIteration as ready:
                item = ready.value
            else:
                steps.hold(step, pending)
                if parts:
                    await attachment.write("".join(parts))
                    parts, size = [], 0
                attachment.watch()
                item = await steps.resume()
                if run.stop_reason is not None:
                    break
                turn = clock()
                if not attachment.first_event:
                    attachment.first_event = turn
                text = feed(item) if type(item) is str and item else _feed_all(encoder, item)
                if text:
                    await attachment.write(text)
                continue
            text = feed(item) if type(item) is str and item else _feed_all(encoder, item)
            if text:
                parts.append(text)
                size += len(text)
            now = clock()
            if not attachment.first_event:
                attachment.first_event = now
            if size >= _MAX_BATCH or now - turn > _MAX_DELAY:
                if parts:
                    await attachment.write("".join(parts))
                    parts, size = [], 0
                attachment.watch()
                await asyncio.sleep(0)
                turn = clock()
    except StopAsyncIteration:
        steps.ended = True
    except Exception:
        # What the agent said before it failed is the client's: the error follows it in the stream.
        if parts:
            await attachment.write("".join(parts))
        raise
    finally:
        if not steps.ended:
            await steps.close(asyncio.CancelledError())
    if run.stop_reason is not None:
        raise asyncio.CancelledError  # the agent took it for an ordinary end
    return "".join(parts)


def _feed_all(encoder: Encoder, item: Any) -> str:
    """Feed what `item` means: nothing, one event or several."""
    written = ""
    for event in coerce(item):
        written += encoder.feed(event)
        if encoder.ended:
            break
    return written
