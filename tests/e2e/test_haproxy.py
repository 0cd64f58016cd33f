"""The PROXY protocol as HAProxy itself speaks it: version 1, version 2, its health checks, and behind a TLS port that is ours or its own."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trustme

from broker import Broker, Config, open_broker
from broker.net.listener import Listener
from broker.reasons import ReasonCode
from tests.conftest import find_program
from tests.net.mqtt import Client

CLIENT = "127.0.0.5"
"""The client's own address, which HAProxy, at 127.0.0.1, is to tell."""


@contextmanager
def haproxy(folder: Path, hub: Broker, options: str, bind_options: str = "") -> Iterator[int]:
    """In front of a broker; the port to connect to."""
    program = find_program("haproxy", "haproxy")
    config = folder / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0)) as listening:  # taken before it starts, so there is no port to lose and nothing to wait for
        config.write_text(
            "global\n    maxconn 50\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n"
            f"listen mqtt\n    bind fd@{listening.fileno()}{bind_options}\n    server broker 127.0.0.1:{urlsplit(hub.urls[0]).port} {options}\n"
        )
        arguments = [program, "-db", "-q", "-f", str(config)]
        with subprocess.Popen(arguments, pass_fds=[listening.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                yield listening.getsockname()[1]
            finally:
                process.kill()


def config_of(**fields: object) -> Config:
    listener = Listener(port=0, proxy_protocol_from=("127.0.0.1",), **fields)  # type: ignore[arg-type]  # what the test says
    return Config(listeners=(listener,), allow_anonymous=True, sys_interval_s=0)


async def come_in(stream: trio.abc.Stream, hub: Broker) -> str | None:
    """Connect, and whom the broker then takes us to be."""
    assert (await Client(stream).connect("c1")).reason == ReasonCode.SUCCESS
    (found,) = hub.clients()
    await stream.aclose()
    return found.peer


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
async def test_the_clients_address(options: str, tmp_path: Path) -> None:
    async with open_broker(config_of()) as hub:
        with haproxy(tmp_path, hub, options) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=CLIENT)
            local = stream.socket.getsockname()
            assert await come_in(stream, hub) == f"{CLIENT}:{local[1]}"


async def test_tls_that_haproxy_passes_on(tmp_path: Path) -> None:
    ca = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("127.0.0.1").configure_cert(ours)
    ca.configure_trust(theirs)
    async with open_broker(config_of(tls=ours)) as hub:
        with haproxy(tmp_path, hub, "send-proxy-v2") as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=CLIENT)
            peer = await come_in(trio.SSLStream(stream, theirs, server_hostname="127.0.0.1", https_compatible=True), hub)
            assert str(peer).startswith(f"{CLIENT}:")


async def test_tls_that_haproxy_ends_and_tells_of(tmp_path: Path) -> None:
    """`send-proxy-v2-ssl-cn` puts what it knows of TLS behind the addresses, which is skipped."""
    ca = trustme.CA()
    theirs = ssl.create_default_context()
    ca.configure_trust(theirs)
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    async with open_broker(config_of()) as hub:
        with haproxy(tmp_path, hub, "send-proxy-v2-ssl-cn", f" ssl crt {tmp_path / 'server.pem'}") as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=CLIENT)
            peer = await come_in(trio.SSLStream(stream, theirs, server_hostname="127.0.0.1", https_compatible=True), hub)
            assert str(peer).startswith(f"{CLIENT}:")


class Checks(logging.Handler):
    """`several` is set when the log has told of some connections that came and went."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.several = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "no CONNECT from 127.0.0.1:" in record.getMessage()
        if self.count == 3:
            self.several.set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        logger = logging.getLogger("broker.clients")
        level = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)


@pytest.mark.parametrize("options", ["send-proxy check inter 50ms fall 1", "send-proxy-v2 check inter 50ms fall 1"])
async def test_health_checks_find_it_well(options: str, tmp_path: Path) -> None:
    """They send a header, LOCAL in version 2, and leave; a server that fails one would be out, and nobody would come in."""
    checks = Checks()
    async with open_broker(config_of()) as hub:
        with haproxy(tmp_path, hub, options) as port, checks.watched():
            await checks.several.wait()
            assert str(await come_in(await trio.open_tcp_stream("127.0.0.1", port, local_address=CLIENT), hub)).startswith(f"{CLIENT}:")
