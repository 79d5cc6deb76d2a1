"""``Idempotency-Key``: the same request again gets the answer of the first, whether that has ended or still runs.

A key belongs to its owner and to one route. The record of it (kind ``idempotency``) is created together with that of
the run, so of any number of requests that come at once one runs the agent. It says which run that is, and what the
request was, as a hash: another request with the same key is a mistake, and is told so.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.storage.contracts import ConflictError, Create, Delete, Record, Store, Update

__all__ = ["HEADER", "Claim", "read_claim"]

HEADER: Final = b"idempotency-key"
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)
_KIND: Final = "idempotency"


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that says it must not be done twice."""

    id: str
    """Of the key's record: a hash of owner, route and key."""
    owner: str
    digest: str
    """Hash of the body."""
    ttl: float
    """Seconds for which the key is remembered."""

    def change(self, kind: str, run: str, now: float) -> Create:
        """Return what says that the run `run`, a record of `kind`, is that of this request."""
        body = {"digest": self.digest, "kind": kind, "run": run}
        # The status tells one record from the next of the same key.
        return Create(
            Record(kind=_KIND, id=self.id, owner=self.owner, body=body, status=run, expires_at=now + self.ttl)
        )

    def withdraw(self) -> Delete:
        """Return what forgets the key: nothing was done, and the request may come again."""
        return Delete(_KIND, self.id)

    async def find(self, store: Store, now: float) -> Record | None:
        """Return the record of the run that this request asked for before; None: it is new.

        Raises:
            InvalidRequestError: another request had the key, or the answer is gone.
            StorageError: the store cannot be read now.
        """
        known = await store.get(_KIND, self.id, self.owner)
        if known is None:
            return None
        if known.expires_at is not None and known.expires_at <= now:
            # As it was seen here: a twin may have begun anew just now.
            as_seen = Update(kind=_KIND, id=self.id, status="", expect_status={known.status})
            try:
                await store.commit([as_seen, self.withdraw()])
            except ConflictError:
                return await self.find(store, now)
            return None
        if known.body["digest"] != self.digest:
            raise InvalidRequestError(
                "This Idempotency-Key was used with another request. Use a new key for each request.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        run = await store.get(known.body["kind"], known.body["run"], self.owner)
        if run is None:
            still = await store.get(_KIND, self.id, self.owner)
            if still is None or still.status != known.status:
                # Between the two reads it was withdrawn together with its run.
                return await self.find(store, now)
            raise InvalidRequestError(
                "The answer to this Idempotency-Key has been deleted. Use a new key.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        return run


def read_claim(headers: Headers, owner: str, route: str, body: bytes, ttl: float) -> Claim | None:
    """Return what the request claims by its header; None without one.

    Raises:
        InvalidRequestError: the key is empty, too long, or not of printable ASCII; or there are two.
    """
    value = headers.first.get(HEADER)
    if value is None:
        return None
    key = value.decode("latin-1")
    if len(set(headers.getlist("Idempotency-Key"))) > 1:
        raise InvalidRequestError("There is more than one Idempotency-Key.", param="Idempotency-Key")
    if not _KEY.fullmatch(key):
        raise InvalidRequestError(
            "Idempotency-Key must have 1 to 255 printable ASCII characters.", param="Idempotency-Key"
        )
    # Lengths in front, so that no two of these read the same.
    text = "".join(f"{len(part)}:{part}" for part in (owner, route, key))
    return Claim(
        "idem_" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        owner,
        hashlib.sha256(body).hexdigest(),
        ttl,
    )
