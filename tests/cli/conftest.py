"""A clean environment: these tests are about variables, and must not see those of the machine."""

import os
import sys
from collections.abc import Iterator

import pytest

_GENERAL = ("HOST", "PORT", "WEB_CONCURRENCY", "LOG_LEVEL", "OPENAI_API_KEY", "NO_COLOR")


@pytest.fixture(autouse=True)
def clean_environ() -> Iterator[None]:
    """Take our variables away, and put everything back afterwards: commands write into the environment.

    Where things are stored stays that of the test: see `tests.conftest`.
    """
    saved = dict(os.environ)
    for name in list(os.environ):
        if (name.startswith("AGENTRUN_") and name != "AGENTRUN_HOME") or name in _GENERAL:
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Forget the modules that a test's targets left behind."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("agentrun_server"):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if "pytest-of" in file or name.startswith("_agentrun_target_"):
                del sys.modules[name]
