"""Whose run it is, for a run that another process takes over: the request and its principal are gone by then."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrun_server.protocols.json_text import dumps

__all__ = ["StoredPrincipal", "dump_principal", "load_principal"]


@dataclass(frozen=True, slots=True)
class StoredPrincipal:
    """What was known of a caller: the same names as `agentrun_middleware.principal.Principal` has."""

    subject: str = ""
    issuer: str = ""
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def id(self) -> str:
        """Name the caller uniquely: issuer and subject."""
        return f"{self.issuer}|{self.subject}"


def dump_principal(principal: Any) -> dict[str, Any] | None:
    """Return what of `principal` can be stored as JSON; never a credential.

    Claims that JSON does not know, as a middleware of a user's own may have made them, become what they say of
    themselves.
    """
    if principal is None:
        return None
    scopes = getattr(principal, "scopes", None) or ()
    claims = getattr(principal, "claims", None)
    return {
        "subject": _text(getattr(principal, "subject", "")),
        "issuer": _text(getattr(principal, "issuer", "")),
        "scopes": scopes.split() if isinstance(scopes, str) else sorted(str(scope) for scope in scopes),
        "claims": json.loads(dumps(dict(claims))) if isinstance(claims, Mapping) else {},
    }


def load_principal(stored: Mapping[str, Any] | None) -> StoredPrincipal | None:
    """Return the principal that `dump_principal` made `stored` from."""
    if stored is None:
        return None
    return StoredPrincipal(stored["subject"], stored["issuer"], frozenset(stored["scopes"]), dict(stored["claims"]))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
