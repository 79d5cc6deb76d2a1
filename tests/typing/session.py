"""What an agent can keep, as a type checker sees it. This file is checked, never run."""

from typing import Any, assert_type

from agentrun_server import AgentRequest, Message
from agentrun_server.core.session import Session
from agentrun_server.runs.sessions import StoredSession


def wait(request: AgentRequest) -> None:
    assert_type(request.session, Session | None)
    session = request.session
    assert session is not None
    assert_type(session.id, str)
    assert_type(session.load(5), list[Message])
    session.append(Message(role="user", content="Hi"), {"role": "assistant", "content": "Hi!"})
    session.append("Hi")  # type: ignore[arg-type]
    assert_type(session.get_state(), dict[str, Any])
    assert_type(session.update_state(city="Rome", visits=None), dict[str, Any])
    session.id = "other"  # type: ignore[misc]


async def do_not_wait(session: Session) -> None:
    assert_type(await session.load_async(limit=5), list[Message])
    await session.append_async({"role": "user", "content": "Hi"})
    assert_type(await session.update_state_async(city="Rome"), dict[str, Any])
    await session.clear_async()


def serve(stored: StoredSession) -> AgentRequest:
    return AgentRequest(session=stored)
