"""The byte stream underneath (5.0: 4.2; 3.1.1: 7.1), and that the bare standard is all a client needs (7.0)."""

from __future__ import annotations

import pytest
import trio

from broker import connect, open_broker
from broker.messages import Version
from tests.conformance.wirebytes import connect_frame, frame, publish_frame, string, subscribe_frame, take_frame, u16


async def _open(url: str) -> trio.SocketStream:
    host, _, port = url.removeprefix("mqtt://").rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def _frames(stream: trio.SocketStream, count: int) -> list[bytes]:
    buffer = bytearray()
    found: list[bytes] = []
    while len(found) < count:
        one = take_frame(buffer)
        if one is not None:
            found.append(one)
            continue
        data = await stream.receive_some()
        assert data, f"closed after {found}"
        buffer += data
    return found


@pytest.mark.real_clock
@pytest.mark.statement("MQTT5-4.2.0-1", "MQTT311-7.1.1-1", "MQTT311-7.0.0-2")
@pytest.mark.parametrize("version", [5, 4], ids=["5.0", "3.1.1"])
async def test_the_broker_serves_a_bare_client_over_tcp(version: int) -> None:
    """Bytes by hand, in pieces as a network would cut them; nothing but what the standard asks for."""
    section = b"\x00" if version == 5 else b""
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker, await _open(broker.urls[0]) as stream:
        data = connect_frame(string("bare"), version=version) + subscribe_frame(1, ("t", 2), version=version)
        data += publish_frame("t", b"x" * 300_000, version=version, first_byte=0x34, packet_id=2) + frame(0x62, u16(2)) + b"\xc0\x00"
        for start in range(40):
            await stream.send_all(data[start : start + 1])
        await stream.send_all(data[40:])
        connack, suback, *rest = await _frames(stream, 6)
        assert (connack[0], suback[0]) == (0x20, 0x90)
        assert {one[0] for one in rest} == {0x34, 0x50, 0x70, 0xD0}
        (message,) = [one for one in rest if one[0] == 0x34]
        assert message.endswith(section + b"x" * 300_000)
        await stream.send_all(b"\xe0\x00")
        assert await stream.receive_some() == b""


@pytest.mark.real_clock
@pytest.mark.statement("MQTT5-4.2.0-1", "MQTT311-7.1.2-1", side="client")
@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_our_client_speaks_over_tcp(version: Version) -> None:
    async with (
        open_broker(listeners=["mqtt://127.0.0.1:0"]) as broker,
        connect(broker.urls[0], version=version) as client,
        client.subscribe("t", qos=2) as subscription,
    ):
        for qos in (0, 1, 2):
            await client.publish("t", b"x" * 300_000, qos=qos)
        for qos in (0, 1, 2):
            message = await subscription.receive()
            assert (message.qos, len(message.payload)) == (qos, 300_000)
