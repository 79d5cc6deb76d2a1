"""``agentrun-server keys``: what is printed and where, what is refused, and that keys and peppers stay secret."""

import json
import os
import pty
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from starlette.middleware import Middleware

from agentrun_middleware.api_key import APIKeyVerifier
from agentrun_middleware.authentication import AuthenticationMiddleware
from agentrun_middleware.key_file import KeyFile
from agentrun_middleware.key_record import Pepper, id_of, new_key
from agentrun_server import AgentRequest, AgentRunServer
from agentrun_server.cli.keys import keys_command
from tests.cli.processes import LIMIT, command, environment
from tests.support.serve import serve

PEPPER = "pepper-canary-" + "p" * 32

DAY = 86400


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder of a project that keeps its keys in ``keys.json``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_FILE", "keys.json")
    return tmp_path


@pytest.fixture
def keys(project: Path) -> KeyFile:
    return KeyFile(project / "keys.json")


def run(*args: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(keys_command, args, input=stdin)


def done(*args: str, stdin: str = "") -> Result:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def created(*args: str) -> str:
    """Create a key; return it."""
    return done("create", *args).stdout.strip()


def listed(*args: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(done("list", "--json", *args).stdout)
    return shown


# --- create


def test_a_new_key_is_all_that_is_on_standard_output(project: Path, keys: KeyFile) -> None:
    result = command("keys", "create", "--name", "alice's laptop", "--scope", "chat", cwd=project)
    key = result.stdout.removesuffix("\n")
    key_id = id_of(key)
    assert (result.returncode, key_id) == (0, key[3:11]), result.stderr
    assert result.stderr == (
        f"Key {key_id} (alice's laptop) is in {project / 'keys.json'}.\n"
        f"Subject {key_id}, scopes: chat; it never ends. It is not shown again.\n"
    )
    assert {path.name for path in project.iterdir()} == {"keys.json", "keys.json.lock", "keys.json.pepper"}
    (record,) = keys.verified().records.values()
    assert record.hash == keys.pepper().hash(key)


def test_a_shell_can_take_the_key(project: Path, keys: KeyFile) -> None:
    script = f'KEY=$({sys.executable} -m agentrun_server keys create --name ci 2>/dev/null) && printf %s "$KEY" | wc -c'
    result = subprocess.run(
        ["sh", "-c", script], cwd=project, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert result.stdout.strip() == "44"
    assert len(keys.verified().records) == 1


def test_everything_that_was_said_is_in_the_record(keys: KeyFile) -> None:
    before = int(time.time())
    args = ("--name", "n", "--subject", "alice", "--scope", "chat", "--scope", "models:*", "--expires", "90d")
    key = created(*args)
    (record,) = keys.verified().records.values()
    assert (record.name, record.subject, record.scopes) == ("n", "alice", frozenset({"chat", "models:*"}))
    assert before <= record.created_at <= time.time()
    assert record.expires_at == record.created_at + 90 * DAY
    assert record.hint == key[-4:]


def test_json_holds_the_key_and_what_is_known_of_it() -> None:
    shown = json.loads(done("create", "--name", "laptop", "--json").stdout)
    assert id_of(shown["key"]) == shown["id"]
    assert set(shown) == {
        "key", "id", "name", "subject", "scopes", "created_at", "expires_at", "revoked_at", "hint"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("30m", 1800), ("24h", DAY), ("90d", 90 * DAY), ("36500d", 36500 * DAY), ("never", None)],
)
def test_a_lifetime_has_a_unit(text: str, seconds: int | None, keys: KeyFile) -> None:
    created("--name", "laptop", "--expires", text)
    (record,) = keys.read().records.values()
    assert record.expires_at == (None if seconds is None else record.created_at + seconds)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Give the key a name: --name TEXT."),
        (["--name", ""], "name: 1 to 100 printable characters"),
        (["--name", "a\x1b[2J"], "name: 1 to 100 printable characters"),
        (["--name", "x", "--subject", "a b"], "subject: 1 to 255 letters"),
        (["--name", "x", "--scope", "a b"], "scopes: a set of words"),
        (["--name", "x", "--expires", "90"], "'90' is not a time like 90d, 24h or 30m"),
        (["--name", "x", "--expires", "\u0663d"], "is not a time like"),
        (["--name", "x", "--expires", "-1d"], "is not a time like"),
        (["--name", "x", "--expires", "1.5d"], "is not a time like"),
        (["--name", "x", "--expires", "9999999999d"], "at most 36500d"),
        (["--name", "x", "--expires", "0d"], "a key that has expired is of no use"),
        (["--name", "x", "--grace", "1h"], "give --replaces ID too"),
        (["--replaces", "00000000", "--name", "x"], "takes name, subject and scopes of the one it replaces"),
        (["--replaces", "00000000", "--scope", "x"], "takes name, subject and scopes of the one it replaces"),
        (["--replaces", "laptop"], "An id has 8 digits and lower-case letters"),
    ],
)
def test_what_cannot_be_made_is_told(args: list[str], message: str, keys: KeyFile) -> None:
    result = run("create", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not keys.path.exists()


# --- create --replaces


def test_a_key_is_replaced_and_ends_after_the_grace(keys: KeyFile) -> None:
    old = created("--name", "laptop", "--subject", "alice", "--scope", "chat")
    result = done("create", "--replaces", old[3:11], "--grace", "2h")
    new = result.stdout.strip()
    records = keys.verified().records
    replaced, record = records[old[3:11]], records[new[3:11]]
    assert (record.name, record.subject, record.scopes) == ("laptop", "alice", frozenset({"chat"}))
    assert record.expires_at is None
    assert replaced.expires_at == record.created_at + 7200
    assert f"The key {replaced.id} that it replaces ends at " in result.stderr


def test_a_replaced_key_goes_on_for_a_day_unless_it_is_said(keys: KeyFile) -> None:
    old = created("--name", "laptop")
    new = created("--replaces", old[3:11])
    records = keys.read().records
    assert records[old[3:11]].expires_at == records[new[3:11]].created_at + DAY


def test_a_key_that_ends_is_not_replaced_by_one_that_never_does_unless_it_is_said(keys: KeyFile) -> None:
    old = created("--name", "laptop", "--expires", "90d")
    result = run("create", "--replaces", old[3:11])
    assert result.exit_code == 2
    assert "--expires 90d, or --expires never." in result.stderr
    assert len(keys.read().records) == 1
    for said, count in (("30d", 2), ("never", 3)):
        created("--replaces", old[3:11], "--expires", said)
        assert len(keys.read().records) == count


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda key_id: None, "has no key of this id"),
        (lambda key_id: done("revoke", key_id), "was revoked; make a new one without it"),
    ],
)
def test_what_cannot_be_replaced_is_told(arrange: Callable[[str], object], message: str, keys: KeyFile) -> None:
    key = created("--name", "laptop")
    arrange(key[3:11])
    result = run("create", "--replaces", key[3:11] if "revoked" in message else "00000000")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(keys.read().records) == 1


