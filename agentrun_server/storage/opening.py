"""From settings to what is open: which store and bus a server has.

A URL may hold a password, so no error repeats one. `check_storage_url` and `sqlite_path` tell what a URL means without
looking at any file or server; drivers are imported when a store or bus of theirs is opened.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from agentrun_server.errors import ConfigurationError
from agentrun_server.observability.logs import get_logger
from agentrun_server.storage.contracts import Bus, Leases, StorageError, StorageUnavailableError, Store
from agentrun_server.storage.local_bus import LocalBus

if TYPE_CHECKING:
    from agentrun_server.storage.postgres import PostgresStore
    from agentrun_server.storage.sqlite import SQLiteStore

__all__ = [
    "HIDDEN",
    "Storage",
    "check_storage",
    "check_storage_url",
    "open_storage",
    "shown_storage_url",
    "shown_url",
    "sqlite_path",
    "storage_is_there",
]

logger = get_logger("agentrun_server.storage")

HIDDEN: Final = "********"
"""What is shown in place of a secret."""

_FILE: Final = "agentrun.db"
_HOST: Final = re.compile(r"(?:\[[^\[\]]+\]|[^\[\]:@]+)(?::(\d{0,5}))?")
_POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+]*", re.ASCII)
_PLACE: Final = re.compile(r"[\w.,:%/\[\]-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Storage:
    """What a server keeps its state in."""

    store: Store
    leases: Leases
    bus: Bus

    def lent(self) -> "Storage":
        """Return the same storage for a user of it who has not opened it: closing that closes nothing."""
        return _Lent(self.store, self.leases, self.bus)

    async def aclose(self) -> None:
        """Close the bus, then the store with its leases, whatever becomes of the bus."""
        try:
            await self.bus.aclose()
        finally:
            await self.store.aclose()


class _Lent(Storage):
    __slots__ = ()

    async def aclose(self) -> None:
        """Leave it to who has opened it."""


def check_storage_url(store_url: str) -> Literal["sqlite", "postgresql"]:
    """Return which store `store_url` means, without looking at it.

    * ``sqlite``: the file ``agentrun.db`` in ``$AGENTRUN_HOME``, else in ``~/.agentrun``;
    * ``sqlite:///folder/file.db``, ``sqlite:////folder/file.db``: a file, by its relative and by its absolute path, as
      SQLAlchemy writes them;
    * ``postgresql://user:password@host/database``, also ``postgres://``.

    Raises:
        ConfigurationError: it cannot work. The text does not hold it.
    """
    if store_url == "sqlite":
        return "sqlite"
    if store_url.startswith("sqlite:"):
        _check_file(store_url)
        return "sqlite"
    if store_url.startswith(_POSTGRES_SCHEMES):
        _check_server(store_url)
        return "postgresql"
    raise ConfigurationError(
        "store_url is 'sqlite', 'sqlite:///path/of/a/file' or 'postgresql://user:password@host/database'"
    )


def check_storage(store_url: str, bus_redis_url: str | None) -> None:
    """Refuse what `open_storage` could never open: when a server is made, and not at the first request that needs it.

    Raises:
        ConfigurationError: a URL cannot work, or a package it needs is missing. The text does not hold the URL.
    """
    if check_storage_url(store_url) == "postgresql" and importlib.util.find_spec("asyncpg") is None:
        raise ConfigurationError("store_url needs the asyncpg package: pip install 'agentrun-server[postgres]'")
    _open_bus(bus_redis_url)  # which connects to nothing yet


def _check_file(store_url: str) -> None:
    slashes, path = store_url[: len("sqlite:///")], store_url[len("sqlite:///") :]
    if slashes != "sqlite:///":
        raise ConfigurationError("store_url: after 'sqlite:' come three slashes and a relative path, or four slashes")
    if path in ("", ":memory:"):
        raise ConfigurationError("store_url names no file; what is kept in memory alone is not kept")
    if "?" in path or "\0" in path:
        raise ConfigurationError("store_url: the path of a SQLite file has neither options nor NUL")
    if path.endswith("/") or Path(path).name in ("", ".."):
        raise ConfigurationError("store_url names a folder; add the name of a file")
    if path.startswith("~"):
        raise ConfigurationError("store_url: ~ means nothing in a URL; write the absolute path, after four slashes")


def _check_server(store_url: str) -> None:
    if re.search(r"[\s\x00-\x1f\x7f]", store_url):
        raise ConfigurationError("store_url holds a space or a control character; write it as %20 and the like")
    try:
        parts = urlsplit(store_url)
    except ValueError:
        raise ConfigurationError("store_url: the host of PostgreSQL is not a host") from None
    # As asyncpg takes it apart: several hosts may be named, and none when the options do.
    hosts = parts.netloc.partition("@")[2] if "@" in parts.netloc else parts.netloc
    if parts.fragment or (hosts and not all(map(_is_host, hosts.split(",")))):
        raise ConfigurationError(
            "store_url: the host of PostgreSQL is not a host with or without a port; in a password, write"
            " @ : / ? # % as %40 %3A %2F %3F %23 %25"
        )


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    return match is not None and int(match[1] or 0) < 2**16


def sqlite_path(store_url: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the absolute path of the file that `store_url` means; None for PostgreSQL.

    Raises:
        ConfigurationError: the URL cannot work, or the home folder is not known.
    """
    if check_storage_url(store_url) == "postgresql":
        return None
    if store_url != "sqlite":
        return Path(store_url.removeprefix("sqlite:///")).absolute()
    try:
        folder = Path(environ.get("AGENTRUN_HOME") or "~/.agentrun").expanduser()
    except RuntimeError:
        raise ConfigurationError("there is no home folder to keep state in: set AGENTRUN_HOME or store_url") from None
    return folder.absolute() / _FILE


