"""What handlers of requests share: made once for each server."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrun_server.config import ServerConfig
from agentrun_server.core.ids import IdSource
from agentrun_server.invoker.threads import Threads
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.server.admission import Admission
from agentrun_server.server.agents import Agents

if TYPE_CHECKING:
    from agentrun_server.runs.sessions import Sessions

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server."""

    config: ServerConfig
    agents: Agents
    admission: Admission
    threads: Threads
    sweeper: Sweeper
    new_id: IdSource
    sessions: "Sessions | None" = None
    """None: they are off."""
