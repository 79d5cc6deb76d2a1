"""An agent that takes minutes, and a client that need not wait for it: what runs in the background goes on without it.

uvicorn background:server

python background.py "The history of tea"

The client asks, reads along, and prints what is said. When its connection is lost, it takes the stream up again behind
the last event it has: nothing is missing, and nothing comes twice. End it and come back, from another machine too:

python background.py resp_…
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import httpx2
import openai

from agentrun_server import AgentRequest, AgentRunServer

CHAPTERS = ("Origins", "Trade", "Cultures", "Science", "Outlook")
WORK = 30.0
"""Seconds for a chapter."""
RETRY = 1.0
"""Seconds after which a lost client asks again."""


async def invoke_agent(request: AgentRequest) -> AsyncIterator[str]:
    yield f"# {request.messages[-1].text}\n"
    for number, chapter in enumerate(CHAPTERS, 1):
        await asyncio.sleep(WORK)
        yield f"{number}. {chapter}\n"  # kept before it is sent


server = AgentRunServer(invoke_agent=invoke_agent)


async def ask(client: openai.AsyncOpenAI, topic: str) -> str:
    """Start a run; return the id under which it is found."""
    response = await client.responses.create(model="agent", input=topic, background=True)
    return response.id


async def follow(client: openai.AsyncOpenAI, response_id: str) -> AsyncIterator[str]:
    """Yield the text of a response from its beginning, however often the connection is lost."""
    seen: int | openai.Omit = openai.omit
    while True:
        try:
            async with await client.responses.retrieve(response_id, stream=True, starting_after=seen) as stream:
                async for event in stream:
                    seen = event.sequence_number
                    if event.type == "response.output_text.delta":
                        yield event.delta
            return
        except (openai.APIConnectionError, httpx2.TransportError):  # at the beginning of an answer, or in the middle
            await asyncio.sleep(RETRY)


async def main(text: str) -> None:
    base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as client:
        response_id = text if text.startswith("resp_") else await ask(client, text)
        print(f"({response_id})")
        async for piece in follow(client, response_id):
            print(piece, end="", flush=True)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:])))
