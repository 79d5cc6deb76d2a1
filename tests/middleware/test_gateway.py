import logging
from typing import Any

import pytest

from agentrun_middleware.access_log import AccessLogMiddleware
from agentrun_middleware.asgi import Scope
from agentrun_middleware.client_address import ClientAddressMiddleware
from agentrun_middleware.gateway import GatewayMiddleware
from agentrun_middleware.principal import Principal
from agentrun_middleware.state import principal_of
from tests.middleware.calls import Answer, Behind, call, http_scope, websocket_scope

GATEWAY = ("10.0.0.1", 4711)
ALICE = [("x-auth-subject", "alice"), ("x-auth-issuer", "https://issuer.example/")]
REFUSED = (401, "invalid_request_error", "missing_api_key")


def gateway(app: Behind, **options: Any) -> GatewayMiddleware:
    return GatewayMiddleware(app, **{"trusted_proxies": ["10.0.0.1"], **options})


async def ask(*headers: tuple[str, str], peer: tuple[str, int] | None = GATEWAY, **more: Any) -> tuple[Behind, Answer]:
    app = Behind()
    answer = await call(gateway(app), http_scope(headers=headers, client=peer, **more))
    return app, answer


class TestTheGateway:
    async def test_it_names_the_caller(self) -> None:
        app, answer = await ask(*ALICE, ("x-auth-scopes", "chat models:research"))
        assert answer.status == 200
        assert principal_of(app.scope) == Principal(
            "alice", "https://issuer.example/", frozenset({"chat", "models:research"})
        )

    @pytest.mark.parametrize("scopes", [None, "", " ", "  "])
    async def test_a_caller_may_have_no_scopes(self, scopes: str | None) -> None:
        app, _ = await ask(*ALICE, *([] if scopes is None else [("x-auth-scopes", scopes)]))
        principal = principal_of(app.scope)
        assert principal is not None
        assert principal.scopes == frozenset()

    async def test_its_headers_do_not_reach_the_app_and_others_do(self) -> None:
        headers = [*ALICE, ("x-auth-scopes", "chat"), ("x-auth-roles", "admin"), ("x-auth-email", "a@b"), ("host", "h")]
        app, _ = await ask(*headers)
        assert app.scope["headers"] == [(b"host", b"h")]

    async def test_the_state_of_other_requests_is_left_alone(self) -> None:
        shared: dict[str, Any] = {}
        app, _ = await ask(*ALICE, state=shared)
        assert shared == {}
        assert principal_of(app.scope) is not None

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            ALICE[:1],
            ALICE[1:],
            [("x-auth-user", "alice")],
            [("x-auth-scopes", "chat")],
            [*ALICE, ALICE[0]],
            [*ALICE, ALICE[1]],
            [*ALICE, ("x-auth-subject", "root")],
            [*ALICE, ("x-auth-scopes", "a"), ("x-auth-scopes", "b")],
            [("x-auth-subject", ""), ALICE[1]],
            [("x-auth-subject", "alice, root"), ALICE[1]],
            [("x-auth-subject", "alice bob"), ALICE[1]],
            [("x-auth-subject", "alice\n"), ALICE[1]],
            [("x-auth-subject", "alic\xe9"), ALICE[1]],
            [("x-auth-subject", "a" * 256), ALICE[1]],
            [ALICE[0], ("x-auth-issuer", "")],
            [ALICE[0], ("x-auth-issuer", "https://one https://two")],
            [ALICE[0], ("x-auth-issuer", "https://issuer|mallory")],
            [ALICE[0], ("x-auth-issuer", "\xfc")],
            [*ALICE, ("x-auth-scopes", 'chat "admin"')],
            [*ALICE, ("x-auth-scopes", "chat\tadmin")],
            [*ALICE, ("x-auth-scopes", "\xe9")],
        ],
    )
    async def test_what_it_says_badly_or_twice_counts_for_nothing(self, headers: list[tuple[str, str]]) -> None:
        app, answer = await ask(*headers)
        assert answer.refusal() == REFUSED
        assert answer.header("www-authenticate") == 'Bearer realm="api"'
        assert app.scopes == []


