"""Which store and bus the settings mean, and that no error tells a password."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentrun_server.errors import ConfigurationError
from agentrun_server.storage import sqlite
from agentrun_server.storage.contracts import Bus, SchemaVersionError, StorageUnavailableError, Store
from agentrun_server.storage.local_bus import LocalBus
from agentrun_server.storage.opening import (
    HIDDEN,
    Storage,
    check_storage,
    check_storage_url,
    open_storage,
    shown_storage_url,
    shown_url,
    sqlite_path,
    storage_is_there,
)
from agentrun_server.storage.redis_bus import RedisBus
from agentrun_server.storage.sqlite import SQLiteStore
from tests.storage.contract import PostgresBackend, create, other_process_writes
from tests.support.clock import eventually, within
from tests.support.postgres_server import PostgresServer, needs_postgres

ROOT = Path(__file__).parents[2]

GOOD = {
    "sqlite": "sqlite",
    "sqlite:///store.db": "sqlite",
    "sqlite:///a folder/100%#.db": "sqlite",
    "sqlite:////var/lib/agentrun.db": "sqlite",
    "postgresql://": "postgresql",
    "postgresql://host": "postgresql",
    "postgres://u:p@host:5432/db": "postgresql",
    "postgresql://u:%40%2F%3A@[::1]:5432/db?sslmode=require": "postgresql",
    "postgresql://u@one,two:5433,three/db": "postgresql",
    "postgresql://u@/db?host=/run/postgresql": "postgresql",
    "postgresql://u@%2Frun%2Fpostgresql/db": "postgresql",
}

BAD = [
    "",
    "secret",
    "SQLITE",
    "sqlite:",
    "sqlite://",
    "sqlite:///",
    "sqlite:////",
    "sqlite:secret.db",
    "sqlite:/secret.db",
    "sqlite://secret.db",
    "sqlite://secret/store.db",
    "sqlite://:memory:",
    "sqlite:///:memory:",
    "sqlite:///secret.db?mode=memory",
    "sqlite:///secret\0.db",
    "sqlite:///secret/",
    "sqlite:///secret/..",
    "sqlite:///..",
    "sqlite:///.",
    "sqlite:///~/secret.db",
    "postgresql:",
    "postgresql:host",
    "postgresql+asyncpg://u:secret@h/db",
    "mysql://u:secret@h/db",
    "redis://:secret@h",
    "postgresql://u:secret@h/d b",
    "postgresql://u:sec\nret@h/db",
    "postgresql://u:secret/1@h/db",
    "postgresql://u:secret#1@h/db",
    "postgresql://u:1#secret@h/db",
    "postgresql://u:secret?1@h/db",
    "postgresql://u:secret@1@h/db",
    "postgresql://u:secret@h:port/db",
    "postgresql://u:secret@h:99999/db",
    "postgresql://u:secret@one,,two/db",
    "postgresql://u:secret@[::1/db",
    "postgresql://u:secret@::1/db",
]


def hides(error: BaseException) -> bool:
    """Tell whether nothing of a URL is said, nor of errors that led to this one and would be printed with it."""
    return "secret" not in str(error) and (error.__suppress_context__ or error.__context__ is None)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("url", GOOD)
def test_a_url_tells_which_store_it_means(url: str) -> None:
    assert check_storage_url(url) == GOOD[url]


@pytest.mark.parametrize("url", BAD, ids=ascii)
async def test_a_url_that_cannot_work_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="store_url") as raised:
        check_storage_url(url)
    assert hides(raised.value)
    with pytest.raises(ConfigurationError, match="store_url"):
        sqlite_path(url)
    with pytest.raises(ConfigurationError, match="store_url"):
        await open_storage(url)


def test_a_url_is_looked_at_without_any_driver() -> None:
    code = (
        "import sys\n"
        "from agentrun_server.storage.opening import check_storage_url, sqlite_path\n"
        f"for url in {list(GOOD)!r}: check_storage_url(url), sqlite_path(url)\n"
        "print(sorted(sys.modules.keys() & {'asyncpg', 'sqlite3', 'redis'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


# --- where the file is


def test_the_file_is_where_the_url_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:///store.db") == tmp_path / "store.db"
    assert sqlite_path("sqlite:///a b/50%20%.db") == tmp_path / "a b" / "50%20%.db"
    assert sqlite_path("sqlite:////var/lib/x/store.db") == Path("/var/lib/x/store.db")
    assert sqlite_path("postgresql://h/db") is None
    assert files(tmp_path) == [], "nothing is made"


def test_without_a_path_the_file_is_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert sqlite_path("sqlite", {"AGENTRUN_HOME": "/srv/agentrun"}) == Path("/srv/agentrun/agentrun.db")
    assert sqlite_path("sqlite", {"AGENTRUN_HOME": "here"}) == tmp_path / "here" / "agentrun.db"
    assert sqlite_path("sqlite", {"AGENTRUN_HOME": "~/there"}) == Path("/home/me/there/agentrun.db")
    for nothing in ({}, {"AGENTRUN_HOME": ""}):
        assert sqlite_path("sqlite", nothing) == Path("/home/me/.agentrun/agentrun.db")
    monkeypatch.setenv("AGENTRUN_HOME", "/srv/other")
    assert sqlite_path("sqlite") == Path("/srv/other/agentrun.db"), "as it is when it is asked for"


def test_who_has_no_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(ConfigurationError, match="AGENTRUN_HOME"):
        sqlite_path("sqlite", {})


# --- opening


async def test_sqlite_is_opened_where_the_url_says(tmp_path: Path) -> None:
    for url, path in (
        ("sqlite", tmp_path / "home" / "agentrun.db"),
        (f"sqlite:///{tmp_path}/deep/er/store.db", tmp_path / "deep" / "er" / "store.db"),
    ):
        storage = await within(open_storage(url, environ={"AGENTRUN_HOME": str(tmp_path / "home")}))
        assert isinstance(storage.store, SQLiteStore)
        assert isinstance(storage.bus, LocalBus)
        await storage.store.commit([create("r")])
        assert await storage.leases.acquire("l", "h", 1) is not None
        await storage.aclose()
        assert files(path.parent) == [path.name, f"{path.name}.lock"]
        with pytest.raises(StorageUnavailableError):
            await storage.store.commit([create("s")])


@pytest.mark.parametrize("durable", [True, False])
async def test_sqlite_is_as_durable_as_was_said(tmp_path: Path, durable: bool) -> None:
    storage = await within(open_storage(f"sqlite:///{tmp_path}/store.db", durable=durable))
    assert isinstance(storage.store, SQLiteStore)
    assert storage.store._durable == durable
    await storage.aclose()


@pytest.fixture
def opening_began(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set when a store waits for its turn."""
    began = threading.Event()
    turn = SQLiteStore._turn

    def noted(store: SQLiteStore) -> object:
        began.set()
        return turn(store)

    monkeypatch.setattr(SQLiteStore, "_turn", noted)
    return began


