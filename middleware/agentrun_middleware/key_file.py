"""The file of API keys: read by servers, changed by commands.

A change is made under a lock, so two commands at once lose nothing, and replaces the file by a rename, so a reader sees
the old file or the new one and a command that is killed leaves the old one. The new file keeps owner and mode of the
old one: a command run as root must not take the file away from the server that reads it.

Everything in the file is checked when it is read, and one mistake refuses it all: a misspelt ``revoked_at`` must not
bring a key back. The file knows its pepper again by a check value, so no key is made that a server would refuse.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from agentrun_middleware.key_record import KeyRecord, Pepper, id_of, is_hash, new_key, new_pepper

__all__ = ["KeyFile", "KeyFileError", "KeyFileMissingError", "KeyFileState", "NewKey", "UnknownKeyError"]

_VERSION = 1
_MAX_BYTES = 4 * 1024 * 1024
"""Some 12,000 keys, which take a quarter of a second to read. So many are better kept in a database."""
_LOCK_TIMEOUT = 10.0
_LOCK_RETRY = 0.02

_TIMES = ("created_at", "expires_at", "revoked_at")
_FIELDS = frozenset(("id", "hash", "name", "subject", "scopes", *_TIMES, "hint"))


class KeyFileError(ValueError):
    """The file, its pepper or its lock cannot be used. The text says what to do, and holds no secret."""


class KeyFileMissingError(KeyFileError):
    """There is no such file."""


class UnknownKeyError(KeyFileError):
    """The file has no key of this id."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. `key` itself is kept nowhere: now or never."""

    key: str = field(repr=False)
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class KeyFileState:
    """The file as it was at one moment."""

    records: Mapping[str, KeyRecord] = field(default_factory=dict[str, KeyRecord])
    """By id, the oldest first."""
    pepper_check: str = ""
    stat: os.stat_result | None = None
    """None when there is no file yet."""

    @property
    def too_open(self) -> bool:
        """Whether others than its owner may read or change the file."""
        return self.stat is not None and bool(stat.S_IMODE(self.stat.st_mode) & 0o077)


