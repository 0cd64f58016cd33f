"""The broker as sender and as receiver of QoS 0, 1 and 2, and what a Session keeps (4.1 to 4.5 of both standards)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.wire.packets import Disconnect, Properties, PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance.harness import NEVER, V5, Peer, Scene, both_versions
from tests.conformance.shorthand import codes, drained


def keeping(version: int, seconds: int = NEVER) -> dict[str, Any]:
    """Options of a CONNECT whose Session outlives the connection."""
    return {"clean_start": False} | ({"session_expiry_interval": seconds} if version == V5 else {})


async def resume(scene: Scene, version: int, client_id: str = "a", **options: Any) -> Peer:
    peer = await scene.connect(client_id, version, **keeping(version), **options)
    assert peer.connack is not None
    assert peer.connack.session_present
    return peer


# ---- 4.1 the Session ---------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.1.0-1", "MQTT311-4.1.0-2")
@both_versions
@pytest.mark.parametrize("resumed", [False, True])
async def test_state_stays_while_connected(version: int, resumed: bool) -> None:
    """However short the Session Expiry Interval, and however often it is spent; nor does that of an earlier connection go on."""
    options: dict[str, Any] = {"clean_start": not resumed} | ({"session_expiry_interval": 1} if version == V5 else {})
    async with Scene() as scene:
        peer = await scene.connect("a", version, **options)
        await peer.subscribe("t", qos=2)
        if resumed:
            await peer.drop()
            peer = await scene.connect("a", version, **options)
        await peer.send(Publish("x", b"", 2, packet_id=5))
        await peer.take(PubRec)
        publisher = await scene.connect("p", version)
        await publisher.publish("t", b"x", 1)
        message = await peer.take(Publish)
        await scene.advance(2_000_000)
        await publisher.publish("t", b"y", 0)
        await peer.expect(Publish("t", b"y"))
        await peer.send(PubAck(message.packet_id), PubRel(5))
        await peer.expect(PubComp(5))


@pytest.mark.statement("MQTT5-4.1.0-2")
@pytest.mark.parametrize("expiry_s", [1, 60, 86_400])
@pytest.mark.parametrize("by_disconnect", [False, True], ids=["connection lost", "DISCONNECT"])
async def test_state_goes_when_the_session_expires(expiry_s: int, by_disconnect: bool) -> None:
    async with Scene() as scene:
        for wait_s, present in ((expiry_s - 0.5, True), (expiry_s + 0.5, False)):
            peer = await scene.connect("a", clean_start=False, session_expiry_interval=expiry_s)
            await peer.subscribe("t", qos=1)
            if by_disconnect:
                await peer.send(Disconnect())
            await peer.drop()
            publisher = await scene.connect("p")
            await publisher.publish("t", b"kept", 1)
            await scene.advance(wait_s)
            peer = await scene.connect("a", clean_start=False, session_expiry_interval=expiry_s)
            assert peer.connack is not None
            assert peer.connack.session_present is present
            assert await drained(peer) == ([b"kept"] if present else [])
            await publisher.publish("t", b"new", 0)
            assert await drained(peer) == ([b"new"] if present else [])


@pytest.mark.statement("MQTT5-4.1.0-2")
async def test_expiry_zero_or_absent_ends_with_the_connection() -> None:
    async with Scene() as scene:
        for options in ({}, {"session_expiry_interval": 0}):
            peer = await scene.connect("a", **options)
            await peer.subscribe("t", qos=1)
            await peer.drop()
            peer = await scene.connect("a", clean_start=False)
            assert peer.connack is not None
            assert not peer.connack.session_present


@pytest.mark.statement("MQTT311-4.1.0-1", "MQTT5-4.5.0-1", "MQTT311-4.5.0-1")
@both_versions
async def test_a_resumed_session_is_whole(version: int) -> None:
    """Subscriptions, held ids of QoS 2, what was sent and not acknowledged, and what came meanwhile for it at QoS 1 and 2."""
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **keeping(version))
        await peer.subscribe("t/#", qos=2)
        await peer.send(Publish("x", b"", 2, packet_id=5))
        await peer.take(PubRec)
        await publisher.publish("t/1", b"sent", 1)
        sent = await peer.take(Publish)
        await peer.drop()
        await publisher.publish("t/2", b"queued", 2)
        await publisher.publish("t/3", b"queued too", 1)
        peer = await resume(scene, version)
        await peer.expect(Publish("t/1", b"sent", 1, dup=True, packet_id=sent.packet_id))
        await peer.send(PubAck(sent.packet_id))
        assert await drained(peer) == [b"queued", b"queued too"]
        await peer.send(Publish("x", b"", 2, dup=True, packet_id=5))
        await peer.expect(PubRec(5))
        await peer.send(PubRel(5))
        await peer.expect(PubComp(5))
        await publisher.publish("t/4", b"live")
        await peer.expect(Publish("t/4", b"live"))


@pytest.mark.statement("MQTT5-4.5.0-1", "MQTT311-4.5.0-1")
@both_versions
async def test_a_message_is_for_every_matching_session(version: int) -> None:
    async with Scene() as scene:
        away = []
        for number, filter in enumerate(("t/a", "t/+", "t/#", "#", "+/a")):
            peer = await scene.connect(f"away{number}", version, **keeping(version))
            await peer.subscribe(filter, qos=1)
            await peer.drop()
            away.append(f"away{number}")
        there = await scene.connect("there", version)
        await there.subscribe("t/a", qos=2)
        publisher = await scene.connect("p", version)
        await publisher.publish("t/a", b"x", 2)
        assert await drained(there) == [b"x"]
        for client_id in away:
            peer = await resume(scene, version, client_id)
            assert await drained(peer) == [b"x"]


# ---- 4.3 the broker as sender ------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.3.1-1", "MQTT311-4.3.1-1")
@both_versions
@pytest.mark.parametrize("published", [0, 1, 2])
async def test_qos_0_is_sent_without_dup(version: int, published: int) -> None:
    """Also where the publisher's own packet had DUP."""
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.subscribe("t")
        publisher = await scene.connect("p", version)
        await publisher.send(Publish("t", b"x", published, dup=published > 0, packet_id=1 if published else 0))
        assert (await peer.receive_frame())[0] == 0x30
        await publisher.send(Publish("t", b"x", published, retain=True, dup=published > 0, packet_id=2 if published else 0))
        assert (await peer.receive_frame())[0] == 0x30
        await peer.subscribe("t")
        assert (await peer.receive_frame())[0] == 0x31


