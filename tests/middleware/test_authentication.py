import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from agentrun_middleware.asgi import Message, Receive, Scope, Send
from agentrun_middleware.authentication import (
    AuthenticationMiddleware,
    CredentialRefusedError,
    Verifier,
    VerifierUnavailableError,
)
from agentrun_middleware.credentials import IDENTITY_HEADERS, MAX_CREDENTIAL_BYTES
from agentrun_middleware.principal import Principal
from agentrun_middleware.state import principal_of
from tests.middleware.calls import PEER, Answer, Behind, call, http_scope, websocket_scope
from tests.support.clock import within
from tests.support.serve import serve

ALICE = Principal("alice", "https://issuer.example", frozenset({"chat", "files"}))
GOOD = ("authorization", "Bearer good-canary")
BAD = ("authorization", "Bearer bad-canary")

MISSING = {
    "message": "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer YOUR_KEY.",
    "type": "invalid_request_error",
    "param": None,
    "code": "missing_api_key",
}
INVALID = {
    "message": "Incorrect API key provided, or it has expired.",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_api_key",
}
MALFORMED = {
    "message": "Send one credential, in the Authorization header (Bearer) or in the api-key header.",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_request",
}
INSUFFICIENT = {
    "message": "Your API key does not allow this request.",
    "type": "invalid_request_error",
    "param": None,
    "code": "insufficient_scope",
}
UNAVAILABLE = {
    "message": "Authentication is not available at the moment.",
    "type": "server_error",
    "param": None,
    "code": "authentication_unavailable",
}
FAILED = {
    "message": "The server had an error while checking your API key.",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
}


class Known:
    """Vouches for one credential, of all that begin with `form`."""

    def __init__(self, credential: str = "good-canary", principal: Principal = ALICE, *, form: str = "") -> None:
        self.asked: list[str] = []
        self.closed = 0
        self._credential = credential
        self._principal = principal
        self._form = form

    def recognises(self, credential: str) -> bool:
        return credential.startswith(self._form)

    async def verify(self, credential: str) -> Principal:
        self.asked.append(credential)
        if credential != self._credential:
            raise CredentialRefusedError("it is not known")
        return self._principal

    async def aclose(self) -> None:
        self.closed += 1


