"""What docs/authentication.md says of refusals: each row of its tables is tried, and refused for that very reason."""

import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.errors import ConfigurationError
from agentrun_server.observability.logs import JSONFormatter
from tests.docs.markdown import ROOT, blocks, table_rows
from tests.middleware.tokens import compact
from tests.support.raw_client import Response
from tests.support.serve import Served, serve

PAGE = ROOT / "docs" / "authentication.md"

SECRET = "a secret of the tests that is long enough for HS512, which wants 64 bytes"
HEADER = {"alg": "HS256", "typ": "JWT"}
SETTINGS: dict[str, Any] = {
    "auth_jwt_key": SECRET,
    "auth_jwt_algorithms": ["HS256"],
    "auth_issuer": "https://id.example.com/",
    "auth_audience": ["my-agent"],
}


def section(title: str, folder: Path) -> list[list[str]]:
    """Return the rows of the tables below the heading `title`."""
    text = PAGE.read_text("utf-8")
    found = re.search(rf"^## (?:\d\. )?{re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    page = folder / "section.md"
    page.write_text(found[1], "utf-8")
    return table_rows(page)


def token(*, key: str = SECRET, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """Return a token, good but for `header` and `changes`; a claim of None is left out."""
    now = int(time.time())
    good = {"iss": "https://id.example.com/", "aud": "my-agent", "sub": "ada", "iat": now, "exp": now + 300}
    claims = {name: value for name, value in {**good, **changes}.items() if value is not None}
    return signed({**HEADER, **(header or {})}, claims, key)


def signed(header: dict[str, Any], payload: object, key: str = SECRET) -> str:
    """Return a token with any payload, rightly signed."""
    digest = f"sha{header['alg'][2:]}"
    return compact(header, payload, lambda data: hmac.digest(key.encode(), data, digest))


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    """Serve two agents with the settings of these tests."""

    async def invoke_agent(request: AgentRequest) -> str:
        return f"Hello, {request.principal.subject}, {sorted(request.headers)}"

    agents = {"chat": invoke_agent, "research": invoke_agent}
    async with serve(AgentRunServer(agents, config=ServerConfig(**{**SETTINGS, **settings}))) as server:
        yield server


def bearer(credential: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {credential}"


async def models(server: Served, *headers: tuple[str, str], path: str = "/v1/models") -> Response:
    return await server.ask("GET", path, headers=headers)


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["reason"] for record in caplog.records if record.msg == "authentication refused"]


# --- tokens

_NOW = time.time()
BAD_TOKENS: dict[str, list[tuple[str, str]]] = {
    # row of the page → tokens, and the reason in the log
    "an algorithm that its issuer does not use": [
        (token(header={"alg": "HS512"}), "an algorithm that its issuer does not use"),
        (compact({"alg": "none"}, {"sub": "ada"}, lambda _: b"unsigned"), "an algorithm that its issuer does not use"),
    ],
    "a wrong signature": [(token(key=SECRET[::-1]), "the signature is wrong")],
    "a `crit` or `b64` header": [
        (token(header={"crit": ["exp"]}), "critical header extensions"),
        (token(header={"b64": True}), "critical header extensions"),
    ],
    "a `typ` other than": [(token(header={"typ": "logout+jwt"}), "another type of token (typ)")],
    "a part that is no plain JSON object": [
        (signed(HEADER, b'{"sub": "ada", "sub": "eve"}'), "it cannot be decoded"),
        (signed(HEADER, b'{"exp": NaN}'), "it cannot be decoded"),
        (signed(HEADER, json.dumps({"sub": "ada"}).encode("utf-16")), "it cannot be decoded"),
        (token(deep=json.loads("[" * 40 + "]" * 40)), "it cannot be decoded"),
    ],
    "no `exp`": [
        (token(exp=None), "exp, iss, aud or sub is missing"),
        (token(exp="1" + "0" * 12), "exp is no time"),
    ],
    "`exp` in the past": [
        (token(exp=_NOW - 60), "it has expired"),
        (token(nbf=_NOW + 600), "it is not valid yet"),
        (token(iat=_NOW + 600, exp=_NOW + 700), "it is not valid yet"),
    ],
    "`exp` more than": [(token(exp=_NOW + 2 * 86400), "it is valid for longer than max_lifetime")],
    "another `iss`": [(token(iss="https://id.example.com"), "another issuer (iss)")],
    "no `aud`": [
        (token(aud=None), "exp, iss, aud or sub is missing"),
        (token(aud="another-agent"), "it is meant for somebody else (aud)"),
    ],
    "no `sub`": [
        (token(sub=None), "exp, iss, aud or sub is missing"),
        (token(sub="ada\r\nx-auth-scopes: admin"), "sub is no name that is safe to pass on"),
    ],
    "a scope that is no word": [(token(scope=["a b"]), "scope is no list of scopes")],
}
KEY_NAMED_OTHERWISE = "a `kid` that the issuer does not publish"


async def test_each_token_that_the_page_says_is_refused_is_refused_for_that_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = [row[0] for row in section("What is refused, and why", tmp_path)]
    rows = rows[: rows.index("two different credentials, or `Authorization` twice")]
    assert [row for row in rows if not row.startswith((*BAD_TOKENS, KEY_NAMED_OTHERWISE))] == []
    assert len(rows) == len(BAD_TOKENS) + 1
    bodies = set()
    async with served() as server:
        assert (await models(server, bearer(token()))).status == 200
        for row, tokens in BAD_TOKENS.items():
            for bad, reason in tokens:
                caplog.clear()
                response = await models(server, bearer(bad))
                assert (response.status, reasons(caplog)) == (401, [reason]), row
                bodies.add(response.body)
    assert len(bodies) == 1, "callers hear the same, whatever the reason"


async def test_a_key_that_the_issuer_does_not_publish_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    from agentrun_middleware.jwt import Issuer, JWTVerifier

    issuer = Issuer(
        issuer="https://id.example.com/", audience="my-agent", algorithms=["HS256"], key={"this year": SECRET}
    )
    verifier = JWTVerifier([issuer])
    assert (await verifier.verify(token(header={"kid": "this year"}))).subject == "ada"
    with pytest.raises(Exception, match=r"no such signing key \(kid\)"):
        await verifier.verify(token(header={"kid": "last year"}))


# --- requests


async def test_each_request_that_the_page_says_is_refused_is_refused(tmp_path: Path) -> None:
    rows = [row[0] for row in section("What is refused, and why", tmp_path)]
    rows = rows[rows.index("two different credentials, or `Authorization` twice") :]
    twice, query, unusual, identity = rows
    good = token()
    async with served() as server:
        assert twice.startswith("two different credentials")
        for headers in ([bearer(good), ("api-key", "another")], [bearer(good), bearer(good)]):
            assert (await models(server, *headers)).error()["code"] == "invalid_request"
        assert (await models(server, bearer(good), ("api-key", good))).status == 200, "the same twice is no riddle"
        names = re.findall(r"\?(\w+)=", query)
        assert len(names) == 2
        for name in names:
            assert (await models(server, bearer(good), path=f"/v1/models?{name}=x")).error()[
                "code"
            ] == "invalid_request"
        assert "8 KiB" in unusual
        assert (await models(server, bearer("x" * 8193))).error()["code"] == "invalid_api_key"
        assert (await models(server, bearer("caf\xe9"))).error()["code"] == "invalid_request"
        forged = [(name, "root") for name in re.findall(r"`(X-Auth-\w+)`", identity)]
        assert len(forged) == 6
        response = await server.chat(model="chat", headers=[bearer(good), *forged])
        assert b"Hello, ada" in response.body
        assert b"x-auth" not in response.body


# --- settings


def _pem(bits: int) -> tuple[str, str]:
    key = rsa.generate_private_key(65537, bits)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private.decode(), key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _bad_settings() -> Iterator[dict[str, Any]]:
    private, public = _pem(2048)
    yield {"auth_jwt_key": "x" * 31}
    yield {"auth_jwt_key": "x" * 47, "auth_jwt_algorithms": ["HS384"]}
    yield {"auth_jwt_key": "x" * 63, "auth_jwt_algorithms": ["HS512"]}
    yield {"auth_jwt_key": public}
    yield {"auth_jwt_key": private, "auth_jwt_algorithms": ["RS256"]}
    yield {"auth_jwt_key": _pem(1024)[1], "auth_jwt_algorithms": ["RS256"]}
    yield {"auth_jwt_algorithms": ["HS256", "RS256"]}
    yield {"auth_audience": []}
    yield {"auth_jwt_key": None}
    # of the section on signing keys
    jwks = {"auth_jwt_key": None, "auth_jwt_algorithms": ["RS256"]}
    yield {**jwks, "auth_jwks_url": "http://id.example.com/keys"}
    yield {**jwks, "auth_jwks_url": "https://10.0.0.1/keys"}


async def _nobody(_: AgentRequest) -> str:
    raise NotImplementedError


def test_settings_that_the_page_says_are_refused_stop_the_server_at_its_start() -> None:
    AgentRunServer(_nobody, config=ServerConfig(**SETTINGS))
    jwks = {"auth_jwt_key": None, "auth_jwt_algorithms": ["RS256"]}
    AgentRunServer(_nobody, config=ServerConfig(**{**SETTINGS, **jwks, "auth_jwks_url": "http://127.0.0.1/keys"}))
    for bad in _bad_settings():
        with pytest.raises(ConfigurationError):
            AgentRunServer(_nobody, config=ServerConfig(**{**SETTINGS, **bad}))


# --- answers


async def test_each_answer_of_the_table_is_given_with_its_headers(tmp_path: Path) -> None:
    rows = {(int(row[0]), row[1].strip("`")): row[3] for row in section("What clients send and get", tmp_path)}
    given: dict[tuple[int, str], Response] = {}

    def note(response: Response) -> None:
        given[response.status, response.error()["code"]] = response

    async with served(auth_required_scopes=["agents"], rate_limit_requests=1) as server:
        good = bearer(token(scope="agents"))
        note(await models(server))
        note(await models(server, bearer("sk-something")))
        note(await models(server, good, ("api-key", "another")))
        note(await models(server, bearer(token())))
        assert (await models(server, good)).status == 200
        note(await models(server, good))
    unreachable = {"auth_jwks_url": "http://127.0.0.1:9/keys", "auth_jwks_private": True}  # nobody listens there
    async with served(auth_jwt_key=None, auth_jwt_algorithms=["RS256"], **unreachable) as server:
        note(await models(server, bearer(_signed_with_rsa())))
    assert given.keys() == rows.keys()
    for kind, response in given.items():
        for name in re.findall(r"`([\w-]+(?:-…)?)`", rows[kind]):
            sent = [header for header, _ in response.headers]
            wanted = name.removesuffix("…")
            assert [header for header in sent if header.startswith(wanted)], f"{kind}: no {name}"


def _signed_with_rsa() -> str:
    claims = {"iss": "https://id.example.com/", "aud": "my-agent", "sub": "ada", "exp": time.time() + 300}
    return jwt.encode(claims, _pem(2048)[0], "RS256", headers={"kid": "k1"})


async def test_a_missing_model_and_a_forbidden_one_are_refused_in_the_same_words() -> None:
    only_chat = bearer(token(scope="models:chat"))
    async with served() as server:
        forbidden = await server.chat(model="research", headers=[only_chat])
        missing = await server.chat(model="researchers", headers=[only_chat])
        assert (forbidden.status, forbidden.body) == (missing.status, missing.body) == (403, forbidden.body)


async def test_a_preflight_needs_no_credential_and_a_refusal_can_be_read_by_the_page_that_asked() -> None:
    asked = [("Origin", "https://ui.example.com"), ("Access-Control-Request-Method", "POST")]
    async with served(cors_origins=["https://ui.example.com"]) as server:
        preflight = await server.ask("OPTIONS", "/v1/chat/completions", headers=asked)
        refused = await models(server, asked[0])
    assert (preflight.status, refused.status) == (200, 401)
    assert refused.header("access-control-allow-origin") == "https://ui.example.com"


# --- the log


async def test_a_refusal_is_logged_as_the_page_shows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agentrun_middleware.authentication")
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JSONFormatter().format(record))  # here, where the request is still known

    collector = Collector()
    logger = logging.getLogger("agentrun_middleware.authentication")
    logger.addHandler(collector)
    try:
        expired = token(exp=_NOW - 60)
        async with served() as server:
            await models(server, bearer(expired))
    finally:
        logger.removeHandler(collector)
    [written] = map(json.loads, lines)
    [shown] = [json.loads(block.text) for block in blocks(PAGE) if block.language == "json"]
    assert list(written) == list(shown)
    assert written["credential_sha256"] == hashlib.sha256(expired.encode()).hexdigest()[:16]
    same = ("level", "logger", "message", "status", "reason")
    assert [written[name] for name in same] == [shown[name] for name in same]
    assert {name: len(str(written[name])) for name in ("credential_sha256", "request_id")} == {
        name: len(shown[name]) for name in ("credential_sha256", "request_id")
    }
