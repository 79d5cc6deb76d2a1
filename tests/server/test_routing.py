"""Paths with parts that vary."""

from collections.abc import Mapping
from typing import Any

import pytest

from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.routing import Routes


class Named:
    """An app that only knows which route made it, and from what."""

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        self.name = name
        self.params = dict(params)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


def routes(*prefixes: str) -> Routes:
    found = Routes(prefixes or ("/v1", ""))

    def make(name: str) -> Any:
        return lambda params: Named(name, params)

    for method, template in (
        ("GET", "/responses/{id}"),
        ("DELETE", "/responses/{id}"),
        ("POST", "/responses/{id}/cancel"),
        ("POST", "/responses/compact"),
        ("GET", "/conversations/{id}/items/{item}"),
        ("GET", "/conversations/recent/items/{item}"),
    ):
        found.add(method, template, make(f"{method} {template}"))
    return found


def found(path: str, method: str = "GET", *prefixes: str) -> tuple[str, dict[str, str]] | None:
    match = routes(*prefixes).find(path)
    app: ASGIApp | None = None if match is None else match.app(method)
    if app is None:
        return None
    assert isinstance(app, Named)
    return app.name, app.params


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("end", ["", "/"])
def test_the_parts_that_vary_are_handed_over(prefix: str, end: str) -> None:
    assert found(f"{prefix}/responses/r1{end}") == ("GET /responses/{id}", {"id": "r1"})
    assert found(f"{prefix}/conversations/c1/items/i 1%2f{end}") == (
        "GET /conversations/{id}/items/{item}",
        {"id": "c1", "item": "i 1%2f"},
    )


def test_the_method_chooses_among_those_of_the_path() -> None:
    assert found("/v1/responses/r1", "DELETE") == ("DELETE /responses/{id}", {"id": "r1"})
    assert found("/v1/responses/r1", "HEAD") == ("GET /responses/{id}", {"id": "r1"})
    assert found("/v1/responses/r1", "PUT") is None
    match = routes().find("/v1/responses/r1")
    assert match is not None
    assert set(match.methods) == {"GET", "DELETE"}
    only_post = routes().find("/v1/responses/r1/cancel")
    assert only_post is not None
    assert only_post.app("HEAD") is None


def test_what_is_written_out_goes_before_what_varies() -> None:
    assert found("/v1/responses/compact", "POST") == ("POST /responses/compact", {})
    assert found("/v1/responses/compact") is None
    assert found("/v1/conversations/recent/items/i") == ("GET /conversations/recent/items/{item}", {"item": "i"})


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v1/responses",
        "/v1/responses/",
        "/v1/responses//cancel",
        "/v1/responses/r1//",
        "/v1/responses/r1/cancel/now",
        "/v1//responses/r1",
        "/v2/responses/r1",
        "/v1responses/r1",
        "/conversations//items/i",
        "responses/r1",
    ],
)
def test_other_paths_are_no_routes(path: str) -> None:
    assert found(path, "POST") is None
    assert found(path) is None


def test_the_longest_prefix_counts() -> None:
    """Else ``/v1`` would be taken for an id behind the empty one."""
    names = Routes(("", "/v1"))
    names.add("GET", "/{id}/items", lambda params: Named("items", params))
    names.add("GET", "/items", lambda params: Named("all", params))
    match = names.find("/v1/items")
    assert match is not None
    app = match.app("GET")
    assert isinstance(app, Named)
    assert (app.name, app.params) == ("all", {})


def test_without_the_empty_prefix_nothing_is_found_beside_the_others() -> None:
    assert found("/v1/responses/r1", "GET", "/v1") is not None
    assert found("/responses/r1", "GET", "/v1") is None
    assert Routes(()).find("/responses/r1") is None


def test_the_templates_are_told_with_their_methods_in_the_order_of_the_search() -> None:
    assert [(template, set(methods)) for template, methods in routes()] == [
        ("/responses/compact", {"POST"}),
        ("/responses/{id}", {"GET", "DELETE"}),
        ("/responses/{id}/cancel", {"POST"}),
        ("/conversations/recent/items/{item}", {"GET"}),
        ("/conversations/{id}/items/{item}", {"GET"}),
    ]