class Remembering(Known):
    """Vouches a second time without being asked."""

    def __init__(self, *args: Any, recalled: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recalled = recalled

    def recall(self, credential: str) -> Principal | None:
        if isinstance(self._recalled, Exception):
            raise self._recalled
        return self._recalled if credential == self._credential else None


class Raising(Known):
    """Cannot judge."""

    def __init__(self, error: BaseException, *, at: str = "verify") -> None:
        super().__init__()
        self._error = error
        self._at = at

    def recognises(self, credential: str) -> bool:
        if self._at == "recognises":
            raise self._error
        return True

    async def verify(self, credential: str) -> Principal:
        raise self._error

    async def aclose(self) -> None:
        await super().aclose()
        if self._at == "aclose":
            raise self._error


def guarded(app: Callable[..., Any], *verifiers: Verifier, **options: Any) -> AuthenticationMiddleware:
    return AuthenticationMiddleware(app, verifiers=verifiers or (Known(),), **options)


async def ask(*headers: tuple[str, str], path: str = "/v1/models", **options: Any) -> tuple[Behind, Answer]:
    """Ask an app that only knows `GOOD`."""
    app = Behind()
    return app, await call(guarded(app, **options), http_scope(path, headers=headers))


def told(answer: Answer) -> tuple[int, dict[str, Any], str | None]:
    """Return status, error object and challenge of a refusal."""
    answer.refusal()  # it is one
    return answer.status, json.loads(answer.body)["error"], answer.header("www-authenticate")


class TestWhoPasses:
    @pytest.mark.parametrize(
        "headers",
        [
            [GOOD],
            [("authorization", "bearer good-canary")],
            [("authorization", "BEARER  good-canary")],
            [("api-key", "good-canary")],
            [GOOD, ("api-key", "good-canary")],
        ],
    )
    async def test_a_good_credential_does_and_the_app_knows_whose_it_is(self, headers: list[tuple[str, str]]) -> None:
        app, answer = await ask(*headers)
        assert (answer.status, answer.body) == (200, b"ok")
        assert principal_of(app.scope) is ALICE

    @pytest.mark.parametrize(
        ("headers", "refusal"),
        [
            ([], (401, MISSING, 'Bearer realm="api"')),
            ([("authorization", "Basic Z29vZC1jYW5hcnk=")], (401, MISSING, 'Bearer realm="api"')),
            ([("authorization", "good-canary")], (401, MISSING, 'Bearer realm="api"')),
            ([("cookie", "token=good-canary")], (401, MISSING, 'Bearer realm="api"')),
            ([BAD], (401, INVALID, 'Bearer realm="api", error="invalid_token"')),
            ([("api-key", "Good-canary")], (401, INVALID, 'Bearer realm="api", error="invalid_token"')),
            ([GOOD, GOOD], (400, MALFORMED, 'Bearer realm="api", error="invalid_request"')),
            ([BAD, GOOD], (400, MALFORMED, 'Bearer realm="api", error="invalid_request"')),
            ([GOOD, ("api-key", "bad-canary")], (400, MALFORMED, 'Bearer realm="api", error="invalid_request"')),
            ([("api-key", "good-canary")] * 2, (400, MALFORMED, 'Bearer realm="api", error="invalid_request"')),
            ([("authorization", "Bearer g\xf6od")], (400, MALFORMED, 'Bearer realm="api", error="invalid_request"')),
        ],
    )
    async def test_nobody_else_does(self, headers: list[tuple[str, str]], refusal: tuple[int, Any, str]) -> None:
        app, answer = await ask(*headers)
        assert told(answer) == refusal
        assert app.scopes == []

    async def test_a_credential_in_the_query_is_refused_whatever_it_is_worth(self) -> None:
        app = Behind()
        for headers in ([], [GOOD]):
            answer = await call(guarded(app), http_scope(headers=headers, query=b"api_key=good-canary"))
            assert told(answer)[:2] == (400, MALFORMED)
        assert app.scopes == []

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "get", "X"])
    async def test_the_method_makes_no_difference(self, method: str) -> None:
        app = Behind()
        assert (await call(guarded(app), http_scope(method=method))).status == 401
        assert app.scopes == []

    async def test_the_realm_can_be_named(self) -> None:
        _, answer = await ask(realm="my api: v1")
        assert answer.header("www-authenticate") == 'Bearer realm="my api: v1"'

    async def test_the_state_of_other_requests_is_left_alone(self) -> None:
        shared: dict[str, Any] = {"database": 1}
        app = Behind()
        await call(guarded(app), http_scope(headers=[GOOD], state=shared))
        assert shared == {"database": 1}
        assert app.scope["state"] == {"database": 1, "principal": ALICE}

    async def test_credentials_and_other_headers_still_reach_the_app(self) -> None:
        app, _ = await ask(GOOD, ("x-any", "1"))
        assert app.scope["headers"] == [(b"authorization", b"Bearer good-canary"), (b"x-any", b"1")]


class TestLength:
    @pytest.mark.parametrize(("size", "status"), [(MAX_CREDENTIAL_BYTES, 200), (MAX_CREDENTIAL_BYTES + 1, 401)])
    async def test_8_kib_are_read_and_not_a_byte_more(self, size: int, status: int) -> None:
        credential = "x" * size
        verifier = Known(credential)
        answer = await call(
            guarded(Behind(), verifier), http_scope(headers=[("authorization", f"Bearer {credential}")])
        )
        assert answer.status == status
        assert verifier.asked == ([credential] if status == 200 else [])

    @pytest.mark.parametrize("name", ["authorization", "api-key"])
    async def test_a_longer_one_is_refused_whatever_is_in_it(self, name: str) -> None:
        verifier = Known()
        text = "Bearer " * (name == "authorization") + "\xff" * MAX_CREDENTIAL_BYTES + "x"
        answer = await call(guarded(Behind(), verifier), http_scope(headers=[(name, text)]))
        assert told(answer)[:2] == (401, INVALID)
        assert verifier.asked == []


