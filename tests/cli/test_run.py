"""``agentrun-server run`` and ``dev`` as users have them: real processes, real sockets."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from agentrun_server import AgentRunServer
from agentrun_server.cli.run import DEV_PRESETS, Network, answer_here_only, dev_command, network_of, run_command
from agentrun_server.errors import ConfigurationError
from tests.cli.processes import LIMIT, ServerProcess, command, serving

ECHO = """
async def agent(request):
    yield "Hello, "
    yield request.messages[-1].text
"""

WHO = """
import os

def agent(request):
    return f"{os.getpid()} {os.environ.get('TONE')} {os.environ.get('AGENTRUN_MAX_CHOICES')}"
"""

PATIENT = """
import asyncio
import os
from pathlib import Path

async def agent(request):
    yield f"{os.getpid()} {os.environ.get('AGENTRUN_MAX_CHOICES')}"
    while request.messages[-1].text == "wait" and not Path("go").exists():
        await asyncio.sleep(0.01)
"""

STARTED = re.compile("(Application startup complete)")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the command is run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(url: str, text: str = "world", **options: Any) -> str:
    """Return the answer of the server at `url`."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    with httpx2.Client(timeout=LIMIT, **options) as client:
        response = client.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer: str = response.json()["choices"][0]["message"]["content"]
    return answer


# --- run --------------------------------------------------------------------------------------------------------


