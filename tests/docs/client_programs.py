"""Runs the client programs of a page, each in a namespace of its own and all in one process.

A process of its own for each would spend its time on importing the client. The child, which is this module as a
program, reads names of files and answers each with what that one has printed.
"""

import asyncio
import contextlib
import io
import json
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ClientPrograms"]

_LINE = 1024 * 1024
"""Bytes that a program may print."""


class ClientPrograms:
    """A process in `folder` that runs programs; it begins with the first."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, name: str) -> tuple[str, str]:
        """Run the file `name`; return what it has printed, and when it raised what there is to say of that."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error::SyntaxWarning", "-m", __name__),
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE,
            )
        writer, reader = self._process.stdin, self._process.stdout
        assert writer is not None
        assert reader is not None
        writer.write(f"{name}\n".encode())
        await writer.drain()
        line = await reader.readline()
        assert line, f"{name} has ended the process"
        printed, raised = json.loads(line)
        return printed, raised

    async def aclose(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.communicate()


def main() -> None:
    """Run the programs that are named on the standard input."""
    for line in sys.stdin:
        printed, complained, raised = io.StringIO(), io.StringIO(), ""
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            try:
                runpy.run_path(line.strip(), run_name="__main__")
            except BaseException:
                raised = complained.getvalue() + traceback.format_exc()
        print(json.dumps([printed.getvalue(), raised]), flush=True)


if __name__ == "__main__":
    main()