class TestScopes:
    async def test_who_has_them_all_passes(self) -> None:
        _, answer = await ask(GOOD, required_scopes=["files", "chat"])
        assert answer.status == 200

    async def test_who_lacks_one_is_told_which_are_needed(self) -> None:
        app, answer = await ask(GOOD, required_scopes=["files", "admin"])
        assert told(answer) == (
            403,
            INSUFFICIENT,
            'Bearer realm="api", error="insufficient_scope", scope="admin files"',
        )
        assert app.scopes == []

    async def test_who_is_not_known_is_not_told(self) -> None:
        _, answer = await ask(BAD, required_scopes=["admin"])
        assert told(answer) == (401, INVALID, 'Bearer realm="api", error="invalid_token"')


class TestPublicPaths:
    PUBLIC = ("/health", "/", "/a b", "/é")

    @pytest.mark.parametrize("path", PUBLIC)
    async def test_they_need_no_credential(self, path: str) -> None:
        app, answer = await ask(path=path, public_paths=self.PUBLIC)
        assert answer.status == 200
        assert principal_of(app.scope) is None

    async def test_credentials_are_not_looked_at_there(self) -> None:
        for headers in ([BAD], [GOOD, GOOD], [GOOD]):
            app, answer = await ask(*headers, path="/health", public_paths=self.PUBLIC)
            assert answer.status == 200
            assert principal_of(app.scope) is None

    @pytest.mark.parametrize(
        "path",
        [
            "/health/", "//health", "/HEALTH", "/Health", "/health%2f..", "/health%2F", "/health/..",
            "/health/../v1/models", "/v1/../health", "/./health", "/health.", "/health;x", "/health?", "/health?x",
            "/health#", "/health\x00", "/health ", " /health", "/health\n", "/health\\", "\\health", "/healthz",
            "/healt", "health", "", "//", "/v1/health", "/x/health", "/%68ealth", "/health%00",
            "/\N{FULLWIDTH LATIN SMALL LETTER H}ealth", "http://x/health", "*", "/v1", "//v1",
        ],
    )  # fmt: skip
    async def test_they_are_compared_exactly(self, path: str) -> None:
        app, answer = await ask(path=path, public_paths=self.PUBLIC)
        assert told(answer)[:2] == (401, MISSING)
        assert app.scopes == []

    @pytest.mark.parametrize(
        "more",
        [
            {"root_path": "/v1/models"},
            {"root_path": "/health"},
            {"raw_path": b"/health"},
            {"headers": [("host", "x/health?")]},
            {"headers": [("host", "localhost/health")]},
            {
                "headers": [
                    ("x-forwarded-prefix", "/health"),
                    ("x-original-url", "/health"),
                    ("x-rewrite-url", "/health"),
                ]
            },
            {"query": b"/health"},
            {"server": ("/health", None)},
        ],
    )
    async def test_nothing_but_the_path_of_the_scope_counts(self, more: dict[str, Any]) -> None:
        app = Behind()
        answer = await call(guarded(app, public_paths=self.PUBLIC), http_scope("/v1/models", **more))
        assert told(answer)[:2] == (401, MISSING)
        assert app.scopes == []

    async def test_the_path_is_compared_as_the_server_gives_it_with_the_root(self) -> None:
        scope = http_scope("/api/health", root_path="/api")
        assert (await call(guarded(Behind(), public_paths=["/health"]), scope)).status == 401
        assert (await call(guarded(Behind(), public_paths=["/api/health"]), scope)).status == 200

    async def test_without_any_every_path_needs_a_credential(self) -> None:
        for path in ("/", "/health", "/readyz", "/docs", "/openapi.json", ""):
            _, answer = await ask(path=path)
            assert answer.status == 401


