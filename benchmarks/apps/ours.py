"""Our server with default features on: ``agentrun-server run benchmarks.apps.ours:server``."""

from agentrun_server import AgentRequest, AgentRunServer
from benchmarks import agents


async def echo(request: AgentRequest) -> str:
    return await agents.echo(request.messages[-1].text)


server = AgentRunServer(
    invoke_agent={
        "echo": echo,
        "burst": agents.burst,
        "trickle": agents.trickle,
        "paced": agents.paced,
        "slow": agents.slow,
        "sync": agents.sync_tokens,
    }
)
