"""The engine's hot paths, and its client's, each as a step to be repeated: the same bytes in every time, all bytes out taken, no socket and no Trio.

`benchmarks/engine.py` times them and `benchmarks/instructions.py` counts their instructions, so that both speak of the same
work. A step leaves the engine as it found it; its argument-free call returns how many units (messages delivered, filters
subscribed, clients connected) it did.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

from benchmarks.client_paths import publishing, receiving
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import Link
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Connect,
    Disconnect,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)

READ_BYTES: Final = 65_536
PAYLOAD: Final = b"x" * 64
TOPIC: Final = "bench/topic"
PROPERTIES: Final = Properties(content_type="application/json", user_properties=(("unit", "celsius"),))

Step = Callable[[], int]


class Bench:
    """An engine whose sockets are never full."""

    def __init__(self, routes_count_max: int = 100_000) -> None:
        ids = itertools.count()
        limits = Limits(work_per_turn_max=1_000_000, routes_count_max=routes_count_max)
        self.engine = Engine(limits, new_client_id=lambda: f"auto-{next(ids)}")

    def client(self, client_id: str, version: int, filters: tuple[str, ...] = (), qos: int = 0) -> Link:
        link = self.engine.attach(client_id, 0.0)
        packets = encode(Connect(client_id, version=version), version)
        if filters:
            packets += encode(Subscribe(1, tuple(SubscriptionRequest(filter, qos) for filter in filters)), version)
        self.give(link, packets)
        return link

    def give(self, link: Link, data: bytes) -> None:
        """One read of this client, and what it leads to, to the end."""
        engine = self.engine
        recipient = engine.sole_recipient(link, data)
        if recipient is not None:
            engine.passed_on(link, recipient, data, len(data), 0.0)
            return
        more = engine.receive(link, data, 0.0)
        self.flush()
        while more:
            more = engine.receive(link, b"", 0.0)
            self.flush()

    def flush(self) -> None:
        engine = self.engine
        while ready := engine.take_ready():
            for link in ready:
                while data := engine.data_to_send(link):
                    engine.bytes_sent(link, len(data), 0.0)

    def sent_count(self) -> int:
        return self.engine.state.counters.publish_sent


def checked(bench: Bench, step: Callable[[], None], units: int) -> Step:
    """The step, once it has been seen to deliver what it claims: a fast path that lost messages would look very good."""
    step()  # topics get known
    before = bench.sent_count()
    step()
    if bench.sent_count() - before != units:
        raise ValueError(f"{bench.sent_count() - before} messages delivered, {units} expected")

    def run() -> int:
        step()
        return units

    return run


def stream(version: int, subscriber_version: int, subscribers: int, *, properties: Properties | None = None, frames: int = 0) -> Step:
    """Reads of 64 KiB full of one topic (or of `frames` messages each)."""
    bench = Bench()
    publisher = bench.client("publisher", version)
    for number in range(subscribers):
        bench.client(f"subscriber-{number}", subscriber_version, (TOPIC,))
    properties = properties or Properties()
    if properties.topic_alias is not None:
        bench.give(publisher, encode(Publish(TOPIC, PAYLOAD, properties=properties), version))
    frame = encode(Publish(TOPIC if properties.topic_alias is None else "", PAYLOAD, properties=properties), version)
    count = frames or READ_BYTES // len(frame)
    data = frame * count
    return checked(bench, lambda: bench.give(publisher, data), count * subscribers)


def many_topics(version: int, topics: int, *, wildcard: bool = False) -> Step:
    """Each message on another topic, all published to before, shared by ten subscribers, or one under a wildcard."""
    bench = Bench()
    publisher = bench.client("publisher", version)
    if wildcard:
        bench.client("subscriber", version, ("bench/#",))
    for number in () if wildcard else range(10):
        bench.client(f"subscriber-{number}", version, tuple(f"bench/{topic}" for topic in range(number, topics, 10)))
    data = b"".join(encode(Publish(f"bench/{topic}", PAYLOAD), version) for topic in range(topics))
    return checked(bench, lambda: bench.give(publisher, data), topics)


def first_messages(wildcard: bool, filters: int = 5000, batch: int = 100, clients: int = 10) -> Step:
    """Each message on a topic that nobody has published to lately: the engine keeps fewer topics than come before one comes again."""
    bench = Bench(routes_count_max=batch)
    publisher = bench.client("publisher", MQTT_311)
    for number in range(clients):
        own = range(number, filters, clients)
        bench.client(f"subscriber-{number}", MQTT_311, tuple(f"house/{one // 100}/{'+' if wildcard else 'x'}/{one % 100}" for one in own))
    frames = [encode(Publish(f"house/{one // 100}/x/{one % 100}", PAYLOAD), MQTT_311) for one in range(filters)]
    reads = itertools.cycle([b"".join(frames[start : start + batch]) for start in range(0, filters, batch)])
    return checked(bench, lambda: bench.give(publisher, next(reads)), batch)


def exchange(version: int, qos: int, subscribers: int, window: int = 100) -> Step:
    """QoS 1 or 2: a window of messages, then every acknowledgement of both sides, batch by batch."""
    bench = Bench()
    publisher = bench.client("publisher", version)
    links = [bench.client(f"subscriber-{number}", version, (TOPIC,), qos) for number in range(subscribers)]
    ids = range(1, window + 1)  # free in the subscribers' sessions too, so that they are used there
    data = b"".join(encode(Publish(TOPIC, PAYLOAD, qos, packet_id=packet_id), version) for packet_id in ids)
    answers = [b"".join(encode(kind(packet_id), version) for packet_id in ids) for kind in ((PubAck,) if qos == 1 else (PubRec, PubComp))]
    releases = b"".join(encode(PubRel(packet_id), version) for packet_id in ids)

    def step() -> None:
        bench.give(publisher, data)
        if qos == 2:
            bench.give(publisher, releases)
        for link in links:
            for answer in answers:
                bench.give(link, answer)

    return checked(bench, step, window * subscribers)


def unwanted(version: int, qos: int, window: int = 100) -> Step:
    """QoS 1 or 2 on a topic that nobody has subscribed to."""
    bench = Bench()
    publisher = bench.client("publisher", version)
    ids = range(1, window + 1)
    data = b"".join(encode(Publish(TOPIC, PAYLOAD, qos, packet_id=packet_id), version) for packet_id in ids)
    releases = b"".join(encode(PubRel(packet_id), version) for packet_id in ids)
    counters = bench.engine.state.counters

    def step() -> int:
        before = counters.packets_sent
        bench.give(publisher, data)
        if qos == 2:
            bench.give(publisher, releases)
        if counters.packets_sent - before != qos * window:
            raise ValueError("not all were acknowledged")
        return window

    return step


def exchange_late(version: int, subscriber_qos: int, window: int = 100) -> Step:
    """QoS 1 where the subscriber acknowledges a window when the next one has come: the publisher's packet ids are never free there."""
    bench = Bench()
    publisher = bench.client("publisher", version)
    link = bench.client("subscriber", version, (TOPIC,), subscriber_qos)
    data = b"".join(encode(Publish(TOPIC, PAYLOAD, 1, packet_id=number + 1), version) for number in range(window))
    answers = [b"\x40\x02" + packet_id.to_bytes(2, "big") for packet_id in range(65_536)]  # the broker takes one number after the other

    def step() -> None:
        session = link.session
        assert session is not None
        ids = list(session.sender.unacknowledged)
        bench.give(publisher, data)
        if ids:
            bench.give(link, b"".join([answers[packet_id] for packet_id in ids]))

    return checked(bench, step, window)


