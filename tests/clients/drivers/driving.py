"""What the Python drivers share: a registry of scenarios, a way to ask the server's ledger, and the output.

Standard library only: the drivers run in environments that hold nothing but the client they drive.
"""

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
import traceback
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

BASE_URL = sys.argv[1]
API_KEY = os.environ.get("OPENAI_API_KEY", "test")
SCENARIO_LIMIT = 30
"""Seconds after which a scenario is given up."""

WEATHER = {"Paris": "21 °C", "Rome": "24 °C"}
WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
_WEATHER = {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER_PARAMETERS}
WEATHER_TOOL = {"type": "function", "function": _WEATHER}

FLAT_WEATHER_TOOL = {"type": "function", **_WEATHER}
"""The same for the Responses API."""

Scenario = Callable[[], Any]
_scenarios: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register `function`; its name is the scenario's, what it returns is compared with what is expected."""
    _scenarios[function.__name__] = function
    return function


class Weather:
    """The client's own tool, and a list of every call of it."""

    def __init__(self) -> None:
        self.executed: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> str:
        """Run the tool."""
        self.executed.append(arguments)
        return WEATHER[arguments["city"]]


def new_key() -> str:
    """Return a first message by which the ledger tells this run from others."""
    return f"run {uuid.uuid4().hex}"


def ask_ledger(do: str, key: str) -> dict[str, int]:
    """Ask the server what became of the runs of `key`, without any client library."""
    order = json.dumps({"do": do, "key": key})
    body = json.dumps({"model": "ledger", "messages": [{"role": "user", "content": order}]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {API_KEY}"}
    request = urllib.request.Request(f"{BASE_URL}/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=SCENARIO_LIMIT) as response:
        answer: dict[str, int] = json.loads(json.load(response)["choices"][0]["message"]["content"])
    return answer


def runs(key: str) -> int:
    """Return how often the agent was started under `key`."""
    return ask_ledger("read", key)["started"]


def release(key: str) -> None:
    """Let the agent that waits under `key` go on."""
    ask_ledger("release", key)


def cancelled(key: str) -> int:
    """Wait until a run of `key` was cancelled; return how many were."""
    return ask_ledger("wait_cancelled", key)["cancelled"]


def leaks(error: BaseException) -> bool:
    """Tell whether an error shows the caller what the agent's exception said."""
    return "secret detail" in f"{error!s}{error!r}{getattr(error, 'body', '')}"


def main() -> None:
    """Run every scenario and print one JSON object for each."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # One event loop for all scenarios: some libraries keep their HTTP client, and with it the loop, for good.
    with out, asyncio.Runner() as runner, contextlib.redirect_stdout(sys.stderr):
        for name, function in _scenarios.items():
            out.write(json.dumps({"scenario": name, **_outcome(runner, function)}) + "\n")
            out.flush()


def _outcome(runner: asyncio.Runner, function: Scenario) -> dict[str, Any]:
    try:
        with _limited():
            if inspect.iscoroutinefunction(function):
                return {"result": runner.run(function())}
            return {"result": function()}
    except Exception:
        return {"crash": traceback.format_exc()}


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"the scenario did not end within {SCENARIO_LIMIT} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SCENARIO_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
