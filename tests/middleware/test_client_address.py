import asyncio
import ipaddress
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from agentrun_middleware.asgi import Receive, Scope, Send
from agentrun_middleware.client_address import (
    MAX_ENTRIES,
    ClientAddressMiddleware,
    TrustedProxies,
    parse_address,
    parse_forwarded,
)
from tests.middleware.calls import Behind, call, http_scope, websocket_scope
from tests.support.clock import within
from tests.support.properties import EXAMPLES, any_text
from tests.support.serve import serve

# After `properties`: it says how often each property is tried.
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

PROXY = ("10.0.0.1", 4711)
PROXIES = ["10.0.0.0/8", "192.0.2.53", "fd00::/8"]
UNIX: dict[str, Any] = {"client": None, "server": ("/run/app.sock", None)}


async def seen(
    *lines: str, peer: tuple[str, int] | None = PROXY, proxies: Sequence[str] = PROXIES, protos: Iterable[str] = ()
) -> Scope:
    """Return the scope that the app sees, for lines of ``X-Forwarded-For``."""
    headers = [*(("x-forwarded-for", line) for line in lines), *(("x-forwarded-proto", proto) for proto in protos)]
    app = Behind()
    await call(ClientAddressMiddleware(app, trusted_proxies=proxies), http_scope(headers=headers, client=peer))
    return app.scope