def subscribing(wildcard: bool, filters: int = 100, others: int = 1000) -> Step:
    """Subscribe to filters and leave them again, beside others' thousand."""
    bench = Bench()
    bench.client("other", MQTT_5, tuple(f"other/{number}/temperature" for number in range(others)))
    names = [f"house/{number}/+/temperature" if wildcard else f"house/{number}/kitchen/temperature" for number in range(filters)]
    link = bench.client("subscriber", MQTT_5)
    data = encode(Subscribe(1, tuple(SubscriptionRequest(name, 0) for name in names)), MQTT_5) + encode(Unsubscribe(2, tuple(names)), MQTT_5)

    def step() -> int:
        bench.give(link, data)
        return filters

    return step


def retaining(topics: int = 250) -> Step:
    """Replace retained messages."""
    bench = Bench()
    publisher = bench.client("publisher", MQTT_5)
    data = b"".join(encode(Publish(f"house/{topic}/temperature", PAYLOAD, retain=True), MQTT_5) for topic in range(topics))

    def step() -> int:
        bench.give(publisher, data)
        return topics

    return step


def replaying(topics: int = 250) -> Step:
    """Subscribe to a wildcard and get all retained messages."""
    bench = Bench()
    publisher = bench.client("publisher", MQTT_5)
    for topic in range(topics):
        bench.give(publisher, encode(Publish(f"house/{topic}/temperature", PAYLOAD, retain=True), MQTT_5))
    link = bench.client("subscriber", MQTT_5)
    data = encode(Subscribe(1, (SubscriptionRequest("house/#", 0),)), MQTT_5)
    return checked(bench, lambda: bench.give(link, data), topics)


