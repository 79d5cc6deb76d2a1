"""The tables of clients and scenarios in `README.md`, written from `expected` and `responses_expected`.

python -m tests.clients.table     # write them anew
"""

from pathlib import Path
from typing import Final

from tests.clients.cells import HIDDEN, Client, Table
from tests.clients.expected import CHAT
from tests.clients.responses_expected import RESPONSES

README: Final = Path(__file__).with_name("README.md")
BEGIN: Final = "<!-- written by tests/clients/table.py -->\n"


def markdown() -> str:
    """Return the tables, and below each the reasons of every cell that is not plain."""
    return f"### Chat Completions\n\n{_table(CHAT)}\n### Responses\n\n{_table(RESPONSES)}"


def _table(table: Table) -> str:
    clients = table.clients
    lines = [
        f"| | {' | '.join(clients)} |",
        f"|---|{'---|' * len(clients)}",
        *(
            f"| {scenario} | {' | '.join(_cell(c, scenario) for c in clients.values())} |"
            for scenario in table.scenarios
        ),
        "",
    ]
    for name, client in clients.items():
        lines += [f"**{name}**", "", *_reasons(client), ""]
    return "\n".join(lines)


def _cell(client: Client, scenario: str) -> str:
    if scenario in client.lacks:
        return "-"
    return "≠" if scenario in client.differs else "✓"


def _reasons(client: Client) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for scenario, reason in client.lacks.items():
        by_reason.setdefault(f"{reason} (-)", []).append(scenario)
    for scenario, (reason, instead) in client.differs.items():
        seen = ", ".join(f"`{key}`: {_shown(value)}" for key, value in instead.items())
        by_reason.setdefault(f"{reason} (≠ {seen})", []).append(scenario)
    for key, reason in client.hides.items():
        by_reason.setdefault(f"{reason}: never shows", []).append(f"`{key}`")
    return [f"* {reason}: {', '.join(of)}" for reason, of in by_reason.items()]


def _shown(value: object) -> str:
    return "not shown" if value is HIDDEN else f"`{value}`"


def main() -> None:
    """Write the table into the page."""
    before, marker, _ = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{marker}\n{markdown()}", encoding="utf-8")


if __name__ == "__main__":
    main()
