"""Two replicas behind nginx, for whoever wants to talk to them.

::

    python -m tests.replicas [APP]       # APP: module:server, by default that of the tests of clients

Prints the base URL of the API, then what a client needs besides, as ``NAME=value`` lines, and stays until its input is
closed or it gets SIGINT or SIGTERM. Settings (``AGENTRUN_…``) are taken from the environment.
"""

import asyncio
import os
import signal
import sys
import threading

from tests.replicas.replicas import Replicas, replicas

__all__ = ["main"]

_APP = "tests.clients.agents_app:server"


def _shown(running: Replicas) -> list[str]:
    certificate = running.front.certificate
    return [
        f"{running.front.url}/v1",
        f"OPENAI_BASE_URL={running.front.url}/v1",
        f"OPENAI_API_KEY={running.keys['alice']}",
        *(f"KEY_OF_{name.upper()}={key}" for name, key in running.keys.items()),
        # Whom to trust: Python, curl and whatever else asks OpenSSL; requests; Node.
        f"SSL_CERT_FILE={certificate}",
        f"REQUESTS_CA_BUNDLE={certificate}",
        f"NODE_EXTRA_CA_CERTS={certificate}",
        *(f"REPLICA_{number}={replica.url}/v1" for number, replica in enumerate(running.replicas, 1)),
    ]


def _when_input_closes(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        while os.read(0, 65536):  # not `sys.stdin`, whose lock this thread would hold at exit
            pass
        loop.call_soon_threadsafe(stop.set)

    # A daemon: a signal ends this program though nobody closes its input.
    threading.Thread(target=read, name="input", daemon=True).start()


async def main(app: str) -> None:
    """Run until there is nobody who wants it."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with replicas(
        app, {name: os.environ[name] for name in os.environ if name.startswith("AGENTRUN_")}
    ) as running:
        print(*_shown(running), sep="\n", flush=True)
        _when_input_closes(stop)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else _APP))
