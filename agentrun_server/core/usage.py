"""Token counts: what an agent reports, and an honest estimate for agents that report nothing."""

from dataclasses import dataclass

__all__ = ["Usage", "estimate_tokens", "utf8_size"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, or of a whole run when added up.

    `cached_tokens` are part of `input_tokens`, `reasoning_tokens` part of `output_tokens`. An agent that calls several
    models yields one `Usage` for each; the server adds them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of `text` without a tokenizer: one for every four bytes of UTF-8.

    That is the rule of thumb OpenAI gives for English; for Chinese, three bytes a character, it comes to 0.75 each.
    """
    return (utf8_size(text) + 3) // 4


def utf8_size(text: str) -> int:
    """Return the length of `text` in bytes of UTF-8; lone surrogates count as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
