"""Stop sequences, applied to a stream of text for agents that do not apply them."""

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Passes text through up to the first stop sequence, which may be spread over several pieces.

    Text that could be the beginning of a sequence is held back until it is clear. `flush` shows it all the same, but
    does not forget it: text that completes the sequence later is not passed.
    """

    __slots__ = ("_held", "_longest", "_sequences", "_shown", "hit")

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = sequences
        self._longest = max(map(len, sequences))
        self._held = ""
        self._shown = 0  # so much of `_held` has been flushed
        self.hit = False
        """A sequence was found: nothing more is passed."""

    def feed(self, text: str) -> str:
        """Return what can be shown of the text so far."""
        if self.hit:
            return ""
        shown, text = self._shown, self._held + text
        found = [(at + len(one), at) for one in self._sequences if (at := text.find(one)) >= 0]
        if found:
            self.hit, self._held = True, ""
            _, at = min(found)  # the first to be complete, so that it does not matter how the text is split
            return text[shown:at]
        start = len(text) - self._possible_start(text)
        self._held, self._shown = text[start:], max(0, shown - start)
        return text[shown:start]

    def flush(self) -> str:
        """Return what was held back: the text ends, or something other than text follows."""
        held = self._held[self._shown :]
        self._shown = len(self._held)
        return held

    def _possible_start(self, text: str) -> int:
        """Return the length of the longest end of `text` with which a sequence begins."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(sequence.startswith(end) for sequence in self._sequences):
                return size
        return 0
