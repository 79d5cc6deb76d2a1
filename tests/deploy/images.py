"""Builds the project's Dockerfile with `tests.support.image`: with which Python, which uv and which package index."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from scripts.client_envs import cache_root, python_environment
from tests.support.dockerfile import parse_dockerfile, split_stages
from tests.support.image import Base, Image, build

__all__ = ["DOCKERFILE", "PYTHON_IMAGE", "ROOT", "UV_IMAGE", "bare_image", "build_image", "network_environment", "uv"]

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")

_DEFAULTS, _ = split_stages(parse_dockerfile(DOCKERFILE.read_text("utf-8")), {})
PYTHON_IMAGE, UV_IMAGE = _DEFAULTS["PYTHON_IMAGE"], _DEFAULTS["UV_IMAGE"]

_HANDED_ON = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "PIP_CERT")


def uv() -> Path:
    """Return uv, which is installed first if need be."""
    return python_environment("uv").with_name("uv")


def bare_image(root: Path) -> Image:
    """Return an image with nothing but Debian, in the folder `root`, which it makes."""
    return Base(python=PYTHON).make(root)


def build_image(
    scratch: Path,
    *,
    dockerfile: Path = DOCKERFILE,
    context: Path = ROOT,
    bases: Mapping[str, Base | Image] | None = None,
) -> Image:
    """Carry out a Dockerfile; it may start from the images that ours starts from, and from `bases`."""
    index = package_index()
    return build(
        dockerfile,
        context=context,
        bases={PYTHON_IMAGE: Base(python=PYTHON), UV_IMAGE: Base(files={"/uv": uv()}), **(bases or {})},
        scratch=scratch,
        cache=cache_root() / "image",
        build_args={"UV_DEFAULT_INDEX": index} if index else {},
        environment=network_environment(),
    )


def network_environment() -> dict[str, str]:
    """Return what a program needs to reach the package index from here."""
    names = {name for proxy in _HANDED_ON for name in (proxy, proxy.lower())}
    index = package_index()
    handed_on = {name: os.environ[name] for name in sorted(names) if os.environ.get(name)}
    return handed_on | ({"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index} if index else {})


@cache
def package_index() -> str:
    """Return the index that uv, or pip, is set to use here in place of the usual one; empty when none is."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name]
    asked = shlex.split("config get global.index-url")
    said = subprocess.run([sys.executable, "-m", "pip", *asked], check=False, capture_output=True, text=True)
    return said.stdout.strip() if said.returncode == 0 else ""