class TestAnybodyElse:
    @pytest.mark.parametrize("peer", [("10.0.0.2", 1), ("127.0.0.1", 1), ("203.0.113.7", 1), ("testclient", 1), None])
    async def test_is_refused_whatever_he_says(self, peer: tuple[str, int] | None) -> None:
        app, answer = await ask(*ALICE, ("x-forwarded-for", "10.0.0.1"), peer=peer)
        assert answer.refusal() == REFUSED
        assert app.scopes == []

    async def test_does_not_pass_with_a_trusted_address_that_another_middleware_has_read(self) -> None:
        """The peer counts, and it may be a proxy that anybody can speak through."""
        app = Behind()
        served = ClientAddressMiddleware(gateway(app), trusted_proxies=["192.0.2.0/24"])
        scope = http_scope(headers=[*ALICE, ("x-forwarded-for", "10.0.0.1")], client=("192.0.2.1", 1))
        assert (await call(served, scope)).refusal() == REFUSED
        assert app.scopes == []

    async def test_the_gateway_passes_behind_that_middleware(self) -> None:
        app = Behind()
        served = ClientAddressMiddleware(gateway(app), trusted_proxies=["10.0.0.0/8"])
        scope = http_scope(headers=[*ALICE, ("x-forwarded-for", "203.0.113.9")], client=GATEWAY)
        assert (await call(served, scope)).status == 200
        assert app.scope["client"] == ("203.0.113.9", 0)

    async def test_a_unix_socket_is_believed_if_it_is_asked_for(self) -> None:
        where: dict[str, Any] = {"client": None, "server": ("/run/app.sock", None)}
        app = Behind()
        scope = http_scope(headers=ALICE, **where)
        assert (await call(gateway(app), scope)).status == 401
        scope = http_scope(headers=ALICE, **where)
        assert (await call(gateway(app, trusted_proxies=[], trust_unix_socket=True), scope)).status == 200


class TestPublicPaths:
    @pytest.mark.parametrize("peer", [GATEWAY, ("203.0.113.7", 1)])
    async def test_they_need_no_caller_and_get_none(self, peer: tuple[str, int]) -> None:
        app = Behind()
        scope = http_scope("/about", headers=[*ALICE, ("host", "h")], client=peer)
        answer = await call(gateway(app, public_paths=["/about"]), scope)
        assert answer.status == 200
        assert app.scope["headers"] == [(b"host", b"h")]
        assert principal_of(app.scope) is None

    @pytest.mark.parametrize("path", ["/about/", "/About", "//about", "/about/x", "/", "/x/about", "/abou", ""])
    async def test_they_are_compared_exactly(self, path: str) -> None:
        app = Behind()
        answer = await call(gateway(app, public_paths=["/about"]), http_scope(path))
        assert answer.refusal() == REFUSED
        assert app.scopes == []


class TestWebSockets:
    async def test_a_handshake_passes_with_its_caller(self) -> None:
        app = Behind()
        answer = await call(gateway(app), websocket_scope(headers=ALICE, client=GATEWAY))
        assert [message["type"] for message in answer.messages] == ["websocket.accept"]
        principal = principal_of(app.scope)
        assert principal is not None
        assert principal.subject == "alice"

    async def test_one_without_is_answered_or_closed(self) -> None:
        app = Behind()
        answer = await call(gateway(app), websocket_scope(denial=True, client=GATEWAY))
        assert answer.refusal() == REFUSED
        answer = await call(gateway(app), websocket_scope(headers=ALICE))
        assert answer.messages == [{"type": "websocket.close", "code": 1008, "reason": "missing_api_key"}]
        assert app.scopes == []


async def test_the_lifespan_passes_and_what_is_unknown_does_not() -> None:
    app = Behind()
    await call(gateway(app), {"type": "lifespan"})
    assert len(app.scopes) == 1
    with pytest.raises(ValueError, match="unknown kind of connection"):
        await call(gateway(app), {"type": "webtransport", "path": "/", "headers": []})
    assert len(app.scopes) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trusted_proxies": ["*"]}, "may not be"),
        ({"trusted_proxies": []}, "is empty"),
        ({"public_paths": "/about"}, "not one string"),
        ({"public_paths": ["about"]}, "begins with '/'"),
        ({"realm": 'a"b'}, "realm"),
        ({"realm": "a\n"}, "realm"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gateway(Behind(), **options)


@pytest.mark.parametrize(
    ("headers", "peer", "reason"),
    [
        (ALICE, ("203.0.113.7", 1), "not from the gateway"),
        ([], GATEWAY, "the gateway names no caller"),
        ([*ALICE, *ALICE], GATEWAY, "an identity header comes twice"),
        ([("x-auth-subject", "canary canary"), ALICE[1]], GATEWAY, "an identity header is malformed"),
    ],
)
async def test_the_log_has_the_reason_and_the_caller_does_not(
    headers: list[tuple[str, str]], peer: tuple[str, int], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, answer = await ask(*headers, peer=peer)
    (record,) = caplog.records
    assert (record.name, record.message) == ("agentrun_middleware.gateway", "authentication refused")
    assert {key: vars(record)[key] for key in ("status", "reason", "client")} == {
        "status": 401,
        "reason": reason,
        "client": peer[0],
    }
    assert reason.encode() not in answer.body
    assert "canary" not in str(vars(record))


async def test_the_access_log_in_front_has_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scope: Scope = http_scope(headers=ALICE, client=GATEWAY)
    await call(AccessLogMiddleware(gateway(Behind())), scope)
    (record,) = caplog.records
    assert (vars(record)["subject"], vars(record)["issuer"]) == ("alice", "https://issuer.example/")
