"""Whatever happened, nothing is left of it: no table, timer or account remembers who has gone."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.link import ENDED
from broker.reasons import ReasonCode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Connect,
    Packet,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    WillMessage,
)
from tests.core.harness import World

OPERATION = st.one_of(
    st.tuples(st.just("connect"), st.integers(0, 3), st.booleans(), st.sampled_from([0, 20]), st.sampled_from([MQTT_5, MQTT_311])),
    st.tuples(st.just("subscribe"), st.integers(0, 3), st.sampled_from(["t/#", "t/1", "$share/g/t/+", "#"]), st.integers(0, 2)),
    st.tuples(st.just("unsubscribe"), st.integers(0, 3), st.sampled_from(["t/#", "$share/g/t/+"])),
    st.tuples(st.just("publish"), st.integers(0, 3), st.integers(0, 2), st.integers(1, 30), st.sampled_from([5, 90, 700]), st.booleans()),
    st.tuples(st.just("publish"), st.integers(0, 3), st.integers(0, 2), st.integers(1, 30), st.sampled_from([5, 90, 700]), st.booleans()),
    st.tuples(st.just("read"), st.integers(0, 3), st.sampled_from([0, 50, 500, 5000])),
    st.tuples(st.just("acknowledge"), st.integers(0, 3)),
    st.tuples(st.just("detach"), st.integers(0, 3)),
    st.tuples(st.just("half close"), st.integers(0, 3)),
    st.tuples(st.just("garbage"), st.integers(0, 3)),
    st.tuples(st.just("time"), st.sampled_from([0.1, 3.0, 30.0])),
    st.tuples(st.just("throw out"), st.integers(0, 3), st.booleans()),
)


def check_account(world: World) -> None:
    """The account of all is what the queues of the living hold, and what those who have ended are still sent."""
    half_closed = [link for link in world.peers if link not in world.state.links]
    queues = [session.queue for session in world.state.sessions.values()]
    queues += [link.outbox.waiting for link in world.state.links if link.connected]
    queues += [link.outbox.waiting for link in half_closed] + [link.leaving.queue for link in half_closed if link.leaving is not None]
    account = world.state.waiting
    assert account.count == sum(queue.count for queue in queues)
    assert account.bytes == sum(queue.bytes for queue in queues)
    sessions = world.state.sessions.values()
    assert account.inflight_bytes == sum(delivery.size for session in sessions for delivery in session.sender.unacknowledged.values())
    assert account.inflight_bytes == sum(session.inflight_bytes for session in sessions)
    links = [*world.state.links, *half_closed]
    assert account.unsent_bytes == sum(link.outbox.counted_bytes if link.phase == ENDED else link.outbox.committed_bytes for link in links)


@settings(max_examples=150)
@given(st.lists(OPERATION, max_size=40), st.sampled_from(["drop-oldest", "drop-newest", "latest", "disconnect", "refuse"]))
def test_whatever_happened_nothing_is_left(operations: list[Any], rule: str) -> None:
    world = World(
        overflow={"t/2": rule}, outbox_bytes_high=800, outbox_bytes_max=1500, queue_bytes_max=1500, queue_count_max=10, memory_bytes_max=4000,
        inflight_count_max=4, work_per_turn_max=15, retained_count_max=2, slow_subscriber_grace_s=1.0,
    )  # fmt: skip
    peers: dict[int, Any] = {}
    for step in operations:
        what, number = step[0], step[1]
        peer = peers.get(number) if what != "time" else None
        if what == "connect":
            fresh = world.peer(f"c{number}", step[4])
            will = WillMessage("t/1", b"will", 1, step[2], Properties(will_delay_interval=5) if step[4] == MQTT_5 else Properties())
            properties = Properties(session_expiry_interval=step[3], receive_maximum=2) if step[4] == MQTT_5 else Properties()
            fresh.send(Connect(f"c{number}", step[4], step[2], 10, will, properties=properties))
            peers[number] = fresh
        elif what == "time":
            world.after(number)
        elif what == "throw out":
            world.engine.disconnect(f"c{number}", ReasonCode.ADMINISTRATIVE_ACTION, world.now, drop_session=step[2])
            world.settle()
        elif peer is None:
            continue
        elif what == "subscribe":
            peer.send(Subscribe(1, (SubscriptionRequest(step[2], step[3]),)))
        elif what == "unsubscribe":
            peer.send(Unsubscribe(1, (step[2],)))
        elif what == "publish":
            if not peer.link.paused:
                peer.send(*(Publish(f"t/{n % 3}", b"x" * step[4], step[2], step[5], packet_id=n if step[2] else 0) for n in range(1, step[3] + 1)))
        elif what == "read":
            peer.read(step[2])
        elif what == "acknowledge":
            answers: list[Packet] = []
            for packet in peer.take():
                if isinstance(packet, Publish) and packet.qos == 1:
                    answers.append(PubAck(packet.packet_id))
                elif isinstance(packet, Publish) and packet.qos == 2:
                    answers.extend((PubRec(packet.packet_id), PubComp(packet.packet_id)))
                elif isinstance(packet, PubRec):
                    answers.append(PubRel(packet.packet_id))
            peer.send(*answers)
        elif what == "detach":
            peer.detach()
            del peers[number]
        elif what == "half close":
            peer.half_close()
        else:
            peer.give(b"\x00\x00")
        check_account(world)
        assert world.state.waiting.bytes <= 4000
        assert world.state.connected_count == sum(link.connected for link in world.state.links)
        assert len(world.state.retained) <= 2
    order = list(world.peers.values())
    random.Random(len(operations)).shuffle(order)
    for peer in order:
        peer.detach()
        check_account(world)
    world.after(1e9)
    world.assert_empty()
    assert len(world.state.deadlines) == 0
