"""Parts of a message's content, and of a tool's output: read, and put into the form of Chat Completions.

`read_parts` keeps what it does not know, `chat_content` hands it on as it is: whether a part can be used is for the
agent to say.
"""

from collections.abc import Mapping
from typing import Any

from agentrun_server.core.messages import ContentPart
from agentrun_server.protocols.fields import array, choice, invalid, mapping, missing, text, wrong_type

__all__ = ["Part", "chat_content", "input_text", "output_text", "read_content"]

Part = dict[str, Any]

_TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})


def input_text(value: str) -> Part:
    """Return a part of text that the client sent."""
    return {"type": "input_text", "text": value}


def output_text(value: str) -> Part:
    """Return a part of text that the agent said, with every key it must have."""
    return {"type": "output_text", "text": value, "annotations": [], "logprobs": []}


def read_content(value: Any, here: str, *, spoken_by_agent: bool = False) -> list[Part]:
    """Return content as parts: text becomes one. Text of the agent gets the keys that clients leave out.

    Raises:
        InvalidRequestError: it is neither text nor a list of parts, or a part is malformed.
    """
    if isinstance(value, str):
        return [output_text(value) if spoken_by_agent else input_text(value)]
    if not isinstance(value, list):
        wrong_type(here, "a string or an array of parts", value)
    return [_read_part(item, f"{here}[{i}]", spoken_by_agent) for i, item in enumerate(array(value, here))]


def _read_part(value: Any, here: str, spoken_by_agent: bool) -> Part:
    part = {key: member for key, member in mapping(value, here).items() if member is not None}
    if part.get("type") is None:
        missing(f"{here}.type")
    kind = text(64)(part["type"], f"{here}.type")
    if kind in _TEXTS:
        if part.get("text") is None:
            missing(f"{here}.text")
        text()(part["text"], f"{here}.text")
        return _read_text(part, spoken_by_agent)
    match kind:
        case "refusal":
            text()(part.get("refusal"), f"{here}.refusal")
        case "input_image":
            _read_source(part, here, "image_url", "file_id")
            text(64)(part.setdefault("detail", "auto"), f"{here}.detail")  # who lists the item finds it there
        case "input_file":
            _read_source(part, here, "file_data", "file_url", "file_id")
        case "input_audio":
            audio = mapping(part.get("input_audio"), f"{here}.input_audio")
            text(min_length=1)(audio.get("data"), f"{here}.input_audio.data")
            choice("wav", "mp3")(audio.get("format"), f"{here}.input_audio.format")
        case _:
            pass
    return part


def _read_text(part: Part, spoken_by_agent: bool) -> Part:
    if not spoken_by_agent:
        return {**part, "type": "input_text"} if part["type"] in ("text", "output_text") else part
    whole = {**part, "type": "output_text"}
    for key in ("annotations", "logprobs"):
        if not isinstance(whole.get(key), list):
            whole[key] = []
    return whole


def _read_source(part: Part, here: str, *keys: str) -> None:
    given = [key for key in keys if part.get(key) is not None]
    if not given:
        invalid(here, f"expected one of {', '.join(repr(key) for key in keys)}.")
    for key in given:
        text(min_length=1)(part[key], f"{here}.{key}")


def chat_content(parts: list[Part]) -> str | list[ContentPart]:
    """Return `parts` as the content of a chat message; one part of text, and none at all, is plain text."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] in _TEXTS:
        return str(parts[0]["text"])
    return [_chat_part(part) for part in parts]


def _chat_part(part: Mapping[str, Any]) -> ContentPart:
    match part["type"]:
        case kind if kind in _TEXTS:
            return {"type": "text", "text": part["text"]}
        case "input_image" if part.get("image_url") is not None:
            return {"type": "image_url", "image_url": _given(part, url="image_url", detail="detail")}
        case "input_image":
            return {"type": "file", "file": _given(part, file_id="file_id")}
        case "input_file":
            names = {key: key for key in ("filename", "file_data", "file_url", "file_id")}
            return {"type": "file", "file": _given(part, **names)}
        case _:
            return dict(part)


def _given(part: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return those of the members that are there, under their new names."""
    return {new: part[old] for new, old in names.items() if part.get(old) is not None}