# --- list


def test_the_list_shows_everything_but_the_keys(keys: KeyFile) -> None:
    one = created("--name", "alice's laptop", "--subject", "alice", "--scope", "b", "--scope", "a")
    two = created("--name", "x", "--expires", "1d")
    done("revoke", two[3:11])
    head, *rows = done("list").stdout.splitlines()
    records = keys.read().records
    assert re.split(r"  +", head) == ["ID", "NAME", "SUBJECT", "SCOPES", "CREATED", "EXPIRES", "STATE", "HINT"]
    shown = records[one[3:11]].shown()
    assert re.split(r"  +", rows[0]) == [
        one[3:11], "alice's laptop", "alice", "a,b", shown["created_at"], "never", "active", f"...{one[-4:]}"
    ]  # fmt: skip
    shown = records[two[3:11]].shown()
    assert re.split(r"  +", rows[1]) == [
        two[3:11], "x", two[3:11], "-", shown["created_at"], shown["expires_at"], "revoked", f"...{two[-4:]}"
    ]  # fmt: skip
    for text in (done("list").output, done("list", "--json").output):
        for key in (one, two):
            assert key[12:] not in text
            assert records[key[3:11]].hash not in text


def test_json_holds_each_key_with_its_state(keys: KeyFile) -> None:
    key = created("--name", "laptop")
    assert listed() == [{**keys.read().records[key[3:11]].shown(), "state": "active"}]


def test_a_key_that_has_expired_says_so(project: Path) -> None:
    KeyFile(project / "keys.json", clock=lambda: time.time() - 100).create("laptop", expires_in=60)
    assert [shown["state"] for shown in listed()] == ["expired"]


def test_listing_and_revoking_need_no_pepper(keys: KeyFile) -> None:
    key = created("--name", "laptop")
    keys.pepper_path.unlink()
    assert len(listed()) == 1
    done("revoke", key[3:11])


# --- revoke


