"""LitServe with its `OpenAISpec` (package ``litserve``), one API process and one inference process.

An async API serves the async agents, which lets LitServe run them side by side; ``--sync`` serves the
blocking agent the way LitServe asks for it, a plain generator.
"""

import argparse
from collections.abc import AsyncIterator, Iterator
from typing import Any

import litserve  # type: ignore[import-not-found]

from benchmarks import agents

STREAMS = {"burst": agents.burst, "trickle": agents.trickle, "paced": agents.paced, "slow": agents.slow}


class AsyncAPI(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        pass

    async def predict(self, request: Any) -> AsyncIterator[str]:
        if request.model == "echo":
            yield await agents.echo(request.messages[-1].content)
            return
        async for token in STREAMS[request.model]():
            yield token


class SyncAPI(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        pass

    def predict(self, request: Any) -> Iterator[str]:
        if request.model == "echo":
            yield request.messages[-1].content
            return
        yield from agents.sync_tokens()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sync", action="store_true")
    options = parser.parse_args()
    spec = litserve.OpenAISpec()
    api = SyncAPI(spec=spec) if options.sync else AsyncAPI(spec=spec, enable_async=True)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
