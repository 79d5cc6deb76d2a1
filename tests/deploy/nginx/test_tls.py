"""What a client is offered before it says a word."""

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.deploy.nginx.behind import Echo, both
from tests.support.clock import within
from tests.support.nginx import InFront, Nginx, needs_nginx
from tests.support.serve import serve

pytestmark = needs_nginx


def context(front: Nginx, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(front.certificate))
    if version is not None:
        made.set_ciphers("ALL:@SECLEVEL=0")  # everything that OpenSSL still knows
        made.minimum_version = made.maximum_version = version
    made.set_alpn_protocols(["h2", "http/1.1"])
    return made


async def handshake(front: Nginx, offered: ssl.SSLContext) -> ssl.SSLObject:
    """Return what was agreed on, as it is after one answer."""
    offered.set_alpn_protocols(["http/1.1"])
    reader, writer = await within(
        asyncio.open_connection("127.0.0.1", front.port, ssl=offered, server_hostname="localhost")
    )
    agreed: ssl.SSLObject = writer.get_extra_info("ssl_object")
    writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b" 200 OK\r\n" in await within(reader.read())
    writer.close()
    return agreed


@both
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_old_versions_and_weak_ciphers_are_not_spoken(conf: Path, in_front: InFront) -> None:
    async with serve(Echo()) as served, in_front(served.port, conf=conf) as front:
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version|no protocols"):
                await handshake(front, context(front, version))
        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            assert (await handshake(front, context(front, version))).version() == name
        weak = context(front, ssl.TLSVersion.TLSv1_2)
        weak.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES128-CCM:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure"):
            await handshake(front, weak)


@both
async def test_a_session_is_kept_here_and_not_in_a_ticket(conf: Path, in_front: InFront) -> None:
    async with serve(Echo()) as served, in_front(served.port, conf=conf) as front:
        agreed = await handshake(front, context(front, ssl.TLSVersion.TLSv1_2))
        assert agreed.session is not None
        assert not agreed.session.has_ticket


@both
async def test_http_2_is_offered_first(conf: Path, in_front: InFront) -> None:
    async with serve(Echo()) as served, in_front(served.port, conf=conf) as front:
        _, writer = await within(
            asyncio.open_connection("127.0.0.1", front.port, ssl=context(front), server_hostname="localhost")
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        writer.transport.abort()
