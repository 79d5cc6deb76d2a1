"""Reads the lock files: requirements with a version, hashes, and the environments they are for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.images import ROOT

__all__ = ["Locked", "locked", "required_here"]


@dataclass(frozen=True, slots=True)
class Locked:
    """One package of a lock file."""

    name: str
    version: str
    requirement: Requirement
    hashes: tuple[str, ...]


def locked(file: str) -> list[Locked]:
    """Return the packages of a lock file; anything else in it is an error."""
    text = (ROOT / file).read_text("utf-8").replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        plain, *hashes = re.split(r"\s+--hash=", line.strip())
        requirement = Requirement(plain)
        [pin] = requirement.specifier
        assert pin.operator == "==", line
        found.append(Locked(canonicalize_name(requirement.name), pin.version, requirement, tuple(hashes)))
    return found


def required_here(packages: Iterable[Locked]) -> list[Locked]:
    """Return the packages that this Python on this machine needs."""
    return [p for p in packages if p.requirement.marker is None or p.requirement.marker.evaluate()]
