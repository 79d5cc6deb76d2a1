"""The tables of the PostgreSQL store, and how an older schema becomes a newer one.

`MIGRATIONS` only grows: entry n takes a schema from version n to n + 1; the version stands in the table ``versions``.
All missing steps are one transaction, and an advisory lock lets one process take them while the others wait. A schema
from a newer release is refused.
"""

from collections.abc import Sequence
from typing import Any, Final

from agentrun_server.storage.contracts import SchemaVersionError

__all__ = ["MIGRATIONS", "migrate"]

_LOCK: Final = 0x41475253  # any number that all releases share
_LONGEST: Final = 600.0
"""Seconds that a step takes at most, here or in a process that goes first."""

MIGRATIONS: Final[Sequence[str]] = (
    """
    CREATE TABLE records (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind text NOT NULL,
        id text NOT NULL,
        owner text NOT NULL,
        parent text NOT NULL,
        status text NOT NULL,
        body text NOT NULL,
        created_at double precision NOT NULL,
        expires_at double precision,
        version integer NOT NULL,
        UNIQUE (id, kind)        -- in this order: parents and runs are looked for by id alone
    );
    CREATE INDEX records_by_owner ON records (kind, owner, position);
    CREATE INDEX records_by_parent ON records (parent, kind, position) WHERE parent <> '';
    CREATE INDEX records_by_status ON records (kind, status, position) WHERE status <> '';
    CREATE INDEX records_by_expiry ON records (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE events (
        run text NOT NULL,
        first bigint NOT NULL,   -- number of the first event of this piece
        count integer NOT NULL,
        data bytea NOT NULL,     -- see codec.pack
        PRIMARY KEY (run, first)
    );
    CREATE TABLE leases (
        name text PRIMARY KEY,
        holder text NOT NULL,
        fence bigint NOT NULL,
        until double precision NOT NULL
    );
    CREATE SEQUENCE fences;
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


async def migrate(connection: Any, schema: str) -> None:
    """Bring the tables in `schema` to the newest version, by a connection of asyncpg.

    Raises:
        SchemaVersionError: they are newer than this release.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_LONGEST)
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        await connection.execute("CREATE TABLE IF NOT EXISTS versions (version integer NOT NULL)")
        version: int = await connection.fetchval("SELECT coalesce(max(version), 0) FROM versions")
        if version > len(MIGRATIONS):
            raise SchemaVersionError(
                f"the store has schema {version}, and this release knows {len(MIGRATIONS)}: a newer one wrote it"
            )
        for step in MIGRATIONS[version:]:
            await connection.execute(step, timeout=_LONGEST)
        if version < len(MIGRATIONS):
            await connection.execute("INSERT INTO versions VALUES ($1)", len(MIGRATIONS))
