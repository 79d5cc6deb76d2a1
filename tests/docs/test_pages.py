"""Every page of the documentation runs, and its links lead somewhere."""

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT, anchors, blocks, links
from tests.docs.pages import PageRun, matches

TESTED_ELSEWHERE = {"testing.md"}
"""Pages whose Python blocks are run by a test of their own."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_a_page_runs_from_its_first_block_to_its_last(page: Path, tmp_path: Path) -> None:
    async with PageRun(tmp_path) as run:
        for block in blocks(page):
            if not (block.language == "python" and page.name in TESTED_ELSEWHERE):
                await run.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_of_docs_is_found_from_the_readme() -> None:
    linked = {ROOT / target.partition("#")[0] for target in links(ROOT / "README.md")}
    assert {page for page in PAGES if page.parent.name == "docs"} <= linked


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a…c", "abbbc", True),
        ("a…c", "abbb", False),
        ("a.c", "abc", False),
        ("HTTP/1.1 200 OK\n…\n\n{}", "HTTP/1.1 200 OK\r\ndate: now\r\n\r\n{}\n", True),
    ],
)
def test_an_ellipsis_stands_for_anything(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
