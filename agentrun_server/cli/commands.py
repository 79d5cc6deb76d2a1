"""The list of commands. A command's module is imported when the command is used or described."""

import importlib
from typing import Any, cast

import click

__all__ = ["cli", "package_version"]

# name -> module and attribute of the click command
_COMMANDS = {
    "run": "agentrun_server.cli.run:run_command",
    "dev": "agentrun_server.cli.run:dev_command",
    "demo": "agentrun_server.cli.demo:demo_command",
    "chat": "agentrun_server.cli.chat:chat_command",
    "healthcheck": "agentrun_server.cli.healthcheck:healthcheck_command",
    "keys": "agentrun_server.cli.keys:keys_command",
    "config": "agentrun_server.cli.config:config_command",
    "version": "agentrun_server.cli.commands:version_command",
}


class _LazyGroup(click.Group):
    """Imports a command when it is asked for, and answers a mistyped one with the nearest name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}.{_hint(name)}")
        return super().resolve_command(ctx, args)


def _hint(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, _COMMANDS, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    if ":" in name or name.endswith(".py"):
        return f" To serve it: agentrun-server run {name}"
    return ""


def package_version() -> str:
    """Return the version of the installed distribution."""
    from importlib import metadata  # 10 ms, and only this command needs it

    try:
        return metadata.version("agentrun-server")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _print_version(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"agentrun-server {package_version()}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: agentrun-server demo",
)
@click.option(
    "--version",
    "-V",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Put any Python agent behind the OpenAI API."""


@click.command("version", short_help="Show versions.")
def version_command() -> None:
    """Show the versions of agentrun-server, Python and what they run on."""
    import platform
    import sys
    from importlib import metadata

    click.echo(f"agentrun-server {package_version()}")
    click.echo(f"python {platform.python_version()} ({platform.python_implementation()}, {sys.platform})")
    for name in ("uvicorn", "uvloop", "httptools", "starlette", "fastapi", "pydantic"):
        try:
            click.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            click.echo(f"{name} not installed")
