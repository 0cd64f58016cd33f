"""Mount points: clients behind one see a broker of their own, and everybody else sees all their topics below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.mount import MOUNT_POINT_LENGTH_MAX, mount_point_fault, mounted_filter
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, ConnAck, Connect, Packet, Publish, PubRel, SubscriptionRequest, WillMessage
from tests.core.harness import Peer, World

M = "factory1/"


def inside(world: World, client_id: str, version: int = MQTT_5, **fields: Any) -> Peer:
    return world.client(client_id, version, mount_point=M, **fields)


def topics(peer: Peer) -> list[str]:
    return [message.topic for message in peer.messages()]


# ---- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount_point", ["", "a/", "a/b/", "ü/", "/"])
def test_mount_points(mount_point: str) -> None:
    assert mount_point_fault(mount_point) is None


@pytest.mark.parametrize(
    ("mount_point", "said"),
    [
        ("a", 'expected a "/" at the end'),
        ("a/+/", "wildcards"),
        ("#/", "wildcards"),
        ("$SYS/", "are the broker's"),
        ("a\0/", "U+0000"),
        ("a" * MOUNT_POINT_LENGTH_MAX + "/", "at most"),
    ],
)
def test_what_is_none(mount_point: str, said: str) -> None:
    assert said in str(mount_point_fault(mount_point))


@pytest.mark.parametrize(
    ("filter", "mounted"),
    [("a/b", "factory1/a/b"), ("#", "factory1/#"), ("+", "factory1/+"), ("$share/g/a/#", "$share/g/factory1/a/#"), ("$SYS/#", "factory1/$SYS/#")],
)
def test_filters(filter: str, mounted: str) -> None:
    assert mounted_filter(M, filter) == mounted


# ---- both sides ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_calls_a_topic_by_its_own_name(version: int, qos: int) -> None:
    world = World()
    ann, ben, zoe = inside(world, "ann", version), inside(world, "ben", version), world.client("zoe", version)
    for peer in (ann, ben, zoe):
        peer.subscribe(("#", qos))
    for publisher, topic in ((ann, "a/b"), (zoe, "factory1/a/b"), (zoe, "other/a/b")):
        for number in (1, 2):  # the second time the topic is known
            publisher.publish(topic, b"x", qos, number if qos else 0)
            if qos == 2:
                publisher.send(PubRel(number))

    def heard(peer: Peer) -> list[str]:
        return [packet.topic for packet in peer.take() if isinstance(packet, Publish)]

    assert heard(ann) == heard(ben) == ["a/b"] * 4
    assert heard(zoe) == ["factory1/a/b"] * 4 + ["other/a/b"] * 2


def test_what_lies_at_the_mount_point_itself_is_outside() -> None:
    """`factory1/#` matches "factory1" and "factory1/", of which nothing would be left."""
    world = World()
    zoe = world.client("zoe")
    zoe.publish("factory1", b"kept", retain=True)
    zoe.publish("factory1/", b"kept", retain=True)
    zoe.publish("factory1/a", b"kept", retain=True)
    ann, shared = inside(world, "ann"), inside(world, "shared")
    ann.subscribe("#")
    shared.subscribe("$share/g/#")
    for topic in ("factory1", "factory1/", "factory1/a"):
        zoe.publish(topic, b"now")
    assert topics(ann) == ["a", "a"]
    assert topics(shared) == ["a"]


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_filter_that_begins_with_a_wildcard_matches_no_topic_that_begins_with_a_dollar_for_its_client(version: int) -> None:
    """[MQTT5-4.7.2-1] [MQTT311-4.7.2-1] Both begin otherwise by their full names, by which the others go."""
    world = World()
    ann, both, shared, zoe = inside(world, "ann", version), inside(world, "both", version), inside(world, "shared", version), world.client("zoe")
    ann.subscribe("#", "+/x")
    both.subscribe(("#", 1), "$a/#")
    shared.subscribe("$share/g/#", "$share/g/+/x")
    zoe.subscribe("factory1/+/x", "$share/g/factory1/#")
    for publisher, topic in ((ann, "$a/x"), (zoe, "factory1/$a/x")):
        for _ in range(3):
            publisher.publish(topic, b"x")
    assert (topics(ann), topics(both), topics(shared)) == ([], ["$a/x"] * 6, [])
    assert topics(zoe) == ["factory1/$a/x"] * 12
    zoe.publish("factory1/$a/x", b"kept", retain=True)
    zoe.publish("factory1/b/x", b"kept", retain=True)
    for peer in (ann, both, shared, zoe):
        peer.take()
    late, deep = inside(world, "late", version), inside(world, "deep", version)
    late.subscribe("#")
    deep.subscribe("$a/+")
    assert (topics(late), topics(deep)) == (["b/x"], ["$a/x"])


def test_retained_messages() -> None:
    world = World()
    inside(world, "ann").publish("a/b", b"kept", retain=True)
    zoe, ben = world.client("zoe"), inside(world, "ben")
    zoe.subscribe("#")
    ben.subscribe("+/b")
    assert [(one.topic, one.retain) for one in (*zoe.messages(), *ben.messages())] == [("factory1/a/b", True), ("a/b", True)]
    ben.publish("a/b", b"", retain=True)
    assert world.engine.retained("#", world.now) == []


def test_shared_subscriptions_are_shared_by_all_who_mean_the_same_topics() -> None:
    world = World()
    ann, ben, zoe = inside(world, "ann"), inside(world, "ben"), world.client("zoe")
    assert ann.subscribe("$share/g/s/#") == ben.subscribe("$share/g/s/#") == zoe.subscribe("$share/g/factory1/s/#") == (0,)
    for _ in range(3):
        world.client("publisher", mount_point=M).publish("s/1", b"x")
    assert (topics(ann), topics(ben), topics(zoe)) == (["s/1"], ["s/1"], ["factory1/s/1"])
    assert ann.unsubscribe("$share/g/s/#") == (0,)
    assert ann.unsubscribe("$share/g/s/#") == (ReasonCode.NO_SUBSCRIPTION_EXISTED,)


def test_a_shared_message_whose_member_went_is_called_as_the_next_one_calls_it() -> None:
    world = World()
    ann = inside(world, "ann")
    ann.subscribe(("$share/g/s", 1))
    world.client("publisher").publish("factory1/s", b"x", 1, 1)
    zoe = world.client("zoe")
    zoe.subscribe(("$share/g/factory1/s", 1))
    ann.disconnect()
    assert topics(zoe) == ["factory1/s"]


def test_unsubscribe() -> None:
    world = World()
    ann = inside(world, "ann")
    ann.subscribe("a")
    assert ann.unsubscribe("a", "factory1/a") == (0, ReasonCode.NO_SUBSCRIPTION_EXISTED)


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_will(version: int) -> None:
    world = World()
    zoe, ben = world.client("zoe"), inside(world, "ben")
    zoe.subscribe("#")
    ben.subscribe("#")
    inside(world, "ann", version, will=WillMessage("gone/ann", b"x")).detach()
    assert (topics(zoe), topics(ben)) == (["factory1/gone/ann"], ["gone/ann"])


def test_aliases_both_ways() -> None:
    world = World()
    ann = inside(world, "ann", topic_alias_maximum=5)
    zoe = world.client("zoe")
    ann.subscribe("#")
    zoe.subscribe("#")
    ann.publish("a", b"1", topic_alias=1)
    ann.publish("", b"2", topic_alias=1)
    assert [(one.topic, one.properties.topic_alias) for one in ann.messages()] == [("a", 1), ("", 1)]
    assert topics(zoe) == ["factory1/a", "factory1/a"]


def test_what_is_no_topic_stays() -> None:
    """A response topic is the payload of those who talk; both ends of one mount point understand it, as with Mosquitto."""
    world = World()
    ann, zoe = inside(world, "ann"), world.client("zoe")
    zoe.subscribe("#")
    ann.publish("ask", b"x", response_topic="answers/ann")
    (message,) = zoe.messages()
    assert message.properties.response_topic == "answers/ann"


def test_the_brokers_own_topics_are_not_there() -> None:
    world = World()
    ann = inside(world, "ann")
    ann.subscribe("$SYS/#", "#")
    zoe = world.client("zoe")
    zoe.subscribe("factory1/$SYS/#")
    ann.publish("$SYS/x", b"x")  # not the broker's: factory1/$SYS/x
    assert (topics(ann), topics(zoe)) == (["$SYS/x"], ["factory1/$SYS/x"])


def test_a_queued_message_and_a_repeated_one() -> None:
    world = World()
    ann = inside(world, "ann", expiry=100)
    ann.subscribe(("#", 1))
    zoe = world.client("zoe")
    zoe.publish("factory1/a", b"sent", 1, 1)
    assert topics(ann) == ["a"]
    ann.detach()
    zoe.publish("factory1/b", b"queued", 1, 2)
    again = inside(world, "ann", clean=False, expiry=100)
    assert [(one.topic, one.dup) for one in again.messages()] == [("a", True), ("b", False)]


def test_a_session_stays_below_its_mount_point() -> None:
    """By another listener the same Client Identifier is somebody else: what its filters mean there is nothing that it ever asked for."""
    world = World()
    inside(world, "ann", expiry=100).subscribe(("#", 1))
    again = world.client("ann", clean=False, expiry=100)
    assert again.connack is not None
    assert not again.connack.session_present
    world.client("zoe").publish("factory1/a", b"x", 1, 1)
    assert again.take() == []


def test_the_rules_see_the_whole_topic() -> None:
    asked: list[tuple[str, str]] = []

    def authorize(username: str | None, client_id: str, action: str, topic: str) -> bool:
        asked.append((action, topic))
        return "no" not in topic.split("/")

    world = World(authorize=authorize)
    ann = inside(world, "ann", will=WillMessage("gone", b"x"))
    assert ann.subscribe("a/#", "no") == (0, ReasonCode.NOT_AUTHORIZED)
    ann.publish("a/x", b"x", 1, 1)
    ann.publish("a/no", b"x", 1, 2)
    assert ann.inbox[-1].reason == ReasonCode.NOT_AUTHORIZED  # type: ignore[union-attr]  # a PUBACK
    assert set(asked) == {
        ("publish", "factory1/gone"),
        ("subscribe", "factory1/a/#"),
        ("subscribe", "factory1/no"),
        ("publish", "factory1/a/x"),
        ("receive", "factory1/a/x"),
        ("publish", "factory1/a/no"),
    }


def test_a_topic_that_becomes_too_long() -> None:
    world = World()
    ann = inside(world, "ann")
    ann.publish("x" * 65_530, b"", 1, 1)
    assert ann.inbox[-1].reason == ReasonCode.TOPIC_NAME_INVALID  # type: ignore[union-attr]  # a PUBACK
    peer = world.peer("ben", MQTT_5, M)
    peer.send(Connect("ben", will=WillMessage("x" * 65_530, b"")))
    answer = peer.inbox[-1]
    assert isinstance(answer, ConnAck)
    assert answer.reason == ReasonCode.TOPIC_NAME_INVALID


def test_no_local() -> None:
    world = World()
    ann = inside(world, "ann")
    ann.subscribe(SubscriptionRequest("#", no_local=True))
    ann.publish("a", b"x")
    assert ann.take() == []


def test_the_fast_paths_stay_out_and_come_back() -> None:
    """A route is plain again when the last one behind a mount point has left it."""
    world = World()
    publisher, zoe = world.client("publisher"), world.client("zoe")
    zoe.subscribe("factory1/#")
    publisher.publish("factory1/a", b"1")
    publisher.publish("factory1/a", b"2")
    route = publisher.link.known_topics[b"\x00\x0afactory1/a"]
    assert route.plain
    ann = inside(world, "ann")
    ann.subscribe("#")
    frames = b"".join(encode(Publish("factory1/a", b"%d" % number), 5) for number in range(5))
    publisher.give(frames)
    assert (topics(ann), topics(zoe)) == (["a"] * 5, ["factory1/a"] * 7)
    assert not world.state.topics.route("factory1/a").plain
    ann.disconnect()
    publisher.give(frames)
    assert topics(zoe) == ["factory1/a"] * 5
    assert world.state.topics.route("factory1/a").plain
    assert not ann.link.known_topics


# ---- a broker of their own -------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b"])
told_topics = st.sampled_from(["t", "t/u", "x", "$d/u"])
filters = st.sampled_from(["#", "t", "t/+", "+/u", "$d/+", "$share/g/t/#", "$share/g/#", "x/#"])
steps = st.one_of(
    st.tuples(st.just("publish"), names, told_topics, st.integers(0, 2), st.booleans(), st.sampled_from([b"", b"1", b"2"])),
    st.tuples(st.just("subscribe"), names, filters, st.integers(0, 2), st.booleans()),
    st.tuples(st.just("unsubscribe"), names, st.sampled_from(["#", "t", "$share/g/t/#", "$share/g/#"])),
    st.tuples(st.just("drop"), names),
    st.tuples(st.just("come"), names, st.booleans()),
)


class Story:
    """Two clients, and all that they were told."""

    def __init__(self, version: int, mount_point: str) -> None:
        self.world = World()
        self.version = version
        self.mount_point = mount_point
        self.peers: dict[str, Peer] = {}
        self.heard: list[tuple[str, str]] = []
        self.number = 0
        if mount_point:  # somebody outside, who is not to make a difference
            self.world.client("outside").subscribe(("#", 0))

    def do(self, step: tuple[Any, ...]) -> None:
        kind, name, *rest = step
        peer = self.peers.get(name)
        self.number += 1
        if kind == "come":
            if peer is None:
                expiry = 1000 if self.version == MQTT_5 else None
                will = WillMessage("x/gone", b"w", 1)
                self.peers[name] = self.world.client(name, self.version, clean=rest[0], expiry=expiry, will=will, mount_point=self.mount_point)
        elif peer is None:
            return
        elif kind == "drop":
            self.peers.pop(name).detach()
        elif kind == "publish":
            topic, qos, retain, payload = rest
            peer.publish(topic, payload, qos, self.number if qos else 0, retain=retain)
        elif kind == "subscribe":
            self.heard.append((name, repr(peer.subscribe((rest[0], rest[1]), packet_id=self.number))))
        else:
            self.heard.append((name, repr(peer.unsubscribe(*rest, packet_id=self.number))))
        for each, one in self.peers.items():
            self.heard += [(each, told(packet)) for packet in one.take()]


def told(packet: Packet) -> str:
    """Without the packet id, which the fast paths choose otherwise."""
    if isinstance(packet, Publish):
        return repr((packet.topic, packet.payload, packet.qos, packet.retain, packet.dup, packet.properties))
    return type(packet).__name__


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_mounted_broker_is_as_good_as_ones_own(version: int) -> None:
    @given(st.lists(steps, max_size=25))
    def compare(script: list[tuple[Any, ...]]) -> None:
        stories = [Story(version, ""), Story(version, M)]
        for step in [("come", "a", True), ("come", "b", True), *script]:
            for story in stories:
                story.do(step)
        assert sorted(stories[1].heard) == sorted(stories[0].heard)

    run: Callable[[], None] = compare
    run()
