"""What `import agentrun_server` gives: complete, sorted, documented, and light."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agentrun_server

ROOT = Path(__file__).parents[1]
SDK_NAMES = {
    "AgentRunServer",
    "AgentRequest",
    "AgentEvent",
    "AgentResult",
    "EventType",
    "Message",
    "MessageRole",
    "Tool",
    "ToolCall",
    "ServerConfig",
    "ProtocolConfig",
    "OpenAIProtocolConfig",
    "ProtocolHandler",
    "BaseProtocolHandler",
    "OpenAIProtocolHandler",
    "MergeOptions",
    "AgentEventItem",
    "AgentResultItem",
    "AgentReturnType",
    "SyncAgentEventGenerator",
    "AsyncAgentEventGenerator",
    "SyncAgentResultGenerator",
    "AsyncAgentResultGenerator",
    "InvokeAgentHandler",
    "AsyncInvokeAgentHandler",
    "SyncInvokeAgentHandler",
}
"""What users of the AgentRun SDK import today."""

HEAVY = ("fastapi", "starlette", "pydantic", "httpx2", "uvicorn", "sse_starlette", "jwt", "anyio", "click", "openai")
"""What `import agentrun_server` must not import: each costs as much as the whole package, or more."""


def modules() -> list[ModuleType]:
    """Import and return every module of the package."""
    found = pkgutil.walk_packages(agentrun_server.__path__, "agentrun_server.")
    return [importlib.import_module(info.name) for info in found if not info.name.endswith("__main__")]


def imported_by(statement: str, names: tuple[str, ...]) -> list[str]:
    """Return which of `names` a fresh interpreter has imported after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "middleware")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


class TestNames:
    def test_all_is_sorted_and_says_nothing_twice(self) -> None:
        listed = agentrun_server.__all__
        assert len(set(listed)) == len(listed)
        assert listed == sorted(listed)
        for module in modules():
            names = getattr(module, "__all__", [])
            assert len(set(names)) == len(names), module.__name__

    def test_all_is_what_can_be_seen(self) -> None:
        visible = {
            name
            for name, value in vars(agentrun_server).items()
            if not name.startswith("_") and not isinstance(value, ModuleType)
        }
        borrowed = {
            "Any",
            "AsyncGenerator",
            "AsyncIterator",
            "Awaitable",
            "Callable",
            "Generator",
            "Iterator",
            "TypeAlias",
        }
        assert visible - borrowed == set(agentrun_server.__all__) - {"__version__", "events"}

    def test_every_name_the_sdk_has_is_there(self) -> None:
        assert not SDK_NAMES - set(agentrun_server.__all__)

    def test_what_a_module_lists_exists(self) -> None:
        for module in modules():
            for name in getattr(module, "__all__", ()):
                assert hasattr(module, name), f"{module.__name__}.{name}"

    def test_the_version_is_that_of_the_distribution(self) -> None:
        declared = [
            line.split('"')[1]
            for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
            if line.startswith("version = ")
        ]
        assert declared == [agentrun_server.__version__]


class TestDocumentation:
    def test_every_module_says_what_it_is(self) -> None:
        assert not [module.__name__ for module in modules() if not module.__doc__]

    def test_every_public_class_and_function_is_documented(self) -> None:
        missing = []
        for module in [agentrun_server, *modules()]:
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__.startswith("agentrun"):
                    missing += [f"{module.__name__}.{name}{m}" for m in undocumented(value)]
        assert not missing

    def test_every_setting_of_the_server_is_named_plainly_or_explained(self) -> None:
        """A field without a docstring must be one whose name says it all."""
        plain = {
            "openai", "first_event_timeout", "run_timeout", "on_disconnect", "max_concurrent_runs", "max_queued_runs",
            "queue_timeout", "max_body_bytes", "max_header_bytes", "max_header_count", "header_timeout",
            "max_messages", "access_log",
        }  # fmt: skip
        (tree,) = [
            node
            for node in ast.parse((ROOT / "agentrun_server/config.py").read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef) and node.name == "ServerConfig"
        ]
        unexplained = set()
        for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if not explained:
                    unexplained.add(node.target.id)
        assert unexplained <= plain


def undocumented(value: Any) -> list[str]:
    """Return what lacks a docstring: "" for the object itself, ".name" for a public method of its own."""
    missing = [] if value.__doc__ else [""]
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if isinstance(member, (staticmethod, classmethod)):
                member = member.__func__  # noqa: PLW2901 - the function inside
            if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                missing += [f".{name}"] if not member.__doc__ else []
    return missing


class TestWeight:
    @pytest.mark.parametrize(
        "statement",
        [
            "import agentrun_server",
            "from agentrun_server import AgentRunServer, AgentRequest, AgentEvent",
            "import agentrun_server; agentrun_server.AgentRunServer(lambda request: 'Hi')",
        ],
    )
    def test_to_import_and_to_build_a_server_imports_nothing_heavy(self, statement: str) -> None:
        assert imported_by(statement, HEAVY) == []

    def test_what_outlives_a_request_is_imported_when_it_is_used(self) -> None:
        """It is half of the package."""
        half = (
            "agentrun_server.runs.registry",
            "agentrun_server.server.keeper",
            "agentrun_server.storage.contracts",
            "agentrun_server.protocols.openai_responses",
            "sqlite3",
        )
        assert imported_by("import agentrun_server; agentrun_server.AgentRunServer(lambda request: 'Hi')", half) == []

    def test_the_vocabulary_needs_the_standard_library_alone(self) -> None:
        third_party = (*HEAVY, "pydantic_core", "typing_extensions", "uvloop", "httptools")
        assert imported_by("import agentrun_server.core.grammar, agentrun_server.core.request", third_party) == []

    def test_the_middleware_does_not_import_the_server(self) -> None:
        assert imported_by("import agentrun_middleware", ("agentrun_server",)) == []

    def test_the_command_line_is_light_until_it_serves(self) -> None:
        assert imported_by("import agentrun_server.cli", HEAVY) == []

    def test_the_testing_tools_are_imported_when_they_are_asked_for(self) -> None:
        assert imported_by("import agentrun_server.testing", HEAVY) == []