async def test_opening_holds_up_nobody_else(tmp_path: Path, opening_began: threading.Event) -> None:
    path = tmp_path / "store.db"
    with other_process_writes(path):
        opening = asyncio.create_task(open_storage(f"sqlite:///{path}"))
        await eventually(opening_began.is_set)  # the event loop runs meanwhile
        assert not opening.done()
    await (await within(opening)).aclose()


async def test_opening_that_is_cancelled_leaves_nothing_open(tmp_path: Path, opening_began: threading.Event) -> None:
    before = set(threading.enumerate())
    path = tmp_path / "store.db"
    with other_process_writes(path):
        opening = asyncio.create_task(open_storage(f"sqlite:///{path}"))
        await eventually(opening_began.is_set)
        opening.cancel()
        await asyncio.sleep(0)
        assert not opening.done(), "until the thread has it"
    with pytest.raises(asyncio.CancelledError):
        await within(opening)
    assert not any(thread.name.startswith("sqlite-") for thread in set(threading.enumerate()) - before)
    assert files(tmp_path) == ["store.db", "store.db.lock"], "it was closed"


async def test_opening_that_is_cancelled_and_fails_is_cancelled(
    tmp_path: Path, opening_began: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_TURN_WAIT", 0.05)
    path = tmp_path / "store.db"
    with other_process_writes(path):
        opening = asyncio.create_task(open_storage(f"sqlite:///{path}"))
        await eventually(opening_began.is_set)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(opening)


async def test_a_file_that_cannot_be_opened_is_an_error_of_storage_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StorageUnavailableError):
        await within(open_storage(f"sqlite:///{tmp_path}/store.db"))
    [record] = caplog.records
    assert record.getMessage() == "the store cannot be opened"
    assert f"{tmp_path}/store.db" in record.__dict__["reason"]


