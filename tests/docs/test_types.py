"""The Python of the documentation is correct for a type checker, as a reader's editor would show it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.markdown import PAGES, ROOT, Block, blocks
from tests.docs.pages import ADDRESS


def test_the_python_of_every_page_passes_mypy(tmp_path: Path) -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python" and not _calls_openai(block) and not block.note.startswith("not run:"):
                name = f"{page.stem.lower().replace('-', '_').replace('.', '_')}_{block.line}.py"
                (tmp_path / name).write_text(block.text, "utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--check-untyped-defs", "--cache-dir", ROOT / ".mypy_cache" / "docs", tmp_path],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{ROOT / 'middleware'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert checked.returncode == 0, checked.stdout[:4000] + checked.stderr


def _calls_openai(block: Block) -> bool:
    """Tell whether OpenAI's types are in play, which want more of a message than anyone writes in a few lines."""
    return ADDRESS in block.text or "openai_client" in block.text or "AsyncOpenAI" in block.text
