"""docs/configuration.md says of every setting what the code says."""

import dataclasses

from agentrun_server import OpenAIProtocolConfig, ServerConfig
from agentrun_server.cli.settings import SERVER_SETTINGS, value_text
from tests.docs.markdown import ROOT, table_rows

ROWS = {row[0].strip("`"): row[1:] for row in table_rows(ROOT / "docs" / "configuration.md")}
NESTED = {field.name: field for field in dataclasses.fields(OpenAIProtocolConfig)}


def test_every_setting_has_its_row() -> None:
    fields = {field.name for field in dataclasses.fields(ServerConfig)}
    assert fields | set(NESTED) == set(ROWS)


def test_each_row_names_the_variable_and_the_default() -> None:
    said = {name: [cell.strip("`") for cell in ROWS[name][:2]] for name in ROWS if name not in NESTED}
    assert said.pop("openai") == ["none", "None"]
    assert said == {s.name: [s.variable, value_text(s.default)] for s in SERVER_SETTINGS}


def test_each_row_of_the_nested_settings_has_the_default() -> None:
    assert {name: ROWS[name][0].strip("`") for name in NESTED} == {
        name: repr(field.default) for name, field in NESTED.items()
    }


def test_each_row_tells_what_the_setting_means() -> None:
    assert all(len(row[-1]) > 10 for row in ROWS.values())


def test_what_is_a_choice_has_all_its_values() -> None:
    for setting in SERVER_SETTINGS:
        assert all(f"`{choice}`" in "".join(ROWS[setting.name]) for choice in setting.choices), setting.name
