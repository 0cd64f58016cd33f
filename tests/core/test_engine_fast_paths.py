"""The fast paths (core/relay.py, core/exchange.py) do what the general way does: the same traffic through both, and the same
comes out but for the choice of packet ids and the order of answers to one read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

import broker.core.engine as engine_module
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Packet,
    PingReq,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    SubscriptionRequest,
)
from tests.core.harness import Peer, World

VERSION = st.sampled_from([MQTT_5, MQTT_311])
PUBLISHES = st.builds(
    lambda topic, size, qos, retain, packet_id, count: (
        [Publish(topic, b"%d" % count + b"x" * size, qos, retain, False, packet_id if qos else 0)] * count
    ),
    st.sampled_from(["t", "t/1", "none"]),
    st.sampled_from([0, 1, 100, 130, 5000]),
    st.integers(0, 2),
    st.sampled_from([False, False, False, True]),
    st.integers(1, 3),
    st.integers(1, 4),
)
ODD = st.sampled_from(
    [
        Publish("t", b"odd", 0, properties=Properties(content_type="text")),
        Publish("t", b"odd", 1, packet_id=1, properties=Properties(message_expiry_interval=9)),
        PingReq(),
        Subscribe(1, (SubscriptionRequest("nothing/#", 1),)),
        PubRel(1),
        PubRel(2),
        PubAck(1),
        PubComp(1),
        PubRec(3, ReasonCode.QUOTA_EXCEEDED),
    ]
).map(lambda packet: [packet])
# (how to change the frame, where): a byte set, a byte cut out, the Remaining Length in its longer form
MUTATIONS = st.tuples(st.sampled_from(["none", "none", "none", "none", "set", "cut", "overlong"]), st.integers(0, 12), st.integers(0, 255))


def mutated(frame: bytes, mutation: tuple[str, int, int]) -> bytes:
    what, place, value = mutation
    place %= len(frame)
    if what == "set":
        return frame[:place] + bytes([value]) + frame[place + 1 :]
    if what == "cut":
        return frame[:place] + frame[place + 1 :]
    if what == "overlong" and frame[1] < 0x80:
        return frame[:1] + bytes([frame[1] | 0x80, 0]) + frame[2:]
    return frame


def read(peer: Peer) -> list[Packet]:
    """What came, without packet ids of the broker's own choice; acknowledged."""
    got = peer.take()
    answers: list[Packet] = []
    for packet in got:
        if isinstance(packet, Publish) and packet.qos == 1:
            answers.append(PubAck(packet.packet_id))
        elif isinstance(packet, Publish) and packet.qos == 2:
            answers.extend((PubRec(packet.packet_id), PubComp(packet.packet_id)))
    peer.send(*answers)
    return [structs.replace(packet, packet_id=0) if isinstance(packet, Publish | PubRel) else packet for packet in got]


def traffic(reads: list[bytes], publisher_version: int, receivers: list[tuple[int, int, dict[str, Any]]], acknowledge_each: int) -> Any:
    world = World(inflight_count_max=5, outbox_bytes_high=20_000, receive_maximum=3, packet_bytes_max=6000, slow_subscriber_grace_s=0.0)
    peers = []
    for number, (version, qos, properties) in enumerate(receivers):
        peer = world.client(f"r{number}", version, **(properties if version == MQTT_5 else {}))
        peer.subscribe((("t", "t/#", "+")[number % 3], qos))
        peers.append(peer)
    publisher = world.client("p", publisher_version)
    seen: list[list[Packet]] = [[] for _ in peers]
    for number, data in enumerate(reads):
        publisher.give(data)
        if number % acknowledge_each == 0:
            for some, peer in zip(seen, peers, strict=True):
                some.extend(read(peer))
    while any(peer.inbox for peer in peers):
        for some, peer in zip(seen, peers, strict=True):
            some.extend(read(peer))
    # A PUBREL is not bound to any place among the PUBLISHes: the fast path answers a read's acknowledgements before it sends what they made room for.
    seen = [[p for p in some if isinstance(p, Publish)] + [p for p in some if not isinstance(p, Publish)] for some in seen]
    answers = sorted(publisher.take(), key=repr)
    counters = world.engine.statistics()
    return seen, answers, publisher.link.closing, publisher.link.cause, counters


@pytest.fixture
def generally(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "relay", lambda state, link, now: True)
            patch.setattr(engine_module, "exchange", lambda state, link, session, now: True)
            return traffic(*arguments)

    return run


RECEIVERS = st.lists(
    st.tuples(VERSION, st.integers(0, 2), st.sampled_from([{}, {"topic_alias_maximum": 2}, {"maximum_packet_size": 100}, {"receive_maximum": 1}])),
    max_size=4,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    VERSION,
    st.lists(st.tuples(st.one_of(PUBLISHES, PUBLISHES, PUBLISHES, ODD), MUTATIONS), max_size=12),
    st.integers(1, 3),
    RECEIVERS,
    st.integers(1, 4),
)
def test_the_fast_paths_do_what_the_general_way_does(
    generally: Callable[..., Any], version: int, groups: list[Any], frames_each: int, receivers: list[Any], acknowledge_each: int
) -> None:
    frames = [mutated(encode(packet, version), mutation) for packets, mutation in groups for packet in packets]
    reads = [b"".join(frames[index : index + frames_each]) for index in range(0, len(frames), frames_each)]
    # Everything is said twice, so that every topic is known the second time.
    fast = traffic(reads * 2, version, receivers, acknowledge_each)
    general = generally(reads * 2, version, receivers, acknowledge_each)
    for one, other in zip(fast, general, strict=True):
        assert one == other
