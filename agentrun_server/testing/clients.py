"""Clients for an app in this process, in one line."""

from typing import TYPE_CHECKING, Any

import httpx2
from starlette.types import ASGIApp

from agentrun_server.testing.transport import StreamingASGITransport

if TYPE_CHECKING:
    import openai

__all__ = ["async_client", "openai_client"]

_BASE_URL = "http://testserver"


def async_client(app: ASGIApp | StreamingASGITransport, **options: Any) -> httpx2.AsyncClient:
    """Return an `httpx2.AsyncClient` that talks to `app` in this process and really streams.

    ``async with async_client(app) as client`` starts the app and shuts it down. Give a
    `StreamingASGITransport` instead of an app to set its options, or to let several clients share one app.
    `options` go to the client.
    """
    transport = app if isinstance(app, StreamingASGITransport) else StreamingASGITransport(app)
    return httpx2.AsyncClient(transport=transport, **{"base_url": _BASE_URL, **options})


def openai_client(app: ASGIApp | StreamingASGITransport, **options: Any) -> "openai.AsyncOpenAI":
    """Return the official client, `openai.AsyncOpenAI`, connected to `app` in this process.

    Needs ``openai>=3``. The app is started with the first request and shut down when the client is closed:
    ``async with openai_client(app) as client``. `options` go to the client; unlike on a network, nothing is
    retried unless ``max_retries`` says so, and an answer may take 30 seconds, not ten minutes.
    """
    http_client = async_client(app)
    defaults = {"base_url": f"{_BASE_URL}/v1", "api_key": "test", "max_retries": 0, "timeout": 30.0}
    client: openai.AsyncOpenAI = _openai().AsyncOpenAI(http_client=http_client, **{**defaults, **options})
    return client


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ImportError("openai_client needs the official client: pip install 'openai>=3'") from error
    if int(openai.__version__.partition(".")[0]) < 3:
        raise ImportError(
            f"openai_client needs openai>=3, which speaks through httpx2; installed is {openai.__version__}: "
            "pip install -U openai, or serve the app on a socket and give its address as base_url"
        )
    return openai
