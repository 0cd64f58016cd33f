"""The fast paths (core/relay.py, core/exchange.py, core/retaining.py) do what the general way does: the same traffic through both, and the same
comes out but for the choice of packet ids and the order of answers to one read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

import broker.core.receiving as receiving
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    NO_PROPERTIES,
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
PROPERTIES = st.sampled_from(
    [
        NO_PROPERTIES,
        NO_PROPERTIES,
        Properties(content_type="text", user_properties=(("a", "1"), ("a", "2"))),
        Properties(payload_format_indicator=1, response_topic="r", correlation_data=b"x" * 140),
        Properties(correlation_data=b"x" * 300),
        Properties(message_expiry_interval=9, content_type="text"),
    ]
)
PUBLISHES = st.builds(
    lambda topic, size, qos, retain, packet_id, count, properties: (
        [Publish(topic, b"%d" % count + b"x" * size, qos, retain, False, packet_id if qos else 0, properties)] * count
    ),
    st.sampled_from(["t", "t/1", "none"]),
    st.sampled_from([0, 1, 100, 130, 5000]),
    st.integers(0, 2),
    st.sampled_from([False, False, False, True]),
    st.integers(1, 3),
    st.integers(1, 4),
    PROPERTIES,
)
ALIASED = st.builds(
    lambda topic, size, qos, alias, count, more: [
        Publish(topic, b"x" * size, qos, packet_id=qos, properties=Properties(topic_alias=alias)),
        *[Publish("", b"%d" % count + b"x" * size, qos, packet_id=qos, properties=Properties(topic_alias=alias, content_type=more))] * count,
    ],
    st.sampled_from(["t", "t/1"]),
    st.sampled_from([0, 1, 90, 130]),
    st.sampled_from([0, 0, 0, 1]),
    st.integers(1, 2),
    st.integers(1, 20),
    st.sampled_from([None, None, "text"]),
)
"""A Topic Alias is set, or set anew, and used."""
SERIES = st.builds(
    lambda topic, size, qos, first_id, count, properties: [
        Publish(topic, b"%d" % number + b"x" * size, qos, packet_id=first_id + number, properties=properties) for number in range(count)
    ],
    st.sampled_from(["t", "t/1", "none"]),
    st.sampled_from([3, 130]),
    st.integers(1, 2),
    st.sampled_from([1, 250]),
    st.integers(1, 40),
    PROPERTIES,
)
"""With ids of their own, and all of one length while there are up to ten: a run."""
RELEASES = st.builds(lambda first_id, count: [PubRel(first_id + number) for number in range(count)], st.sampled_from([1, 250]), st.integers(1, 40))
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


def read(peer: Peer, in_runs: bool, at_once: int) -> list[Packet]:
    """What came; acknowledged, one by one or in runs of each kind, so many in each read of the broker's."""
    got = peer.take()
    answers: list[Packet] = []
    for packet in got:
        if isinstance(packet, Publish) and packet.qos == 1:
            answers.append(PubAck(packet.packet_id))
        elif isinstance(packet, Publish) and packet.qos == 2:
            answers.extend((PubRec(packet.packet_id), PubComp(packet.packet_id)))
    if in_runs:
        answers.sort(key=lambda packet: type(packet).__name__, reverse=True)  # PUBREC before PUBCOMP
    for start in range(0, len(answers), at_once):
        peer.send(*answers[start : start + at_once])
    return [_comparable(peer, packet) for packet in got]


def _comparable(peer: Peer, packet: Packet) -> Packet:
    """Without packet ids of the broker's own choice, and by its topic: an alias is something that the broker may use or not."""
    if isinstance(packet, PubRel):
        return structs.replace(packet, packet_id=0)
    if not isinstance(packet, Publish):
        return packet
    topic, alias = packet.topic, packet.properties.topic_alias
    if alias is not None:
        if topic:
            peer.aliases[alias] = topic
        topic = peer.aliases[alias]
    properties = structs.replace(packet.properties, topic_alias=None)
    return structs.replace(packet, packet_id=0, topic=topic, properties=properties)


def traffic(
    reads: list[bytes], publisher_version: int, receivers: list[tuple[int, int, dict[str, Any]]], acknowledge_each: int, wide: bool, at_once: int
) -> Any:
    world = World(
        inflight_count_max=60 if wide else 5,
        receive_maximum=70 if wide else 3,
        outbox_bytes_high=20_000,
        packet_bytes_max=6000,
        slow_subscriber_grace_s=0.0,
    )
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
                some.extend(read(peer, wide, at_once))
    while any(peer.inbox for peer in peers):
        for some, peer in zip(seen, peers, strict=True):
            some.extend(read(peer, wide, at_once))
    # A PUBREL is not bound to any place among the PUBLISHes: the fast path answers a read's acknowledgements before it sends what they made room for.
    seen = [[p for p in some if isinstance(p, Publish)] + [p for p in some if not isinstance(p, Publish)] for some in seen]
    answers = sorted(publisher.take(), key=repr)
    counters = world.engine.statistics()
    if any("topic_alias_maximum" in properties for _, _, properties in receivers):
        del counters["bytes_sent"]
    sessions = [session for session in world.engine.clients() if session.link is not None]
    for session in sessions:
        assert session.inflight_bytes == sum(waiting.size for waiting in session.sender.unacknowledged.values())
    assert world.state.waiting.inflight_bytes == sum(session.inflight_bytes for session in sessions)
    exchanges = [(session.sender.quota, sorted(session.sender.released), list(session.receiver.held)) for session in sessions]
    return seen, answers, publisher.link.closing, publisher.link.cause, counters, exchanges


