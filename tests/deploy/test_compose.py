"""compose.yaml: valid, in agreement with the code and the files beside it, and its services run, without an engine."""

import asyncio
import copy
import ipaddress
import json
import re
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema  # type: ignore[import-untyped]
import pytest

from agentrun_server import ServerConfig
from agentrun_server.storage.opening import check_storage_url
from tests.deploy.compose import COMPOSE, SERVICES, Machine, seconds
from tests.deploy.images import DOCKERFILE, ROOT, bare_image
from tests.deploy.running import PORT, ask, carried_out, ready, stored
from tests.docs.commands import VARIABLES
from tests.docs.markdown import blocks
from tests.support.clock import eventually, within
from tests.support.dockerfile import parse_dockerfile
from tests.support.image import Image
from tests.support.raw_client import RawClient
from tests.support.yaml_text import load_yaml

TEXT = (ROOT / "compose.yaml").read_text("utf-8")
NGINX_CONF = (ROOT / "deploy/nginx.conf").read_text("utf-8")
SCHEMA = json.loads((ROOT / "tests/deploy/schemas/compose-spec.json").read_text("utf-8"))
REPLICAS = {name: service for name, service in SERVICES.items() if name.startswith("agent-")}
LASTING = {name: service for name, service in SERVICES.items() if "restart" in service}
HOW_LONG = ServerConfig().drain_timeout + ServerConfig().cancel_grace


def sources(kind: str) -> dict[str, dict[str, Any]]:
    """Return the volumes of `kind`, by service and target."""
    return {
        f"{name}:{v['target']}": v for name, s in SERVICES.items() for v in s.get("volumes", []) if v["type"] == kind
    }


# --- what it says


def test_it_is_what_the_specification_allows() -> None:
    jsonschema.validate(COMPOSE, SCHEMA)
    for slip in ({"stop_grace": "50s"}, {"cap_drop": "ALL"}, {"ports": [{"publish": 1}]}):
        wrong = copy.deepcopy(COMPOSE)
        wrong["services"]["agent-1"] |= slip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_the_replicas_differ_in_their_port_alone_which_is_one_that_nginx_knows() -> None:
    without = [{key: value for key, value in service.items() if key != "ports"} for service in REPLICAS.values()]
    assert without[0] == without[1]
    published = [port for service in REPLICAS.values() for port in service["ports"]]
    assert published == [f"127.0.0.1:8000:{PORT}", f"127.0.0.1:8001:{PORT}"]
    upstream = re.search(r"upstream agents \{(.*?)\}", NGINX_CONF, re.DOTALL)
    assert upstream is not None
    assert re.findall(r"server (127\.0\.0\.1:\d+)\b", upstream[1]) == [port.rpartition(":")[0] for port in published]
    assert not any("ports" in service for name, service in SERVICES.items() if name not in REPLICAS)


def test_whoever_stops_a_service_waits_until_its_streams_have_ended() -> None:
    assert all(seconds(service["stop_grace_period"]) > HOW_LONG for service in REPLICAS.values())
    assert seconds(SERVICES["nginx"]["stop_grace_period"]) > HOW_LONG
    assert f"drain_timeout ({ServerConfig().drain_timeout:g} s)" in TEXT
    assert f"cancel_grace ({ServerConfig().cancel_grace:g} s)" in TEXT


def test_every_service_is_locked_in_and_what_lasts_has_limits() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
    for name, service in LASTING.items():
        assert {"mem_limit", "pids_limit"} <= service.keys(), name
    assert all(service["pids_limit"] > ServerConfig().max_sync_threads for service in REPLICAS.values())
    once = SERVICES.keys() - LASTING.keys()
    assert {name: SERVICES[name]["network_mode"] for name in once} == dict.fromkeys(once, "none")


def test_nginx_may_open_as_many_files_as_its_configuration_says() -> None:
    assert f"worker_rlimit_nofile {SERVICES['nginx']['ulimits']['nofile']};" in NGINX_CONF


