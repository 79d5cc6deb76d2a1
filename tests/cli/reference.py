"""Writes the tables of ``docs/cli.md`` from the settings: ``python -m tests.cli.reference``."""

from pathlib import Path

from agentrun_server.cli.settings import (
    NETWORK_SETTINGS,
    SERVER_SETTINGS,
    TARGET_SETTINGS,
    Setting,
    value_text,
)

__all__ = ["BEGIN", "END", "PAGE", "between_markers", "tables"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

BEGIN = "<!-- settings: written by python -m tests.cli.reference -->\n"
END = "<!-- settings: end -->\n"


def tables() -> str:
    """Return a table for each section of the settings."""
    sections: dict[str, list[str]] = {}
    for setting in (*NETWORK_SETTINGS, *TARGET_SETTINGS, *SERVER_SETTINGS):
        sections.setdefault(setting.section, []).append(_row(setting))
    head = "| flag | variable | default | what it does |\n|---|---|---|---|\n"
    return "\n".join(f"### {title}\n\n{head}{''.join(rows)}" for title, rows in sections.items())


def _row(setting: Setting) -> str:
    flags = " / ".join(f"`{flag}`" for flag in setting.flags)
    variables = ", ".join(f"`{name}`" for name in (setting.variable, *setting.standard))
    choices = f" One of {', '.join(f'`{choice}`' for choice in setting.choices)}." if setting.choices else ""
    return f"| {flags} | {variables} | {_default(setting)} | {setting.help}{choices} |\n"


def _default(setting: Setting) -> str:
    if setting.kind == "switch":
        return "on" if setting.default else "off"
    return f"`{value_text(setting.default)}`" if setting.default not in (None, "", ()) else "–"  # noqa: RUF001


def between_markers(text: str) -> str:
    """Return what stands between the markers of the page."""
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Rewrite the tables of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
