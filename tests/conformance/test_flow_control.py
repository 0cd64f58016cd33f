"""Flow control (MQTT 5.0, 4.9): the broker as sender keeps to the client's Receive Maximum, and goes on with everything else."""

from __future__ import annotations

from typing import Any

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import PingReq, PingResp, PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance.harness import NEVER, V311, Peer, Scene
from tests.conformance.shorthand import drained


async def queued(scene: Scene, maximum: int, qos: int, count: int = 6, **options: Any) -> Peer:
    """A client with this Receive Maximum, and `count` messages for it."""
    peer = await scene.connect("a", receive_maximum=maximum, session_expiry_interval=NEVER, **options)
    await peer.subscribe("t", qos=qos)
    publisher = await scene.connect("p")
    for number in range(count):
        await publisher.publish("t", b"%d" % number, qos)
    return peer


@pytest.mark.statement("MQTT5-4.9.0-1", "MQTT5-4.9.0-2")
@pytest.mark.parametrize("maximum", [1, 2, 5])
@pytest.mark.parametrize("qos", [1, 2])
async def test_never_more_under_way_than_the_receive_maximum(maximum: int, qos: int) -> None:
    async with Scene() as scene:
        peer = await queued(scene, maximum, qos)
        under_way: list[int] = []
        got = 0
        while got < 6:
            for packet in await peer.receive_all():
                if isinstance(packet, Publish):
                    under_way.append(packet.packet_id)
                    got += 1
            assert 0 < len(under_way) <= maximum
            packet_id = under_way[0]
            if qos == 1:
                await peer.send(PubAck(packet_id))
            else:
                await peer.send(PubRec(packet_id))  # gives nothing back yet
                await peer.expect(PubRel(packet_id))
                await peer.expect_nothing()
                await peer.send(PubComp(packet_id))
            under_way.pop(0)


@pytest.mark.statement("MQTT5-4.9.0-2")
async def test_what_gives_back_and_what_does_not() -> None:
    """PUBACK of any code, PUBREC of 0x80 and more, PUBCOMP of any code; not an answer to nothing, nor one twice."""
    async with Scene() as scene:
        peer = await queued(scene, 1, 2)
        packet_id = (await peer.take(Publish)).packet_id
        await peer.send(PubAck(packet_id + 1), PubComp(packet_id + 1), PubComp(packet_id))
        await peer.expect_nothing()
        await peer.send(PubRec(packet_id, ReasonCode.UNSPECIFIED_ERROR))
        packet_id = (await peer.take(Publish)).packet_id
        await peer.expect_nothing()
        await peer.send(PubRec(packet_id))
        await peer.expect(PubRel(packet_id))
        await peer.send(PubComp(packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND), PubComp(packet_id))
        await peer.take(Publish)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.9.0-3")
async def test_at_quota_zero_everything_else_goes_on() -> None:
    """QoS 0 to it; its own PUBLISHes, SUBSCRIBEs, UNSUBSCRIBEs and PINGREQs."""
    async with Scene() as scene:
        peer = await queued(scene, 1, 1)
        held = await peer.take(Publish)
        await peer.expect_nothing()
        other = await scene.connect("other")
        await other.publish("t", b"now")
        await peer.expect(Publish("t", b"now"))
        assert (await peer.subscribe("u")).reasons == (0,)
        await peer.publish("u", b"own", 0)
        await peer.expect(Publish("u", b"own"))
        assert await peer.publish("nobody", b"", 1) == 0x10
        assert await peer.publish("nobody", b"", 2) == 0x10
        assert (await peer.unsubscribe("u")).reasons == (0,)
        await peer.send(PingReq())
        await peer.expect(PingResp())
        await peer.send(PubAck(held.packet_id))
        assert await drained(peer) == [b"%d" % number for number in range(1, 6)]


@pytest.mark.statement("MQTT5-4.9.0-1", "MQTT5-4.9.0-2", "MQTT5-3.3.4-9")
async def test_the_quota_is_the_new_connections_and_repetitions_take_it() -> None:
    async with Scene() as scene:
        peer = await queued(scene, 4, 1)
        sent = [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert len(sent) == 4
        await peer.drop()
        peer = await scene.connect("a", clean_start=False, receive_maximum=1, session_expiry_interval=NEVER)
        for number in range(4):
            again = await peer.take(Publish)
            assert (again.packet_id, again.dup, again.payload) == (sent[number], True, b"%d" % number)
            await peer.expect_nothing()
            await peer.send(PubAck(again.packet_id))
        assert (await peer.take(Publish)).payload == b"4"
        await peer.expect_nothing()
        await peer.drop()
        peer = await scene.connect("a", clean_start=False, session_expiry_interval=NEVER)  # none: 65,535
        assert len(await peer.receive_all()) == 2


@pytest.mark.statement("MQTT5-4.9.0-1", "MQTT5-3.3.4-9")
@pytest.mark.parametrize("count", [1, 3, 40])
async def test_a_pubcomp_of_the_last_connection_does_not_raise_the_quota(count: int) -> None:
    """By itself, or one of a row in one read."""
    options: dict[str, Any] = {"receive_maximum": count, "session_expiry_interval": NEVER}
    async with Scene() as scene:
        peer = await scene.connect("a", **options)
        await peer.subscribe("t", qos=2)
        publisher = await scene.connect("p")
        for _ in range(3 * count):
            await publisher.publish("t", b"x", 2)
        ids = [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert len(ids) == count
        await peer.send(*map(PubRec, ids))
        await peer.expect(*map(PubRel, ids))
        await peer.drop()
        peer = await scene.connect("a", clean_start=False, **options)
        await peer.expect(*map(PubRel, ids))
        more = [packet.packet_id for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert len(more) == count
        await peer.send(*map(PubComp, ids))
        await peer.expect_nothing()
        await peer.send(*map(PubRec, more))
        await peer.expect(*map(PubRel, more))
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.9.0-1")
async def test_our_own_bound_holds_where_the_client_names_none() -> None:
    """5.0 without a Receive Maximum, and 3.1.1, which has none: at most `inflight_count_max`."""
    async with Scene(inflight_count_max=3) as scene:
        for version in (5, V311):
            peer = await scene.connect("a", version)
            await peer.subscribe("t", qos=1)
            publisher = await scene.connect("p")
            for _ in range(10):
                await publisher.publish("t", b"x", 1)
            assert len(await peer.receive_all()) == 3
            await peer.drop()