class TestIdentityHeaders:
    @pytest.mark.parametrize(("path", "headers"), [("/v1/models", [GOOD]), ("/health", [])])
    async def test_what_claims_to_name_the_caller_never_reaches_the_app(
        self, path: str, headers: list[tuple[str, str]]
    ) -> None:
        forged = [(name.decode(), "root") for name in IDENTITY_HEADERS]
        app, answer = await ask(*forged, *headers, ("host", "h"), path=path, public_paths=["/health"])
        assert answer.status == 200
        assert not {name for name, _ in app.scope["headers"]} & IDENTITY_HEADERS
        assert app.scope["headers"][-1] == (b"host", b"h")

    async def test_they_are_no_credential(self) -> None:
        app, answer = await ask(("x-auth-subject", "alice"), ("x-auth-issuer", "https://issuer.example"))
        assert told(answer)[:2] == (401, MISSING)
        assert app.scopes == []


class TestVerifiers:
    async def test_each_kind_of_credential_goes_to_the_one_that_recognises_it(self) -> None:
        keys, tokens = Known("ar_1", form="ar_"), Known("eyJ1", form="eyJ")
        app = Behind()
        for credential in ("ar_1", "eyJ1", "ar_2"):
            await call(guarded(app, keys, tokens), http_scope(headers=[("api-key", credential)]))
        assert (keys.asked, tokens.asked) == (["ar_1", "ar_2"], ["eyJ1"])
        assert len(app.scopes) == 2

    async def test_one_that_remembers_is_not_asked_again(self) -> None:
        other, remembering = Remembering("ar_1", recalled=ALICE), Remembering(recalled=ALICE)
        app = Behind()
        answer = await call(guarded(app, other, remembering), http_scope(headers=[GOOD]))
        assert answer.status == 200
        assert principal_of(app.scopes[0]) is ALICE
        assert other.asked == remembering.asked == []
        assert (await call(guarded(app, other, remembering), http_scope(headers=[BAD]))).status == 401
        assert other.asked == ["bad-canary"]

    @pytest.mark.parametrize("recalled", ["alice", True, ValueError("broken")])
    async def test_what_is_remembered_must_be_a_caller(self, recalled: Any) -> None:
        app = Behind()
        answer = await call(guarded(app, Remembering(recalled=recalled)), http_scope(headers=[GOOD]))
        assert told(answer) == (500, FAILED, None)
        assert app.scopes == []

    async def test_what_is_remembered_is_held_to_the_required_scopes(self) -> None:
        answer = await call(
            guarded(Behind(), Remembering(recalled=ALICE), required_scopes=["admin"]), http_scope(headers=[GOOD])
        )
        assert answer.status == 403

    async def test_one_that_refuses_has_the_last_word(self) -> None:
        first, second = Known("other"), Known()
        answer = await call(guarded(Behind(), first, second), http_scope(headers=[GOOD]))
        assert answer.status == 401
        assert second.asked == []

    async def test_what_nobody_recognises_is_refused_as_any_other(self) -> None:
        app = Behind()
        answer = await call(guarded(app, Known(form="ar_"), Known(form="eyJ")), http_scope(headers=[GOOD]))
        assert told(answer) == (401, INVALID, 'Bearer realm="api", error="invalid_token"')
        assert app.scopes == []

    async def test_where_nobody_can_know_the_answer_is_503_and_when_to_come_again(self) -> None:
        app = Behind()
        verifier = Raising(VerifierUnavailableError("no signing key yet", retry_after=1.5))
        answer = await call(guarded(app, verifier), http_scope(headers=[GOOD]))
        assert told(answer) == (503, UNAVAILABLE, None)
        assert (answer.header("retry-after"), answer.header("retry-after-ms")) == ("2", "1500")
        assert app.scopes == []

    @pytest.mark.parametrize("at", ["verify", "recognises"])
    @pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, OSError, TimeoutError, AssertionError])
    async def test_a_fault_of_one_lets_nobody_pass(
        self, error: type[Exception], at: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = Behind()
        verifier = Raising(error("it chokes on good-canary"), at=at)
        answer = await call(guarded(app, verifier, Known()), http_scope(headers=[GOOD]))
        assert told(answer) == (500, FAILED, None)
        assert app.scopes == []
        (record,) = caplog.records
        assert vars(record)["reason"].startswith(f"the verifier failed: {error.__name__} at ")
        assert "test_authentication.py:" in vars(record)["reason"], "where"
        assert "canary" not in str(vars(record))

    @pytest.mark.parametrize(
        "result", [None, True, "alice", {"subject": "alice"}, type("P", (), {"scopes": frozenset()})()]
    )
    async def test_only_a_principal_is_a_yes(self, result: Any) -> None:
        app = Behind()
        verifier = Known(principal=result)
        answer = await call(guarded(app, verifier), http_scope(headers=[GOOD]))
        assert told(answer)[:2] == (500, FAILED)
        assert app.scopes == []

    async def test_a_request_that_is_cancelled_while_it_is_judged_is_just_cancelled(self) -> None:
        app, asked = Behind(), asyncio.Event()

        class Slow(Known):
            async def verify(self, credential: str) -> Principal:
                asked.set()
                await asyncio.Event().wait()
                raise NotImplementedError

        task = asyncio.create_task(call(guarded(app, Slow()), http_scope(headers=[GOOD])))
        await within(asked.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert app.scopes == []


class TestWebSockets:
    async def test_a_handshake_with_a_good_credential_passes(self) -> None:
        app = Behind()
        answer = await call(guarded(app), websocket_scope(headers=[GOOD]))
        assert [message["type"] for message in answer.messages] == ["websocket.accept"]
        assert principal_of(app.scope) is ALICE

    async def test_one_without_is_answered_where_the_server_can(self) -> None:
        app = Behind()
        answer = await call(guarded(app), websocket_scope(denial=True))
        assert told(answer) == (401, MISSING, 'Bearer realm="api"')
        assert [message["type"] for message in answer.messages] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert app.scopes == []

    @pytest.mark.parametrize("extensions", [{}, None, {"http.response.push": {}}])
    async def test_and_closed_before_it_is_accepted_where_it_cannot(self, extensions: Any) -> None:
        app = Behind()
        scope = {**websocket_scope(headers=[BAD]), "extensions": extensions}
        answer = await call(guarded(app), scope)
        assert answer.messages == [{"type": "websocket.close", "code": 1008, "reason": "invalid_api_key"}]
        assert app.scopes == []

    async def test_a_client_is_told_to_come_again(self) -> None:
        verifier = Raising(VerifierUnavailableError("no signing key yet"))
        answer = await call(guarded(Behind(), verifier), websocket_scope(headers=[GOOD]))
        assert answer.messages == [{"type": "websocket.close", "code": 1013, "reason": "authentication_unavailable"}]

    async def test_credentials_in_the_query_or_as_a_subprotocol_are_none(self) -> None:
        app = Behind()
        scope = websocket_scope(query=b"token=good-canary", denial=True)
        assert told(await call(guarded(app), scope))[:2] == (400, MALFORMED)
        scope = {**websocket_scope(denial=True), "subprotocols": ["bearer", "good-canary"]}
        assert told(await call(guarded(app), scope))[:2] == (401, MISSING)
        assert app.scopes == []

    async def test_public_paths_are_public_for_them_too(self) -> None:
        app = Behind()
        await call(guarded(app, public_paths=["/ws"]), websocket_scope("/ws"))
        await call(guarded(app, public_paths=["/ws"]), websocket_scope("/ws/"))
        assert [scope["path"] for scope in app.scopes] == ["/ws"]


@pytest.mark.parametrize("kind", ["webtransport", "HTTP", "http2", "", None])
async def test_a_kind_of_connection_that_is_not_known_does_not_pass(kind: Any) -> None:
    app = Behind()
    scope: Scope = {**http_scope("/health", headers=[GOOD]), "type": kind}
    with pytest.raises(ValueError, match="unknown kind of connection"):
        await call(guarded(app, public_paths=["/health"]), scope)
    assert app.scopes == []


UP: Message = {"type": "lifespan.startup.complete"}
DOWN: Message = {"type": "lifespan.shutdown.complete"}


class TestLifespan:
    async def test_the_verifiers_are_closed_when_it_ends_and_not_before(self) -> None:
        verifiers = [Known(), Known()]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(UP)
            assert [verifier.closed for verifier in verifiers] == [0, 0]
            await send(DOWN)

        answer = await call(guarded(app, *verifiers), {"type": "lifespan"})
        assert answer.messages == [UP, DOWN]
        assert [verifier.closed for verifier in verifiers] == [1, 1]

    @pytest.mark.parametrize("said", [[UP], [{"type": "lifespan.startup.failed", "message": ""}]])
    async def test_also_when_it_ends_badly(self, said: list[Message]) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in said:
                await send(message)
            raise RuntimeError("a database")

        verifier = Known()
        with pytest.raises(RuntimeError, match="a database"):
            await call(guarded(app, verifier), {"type": "lifespan"})
        assert verifier.closed == 1

    async def test_one_that_cannot_be_closed_does_not_keep_the_others_open(self) -> None:
        verifiers = [Known(), Raising(OSError("stuck"), at="aclose"), Known()]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(UP)

        with pytest.raises(OSError, match="stuck"):
            await call(guarded(app, *verifiers), {"type": "lifespan"})
        assert [verifier.closed for verifier in verifiers] == [1, 1, 1]

    @pytest.mark.parametrize("raises", [True, False])
    async def test_an_app_without_one_leaves_them_open_because_requests_will_come(self, raises: bool) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if raises:
                raise AssertionError("http only")

        verifier = Known()
        await call(guarded(app, verifier), {"type": "lifespan"}, keep_error=True)
        assert verifier.closed == 0

    async def test_it_is_run_by_a_real_server(self) -> None:
        verifier = Known()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send(UP)
                await receive()
                await send(DOWN)
            else:
                await Behind()(scope, receive, send)

        async with serve(guarded(app, verifier)) as served:
            assert (await served.ask("GET", "/", headers=[GOOD])).status == 200
            assert verifier.closed == 0
        assert verifier.closed == 1


class TestLog:
    REFUSED: tuple[tuple[list[tuple[str, str]], int, str, str], ...] = (
        ([], 401, "no credential", ""),
        ([BAD], 401, "it is not known", "bad-canary"),
        ([("api-key", "bad-canary")], 401, "it is not known", "bad-canary"),
        ([BAD, BAD], 400, "more than one Authorization header", ""),
        ([GOOD, ("api-key", "canary")], 400, "two different credentials", ""),
        ([("authorization", "Bearer can ary")], 400, "the credential is not one word of printable ASCII", ""),
        ([("api-key", "canary" * 2000)], 401, "longer than 8 KiB", "canary" * 2000),
        ([GOOD], 403, "a required scope is missing", "good-canary"),
    )

    @pytest.mark.parametrize(("headers", "status", "reason", "credential"), REFUSED)
    async def test_a_line_has_the_reason_and_a_hash_and_never_the_credential(
        self,
        headers: list[tuple[str, str]],
        status: int,
        reason: str,
        credential: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        _, answer = await ask(*headers, ("cookie", "canary"), ("user-agent", "canary"), required_scopes=["admin"])
        assert answer.status == status
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("agentrun_middleware.authentication", "INFO")
        assert record.getMessage() == "authentication refused"
        fields = {key: vars(record)[key] for key in ("status", "reason", "client", "credential_sha256")}
        assert fields == {
            "status": status,
            "reason": reason,
            "client": PEER[0],
            "credential_sha256": hashlib.sha256(credential.encode()).hexdigest()[:16] if credential else "",
        }
        assert "canary" not in str(vars(record))
        assert "can ary" not in str(vars(record))

    async def test_no_answer_repeats_a_credential_or_tells_the_reason(self) -> None:
        for headers, _, reason, _ in self.REFUSED:
            _, answer = await ask(*headers, required_scopes=["admin"])
            everything = answer.body + b"".join(name + value for name, value in answer.headers)
            assert b"canary" not in everything
            assert reason.encode() not in everything

    async def test_who_cannot_be_verified_now_is_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        verifier = Raising(VerifierUnavailableError("no signing key yet"))
        await call(guarded(Behind(), verifier), http_scope(headers=[GOOD], client=None))
        (record,) = caplog.records
        assert (record.levelname, vars(record)["reason"], vars(record)["client"]) == (
            "WARNING",
            "no signing key yet",
            "",
        )

    async def test_who_passes_is_not_mentioned(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        await ask(GOOD)
        assert caplog.records == []


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"verifiers": []}, "at least one verifier"),
            ({"required_scopes": "chat"}, "required_scopes is a list"),
            ({"required_scopes": ["chat files"]}, "a scope is one word"),
            ({"required_scopes": ['chat"']}, "a scope is one word"),
            ({"required_scopes": [""]}, "a scope is one word"),
            ({"public_paths": "/health"}, "public_paths is a list"),
            ({"public_paths": ["health"]}, "begins with '/'"),
            ({"public_paths": [""]}, "begins with '/'"),
            ({"realm": 'api", error="x'}, "realm"),
            ({"realm": "api\r\nset-cookie: x"}, "realm"),
            ({"realm": ""}, "realm"),
            ({"realm": "äpi"}, "realm"),
        ],
    )
    def test_what_cannot_work_is_refused(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            AuthenticationMiddleware(Behind(), **{"verifiers": [Known()], **options})


class TestOnTheWire:
    """What a client can write in the place of a path, through a real server."""

    TARGETS = (
        "//health", "/health/", "/HEALTH", "/health%2f..", "/health%2F%2E%2E%2Fv1", "/health/../v1/models", "/health;x",
        "/v1/models?/health", "/v1/models?x=/health", "/%2e/health", "/health%20", "/health%3f", "http://x/v1/models",
        "http://x/health/", "/v1/models%23/health", "/health%09", "/.%2fhealth",
    )  # fmt: skip

    @pytest.mark.parametrize("target", TARGETS)
    async def test_only_the_public_path_itself_is_public(self, http: str, target: str) -> None:
        app = Behind()
        async with serve(guarded(app, public_paths=["/health"]), http=http, lifespan=False) as served:
            assert (await served.ask("GET", target)).status in (400, 401)
            assert app.scopes == []
            assert (await served.ask("GET", "/health?x=1")).status == 200

    @pytest.mark.parametrize(
        "host", ["x/health?", "x/health#", "localhost/health", "/health", "x\\health", "user@x/health?"]
    )
    async def test_the_host_header_is_no_path(self, http: str, host: str) -> None:
        app = Behind()
        served_app = guarded(app, public_paths=["/health"])
        async with serve(served_app, http=http, lifespan=False) as served, served.client() as client:
            await client.send(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert (await client.response()).status in (400, 401)
        assert app.scopes == []

    async def test_headers_that_come_twice_are_seen_twice(self, http: str) -> None:
        app = Behind()
        async with serve(guarded(app), http=http, lifespan=False) as served:
            twice = await served.ask("GET", "/", headers=[("Authorization", GOOD[1]), ("authorization", GOOD[1])])
            folded = await served.ask("GET", "/", headers=[("Authorization", f"{GOOD[1]}, {GOOD[1]}")])
            once = await served.ask("GET", "/", headers=[("AUTHORIZATION", f"{GOOD[1]}  ")])
        assert [answer.status for answer in (twice, folded, once)] == [400, 400, 200]

    async def test_a_refused_client_may_try_again_on_the_same_connection(self, http: str) -> None:
        app = Behind()
        async with serve(guarded(app), http=http, lifespan=False) as served, served.client() as client:
            await client.request("POST", "/v1", b"{}", [BAD])
            assert (await client.response()).error() == INVALID
            await client.request("POST", "/v1", b"{}", [GOOD])
            assert (await client.response()).status == 200
