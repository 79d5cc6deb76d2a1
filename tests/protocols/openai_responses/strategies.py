"""What a request may ask for and a server be set to, drawn at random. What agents yield is drawn as for chats."""

from typing import Any

from hypothesis import strategies as st

from agentrun_server.protocols.openai_responses.encode import ResponseSettings
from tests.protocols.openai_chat.strategies import CLIENT_TOOLS

__all__ = ["bodies", "response_settings"]

response_settings = st.builds(
    ResponseSettings,
    server_tool_items=st.sampled_from(["mcp_call", "mcp_call", "hidden"]),
    approval_items=st.booleans(),
    max_output_bytes=st.sampled_from([50_000, 50_000, 0, 5, 40]),
)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """What a request may ask for."""
    tools = [{"type": "function", "name": name} for name in draw(st.sets(st.sampled_from(CLIENT_TOOLS)))]
    for tool in tools:
        if draw(st.booleans()) and draw(st.booleans()):
            tool["type"] = "custom"
    return {
        "tools": tools,
        "include": draw(st.sampled_from([[], ["message.output_text.logprobs"]])),
        "stream_options": {"include_obfuscation": draw(st.booleans())},
        "max_tool_calls": draw(st.sampled_from([None, None, 1, 2])),
    }
