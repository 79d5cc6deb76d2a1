"""The front page: code first, the same in both languages, and its commands do what they say."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentrun_server import AgentRequest, AgentRunServer
from scripts.client_envs import node_environment
from tests.docs.markdown import ROOT, blocks, links, table_rows
from tests.docs.pages import ADDRESS
from tests.support.serve import serve

README = ROOT / "README.md"
CHINESE = ROOT / "README.zh-CN.md"


def test_an_agent_a_server_and_a_client_stand_on_the_first_screen() -> None:
    app, command, client = blocks(README)[:3]
    assert client.line + len(client.text.splitlines()) < 30
    assert len(app.text.splitlines()) <= 8
    assert len(client.text.splitlines()) <= 5
    assert command.text == "uvicorn app:server\n"


def test_both_languages_have_the_same_code_links_and_tables() -> None:
    def code(page: Path) -> list[tuple[str, str]]:
        return [(block.language, block.text) for block in blocks(page)]

    def targets(page: Path) -> list[str]:
        return sorted({CHINESE.name: README.name}.get(target, target) for target in set(links(page)) - {page.name})

    def shape(page: Path) -> list[int]:
        return [len(row) for row in table_rows(page)]

    def headings(page: Path) -> list[str]:
        return re.findall(r"^#+(?= )", page.read_text("utf-8"), re.MULTILINE)

    for same in (code, targets, shape, headings):
        assert same(README) == same(CHINESE), same.__name__


def test_both_languages_have_a_place_for_the_benchmarks() -> None:
    for page in (README, CHINESE):
        begin, end = (page.read_text("utf-8").index(f"<!-- benchmarks:{mark} -->") for mark in ("begin", "end"))
        assert begin < end


@pytest.mark.clients
async def test_the_node_client_streams_the_answer() -> None:
    [block] = [block for block in blocks(README) if block.language == "js"]
    environment = await asyncio.to_thread(node_environment)

    async def invoke_agent(request: AgentRequest) -> str:
        return f"Hello, {request.messages[-1].text}"

    async with serve(AgentRunServer(invoke_agent=invoke_agent)) as served:
        process = await asyncio.create_subprocess_exec(
            str(environment.executable),
            "--input-type=module",
            "--eval",
            block.text.replace(ADDRESS, served.url),
            cwd=environment.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert (printed.decode(), process.returncode) == ("Hello, world", 0), complaints.decode()


# --- the one command


def _clone(folder: Path) -> Path:
    """Copy what a clone of this repository would have of the package."""
    for name in ("agentrun_server", "middleware", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


@contextmanager
def _started(command: str, folder: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a shell command in a group of its own; afterwards none of it is left."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


@pytest.mark.clients
async def test_the_one_command_installs_and_serves_the_demo_and_the_second_talks_to_it(tmp_path: Path) -> None:
    install, chat = [block.text.strip() for block in blocks(README) if ".venv/bin/agentrun-server" in block.text]
    clone = _clone(tmp_path)
    (clone / "bin").mkdir()
    (clone / "bin" / "python3").symlink_to(_base_python())
    log = clone / "log"
    with _started(install, clone, log) as process:
        async with asyncio.timeout(300):
            while not (address := re.search(r"Uvicorn running on (http://127\.0\.0\.1:\d+)", log.read_text("utf-8"))):
                assert process.poll() is None, log.read_text("utf-8")
                await asyncio.sleep(0.1)
        talk = f"{chat.replace(ADDRESS, address[1])} --message 'What is 12 * (3 + 4)?'"
        answer = await asyncio.to_thread(
            subprocess.run, talk, shell=True, cwd=clone, capture_output=True, text=True, timeout=60
        )
        assert "84" in answer.stdout, answer.stderr
        packages = list((clone / ".venv").glob("lib/python*/site-packages/*.dist-info"))
        assert len(packages) <= 26, "the base install is small"
        os.killpg(process.pid, signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 20) in (0, 130, -signal.SIGINT)


def _base_python() -> Path:
    """The interpreter under any virtual environment, which has a pip of its own."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
