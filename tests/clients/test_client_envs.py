"""`scripts/client_envs.py`: environments are made once, made again when they must be, and never half."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts import client_envs


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment called ``empty`` that installs nothing, in a cache of the test's own."""
    directory = tmp_path / "envs"
    directory.mkdir()
    (directory / "empty.txt").write_text("# nothing\n")
    monkeypatch.setattr(client_envs, "REQUIREMENTS", directory)
    monkeypatch.setenv("AGENTRUN_TEST_CACHE", str(tmp_path / "cache"))
    return directory / "empty.txt"


@pytest.fixture
def made(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that were really made, in order."""
    directories: list[Path] = []
    make = client_envs._make_python

    def record(directory: Path, source: Path) -> None:
        directories.append(directory)
        make(directory, source)

    monkeypatch.setattr(client_envs, "_make_python", record)
    return directories


def test_an_environment_is_made_once_and_has_an_interpreter(made: list[Path], tmp_path: Path) -> None:
    interpreter = client_envs.python_environment("empty")

    assert client_envs.python_environment("empty") == interpreter
    assert made == [tmp_path / "cache" / "empty"]
    prefix = subprocess.run(
        [interpreter, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True, timeout=30
    )
    assert Path(prefix.stdout.strip()).resolve() == made[0].resolve()


def test_callers_at_the_same_time_share_one_environment(made: list[Path]) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        interpreters = list(pool.map(client_envs.python_environment, ["empty"] * 4))

    assert len(set(interpreters)) == 1
    assert len(made) == 1


def test_other_requirements_make_a_new_environment(made: list[Path], requirements: Path) -> None:
    stale = client_envs.python_environment("empty").with_name("stale")
    stale.touch()
    requirements.write_text("# nothing, in other words\n")

    client_envs.python_environment("empty")

    assert len(made) == 2
    assert not stale.exists()


def test_an_environment_left_half_made_is_made_again(made: list[Path], tmp_path: Path) -> None:
    half = tmp_path / "cache" / "empty" / "bin"
    half.mkdir(parents=True)
    (half / "python").touch()

    client_envs.python_environment("empty")

    assert len(made) == 1
    assert (half / "python").resolve().exists()


def test_a_failed_installation_says_why_and_leaves_no_stamp(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_envs, "_make_with_uv", client_envs._make_with_pip)  # uv may not be there yet
    requirements.write_text("./no/such/package\n")

    with pytest.raises(client_envs.InstallError, match="no/such/package"):
        client_envs.python_environment("empty")

    assert not (tmp_path / "cache" / "empty" / ".stamp").exists()


def test_an_unknown_name_is_refused(requirements: Path) -> None:
    with pytest.raises(client_envs.InstallError, match="'nobody'"):
        client_envs.python_environment("nobody")


def test_the_command_refuses_an_unknown_name() -> None:
    script = Path(client_envs.__file__)

    done = subprocess.run([sys.executable, script, "nobody"], capture_output=True, text=True, check=False, timeout=30)

    assert done.returncode == 2
    assert "there are" in done.stderr


def test_every_requirement_is_pinned() -> None:
    for path in client_envs.REQUIREMENTS.glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line for line in lines), path.name


def test_the_lock_file_names_no_registry() -> None:
    lock = (client_envs.NODE_PROJECT / "package-lock.json").read_text()

    assert '"resolved"' not in lock
    assert '"integrity"' in lock


def test_where_uv_fails_pip_makes_the_environment(
    made: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> str:
        raise client_envs.InstallError("no uv here")

    monkeypatch.setattr(client_envs, "_find_uv", broken)

    interpreter = client_envs.python_environment("empty")

    assert interpreter.exists()
    assert (tmp_path / "cache" / "empty" / ".stamp").exists()
