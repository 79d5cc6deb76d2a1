"""Every requirement has a test, and every test that names a requirement names one that exists."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.requirements import REQUIREMENTS, requirement

TESTS = Path(__file__).parents[1]


def named_ids(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the name of each test and the ids its `requirement` decorators name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "requirement":
                    for argument in decorator.args:
                        assert isinstance(argument, ast.Constant), f"{node.name}: write the id as a string"
                        yield node.name, str(argument.value)


def proofs() -> dict[str, list[str]]:
    """Return the tests of each id, from the text of all test files: none is imported for it."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "requirement" in text:
            for test, name in named_ids(ast.parse(text)):
                assert test.lower().startswith("test"), f"{path.name}: {test} is no test"
                found.setdefault(name, []).append(f"{path.name}::{test}")
    return found


def test_every_requirement_has_a_test() -> None:
    untested = sorted({name for name, entry in REQUIREMENTS.items() if entry.deferred is None} - proofs().keys())
    assert not untested, f"no test names {untested}"


def test_every_id_that_a_test_names_exists() -> None:
    unknown = sorted(proofs().keys() - REQUIREMENTS.keys())
    assert not unknown, f"no requirement is called {unknown}"


def test_a_deferred_requirement_has_no_test_and_a_reason() -> None:
    deferred = {name: entry.deferred for name, entry in REQUIREMENTS.items() if entry.deferred is not None}
    assert not deferred.keys() & proofs().keys(), "it is tested: it is not deferred any more"
    assert all(deferred.values())


def test_every_requirement_says_where_it_comes_from_and_what_must_be_seen() -> None:
    for name, entry in REQUIREMENTS.items():
        assert len(entry.source) > 5, name
        assert len(entry.behaviour) > 20, name


def test_a_test_cannot_name_a_requirement_that_does_not_exist() -> None:
    with pytest.raises(KeyError, match=r"chat\.stream\.role-twice"):
        requirement("chat.stream.role-once", "chat.stream.role-twice")
    with pytest.raises(KeyError):
        requirement()
