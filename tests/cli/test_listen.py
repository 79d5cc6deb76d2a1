"""An address that cannot be listened on is told before anything is started."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrun_server.cli.listen import AddressError, check_address, clear_socket, free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def test_a_free_address_passes() -> None:
    check_address("127.0.0.1", 0)
    check_address("localhost", 0)


def test_a_taken_port_is_told(taken: int) -> None:
    with pytest.raises(AddressError, match=f"port {taken} of 127.0.0.1 is taken"):
        check_address("127.0.0.1", taken)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_told(host: str) -> None:
    with pytest.raises(AddressError, match=f"{host} is not an address of this machine"):
        check_address(host, 0)


def test_the_next_free_port_is_taken(taken: int) -> None:
    port = free_port("127.0.0.1", taken)
    assert port != taken
    check_address("127.0.0.1", port)


def test_when_all_ports_near_are_taken_the_system_chooses(taken: int) -> None:
    assert free_port("127.0.0.1", taken, attempts=1) not in {0, taken}


def test_no_port_is_free_on_another_machines_address() -> None:
    with pytest.raises(AddressError, match="is not an address of this machine"):
        free_port("192.0.2.1", 8000)


def test_a_socket_that_a_dead_server_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert path.exists()
    clear_socket(str(path))
    assert not path.exists()
    clear_socket(str(path))


def test_a_socket_on_which_a_server_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(AddressError, match="another server listens on"):
            clear_socket(str(path))
    assert path.exists()


def test_a_file_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(AddressError, match="is there already, and is no socket"):
        clear_socket(str(path))
    assert path.read_text() == "precious"
