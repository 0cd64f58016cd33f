"""Retained messages: stored, replaced, cleared, sent at a subscribe, and the flag on what goes on (MQTT 5.0 and 3.1.1, 3.3.1.3)."""

from __future__ import annotations

import pytest

from broker.wire.packets import Publish, SubscriptionRequest
from tests.conformance.harness import NEVER, V5, Peer, Scene, both_versions


async def retained(scene: Scene, filter: str, version: int = V5) -> dict[str, tuple[bytes, int]]:
    """What a new subscriber gets, by topic; all of it with RETAIN 1."""
    peer = await scene.connect("asks", version)
    await peer.subscribe(filter, qos=2)
    found: dict[str, tuple[bytes, int]] = {}
    await scene.settle()
    while peer._buffer:
        message = await peer.take_message()
        assert message.retain
        assert message.topic not in found
        found[message.topic] = (message.payload, message.qos)
        await scene.settle()
    await peer.disconnect()
    return found


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.3.1-5", "MQTT311-3.3.1-5", "MQTT311-3.3.1-6", "MQTT311-3.3.1-8")
async def test_stored_with_its_qos_and_replaced(version: int, qos: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        await sender.publish("a/b", b"old", 1, retain=True)
        await sender.publish("a/b", b"new", qos, retain=True)
        await sender.publish("a/c", b"other", 1, retain=True)
        assert await retained(scene, "a/#", version) == {"a/b": (b"new", qos), "a/c": (b"other", 1)}
        assert await retained(scene, "a/b", version) == {"a/b": (b"new", qos)}
        assert await retained(scene, "+/c", version) == {"a/c": (b"other", 1)}
        assert await retained(scene, "b/#", version) == {}


@both_versions
@pytest.mark.statement("MQTT311-3.3.1-7")
async def test_qos_0_replaces_too(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        await sender.publish("a", b"x", 1, retain=True)
        await sender.publish("a", b"y", 0, retain=True)
        found = await retained(scene, "a", version)
        assert found in ({"a": (b"y", 0)}, {})
        assert found, "we keep it"


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.3.1-6", "MQTT5-3.3.1-7", "MQTT311-3.3.1-10", "MQTT311-3.3.1-11")
async def test_empty_payload_is_delivered_and_clears(version: int, qos: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        watcher = await scene.connect("w", version)
        await watcher.subscribe("a/#", qos=2)
        await sender.publish("a/b", b"x", 1, retain=True)
        await sender.publish("a/c", b"stays", 1, retain=True)
        await watcher.payloads()
        await sender.publish("a/b", b"", qos, retain=True)
        message = await watcher.take_message()
        assert (message.topic, message.payload, message.qos, message.retain) == ("a/b", b"", qos, False)
        assert await retained(scene, "a/#", version) == {"a/c": (b"stays", 1)}
        # Where there was none, none is stored.
        await sender.publish("a/d", b"", qos, retain=True)
        assert (await watcher.take_message()).topic == "a/d"
        assert await retained(scene, "a/#", version) == {"a/c": (b"stays", 1)}


@both_versions
@pytest.mark.statement("MQTT5-3.3.1-8", "MQTT311-3.3.1-12")
async def test_retain_0_leaves_the_store_alone(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        await sender.publish("a", b"kept", 1, retain=True)
        for payload in (b"passing", b""):
            for topic in ("a", "b"):
                await sender.publish(topic, payload, 1)
        assert await retained(scene, "#", version) == {"a": (b"kept", 1)}


async def subscribe(peer: Peer, filter: str, retain_handling: int) -> list[Publish]:
    await peer.subscribe(SubscriptionRequest(filter, 1, retain_handling=retain_handling))
    found = []
    for packet in await peer.receive_all():
        assert isinstance(packet, Publish)
        assert packet.retain
        found.append(packet)
        await peer.send(b"\x40\x02" + packet.packet_id.to_bytes(2, "big"))
    return found


@pytest.mark.statement("MQTT5-3.3.1-9")
async def test_retain_handling_0_sends_at_every_subscribe() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        await sender.publish("a", b"x", 1, retain=True)
        peer = await scene.connect("c")
        for _ in range(3):
            assert [message.payload for message in await subscribe(peer, "a", 0)] == [b"x"]


@pytest.mark.statement("MQTT5-3.3.1-10")
async def test_retain_handling_1_sends_if_the_subscription_is_new() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        await sender.publish("a", b"x", 1, retain=True)
        peer = await scene.connect("c", session_expiry_interval=NEVER)
        assert len(await subscribe(peer, "a", 1)) == 1
        assert len(await subscribe(peer, "a", 1)) == 0
        assert len(await subscribe(peer, "+", 1)) == 1  # another filter
        await peer.drop()
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=NEVER)
        assert len(await subscribe(peer, "a", 1)) == 0
        await peer.unsubscribe("a")
        assert len(await subscribe(peer, "a", 1)) == 1
        assert len(await subscribe(peer, "a", 0)) == 1


@pytest.mark.statement("MQTT5-3.3.1-11")
async def test_retain_handling_2_sends_none() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        await sender.publish("a", b"x", 1, retain=True)
        peer = await scene.connect("c")
        for _ in range(2):
            assert await subscribe(peer, "a", 2) == []
        await sender.publish("a", b"live", 1)
        assert await peer.payloads() == [b"live"]


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.3.1-12", "MQTT311-3.3.1-9")
async def test_live_messages_have_retain_0(version: int, qos: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.subscribe("a", qos=qos)
        sender = await scene.connect("s", version)
        for retain in (True, False):
            await sender.publish("a", b"x", qos, retain=retain)
            message = await peer.take_message()
            assert (message.qos, message.retain) == (qos, False)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.3.1-13", "MQTT5-3.3.1-12")
async def test_retain_as_published_keeps_the_flag(qos: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", session_expiry_interval=NEVER)
        await peer.subscribe("a", qos=qos, retain_as_published=True)
        plain = await scene.connect("d")
        await plain.subscribe("a", qos=qos)
        sender = await scene.connect("s")
        for retain in (True, False, True):
            await sender.publish("a", b"x", qos, retain=retain)
            assert (await peer.take_message()).retain is retain
            assert (await plain.take_message()).retain is False
        await sender.publish("a", b"", qos, retain=True)
        assert (await peer.take_message()).retain is True
        # From the queue of a client that was away as well; for what QoS 0 leaves there, nothing.
        await peer.drop()
        await sender.publish("a", b"y", qos, retain=True)
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=NEVER)
        if qos:
            assert (await peer.take_message()).retain is True
        else:
            await peer.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT311-3.3.1-6", "MQTT311-3.3.1-8", "MQTT5-3.3.1-9")
async def test_retained_copies_go_at_the_lesser_qos(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        for stored in range(3):
            await sender.publish(f"a/{stored}", b"x", stored, retain=True)
        for granted in range(3):
            peer = await scene.connect("c", version)
            await peer.subscribe("a/+", qos=granted)
            found = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
            assert sorted((packet.topic, packet.qos, packet.retain, packet.dup) for packet in found) == [
                (f"a/{stored}", min(stored, granted), True, False) for stored in range(3)
            ]


@both_versions
async def test_a_thousand_retained_messages_come_whole(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        for number in range(1000):
            await sender.send(Publish(f"a/{number % 10}/{number}", str(number).encode(), 0, True))
        await scene.settle()
        found = await retained(scene, "a/#", version)
        assert {topic: payload for topic, (payload, _) in found.items()} == {
            f"a/{number % 10}/{number}": str(number).encode() for number in range(1000)
        }
