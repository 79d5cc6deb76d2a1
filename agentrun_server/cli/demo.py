"""``agentrun-server demo``: a server with an agent that needs no model, no key and no network."""

import os
from dataclasses import replace

import click

from agentrun_server.cli import listen
from agentrun_server.cli.run import Network, answer_here_only, prepare, serve_app
from agentrun_server.cli.settings import NETWORK_SETTINGS, SERVER_SETTINGS, origin_of, setting_options

__all__ = ["MODEL", "banner", "demo_command", "python_snippet"]

MODEL = "demo"

_OFFERED = {"host", "port", "log_level", "log_format", "access_log", "docs", "cors_origins"}

_QUESTION = "What is 12 * (3 + 4)?"


def python_snippet(url: str) -> str:
    """Return five lines of Python that ask the demo with the stock client."""
    return f"""\
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="unused")
messages = [{{"role": "user", "content": "{_QUESTION}"}}]
for chunk in client.chat.completions.create(model="{MODEL}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""


def curl_command(url: str) -> str:
    """Return a shell command that asks the demo."""
    messages = f'[{{"role": "user", "content": "{_QUESTION}"}}]'
    body = f'{{"model": "{MODEL}", "stream": true, "messages": {messages}}}'
    return f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def banner(url: str, store: str | None) -> str:
    """Return what the demo says when it starts; `store` is where it keeps responses, None for nowhere."""
    kept = "nothing" if store is None else f"what is said to /v1/responses, in {store}"
    indented = "\n".join("    " + line for line in python_snippet(url).splitlines())
    return f"""\
agentrun-server demo: an agent behind the OpenAI API, without a model, a key or a network.

  Address   {url}/v1   (model "{MODEL}", any API key)
  Keeps     {kept}

  Talk to it in another terminal:
    agentrun-server chat {url}

  Ask it with curl:
    {curl_command(url)}

  Ask it with Python (pip install openai):
{indented}

  Ask "help" to see what it can do. Ctrl-C stops it.
"""


def _address(network: Network) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(network.host, network.host)  # noqa: S104 - for the user to click
    return f"http://[{host}]:{network.port}" if ":" in host else f"http://{host}:{network.port}"


@click.command("demo")
@setting_options([setting for setting in (*NETWORK_SETTINGS, *SERVER_SETTINGS) if setting.name in _OFFERED])
def demo_command(**params: object) -> None:
    """Serve an agent that needs no model, no key and no network.

    It reasons, streams, runs tools of its own and calls yours. When port 8000 is taken and no other was
    asked for, it takes the next free one.
    """
    network = prepare(params, os.devnull)
    port_setting = next(setting for setting in NETWORK_SETTINGS if setting.name == "port")
    chosen = origin_of(port_setting, os.environ, {})[1] != "default"
    try:
        if network.port == 0 or not chosen:
            os.environ[port_setting.variable] = str(listen.free_port(network.host, network.port))
            network = prepare({}, os.devnull)
        # Settings of the environment that a demo has no use for, and that its address could not tell.
        network = replace(network, workers=1, uds=None, root_path="", ssl_certfile=None, ssl_keyfile=None)
    except listen.AddressError as exc:
        raise click.ClickException(str(exc)) from exc
    answer_here_only(network)

    from agentrun_server import AgentRunServer
    from agentrun_server.cli.demo_agent import demo_agent
    from agentrun_server.config import OpenAIProtocolConfig, ServerConfig
    from agentrun_server.storage.opening import shown_storage_url

    config = ServerConfig(openai=OpenAIProtocolConfig(model_name=MODEL))
    app = AgentRunServer(invoke_agent=demo_agent, config=config)
    store = None if config.store_url is None else shown_storage_url(config.store_url)
    click.echo(banner(_address(network), store))
    serve_app(app, network)
