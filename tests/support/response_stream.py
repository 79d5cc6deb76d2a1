"""The events of a response as they come over a connection, kept byte for byte."""

import json
from typing import Any

from tests.support.clock import within
from tests.support.raw_client import RawClient

__all__ = ["DONE", "ResponseStream", "data_of"]

DONE = "[DONE]"

_LIMIT = 20.0


def data_of(block: str) -> dict[str, Any]:
    """Return the data of an event."""
    data: dict[str, Any] = json.loads(block.partition("\ndata: ")[2])
    return data


class ResponseStream:
    """Reads the answer to a request that `client` has sent.

    Attributes:
        blocks: the events that came, without the blank line behind each; comments are not among them.
        comments: how many comments came.
    """

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self.blocks: list[str] = []
        self.comments = 0

    async def event(self) -> str:
        """Read the next event."""
        while (block := await within(self._client.event(), _LIMIT)).startswith(":"):
            self.comments += 1
        assert self._client.answer is not None
        assert self._client.answer.status == 200, self._client.answer
        self.blocks.append(block if block.startswith("event: ") else f"data: {block}")
        return block

    async def until(self, kind: str) -> dict[str, Any]:
        """Read on to the next event of a type; return its data."""
        while not (block := await self.event()).startswith(f"event: {kind}\n"):
            assert block != DONE, f"there is no {kind} in {self.blocks}"
        return data_of(block)

    async def rest(self) -> bytes:
        """Read to the end; return all that came since the beginning."""
        while await self.event() != DONE:
            pass
        return self.after(-1)

    def after(self, number: int) -> bytes:
        """Return what came behind the event of this number."""
        return "".join(f"{block}\n\n" for block in self.blocks[number + 1 :]).encode()
