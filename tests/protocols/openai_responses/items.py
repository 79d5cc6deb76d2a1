"""Items as clients send them, drawn at random, and read."""

import json
from typing import Any

from hypothesis import strategies as st

from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses.items import Item, read_items
from tests.protocols.openai_responses.answers import Counter
from tests.support.properties import any_text, json_values

__all__ = ["any_items", "read"]


def read(*items: Any) -> list[Item]:
    """Read `items`, which stay as they are; numbers that JSON does not have become null."""
    return read_items(json.loads(dumps(items)), Counter(), max_items=99)


_ids = st.sampled_from(["a", "b", "c"])
_status = st.sampled_from([None, "completed", "incomplete", "in_progress"])
_parts = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "text"]), "text": any_text}),
        st.fixed_dictionaries({"type": st.just("refusal"), "refusal": any_text}),
        st.fixed_dictionaries({"type": st.just("input_image"), "image_url": st.just("https://a.example/x.png")}),
        st.fixed_dictionaries({"type": st.just("input_file"), "file_id": _ids}),
        st.fixed_dictionaries({"type": st.just("input_hologram"), "x": any_text}),
    ),
    max_size=3,
)
_content = any_text | _parts


def _item(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    optional = {"id": _ids.map(lambda letter: f"{kind}_{letter}"), "status": _status}
    return st.fixed_dictionaries({"type": st.just(kind), **fields}, optional=optional)


any_items: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.one_of(
        _item("message", role=st.sampled_from(["user", "assistant", "system", "developer"]), content=_content),
        _item(
            "reasoning", summary=st.lists(st.fixed_dictionaries({"type": st.just("summary_text"), "text": any_text}))
        ),
        _item("function_call", call_id=_ids, name=_ids, arguments=any_text),
        _item("function_call_output", call_id=_ids, output=_content),
        _item("custom_tool_call", call_id=_ids, name=_ids, input=any_text),
        _item("custom_tool_call_output", call_id=_ids, output=_content),
        _item("mcp_call", name=_ids, arguments=any_text, output=st.none() | any_text, error=st.none() | json_values),
        st.fixed_dictionaries({"type": st.just("mcp_approval_request"), "id": _ids, "name": _ids}),
        st.fixed_dictionaries(
            {"type": st.just("mcp_approval_response"), "approval_request_id": _ids, "approve": st.booleans()}
        ),
        _item("hologram", x=json_values),
    ),
    max_size=8,
)
"""Items of every type, in any order."""
