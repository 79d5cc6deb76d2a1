"""Reads YAML as Compose and Kubernetes mean it: a key that comes twice is an error, and ``!reset`` is known."""

from collections.abc import Hashable
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["load_yaml", "load_yaml_documents"]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's own, but for what the module says."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        repeated = {name for name in names if isinstance(name, str) and names.count(name) > 1}
        if repeated and not getattr(node, "merged", False):
            raise yaml.constructor.ConstructorError(None, None, f"{sorted(repeated)} come twice", node.start_mark)
        node.merged = True  # the keys of anchors are put in front of its own, which then override them
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def _nothing(_loader: _Loader, _node: Any) -> None:
    return None


_Loader.add_constructor("!reset", _nothing)


def load_yaml(text: str) -> Any:
    """Return the one document of `text`."""
    return yaml.load(text, _Loader)


def load_yaml_documents(text: str) -> list[Any]:
    """Return all documents of `text`."""
    return list(yaml.load_all(text, _Loader))
