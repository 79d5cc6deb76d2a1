"""What an agent is given."""

import threading
import time
from typing import Any

import pytest

from agentrun_server.core.messages import Message
from agentrun_server.core.request import AgentRequest, Headers
from tests.conformance.requirements import requirement


class TestParameters:
    @requirement("chat.request.parameters")
    def test_a_parameter_is_an_attribute_only_when_it_was_sent(self) -> None:
        request = AgentRequest(params={"temperature": 0.5, "seed": 0})
        assert hasattr(request, "temperature")
        assert request.temperature == 0.5
        assert request.seed == 0
        assert not hasattr(request, "top_p")
        assert getattr(request, "top_p", 0.9) == 0.9
        assert "temperature" in dir(request)
        assert "top_p" not in dir(request)

    def test_a_missing_parameter_is_an_attribute_error_that_explains_itself(self) -> None:
        with pytest.raises(AttributeError, match="no 'top_p'; parameters are there only when the client sent them"):
            AgentRequest().top_p  # noqa: B018

    def test_private_names_are_never_parameters(self) -> None:
        assert not hasattr(AgentRequest(params={"_secret": 1}), "_secret")

    def test_unknown_fields_are_in_extra_and_nowhere_else(self) -> None:
        request = AgentRequest(extra={"top_k": 4})
        assert request.extra == {"top_k": 4}
        assert not hasattr(request, "top_k")


class TestDefaults:
    def test_a_request_can_be_built_with_messages_alone(self) -> None:
        request = AgentRequest([{"role": "user", "content": "Hi"}])
        assert request.messages == [Message(role="user", content="Hi")]
        assert isinstance(request.messages[0], Message)
        assert (request.protocol, request.model, request.stream) == ("openai", "", False)
        assert request.tools is request.tool_choice is request.response_format is request.metadata is None
        assert request.user is request.principal is request.deadline is None
        assert dict(request.params) == dict(request.extra) == dict(request.headers) == {}

    def test_messages_that_are_messages_are_kept(self) -> None:
        message = Message(role="user", content="Hi")
        assert AgentRequest([message]).messages[0] is message

    def test_two_requests_share_nothing_that_can_be_changed(self) -> None:
        first = AgentRequest()
        first.messages.append(Message(role="user", content="Hi"))
        assert AgentRequest().messages == []
        with pytest.raises(TypeError):
            AgentRequest().params["a"] = 1  # type: ignore[index]

    def test_no_other_attribute_can_be_set(self) -> None:
        with pytest.raises(AttributeError):
            AgentRequest().temprature = 1  # type: ignore[attr-defined] # a slip is noticed

    def test_its_repr_tells_nothing_of_what_was_said(self) -> None:
        request = AgentRequest(
            [{"role": "user", "content": "secret"}],
            model="m",
            request_id="req_1",
            headers=Headers([(b"authorization", b"Bearer secret")]),
        )
        assert repr(request) == "<AgentRequest req_1 model='m' messages=1>"

    def test_without_http_there_is_no_raw_request(self) -> None:
        with pytest.raises(RuntimeError, match="did not come over HTTP"):
            AgentRequest().raw_request  # noqa: B018


class TestCancellation:
    def test_a_request_is_cancelled_once_and_for_all(self) -> None:
        request = AgentRequest()
        assert not request.is_cancelled
        request._cancel()
        request._cancel()
        assert request.is_cancelled

    def test_waiting_ends_with_the_time_when_nothing_happens(self) -> None:
        assert AgentRequest().wait_cancelled(0.01) is False

    def test_waiting_ends_at_once_when_the_run_was_given_up_before(self) -> None:
        request = AgentRequest()
        request._cancel()
        started = time.monotonic()
        assert request.wait_cancelled(30) is True
        assert time.monotonic() - started < 5

    def test_waiting_is_woken_from_another_thread(self) -> None:
        request = AgentRequest()
        seen: list[bool] = []
        waiting = threading.Thread(target=lambda: seen.append(request.wait_cancelled(30)))
        waiting.start()
        request._cancel()
        waiting.join(10)
        assert seen == [True]
        assert request.wait_cancelled(30) is True


class TestDeadline:
    def test_without_a_limit_nothing_remains_to_be_told(self) -> None:
        assert AgentRequest().remaining() is None

    def test_the_remaining_time_shrinks_to_zero_and_not_below(self) -> None:
        assert 50 < (AgentRequest(deadline=time.monotonic() + 60).remaining() or 0) <= 60
        assert AgentRequest(deadline=time.monotonic() - 60).remaining() == 0


class TestHeaders:
    HEADERS = Headers([(b"x-a", b"1"), (b"accept", b"*/*"), (b"x-a", b"2"), (b"x-name", "é".encode("latin-1"))])

    def test_names_are_found_in_any_case(self) -> None:
        assert self.HEADERS["X-A"] == self.HEADERS["x-a"] == "1"
        assert "Accept" in self.HEADERS
        assert self.HEADERS.get("ACCEPT") == "*/*"

    def test_the_first_of_several_values_wins_and_all_can_be_had(self) -> None:
        assert self.HEADERS.getlist("x-a") == ["1", "2"]
        assert self.HEADERS.getlist("missing") == []

    def test_a_missing_header_is_a_key_error_or_the_default(self) -> None:
        with pytest.raises(KeyError, match="missing"):
            self.HEADERS["missing"]
        assert self.HEADERS.get("missing") is None
        assert self.HEADERS.get("missing", "no") == "no"

    def test_they_are_a_mapping_of_distinct_names(self) -> None:
        assert len(self.HEADERS) == 3
        assert dict(self.HEADERS) == {"x-a": "1", "accept": "*/*", "x-name": "é"}
        assert list(self.HEADERS) == ["x-a", "accept", "x-name"]

    @pytest.mark.parametrize("name", ["日本", "\ud800", "", "x-😀"])
    def test_a_name_that_cannot_be_a_header_is_simply_not_there(self, name: str) -> None:
        assert name not in self.HEADERS
        assert self.HEADERS.get(name) is None
        assert self.HEADERS.getlist(name) == []

    @pytest.mark.parametrize("other", [{}, {"x-a": "1", "accept": "*/*", "x-name": "é"}])
    def test_they_compare_like_any_mapping(self, other: dict[str, Any]) -> None:
        assert (other == self.HEADERS) is bool(other)
