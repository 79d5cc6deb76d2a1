"""Which session a request belongs to."""

from collections.abc import Mapping

import pytest

from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.server.session_headers import SESSION_HEADER, SessionKey, session_key

CHAT = "0b9c2d8e-1d0f-4b5e-9a63-0d8a6d5c2f11"


def key(
    headers: Mapping[str, str] | list[tuple[str, str]],
    metadata: Mapping[str, object] | None = None,
    *,
    trust: bool = False,
) -> SessionKey:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    raw = Headers([(name.lower().encode(), value.encode("latin-1")) for name, value in pairs])
    return session_key(raw, metadata, trust=trust, new_id=lambda prefix: f"{prefix}new")


def given(session: str, user: str = "") -> SessionKey:
    return SessionKey(session, user, given=True, remember=True)


def made(user: str = "", *, remember: bool = True) -> SessionKey:
    return SessionKey("session_new", user, given=False, remember=remember)


@pytest.mark.parametrize("header", ["X-Conversation-Id", "X-AgentRun-Conversation-ID", "X-AgentRun-Session-ID"])
def test_a_header_names_the_session(header: str) -> None:
    assert key({header: CHAT}) == given(CHAT)


@pytest.mark.parametrize("name", ["conversation_id", "session_id", "chat_id"])
def test_the_metadata_names_the_session(name: str) -> None:
    assert key({}, {name: "chat/7", "topic": "bread"}) == given("chat/7")


def test_a_request_that_names_none_gets_a_new_one() -> None:
    assert key({}) == key({}, {}) == key({"X-Conversation-Id": ""}, {"chat_id": ""}) == made()


def test_the_first_that_is_there_counts() -> None:
    headers = {"X-Conversation-Id": "a", "X-AgentRun-Conversation-ID": "b", "X-AgentRun-Session-ID": "c"}
    metadata = {"conversation_id": "e", "session_id": "f", "chat_id": "g"}
    trusted = {"X-OpenWebUI-Chat-Id": "d"}
    for expected in "abc":
        assert key({**headers, **trusted}, metadata, trust=True) == given(expected)
        headers.pop(next(iter(headers)))
    assert key(trusted, metadata, trust=True) == given("d")
    for expected in "efg":
        assert key({}, metadata, trust=True) == given(expected)
        metadata.pop(next(iter(metadata)))


def test_what_names_a_person_is_believed_only_of_a_trusted_front_end() -> None:
    headers = {"X-OpenWebUI-Chat-Id": CHAT, "X-OpenWebUI-User-Id": "u-1", "X-OpenWebUI-Task": "title_generation"}
    assert key(headers) == made()
    assert key({"X-AgentRun-User-ID": "u-1", "X-Conversation-Id": "c"}) == given("c")
    assert key({"X-AgentRun-User-ID": "u-1", "X-Conversation-Id": "c"}, trust=True) == given("c", "u-1")


def test_open_webui_names_chat_and_person() -> None:
    headers = {"X-OpenWebUI-Chat-Id": CHAT, "X-OpenWebUI-User-Id": "u-1", "X-OpenWebUI-Task": ""}
    assert key(headers, trust=True) == given(CHAT, "u-1")


@pytest.mark.parametrize("chat", ["local", "local:", "local:EiO4bTe5Q8yWAAAB"])
def test_a_temporary_chat_of_open_webui_is_not_remembered(chat: str) -> None:
    headers = {"X-OpenWebUI-Chat-Id": chat, "X-OpenWebUI-User-Id": "u-1"}
    assert key(headers, {"chat_id": "other"}, trust=True) == made("u-1", remember=False)
    assert key({"X-Conversation-Id": "local"}, trust=True) == given("local")


def test_a_task_of_open_webui_is_no_part_of_the_chat() -> None:
    headers = {"X-OpenWebUI-Chat-Id": CHAT, "X-OpenWebUI-User-Id": "u-1", "X-OpenWebUI-Task": "title_generation"}
    assert key(headers, trust=True) == made("u-1", remember=False)


@pytest.mark.parametrize("value", ["a b", "é", "a\tb", "x" * 129, "a;b", '"', "a\r\nb", " q"])
@pytest.mark.parametrize(
    "header",
    [
        "X-Conversation-Id",
        "X-AgentRun-Session-ID",
        "X-OpenWebUI-Chat-Id",
        "X-OpenWebUI-User-Id",
        "X-AgentRun-User-ID",
    ],
)
def test_a_header_that_is_no_id_is_refused_by_name(header: str, value: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"Invalid header {header}") as refused:
        key({header: value}, trust=True)
    assert refused.value.status_code == 400
    assert refused.value.param == header
    assert value not in refused.value.message


@pytest.mark.parametrize("value", ["a b", "日本", "x" * 129, 7, ["a"]])
def test_metadata_that_is_no_id_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        key({}, {"session_id": value})
    assert refused.value.param == "metadata.session_id"


def test_a_header_that_comes_twice_must_say_the_same() -> None:
    name = "X-OpenWebUI-User-Id"
    assert key([(name, "u"), (name, "u"), (name, "")], trust=True).user == "u"
    with pytest.raises(InvalidRequestError, match=name):
        key([(name, "u"), (name, "v")], trust=True)


@pytest.mark.parametrize("value", ["x", "x" * 128, "a_B.0:@/-"])
def test_every_character_of_an_id_may_stand_in_a_header_of_the_answer(value: str) -> None:
    assert key({SESSION_HEADER.decode(): value}) == given(value)
