"""The Kubernetes manifests: valid for every version they are for, and in agreement with the server and each other."""

import asyncio
import copy
import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from agentrun_middleware.key_file import KeyFile, NewKey
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.cli.settings import NETWORK_SETTINGS
from tests.deploy.images import DOCKERFILE, ROOT
from tests.deploy.running import ask, carried_out, ready
from tests.docs.commands import VARIABLES
from tests.docs.markdown import blocks
from tests.support.dockerfile import parse_dockerfile
from tests.support.image import Container, Image, Volume, running
from tests.support.serve import serve
from tests.support.yaml_text import load_yaml, load_yaml_documents

FOLDER = ROOT / "deploy/kubernetes"
VERSIONS = [v for v in kubernetes_validate.utils.all_versions() if tuple(map(int, v.split(".")[:2])) >= (1, 30)]
KUSTOMIZATION = load_yaml((FOLDER / "kustomization.yaml").read_text("utf-8"))
FILES = sorted({path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"})
MANIFESTS: dict[str, dict[str, Any]] = {name: load_yaml((FOLDER / name).read_text("utf-8")) for name in FILES}
ANNOTATION = "nginx.ingress.kubernetes.io/"

DEPLOYMENT = MANIFESTS["deployment.yaml"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
[CONTAINER] = POD["containers"]
LABELS = DEPLOYMENT["template"]["metadata"]["labels"]
DOCKER = {i.name: i.text for i in parse_dockerfile(DOCKERFILE.read_text("utf-8"))}


def settings() -> dict[str, str]:
    """Return what settings.env sets."""
    lines = (FOLDER / "settings.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


# --- valid


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_what_the_api_takes(version: str) -> None:
    for manifest in MANIFESTS.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_versions_are_those_that_the_page_names() -> None:
    page = (ROOT / "docs/deployment.md").read_text("utf-8")
    first, last = (version.rpartition(".")[0] for version in (VERSIONS[0], VERSIONS[-1]))
    assert f"the API schemas of Kubernetes {first} to {last}" in page
    assert f"Version {first} or newer" in page


@pytest.mark.parametrize(
    "slip", [{"replica": 1}, {"minReadySeconds": "5"}, {"strategy": {"rollingUpdate": {"max": 1}}}]
)
def test_a_slip_in_a_manifest_is_seen(slip: dict[str, Any]) -> None:
    wrong = copy.deepcopy(MANIFESTS["deployment.yaml"])
    wrong["spec"] |= slip
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_kustomize_takes_every_file_but_the_other_ingress() -> None:
    assert sorted([*KUSTOMIZATION["resources"], "ingress-auth.yaml"]) == FILES
    assert KUSTOMIZATION["namespace"] == MANIFESTS["namespace.yaml"]["metadata"]["name"]
    assert [image["name"] for image in KUSTOMIZATION["images"]] == [CONTAINER["image"]]
    [generated] = KUSTOMIZATION["configMapGenerator"]
    assert generated["envs"] == ["settings.env"]
    assert [generated["name"]] == [s["configMapRef"]["name"] for s in CONTAINER["envFrom"] if "configMapRef" in s]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_what_kustomize_makes_is_valid_and_names_the_settings_by_their_checksum() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], check=True, capture_output=True, text=True)
    made = load_yaml_documents(done.stdout)
    for manifest in made:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    by_kind = {manifest["kind"]: manifest for manifest in made}
    assert len(by_kind) == len(made) == len(KUSTOMIZATION["resources"]) + 1
    [container] = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    name = by_kind["ConfigMap"]["metadata"]["name"]
    assert re.fullmatch(r"agent-settings-[a-z0-9]{10}", name)
    assert container["envFrom"][0]["configMapRef"]["name"] == name
    assert by_kind["ConfigMap"]["data"] == settings()
    assert container["image"] != CONTAINER["image"]


# --- in agreement with the server


def test_the_pod_has_more_time_to_end_than_the_server_may_take() -> None:
    config = ServerConfig()
    sleeps = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > sleeps + config.drain_timeout + config.cancel_grace
    written = f"preStop ({sleeps}) + drain_timeout ({config.drain_timeout:g}) + cancel_grace ({config.cancel_grace:g})"
    assert written in (FOLDER / "deployment.yaml").read_text("utf-8")


def test_the_ports_are_one_from_the_ingress_to_the_server() -> None:
    port = next(setting.default for setting in NETWORK_SETTINGS if setting.name == "port")
    [named] = CONTAINER["ports"]
    assert str(named["containerPort"]) == str(port) == DOCKER["EXPOSE"]
    [service] = MANIFESTS["service.yaml"]["spec"]["ports"]
    assert service["targetPort"] == named["name"]
    for ingress in (MANIFESTS["ingress.yaml"], MANIFESTS["ingress-auth.yaml"]):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                assert backend == {
                    "name": MANIFESTS["service.yaml"]["metadata"]["name"],
                    "port": {"name": service["name"]},
                }
    [allowed] = MANIFESTS["networkpolicy.yaml"]["spec"]["ingress"]
    assert [rule["port"] for rule in allowed["ports"]] == [named["name"]]
    assert all(probe["httpGet"]["port"] == named["name"] for probe in probes())


def probes() -> Iterator[dict[str, Any]]:
    return (CONTAINER[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness"))


async def test_probes_and_the_ingress_ask_for_paths_that_a_server_with_these_settings_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings().items():
        monkeypatch.setenv(name, value)

    async def invoke_agent(_: AgentRequest) -> str:
        return "Hello"

    async with serve(AgentRunServer(invoke_agent=invoke_agent)) as served:
        for probe in probes():
            assert (await served.ask("GET", probe["httpGet"]["path"])).status == 200
        auth_url = MANIFESTS["ingress-auth.yaml"]["metadata"]["annotations"][f"{ANNOTATION}auth-url"]
        assert (await served.ask("GET", f"/{auth_url.split('/', 3)[3]}")).status == 401
        assert (await served.ask("GET", "/v1/models")).status == 401, "its settings let nobody in without a credential"
        for path in MANIFESTS["ingress.yaml"]["spec"]["rules"][0]["http"]["paths"]:
            inside = path["path"] if path["pathType"] == "Exact" else f"{path['path']}/models"
            assert (await served.ask("GET", inside)).status in (200, 401)


def test_a_draining_pod_fails_no_probe_that_would_kill_it() -> None:
    assert [probe["httpGet"]["path"] for probe in probes()] == ["/livez", "/livez", "/readyz"]
    for probe in probes():
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]


def test_the_settings_are_the_servers_and_none_of_them_is_a_secret() -> None:
    text = "".join(path.read_text("utf-8") for path in FOLDER.iterdir())
    named = set(re.findall(r"\bAGENTRUN_[A-Z_]*[A-Z]\b(?!=tcp)", text)) - {"AGENTRUN_"}
    assert {name.removesuffix("_FILE") if name not in VARIABLES else name for name in named} <= VARIABLES
    from agentrun_server.cli.settings import SERVER_SETTINGS

    secret = {setting.variable for setting in SERVER_SETTINGS if setting.secret}
    assert secret
    assert {name: value for name, value in settings().items() if name in secret} == {"AGENTRUN_STORE_URL": "none"}
    assert not any(manifest["kind"] == "Secret" for manifest in MANIFESTS.values())


def test_a_database_in_the_secret_takes_the_place_of_storing_nothing() -> None:
    """Of two sources that have the same variable, Kubernetes takes the last."""
    assert [next(iter(source)) for source in CONTAINER["envFrom"]] == ["configMapRef", "secretRef"]
    policy = (FOLDER / "networkpolicy.yaml").read_text("utf-8")
    rule = load_yaml("".join(re.findall(r"^    # ((?:-|  ).*\n)", policy, re.MULTILINE)))
    with_it = copy.deepcopy(MANIFESTS["networkpolicy.yaml"])
    with_it["spec"]["egress"] += rule
    kubernetes_validate.validate(with_it, VERSIONS[-1], strict=True)
    assert [port["port"] for port in rule[0]["ports"]] == [5432, 6379]


def test_limits_that_the_ingress_repeats_are_the_servers() -> None:
    config = ServerConfig()
    for name in ("ingress.yaml", "ingress-auth.yaml"):
        said = {k.removeprefix(ANNOTATION): v for k, v in MANIFESTS[name]["metadata"]["annotations"].items()}
        assert said["proxy-buffering"] == "off"
        assert said["proxy-next-upstream"] == "off"
        assert said["proxy-body-size"] == f"{config.max_body_bytes // 1024**2}m"
        assert float(said["proxy-read-timeout"]) > (config.heartbeat_interval or 0) * 10
        assert not any("snippet" in annotation for annotation in said), "controllers refuse them, with good reason"
    with_auth, without = (MANIFESTS[name] for name in ("ingress-auth.yaml", "ingress.yaml"))
    more = with_auth["metadata"]["annotations"].keys() - without["metadata"]["annotations"].keys()
    assert {a.removeprefix(ANNOTATION) for a in more} == {"auth-url", "auth-method", "auth-response-headers"}
    assert without["metadata"]["annotations"].items() <= with_auth["metadata"]["annotations"].items()


async def test_the_ingress_takes_from_the_check_every_header_that_the_server_answers_with() -> None:
    front = (ROOT / "agentrun_server/server/front.py").read_text("utf-8")
    headers = MANIFESTS["ingress-auth.yaml"]["metadata"]["annotations"][f"{ANNOTATION}auth-response-headers"]
    assert re.findall(r'"(subject|issuer|scopes)": ', front) == [
        name.removeprefix("X-Auth-").lower() for name in headers.split(",")
    ]


# --- in agreement with the image


def test_the_pod_is_the_user_of_the_image_without_rights_and_writes_only_to_tmp() -> None:
    user, group = map(int, DOCKER["USER"].split(":"))
    context = POD["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    assert context["runAsNonRoot"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    writable = [mount for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]
    assert "sizeLimit" in volumes[writable[0]["name"]]["emptyDir"]
    labels = MANIFESTS["namespace.yaml"]["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}
    for owner in (POD, MANIFESTS["serviceaccount.yaml"]):
        assert owner["automountServiceAccountToken"] is False


def test_the_keys_are_mounted_where_the_settings_say_and_can_be_read_by_the_group_alone() -> None:
    text = (FOLDER / "settings.env").read_text("utf-8")
    paths = dict(re.findall(r"^#(AGENTRUN_AUTH_KEYS_\w+)=(\S+)$", text, re.MULTILINE))
    [mount] = [mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "keys"]
    assert {str(PurePosixPath(path).parent) for path in paths.values()} == {mount["mountPath"]}
    [secret] = [volume["secret"] for volume in POD["volumes"] if volume["name"] == "keys"]
    assert secret["defaultMode"] == 0o440
    command = next(b.text for b in blocks(ROOT / "docs/deployment.md") if "kubectl" in b.text)
    assert f"secret generic {secret['secretName']}" in command
    assert all(f"--from-file {PurePosixPath(path).name}" in command for path in paths.values())
    [ref] = [source["secretRef"] for source in CONTAINER["envFrom"] if "secretRef" in source]
    assert f"secret generic {ref['name']}" in command


def secret_volume(folder: Path, files: Mapping[str, bytes]) -> None:
    """Bring a Secret to `folder` as the kubelet does: all files at once, by a link that is replaced."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, data in files.items():
        (version / name).write_bytes(data)
        (version / name).chmod(0o440)
        os.chown(version / name, 0, POD["securityContext"]["fsGroup"])
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").replace(folder / "..data")


@carried_out
async def test_a_pod_knows_the_keys_of_the_secret_and_learns_of_new_ones(image: Image, tmp_path: Path) -> None:
    text = (FOLDER / "settings.env").read_text("utf-8")
    keys = KeyFile(tmp_path / "keys.json")
    first = keys.create("first")
    pepper = keys.pepper_path.read_bytes()
    secret = tmp_path / "secret"
    secret_volume(secret, {"keys.json": keys.path.read_bytes(), "keys.json.pepper": pepper})
    [mount] = [mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "keys"]
    with running(
        image,
        log=tmp_path / "log",
        env=settings() | dict(re.findall(r"^#(AGENTRUN_AUTH_KEYS_\w+)=(\S+)$", text, re.MULTILINE)),
        volumes=[Volume(source=secret, target=mount["mountPath"])],
        tmpfs={"/tmp": "1777"},
    ) as container:
        await ready(container)
        assert await status(container, first) == 200
        second = keys.create("second")
        assert await status(container, second) == 401
        secret_volume(secret, {"keys.json": keys.path.read_bytes(), "keys.json.pepper": pepper})
        async with asyncio.timeout(10):
            while True:
                if await status(container, second) == 200:
                    break
                await asyncio.sleep(0.05)


async def status(container: Container, key: NewKey) -> int:
    """Return how a pod answers who has this key."""
    return (await ask(container, "GET", "/v1/models", headers=[("authorization", f"Bearer {key.key}")])).status


# --- in agreement with each other


def test_all_selectors_find_the_pods() -> None:
    selectors = [
        DEPLOYMENT["selector"]["matchLabels"],
        MANIFESTS["service.yaml"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= LABELS.items() for selector in selectors)


def test_the_autoscaler_decides_how_many_there_are_and_always_leaves_one_that_serves() -> None:
    autoscaler = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]
    target = autoscaler["scaleTargetRef"]
    deployment = MANIFESTS["deployment.yaml"]
    assert (target["apiVersion"], target["kind"]) == (deployment["apiVersion"], deployment["kind"])
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT
    assert DEPLOYMENT["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert autoscaler["minReplicas"] > MANIFESTS["poddisruptionbudget.yaml"]["spec"]["maxUnavailable"]
    [metric] = autoscaler["metrics"]
    assert metric["resource"]["name"] in CONTAINER["resources"]["requests"], "a share of what is asked for"
    assert "cpu" not in CONTAINER["resources"]["limits"]


def test_the_pods_reach_no_private_address_and_no_metadata() -> None:
    [_, outside] = MANIFESTS["networkpolicy.yaml"]["spec"]["egress"]
    allowed = [block["ipBlock"] for block in outside["to"]]

    def reached(text: str) -> bool:
        address = ipaddress.ip_address(text)
        return any(
            address in ipaddress.ip_network(block["cidr"])
            and not any(address in ipaddress.ip_network(network) for network in block["except"])
            for block in allowed
        )

    assert all(map(reached, ("1.1.1.1", "2606:4700::1111")))
    assert not any(map(reached, ("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
                                 "fd00:ec2::254", "fe80::1")))  # fmt: skip
