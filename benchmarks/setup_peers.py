"""``python -m benchmarks.setup_peers [name …]``: make each peer an environment in ``benchmarks/.venvs``."""

import importlib.util
import shutil
import subprocess
import sys

from benchmarks.peers import VENVS, venv_python

__all__ = ["ENVIRONMENTS", "make"]

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    # uvloop and httptools are for the tuned variant alone; as shipped it runs on asyncio and h11.
    "agentrun_sdk": ("agentrun-sdk[server]==0.0.54", "uvloop", "httptools"),
    "litserve": ("litserve==0.2.19", "uvloop", "httptools"),
}
INSTALL_SECONDS = 900


def _uv() -> list[str] | None:
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    return [found] if found else None


def make(name: str) -> bool:
    """Make the environment `name` unless it is there; return whether it had to be made.

    Raises:
        subprocess.CalledProcessError: the installer failed; it has said why.
    """
    done = VENVS / name / ".complete"
    if done.exists():
        return False
    folder = VENVS / name
    python = str(venv_python(name))
    uv = _uv()
    if uv is not None:
        create = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        install = [*uv, "pip", "install", "--quiet", "--python", python]
    else:
        create = [sys.executable, "-m", "venv", "--clear", str(folder)]
        install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run(create, check=True, timeout=INSTALL_SECONDS)
    subprocess.run([*install, *ENVIRONMENTS[name]], check=True, timeout=INSTALL_SECONDS)
    done.touch()
    return True


def main() -> int:
    names = sys.argv[1:] or list(ENVIRONMENTS)
    unknown = [name for name in names if name not in ENVIRONMENTS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"{name}: {'made' if make(name) else 'is there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
