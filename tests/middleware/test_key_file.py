"""The file of API keys: what is in it, who may read it, and what happens to it when things go wrong."""

import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun_middleware import key_file
from agentrun_middleware.key_file import KeyFile, KeyFileError, KeyFileMissingError, UnknownKeyError
from agentrun_middleware.key_record import Pepper, new_pepper
from tests.support.clock import LIMIT
from tests.support.serve import REPOSITORY

NOW = 1_800_000_000
"""2027-01-15T08:00:00Z"""


class Clock:
    """Seconds since 1970, which pass when the test says so."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def contents(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return parsed


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the file as people do."""
    parsed = contents(path)
    edit(parsed)
    path.write_text(json.dumps(parsed), encoding="utf-8")


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "middleware")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- the file


def test_the_first_key_makes_file_and_pepper_that_only_the_owner_can_read(path: Path) -> None:
    for mask in (0, 0o777):
        with umask(mask):
            new = KeyFile(path).create("laptop")
        assert (mode(path), mode(Path(f"{path}.pepper"))) == (0o600, 0o600)
        assert KeyFile(path).verified().records == {new.record.id: new.record}
        for made in path.parent.iterdir():
            made.unlink()


def test_nobody_else_can_read_what_is_being_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real_fchmod = os.fchmod

    def fchmod(descriptor: int, bits: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real_fchmod(descriptor, bits)

    monkeypatch.setattr(os, "fchmod", fchmod)
    with umask(0):
        KeyFile(path).create("laptop")
    assert modes == [0o600, 0o600]  # pepper and keys, before anything was written
    assert mode(Path(f"{path}.lock")) == 0o600


def test_neither_key_nor_pepper_is_in_the_file(path: Path) -> None:
    keys = KeyFile(path)
    new = keys.create("laptop")
    everything = b"".join(made.read_bytes() for made in path.parent.iterdir() if made.suffix != ".pepper")
    assert new.key.encode() not in everything
    assert new.key[12:].encode() not in everything
    assert keys.pepper_path.read_bytes().strip() not in everything
    assert keys.pepper().hash(new.key).encode() in everything


def test_a_new_key_does_not_show_itself(path: Path) -> None:
    new = KeyFile(path).create("laptop")
    assert new.key not in repr(new)
    assert new.key[12:] not in repr(new)


def test_the_file_is_one_that_people_can_read(path: Path) -> None:
    new = KeyFile(path, clock=Clock()).create("研究", subject="alice", scopes=["chat"], expires_in=90 * 86400)
    text = path.read_text(encoding="utf-8")
    assert contents(path)["keys"] == [
        {
            "id": new.record.id,
            "name": "研究",
            "subject": "alice",
            "scopes": ["chat"],
            "created_at": "2027-01-15T08:00:00Z",
            "expires_at": "2027-04-15T08:00:00Z",
            "revoked_at": None,
            "hint": new.key[-4:],
            "hash": new.record.hash,
        }
    ]
    assert "研究" in text
    assert text.count("\n") > 10


def test_every_record_comes_back_as_it_went_in(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(path, clock=clock)
    records = [
        keys.create("one").record,
        keys.create("two", subject="bob", scopes={"chat", "models:*"}, expires_in=60).record,
        keys.create("one").record,
    ]
    records[0] = keys.revoke(records[0].id)
    assert list(KeyFile(path).verified().records.values()) == records


def test_a_pepper_that_is_given_needs_no_file(path: Path) -> None:
    pepper = new_pepper()
    keys = KeyFile(path, pepper)
    new = keys.create("laptop")
    assert not keys.pepper_path.exists()
    assert new.record.hash == Pepper(pepper).hash(new.key)
    assert KeyFile(path, Pepper(pepper)).verified().records


def test_ids_are_never_given_twice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "ar_0123abcd_" + "x" * 32
    made = iter([first, first, first, "ar_0123abce_" + "x" * 32])
    monkeypatch.setattr(key_file, "new_key", lambda: next(made))
    keys = KeyFile(path)
    assert [keys.create("a").record.id, keys.create("b").record.id] == ["0123abcd", "0123abce"]


@pytest.mark.parametrize(
    "arguments",
    [{"name": ""}, {"name": "x", "subject": "a b"}, {"name": "x", "scopes": ["a b"]}, {"name": "x", "scopes": "chat"}],
)
def test_a_key_that_cannot_be_is_not_made(arguments: dict[str, Any], path: Path) -> None:
    keys = KeyFile(path)
    with pytest.raises(ValueError, match=r"^(name|subject|scopes): "):
        keys.create(**arguments)
    assert not path.exists()


# --- revoking and replacing


def test_a_key_is_revoked_once_and_for_ever(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(path, clock=clock)
    key_id = keys.create("laptop").record.id
    clock.now += 10
    assert keys.revoke(key_id).revoked_at == NOW + 10
    clock.now += 10
    before = path.stat()
    assert keys.revoke(key_id).revoked_at == NOW + 10
    assert path.stat() == before
    assert keys.read().records[key_id].state(clock()) == "revoked"


def test_revoking_needs_no_pepper(path: Path) -> None:
    keys = KeyFile(path)
    key_id = keys.create("laptop").record.id
    keys.pepper_path.unlink()
    assert KeyFile(path).revoke(key_id).revoked_at is not None


def test_a_key_that_is_not_there_cannot_be_revoked_or_replaced(path: Path) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    with pytest.raises(UnknownKeyError):
        keys.revoke("00000000")
    with pytest.raises(UnknownKeyError):
        keys.replace("00000000", grace=60)


def test_a_key_is_replaced_by_one_like_it_and_ends_after_the_grace(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(path, clock=clock)
    old = keys.create("laptop", subject="alice", scopes=["chat"])
    clock.now += 100
    new = keys.replace(old.record.id, grace=3600, expires_in=7200)
    assert new.key != old.key
    assert (new.record.name, new.record.subject, new.record.scopes) == ("laptop", "alice", frozenset({"chat"}))
    assert (new.record.created_at, new.record.expires_at) == (NOW + 100, NOW + 100 + 7200)
    records = keys.verified().records
    assert records[old.record.id].expires_at == NOW + 100 + 3600
    assert records[new.record.id] == new.record


def test_the_subject_stays_when_it_was_the_id_of_the_first_key(path: Path) -> None:
    keys = KeyFile(path)
    old = keys.create("laptop").record
    new = keys.replace(old.id, grace=60).record
    assert new.subject == old.subject == old.id
    assert keys.replace(new.id, grace=60).record.subject == old.id


def test_the_grace_lengthens_no_life(path: Path) -> None:
    keys = KeyFile(path, clock=Clock())
    old = keys.create("laptop", expires_in=60).record
    keys.replace(old.id, grace=3600)
    assert keys.read().records[old.id].expires_at == NOW + 60


def test_no_key_comes_from_a_revoked_one(path: Path) -> None:
    keys = KeyFile(path)
    key_id = keys.create("laptop").record.id
    keys.revoke(key_id)
    with pytest.raises(KeyFileError, match="was revoked"):
        keys.replace(key_id, grace=60)
    assert list(keys.read().records) == [key_id]


# --- who may read and change it


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777])
def test_a_pepper_that_others_can_read_is_refused(wide: int, path: Path) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    keys.pepper_path.chmod(wide)
    with pytest.raises(KeyFileError, match=f"chmod 600 {re.escape(str(keys.pepper_path))}"):
        KeyFile(path).verified()
    with pytest.raises(KeyFileError, match="chmod 600"):
        KeyFile(path).create("another")


@pytest.mark.parametrize(("bits", "too_open"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_it_is_told_when_others_can_read_the_file(bits: int, too_open: bool, path: Path) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    path.chmod(bits)
    assert keys.read().too_open is too_open


def test_a_change_keeps_the_mode_of_the_file(path: Path) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    path.chmod(0o640)
    keys.create("another")
    assert mode(path) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_change_by_root_leaves_the_file_to_its_owner(path: Path) -> None:
    keys = KeyFile(path)
    key_id = keys.create("laptop").record.id
    os.chown(path, 12345, 23456)
    keys.revoke(key_id)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_a_link_to_the_file_stays_one(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    path.symlink_to(folder / "real.json")
    keys = KeyFile(path)
    keys.create("laptop")
    keys.create("another")
    assert path.is_symlink()
    assert len(KeyFile(path).verified().records) == 2
    assert {made.name for made in folder.iterdir()} == {"real.json", "real.json.lock"}


def test_a_link_in_place_of_the_lock_is_refused(path: Path, tmp_path: Path) -> None:
    Path(f"{path}.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="cannot be opened"):
        KeyFile(path).create("laptop")
    assert not (tmp_path / "elsewhere").exists()


# --- the pepper and its keys


def test_no_key_is_made_under_another_pepper(path: Path) -> None:
    KeyFile(path).create("laptop")
    before = path.read_bytes()
    other = KeyFile(path, new_pepper())
    with pytest.raises(KeyFileError, match="another pepper"):
        other.create("another")
    with pytest.raises(KeyFileError, match="another pepper"):
        other.verified()
    assert path.read_bytes() == before


def test_a_lost_pepper_is_not_replaced_by_a_new_one(path: Path) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    keys.pepper_path.unlink()
    for use in (KeyFile(path).verified, lambda: KeyFile(path).create("another")):
        with pytest.raises(KeyFileMissingError, match=r"the pepper of .* is missing"):
            use()
    assert not keys.pepper_path.exists()


def test_a_pepper_that_is_there_is_taken(path: Path) -> None:
    pepper_path = Path(f"{path}.pepper")
    pepper_path.touch(0o600)
    pepper_path.write_text("p" * 40 + "\n")
    new = KeyFile(path).create("laptop")
    assert new.record.hash == Pepper("p" * 40).hash(new.key)
    assert pepper_path.read_text() == "p" * 40 + "\n"


def test_a_pepper_file_that_is_too_short_is_refused(path: Path) -> None:
    pepper_path = Path(f"{path}.pepper")
    pepper_path.touch(0o600)
    with pytest.raises(KeyFileError, match="at least 32 bytes"):
        KeyFile(path).create("laptop")
    assert not path.exists()


# --- a file that is not as it must be

CANARY = "canary-8d1f"


def _key(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda parsed: parsed["keys"][0].update(fields)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda parsed: parsed.clear(), "is no file of API keys"),
        (lambda parsed: parsed.update(version=2), "was written by a newer version"),
        (lambda parsed: parsed.update(version=CANARY), "has an unknown version"),
        (lambda parsed: parsed.update(version=0), "has an unknown version"),
        (lambda parsed: parsed.update(more=CANARY), "expected version, pepper_check and keys"),
        (lambda parsed: parsed.update(keys={}), "expected version, pepper_check and keys"),
        (lambda parsed: parsed.update(pepper_check=None), "expected version, pepper_check and keys"),
        (lambda parsed: parsed.update(pepper_check=""), "pepper_check: 64 hexadecimal digits"),
        (lambda parsed: parsed["keys"].append(CANARY), "key 2: expected created_at"),
        (lambda parsed: parsed["keys"].append(parsed["keys"][0]), "key 2: the id is that of another key"),
        (lambda parsed: parsed["keys"][0].pop("revoked_at"), "key 1: expected"),
        (_key(revokedat="2027-01-15T08:00:00Z"), "key 1: expected"),
        (_key(revoked_at=True), "key 1: revoked_at: expected a time"),
        (_key(revoked_at=CANARY), "key 1: revoked_at: expected a time"),
        (_key(expires_at="2027-01-15T08:00:00"), "key 1: expires_at: expected a time"),
        (_key(expires_at=1_800_000_000), "key 1: expires_at: expected a time"),
        (_key(created_at=None), "key 1: created_at: "),
        (_key(created_at="0001-01-01T00:00:00Z"), "key 1: created_at: "),
        (_key(hash=CANARY), "key 1: hash: "),
        (_key(subject="a b"), "key 1: subject: "),
        (_key(scopes="chat"), "key 1: scopes: "),
        (_key(scopes=[["chat"]]), "key 1: scopes: "),
        (_key(scopes=["a b"]), "key 1: scopes: "),
        (_key(name="\u001b[2J" + CANARY), "key 1: name: "),
        (_key(id="../../x"), "key 1: id: "),
    ],
)
def test_one_mistake_refuses_the_whole_file(edit: Callable[[dict[str, Any]], object], message: str, path: Path) -> None:
    keys = KeyFile(path)
    key_id = keys.create("laptop").record.id
    change(path, edit)
    before = path.read_bytes()
    for use in (keys.read, keys.verified, lambda: keys.create("another"), lambda: keys.revoke(key_id)):
        with pytest.raises(KeyFileError, match=re.escape(message)) as caught:
            use()
        assert str(path) in str(caught.value)
        assert CANARY not in str(caught.value)
        assert caught.value.__cause__ is None
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON: see line 1"),
        (b'{"version": 1,\n"pepper_check": canary-8d1f', "is not JSON: see line 2"),
        (b'\xff\xfe\x00{"', "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"[]", "is no file of API keys"),
        (b"NaN", "NaN is not JSON"),
        (b'{"version": 1, "version": 1}', "a name comes twice"),
        (b'{"version": ' + b"1" * 5000 + b"}", "keys.json"),
        (b" " * (4 * 1024 * 1024 + 1), "is larger than 4194304 bytes"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, message: str, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(KeyFileError, match=re.escape(message)) as caught:
        KeyFile(path).read()
    assert CANARY not in str(caught.value)
    assert path.read_bytes() == data


def test_a_file_that_is_not_there_is_told_from_one_that_is_wrong(path: Path) -> None:
    with pytest.raises(KeyFileMissingError, match="there is no file"):
        KeyFile(path).read()


def test_a_mistyped_path_leaves_nothing_behind(path: Path) -> None:
    for use in (
        KeyFile(path).read,
        lambda: KeyFile(path).revoke("0" * 8),
        lambda: KeyFile(path).replace("0" * 8, grace=1),
    ):
        with pytest.raises(KeyFileMissingError):
            use()
    assert not list(path.parent.iterdir())


def test_a_folder_or_a_pipe_is_no_key_file(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(KeyFileError, match="is not a file"):
        KeyFile(path).read()
    with pytest.raises(KeyFileError, match="cannot be read: Is a directory"):
        KeyFile(tmp_path).read()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be opened: No such file or directory"):
        KeyFile(tmp_path / "nowhere" / "keys.json").create("laptop")


# --- two commands at once


def test_a_change_waits_for_the_one_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is held between reading and writing: exactly where a second one would lose it."""
    first_holds, second_waits, written = threading.Event(), threading.Event(), threading.Event()
    real_replace, real_flock = os.replace, fcntl.flock

    def replace(source: Path, target: Path) -> None:
        if threading.current_thread().name == "first":
            first_holds.set()
            assert second_waits.wait(LIMIT)
        real_replace(source, target)
        written.set()

    def flock(descriptor: int, operation: int) -> None:
        try:
            real_flock(descriptor, operation)
        except BlockingIOError:
            assert not written.is_set()
            second_waits.set()
            raise

    keys = KeyFile(path)
    keys.create("zero")
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(key_file, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB))
    first = threading.Thread(target=keys.create, args=("first",), name="first")
    first.start()
    assert first_holds.wait(LIMIT)
    KeyFile(path).create("second")
    first.join(LIMIT)
    assert [record.name for record in keys.read().records.values()] == ["zero", "first", "second"]


def test_processes_that_create_keys_at_once_lose_none(path: Path) -> None:
    """They make file and pepper, too."""
    code = (
        "import sys; from agentrun_middleware.key_file import KeyFile\n"
        "keys = KeyFile(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(5): print(keys.create(f'{sys.argv[2]}-{number}').key)"
    )
    processes = [python(code, str(path), str(number)) for number in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    state = KeyFile(path).verified()
    made = [key for out, _ in printed for key in out.split()]
    assert len(made) == len(state.records) == 20
    hashes = {record.hash for record in state.records.values()}
    assert hashes == {KeyFile(path).pepper().hash(key) for key in made}
    assert {made.name for made in path.parent.iterdir()} == {"keys.json", "keys.json.lock", "keys.json.pepper"}


def test_the_wait_for_another_command_has_an_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    monkeypatch.setattr(key_file, "_LOCK_TIMEOUT", 0.05)
    with Path(f"{path}.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KeyFileError, match=r"another command has held .*keys\.json\.lock for 0\.05 seconds"):
            keys.create("another")
    keys.create("another")


def test_a_file_system_without_locks_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(key_file, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=0, LOCK_NB=0))
    with pytest.raises(KeyFileError, match="cannot be locked: No locks available"):
        KeyFile(path).create("laptop")


# --- commands that are killed, disks that are full


def test_a_command_killed_before_the_rename_changes_nothing_and_blocks_nobody(path: Path) -> None:
    keys = KeyFile(path)
    first = keys.create("first")
    before = path.read_bytes()
    killed = python(
        "import os, signal, sys; from agentrun_middleware.key_file import KeyFile\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "KeyFile(sys.argv[1]).create('killed')",
        str(path),
    )
    killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL
    temporary = Path(f"{path}.tmp")
    assert path.read_bytes() == before
    assert mode(temporary) == 0o600
    assert list(keys.verified().records) == [first.record.id]

    second = keys.create("second")
    assert not temporary.exists()
    assert list(keys.verified().records) == [first.record.id, second.record.id]


def test_a_temporary_file_that_somebody_put_there_is_not_written_to(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(f"{path}.tmp").symlink_to(victim)
    KeyFile(path).create("laptop")
    assert victim.read_text() == "precious"
    assert KeyFile(path).verified().records


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_leaves_the_old_file(call: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(KeyFileError, match="cannot be written: No space left on device"):
            keys.create("another")
    assert path.read_bytes() == before
    assert not Path(f"{path}.tmp").exists()
    keys.create("another")


def test_what_is_written_is_on_the_disk_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append(f"rename {source.name} {target.name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    keys.create("another")
    assert steps == ["sync keys.json.tmp", "rename keys.json.tmp keys.json", f"sync {path.parent.name}"]


def test_a_file_grows_no_larger_than_it_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyFile(path)
    keys.create("laptop")
    monkeypatch.setattr(key_file, "_MAX_BYTES", path.stat().st_size + 100)
    with pytest.raises(KeyFileError, match="would become larger than"):
        keys.create("another")
    assert len(keys.read().records) == 1
