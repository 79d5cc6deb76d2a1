"""What an API key is: its form, its hash, and what is kept of it. No I/O.

A key reads ``ar_<id>_<secret>``. The id names the record, in lists and in logs, and is no secret; it is in lower case,
so that no database confuses two of them. The secret has 32 random letters and digits, 190 bits: nobody guesses it, so
it needs no slow hash. What is kept is HMAC-SHA256 of the whole key, under a pepper that is kept elsewhere: who steals
the records alone has nothing, and who can only write to them cannot add a key.
"""

import hmac
import re
import secrets
import string
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from agentrun_middleware.principal import is_scope, is_subject

__all__ = [
    "KEY_PREFIX",
    "MIN_PEPPER_BYTES",
    "KeyRecord",
    "Pepper",
    "id_of",
    "is_hash",
    "is_key_id",
    "moment",
    "new_key",
    "new_pepper",
]

KEY_PREFIX = "ar_"

MIN_PEPPER_BYTES = 32

_ID_ALPHABET = string.digits + string.ascii_lowercase
_SECRET_ALPHABET = string.digits + string.ascii_letters

_ID = re.compile(r"[0-9a-z]{8}")
_KEY = re.compile(KEY_PREFIX + r"([0-9a-z]{8})_[0-9A-Za-z]{32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_HINT = re.compile(r"[0-9A-Za-z]{0,4}")

_MAX_NAME = 100
_END_OF_9999 = 253402300799


def new_key() -> str:
    """Return a key that was never there before."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(32))
    return f"{KEY_PREFIX}{key_id}_{secret}"


def id_of(key: str) -> str | None:
    """Return the id that `key` carries, None when it has not the form of a key."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def is_key_id(text: object) -> bool:
    """Return whether `text` has the form of an id."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def is_hash(text: object) -> bool:
    """Return whether `text` has the form of a `Pepper.hash`."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def moment(seconds: float) -> str:
    """Return a time since 1970 in the form ``2027-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def new_pepper() -> str:
    """Return the text of a new pepper: 256 random bits."""
    return secrets.token_urlsafe(32)


class Pepper:
    """The secret under which keys are hashed; never shown.

    Args:
        secret: at least 32 bytes; of a text, spaces and line ends around it do not count.

    Raises:
        ValueError: it is shorter.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: str | bytes) -> None:
        # Environment variables may hold bytes that are not UTF-8.
        self._secret = secret.strip().encode("utf-8", "surrogateescape") if isinstance(secret, str) else secret
        if len(self._secret) < MIN_PEPPER_BYTES:
            raise ValueError(f"a pepper has at least {MIN_PEPPER_BYTES} bytes, this one has {len(self._secret)}")

    def __repr__(self) -> str:
        return "Pepper(***)"

    def hash(self, key: str) -> str:
        """Return what is kept of `key`: HMAC-SHA256 in hexadecimal digits."""
        return hmac.digest(self._secret, key.encode(), "sha256").hex()

    @property
    def check(self) -> str:
        """A value by which a store of hashes knows its pepper again; no key hashes to it."""
        return self.hash("the pepper of these keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is kept of a key. Times are seconds since 1970.

    Raises:
        ValueError: a field cannot be what it says; the message does not repeat the value.
    """

    id: str
    hash: str = field(repr=False)
    """`Pepper.hash` of the whole key."""
    name: str
    """What people call it; they may call several the same."""
    subject: str = ""
    """Who calls with it, as the app sees it; the id when left out."""
    scopes: frozenset[str] = frozenset()
    created_at: float
    expires_at: float | None = None
    """From this time on it is refused."""
    revoked_at: float | None = None
    """A key that has one is refused, whatever the time."""
    hint: str = ""
    """The key's last four characters, to find it again in a configuration."""

    def __post_init__(self) -> None:
        if not self.subject:
            object.__setattr__(self, "subject", self.id)
        for valid, problem in (
            (is_key_id(self.id), "id: 8 digits and lower-case letters"),
            (is_hash(self.hash), "hash: 64 hexadecimal digits in lower case"),
            (_is_name(self.name), f"name: 1 to {_MAX_NAME} printable characters"),
            (is_subject(self.subject), "subject: 1 to 255 letters, digits and . _ @ : | + / = ~ -"),
            (
                _are_scopes(self.scopes),
                'scopes: a set of words of printable ASCII, without " and \\',
            ),
            (_is_time(self.created_at), "created_at: seconds since 1970"),
            (self.expires_at is None or _is_time(self.expires_at), "expires_at: seconds since 1970, or None"),
            (self.revoked_at is None or _is_time(self.revoked_at), "revoked_at: seconds since 1970, or None"),
            (isinstance(self.hint, str) and _HINT.fullmatch(self.hint), "hint: at most 4 letters and digits"),
        ):
            if not valid:
                raise ValueError(problem)
        object.__setattr__(self, "scopes", frozenset(self.scopes))

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Return whether the key is good at the time `now`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    def shown(self) -> dict[str, Any]:
        """Return everything but the hash, for JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "subject": self.subject,
            "scopes": sorted(self.scopes),
            "created_at": moment(self.created_at),
            "expires_at": None if self.expires_at is None else moment(self.expires_at),
            "revoked_at": None if self.revoked_at is None else moment(self.revoked_at),
            "hint": self.hint,
        }


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()


def _are_scopes(value: object) -> bool:
    return isinstance(value, AbstractSet) and all(is_scope(scope) for scope in value)


def _is_time(value: object) -> bool:
    """Not NaN, which is after no time: such a key would never expire."""
    return isinstance(value, (int, float)) and 0 <= value <= _END_OF_9999
