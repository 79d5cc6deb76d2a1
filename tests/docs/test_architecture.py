"""docs/architecture.md names modules that are there, and leaves out none of those that decide something."""

import re

from tests.docs.markdown import ROOT, table_rows

PACKAGE = ROOT / "agentrun_server"
OTHERS = {"agentrun_middleware": ROOT / "middleware" / "agentrun_middleware"}

NOT_A_BOX = {
    "core/ids.py", "core/messages.py", "core/request.py", "core/session.py", "core/usage.py",  # values
    "observability/access_log.py", "observability/logs.py",
    "protocols/fields.py", "protocols/json_text.py", "protocols/schema.py",
    "protocols/openai_chat/schema.py", "protocols/openai_responses/schema.py",  # what /docs shows
    "server/asgi.py", "server/exchange.py", "server/services.py", "server/serve.py",
    "server/fastapi_app.py", "server/openai_routes.py", "server/protocols.py",  # see Choices
    "storage/postgres_schema.py", "storage/sqlite_schema.py",
}  # fmt: skip
"""Modules that the table of boxes leaves out."""


def named() -> set[str]:
    """Return the modules in the table of boxes, as paths in the package."""
    found: set[str] = set()
    for _, cell, _ in table_rows(ROOT / "docs" / "architecture.md"):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            path, _, stem = name.rpartition("/")
            folder = path or folder
            match = re.fullmatch(r"(\w*)\{([\w,]+)\}\.py|(\w+)\.py", stem)
            assert match is not None, name
            stems = [match[1] + end for end in match[2].split(",")] if match[2] else [match[3]]
            found |= {f"{folder}/{one}.py" for one in stems}
    return found


def test_every_module_in_the_table_is_there() -> None:
    for name in named():
        top, _, rest = name.partition("/")
        assert (OTHERS[top] / rest if top in OTHERS else PACKAGE / name).is_file(), name


def test_every_module_of_the_layers_stands_in_the_table() -> None:
    layers = ("core", "invoker", "observability", "protocols", "runs", "server", "storage")
    modules = {
        str(path.relative_to(PACKAGE))
        for layer in layers
        for path in (PACKAGE / layer).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules - named() - NOT_A_BOX == set()
