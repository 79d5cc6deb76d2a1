"""Request bodies. The model stands first, where the raw app looks for it without parsing."""

import json
import random
from typing import Any

__all__ = ["ECHO_TEXT", "chat_body", "echo_body", "history_body", "stream_body"]

ECHO_TEXT = "echo " * 40
"""What workloads a and e say last and must get back: 200 characters."""

# fmt: off
_WORDS = (
    "the", "of", "and", "to", "agent", "model", "stream", "token", "answer", "question",
    "history", "context", "please", "could", "would", "system", "request", "server",
    "error", "value", "table", "number", "because", "however", "reading", "writing",
    "list", "item", "first", "second", "third", "never", "always", "result",
    "deployment", "cluster", "region", "memory", "storage", "network", "client",
)
# fmt: on


def chat_body(model: str, messages: list[dict[str, str]], **fields: Any) -> bytes:
    """Return a chat completions request."""
    body = {"model": model, "messages": messages, **fields}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _conversation(text: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]


def stream_body(model: str) -> bytes:
    """Return a short request for a stream."""
    return chat_body(model, _conversation("Tell me something."), stream=True, temperature=0.7)


def echo_body(size: int = 600) -> bytes:
    """Return a request of exactly `size` bytes whose last message is `ECHO_TEXT`."""
    messages = _conversation(ECHO_TEXT)
    fields: dict[str, Any] = {"temperature": 0.7, "max_tokens": 256, "stream": False}
    missing = size - len(chat_body("echo", messages, **fields))
    if missing < 0:
        raise ValueError(f"an echo request has at least {size - missing} bytes")
    messages[0]["content"] += (" Answer briefly, in plain words." * (missing // 32 + 1))[:missing]
    return chat_body("echo", messages, **fields)


def _prose(rng: random.Random, length: int) -> str:
    """Return sentences, with a new paragraph after every fourth."""
    parts: list[str] = []
    size = 0
    while size < length:
        sentence = " ".join(rng.choice(_WORDS) for _ in range(rng.randint(6, 18))).capitalize()
        sentence += ".\n\n" if len(parts) % 4 == 3 else ". "
        parts.append(sentence)
        size += len(sentence)
    return "".join(parts)[:length]


def history_body(size: int = 1_040_000, count: int = 400, *, ascii_only: bool = True) -> bytes:
    """Return a request of about `size` bytes: `count` messages of prose, then `ECHO_TEXT`.

    Without `ascii_only`, every tenth message ends in Chinese; Python's own JSON parser pays for that over the
    whole body.
    """
    rng = random.Random(7)
    each = size // count - 40
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for index in range(count):
        text = _prose(rng, each)
        if not ascii_only and index % 10 == 0:
            text += " 你好世界"
        messages.append({"role": "assistant" if index % 2 else "user", "content": text})
    messages.append({"role": "user", "content": ECHO_TEXT})
    return chat_body("echo", messages, stream=False)
