"""Ids: random, unguessable, cheap."""

import os

__all__ = ["IdSource"]

_BATCH = 4096


class IdSource:
    """Makes ids of 128 random bits. Random bytes are fetched from the system in batches: one call for 256 ids."""

    __slots__ = ("_at", "_bytes", "_pid")

    def __init__(self) -> None:
        self._bytes = b""
        self._at = _BATCH
        self._pid = 0

    def __call__(self, prefix: str = "") -> str:
        """Return `prefix` and 32 hexadecimal digits."""
        at = self._at
        if at >= _BATCH or self._pid != os.getpid():  # a forked worker must not repeat its parent's ids
            self._bytes, self._pid, at = os.urandom(_BATCH), os.getpid(), 0
        self._at = at + 16
        return prefix + self._bytes[at : at + 16].hex()
