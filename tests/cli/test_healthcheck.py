"""``agentrun-server healthcheck``: exit codes, one line, and an end to every wait."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentrun_server.cli.healthcheck import check, default_url, healthcheck_command
from tests.cli.processes import environment

SAID = {
    "/away": b'{"error": {"message": "The store cannot be reached.", "code": "not_ready"}}',
    "/long": b'{"error": {"message": "' + b"x" * 5000 + b'"}}',
    "/lines": b'{"error": {"message": "one\\ntwo"}}',
    "/other": b'{"error": "no"}',
    "/page": b"<html>",
}


class Probe(http.server.BaseHTTPRequestHandler):
    """A server that is alive and, by its path, ready or not."""

    def do_GET(self) -> None:
        ready = self.path in {"/readyz", "/livez"}
        body = SAID.get(self.path, b"")
        self.send_response(200 if ready else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def server() -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Probe)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join(10)
        httpd.server_close()


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_ready_server_is_healthy() -> None:
    with server() as url:
        result = CliRunner().invoke(healthcheck_command, [url])
    assert (result.exit_code, result.output) == (0, "")


def test_a_server_that_is_not_ready_is_one_line() -> None:
    with server() as url:
        result = CliRunner().invoke(healthcheck_command, [url, "--path", "/busy"])
        assert CliRunner().invoke(healthcheck_command, [url, "--path", "/livez"]).exit_code == 0
    assert (result.exit_code, result.stderr) == (1, "unhealthy: /busy answered 503\n")


def test_a_server_that_is_not_ready_says_why() -> None:
    with server() as url:
        result = CliRunner().invoke(healthcheck_command, [url, "--path", "/away"])
    assert result.stderr == "unhealthy: /away answered 503: The store cannot be reached.\n"


@pytest.mark.parametrize("path", ["/long", "/lines", "/other", "/page"])
def test_an_answer_of_something_else_is_not_repeated(path: str) -> None:
    with server() as url:
        assert check(url, path, timeout=5) == f"{path} answered 503"


def test_a_server_that_is_not_there_is_one_line() -> None:
    result = CliRunner().invoke(healthcheck_command, ["http://127.0.0.1:1"])
    assert (result.exit_code, result.stderr) == (1, "unhealthy: http://127.0.0.1:1: Connection refused\n")


def test_a_server_that_is_silent_is_given_up_in_time() -> None:
    with silent_server() as url:
        begun = time.monotonic()
        result = CliRunner().invoke(healthcheck_command, [url, "--timeout", "0.3"])
    assert (result.exit_code, result.stderr) == (1, "unhealthy: no answer within 0.3 s\n")
    assert time.monotonic() - begun < 2


def test_a_server_that_trickles_is_given_up_in_time() -> None:
    stop = threading.Event()

    def trickle(sock: socket.socket) -> None:
        connection, _ = sock.accept()
        with connection:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=trickle, args=(sock,))
        thread.start()
        begun = time.monotonic()
        problem = check(f"http://127.0.0.1:{sock.getsockname()[1]}", "/readyz", timeout=0.5)
        took = time.monotonic() - begun
        stop.set()
        thread.join(10)
    assert problem == "no answer within 0.5 s"
    assert took < 2


def test_something_that_is_no_http_server_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def answer() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        problem = check(f"http://127.0.0.1:{sock.getsockname()[1]}", "/readyz", timeout=5)
        thread.join(10)
    assert problem is not None


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port"])
def test_what_is_no_address_is_told(url: str) -> None:
    problem = check(url, "/readyz", timeout=5)
    assert problem is not None
    assert "is not an address" in problem


def test_an_address_needs_no_scheme() -> None:
    with server() as url:
        assert check(url.removeprefix("http://"), "/readyz", timeout=5) is None


def test_a_unix_socket_is_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
        sock.listen(1)

        def answer() -> None:
            connection, _ = sock.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n")
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = CliRunner().invoke(healthcheck_command, ["--uds", path])
        thread.join(10)
    assert (result.exit_code, result.output) == (0, "")
    gone = CliRunner().invoke(healthcheck_command, ["--uds", str(tmp_path / "gone.sock")])
    assert (gone.exit_code, gone.stderr) == (1, f"unhealthy: {tmp_path / 'gone.sock'}: No such file or directory\n")


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"HOST": "0.0.0.0", "AGENTRUN_PORT": "7"}, "http://127.0.0.1:7"),
        ({"AGENTRUN_HOST": "::"}, "http://[::1]:8000"),
        ({"AGENTRUN_HOST": "10.1.2.3"}, "http://10.1.2.3:8000"),
        ({"AGENTRUN_SSL_CERTFILE": __file__}, "https://127.0.0.1:8000"),
    ],
)
def test_by_default_the_server_of_the_same_environment_is_asked(environ: dict[str, str], url: str) -> None:
    assert default_url(environ) == url


def test_the_environment_decides_and_a_wrong_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as url:
        monkeypatch.setenv("PORT", url.rpartition(":")[2])
        assert CliRunner().invoke(healthcheck_command).exit_code == 0
    monkeypatch.setenv("AGENTRUN_PORT", "http")
    result = CliRunner().invoke(healthcheck_command)
    assert result.exit_code == 1
    assert result.stderr.startswith("unhealthy: AGENTRUN_PORT is not a valid value")


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from agentrun_server.cli.healthcheck import check\n"
        "check('http://127.0.0.1:1', '/readyz', timeout=5)\n"
        "heavy = [m for m in ('fastapi', 'pydantic', 'httpx2', 'starlette', 'uvicorn', 'uvloop') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