def test_a_key_is_revoked_and_may_be_again(keys: KeyFile) -> None:
    key_id = created("--name", "laptop")[3:11]
    first, second = done("revoke", key_id), done("revoke", key_id)
    assert re.fullmatch(rf"Key {key_id} \(laptop\) is revoked at 20.*Z\.\n", first.stderr)
    assert re.fullmatch(rf"Key {key_id} \(laptop\) was revoked before, at 20.*Z\.\n", second.stderr)
    assert first.stdout == second.stdout == ""
    assert keys.read().records[key_id].revoked_at is not None


def test_an_id_that_is_not_there_cannot_be_revoked(project: Path) -> None:
    created("--name", "laptop")
    result = command("keys", "revoke", "00000000", cwd=project)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: {project / 'keys.json'} has no key of this id\n"


@pytest.mark.parametrize("change", [lambda key: key, lambda key: key[:-1], lambda key: "x" + key, lambda key: key[12:]])
def test_a_key_in_place_of_an_id_is_refused_and_not_repeated(change: Callable[[str], str], keys: KeyFile) -> None:
    key = created("--name", "laptop")
    for args in (("revoke",), ("create", "--replaces")):
        result = run(*args, change(key))
        assert result.exit_code == 2
        assert key[12:-1] not in result.output
        assert "id" in result.stderr
    assert keys.read().records[key[3:11]].revoked_at is None


# --- hash


def test_a_key_is_hashed_for_a_store_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTRUN_AUTH_KEYS_FILE")
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER", PEPPER)
    key = new_key()
    result = done("hash", stdin=key + "\n")
    assert (result.stdout, result.stderr) == (Pepper(PEPPER).hash(key) + "\n", "")


def test_a_key_is_hashed_as_the_file_would(keys: KeyFile) -> None:
    key = created("--name", "laptop")
    expected = keys.read().records[key[3:11]].hash
    assert done("hash", stdin=key).stdout.strip() == expected
    assert done("hash", "--file", str(keys.path), stdin=key).stdout.strip() == expected


@pytest.mark.parametrize("text", ["", "hunter2", "sk-hunter2", "ar_hunter2", "\u0663" * 44, "ar_" * 400_000])
def test_what_is_no_key_is_not_hashed_and_not_repeated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER", PEPPER)
    result = run("hash", stdin=text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: this is no API key: ar_, 8 characters, _, 32 characters\n"


def test_a_terminal_does_not_show_the_key_that_is_typed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER", PEPPER)
    key = new_key()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "agentrun_server", "keys", "hash"],
        cwd=project,
        env=environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,  # without a terminal to open by name: what there is, is standard input
    ) as process:
        os.close(theirs)
        shown = b""
        while b"Key: " not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, key.encode() + b"\n")
        assert process.stdout is not None
        assert process.stdout.read().decode().strip() == Pepper(PEPPER).hash(key)
        assert process.wait(LIMIT) == 0
    try:
        while more := os.read(ours, 1024):
            shown += more
    except OSError:  # nobody writes to it any more
        pass
    os.close(ours)
    assert key[12:].encode() not in shown


# --- which file, which pepper


