import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest

from agentrun_middleware.asgi import Scope
from agentrun_middleware.principal import FrozenDict, Principal, freeze, is_issuer, is_scope, is_subject
from agentrun_middleware.state import principal_of, set_state
from tests.support.properties import EXAMPLES, any_text, json_values

# After `properties`: it says how often each property is tried.
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

UNSAFE = [
    "",
    " ",
    "a b",
    "a\tb",
    "a\n",
    "\na",
    "a\r\nb",
    "a\x00",
    "a\x7f",
    "é",
    "\N{CYRILLIC SMALL LETTER A}",
    "x" * 256,
]
NO_TEXT: list[object] = [None, 7, True, b"alice", ["alice"], {"alice": 1}]


class TestNames:
    @pytest.mark.parametrize("text", ["alice", "auth0|5f", "a@b.example", "user:1", "a/b", "a=b", "~a", "-", "x" * 255])
    def test_a_subject_is_a_short_word(self, text: str) -> None:
        assert is_subject(text)

    @pytest.mark.parametrize(
        "text", [*UNSAFE, 'a"b', "a'b", "a;b", "a,b", "a%0a", "<a>", "a\\b", "{a}", "a*", *NO_TEXT]
    )
    def test_what_could_do_harm_in_a_header_a_log_or_a_key_is_no_subject(self, text: object) -> None:
        assert not is_subject(text)

    @pytest.mark.parametrize("text", ["https://issuer.example/realms/a?b=c#d%20", "api_key", "urn:x:1", "x" * 255])
    def test_an_issuer_is_a_url_or_a_word(self, text: str) -> None:
        assert is_issuer(text)

    @pytest.mark.parametrize("text", [*UNSAFE, "https://issuer.example|mallory", "|", *NO_TEXT])
    def test_what_would_make_an_id_ambiguous_is_no_issuer(self, text: object) -> None:
        assert not is_issuer(text)

    @pytest.mark.parametrize("text", ["chat", "models:research", "models:*", "a/b:c.d", "!", "x" * 255])
    def test_a_scope_is_one_token(self, text: str) -> None:
        assert is_scope(text)

    @pytest.mark.parametrize("text", [*UNSAFE, 'a"b', "a\\b", *NO_TEXT])
    def test_what_rfc_6749_forbids_is_no_scope(self, text: object) -> None:
        assert not is_scope(text)

    @given(issuer=any_text, subject=any_text, other_issuer=any_text, other_subject=any_text)
    @settings(max_examples=EXAMPLES)
    def test_two_callers_never_have_one_id(
        self, issuer: str, subject: str, other_issuer: str, other_subject: str
    ) -> None:
        callers = [
            Principal(subject, issuer)
            for issuer, subject in ((issuer, subject), (other_issuer, other_subject), ("a", "b|c"), ("a|b", "c"))
            if is_issuer(issuer) and is_subject(subject)
        ]
        assert len({caller.id for caller in callers}) == len({(caller.issuer, caller.subject) for caller in callers})


class TestPrincipal:
    def test_its_id_names_issuer_and_subject(self) -> None:
        assert Principal("alice|1", "https://issuer.example").id == "https://issuer.example|alice|1"

    def test_it_has_scopes_if_it_has_each_of_them(self) -> None:
        principal = Principal("a", "i", frozenset({"chat", "files"}))
        assert principal.has([])
        assert principal.has(["chat"])
        assert principal.has(["files", "chat"])
        assert not principal.has(["chat", "admin"])
        assert not principal.has(["cha"])
        assert not Principal("a", "i").has(["chat"])

    def test_the_models_are_those_its_scopes_name(self) -> None:
        scopes = frozenset(
            {"chat", "models:research", "models:org/name:tag", "models:*", "Models:x", "xmodels:y", "models"}
        )
        assert sorted(Principal("a", "i", scopes).models()) == ["*", "org/name:tag", "research"]
        assert list(Principal("a", "i", frozenset({"chat"})).models()) == []

    def test_nobody_can_change_it(self) -> None:
        principal = Principal("a", "i")
        with pytest.raises(dataclasses.FrozenInstanceError):
            principal.subject = "root"  # type: ignore[misc]
        with pytest.raises((AttributeError, TypeError)):
            principal.admin = True  # type: ignore[attr-defined]

    def test_its_claims_are_not_shown(self) -> None:
        principal = Principal("a", "i", claims=freeze({"email": "canary"}))
        assert "canary" not in repr(principal)
        assert "canary" not in str(principal)
        assert "canary" not in f"{principal}"

    def test_equal_ones_are_one_key_of_a_dict(self) -> None:
        first, second = (Principal("a", "i", frozenset({"s"}), freeze({"x": [1]})) for _ in range(2))
        assert len({first, second}) == 1
        assert first != Principal("a", "i", frozenset({"s"}), freeze({"x": [2]}))

    def test_the_default_claims_are_empty_and_cannot_be_changed(self) -> None:
        claims: Any = Principal("a", "i").claims
        assert claims == {}
        with pytest.raises(TypeError, match="claims cannot be changed"):
            claims["admin"] = True


