"""From TARGET to an app: every kind of target, and every way it can be wrong."""

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from agentrun_server import AgentRunServer
from agentrun_server.cli.target import (
    Target,
    TargetError,
    TargetRaisedError,
    as_app,
    check_target,
    kind_of,
    load_app,
    load_object,
    parse_target,
    print_target_error,
)

AGENTS = """
import functools
from agentrun_server import AgentRunServer

async def async_function(request): return "x"
def function(request): return "x"
async def async_generator(request): yield "x"
def generator(request): yield "x"
def with_option(request, temperature=0.2): return "x"
def keywords(*args, **kwargs): return "x"

class Callable:
    def __call__(self, request): return "x"
    async def method(self, request): return "x"

class AsyncCallable:
    async def __call__(self, request): yield "x"

callable_object = Callable()
async_callable_object = AsyncCallable()
bound_method = callable_object.method
partial = functools.partial(lambda tone, request: "x", "kind")
lambda_function = lambda request: "x"

@functools.wraps(function)
def decorated(*args, **kwargs): return function(*args, **kwargs)

mapping = {"small": function, "large": async_generator}
server = AgentRunServer(invoke_agent=function)

class Holder:
    agent = staticmethod(function)
    server = server

def make_agent(): return function
def make_server(): return server
def make_app(): return asgi
def make_nothing(): return None
def make_with_arguments(name): return function
async def make_async(): return server
def make_badly(): raise LookupError("no configuration")

async def asgi(scope, receive, send): raise NotImplementedError
class ASGIObject:
    async def __call__(self, scope, receive, send): raise NotImplementedError
asgi_object = ASGIObject()
async def asgi_by_another_name(s, r, w): raise NotImplementedError
async def asgi_with_option(scope, receive, send, debug=False): raise NotImplementedError
def wsgi(environ, start_response): raise NotImplementedError

number = 7
text = "app"
nothing = None
list_of_agents = [function]
empty_mapping = {}
mapping_with_number = {1: function}
mapping_with_app = {"m": asgi}
def no_argument(): raise NotImplementedError
def two_arguments(request, context): raise NotImplementedError
def four_arguments(a, b, c, d): raise NotImplementedError
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the command is run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return file


@pytest.fixture
def agents(project: Path) -> Path:
    """A folder with a module ``agents`` that holds one of everything."""
    write(project / "agents.py", AGENTS)
    return project


def load(text: str | None, *, factory: bool = False, app_dir: str = ".") -> Any:
    return load_app(text, app_dir=app_dir, factory=factory)


def error_of(text: str | None, *, factory: bool = False) -> str:
    with pytest.raises(TargetError) as caught:
        load(text, factory=factory)
    assert not isinstance(caught.value, TargetRaisedError), caught.value.__cause__
    return str(caught.value)


# --- how it is written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("app", Target("app", module="app")),
        ("app:server", Target("app:server", module="app", attribute="server")),
        ("pkg.mod:a.b.c", Target("pkg.mod:a.b.c", module="pkg.mod", attribute="a.b.c")),
        (" app:server ", Target(" app:server ", module="app", attribute="server")),
        ("app.py", Target("app.py", path=Path("app.py"))),
        ("app.py:agent", Target("app.py:agent", path=Path("app.py"), attribute="agent")),
        ("a/b/my-agent.py:x", Target("a/b/my-agent.py:x", path=Path("a/b/my-agent.py"), attribute="x")),
        ("C:/agents/app.py", Target("C:/agents/app.py", path=Path("C:/agents/app.py"))),
        ("/srv/app.py:server", Target("/srv/app.py:server", path=Path("/srv/app.py"), attribute="server")),
    ],
)
def test_a_target_is_taken_apart(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":server", "what stands before ':' must be a module or a file"),
        ("app:", "what follows ':' must be the name of an attribute"),
        ("app:my-server", "what follows ':' must be the name of an attribute"),
        ("app:make()", "what follows ':' must be the name of an attribute"),
        ("my-app:server", "'my-app' is neither a module name nor a .py file"),
        ("app..server", "'app..server' is neither a module name nor a .py file"),
        ("", "what stands before ':' must be a module or a file"),
    ],
)
def test_a_target_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert message in str(caught.value)


# --- what it may be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "async_function", "function", "async_generator", "generator", "with_option", "keywords", "callable_object",
        "async_callable_object", "bound_method", "partial", "lambda_function", "decorated", "mapping", "Holder.agent",
        "callable_object.method",
    ],
)  # fmt: skip
def test_an_agent_of_any_kind_is_wrapped_in_a_server(agents: Path, name: str) -> None:
    assert isinstance(load(f"agents:{name}"), AgentRunServer)


@pytest.mark.parametrize(
    "name", ["server", "Holder.server", "asgi", "asgi_object", "asgi_by_another_name", "asgi_with_option"]
)
def test_an_app_is_served_as_it_is(agents: Path, name: str) -> None:
    app = load(f"agents:{name}")
    assert app is load_object(parse_target(f"agents:{name}"))


def test_a_fastapi_app_is_an_app() -> None:
    from fastapi import APIRouter, FastAPI
    from starlette.applications import Starlette

    for app in (FastAPI(), Starlette(), APIRouter(), AgentRunServer(lambda request: "x").app):
        assert kind_of(app, where="app:app") == "asgi"


def test_to_tell_an_app_from_an_agent_imports_no_framework(agents: Path) -> None:
    code = (
        "import sys; from agentrun_server.cli.target import load_app\n"
        "for name in ('asgi', 'server', 'function', 'mapping'): load_app('agents:' + name, app_dir='.')\n"
        "heavy = [m for m in ('fastapi', 'pydantic', 'httpx2', 'starlette') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    import subprocess

    from tests.cli.processes import environment

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=agents,
        env=environment(),
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "agents:number is an int, neither an app nor an agent"),
        ("text", "agents:text is a str, neither an app nor an agent"),
        ("nothing", "agents:nothing is None, neither an app nor an agent"),
        ("functools", "agents:functools is a module, neither an app nor an agent"),
        ("list_of_agents", "agents:list_of_agents is a list, neither an app nor an agent"),
        ("Callable", "agents:Callable is a class; name an instance of it, or add --factory"),
        ("empty_mapping", "agents:empty_mapping is an empty mapping; it should map model ids to agents"),
        ("mapping_with_number", "agents:mapping_with_number is a mapping, but its key 1 is not a model id"),
        ("mapping_with_app", "agents:mapping_with_app['m'] is an ASGI app; a mapping can hold agents only"),
        ("wsgi", "agents:wsgi is a WSGI app; wrap it, for example in a2wsgi.WSGIMiddleware"),
        ("no_argument",
         "agents:no_argument takes no argument: an agent takes the request. If it returns the app, add --factory"),
        ("two_arguments",
         "agents:two_arguments(request, context) is neither an agent, which takes the request alone, nor an ASGI app"),
        ("four_arguments",
         "agents:four_arguments(a, b, c, d) is neither an agent, which takes the request alone, nor an ASGI app"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(agents: Path, name: str, message: str) -> None:
    assert error_of(f"agents:{name}") == message


def test_an_object_that_the_server_refuses_is_told_in_its_words() -> None:
    with pytest.raises(TargetError, match=r"app:thing cannot be served: .*callable"):
        as_app(object(), where="app:thing")


def test_a_command_line_program_is_no_agent() -> None:
    import click

    with pytest.raises(TargetError, match="main:app is a command-line program"):
        kind_of(click.Command("x"), where="main:app")


def test_a_builtin_that_hides_its_arguments_is_taken_for_an_agent() -> None:
    assert kind_of(str.maketrans, where="app:agent") == "agent"


# --- factories --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["make_agent", "make_server", "make_app", "Callable", "ASGIObject"])
def test_a_factory_is_called(agents: Path, name: str) -> None:
    app = load(f"agents:{name}", factory=True)
    assert isinstance(app, AgentRunServer) or kind_of(app, where="") == "asgi"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("make_nothing", "agents:make_nothing is None, neither an app nor an agent"),
        ("make_with_arguments", "agents:make_with_arguments cannot be the factory: it needs arguments"),
        ("make_async", "agents:make_async is an async function; --factory needs a plain one"),
        ("number", "agents:number is an int, and --factory needs a function without arguments"),
    ],
)
def test_a_wrong_factory_is_refused(agents: Path, name: str, message: str) -> None:
    assert error_of(f"agents:{name}", factory=True) == message


def test_what_a_factory_raises_is_the_users_own(agents: Path) -> None:
    with pytest.raises(TargetRaisedError) as caught:
        load("agents:make_badly", factory=True)
    assert isinstance(caught.value.__cause__, LookupError)


# --- where it is ------------------------------------------------------------------------------------------


def test_the_current_folder_can_be_imported(agents: Path) -> None:
    assert isinstance(load("agents:function"), AgentRunServer)


def test_another_folder_can_be_imported(project: Path) -> None:
    write(project / "src" / "inner.py", "def agent(request): return 'x'")
    assert isinstance(load("inner:agent", app_dir="src"), AgentRunServer)


def test_a_folder_that_is_not_there_is_refused(project: Path) -> None:
    with pytest.raises(TargetError, match="there is no folder 'nowhere' to import from"):
        load("app:agent", app_dir="nowhere")


def test_a_module_of_a_package_is_imported_with_its_package(project: Path) -> None:
    write(project / "pkg" / "__init__.py", "TONE = 'kind'")
    write(project / "pkg" / "mod.py", "from . import TONE\ndef agent(request): return TONE")
    assert isinstance(load("pkg.mod:agent"), AgentRunServer)


def test_a_file_of_a_package_is_imported_with_its_package(project: Path) -> None:
    write(project / "src" / "pkg" / "__init__.py", "TONE = 'kind'")
    write(project / "src" / "pkg" / "sub" / "__init__.py", "")
    write(project / "src" / "pkg" / "sub" / "mod.py", "from .. import TONE\ndef agent(request): return TONE")
    assert isinstance(load("src/pkg/sub/mod.py:agent"), AgentRunServer)
    assert "pkg.sub.mod" in sys.modules


def test_the_init_file_of_a_package_is_the_package(project: Path) -> None:
    write(project / "pkg" / "__init__.py", "def agent(request): return __name__")
    assert isinstance(load("pkg/__init__.py:agent"), AgentRunServer)
    assert "pkg" in sys.modules


def test_a_file_can_import_its_neighbours(project: Path) -> None:
    write(project / "deep" / "helper.py", "TONE = 'kind'")
    write(project / "deep" / "agent_file.py", "import helper\ndef agent(request): return helper.TONE")
    assert isinstance(load("deep/agent_file.py:agent"), AgentRunServer)


def test_a_file_whose_name_is_no_identifier_is_served(project: Path) -> None:
    write(
        project / "my-agent.py",
        """
        from dataclasses import dataclass

        @dataclass
        class State:  # looks its module up by name
            turns: "int" = 0

        def agent(request): return "x"
        """,
    )
    assert isinstance(load("my-agent.py"), AgentRunServer)


def test_a_file_named_like_a_loaded_module_is_not_mixed_up_with_it(project: Path) -> None:
    write(project / "json.py", "def agent(request): return 'mine'")
    app = load("json.py:agent")
    assert isinstance(app, AgentRunServer)
    assert not hasattr(sys.modules["json"], "agent")


def test_a_file_is_imported_once(agents: Path) -> None:
    assert load("agents.py:server") is load("agents.py:server") is load("agents:server")


def test_without_an_attribute_the_usual_names_are_tried(project: Path) -> None:
    write(project / "one.py", "def agent(request): return 'x'")
    write(project / "two.py", "async def app(scope, receive, send): raise NotImplementedError\nimport one as server")
    assert isinstance(load("one"), AgentRunServer)
    assert isinstance(load("one.py"), AgentRunServer)
    assert load("two") is load("two:app")


# --- where it is not --------------------------------------------------------------------------------------


def test_a_missing_module_is_told_with_the_place_and_the_nearest_name(agents: Path) -> None:
    assert error_of("agnets:function") == (
        f"there is no module 'agnets': not in {agents}, nor among the installed packages. Did you mean agents?"
    )


def test_a_missing_module_of_a_package_is_told(project: Path) -> None:
    write(project / "pkg" / "__init__.py", "")
    assert error_of("pkg.nothing:agent") == "there is no module 'pkg.nothing'. Did you mean pkg:nothing?"


def test_a_dot_in_place_of_the_colon_is_recognised(agents: Path) -> None:
    assert error_of("agents.function") == "there is no module 'agents.function'. Did you mean agents:function?"


def test_a_missing_package_above_the_module_is_told(project: Path) -> None:
    assert "there is no module 'nowhere'" in error_of("nowhere.deep.mod:agent")


def test_a_missing_attribute_is_told_with_near_matches(agents: Path) -> None:
    assert error_of("agents:async_funktion") == (
        "agents has no attribute 'async_funktion'. Did you mean async_function or function or lambda_function? "
        f"({agents / 'agents.py'})"
    )


def test_a_missing_attribute_without_near_match_is_told_with_what_is_there(project: Path) -> None:
    write(project / "few.py", "import os\nfrom json import dumps\ndef alpha(r): return 'x'\nclass Beta: pass\nX = 1")
    assert error_of("few:zzz") == f"few has no attribute 'zzz'; it has alpha ({project / 'few.py'})"
    assert error_of("few") == f"few has no server, agent or app; it has alpha ({project / 'few.py'})"


def test_a_missing_inner_attribute_names_its_owner(agents: Path) -> None:
    assert error_of("agents:Holder.sever").startswith("agents.Holder has no attribute 'sever'. Did you mean server?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing.py:agent", "there is no file nothing.py"),
        ("folder/", "folder is a folder; name a file in it, or a module"),
    ],
)
def test_a_missing_file_is_told(project: Path, text: str, message: str) -> None:
    (project / "folder").mkdir()
    assert error_of(text) == message


# --- the user's own errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import not_installed_anywhere", ModuleNotFoundError),
        ("from os import no_such_name", ImportError),
        ("import os.no_such_module", ModuleNotFoundError),
        ("1 / 0", ZeroDivisionError),
        ("def broken(:", SyntaxError),
        ("raise SystemExit(4)", SystemExit),
        ("import server.missing", ModuleNotFoundError),
    ],
)
@pytest.mark.parametrize("text", ["mine:agent", "mine.py:agent", "my-own.py:agent"])
def test_what_the_users_module_raises_keeps_its_traceback(
    project: Path, text: str, code: str, kind: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine.py", "my-own.py"):
        write(project / name, f"x = 1\n{code}\n")
    with pytest.raises(TargetRaisedError) as caught:
        load(text)
    assert isinstance(caught.value.__cause__, kind)
    print_target_error(caught.value)
    shown = capsys.readouterr().err
    assert ", line 2" in shown
    assert code in shown
    assert kind.__name__ in shown
    assert "importlib" not in shown
    assert "cli/target.py" not in shown
    assert shown.splitlines()[-1].endswith("could not be imported")


@pytest.mark.parametrize(
    "code",
    ['ServerConfig(store_url="mysql://me:hunter2@db")', "ServerConfig(max_body_bytes=0)"],
    ids=["the server says no", "the settings say no"],
)
def test_a_wrong_setting_in_the_users_module_is_one_line_with_its_place(
    project: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"from agentrun_server import AgentRunServer, ServerConfig\nserver = AgentRunServer(len, config={code})\n"
    file = write(project / "made.py", text)
    write(project / "mine.py", "from made import server")
    with pytest.raises(TargetRaisedError) as caught:
        load("mine:server")
    print_target_error(caught.value)
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(f"Error: {file}:2: ")
    assert ("store_url is" in shown) != ("max_body_bytes must be" in shown)
    assert "hunter2" not in shown


def test_an_import_error_names_the_python_that_searched(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project / "mine.py", "import not_installed_anywhere")
    with pytest.raises(TargetError) as caught:
        load("mine:agent")
    print_target_error(caught.value)
    assert f"(searched by {sys.executable})" in capsys.readouterr().err


def test_a_wrong_target_is_one_line_without_a_traceback(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TargetError) as caught:
        load("nowhere:agent")
    print_target_error(caught.value)
    shown = capsys.readouterr().err
    assert shown.startswith("Error: there is no module 'nowhere'")
    assert "Traceback" not in shown


# --- without a target -----------------------------------------------------------------------------------------


def test_the_target_is_found_in_pyproject(project: Path) -> None:
    write(project / "pyproject.toml", '[tool.agentrun-server]\napp = "service:chosen"\n')
    write(project / "service.py", "def chosen(request): return 'x'")
    write(project / "app.py", "raise RuntimeError('not this one')")
    assert isinstance(load(None), AgentRunServer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.agentrun-server]\napp = 7\n", "pyproject.toml: [tool.agentrun-server] app must be text"),
        ("[tool.agentrun-server]\napp = ''\n", "pyproject.toml: [tool.agentrun-server] app must be text"),
        ("[tool.agentrun-server\n", "pyproject.toml is not valid TOML"),
    ],
)
def test_a_wrong_pyproject_is_told(project: Path, text: str, message: str) -> None:
    write(project / "pyproject.toml", text)
    assert message in error_of(None)


@pytest.mark.parametrize("text", ["[project]\nname = 'x'\n", "[tool.agentrun-server]\n", "tool = 'agentrun-server'\n"])
def test_a_pyproject_without_a_target_is_passed_over(project: Path, text: str) -> None:
    write(project / "pyproject.toml", text)
    write(project / "app.py", "def agent(request): return 'x'")
    assert isinstance(load(None), AgentRunServer)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"app.py": ["server", "agent", "app"], "main.py": ["server"]}, "app:server"),
        ({"app.py": ["agent", "app"]}, "app:agent"),
        ({"app.py": ["app"]}, "app:app"),
        ({"app.py": ["other"], "main.py": ["agent"]}, "main:agent"),
        ({"main.py": ["app"]}, "main:app"),
        ({"app/__init__.py": ["agent"]}, "app:agent"),
    ],
)
def test_the_usual_places_are_tried_in_order(project: Path, files: dict[str, list[str]], expected: str) -> None:
    for file, names in files.items():
        write(
            project / file, "\n".join(f"async def {n}(scope, receive, send): raise NotImplementedError" for n in names)
        )
    assert load(None) is load_object(parse_target(expected))


def test_nothing_in_the_usual_places_is_told(project: Path) -> None:
    assert error_of(None) == (
        f"nothing to serve: there is no app.py or main.py in {project}. "
        "Name it, as in: agentrun-server run my_module:agent"
    )


def test_usual_places_without_usual_names_are_told_with_what_is_there(project: Path) -> None:
    write(project / "app.py", "def invoke_agent(request): return 'x'")
    write(project / "main.py", "x = 1")
    assert error_of(None) == (
        "app.py has no server or agent or app; it has invoke_agent; main.py has no server or agent or app"
    )


# --- looking without importing ----------------------------------------------------------------------------


def test_a_target_can_be_checked_without_running_it(project: Path) -> None:
    write(project / "app.py", "raise RuntimeError('imported')")
    for text in ("app:agent", "app.py:agent", "app.deeper:agent", None):
        check_target(text, app_dir=".")


@pytest.mark.parametrize("text", ["nowhere:agent", "nowhere.deep:agent", "nowhere.py:agent", None, "not-a-name:x"])
def test_a_target_that_is_not_there_is_refused_without_an_import(project: Path, text: str | None) -> None:
    with pytest.raises(TargetError):
        check_target(text, app_dir=".")
