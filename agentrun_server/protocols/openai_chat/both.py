"""A streamed answer that is kept as well: the chunks, and the completion that a client makes of them."""

from collections import deque
from collections.abc import Callable

from agentrun_server.core.events import TypedEvent
from agentrun_server.core.usage import Usage
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder
from agentrun_server.protocols.openai_chat.turn import ChatSettings

__all__ = ["KeptChunks"]

_CALL = "call_"


class KeptChunks:
    """Writes chunks as `ChunkEncoder` does, and can tell the whole completion at the end."""

    def __init__(
        self,
        options: ChatOptions,
        settings: ChatSettings,
        new_id: Callable[[str], str],
        *,
        id: str,  # noqa: A002 - the wire's name for it
        created: int,
        model: str,
        prompt_tokens: Callable[[], int],
    ) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._prompt_tokens = prompt_tokens
        # Both name the calls that the agent left without an id, in the same order, and must name them alike.
        named: deque[str] = deque()

        def first(prefix: str) -> str:
            made = new_id(prefix)
            if prefix == _CALL:
                named.append(made)
            return made

        def second(prefix: str) -> str:
            return named.popleft() if prefix == _CALL and named else new_id(prefix)

        self._chunks = ChunkEncoder(
            options, settings, first, id=id, created=created, model=model, prompt_tokens=prompt_tokens
        )
        self._whole = CompletionEncoder(options, settings, second)
        self.fail = self._chunks.fail

    @property
    def ended(self) -> bool:
        """Nothing more of the agent will be shown."""
        return self._chunks.ended

    @property
    def plain(self) -> bool:
        """A piece of text means nothing but itself now."""
        return self._chunks.plain

    def feed_texts(self, texts: list[str]) -> str:
        """Take pieces of plain text; return their chunks."""
        self._whole.feed_texts(texts)
        return self._chunks.feed_texts(texts)

    def feed(self, item: str | TypedEvent) -> str:
        """Take the next item; return the chunks it becomes."""
        written = self._chunks.feed(item)
        self._whole.feed(item)
        return written

    def finish_choice(self, *, more: bool = False) -> str:
        """End this choice; with `more`, begin the next."""
        written = self._chunks.finish_choice(more=more)
        self._whole.finish_choice(more=more)
        return written

    def finish(self) -> str:
        """End the stream."""
        return self._chunks.finish()

    def usage(self, prompt_tokens: Callable[[], int]) -> Usage:
        """Return what it has cost so far."""
        return self._chunks.usage(prompt_tokens)

    @property
    def text(self) -> str:
        """What the choice says so far."""
        return self._whole.text

    def completion(self) -> str:
        """Return the whole answer as JSON text, when it has ended."""
        return self._whole.completion(
            id=self._id, created=self._created, model=self._model, usage=self.usage(self._prompt_tokens)
        )
