"""SUBSCRIBE and what it brings: retained messages, options, identifiers, shared groups, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.message import ApplicationMessage
from broker.errors import InvalidTopic
from broker.reasons import ReasonCode
from broker.wire.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    Disconnect,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    WillMessage,
)
from tests.core.harness import Peer, World

VERSIONS = pytest.mark.parametrize("version", [MQTT_5, MQTT_311])


def lasting(world: World, client_id: str, **properties: Any) -> Peer:
    return world.client(client_id, clean=False, expiry=1000, **properties)


# ---- answers ----


@VERSIONS
def test_one_code_for_each_filter(version: int) -> None:
    world = World(maximum_qos=1, filter_levels_max=3)
    peer = world.client("a", version)
    codes = peer.subscribe(("a", 0), ("b", 1), ("c", 2), ("a/#/b", 0), ("a/b/c/d", 0), ("$share/g", 0))
    invalid = ReasonCode.TOPIC_FILTER_INVALID if version == MQTT_5 else ReasonCode.UNSPECIFIED_ERROR
    assert codes == (0, 1, 1, invalid, invalid, invalid)  # [MQTT5-3.9.3-1, -2] [MQTT311-3.9.3-2]
    assert sorted(world.state.sessions["a"].subscriptions) == ["a", "b", "c"]


def test_unsubscribe_compares_the_whole_filter() -> None:
    world = World()
    peer = world.client("a")
    peer.subscribe("a/+", "$share/g/a/+", "a/b")
    gone, none = ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED
    assert peer.unsubscribe("a/+", "a/c", "$share/h/a/+", "a/+") == (gone, none, none, none)  # [MQTT5-3.10.4-1]
    assert sorted(world.state.sessions["a"].subscriptions) == ["$share/g/a/+", "a/b"]
    old = world.client("b", MQTT_311)
    assert old.unsubscribe("nothing") == ()


def test_a_session_may_have_only_so_many() -> None:
    world = World(subscriptions_count_max=2)
    peer = world.client("a")
    assert peer.subscribe("a", "b", "c", ("a", 1)) == (0, 0, ReasonCode.QUOTA_EXCEEDED, 1)


def test_a_long_filter_or_a_deep_one_counts_for_several() -> None:
    world = World(subscriptions_count_max=8)
    peer = world.client("a")
    full = ReasonCode.QUOTA_EXCEEDED
    long, deep, plain = "x" * 3000, "+" + "/x" * 50, "x" + "/x" * 50
    assert peer.subscribe(long) == (0,)  # 3
    assert peer.subscribe(long) == (0,)  # again: still
    assert peer.subscribe(deep) == (0,)  # 4 more
    assert peer.subscribe("y" * 1024, plain, "z") == (full, 0, full)
    assert peer.subscribe("+" + "/y" * 16) == (full,)
    assert peer.unsubscribe(deep) == (0,)
    assert peer.subscribe("+" + "/y" * 16, "a", "b", "c") == (0, 0, 0, full)
    world.engine.disconnect("a", ReasonCode.ADMINISTRATIVE_ACTION, 0.0, drop_session=True)
    assert world.state.topics.subscriptions_count == 0


def test_an_answer_that_the_client_could_not_take() -> None:
    world = World()
    peer = world.client("a", maximum_packet_size=30)
    peer.send(Subscribe(1, tuple(SubscriptionRequest(f"{number}") for number in range(30))))
    assert peer.ends_with(ReasonCode.PACKET_TOO_LARGE)  # it may be neither sent nor left out [MQTT5-3.1.2-24] [MQTT5-3.8.4-1]
    assert world.state.topics.subscriptions_count == 0


@pytest.mark.parametrize(
    ("limits", "request_", "identifier", "reason"),
    [
        ({"wildcard_subscription_available": False}, SubscriptionRequest("a/+"), 0, ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
        ({"wildcard_subscription_available": False}, SubscriptionRequest("$share/g/#"), 0, ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
        ({"shared_subscription_available": False}, SubscriptionRequest("$share/g/a"), 0, ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED),
        ({"subscription_identifier_available": False}, SubscriptionRequest("a"), 5, ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED),
        ({}, SubscriptionRequest("$share/g/a", no_local=True), 0, ReasonCode.PROTOCOL_ERROR),  # [MQTT5-3.8.3-4]
    ],
)
def test_what_connack_said_is_not_there(limits: dict[str, Any], request_: SubscriptionRequest, identifier: int, reason: ReasonCode) -> None:
    world = World(**limits)
    peer = world.client("a", expiry=100)
    properties = Properties(subscription_identifiers=(identifier,)) if identifier else Properties()
    peer.send(Subscribe(1, (SubscriptionRequest("fine"), request_), properties))
    assert peer.take() == [Disconnect(reason)]
    assert world.state.topics.subscriptions_count == 0


@pytest.mark.parametrize(
    ("limits", "packet", "reason"),
    [
        ({"maximum_qos": 0}, Publish("t", b"", 1, packet_id=1), ReasonCode.QOS_NOT_SUPPORTED),
        ({"maximum_qos": 1}, Publish("t", b"", 2, packet_id=1), ReasonCode.QOS_NOT_SUPPORTED),
        ({"retain_available": False}, Publish("t", b"", retain=True), ReasonCode.RETAIN_NOT_SUPPORTED),
        ({"topic_alias_maximum": 0}, Publish("t", properties=Properties(topic_alias=1)), ReasonCode.TOPIC_ALIAS_INVALID),
        ({"topic_alias_maximum": 5}, Publish("t", properties=Properties(topic_alias=6)), ReasonCode.TOPIC_ALIAS_INVALID),
        ({}, Publish("", properties=Properties(topic_alias=1)), ReasonCode.PROTOCOL_ERROR),
        ({}, Publish("t", properties=Properties(subscription_identifiers=(1,))), ReasonCode.PROTOCOL_ERROR),
    ],
)
def test_a_publish_that_ends_the_connection(limits: dict[str, Any], packet: Publish, reason: ReasonCode) -> None:
    world = World(**limits)
    watcher = world.client("w")
    watcher.subscribe("#")
    peer = world.client("a")
    peer.send(packet)
    assert peer.take() == [Disconnect(reason)]
    assert watcher.take() == []


def test_aliases_from_a_client() -> None:
    world = World()
    peer, watcher = world.client("p"), world.client("w")
    watcher.subscribe("#")
    peer.publish("one", b"1", topic_alias=1)
    peer.publish("two", b"2", topic_alias=2)
    peer.publish("", b"3", topic_alias=1)
    peer.publish("three", b"4", topic_alias=1)  # it changes its meaning
    peer.publish("", b"5", 1, 1, topic_alias=1)
    assert [(message.topic, message.payload) for message in watcher.messages()] == [
        ("one", b"1"), ("two", b"2"), ("one", b"3"), ("three", b"4"), ("three", b"5"),
    ]  # fmt: skip
    peer.detach()
    peer = world.client("p")
    peer.publish("", b"6", topic_alias=1)  # aliases end with the connection [MQTT5-3.3.2-7]
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)


def test_topics_that_clients_may_not_publish_to() -> None:
    world = World(filter_levels_max=3)
    peer, old = world.client("p"), world.client("o", MQTT_311)
    peer.publish("$SYS/x", b"", 1, 1)
    peer.publish("a/b/c/d", b"", 2, 2)
    assert peer.take() == [PubAck(1, ReasonCode.NOT_AUTHORIZED), PubRec(2, ReasonCode.TOPIC_NAME_INVALID)]
    old.publish("$SYS/x", b"", 1, 1)
    old.publish("a/b/c/d", b"", 2, 2)
    assert old.take() == [PubAck(1), PubRec(2)]  # [MQTT311-3.3.5-2]


@pytest.mark.parametrize("version", [MQTT_31, MQTT_311, MQTT_5])
def test_a_bridge_of_mosquittos_says_whether_it_is_connected(version: int) -> None:
    """Its Will lies in $SYS; refused for that it tries again for ever."""
    world = World()
    state = "$SYS/broker/connection/vm.one/state"
    watcher = world.client("w")
    watcher.subscribe(("$SYS/broker/connection/+/state", 1))
    bridge = world.client("vm.one", version, will=WillMessage(state, b"0", 1, True))
    bridge.publish(state, b"1", 1, 1, retain=True)
    assert bridge.take() == [PubAck(1)]
    bridge.detach()
    assert watcher.payloads() == [b"1", b"0"]
    stranger = world.client("s")
    for number, near in enumerate(["$SYS/broker/connection/state", "$SYS/broker/connection/a/b/state", "$SYS/broker/version/a/state"], 1):
        stranger.publish(near, b"x", 1, number)
        assert stranger.take() == [PubAck(number, ReasonCode.NOT_AUTHORIZED)]


# ---- retained messages ----


@pytest.fixture
def kept() -> World:
    world = World()
    publisher = world.client("p")
    publisher.publish("k/0", b"zero", 0, retain=True)
    publisher.publish("k/1", b"one", 1, 1, retain=True, content_type="text")
    publisher.publish("k/2", b"two", 2, 2, retain=True)
    return world


@pytest.mark.parametrize(("version", "handling"), [(MQTT_5, 0), (MQTT_5, 1), (MQTT_5, 2), (MQTT_311, 0)])
def test_retain_handling(kept: World, version: int, handling: int) -> None:
    peer = kept.client("a", version, clean=False, expiry=100 if version == MQTT_5 else None)
    request = SubscriptionRequest("k/+", 1, retain_handling=handling)
    counts = []
    for _ in range(2):
        peer.subscribe(request)
        counts.append(len(peer.messages()))
    peer.unsubscribe("k/+")
    peer.subscribe(request)
    counts.append(len(peer.messages()))
    assert counts == {0: [3, 3, 3], 1: [3, 0, 3], 2: [0, 0, 0]}[handling]  # [MQTT5-3.3.1-9, -10, -11] [MQTT311-3.8.4-3]


def test_a_resumed_subscription_exists_for_retain_handling_1(kept: World) -> None:
    peer = lasting(kept, "a")
    peer.subscribe(SubscriptionRequest("k/+", retain_handling=1))
    assert len(peer.messages()) == 3
    peer.detach()
    peer = lasting(kept, "a")
    peer.subscribe(SubscriptionRequest("k/+", 1, retain_handling=1))
    assert peer.messages() == []


def test_retained_copies(kept: World) -> None:
    peer = kept.client("a")
    peer.subscribe(("k/#", 1), identifier=9)
    got = {message.topic: message for message in peer.messages()}
    assert [(topic, got[topic].qos, got[topic].retain) for topic in sorted(got)] == [
        ("k/0", 0, True),
        ("k/1", 1, True),
        ("k/2", 1, True),
    ]  # [MQTT5-3.3.1-8]
    assert got["k/1"].properties == Properties(content_type="text", subscription_identifiers=(9,))


@pytest.mark.parametrize(("version", "as_published"), [(MQTT_5, False), (MQTT_5, True), (MQTT_311, False)])
def test_retain_as_published(version: int, as_published: bool) -> None:
    world = World()
    publisher, peer = world.client("p"), world.client("a", version)
    peer.subscribe(SubscriptionRequest("t", retain_as_published=as_published))
    for retain in (True, False, False, True):
        publisher.publish("t", b"x", retain=retain)
    expected = [True, False, False, True] if as_published else [False] * 4
    assert [message.retain for message in peer.messages()] == expected  # [MQTT5-3.3.1-12, -13] [MQTT311-3.3.1-9]


def test_an_empty_payload_removes_and_is_delivered() -> None:
    world = World()
    publisher, peer = world.client("p"), world.client("a")
    peer.subscribe("t")
    publisher.publish("t", b"x", retain=True)
    publisher.publish("t", b"plain")  # does not touch the store [MQTT5-3.3.1-8]
    publisher.publish("t", b"", retain=True)  # [MQTT5-3.3.1-6, -7]
    assert peer.payloads() == [b"x", b"plain", b""]
    assert len(world.state.retained) == 0
    late = world.client("late")
    late.subscribe("t")
    assert late.messages() == []


def test_a_shared_subscription_gets_no_retained_messages(kept: World) -> None:
    peer = kept.client("a")
    peer.subscribe(("$share/g/k/#", 2))
    assert peer.take() == []


def test_a_retained_message_expires() -> None:
    world = World()
    publisher = world.client("p")
    publisher.publish("t", b"x", retain=True, message_expiry_interval=10)
    publisher.publish("u", b"y", retain=True, message_expiry_interval=10)
    publisher.publish("u", b"z", retain=True)  # replaces it, deadline and all
    world.after(4)
    peer = world.client("a")
    peer.subscribe("#")
    assert sorted((m.topic, m.properties.message_expiry_interval) for m in peer.messages() if m.topic == "t") == [("t", 6)]
    world.after(6)
    assert [message.topic for message in world.engine.retained("#", world.now)] == ["u"]
    assert len(world.state.retained) == 1
    assert len(world.state.deadlines) == 0


def test_retained_messages_have_their_limits() -> None:
    world = World(retained_count_max=1, memory_bytes_max=1000)
    peer = world.client("p")
    peer.publish("a", b"1", 1, 1, retain=True)
    peer.publish("b", b"1", 1, 2, retain=True)
    peer.publish("a", b"2", 1, 3, retain=True)
    peer.publish("a", b"x" * 2000, 1, 4, retain=True)
    codes = [packet.reason for packet in peer.take() if isinstance(packet, PubAck)]
    no_one, full = ReasonCode.NO_MATCHING_SUBSCRIBERS, ReasonCode.QUOTA_EXCEEDED
    assert codes == [no_one, full, no_one, full]
    assert [message.payload for message in world.engine.retained("#", world.now)] == [b"2"]


def test_a_replay_goes_on_after_a_return_and_ends_with_its_subscription(kept: World) -> None:
    peer = lasting(kept, "a", receive_maximum=1)
    peer.subscribe(("k/#", 2))
    assert len(peer.messages()) >= 1
    peer.detach()
    peer = lasting(kept, "a")
    again = {message.topic for message in peer.messages()}
    assert again >= {"k/2"} or len(again) >= 2
    peer = kept.client("b", receive_maximum=1)
    peer.subscribe(("k/#", 2))
    sent = peer.messages()
    peer.unsubscribe("k/#")
    for message in sent:
        peer.acknowledge(message)
    assert peer.take() == []
    assert not kept.state.sessions["b"].replays


def test_one_that_unsubscribed_and_comes_again_gets_what_it_asks_for_now() -> None:
    """Retain Handling 2 is no word to go on with the replay of the subscription before [MQTT5-3.3.1-11]."""
    world = World(outbox_bytes_high=100)
    publisher, peer = world.client("p"), world.client("a")
    for number in range(200):
        publisher.publish(f"k/{number}", b"x" * 50, retain=True)
    peer.takes = 0
    peer.send(Subscribe(1, (SubscriptionRequest("k/#"),)), Unsubscribe(2, ("k/#",)), Subscribe(3, (SubscriptionRequest("k/#", retain_handling=2),)))
    peer.read()
    got = peer.take()
    assert isinstance(got[-1], SubAck)
    assert len(got) < 100


def test_replays_under_way_are_bounded_and_a_renewed_one_takes_its_own_place() -> None:
    world = World(retained_replays_count_max=1, outbox_bytes_high=100)
    publisher, peer = world.client("p"), world.client("a")
    for number in range(200):
        publisher.publish(f"k/{number}", b"x" * 50, retain=True)
    peer.takes = 0
    requests = [SubscriptionRequest(filter) for filter in ("k/#", "k/#", "k/+")]
    for number, request in enumerate(requests, 1):
        peer.send(Subscribe(number, (request,)))
    peer.read()
    got = peer.take()
    assert [packet.reasons for packet in got if isinstance(packet, SubAck)] == [(0,), (0,), (ReasonCode.QUOTA_EXCEEDED,)]
    assert {packet.topic for packet in got if isinstance(packet, Publish)} == {f"k/{number}" for number in range(200)}


# ---- options ----


def test_no_local() -> None:
    world = World()
    peer, other = world.client("a"), world.client("b")
    peer.subscribe(SubscriptionRequest("t", 1, no_local=True))
    for _ in range(2):
        peer.publish("t", b"mine", 1, 1)
        assert [packet.reason for packet in peer.take() if isinstance(packet, PubAck)] == [ReasonCode.NO_MATCHING_SUBSCRIBERS]
    other.publish("t", b"theirs")
    assert peer.payloads() == [b"theirs"]  # [MQTT5-3.8.3-3]
    peer.subscribe(SubscriptionRequest("+", 0))
    peer.publish("t", b"mine", 1, 2)
    assert [packet.payload for packet in peer.take() if isinstance(packet, Publish)] == [b"mine"]  # by the other subscription


def test_no_local_goes_by_the_client_and_not_the_connection() -> None:
    world = World()
    peer = lasting(world, "a")
    peer.subscribe(SubscriptionRequest("t", 1, no_local=True))
    peer.publish("t", b"1")
    peer.detach()
    peer = lasting(world, "a")
    peer.publish("t", b"2")
    assert peer.take() == []


def test_overlapping_subscriptions_give_one_copy_with_all_identifiers() -> None:
    world = World()
    peer, publisher = world.client("a"), world.client("p")
    for number, (filter, qos) in enumerate([("a/b", 0), ("a/+", 2), ("#", 1)], 1):
        peer.subscribe((filter, qos), identifier=number)
    peer.subscribe("+/b")
    publisher.publish("a/b", b"x", 2, 1)
    [message] = peer.messages()
    assert message.qos == 2  # [MQTT5-3.3.4-2]
    assert sorted(message.properties.subscription_identifiers) == [1, 2, 3]  # [MQTT5-3.3.4-4]
    publisher.publish("c", b"x")
    assert peer.pop(Publish).properties.subscription_identifiers == (3,)


def test_a_renewed_subscription_takes_the_place_of_the_old_one() -> None:
    world = World()
    peer, publisher = world.client("a"), world.client("p")
    peer.subscribe(("t", 2), identifier=1)
    peer.subscribe(("t", 0))
    publisher.publish("t", b"x", 1, 1)
    [message] = peer.messages()
    assert (message.qos, message.properties) == (0, Properties())  # [MQTT5-3.8.4-3]
    assert world.state.topics.subscriptions_count == 1


@VERSIONS
def test_wildcards_do_not_see_what_begins_with_a_dollar(version: int) -> None:
    world = World()
    peer = world.client("a", version)
    peer.subscribe("#", "+/x", "$share/g/#")
    world.engine.publish(ApplicationMessage("$SYS/x", b"1"), world.now)
    world.settle()
    assert peer.take() == []  # [MQTT5-4.7.2-1]
    peer.subscribe("$SYS/#")
    world.engine.publish(ApplicationMessage("$SYS/x", b"1"), world.now)
    world.settle()
    assert peer.payloads() == [b"1"]


# ---- shared subscriptions ----


def test_one_member_of_each_group_gets_each_message() -> None:
    world = World()
    publisher = world.client("p")
    members = [world.client(f"m{number}") for number in range(3)]
    for member in members:
        member.subscribe(("$share/g/t", 1), identifier=4)
    other, plain = world.client("o"), world.client("x")
    other.subscribe(("$share/h/t", 1), ("t", 0))
    plain.subscribe("t")
    publisher.send(*(Publish("t", b"%d" % number, 1, packet_id=number) for number in range(1, 10)))
    got = [member.messages() for member in members]
    assert [len(some) for some in got] == [3, 3, 3]
    assert sorted(message.payload for some in got for message in some) == [b"%d" % number for number in range(1, 10)]
    assert all(message.properties.subscription_identifiers == (4,) for some in got for message in some)
    assert len(other.messages()) == 18
    assert len(plain.messages()) == 9


def test_each_member_has_its_own_granted_qos() -> None:
    world = World()
    publisher, member = world.client("p"), world.client("m")
    member.subscribe(("$share/g/t", 1))
    publisher.publish("t", b"x", 2, 1)
    assert member.pop(Publish).qos == 1  # [MQTT5-4.8.2-3]


def test_members_that_cannot_take_it_are_passed_over() -> None:
    world = World()
    publisher, away, busy, free = world.client("p"), lasting(world, "away"), world.client("busy", receive_maximum=1), world.client("free")
    for member in (away, busy, free):
        member.subscribe(("$share/g/t", 1))
    away.detach()
    publisher.send(*(Publish("t", b"", 1, packet_id=number) for number in range(1, 11)))
    assert len(busy.messages()) == 1
    assert len(free.messages()) == 9


def test_an_unfinished_qos_1_message_goes_to_another_member_when_its_session_ends() -> None:
    world = World()
    publisher, first = world.client("p"), world.client("first")
    first.subscribe(("$share/g/t", 2))
    publisher.publish("t", b"one", 1, 1)
    publisher.publish("t", b"two", 2, 2)
    assert len(first.messages()) == 2
    second = world.client("second")
    second.subscribe(("$share/g/t", 2))
    first.detach()
    assert second.payloads() == [b"one"]  # never the one whose QoS 2 delivery had begun [MQTT5-4.8.2-5]


def test_what_only_waited_goes_to_another_member_whatever_its_qos() -> None:
    world = World()
    publisher, first = world.client("p"), lasting(world, "first", receive_maximum=1)
    first.subscribe(("$share/g/t", 2))
    first.subscribe(("own", 1))
    publisher.send(*(Publish("t", b"%d" % number, 2, packet_id=number) for number in range(1, 4)))
    publisher.publish("own", b"mine", 1, 9)
    publisher.publish("t", b"expired", 1, 10, message_expiry_interval=5)
    assert first.pop(Publish).payload == b"1"
    first.detach()
    second = world.client("second")
    second.subscribe(("$share/g/t", 2))
    assert second.take() == []
    world.after(999)
    assert second.take() == []
    world.after(1)  # its session ends
    assert second.payloads() == [b"2", b"3"]
    assert world.state.waiting.count == 0


def test_a_qos_2_delivery_is_finished_with_the_same_client() -> None:
    world = World()
    publisher, first, second = world.client("p"), lasting(world, "first"), world.client("second")
    first.subscribe(("$share/g/t", 2))
    publisher.publish("t", b"x", 2, 1)
    packet_id = first.pop(Publish).packet_id
    second.subscribe(("$share/g/t", 2))
    first.detach()
    first = lasting(world, "first")
    again = first.pop(Publish)  # [MQTT5-4.8.2-4]
    assert (again.packet_id, again.dup) == (packet_id, True)
    first.send(PubRec(packet_id))
    first.pop(PubRel)
    first.send(PubComp(packet_id))
    assert second.take() == []


def test_a_refusing_member_keeps_its_refusal_to_itself() -> None:
    world = World()
    publisher, first, second = world.client("p"), world.client("first"), world.client("second")
    first.subscribe(("$share/g/t", 1))
    publisher.publish("t", b"x", 1, 1)
    second.subscribe(("$share/g/t", 1))
    first.send(PubAck(first.pop(Publish).packet_id, ReasonCode.UNSPECIFIED_ERROR))
    first.detach()
    assert second.take() == []  # [MQTT5-4.8.2-6]


def test_a_group_vanishes_with_its_last_member() -> None:
    world = World()
    publisher, member = world.client("p"), lasting(world, "m")
    member.subscribe(("$share/g/t", 1))
    member.detach()
    publisher.publish("t", b"x", 1, 1)
    assert publisher.pop(PubAck).reason == 0
    world.after(1000)
    publisher.publish("t", b"x", 1, 1)
    assert publisher.pop(PubAck).reason == ReasonCode.NO_MATCHING_SUBSCRIBERS
    world.end_all()
    world.assert_empty()


# ---- who may what ----


def test_the_authorize_hook() -> None:
    asked: list[tuple[str | None, str, str, str]] = []
    forbidden = {("ann", "publish", "no"), ("ann", "subscribe", "no/#"), ("bob", "receive", "secret")}

    def authorize(user: str | None, client: str, action: str, topic: str) -> bool:
        asked.append((user, client, action, topic))
        return (user, action, topic) not in forbidden

    world = World(authorize=authorize)
    ann, bob = world.client("a", username="ann"), world.client("b", username="bob")
    old = world.client("o", MQTT_311, username="ann")
    assert ann.subscribe("no/#", "yes") == (ReasonCode.NOT_AUTHORIZED, 0)
    assert old.subscribe("no/#") == (ReasonCode.UNSPECIFIED_ERROR,)
    assert bob.subscribe("#") == (0,)
    ann.publish("no", b"0")
    ann.publish("no", b"1", 1, 1)
    ann.publish("no", b"2", 2, 2)
    assert ann.take() == [PubAck(1, ReasonCode.NOT_AUTHORIZED), PubRec(2, ReasonCode.NOT_AUTHORIZED)]
    old.publish("no", b"1", 1, 1)
    assert old.take() == [PubAck(1)]
    for _ in range(3):
        ann.publish("secret", b"x")
        ann.publish("fine", b"x")
    assert [message.topic for message in bob.messages()] == ["fine"] * 3
    before = len(asked)
    for _ in range(10):
        ann.publish("fine", b"x")
    assert len(asked) == before  # the route and the link know
    forbidden.add(("ann", "publish", "fine"))
    world.engine.forget_permissions("ann")
    ann.publish("fine", b"y", 1, 1)
    assert ann.pop(PubAck).reason == ReasonCode.NOT_AUTHORIZED
    forbidden.add(("bob", "receive", "other"))
    world.engine.forget_permissions()
    bob.take()
    ann.publish("other", b"y")
    assert bob.take() == []


def test_retained_messages_and_shared_ones_are_only_for_those_who_may() -> None:
    world = World(authorize=lambda user, client, action, topic: action != "receive" or user == "ann" or topic == "fine")
    publisher, ann, bob = world.client("p"), world.client("a", username="ann"), world.client("b", username="bob")
    publisher.publish("fine", b"1", retain=True)
    publisher.publish("secret", b"2", retain=True)
    bob.subscribe("#")
    assert bob.payloads() == [b"1"]
    bob.unsubscribe("#")
    bob.subscribe(("$share/g/#", 1))
    ann.subscribe(("$share/g/#", 1))
    publisher.send(*(Publish("secret", b"%d" % number, 1, packet_id=number) for number in range(1, 5)))
    assert len(ann.messages()) == 4
    assert bob.take() == []
    ann.detach()  # nobody is left who may have them
    assert bob.take() == []


def test_a_rule_that_fails_refuses() -> None:
    errors: list[Exception] = []

    def authorize(user: str | None, client: str, action: str, topic: str) -> bool:
        raise LookupError(topic)

    world = World(authorize=authorize, on_authorize_error=errors.append)
    peer = world.client("a")
    assert peer.subscribe("t") == (ReasonCode.NOT_AUTHORIZED,)
    peer.publish("t", b"", 1, 1)
    assert peer.pop(PubAck).reason == ReasonCode.NOT_AUTHORIZED
    assert [type(error) for error in errors] == [LookupError, LookupError]


# ---- those inside the house ----


def test_internal_subscriptions() -> None:
    world = World()
    publisher = world.client("p")
    publisher.publish("k", b"kept", 2, 1, retain=True)
    got: list[tuple[str, bytes, int, bool]] = []

    def sink(message: ApplicationMessage, qos: int, retain: bool, now: float) -> None:
        got.append((message.topic, message.payload, qos, retain))

    subscription = world.engine.subscribe_internal("house", ["k", "t/#"], 1, sink, world.now)
    publisher.publish("t/1", b"x", 2, 2)
    publisher.publish("t/2", b"y", retain=True)
    assert got == [("k", b"kept", 1, True), ("t/1", b"x", 1, False), ("t/2", b"y", 0, True)]
    assert [packet.reason for packet in publisher.take() if isinstance(packet, PubRec)] == [ReasonCode.NO_MATCHING_SUBSCRIBERS, ReasonCode.SUCCESS]
    world.engine.unsubscribe_internal(subscription, world.now)
    publisher.publish("t/1", b"z")
    assert len(got) == 3
    assert world.engine.publish(ApplicationMessage("t/1", b"z"), world.now) == ReasonCode.NO_MATCHING_SUBSCRIBERS
    for wrong in ("a/#/b", ""):
        with pytest.raises(InvalidTopic):
            world.engine.subscribe_internal("house", [wrong], 1, sink, world.now)
        with pytest.raises(InvalidTopic):
            world.engine.retained(wrong, world.now)
    with pytest.raises(InvalidTopic):
        world.engine.publish(ApplicationMessage("a/+", b""), world.now)
    world.end_all()
    world.assert_empty()


def test_the_suback_comes_before_what_follows_from_it(kept: World) -> None:
    peer = kept.client("a")
    peer.send(Subscribe(1, (SubscriptionRequest("k/#"),)), Unsubscribe(2, ("k/#",)))
    names = [type(packet).__name__ for packet in peer.take()]
    assert names[0] == "SubAck"
    assert names.count("UnsubAck") == 1
