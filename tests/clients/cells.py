"""What a table of clients says: scenarios, who sees what in them, and why somebody sees less.

`expected` and `responses_expected` are such tables. A test for each of their cells holds the server to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["HIDDEN", "Client", "Table"]

HIDDEN: Final = object()
"""Stands for a value that a client has no way to show."""


@dataclass(frozen=True, eq=False)
class Client:
    """A client, and where it sees less or something else than its table's scenarios say."""

    environment: str
    driver: str
    arguments: tuple[str, ...] = ()
    server: str = "uvicorn"
    words: Mapping[str, str] = field(default_factory=dict)
    """The client's own names for what the official Python client calls otherwise."""
    hides: Mapping[str, str] = field(default_factory=dict)
    """Keys the client shows in no scenario, each with the reason."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Scenarios the client cannot play, each with the reason."""
    differs: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Scenarios in which the client sees something else: the reason, and the values it sees instead."""


@dataclass(frozen=True)
class Table:
    """Scenarios, each with what a client sees that loses nothing, and the clients that play them."""

    scenarios: Mapping[str, Mapping[str, Any]]
    clients: Mapping[str, Client]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Names of a client and of a scenario it plays."""
        return [(name, scenario) for name in self.clients for scenario in self.played_by(name)]

    def played_by(self, name: str) -> list[str]:
        """Return the scenarios that the client `name` plays."""
        return [scenario for scenario in self.scenarios if scenario not in self.clients[name].lacks]

    def expected(self, name: str, scenario: str) -> dict[str, Any]:
        """Return what the client `name` must see in `scenario`."""
        client = self.clients[name]
        _, instead = client.differs.get(scenario, ("", {}))
        seen = {
            key: instead.get(key, _in_words(value, client.words))
            for key, value in self.scenarios[scenario].items()
            if key not in client.hides
        }
        return {key: value for key, value in seen.items() if value is not HIDDEN}


def _in_words(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return words.get(value, value)
    if isinstance(value, list):
        return [_in_words(item, words) for item in value]
    return value
