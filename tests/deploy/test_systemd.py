"""The systemd unit: systemd understands all of it, and it agrees with the server and with nginx.conf."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from agentrun_server import ServerConfig
from tests.deploy.images import ROOT
from tests.docs.commands import check_command

UNIT = ROOT / "deploy/agentrun-server@.service"
TEXT = UNIT.read_text("utf-8")
PROGRAM = "/opt/agentrun/bin/agentrun-server"
systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def values(name: str) -> list[str]:
    """Return what the unit sets `name` to."""
    return re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)


def complaints(text: str, folder: Path) -> str:
    """Return what systemd has to say of a unit whose program is there."""
    (folder / UNIT.name).write_text(text.replace(PROGRAM, "/bin/true"), "utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(folder / "agentrun-server@8000.service")]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr


@systemd
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    assert complaints(TEXT, tmp_path) == ""
    assert "Unknown key" in complaints(TEXT.replace("ProtectHome", "ProtectHouse"), tmp_path)


@systemd
def test_the_unit_is_locked_in_as_the_page_says() -> None:
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNIT)], check=True, capture_output=True, text=True
    )
    found = re.search(r"Overall exposure level for \S+ ([\d.]+)", said.stdout)
    assert found is not None
    assert float(found[1]) <= 2.0
    assert re.search(r"its exposure\n?\s*1\.5 of 10", (ROOT / "docs/deployment.md").read_text("utf-8"))


def test_its_commands_are_ones_that_the_server_has() -> None:
    [start] = values("ExecStart")
    program, *rest = shlex.split(start.replace("%i", "8000"))
    assert program == PROGRAM
    check_command(shlex.join(["agentrun-server", *rest]), "ExecStart")
    [_, _, wait] = shlex.split(values("ExecStartPost")[0])
    asked = re.search(rf"until {PROGRAM} (healthcheck http://127\.0\.0\.1:%i) ", wait)
    assert asked is not None
    check_command(f"agentrun-server {asked[1]}", "ExecStartPost")


def test_its_names_are_the_ports_that_nginx_knows() -> None:
    enabled = re.search(r"enable --now (.*)$", TEXT, re.MULTILINE)
    assert enabled is not None
    ports = [unit.partition("@")[2] for unit in enabled[1].split()]
    nginx = (ROOT / "deploy/nginx.conf").read_text("utf-8")
    assert set(ports) == set(re.findall(r"server 127\.0\.0\.1:(\d+)\b", nginx))


def test_systemd_waits_until_streams_have_ended() -> None:
    config = ServerConfig()
    assert float(values("TimeoutStopSec")[0]) > config.drain_timeout + config.cancel_grace
    assert f"drain_timeout ({config.drain_timeout:g} s) and cancel_grace ({config.cancel_grace:g} s)" in TEXT
    assert values("KillMode") == ["mixed"]
    assert int(values("TasksMax")[0]) > config.max_sync_threads


def test_the_one_folder_that_it_may_write_to_is_where_the_server_stores() -> None:
    [home] = [text.partition("=")[2] for text in values("Environment") if text.startswith("AGENTRUN_HOME=")]
    assert [f"/var/lib/{name}" for name in values("StateDirectory")] == [home]
    assert values("StateDirectoryMode") == ["0700"]
    assert values("ProtectSystem") == ["strict"]
    assert not values("ReadWritePaths")
