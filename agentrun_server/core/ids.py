"""Ids: random, unguessable, cheap."""

import os
from weakref import WeakMethod

__all__ = ["IdSource"]

_BATCH = 4096


class IdSource:
    """Makes ids of 128 random bits. Random bytes are fetched from the system in batches: one call for 256 ids."""

    __slots__ = ("__weakref__", "_at", "_bytes")

    def __init__(self) -> None:
        self._bytes = b""
        self._at = _BATCH
        # A forked worker must not repeat its parent's ids. Looking at the process id each time costs a system call.
        renew = WeakMethod(self._renew)
        os.register_at_fork(after_in_child=lambda: (method := renew()) and method())

    def __call__(self, prefix: str = "") -> str:
        """Return `prefix` and 32 hexadecimal digits."""
        at = self._at
        if at >= _BATCH:
            self._renew()
            at = 0
        self._at = at + 16
        return prefix + self._bytes[at : at + 16].hex()

    def _renew(self) -> None:
        self._bytes, self._at = os.urandom(_BATCH), 0