class TestTheCaller:
    @pytest.mark.parametrize(
        ("lines", "client"),
        [
            (["203.0.113.9"], ("203.0.113.9", 0)),
            (["203.0.113.9:4711"], ("203.0.113.9", 4711)),
            (["2001:db8::9"], ("2001:db8::9", 0)),
            (["[2001:db8::9]"], ("2001:db8::9", 0)),
            (["[2001:DB8:0:0::9]:65535"], ("2001:db8::9", 65535)),
            (["::ffff:203.0.113.9"], ("203.0.113.9", 0)),
            (["[::ffff:cb00:7109]:80"], ("203.0.113.9", 80)),
            (["fe80::9%eth0"], ("fe80::9", 0)),
            ([" \t203.0.113.9\t "], ("203.0.113.9", 0)),
            # what stands to the left of the rightmost stranger may be made up
            (["1.1.1.1, 203.0.113.9"], ("203.0.113.9", 0)),
            (["10.0.0.9, 203.0.113.9"], ("203.0.113.9", 0)),
            # own proxies are passed over
            (["1.1.1.1, 203.0.113.9, 10.9.9.9, 192.0.2.53"], ("203.0.113.9", 0)),
            (["203.0.113.9,fd00::1"], ("203.0.113.9", 0)),
            (["203.0.113.9, [fd00::1]:80, ::ffff:10.1.1.1, 10.1.1.1:443"], ("203.0.113.9", 0)),
            # several lines are one list
            (["1.1.1.1, 203.0.113.9", "10.0.0.2"], ("203.0.113.9", 0)),
            (["1.1.1.1", "203.0.113.9"], ("203.0.113.9", 0)),
            # a caller within
            (["10.0.0.7"], ("10.0.0.7", 0)),
            (["10.0.0.7, 10.0.0.8"], ("10.0.0.7", 0)),
            # garbage ends it: the last good one to its right
            (["garbage, 10.0.0.8"], ("10.0.0.8", 0)),
            (["203.0.113.9, garbage, 10.0.0.7, 10.0.0.8"], ("10.0.0.7", 0)),
            (["203.0.113.9,, 10.0.0.8"], ("10.0.0.8", 0)),
            (["", "10.0.0.8"], ("10.0.0.8", 0)),
        ],
    )
    async def test_it_is_the_rightmost_that_is_no_own_proxy(self, lines: list[str], client: tuple[str, int]) -> None:
        assert (await seen(*lines))["client"] == client

    @pytest.mark.parametrize(
        "entry",
        [
            "", ",", "unknown", "_hidden", "localhost", "example.com", "203.0.113", "203.0.113.999", "203.0.113.09",
            "0xcb.0.113.9", "3405803785", "203.0.113.9/32", "203.0.113.9:", "203.0.113.9:port", "203.0.113.9:65536",
            "203.0.113.9:-1", "203.0.113.9:999999", "203.0.113.9%eth0", "[203.0.113.9]", "[203.0.113.9]:80", "[",
            "[]", "[2001:db8::9", "2001:db8::9]", "[2001:db8::9]80", "[2001:db8::9]:", "[[2001:db8::9]]",
            "2001:db8:::9", "2001:db8::9%", "2001:db8::99999", ":80", "::1::", '"203.0.113.9"', "for=203.0.113.9",
            "203.0.113.9 10.0.0.1", "203.0.113.9\x00", "203.0.113.9\n", "\xa0203.0.113.9",
            "\N{SUPERSCRIPT TWO}03.0.113.9", "<script>", "'; --", "1" * 100_000,
        ],
    )  # fmt: skip
    async def test_what_is_no_address_is_none(self, entry: str) -> None:
        assert parse_forwarded(entry) is None
        assert (await seen(f"203.0.113.9, {entry}"))["client"] == PROXY

    async def test_without_the_header_it_is_the_peer(self) -> None:
        assert (await seen())["client"] == PROXY

    async def test_no_more_entries_are_looked_at_than_there_can_be_proxies(self) -> None:
        within_reach = ["203.0.113.9", *["10.0.0.2"] * (MAX_ENTRIES - 1)]
        assert (await seen(", ".join(within_reach)))["client"] == ("203.0.113.9", 0)
        assert (await seen(", ".join([*within_reach, "10.0.0.3"])))["client"] == ("10.0.0.2", 0)
        assert (await seen("203.0.113.9", *["10.0.0.2"] * MAX_ENTRIES))["client"] == ("10.0.0.2", 0)

    async def test_other_headers_are_not_read(self) -> None:
        headers = [
            ("forwarded", "for=203.0.113.9;proto=https"),
            ("x-real-ip", "203.0.113.9"),
            ("x-client-ip", "203.0.113.9"),
            ("cf-connecting-ip", "203.0.113.9"),
        ]
        app = Behind()
        await call(ClientAddressMiddleware(app, trusted_proxies=PROXIES), http_scope(headers=headers, client=PROXY))
        assert app.scope["client"] == PROXY
        assert app.scope["scheme"] == "http"

    async def test_those_in_front_see_it_too(self) -> None:
        scope = http_scope(headers=[("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https")], client=PROXY)
        await call(ClientAddressMiddleware(Behind(), trusted_proxies=PROXIES), scope)
        assert (scope["client"], scope["scheme"]) == (("203.0.113.9", 0), "https")

    @given(entries=st.lists(st.one_of(any_text, st.ip_addresses().map(str), st.sampled_from(["10.0.0.1", ","]))))
    @settings(max_examples=EXAMPLES)
    def test_whatever_is_sent_the_client_is_an_address(self, entries: list[str]) -> None:
        scope = http_scope(client=PROXY)
        scope["headers"] = [(b"x-forwarded-for", ",".join(entries).encode(errors="replace"))]
        asyncio.run(call(ClientAddressMiddleware(Behind(), trusted_proxies=PROXIES), scope))
        host, port = scope["client"]
        assert str(ipaddress.ip_address(host)) == host, "in its one spelling"
        assert "%" not in host
        assert 0 <= port <= 65535