def test_images_have_a_tag_but_the_one_that_is_built_here_and_never_fetched() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert (service["build"], service["image"], service["pull_policy"]) == (".", "agentrun-server", "build")
        else:
            assert re.fullmatch(r"[a-z]+:[a-z0-9.]+", service["image"]), name
            assert not service["image"].endswith(":latest"), name


def test_the_variables_are_settings_of_the_server() -> None:
    named = {name for service in SERVICES.values() for name in service.get("environment", {})}
    named = {name for name in named if not name.startswith("POSTGRES_")}
    named |= set(re.findall(r"\b(AGENTRUN_[A-Z_]+)=", TEXT))
    assert "AGENTRUN_AUTH_KEYS_FILE" in named
    assert named <= VARIABLES


def test_the_replicas_trust_the_address_that_nginx_has_in_their_network() -> None:
    [network] = COMPOSE["networks"]["agents"]["ipam"]["config"]
    subnet, gateway = ipaddress.ip_network(network["subnet"]), ipaddress.ip_address(network["gateway"])
    assert gateway in subnet
    assert subnet.is_private
    assert subnet.num_addresses - 3 >= len([s for s in SERVICES.values() if s.get("networks") == ["agents"]])
    for service in REPLICAS.values():
        assert ipaddress.ip_network(service["environment"]["AGENTRUN_TRUSTED_PROXIES"]) == ipaddress.ip_network(gateway)
        assert service["networks"] == ["agents"]
    assert SERVICES["nginx"]["network_mode"] == "host"


def test_what_is_mounted_is_where_it_is_looked_for() -> None:
    for where, volume in sources("bind").items():
        assert (ROOT / volume["source"]).is_file(), where
        assert volume["source"].startswith("./"), where
        assert volume["bind"] == {"create_host_path": False}, f"{where}: a folder would be made in place of a file"
        assert volume["read_only"], where
    named = sources("volume")
    assert {volume["source"] for volume in named.values()} == COMPOSE["volumes"].keys()
    [tls] = [v["target"] for where, v in named.items() if where.startswith("nginx:")]
    assert f"ssl_certificate {tls}/fullchain.pem;" in NGINX_CONF
    assert f"ssl_certificate_key {tls}/privkey.pem;" in NGINX_CONF
    for name, service in SERVICES.items():
        if "AGENTRUN_AUTH_KEYS_FILE" in service.get("environment", {}):
            volume = named[f"{name}:{Path(service['environment']['AGENTRUN_AUTH_KEYS_FILE']).parent}"]
            assert (volume["source"], volume.get("read_only", False)) == ("keys", name in REPLICAS)


def test_what_the_replicas_store_is_in_one_volume_where_the_image_looks_for_it() -> None:
    home = next(i.text for i in parse_dockerfile(DOCKERFILE.read_text("utf-8")) if i.name == "VOLUME")
    writable = {where: v["source"] for where, v in sources("volume").items() if not v.get("read_only")}
    assert {where: writable[where] for where in writable if where.startswith("agent-")} == {
        f"{name}:{home}": "store" for name in REPLICAS
    }


def test_with_a_database_the_settings_that_the_file_names_lead_to_it_and_to_redis() -> None:
    database, redis = SERVICES["postgres"], SERVICES["redis"]
    said = dict(re.findall(r"^  #     (AGENTRUN_\w+)=(\S+)", TEXT, re.MULTILINE))
    store, bus = urlsplit(said["AGENTRUN_STORE_URL"]), urlsplit(said["AGENTRUN_BUS_REDIS_URL"])
    names = database["environment"]
    assert (store.username, store.path) == (names["POSTGRES_USER"], f"/{names['POSTGRES_DB']}")
    assert check_storage_url(said["AGENTRUN_STORE_URL"]) == "postgresql"
    assert (SERVICES[str(store.hostname)], SERVICES[str(bus.hostname)]) == (database, redis)
    assert database["profiles"] == ["postgres"]
    assert "postgres" in redis["profiles"]
    assert database["networks"] == redis["networks"] == REPLICAS["agent-1"]["networks"]
    assert re.search(r"POSTGRES_PASSWORD=… +in postgres\.env", TEXT)
    assert database["env_file"] == [{"path": "postgres.env", "required": False}]


