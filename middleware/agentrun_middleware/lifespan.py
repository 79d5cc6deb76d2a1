"""The end of an app, for middleware that has tasks and connections of its own to end with it."""

from collections.abc import Awaitable, Callable

from agentrun_middleware.asgi import ASGIApp, Message, Receive, Scope, Send

__all__ = ["run_lifespan"]

_ENDS = frozenset(("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed"))


async def run_lifespan(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, aclose: Callable[[], Awaitable[None]]
) -> None:
    """Pass the lifespan on to `app`, and call `aclose` once at its end: before the server hears of it and stops.

    An app without a lifespan ends before it has said anything, and servers go on: then nothing is closed.
    """
    has_lifespan = False
    closed = False

    async def close() -> None:
        nonlocal closed
        if has_lifespan and not closed:
            closed = True
            await aclose()

    async def closing_send(message: Message) -> None:
        nonlocal has_lifespan
        has_lifespan = True
        if message["type"] in _ENDS:
            await close()
        await send(message)

    try:
        await app(scope, receive, closing_send)
    finally:
        await close()
