"""What storage raises, apart from its protocols: who answers requests knows these, and need not import the rest."""

from agentrun_server.errors import AgentRunServerError

__all__ = ["ConflictError", "SchemaVersionError", "StorageError", "StorageUnavailableError"]


class StorageError(AgentRunServerError):
    """Base of what storage raises."""


class ConflictError(StorageError):
    """A condition of a change does not hold; nothing of the commit was written."""


class StorageUnavailableError(StorageError):
    """The store cannot be read or written now: disk full, locked, server away. Worth another try later."""


class SchemaVersionError(StorageError):
    """The store was written by a newer release of this package, and is left alone."""
