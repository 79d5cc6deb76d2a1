"""What worker and reload processes import."""

from pathlib import Path

import pytest

from agentrun_server import AgentRunServer
from agentrun_server.cli import worker


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_target_comes_from_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "src").mkdir()
    (project / "src" / "worker_mod.py").write_text("def make(): return lambda request: 'x'")
    monkeypatch.setenv(worker.TARGET, "worker_mod:make")
    monkeypatch.setenv(worker.APP_DIR, "src")
    monkeypatch.setenv(worker.FACTORY, "true")
    assert isinstance(worker.load(), AgentRunServer)


def test_without_a_target_the_usual_places_are_tried(project: Path) -> None:
    (project / "main.py").write_text("def agent(request): return 'x'")
    assert isinstance(worker.load(), AgentRunServer)


def test_a_worker_that_cannot_start_says_why_and_asks_not_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(worker.TARGET, "nowhere:agent")
    with pytest.raises(SystemExit) as caught:
        worker.load()
    from uvicorn.config import STARTUP_FAILURE

    assert caught.value.code == STARTUP_FAILURE
    assert capsys.readouterr().err.startswith("Error: there is no module 'nowhere'")


def test_the_import_string_leads_here() -> None:
    from uvicorn.importer import import_from_string

    assert import_from_string(worker.IMPORT_STRING) is worker.load
