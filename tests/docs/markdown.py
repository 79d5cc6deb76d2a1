"""Reads Markdown as far as the tests of the documentation need it: fenced blocks, links, headings, tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "anchors", "blocks", "links", "prose", "table_rows"]

ROOT = Path(__file__).resolve().parents[2]

PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n`]*$")
_COMMENT = re.compile(r"^<!--\s*(?P<text>.*?)\s*-->$")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*#*$")


@dataclass(frozen=True)
class Block:
    """A fenced block. `note` is the comment right above it, `follows` the block it directly follows."""

    page: Path
    line: int
    language: str
    text: str
    note: str = ""
    follows: "Block | None" = None

    @property
    def where(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of `page`, in order."""
    found: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    comment, previous = "", None
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        fence = _FENCE.match(line)
        if fence is None:
            if line.strip():
                said = _COMMENT.match(line.strip())
                comment = said["text"] if said else ""
                previous = previous if said else None
            continue
        text = "".join(f"{inner.removeprefix(fence['indent'])}\n" for inner in _until_fence(numbered))
        block = Block(page, number, fence["language"], text, comment, previous)
        found.append(block)
        comment, previous = "", block
    return found


def _until_fence(numbered: Iterator[tuple[int, str]]) -> Iterator[str]:
    for _, line in numbered:
        if line.strip() == "```":
            return
        yield line
    raise AssertionError("a block is not closed")


def prose(page: Path) -> str:
    """Return `page` without its blocks and code spans."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "``", text)


def links(page: Path) -> list[str]:
    """Return the targets of the links of `page`."""
    return [match["target"] for match in _LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of `page`, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            plain = re.sub(r"[^\w\- ]", "", heading["text"].lower())
            anchor = plain.replace(" ", "-")
            repeated = sum(1 for known in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", known))
            found.add(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def table_rows(page: Path) -> list[list[str]]:
    """Return the cells of every row of every table of `page`, without heads and rulers."""
    rows: list[list[str]] = []
    head = True
    for line in page.read_text("utf-8").splitlines():
        if not line.startswith("|"):
            head = True
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if head or all(set(cell) <= set("-: ") for cell in cells):
            head = False
            continue
        rows.append(cells)
    return rows