@pytest.mark.statement("MQTT5-4.3.2-1", "MQTT5-4.3.2-2", "MQTT5-4.3.3-1", "MQTT5-4.3.3-2", "MQTT311-4.3.2-1", "MQTT311-4.3.3-1")
@both_versions
async def test_new_messages_have_unused_ids_and_no_dup(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.subscribe("t", qos=2)
        publisher = await scene.connect("p", version)
        for number in range(60):
            await publisher.send(Publish("t", b"", 1 + number % 2, dup=True, packet_id=number + 1), PubRel(number + 1))
        messages = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert [frame[0] for frame in peer.frames[-60:]] == [0x32, 0x34] * 30
        assert len({message.packet_id for message in messages}) == 60
        assert 0 not in {message.packet_id for message in messages}


@pytest.mark.statement("MQTT5-2.2.1-4", "MQTT311-2.3.1-4")
@pytest.mark.statement("MQTT5-4.3.2-1", "MQTT5-4.3.3-1", "MQTT311-4.3.2-1", "MQTT311-4.3.3-1")
@pytest.mark.parametrize("plain", [True, False])
async def test_ids_go_past_65535_and_pass_over_those_in_use(plain: bool) -> None:
    """The publisher's ids too. plain: they may be the same, in a whole read at once; with a Subscription Identifier each message has the next one."""
    async with Scene(inflight_count_max=1_000) as scene:
        peer = await scene.connect("a")
        await peer.subscribe("t", qos=2, identifier=None if plain else 1)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"", 1)
        await publisher.publish("t", b"", 2)
        held = [(await peer.take(Publish)).packet_id for _ in range(2)]
        await peer.send(PubRec(held[1]))
        await peer.expect(PubRel(held[1]))
        seen = []
        for start in range(0, 66_000, 600):
            await publisher.send(*(Publish("t", b"", 1, packet_id=(start + number) % 65_535 + 1) for number in range(600)))
            batch = [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, Publish)]
            await publisher.receive_all()
            await peer.send(*(PubAck(id) for id in batch))
            seen += batch
        assert len(seen) == 66_000
        assert 0 < min(seen) < max(seen) <= 65_535
        assert not set(seen) & set(held)


