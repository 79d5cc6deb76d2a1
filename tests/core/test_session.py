"""The shape of what an agent can keep."""

import inspect

import pytest

from agentrun_server.core.request import AgentRequest
from agentrun_server.core.session import Session

SYNC = [name for name, _ in inspect.getmembers(Session, inspect.isfunction) if not name.startswith("_")]
SYNC = [name for name in SYNC if not name.endswith("_async")]


def test_a_request_has_no_session_unless_it_is_given_one() -> None:
    assert AgentRequest().session is None


def test_these_are_the_methods() -> None:
    assert SYNC == ["append", "clear", "get_state", "load", "update_state"]


@pytest.mark.parametrize("name", SYNC)
def test_every_method_is_there_for_the_event_loop_too(name: str) -> None:
    method, twin = getattr(Session, name), getattr(Session, f"{name}_async")
    assert inspect.iscoroutinefunction(twin)
    assert inspect.signature(method) == inspect.signature(twin)
