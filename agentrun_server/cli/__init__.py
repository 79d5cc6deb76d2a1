"""The command line: ``agentrun-server run | dev | demo | chat | keys | healthcheck | config | version``.

It stands above everything else and nothing imports it. Each command lives in a module of its own and is
imported when it is asked for, so that `healthcheck` loads no web framework and `run` no HTTP client.

* `commands` — the list of commands.
* `settings` — every flag of `run`, made from the fields of `ServerConfig`; where a value comes from.
* `dotenv` — the ``.env`` file.
* `target` — from ``app:server`` to an ASGI app.
* `run`, `worker`, `listen` — serving it, in one process or in several.
* `demo`, `demo_agent`, `arithmetic` — an agent without a model.
* `chat`, `chat_client`, `terminal` — a client for the terminal.
* `keys` — API keys: made, listed, revoked, hashed.
* `healthcheck`, `config` — for operators.
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None, *, prog_name: str = "agentrun-server") -> None:
    """Run the command line with `args` (default: those of this process) and exit the process."""
    from agentrun_server.cli.commands import cli

    cli.main(args=None if args is None else list(args), prog_name=prog_name)
