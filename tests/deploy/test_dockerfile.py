"""The Dockerfile: its own commands are carried out, and what they make is run as a container would be.

No engine is needed; `tests.support.image` says what stands in for one, and what is not as it would be.
"""

import asyncio
import json
import re
import shlex
import shutil
import signal
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath

import pytest

from tests.deploy.images import DOCKERFILE, PYTHON_IMAGE, ROOT, UV_IMAGE, build_image
from tests.deploy.locks import locked, required_here
from tests.deploy.running import PORT, ask, carried_out, ready, stored
from tests.docs.commands import check_command
from tests.docs.markdown import blocks
from tests.support.clock import eventually, within
from tests.support.dockerfile import DockerIgnore, parse_dockerfile, split_stages
from tests.support.image import BuildError, Container, Image, Volume, running
from tests.support.raw_client import RawClient

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STORE = "/var/lib/agentrun"

# --- what it says


def test_both_images_are_named_by_tag_and_their_versions_are_the_ones_that_are_tested() -> None:
    python = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", PYTHON_IMAGE)
    assert python is not None
    assert f"Programming Language :: Python :: {python[1]}" in PROJECT["classifiers"]
    pinned = (ROOT / "tests/clients/envs/uv.txt").read_text("utf-8")
    assert re.search(r"^uv==(.+)$", pinned, re.MULTILINE)[1] == UV_IMAGE.removeprefix("ghcr.io/astral-sh/uv:")  # type: ignore[index]


def test_debian_packages_are_installed_without_what_they_merely_recommend_and_leave_no_lists() -> None:
    """The one kind of command that is not carried out: it would change the programs of this machine."""
    [command] = [i.text for i in parse_dockerfile(DOCKERFILE.read_text("utf-8")) if "apt-get" in i.text]
    update, install, clean = (shlex.split(part) for part in command.split("&&"))
    assert update == ["apt-get", "update"]
    assert install == ["apt-get", "install", "--yes", "--no-install-recommends", "ca-certificates"]
    assert clean == ["rm", "-rf", "/var/lib/apt/lists/*"]


def test_a_build_sees_what_it_copies_and_nothing_else() -> None:
    ignore = DockerIgnore((ROOT / ".dockerignore").read_text("utf-8"))
    _, stages = split_stages(parse_dockerfile(DOCKERFILE.read_text("utf-8")), {})
    copied = {
        source
        for stage in stages
        for i in stage.instructions
        if i.name == "COPY" and i.flag("from") is None
        for source in i.text.split()[:-1]
    }
    inside = [path for path in (*ROOT.iterdir(), *(ROOT / "deploy").iterdir()) if path.name != "deploy"]
    files = [path.relative_to(ROOT) / "file" if path.is_dir() else path.relative_to(ROOT) for path in inside]
    seen = [PurePosixPath(file) for file in files if not ignore.excludes(PurePosixPath(file))]
    assert seen
    assert all(any(file.is_relative_to(source) for source in copied) for file in seen)
    for hidden in (".env", ".git/config", ".venv/bin/python", "agent.env", "agentrun_server/__pycache__/a.pyc",
                   "deploy/privkey.pem", "keys.json", "tests/conftest.py"):  # fmt: skip
        assert ignore.excludes(PurePosixPath(hidden)), hidden
    assert not any(ignore.excludes(PurePosixPath(source)) for source in copied)


# --- what it makes


Run = Callable[..., AbstractContextManager[Container]]


@pytest.fixture
def run(image: Image, tmp_path: Path) -> Run:
    """Return a function that runs the image's command in a container."""

    @contextmanager
    def run_image(image: Image = image, **options: object) -> Iterator[Container]:
        with running(image, log=tmp_path / "log", **options) as container:  # type: ignore[arg-type]
            yield container

    return run_image


@carried_out
def test_the_image_is_what_engines_expect(image: Image) -> None:
    assert image.user == "10001:10001"
    assert image.exposed == [str(PORT)]
    assert image.stop_signal == "SIGTERM"
    assert image.workdir == PurePosixPath("/app")
    assert image.volumes == [image.env["AGENTRUN_HOME"]] == [STORE]
    check_command(shlex.join(image.command), "CMD")
    check_command(shlex.join(image.healthcheck), "HEALTHCHECK")
    assert image.labels == {
        "org.opencontainers.image.title": PROJECT["name"],
        "org.opencontainers.image.description": PROJECT["description"].partition(":")[0],
        "org.opencontainers.image.version": PROJECT["version"],
        "org.opencontainers.image.licenses": PROJECT["license"],
    }
    assert len(image.left_out) == 1
    assert "apt-get" in image.left_out[0]


