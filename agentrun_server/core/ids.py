"""Ids: random, unguessable, cheap."""

import os
from weakref import WeakMethod

__all__ = ["IdSource"]

_BATCH = 4096


class IdSource:
    """Makes ids of 128 random bits, for any thread. Random bytes come in batches: one system call for 256 ids."""

    __slots__ = ("__weakref__", "_ready")

    def __init__(self) -> None:
        self._ready: list[str] = []
        # A forked worker must not repeat its parent's ids. Looking at the process id each time costs a system call.
        renew = WeakMethod(self._renew)
        os.register_at_fork(after_in_child=lambda: (method := renew()) and method())

    def __call__(self, prefix: str = "") -> str:
        """Return `prefix` and 32 hexadecimal digits."""
        while True:
            try:
                return prefix + self._ready.pop()  # one step of the interpreter: no two threads get the same
            except IndexError:
                self._renew()

    def _renew(self) -> None:
        digits = os.urandom(_BATCH).hex()
        self._ready = [digits[at : at + 32] for at in range(0, len(digits), 32)]
