"""What was said in responses that are not stored, for as long as their WebSocket is open.

Texts, not objects: they take a tenth of the memory, their size is what it is, and most are never read.
"""

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Context", "Contexts"]


@dataclass(frozen=True, slots=True)
class Context:
    """All that was said up to the end of one response."""

    lane: str | None
    """Where it was given: the ``stream_id``."""
    base: str | None
    """The stored response before everything in `items`; None when there is none."""
    items: str
    """What was said since, as the members of a JSON array."""


class Contexts:
    """Keeps contexts of all connections of a process, at most so many bytes; those unused for longest go first.

    Args:
        max_bytes: of all together.
        max_context_bytes: of one; a longer one could not be sent again either.
    """

    def __init__(self, max_bytes: int, max_context_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_context_bytes = max_context_bytes
        self._contexts: OrderedDict[tuple[str, str], tuple[Context, int]] = OrderedDict()
        self.bytes = 0

    def keep(self, connection: str, response: str, context: Context) -> None:
        """Keep the context of a response of a connection."""
        size = len(context.items) if context.items.isascii() else len(context.items.encode())
        if size > min(self._max_context_bytes, self._max_bytes):
            return
        self.drop(connection, response)
        self._contexts[connection, response] = context, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, size) = self._contexts.popitem(last=False)
            self.bytes -= size

    def find(self, connection: str, response: str) -> Context | None:
        """Return the context of a response, None when it is not kept."""
        kept = self._contexts.get((connection, response))
        if kept is None:
            return None
        self._contexts.move_to_end((connection, response))
        return kept[0]

    def drop(self, connection: str, response: str) -> None:
        """Forget the context of a response."""
        kept = self._contexts.pop((connection, response), None)
        if kept is not None:
            self.bytes -= kept[1]