@needs_postgres
async def test_postgresql_is_opened_by_either_name(shared_postgres: PostgresServer) -> None:
    backend = PostgresBackend(shared_postgres, "agentrun")
    try:
        for name in ("postgresql", "postgres"):
            storage = await within(open_storage(f"{name}://{shared_postgres.url.partition('://')[2]}"))
            await storage.store.commit([create(name)])
            assert await storage.leases.acquire("l", name, 0) is not None
            await storage.aclose()
            with pytest.raises(StorageUnavailableError):
                await storage.store.get("response", name, None)
    finally:
        await backend.ask("DROP SCHEMA IF EXISTS agentrun CASCADE")


@needs_postgres
async def test_what_the_driver_of_postgresql_refuses_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="store_url") as raised:
        await within(open_storage("postgresql://u:secret@127.0.0.1/db?sslmode=secret"))
    assert hides(raised.value)
    with pytest.raises(StorageUnavailableError) as away:
        await within(open_storage(f"postgresql://u:secret@/db?host={tmp_path}"))
    assert "secret" not in str(away.value)


@pytest.mark.parametrize(
    ("package", "url", "bus", "extra"),
    [
        ("asyncpg", "postgresql://u:secret@h/db", None, r"agentrun-server\[postgres\]"),
        ("redis.asyncio", "sqlite", "redis://:secret@h", r"agentrun-server\[redis\]"),
    ],
)
async def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, url: str, bus: str | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "agentrun_server.storage.postgres", raising=False)
    with pytest.raises(ConfigurationError, match=extra) as raised:
        await open_storage(url, bus_redis_url=bus)
    assert hides(raised.value)
    with pytest.raises(ConfigurationError, match=extra) as raised:
        check_storage(url, bus)
    assert hides(raised.value)


# --- the bus


