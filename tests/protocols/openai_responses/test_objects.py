"""The objects of the Responses API, whole."""

import pytest

from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, APIError, TooManyRequestsError
from agentrun_server.protocols.openai_responses import objects
from tests.protocols.openai_responses.answers import CREATED, call_of
from tests.support.responses_oracle import check_response

ITEMS = [{"type": "message", "id": "msg_1"}, {"type": "message", "id": "msg_2"}]


def test_a_response_repeats_the_request() -> None:
    call = call_of({"temperature": 0.5, "metadata": {"k": "v"}})
    response = objects.response(call.echo, id="resp_1", created_at=CREATED, status="queued")
    check_response(response)
    assert (response["temperature"], response["metadata"], response["status"]) == (0.5, {"k": "v"}, "queued")


def test_a_response_that_has_ended_has_a_usage() -> None:
    response = objects.response(
        call_of().echo,
        id="resp_1",
        created_at=CREATED,
        status="incomplete",
        usage=Usage(3, 4, 1, 2),
        incomplete_reason="max_output_tokens",
    )
    check_response(response)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 7,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AgentFailedError("No.", code="my_code"), "server_error"),
        (TooManyRequestsError("No."), "rate_limit_exceeded"),
    ],
)
def test_an_error_has_a_code_of_the_closed_list_and_one_of_its_own(error: APIError, code: str) -> None:
    assert objects.response_error(error) == {"code": code, "message": "No."}
    assert objects.error_event(error) == {
        "code": error.code,
        "message": "No.",
        "param": None,
        "error": {"message": "No.", "type": error.type, "param": None, "code": error.code},
    }


def test_a_tool_that_failed_says_why() -> None:
    content = [{"type": "text", "text": "No net."}]
    assert objects.tool_error("No net.") == {"type": "mcp_tool_execution_error", "content": content}


def test_a_list_names_its_ends() -> None:
    page = {"object": "list", "data": ITEMS, "has_more": True, "first_id": "msg_1", "last_id": "msg_2"}
    assert objects.item_list(ITEMS, has_more=True) == page
    empty = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert objects.item_list([], has_more=False) == empty


def test_the_small_ones() -> None:
    assert objects.response_deleted("resp_1") == {"id": "resp_1", "object": "response", "deleted": True}
    assert objects.conversation_deleted("conv_1") == {"id": "conv_1", "object": "conversation.deleted", "deleted": True}
    assert objects.input_tokens(3) == {"object": "response.input_tokens", "input_tokens": 3}
    conversation = {"id": "conv_1", "object": "conversation", "created_at": CREATED, "metadata": {"k": "v"}}
    assert objects.conversation("conv_1", CREATED, {"k": "v"}) == conversation
    compaction = objects.compaction("resp_1", CREATED, ITEMS, Usage(1, 2))
    assert (compaction["object"], compaction["output"], compaction["created_at"]) == (
        "response.compaction",
        ITEMS,
        CREATED,
    )
    assert compaction["usage"] == objects.usage_object(Usage(1, 2))
