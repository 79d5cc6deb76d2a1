"""API keys as credentials: `APIKeyMiddleware`, and `APIKeyVerifier` for use beside other kinds.

    from agentrun_middleware.api_key import APIKeyMiddleware
    app = APIKeyMiddleware(app, keys="keys.json")

`key_record` says what a key is, `key_file` and `key_store` where records come from. Here it is decided whether a key
is good: its form first, before anybody is asked for its record; then its hash, compared in constant time, with a dummy
when there is no such key; then whether it was revoked or has expired.
"""

import os
import time
from collections.abc import Callable, Collection
from hmac import compare_digest
from typing import TypeAlias

from agentrun_middleware.asgi import ASGIApp
from agentrun_middleware.authentication import AuthenticationMiddleware, CredentialRefusedError
from agentrun_middleware.key_file import KeyFile
from agentrun_middleware.key_record import KEY_PREFIX, KeyRecord, Pepper, id_of
from agentrun_middleware.key_store import AskedKeys, FileKeys, KeyFunction, KeyStore
from agentrun_middleware.principal import FrozenDict, Principal, is_issuer

__all__ = ["APIKeyMiddleware", "APIKeyVerifier", "KeyFile", "KeyRecord", "Keys", "Pepper"]

Keys: TypeAlias = str | os.PathLike[str] | KeyFile | KeyFunction
"""Where keys are: a file made with ``agentrun-server keys``, or a function from a key's id to its record."""

_NO_HASH = "0" * 64
"""Compared with when there is no such key; no key hashes to it."""


class APIKeyVerifier:
    """Judges API keys.

    Args:
        keys: where they are.
        pepper: under what they are hashed. It may be left out for a file: then it is in ``<file>.pepper``.
        issuer: `Principal.issuer` of every caller with a key.
        cache_ttl: with a function, seconds that its answers count; 0 asks for each request.
        timeout: with a function, seconds that it may take.
        clock, wall_clock: seconds that only grow, and seconds since 1970.

    Raises:
        ValueError: an argument cannot work, or the file cannot be used (`KeyFileError`).
    """

    def __init__(
        self,
        keys: Keys,
        *,
        pepper: Pepper | str | bytes | None = None,
        issuer: str = "api_key",
        cache_ttl: float = 30.0,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not is_issuer(issuer):
            raise ValueError("issuer: printable ASCII without '|'")
        self._issuer = issuer
        self._now = wall_clock
        self._store: KeyStore
        if callable(keys):
            if pepper is None:
                raise ValueError("keys of a function need the pepper that they are hashed with")
            self._pepper = pepper if isinstance(pepper, Pepper) else Pepper(pepper)
            self._store = AskedKeys(keys, ttl=cache_ttl, timeout=timeout, clock=clock)
        else:
            if isinstance(keys, KeyFile) and pepper is not None:
                raise ValueError("a KeyFile has its pepper: give it there alone")
            file = keys if isinstance(keys, KeyFile) else KeyFile(keys, pepper)
            self._store = FileKeys(file, clock=clock)
            self._pepper = file.pepper()

    def recognises(self, credential: str) -> bool:
        """Return whether `credential` begins as an API key does."""
        return credential.startswith(KEY_PREFIX)

    async def verify(self, credential: str) -> Principal:
        """Return whose key `credential` is.

        Raises:
            CredentialRefusedError: it is no key that is good now.
            VerifierUnavailableError: its record cannot be found now.
        """
        key_id = id_of(credential)
        if key_id is None:
            raise CredentialRefusedError("it has not the form of an API key")
        record = await self._store.find(key_id)
        same = compare_digest(self._pepper.hash(credential), _NO_HASH if record is None else record.hash)
        if record is None:
            raise CredentialRefusedError(f"there is no API key {key_id}")
        if not same:
            raise CredentialRefusedError(f"it is not the API key {key_id}")
        state = record.state(self._now())
        if state != "active":
            raise CredentialRefusedError(f"the API key {key_id} is {state}")
        claims = FrozenDict(key_id=record.id, key_name=record.name)
        return Principal(record.subject, self._issuer, record.scopes, claims)

    async def aclose(self) -> None:
        """End questions to the store that are open."""
        await self._store.aclose()


class APIKeyMiddleware(AuthenticationMiddleware):
    """Lets requests pass that carry a good API key.

    Args:
        app: the app behind.
        keys, pepper, issuer, cache_ttl, timeout: see `APIKeyVerifier`.
        required_scopes, public_paths, realm: see `AuthenticationMiddleware`.

    Raises:
        ValueError: an argument cannot work, or the file cannot be used (`KeyFileError`).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        pepper: Pepper | str | bytes | None = None,
        issuer: str = "api_key",
        cache_ttl: float = 30.0,
        timeout: float = 5.0,
        required_scopes: Collection[str] = (),
        public_paths: Collection[str] = (),
        realm: str = "api",
    ) -> None:
        verifier = APIKeyVerifier(keys, pepper=pepper, issuer=issuer, cache_ttl=cache_ttl, timeout=timeout)
        super().__init__(
            app, verifiers=[verifier], required_scopes=required_scopes, public_paths=public_paths, realm=realm
        )
