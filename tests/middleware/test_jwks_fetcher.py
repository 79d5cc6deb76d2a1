"""One fetch from a provider that may do anything: what is taken, what is refused, and where the connection goes."""

import asyncio
import gzip
import json
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrun_middleware.jwks_fetcher import Document, FetchError, JWKSFetcher
from tests.support.clock import eventually, within
from tests.support.jwks_server import (
    Answer,
    Authority,
    JWKSServer,
    gzip_bomb,
    hangs,
    key_pair,
    publishes,
    raw,
    redirects,
    resets,
    says,
    trickles,
)
from tests.support.serve import owned

LIMIT = 256 * 1024
SOON = 0.3
"""Seconds that a fetch may take in tests where it never gets what it wants."""


def fetcher(provider: JWKSServer, **options: Any) -> JWKSFetcher:
    return JWKSFetcher(provider.url, **{"allow_private": True, **options})


def fetcher_of(*addresses: str) -> JWKSFetcher:
    """Return a fetcher whose host has `addresses`, private ones among them."""
    return JWKSFetcher("https://issuer.example", allow_private=True, resolve=Resolver(addresses), timeout=SOON)


class Resolver:
    """A name server: each call takes the next answer, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class TestURL:
    @pytest.mark.parametrize(
        "url",
        [
            "https://issuer.example/keys",
            "https://issuer.example",
            "https://issuer.example:8443/keys?tenant=1&x=%2F",
            "HTTPS://Issuer.Example/keys",
            "https://under_score.issuer.example/keys",
            "https://xn--bcher-kva.example/keys",
            "https://8.8.8.8/keys",
            "https://[2606:4700:4700::1111]:443/keys",
        ],
    )
    def test_https_to_a_public_host_is_taken(self, url: str) -> None:
        JWKSFetcher(url)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    @pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "127.8.9.10:1", "[::1]:8080"])
    def test_the_loopback_is_taken_from_a_url_that_says_so(self, scheme: str, host: str) -> None:
        JWKSFetcher(f"{scheme}://{host}/keys")

    @pytest.mark.parametrize(
        "url",
        [
            "https://10.0.0.1/keys",
            "https://169.254.169.254/keys",
            "https://[fd00::1]/keys",
            "https://[::ffff:10.0.0.1]/keys",
        ],
    )
    def test_what_says_itself_that_it_is_not_public_must_be_allowed(self, url: str) -> None:
        with pytest.raises(ValueError, match="must be allowed"):
            JWKSFetcher(url)
        JWKSFetcher(url, allow_private=True)

    @pytest.mark.parametrize("allow_private", [False, True])
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("http://issuer.example/keys", "https"),
            ("http://8.8.8.8/keys", "https"),
            ("http://10.0.0.1/keys", "https"),
            ("http://127.1/keys", "https"),
            ("http://localhost.issuer.example/keys", "https"),
            ("http://[::ffff:127.0.0.1]/keys", "https"),
            ("ftp://issuer.example/keys", "https"),
            ("file:///etc/passwd", "host"),
            ("//issuer.example/keys", "https"),
            ("issuer.example/keys", "host"),
            ("", "printable"),
            ("https://", "host"),
            ("https:///keys", "host"),
            ("https://user@issuer.example/keys", "user name"),
            ("https://user:secret@issuer.example/keys", "user name"),
            ("https://@issuer.example/keys", "user name"),
            ("https://issuer.example/keys#part", "fragment"),
            ("https://issuer.example/keys#", "fragment"),
            ("https://issuer.example:0/keys", "port"),
            ("https://issuer.example:/keys", "port"),
            ("https://issuer.example:65536/keys", "no URL"),
            ("https://issuer.example:x/keys", "no URL"),
            ("https://issuer.example:0443/keys", "port"),
            ("https://[::1/keys", "no URL"),
            ("https://[fe80::1%25eth0]/keys", "host"),
            ("https://issuer..example/keys", "host"),
            ("https://issuer.example./keys", "host"),
            (f"https://{'a' * 64}.example/keys", "host"),
            (f"https://{'a.' * 130}example/keys", "host"),
            ("https://issuer.example\\@evil.example/keys", "backslash"),
            ("https://issuer.example /keys", "printable"),
            ("https://issuer.example/ke\tys", "printable"),
            ("https://issuer.example/keys\n", "printable"),
            ("https://bücher.example/keys", "printable"),
            ("https://issuer.ex%61mple/keys", "host"),
        ],
    )
    def test_any_other_url_is_refused_and_not_repeated(self, url: str, said: str, allow_private: bool) -> None:
        with pytest.raises(ValueError, match=said) as caught:
            JWKSFetcher(url, allow_private=allow_private)
        assert "secret" not in str(caught.value)
        assert "issuer" not in str(caught.value)

    def test_the_log_names_it_without_its_query(self) -> None:
        assert JWKSFetcher("https://issuer.example:8443/keys?code=secret").name == "https://issuer.example:8443/keys"
        assert JWKSFetcher("https://issuer.example:443").name == "https://issuer.example/"


class TestRequest:
    async def test_a_fetch_is_one_plain_request(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            found = await fetcher(provider)()
        assert found == Document(provider.document, None)
        (head,) = provider.heads
        lines = head.split("\r\n")
        assert lines[0] == "GET /keys HTTP/1.1"
        names = sorted(line.partition(":")[0].lower() for line in lines[1:] if line)
        assert names == ["accept", "accept-encoding", "connection", "host", "user-agent"]
        assert "accept-encoding: identity" in lines
        assert f"host: 127.0.0.1:{provider.port}" in lines

    async def test_path_and_query_go_as_they_were_given(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            url = f"http://127.0.0.1:{provider.port}/a%2Fb/c;v=1?x=%7E&y=1+2"
            await JWKSFetcher(url, allow_private=True)()
        assert provider.heads[0].startswith("GET /a%2Fb/c;v=1?x=%7E&y=1+2 HTTP/1.1\r\n")

    async def test_no_cookie_is_sent_back(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            provider.answer = publishes(("set-cookie", "session=1"))
            fetch = fetcher(provider)
            await fetch()
            await fetch()
        assert provider.fetches == 2
        assert "cookie" not in provider.heads[1].lower()

    async def test_no_proxy_of_the_environment_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with JWKSServer(key_pair()) as provider, JWKSServer() as proxy:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            await fetcher(provider)()
        assert (provider.fetches, proxy.fetches) == (1, 0)

    async def test_nothing_is_left_of_a_fetch(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            fetch = fetcher(provider)
            await fetch()  # loads what is loaded once
            before = owned()
            await fetch()
            provider.answer = hangs()
            with pytest.raises(FetchError):
                await within(JWKSFetcher(provider.url, allow_private=True, timeout=0.05)())
            await eventually(lambda: not provider.connections)
            left = {kind: owned()[kind] - before[kind] for kind in ("tasks", "files")}
            assert not any(left.values()), left


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (says(b"", 204), "status 204"),
            (says(b"{}", 201), "status 201"),
            (says(b"{}", 203), "status 203"),
            (says(b"{}", 304), "status 304"),
            (says(b"{}", 401), "status 401"),
            (says(b"{}", 404), "status 404"),
            (says(b"{}", 429), "status 429"),
            (says(b"{}", 500), "status 500"),
            (says(b"{}", 503), "status 503"),
            (says(b" " * (300 * 1024)), "more than 262144 bytes"),
            (says(b" " * (LIMIT + 1)), "more than 262144 bytes"),
            (gzip_bomb(50 * 1024 * 1024), "compressed"),
            (says(gzip.compress(b"{}"), headers=(("content-encoding", "br"),)), "compressed"),
            (says(b"{}", headers=(("content-encoding", "identity, gzip"),)), "compressed"),
            (says(b"{}", headers=(("content-length", "10"),)), "RemoteProtocolError"),
            (says(b"{}", headers=(("content-length", "x"),)), "RemoteProtocolError"),
            (says(b"{}", headers=(("content-length", "2"), ("content-length", "3"))), "RemoteProtocolError"),
            (raw(b""), "RemoteProtocolError"),
            (raw(b"SSH-2.0-OpenSSH\r\n"), "RemoteProtocolError"),
            (raw(b"HTTP/1.1 200 OK\r\ncontent-le"), "Error"),
            (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), "RemoteProtocolError"),
            (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"), "RemoteProtocolError"),
            (
                raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
                "RemoteProtocolError",
            ),
            (raw(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000), "RemoteProtocolError"),
            (resets(b""), "Error"),
            (resets(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), "Error"),
        ],
    )
    async def test_an_answer_that_is_not_whole_and_plain_is_none(self, answer: Answer, reason: str) -> None:
        async with JWKSServer() as provider:
            provider.answer = answer
            with pytest.raises(FetchError, match=reason):
                await within(fetcher(provider)())
            await eventually(lambda: not provider.connections)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_is_not_followed(self, status: int) -> None:
        async with JWKSServer() as provider, JWKSServer(key_pair()) as elsewhere:
            provider.answer = redirects(status, elsewhere.url)
            with pytest.raises(FetchError, match=f"status {status}"):
                await fetcher(provider)()
        assert elsewhere.fetches == 0

    @pytest.mark.parametrize(
        "answer",
        [
            hangs(),
            hangs(b"HTTP/1.1 200 OK\r\n"),
            hangs(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{"),
            hangs(b"HTTP/1.1 100 Continue\r\n\r\n"),
            trickles(),
        ],
        ids=["before the head", "in the head", "in the body", "after 100", "trickling"],
    )
    async def test_a_provider_that_never_ends_is_left(self, answer: Answer) -> None:
        async with JWKSServer() as provider:
            provider.answer = answer
            with pytest.raises(FetchError, match=r"within 0\.3 s"):
                await within(fetcher(provider, timeout=SOON)())
            await eventually(lambda: not provider.connections)

    async def test_the_limit_is_5_seconds(self) -> None:
        assert JWKSFetcher("https://issuer.example")._timeout == 5

    async def test_as_much_as_is_allowed_is_taken(self) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b"x" * LIMIT)
            assert len((await fetcher(provider)()).body) == LIMIT

    async def test_more_than_was_announced_is_not_read(self) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b'{"keys": []} and more', headers=(("content-length", "12"),))
            assert (await fetcher(provider)()).body == b'{"keys": []}'

    async def test_chunks_are_put_together(self) -> None:
        async with JWKSServer() as provider:
            provider.answer = raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")
            assert (await fetcher(provider)()).body == b"{}"

    @pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", "application/jwk-set+json", "nonsense"])
    async def test_the_content_type_does_not_matter(self, kind: str) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b"{}", headers=(("content-type", kind), ("content-encoding", "Identity")))
            assert (await fetcher(provider)()).body == b"{}"

    async def test_nobody_there_is_a_failure(self) -> None:
        async with JWKSServer() as provider:
            fetch = fetcher(provider)
        with pytest.raises(FetchError, match="ConnectError"):
            await fetch()

    async def test_a_fetch_that_is_cancelled_ends(self) -> None:
        async with JWKSServer() as provider:
            provider.answer = hangs()
            fetching = asyncio.ensure_future(fetcher(provider)())
            await provider.fetched(1)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(fetching)
            await eventually(lambda: not provider.connections)


class TestFreshness:
    @pytest.mark.parametrize(
        ("headers", "max_age"),
        [
            ([], None),
            ([("cache-control", "max-age=900")], 900),
            ([("cache-control", "public, max-age=900, must-revalidate")], 900),
            ([("cache-control", "public,Max-Age=900")], 900),
            ([("cache-control", 'max-age="900"')], 900),
            ([("cache-control", "public"), ("cache-control", "max-age=900")], 900),
            ([("cache-control", "max-age=0")], 0),
            ([("cache-control", "max-age=9999999999")], 9999999999),
            ([("cache-control", "s-maxage=900")], None),
            ([("cache-control", "x-max-age=900")], None),
            ([("cache-control", "no-store")], None),
            ([("cache-control", "max-age=-1")], None),
            ([("cache-control", "max-age=x")], None),
            ([("cache-control", "max-age=1" + "0" * 400)], None),
            ([("cache-control", "max-age=900"), ("age", "600")], 300),
            ([("cache-control", "max-age=900"), ("age", "1000")], 0),
            ([("cache-control", "max-age=900"), ("age", "x")], 900),
            ([("cache-control", "max-age=900"), ("age", "-5")], 900),
        ],
    )
    async def test_it_is_what_is_left_of_max_age(self, headers: list[tuple[str, str]], max_age: float | None) -> None:
        async with JWKSServer(key_pair()) as provider:
            provider.answer = publishes(*headers)
            assert (await fetcher(provider)()).max_age == max_age


class TestAddresses:
    """The name is asked once, every address is looked at, and the connection goes to one of these."""

    @pytest.mark.parametrize(
        "addresses",
        [
            ["127.0.0.1"],
            ["10.1.2.3"],
            ["169.254.169.254"],
            ["::1"],
            ["fe80::1%1"],
            ["::ffff:127.0.0.1"],
            ["64:ff9b::7f00:1"],
            ["8.8.8.8", "127.0.0.1"],
            ["127.0.0.1", "8.8.8.8"],
            ["2606:4700:4700::1111", "10.0.0.1"],
        ],
    )
    async def test_one_private_address_refuses_the_host(self, addresses: list[str]) -> None:
        async with JWKSServer() as provider:
            url = f"https://issuer.example:{provider.port}/keys"
            with pytest.raises(FetchError, match="not public"):
                await JWKSFetcher(url, resolve=Resolver(addresses))()
        assert provider.fetches == 0

    async def test_the_system_is_asked_when_nobody_else_is(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            fetch = JWKSFetcher(f"http://localhost:{provider.port}/keys", allow_private=True)
            assert (await fetch()).body == provider.document
            assert f"host: localhost:{provider.port}\r\n" in provider.heads[0]

    async def test_a_name_that_does_not_exist_is_a_failure(self) -> None:
        async def resolve(host: str, port: int) -> Sequence[str]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        with pytest.raises(FetchError, match="Name or service not known"):
            await JWKSFetcher("https://issuer.example", resolve=resolve)()

    async def test_a_name_without_addresses_is_a_failure(self) -> None:
        with pytest.raises(FetchError, match="no address"):
            await JWKSFetcher("https://issuer.example", resolve=Resolver([]))()

    async def test_a_resolver_that_hangs_is_left(self) -> None:
        async def resolve(host: str, port: int) -> Sequence[str]:
            await asyncio.Event().wait()
            raise NotImplementedError

        with pytest.raises(FetchError, match=r"within 0\.05 s"):
            await within(JWKSFetcher("https://issuer.example", resolve=resolve, timeout=0.05)())

    async def test_an_address_of_one_interface_is_a_failure(self) -> None:
        with pytest.raises(FetchError, match="Error"):
            await within(fetcher_of("fe80::1%lo")())

    @pytest.mark.parametrize("scheme", ["http", "https"])
    @pytest.mark.parametrize("allow_private", [False, True])
    async def test_localhost_is_the_loopback_and_nothing_else(self, scheme: str, allow_private: bool) -> None:
        """Whatever the machine believes it to be."""
        for addresses in (["8.8.8.8"], ["127.0.0.1", "10.0.0.1"], ["::ffff:8.8.8.8"]):
            fetch = JWKSFetcher(f"{scheme}://localhost/", allow_private=allow_private, resolve=Resolver(addresses))
            with pytest.raises(FetchError, match="not on the loopback"):
                await fetch()

    async def test_a_name_that_leads_to_the_loopback_is_refused(self) -> None:
        with pytest.raises(FetchError, match="not public"):
            await JWKSFetcher("https://issuer.example/", resolve=Resolver(["127.0.0.1"]))()

    async def test_the_connection_goes_to_the_address_that_was_looked_at(self) -> None:
        """The name would lead elsewhere at a second question (DNS rebinding); it is not asked one."""
        async with JWKSServer(key_pair()) as provider:
            resolver = Resolver(["127.0.0.1"], ["192.0.2.1"])
            url = f"http://localhost:{provider.port}/keys"
            assert (await JWKSFetcher(url, allow_private=True, resolve=resolver)()).body == provider.document
        assert resolver.asked == [("localhost", provider.port)]
        assert f"host: localhost:{provider.port}\r\n" in provider.heads[0]

    async def test_an_address_needs_no_resolver(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            resolver = Resolver([])
            await fetcher(provider, resolve=resolver)()
        assert not resolver.asked

    async def test_where_one_address_is_dead_the_next_is_tried(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            url = f"http://localhost:{provider.port}/keys"
            resolver = Resolver(["127.0.0.2", "127.0.0.3", "127.0.0.1"])  # nobody listens at the first two
            assert (await JWKSFetcher(url, allow_private=True, resolve=resolver)()).body == provider.document

    async def test_three_addresses_are_tried_and_no_more(self) -> None:
        async with JWKSServer(key_pair()) as provider:
            url = f"http://localhost:{provider.port}/keys"
            resolver = Resolver(["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"])
            with pytest.raises(FetchError, match="ConnectError"):
                await JWKSFetcher(url, allow_private=True, resolve=resolver)()

    async def test_the_second_attempt_is_of_the_other_kind(self) -> None:
        """Machines with IPv6 in their settings and none in their network are common."""
        async with JWKSServer(key_pair()) as provider:
            url = f"http://localhost:{provider.port}/keys"
            resolver = Resolver(["::1", "::1", "::1", "127.0.0.1"])
            assert (await JWKSFetcher(url, allow_private=True, resolve=resolver)()).body == provider.document

    async def test_an_answer_however_bad_is_not_asked_for_elsewhere(self) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b"", 500)
            url = f"http://localhost:{provider.port}/keys"
            with pytest.raises(FetchError, match="status 500"):
                await JWKSFetcher(url, allow_private=True, resolve=Resolver(["127.0.0.1", "127.0.0.1"]))()
        assert provider.fetches == 1


class TestTLS:
    """The certificate must be that of the name, though the connection is made by address."""

    async def ask(self, folder: Path, *names: str, host: str = "issuer.test", trusted: bool = True) -> JWKSServer:
        authority = Authority()
        ca_file = (authority if trusted else Authority("Another authority")).write(folder)
        async with JWKSServer(key_pair(), tls=authority.server_context(*names)) as provider:
            fetch = JWKSFetcher(
                f"https://{host}:{provider.port}/keys",
                allow_private=True,
                ca_file=ca_file,
                resolve=Resolver(["127.0.0.1"]),
            )
            assert (await within(fetch())).body == provider.document
        return provider

    async def test_the_right_name_is_accepted(self, tmp_path: Path) -> None:
        provider = await self.ask(tmp_path, "issuer.test")
        assert provider.server_names == ["issuer.test"]
        assert f"host: issuer.test:{provider.port}\r\n" in provider.heads[0]

    @pytest.mark.parametrize("names", [["other.test"], ["127.0.0.1"], ["sub.issuer.test"], ["*.issuer.test"]])
    async def test_a_wrong_name_is_refused(self, names: list[str], tmp_path: Path) -> None:
        with pytest.raises(FetchError, match=r"certificate is not valid for 'issuer\.test'"):
            await self.ask(tmp_path, *names)

    async def test_an_authority_that_is_not_trusted_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            await self.ask(tmp_path, "issuer.test", trusted=False)

    async def test_the_authorities_of_the_machine_do_not_know_this_one(self) -> None:
        async with JWKSServer(tls=Authority().server_context("127.0.0.1")) as provider:
            with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
                await within(fetcher(provider)())
        assert provider.fetches == 0

    async def test_an_address_in_the_url_is_checked_as_an_address(self, tmp_path: Path) -> None:
        await self.ask(tmp_path, "127.0.0.1", host="127.0.0.1")
        with pytest.raises(FetchError, match="IP address mismatch"):
            await self.ask(tmp_path, "issuer.test", host="127.0.0.1")

    @pytest.mark.parametrize("ends", ["by its limit", "because it is cancelled"])
    async def test_nothing_is_left_of_a_handshake_that_hangs(self, ends: str, tmp_path: Path) -> None:
        """The provider waits for a request line and never answers the first bytes of TLS."""
        async with JWKSServer(key_pair()) as provider:
            url = f"https://127.0.0.1:{provider.port}/keys"
            limit = SOON if ends == "by its limit" else 5
            fetch = JWKSFetcher(url, allow_private=True, ca_file=Authority().write(tmp_path), timeout=limit)
            await asyncio.to_thread(lambda: None)
            before = owned()
            fetching = asyncio.ensure_future(fetch())
            await eventually(lambda: provider.connections == 1)
            if ends == "because it is cancelled":
                fetching.cancel()
            with pytest.raises((FetchError, asyncio.CancelledError)):
                await within(fetching)
            await eventually(lambda: not provider.connections)
            left = {kind: owned()[kind] - before[kind] for kind in ("tasks", "files")}
            assert not any(left.values()), left
        assert provider.fetches == 0

    async def test_old_versions_of_tls_are_refused(self, tmp_path: Path) -> None:
        authority = Authority()
        context = authority.server_context("127.0.0.1")
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        async with JWKSServer(tls=context) as provider:
            with pytest.raises(FetchError, match="ConnectError"):
                await fetcher(provider, ca_file=authority.write(tmp_path))()
        assert provider.fetches == 0

    def test_a_file_without_certificates_is_refused_at_the_start(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty.pem"
        empty.write_text("")
        for path in (empty, tmp_path / "none.pem", tmp_path):
            with pytest.raises(ValueError, match="ca_file: no certificates"):
                JWKSFetcher("https://issuer.example/keys", ca_file=os.fspath(path))


async def test_the_event_loop_runs_on_while_what_a_fetch_needs_is_imported() -> None:
    """A first fetch imports an HTTP library; that takes longer than a request may be held up."""
    code = """
import asyncio, json, sys, time
from agentrun_middleware.jwks_fetcher import FetchError, JWKSFetcher
assert "httpx2" not in sys.modules
async def main():
    fetching = asyncio.ensure_future(JWKSFetcher("http://127.0.0.1:1/", allow_private=True)())
    turns = 0
    while "httpx2" not in sys.modules or "httpcore2" not in sys.modules:
        await asyncio.sleep(0)
        turns += 1
    try:
        await fetching
    except FetchError:
        print(turns)
asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "middleware")])},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await within(process.communicate(), 20)
    assert json.loads(out) > 10
