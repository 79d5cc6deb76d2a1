"""``agentrun-server demo``: what its banner promises, done."""

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from agentrun_server.cli.demo import MODEL, banner, curl_command, python_snippet
from tests.cli.processes import LIMIT, ServerProcess, command, environment, serving

_ADDRESS = re.compile(r"Address +(http://127\.0\.0\.1:\d+)/v1")
_RUNNING = re.compile(r"(running on http)")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A demo that runs."""
    folder = tmp_path_factory.mktemp("demo")
    with serving("demo", "--port", "0", cwd=folder, env={"AGENTRUN_HOME": str(folder)}, pattern=_ADDRESS) as server:
        server.wait_for(_RUNNING)
        yield server


def test_the_banner_is_complete(demo: ServerProcess) -> None:
    (store,) = re.findall("in (sqlite:////.*)", demo.output)
    text = banner(demo.url, store)
    assert text in demo.output
    assert store.endswith("/agentrun.db")
    assert "Keeps     nothing\n" in banner(demo.url, None)
    for part in (f"{demo.url}/v1", f"agentrun-server chat {demo.url}", curl_command(demo.url), "pip install openai"):
        assert part in text
    assert len(python_snippet(demo.url).splitlines()) == 5


def test_the_python_of_the_banner_runs_as_it_is(demo: ServerProcess, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", python_snippet(demo.url)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "12 * (3 + 4) = 84", "")


def test_the_curl_command_of_the_banner_is_one_that_a_shell_understands(demo: ServerProcess) -> None:
    import httpx2

    words = shlex.split(curl_command(demo.url))
    assert words[:3] == ["curl", "-N", f"{demo.url}/v1/chat/completions"]
    header, value = words[words.index("-H") + 1].split(": ")
    response = httpx2.post(
        words[2], content=words[words.index("-d") + 1].encode(), headers={header: value}, timeout=LIMIT
    )
    assert response.status_code == 200
    assert response.text.endswith("data: [DONE]\n\n")


def test_it_answers_no_page_of_another_name(demo: ServerProcess) -> None:
    import httpx2

    response = httpx2.get(f"{demo.url}/v1/models", headers={"host": "rebound.example"}, timeout=LIMIT)
    assert (response.status_code, response.json()["error"]["code"]) == (421, "misdirected_request")
    assert httpx2.get(f"{demo.url}/livez", headers={"host": "rebound.example"}, timeout=LIMIT).status_code == 200


def test_chat_talks_to_it_and_shows_its_thoughts_and_tools(demo: ServerProcess) -> None:
    result = command("chat", demo.url, "--message", "What is 12 * (3 + 4)?", "--show-reasoning", "--events")
    assert (result.returncode, result.stdout) == (0, "12 * (3 + 4) = 84\n")
    assert result.stderr.startswith("This is arithmetic: 12 * (3 + 4).")
    for line in (
        "· step.started calculator",
        '· tool_call.started calculator {"expression": "12 * (3 + 4)"}',
        '· tool_call.completed calculator = {"result": "84", "answer": "12 * (3 + 4) = 84"}',
        "· progress Running calculator 50%",
        "· step.finished calculator",
    ):
        assert f"\n{line}\n" in result.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [("fail", "500 Internal Server Error: the demo agent failed, as you asked (demo_failure)"),
     ("fail later", "the demo agent failed after it had begun, as you asked (demo_failure)")],
)  # fmt: skip
def test_it_shows_how_failures_look(demo: ServerProcess, text: str, shown: str) -> None:
    result = command("chat", demo.url, "--message", text)
    assert result.returncode == 1
    assert f"Error: {shown}" in result.stderr


def test_the_stock_client_streams_reasoning_and_text_from_it(demo: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="unused", timeout=LIMIT)
    assert [model.id for model in client.models.list()] == [MODEL]
    stream = client.chat.completions.create(
        model=MODEL, stream=True, messages=[{"role": "user", "content": "tell me a story"}]
    )
    chunks = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in chunks).startswith("You said: tell me a story")
    assert len([delta for delta in chunks if delta.content]) > 5
    assert any(getattr(delta, "reasoning_content", None) for delta in chunks)
    client.close()


def test_the_stock_client_runs_its_own_tool_for_it(demo: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="unused", timeout=LIMIT)
    tools: Any = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            },
        }
    ]
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
    assert first.choices[0].finish_reason == "tool_calls"
    call: Any = (first.choices[0].message.tool_calls or [])[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 °C"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
    assert second.choices[0].message.content == "Your tool says: get_weather: sunny, 21 °C"
    client.close()


def test_the_stock_client_goes_on_from_a_response_of_its(demo: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="unused", timeout=LIMIT)
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}]
    first = client.responses.create(model=MODEL, input="What is the weather in Paris?", tools=tools)
    call: Any = first.output[-1]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 °C"}
    second = client.responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=tools)
    assert second.output_text == "Your tool says: get_weather: sunny, 21 °C"
    client.close()


def test_any_model_name_is_answered(demo: ServerProcess) -> None:
    assert command("chat", demo.url, "--message", "count to 3", "--model", "gpt-anything").stdout == "1 2 3\n"


def test_it_runs_in_one_process_whatever_the_environment_says_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    env = {"WEB_CONCURRENCY": "4", "AGENTRUN_UDS": "x.sock", "AGENTRUN_ROOT_PATH": "/x"}
    with serving("demo", "--port", "0", cwd=tmp_path, env=env, pattern=_ADDRESS) as server:
        server.wait_for(_RUNNING)
        assert server.stop(signal.SIGINT) in {0, -signal.SIGINT}
    assert "Traceback" not in server.output


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        result = command("demo", "--port", str(port), cwd=tmp_path)
    assert result.returncode == 1
    assert f"Error: port {port} of 127.0.0.1 is taken" in result.stderr


def test_when_the_usual_port_is_taken_it_takes_the_next(tmp_path: Path) -> None:
    try:
        sock = socket.create_server(("127.0.0.1", 8000))
    except OSError:  # by something else on this machine, which serves the test as well
        sock = socket.socket()
    with sock, serving("demo", cwd=tmp_path, pattern=_ADDRESS) as server:
        assert not server.url.endswith(":8000")
