"""Every verb is bounded for each call, shown by counts and not by time; and what was put off comes in the end."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import product
from typing import Any

import pytest

from broker.core.deadlines import SESSION_EXPIRY
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import Link
from broker.core.message import ApplicationMessage
from broker.core.pumping import REPLAY_STEP_WORK, REPLAY_VISITS_COUNT
from broker.core.session import Session
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Connect,
    Packet,
    Properties,
    Publish,
    Subscribe,
    SubscriptionRequest,
)


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


# ---- topics that are dear to look up ----


@pytest.mark.parametrize("last", ["#", "b"])
@pytest.mark.parametrize("qos", [0, 1])
def test_topics_that_one_clients_filters_match_in_a_thousand_ways(qos: int, last: str) -> None:
    """Every message its own topic, so that none is known: a read of 64 KiB was 24 s of look-ups in one turn, whether they led anywhere or not."""
    work_max = 500
    crowd = Crowd(work_per_turn_max=work_max)
    ways = ["/".join([*levels, last]) for levels in product(("+", "a"), repeat=10)]
    crowd.client("s", Subscribe(1, tuple(SubscriptionRequest(filter, qos) for filter in ways)))
    publisher = crowd.client("p")
    frames = [encode(Publish("a/" * 10 + str(number), b"", qos, packet_id=number * qos), MQTT_311) for number in range(1, 101)]
    data = b"".join(frames)
    calls = 1
    while crowd.engine.receive(publisher, data, 0.0):
        data = b""
        calls += 1
        crowd.flush()
        assert crowd.state.work <= work_max + len(ways)
    assert crowd.state.counters.publish_received == len(frames)
    assert calls >= len(frames) // 8


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
        more = crowd.engine.receive(publisher, encode(Publish("t", b"x", 1, packet_id=1), MQTT_311) * 50, 0.0)
        while more:
            more = crowd.engine.receive(publisher, b"", 0.0)
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
