"""From what the agent yields to what the client reads: when bytes are sent.

* Pieces that are ready together are sent together: in one write when the agent has to wait, or at 16 KB.
* A piece for which the agent had to wait is sent at once.
* When more than a millisecond has passed since the last write, the piece is sent too: an agent that blocks the event
  loop between two pieces holds none of them back.
* After a write in the middle of a burst the event loop gets a turn: one talkative agent cannot starve the others.
* A client that does not read makes `Attachment.write` wait, and with it the agent.
"""

import asyncio
import time
from typing import Protocol

from agentrun_server.core.events import TypedEvent
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


async def pump(attachment: Attachment, steps: Stepper[str | TypedEvent], encoder: Encoder) -> str:
    """Run the agent to its end and send what it says; return what has not been sent yet.

    Raises:
        Exception: what the agent or the encoder raised. The agent is closed by then.
    """
    feed, begin, clock = encoder.feed, steps.begin, time.monotonic
    parts: list[str] = []
    size = 0
    try:
        while not encoder.ended:
            item = begin()
            if steps.waiting:
                if parts:
                    await attachment.write("".join(parts))
                    parts, size = [], 0
                attachment.watch()
                item = await steps.resume()
                if attachment.run.stop_reason is not None:
                    break  # the agent swallowed its cancellation
                if not attachment.first_event:
                    attachment.first_event = clock()
                text = feed(item)
                if text:
                    await attachment.write(text)
                continue
            if not attachment.first_event:
                attachment.first_event = clock()
            text = feed(item)  # type: ignore[arg-type] # an item, since the step is not waiting
            if text:
                parts.append(text)
                size += len(text)
                if size >= _MAX_BATCH or clock() - attachment.last_write > _MAX_DELAY:
                    await attachment.write("".join(parts))
                    parts, size = [], 0
                    attachment.watch()
                    await asyncio.sleep(0)
    except StopAsyncIteration:
        pass
    finally:
        await steps.close(asyncio.CancelledError())
    return "".join(parts)
