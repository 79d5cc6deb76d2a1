"""Reads compose.yaml, and runs a service of it with `tests.support.image`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.images import ROOT
from tests.support.image import Container, Image, Volume, running
from tests.support.yaml_text import load_yaml

__all__ = ["COMPOSE", "SERVICES", "Machine", "seconds"]

COMPOSE: dict[str, Any] = load_yaml((ROOT / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def seconds(duration: str) -> float:
    """Return the seconds of a duration like ``50s``."""
    assert duration.endswith("s"), duration
    return float(duration[:-1])


@dataclass(frozen=True)
class Machine:
    """A machine that runs services; the volumes they share are in `folder`."""

    folder: Path

    @contextmanager
    def run(
        self,
        image: Image,
        name: str,
        *arguments: str,
        capabilities: Sequence[str] | None = None,
        places: Mapping[str, str] | None = None,
    ) -> Iterator[Container]:
        """Run the service `name`, with `arguments` in place of its command, as ``docker compose run`` does.

        `capabilities` are in place of those it adds; `places` are where `image` has what another has elsewhere.
        """
        service, places = SERVICES[name], places or {}
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        command = [*service.get("entrypoint", []), *(arguments or service.get("command", []))]
        with running(
            image,
            log=self.log(name),
            command=[word.replace("$$", "$") for word in command],
            env=service.get("environment"),
            user=service.get("user", ""),
            capabilities=service.get("cap_add", []) if capabilities is None else capabilities,
            volumes=[self._volume(image, volume) for volume in service.get("volumes", [])],
            tmpfs={places.get(path, path): mode for path, mode in map(_tmpfs, service.get("tmpfs", []))},
        ) as container:
            yield container

    def log(self, name: str) -> Path:
        """Return the file with what the service has printed."""
        return self.folder / f"{name}.log"

    def _volume(self, image: Image, volume: Mapping[str, Any]) -> Volume:
        if volume["type"] == "bind":
            return Volume(source=ROOT / volume["source"], target=volume["target"], read_only=volume["read_only"])
        assert volume["source"] in COMPOSE["volumes"]
        source = self.folder / volume["source"]
        return Volume.made(image, source, volume["target"], read_only=volume.get("read_only", False))


def _tmpfs(text: str) -> tuple[str, str]:
    """Return the path and the mode of ``path:size=1m,mode=0755``; without one it is that of /tmp."""
    path, _, options = text.partition(":")
    said = dict(option.split("=") for option in options.split(","))
    assert "size" in said, f"{path} could take all memory"
    return path, said.get("mode", "1777")
