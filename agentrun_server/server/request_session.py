"""The session of one request: found before the agent runs, ended behind it."""

import asyncio
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from agentrun_server.config import ServerConfig
from agentrun_server.core.messages import Message
from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.runs.sessions import Sessions, StoredSession, what_was_said
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.resources import owner_of
from agentrun_server.server.services import Services
from agentrun_server.server.session_headers import SESSION_HEADER, session_key

__all__ = ["RequestSession", "name_session", "open_session"]


@dataclass(frozen=True, slots=True)
class RequestSession:
    """A session and what becomes of what is said."""

    session: StoredSession
    asked: Sequence[Message] | None
    """What the user says in this turn; None: nothing of it is to be remembered."""

    async def take_turn(self, run: str, config: ServerConfig) -> None:
        """Wait for the turn of the session.

        Raises:
            ConversationLockedError: it is not to be had.
            StorageError: the store cannot be reached.
        """
        await self.session.take_turn(run, wait=config.conversation_wait if config.conversation_busy == "wait" else 0.0)

    async def end(self, text: str, *, failed: bool) -> None:
        """Remember what was said, if it is to be, and give the turn back, whoever cancels this task meanwhile."""
        said: Sequence[Message] = ()
        if self.asked is not None and not failed:
            said = what_was_said(self.asked, text)
        await asyncio.shield(asyncio.ensure_future(self.session.end_turn(said)))


def open_session(
    services: Services, attachment: Attachment, request: AgentRequest, headers: Headers, *, conversation: str = ""
) -> RequestSession | None:
    """Give `request` its session, and the answer its id; None when sessions are off.

    Args:
        services: of the server.
        attachment: the request's.
        request: what the agent gets.
        headers: which may name the session.
        conversation: of the Responses API, which names it before all else.

    Raises:
        InvalidRequestError: what names the session has not the form of an id.
    """
    sessions: Sessions | None = services.sessions
    if sessions is None:
        return None
    key = session_key(headers, request.metadata, trust=services.config.trust_session_headers, new_id=services.new_id)
    identity = conversation or key.id
    request.session = session = sessions.open(
        identity, owner=owner_of(request.principal), user=key.user, given=key.given or bool(conversation)
    )
    name_session(attachment, identity)
    # A copy: agents add to the messages of their request, or change them.
    asked = deepcopy(what_was_said(request.messages, "")) if key.remember else None
    return RequestSession(session, asked)


def name_session(attachment: Attachment, identity: str) -> None:
    """Let the answer say whose session it is."""
    attachment.exchange.extra_headers = ((SESSION_HEADER, identity.encode()),)
