"""Every verb is bounded for each call, shown by counts and not by time; and what was put off comes in the end."""

from __future__ import annotations

import gc
import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from broker.core.deadlines import SESSION_EXPIRY
from broker.core.delivery import REPLAY_STEP_WORK, REPLAY_VISITS_COUNT
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import ENDED, Link
from broker.core.message import ApplicationMessage
from broker.core.session import Session
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Connect,
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
    Unsubscribe,
    WillMessage,
)
from tests.core.harness import World


class Crowd:
    """Many links with as little around them as can be: bytes that come are counted, not decoded."""

    def __init__(self, **limits: Any) -> None:
        self.engine = Engine(Limits(**limits), new_client_id=lambda: "x")
        self.state = self.engine.state
        self.bytes: Counter[Link] = Counter()
        self.most_work = 0

    def client(self, client_id: str, *packets: Packet, version: int = MQTT_311, **properties: Any) -> Link:
        link = self.engine.attach(client_id, 0.0)
        expiry = properties.pop("clean", True)
        connect = Connect(client_id, version, expiry, properties=Properties(**properties))
        self.engine.receive(link, b"".join(encode(packet, version) for packet in (connect, *packets)), 0.0)
        self.flush()
        return link

    def flush(self) -> int:
        sent = 0
        for link in self.engine.take_ready():
            while data := self.engine.data_to_send(link):
                sent += len(data)
                self.bytes[link] += len(data)
                self.engine.bytes_sent(link, len(data), 0.0)
                self.most_work = max(self.most_work, self.state.work)
        return sent

    def delivered(self) -> int:
        return self.state.counters.publish_sent


# ---- 64 KiB of small frames to 1,000 subscribers ----


