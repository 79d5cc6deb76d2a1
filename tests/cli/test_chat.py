"""``agentrun-server chat``: a conversation in a terminal, and one question in a script."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentrun_server.cli.chat import Conversation, _Display, _Session, chat_command, choose_key, show
from agentrun_server.cli.chat_client import Activity, ChatClient, ChatOptions, Finished, ToolRequest
from agentrun_server.cli.terminal import Screen
from agentrun_server.testing import FakeOpenAI, Gate, Turn, UpstreamError
from tests.cli.processes import LIMIT, command, environment


class Typed:
    """What a user types: lines, or an exception where a key is pressed; the end is Ctrl-D."""

    def __init__(self, lines: Iterable[str | type[BaseException]]) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


class Pressed(io.StringIO):
    """A screen in front of which the user presses Ctrl-C as soon as `text` is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._text in text:
            self._text = "\0"
            raise KeyboardInterrupt
        return written


def converse(
    fake: FakeOpenAI,
    *lines: str | type[BaseException],
    out: io.StringIO | None = None,
    system: str | None = None,
    display: _Display | None = None,
    during: Callable[[], object] = lambda: None,
) -> tuple[str, str]:
    """Type `lines` in a conversation with `fake`; return what stdout and stderr showed."""
    out, err = out or io.StringIO(), io.StringIO()
    with fake.serve() as url, ChatClient(url, timeout=10) as client:
        conversation = Conversation("fake-model", system)
        session = _Session(client, conversation, Screen(out, err), ChatOptions(), display or _Display(), Typed(lines))
        session.run()
        during()
    return out.getvalue(), err.getvalue()


def sent(fake: FakeOpenAI) -> list[list[tuple[str, str]]]:
    """Return role and content of each message of each request."""
    return [[(m["role"], m["content"]) for m in request.json["messages"]] for request in fake.requests]


# --- a conversation -------------------------------------------------------------------------------------------


def test_a_conversation_is_sent_whole_with_every_turn() -> None:
    fake = FakeOpenAI(["One.", "Two."])
    out, _ = converse(fake, "first", "second")
    assert out == "One.\nTwo.\n"
    assert sent(fake) == [
        [("user", "first")],
        [("user", "first"), ("assistant", "One."), ("user", "second")],
    ]


def test_a_system_prompt_goes_first_and_can_be_changed() -> None:
    fake = FakeOpenAI(["a", "b", "c"])
    converse(fake, "1", "/system Be brief.", "2", "/system", "3", system="Be kind.")
    assert [messages[0] for messages in sent(fake)] == [("system", "Be kind."), ("system", "Be brief."), ("user", "1")]


def test_a_line_that_ends_with_a_backslash_goes_on() -> None:
    fake = FakeOpenAI("ok")
    converse(fake, "one \\", "two\\", "three")
    assert sent(fake) == [[("user", "one \ntwo\nthree")]]


def test_reset_forgets() -> None:
    fake = FakeOpenAI(["a", "b"])
    converse(fake, "first", "/reset", "second")
    assert sent(fake)[1] == [("user", "second")]


def test_the_model_can_be_changed() -> None:
    fake = FakeOpenAI(["a", "b"])
    _, err = converse(fake, "1", "/model other", "2", "/model")
    assert [request.json["model"] for request in fake.requests] == ["fake-model", "other"]
    assert "The model is other now." in err


def test_empty_lines_and_unknown_commands_send_nothing() -> None:
    fake = FakeOpenAI("never")
    _, err = converse(fake, "", "   ", "/nonsense", "/help", "/quit", "not read")
    assert fake.requests == []
    assert "There is no command /nonsense" in err
    assert "/reset" in err


def test_a_turn_that_fails_leaves_no_trace() -> None:
    fake = FakeOpenAI(
        [
            Turn("", error=UpstreamError(429, "slow down", headers={"retry-after": "2"})),
            Turn(["half", " an answer"], error=(500, "it broke"), error_at=1),
            "well",
        ]
    )
    out, err = converse(fake, "first", "second", "third")
    assert out == "half\nwell\n"
    assert "Error: 429 Too Many Requests: slow down (rate_limit_exceeded); try again in 2 s" in err
    assert "Error: it broke" in err
    assert sent(fake)[2] == [("user", "third")]


def test_ctrl_c_stops_the_answer_keeps_what_was_said_and_hangs_up() -> None:
    fake = FakeOpenAI([Turn(["Hello", " there"], gate=Gate(), gate_at=1), "again"])
    out = Pressed("Hello")
    _, err = converse(fake, "first", "second", out=out)
    assert out.getvalue() == "Hello\nagain\n"
    assert "[stopped]" in err
    assert fake.requests[0].outcome == "disconnected"
    assert sent(fake)[1] == [("user", "first"), ("assistant", "Hello"), ("user", "second")]


