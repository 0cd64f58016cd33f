"""Where MQTT 3.1.1 is not 5.0 with less in it, and MQTT 3.1, which old devices speak."""

from __future__ import annotations

import pytest

from broker.wire.packets import ConnAck, PubAck, Publish, PubRec, WillMessage
from tests.conformance.harness import NEVER, V5, V31, V311, Scene
from tests.conformance.shorthand import drained
from tests.conformance.wirebytes import connect_frame, frame, publish_frame, string, subscribe_frame, u16


async def test_password_needs_a_user_name() -> None:
    """And a bad CONNECT is answered with silence."""
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(string("a"), string("secret"), version=4, flags=0x42))
        await peer.expect_end()


async def test_empty_client_identifier_needs_clean_session() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(string(""), version=4, flags=0x00))
        await peer.expect_bytes(bytes.fromhex("20 02 00 02"))
        await peer.expect_end()
        peer = await scene.peer(V311)
        await peer.send(connect_frame(string(""), version=4, flags=0x02))
        await peer.expect_bytes(bytes.fromhex("20 02 00 00"))


async def test_unknown_level_is_answered_with_0x01() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(string("a"), version=2))
        await peer.expect_bytes(bytes.fromhex("20 02 00 01"))
        await peer.expect_end()


@pytest.mark.parametrize("flags", [0x01, 0x1E, 0x0A, 0x22, 0x40])
async def test_bad_connect_ends_without_connack(flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        will = (string("w"), string("x")) if flags & 4 else ()
        await peer.send(connect_frame(string("a"), *will, version=4, flags=flags))
        await peer.expect_end()


async def test_the_will_has_no_delay_and_no_properties() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("w")
        peer = await scene.connect("a", V311, clean_start=False, will=WillMessage("w", b"x", 0))
        await peer.drop()
        await watcher.expect_bytes(bytes.fromhex("30 05 00 01 77 00 78"))


async def test_the_broker_closes_without_a_word() -> None:
    """Takeover, Keep Alive, violation, shutdown: 3.1.1 has no DISCONNECT for a server."""
    async with Scene() as scene:
        ended = [await scene.connect("taken", V311), await scene.connect("idle", V311, keep_alive_s=1), await scene.connect("bad", V311)]
        last = await scene.connect("taken", V311)
        await scene.advance(2)
        await ended[2].send(b"\xf0\x00")
        await scene.shutdown()
        for peer in [*ended, last]:
            await peer.expect_end()


async def test_a_refused_publish_is_acknowledged_and_dropped() -> None:
    async with Scene(authorize=lambda username, client_id, action, topic: topic != "forbidden") as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.connect("a", V311)
        await peer.send(publish_frame("forbidden", b"x", version=4, first_byte=0x32, packet_id=1))
        await peer.expect_bytes(bytes.fromhex("40 02 00 01"))
        await peer.send(publish_frame("forbidden", b"x", version=4, first_byte=0x34, packet_id=2), frame(0x62, u16(2)))
        await peer.expect_bytes(bytes.fromhex("50 02 00 02"), bytes.fromhex("70 02 00 02"))
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT311-4.3.2-2")
async def test_an_acknowledgement_has_no_code_even_where_nobody_subscribed() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", V311)
        await peer.send(publish_frame("nobody", version=4, first_byte=0x32, packet_id=1))
        await peer.expect_bytes(bytes.fromhex("40 02 00 01"))
        await peer.send(frame(0x40, u16(1), b"\x00"))
        await peer.expect_end()  # nor may a client's have one


async def test_subscribing_again_always_brings_the_retained_messages() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", V311)
        await peer.publish("t", b"kept", retain=True)
        for _ in range(3):
            await peer.subscribe("t")
            await peer.expect(Publish("t", b"kept", retain=True))


async def test_live_messages_have_retain_0() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", V311)
        await peer.subscribe("t")
        for payload in (b"x", b""):
            await peer.publish("t", payload, retain=True)
            await peer.expect(Publish("t", payload, retain=False))


async def test_a_length_need_not_be_in_its_shortest_form() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", V311)
        await peer.send(b"\xc0\x80\x80\x00", b"\x82\x86\x00\x00\x01\x00\x01t\x00")
        await peer.expect_bytes(b"\xd0\x00", bytes.fromhex("90 03 00 01 00"))


@pytest.mark.parametrize("data", [b"\xe0\x01\x00", b"\xe0\x02\x00\x00"])
async def test_disconnect_is_two_bytes(data: bytes) -> None:
    """Anything else is none, and the Will goes out."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("w")
        peer = await scene.connect("a", V311, will=WillMessage("w", b"x"))
        await peer.send(data)
        await peer.expect_end()
        await watcher.expect(Publish("w", b"x"))


async def test_subscribe_options_of_5_are_reserved_bits() -> None:
    async with Scene() as scene:
        for options in (0x04, 0x08, 0x10):
            peer = await scene.connect("a", V311)
            await peer.send(subscribe_frame(1, ("t", options), version=4))
            await peer.expect_end()


async def test_there_is_no_receive_maximum() -> None:
    """A client that sends 500 QoS 2 messages before it waits for anything has done nothing wrong."""
    async with Scene() as scene:
        peer = await scene.connect("a", V311)
        await peer.send(*(Publish("t", b"", 2, packet_id=number) for number in range(1, 501)))
        assert [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, PubRec)] == list(range(1, 501))
        await peer.expect_open()


async def test_both_versions_on_one_port_see_each_other() -> None:
    """By the level byte after the name. What 3.1.1 cannot say is left out, and the message is whole all the same."""
    async with Scene() as scene:
        peers = {version: await scene.connect(f"v{version}", version) for version in (V31, V311, V5)}
        for peer in peers.values():
            await peer.subscribe("t", qos=1)
        await peers[V5].send(publish_frame("t", b"five", first_byte=0x32, packet_id=9, property_section=b"\x04\x03\x00\x01x"))
        for version in (V31, V311):
            assert await drained(peers[version]) == [b"five"]
            assert peers[version].frames[-1][:5] == b"\x32\x09\x00\x01t"
        message, answer = await peers[V5].receive_all()
        assert isinstance(message, Publish)
        assert (message.payload, message.properties.content_type, answer) == (b"five", "x", PubAck(9))


async def test_one_session_table_for_all_versions() -> None:
    """A Session made by one is resumed by another, its subscriptions and queue with it."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", V5, clean_start=False, session_expiry_interval=NEVER)
        await peer.subscribe("t", qos=1, identifier=5)
        for version in (V311, V31, V5, V311):
            await peer.drop()
            await publisher.publish("t", b"x", 1)
            options = {"session_expiry_interval": NEVER} if version == V5 else {}
            peer = await scene.connect("a", version, clean_start=False, **options)
            assert peer.connack is not None
            assert peer.connack.session_present is (version != V31)  # 3.1 has no such flag
            assert await drained(peer) == [b"x"]


