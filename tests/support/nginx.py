"""A real nginx in front of real servers: the configuration that is shipped, on ports and in a folder of the test's.

Nothing of the file is changed but what ties it to a machine: addresses, paths, the user. Each of these is replaced
only where it stands as often as is expected, so that a test of another text than the shipped one cannot pass. What a
test changes on purpose, to see a trap bite, it says in `edits`, which are held to the same.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.clock import eventually, within
from tests.support.raw_client import CHAT, Headers, RawClient, Response, chat_body
from tests.support.serve import REPOSITORY

__all__ = [
    "APP_AUTH_CONF",
    "CONF",
    "KNOWN_WARNING",
    "NGINX",
    "ONE_WORKER",
    "InFront",
    "Nginx",
    "TLSClient",
    "edited",
    "make_certificate",
    "needs_nginx",
    "nginx",
    "placed",
    "shipped",
]

CONF = REPOSITORY / "deploy" / "nginx.conf"
APP_AUTH_CONF = REPOSITORY / "deploy" / "nginx-app-auth.conf"
SELF_SIGNED = REPOSITORY / "deploy" / "self-signed.sh"

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_nginx = pytest.mark.skipif(
    NGINX is None or shutil.which("openssl") is None, reason="nginx or openssl is not installed"
)

Edits = Mapping[str, str]

ONE_WORKER = {"worker_processes auto;": "worker_processes 1;"}
"""What is asked one after the other is done one after the other."""

KNOWN_WARNING = 'the "listen ... http2" directive is deprecated'
"""Of nginx 1.25 and newer; what it wants instead, 1.22 does not know."""

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def edited(text: str, edits: Edits) -> str:
    """Return `text` with each key of `edits` replaced by its value.

    Raises:
        AssertionError: a key does not stand in the text exactly once.
    """
    for old, new in edits.items():
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the configuration"
        text = text.replace(old, new)
    return text


def placed(text: str, folder: Path, certificate: Path, listen: Mapping[str, int], replicas: tuple[int, int]) -> str:
    """Return the shipped configuration `text` for `folder`, on the ports that `listen` gives for the file's addresses.

    Raises:
        AssertionError: what is to be replaced does not stand there as expected, or something of the machine is left.
    """
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in _TEMPORARY)
    text = edited(
        text,
        {
            "user www-data;": "user root;" if os.geteuid() == 0 else "",
            "pid /run/nginx.pid;": f"pid {folder}/pid;",
            "http {\n": f"http {{\n{temporary}",
            "access_log /var/log/nginx/access.log": f"access_log {folder}/access.log",
            "ssl_certificate /etc/nginx/tls/": f"ssl_certificate {certificate}/",
            "ssl_certificate_key /etc/nginx/tls/": f"ssl_certificate_key {certificate}/",
            **{f"listen {address} ": f"listen 127.0.0.1:{port} " for address, port in listen.items()},
        },
    )
    assert text.count("error_log /var/log/nginx/error.log") == 2
    text = text.replace("/var/log/nginx/", f"{folder}/")
    for shipped, port in zip((r"127.0.0.1:8000", r"127.0.0.1:8001"), replicas, strict=True):
        assert f"server {shipped}" in text
        text = text.replace(shipped, f"127.0.0.1:{port}").replace(re.escape(shipped), f"127.0.0.1:{port}")
    used = re.sub(r"^ *#.*| # .*", "", text, flags=re.MULTILINE).replace(str(folder), "").replace(str(certificate), "")
    left = re.findall(r".*(?:/etc/|/var/|/run/|\b800[01]\b|listen (?!127\.0\.0\.1:)).*", used)
    assert not left, f"not replaced: {left}"
    return text


_LISTEN = ("80", "[::]:80", "443", "[::]:443")


def make_certificate(folder: Path) -> Path:
    """Make a certificate as the shipped script does; return its folder."""
    subprocess.run([SELF_SIGNED, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


class TLSClient(RawClient):
    """A `RawClient` over TLS."""

    def __init__(self, port: int, trusted: ssl.SSLContext, *, receive_buffer: int | None = None) -> None:
        super().__init__(port, receive_buffer=receive_buffer)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = trusted.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await within(self._through(self._tls.do_handshake))
        return self

    async def send(self, data: bytes) -> None:
        """Send bytes, encrypted."""
        self._tls.write(data)
        await self._flush()

    async def receive(self, limit: float | None = None) -> bytes:
        """Return what comes next, empty at the end of the connection, whether it ends in good order or not."""
        reading = self._through(lambda: self._tls.read(65536))
        try:
            return await (within(reading) if limit is None else within(reading, limit))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def arrived(self) -> bytes:
        """Return what has come so far, without waiting for more."""
        data = b""
        with suppress(BlockingIOError):
            while received := self._socket.recv(65536):
                self._incoming.write(received)
        with suppress(ssl.SSLWantReadError):
            while read := self._tls.read(65536):
                data += read
        return data

    async def _flush(self) -> None:
        while data := self._outgoing.read():
            await super().send(data)

    async def _through(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result


class Nginx:
    """An nginx that runs. `port` speaks HTTPS, `http_port` HTTP."""

    def __init__(
        self, folder: Path, certificate: Path, listen: Mapping[str, int], process: asyncio.subprocess.Process
    ) -> None:
        self.folder = folder
        self.http_port = listen[_LISTEN[0]]
        self.port = listen[_LISTEN[2]]
        self.certificate = certificate / "fullchain.pem"
        self.trusted = ssl.create_default_context(cafile=str(self.certificate))
        self.listen = listen
        self._process = process

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"https://localhost:{self.port}"

    def client(self, *, receive_buffer: int | None = None) -> TLSClient:
        """Return a client; ``async with`` connects it."""
        return TLSClient(self.port, self.trusted, receive_buffer=receive_buffer)

    def plain_client(self) -> RawClient:
        """Return a client of the port of HTTP."""
        return RawClient(self.http_port)

    async def ask(self, method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> Response:
        """Make one request on a connection of its own; return the answer."""
        async with self.client() as client:
            await client.request(method, path, body, headers)
            return await client.response(head_only=method == "HEAD")

    async def chat(self, *, stream: bool = False, headers: Headers = (), **fields: Any) -> Response:
        """Make one Chat Completions request; return the answer."""
        return await self.ask("POST", CHAT, chat_body(stream=stream, **fields), headers)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes as they are over TLS, as many as it takes; return all that comes until it closes."""
        async with self.client() as client:
            with suppress(ConnectionError):
                await client.send(data)
            return await client.ended(20.0)

    async def has_caught_up(self) -> None:
        """Wait until it has done all there was to do: what one worker takes up later, it ends later.

        So with `ONE_WORKER` a test can tell that something has *not* come.
        """
        assert (await self.ask("GET", "/metrics")).status == 404

    # --- what it leaves behind

    def access_log(self) -> list[dict[str, Any]]:
        """Return the lines of the access log, decoded."""
        return [json.loads(line) for line in self.read_log("access").splitlines()]

    def read_log(self, name: str) -> str:
        """Return the access, error or start log."""
        return (self.folder / f"{name}.log").read_text("ascii")

    async def logged(self, **fields: Any) -> dict[str, Any]:
        """Wait for a line of the access log with these `fields`: it is written after the answer. Return it."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.access_log() if fields.items() <= line.items()]

        def check() -> None:
            assert found(), f"no {fields} in {self.access_log()}"

        await eventually(check)
        return found()[-1]

    # --- its processes

    @property
    def master(self) -> int:
        """The process that reads the configuration."""
        return self._process.pid

    def workers(self) -> set[int]:
        """Return the processes that serve, old ones included."""
        children = Path(f"/proc/{self.master}/task/{self.master}/children").read_text("ascii")
        return {int(child) for child in children.split() if _title(int(child)).startswith("nginx: worker process")}

    def temporary_files(self) -> list[str]:
        """Return the temporary files that are open: nginx unlinks them as soon as it has made them."""
        found = []
        for worker in self.workers():
            for descriptor in Path(f"/proc/{worker}/fd").iterdir():
                with suppress(FileNotFoundError):
                    target = str(descriptor.readlink())
                    if re.match(rf"{re.escape(str(self.folder))}/(?:{'|'.join(_TEMPORARY)})/", target):
                        found.append(target)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master: HUP reloads, QUIT stops when streams have ended."""
        self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait until nginx has come to its end, without an error."""
        assert self._process.stderr is not None
        said = (await within(self._process.stderr.read())).decode()
        assert await within(self._process.wait()) == 0, said
        assert not [line for line in said.splitlines() if KNOWN_WARNING not in line], said

    async def stop(self) -> None:
        """Stop at once."""
        if self._process.returncode is None:
            self.signal(signal.SIGTERM)
        await self.ended()


def _title(process: int) -> str:
    """Return what a process calls itself: a worker does so as soon as it serves."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text("utf-8")
    except FileNotFoundError:
        return ""


