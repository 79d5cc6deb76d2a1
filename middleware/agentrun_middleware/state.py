"""Where middleware and app meet: the keys of ``scope["state"]`` that both know, and nothing else.

* ``principal`` — set by an authentication middleware: who is calling, as a `Principal`.
* ``usage`` — a dict set by the rate limit when it limits tokens; the app writes ``total_tokens`` into it when it knows
  how many tokens the answer cost. An app that does not is charged for requests alone. In it, ``charge`` is a function
  that takes a number of tokens at once, during the request or after it: for work that outlives its request.
* ``request_id`` — set by whoever stands outermost, `RequestIDMiddleware` or the app itself; all others keep to it.
"""

from typing import Any, Final

from agentrun_middleware.asgi import Scope
from agentrun_middleware.principal import Principal

__all__ = ["CHARGE", "PRINCIPAL", "USAGE", "principal_of", "set_state"]

PRINCIPAL: Final = "principal"
USAGE: Final = "usage"
CHARGE: Final = "charge"


def set_state(scope: Scope, key: str, value: Any) -> None:
    """Put `value` into this request's state, which no other request sees.

    A copy, because servers may hand the dict of the lifespan itself to each request.
    """
    state = scope.get("state")
    scope["state"] = {**state, key: value} if state else {key: value}


def principal_of(scope: Scope) -> Principal | None:
    """Return who is calling, or None when no middleware of this package has authenticated the request."""
    state = scope.get("state")
    principal = state.get(PRINCIPAL) if state else None
    return principal if isinstance(principal, Principal) else None
