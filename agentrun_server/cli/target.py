"""From what the user typed to an ASGI app.

A TARGET is ``module:attribute``, ``path/to/file.py:attribute``, or either without its attribute; without
any TARGET the project's ``pyproject.toml`` and the usual names are tried. What it leads to may be an
`AgentRunServer`, any ASGI app, or an agent, which is wrapped in an `AgentRunServer`.

Each way this can go wrong has a sentence of its own (`TargetError`). An exception that the user's own
module raises is
theirs: it is handed on with its traceback (`TargetRaisedError`). Which of the two a failed import is, the
name in the exception decides: only when the target itself, or a package above it, is missing, was the
target wrong.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, cast

from agentrun_server.errors import ConfigurationError

__all__ = [
    "ATTRIBUTES",
    "Target",
    "TargetError",
    "TargetRaisedError",
    "as_app",
    "check_target",
    "kind_of",
    "load_app",
    "load_object",
    "parse_target",
    "print_target_error",
]

ATTRIBUTES = ("server", "agent", "app")
"""Names that are looked for, in this order, when TARGET names none."""

MODULES = ("app", "main")
"""Modules that are looked for, in this order, without a TARGET."""

_PYPROJECT = "pyproject.toml"

_PROGRAMS = frozenset({"click.core.Command", "typer.main.Typer"})
"""Called `app` or `main` as often as apps are, and callable with anything."""


class TargetError(Exception):
    """TARGET does not lead to something that can be served; the message says what to change."""


class TargetRaisedError(TargetError):
    """The user's own code raised while it was imported or called; `__cause__` is what it raised."""


@dataclass(frozen=True)
class Target:
    """A TARGET taken apart; exactly one of `module` and `path` is set."""

    text: str
    module: str | None = None
    path: Path | None = None
    attribute: str | None = None

    @property
    def name(self) -> str:
        """The module or file, as the user knows it."""
        return self.module if self.module is not None else str(self.path)


def parse_target(text: str) -> Target:
    """Take a TARGET apart.

    Raises:
        TargetError: it is neither a module nor a file, or its attribute is no dotted name.
    """
    place, colon, attribute = text.strip().rpartition(":")
    if not colon:
        place, attribute = attribute, ""
    elif not _is_dotted_name(attribute):
        if attribute and ("/" in attribute or "\\" in attribute):  # a drive letter's colon, not ours
            place, attribute = text.strip(), ""
        else:
            raise TargetError(f"{text!r}: what follows ':' must be the name of an attribute, as in app:server")
    if not place:
        raise TargetError(f"{text!r}: what stands before ':' must be a module or a file, as in app:server")
    if place.endswith(".py") or "/" in place or os.sep in place:
        return Target(text, path=Path(place), attribute=attribute or None)
    if not _is_dotted_name(place):
        raise TargetError(f"{text!r}: {place!r} is neither a module name nor a .py file")
    return Target(text, module=place, attribute=attribute or None)


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


# --- the whole way --------------------------------------------------------------------------------


def load_app(text: str | None, *, app_dir: str, factory: bool = False) -> Any:
    """Return the ASGI app that TARGET `text` leads to; None looks in the usual places.

    Raises:
        TargetError: it leads nowhere, or to something that cannot be served.
    """
    _make_importable(app_dir)
    text = text or _from_pyproject(Path(_PYPROJECT))
    if text is None:
        obj, where = _discover(Path(app_dir))
    else:
        target = parse_target(text)
        obj, where = load_object(target), text
    return as_app(obj, where=where, factory=factory)


def check_target(text: str | None, *, app_dir: str) -> None:
    """Refuse a TARGET whose module or file is not there, without importing it.

    For modes in which other processes import it: a mistyped name should end the command, not each of its
    children.
    """
    _make_importable(app_dir)
    text = text or _from_pyproject(Path(_PYPROJECT))
    if text is None:
        if not any(_find_module(Path(app_dir), name) for name in MODULES):
            raise TargetError(_nothing_found(app_dir))
        return
    target = parse_target(text)
    if target.path is not None:
        _check_file(target.path)
    elif target.module is not None:
        top = target.module.partition(".")[0]
        if top not in sys.modules and importlib.util.find_spec(top) is None:
            raise TargetError(_module_missing(target.module, top))


