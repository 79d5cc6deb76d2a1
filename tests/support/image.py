"""Carries out a Dockerfile without a container engine, and runs what it makes: bubblewrap in place of Docker.

What is as it would be: each instruction, in order, with the variables, the working directory and the user it has; a
build that sees only what ``.dockerignore`` lets through; stages of their own; a container whose root is read-only,
whose process has number 1, the image's user and no capabilities, and a network where only it listens.

What is not: ``/usr``, read-only, is that of this machine, so the base image's programs are those found here, and an
instruction that installs Debian packages is left out and reported (`Image.left_out`). The base image's Python is
another one (`Base.python`). Healthcheck schedules and restarts are an engine's.

It takes root, to be other users, and Linux.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Self, TypeVar

from tests.support.dockerfile import (
    DockerfileError,
    DockerIgnore,
    Instruction,
    Stage,
    declared_argument,
    expand,
    pairs,
    parse_dockerfile,
    split_stages,
    words,
)

__all__ = ["Base", "BuildError", "Container", "Image", "Volume", "build", "running", "why_not_here"]

T = TypeVar("T")

BUILD_LIMIT = 300.0
"""Seconds for one instruction; packages may have to be fetched."""

_CLONE_NEWNET = 0x40000000
_ETC = ["alternatives", "default", "group", "gshadow", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
        "login.defs", "nsswitch.conf", "passwd", "resolv.conf", "services", "shadow", "ssl"]  # fmt: skip
"""What a bare Debian has in ``/etc`` that programs cannot do without."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class BuildError(Exception):
    """An instruction failed; the message has what it printed."""