class KeyFile:
    """A file of API keys. Any number of processes may use it at once.

    Args:
        path: where it is.
        pepper: under what the keys are hashed; when left out, the content of the file ``<path>.pepper``, which
            `create` makes together with the first key.
        clock: seconds since 1970.

    Raises:
        ValueError: the pepper is too short.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pepper: Pepper | str | bytes | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path).absolute()
        self.pepper_path = self.path.with_name(self.path.name + ".pepper")
        self._pepper = Pepper(pepper) if isinstance(pepper, (str, bytes)) else pepper
        self._clock = clock

    # --- reading

    def pepper(self) -> Pepper:
        """Return the pepper.

        Raises:
            KeyFileError: its file is missing, too short, or readable by others than its owner.
        """
        if self._pepper is None:
            self._pepper = self._read_pepper()
        return self._pepper

    def read(self) -> KeyFileState:
        """Return the keys.

        Raises:
            KeyFileMissingError: there is no file.
            KeyFileError: it cannot be read, or something in it is wrong.
        """
        data, status = _read(self.path)
        try:
            records, pepper_check = _parse(data)
        except json.JSONDecodeError as exc:
            raise KeyFileError(f"{self.path} is not JSON: see line {exc.lineno}") from None  # the cause holds the file
        except (UnicodeError, RecursionError):
            raise KeyFileError(f"{self.path} is not JSON") from None
        except ValueError as exc:
            raise KeyFileError(f"{self.path}: {exc}") from None
        return KeyFileState(records, pepper_check, status)

    def verified(self) -> KeyFileState:
        """Return the keys after a check that our pepper is theirs.

        Raises:
            KeyFileMissingError: there is no file.
            KeyFileError: it is not, or the file cannot be read, or something in it is wrong.
        """
        state = self.read()
        self._check_pepper(state)
        return state

    def _check_pepper(self, state: KeyFileState) -> None:
        if state.stat is not None and state.pepper_check != self.pepper().check:
            raise KeyFileError(f"{self.path} was made with another pepper")

    def _read_pepper(self) -> Pepper:
        try:
            data, status = _read(self.pepper_path)
        except KeyFileMissingError:
            raise KeyFileMissingError(
                f"the pepper of {self.path} is missing: neither was one given, nor is there a file {self.pepper_path}"
            ) from None
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyFileError(f"{self.pepper_path} may be read by others: chmod 600 {self.pepper_path}")
        try:
            return Pepper(data.strip())
        except ValueError as exc:
            raise KeyFileError(f"{self.pepper_path}: {exc}") from exc

    # --- changing

    def create(
        self, name: str, *, subject: str = "", scopes: Collection[str] = (), expires_in: float | None = None
    ) -> NewKey:
        """Make a key that is good for `expires_in` seconds, and the file when this is its first.

        Raises:
            ValueError: an argument cannot work.
            KeyFileError: the file cannot be read or written.
        """
        if isinstance(scopes, str):
            raise ValueError("scopes: a list, not one string")
        with self._change(may_create=True) as records:
            return self._add(records, name, subject=subject, scopes=scopes, expires_in=expires_in)

    def replace(self, key_id: str, *, grace: float, expires_in: float | None = None) -> NewKey:
        """Make a key with name, subject and scopes of the key `key_id`, which ends in `grace` seconds at the latest.

        Raises:
            UnknownKeyError: there is no such key.
            KeyFileError: the key was revoked, or the file cannot be read or written.
        """
        with self._change() as records:
            old = self._find(records, key_id)
            if old.revoked_at is not None:
                raise KeyFileError(f"the key {key_id} was revoked; make a new one without it")
            end = self._now() + int(grace)
            if old.expires_at is None or end < old.expires_at:
                records[key_id] = replace(old, expires_at=end)
            return self._add(records, old.name, subject=old.subject, scopes=old.scopes, expires_in=expires_in)

    def revoke(self, key_id: str) -> KeyRecord:
        """Refuse the key `key_id` from now on; return its record. A key that was revoked before stays as it is.

        Needs no pepper.

        Raises:
            UnknownKeyError: there is no such key.
            KeyFileError: the file cannot be read or written.
        """
        with self._change(needs_pepper=False) as records:
            old = self._find(records, key_id)
            if old.revoked_at is None:
                records[key_id] = replace(old, revoked_at=self._now())
            return records[key_id]

    def _add(
        self,
        records: dict[str, KeyRecord],
        name: str,
        *,
        subject: str,
        scopes: Collection[str],
        expires_in: float | None,
    ) -> NewKey:
        key = new_key()
        while id_of(key) in records:
            key = new_key()
        now = self._now()
        record = KeyRecord(
            id=id_of(key) or "",
            hash=self.pepper().hash(key),
            name=name,
            subject=subject,
            scopes=frozenset(scopes),
            created_at=now,
            expires_at=None if expires_in is None else now + int(expires_in),
            hint=key[-4:],
        )
        records[record.id] = record
        return NewKey(key, record)

    def _find(self, records: Mapping[str, KeyRecord], key_id: str) -> KeyRecord:
        record = records.get(key_id)
        if record is None:
            raise UnknownKeyError(f"{self.path} has no key of this id")
        return record

    def _now(self) -> int:
        return int(self._clock())

    @contextmanager
    def _change(self, *, may_create: bool = False, needs_pepper: bool = True) -> Iterator[dict[str, KeyRecord]]:
        """Give out the records for a change, and write them when it has been made."""
        if not may_create:
            self.read()  # a mistyped path must not leave a lock behind
        with self._locked() as path:
            state = self._read_or_begin() if may_create else self.read()
            if needs_pepper:
                self._check_pepper(state)
            records = dict(state.records)
            yield records
            if records != state.records:
                _write(path, _dump(records, state.pepper_check), state.stat)

    def _read_or_begin(self) -> KeyFileState:
        """Return the keys; when there is no file yet, none, and a pepper for them."""
        try:
            return self.read()
        except KeyFileMissingError:
            if self._pepper is None and not self.pepper_path.exists():
                _write(self.pepper_path, (new_pepper() + "\n").encode(), None)
            return KeyFileState(pepper_check=self.pepper().check)

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Keep other commands out; give out the file to write, which is another one when ours is a link."""
        path = self.path.resolve()
        lock = path.with_name(path.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise KeyFileError(f"{lock} cannot be opened: {exc.strerror}") from exc
        try:
            _lock(descriptor, lock)
            yield path
        finally:
            os.close(descriptor)  # which gives the lock up


# --- the form of the file


def _dump(records: Mapping[str, KeyRecord], pepper_check: str) -> bytes:
    keys = [{**record.shown(), "hash": record.hash} for record in records.values()]
    content = {"version": _VERSION, "pepper_check": pepper_check, "keys": keys}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _parse(data: bytes) -> tuple[Mapping[str, KeyRecord], str]:
    content = json.loads(data, object_pairs_hook=_object, parse_constant=_refuse_constant)
    if not isinstance(content, dict) or "version" not in content:
        raise ValueError("is no file of API keys")
    version = content["version"]
    if version != _VERSION:
        newer = isinstance(version, int) and version > _VERSION
        raise ValueError("was written by a newer version of this program" if newer else "has an unknown version")
    pepper_check, keys = content.get("pepper_check"), content.get("keys")
    if len(content) != 3 or not isinstance(pepper_check, str) or not isinstance(keys, list):
        raise ValueError("expected version, pepper_check and keys")
    if not is_hash(pepper_check):
        raise ValueError("pepper_check: 64 hexadecimal digits in lower case")
    records: dict[str, KeyRecord] = {}
    for number, fields in enumerate(keys, 1):
        try:
            record = _record(fields)
        except ValueError as exc:
            raise ValueError(f"key {number}: {exc}") from None
        if record.id in records:
            raise ValueError(f"key {number}: the id is that of another key")
        records[record.id] = record
    return records, pepper_check


def _record(fields: Any) -> KeyRecord:
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise ValueError(f"expected {', '.join(sorted(_FIELDS))}")
    scopes = fields["scopes"]
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("scopes: expected a list of strings")
    times = {name: _seconds(name, fields[name]) for name in _TIMES}
    return KeyRecord(**{**fields, **times, "scopes": frozenset(scopes)})


def _seconds(name: str, text: Any) -> float | None:
    if text is None:
        return None
    try:
        time_of_day = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        time_of_day = None
    if time_of_day is None or time_of_day.tzinfo is None:
        raise ValueError(f"{name}: expected a time like 2027-01-31T12:00:00Z")
    return time_of_day.timestamp()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# --- the file system


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # should it be a pipe that nobody writes to


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is not a file")
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise KeyFileMissingError(f"there is no file {path}; 'agentrun-server keys create' makes it") from None
    except OSError as exc:
        raise KeyFileError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > _MAX_BYTES:
        raise KeyFileError(f"{path} is larger than {_MAX_BYTES} bytes")
    return data, status


def _create_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(path: Path, data: bytes, like: os.stat_result | None) -> None:
    """Put `data` in the place of the file at `path`, with owner and mode of `like`; only under the lock."""
    if len(data) > _MAX_BYTES:
        raise KeyFileError(f"{path} would become larger than {_MAX_BYTES} bytes: take old keys out")
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # left behind by a command that was killed
        try:
            with open(temporary, "xb", opener=_create_private) as file:
                _make_like(file.fileno(), like)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105 - one call, one name, for the test that kills us here
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as exc:
        raise KeyFileError(f"{path} cannot be written: {exc.strerror}") from exc


def _make_like(descriptor: int, like: os.stat_result | None) -> None:
    if like is None:
        os.fchmod(descriptor, 0o600)  # whatever the umask has taken away
        return
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise KeyFileError(f"another command has held {path} for {_LOCK_TIMEOUT:g} seconds") from None
            time.sleep(_LOCK_RETRY)
        except OSError as exc:
            raise KeyFileError(f"{path} cannot be locked: {exc.strerror}") from exc
        else:
            return
