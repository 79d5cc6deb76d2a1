"""``agentrun-server chat URL``: talk to any server of Chat Completions from a terminal.

The conversation is a list of messages that is sent whole with every turn, as every client of this protocol
does. A turn that fails leaves no trace in it; a turn that the user stops keeps what was said so far.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from agentrun_server.cli.chat_client import (
    Activity,
    ChatClient,
    ChatError,
    ChatEvent,
    ChatOptions,
    Finished,
    Reasoning,
    Text,
    ToolRequest,
    base_url,
    is_loopback,
)
from agentrun_server.cli.terminal import Screen

__all__ = ["Conversation", "chat_command", "choose_key", "show"]

_HELP = """\
/reset          forget the conversation
/model [ID]     show the models, or change to one
/system [TEXT]  set the system prompt; without text, take it away
/quit           leave (also Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer."""

_MAX_STDIN = 10 * 1024 * 1024

_LINE = 500
"""Longest line of activity that is shown; results of tools can be books."""


@dataclass
class Conversation:
    """What has been said, and to whom."""

    model: str
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def sent(self, text: str) -> list[dict[str, Any]]:
        """Return the messages to send for the user's next `text`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages, {"role": "user", "content": text}]

    def keep(self, text: str, answer: str) -> None:
        """Remember a turn."""
        self.messages.append({"role": "user", "content": text})
        self.messages.append({"role": "assistant", "content": answer})


@dataclass(frozen=True, kw_only=True)
class _Display:
    """What is shown besides the answer."""

    reasoning: bool = False
    events: bool = False


# --- one turn -------------------------------------------------------------------------------------


def show(event: ChatEvent, screen: Screen, display: _Display) -> None:
    """Write `event` to the screen."""
    match event:
        case Text(text):
            screen.answer(text)
        case Reasoning(text):
            if display.reasoning:
                screen.aside(text)
        case Activity(data):
            if display.events:
                screen.note(_activity_line(data))
        case ToolRequest(name, arguments):
            screen.note(f"[the agent asks its client to run {name or 'a tool'}({_shortened(arguments)})]")
        case Finished(reason):
            screen.end_line()
            if reason in {"length", "content_filter"}:
                screen.note(f"[the answer was cut: {reason}]")


def _activity_line(data: Mapping[str, Any]) -> str:
    parts = [str(data.get("type") or "activity")]
    parts += [str(data[key]) for key in ("name", "label") if data.get(key) not in (None, "")]
    progress = data.get("progress")
    if isinstance(progress, (int, float)):
        parts.append(f"{progress:.0%}")
    if data.get("output") is not None:
        parts.append("= " + _compact(data["output"]))
    elif data.get("arguments") is not None:  # shown when the call begins, not again with its result
        parts.append(_compact(data["arguments"]))
    return "· " + _shortened(" ".join(parts).replace("\n", " "))


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"


def _turn(
    client: ChatClient,
    conversation: Conversation,
    text: str,
    screen: Screen,
    options: ChatOptions,
    display: _Display,
) -> Literal["done", "failed", "stopped"]:
    """Send `text`, show the answer, and remember both."""
    answer: list[str] = []
    events = client.ask(conversation.model, conversation.sent(text), options)
    try:
        for event in events:
            if isinstance(event, Text):
                answer.append(event.text)
            show(event, screen, display)
    except ChatError as exc:
        screen.error(str(exc))
        return "failed"
    except KeyboardInterrupt:
        screen.end_line()
        if any(answer):
            conversation.keep(text, "".join(answer))
        return "stopped"
    finally:
        events.close()  # hangs up, so that the server stops its agent
    conversation.keep(text, "".join(answer))
    return "done"


# --- the loop -------------------------------------------------------------------------------------


class _Session:
    """The loop of an interactive conversation."""

    def __init__(
        self,
        client: ChatClient,
        conversation: Conversation,
        screen: Screen,
        options: ChatOptions,
        display: _Display,
        read_line: Callable[[str], str],
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._screen = screen
        self._options = options
        self._display = display
        self._read_line = read_line

    def run(self) -> None:
        """Read and answer until the user leaves."""
        self._screen.note(f"{self._client.url}, model {self._conversation.model}. /help shows what can be typed.")
        while True:
            try:
                text = self._read_message()
            except EOFError:
                self._screen.note("")
                return
            except KeyboardInterrupt:
                self._screen.note("\n(/quit or Ctrl-D to leave)")
                continue
            if text.startswith("/"):
                if self._command(text) == "quit":
                    return
            elif text:
                outcome = _turn(self._client, self._conversation, text, self._screen, self._options, self._display)
                if outcome == "stopped":
                    self._screen.note("[stopped]")

    def _read_message(self) -> str:
        lines = [self._read_line("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read_line(". "))
        return "\n".join(lines).strip()

    def _command(self, text: str) -> Literal["quit", "stay"]:
        name, _, argument = text.partition(" ")
        argument = argument.strip()
        match name:
            case "/quit" | "/exit" | "/q":
                return "quit"
            case "/reset":
                self._conversation.messages.clear()
                self._screen.note("The conversation is forgotten.")
            case "/model" | "/models":
                self._model(argument)
            case "/system":
                self._conversation.system = argument or None
                self._screen.note("The system prompt is set." if argument else "There is no system prompt now.")
            case "/help" | "/?":
                self._screen.note(_HELP)
            case _:
                self._screen.note(f"There is no command {name}; /help shows those there are.")
        return "stay"

    def _model(self, wanted: str) -> None:
        if wanted:
            self._conversation.model = wanted
            self._screen.note(f"The model is {wanted} now.")
            return
        try:
            models = self._client.models()
        except ChatError as exc:
            self._screen.error(str(exc))
            return
        except KeyboardInterrupt:
            self._screen.note("[stopped]")
            return
        for model in models:
            self._screen.note(("* " if model == self._conversation.model else "  ") + model)


def _terminal_reader() -> Callable[[str], str]:
    """Return `input`, with line editing and a history where Python has them."""
    try:
        import readline
    except ImportError:
        return input
    readline.set_auto_history(True)
    return input


# --- the command ----------------------------------------------------------------------------------


def choose_key(given: str | None, url: str, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the API key to send and, when one is held back, the reason to show.

    A key that was meant for another place must not leave in the clear: ``OPENAI_API_KEY`` goes only to this
    machine or over HTTPS. A key given for this server (``--api-key``, ``AGENTRUN_API_KEY``) always goes.
    """
    own = given or environ.get("AGENTRUN_API_KEY")
    if own:
        return own, None
    general = environ.get("OPENAI_API_KEY")
    if general and url.startswith("http://") and not is_loopback(url):
        return None, "OPENAI_API_KEY is not sent over plain HTTP; give the key with --api-key"
    return general or None, None


@click.command("chat", short_help="Talk to an agent from the terminal.")
@click.argument("url", default="http://127.0.0.1:8000/v1")
@click.option("--model", "-m", metavar="ID", help="Model to ask.  [default: the first the server lists]")
@click.option(
    "--api-key",
    metavar="KEY",
    help="Key to send.  [default: AGENTRUN_API_KEY, then OPENAI_API_KEY]",
)
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--message", metavar="TEXT", help="Ask this, print the answer and leave.")
@click.option("--no-stream", is_flag=True, help="Ask for the answer in one piece.")
@click.option("--show-reasoning", is_flag=True, help="Show the model's reasoning, too.")
@click.option("--events", is_flag=True, help="Show what the agent does: its tools, steps and progress.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up when the server is silent for so long.",
)
def chat_command(
    url: str,
    model: str | None,
    api_key: str | None,
    system: str | None,
    message: str | None,
    no_stream: bool,
    show_reasoning: bool,
    events: bool,
    timeout: float,
) -> None:
    """Talk to an agent, here or at any server of OpenAI's Chat Completions.

    URL is the server's address, with or without /v1. Without a terminal, standard input is the message. The
    answer goes to standard output, everything else to standard error; the exit code is 1 when there is no
    whole answer.
    """
    screen = Screen()
    once = _message_of(message)
    try:
        key, held_back = choose_key(api_key, base_url(url), os.environ)
        if held_back:
            screen.note(held_back)
        with ChatClient(url, api_key=key, timeout=timeout) as client:
            conversation = Conversation(model or client.models()[0], system)
            options = ChatOptions(stream=not no_stream, events=events)
            display = _Display(reasoning=show_reasoning, events=events)
            if once is None:
                _Session(client, conversation, screen, options, display, _terminal_reader()).run()
                return
            outcome = _turn(client, conversation, once, screen, options, display)
    except ChatError as exc:
        screen.error(str(exc))
        outcome = "failed"
    except KeyboardInterrupt:
        outcome = "stopped"
    except BrokenPipeError:  # ``… | head`` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome = "done"
    sys.exit({"done": 0, "failed": 1, "stopped": 130}[outcome])


def _message_of(message: str | None) -> str | None:
    """Return the one message to send; None to ask the user."""
    if message is None and sys.stdin.isatty():
        return None
    text = sys.stdin.read(_MAX_STDIN + 1) if message is None else message
    if len(text) > _MAX_STDIN:
        raise click.UsageError("standard input is longer than 10 MiB")
    if not text.strip():
        raise click.UsageError("there is no message: give --message, standard input, or a terminal")
    return text
