"""Runs a shipped file as it is, where it belongs, and asks it a few things: a program for a namespace of its own.

``unshare --mount --net python -m tests.deploy.nginx.in_place CONF``: /etc/nginx, /var/log/nginx and /run are empty
folders here, and nothing else listens on 80, 443, 8000 and 8001. Prints what came of it.
"""

import fcntl
import http.client
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.nginx import NGINX, make_certificate

_GET_FLAGS, _SET_FLAGS, _IS_UP = 0x8913, 0x8914, 0x1


class Replica(BaseHTTPRequestHandler):
    """Vouches for everybody, and says on which port it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"" if self.path == "/auth/verify" else str(self.connection.getsockname()[1]).encode()
        self.send_response(200 if body else 204)
        if body:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class calls it
        pass


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket.fileno(), _GET_FLAGS, request), 16)
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14s", b"lo", flags | _IS_UP, b""))


def _empty(folder: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)


def _ask(host: str, path: str, context: ssl.SSLContext | None) -> tuple[int, str]:
    connection = (
        http.client.HTTPSConnection(host, timeout=5, context=context)
        if context is not None
        else http.client.HTTPConnection(host, timeout=5)
    )
    connection.request("GET", path)
    answer = connection.getresponse()
    said = answer.status, answer.read().decode()
    connection.close()
    return said


def main(conf: str) -> None:
    """Put `conf` in place and run nginx as Debian does."""
    assert NGINX is not None
    command = (NGINX, "-e", "/var/log/nginx/error.log", "-c", "/etc/nginx/nginx.conf")  # as Debian's is compiled
    text = Path(conf).read_bytes()
    for folder in ("/etc/nginx", "/var/log/nginx", "/run"):
        _empty(folder)
    _loopback_up()
    trusted = ssl.create_default_context(cafile=str(make_certificate(Path("/etc/nginx/tls")) / "fullchain.pem"))
    Path("/etc/nginx/nginx.conf").write_bytes(text)
    for port in (8000, 8001):
        threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", port), Replica).serve_forever, daemon=True).start()
    tested = subprocess.run([*command, "-t"], check=True, capture_output=True, text=True).stderr
    subprocess.run([*command, "-g", "daemon on; master_process on;"], check=True, capture_output=True)
    try:
        said = {
            "tested": tested,
            "https": [_ask("localhost", "/v1/models", trusted) for _ in range(2)],
            "http": _ask("127.0.0.1", "/v1/models", None)[0],
            "http probe": _ask("127.0.0.1", "/readyz", None)[0],
            "ipv6 probe": _ask("[::1]", "/readyz", None)[0],
            "pid": Path("/run/nginx.pid").read_text("ascii").strip().isdigit(),
        }
    finally:
        subprocess.run([*command, "-s", "stop"], check=True, capture_output=True)
    lines = Path("/var/log/nginx/access.log").read_text("utf-8").splitlines()
    said["logged"] = [json.loads(line)["path"] for line in lines]
    said["errors"] = Path("/var/log/nginx/error.log").read_text("utf-8")
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
