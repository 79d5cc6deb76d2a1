"""What users import from `agentrun_server.testing`, and the ready-made clients."""

import subprocess
import sys
from types import SimpleNamespace

import openai
import pytest
from starlette.types import Receive, Scope, Send

from agentrun_server import testing
from agentrun_server.testing import FakeOpenAI, StreamingASGITransport, async_client, openai_client
from agentrun_server.testing.serving import Served


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    assert dir(testing) == testing.__all__
    for name in testing.__all__:
        assert getattr(testing, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FakeGemini'"):
        getattr(testing, "FakeGemini")  # noqa: B009 - a type checker would object to the plain spelling


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "openai", "httpx2", "uvicorn", "agentrun_server.testing.transport"
    script = f"import sys, agentrun_server.testing; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() in ("", "[]"), done.stderr


async def test_two_clients_can_share_one_app() -> None:
    async with StreamingASGITransport(FakeOpenAI(["one", "two"])) as transport:
        async with openai_client(transport) as client:
            first = await client.responses.create(model="m", input="Hi")
        async with async_client(transport, base_url="http://other") as plain:
            second = await plain.post("/v1/responses", json={"model": "m", "input": "Hi"})
    assert (first.output_text, second.json()["output"][0]["content"][0]["text"]) == ("one", "two")


async def test_options_go_to_the_clients() -> None:
    async with openai_client(FakeOpenAI(), api_key="sk-1", timeout=3, max_retries=7) as client:
        assert (client.api_key, client.timeout, client.max_retries) == ("sk-1", 3, 7)
    async with async_client(FakeOpenAI(), headers={"x-a": "1"}, timeout=2) as plain:
        assert (plain.headers["x-a"], plain.timeout.read, str(plain.base_url)) == ("1", 2, "http://testserver")


async def test_openai_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match="pip install 'openai>=3'"):
        openai_client(FakeOpenAI())


async def test_openai_client_refuses_a_line_that_does_not_speak_httpx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", SimpleNamespace(__version__="2.20.0"))
    with pytest.raises(ImportError, match=r"installed is 2\.20\.0"):
        openai_client(FakeOpenAI())
    assert openai.__version__ >= "3"


def test_a_server_that_fails_in_its_thread_is_told() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    def fail() -> None:
        raise LookupError("while it stopped")

    served = Served(app, before_stop=fail)
    served._server.main_loop = _fail  # type: ignore[method-assign]
    served.__enter__()
    assert served._thread is not None
    served._thread.join(5)
    with pytest.raises(ZeroDivisionError):
        served.__exit__(None, None, None)


async def _fail() -> None:
    raise ZeroDivisionError
