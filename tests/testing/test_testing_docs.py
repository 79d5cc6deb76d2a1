"""Every block of docs/testing.md is a test file that passes."""

import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
BLOCK = re.compile(r"^## (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def recipes() -> list[Any]:
    """Return each test function of each block, with the heading it stands under."""
    found = []
    heading = ""
    for match in BLOCK.finditer(PAGE.read_text("utf-8")):
        heading = match["heading"] or heading
        if match["code"] is None:
            continue
        namespace: dict[str, Any] = {"__name__": f"testing.md: {heading}"}
        exec(compile(match["code"], f"{PAGE.name}: {heading}", "exec"), namespace)
        found += [
            pytest.param(value, id=f"{heading.partition('.')[0]}-{name}")
            for name, value in namespace.items()
            if name.startswith("test_") and inspect.isfunction(value)
        ]
    return found


@pytest.mark.parametrize("test", recipes())
async def test_the_page_tells_the_truth(test: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        await test()


def test_the_page_has_five_recipes_with_tests() -> None:
    assert {str(param.id).partition("-")[0] for param in recipes()} == {"1", "2", "3", "4", "5"}
