"""Every module has a test module at the same path, or says here which tests look at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"agentrun_server": ROOT, "agentrun_middleware": ROOT / "middleware"}

TESTED_BY = {
    # module → the test modules (below `tests/`) that prove it, because what it does is seen best from there
    "agentrun_server": ["test_public_api.py"],
    "agentrun_server.__main__": ["cli/test_commands.py"],
    "agentrun_server.cli": ["cli/test_commands.py"],
    "agentrun_server.runs.execution": ["server/test_attachment.py", "server/test_time_limits.py"],
    "agentrun_server.runs.failure": ["server/test_failures.py"],
    "agentrun_server.runs.pump": ["server/test_bursts.py", "server/test_slow_reader.py"],
    "agentrun_server.server.agents": ["server/test_app.py", "conformance/test_http.py"],
    "agentrun_server.server.asgi": ["server/test_app.py"],
    "agentrun_server.server.chat.handler": ["server/test_failures.py", "conformance/test_answers.py"],
    "agentrun_server.server.exchange": ["conformance/test_http.py"],
    "agentrun_server.server.fastapi_app": ["server/test_app.py"],
    "agentrun_server.server.handler": ["server/test_failures.py", "conformance/test_http.py"],
    "agentrun_server.server.http.head": ["server/http/test_protocol.py"],
    "agentrun_server.server.http.refusal": ["server/http/test_protocol.py"],
    "agentrun_server.server.chat.question": ["server/chat/test_runs.py", "conformance/test_answers.py"],
    "agentrun_server.server.chat.kept": ["server/chat/test_runs.py", "server/test_request_session.py"],
    "agentrun_server.server.protocols": ["server/test_app.py"],
    "agentrun_server.server.services": ["server/test_app.py"],
    "agentrun_server.storage": ["storage/test_contract.py"],
    "agentrun_server.storage.contracts": ["storage/test_contract.py"],
    "agentrun_server.storage.errors": ["storage/test_contract.py"],
    "agentrun_server.storage.local_bus": ["storage/test_bus.py"],
    "agentrun_server.storage.postgres_schema": ["storage/test_postgres.py"],
    "agentrun_server.storage.redis_bus": ["storage/test_bus.py"],
    "agentrun_server.storage.sqlite_schema": ["storage/test_sqlite.py"],
    "agentrun_server.testing": ["testing/test_testing_package.py"],
    "agentrun_server.testing.clients": ["testing/test_testing_package.py"],
    "agentrun_server.testing.exchange": ["testing/test_streaming_transport.py"],
    "agentrun_server.testing.fake_chat": ["testing/test_fake_openai.py"],
    "agentrun_server.testing.fake_checks": ["testing/test_fake_openai.py"],
    "agentrun_server.testing.fake_responses": ["testing/test_fake_openai.py"],
    "agentrun_server.testing.fake_wire": ["testing/test_fake_openai.py"],
    "agentrun_server.testing.gate": ["testing/test_testing_package.py"],
    "agentrun_server.testing.lifespan": ["testing/test_streaming_transport.py"],
    "agentrun_server.testing.serving": ["testing/test_testing_package.py"],
    "agentrun_server.testing.transport": ["testing/test_streaming_transport.py"],
    "agentrun_server.testing.turns": ["testing/test_fake_openai.py"],
    "agentrun_middleware": ["test_public_api.py"],
    "agentrun_middleware.asgi": ["middleware/test_authentication.py"],
}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module's name and the path its tests have by rule, below `tests/`."""
    for package, base in PACKAGES.items():
        top = Path() if package == "agentrun_server" else Path("middleware")
        for path in sorted((base / package).rglob("*.py")):
            parts = list(path.relative_to(base).with_suffix("").parts)
            if parts[-1] == "__init__":
                # A package whose module only says what it is needs no test.
                if sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip()) > 1:
                    yield ".".join(parts[:-1]), top / Path(*parts[1:-1], f"test_{parts[-2]}.py")
            else:
                yield ".".join(parts), top / Path(*parts[1:-1], f"test_{parts[-1]}.py")


def test_every_module_has_tests_of_its_own_or_says_where_they_are() -> None:
    untested = [
        f"{name}: no tests/{path}"
        for name, path in modules()
        if name not in TESTED_BY and not (ROOT / "tests" / path).is_file()
    ]
    assert not untested


def test_the_list_of_exceptions_holds_no_more_than_it_must() -> None:
    known = dict(modules())
    assert not TESTED_BY.keys() - known.keys() - {"agentrun_middleware"}, "these modules are gone"
    needless = [name for name in TESTED_BY if name in known and (ROOT / "tests" / known[name]).is_file()]
    assert not needless, "these have tests of their own now"


@pytest.mark.parametrize("name", TESTED_BY)
def test_the_tests_that_are_named_exist(name: str) -> None:
    assert TESTED_BY[name]
    for path in TESTED_BY[name]:
        assert (ROOT / "tests" / path).is_file(), path