class TestTheScheme:
    @pytest.mark.parametrize(("proto", "scheme"), [("https", "https"), ("http", "http"), (" HTTPS ", "https")])
    async def test_it_is_what_the_proxy_says(self, proto: str, scheme: str) -> None:
        assert (await seen(protos=[proto]))["scheme"] == scheme

    async def test_it_may_also_be_less_than_that_of_the_proxys_own_connection(self) -> None:
        app = Behind()
        scope = http_scope(headers=[("x-forwarded-proto", "http")], client=PROXY, scheme="https")
        await call(ClientAddressMiddleware(app, trusted_proxies=PROXIES), scope)
        assert app.scope["scheme"] == "http"

    @pytest.mark.parametrize(
        "protos",
        [[""], ["ftp"], ["wss"], ["https,http"], ["https, https"], ["https", "https"], ["http", "https"], ["https\n"],
         ["https\x00"], ["javascript"], []],
    )  # fmt: skip
    async def test_anything_else_leaves_it_as_it_is(self, protos: list[str]) -> None:
        assert (await seen("203.0.113.9", protos=protos))["scheme"] == "http"

    @pytest.mark.parametrize(("proto", "scheme"), [("https", "wss"), ("http", "ws"), ("wss", "ws")])
    async def test_of_a_websocket_it_is_the_matching_one(self, proto: str, scheme: str) -> None:
        app = Behind()
        scope = websocket_scope(
            headers=[("x-forwarded-proto", proto), ("x-forwarded-for", "203.0.113.9")], client=PROXY
        )
        await call(ClientAddressMiddleware(app, trusted_proxies=PROXIES), scope)
        assert (app.scope["scheme"], app.scope["client"]) == (scheme, ("203.0.113.9", 0))


class TestThePeer:
    @pytest.mark.parametrize(
        "host", ["10.0.0.1", "10.255.255.255", "192.0.2.53", "::ffff:10.0.0.1", "fd00::1", "FD00:0::1", "fdff::1%eth0"]
    )
    async def test_a_trusted_one_is_believed(self, host: str) -> None:
        assert (await seen("203.0.113.9", peer=(host, 1)))["client"] == ("203.0.113.9", 0)

    @pytest.mark.parametrize(
        "host",
        ["11.0.0.1", "9.255.255.255", "192.0.2.54", "127.0.0.1", "::1", "::ffff:11.0.0.1", "::a00:1", "fe80::1",
         "2001:db8::1", "testclient", "localhost", "10.0.0.1.evil.example", "10.0.0.01", "unix", " 10.0.0.1"],
    )  # fmt: skip
    async def test_the_request_of_any_other_is_left_as_it_is(self, host: str) -> None:
        headers = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https")]
        scope = http_scope(headers=headers, client=(host, 1))
        before = dict(scope)
        await call(ClientAddressMiddleware(Behind(), trusted_proxies=PROXIES), scope)
        assert scope == before

    @pytest.mark.parametrize("where", [UNIX, {**UNIX, "client": ("", 0)}])
    async def test_a_unix_socket_is_trusted_if_it_is_asked_for(self, where: dict[str, Any]) -> None:
        scopes = []
        for trust, proxies in ((True, []), (False, PROXIES)):
            app = Behind()
            middleware = ClientAddressMiddleware(app, trusted_proxies=proxies, trust_unix_socket=trust)
            await call(middleware, http_scope(headers=[("x-forwarded-for", "203.0.113.9")], **where))
            scopes.append(app.scope)
        assert scopes[0]["client"] == ("203.0.113.9", 0)
        assert scopes[1]["client"] == where["client"]

    @pytest.mark.parametrize("server", [None, ("198.51.100.1", 80)])
    async def test_a_peer_without_an_address_is_not_taken_for_a_unix_socket(self, server: object) -> None:
        """Servers say None of a TCP peer that has left before they could ask for its address."""
        app = Behind()
        middleware = ClientAddressMiddleware(app, trusted_proxies=PROXIES, trust_unix_socket=True)
        await call(middleware, http_scope(headers=[("x-forwarded-for", "203.0.113.9")], client=None, server=server))
        assert app.scope["client"] is None

    async def test_a_tcp_peer_is_not_trusted_because_unix_sockets_are(self) -> None:
        app = Behind()
        middleware = ClientAddressMiddleware(app, trusted_proxies=[], trust_unix_socket=True)
        await call(middleware, http_scope(headers=[("x-forwarded-for", "203.0.113.9")], client=PROXY))
        assert app.scope["client"] == PROXY

    async def test_the_peer_stays_known_when_the_client_is_no_longer_it(self) -> None:
        """Who trusts fewer proxies than another middleware in front must still see through it."""
        judged = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            judged.extend([TrustedProxies([PROXY[0]]).sent(scope), TrustedProxies(["10.0.0.7"]).sent(scope)])

        outer = ClientAddressMiddleware(app, trusted_proxies=PROXIES)
        await call(outer, http_scope(headers=[("x-forwarded-for", "10.0.0.7")], client=PROXY))
        assert judged == [True, False]

    async def test_two_of_these_middlewares_do_as_one(self) -> None:
        app = Behind()
        inner = ClientAddressMiddleware(app, trusted_proxies=["203.0.113.9"])
        outer = ClientAddressMiddleware(inner, trusted_proxies=PROXIES)
        await call(outer, http_scope(headers=[("x-forwarded-for", "1.1.1.1, 203.0.113.9")], client=PROXY))
        assert app.scope["client"] == ("203.0.113.9", 0), "the inner one does not trust the peer"


