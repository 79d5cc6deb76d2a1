"""The ceiling: a plain ASGI app that sends precomputed bytes, one write a token, and parses nothing.

``--joined`` sends all that is ready in one write instead: the ceiling of a server that joins writes.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import agents

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_FRAME = {
    "id": "chatcmpl-" + "0" * 29,
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "raw",
}


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + json.dumps({**_FRAME, "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


TOKENS = [_chunk({"content": text}) for text in agents.TOKENS]
FIRST = _chunk({"role": "assistant", "content": ""})
LAST = _chunk({}, "stop")
DONE = b"data: [DONE]\n\n"
ANSWER = json.dumps(
    {
        **_FRAME,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ("echo " * 40), "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    },
    separators=(",", ":"),
).encode()

STREAM_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}
JSON_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))],
}

_threads = ThreadPoolExecutor(max_workers=128)
_joined = False


async def _read(receive: Receive) -> bytes:
    message = await receive()
    if not message.get("more_body"):
        return bytes(message["body"])
    parts = [message["body"]]
    while message.get("more_body"):
        message = await receive()
        parts.append(message["body"])
    return b"".join(parts)


def _run_sync(loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[bytes | None]") -> None:
    for index in range(agents.SYNC_TOKENS):
        if index:
            time.sleep(agents.SYNC_INTERVAL)
        loop.call_soon_threadsafe(queue.put_nowait, TOKENS[index])
    loop.call_soon_threadsafe(queue.put_nowait, None)


async def _stream_sync(send: Send) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    work = loop.run_in_executor(_threads, _run_sync, loop, queue)
    while (item := await queue.get()) is not None:
        await send({"type": "http.response.body", "body": item, "more_body": True})
    await work


async def _stream_burst(send: Send) -> None:
    if _joined:
        await send({"type": "http.response.body", "body": b"".join(TOKENS), "more_body": True})
        return
    for item in TOKENS:
        await send({"type": "http.response.body", "body": item, "more_body": True})


async def _stream_timed(send: Send, count: int, interval: float) -> None:
    for index in range(count):
        if index:
            await asyncio.sleep(interval)
        await send({"type": "http.response.body", "body": TOKENS[index], "more_body": True})


async def _stream_trickle(send: Send) -> None:
    for item in TOKENS:
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": item, "more_body": True})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer every path; the model name is read from its fixed place at the start of the body."""
    if scope["type"] != "http":
        return
    body = await _read(receive)
    model = body[10 : body.find(b'"', 10)]
    if model == b"echo":
        await send(JSON_START)
        await send({"type": "http.response.body", "body": ANSWER})
        return
    await send(STREAM_START)
    await send({"type": "http.response.body", "body": FIRST, "more_body": True})
    if model == b"burst":
        await _stream_burst(send)
    elif model == b"trickle":
        await _stream_trickle(send)
    elif model == b"paced":
        await _stream_timed(send, agents.PACED_TOKENS, agents.PACED_INTERVAL)
    elif model == b"slow":
        await _stream_timed(send, agents.SLOW_TOKENS, agents.SLOW_INTERVAL)
    elif model == b"sync":
        await _stream_sync(send)
    await send({"type": "http.response.body", "body": LAST + DONE, "more_body": False})


def main() -> None:
    global _joined  # noqa: PLW0603 - one process, one setting
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--joined", action="store_true")
    options = parser.parse_args()
    _joined = options.joined
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