class TestFrozenDict:
    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.__setitem__("a", 2),
            lambda d: d.__delitem__("a"),
            lambda d: d.__ior__({"a": 2}),
            lambda d: d.update(a=2),
            lambda d: d.pop("a"),
            lambda d: d.popitem(),
            lambda d: d.setdefault("b", 2),
            lambda d: d.clear(),
            lambda d: setattr(d, "b", 2),
        ],
    )
    def test_nothing_changes_it(self, change: Any) -> None:
        frozen = FrozenDict(a=1)
        with pytest.raises((TypeError, AttributeError)):
            change(frozen)
        assert frozen == {"a": 1}

    def test_each_way_to_change_a_dict_is_known(self) -> None:
        reading = {
            "__class_getitem__", "__contains__", "__eq__", "__ge__", "__getattribute__", "__getitem__", "__gt__",
            "__hash__", "__init__", "__iter__", "__le__", "__len__", "__lt__", "__ne__", "__new__", "__or__",
            "__repr__", "__reversed__", "__ror__", "__sizeof__", "__doc__", "copy", "fromkeys", "get", "items", "keys",
            "values",
        }  # fmt: skip
        assert vars(dict).keys() - reading == {
            name for name in vars(FrozenDict) if name in vars(dict) and name != "__doc__"
        }

    @given(value=json_values)
    @settings(max_examples=EXAMPLES)
    def test_what_was_frozen_says_the_same_in_json(self, value: Any) -> None:
        assert json.dumps(freeze(value)) == json.dumps(value)

    @given(value=st.recursive(st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
    @settings(max_examples=EXAMPLES)
    def test_it_is_frozen_all_the_way_down(self, value: Any) -> None:
        def check(frozen: Any) -> None:
            assert type(frozen) in (int, tuple, FrozenDict)
            for member in frozen.values() if isinstance(frozen, dict) else frozen if isinstance(frozen, tuple) else ():
                check(member)

        check(freeze(value))

    def test_copies_are_equal_and_frozen(self) -> None:
        frozen = freeze({"a": [{"b": 1}]})
        for again in (copy.copy(frozen), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
            assert again == frozen
            assert type(again) is FrozenDict
        principal = Principal("a", "i", claims=frozen)
        assert pickle.loads(pickle.dumps(principal)) == copy.deepcopy(principal) == principal


class TestState:
    def test_only_a_principal_is_taken_for_one(self) -> None:
        principal = Principal("a", "i")
        scopes: list[Scope] = [{}, {"state": None}, {"state": {}}, {"state": {"principal": "root"}}]
        assert [principal_of(scope) for scope in scopes] == [None] * 4
        assert principal_of({"state": {"principal": principal}}) is principal

    def test_what_is_put_into_the_state_of_one_request_no_other_sees(self) -> None:
        shared = {"database": 1}
        one: Scope = {"state": shared}
        other: Scope = {"state": shared}
        set_state(one, "principal", Principal("a", "i"))
        assert shared == other["state"] == {"database": 1}
        assert one["state"]["database"] == 1