@pytest.fixture
def generally(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(World, "takes_short_way", False)
            patch.setattr(receiving, "relay", lambda state, link, now: True)
            patch.setattr(receiving, "exchange", lambda state, link, session, now: True)
            patch.setattr(receiving, "retain", lambda state, link, now: False)
            return traffic(*arguments)

    return run


def _encoded(packet: Packet, version: int) -> bytes:
    if isinstance(packet, Publish) and version == MQTT_311:
        return encode(structs.replace(packet, topic=packet.topic or "t", properties=NO_PROPERTIES), version)
    return encode(packet, version)


RECEIVERS = st.lists(
    st.tuples(VERSION, st.integers(0, 2), st.sampled_from([{}, {"topic_alias_maximum": 2}, {"maximum_packet_size": 100}, {"receive_maximum": 1}])),
    max_size=4,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    VERSION,
    st.lists(st.tuples(st.one_of(PUBLISHES, PUBLISHES, SERIES, ALIASED, RELEASES, ODD), MUTATIONS), max_size=12),
    st.sampled_from([1, 2, 3, 30]),
    RECEIVERS,
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1000, 1000, 11, 7, 1]),
)
def test_the_fast_paths_do_what_the_general_way_does(
    generally: Callable[..., Any],
    version: int,
    groups: list[Any],
    frames_each: int,
    receivers: list[Any],
    acknowledge_each: int,
    wide: bool,
    at_once: int,
) -> None:
    # The last frame of a group is the one that is mutated.
    frames = [
        mutated(_encoded(packet, version), mutation if number == len(packets) else ("none", 0, 0))
        for packets, mutation in groups
        for number, packet in enumerate(packets, 1)
    ]
    reads = [b"".join(frames[index : index + frames_each]) for index in range(0, len(frames), frames_each)]
    # Everything is said twice, so that every topic is known the second time.
    fast = traffic(reads * 2, version, receivers, acknowledge_each, wide, at_once)
    general = generally(reads * 2, version, receivers, acknowledge_each, wide, at_once)
    for one, other in zip(fast, general, strict=True):
        assert one == other


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
@pytest.mark.parametrize("receivers", [[], [2], [2, 1, 0, 2]])
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("acknowledge_each", [1, 2, 3])
@pytest.mark.parametrize("at_once", [1000, 8, 3])
def test_full_windows_again_and_again(
    generally: Callable[..., Any], version: int, receivers: list[int], qos: int, acknowledge_each: int, at_once: int
) -> None:
    """What a load generator sends: a window of messages in one read, then every acknowledgement of a kind in one read, late or soon."""
    properties = Properties(content_type="text") if version == MQTT_5 else NO_PROPERTIES
    messages = b"".join(encode(Publish("t", b"%02d" % number, qos, packet_id=number, properties=properties), version) for number in range(25, 0, -1))
    releases = b"".join(encode(PubRel(number), version) for number in range(25, 0, -1)) if qos == 2 else b""
    some = b"".join(encode(PubRel(number), version) for number in (1, 2, 1, 25, 24, 23, 22, 21, 20, 19)) if qos == 2 else b""
    unknown = [b"".join(encode(kind(number), version) for number in range(101, 109)) for kind in (PubAck, PubRec, PubComp)]
    reads = [messages, releases] * 4 + [messages, some, releases] + unknown
    versions = itertools.cycle([version, MQTT_311 if version == MQTT_5 else MQTT_5])
    arguments: tuple[Any, ...] = reads, version, [(next(versions), one, {}) for one in receivers], acknowledge_each, True, at_once
    assert traffic(*arguments) == generally(*arguments)


