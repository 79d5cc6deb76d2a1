"""The image, made once for all tests that run it."""

import shutil
from collections.abc import Iterator

import pytest

from tests.deploy.images import build_image
from tests.support.image import Image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Return what the Dockerfile makes."""
    scratch = tmp_path_factory.mktemp("image")
    yield build_image(scratch / "stages")
    shutil.rmtree(scratch)