@pytest.mark.parametrize("kind", ["plain", "identifiers", "qos 0", "qos 0 with aliases", "shared"])
def test_64_kib_of_the_smallest_frames_to_1000_subscribers(kind: str) -> None:
    """A fiftieth of 64 KiB shows it, with a budget of 2,000: all of it would be 9 million deliveries. A run at QoS 0 that goes
    out as one slice of what was read counts once for each recipient, however many frames it has."""
    work_max = 2000
    crowd = Crowd(work_per_turn_max=work_max, inflight_count_max=65_535, outbox_bytes_high=1 << 30)
    version = MQTT_5 if kind in ("identifiers", "qos 0 with aliases") else MQTT_311
    qos = 0 if kind.startswith("qos 0") else 1
    filter = "$share/g/t" if kind == "shared" else "t"
    extra = {"topic_alias_maximum": 5} if kind == "qos 0 with aliases" else {}
    identifier = Properties(subscription_identifiers=(3,)) if kind == "identifiers" else Properties()
    for number in range(1000):
        crowd.client(f"s{number}", Subscribe(1, (SubscriptionRequest(filter, qos),), identifier), version=version, **extra)
    publisher = crowd.client("p", version=version)
    frame = encode(Publish("t", b"", qos, packet_id=qos), version)
    count = 65_536 // len(frame) // 50
    data = frame * count
    if kind == "qos 0 with aliases":  # used only where no two frames in a row are alike
        data = (frame + encode(Publish("t", b"x"), version)) * (count // 2)
        count = count // 2 * 2
    most = 0
    calls = 0
    more = True
    while more:
        before = crowd.delivered()
        more = crowd.engine.receive(publisher, data, 0.0)
        data = b""
        calls += 1
        assert crowd.state.work <= work_max + 1001
        most = max(most, crowd.delivered() - before)
        crowd.flush()
    assert crowd.delivered() == count * (1 if kind == "shared" else 1000)
    if kind != "qos 0":
        assert most <= work_max + 1000
    if kind not in ("qos 0", "shared"):
        assert calls >= count * 1000 // (work_max + 1000)


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_each_turn_of_a_whole_64_kib_to_1000_subscribers(version: int) -> None:
    """The read itself, with the limits as they are: 8,000 to 9,000 frames, and so many million deliveries still to come after any of these turns."""
    crowd = Crowd()
    for number in range(1000):
        crowd.client(f"s{number}", Subscribe(1, (SubscriptionRequest("t", 1),)), version=version)
    publisher = crowd.client("p", version=version)
    frame = encode(Publish("t", b"", 1, packet_id=1), version)
    data = frame * (65_536 // len(frame))
    budget = crowd.state.limits.work_per_turn_max + 1001
    for _ in range(5):
        before = crowd.delivered() + crowd.state.waiting.count
        assert crowd.engine.receive(publisher, data, 0.0)
        data = b""
        assert crowd.state.work <= budget
        assert 0 < crowd.delivered() + crowd.state.waiting.count - before <= budget
        crowd.flush()


def test_64_kib_of_the_smallest_frames_to_1000_that_are_stuck() -> None:
    """Then each message waits for each of them by itself: what is counted is what waits and what is dropped."""
    work_max = 2000
    crowd = Crowd(work_per_turn_max=work_max, outbox_bytes_high=10, outbox_count_max=5, slow_subscriber_grace_s=0.0)
    stuck = [crowd.client(f"s{number}", Subscribe(1, (SubscriptionRequest("t", 0),))) for number in range(1000)]
    publisher = crowd.client("p")
    frame = encode(Publish("t", b""), MQTT_311)
    crowd.engine.receive(publisher, frame * 20, 0.0)
    crowd.engine.take_ready()
    handled = crowd.delivered() + crowd.state.waiting.count + crowd.state.counters.publish_dropped
    assert all(link.outbox.committed_bytes >= 10 for link in stuck)
    data = frame * 480
    more = True
    while more:
        more = crowd.engine.receive(publisher, data, 0.0)
        data = b""
        before, handled = handled, crowd.delivered() + crowd.state.waiting.count + crowd.state.counters.publish_dropped
        assert crowd.state.work <= work_max + 1000
        assert handled - before <= work_max + 1000
    assert handled == 500 * 1000
    assert all(link.outbox.waiting.count <= 5 for link in stuck)


# ---- a replay of very many ----


@pytest.fixture(scope="module")
def much_kept() -> Any:
    """A million retained messages, in five parts."""
    crowd = Crowd()
    gc.disable()
    try:
        for number in range(1_000_000):
            crowd.state.retained.set(ApplicationMessage(f"k/{number % 5}/{number % 500}/{number}", b"x", 1, True))
    finally:
        gc.enable()
    return crowd


def test_a_million_are_kept(much_kept: Crowd) -> None:
    assert len(much_kept.state.retained) == 1_000_000
    assert much_kept.state.retained.bytes < much_kept.state.limits.memory_bytes_max


@pytest.mark.parametrize(("qos", "filter", "count"), [(0, "k/#", 1_000_000), (1, "k/0/#", 200_000)])
def test_a_replay_of_a_million_retained_messages(much_kept: Crowd, qos: int, filter: str, count: int) -> None:
    """A fifth of them at QoS 1, where each is acknowledged, and each step is the same."""
    crowd = much_kept
    high = crowd.state.limits.outbox_bytes_high
    link = crowd.client(f"r{qos}")
    before = crowd.delivered()
    engine = crowd.engine
    engine.receive(link, encode(Subscribe(1, (SubscriptionRequest(filter, qos),)), MQTT_311), 0.0)
    budget = crowd.state.limits.work_per_turn_max + 200
    calls = 0
    while True:
        calls += 1
        assert crowd.state.work <= budget
        assert link.outbox.committed_bytes <= high
        data = engine.data_to_send(link)
        if data:
            engine.bytes_sent(link, len(data), 0.0)
        elif engine.next_deadline() <= 0.0:
            engine.tick(0.0)
        elif link.session is not None and link.session.sender.unacknowledged:
            acknowledged = b"".join(b"\x40\x02" + packet_id.to_bytes(2, "big") for packet_id in link.session.sender.unacknowledged)
            engine.receive(link, acknowledged, 0.0)
        else:
            break
    engine.take_ready()
    assert crowd.delivered() - before == count
    assert calls >= count // 10_000
    assert link.session is not None
    assert not link.session.replays
    engine.detach(link, 0.0)


def test_a_replay_that_finds_nothing_looks_at_a_bounded_number_of_topics(much_kept: Crowd) -> None:
    crowd = much_kept
    link = crowd.client("seeker")
    engine = crowd.engine
    engine.receive(link, encode(Subscribe(1, (SubscriptionRequest("k/0/+/none"), SubscriptionRequest("k/0/+/+/+"))), MQTT_311), 0.0)
    calls = 1
    assert link.session is not None
    visits_max = (crowd.state.limits.work_per_turn_max // (REPLAY_STEP_WORK + 1) + 1) * REPLAY_VISITS_COUNT
    assert link.session.replays is not None
    cursors = [replay.cursor for replay in link.session.replays.values()]
    engine.take_ready()
    while engine.next_deadline() <= 0.0:
        before = sum(cursor.visits for cursor in cursors)
        engine.tick(0.0)
        assert sum(cursor.visits for cursor in cursors) - before <= visits_max
        calls += 1
    assert not link.session.replays
    assert calls > 3
    engine.detach(link, 0.0)


# ---- many at once ----


def test_300000_sessions_that_end_at_once() -> None:
    """As sessions they are made directly: what is measured is their end."""
    crowd = Crowd(work_per_turn_max=10_000, sessions_count_max=1_000_000)
    engine, state = crowd.engine, crowd.state
    link = engine.attach("c", 0.0)
    for number in range(300):
        if number:
            link = engine.attach("c", 0.0)
        packets = (Connect(f"c{number}", MQTT_311, False), Subscribe(1, (SubscriptionRequest("t"), SubscriptionRequest("$share/g/+", 1))))
        engine.receive(link, b"".join(encode(packet, MQTT_311) for packet in packets), 0.0)
        engine.detach(link, 0.0)
    engine.take_ready()
    gc.disable()
    try:
        for number in range(300_000):
            session = Session(f"x{number}", state.access, state.allowance, state.waiting)
            session.expiry_s = 1.0
            state.sessions[session.client_id] = session
            session.expiry_deadline = state.deadlines.add(1.0, SESSION_EXPIRY, session)
        ticks = 0
        more = True
        while more:
            before = len(state.sessions)
            more = engine.tick(1e9)
            ticks += 1
            assert before - len(state.sessions) <= 10_000
            assert state.work <= 10_000 + 10
    finally:
        gc.enable()
    assert not state.sessions
    assert ticks >= 30
    assert len(state.deadlines) == 0
    assert state.topics.subscriptions_count == 0


def test_links_that_are_lost_with_much_waiting_do_not_hold_up_the_others() -> None:
    crowd = Crowd(work_per_turn_max=100, outbox_bytes_high=1 << 20, inflight_count_max=10)
    link = crowd.client("away", Subscribe(1, (SubscriptionRequest("t", 1),)), clean=False)
    crowd.engine.detach(link, 0.0)
    publisher = crowd.client("p")
    for _ in range(50):
        crowd.engine.receive(publisher, encode(Publish("t", b"x", 1, packet_id=1), MQTT_311) * 50, 0.0)
        crowd.flush()
    assert crowd.state.waiting.count == 2500
    for number in range(20):
        crowd.client(f"w{number}")
    crowd.engine.set_limits(Limits(work_per_turn_max=100, inflight_count_max=10_000), 0.0)
    again = crowd.engine.attach("away", 0.0)
    crowd.engine.receive(again, encode(Connect("away", MQTT_311, False), MQTT_311), 0.0)
    assert crowd.state.work <= 101
    while crowd.engine.next_deadline() <= 0.0:
        crowd.engine.tick(0.0)
        assert crowd.state.work <= 101
        crowd.flush()
        assert crowd.most_work <= 101
    assert crowd.state.waiting.count == 0


# ---- what overflow does ----


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


# ---- backpressure ----


def slow(**limits: Any) -> tuple[World, Any, Any]:
    world = World(outbox_bytes_high=1000, outbox_bytes_max=2000, queue_bytes_max=2000, slow_subscriber_grace_s=1.0, **limits)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    return world, publisher, receiver


def fill(publisher: Any, count: int = 40) -> None:
    publisher.send(*(Publish("t", b"x" * 90) for _ in range(count)))


@pytest.mark.parametrize("others", [0, 1])
def test_a_stuck_subscriber_costs_its_publisher_its_credit_once(others: int) -> None:
    world, publisher, receiver = slow()
    healthy = [world.client(f"h{number}") for number in range(others)]
    for peer in healthy:
        peer.subscribe("t")
    paused_s = 0.0
    for _ in range(1000):
        if publisher.link.paused:
            paused_s += 0.02
        else:
            fill(publisher)
        world.after(0.02)
    grace_s = 1.0 if others else 5.0  # its only recipient is judged over five graces
    assert grace_s - 0.1 <= paused_s <= grace_s + 20.0 * 0.1 + 0.1  # and what is refilled in 20 s
    assert all(len(peer.messages()) > 20_000 for peer in healthy)
    assert not receiver.link.closing
    assert world.dropped("overflow") > 20_000


def test_a_sole_recipient_that_makes_progress_paces_its_publisher_without_loss() -> None:
    world, publisher, receiver = slow()
    sent = 0
    for _ in range(1000):
        if not publisher.link.paused:
            fill(publisher, 5)
            sent += 5
        receiver.read(100)
        receiver.takes = 0
        world.after(0.5)
    receiver.read()
    assert len(receiver.messages()) == sent
    assert 900 < sent < 1200
    assert not world.state.dropped
    assert not publisher.link.paused


def drip(bytes_per_s: float, seconds: float) -> tuple[World, Any, Any, int, float]:
    """A sole recipient that takes so much, steadily; what was sent to it, and for how long its publisher was paused."""
    world, publisher, receiver = slow()
    owed = 0.0
    sent = 0
    paused_s = 0.0
    for _ in range(round(seconds / 0.02)):
        if publisher.link.paused:
            paused_s += 0.02
        else:
            fill(publisher, 5)
            sent += 5
        owed += bytes_per_s * 0.02
        receiver.read(int(owed))
        receiver.takes = 0
        owed -= int(owed)
        world.after(0.02)
    return world, publisher, receiver, sent, paused_s


def test_a_drip_is_no_progress() -> None:
    """Less than a 64th of its high mark in five graces (here 15 bytes in 5 s): the sole recipient counts as stuck."""
    world, _, receiver, sent, paused_s = drip(0.1, 100.0)
    assert 4.9 <= paused_s <= 5.0 + 100.0 * 0.1 + 0.1
    assert world.dropped("overflow") > 1000
    assert receiver.link.credit.stuck
    receiver.read()
    assert len(receiver.messages()) + world.dropped("overflow") == sent


def test_all_that_is_retained_for_a_client_comes_where_memory_is_full() -> None:
    """One at a time, each as soon as the one before it is sent or acknowledged."""
    world = World()
    publisher, stuck = world.client("p"), world.client("stuck")
    for name in ("a", "b", "c"):
        publisher.publish(f"{name}/0", b"0", 0, retain=True)
        publisher.publish(f"{name}/1", b"1", 1, 1, retain=True)
    stuck.subscribe(("t", 1))
    publisher.publish("t", bytes(20_000), 1, 1)
    world.engine.set_limits(Limits(memory_bytes_max=20_000), world.now)
    assert world.state.over_memory(0)
    reader = world.client("r")
    reader.subscribe(("a/0", 1), ("a/1", 1), ("b/0", 1), ("b/1", 1), ("c/#", 1))
    came: list[str] = []
    while got := reader.messages():
        came += [message.topic for message in got]
        reader.send(*(PubAck(message.packet_id) for message in got if message.qos))
    assert sorted(came) == ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]
    assert not world.state.sessions["r"].replays


def test_that_it_is_stuck_is_seen_when_its_timer_says_so() -> None:
    """Though seconds are floats: 1021.1 and five more are 1026.1, and 1026.1 less 1021.1 is a little less than five."""
    assert 1026.1 - 1021.1 < 5.0
    world, publisher, receiver = slow()
    world.now = 1021.1
    fill(publisher, 150)
    assert publisher.link.paused
    assert not receiver.link.credit.stuck
    world.now = world.engine.next_deadline()
    world.settle(1000)
    assert receiver.link.credit.stuck
    assert not publisher.link.paused


def test_as_little_as_progress_may_be() -> None:
    world, _, receiver, sent, paused_s = drip(4.0, 200.0)
    assert not world.state.dropped
    assert paused_s > 190
    receiver.read()
    assert len(receiver.messages()) == sent


def test_one_that_was_stuck_is_believed_again_when_it_takes_its_share() -> None:
    world, publisher, receiver, _, _ = drip(0.1, 60.0)
    assert receiver.link.credit.stuck
    receiver.read(200)
    receiver.takes = 0
    fill(publisher, 5)
    assert publisher.link.paused
    dropped = world.dropped("overflow")
    world.after(4.9)
    assert publisher.link.paused
    assert world.dropped("overflow") == dropped
    world.after(0.2)
    assert not publisher.link.paused


def test_what_the_kernel_holds_is_not_taken_yet() -> None:
    """The socket swallows 10,000 bytes at once, of which the peer reads 4 a second: that is progress, though the socket takes nothing."""
    for reads_per_s, stays in ((4.0, True), (0.0, False)):
        world, publisher, receiver = slow()
        receiver.takes = 10_000
        began = world.now

        def underway(link: Link, began: float = began, world: World = world, reads_per_s: float = reads_per_s) -> int:
            return link.outbox.sent_bytes_total - int(reads_per_s * (world.now - began))

        world.state.bytes_underway = underway
        fill(publisher, 150)
        assert publisher.link.paused
        world.after(20)
        assert publisher.link.paused is stays


@pytest.mark.parametrize("elsewhere", ["topic", "group", "away"])
def test_who_publishes_to_others_too_is_paced_by_nobody(elsewhere: str) -> None:
    """Another topic counts as another recipient. One that is away does not: nothing is late for it."""
    world, publisher, receiver = slow()
    other = world.client("other", clean=False, expiry=100)
    other.subscribe({"topic": "u", "group": "$share/g/t", "away": "t"}[elsewhere])
    if elsewhere == "away":
        other.detach()
    publisher.publish("u", b"x")
    fill(publisher)
    assert publisher.link.paused
    receiver.read(200)
    receiver.takes = 0
    world.after(1.1)
    assert publisher.link.paused is (elsewhere == "away")


def test_the_credit_of_those_that_share_runs_while_a_sole_one_waits() -> None:
    world, publisher, receiver = slow()
    healthy, both = world.client("h"), world.client("both")
    receiver.takes = float("inf")
    receiver.subscribe("u")
    receiver.takes = 0
    healthy.subscribe("u")
    fill(publisher)
    world.after(0.5)
    both.send(*(Publish("u", b"x" * 90) for _ in range(40)))
    assert publisher.link.paused
    assert both.link.paused
    receiver.read(100)
    receiver.takes = 0
    world.after(0.9)
    assert both.link.paused
    world.after(0.2)
    assert not both.link.paused
    assert publisher.link.paused


def test_one_that_others_receive_too_may_not_pace_them() -> None:
    world, publisher, receiver = slow()
    healthy = world.client("h")
    healthy.subscribe("t")
    sent = 0
    for _ in range(1000):
        if not publisher.link.paused:
            fill(publisher, 5)
            sent += 5
        receiver.read(100)
        receiver.takes = 0
        world.after(0.1)
    assert sent > 4000
    assert len(healthy.messages()) == sent


def test_a_paused_link_goes_on_when_the_slow_one_has_drained_or_gone() -> None:
    for ends in (True, False):
        world, publisher, receiver = slow()
        fill(publisher)
        assert publisher.link.paused
        fill(publisher)  # what had been read already
        assert publisher.link.decoder.buffered_bytes
        if ends:
            receiver.detach()
        else:
            receiver.read()
            assert len(receiver.messages()) == 80
        assert not publisher.link.paused
        assert not publisher.link.decoder.buffered_bytes
        assert len(world.state.deadlines) == 0


def test_a_paused_link_that_goes_away_is_forgotten() -> None:
    world, publisher, receiver = slow()
    fill(publisher)
    assert publisher.link.paused
    publisher.detach()
    assert receiver.link.pausing == {}
    world.after(5)
    assert receiver.link.pausing is None
    receiver.detach()
    world.assert_empty()
    assert len(world.state.deadlines) == 0


def test_the_credit_is_spent_no_longer_when_all_who_waited_on_it_have_gone() -> None:
    world, publisher, receiver = slow()
    receiver.takes = float("inf")
    receiver.subscribe("u")
    receiver.takes = 0
    world.client("h").subscribe("u")
    fill(publisher)
    world.after(4.5)  # of the five that a sole one may wait
    others = [world.client(name) for name in ("a", "b")]
    others[0].publish("u", b"x")
    assert others[0].link.paused
    for gone in (others[0], publisher):
        gone.detach()
    world.after(1)
    receiver.read()
    world.after(20)
    receiver.takes = 0
    others[1].send(*(Publish("u", b"x" * 90) for _ in range(80)))
    assert others[1].link.paused
    receiver.detach()
    assert not others[1].link.paused


def test_a_link_that_owes_acknowledgements_is_never_paused() -> None:
    world, publisher, receiver = slow()
    publisher.subscribe(("own", 1))
    world.client("q").publish("own", b"x", 1, 1)
    message = publisher.pop(Publish)
    fill(publisher)
    assert not publisher.link.paused
    publisher.send(PubAck(message.packet_id))
    fill(publisher)
    assert publisher.link.paused
    receiver.detach()


@pytest.mark.parametrize("qos", [1, 2])
def test_a_consumer_that_republishes_to_a_stuck_dashboard_loses_nothing_of_its_own(qos: int) -> None:
    world = World(outbox_bytes_high=1000, outbox_bytes_max=2000, queue_bytes_max=2000, inflight_count_max=5)
    source, consumer, dashboard = world.client("source"), world.client("consumer"), world.client("dashboard")
    consumer.subscribe(("in", qos))
    dashboard.subscribe("out")
    dashboard.takes = 0
    got: list[bytes] = []
    for number in range(1, 301):
        source.publish("in", b"%d" % number, qos, number)
        if qos == 2:
            source.send(PubRel(number))
        for message in [packet for packet in consumer.take() if isinstance(packet, Publish)]:
            got.append(message.payload)
            consumer.publish("out", message.payload + b"x" * 90)  # while it owes the acknowledgement of this one
            assert not consumer.link.paused
            consumer.acknowledge(message)
        world.after(0.01)
    assert got == [b"%d" % number for number in range(1, 301)]
    assert not world.state.sessions["consumer"].dropped
    assert world.dropped("overflow") == sum(world.state.sessions["dashboard"].dropped.values()) > 200


def test_the_keepalive_of_a_paused_link_stands_still() -> None:
    world = World(outbox_bytes_high=1000, outbox_bytes_max=2000, slow_subscriber_grace_s=100.0)
    publisher, receiver = world.client("p", keep_alive=10), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    fill(publisher)
    world.after(80)
    assert publisher.link.paused
    assert not publisher.link.closing
    receiver.read()
    assert not publisher.link.paused
    world.after(14)
    assert not publisher.link.closing
    world.after(2)
    assert publisher.link.closing


def test_a_closed_recipient_pauses_nobody() -> None:
    world = World(overflow={"#": "disconnect"}, outbox_bytes_high=200, outbox_bytes_max=200, slow_subscriber_grace_s=1.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    for _ in range(90):
        publisher.more = world.engine.receive(publisher.link, encode(Publish("t", b"x" * 90), MQTT_5), world.now)
        world.after(0.1)
    assert receiver.link.closing
    assert not publisher.link.paused
    assert receiver.link.pausing is None


def test_the_message_that_closes_a_recipient_does_not_pause_its_publisher() -> None:
    world = World(overflow={"#": "disconnect"}, outbox_bytes_high=200, outbox_bytes_max=50, slow_subscriber_grace_s=100.0)
    first, second, receiver = world.client("first"), world.client("second"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    fill(first, 10)
    assert first.link.paused
    fill(second, 1)
    assert receiver.link.closing
    assert not first.link.paused
    assert not second.link.paused


def test_two_that_wait_for_each_other_are_let_go() -> None:
    world = World(outbox_bytes_high=1000, outbox_bytes_max=2000, slow_subscriber_grace_s=1.0)
    one, two = world.client("one"), world.client("two")
    one.subscribe("to/one")
    two.subscribe("to/two")
    one.takes = two.takes = 0
    one.send(*(Publish("to/two", b"x" * 90) for _ in range(40)))
    two.send(*(Publish("to/one", b"x" * 90) for _ in range(40)))
    assert one.link.paused
    assert two.link.paused
    world.after(6)
    assert not one.link.paused
    assert not two.link.paused


def test_small_limits_pause_before_they_drop_also_for_whoever_has_connected() -> None:
    world = World(memory_bytes_max=100_000)
    peer = world.peer("small")
    assert peer.link.outbox_bytes_high == 6250
    peer.send(Connect("small", MQTT_5))
    assert peer.link.connected
    assert peer.link.outbox_bytes_high == 6250


# ---- nothing is left ----

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
