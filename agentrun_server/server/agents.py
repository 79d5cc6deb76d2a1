"""Which agent answers to which model name."""

import time
from collections.abc import Mapping
from typing import Any

from agentrun_server.errors import ConfigurationError, NotFoundError
from agentrun_server.invoker.agent import Agent, AgentCallable

__all__ = ["DEFAULT_MODEL", "Agents"]

DEFAULT_MODEL = "agentrun"
"""Id of a single agent that was given no other; the AgentRun SDK uses the same."""


class Agents:
    """The agents of a server by model id. A single agent answers to any name, unless `strict`.

    Raises:
        ConfigurationError: there is none, or one that cannot be called.
    """

    def __init__(
        self,
        invoke_agent: AgentCallable | Mapping[str, AgentCallable],
        model_name: str | None,
        *,
        strict: bool,
    ) -> None:
        if isinstance(invoke_agent, Mapping):
            if not invoke_agent:
                raise ConfigurationError("invoke_agent is an empty mapping: there is no agent to serve")
            self._agents = {_model_id(name): Agent(target) for name, target in invoke_agent.items()}
            self._default: Agent | None = None
        else:
            agent = Agent(invoke_agent)
            self._agents = {_model_id(model_name or DEFAULT_MODEL): agent}
            self._default = None if strict else agent
        self._created = int(time.time())

    def find(self, model: str) -> Agent:
        """Return the agent that answers to `model`.

        Raises:
            NotFoundError: there is none (``model_not_found``).
        """
        agent = self._agents.get(model, self._default)
        if agent is None:
            raise NotFoundError(
                "The model does not exist or you do not have access to it. GET /v1/models lists what there is.",
                code="model_not_found",
            )
        return agent

    def describe(self, model: str) -> dict[str, Any]:
        """Return the model object of `model`.

        Raises:
            NotFoundError: it is not listed.
        """
        if model not in self._agents:
            raise NotFoundError("The model does not exist or you do not have access to it.", code="model_not_found")
        return {"id": model, "object": "model", "created": self._created, "owned_by": "agentrun-server"}

    def list(self) -> dict[str, Any]:
        """Return the list of all models."""
        return {"object": "list", "data": [self.describe(model) for model in self._agents]}

    @property
    def first(self) -> Agent:
        """The first agent: the one that protocols without model names run."""
        return next(iter(self._agents.values()))


def _model_id(name: object) -> str:
    if not isinstance(name, str) or not name or len(name) > 256:
        raise ConfigurationError("a model id must be a string of 1 to 256 characters")
    return name
