import pytest

from agentrun_middleware.asgi import Scope
from agentrun_middleware.principal import Principal
from agentrun_middleware.state import PRINCIPAL, USAGE, principal_of, set_state

ALICE = Principal("alice", "https://issuer.example")


def test_the_keys_are_those_that_apps_read() -> None:
    assert (PRINCIPAL, USAGE) == ("principal", "usage")


@pytest.mark.parametrize("scope", [{}, {"state": {}}, {"state": None}])
def test_state_is_made_where_the_server_has_none(scope: Scope) -> None:
    set_state(scope, USAGE, {})
    assert scope["state"] == {"usage": {}}


def test_state_of_one_request_is_not_seen_by_another() -> None:
    of_the_lifespan = {"database": object()}
    first: Scope = {"state": of_the_lifespan}
    second: Scope = {"state": of_the_lifespan}
    set_state(first, PRINCIPAL, ALICE)
    assert first["state"] == {**of_the_lifespan, "principal": ALICE}
    assert second["state"] == of_the_lifespan
    assert list(of_the_lifespan) == ["database"]


def test_what_is_set_later_stands_beside_what_was_set_before_or_in_its_place() -> None:
    scope: Scope = {}
    set_state(scope, PRINCIPAL, ALICE)
    set_state(scope, USAGE, {})
    bob = Principal("bob", "https://issuer.example")
    set_state(scope, PRINCIPAL, bob)
    assert scope["state"] == {"principal": bob, "usage": {}}


def test_the_principal_is_whom_a_middleware_has_set() -> None:
    scope: Scope = {"state": {}}
    set_state(scope, PRINCIPAL, ALICE)
    assert principal_of(scope) is ALICE


@pytest.mark.parametrize("state", [{}, None, {"principal": None}, {"principal": "alice"}, {"user": ALICE}])
def test_nobody_is_calling_when_no_principal_was_set(state: dict[str, object] | None) -> None:
    assert principal_of({"state": state}) is None


def test_nobody_is_calling_without_a_state() -> None:
    assert principal_of({}) is None