@pytest.mark.parametrize(("qos", "acknowledgement"), [(1, PubAck), (2, PubRec)])
def test_a_run_that_nobody_wants_is_acknowledged_as_such(qos: int, acknowledgement: type[PubAck | PubRec], monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    publisher = world.client("p", MQTT_5)
    one, many = (
        b"".join(encode(Publish("t", b"%d" % number, qos, packet_id=number), MQTT_5) for number in numbers) for numbers in ((1,), range(2, 9))
    )
    publisher.give(one)  # the topic gets known
    assert publisher.take() == [acknowledgement(1, ReasonCode.NO_MATCHING_SUBSCRIBERS)]
    monkeypatch.setattr(receiving, "_handle", None)  # no packet goes the general way
    publisher.give(many)
    assert publisher.take() == [acknowledgement(number, ReasonCode.NO_MATCHING_SUBSCRIBERS) for number in range(2, 9)]
    session = publisher.link.session
    assert session is not None
    assert list(session.receiver.held) == ([] if qos == 1 else list(range(1, 9)))


def test_who_takes_no_packet_of_five_bytes_is_not_told_that_nobody_wanted_a_run() -> None:
    """[MQTT5-3.1.2-24]"""
    world = World()
    publisher = world.client("p", MQTT_5)
    run = b"".join(encode(Publish("t", b"%d" % number, 1, packet_id=number), MQTT_5) for number in range(1, 9))
    publisher.link.packet_bytes_max = 4
    publisher.give(run)
    publisher.give(run)
    assert publisher.take() == []
    subscriber = world.client("s", MQTT_5)
    subscriber.subscribe(("t", 0))
    publisher.give(run)
    assert publisher.take() == [PubAck(number) for number in range(1, 9)]


@pytest.mark.parametrize(("version", "again_as"), [(MQTT_5, MQTT_311), (MQTT_311, MQTT_5), (MQTT_5, MQTT_5)])
def test_runs_with_ids_of_their_own_are_repeated_whole(version: int, again_as: int) -> None:
    """The second window finds its ids in use; the properties that 3.1.1 cannot say are there again when the session goes on in 5.0."""
    world = World()
    away = world.client("away", version, clean=False, expiry=1000 if version == MQTT_5 else None)
    away.subscribe(("t", 1))
    publisher = world.client("p")
    publisher.publish("t", b"known")
    for window in range(2):
        publisher.send(*[
            Publish("t", b"%d%02d" % (window, number), 2, packet_id=number, properties=Properties(content_type="text")) for number in range(1, 31)
        ])  # fmt: skip
        publisher.send(*[PubRel(number) for number in range(1, 31)])
    first = [packet for packet in away.take() if isinstance(packet, Publish) and packet.qos]
    assert [packet.payload for packet in first] == [b"%d%02d" % (window, number) for window in range(2) for number in range(1, 31)]
    assert len({packet.packet_id for packet in first}) == 60
    away.detach()
    back = world.client("away", again_as, clean=False, expiry=1000 if again_as == MQTT_5 else None)
    again = [packet for packet in back.take() if isinstance(packet, Publish)]
    assert [(packet.packet_id, packet.payload, packet.qos, packet.dup) for packet in again] == [
        (packet.packet_id, packet.payload, 1, True) for packet in first
    ]
    assert {packet.properties.content_type for packet in again} == {"text" if again_as == MQTT_5 else None}


# ---- topics that others have published to --------------------------------------------------------------------------------


def test_a_topic_that_one_has_published_to_is_known_to_all() -> None:
    world = World()
    first, second, reader = (world.client(name) for name in ("first", "second", "reader"))
    reader.subscribe("t")
    first.publish("t", b"0")
    first.publish("t", b"1")
    second.publish("t", b"2")
    assert second.link.known_topics == first.link.known_topics == world.state.topics.remembered
    assert len(second.link.known_topics) == 1
    assert reader.payloads() == [b"0", b"1", b"2"]


def test_who_may_not_publish_there_does_not_know_it() -> None:
    world = World(authorize=lambda username, client_id, action, topic: action != "publish" or client_id == "first")
    first, second, reader = (world.client(name) for name in ("first", "second", "reader"))
    reader.subscribe("t")
    first.publish("t", b"1")
    second.publish("t", b"2")
    assert (len(first.link.known_topics), len(second.link.known_topics)) == (1, 0)
    assert reader.payloads() == [b"1"]


def test_an_alias_is_known_to_its_own_link_alone() -> None:
    world = World()
    first, second, reader = (world.client(name) for name in ("first", "second", "reader"))
    reader.subscribe("a", "b")
    for client, topic in ((first, "a"), (second, "b")):
        client.send(Publish(topic, b"1", properties=Properties(topic_alias=1)))
        client.send(*[Publish("", b"2", properties=Properties(topic_alias=1))] * 2)
    assert [message.topic for message in reader.messages()] == ["a"] * 3 + ["b"] * 3


def test_levels_beyond_a_links_own_limit_are_not_taken_from_others() -> None:
    world = World()
    first, second, reader = (world.client(name) for name in ("first", "second", "reader"))
    reader.subscribe("a/b/c")
    first.publish("a/b/c", b"1")
    second.link.limits = structs.replace(second.link.limits, filter_levels_max=2)
    second.publish("a/b/c", b"2")
    assert reader.payloads() == [b"1"]