def test_ctrl_c_at_the_prompt_tells_how_to_leave() -> None:
    fake = FakeOpenAI("ok")
    _, err = converse(fake, KeyboardInterrupt, "hello", EOFError, "not read")
    assert "(/quit or Ctrl-D to leave)" in err
    assert len(fake.requests) == 1


def test_reasoning_is_shown_when_asked_for() -> None:
    script = [Turn("Yes.", reasoning="Let me think.")]
    assert "think" not in converse(FakeOpenAI(script), "hm?")[1]
    out, err = converse(FakeOpenAI(script), "hm?", display=_Display(reasoning=True))
    assert out == "Yes.\n"
    assert "Let me think.\n" in err


def test_what_a_server_says_cannot_command_the_terminal() -> None:
    fake = FakeOpenAI([Turn(["\x1b[2Jhi"]), Turn("", error=(500, "bad\x1b[2J"))])
    out, err = converse(fake, "a", "b")
    assert out == "^[[2Jhi\n"
    assert "bad^[[2J" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Activity({"type": "tool_call.started", "name": "clock", "arguments": {"zone": "UTC"}}),
         '· tool_call.started clock {"zone": "UTC"}'),
        (Activity({"type": "tool_call.completed", "name": "clock", "arguments": {}, "output": "12:00"}),
         "· tool_call.completed clock = 12:00"),
        (Activity({"type": "progress", "label": "Searching…\nnow", "progress": 0.4}), "· progress Searching… now 40%"),
        (Activity({"type": 7, "progress": "most"}), "· 7"),
        (Activity({"type": "custom", "output": "x" * 9999}), "· custom = " + "x" * 490 + "…"),
        (ToolRequest("get_weather", '{"city": "Paris"}'),
         '[the agent asks its client to run get_weather({"city": "Paris"})]'),
        (Finished("length"), "[the answer was cut: length]"),
        (Finished("stop"), ""),
    ],
)  # fmt: skip
def test_what_happens_besides_the_answer_is_a_line(event: Any, line: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    show(event, Screen(out, err), _Display(events=True))
    shown = err.getvalue().rstrip("\n")
    assert (shown, out.getvalue()) == (line, "")


def test_activity_is_hidden_unless_asked_for() -> None:
    err = io.StringIO()
    show(Activity({"type": "progress"}), Screen(io.StringIO(), err), _Display())
    assert err.getvalue() == ""


# --- the key -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "environ", "url", "key"),
    [
        (None, {}, "http://127.0.0.1", None),
        ("flag", {"AGENTRUN_API_KEY": "ours", "OPENAI_API_KEY": "theirs"}, "http://far.example", "flag"),
        (None, {"AGENTRUN_API_KEY": "ours", "OPENAI_API_KEY": "theirs"}, "http://far.example", "ours"),
        (None, {"OPENAI_API_KEY": "theirs"}, "http://127.0.0.1:8000", "theirs"),
        (None, {"OPENAI_API_KEY": "theirs"}, "https://far.example", "theirs"),
        (None, {"OPENAI_API_KEY": "theirs"}, "http://far.example", None),
        (None, {"OPENAI_API_KEY": ""}, "http://127.0.0.1", None),
    ],
)
def test_a_key_goes_only_where_it_may(given: str | None, environ: dict[str, str], url: str, key: str | None) -> None:
    chosen, held_back = choose_key(given, url, environ)
    assert chosen == key
    assert (held_back is not None) == (key is None and bool(environ.get("OPENAI_API_KEY")))
    assert "theirs" not in (held_back or "")


# --- one question ------------------------------------------------------------------------------------------------


