"""Runs a page of the documentation from its first block to its last, as a reader would.

* A Python block that has the server's address in it is a client: it runs as a program against the server that the page
  has shown last. Any other is the reader's ``app.py``: when it defines ``server`` (or ``invoke_agent``, ``app``), that
  is served from then on, and must answer.
* A block with ``curl`` or ``agentrun-server keys`` runs; other commands are looked at: whether the file, the command
  and its options are there.
* A ``text`` or ``json`` block right under a client or a block that runs is what it prints. ``…`` stands for anything.

A comment above a block changes this: ``<!-- fails -->`` (the agent is one that fails), ``<!-- locked -->`` (the server
answers nobody without a credential), ``<!-- not run: why -->``.
"""

import asyncio
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from contextlib import AsyncExitStack, chdir
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from agentrun_server import AgentRunServer
from tests.docs.client_programs import ClientPrograms
from tests.docs.commands import check_command
from tests.docs.markdown import ROOT, Block
from tests.support.serve import Served, serve

__all__ = ["ADDRESS", "PageRun", "matches"]

ADDRESS = "http://127.0.0.1:8000"
"""The server in every example; replaced by where it really is."""

_LIMIT = 30.0

_RUNS = re.compile(r"^(?:\w+=\$\()?(?:curl|agentrun-server keys) ", re.MULTILINE)
"""Shell that is run, not only looked at."""


def matches(expected: str, printed: str) -> bool:
    """Tell whether `printed` is what the page says it is."""
    pattern = ".*?".join(map(re.escape, expected.strip().split("…")))
    return re.fullmatch(pattern, printed.strip().replace("\r\n", "\n"), re.DOTALL) is not None


class PageRun:
    """One run through one page. `folder` is the reader's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._clients = ClientPrograms(folder, _environment())
        self._served: Served | None = None
        self._printed = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._clients.aclose()
        await self._stack.aclose()

    async def run(self, block: Block) -> None:
        """Run or check one block."""
        if block.note.startswith("not run:"):
            return
        match block.language:
            case "python":
                await self._python(block)
            case "sh":
                await self._shell(block)
            case "js":
                self._printed = ""  # see test_readme.py
            case "text" | "json" if self._is_output(block):
                self._compare(block)
            case "json":
                json.loads(block.text)
            case "toml":
                tomllib.loads(block.text)
            case "dockerfile":
                for command in re.findall(r"^(?:HEALTHCHECK )?CMD (\[.*\])$", block.text, re.MULTILINE):
                    check_command(shlex.join(json.loads(command)), block.where)
            case "" | "text" | "console":
                for command in re.findall(
                    r"^(?:\$ )?((?:agentrun-server|uvicorn) .*?)(?=  |$)", block.text, re.MULTILINE
                ):
                    check_command(command, block.where)
            case other:
                raise AssertionError(f"{block.where}: nobody knows how to check {other!r}")

    # --- Python

    async def _python(self, block: Block) -> None:
        code = compile(block.text, block.where, "exec")
        if ADDRESS in block.text:
            (self._folder / "client.py").write_text(self._placed(block.text), "utf-8")
            self._printed = await self._client(block, "client.py")
            return
        module = ModuleType("app")
        (self._folder / "app.py").write_text(block.text, "utf-8")
        with chdir(self._folder):  # where the reader is
            exec(code, vars(module))
            app = _app_of(vars(module))
        if app is not None:
            await self._stack.aclose()
            self._served = await self._stack.enter_async_context(serve(app))
            if "locked" in block.note:
                await self._must_refuse(block)
            elif "fails" not in block.note and isinstance(app, AgentRunServer):
                await self._must_answer(block)

    async def _client(self, block: Block, name: str) -> str:
        try:
            printed, raised = await asyncio.wait_for(self._clients.run(name), _LIMIT)
        except TimeoutError:
            raise AssertionError(f"{block.where}: did not end within {_LIMIT} s") from None
        assert not raised, f"{block.where}: {raised}"
        return printed

    async def _must_refuse(self, block: Block) -> None:
        assert self._served is not None
        for response in (await self._served.ask("GET", "/v1/models"), await self._served.chat()):
            assert response.status == 401, f"{block.where}: {response.body!r}"

    async def _must_answer(self, block: Block) -> None:
        assert self._served is not None
        models = json.loads((await self._served.ask("GET", "/v1/models")).body)
        for stream in (False, True):
            for model in models["data"]:
                response = await self._served.chat(stream=stream, model=model["id"])
                assert response.status == 200, f"{block.where}: {response.body!r}"
                assert b'"error"' not in response.body, f"{block.where}: {response.body!r}"

    # --- shell

    async def _shell(self, block: Block) -> None:
        self._printed = ""
        if _RUNS.search(block.text):
            bounded = re.sub(r"^curl ", "curl --silent --show-error --max-time 20 ", block.text, flags=re.MULTILINE)
            # The same command, found where the package is but not its script.
            bounded = re.sub(r"\bagentrun-server ", "python -m agentrun_server ", bounded)
            self._printed = await self._program(block, "sh", "-c", self._placed(bounded))
            return
        for line in _lines(block.text):
            check_command(line, block.where)

    async def _program(self, block: Block, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self._folder,
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            printed, complaints = await asyncio.wait_for(process.communicate(), _LIMIT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"{block.where}: did not end within {_LIMIT} s") from None
        assert process.returncode == 0, f"{block.where}: {complaints.decode()}"
        return printed.decode()

    def _placed(self, text: str) -> str:
        if ADDRESS not in text:
            return text
        assert self._served is not None, "the page has shown no server yet"
        return text.replace(ADDRESS, self._served.url)

    # --- output

    def _is_output(self, block: Block) -> bool:
        before = block.follows
        if before is None:
            return False
        return (before.language == "python" and ADDRESS in before.text) or _RUNS.search(before.text) is not None

    def _compare(self, block: Block) -> None:
        if block.language == "json" and "…" not in block.text:
            assert json.loads(self._printed) == json.loads(block.text), block.where
            return
        expected, printed = block.text, self._printed
        if block.language == "json":  # written out over several lines, to be read
            expected = re.sub(r"\n\s*", " ", expected)
            printed = json.dumps(json.loads(printed))
            expected = re.sub(r"([\[{]) | (?=[\]}])", r"\1", expected)
        assert matches(expected, printed), f"{block.where} says\n{expected}\nand it is\n{printed}"


def _app_of(names: Mapping[str, Any]) -> Any:
    for name in ("app", "server"):
        if callable(names.get(name)) and not isinstance(names[name], type):
            return names[name]
    agent = names.get("invoke_agent")
    return AgentRunServer(invoke_agent=agent) if callable(agent) else None


def _lines(text: str) -> list[str]:
    """Return the commands of a block, each on one line."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "middleware")])
    # ``python`` is that of the environment in which the package is.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": paths, "no_proxy": "127.0.0.1"}
