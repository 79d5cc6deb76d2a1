"""A real PostgreSQL for a test: Debian's, in a folder and processes of its own, on a Unix socket.

PostgreSQL refuses to run as root, so root runs it as the user ``postgres`` or ``nobody``. It can be stopped and started
again, with what it has.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["PostgresServer", "needs_postgres", "postgres_server"]


def _programs() -> Path | None:
    """Return the folder of the newest PostgreSQL."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found and (program := shutil.which("initdb")):
        found = [Path(program).parent]
    return max(found, key=lambda path: [int(part) for part in path.parts if part.isdigit()], default=None)


_PROGRAMS = _programs()

needs_postgres = pytest.mark.skipif(_PROGRAMS is None, reason="postgresql is not installed")


def _user() -> str | None:
    """Return whom it must run as; None: as who we are."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresServer:
    """A PostgreSQL that `postgres_server` starts and ends."""

    def __init__(self, folder: Path) -> None:
        self.url = f"postgresql://tester@/postgres?host={folder}"
        self._folder = folder
        self._user = _user()
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run(
            "initdb", "--pgdata", str(folder / "data"), "--username=tester", "--auth=trust", "--no-sync", "-E", "UTF8"
        )

    def start(self) -> None:
        """Start it; wait until it answers."""
        # No address, so nobody else can reach it. What is synced to the disk is not what these tests are about.
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off -c max_connections=60"
        log = str(self._folder / "log")
        self._run(
            "pg_ctl", "start", "--wait", "--pgdata", str(self._folder / "data"), "--log", log, "--options", options
        )

    async def database(self, name: str) -> str:
        """Make an empty database; return its URL."""
        import asyncpg  # type: ignore[import-untyped]

        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return self.url.replace("/postgres?", f"/{name}?")

    def stop(self) -> None:
        """End it at once, if it runs: connections are cut."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "--wait", "--mode=immediate", "--pgdata", str(self._folder / "data"))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its main process meanwhile: who connects gets no answer."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _run(self, program: str, *arguments: str) -> None:
        assert _PROGRAMS is not None
        subprocess.run(
            [_PROGRAMS / program, *arguments],
            user=self._user,
            extra_groups=[] if self._user is not None else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a PostgreSQL; it is ended at the end, and all it had is gone."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
