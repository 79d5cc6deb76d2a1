"""What one writes by hand: FastAPI, a pydantic model, `StreamingResponse` and `json.dumps` for each chunk."""

import argparse
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from benchmarks import agents

STREAMS = {"burst": agents.burst, "trickle": agents.trickle, "paced": agents.paced, "slow": agents.slow}


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    temperature: float | None = None
    max_tokens: int | None = None


app = FastAPI()


class _Encoder:
    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> str:
        data = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }
        return f"data: {json.dumps(data)}\n\n"


async def _stream(model: str) -> AsyncIterator[str]:
    encoder = _Encoder(model)
    yield encoder.chunk({"role": "assistant", "content": ""})
    async for token in STREAMS[model]():
        yield encoder.chunk({"content": token})
    yield encoder.chunk({}, "stop")
    yield "data: [DONE]\n\n"


def _stream_sync(model: str) -> Iterator[str]:
    encoder = _Encoder(model)
    yield encoder.chunk({"role": "assistant", "content": ""})
    for token in agents.sync_tokens():
        yield encoder.chunk({"content": token})
    yield encoder.chunk({}, "stop")
    yield "data: [DONE]\n\n"


@app.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: ChatRequest) -> StreamingResponse | dict[str, Any]:
    if request.model == "sync":
        return StreamingResponse(_stream_sync(request.model), media_type="text/event-stream")
    if request.stream:
        return StreamingResponse(_stream(request.model), media_type="text/event-stream")
    text = await agents.echo(str(request.messages[-1].content))
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=parser.parse_args().port,
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