@carried_out
def test_the_image_has_the_locked_packages_and_nothing_that_only_the_build_needed(image: Image) -> None:
    [packages] = image.root.glob("opt/agentrun/lib/python3.*/site-packages")
    found = {path.name.split("-")[0].lower().replace("_", "-") for path in packages.glob("*.dist-info")}
    assert found == {package.name for package in required_here(locked("requirements.lock"))} | {PROJECT["name"]}
    assert not (image.root / "usr/local/bin/uv").exists()
    assert not (image.root / "build").exists()
    assert not (image.root / "root/.cache").exists()


@carried_out
def test_all_of_the_image_belongs_to_root_and_only_root_can_change_it(image: Image) -> None:
    for top in ("opt", "app", "usr/local"):
        for path in (image.root / top, *(image.root / top).rglob("*")):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (0, 0), path
            assert path.is_symlink() or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID), path
    for folder in ("etc/agentrun", "var/lib/agentrun"):
        found = (image.root / folder).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (10001, 10001, 0o700), "but for volumes"


@carried_out
def test_every_module_of_the_image_is_compiled(image: Image) -> None:
    [packages] = image.root.glob("opt/agentrun/lib/python3.*/site-packages")
    sources = [path for path in packages.rglob("*.py") if path.parent.name != "bin"]
    compiled = {path.name.split(".")[0] for path in (packages / "agentrun_server").rglob("*.pyc")}
    assert {"app", "drain"} <= compiled
    missing = [path for path in sources if not any((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))]
    assert not missing


@carried_out
@pytest.mark.parametrize(
    ("pattern", "instead", "said"),
    [
        ("sha256:..", "sha256:00", r"Hash mismatch for `h11"),
        (r" \\\n *--hash=\S+", "", r"all requirements must have a hash, but none were provided for: h11"),
    ],
    ids=["another hash", "no hash"],
)
def test_a_file_whose_hash_the_lock_does_not_know_is_not_installed(
    pattern: str, instead: str, said: str, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    before, h11, after = re.split(r"^(h11==(?:.*\n)+?)(?=\S)", lock, flags=re.MULTILINE)
    changed = re.sub(pattern, instead, h11)
    assert changed != h11
    (context / "requirements.lock").write_text(before + changed + after, "utf-8")
    with pytest.raises(BuildError, match=said):
        build_image(tmp_path / "stages", context=context)


# --- how it runs


@carried_out
async def test_the_image_serves_by_itself_an_agent_that_needs_no_model(run: Run, tmp_path: Path) -> None:
    with run() as container:
        await ready(container)
        models = (await ask(container, "GET", "/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["demo"]
        async with container.inside_network(lambda: RawClient(PORT)) as client:
            await client.chat(text="What is 12 * (3 + 4)?", model="demo")
            answer = await client.rest()
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in answer[:-1])
        assert "84" in text
        assert answer[-1] == "[DONE]"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert any("the demo agent is served" in line["message"] for line in lines), "it says whose answers these are"


@carried_out
async def test_the_server_is_a_user_with_a_name_without_rights_who_can_write_what_it_stores_alone(run: Run) -> None:
    look = """if True:
        import getpass, os, re
        status = open("/proc/1/status").read()
        mounts = [line.split() for line in open("/proc/self/mountinfo")]
        print(getpass.getuser(), os.path.expanduser("~"), os.getcwd())
        print(*re.findall(r"^(?:Uid|Gid|CapEff|CapBnd|NoNewPrivs):\\s+(\\w+)", status, re.MULTILINE))
        print(*sorted(m[4] for m in mounts if "rw" in m[5].split(",") and not re.match("/(dev|proc)", m[4])))
    """
    with run() as container:
        await ready(container)
        seen = container.execute("python", "-c", look)
        rights = "10001 10001 0000000000000000 0000000000000000 1"
        assert seen.stdout.splitlines() == ["agentrun /app /app", rights, STORE]


@carried_out
async def test_what_is_stored_is_there_as_long_as_its_volume(run: Run, image: Image, tmp_path: Path) -> None:
    volume = Volume.made(image, tmp_path / "store", STORE)
    with run(volumes=[volume]) as container:
        await ready(container)
        path = await stored(container)
        container.stop()
        await within(asyncio.to_thread(container.exit_status), 25)
    with run(volumes=[volume]) as container:
        await ready(container)
        assert (await ask(container, "GET", path)).json()["status"] == "completed"
    with run() as container:
        await ready(container)
        assert (await ask(container, "GET", path)).status == 404, "a volume without a name is another one each time"


@carried_out
async def test_healthcheck_says_whether_the_server_is_ready(run: Run, image: Image) -> None:
    with run() as container:
        await ready(container)
        healthy = container.execute(*image.healthcheck)
        assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "", "")
    with run(command=["sleep", "60"]) as container:
        unhealthy = container.execute(*image.healthcheck)
        assert unhealthy.returncode == 1
        assert "unhealthy: " in unhealthy.stderr


@carried_out
async def test_on_the_stop_signal_an_open_stream_finishes_and_then_the_server_ends(run: Run, image: Image) -> None:
    with run() as container:
        await ready(container)
        async with container.inside_network(lambda: RawClient(PORT)) as client:
            await client.chat(text="Count to 20", model="demo")
            await client.piece()
            container.stop()
            refused = await ask(container, "GET", "/readyz")
            assert refused.status == 503
            assert container.execute(*image.healthcheck).returncode == 1
            answer = await client.rest()
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in answer[:-1])
        assert "20" in text
        assert answer[-1] == "[DONE]"
        assert answer[-2]["choices"][0]["finish_reason"] == "stop"
        assert await within(asyncio.to_thread(container.exit_status), 25) == 128 + signal.SIGTERM


