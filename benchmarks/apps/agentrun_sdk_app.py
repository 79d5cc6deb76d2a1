"""The AgentRun SDK's own server (package ``agentrun-sdk[server]``).

As shipped it runs on asyncio and h11 with the access log on, because its extra installs neither uvloop nor
httptools; ``--tuned`` gives it both and turns the log off.
"""

import argparse
from typing import Any

from agentrun.server import AgentRequest, AgentRunServer  # type: ignore[import-not-found]

from benchmarks import agents

STREAMS = {
    "burst": agents.burst,
    "trickle": agents.trickle,
    "paced": agents.paced,
    "slow": agents.slow,
    "sync": agents.sync_tokens,
}


async def invoke_agent(request: AgentRequest) -> Any:
    # The SDK's request does not carry the model; the raw request has parsed its JSON already and keeps it.
    model = (await request.raw_request.json())["model"]
    if model == "echo":
        return await agents.echo(request.messages[-1].content)
    return STREAMS[model]()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    server = AgentRunServer(invoke_agent=invoke_agent)
    settings: dict[str, Any] = {"loop": "asyncio", "http": "h11"}
    if options.tuned:
        settings = {"loop": "uvloop", "http": "httptools", "access_log": False, "log_level": "error"}
    server.start(host="127.0.0.1", port=options.port, **settings)


if __name__ == "__main__":
    main()