def _make_importable(app_dir: str) -> None:
    folder = Path(app_dir)
    if not folder.is_dir():
        raise TargetError(f"there is no folder {app_dir!r} to import from")
    resolved = str(folder.resolve())
    if sys.path[:1] != [resolved]:
        sys.path.insert(0, resolved)


# --- finding --------------------------------------------------------------------------------------


def _from_pyproject(file: Path) -> str | None:
    """Return ``app`` of the table ``[tool.agentrun-server]``, if there is one."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise TargetError(f"{file} cannot be read: {exc}") from exc
    if "agentrun-server" not in text:
        return None
    import tomllib

    try:
        table: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise TargetError(f"{file} is not valid TOML: {exc}") from exc
    for key in ("tool", "agentrun-server", "app"):
        table = cast("dict[str, Any]", table).get(key) if isinstance(table, dict) else None
    app = table
    if app is None:
        return None
    if not isinstance(app, str) or not app.strip():
        raise TargetError(f'{file}: [tool.agentrun-server] app must be text, as in app = "app:server"')
    return app


def _discover(folder: Path) -> tuple[Any, str]:
    """Return the first of the usual names that is there, and how to write it."""
    seen: list[str] = []
    for name in MODULES:
        if not _find_module(folder, name):
            continue
        module = _import_module(name)
        attribute = _usual_attribute(module)
        if attribute is not None:
            return getattr(module, attribute), f"{name}:{attribute}"
        seen.append(f"{name}.py has no {' or '.join(ATTRIBUTES)}{_servable_names(module)}")
    raise TargetError("; ".join(seen) if seen else _nothing_found(str(folder)))


def _find_module(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _nothing_found(app_dir: str) -> str:
    files = " or ".join(f"{name}.py" for name in MODULES)
    return (
        f"nothing to serve: there is no {files} in {Path(app_dir).resolve()}. "
        "Name it, as in: agentrun-server run my_module:agent"
    )


# --- importing ------------------------------------------------------------------------------------


def load_object(target: Target) -> Any:
    """Import the target's module or file and return the object its attribute names.

    Raises:
        TargetError: module, file or attribute is not there.
        TargetRaisedError: importing it raised.
    """
    if target.path is not None:
        module = _import_file(target.path)
    else:
        assert target.module is not None, "a target names a module or a file"
        module = _import_module(target.module)
    attribute = target.attribute or _usual_attribute(module)
    if attribute is None:
        names = f"{', '.join(ATTRIBUTES[:-1])} or {ATTRIBUTES[-1]}"
        raise TargetError(f"{target.name} has no {names}{_servable_names(module)}{_loaded_from(module)}")
    return _attribute(module, attribute, target.name)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            raise TargetError(_module_missing(name, exc.name)) from exc
        raise TargetRaisedError(f"{name} could not be imported") from exc
    except (Exception, SystemExit) as exc:
        raise TargetRaisedError(f"{name} could not be imported") from exc


def _module_missing(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    if parent:
        message = f"there is no module {missing!r}"
        # uvicorn's "app.server" for "app:server" is the usual slip.
        return f"{message}. Did you mean {parent}:{last}?" if name == missing else message
    folder = sys.path[0] if sys.path else ""
    message = f"there is no module {name.partition('.')[0]!r}: not in {folder}, nor among the installed packages"
    near = _near(missing, _modules_in(folder))
    return message + (f". Did you mean {near}?" if near else "")


def _modules_in(folder: str) -> list[str]:
    try:
        entries = list(Path(folder).iterdir())
    except OSError:
        return []
    return [
        entry.stem
        for entry in entries
        if entry.stem.isidentifier() and (entry.suffix == ".py" or (entry / "__init__.py").is_file())
    ]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise TargetError(f"{path} is a folder; name a file in it, or a module")
    if not path.is_file():
        raise TargetError(f"there is no file {path}")


def _import_file(path: Path) -> ModuleType:
    """Import the module in the file at `path`, as part of its package when it is in one."""
    _check_file(path)
    file = path.resolve()
    root, name = file.parent, file.stem
    if name == "__init__":
        root, name = root.parent, root.name
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if _is_dotted_name(name) and _leads_to(name, file):
        return _import_module(name)
    return _import_alone(file)


def _leads_to(name: str, file: Path) -> bool:
    """Whether importing `name` would run `file`, and not another module of that name (``code.py``)."""
    top = name.partition(".")[0]
    if top in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None) if name in sys.modules else None
        return origin is not None and Path(origin).resolve() == file
    spec = importlib.util.find_spec(top)  # of the outermost package only: finding deeper ones would import it
    if spec is None or spec.origin is None:
        return False
    origin_file = Path(spec.origin).resolve()
    return origin_file == file or (top != name and origin_file.parent in file.parents)


def _import_alone(file: Path) -> ModuleType:
    """Run `file` under a name of its own: its own one is no identifier, or is taken."""
    name = "_agentrun_target_" + "".join(c if c.isalnum() else "_" for c in file.stem)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TargetError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        del sys.modules[name]
        raise TargetRaisedError(f"{file.name} could not be imported") from exc
    return module


def _attribute(module: ModuleType, dotted: str, name: str) -> Any:
    obj: Any = module
    for depth, part in enumerate(dotted.split(".")):
        try:
            obj = getattr(obj, part)
        except AttributeError as exc:
            owner = ".".join([name, *dotted.split(".")[:depth]])
            near = _near(part, _public(obj))
            hint = f". Did you mean {near}?" if near else _servable_names(obj) if depth == 0 else ""
            raise TargetError(f"{owner} has no attribute {part!r}{hint}{_loaded_from(module)}") from exc
    return obj


def _usual_attribute(module: ModuleType) -> str | None:
    for name in ATTRIBUTES:
        if not isinstance(getattr(module, name, None), ModuleType | None):  # ``import server`` is no server
            return name
    return None


def _public(obj: Any) -> list[str]:
    return [name for name in dir(obj) if not name.startswith("_")]


def _near(name: str, known: Iterable[str]) -> str | None:
    import difflib

    matches = difflib.get_close_matches(name, list(known), n=3)
    return " or ".join(matches) or None


def _servable_names(module: Any) -> str:
    """Name what the module defines itself and could be served."""
    names = [
        name
        for name in _public(module)
        if callable(value := getattr(module, name))
        and not isinstance(value, type)
        and getattr(value, "__module__", module.__name__) == getattr(module, "__name__", None)
    ]
    return f"; it has {', '.join(names[:8])}" if names else ""


def _loaded_from(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return f" ({file})" if file else ""


# --- what it is -----------------------------------------------------------------------------------


def as_app(obj: Any, *, where: str, factory: bool = False) -> Any:
    """Return `obj` as an ASGI app: as it is, or wrapped in an `AgentRunServer` when it is an agent.

    Raises:
        TargetError: it is neither.
    """
    if factory:
        obj = _call_factory(obj, where)
    if kind_of(obj, where=where) == "asgi":
        return obj
    from agentrun_server import AgentRunServer

    try:
        return AgentRunServer(invoke_agent=obj)
    except (ConfigurationError, TypeError) as exc:
        raise TargetError(f"{where} cannot be served: {exc}") from exc


def _call_factory(function: Any, where: str) -> Any:
    if not callable(function):
        raise TargetError(f"{where} is {_describe(function)}, and --factory needs a function without arguments")
    try:
        inspect.signature(function).bind()
    except TypeError as exc:
        raise TargetError(f"{where} cannot be the factory: it needs arguments") from exc
    except ValueError:
        pass  # a callable that hides its signature; calling it will tell
    try:
        made = function()
    except (Exception, SystemExit) as exc:
        raise TargetRaisedError(f"{where} raised") from exc
    if inspect.iscoroutine(made):
        made.close()
        raise TargetError(f"{where} is an async function; --factory needs a plain one")
    return made


def kind_of(obj: Any, *, where: str) -> Literal["asgi", "agent"]:
    """Tell an ASGI app from an agent by what it can be called with; no framework is imported.

    An app takes ``(scope, receive, send)``, an agent the request alone.

    Raises:
        TargetError: `obj` is neither.
    """
    if isinstance(obj, Mapping):
        return _mapping_of_agents(cast("Mapping[object, object]", obj), where)
    if any(f"{cls.__module__}.{cls.__qualname__}" in _PROGRAMS for cls in type(obj).__mro__):
        raise TargetError(f"{where} is a command-line program, neither an app nor an agent")
    if isinstance(obj, type):
        raise TargetError(f"{where} is a class; name an instance of it, or add --factory")
    if obj is None or isinstance(obj, (ModuleType, str, bytes, int, float, list, tuple, set, frozenset)):
        raise TargetError(f"{where} is {_describe(obj)}, neither an app nor an agent")
    if not callable(obj):
        return "agent"  # perhaps a framework's object: AgentRunServer knows which of them it can serve
    return _kind_of_callable(obj, where)


def _mapping_of_agents(agents: Mapping[object, object], where: str) -> Literal["agent"]:
    if not agents:
        raise TargetError(f"{where} is an empty mapping; it should map model ids to agents")
    for model, agent in agents.items():
        if not isinstance(model, str):
            raise TargetError(f"{where} is a mapping, but its key {model!r} is not a model id")
        if kind_of(agent, where=f"{where}[{model!r}]") != "agent":
            raise TargetError(f"{where}[{model!r}] is an ASGI app; a mapping can hold agents only")
    return "agent"


def _kind_of_callable(obj: Callable[..., Any], where: str) -> Literal["asgi", "agent"]:
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):
        return "agent"  # built in, and silent about its arguments
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    if len(required) == 3 or [p.name for p in positional[:3]] == ["scope", "receive", "send"]:
        return "asgi"
    if required == ["environ", "start_response"]:
        raise TargetError(f"{where} is a WSGI app; wrap it, for example in a2wsgi.WSGIMiddleware")
    try:
        signature.bind(None)
    except TypeError:
        if not signature.parameters:
            raise TargetError(
                f"{where} takes no argument: an agent takes the request. If it returns the app, add --factory"
            ) from None
        raise TargetError(
            f"{where}{signature} is neither an agent, which takes the request alone, nor an ASGI app"
        ) from None
    return "agent"


def _describe(obj: Any) -> str:
    if obj is None:
        return "None"
    if isinstance(obj, ModuleType):
        return "a module"
    name = type(obj).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# --- telling the user -----------------------------------------------------------------------------


def print_target_error(error: TargetError) -> None:
    """Write `error` to stderr; what the user's code raised comes with its traceback, a wrong setting with its line."""
    if isinstance(error, TargetRaisedError) and error.__cause__ is not None:
        import traceback

        cause = error.__cause__
        frames = _users_frames(cause.__traceback__)
        if isinstance(cause, ConfigurationError):  # the settings are wrong, not the code
            print(f"Error: {_place(frames)}{cause}", file=sys.stderr)
            return
        traceback.print_exception(type(cause), cause, frames)
        if isinstance(cause, ModuleNotFoundError):
            print(f"(searched by {sys.executable})", file=sys.stderr)
    print(f"Error: {error}", file=sys.stderr)


def _place(frames: TracebackType | None) -> str:
    """Return the last line of the user's own that led to an error of ours."""
    place = ""
    while frames is not None:
        code, module = frames.tb_frame.f_code, frames.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("agentrun_server", "importlib"):
            place = f"{code.co_filename}:{frames.tb_lineno}: "
        frames = frames.tb_next
    return place


def _users_frames(tb: TracebackType | None) -> TracebackType | None:
    """Skip the frames of this module and of the import system; None when no other is left (a SyntaxError)."""
    frame = tb
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen importlib") and "importlib" not in Path(file).parts:
            return frame
        frame = frame.tb_next
    return None