def test_what_others_are_waited_for_by_can_be_waited_for() -> None:
    checked = {i.name for i in parse_dockerfile(DOCKERFILE.read_text("utf-8"))}
    for name, wait in SERVICES["nginx"]["depends_on"].items():
        match wait["condition"]:
            case "service_healthy":
                assert "HEALTHCHECK" in checked
                assert "healthcheck" not in SERVICES[name]
            case "service_completed_successfully":
                assert "restart" not in SERVICES[name]
            case other:
                raise AssertionError(other)


def test_git_ignores_what_is_the_operators_own() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert {"agent.env", "postgres.env", "compose.override.yaml", "keys.json*"} <= set(ignored)


SHOWN = [block for block in blocks(ROOT / "docs/deployment.md") if block.language == "yaml"]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.where)
def test_an_override_that_the_page_shows_fits(block: Any) -> None:
    override: Mapping[str, Any] = load_yaml(block.text)
    assert override["services"].keys() <= SERVICES.keys()
    merged = copy.deepcopy(COMPOSE)
    for name, changes in override["services"].items():
        for key, value in changes.items():
            if key == "environment":
                assert value.keys() <= SERVICES[name]["environment"].keys(), "it takes away what is there"
            if key == "volumes":
                assert {v["target"] for v in value} <= {v["target"] for v in SERVICES[name]["volumes"]}
            merged["services"][name][key] = value
    jsonschema.validate(merged, SCHEMA)


# --- how it runs