@carried_out
async def test_a_container_ends_with_the_test_that_runs_it(run: Run) -> None:
    with run() as container:
        await ready(container)
        pid = container.pid
        assert "agentrun-server" in command_line(pid)
    await eventually(lambda: not command_line(pid))


def command_line(pid: int) -> str:
    """Return the command of a process of this machine; empty for one that has ended."""
    try:
        return Path("/proc", str(pid), "cmdline").read_text("utf-8")
    except FileNotFoundError:
        return ""


# --- what others make of it


@carried_out
async def test_an_app_is_mounted_over_the_agent_that_comes_with_the_image(run: Run, tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    shutil.copy(ROOT / "examples/hello.py", app)
    with run(volumes=[Volume(source=app, target="/app/app.py")]) as container:
        await ready(container)
        async with container.inside_network(lambda: RawClient(PORT)) as client:
            await client.chat(text="world", stream=False)
            answer = (await client.response()).json()
        assert answer["choices"][0]["message"]["content"] == "Hello, world"


@carried_out
async def test_the_dockerfile_that_the_page_shows_adds_an_app_and_its_packages(
    run: Run, image: Image, tmp_path: Path
) -> None:
    [shown] = [block for block in blocks(ROOT / "docs" / "deployment.md") if block.language == "dockerfile"]
    context = tmp_path / "mine"
    context.mkdir()
    (context / "Dockerfile").write_text(shown.text, "utf-8")
    (context / ".dockerignore").write_text("Dockerfile\n.dockerignore\n", "utf-8")
    (context / "requirements.txt").write_text("iniconfig\n", "utf-8")
    source = (ROOT / "examples/hello.py").read_text("utf-8")
    (context / "app.py").write_text(f"import iniconfig\n{source}", "utf-8")
    mine = build_image(
        tmp_path / "stages", dockerfile=context / "Dockerfile", context=context, bases={"agentrun-server": image}
    )
    assert (mine.user, mine.command, mine.healthcheck) == (image.user, image.command, image.healthcheck)
    with run(mine) as container:
        await ready(container)
        async with container.inside_network(lambda: RawClient(PORT)) as client:
            await client.chat(text="world", stream=False)
            answer = (await client.response()).json()
        assert answer["choices"][0]["message"]["content"] == "Hello, world"
