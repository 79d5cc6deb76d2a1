"""What every nginx of these tests has."""

from functools import partial
from pathlib import Path

import pytest

from tests.support.nginx import InFront, make_certificate, nginx


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a certificate that the shipped script has made."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def in_front(certificate: Path, tmp_path: Path) -> InFront:
    """Return what runs nginx in front of the ports it is called with."""
    return partial(nginx, tmp_path, certificate)