@carried_out
async def test_a_key_from_the_keys_service_opens_the_replicas_and_nothing_else_does(
    image: Image, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)
    with machine.run(image, "keys", "create", "--name", "alice") as container:
        assert container.exit_status() == 0
    found = re.search(r"^ar_\S+$", machine.log("keys").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    with machine.run(image, "agent-1") as container:
        await ready(container)
        assert container.execute(*image.healthcheck).returncode == 0
        assert (await ask(container, "GET", "/v1/models")).status == 401
        good = ("authorization", f"Bearer {found[0]}")
        assert (await ask(container, "GET", "/v1/models", headers=[good])).status == 200
        assert (await ask(container, "GET", "/auth/verify", headers=[good])).status == 204
        assert container.execute("touch", "/etc/agentrun/x").returncode == 1, "only the keys service writes there"
        assert container.execute("touch", "/tmp/x").returncode == 0
        with machine.run(image, "agent-2") as other:
            await ready(other)
            path = await stored(container, [good])
            assert (await ask(other, "GET", path, [good])).json()["status"] == "completed", "they share what they store"
            assert (await ask(other, "GET", path)).status == 401


@carried_out
async def test_a_replica_without_keys_says_what_is_missing_and_does_not_start(image: Image, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with machine.run(image, "agent-1") as container:
        assert await asyncio.to_thread(container.exit_status) != 0
    assert "'agentrun-server keys create' makes it" in machine.log("agent-1").read_text("utf-8")


def certificate_of(machine: Machine, image: Image) -> None:
    with machine.run(image, "certificate") as container:
        status = container.exit_status()
    assert status == 0, machine.log("certificate").read_text("utf-8")


@carried_out
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_is_made_once(image: Image, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    certificate_of(machine, image)
    [key, chain] = [tmp_path / "tls" / name for name in ("privkey.pem", "fullchain.pem")]
    assert key.stat().st_mode & 0o777 == 0o600
    made = chain.read_bytes()
    certificate_of(machine, image)
    assert chain.read_bytes() == made
    ssl.create_default_context(cafile=chain)


NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")
CAPABILITIES = SERVICES["nginx"]["cap_add"]


def nginx_image(folder: Path) -> Image:
    """Return a Debian with this machine's nginx, as far as it is like the official image."""
    image = bare_image(folder)
    logs = image.inside("/var/log/nginx")
    logs.mkdir(parents=True)
    (logs / "access.log").symlink_to("/dev/stdout")
    (logs / "error.log").symlink_to("/dev/stderr")
    image.user, image.command, image.stop_signal = "0:0", ["/usr/sbin/nginx", "-g", "daemon off;"], "SIGQUIT"
    return image


TEMPORARY = {"/var/cache/nginx": "/var/lib/nginx"}
"""Where the official image's nginx puts bodies that come in, and where Debian's does."""


@carried_out
@pytest.mark.skipif(None in (NGINX, shutil.which("openssl")), reason="nginx or openssl is not installed")
async def test_nginx_starts_with_what_it_is_given_and_answers(image: Image, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    certificate_of(machine, image)
    with machine.run(nginx_image(tmp_path / "nginx"), "nginx", places=TEMPORARY) as container:

        def listens() -> None:
            assert container.running, machine.log("nginx").read_text("utf-8")
            assert (tmp_path / "nginx.log").exists()
            assert container.execute("sh", "-c", "test -e /run/nginx.pid").returncode == 0

        await eventually(listens, 20)
        async with container.inside_network(lambda: RawClient(80)) as client:
            await client.request("GET", "/")
            assert (await client.response()).error()["code"] == "https_required"
        users = container.execute("sh", "-c", "ps -o user= -C nginx | sort -u").stdout.split()
        assert users == ["root", "www-data"]
        container.stop()
        assert await within(asyncio.to_thread(container.exit_status), 25) == 0


@carried_out
@pytest.mark.skipif(None in (NGINX, shutil.which("openssl")), reason="nginx or openssl is not installed")
@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_nginx_takes_every_capability_that_it_is_given(image: Image, capability: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    certificate_of(machine, image)
    others = [name for name in CAPABILITIES if name != capability]
    with machine.run(nginx_image(tmp_path / "nginx"), "nginx", capabilities=others, places=TEMPORARY):

        def complains() -> None:
            log = machine.log("nginx").read_text("utf-8")
            assert re.search(r"\((?:1|13): (?:Operation not permitted|Permission denied)\)", log), log

        await eventually(complains, 20)


@carried_out
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
async def test_redis_starts_as_its_service_says_and_its_health_is_seen(tmp_path: Path) -> None:
    redis = bare_image(tmp_path / "redis")
    service = SERVICES["redis"]
    with Machine(tmp_path).run(redis, "redis") as container:
        kind, *check = service["healthcheck"]["test"]
        assert kind == "CMD"
        await eventually(lambda: container.execute(*check).stdout == "PONG\n", 20)
        for option, value in zip(service["command"][1::2], service["command"][2::2], strict=True):
            said = container.execute("redis-cli", "config", "get", option.removeprefix("--")).stdout.split("\n")[1]
            assert said == {"64mb": str(64 * 1024**2)}.get(value, value)


POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)


@carried_out
@pytest.mark.skipif(POSTGRES is None, reason="postgresql is not installed")
async def test_postgresql_makes_a_database_with_the_rights_of_its_service_and_its_health_is_seen(
    tmp_path: Path,
) -> None:
    """Without the image's entrypoint, which does what `makes` does, and more."""
    service, machine = SERVICES["postgres"], Machine(tmp_path)
    bare = bare_image(tmp_path / "bare")
    [volume] = service["volumes"]
    place = bare.inside(volume["target"])
    place.mkdir(parents=True)
    place.chmod(0o1777)  # as the image has it
    with (bare.root / "etc/passwd").open("a") as users:
        users.write(f"db:x:999:999::{volume['target']}:/bin/sh\n")
    data, names = f"{volume['target']}/data", service["environment"]
    makes = (
        f"initdb --no-sync --pgdata {data} --username {names['POSTGRES_USER']} --auth trust >/dev/null"
        f" && exec postgres -D {data} -c unix_socket_directories=/run/postgresql -c listen_addresses='*'"
    )
    with machine.run(bare, "postgres", "env", f"PATH={POSTGRES}:/usr/bin:/bin", "sh", "-c", makes) as container:
        kind, program, *check = service["healthcheck"]["test"]
        assert kind == "CMD"

        def is_healthy() -> None:
            assert container.running, machine.log("postgres").read_text("utf-8")
            assert container.execute(f"{POSTGRES}/{program}", *check).returncode == 0

        await eventually(is_healthy, 30)
        assert container.execute("touch", "/var/lib/x").returncode == 1
