"""Everything an answer can carry: reasoning, text, sources and token counts, and what to do when the client leaves.

uvicorn streaming:server
"""

import asyncio
from collections.abc import AsyncIterator

from agentrun_server import AgentEventItem, AgentRequest, AgentRunServer, Usage, events

POEM = "Tiger, tiger, burning bright, in the forests of the night."
SOURCE = "https://en.wikipedia.org/wiki/The_Tyger"


async def invoke_agent(request: AgentRequest) -> AsyncIterator[AgentEventItem]:
    yield events.ReasoningDelta("A poem is wanted. ")
    yield events.ReasoningDelta("The one about the tiger will do.")
    written = 0
    try:
        for word in POEM.split():
            await asyncio.sleep(0.02)  # a model thinks; when the client leaves, the agent is cancelled here
            yield word + " "
            written += 1
    finally:
        # Runs to its end in every case. Whatever was opened is closed here.
        print(f"{request.request_id}: {written} words written")
    yield events.Annotation.url_citation(SOURCE, "The Tyger", 0, len(POEM))
    yield Usage(input_tokens=7, output_tokens=21, reasoning_tokens=9)


server = AgentRunServer(invoke_agent=invoke_agent)
