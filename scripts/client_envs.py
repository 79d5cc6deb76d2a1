"""Make the environments of the third-party clients that `tests/clients` drives.

Clients that cannot be installed together get an environment each: one virtual environment for every requirement file in
`tests/clients/envs/`, and one `node_modules` from `tests/clients/node/package-lock.json`. They stand in
`.cache/clients/` (or ``$AGENTRUN_TEST_CACHE``), are made on first use, and made again when their requirement file, the
lock file or the interpreter changes.

    python scripts/client_envs.py               # all of them
    python scripts/client_envs.py openai3 node  # some of them

Safe to run many times at once: whoever comes first makes an environment, the others wait for it. A stamp, written last,
says that an environment is whole; one without its stamp is made again from nothing.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "clients" / "envs"
NODE_PROJECT = ROOT / "tests" / "clients" / "node"
OLDEST_NODE = 20
INSTALL_TIMEOUT = 900.0
"""Seconds after which an installation, or the wait for someone else's, is given up."""

NODE = "node"
_NODEJS, _UV = _TOOLS = "nodejs", "uv"  # no clients: what the others need, on machines that have it not


class InstallError(Exception):
    """An environment could not be made; the message holds what the installer said."""


@dataclass(frozen=True)
class NodeEnvironment:
    """Where the JavaScript clients are, and what runs them."""

    directory: Path
    """Holds `node_modules`. A script finds the packages when it lies in or below this directory."""
    executable: Path


def names() -> list[str]:
    """Return the names of all environments."""
    python = sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if path.stem not in _TOOLS)
    return [*python, NODE]


def cache_root() -> Path:
    """Return the directory under which environments are kept."""
    configured = os.environ.get("AGENTRUN_TEST_CACHE")
    return Path(configured).resolve() if configured else ROOT / ".cache" / "clients"


def python_environment(name: str) -> Path:
    """Return the interpreter of the environment `name`, which is made if it is not there."""
    requirements = REQUIREMENTS / f"{name}.txt"
    if not requirements.is_file():
        raise InstallError(f"no client environment is called {name!r}; there are {', '.join(names())}")
    directory = cache_root() / name
    stamp = _stamp(requirements.read_text(encoding="utf-8"), sys.version, sys.base_prefix)
    with _made_once(directory, stamp) as missing:
        if missing:
            _make_python(directory, requirements)
    return directory / "bin" / "python"


def node_environment() -> NodeEnvironment:
    """Return the environment of the JavaScript clients, which is made if it is not there."""
    executable = _node_executable()
    directory = cache_root() / NODE
    sources = [NODE_PROJECT / name for name in ("package.json", "package-lock.json")]
    stamp = _stamp(*(source.read_text(encoding="utf-8") for source in sources), _node_version(executable))
    with _made_once(directory, stamp) as missing:
        if missing:
            directory.mkdir(parents=True)
            for source in sources:
                shutil.copy(source, directory)
            # The command beside this very node, so that node and npm fit each other.
            search = f"{executable.parent}{os.pathsep}{os.environ.get('PATH', '')}"
            _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=directory, path=search)
    return NodeEnvironment(directory, executable)


def prepare(wanted: Iterable[str]) -> dict[str, float]:
    """Make the environments `wanted`, a few at a time; return the seconds each took."""

    def timed(name: str) -> tuple[str, float]:
        started = time.monotonic()
        if name == NODE:
            node_environment()
        else:
            python_environment(name)
        return name, time.monotonic() - started

    # npm takes longest, so it starts first.
    in_order = sorted(set(wanted), key=lambda name: (name != NODE, name))
    with ThreadPoolExecutor(max_workers=3) as pool:
        return dict(pool.map(timed, in_order))


def _make_python(directory: Path, requirements: Path) -> None:
    if requirements.stem == _UV:
        _make_with_pip(directory, requirements)
        return
    try:
        _make_with_uv(directory, requirements)
    except InstallError:
        # uv does not read pip's settings: an index that only pip knows is reached only by pip.
        shutil.rmtree(directory, ignore_errors=True)
        _make_with_pip(directory, requirements)


def _make_with_uv(directory: Path, requirements: Path) -> None:
    uv = _find_uv()
    interpreter = str(directory / "bin" / "python")
    _run([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(directory)])
    _run([uv, "pip", "install", "--quiet", "--python", interpreter, "-r", str(requirements)])


def _make_with_pip(directory: Path, requirements: Path) -> None:
    # Without ensurepip, which Debian packs apart: this interpreter's pip can install into an environment that has none.
    interpreter = str(directory / "bin" / "python")
    _run([sys.executable, "-m", "venv", "--without-pip", str(directory)])
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(requirements)])


def _find_uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    if beside.is_file():
        return str(beside)
    return shutil.which("uv") or str(python_environment(_UV).with_name("uv"))


def _node_executable() -> Path:
    found = shutil.which("node")
    if found and shutil.which("npm") and _major(_node_version(Path(found))) >= OLDEST_NODE:
        return Path(found)
    # PyPI carries Node.js too, which needs neither root nor a distribution that is new enough.
    return python_environment(_NODEJS).with_name("node")


def _node_version(executable: Path) -> str:
    return _run([str(executable), "--version"]).strip()


def _major(version: str) -> int:
    match = re.match(r"v(\d+)\.", version)
    return int(match[1]) if match else 0


def _stamp(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def _made_once(directory: Path, stamp: str) -> Iterator[bool]:
    """Yield whether the caller must fill `directory`, which then does not exist; nobody else does so meanwhile."""
    stamp_file = directory / ".stamp"
    if _read(stamp_file) == stamp:
        yield False
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f"{directory.name}.lock").open("w") as lock:
        _acquire(lock.fileno(), directory.name)
        if _read(stamp_file) == stamp:  # made while we waited
            yield False
            return
        if directory.exists():
            shutil.rmtree(directory)
        yield True
        stamp_file.write_text(stamp, encoding="utf-8")


def _acquire(lock: int, name: str) -> None:
    deadline = time.monotonic() + INSTALL_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InstallError(f"another process has been making {name} for too long") from None
            time.sleep(0.1)
        else:
            return


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _run(command: Sequence[str], *, cwd: Path | None = None, path: str | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    if path is not None:
        environment["PATH"] = path
    program = shutil.which(command[0], path=environment.get("PATH")) or command[0]
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=cwd,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=INSTALL_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise InstallError(f"{' '.join(command)}: {exc}") from exc
    if done.returncode:
        said = (done.stdout + done.stderr)[-4000:]
        raise InstallError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environments named on the command line."""
    parser = argparse.ArgumentParser(description="Make the environments of the clients that the tests drive.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names())}")
    wanted = parser.parse_args(arguments).names or names()
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names())}")
    try:
        took = prepare(wanted)
    except InstallError as exc:
        print(exc, file=sys.stderr)
        return 1
    for name, seconds in took.items():
        print(f"{name:16}{seconds:6.1f} s  {cache_root() / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
