"""Looks at an address before a server is started on it, so that a taken one is told in one line."""

import errno
import os
import socket
import stat
from pathlib import Path

__all__ = ["AddressError", "check_address", "clear_socket", "free_port"]


class AddressError(Exception):
    """The server could not listen there; the message says why."""


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        AddressError: the port is taken, needs more rights, or the address is not of this machine.
    """
    try:
        _bound(host, port).close()
    except OSError as exc:
        raise AddressError(_reason(exc, host, port)) from exc


def free_port(host: str, first: int, *, attempts: int = 20) -> int:
    """Return the first port from `first` on that is free, or one that the system chooses.

    Raises:
        AddressError: `host` cannot be listened on at all.
    """
    for port in (*range(first, min(first + attempts, 65536)), 0):
        try:
            with _bound(host, port) as sock:
                return int(sock.getsockname()[1])
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise AddressError(_reason(exc, host, port)) from exc
    raise AddressError(f"no port of {host} is free")


def clear_socket(path: str) -> None:
    """Remove the Unix socket that a server which is gone has left at `path`.

    Raises:
        AddressError: something else is there, or a server still listens.
    """
    try:
        is_socket = stat.S_ISSOCK(Path(path).stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise AddressError(f"cannot look at {path}: {exc.strerror}") from exc
    if not is_socket:
        raise AddressError(f"{path} is there already, and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except OSError as exc:
            raise AddressError(f"{path} is in use: {exc}") from exc
    raise AddressError(f"another server listens on {path}")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # As the server itself does: connections of a server that has just ended do not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1)  # Linux lets two bind with SO_REUSEADDR, as long as none listens
    except OSError:
        sock.close()
        raise
    return sock


def _reason(exc: OSError, host: str, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; choose another with --port, or --port 0 for any"
    if exc.errno == errno.EACCES:
        return f"port {port} needs more rights; ports from 1024 on do not"
    if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    return f"cannot listen on {host}, port {port}: {os.strerror(exc.errno) if exc.errno else exc}"
