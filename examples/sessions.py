"""An agent with a memory: a shopping list, for clients that send what is new and nothing else.

uvicorn sessions:server

curl http://127.0.0.1:8000/v1/chat/completions -H 'X-Conversation-Id: market' \\
  -d '{"model": "m", "messages": [{"role": "user", "content": "two lemons"}]}'

Send it again with something else, and the list grows; "what did I say" reads the conversation back, "done" forgets it.
Another id is another list. It is kept by the server, and is still there when the server has been restarted.
"""

from collections.abc import AsyncIterator

from agentrun_server import AgentRequest, AgentRunServer


async def invoke_agent(request: AgentRequest) -> AsyncIterator[str]:
    session = request.session
    assert session is not None  # `memory_collection_name` has turned sessions on
    said = request.messages[-1].text.strip()
    if said == "done":
        await session.clear_async()
        yield "Everything is forgotten."
    elif said == "what did I say":
        # The server has added each turn by itself.
        for message in await session.load_async():
            yield f"{message.role}: {message.text}\n"
    else:
        state = await session.get_state_async()
        wanted = [*state.get("wanted", ()), said]
        await session.update_state_async(wanted=wanted)
        yield f"On the list: {', '.join(wanted)}."


server = AgentRunServer(invoke_agent=invoke_agent, memory_collection_name="shopping")