@pytest.mark.statement("MQTT5-4.3.2-3", "MQTT5-4.3.3-3", "MQTT5-4.4.0-1", "MQTT311-4.3.2-1", "MQTT311-4.3.3-1", "MQTT311-4.4.0-1")
@both_versions
@pytest.mark.parametrize("qos", [1, 2])
async def test_sent_again_on_every_resume_until_acknowledged(version: int, qos: int) -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **keeping(version))
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"x", qos)
        first = await peer.take(Publish)
        for _ in range(3):
            await scene.advance(1_000)
            await peer.expect_nothing()  # at no other time than a resume
            await peer.drop()
            peer = await resume(scene, version)
            await peer.expect(Publish("t", b"x", qos, dup=True, packet_id=first.packet_id))
        await peer.send(PubAck(first.packet_id) if qos == 1 else PubRec(first.packet_id))
        if qos == 2:
            await peer.expect(PubRel(first.packet_id))
            await peer.send(PubComp(first.packet_id))
        await peer.drop()
        peer = await resume(scene, version)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.3.3-4", "MQTT5-4.3.3-5", "MQTT5-4.3.3-6", "MQTT5-4.4.0-1", "MQTT311-4.3.3-1", "MQTT311-4.4.0-1")
@both_versions
async def test_pubrel_is_sent_again_until_pubcomp_and_the_message_never(version: int) -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **keeping(version))
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"x", 2)
        packet_id = (await peer.take(Publish)).packet_id
        await peer.send(PubRec(packet_id), PubRec(packet_id))
        await peer.expect(PubRel(packet_id), PubRel(packet_id))
        for _ in range(3):
            await peer.drop()
            peer = await resume(scene, version)
            await peer.expect(PubRel(packet_id))
            await peer.expect_nothing()
        await peer.send(PubComp(packet_id))
        await peer.drop()
        peer = await resume(scene, version)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.4.0-1", "MQTT311-4.4.0-1")
@both_versions
async def test_nothing_is_sent_again_to_a_clean_start(version: int) -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        peer = await scene.connect("a", version, **keeping(version))
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"x", 1)
        await publisher.publish("t", b"y", 2)
        await peer.drop()
        peer = await scene.connect("a", version)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.4.0-2")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x97, 0x99], ids=hex)
async def test_a_refused_message_is_not_sent_again(qos: int, code: int) -> None:
    (reason,) = codes(code)
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"x", qos)
        packet_id = (await peer.take(Publish)).packet_id
        await peer.send(PubAck(packet_id, reason) if qos == 1 else PubRec(packet_id, reason))
        await peer.expect_nothing()  # no PUBREL
        await peer.drop()
        peer = await resume(scene, V5)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.3.3-7")
@pytest.mark.parametrize("qos", [1, 2])
async def test_expiry_no_longer_counts_once_it_was_sent(qos: int) -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"x", qos, message_expiry_interval=1)
        first = await peer.take(Publish)
        await peer.drop()
        await scene.advance(10)
        peer = await resume(scene, V5)
        again = await peer.take(Publish)
        assert (again.packet_id, again.payload, again.dup) == (first.packet_id, b"x", True)