@dataclass(kw_only=True)
class Image:
    """What a stage has made so far. `root` is its file system, but for what `mounts` has: paths of this machine."""

    root: Path
    mounts: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workdir: PurePosixPath = field(default=PurePosixPath("/"))
    user: str = ""
    exposed: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    """Folders that a container gets a volume for, if it is given none."""
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    healthcheck_times: dict[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    left_out: list[str] = field(default_factory=list)
    """Instructions that were not carried out."""

    def inside(self, path: str | PurePosixPath) -> Path:
        """Return where a path of the image is on this machine."""
        return self.root / str(self.workdir / path).lstrip("/")


@dataclass(frozen=True, kw_only=True)
class Base:
    """An image that is not built here: Debian with a Python of this machine, or a few files."""

    python: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def make(self, root: Path) -> Image:
        """Lay the image out in the folder `root`."""
        root.mkdir(parents=True)
        for name, source in self.files.items():
            _copy(source, root / name.lstrip("/"))
        if self.python is None:
            return Image(root=root)
        for name in ("app", "dev", "etc", "proc", "root", "tmp", "usr/local/bin", "var/lib/apt/lists"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in _ETC:
            if (source := Path("/etc", name)).exists():
                _copy(source, root / "etc" / name)
        mounts = [Path("/usr")]
        for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
            if path.is_symlink():
                (root / path.name).symlink_to(path.readlink())
            elif path.exists():
                mounts.append(path)
        prefix = self.python.parent.parent
        if not prefix.is_relative_to("/usr") or prefix.is_relative_to("/usr/local"):
            mounts.append(prefix)
        for mount in mounts:
            (root / str(mount).lstrip("/")).mkdir(parents=True, exist_ok=True)
        return Image(root=root, mounts=tuple(mounts), env={"PATH": f"{prefix}/bin:{_PATH}"})


def build(
    dockerfile: Path,
    *,
    context: Path,
    bases: Mapping[str, Base | Image],
    scratch: Path,
    cache: Path,
    build_args: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Image:
    """Carry out `dockerfile` and return the image of its last stage.

    Args:
        dockerfile: the file; beside it may be none of its own ``.dockerignore``: that of `context` counts.
        context: the folder to copy from.
        bases: the images that it starts from, by the names it gives them.
        scratch: a folder for the stages; whoever calls removes it.
        cache: a folder that is kept for cache mounts.
        build_args: ``--build-arg``.
        environment: variables that commands get besides, as an engine hands on those of a proxy.

    Raises:
        BuildError: an instruction failed.
        DockerfileError: one is not understood.
    """
    arguments, stages = split_stages(parse_dockerfile(dockerfile.read_text("utf-8")), build_args or {})
    builder = _Builder(
        context=context,
        sees=_seen(context),
        cache=cache,
        environment=environment or {},
        build_args=build_args or {},
        global_arguments=arguments,
        made={},
    )
    for number, stage in enumerate(stages):
        builder.made[stage.name] = builder.stage(stage, scratch / f"{number}-{stage.name}", bases)
    return builder.made[stages[-1].name]


def _seen(context: Path) -> Callable[[PurePosixPath], bool]:
    ignore_file = context / ".dockerignore"
    ignore = DockerIgnore(ignore_file.read_text("utf-8") if ignore_file.exists() else "")
    return lambda path: not ignore.excludes(path)


@dataclass(frozen=True, kw_only=True)
class _Builder:
    context: Path
    sees: Callable[[PurePosixPath], bool]
    cache: Path
    environment: Mapping[str, str]
    build_args: Mapping[str, str]
    global_arguments: Mapping[str, str]
    made: dict[str, Image]

    def stage(self, stage: Stage, root: Path, bases: Mapping[str, Base | Image]) -> Image:
        base = self.made.get(stage.base) or bases.get(stage.base)
        if base is None:
            raise DockerfileError(f"no image is called {stage.base!r}")
        image = base.make(root) if isinstance(base, Base) else _copied(base, root)
        arguments: dict[str, str] = {}
        for instruction in stage.instructions:
            self._carry_out(instruction, image, arguments)
        return image

    def _carry_out(self, instruction: Instruction, image: Image, arguments: dict[str, str]) -> None:
        variables = arguments | image.env
        text = instruction.text
        match instruction.name:
            case "ARG":
                name, value = declared_argument(instruction, variables, self.build_args, self.global_arguments)
                if value is not None:
                    arguments[name] = value
            case "ENV":
                image.env |= pairs(text, variables)
            case "LABEL":
                image.labels |= pairs(text, variables)
            case "WORKDIR":
                image.workdir /= expand(text, variables)
                image.inside("").mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = expand(text, variables)
            case "EXPOSE":
                image.exposed += words(text, variables)
            case "VOLUME":
                image.volumes += words(text, variables)
            case "STOPSIGNAL":
                image.stop_signal = expand(text, variables)
            case "CMD":
                image.command = _exec_form(instruction)
            case "HEALTHCHECK":
                command = Instruction(instruction.line, "CMD", (), text.removeprefix("CMD").strip())
                image.healthcheck = _exec_form(command)
                image.healthcheck_times = dict(instruction.flags)
            case "COPY":
                self._copy(instruction, image, words(text, variables))
            case "RUN":
                self._run(instruction, image, variables)
            case other:
                raise DockerfileError(f"line {instruction.line}: {other} is not carried out")

    def _copy(self, instruction: Instruction, image: Image, paths: Sequence[str]) -> None:
        *sources, target = paths
        if any(key != "from" for key, _ in instruction.flags):
            raise DockerfileError(f"line {instruction.line}: only --from is carried out")
        stage = instruction.flag("from")
        into = image.inside(target)
        if len(sources) > 1 and not target.endswith("/"):
            raise DockerfileError(f"line {instruction.line}: the target of several files must end with a slash")
        for source in sources:
            if stage is not None:
                found = self.made[stage].root / source.lstrip("/")
                _copy(found, into / found.name if found.is_file() and target.endswith("/") else into)
                continue
            found = self.context / source.rstrip("/")
            files = [file for file in _files(found) if self.sees(PurePosixPath(file.relative_to(self.context)))]
            if not files:
                raise BuildError(f"line {instruction.line}: {source}: the build sees no such file")
            for file in files:
                inner = file.relative_to(found) if found.is_dir() else Path(file.name if target.endswith("/") else "")
                _copy(file, into / inner)

    def _run(self, instruction: Instruction, image: Image, variables: Mapping[str, str]) -> None:
        if instruction.text.startswith("apt-get "):  # /usr belongs to this machine
            image.left_out.append(f"RUN {instruction.text}")
            return
        arguments = ["--bind", str(image.root), "/", *_mounts(image, writable=True)]
        for kind, value in instruction.flags:
            options = dict(pair.split("=", 1) for pair in value.split(","))
            if kind != "mount" or options.pop("type") != "cache" or options.keys() != {"target"}:
                raise DockerfileError(f"line {instruction.line}: only cache mounts are carried out")
            image.inside(options["target"]).mkdir(parents=True, exist_ok=True)
            self.cache.mkdir(parents=True, exist_ok=True)
            arguments += ["--bind", str(self.cache), options["target"]]
        for file in _named_files(self.environment):
            place = image.inside(str(file))
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                arguments += ["--ro-bind", str(file), str(file)]
        if image.user not in ("", "root", "0", "0:0"):
            raise DockerfileError(f"line {instruction.line}: commands are carried out as root only")
        env = {"HOME": "/root", **self.environment, **variables}
        command = [_bwrap(), *arguments, *_namespaces(image, env), "--", "/bin/sh", "-c", instruction.text]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=BUILD_LIMIT)
        if done.returncode:
            printed = (done.stdout + done.stderr)[-4000:]
            raise BuildError(f"line {instruction.line} ended with {done.returncode}: {instruction.text}\n{printed}")


def _exec_form(instruction: Instruction) -> list[str]:
    command = instruction.exec_form
    if command is None:
        raise DockerfileError(f"line {instruction.line}: a shell in between would keep signals from the process")
    return command


def _copied(image: Image, root: Path) -> Image:
    # With whose it is, which Python's own copying leaves out.
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--archive", str(image.root), str(root)], check=True)
    return Image(
        root=root, mounts=image.mounts, env=dict(image.env), labels=dict(image.labels), workdir=image.workdir,
        user=image.user, exposed=list(image.exposed), volumes=list(image.volumes), command=image.command,
        healthcheck=image.healthcheck, healthcheck_times=image.healthcheck_times, stop_signal=image.stop_signal,
    )  # fmt: skip


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    elif path.is_file():
        yield path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _named_files(environment: Mapping[str, str]) -> list[Path]:
    """Return the files and folders of this machine that variables name: certificates, an index on the disk."""
    named = re.findall(r"(?:file://|(?<![\w:/]))(/[^\s:]+)", " ".join(environment.values()))
    return [path for path in map(Path, named) if path.exists() and not path.is_relative_to("/usr")]


# --- bubblewrap


@cache
def why_not_here() -> str:
    """Return why no image can be built or run here; empty when it can."""
    missing = [name for name in ("bwrap", "nsenter", "setpriv") if shutil.which(name, path=_SEARCH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "a container's user takes root"
    tried = subprocess.run(
        [_bwrap(), "--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", "/bin/true"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return f"bubblewrap cannot make namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def _bwrap() -> str:
    return shutil.which("bwrap", path=_SEARCH) or "bwrap"


def _mounts(image: Image, *, writable: bool) -> list[str]:
    arguments: list[str] = []
    for mount in image.mounts:
        arguments += ["--ro-bind", str(mount), str(mount)]
    if Path("/usr") in image.mounts:
        arguments += ["--bind" if writable else "--ro-bind", str(image.root / "usr/local"), "/usr/local"]
    return [*arguments, "--proc", "/proc", "--dev", "/dev"]


def _namespaces(image: Image, env: Mapping[str, str]) -> list[str]:
    arguments = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session", "--clearenv"]
    for name, value in env.items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--chdir", str(image.workdir)]


# --- containers


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A file or folder of this machine, and where a container sees it."""

    source: Path
    target: str
    read_only: bool = True

    @classmethod
    def made(cls, image: Image, source: Path, target: str, *, read_only: bool = False) -> Self:
        """Return the volume that is kept in the folder `source`; an empty one takes over whose its place is."""
        if not source.exists():
            source.mkdir()
            place = image.inside(target)
            if place.exists():
                shutil.copystat(place, source)
                os.chown(source, place.stat().st_uid, place.stat().st_gid)
        return cls(source=source, target=target, read_only=read_only)


class Container:
    """A process that runs as an engine would run it."""

    def __init__(self, process: "subprocess.Popen[bytes]", pid: int, inside: Sequence[str], stop_signal: str) -> None:
        self._process = process
        self.pid = pid
        """The number that its process 1 has outside."""
        self._inside = inside
        self._stop_signal = signal.Signals[stop_signal]

    def execute(self, *command: str, limit: float = 30.0) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as ``docker exec`` does."""
        namespaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--root"]
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", *namespaces, "--", *self._inside, *command],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=limit,
        )

    def inside_network(self, make: Callable[[], T]) -> T:
        """Return what `make` makes on a thread that is in the container's network: sockets stay in it."""
        made: list[T] = []
        errors: list[BaseException] = []

        def join_and_make() -> None:
            try:
                with Path(f"/proc/{self.pid}/ns/net").open() as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except BaseException as exc:
                errors.append(exc)

        thread = threading.Thread(target=join_and_make, name="in the container's network")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return made[0]

    def stop(self) -> None:
        """Send the image's stop signal, as ``docker stop`` does first."""
        os.kill(self.pid, self._stop_signal)

    @property
    def running(self) -> bool:
        """Whether its process 1 has not ended."""
        return self._process.poll() is None

    def exit_status(self, limit: float = 20.0) -> int:
        """Wait until it has ended; return what the engine would report."""
        return self._process.wait(limit)


@contextmanager
def running(
    image: Image,
    *,
    log: Path,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    user: str = "",
    capabilities: Sequence[str] = (),
    volumes: Sequence[Volume] = (),
    tmpfs: Mapping[str, str] | None = None,
) -> Iterator[Container]:
    """Run a container with a read-only root and no capabilities but `capabilities`; it is killed at the end.

    Args:
        image: the image.
        log: the file that gets what it prints.
        command: in place of the image's own.
        env: variables besides the image's.
        user: in place of the image's: two numbers, ``user:group``.
        capabilities: those it keeps, without ``CAP_``.
        volumes: files and folders that it sees, besides the image's own volumes, which end with it.
        tmpfs: folders that are empty at first, and their modes, in octal digits.
    """
    with TemporaryDirectory(prefix="volumes-") as folder:
        given = {*(volume.target for volume in volumes), *(tmpfs or ())}
        own = [path for path in image.volumes if path not in given]
        volumes = [*(Volume.made(image, Path(folder, str(n)), path) for n, path in enumerate(own)), *volumes]
        user = user or image.user
        variables = {**image.env, "HOME": _home(image, user), **(env or {})}
        arguments = ["--ro-bind", str(image.root), "/", *_mounts(image, writable=False)]
        for path, mode in (tmpfs or {}).items():
            _make_place(image, path, folder=True)
            arguments += ["--perms", mode, "--tmpfs", path]
        for volume in volumes:
            _make_place(image, volume.target, folder=volume.source.is_dir())
            arguments += ["--ro-bind" if volume.read_only else "--bind", str(volume.source), volume.target]
        as_user = _as_user(user, capabilities)
        reading, writing = os.pipe()
        arguments += ["--unshare-net", "--as-pid-1", "--info-fd", str(writing), *_namespaces(image, variables)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [_bwrap(), *arguments, "--", *as_user, *(command or image.command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
            )
        pid = 0
        try:
            os.close(writing)
            with os.fdopen(reading, encoding="utf-8") as info:
                said = info.read()
            assert said, log.read_text("utf-8")
            pid = json.loads(said)["child-pid"]
            _wait_for_command(pid)
            settings = [f"{name}={value}" for name, value in variables.items()]
            inside = [*as_user, "env", "-i", f"--chdir={image.workdir}", *settings]
            yield Container(process, pid, inside, image.stop_signal)
        finally:
            if process.poll() is None:
                # Not bubblewrap alone: another user's process does not end with it.
                with suppress(ProcessLookupError):  # it ended just now
                    os.kill(pid or process.pid, signal.SIGKILL)
            process.wait(10)


def _wait_for_command(pid: int) -> None:
    """Wait until process 1 is no longer bubblewrap, which is still making namespaces when it tells the number."""
    deadline = time.monotonic() + 10
    with suppress(OSError):  # it has ended
        while Path(f"/proc/{pid}/exe").readlink().name == Path(_bwrap()).name:
            assert time.monotonic() < deadline, "bubblewrap does not start the command"
            time.sleep(0.001)


def _make_place(image: Image, path: str, *, folder: bool) -> None:
    """Make what a volume or tmpfs is mounted on, as an engine does."""
    place = image.inside(path)
    if folder:
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _as_user(user: str, capabilities: Sequence[str]) -> list[str]:
    """Return the command before a command that makes it the user's."""
    number, _, group = user.partition(":")
    if not (number.isdigit() and group.isdigit()):
        raise ValueError(f"the user of an image is given by numbers, not as {user!r}: Kubernetes cannot look names up")
    kept = ",".join(["-all", *(f"+{capability.lower()}" for capability in capabilities)])
    drop = [f"--bounding-set={kept}", "--inh-caps=-all", "--no-new-privs"]
    return ["/usr/bin/setpriv", f"--reuid={number}", f"--regid={group}", "--clear-groups", *drop, "--"]


def _home(image: Image, user: str) -> str:
    number = user.partition(":")[0]
    rows = (line.split(":") for line in image.inside("/etc/passwd").read_text("utf-8").splitlines())
    return next((row[5] for row in rows if row[2] == number), "/")
