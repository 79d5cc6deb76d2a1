"""docs/migrating.md knows every event and every public name of the AgentRun SDK that is here."""

import re

import agentrun_server
from agentrun_server import EventType
from tests.docs.markdown import ROOT, table_rows

ROWS = table_rows(ROOT / "docs" / "migrating.md")


def _names(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_event_type_has_a_row_that_leads_to_a_typed_event() -> None:
    rows = {row[0].strip("`"): row for row in ROWS if row[0].strip("`") in EventType.__members__}
    assert set(rows) == set(EventType.__members__)
    targets = {match[1] for row in rows.values() if (match := re.search(r"`events\.(\w+)`", row[2]))}
    assert len(targets) == len(EventType) - 1, "all but TEXT, which is a str"
    assert all(hasattr(agentrun_server.events, name) for name in targets)


def test_names_that_are_said_to_be_the_same_are_there() -> None:
    same = {name for row in ROWS if row[1] == "the same" for name in _names(row[0])}
    assert len(same) > 20
    assert same <= set(agentrun_server.__all__)


def test_names_that_are_said_to_be_missing_are_missing() -> None:
    missing = {name for row in ROWS if row[1] == "not here yet" for name in _names(row[0])}
    assert not missing & set(agentrun_server.__all__)