InFront = Callable[..., AbstractAsyncContextManager[Nginx]]
"""`nginx` with folder and certificate: takes the ports of the replicas, `conf` and `edits`."""


@asynccontextmanager
async def nginx(
    folder: Path, certificate: Path, *replicas: int, conf: Path = CONF, edits: Edits | None = None
) -> AsyncIterator[Nginx]:
    """Run nginx by the shipped `conf`, changed by `edits`, in front of the ports `replicas`: two, or one for both.

    Its ports are bound here and inherited, as by a new nginx from the one it replaces: nobody else can take them.
    """
    assert NGINX is not None
    first, second = replicas if len(replicas) == 2 else (*replicas, *replicas)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in _LISTEN]
    for listening in sockets:
        listening.setblocking(False)  # nginx takes it for granted; else a worker would wait for ever in `accept`
    try:
        listen: dict[str, int] = {at: s.getsockname()[1] for at, s in zip(_LISTEN, sockets, strict=True)}
        text = placed(edited(shipped(conf), edits or {}), folder, certificate, listen, (first, second))
        _clear(folder)
        (folder / "nginx.conf").write_text(text, "utf-8")
        process = await _start(folder, sockets)
    finally:
        for listening in sockets:
            listening.close()
    running = Nginx(folder, certificate, listen, process)
    try:
        expected = 1 if "worker_processes 1;" in text else os.sysconf("SC_NPROCESSORS_ONLN")

        def check() -> None:
            assert process.returncode is None, "nginx has ended"
            assert len(running.workers()) == expected

        await eventually(check)
        yield running
    finally:
        await running.stop()


def shipped(conf: Path) -> str:
    """Return the text of a shipped file."""
    return conf.read_text("utf-8")


def _clear(folder: Path) -> None:
    """Take away the logs of an nginx that ran here before."""
    for log in folder.glob("*.log"):
        log.unlink()


async def _start(folder: Path, sockets: Sequence[socket.socket]) -> asyncio.subprocess.Process:
    descriptors = [s.fileno() for s in sockets]
    assert NGINX is not None
    return await asyncio.create_subprocess_exec(
        NGINX,
        *("-p", str(folder), "-c", f"{folder}/nginx.conf", "-e", f"{folder}/start.log", "-g", "daemon off;"),
        env={**os.environ, "NGINX": "".join(f"{descriptor};" for descriptor in descriptors)},
        pass_fds=descriptors,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