def storage_is_there(store_url: str) -> bool:
    """Tell whether anything can be in the store: a file that is not there yet has nothing."""
    path = sqlite_path(store_url)
    # `Path.exists` raises where it may not look; whoever needs the store is told then.
    return path is None or os.path.exists(path)  # noqa: PTH110


def shown_url(url: str) -> str:
    """Return `url` without credentials and options; hidden as a whole where they cannot be told from the rest."""
    scheme, found, rest = url.partition("://")
    place, asks, options = rest.partition("?")
    _, at, place = place.rpartition("@")
    hosts = place.partition("/")[0]
    is_clear = found and _SCHEME.fullmatch(scheme) and _PLACE.fullmatch(place) and "@" not in options
    if not is_clear or (hosts and not all(map(_is_host, hosts.split(",")))):
        return HIDDEN
    return f"{scheme}://{HIDDEN + at if at else ''}{place}{asks + HIDDEN if asks else ''}"


def shown_storage_url(store_url: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return where things are kept, in the form of `store_url`: a file by its absolute path, else what may be shown.

    Raises:
        ConfigurationError: the URL cannot work, or the home folder is not known.
    """
    path = sqlite_path(store_url, environ)
    return shown_url(store_url) if path is None else f"sqlite:///{path}"


async def open_storage(
    store_url: str,
    *,
    bus_redis_url: str | None = None,
    durable: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> Storage:
    """Open the store that `store_url` means (see `check_storage_url`), and the bus.

    Args:
        store_url: where records, events and leases are.
        bus_redis_url: Redis by which processes wake each other; without it, each wakes its own readers alone.
        durable: SQLite syncs to the disk before a commit returns. PostgreSQL does as it is configured.
        environ: where ``AGENTRUN_HOME`` is looked for.

    Raises:
        ConfigurationError: a URL cannot work, or a package it needs is missing. The text does not hold the URL.
        SchemaVersionError: the store is from a newer release.
        StorageUnavailableError: the store cannot be reached. Redis may be away: readers look by themselves.
    """
    path = sqlite_path(store_url, environ)
    bus = _open_bus(bus_redis_url)
    try:
        store = await (_open_postgres(store_url) if path is None else _open_sqlite(path, durable))
    except BaseException:
        await bus.aclose()
        raise
    logger.info("store opened", extra={"store": shown_storage_url(store_url, environ)})
    return Storage(store, store, bus)


def _open_bus(url: str | None) -> Bus:
    """Return the bus, which connects when it is used."""
    if url is None:
        return LocalBus()
    try:
        from agentrun_server.storage.redis_bus import RedisBus

        return RedisBus(url)
    except (ImportError, ValueError) as exc:  # both say what to do, and hold no URL
        raise ConfigurationError(f"bus_redis_url: {exc}") from None


async def _open_postgres(url: str) -> "PostgresStore":
    try:
        from agentrun_server.storage.postgres import PostgresStore

        return await PostgresStore.open(url)
    except (ImportError, ValueError) as exc:  # as above
        raise ConfigurationError(f"store_url: {exc}") from None


async def _open_sqlite(path: Path, durable: bool) -> "SQLiteStore":
    """Open the file in a thread: it waits for the disk, and for the turn of other processes."""
    from agentrun_server.storage.sqlite import SQLiteStore

    opening = asyncio.ensure_future(asyncio.to_thread(SQLiteStore, path, durable=durable))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # Nothing stops the thread, which waits for its turn a few seconds at most; then nobody wants the store.
        with contextlib.suppress(StorageError):
            await (await opening).aclose()
        raise
    except StorageUnavailableError as exc:
        # Callers are told no more than that it cannot be reached.
        logger.error("the store cannot be opened", extra={"reason": str(exc)})
        raise
