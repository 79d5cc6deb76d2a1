"""How uvicorn is set up; that it runs is tested in `test_drain.py`."""

import gc
import resource

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.observability.logs import JSONFormatter, TextFormatter
from agentrun_server.server import serve as serving
from agentrun_server.server.serve import build_config, calm_garbage_collector, raise_file_limit


async def agent(request: AgentRequest) -> str:
    return ""


def test_uvicorn_is_set_up_for_this_server() -> None:
    config = build_config(AgentRunServer(agent))
    assert config.http == "agentrun_server.server.http.protocol:GuardedHttpToolsProtocol"
    assert config.ws == "none"
    assert config.proxy_headers is False, "a client could choose its own address"
    assert config.server_header is False
    assert config.access_log is False, "the server writes its own"
    assert config.timeout_keep_alive > 60, "a proxy closes first, and loses no request"
    assert config.timeout_graceful_shutdown is not None, "a run that will not end does not keep the process for ever"


def test_options_win() -> None:
    config = build_config(AgentRunServer(agent), host="::1", port=1, timeout_keep_alive=3, proxy_headers=True)
    assert (config.host, config.port, config.timeout_keep_alive, config.proxy_headers) == ("::1", 1, 3, True)


@pytest.mark.parametrize(("log_format", "formatter"), [("json", JSONFormatter), ("text", TextFormatter)])
def test_the_log_has_the_servers_format(log_format: str, formatter: type) -> None:
    settings = ServerConfig(log_format=log_format)  # type: ignore[arg-type]
    log_config = build_config(AgentRunServer(agent, config=settings)).log_config
    assert isinstance(log_config, dict)
    assert log_config["formatters"]["default"]["()"] is formatter


def test_the_log_of_an_import_string_has_the_format_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_LOG_FORMAT", "text")
    log_config = build_config("app:server").log_config
    assert isinstance(log_config, dict)
    assert log_config["formatters"]["default"]["()"] is TextFormatter


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_garbage_collector_is_calmed() -> None:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # Python's own; a test before this may have served in this process
    try:
        calm_garbage_collector()
        assert gc.get_threshold() > (700, 10, 10)
    finally:
        gc.set_threshold(*before)


def test_start_serves_where_the_agentrun_sdk_did(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, dict[str, object]]] = []
    monkeypatch.setattr(serving, "run", lambda app, **options: given.append((app, options)))
    server = AgentRunServer(agent)
    server.start()
    server.start(port=1, workers=2)
    assert given == [
        (server, {"host": "0.0.0.0", "port": 9000, "log_level": "info"}),
        (server, {"host": "0.0.0.0", "port": 1, "log_level": "info", "workers": 2}),
    ]
