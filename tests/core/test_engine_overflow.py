"""What waits is bounded, for each client and for all, in number and in bytes; and what gives way is what its rule says, and is told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec import structs

from broker.core.message import ApplicationMessage
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    Packet,
    PingReq,
    Properties,
    PubAck,
    Publish,
    PubRec,
    Subscribe,
    SubscriptionRequest,
)
from tests.core.harness import World


def overflowing(rule: str, **limits: Any) -> tuple[World, Any, Any]:
    """A publisher and a receiver that never reads, whose outbox holds about ten messages and has room for ten more."""
    world = World(overflow={"t/#": rule}, outbox_bytes_high=400, outbox_bytes_max=400, queue_bytes_max=400, slow_subscriber_grace_s=0.0, **limits)
    publisher, receiver = world.client("p"), world.client("r", clean=False, expiry=100)
    receiver.subscribe(("t/#", 1))
    receiver.takes = 0
    return world, publisher, receiver


def publish_each(publisher: Any, qos: int, count: int = 60, topics: int = 3) -> list[int]:
    codes: list[int] = []
    for number in range(count):
        publisher.publish(f"t/{number % topics}", b"%03d" % number + b"x" * 30, qos, 1 if qos else 0)
        codes.extend(int(packet.reason) for packet in publisher.take() if isinstance(packet, PubAck))
    return codes


def numbers(receiver: Any) -> list[int]:
    receiver.read()
    got = []
    while receiver.inbox:
        packet = receiver.inbox.pop(0)
        if isinstance(packet, Publish):
            got.append(int(packet.payload[:3]))
            if packet.qos:
                receiver.send(PubAck(packet.packet_id))
    return got


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("rule", ["drop-oldest", "drop-newest", "latest", "refuse"])
def test_what_each_rule_keeps(rule: str, qos: int) -> None:
    world, publisher, receiver = overflowing(rule)
    codes = publish_each(publisher, qos)
    assert world.state.waiting.bytes <= 400
    got = numbers(receiver)
    dropped = world.dropped("queue-full" if qos else "overflow")
    assert len(got) + dropped == 60  # everything not delivered is counted
    committed = next((index for index, (one, two) in enumerate(itertools.pairwise(got)) if two != one + 1), len(got) - 1) + 1
    assert got[:committed] == list(range(committed))  # bytes are a promise
    if rule == "drop-oldest":
        assert got[committed:] == list(range(60 - (len(got) - committed), 60))
    elif rule == "latest":
        assert set(got[-3:]) == {57, 58, 59}
        assert len(got) >= committed + 3
    else:
        assert got == list(range(len(got)))
    if qos:
        refused = {"drop-oldest": 0, "latest": 0, "drop-newest": dropped, "refuse": dropped}[rule]
        assert codes.count(ReasonCode.QUOTA_EXCEEDED) == refused  # told when nobody could take it, or when it is the rule
        assert len(codes) == 60
    assert world.state.waiting.count == 0


@pytest.mark.parametrize("qos", [0, 1])
def test_the_rule_disconnect(qos: int) -> None:
    world, publisher, receiver = overflowing("disconnect")
    watcher = world.client("w")
    watcher.subscribe("t/#")
    publish_each(publisher, qos)
    assert receiver.link.closing
    assert len(watcher.messages()) == 60
    receiver.read()
    assert receiver.ends_with(ReasonCode.QUOTA_EXCEEDED)
    assert not publisher.link.closing
    assert not publisher.link.paused
    receiver.detach()


@pytest.mark.parametrize("properties", [Properties(), Properties(content_type="text")], ids=["fast", "general"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_rule_disconnect_against_the_publisher_itself(qos: int, properties: Properties) -> None:
    world = World(overflow={"#": "disconnect"}, outbox_bytes_high=200, outbox_bytes_max=200, queue_bytes_max=200)
    peer = world.client("p")
    peer.subscribe(("t", 2))
    peer.takes = 0
    for number in range(1, 60):
        packet = Publish("t", b"x" * 30, qos, packet_id=number if qos else 0, properties=properties)
        peer.give(encode(packet, MQTT_5) * (1 if qos else 3))
    assert peer.link.closing
    peer.read()
    assert peer.ends_with(ReasonCode.QUOTA_EXCEEDED)  # and nothing after it [MQTT5-3.14.4-1]
    peer.detach()
    world.assert_empty()


@pytest.mark.parametrize("behind", [[PingReq()], [Publish("u/2", packet_id=50, qos=1)], [Publish("u/1")] * 3], ids=["ping", "other", "run"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_nothing_counts_behind_the_message_that_closed_its_publisher(qos: int, behind: list[Packet]) -> None:
    world = World(overflow={"#": "disconnect"}, outbox_bytes_high=200, outbox_count_max=2, queue_count_max=2, inflight_count_max=1)
    peer, other = world.client("p"), world.client("o")
    peer.subscribe(("t", qos))
    other.subscribe("u/+")
    peer.send(Publish("t"), Publish("t"), Publish("u/1"), Publish("u/1"))  # known topics
    assert len(other.messages()) == 2
    peer.takes = 0
    peer.send(Publish("t", bytes(300)))
    # Two kinds in turn, so that the one which closes it is not the last of a run.
    packets = [Publish("t", bytes(30 + number % 2), qos, packet_id=number if qos else 0) for number in range(1, 9)]
    peer.send(*packets, *behind)
    assert peer.link.closing
    assert other.take() == []
    peer.read()
    assert peer.ends_with(ReasonCode.QUOTA_EXCEEDED)
    peer.detach()
    other.detach()
    world.assert_empty()


@pytest.mark.parametrize("properties", [Properties(), Properties(content_type="text"), Properties(message_expiry_interval=99)])
@pytest.mark.parametrize("together", [False, True])
def test_what_others_have_of_a_publisher_that_its_own_message_closed_comes_once(properties: Properties, together: bool) -> None:
    """It says it again when it comes back, since no PUBREC told it [MQTT5-4.3.3-10]."""
    world = World(overflow={"t": "disconnect"}, queue_count_max=2)
    other = world.client("o")
    other.subscribe(("t", 2))
    peer = world.client("p", clean=False, expiry=100, receive_maximum=1)
    peer.subscribe(("t", 1))
    packets = [Publish("t", b"%d" % number, 2, packet_id=number, properties=properties) for number in range(1, 5)]
    if together:
        peer.send(*packets)
    else:
        for packet in packets:
            peer.send(packet)
    assert peer.ends_with(ReasonCode.QUOTA_EXCEEDED)
    peer.detach()
    assert other.payloads() == [b"1", b"2", b"3", b"4"]
    peer = world.client("p", clean=False, expiry=100, receive_maximum=1)
    peer.take()
    peer.send(structs.replace(packets[3], dup=True))
    assert peer.take() == [PubRec(4)]
    assert other.take() == []


def test_refuse_is_told_although_others_took_it() -> None:
    world, publisher, _ = overflowing("refuse")
    world.client("w").subscribe(("t/#", 1))
    codes = publish_each(publisher, 1)
    assert ReasonCode.QUOTA_EXCEEDED in codes
    other_world, publisher, _ = overflowing("drop-newest")
    other_world.client("w").subscribe(("t/#", 1))
    assert set(publish_each(publisher, 1)) == {0}


def test_what_the_retained_store_has_taken_was_not_refused() -> None:
    """docs/decisions/0012-quota-exceeded.md."""
    for rule, answers in (("drop-newest", {ReasonCode.SUCCESS}), ("refuse", {ReasonCode.SUCCESS, ReasonCode.QUOTA_EXCEEDED})):
        world, publisher, _ = overflowing(rule)
        codes: list[int] = []
        for number in range(60):
            publisher.publish("t/0", b"%03d" % number + b"x" * 30, 1, 1, retain=True)
            codes.extend(int(packet.reason) for packet in publisher.take() if isinstance(packet, PubAck))
        assert set(codes) == answers
        assert world.dropped("queue-full") > 0
        late = world.client("late")
        late.subscribe(("t/0", 0))
        assert [packet.payload[:3] for packet in late.take() if isinstance(packet, Publish)] == [b"059"]  # [MQTT5-3.3.1-5]
    world, publisher, _ = overflowing("drop-newest")
    assert ReasonCode.QUOTA_EXCEEDED in publish_each(publisher, 1)  # without RETAIN nobody has it


@pytest.mark.parametrize("qos", [0, 1])
def test_latest_keeps_its_bytes_when_the_newer_ones_are_larger(qos: int) -> None:
    world, publisher, receiver = overflowing("latest")
    for size in (10, 30, 300, 390, 500):
        for number in range(20):
            publisher.publish(f"t/{number % 3}", b"x" * size, qos, 1 if qos else 0)
            assert world.state.waiting.bytes <= 400
    receiver.detach()


@pytest.mark.parametrize("limits", [{"outbox_bytes_max": 120}, {"memory_bytes_max": 320}])
def test_latest_keeps_the_newest_on_a_topic_when_it_is_larger_than_what_it_replaces(limits: dict[str, Any]) -> None:
    world = World(overflow={"#": "latest"}, slow_subscriber_grace_s=0.0, outbox_bytes_high=100, **limits)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t/#")
    receiver.take()
    receiver.takes = 0
    while not receiver.link.outbox.waiting.count:
        publisher.publish("t/old", b"x")
    queue = receiver.link.outbox.waiting
    while not world.dropped("overflow"):
        publisher.publish("t/other", b"y" * 20)
    assert queue.deliveries()[0].message.topic == "t/old"  # at the head, where the place of a larger one has to come from
    publisher.publish("t/old", b"z" * 40)
    assert [one.message.payload for one in queue.deliveries() if one.message.topic == "t/old"][-1:] == [b"z" * 40]
    assert queue.count > 1


@pytest.mark.parametrize("run", [1, 3])
@pytest.mark.parametrize("qos", [0, 1])
def test_latest_drops_what_was_overtaken_before_the_only_one_on_a_topic(qos: int, run: int) -> None:
    """What had a place when it came is no reason to lose a topic; nor is where the older one stood whose place a message took."""
    rules = {"other/#": "drop-oldest", "#": "latest"}
    world = World(overflow=rules, outbox_count_max=9, queue_count_max=9, slow_subscriber_grace_s=0.0, outbox_bytes_high=100)
    publisher, receiver = world.client("p"), world.client("r", receive_maximum=1)
    receiver.subscribe(("#", 1))
    receiver.takes = 0
    for _ in range(20):  # until it waits
        publisher.publish("first", b"x" * 20, qos, qos and 1)

    def publish(topic: str, payload: bytes) -> None:
        publisher.give(b"".join(encode(Publish(topic, payload, qos, packet_id=qos and 1 + number), 5) for number in range(run)))

    def waiting() -> list[tuple[str, bytes]]:
        session = world.state.sessions["r"]
        queue = session.queue if qos else receiver.link.outbox.waiting
        return [(one.message.topic, one.message.payload) for one in queue.deliveries()]

    publish("a", b"1")
    for number in range(8):
        publish("b", b"%d" % number)
    publish("c", b"1")
    publish("a", b"2")
    publish("d", b"1")
    assert waiting() == [("first", b"x" * 20), ("a", b"2"), ("b", b"7"), ("c", b"1"), ("d", b"1")]
    publish("b", b"8")
    assert waiting()[2:] == [("b", b"8"), ("c", b"1"), ("d", b"1")]
    publish("other/1", b"1")
    publish("other/1", b"2")
    assert [topic for topic, _ in waiting()].count("other/1") == 2 * run


def test_a_message_larger_than_the_whole_queue() -> None:
    world, publisher, receiver = overflowing("drop-oldest")
    publish_each(publisher, 0, 15)
    publisher.publish("t/0", b"x" * 1000)
    assert world.state.waiting.count == 0
    assert world.dropped("overflow") > 1
    publisher.publish("t/0", b"y", 1, 1)
    receiver.read()
    assert [packet.payload for packet in receiver.take() if isinstance(packet, Publish)][-1] == b"y"


def test_queues_are_bounded_in_number_too() -> None:
    world = World(queue_count_max=5, outbox_count_max=7, outbox_bytes_high=50, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r", clean=False, expiry=10)
    receiver.subscribe(("t", 1))
    receiver.takes = 0
    for _ in range(30):
        publisher.publish("t", b"", 0)
        publisher.publish("t", b"", 1, 1)
    assert receiver.link.outbox.waiting.count == 7
    assert receiver.link.session is not None
    assert receiver.link.session.queue.count == 5
    receiver.detach()
    assert world.state.waiting.count == 5
    world.after(10)
    assert world.state.waiting.count == 0
    assert world.dropped("session-ended") == 5  # everything not delivered is counted


def test_all_queues_and_retained_messages_together_have_one_limit() -> None:
    world = World(memory_bytes_max=2000)
    publisher = world.client("p")
    for number in range(4):
        away = world.client(f"r{number}", clean=False, expiry=100)
        away.subscribe((f"t/{number}", 1))
        away.detach()
    codes: list[int] = []
    for number in range(100):
        publisher.publish(f"t/{number % 4}", b"x" * 97, 1, 1)
        publisher.publish(f"k/{number}", b"y" * 97, 1, 1, retain=True)
        codes.extend(int(packet.reason) for packet in publisher.take() if isinstance(packet, PubAck))
        assert world.state.memory_bytes <= 2000
        assert world.state.retained.bytes <= 1500  # the last quarter is for those who are connected
    assert codes.count(ReasonCode.QUOTA_EXCEEDED) > 50
    assert world.state.waiting.count + world.dropped("queue-full") == 100


def crowd_of(count: int, filter: str, qos: int, **limits: Any) -> tuple[World, Any, list[Any]]:
    world = World(overflow={}, slow_subscriber_grace_s=0.0, **limits)
    publisher = world.client("p")
    crowd = [world.client(f"r{number}", clean=False, expiry=100) for number in range(count)]
    for peer in crowd:
        peer.subscribe((filter, qos))
    return world, publisher, crowd


@pytest.mark.parametrize("properties", [Properties(), Properties(content_type="text")], ids=["fast", "general"])
@pytest.mark.parametrize("qos", [0, 1])
def test_what_is_encoded_for_the_stuck_counts(qos: int, properties: Properties) -> None:
    """Fifty that never read, each far below its own limits: together they stay inside, and a healthy one gets everything."""
    world, publisher, stuck = crowd_of(50, "t", qos, memory_bytes_max=100_000)
    healthy = world.client("h")
    healthy.subscribe(("t", qos))
    for peer in stuck:
        peer.takes = 0
    for number in range(1000):
        publisher.send(Publish("t", b"%04d" % number + b"x" * 96, qos, packet_id=number + 1 if qos else 0, properties=properties))
        message = healthy.pop(Publish)
        if qos:
            healthy.send(PubAck(message.packet_id))
        # One message more for each, at most: it was let in before it was known that its socket is full.
        assert world.state.memory_bytes <= 100_000 + 51 * 400
    assert world.dropped("queue-full" if qos else "overflow") > 40_000
    assert not world.state.sessions["h"].dropped
    assert sum(world.state.sessions["r7"].dropped.values()) > 900
    world.end_all()
    world.assert_empty()


def test_what_is_not_acknowledged_counts_and_is_bounded() -> None:
    world, publisher, (receiver,) = crowd_of(1, "t", 1, inflight_bytes_max=10_000)
    for number in range(1, 101):
        publisher.publish("t", b"x" * 999, 1, number)
    got = receiver.messages()
    assert len(got) == 10
    session = receiver.link.session
    assert session.inflight_bytes >= 10_000
    assert world.state.waiting.inflight_bytes == session.inflight_bytes
    assert session.queue.count == 90
    receiver.detach()  # it stays in the session
    assert world.state.waiting.inflight_bytes == session.inflight_bytes
    receiver = world.client("r0", clean=False, expiry=100)
    while messages := [packet for packet in receiver.take() if isinstance(packet, Publish)]:
        receiver.send(*(PubAck(message.packet_id) for message in messages))
        assert session.inflight_bytes <= 11_000
    assert session.inflight_bytes == world.state.waiting.inflight_bytes == world.state.waiting.count == 0


@pytest.mark.parametrize("refuses", [False, True])
def test_each_way_out_of_flight_is_counted(refuses: bool) -> None:
    world, publisher, (receiver,) = crowd_of(1, "t/#", 2)
    tiny = world.client("tiny", maximum_packet_size=60)
    tiny.subscribe(("t/#", 2))
    for number, (qos, size) in enumerate(((1, 10), (2, 10), (1, 200), (2, 200)), 1):
        publisher.publish(f"t/{number}", b"x" * size, qos, number)
        publisher.publish(f"t/{number}", b"x" * size, qos, number + 10)
    for peer in (receiver, tiny):
        for message in peer.messages():
            if message.qos == 1:
                peer.send(PubAck(message.packet_id, ReasonCode.UNSPECIFIED_ERROR if refuses else ReasonCode.SUCCESS))
            else:
                peer.send(PubRec(message.packet_id, ReasonCode.UNSPECIFIED_ERROR if refuses else ReasonCode.SUCCESS))
    assert world.dropped("too-large") == 4
    assert world.state.waiting.inflight_bytes == 0
    assert world.state.sessions["r0"].inflight_bytes == world.state.sessions["tiny"].inflight_bytes == 0


def test_the_absent_never_starve_those_who_are_there() -> None:
    world, publisher, absent = crowd_of(20, "away", 1, memory_bytes_max=100_000)
    for peer in absent:
        peer.detach()
    for number in range(1, 101):
        publisher.publish("away", b"x" * 996, 1, number)
    assert 70_000 < world.state.memory_bytes <= 75_000
    there = world.client("there", receive_maximum=1)  # so that it has to queue
    there.subscribe(("t", 1))
    for number in range(200, 210):
        publisher.publish("t", b"x" * 999, 1, number)
    assert not world.state.sessions["there"].dropped
    for _ in range(10):
        there.acknowledge(there.pop(Publish))
    assert not there.inbox


def test_a_replay_of_large_retained_messages_goes_in_slices() -> None:
    world = World(outbox_bytes_high=100_000)
    for number in range(100):
        world.engine.publish(ApplicationMessage(f"k/{number}", b"x" * 50_000, 1, True), world.now)
    receiver = world.client("r")
    receiver.takes = 1000
    for qos in (0, 1):
        receiver.give(encode(Subscribe(1, (SubscriptionRequest("k/#", qos),)), MQTT_5))
        count = 0
        while world.engine.data_to_send(receiver.link):
            receiver.read(20_000)
            receiver.takes = 0
            assert receiver.link.outbox.committed_bytes <= 50_000 + 65_536 + 50_000
            for packet in receiver.take():
                if isinstance(packet, Publish):
                    count += 1
                    receiver.send(*([PubAck(packet.packet_id)] if qos else []))
        assert count == 100
