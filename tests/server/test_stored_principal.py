"""What is kept of a caller, and what comes back."""

import json
import math
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun_middleware.principal import Principal
from agentrun_server.server.resources import owner_of
from agentrun_server.server.stored_principal import StoredPrincipal, dump_principal, load_principal


def kept(principal: Any) -> StoredPrincipal | None:
    """Return what comes back of a principal, by way of JSON."""
    return load_principal(json.loads(json.dumps(dump_principal(principal))))


def test_nobody_is_nobody() -> None:
    assert dump_principal(None) is None
    assert load_principal(None) is None


def test_a_caller_of_the_middleware_comes_back_with_all_that_an_agent_can_ask() -> None:
    principal = Principal(
        subject="alice", issuer="https://issuer", scopes=frozenset({"b", "a"}), claims={"tenant": {"id": 7}}
    )
    found = kept(principal)
    assert found == StoredPrincipal("alice", "https://issuer", frozenset({"a", "b"}), {"tenant": {"id": 7}})
    assert owner_of(found) == owner_of(principal) == "https://issuer|alice"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SimpleNamespace(subject="a"), StoredPrincipal("a")),
        (SimpleNamespace(subject="a", scopes="x y"), StoredPrincipal("a", scopes=frozenset({"x", "y"}))),
        (SimpleNamespace(subject="a", scopes=["x", 1]), StoredPrincipal("a", scopes=frozenset({"x", "1"}))),
        (SimpleNamespace(subject="a", scopes=None, claims=None), StoredPrincipal("a")),
        (SimpleNamespace(subject=1, issuer=None, claims="x"), StoredPrincipal()),
    ],
)
def test_a_caller_of_another_middleware_is_kept_as_far_as_it_says(given: Any, expected: StoredPrincipal) -> None:
    assert kept(given) == expected


def test_claims_that_json_does_not_know_do_not_keep_a_run_from_being_stored() -> None:
    since = datetime(2026, 1, 2, tzinfo=UTC)
    found = kept(SimpleNamespace(subject="a", claims={"since": since, "groups": {"x"}, "rate": math.nan}))
    assert found is not None
    assert found.claims == {"since": str(since), "groups": ["x"], "rate": None}


def test_nothing_else_of_a_caller_is_kept() -> None:
    principal = SimpleNamespace(subject="a", token="secret", credential="secret", api_key="secret")
    assert "secret" not in json.dumps(dump_principal(principal))


def test_what_is_kept_does_not_change_with_the_caller() -> None:
    claims = {"tenant": 1}
    stored = dump_principal(SimpleNamespace(subject="a", claims=claims))
    claims["tenant"] = 2
    found = load_principal(stored)
    assert found is not None
    assert found.claims == {"tenant": 1}