async def test_each_takes_over_from_the_other() -> None:
    async with Scene() as scene:
        five = await scene.connect("a", V5)
        old = await scene.connect("a", V311)
        await five.expect_closed(0x8E)
        await scene.connect("a", V5)
        await old.expect_end()


async def test_31_is_accepted_by_its_own_name_only() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V31)
        await peer.send(connect_frame(string("a"), version=3, name="MQIsdp"))
        assert (await peer.take(ConnAck)).reason == 0
        for name, level in (("MQIsdp", 4), ("MQTT", 3), ("MQTT", 6), ("mqtt", 4)):
            peer = await scene.peer(V5 if level > 5 else V311)
            await peer.send(connect_frame(string("a"), version=level, name=name, property_section=None))
            for packet in await peer.receive_all():
                assert isinstance(packet, ConnAck)
                assert packet.reason == 0x84
            await peer.expect_end()


@pytest.mark.parametrize("flags", [0x00, 0x02])
async def test_31_has_no_empty_client_identifier(flags: int) -> None:
    """Its section on CONNECT wants one to 23 characters; longer ones are served all the same, as everywhere."""
    async with Scene() as scene:
        peer = await scene.peer(V31)
        await peer.send(connect_frame(string(""), version=3, name="MQIsdp", flags=flags))
        await peer.expect_bytes(bytes.fromhex("20 02 00 02"))
        await peer.expect_end()
        peer = await scene.peer(V31)
        await peer.send(connect_frame(string("a" * 24), version=3, name="MQIsdp", flags=flags))
        await peer.expect_bytes(bytes.fromhex("20 02 00 00"))
