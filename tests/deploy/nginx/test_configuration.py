"""The shipped files themselves: they run where they belong, and hold to what they say."""

import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agentrun_server import ServerConfig
from tests.deploy.nginx.behind import both
from tests.support.nginx import APP_AUTH_CONF, CONF, KNOWN_WARNING, SELF_SIGNED, edited, needs_nginx, placed
from tests.support.serve import REPOSITORY


def directives(conf: Path) -> list[str]:
    """Return the lines that say something, without comments and indentation."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in conf.read_text("utf-8").splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line]


# --- in place


def namespaces() -> bool:
    """Tell whether this process may make an empty machine for a test."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        return False
    command = [unshare, "--mount", "--net", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@needs_nginx
@pytest.mark.skipif(not namespaces(), reason="needs root and the right to make namespaces")
@both
def test_the_file_runs_as_it_is_where_it_belongs(conf: Path) -> None:
    ran = subprocess.run(
        ["unshare", "--mount", "--net", sys.executable, "-m", "tests.deploy.nginx.in_place", conf],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'middleware'}"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert "syntax is ok" in said["tested"]
    assert sorted(said["https"]) == [[200, "8000"], [200, "8001"]]
    assert (said["http"], said["http probe"], said["ipv6 probe"], said["pid"]) == (403, 200, 200, True)
    assert said["logged"] == ["/v1/models"] * 3
    complaints = re.findall(r".*\[(?:warn|error|crit|emerg)\].*", said["tested"] + said["errors"])
    assert not [line for line in complaints if KNOWN_WARNING not in line]


# --- what it says


@both
def test_the_file_stands_alone_and_works_on_every_nginx_from_1_22(conf: Path) -> None:
    words = {line.split()[0] for line in directives(conf)}
    assert not words & {"include", "load_module", "daemon", "http2", "resolver"}
    assert not words & {"rewrite"}, "trap 14: with captures it has been an overflow twice"
    hosts = {line.split()[1].rstrip(";") for line in directives(conf) if line.startswith("server ") and "{" not in line}
    assert hosts == {"127.0.0.1:8000", "127.0.0.1:8001"}, (
        "trap 13: with a name that does not resolve nginx does not start"
    )
    assert sum(line.startswith("listen 443 ssl http2") for line in directives(conf)) == 1


@both
def test_every_page_of_an_error_is_openais_error_object(conf: Path) -> None:
    bodies = [line.partition("'")[2].rstrip("';") for line in directives(conf) if '"error":' in line]
    assert len(bodies) >= 13
    for body in bodies:
        error = json.loads(body.replace("\\'", "'"))["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["message"].endswith(".")
        assert error["param"] is None
    pages = " ".join(re.findall(r"error_page (.*) /_error;", "\n".join(directives(conf))))
    known = "\n".join(directives(conf))
    for status in {int(status) for status in re.findall(r"\b[45]\d\d\b", pages)} - {494, 497, 500}:
        assert re.search(rf"^{status} ", known, re.MULTILINE), f"there is no page for {status}"


@both
def test_limits_agree_with_the_servers_own(conf: Path) -> None:
    config = ServerConfig()
    said = directives(conf)
    assert f"client_max_body_size {config.max_body_bytes // 1024 // 1024}m;" in said
    assert f"client_body_timeout {config.body_timeout:.0f}s;" in said
    assert f"client_header_timeout {config.header_timeout:.0f}s;" in said
    assert f"send_timeout {config.write_timeout:.0f}s;" in said
    assert "large_client_header_buffers 4 16k;" in said
    assert config.max_header_bytes >= 4 * 16 * 1024
    assert "proxy_read_timeout 1h;" in said
    assert (config.heartbeat_interval or 0) * 10 < 3600
    assert (config.run_timeout or 0) < 3600


def test_the_small_file_says_nothing_else_than_the_large_one() -> None:
    """What both do, both do with the same words."""
    own = set(directives(APP_AUTH_CONF)) - set(directives(CONF))
    assert own == {
        '\'"upstream":"$upstream_addr",\'',
        "proxy_next_upstream error timeout;",
        'proxy_set_header X-Auth-Issuer "";',
        'proxy_set_header X-Auth-Scopes "";',
        'proxy_set_header X-Auth-Subject "";',
        "error_page 400 403 404 405 413 414 429 500 501 502 504 505 /_error;",
        next(line for line in directives(APP_AUTH_CONF) if line.startswith("400 ")),
        next(line for line in directives(APP_AUTH_CONF) if line.startswith("403 ")),
        "429 1;",
        "proxy_pass http://agents;",
        "location = /health { access_log off; proxy_pass http://agents/health; }",
        "location = /livez { access_log off; proxy_pass http://agents/livez; }",
        "location = /readyz { access_log off; proxy_pass http://agents/readyz; }",
    } - set(directives(CONF))


# --- how the tests use it


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("user www-data;", "user nobody;"),
        ("pid /run/nginx.pid;", ""),
        ("access_log /var/log/nginx/access.log json;", "access_log /var/log/nginx/other.log json;"),
        ("error_log /var/log/nginx/error.log crit;", ""),
        ("ssl_certificate /etc/nginx/tls/", "ssl_certificate /etc/ssl/"),
        ("        server 127.0.0.1:8001;", "        server unix:/run/app;"),
        ("listen [::]:443 ", "listen [::]:8443 "),
        ("listen 80 ", "listen 0.0.0.0:80 "),
        ("worker_processes auto;", "worker_processes auto; lock_file /var/lock/nginx.lock;"),
    ],
)
def test_a_file_that_has_changed_is_not_tested_by_mistake(old: str, new: str) -> None:
    listen: dict[str, int] = dict.fromkeys(("80", "[::]:80", "443", "[::]:443"), 1)
    text = CONF.read_text("utf-8")
    folder = Path("/folder")
    assert "127.0.0.1:2000" in placed(text, folder, folder, listen, (2000, 3000))
    with pytest.raises(AssertionError):
        placed(edited(text, {old: new}), folder, folder, listen, (2000, 3000))
    with pytest.raises(AssertionError, match="stands 0 times"):
        edited(text, {"no such directive;": ""})


# --- the certificate


def self_signed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SELF_SIGNED, *arguments], check=False, capture_output=True, text=True)


@needs_nginx
def test_the_certificate_is_for_the_names_that_were_given_and_its_key_for_its_owner(tmp_path: Path) -> None:
    made = self_signed(tmp_path / "new" / "tls", "agents.example", "*.agents.example", "192.0.2.1", "2001:db8::1")
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "new" / "tls"
    key, certificate = folder / "privkey.pem", folder / "fullchain.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(certificate.stat().st_mode) == 0o644
    context = ssl.create_default_context(cafile=str(certificate))
    assert context.get_ca_certs() == [], "it is no authority"
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", certificate],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "DNS:agents.example, DNS:*.agents.example, IP Address:192.0.2.1, IP Address:2001:DB8:0:0:0:0:0:1" in shown


@needs_nginx
def test_no_certificate_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "privkey.pem").write_text("precious", "utf-8")
    made = self_signed(tmp_path)
    assert made.returncode == 1
    assert "is there already" in made.stderr
    assert (tmp_path / "privkey.pem").read_text("utf-8") == "precious"
    assert not (tmp_path / "fullchain.pem").exists()


@pytest.mark.parametrize("names", [(), ("a b",), ("x\nDNS:evil",), ("a/CN=b",), ("",), ("a,DNS:b",)])
def test_what_is_no_name_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    made = self_signed(*([] if not names else [tmp_path]), *names)
    assert made.returncode == 2
    assert list(tmp_path.iterdir()) == []
