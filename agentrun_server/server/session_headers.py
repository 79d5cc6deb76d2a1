"""Which session a request belongs to.

Clients name a session in a header or in the request's `metadata`; see `session_key` for the names. A name is worth no
more than who says it: whose session it is comes from the principal. Front ends that serve many people with one
credential, as Open WebUI does, name the person too; that is believed when the settings say so, and only then.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError

__all__ = ["SESSION_HEADER", "SessionKey", "session_key"]

SESSION_HEADER: Final = b"x-conversation-id"
"""Header of every answer that belongs to a session; a client sends it back."""

_HEADERS: Final = ("X-Conversation-Id", "X-AgentRun-Conversation-ID", "X-AgentRun-Session-ID")
_TRUSTED_HEADER: Final = "X-OpenWebUI-Chat-Id"
_METADATA: Final = ("conversation_id", "session_id", "chat_id")
_USER_HEADERS: Final = ("X-OpenWebUI-User-Id", "X-AgentRun-User-ID")
_TASK_HEADER: Final = "X-OpenWebUI-Task"
"""Not sent by itself: Open WebUI's connections can be told to send it, as ``{{TASK}}``."""
_TEMPORARY: Final = re.compile(r"local(:.*)?", re.ASCII | re.DOTALL)
"""Open WebUI's id of a temporary chat, which many chats have one after the other."""
_ID: Final = re.compile(r"[\w.:@/-]{1,128}", re.ASCII)


class SessionKey(NamedTuple):
    """Which session it is."""

    id: str
    user: str
    """The end user, as a trusted front end names them; empty without one."""
    given: bool
    """The client has sent the id. False: it was made for this request."""
    remember: bool
    """What is said belongs into the memory: it is neither a temporary chat nor a task like finding a title."""


def session_key(
    headers: Headers, metadata: Mapping[str, Any] | None, *, trust: bool, new_id: Callable[[str], str]
) -> SessionKey:
    """Return the session that a request belongs to.

    The first that is there names it: the headers ``X-Conversation-Id``, ``X-AgentRun-Conversation-ID``,
    ``X-AgentRun-Session-ID``; of a trusted front end ``X-OpenWebUI-Chat-Id``; in `metadata` ``conversation_id``,
    ``session_id``, ``chat_id``. Empty ones are not there. Without any it is a new one.

    Args:
        headers: of the request.
        metadata: of the request's body.
        trust: believe the headers by which a front end names chats, tasks and end users.
        new_id: makes an unguessable id with the prefix it is given.

    Raises:
        InvalidRequestError: a name has not the form of an id, or comes twice and differs.
    """
    user = _first_of(headers, _USER_HEADERS) if trust else ""
    if trust and headers.get(_TASK_HEADER):
        return SessionKey(new_id("session_"), user, given=False, remember=False)
    name = _first_of(headers, _HEADERS)
    if not name and trust:
        chat = headers.get(_TRUSTED_HEADER, "")
        if _TEMPORARY.fullmatch(chat):
            return SessionKey(new_id("session_"), user, given=False, remember=False)
        name = _first_of(headers, (_TRUSTED_HEADER,))
    if not name and metadata:
        name = _first_in(metadata)
    if name:
        return SessionKey(name, user, given=True, remember=True)
    return SessionKey(new_id("session_"), user, given=False, remember=True)


def _first_of(headers: Headers, names: tuple[str, ...]) -> str:
    """Return the first of the headers `names` that is there, else an empty text."""
    for name in names:
        values = set(headers.getlist(name)) - {""}
        if len(values) > 1:
            raise InvalidRequestError(f"The header {name} comes several times, with different values.", param=name)
        if values:
            return _checked(values.pop(), f"header {name}", name)
    return ""


def _first_in(metadata: Mapping[str, Any]) -> str:
    for name in _METADATA:
        value = metadata.get(name)
        if value is not None and value != "":
            return _checked(value, f"metadata.{name}", f"metadata.{name}")
    return ""


def _checked(value: Any, what: str, param: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidRequestError(
            f"Invalid {what}: an id has 1 to 128 letters, digits and characters of '_.:@/-'.", param=param
        )
    return value
