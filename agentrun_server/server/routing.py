"""Paths with parts that vary, like ``/responses/{id}/cancel``: which handler answers to which method."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agentrun_server.server.asgi import ASGIApp

__all__ = ["Match", "Routes"]

MakeApp: TypeAlias = Callable[[Mapping[str, str]], ASGIApp]
"""Returns what answers a request, given the parts of its path."""


@dataclass(slots=True)
class _Route:
    segments: tuple[str, ...]
    methods: dict[str, MakeApp] = field(default_factory=dict[str, MakeApp])


@dataclass(frozen=True, slots=True)
class Match:
    """The route of a path."""

    methods: Mapping[str, MakeApp]
    params: Mapping[str, str]

    def app(self, method: str) -> ASGIApp | None:
        """Return what answers to `method`; HEAD is answered as GET is."""
        make = self.methods.get(method) or (self.methods.get("GET") if method == "HEAD" else None)
        return None if make is None else make(self.params)


class Routes:
    """Routes below some prefixes. A path is looked up among those with as many parts."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        # Longest first: the empty prefix is one of all paths.
        self._prefixes = sorted(prefixes, key=len, reverse=True)
        self._by_length: dict[int, list[_Route]] = {}

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, MakeApp]]]:
        """Yield the template of each path with what answers to its methods; short ones come first, as in `find`."""
        for _, routes in sorted(self._by_length.items()):
            for route in routes:
                yield "/" + "/".join(route.segments), route.methods

    def add(self, method: str, template: str, make: MakeApp) -> None:
        """Add a route; a part of `template` in braces matches anything that is not empty."""
        segments = tuple(template.split("/")[1:])
        routes = self._by_length.setdefault(len(segments), [])
        route = next((route for route in routes if route.segments == segments), None)
        if route is None:
            route = _Route(segments)
            # What is written out goes before what varies: "/responses/compact" is no response.
            routes.append(route)
            routes.sort(key=lambda one: sum(part.startswith("{") for part in one.segments))
        route.methods[method] = make

    def find(self, path: str) -> Match | None:
        """Return the route of `path`, with or without a slash at its end."""
        path = path.removesuffix("/")
        for prefix in self._prefixes:
            if path.startswith(f"{prefix}/"):
                found = self._match(path[len(prefix) + 1 :].split("/"))
                if found is not None:
                    return found
        return None

    def _match(self, segments: list[str]) -> Match | None:
        for route in self._by_length.get(len(segments), ()):
            params = _params(route.segments, segments)
            if params is not None:
                return Match(route.methods, params)
        return None


def _params(template: tuple[str, ...], segments: list[str]) -> dict[str, Any] | None:
    params: dict[str, Any] = {}
    for part, segment in zip(template, segments, strict=True):
        if part.startswith("{"):
            if not segment:
                return None
            params[part[1:-1]] = segment
        elif part != segment:
            return None
    return params
