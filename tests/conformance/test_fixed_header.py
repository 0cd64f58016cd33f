"""Fixed header flags, Packet Identifiers, property lengths (MQTT 5.0, 2; 3.1.1, 2)."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import PubAck, PubComp, Publish, PubRec, PubRel, SubAck, UnsubAck
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.wirebytes import body_of, connect_frame, frame, properties, publish_frame, string, subscribe_frame, u16

# A packet of each kind that a client sends after CONNECT, by its right first byte; what follows is in order in both versions.
BODIES_5 = {
    0x40: u16(1), 0x50: u16(1), 0x62: u16(1), 0x70: u16(1), 0x82: u16(1) + b"\x00" + string("a") + b"\x00",
    0xA2: u16(1) + b"\x00" + string("a"), 0xC0: b"", 0xE0: b"",
}  # fmt: skip
BODIES_311 = BODIES_5 | {0x82: u16(1) + string("a") + b"\x00", 0xA2: u16(1) + string("a")}
WRONG = [kind & 0xF0 | flags for kind in BODIES_5 for flags in range(16) if flags != kind & 0x0F]


@both_versions
@pytest.mark.parametrize("first_byte", WRONG, ids=hex)
@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT311-2.2.2-1", "MQTT311-2.2.2-2")
async def test_wrong_reserved_flags_close(version: int, first_byte: int) -> None:
    bodies = BODIES_5 if version >= V5 else BODIES_311
    body = next(body for kind, body in bodies.items() if kind >> 4 == first_byte >> 4)
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        peer = await scene.connect("c", version)
        await peer.send(frame(first_byte, body) + publish_frame("a", version=version))
        await peer.expect_closed(0x81)
        await watcher.expect_nothing()


@both_versions
@pytest.mark.parametrize("flags", range(1, 16))
@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT311-2.2.2-1", "MQTT311-2.2.2-2")
async def test_wrong_flags_in_connect_close(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(string("c"), version=version, first_byte=0x10 | flags))
        await (peer.expect_closed(0x81) if version >= V5 else peer.expect_end())


@both_versions
@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT311-2.2.2-1")
async def test_flags_of_the_broker_have_their_fixed_values(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.subscribe("a", qos=2)
        await peer.unsubscribe("b")
        await peer.send(b"\xc0\x00")
        await peer.receive()
        for qos in (1, 2):
            await peer.send(Publish("b", b"", qos, packet_id=9))
            await peer.receive()
        await peer.send(PubRel(9))
        await peer.receive()
        await peer.send(Publish("a", b"", 2, packet_id=9))
        for packet in await peer.receive_all():
            if isinstance(packet, Publish):
                await peer.send(PubRec(packet.packet_id))
        await peer.receive()
        if version >= V5:
            await peer.send(b"\xc1\x00")
            await peer.receive()
        expected = {2: 0, 3: 4, 4: 0, 5: 0, 6: 2, 7: 0, 9: 0, 11: 0, 13: 0} | ({14: 0} if version >= V5 else {})
        assert {one[0] >> 4: one[0] & 0x0F for one in peer.frames} == expected


@both_versions
@pytest.mark.statement("MQTT5-2.2.1-2", "MQTT311-2.3.1-5")
async def test_publish_at_qos_0_has_no_packet_identifier(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.subscribe("a", qos=2)
        await peer.send(publish_frame("a", b"xy", version=version))
        await peer.expect_bytes(b"\x30\x06\x00\x01a\x00xy" if version >= V5 else b"\x30\x05\x00\x01axy")
        # The same road for what is granted at QoS 0 and published above.
        await peer.subscribe("a", qos=0)
        await peer.send(publish_frame("a", b"xy", version=version, first_byte=0x32, packet_id=0x4142))
        frames = [await peer.receive_frame(), await peer.receive_frame()]
        assert sorted(frames) == [b"\x30\x06\x00\x01a\x00xy" if version >= V5 else b"\x30\x05\x00\x01axy", b"\x40\x02AB"]


@pytest.mark.statement("MQTT5-2.2.1-2")
async def test_packet_identifier_at_qos_0_is_read_as_properties() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.send(publish_frame("a", packet_id=0x4142))
        await peer.expect_closed(0x81)


@both_versions
@pytest.mark.parametrize("kind", ["PUBLISH 1", "PUBLISH 2", "SUBSCRIBE", "UNSUBSCRIBE"])
@pytest.mark.statement("MQTT5-2.2.1-3", "MQTT311-2.3.1-1")
async def test_packet_identifier_zero_closes(version: int, kind: str) -> None:
    section = b"\x00" if version >= V5 else b""
    bad = {
        "PUBLISH 1": publish_frame("a", version=version, first_byte=0x32, packet_id=0),
        "PUBLISH 2": publish_frame("a", version=version, first_byte=0x34, packet_id=0),
        "SUBSCRIBE": subscribe_frame(0, ("a", 0), version=version),
        "UNSUBSCRIBE": frame(0xA2, u16(0), section, string("a")),
    }[kind]
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        peer = await scene.connect("c", version)
        await peer.send(bad)
        await peer.expect_closed()
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-2.2.1-3", "MQTT311-2.3.1-2")
async def test_packet_identifier_in_use_does_no_harm(version: int) -> None:
    """The number of an unfinished QoS 2 PUBLISH comes again in a SUBSCRIBE: the standard leaves the answer open; the handshake holds."""
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.send(Publish("a", b"x", 2, packet_id=7))
        await peer.take(PubRec)
        await peer.send(subscribe_frame(7, ("b", 0), version=version))
        assert (await peer.take(SubAck)).packet_id == 7
        await peer.send(PubRel(7))
        await peer.expect(PubComp(7))


@both_versions
@pytest.mark.statement("MQTT5-2.2.1-4", "MQTT311-2.3.1-4")
async def test_packet_identifiers_of_the_broker_are_distinct_and_kept(version: int) -> None:
    async with Scene(inflight_count_max=60) as scene:
        options = {"session_expiry_interval": NEVER} if version >= V5 else {}
        peer = await scene.connect("c", version, clean_start=False, **options)
        await peer.subscribe("a/#", qos=2)
        sender = await scene.connect("s", version)
        for number in range(60):
            await sender.publish("a/b", str(number).encode(), 1 + number % 2)
        first = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert len(first) == 60
        assert len({packet.packet_id for packet in first}) == 60
        assert all(packet.packet_id for packet in first)
        # Every third is finished: its number is free, and no other is given out meanwhile.
        done = [packet for packet in first if packet.qos == 1][::3]
        await peer.send(*(PubAck(packet.packet_id) for packet in done))
        held = {packet.packet_id for packet in first} - {packet.packet_id for packet in done}
        for _ in done:
            await sender.publish("a/b", b"later", 1)
        later = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert len(later) == len(done)
        assert not {packet.packet_id for packet in later} & held
        await peer.drop()
        # Again with the same numbers.
        peer = await scene.connect("c", version, clean_start=False, **options)
        again = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
        unfinished = [packet for packet in first if packet not in done] + later
        assert [(packet.packet_id, packet.payload, packet.qos) for packet in again] == [
            (packet.packet_id, packet.payload, packet.qos) for packet in unfinished
        ]


@both_versions
@pytest.mark.parametrize("packet_id", [1, 255, 256, 65_535])
@pytest.mark.statement("MQTT5-2.2.1-5", "MQTT311-2.3.1-6", "MQTT311-2.3.1-3")
async def test_acknowledgements_repeat_the_packet_identifier(version: int, packet_id: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.subscribe("a", qos=2)
        identifier = u16(packet_id)
        for _ in range(2):  # a finished number is free again
            await peer.send(publish_frame("b", version=version, first_byte=0x32, packet_id=packet_id))
            assert body_of(await peer.receive_frame())[:2] == identifier
            await peer.send(publish_frame("b", version=version, first_byte=0x34, packet_id=packet_id))
            await peer.receive_frame()
            assert peer.frames[-1][0] == 0x50
            assert body_of(peer.frames[-1])[:2] == identifier
            await peer.send(PubRel(packet_id))
            await peer.expect_bytes(b"\x70\x02" + identifier)
        # The broker as the sender: PUBREL has the number of its PUBLISH.
        sender = await scene.connect("s", version)
        await sender.publish("a", b"x", 2)
        message = await peer.take(Publish)
        await peer.send(PubRec(message.packet_id))
        await peer.expect_bytes(b"\x62\x02" + u16(message.packet_id))


@both_versions
@pytest.mark.parametrize("packet_id", [1, 255, 256, 65_535])
@pytest.mark.statement("MQTT5-2.2.1-6", "MQTT311-2.3.1-7", "MQTT311-2.3.1-3")
async def test_suback_and_unsuback_repeat_the_packet_identifier(version: int, packet_id: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        section = b"\x00" if version >= V5 else b""
        for _ in range(2):
            await peer.send(subscribe_frame(packet_id, ("a", 0), version=version))
            assert (await peer.take(SubAck)).packet_id == packet_id
            await peer.send(frame(0xA2, u16(packet_id), section, string("a")))
            assert (await peer.take(UnsubAck)).packet_id == packet_id


@pytest.mark.statement("MQTT5-2.2.2-1")
async def test_missing_property_length_closes() -> None:
    async with Scene() as scene:
        peer = await scene.peer()
        await peer.send(connect_frame(string("client"), property_section=None))
        await peer.expect_closed(0x81)
        for bad in (frame(0x30, string("a")), frame(0x82, u16(1), string("a"), b"\x00"), frame(0xA2, u16(1), string("a"))):
            peer = await scene.connect("c")
            await peer.send(bad)
            await peer.expect_closed()


@pytest.mark.statement("MQTT5-2.2.2-1")
async def test_broker_encodes_an_empty_property_set_as_one_zero() -> None:
    async with Scene(topic_alias_maximum=0, receive_maximum=65_535, packet_bytes_max=268_435_460) as scene:
        peer = await scene.connect("c")
        assert peer.frames[0] == b"\x20\x03\x00\x00\x00"
        await peer.send(subscribe_frame(1, ("a", 0)))
        await peer.expect_bytes(b"\x90\x04\x00\x01\x00\x00")
        await peer.send(publish_frame("a", b"x"))
        await peer.expect_bytes(b"\x30\x05\x00\x01a\x00x")
        await peer.send(frame(0xA2, u16(2), b"\x00", string("a")))
        await peer.expect_bytes(b"\xb0\x04\x00\x02\x00\x00")


async def test_nothing_of_5_0_is_in_3_1_1_packets() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", V311, will=None)
        assert peer.frames[0] == b"\x20\x02\x00\x00"
        await peer.send(subscribe_frame(1, ("a", 1), version=V311))
        await peer.expect_bytes(b"\x90\x03\x00\x01\x01")
        sender = await scene.connect("s", V5)
        assert await sender.publish("a", b"x", 0, content_type="t", user_properties=(("n", "v"),), message_expiry_interval=9) == ReasonCode.SUCCESS
        await peer.expect_bytes(b"\x30\x04\x00\x01ax")
        await peer.send(frame(0xA2, u16(2), string("a")))
        await peer.expect_bytes(b"\xb0\x02\x00\x02")
        await sender.send(publish_frame("a", property_section=properties(b"\x26", string("n"), string("v"))))
        await peer.expect_nothing()
