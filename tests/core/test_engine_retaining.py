"""The fast way into the retained store does what the general way does: the same traffic through both, then the same is kept and replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

import broker.core.receiving as receiving
from broker.core.kept import Kept, size_of
from broker.core.retained import RetainedStore
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, Packet, PingReq, Properties, PubAck, Publish, Subscribe, SubscriptionRequest
from tests.core.harness import Peer, World
from tests.core.test_engine_fast_paths import MUTATIONS, PROPERTIES, mutated

VERSION = st.sampled_from([MQTT_5, MQTT_311])
TOPIC = st.sampled_from(
    ["t", "t/1", "t/1/a", "t/1/b", "t/2/a", "u", "/", "t/é", "t/1/\x7f", "$x/1", "$SYS/x", "a/b/c/d/e/f", "w/1", "t/" + "x" * 130]
)
MESSAGE = st.builds(
    lambda topic, size, qos, retain, number, properties: Publish(
        topic, b"%d" % number * size, qos, retain, False, number + 1 if qos else 0, properties
    ),
    TOPIC,
    st.sampled_from([0, 1, 1, 1, 9, 124, 3000]),
    st.sampled_from([0, 0, 0, 1, 1, 2]),
    st.sampled_from([True, True, True, True, False]),
    st.integers(0, 9),
    PROPERTIES | st.sampled_from([Properties(message_expiry_interval=0), Properties(message_expiry_interval=3)]),
)
ALIASED = st.builds(
    lambda topic, payload: Publish(topic, payload, 0, True, properties=Properties(topic_alias=1)), st.sampled_from(["", "t/9"]), st.binary()
)
LIMITS = st.sampled_from(
    [{}, {}, {"retained_count_max": 4}, {"memory_bytes_max": 9000}, {"work_per_turn_max": 3}, {"filter_levels_max": 5}, {"retain_available": False}]
)
LIVE = st.lists(st.tuples(VERSION, st.sampled_from(["t/1/a", "t/#", "+/1", "#", "w/+", "$share/g/t/1/+", "t/1/b"]), st.booleans()), max_size=3)
MARKED = Publish("t/1", b"x", 0, True)

TO_ITSELF = Publish("w/1", b"x", 0, True)
LONG = [Publish(f"t/{number}", b"x" * 90, 0, True) for number in range(36)]
NOWHERE = Publish("", b"x", 0, True, properties=Properties(topic_alias=1))


def taken(peer: Peer) -> list[Packet]:
    """By topic and not by alias, which the broker may use or not."""
    found: list[Packet] = []
    for packet in peer.take():
        alias = packet.properties.topic_alias if isinstance(packet, Publish) else None
        if isinstance(packet, Publish) and alias is not None:
            topic = peer.aliases[alias] = packet.topic or peer.aliases[alias]
            packet = structs.replace(packet, topic=topic, properties=structs.replace(packet.properties, topic_alias=None))
        found.append(packet)
    return found


def may(username: str | None, client_id: str, action: str, topic: str) -> bool:
    return topic not in ("t/2/a", "u") or action == "subscribe" or (topic == "u") == (action == "publish")


def traffic(reads: list[bytes], version: int, live: list[tuple[int, str, bool]], limits: dict[str, Any], restricted: bool) -> Any:
    world = World(authorize=may if restricted else None, **limits)
    listeners = []
    for number, (its_version, filter, takes_all) in enumerate(live):
        peer = world.client(f"l{number}", its_version)
        peer.send(Subscribe(1, (SubscriptionRequest(filter, 0, retain_as_published=its_version == MQTT_5),)))
        if not takes_all:
            peer.takes = 300  # and is stuck then
        listeners.append(peer)
    publisher = world.client("p", version)
    if version == MQTT_5:
        publisher.send(Subscribe(2, (SubscriptionRequest("w/#", 0, no_local=True),)))
    for data in reads:
        publisher.give(data)
        assert world.state.waiting.bytes + world.state.retained.bytes <= world.state.limits.memory_bytes_max
    world.settle()
    live_got = [taken(peer) for peer in listeners]
    answers = sorted(publisher.take(), key=repr)
    end = publisher.link.closing, publisher.link.cause
    for peer in [publisher, *listeners]:
        peer.detach()
    kept = sorted((repr(message), message.payload, message.properties, message.expires_at) for message in world.engine.retained("#", world.now))
    assert world.state.retained.bytes == sum(map(size_of, kept_frames(world)))
    replays = []
    readers: list[tuple[int, int, dict[str, Any]]] = [
        (MQTT_311, 0, {}), (MQTT_5, 0, {}), (MQTT_311, 2, {}), (MQTT_5, 1, {}), (MQTT_5, 0, {"topic_alias_maximum": 2})
    ]  # fmt: skip
    if not end[0]:
        for number, (its_version, qos, extra) in enumerate(readers):
            peer = world.client(f"r{number}", its_version, **extra)
            identifier = Properties(subscription_identifiers=(200,)) if number == 3 else NO_PROPERTIES
            peer.send(Subscribe(1, (SubscriptionRequest("#", qos), SubscriptionRequest("$x/+", qos)), identifier))
            replays.append(sorted([structs.replace(packet, packet_id=0) for packet in taken(peer) if isinstance(packet, Publish)], key=repr))
            peer.detach()
    statistics = world.engine.statistics()
    del statistics["bytes_sent"]
    return live_got, answers, end, kept, replays, statistics


def kept_frames(world: World) -> list[Kept]:
    store = world.state.retained
    return [kept for filter in ("#", "$/#", "$x/#", "$SYS/#") for kept in store.cursor(filter).next_batch(1 << 60, 1 << 60, -math.inf)]


def everything(world: World) -> list[Any]:
    return [*world.engine.retained("#", world.now), *world.engine.retained("$x/#", world.now), *world.engine.retained("$SYS/#", world.now)]


@pytest.fixture
def generally(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(receiving, "retain", lambda state, link, now: False)
            return traffic(*arguments)

    return run


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=VERSION,
    messages=st.lists(st.one_of(MESSAGE, MESSAGE, MESSAGE, MESSAGE, ALIASED, st.just(PingReq())), min_size=6, max_size=25),
    mutation=MUTATIONS,
    frames_each=st.sampled_from([1, 3, 30]),
    live=LIVE,
    limits=LIMITS,
    restricted=st.booleans(),
)
@example(version=MQTT_5, messages=[MARKED], mutation=("set", 4, 0xFF), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_5, messages=[MARKED], mutation=("set", 4, 0x2B), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_5, messages=[MARKED], mutation=("set", 4, 0x00), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_311, messages=[MARKED], mutation=("set", 4, 0x23), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_311, messages=[MARKED], mutation=("set", 4, 0x24), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_5, messages=[TO_ITSELF], mutation=("none", 0, 0), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_5, messages=[NOWHERE], mutation=("none", 0, 0), frames_each=1, live=[], limits={}, restricted=False)
@example(version=MQTT_5, messages=LONG, mutation=("none", 0, 0), frames_each=36, live=[(MQTT_311, "t/#", False)], limits={}, restricted=False)
@example(
    version=MQTT_5,
    messages=LONG,
    mutation=("none", 0, 0),
    frames_each=36,
    live=[(MQTT_311, "t/#", False)],
    limits={"memory_bytes_max": 5500, "slow_subscriber_grace_s": 0.0},
    restricted=False,
)
def test_the_fast_way_does_what_the_general_way_does(
    generally: Callable[..., Any], version: int, messages: list[Any], mutation: Any, frames_each: int, live: list[Any], limits: Any, restricted: bool
) -> None:
    frames: list[bytes] = []
    for packet in messages:
        if version == MQTT_311 and isinstance(packet, Publish):
            packet = structs.replace(packet, topic=packet.topic or "t", properties=NO_PROPERTIES)
        frames.append(encode(packet, version))
    if frames:
        frames[-1] = mutated(frames[-1], mutation)
    reads = [b"".join(frames[index : index + frames_each]) for index in range(0, len(frames), frames_each)]
    fast = traffic(reads, version, live, limits, restricted)
    general = generally(reads, version, live, limits, restricted)
    for one, other in zip(fast, general, strict=True):
        assert one == other


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_read_of_many_topics_is_kept_in_one_step_and_replayed_whole(version: int) -> None:
    world = World()
    publisher = world.client("p", version)
    publisher.send(*[Publish(f"house/{number // 10}/{number % 10}", b"%d" % number, 0, True) for number in range(500)])
    assert len(world.state.retained) == 500
    for reader_version in (MQTT_311, MQTT_5):
        reader = world.client("r", reader_version)
        reader.subscribe("house/#")
        assert sorted(reader.payloads()) == sorted(b"%d" % number for number in range(500))
    assert world.engine.statistics()["publish_received"] == 500


def test_a_message_that_expired_there_before_does_not_take_the_new_one_along() -> None:
    world = World()
    publisher = world.client("p")
    publisher.send(Publish("t/1", b"old", 0, True, properties=Properties(message_expiry_interval=5)))
    publisher.send(Publish("t/1", b"new", 0, True))
    assert world.state.deadlines.next_at() == float("inf")
    world.after(10)
    assert [message.payload for message in world.engine.retained("#", world.now)] == [b"new"]


@pytest.mark.parametrize("frame", [b"\x31\x04\x00\x00ab", b"\x31\x02\x00\x05ab", b"\x31\x04\x00\x05ab"])
def test_a_topic_that_is_none_ends_the_connection(frame: bytes) -> None:
    world = World()
    publisher = world.client("p", MQTT_311)
    publisher.give(encode(MARKED, MQTT_311) + frame + encode(MARKED, MQTT_311) * 2)
    assert publisher.link.closing
    assert world.engine.statistics()["publish_received"] == 1


def test_who_is_held_up_for_its_only_recipient_keeps_nothing_meanwhile() -> None:
    world = World(outbox_bytes_high=1024)
    reader = world.client("r")
    reader.subscribe("#")
    reader.takes = 0
    publisher = world.client("p")
    publisher.send(*LONG)
    assert publisher.link.paused
    assert 0 < len(world.state.retained) < 20
    reader.read()
    assert len(world.state.retained) == 36
    assert len(reader.payloads()) == 36


def test_a_full_store_answers_for_each_message_as_ever() -> None:
    world = World(retained_count_max=2)
    publisher = world.client("p")
    publisher.send(*[Publish(f"t/{number}", b"x", 0, True) for number in range(4)])
    publisher.send(Publish("t/9", b"x", 1, True, packet_id=1), Publish("t/1", b"y", 0, True))
    assert sorted((message.topic, message.payload) for message in world.engine.retained("#", world.now)) == [("t/0", b"x"), ("t/1", b"y")]
    assert publisher.take() == [PubAck(1, ReasonCode.QUOTA_EXCEEDED)]
    assert world.dropped("not-accepted") == 2


@pytest.mark.parametrize("again_as", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_replayed_and_not_acknowledged_is_repeated(qos: int, version: int, again_as: int) -> None:
    world = World()
    properties = Properties(content_type="text") if version == MQTT_5 else NO_PROPERTIES
    world.client("p", version).publish("t/1", b"x", qos, 1, retain=True)
    world.client("q", version).send(Publish("t/2", b"y", qos, True, packet_id=2, properties=properties))
    reader = world.client("r", version, clean=False, expiry=1000 if version == MQTT_5 else None)
    reader.subscribe(("t/+", 2))
    first = reader.messages()
    world.client("p").publish("t/1", b"newer", 0, retain=True)
    assert sorted((message.topic, message.payload, message.qos, message.retain) for message in first) == [
        ("t/1", b"x", qos, True),
        ("t/2", b"y", qos, True),
    ]
    assert world.state.waiting.inflight_bytes == sum(len(encode(structs.replace(message, qos=0, packet_id=0), version)) for message in first)
    reader.detach()
    back = world.client("r", again_as, clean=False, expiry=1000 if again_as == MQTT_5 else None)
    again = [message for message in back.messages() if message.dup]
    assert [(message.packet_id, message.topic, message.payload, message.qos, message.retain) for message in again] == [
        (message.packet_id, message.topic, message.payload, qos, True) for message in first
    ]
    expected = properties.content_type if again_as == MQTT_5 else None
    assert {message.properties.content_type for message in again if message.topic == "t/2"} == {expected}


def test_the_walk_is_not_needed_where_neighbours_were_kept_before() -> None:
    """The nodes that are known by name go with their last message, and what is put there afterwards is found from the root."""
    store = RetainedStore()
    world = World()
    world.state.retained = store
    publisher = world.client("p")
    for _ in range(3):
        publisher.send(*[Publish(f"a/b/{number}", b"x", 0, True) for number in range(4)])
        assert len(world.engine.retained("a/b/+", world.now)) == 4
        publisher.send(*[Publish(f"a/b/{number}", b"", 0, True) for number in range(4)])
        assert world.engine.retained("#", world.now) == []
        publisher.send(Publish("a", b"x", 0, True), Publish("a/b", b"x", 0, True), Publish("a/b/1", b"y", 0, True), Publish("a", b"", 0, True))
        assert sorted(message.topic for message in world.engine.retained("a/#", world.now)) == ["a/b", "a/b/1"]
        publisher.send(Publish("a/b", b"", 0, True), Publish("a/b/1", b"", 0, True))
        assert (len(store), store.bytes) == (0, 0)
