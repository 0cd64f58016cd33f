"""A remote that answers by chance: right, wrong, late, never, with any reason code, forgetting or remembering its Session, cutting, silent.

Whatever it does the bridge has no fault of its own, and when it comes to its senses what is neither carried nor counted as dropped is carried."""

from __future__ import annotations

import logging
from random import Random

import pytest
import trio
import trio.testing

from broker import BridgeTopic, connect, open_broker
from broker.reasons import ReasonCode
from broker.wire.packets import (
    ConnAck,
    Connect,
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
from tests.bridge.houses import CLIENT_ID, bridge_to, until
from tests.bridge.test_answers import play
from tests.client.scripted import Peer, ScriptedBroker

MESSAGES_COUNT = 60
FAILED = [ReasonCode.UNSPECIFIED_ERROR, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, ReasonCode.NOT_AUTHORIZED, ReasonCode.QUOTA_EXCEEDED]
REFUSED = [ReasonCode.SERVER_BUSY, ReasonCode.SERVER_UNAVAILABLE, ReasonCode.NOT_AUTHORIZED, ReasonCode.USE_ANOTHER_SERVER]
GONE = [ReasonCode.SUCCESS, ReasonCode.SERVER_SHUTTING_DOWN, ReasonCode.RECEIVE_MAXIMUM_EXCEEDED, ReasonCode.SESSION_TAKEN_OVER]


def answers(packet: Packet, random: Random) -> list[Packet]:
    """The right ones, but for one in ten."""
    wrong = random.random() < 0.1
    failed = ReasonCode(random.choice(FAILED)) if wrong and random.random() < 0.5 else ReasonCode.SUCCESS
    if isinstance(packet, PingReq):
        return [] if wrong else [PingResp()]
    if isinstance(packet, (Subscribe, Unsubscribe)):
        count = len(packet.subscriptions if isinstance(packet, Subscribe) else packet.filters)
        if isinstance(packet, Unsubscribe) and failed == ReasonCode.QUOTA_EXCEEDED:
            failed = ReasonCode.UNSPECIFIED_ERROR  # the other is none of UNSUBACK's
        reasons = (failed,) * (count + (random.choice([0, 1]) if wrong else 0))
        return [SubAck(packet.packet_id, reasons) if isinstance(packet, Subscribe) else UnsubAck(packet.packet_id, reasons)]
    packet_id = getattr(packet, "packet_id", 0)
    if wrong and random.random() < 0.3:
        packet_id = random.randrange(1, 20)
    if wrong and random.random() < 0.3:
        return []
    if isinstance(packet, Publish) and packet.qos:
        return [PubAck(packet_id, failed) if packet.qos == 1 else PubRec(packet_id, failed)]
    if isinstance(packet, PubRel):
        return [PubComp(packet_id)]
    return []


def unasked(random: Random) -> list[Packet]:
    """What nobody has asked for."""
    qos = random.choice([0, 1, 2])
    topic = random.choice(["in/1", "in/2", "elsewhere", "$SYS/in/in"])
    return random.choice(
        [
            [Publish(topic, b"x", qos, packet_id=random.randrange(1, 5) if qos else 0)],
            [Publish(topic, b"x" * 1000, 0, retain=True)],
            [PubRel(random.randrange(1, 5))],
            [Disconnect(random.choice(GONE))],
            [PubAck(random.randrange(1, 1000))],
        ]
    )


async def err(peer: Peer, random: Random) -> None:
    """One connection, which does not last."""
    try:
        packet = await peer.receive()
        if not isinstance(packet, Connect) or random.random() < 0.1:
            return
        if random.random() < 0.1:
            await peer.send(ConnAck(False, random.choice(REFUSED)))
            return
        announced = Properties(
            receive_maximum=random.choice([None, 1, 5]),
            maximum_qos=random.choice([None, None, 0, 1]),
            retain_available=random.choice([None, None, 0]),
            wildcard_subscription_available=random.choice([None, None, None, 0]),
            maximum_packet_size=random.choice([None, None, 60]),
        )
        await peer.send(ConnAck(random.random() < 0.5, ReasonCode.SUCCESS, announced))
        with trio.move_on_after(random.choice([1, 10, 200])):
            while (packet := await peer.receive()) is not None:
                await trio.sleep(random.choice([0, 0, 0.1, 1]))
                await peer.send(*answers(packet, random), *(unasked(random) if random.random() < 0.05 else []))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    finally:
        await trio.aclose_forcefully(peer.stream)
        peer.ended.set()


@pytest.mark.parametrize("seed", range(12))
async def test_one_that_answers_by_chance(seed: int, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "broker.bridge")
    random = Random(seed)
    scripted = ScriptedBroker()
    topics = (BridgeTopic(filter="out/#", qos=2), BridgeTopic(filter="in/#", direction="in", qos=2), BridgeTopic(filter="both", direction="both"))
    bridge = bridge_to(scripted, *topics, answer_timeout_s=random.choice([5, 60]), notification_topic=random.choice([None, "told"]))
    seen: list[Packet] = []
    async with open_broker(bridges=[bridge]) as near, connect(near) as client, trio.open_nursery() as nursery:

        async def serve(erratic: trio.Event) -> None:
            while True:
                peer = await scripted.next()
                if erratic.is_set():
                    await peer.accept(session_present=True)
                    nursery.start_soon(play, peer, None, seen)
                else:
                    nursery.start_soon(err, peer, random)

        over = trio.Event()
        nursery.start_soon(serve, over)
        for number in range(MESSAGES_COUNT):
            await client.publish(f"out/{number}", str(number), qos=1 + number % 2)
            await trio.sleep(random.uniform(0, 20))
        over.set()

        def is_empty() -> bool:
            (own,) = [one for one in near.clients() if one.client_id == CLIENT_ID]
            return near.bridges[0].connected and own.queue_count + own.inflight_count == 0

        await until(is_empty, 2000, 1)
        info = near.bridges[0]
        lost = sum(count for reason, count in info.dropped.items() if reason not in ("no-mapping", "away"))
        assert info.out_count + lost >= MESSAGES_COUNT
        nursery.cancel_scope.cancel()
    assert "fault of the broker" not in caplog.text
    assert "Traceback" not in caplog.text