def test_one_message_is_answered_on_stdout() -> None:
    with FakeOpenAI("Hello there.").serve() as url:
        result = CliRunner().invoke(chat_command, [url, "--message", "hi"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there.\n", "")


def test_standard_input_is_the_message_without_a_terminal() -> None:
    fake = FakeOpenAI("ok")
    with fake.serve() as url:
        result = CliRunner().invoke(chat_command, [url, "--system", "S", "--model", "m"], input="two\nlines\n")
    assert result.exit_code == 0
    assert sent(fake) == [[("system", "S"), ("user", "two\nlines\n")]]
    assert fake.requests[0].json["model"] == "m"


def test_without_streaming_the_answer_is_the_same() -> None:
    fake = FakeOpenAI("Hello there.")
    with fake.serve() as url:
        result = CliRunner().invoke(chat_command, [url, "--message", "hi", "--no-stream"])
    assert result.stdout == "Hello there.\n"
    assert fake.requests[0].json["stream"] is False


@pytest.mark.parametrize(
    "turn",
    [
        Turn("", error=(500, "it broke")),
        Turn(["half", " more"], error=(500, "it broke"), error_at=1),
        Turn(["half", " more"], disconnect_at=1),
    ],
)
def test_without_a_whole_answer_the_exit_code_is_one(turn: Turn) -> None:
    with FakeOpenAI(turn).serve() as url:
        result = CliRunner().invoke(chat_command, [url, "--message", "hi"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    result = CliRunner().invoke(chat_command, ["http://127.0.0.1:1", "--message", "hi"])
    assert result.exit_code == 1
    assert result.stderr == "Error: cannot reach http://127.0.0.1:1/v1: Connection refused. Is the server running?\n"


def test_an_address_that_is_none_is_one_line() -> None:
    result = CliRunner().invoke(chat_command, ["ftp://x", "--message", "hi"])
    assert (result.exit_code, result.stderr) == (1, "Error: 'ftp://x' is not an http:// or https:// address\n")


@pytest.mark.parametrize(("args", "text"), [([], "  \n"), (["--message", " "], None)])
def test_no_message_is_a_usage_error(args: list[str], text: str | None) -> None:
    result = CliRunner().invoke(chat_command, ["http://127.0.0.1:1", *args], input=text)
    assert result.exit_code == 2
    assert "there is no message" in result.stderr


def test_ctrl_c_in_a_script_ends_with_its_code(tmp_path: Path) -> None:
    gate = Gate()
    with FakeOpenAI(Turn(["Hello", " there"], gate=gate, gate_at=1)).serve() as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentrun_server", "chat", url, "--message", "hi"],
            env=environment(), cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        gate.arrived_sync(LIMIT)
        assert process.stdout is not None
        first = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=LIMIT)
    assert (first + rest, err, process.returncode) == ("Hello\n", "", 130)


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    with FakeOpenAI(" ".join(["word"] * 20_000)).serve() as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentrun_server", "chat", url, "--message", "hi"],
            env=environment(), cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        assert process.wait(LIMIT) == 0
        assert process.stderr.read() == b""
        process.stderr.close()


def test_chat_is_a_command_of_its_own_process(tmp_path: Path) -> None:
    with FakeOpenAI("Hello there.").serve() as url:
        result = command("chat", url, "--message", "hi", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Hello there.\n", "")


# --- in a real terminal --------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal in front of the command, and what it shows."""

    def __init__(self, url: str, cwd: Path) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, url],
            env=environment({"TERM": "xterm"}), cwd=cwd, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self._read_to = 0

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown after what was waited for before."""
        deadline = time.monotonic() + LIMIT
        while text not in self.shown[self._read_to :]:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown in:\n{self.shown}"
            self.shown += os.read(self._master, 4096).decode()
        self._read_to = self.shown.index(text, self._read_to) + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> int:
        try:
            return self._process.wait(LIMIT)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(LIMIT)
            os.close(self._master)


_IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal whose Ctrl-C this process gets
from agentrun_server.cli import main
main(["chat", sys.argv[1], "--show-reasoning"])
"""


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    fake = FakeOpenAI(
        [
            Turn("Hello there.", reasoning="hm"),
            Turn(["Once", " upon a time"], gate=Gate(), gate_at=1),
            Turn("Still here."),
        ]
    )
    with fake.serve() as url:
        terminal = Terminal(url, tmp_path)
        try:
            terminal.wait_for("> ")
            terminal.type("hi\n")
            terminal.wait_for("\x1b[2mhm\x1b[22m")
            terminal.wait_for("Hello there.")
            terminal.wait_for("> ")
            terminal.type("a story\n")
            terminal.wait_for("Once")
            terminal.type("\x03")
            terminal.wait_for("[stopped]")
            terminal.wait_for("> ")
            assert fake.requests[1].ended_sync() == "disconnected"
            terminal.type("are you there?\n")
            terminal.wait_for("Still here.")
            terminal.wait_for("> ")
            terminal.type("\x04")
        finally:
            code = terminal.close()
    assert code == 0
    assert "Traceback" not in terminal.shown
    assert re.search(r"model \S+\. /help shows what can be typed", terminal.shown)
    assert sent(fake)[2][-2:] == [("assistant", "Once"), ("user", "are you there?")]
