"""The certificate that every nginx of these tests has."""

from pathlib import Path

import pytest

from tests.support.nginx import make_certificate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a certificate that the shipped script has made."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
