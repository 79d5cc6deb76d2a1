"""What ends with an app is ended before the server hears that the app has."""

from typing import Any

import pytest

from agentrun_middleware.asgi import Message, Receive, Scope, Send
from agentrun_middleware.lifespan import run_lifespan


class Server:
    """Drives a lifespan, and notes what it hears in which order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._says = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive(self) -> Message:
        return {"type": next(self._says)}

    async def send(self, message: Message) -> None:
        self.heard.append(message["type"].removeprefix("lifespan."))

    async def aclose(self) -> None:
        self.heard.append("closed")

    async def run(self, app: Any) -> list[str]:
        await run_lifespan(app, {"type": "lifespan"}, self.receive, self.send, self.aclose)
        return self.heard


async def test_it_closes_before_the_server_hears_of_the_end() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    assert await Server().run(app) == ["startup.complete", "closed", "shutdown.complete"]


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_it_closes_when_a_phase_fails(phase: str) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if phase == "shutdown":
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": f"lifespan.{phase}.failed"})

    assert (await Server().run(app))[-2:] == ["closed", f"{phase}.failed"]


async def test_it_closes_once_when_the_app_breaks_after_its_start() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise RuntimeError("broken")

    server = Server()
    with pytest.raises(RuntimeError):
        await server.run(app)
    assert server.heard == ["startup.complete", "closed"]


@pytest.mark.parametrize("raises", [False, True])
async def test_an_app_without_a_lifespan_goes_on_to_be_served(raises: bool) -> None:
    async def app(scope: Scope, *_: Any) -> None:
        if raises:
            raise NotImplementedError(scope["type"])

    server = Server()
    try:
        await server.run(app)
    except NotImplementedError:
        assert raises
    assert server.heard == []


async def test_a_close_that_fails_is_heard_of_and_not_tried_again() -> None:
    server = Server()

    async def aclose() -> None:
        server.heard.append("closing")
        raise OSError("cannot close")

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    with pytest.raises(OSError, match="cannot close"):
        await run_lifespan(app, {"type": "lifespan"}, server.receive, server.send, aclose)
    assert server.heard == ["startup.complete", "closing"]