class TestArguments:
    @pytest.mark.parametrize(
        ("proxies", "text"),
        [
            (["*"], "may not be '\\*': whoever reaches the server could then write any address"),
            (["10.0.0.0/8", "*"], "may not be"),
            (["0.0.0.0/0"], "every address there is"),
            (["::/0"], "every address there is"),
            (["::ffff:0:0/96"], "write it as IPv4"),
            (["::ffff:10.0.0.1"], "write it as IPv4"),
            (["10.0.0.1/8"], "host bits set"),
            (["proxy.example"], "does not appear to be"),
            ([""], "does not appear to be"),
            (["10.0.0.0/8 "], "does not appear to be"),
            (["10.0.0.0/8,192.0.2.1"], "does not appear to be"),
            ([], "is empty"),
            ("10.0.0.0/8", "not one string"),
        ],
    )
    def test_what_would_trust_everybody_or_nobody_is_refused(self, proxies: list[str], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            ClientAddressMiddleware(Behind(), trusted_proxies=proxies)

    def test_one_name_for_one_address(self) -> None:
        spellings = ["::ffff:192.0.2.1", "::FFFF:c000:201", "0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"]
        assert {str(parse_address(text)) for text in spellings} == {"192.0.2.1"}
        assert str(parse_address("fe80::1%a\r\nb")) == "fe80::1"


async def test_the_lifespan_passes() -> None:
    app = Behind()
    scope: Scope = {"type": "lifespan"}
    await call(ClientAddressMiddleware(app, trusted_proxies=PROXIES), scope)
    assert app.scope == {"type": "lifespan"}


class TestOnTheWire:
    async def test_through_a_real_server(self, http: str) -> None:
        app = Behind()
        middleware = ClientAddressMiddleware(app, trusted_proxies=["127.0.0.0/8"])
        async with serve(middleware, http=http, lifespan=False, proxy_headers=False) as served:
            headers = [
                ("X-Forwarded-For", "6.6.6.6, 2001:db8::9"),
                ("x-forwarded-for", "127.0.0.2"),
                ("X-Forwarded-Proto", "https"),
            ]
            await served.ask("GET", "/", headers=headers)
        assert (app.scope["client"], app.scope["scheme"]) == (("2001:db8::9", 0), "https")

    async def test_over_a_unix_socket(self) -> None:
        app = Behind()
        middleware = ClientAddressMiddleware(app, trusted_proxies=[], trust_unix_socket=True)
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
            path = Path(directory, "s")
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            async with serving(middleware, listener):
                reader, writer = await within(asyncio.open_unix_connection(str(path)))
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.9\r\nconnection: close\r\n\r\n")
                assert (await within(reader.read())).startswith(b"HTTP/1.1 200 ")
                writer.close()
                await within(writer.wait_closed())
        assert app.scope["client"] == ("203.0.113.9", 0)


class serving:
    """uvicorn on a listener that is there already."""

    def __init__(self, app: ClientAddressMiddleware, listener: socket.socket) -> None:
        options = {"log_config": None, "access_log": False, "ws": "none", "lifespan": "off", "proxy_headers": False}
        self._server = uvicorn.Server(uvicorn.Config(app, **options))  # type: ignore[arg-type]
        self._listener = listener

    async def __aenter__(self) -> None:
        self._server.config.load()
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await within(self._server.startup([self._listener]))

    async def __aexit__(self, *_: object) -> None:
        await within(self._server.shutdown([self._listener]))