# ---- 4.3 the broker as receiver ----------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.3.2-4", "MQTT5-4.3.2-5", "MQTT311-4.3.2-2")
@both_versions
@pytest.mark.parametrize("dup", [False, True])
async def test_qos_1_is_answered_and_its_id_is_free(version: int, dup: bool) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("t")
        peer = await scene.connect("a", version)
        for again in (False, dup):
            await peer.send(Publish("t", b"x", 1, dup=again, packet_id=0x1234))
            await peer.expect_bytes(bytes.fromhex("40 02 12 34"))
        assert await watcher.payloads() == [b"x", b"x"]


@pytest.mark.statement("MQTT5-4.3.3-8", "MQTT5-4.3.3-10", "MQTT5-4.3.3-11", "MQTT5-4.3.3-12", "MQTT311-4.3.3-2")
@both_versions
async def test_qos_2_is_passed_on_once_for_each_exchange(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("t")
        peer = await scene.connect("a", version, **keeping(version))
        for payload in (b"one", b"two"):
            await peer.send(Publish("t", payload, 2, packet_id=0x1234))
            await peer.expect_bytes(bytes.fromhex("50 02 12 34"))
            # A repetition, whatever its DUP flag says and whatever is in it by now.
            await peer.send(Publish("t", payload, 2, dup=True, packet_id=0x1234), Publish("t", b"other", 2, packet_id=0x1234))
            await peer.expect_bytes(bytes.fromhex("50 02 12 34"), bytes.fromhex("50 02 12 34"))
            await peer.drop()
            peer = await resume(scene, version)
            await peer.send(Publish("t", payload, 2, dup=True, packet_id=0x1234))
            await peer.expect_bytes(bytes.fromhex("50 02 12 34"))
            await peer.send(PubRel(0x1234))
            await peer.expect_bytes(bytes.fromhex("70 02 12 34"))
        assert await watcher.payloads() == [b"one", b"two"]


@pytest.mark.statement("MQTT5-4.3.3-11", "MQTT311-4.3.3-2")
@both_versions
async def test_pubrel_of_an_unknown_id(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(PubRel(5))
        await peer.expect_bytes(bytes.fromhex("70 03 00 05 92" if version == V5 else "70 02 00 05"))
        await peer.expect_open()


@pytest.mark.statement("MQTT5-4.3.3-9")
async def test_after_a_refusing_pubrec_the_id_is_new() -> None:
    async with Scene(authorize=lambda username, client_id, action, topic: topic != "forbidden") as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("t")
        peer = await scene.connect("a")
        await peer.send(Publish("forbidden", b"x", 2, packet_id=5))
        await peer.expect_bytes(bytes.fromhex("50 03 00 05 87"))
        await peer.send(Publish("t", b"y", 2, packet_id=5))
        await peer.expect_bytes(bytes.fromhex("50 02 00 05"))
        assert await watcher.payloads() == [b"y"]
        await peer.send(PubRel(5))
        await peer.expect(PubComp(5))


@pytest.mark.statement("MQTT5-4.3.3-13")
async def test_the_handshake_of_an_expired_message_is_completed() -> None:
    """By the broker as receiver, and as sender."""
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.subscribe("t", qos=2)
        await peer.send(Publish("t", b"x", 2, packet_id=5, properties=Properties(message_expiry_interval=1)))
        message = await peer.take(Publish)
        await peer.expect(PubRec(5))
        await scene.advance(10)
        await peer.send(PubRel(5), PubRec(message.packet_id))
        await peer.expect(PubComp(5), PubRel(message.packet_id))
        await peer.send(PubComp(message.packet_id))
        await peer.expect_open()


async def test_acknowledging_with_the_wrong_packet_closes() -> None:
    """PUBACK for what is QoS 2, PUBREC for what is QoS 1: the other side has lost its place."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        for qos, wrong in ((2, PubAck), (1, PubRec)):
            peer = await scene.connect("a")
            await peer.subscribe("t", qos=2)
            await publisher.publish("t", b"x", qos)
            await peer.send(wrong((await peer.take(Publish)).packet_id))
            await peer.expect_closed(0x82)