def connecting(clients: int = 20) -> Step:
    """Come, subscribe, and leave."""
    bench = Bench()
    hello = [
        encode(Connect(f"client-{number}", keep_alive_s=60), MQTT_5) + encode(Subscribe(1, (SubscriptionRequest(f"to/{number}", 1),)), MQTT_5)
        for number in range(clients)
    ]
    goodbye = encode(Disconnect(), MQTT_5)

    def step() -> int:
        engine = bench.engine
        links = []
        for data in hello:
            links.append(engine.attach("peer", 0.0))
            bench.give(links[-1], data)
        for link in links:
            bench.give(link, goodbye)
            engine.detach(link, 0.0)
            bench.flush()
        return clients

    return step


class Path(NamedTuple):
    name: str
    """For people, and the key of the committed numbers."""
    make: Callable[[], Step]


PATHS: Final = (
    Path("QoS 0, 1 to 1, 3.1.1", lambda: stream(MQTT_311, MQTT_311, 1)),
    Path("QoS 0, 1 to 1, 5.0", lambda: stream(MQTT_5, MQTT_5, 1)),
    Path("QoS 0, 1 to 1, 5.0 to 3.1.1", lambda: stream(MQTT_5, MQTT_311, 1)),
    Path("QoS 0, 1 to 1, one message a read", lambda: stream(MQTT_5, MQTT_5, 1, frames=1)),
    Path("QoS 0, 1 to 100, 3.1.1", lambda: stream(MQTT_311, MQTT_311, 100)),
    Path("QoS 0, 1,000 topics in turn, 3.1.1", lambda: many_topics(MQTT_311, 1000)),
    Path("QoS 0, 1,000 topics in turn, wildcard", lambda: many_topics(MQTT_311, 1000, wildcard=True)),
    Path("QoS 0, first message on a topic, literal filter", lambda: first_messages(wildcard=False)),
    Path("QoS 0, first message on a topic, wildcard", lambda: first_messages(wildcard=True)),
    Path("QoS 0, 1 to 1, two properties", lambda: stream(MQTT_5, MQTT_5, 1, properties=PROPERTIES, frames=100)),
    Path("QoS 0, 1 to 1, topic alias", lambda: stream(MQTT_5, MQTT_5, 1, properties=Properties(topic_alias=1), frames=100)),
    Path("QoS 1, 1 to 1, window 100, 3.1.1", lambda: exchange(MQTT_311, 1, 1)),
    Path("QoS 1, 1 to 1, window 100, 5.0", lambda: exchange(MQTT_5, 1, 1)),
    Path("QoS 1, 1 to 100, window 20, 3.1.1", lambda: exchange(MQTT_311, 1, 100, window=20)),
    Path("QoS 1, 1 to 1, ids in use, 3.1.1", lambda: exchange_late(MQTT_311, 1)),
    Path("QoS 1 to QoS 0, 3.1.1", lambda: exchange_late(MQTT_311, 0)),
    Path("QoS 2, 1 to 1, window 100, 3.1.1", lambda: exchange(MQTT_311, 2, 1)),
    Path("QoS 1, nobody subscribed, 5.0", lambda: unwanted(MQTT_5, 1)),
    Path("QoS 2, nobody subscribed, 3.1.1", lambda: unwanted(MQTT_311, 2)),
    Path("subscribe and unsubscribe, literal", lambda: subscribing(wildcard=False)),
    Path("subscribe and unsubscribe, wildcard", lambda: subscribing(wildcard=True)),
    Path("retained, store", retaining),
    Path("retained, replay", replaying),
    Path("connect, subscribe, disconnect", connecting),
    Path("client, receive QoS 0", lambda: receiving(0)),
    Path("client, receive QoS 1", lambda: receiving(1)),
    Path("client, publish QoS 0", lambda: publishing(0)),
    Path("client, publish QoS 1", lambda: publishing(1)),
)
