"""Which agent answers to which model name, and who may use it.

Scopes like ``models:research`` limit a caller to the models they name; `ServerConfig.auth_model_scopes` says what goes
for callers without any. The refusal is the same whether a model exists or not, so it tells nobody what there is.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from agentrun_server.errors import ConfigurationError, NotFoundError, PermissionDeniedError
from agentrun_server.invoker.agent import Agent, AgentCallable
from agentrun_server.server.exchange import scopes_of

__all__ = ["DEFAULT_MODEL", "Agents"]

DEFAULT_MODEL = "agentrun"
"""Id of a single agent that was given no other; the AgentRun SDK uses the same."""

_SCOPE_PREFIX = "models:"
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}", re.ASCII)  # RFC 6749, section 3.3


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
        scopes_required: bool = False,
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
        self._scopes_required = scopes_required
        self._created = int(time.time())

    def find(self, model: str, principal: Any = None) -> Agent:
        """Return the agent that answers to `model` when `principal` asks.

        Raises:
            PermissionDeniedError: `principal` may not use it, or there is none and `principal` may not know that.
            NotFoundError: there is none (``model_not_found``).
        """
        agent = self._agents.get(model, self._default)
        if self._scopes_required or scopes_of(principal):
            # One agent answers to any name, but the scopes speak of its own.
            own = self.first_model if agent is not None and agent is self._default else model
            self._check_access(own, model, principal)
        if agent is None:
            raise NotFoundError(
                "The model does not exist or you do not have access to it. GET /v1/models lists what there is.",
                code="model_not_found",
            )
        return agent

    def _check_access(self, model: str, asked: str, principal: Any) -> None:
        allowed = self._allowed(principal)
        if allowed is not None and model not in allowed:
            scope = f', scope="{_SCOPE_PREFIX}{asked}"' if _SCOPE.fullmatch(asked) else ""
            raise PermissionDeniedError(
                "The model does not exist or you do not have access to it. GET /v1/models lists those you may use.",
                headers=((b"www-authenticate", f'Bearer realm="api", error="insufficient_scope"{scope}'.encode()),),
            )

    def _allowed(self, principal: Any) -> set[str] | None:
        """Return the models that `principal` may use, None for all of them."""
        scopes = scopes_of(principal)
        named = {scope[len(_SCOPE_PREFIX) :] for scope in scopes if scope.startswith(_SCOPE_PREFIX)}
        if "*" in named or not (named or self._scopes_required):
            return None
        return named

    def describe(self, model: str, principal: Any = None) -> dict[str, Any]:
        """Return the model object of `model`, for `principal`.

        Raises:
            PermissionDeniedError: as for `find`.
            NotFoundError: it is not listed.
        """
        self._check_access(model, model, principal)
        if model not in self._agents:
            raise NotFoundError("The model does not exist or you do not have access to it.", code="model_not_found")
        return {"id": model, "object": "model", "created": self._created, "owned_by": "agentrun-server"}

    def list(self, principal: Any = None) -> dict[str, Any]:
        """Return the list of the models that `principal` may use."""
        allowed = self._allowed(principal)
        models = [model for model in self._agents if allowed is None or model in allowed]
        return {"object": "list", "data": [self.describe(model, principal) for model in models]}

    @property
    def first_model(self) -> str:
        """The first model: the one that protocols without model names run."""
        return next(iter(self._agents))


def _model_id(name: object) -> str:
    if not isinstance(name, str) or not name or len(name) > 256:
        raise ConfigurationError("a model id must be a string of 1 to 256 characters")
    return name
