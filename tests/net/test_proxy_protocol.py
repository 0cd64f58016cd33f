"""The PROXY header: every form, every cut, all that is none; and at real sockets whom the broker then takes the peer to be."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from broker import Broker, Config, ConfigError, ConnectRequest, open_broker
from broker.auth.throttle import Throttle
from broker.net import websocket
from broker.net.listen import bind_all
from broker.net.listener import Listener
from broker.net.proxy_protocol import V1_BYTES_MAX, V2_BYTES_MAX, Header, ProxyFault, is_trusted, parse, receive, trust_fault
from broker.net.unix import AF_UNIX
from broker.reasons import ReasonCode
from tests.net.mqtt import Client
from tests.systems import unix_only

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FROM_4 = b"PROXY TCP4 192.0.2.7 192.0.2.1 50123 1883\r\n"
FROM_6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 50123 1883\r\n"


def v2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + bytes((0x20 | command, family)) + len(block).to_bytes(2, "big") + block


def v2_from(address: str, port: int, tlvs: bytes = b"") -> bytes:
    if ":" in address:
        return v2(1, 0x21, IPv6Address(address).packed + bytes(16) + port.to_bytes(2, "big") + b"\x07\x5b" + tlvs)
    return v2(1, 0x11, IPv4Address(address).packed + bytes(4) + port.to_bytes(2, "big") + b"\x07\x5b" + tlvs)


V2_FROM_UNIX = v2(1, 0x31, b"/run/client".ljust(108, b"\0") + b"/run/broker".ljust(108, b"\0"))

# ---- bytes -----------------------------------------------------------------------------------------------------------------

GOOD = [
    (FROM_4, "192.0.2.7:50123"),
    (FROM_6, "[2001:db8::7]:50123"),
    (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:7 ::1 0 65535\r\n", "[2001:db8::7]:0"),
    (b"PROXY TCP6 ::ffff:c000:207 ::ffff:c000:201 1 2\r\n", "192.0.2.7:1"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN what ever stands here\r\n", None),
    (b"PROXY UNKNOWN ".ljust(V1_BYTES_MAX - 2, b"f") + b"\r\n", None),
    (v2_from("192.0.2.7", 50123), "192.0.2.7:50123"),
    (v2_from("2001:db8::7", 50123), "[2001:db8::7]:50123"),
    (v2_from("::ffff:192.0.2.7", 1), "192.0.2.7:1"),
    (v2_from("192.0.2.7", 1, b"\x02\x00\x07example\x04\x00\x00"), "192.0.2.7:1"),
    (V2_FROM_UNIX, "unix"),
    (v2(0, 0x00, b""), None),
    (v2(0, 0x11, b"what ever"), None),
    (v2(0, 0xFF, b""), None),  # of LOCAL the family is ignored
    (v2(1, 0x00, b""), None),
    (v2(1, 0x00, bytes(V2_BYTES_MAX - 16)), None),
    (v2(1, 0x12, bytes(12)), None),  # UDP
    (v2(1, 0x20, bytes(36)), None),
    (v2(1, 0x32, bytes(216)), None),
]


@pytest.mark.parametrize(("data", "peer"), GOOD)
def test_every_form_cut_anywhere(data: bytes, peer: str | None) -> None:
    assert parse(data) == Header(len(data), peer)
    assert parse(data + b"\x10\x0c\x00\x04MQTT") == Header(len(data), peer)
    assert [parse(data[:size]) for size in range(len(data))] == [None] * len(data)


BAD = [
    b"\x10\x0c\x00\x04MQTT",
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"PROXX",
    b"proxy TCP4",
    b"PROXY  TCP4 192.0.2.7 192.0.2.1 50123 1883\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50123\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50123 1883 \r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50123 1883\n\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 50123 1883\r\n",
    b"PROXY TCP6 192.0.2.7 192.0.2.1 50123 1883\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 50123 1883\r\n",
    b"PROXY TCP4 192.0.2.07 192.0.2.1 50123 1883\r\n",
    b"PROXY TCP4 192.0.2 192.0.2.1 50123 1883\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.256 50123 1883\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 050123 1883\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 1883\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 1883\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 \xc2\xb2 1883\r\n",
    b"PROXY TCP4 \xff 192.0.2.1 1 1883\r\n",
    b"PROXY UDP4 192.0.2.7 192.0.2.1 50123 1883\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY TCP4 ".ljust(V1_BYTES_MAX, b"1"),
    SIGNATURE[:4] + b"X",
    SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),  # version 1
    v2(2, 0x11, bytes(12)),
    v2(1, 0x41, bytes(12)),
    v2(1, 0x13, bytes(12)),
    v2(1, 0x11, bytes(11)),
    v2(1, 0x21, bytes(35)),
    v2(1, 0x31, bytes(215)),
    v2(1, 0x11, bytes(V2_BYTES_MAX - 15))[:16],  # seen before it has come
]


@pytest.mark.parametrize("data", BAD)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ProxyFault):
        parse(data)


ports = st.integers(0, 65_535)
addresses = st.ip_addresses().filter(lambda one: getattr(one, "ipv4_mapped", None) is None)


@given(addresses, ports, st.binary(max_size=200), st.binary(max_size=50))
def test_round_trips(address: IPv4Address | IPv6Address, port: int, tlvs: bytes, rest: bytes) -> None:
    peer = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    for data in (
        f"PROXY TCP{address.version} {address} {address} {port} 1883\r\n".encode(),
        v2_from(str(address), port, tlvs),
    ):
        assert parse(data + rest) == Header(len(data), peer)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(b"PROXY ".__add__), st.binary(max_size=300).map(SIGNATURE.__add__)))
def test_garbage_is_a_fault_or_no_longer_than_it_came(data: bytes) -> None:
    with suppress(ProxyFault):
        header = parse(data)
        assert header is None or header.size <= min(len(data), V2_BYTES_MAX)


@given(st.binary(max_size=V2_BYTES_MAX + 100))
def test_nothing_waits_for_ever(data: bytes) -> None:
    """Whatever has come: with enough behind it, it is a header or a fault."""
    with suppress(ProxyFault):
        assert parse(data + bytes(V2_BYTES_MAX)) is not None


# ---- whom to believe -------------------------------------------------------------------------------------------------------


def test_trust() -> None:
    trusted = ("10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "unix")
    assert [trust_fault(one) for one in trusted] == [None] * 4

    def v4(host: str) -> bool:
        return is_trusted(trusted, (host, 1), socket.AF_INET)

    def v6(host: str) -> bool:
        return is_trusted(trusted, (host, 1, 0, 0), socket.AF_INET6)

    assert v4("10.1.2.3")
    assert v4("192.0.2.7")
    assert not v4("192.0.2.8")
    assert not v4("11.0.0.1")
    assert v6("2001:db8::1")
    assert v6("::ffff:10.1.2.3")  # a socket for both families
    assert not v6("fe80::1%eth0")
    assert is_trusted(trusted, "", AF_UNIX)
    assert not is_trusted(("10.0.0.0/8",), "", AF_UNIX)
    assert not is_trusted((), ("127.0.0.1", 1), socket.AF_INET)


@pytest.mark.parametrize(
    ("text", "said"),
    [("10.0.0.1/8", "has host bits set"), ("proxy.example", "expected an address, a network"), ("", "expected"), ("10.0.0.0/33", "expected")],
)
def test_who_cannot_be_believed(text: str, said: str) -> None:
    assert said in str(trust_fault(text))
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"listeners": [{"proxy_protocol_from": ["127.0.0.1", text]}]})
    assert dict(caught.value.problems)["listeners[0].proxy_protocol_from"] == trust_fault(text)


async def test_a_proxy_makes_loopback_public() -> None:
    """Nobody is let in by an oversight: what a proxy brings comes from anywhere."""
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        async with open_broker(listeners=[Listener(port=0, proxy_protocol_from=("127.0.0.1",))]):
            pass
    with pytest.raises(TypeError, match="is a tuple"):
        Listener(proxy_protocol_from=["127.0.0.1"])  # type: ignore[arg-type]  # on purpose


# ---- from the socket -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [FROM_4, v2_from("192.0.2.7", 50123)])
@pytest.mark.parametrize("step", [1, 7, 4096])
async def test_not_a_byte_more_is_taken(data: bytes, step: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        rest = b"\x10\x0c\x00\x04MQTT"

        async def send() -> None:
            for start in range(0, len(data), step):
                theirs.send(data[start : start + step] + (rest if start + step >= len(data) else b""))
                await wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive(ours) == "192.0.2.7:50123"
        assert ours.recv(100) == rest


@pytest.mark.parametrize(("data", "said"), [(b"", "it left without"), (FROM_4[:20], "in the middle")])
async def test_a_proxy_that_leaves(data: bytes, said: str) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            theirs.send(data)
        with pytest.raises(ProxyFault, match=said):
            await receive(ours)


# ---- at the listeners ------------------------------------------------------------------------------------------------------


def config_of(*listeners: Listener, **fields: object) -> Config:
    return Config(listeners=listeners, allow_anonymous=True, sys_interval_s=0, **fields)  # type: ignore[arg-type]  # whatever the test says


BEHIND = Listener(port=0, proxy_protocol_from=("127.0.0.1", "unix"))


async def stream_to(hub: Broker) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", urlsplit(hub.urls[0]).port or 0)


@asynccontextmanager
async def client_behind(hub: Broker, header: bytes) -> AsyncIterator[Client]:
    stream = await stream_to(hub)
    try:
        await stream.send_all(header)
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


def peers(hub: Broker) -> list[str | None]:
    return [one.peer for one in hub.clients()]


@pytest.mark.parametrize(("header", "peer"), [(FROM_4, "192.0.2.7:50123"), (v2_from("2001:db8::7", 9), "[2001:db8::7]:9"), (V2_FROM_UNIX, "unix")])
async def test_the_address_in_the_header_is_the_peers(header: bytes, peer: str, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    async def authenticate(request: ConnectRequest) -> str:
        asked.append(request.peer)
        return "ann"

    with caplog.at_level(logging.INFO, "broker"):
        async with open_broker(config_of(BEHIND), authenticate=authenticate) as hub, client_behind(hub, header) as client:
            assert (await client.connect("c1")).reason == ReasonCode.SUCCESS
            assert (peers(hub), asked) == ([peer], [peer])
    assert f"connected 'c1' from {peer} " in caplog.text


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(0, 0, b"")])
async def test_a_proxy_that_speaks_for_itself(header: bytes) -> None:
    async with open_broker(config_of(BEHIND)) as hub, client_behind(hub, header) as client:
        assert (await client.connect("c1")).reason == ReasonCode.SUCCESS
        assert str(peers(hub)[0]).startswith("127.0.0.1:")


async def test_header_and_connect_in_one_segment_and_byte_by_byte() -> None:
    async with open_broker(config_of(BEHIND)) as hub:
        for step in (1, 1000):
            async with client_behind(hub, b"") as client:
                data = v2_from("192.0.2.7", 1) + b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x02c1"
                for start in range(0, len(data), step):
                    await client.stream.send_all(data[start : start + step])
                answer = await client.receive()
                assert type(answer).__name__ == "ConnAck"
                assert peers(hub) == ["192.0.2.7:1"]


async def test_who_must_send_a_header_and_does_not_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "broker"):
        async with open_broker(config_of(BEHIND)) as hub, client_behind(hub, b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x02c1") as client:
            with suppress(trio.BrokenResourceError):  # an RST, since what came was not read
                assert await client.stream.receive_some() == b""
            assert peers(hub) == []
    assert "it does not begin with a PROXY header" in caplog.text


@pytest.mark.parametrize("header", [FROM_4, v2_from("192.0.2.7", 1)])
async def test_from_elsewhere_a_header_is_no_mqtt(header: bytes) -> None:
    async with open_broker(config_of(Listener(port=0, proxy_protocol_from=("192.0.2.0/24", "unix")))) as hub:
        async with client_behind(hub, header) as client:
            assert await client.receive() is None
            assert peers(hub) == []
        async with client_behind(hub, b"") as client:
            assert (await client.connect("c1")).reason == ReasonCode.SUCCESS
            assert str(peers(hub)[0]).startswith("127.0.0.1:")


async def test_a_header_that_does_not_come_ends_with_the_connect_timeout(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "broker"):
        async with open_broker(config_of(BEHIND), connect_timeout_s=0.05) as hub, client_behind(hub, FROM_4[:30]) as client:
            assert await client.stream.receive_some() == b""
    assert "PROXY handshake timed out with 127.0.0.1:" in caplog.text


async def test_shutdown_while_a_header_is_waited_for() -> None:
    async with open_broker(config_of(BEHIND, shutdown_grace_s=0)) as hub, client_behind(hub, FROM_4[:30]):
        await wait_all_tasks_blocked()
        await hub.shutdown()


async def test_in_front_of_tls() -> None:
    ca = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    ca.configure_trust(client_context)
    async with open_broker(config_of(Listener(port=0, tls=server_context, proxy_protocol_from=("127.0.0.1",)))) as hub:
        stream = await stream_to(hub)
        await stream.send_all(FROM_4)
        tls = trio.SSLStream(stream, client_context, server_hostname="127.0.0.1", https_compatible=True)
        client = Client(tls)
        assert (await client.connect("c1")).reason == ReasonCode.SUCCESS
        assert peers(hub) == ["192.0.2.7:50123"]
        await trio.aclose_forcefully(tls)


async def test_in_front_of_websocket() -> None:
    listener = Listener(port=0, protocol="websocket", proxy_protocol_from=("127.0.0.1",))
    async with open_broker(config_of(listener)) as hub, trio.open_nursery() as nursery:
        stream = await stream_to(hub)
        await stream.send_all(v2_from("2001:db8::7", 9))
        upgraded = await websocket.upgrade(nursery, stream, "127.0.0.1", "/mqtt")
        assert (await Client(upgraded).connect("c1")).reason == ReasonCode.SUCCESS
        assert peers(hub) == ["[2001:db8::7]:9"]
        await trio.aclose_forcefully(upgraded)


@unix_only
async def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with open_broker(config_of(Listener(unix=path, proxy_protocol_from=("unix",)))) as hub:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(FROM_6)
        assert (await Client(stream).connect("c1")).reason == ReasonCode.SUCCESS
        assert peers(hub) == ["[2001:db8::7]:50123"]
        await stream.aclose()


async def test_failures_are_slowed_by_the_address_in_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the proxy's: one who guesses behind it would slow all the others."""
    failed: list[str] = []

    def note(throttle: Throttle, address: str, now: float) -> float:
        failed.append(address)
        return 0.0

    monkeypatch.setattr(Throttle, "failed", note)
    (tmp_path / "p").write_text("")
    async with open_broker(Config(listeners=(BEHIND,), password_file=str(tmp_path / "p"))) as hub, client_behind(hub, FROM_4) as client:
        assert (await client.connect("c1", username="ann")).reason == ReasonCode.BAD_USER_NAME_OR_PASSWORD
    assert failed == ["192.0.2.7"]