@pytest.mark.parametrize(
    "args", [("create", "--name", "x"), ("list",), ("revoke", "00000000"), ("hash",), ("create", "--replaces", "0" * 8)]
)
def test_without_a_file_it_is_told_how_to_name_one(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTRUN_AUTH_KEYS_FILE")
    result = run(*args)
    assert result.exit_code == 2
    for way in ("--file PATH", "AGENTRUN_AUTH_KEYS_PEPPER" if args[0] == "hash" else "AGENTRUN_AUTH_KEYS_FILE"):
        assert way in result.stderr


@pytest.mark.parametrize("args", [("list",), ("revoke", "00000000"), ("create", "--replaces", "00000000"), ("hash",)])
def test_a_file_that_is_not_there_is_told(args: tuple[str, ...], project: Path) -> None:
    result = run(*args, "--file", "typo.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(project / "typo.json") in result.stderr
    assert not list(project.iterdir())


def test_a_flag_names_another_file(project: Path, keys: KeyFile) -> None:
    created("--name", "laptop", "--file", "other.json")
    assert not keys.path.exists()
    assert len(listed("--file", str(project / "other.json"))) == 1


def test_commands_see_the_dot_env_of_the_server(project: Path, keys: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would hash under another pepper than the server does."""
    monkeypatch.delenv("AGENTRUN_AUTH_KEYS_FILE")
    (project / ".env").write_text(f"AGENTRUN_AUTH_KEYS_FILE=keys.json\nAGENTRUN_AUTH_KEYS_PEPPER={PEPPER}\n")
    key = created("--name", "laptop")
    assert not keys.pepper_path.exists()
    assert keys.read().records[key[3:11]].hash == Pepper(PEPPER).hash(key)
    assert done("hash", stdin=key).stdout.strip() == Pepper(PEPPER).hash(key)
    assert not [name for name in os.environ if name.startswith("AGENTRUN_AUTH")]


def test_a_pepper_can_come_from_a_file(project: Path, keys: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "secret").write_text(PEPPER + "\n")
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER_FILE", "secret")
    key = created("--name", "laptop")
    assert keys.read().records[key[3:11]].hash == Pepper(PEPPER).hash(key)


def test_another_pepper_than_that_of_the_file_is_refused(keys: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    created("--name", "laptop")
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER", PEPPER)
    result = run("create", "--name", "another")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {keys.path} was made with another pepper\n"
    assert PEPPER not in result.output


@pytest.mark.parametrize("args", [("create", "--name", "x"), ("hash",)])
def test_a_pepper_that_is_too_short_is_refused_and_not_repeated(
    args: tuple[str, ...], keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER", "hunter2")
    result = run(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "AGENTRUN_AUTH_KEYS_PEPPER" in result.stderr
    assert "at least 32 bytes" in result.stderr
    assert "hunter2" not in result.stderr
    assert not keys.path.exists()


def test_a_pepper_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_AUTH_KEYS_PEPPER_FILE", "/nowhere")
    result = run("create", "--name", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: AGENTRUN_AUTH_KEYS_PEPPER_FILE cannot be read")


def test_a_broken_file_is_told_and_left_as_it_is(keys: KeyFile) -> None:
    keys.path.write_text("{")
    for args in (("create", "--name", "x"), ("list",), ("revoke", "00000000")):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: {keys.path} is not JSON: see line 1\n"
    assert keys.path.read_text() == "{"


def test_a_file_that_others_can_read_is_warned_of(keys: KeyFile) -> None:
    key = created("--name", "laptop")
    keys.path.chmod(0o644)
    for args in (("list",), ("create", "--name", "x"), ("revoke", key[3:11])):
        assert f"Warning: {keys.path} may be read or changed by others: chmod 600 " in done(*args).stderr
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o644


# --- secrets


def test_no_option_or_argument_takes_a_key_or_a_pepper() -> None:
    """Command lines can be read by everybody on the machine (`ps`)."""
    ctx = click.Context(keys_command)
    names = {
        param.name
        for name in keys_command.list_commands(ctx)
        for param in (keys_command.get_command(ctx, name) or keys_command).params
    }
    assert names == {
        "name", "subject", "scopes", "expires", "replaces", "grace", "file", "env_file", "as_json", "key_id"
    }  # fmt: skip


def test_a_key_is_seen_where_it_is_printed_and_nowhere_else(project: Path) -> None:
    result = command("keys", "create", "--name", "laptop", cwd=project, env={"AGENTRUN_AUTH_KEYS_PEPPER": PEPPER})
    key = result.stdout.strip()
    hashed = command("keys", "hash", cwd=project, env={"AGENTRUN_AUTH_KEYS_PEPPER": PEPPER}, stdin=key)
    assert hashed.returncode == 0, hashed.stderr
    said = [result.stderr, hashed.stdout, hashed.stderr]
    said += [command("keys", "list", *args, cwd=project).stdout for args in ((), ("--json",))]
    said += [path.read_text() for path in project.iterdir()]
    for text in said:
        assert key[12:] not in text
        assert PEPPER not in text


# --- with a server that runs


async def test_a_running_server_sees_what_the_commands_did(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTRUN_AUTH_KEYS_FILE")  # the server would read the file by itself, by the clock on the wall
    now = 0.0

    def keys_of_the_shell(*args: str) -> str:
        result = command("keys", *args, "--file", "keys.json", cwd=project)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    async def agent(request: AgentRequest) -> str:
        return "hello"

    first = keys_of_the_shell("create", "--name", "first")
    verifier = APIKeyVerifier(project / "keys.json", clock=lambda: now)
    server = AgentRunServer(agent, middleware=[Middleware(AuthenticationMiddleware, verifiers=[verifier])])
    async with serve(server) as served:

        async def status(key: str) -> int:
            return (await served.chat(headers=[("authorization", f"Bearer {key}")])).status

        assert await status(first) == 200
        second = keys_of_the_shell("create", "--name", "second")
        assert await status(second) == 401
        now += 1
        assert await status(second) == 200
        keys_of_the_shell("revoke", first[3:11])
        now += 1
        assert [await status(first), await status(second)] == [401, 200]
