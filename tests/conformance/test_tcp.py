"""A sample of the statements over a real socket: what the memory streams promise holds with the kernel in between."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import Publish, WillMessage
from tests.conformance.harness import NEVER, V5, Scene, both_versions
from tests.conformance.wirebytes import connect_frame, frame, publish_frame, string

pytestmark = pytest.mark.real_clock


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-5", "MQTT5-3.3.4-1", "MQTT5-4.2.0-1", "MQTT311-3.1.4-4", "MQTT311-3.3.4-1", "MQTT311-7.1.1-1")
async def test_messages_at_each_qos(version: int) -> None:
    async with Scene(tcp=True) as scene:
        peer = await scene.connect("c", version)
        await peer.subscribe("a/#", qos=2)
        sender = await scene.connect("s", version)
        for qos in range(3):
            await sender.send(Publish("a/b", b"x" * 100_000, qos, packet_id=qos))
            assert (await peer.take(Publish)).payload == b"x" * 100_000
            if qos:
                assert (await sender.receive_frame())[0] == {1: 0x40, 2: 0x50}[qos]


@both_versions
@pytest.mark.statement("MQTT5-3.2.2-3", "MQTT5-3.3.1-1", "MQTT311-3.2.2-2", "MQTT311-3.3.1-1")
async def test_a_session_goes_on(version: int) -> None:
    async with Scene(tcp=True) as scene:
        options = {"session_expiry_interval": NEVER} if version >= V5 else {}
        peer = await scene.connect("c", version, clean_start=False, **options)
        await peer.subscribe("a", qos=1)
        sender = await scene.connect("s", version)
        assert await sender.publish("a", b"x", 1) == ReasonCode.SUCCESS
        first = await peer.receive_frame()
        await peer.stream.aclose()
        peer = await scene.connect("c", version, clean_start=False, **options)
        assert peer.connack is not None
        assert peer.connack.session_present
        await peer.expect_bytes(b"\x3a" + first[1:])


@both_versions
@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT5-4.13.1-1", "MQTT5-3.1.2-8", "MQTT311-2.2.2-2", "MQTT311-3.1.2-8", "MQTT311-4.8.0-1")
async def test_a_violation_is_answered_before_the_close(version: int) -> None:
    """The DISCONNECT arrives although much that was sent behind the fault is never read: the close is not a reset."""
    async with Scene(tcp=True) as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("will")
        peer = await scene.connect("c", version, will=WillMessage("will", b"gone"))
        await peer.send(b"\xc1\x00" + publish_frame("a", bytes(200_000), version=version))
        await peer.expect_closed(0x81)
        assert (await watcher.take(Publish)).payload == b"gone"


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-3", "MQTT311-3.1.4-2")
async def test_takeover(version: int) -> None:
    async with Scene(tcp=True) as scene:
        old = await scene.connect("c", version)
        await scene.connect("c", version)
        await old.expect_closed(0x8E)


@both_versions
@pytest.mark.statement("MQTT5-3.1.0-1", "MQTT311-3.1.0-1", "MQTT311-3.1.4-1")
async def test_what_is_no_connect_is_closed_without_a_byte(version: int) -> None:
    async with Scene(tcp=True) as scene:
        for bad in (b"\xc0\x00", b"GET / HTTP/1.1\r\n\r\n", frame(0x10, b"\x00\x04MQ")):
            peer = await scene.peer(version)
            await peer.send(bad)
            await peer.expect_end()
        peer = await scene.peer(version)
        await peer.send(connect_frame(string("c"), version=version, flags=0x03))
        await (peer.expect_closed(0x81) if version >= V5 else peer.expect_end())
