"""What an agent can keep between requests of one conversation: `request.session`.

Clients of Chat Completions send the whole conversation each time and keep nothing else for the agent. A session is the
place for the rest: what was said before, whatever the client sends of it, and a small JSON object of the agent's own.

Every method is there twice. ``await session.load_async()`` is for code on the event loop; ``session.load()`` waits, and
is for sync agents, which have a thread of their own.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from agentrun_server.core.messages import Message

__all__ = ["Session"]


class Session(Protocol):
    """The memory of one conversation. A sync method that is called on an event loop raises `RuntimeError`."""

    @property
    def id(self) -> str:
        """How the client names it; the answer's ``X-Conversation-Id`` header says it too."""
        ...

    def load(self, limit: int | None = None) -> list[Message]:
        """Return what was said before, oldest first: the newest `limit` messages, or all that are kept.

        Raises:
            ValueError: `limit` is negative.
            StorageError: the store cannot be read.
        """
        ...

    async def load_async(self, limit: int | None = None) -> list[Message]:
        """Do what `load` does, without blocking the event loop."""
        ...

    def append(self, *messages: Message | Mapping[str, Any]) -> None:
        """Add messages to what was said, all or none. From now on the agent keeps this turn, and the server does not.

        Raises:
            TypeError: one is no message, or holds what JSON cannot.
            ValueError: one is too long, or has no role.
            StorageError: the store cannot be written.
        """
        ...

    async def append_async(self, *messages: Message | Mapping[str, Any]) -> None:
        """Do what `append` does, without blocking the event loop."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return the agent's own object, empty at first; changing what is returned changes nothing.

        Raises:
            StorageError: the store cannot be read.
        """
        ...

    async def get_state_async(self) -> dict[str, Any]:
        """Do what `get_state` does, without blocking the event loop."""
        ...

    def update_state(self, /, **changes: Any) -> dict[str, Any]:
        """Set members of the agent's own object, and return the whole. None removes a member.

        Of two updates at once none is lost: members that are not named stay as the other left them.

        Raises:
            TypeError: a value is not JSON.
            ValueError: the object would be too large.
            StorageError: the store cannot be written.
        """
        ...

    async def update_state_async(self, /, **changes: Any) -> dict[str, Any]:
        """Do what `update_state` does, without blocking the event loop."""
        ...

    def clear(self) -> None:
        """Forget everything: what was said, this turn included, and the agent's own object.

        Raises:
            StorageError: the store cannot be written.
        """
        ...

    async def clear_async(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        ...
