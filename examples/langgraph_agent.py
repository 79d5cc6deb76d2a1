"""A LangGraph graph behind the OpenAI API: its messages are yielded as they come.

uvicorn langgraph_agent:server

Needs ``pip install langgraph``. The node here calls no model, so that the example runs without a key; put
``await model.ainvoke(state["messages"])`` with a chat model of LangChain's in its place, and its tokens are streamed.
"""

# mypy: disable-error-code="import-not-found, unused-ignore"

from collections.abc import AsyncIterator
from typing import Any

from langchain_core.language_models import FakeListChatModel
from langgraph.graph import END, START, MessagesState, StateGraph

from agentrun_server import AgentRequest, AgentRunServer

model = FakeListChatModel(responses=["I was asked by a graph."])


async def answer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [await model.ainvoke(state["messages"])]}


graph: Any = (
    StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").add_edge("answer", END).compile()
)


async def invoke_agent(request: AgentRequest) -> AsyncIterator[Any]:
    # LangGraph takes the messages as they are, and the server understands LangChain's.
    async for message, _ in graph.astream({"messages": request.messages}, stream_mode="messages"):
        yield message


server = AgentRunServer(invoke_agent=invoke_agent)