async def test_connections_count_for_the_address_in_the_header() -> None:
    """And not for the proxy's, which has all of them."""
    elsewhere = FROM_4.replace(b"192.0.2.7 ", b"192.0.2.8 ")
    async with open_broker(config_of(BEHIND), connections_per_address_max=1) as hub:
        async with client_behind(hub, FROM_4) as first, client_behind(hub, elsewhere) as other, client_behind(hub, b"PROXY UNKNOWN\r\n") as unknown:
            for client in (first, other, unknown):
                assert (await client.connect(f"c{id(client)}")).reason == ReasonCode.SUCCESS
            async with client_behind(hub, FROM_4) as second:
                assert (await second.connect("second")).reason == ReasonCode.QUOTA_EXCEEDED
        while hub.statistics()["connections_open_count"]:
            await trio.lowlevel.checkpoint()
        async with client_behind(hub, FROM_4) as again:
            assert (await again.connect("again")).reason == ReasonCode.SUCCESS
        assert hub.statistics()["refused_connections_count"] == 1


async def test_a_reload_changes_whom_to_believe() -> None:
    async with open_broker(config_of(Listener(port=0))) as hub:
        assert hub.reload(config_of(Listener(port=0, proxy_protocol_from=("127.0.0.1",)))) == []
        async with client_behind(hub, FROM_4) as client:
            assert (await client.connect("c1")).reason == ReasonCode.SUCCESS
            assert peers(hub) == ["192.0.2.7:50123"]


def test_bind_all_checks_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="proxy_protocol_from: expected an address"):
        trio.run(bind_all, [Listener(port=0, proxy_protocol_from=("nobody",))])
