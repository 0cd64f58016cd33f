"""Order of messages (4.6 of both standards): one publisher, one topic, one QoS, one subscriber that shares with nobody."""

from __future__ import annotations

import pytest

from broker.wire.packets import Properties, PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.shorthand import drain, drained


@pytest.mark.statement("MQTT5-4.6.0-5", "MQTT5-4.6.0-6", "MQTT311-4.6.0-5", "MQTT311-4.6.0-6")
@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "properties"])
async def test_a_thousand_messages_in_order(version: int, qos: int, plain: bool) -> None:
    """To a subscriber that keeps up, to one that takes them one by one, and to one of the other version."""
    section = Properties() if plain or version != V5 else Properties(content_type="x")
    async with Scene() as scene:
        quick = await scene.connect("quick", version)
        single = await scene.connect("single", receive_maximum=1)
        other = await scene.connect("other", V311 if version == V5 else V5)
        for peer in (quick, single, other):
            await peer.subscribe("t/#", qos=2)
        publisher = await scene.connect("p", version)
        expected = [b"%d" % number for number in range(1_000)]
        for number, payload in enumerate(expected):
            await publisher.send(Publish("t/x", payload, qos, packet_id=number + 1 if qos else 0, properties=section))
            if number % 90 == 89:
                await publisher.send(*(PubRel(packet.packet_id) for packet in await publisher.receive_all() if isinstance(packet, PubRec)))
        for peer in (quick, single, other):
            assert await drained(peer) == expected


@pytest.mark.statement("MQTT5-4.6.0-5", "MQTT311-4.6.0-6")
@both_versions
@pytest.mark.parametrize("qos", [1, 2])
async def test_in_order_through_reconnects(version: int, qos: int) -> None:
    """The connection is lost again and again, at any step of an exchange. What was sent before is repeated in its order, then comes the rest;
    QoS 2 has no repetition at all, and QoS 1 none but of what was not acknowledged."""
    options = {"clean_start": False} | ({"session_expiry_interval": NEVER} if version == V5 else {})
    async with Scene(inflight_count_max=7) as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **options)
        await peer.subscribe("t", qos=qos)
        expected = [b"%d" % number for number in range(300)]
        for number, payload in enumerate(expected):
            await publisher.send(Publish("t", payload, qos, packet_id=number + 1))
            if qos == 2:
                await publisher.send(PubRel(number + 1))
        await publisher.receive_all()
        got: list[bytes] = []
        held: set[int] = set()
        step = 0
        while len(got) < 300:
            packets = await peer.receive_all()
            assert packets
            numbers = [int(packet.payload) for packet in packets if isinstance(packet, Publish)]
            assert numbers == sorted(numbers)  # repetitions too
            for packet in packets:
                if isinstance(packet, PubRel):
                    held.discard(packet.packet_id)
                    await peer.send(PubComp(packet.packet_id))
                    continue
                assert isinstance(packet, Publish)
                if packet.qos == 1:
                    if packet.payload not in got[-7:]:
                        assert got[-1:] != [packet.payload]
                        got.append(packet.payload)
                elif packet.packet_id not in held:
                    held.add(packet.packet_id)
                    got.append(packet.payload)
                step += 1
                if step % 5 == 0:
                    await peer.drop()
                    peer = await scene.connect("a", version, **options)
                    break
                await peer.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
        assert got == expected


@pytest.mark.statement("MQTT5-4.6.0-5", "MQTT311-4.6.0-6")
@both_versions
async def test_repetitions_keep_the_original_order(version: int) -> None:
    """QoS 1 and 2 mixed; acknowledged out of order before the connection was lost."""
    options = {"clean_start": False} | ({"session_expiry_interval": NEVER} if version == V5 else {})
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **options)
        await peer.subscribe("t", qos=2)
        for number in range(10):
            await publisher.send(Publish("t", b"%d" % number, 1 + number % 2, packet_id=number + 1), PubRel(number + 1))
        sent = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert len(sent) == 10
        for number in (6, 2):
            await peer.send(PubAck(sent[number].packet_id))
        for number in (7, 3):
            await peer.send(PubRec(sent[number].packet_id))
        await scene.settle()
        await peer.drop()
        peer = await scene.connect("a", version, **options)
        packets = await peer.receive_all()
        again = [packet for packet in packets if isinstance(packet, Publish)]
        assert [(packet.payload, packet.packet_id) for packet in again] == [
            (sent[number].payload, sent[number].packet_id) for number in (0, 1, 4, 5, 8, 9)
        ]
        assert all(packet.dup for packet in again)
        # PUBRELs in the order of their PUBRECs, which the subscriber sent as 7, 3.
        assert [packet.packet_id for packet in packets if isinstance(packet, PubRel)] == [sent[7].packet_id, sent[3].packet_id]


@pytest.mark.statement("MQTT311-4.6.0-6")
@both_versions
async def test_answers_follow_the_order_of_what_they_answer(version: int) -> None:
    """PUBACK, PUBREC and PUBREL of the broker (in 3.1.1 the four rules bind both sides)."""
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        order = [5, 3, 9, 1, 7]
        await publisher.send(*(Publish("x", b"", 1 + id % 3 % 2, packet_id=id) for id in order))
        answers = [packet for packet in await publisher.receive_all() if isinstance(packet, (PubAck, PubRec))]
        assert [packet.packet_id for packet in answers] == order
        peer = await scene.connect("a", version)
        await peer.subscribe("t", qos=2)
        for number in range(5):
            await publisher.send(Publish("t", b"", 2, packet_id=100 + number))
        ids = [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, Publish)]
        order = [ids[2], ids[0], ids[4], ids[1], ids[3]]
        await peer.send(*(PubRec(id) for id in order))
        assert [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, PubRel)] == order


@pytest.mark.statement("MQTT5-4.6.0-5", "MQTT311-4.6.0-6")
@both_versions
async def test_queued_before_live(version: int) -> None:
    """Messages that come while the queue of a client that has returned is still being sent go behind it."""
    options = {"clean_start": False} | ({"session_expiry_interval": NEVER} if version == V5 else {})
    async with Scene(inflight_count_max=3) as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **options)
        await peer.subscribe("t", qos=1)
        await peer.drop()
        for number in range(20):
            await publisher.publish("t", b"%d" % number, 1)
        peer = await scene.connect("a", version, **options)
        for number in range(20, 40):
            await publisher.publish("t", b"%d" % number, 1)
        messages = await drain(peer)
        assert [message.payload for message in messages] == [b"%d" % number for number in range(40)]
        assert not any(message.dup for message in messages)
