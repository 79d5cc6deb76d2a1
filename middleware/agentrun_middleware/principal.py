"""Who is calling."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

__all__ = ["MODEL_SCOPE", "FrozenDict", "Principal", "freeze", "is_issuer", "is_scope", "is_subject"]

MODEL_SCOPE = "models:"
"""Prefix of the scopes that name a model: ``models:research``; ``models:*`` is every model."""

_SUBJECT = re.compile(r"[A-Za-z0-9._@:|+/=~-]{1,255}", re.ASCII)
_ISSUER = re.compile(r"[\x21-\x7b}~]{1,255}", re.ASCII)
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,255}", re.ASCII)


def is_subject(text: object) -> bool:
    """Return whether `text` can name a caller: short, printable ASCII, safe in a header, a log line and a key."""
    return isinstance(text, str) and _SUBJECT.fullmatch(text) is not None


def is_issuer(text: object) -> bool:
    """Return whether `text` can name an issuer: printable ASCII without ``|``, which ends it in `Principal.id`."""
    return isinstance(text, str) and _ISSUER.fullmatch(text) is not None


def is_scope(text: object) -> bool:
    """Return whether `text` is one scope token (RFC 6749, section 3.3)."""
    return isinstance(text, str) and _SCOPE.fullmatch(text) is not None


def _frozen(*_: object, **__: object) -> NoReturn:
    raise TypeError("claims cannot be changed: one verified token serves many requests")


class FrozenDict(dict[str, Any]):
    """A dict nobody can change; it still goes into ``json.dumps`` and wherever a dict does."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _frozen
    clear = pop = popitem = setdefault = update = _frozen

    def __reduce__(self) -> tuple[type["FrozenDict"], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)  # for copy and pickle, which would fill an empty one


def freeze(value: Any) -> Any:
    """Return `value`, parsed JSON, with dicts that cannot be changed and tuples in place of lists."""
    if isinstance(value, dict):
        return FrozenDict((key, freeze(member)) for key, member in value.items())
    if isinstance(value, list):
        return tuple(freeze(member) for member in value)
    return value


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, as a middleware verified it. The same object serves all requests of one token."""

    subject: str
    """The caller's name at its issuer: ``sub`` of a token, the subject of an API key."""
    issuer: str
    """Who vouches for it: ``iss`` of a token. (issuer, subject) is unique, subject alone is not."""
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=FrozenDict, repr=False, hash=False)
    """Everything the token says; for an API key its id and name."""

    @property
    def id(self) -> str:
        """``issuer|subject``: the owner of what this caller stores."""
        return f"{self.issuer}|{self.subject}"

    def has(self, scopes: Iterable[str]) -> bool:
        """Return whether the caller has every one of `scopes`."""
        return self.scopes.issuperset(scopes)

    def models(self) -> Iterator[str]:
        """Yield the models that the scopes name; ``*`` is every model. Nothing when no scope is about models."""
        for scope in self.scopes:
            if scope.startswith(MODEL_SCOPE):
                yield scope[len(MODEL_SCOPE) :]
