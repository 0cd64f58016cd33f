"""The other broker answers PINGREQs and not what was asked: each answer has a deadline, and the connection is made anew, with nothing lost."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from broker import BridgeTopic, connect, open_broker
from broker.reasons import ReasonCode
from broker.wire.packets import (
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from tests.bridge.houses import bridge_to, houses, until, wait_cause, wait_state
from tests.client.scripted import Peer, ScriptedBroker

OUT = BridgeTopic(filter="#", qos=2)


async def play(peer: Peer, silent: type[Packet] | None, seen: list[Packet]) -> None:
    """Answer everything but that, until the end of the stream, or the test cuts it."""
    while True:
        try:
            packet = await peer.receive()
        except trio.ClosedResourceError:
            return
        if packet is None:
            break
        seen.append(packet)
        if silent is not None and isinstance(packet, silent):
            continue
        if isinstance(packet, PingReq):
            await peer.send(PingResp())
        elif isinstance(packet, Subscribe):
            await peer.send(SubAck(packet.packet_id, tuple(ReasonCode(one.qos) for one in packet.subscriptions)))
        elif isinstance(packet, Unsubscribe):
            await peer.send(UnsubAck(packet.packet_id, (ReasonCode.SUCCESS,) * len(packet.filters)))
        elif isinstance(packet, Publish) and packet.qos:
            await peer.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
        elif isinstance(packet, PubRel):
            await peer.send(PubComp(packet.packet_id))
    await peer.cut()


@pytest.mark.parametrize(("qos", "silent"), [(1, Publish), (2, Publish), (2, PubRel)])
async def test_a_message_is_acknowledged_in_time_or_the_connection_is_made_anew(
    qos: int, silent: type[Packet], autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scripted = ScriptedBroker()
    seen: list[Packet] = []
    bridge = bridge_to(scripted, OUT, answer_timeout_s=30)
    async with open_broker(bridges=[bridge]) as near, connect(near) as client, trio.open_nursery() as nursery:
        peer = await scripted.next()
        await peer.accept()
        nursery.start_soon(play, peer, silent, seen)
        await wait_state(near)
        began_at = trio.current_time()
        for number in range(3):
            await client.publish("a", str(number), qos=qos)
        peer = await scripted.next()
        assert 30 <= trio.current_time() - began_at <= 30 * 1.5 + 1
        assert near.bridges[0].timeouts_count == 1
        assert "lost: the broker has not acknowledged a message for 30 s" in caplog.text
        assert seen[-1] == Disconnect(ReasonCode.UNSPECIFIED_ERROR)
        await peer.accept(session_present=True)
        nursery.start_soon(play, peer, None, seen)
        await until(lambda: near.bridges[0].out_count == 3)
        assert near.bridges[0].dropped == {}
        await trio.sleep(1000)  # with nothing owed
        assert (near.bridges[0].timeouts_count, scripted.dialled) == (1, 2)
        nursery.cancel_scope.cancel()


async def test_a_subscription_that_is_made_again_is_granted_in_time_too(autojump_clock: trio.testing.MockClock) -> None:
    """After a Session that was lost: until then nothing is carried, so without a deadline it would be for ever."""
    scripted = ScriptedBroker()
    seen: list[Packet] = []
    bridge = bridge_to(scripted, BridgeTopic(filter="#", direction="both"), answer_timeout_s=30)
    async with open_broker(bridges=[bridge]) as near, trio.open_nursery() as nursery:
        silents: list[type[Packet] | None] = [None, Subscribe, None]
        for silent in silents:
            peer = await scripted.next()
            await peer.accept()
            nursery.start_soon(play, peer, silent, seen)
            if silent is None:
                await wait_state(near)
                await peer.cut()
            else:
                await wait_cause(near, "has not answered SUBSCRIBE or UNSUBSCRIBE for 30 s")
                assert near.bridges[0].timeouts_count == 1
        nursery.cancel_scope.cancel()


async def test_a_slow_one_is_not_a_silent_one(autojump_clock: trio.testing.MockClock) -> None:
    """A backlog that takes far longer than the deadline for one: the oldest is acknowledged again and again."""
    scripted = ScriptedBroker()
    bridge = bridge_to(scripted, OUT, answer_timeout_s=20)
    async with open_broker(bridges=[bridge]) as near, connect(near) as client:
        for number in range(100):
            await client.publish("a", str(number), qos=1)
        peer = await scripted.next()
        await peer.accept(Properties(receive_maximum=1))
        seen: list[str] = []
        while len(seen) < 100:
            packet = await peer.receive()
            if isinstance(packet, PingReq):
                await peer.send(PingResp())
                continue
            assert isinstance(packet, Publish)
            seen.append(packet.payload.decode())
            await trio.sleep(15)
            await peer.send(PubAck(packet.packet_id))
        assert seen == [str(number) for number in range(100)]
        assert near.bridges[0].timeouts_count == 0
        await peer.cut()


async def test_what_waits_to_be_sent_again_is_not_owed(autojump_clock: trio.testing.MockClock) -> None:
    """A message that is refused for now waits longer than an answer may take."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, OUT, answer_timeout_s=5)]) as near, connect(near) as client:
        await client.publish("a", "1", qos=1)
        peer = await scripted.next()
        await peer.accept()
        for _ in range(9):
            packet = await peer.receive()
            while isinstance(packet, PingReq):
                await peer.send(PingResp())
                packet = await peer.receive()
            assert isinstance(packet, Publish)
            await peer.send(PubAck(packet.packet_id, ReasonCode.QUOTA_EXCEEDED))
        await until(lambda: near.bridges[0].dropped == {"refused": 1})
        assert (near.bridges[0].timeouts_count, scripted.dialled) == (0, 1)
        await peer.cut()


async def test_one_that_does_not_read_is_given_up_without_a_keep_alive_too(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    async with houses(OUT, network=mqtt_network, keepalive_s=0, answer_timeout_s=30) as (near, _), connect(near) as client:
        mqtt_network.silence()
        await client.publish("a", bytes(200_000), qos=1)
        await wait_state(near, b"0")
        assert near.bridges[0].timeouts_count == 1
        mqtt_network.silence(False)
        await wait_state(near)
        await until(lambda: near.bridges[0].out_count == 1)