def test_an_agent_is_served_and_the_address_is_printed(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with serving("run", "app:agent", "--port", "0", cwd=project) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", server.url)
        assert ask(server.url) == "Hello, world"
        assert command("healthcheck", server.url).returncode == 0
        chat = command("chat", server.url, "--message", "you")
        assert (chat.returncode, chat.stdout) == (0, "Hello, you\n")
        # uvicorn raises the signal again when it has shut down in good order
        assert server.stop(signal.SIGTERM) in {0, -signal.SIGTERM}
        assert command("healthcheck", server.url).returncode == 1
    assert "Application shutdown complete" in server.output
    assert "Traceback" not in server.output


def test_ctrl_c_ends_it(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with serving("run", "--port", "0", cwd=project) as server:
        assert ask(server.url) == "Hello, world"
        assert server.stop(signal.SIGINT) in {0, -signal.SIGINT}
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("app:server", {"app.py": ECHO + "from agentrun_server import AgentRunServer\nserver = AgentRunServer(agent)"}),
        ("src/my-agent.py:agent", {"src/my-agent.py": ECHO}),
        ("app:make", {"app.py": ECHO + "def make(): return {'m': agent}\n"}),
    ],
)
def test_targets_of_other_kinds_are_served(project: Path, target: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    factory = ["--factory"] if target.endswith("make") else []
    with serving("run", target, *factory, "--port", "0", cwd=project) as server:
        assert ask(server.url) == "Hello, world"


def test_any_asgi_app_is_served(project: Path) -> None:
    (project / "site.py").write_text("")  # `site` is always loaded: the name of a module that must not get in the way
    (project / "main.py").write_text(
        "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/hello')\ndef hello(): return {'hello': 'world'}\n"
    )
    with serving("run", "--port", "0", cwd=project) as server:
        assert httpx2.get(f"{server.url}/hello", timeout=LIMIT).json() == {"hello": "world"}


def test_flags_and_env_file_reach_the_users_module(project: Path) -> None:
    (project / "app.py").write_text(WHO)
    (project / ".env").write_text("TONE='very kind'\nAGENTRUN_MAX_CHOICES=2\nAGENTRUN_PORT=1\n")
    with serving("run", "--port", "0", "--max-choices", "3", cwd=project) as server:
        assert ask(server.url).split(" ", 1)[1] == "very kind 3"
    with serving("run", cwd=project, env={"PORT": "0", "TONE": "firm"}) as server:
        assert ask(server.url).split(" ", 1)[1] == "firm 2"


def test_a_setting_takes_effect(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with serving("run", "--port", "0", "--max-body-bytes", "100", cwd=project) as server:
        response = httpx2.post(f"{server.url}/v1/chat/completions", json={"x": "y" * 200}, timeout=LIMIT)
        assert response.status_code == 413


@contextmanager
def two_workers(url: str) -> Iterator[tuple[httpx2.Client, httpx2.Client, list[str]]]:
    """Yield a connection to each of two workers, and what their agents say."""
    with ExitStack() as stack:
        found: dict[str, httpx2.Client] = {}
        for _ in range(500):  # which worker accepts is the system's choice
            client = stack.enter_context(httpx2.Client(base_url=url, timeout=LIMIT))
            answer = client.post("/v1/responses", json={"model": "m", "input": "who", "store": False}).json()
            found.setdefault(answer["output"][0]["content"][0]["text"], client)
            if len(found) == 2:
                break
        first, second = found.values()
        yield first, second, list(found)


def test_two_workers_answer_from_one_store_and_end_together(project: Path) -> None:
    (project / "app.py").write_text(PATIENT)
    with serving("run", "app:agent", "--workers", "2", "--port", "0", "--max-choices", "5", cwd=project) as server:
        for _ in range(2):
            server.wait_for(STARTED)
        with two_workers(server.url) as (first, second, said):
            made = first.post("/v1/responses", json={"model": "m", "input": "wait", "background": True}).json()
            one, events = f"/v1/responses/{made['id']}", b""
            with second.stream("GET", one, params={"stream": True}) as stream:
                for data in stream.iter_raw():
                    events += data
                    if f'"delta":"{said[0]}"'.encode() in events:
                        (project / "go").touch()
            assert events.endswith(b"data: [DONE]\n\n")
            rest = events[events.index(b"event: response.output_text.delta") :]
            for worker in (first, second):
                assert worker.get(one, params={"stream": True, "starting_after": 4}).content == rest
                assert worker.get(one).json()["output"][0]["content"][0]["text"] == said[0]
        assert [text.split(" ")[1] for text in said] == ["5", "5"]
        assert server.stop() in {143, -signal.SIGTERM}
    for text in said:
        with pytest.raises(ProcessLookupError):
            os.kill(int(text.split(" ")[0]), 0)


def test_a_unix_socket_is_served_and_found_by_the_healthcheck(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    path = str(project / "agent.sock")
    with serving("run", "--uds", path, cwd=project) as server:
        assert server.url == f"unix socket {path}"
        assert ask("http://agent", transport=httpx2.HTTPTransport(uds=path)) == "Hello, world"
        assert command("healthcheck", env={"AGENTRUN_UDS": path}).returncode == 0
        again = command("run", "--uds", path, cwd=project)
        assert (again.returncode, again.stderr) == (1, f"Error: another server listens on {path}\n")
        server.stop(signal.SIGKILL)
    with serving("run", "--uds", path, cwd=project):  # over the socket that the killed one left
        assert command("healthcheck", "--uds", path).returncode == 0


def test_a_root_path_that_a_proxy_takes_off_is_known_to_the_app(project: Path) -> None:
    (project / "app.py").write_text(
        ECHO
        + """
async def app(scope, receive, send):
    assert scope["type"] == "http", "no lifespan"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{scope['root_path']} {scope['path']}".encode()})
"""
    )
    with serving("run", "app:agent", "--port", "0", "--root-path", "/agents/", cwd=project) as server:
        assert ask(server.url) == "Hello, world"
    with serving("run", "app:app", "--port", "0", "--root-path", "/agents/", cwd=project) as server:
        assert httpx2.get(f"{server.url}/v1/x", timeout=LIMIT).text == "/agents /agents/v1/x"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_is_served_with_a_certificate(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=agents.example",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=project, capture_output=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    args = ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"]
    with serving("run", "--port", "0", *args, cwd=project) as server:
        assert server.url.startswith("https://")
        assert ask(server.url, verify=False) == "Hello, world"
        assert command("healthcheck", server.url).returncode == 0


def test_answers_under_way_are_finished_on_sigterm(project: Path) -> None:
    (project / "app.py").write_text(
        "import asyncio, os\n"
        "async def agent(request):\n"
        "    yield 'begun'\n"
        "    while not os.path.exists('go'):\n"
        "        await asyncio.sleep(0.01)\n"
        "    yield ' and done'\n"
    )
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    lines: list[str] = []
    with serving("run", "--port", "0", cwd=project) as server, httpx2.Client(timeout=LIMIT) as client:
        with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                lines.append(line)
                if "begun" in line:
                    server.process.send_signal(signal.SIGTERM)
                    server.wait_for(re.compile("(draining)"))
                    assert command("healthcheck", server.url).returncode == 1
                    (project / "go").touch()
        assert server.process.wait(LIMIT) in {0, -signal.SIGTERM}
    assert any(" and done" in line for line in lines)
    assert [line for line in lines if line][-1] == "data: [DONE]"


def test_the_target_itself_can_come_from_the_environment(project: Path) -> None:
    (project / "src").mkdir()
    (project / "src" / "mine.py").write_text(ECHO + "def make(): return agent\n")
    env = {"AGENTRUN_TARGET": "mine:make", "AGENTRUN_APP_DIR": "src", "AGENTRUN_FACTORY": "1", "AGENTRUN_PORT": "0"}
    with serving("run", cwd=project, env=env) as server:
        assert ask(server.url) == "Hello, world"


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [["run"], ["run", "--workers", "2"], ["dev"]])
def test_a_wrong_target_ends_with_one_line(project: Path, mode: list[str]) -> None:
    result = command(*mode, "nowhere:agent", cwd=project)
    assert result.returncode == 1
    assert result.stderr == (
        f"Error: there is no module 'nowhere': not in {project}, nor among the installed packages\n"
    )


def test_nothing_to_serve_ends_with_one_line(project: Path) -> None:
    result = command("run", cwd=project)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: nothing to serve: there is no app.py or main.py in")


def test_an_error_of_the_users_module_ends_with_its_traceback(project: Path) -> None:
    (project / "app.py").write_text("import json\n\nimport not_installed\n")
    result = command("run", "app:agent", cwd=project)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        f'  File "{project / "app.py"}", line 3, in <module>',
        "    import not_installed",
    ]
    assert lines[3:] == [
        "ModuleNotFoundError: No module named 'not_installed'",
        lines[4],
        "Error: app could not be imported",
    ]


def test_workers_that_cannot_start_are_not_started_again(project: Path) -> None:
    (project / "app.py").write_text("raise RuntimeError('broken')\n")
    result = command("run", "app:agent", "--workers", "2", "--port", "0", cwd=project)
    assert result.stdout == ""
    assert "RuntimeError: broken" in result.stderr
    assert "Error: app could not be imported" in result.stderr
    assert result.stderr.count("RuntimeError: broken") <= 2


def test_a_mistyped_variable_is_pointed_out(project: Path) -> None:
    (project / ".env").write_text("AGENTRUN_STOREURL=none\n")
    right = {"AGENTRUN_AUTH_KEYS_FILE": "keys.json", "AGENTRUN_PORT_FILE": str(project / "port")}
    (project / "port").write_text("0")
    env = {"AGENTRUN_MAX_CHOICE": "2", "AGENTRUN_API_KEY": "of another program", **right}
    result = command("run", "nowhere:agent", cwd=project, env=env)
    assert result.stderr.splitlines()[:-1] == [
        "Warning: AGENTRUN_MAX_CHOICE is not a setting; did you mean AGENTRUN_MAX_CHOICES?",
        "Warning: AGENTRUN_STOREURL is not a setting; did you mean AGENTRUN_STORE_URL?",
    ]


def test_what_a_command_stores_is_in_a_folder_of_the_test(project: Path) -> None:
    shown = json.loads(command("config", "--json", cwd=project).stdout)
    assert shown["store_url"]["value"] == f"sqlite:///{os.environ['AGENTRUN_HOME']}/agentrun.db"


def test_a_port_that_is_taken_ends_with_one_line(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        result = command("run", "--port", str(port), cwd=project)
    assert (result.returncode, result.stderr) == (
        1,
        f"Error: port {port} of 127.0.0.1 is taken; choose another with --port, or --port 0 for any\n",
    )


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("AGENTRUN_FACTORY", "perhaps", "AGENTRUN_FACTORY is not a valid value: expected true or false"),
        ("AGENTRUN_APP_DIR", "nowhere", "AGENTRUN_APP_DIR is not a valid value: there is no folder 'nowhere'"),
        ("AGENTRUN_PORT", "http", "AGENTRUN_PORT is not a valid value"),
    ],
)
def test_a_wrong_variable_ends_with_one_line(
    project: Path, variable: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    result = CliRunner().invoke(run_command, ["app:agent"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {message}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--uds", "x.sock", "--port", "1"], "--uds takes the place of --host and --port"),
        (["--reload", "--workers", "2"], "--reload runs one process; leave out --workers"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(project: Path, args: list[str], message: str) -> None:
    (project / "app.py").write_text(ECHO)
    result = CliRunner().invoke(run_command, args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(ConfigurationError, match="--ssl-keyfile needs --ssl-certfile"):
        network_of({"AGENTRUN_SSL_KEYFILE": __file__})


def edit(file: Path, text: str, server: ServerProcess, pattern: "re.Pattern[str]" = STARTED) -> None:
    """Write `text` to a watched file and wait until the server has started again.

    uvicorn's watcher does not see a change in its first quarter of a second after a restart; then it is written again.
    """
    for _ in range(10):
        file.write_text(text)
        try:
            server.wait_for(pattern, 3)
        except TimeoutError:
            continue
        return
    raise AssertionError(f"the change was not seen:\n{server.output}")


# --- dev -----------------------------------------------------------------------------------------------------------


def test_dev_starts_again_when_a_file_changes(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with serving("dev", "app:agent", "--port", "0", cwd=project) as server:
        server.wait_for(STARTED)
        assert ask(server.url) == "Hello, world"
        assert httpx2.get(f"{server.url}/openapi.json", timeout=LIMIT).status_code == 200
        edit(project / "app.py", ECHO.replace("Hello", "Goodbye, dear"), server)
        assert ask(server.url) == "Goodbye, dear, world"
        broken = re.compile("(Error: app could not be imported)")
        edit(project / "app.py", "def agent(request)\n", server, broken)
        edit(project / "app.py", ECHO.replace("Hello", "Back again"), server)
        assert ask(server.url) == "Back again, world"
        assert server.stop() in {0, -signal.SIGTERM}
    assert not [line for line in server.log if line.startswith("{")], "the log is text"


def test_dev_shows_what_went_wrong_in_the_agent(project: Path) -> None:
    (project / "app.py").write_text("def agent(request): raise LookupError('no such city')\n")
    with serving("dev", "--port", "0", cwd=project) as server:
        server.wait_for(STARTED)
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=LIMIT)
    assert response.status_code == 500
    assert "no such city" in json.loads(response.text)["error"]["message"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "agents.example"])
def test_dev_refuses_to_be_reached_from_others(project: Path, host: str) -> None:
    (project / "app.py").write_text(ECHO)
    result = CliRunner().invoke(dev_command, ["--host", host])
    assert result.exit_code == 2
    assert "dev listens on this machine only" in result.stderr


def test_dev_does_not_take_a_containers_address(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with serving("dev", "--port", "0", cwd=project, env={"HOST": "0.0.0.0", "AGENTRUN_HOST": "0.0.0.0"}) as server:
        assert server.url.startswith("http://127.0.0.1:")


def network(**values: Any) -> Network:
    return replace(network_of({}), **values)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_on_the_loopback_it_answers_under_names_of_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    answer_here_only(network(host=host))
    trusted = os.environ["AGENTRUN_TRUSTED_HOSTS"].split(",")
    assert {"localhost", "*.localhost", "127.0.0.1", "::1", host} == set(trusted)
    AgentRunServer(lambda _: "hi")  # they can be read


@pytest.mark.parametrize("values", [{"host": "0.0.0.0"}, {"host": "192.168.1.5"}, {"host": "::"}, {"uds": "/run/a"}])
def test_elsewhere_it_answers_under_any(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    answer_here_only(network(**values))
    assert "AGENTRUN_TRUSTED_HOSTS" not in os.environ


@pytest.mark.parametrize("set_to", ["", "*", "example.com"])
def test_hosts_that_are_set_stay(set_to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_TRUSTED_HOSTS", set_to)
    answer_here_only(network())
    assert os.environ["AGENTRUN_TRUSTED_HOSTS"] == set_to


def test_dev_answers_no_page_of_another_name(project: Path) -> None:
    (project / "app.py").write_text(ECHO)
    with serving("dev", "--port", "0", cwd=project) as server:
        server.wait_for(STARTED)
        models = f"{server.url}/v1/models"
        assert httpx2.get(models, timeout=LIMIT).status_code == 200
        assert httpx2.get(models, headers={"host": "rebound.example:80"}, timeout=LIMIT).status_code == 421


def test_dev_has_no_workers() -> None:
    assert "workers" not in {param.name for param in dev_command.params}
    assert "AGENTRUN_DEBUG" in DEV_PRESETS
