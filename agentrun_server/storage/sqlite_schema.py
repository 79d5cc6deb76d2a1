"""The tables of the embedded store, and how an older file becomes a newer one.

`MIGRATIONS` only grows: entry n takes a file from version n to n + 1. The version of a file is SQLite's own
``user_version``. All missing steps are one transaction, so a file is old or new and never in between; a file from a
newer release is refused, because what it holds cannot be known, and so is a database of another program.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from agentrun_server.storage.contracts import SchemaVersionError

__all__ = ["MIGRATIONS", "migrate"]

_APPLICATION: Final = 0x41475253  # "AGRS", as ``file`` shows it

MIGRATIONS: Final[Sequence[str]] = (
    """
    CREATE TABLE records (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        owner TEXT NOT NULL,
        parent TEXT NOT NULL,
        status TEXT NOT NULL,
        body TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        version INTEGER NOT NULL,
        UNIQUE (id, kind)        -- in this order: parents and runs are looked for by id alone
    ) STRICT;
    CREATE INDEX records_by_owner ON records (kind, owner, position);
    CREATE INDEX records_by_parent ON records (parent, kind, position) WHERE parent <> '';
    CREATE INDEX records_by_status ON records (kind, status, position) WHERE status <> '';
    CREATE INDEX records_by_expiry ON records (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE events (
        run TEXT NOT NULL,
        first INTEGER NOT NULL,  -- number of the first event of this piece
        count INTEGER NOT NULL,
        data BLOB NOT NULL,      -- see codec.pack
        PRIMARY KEY (run, first)
    ) STRICT;
    CREATE TABLE leases (
        name TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        fence INTEGER NOT NULL,
        until REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE fences (last INTEGER NOT NULL) STRICT;
    INSERT INTO fences VALUES (0);
    """,
    # The oldest of a kind. Items have parents, so most records are not in it.
    """
    CREATE INDEX records_by_age ON records (kind, created_at, position) WHERE parent = '';
    """,
    # Items are named by their owner and the id that a client may have chosen: see `runs.item_record`.
    """
    UPDATE records SET id = owner || '/' || id WHERE kind = 'item';
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest version, inside the transaction that the caller has begun.

    Raises:
        SchemaVersionError: the file is newer than this release, or not ours.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != _APPLICATION and (version or tables):
        raise SchemaVersionError("the file is a database of another program")
    if version > len(MIGRATIONS):
        raise SchemaVersionError(
            f"the store has schema {version}, and this release knows {len(MIGRATIONS)}: it was written by a newer one"
        )
    for step in MIGRATIONS[version:]:
        for statement in step.split(";\n"):
            if statement.strip():
                connection.execute(statement)
    # Numbers of ours, not input; PRAGMA takes no parameters.
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