async def test_the_bus_is_redis_when_it_has_a_url(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/nobody-listens"
    storage = await within(open_storage(f"sqlite:///{tmp_path}/store.db", bus_redis_url=url))
    assert isinstance(storage.bus, RedisBus), "though Redis is away"
    await storage.aclose()


@pytest.mark.parametrize("url", ["nonsense://:secret@h", "redis://:x/secret@h:port", "secret"])
async def test_a_bus_that_cannot_work_is_refused_before_the_store_is_made(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="bus_redis_url") as raised:
        await open_storage(f"sqlite:///{tmp_path}/store.db", bus_redis_url=url)
    with pytest.raises(ConfigurationError, match="bus_redis_url"):
        check_storage("sqlite", url)
    assert hides(raised.value)
    assert files(tmp_path) == []


class Closing:
    """A store or bus that notes when it is closed."""

    def __init__(self, noted: list[str], name: str, error: Exception | None = None) -> None:
        self._noted = noted
        self._name = name
        self._error = error

    async def aclose(self) -> None:
        self._noted.append(self._name)
        if self._error is not None:
            raise self._error


def closing(bus_fails: bool) -> tuple[Storage, list[str]]:
    noted: list[str] = []
    store: Store = Closing(noted, "store")  # type: ignore[assignment]
    bus: Bus = Closing(noted, "bus", OSError() if bus_fails else None)  # type: ignore[assignment]
    return Storage(store, store, bus), noted  # type: ignore[arg-type]


async def test_the_bus_is_closed_before_the_store_and_whatever_becomes_of_it() -> None:
    storage, noted = closing(bus_fails=False)
    await storage.aclose()
    assert noted == ["bus", "store"]
    storage, noted = closing(bus_fails=True)
    with pytest.raises(OSError):
        await storage.aclose()
    assert noted == ["bus", "store"]


async def test_the_bus_is_closed_when_the_store_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[RedisBus] = []
    aclose = RedisBus.aclose

    async def noted(bus: RedisBus) -> None:
        closed.append(bus)
        await aclose(bus)

    monkeypatch.setattr(RedisBus, "aclose", noted)
    (tmp_path / "store.db").write_text("no database, though it is long enough to be looked at\n" * 100)
    with pytest.raises((StorageUnavailableError, SchemaVersionError)):
        await within(open_storage(f"sqlite:///{tmp_path}/store.db", bus_redis_url="redis://127.0.0.1:1"))
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@one:5432,two/db?password=secret", "postgresql://********@one:5432,two/db?********"),
        ("postgresql://me:se@cr/et@host/db", "postgresql://********@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?********"),
        ("redis://:secret@[::1]:6379/0", "redis://********@[::1]:6379/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_credentials_and_options(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "secret",
        "se cret://host",
        "redis://me:secret",
        "redis://me:sec?ret@host",
        "redis://me:sec#ret@host/0#secret",
        "redis://host/0 password=secret",
        "redis://ho st/secret",
    ],
)
def test_a_url_that_is_not_clear_is_not_shown(url: str) -> None:
    assert shown_url(url) == HIDDEN


@pytest.mark.parametrize("url", [url for url in GOOD if "://" in url])
def test_what_is_shown_of_a_store_holds_no_credential(url: str, tmp_path: Path) -> None:
    shown = shown_storage_url(url, {"AGENTRUN_HOME": str(tmp_path)})
    assert shown == HIDDEN or check_storage_url(shown) == GOOD[url]
    if "@" in url:
        assert "://********@" in shown or shown == HIDDEN


def test_the_file_is_shown_by_its_absolute_path(tmp_path: Path) -> None:
    home = {"AGENTRUN_HOME": str(tmp_path)}
    assert shown_storage_url("sqlite", home) == f"sqlite:///{tmp_path}/agentrun.db"
    assert sqlite_path(shown_storage_url("sqlite:///a/b.db", home)) == Path("a/b.db").absolute()


def test_a_file_can_hold_something_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_HOME", str(tmp_path))
    assert not storage_is_there("sqlite")
    (tmp_path / "agentrun.db").touch()
    assert storage_is_there("sqlite")
    assert storage_is_there(f"sqlite:///{tmp_path}/agentrun.db")
    assert not storage_is_there(f"sqlite:///{tmp_path}/other.db")
    assert storage_is_there("postgresql://host/database"), "nobody looks"


async def test_what_is_lent_is_closed_by_who_has_opened_it(tmp_path: Path) -> None:
    storage = await open_storage(f"sqlite:///{tmp_path}/store.db", durable=False)
    lent = storage.lent()
    assert (lent.store, lent.leases, lent.bus) == (storage.store, storage.leases, storage.bus)
    await lent.aclose()
    assert await lent.store.get("response", "r", None) is None
    await storage.aclose()
    with pytest.raises(StorageUnavailableError):
        await lent.store.get("response", "r", None)


async def test_it_is_told_where_the_store_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    storage = await open_storage("sqlite", environ={"AGENTRUN_HOME": str(tmp_path)})
    await storage.aclose()
    (told,) = [record for record in caplog.records if record.message == "store opened"]
    assert vars(told)["store"] == f"sqlite:///{tmp_path}/agentrun.db"
