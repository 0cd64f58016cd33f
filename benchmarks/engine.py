"""Messages routed each second through the engine alone: bytes in, bytes out, no socket and no Trio.

    python benchmarks/engine.py [--rounds 5]

Each case publishes 64-byte payloads in reads of 64 KiB, as a socket gives them, and takes what is ready after each
read, as the net does. Figures are medians of the rounds; compare them within one run only.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import Link
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, Connect, PubAck, PubComp, Publish, PubRec, PubRel, Subscribe, SubscriptionRequest

READ_BYTES = 65_536
PAYLOAD = b"x" * 64


class Bench:
    def __init__(self) -> None:
        ids = itertools.count()
        self.engine = Engine(Limits(work_per_turn_max=1_000_000), new_client_id=lambda: f"auto-{next(ids)}")

    def client(self, client_id: str, version: int, filters: tuple[str, ...] = (), qos: int = 0) -> Link:
        link = self.engine.attach(client_id, 0.0)
        packets = encode(Connect(client_id, version=version), version)
        if filters:
            packets += encode(Subscribe(1, tuple(SubscriptionRequest(filter, qos) for filter in filters)), version)
        self.engine.receive(link, packets, 0.0)
        self.flush()
        return link

    def flush(self) -> list[tuple[Link, bytes]]:
        """Take everything, as sockets that are never full would."""
        engine = self.engine
        out: list[tuple[Link, bytes]] = []
        for link in engine.take_ready():
            data = engine.data_to_send(link)
            while data:
                out.append((link, bytes(data)))
                engine.bytes_sent(link, len(data), 0.0)
                data = engine.data_to_send(link)
        return out

    def read(self, link: Link, data: bytes) -> None:
        while self.engine.receive(link, data, 0.0):
            data = b""


def stream(version: int, subscriber_version: int, subscribers: int, filter: str = "bench/topic") -> Callable[[], float]:
    bench = Bench()
    publisher = bench.client("publisher", version)
    for number in range(subscribers):
        bench.client(f"subscriber-{number}", subscriber_version, (filter,))
    frame = encode(Publish("bench/topic", PAYLOAD), version)
    data = frame * (READ_BYTES // len(frame))
    count = len(data) // len(frame) * subscribers

    def run() -> float:
        repeats = max(1, 2_000_000 // count)
        start = time.perf_counter()
        for _ in range(repeats):
            bench.read(publisher, data)
            bench.flush()
        return count * repeats / (time.perf_counter() - start)

    return run


def many_topics(version: int, topics: int) -> Callable[[], float]:
    bench = Bench()
    publisher = bench.client("publisher", version)
    for number in range(10):
        bench.client(f"subscriber-{number}", version, tuple(f"bench/{topic}" for topic in range(number, topics, 10)))
    data = b"".join(encode(Publish(f"bench/{topic}", PAYLOAD), version) for topic in range(topics))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(100_000 // topics):
            bench.read(publisher, data)
            bench.flush()
        return 100_000 // topics * topics / (time.perf_counter() - start)

    return run


def exchange(version: int, qos: int, subscribers: int, window: int = 100) -> Callable[[], float]:
    """QoS 1 or 2 with a window: publisher's packets, then every acknowledgement of both sides, batch by batch."""
    bench = Bench()
    publisher = bench.client("publisher", version)
    links = [bench.client(f"subscriber-{number}", version, ("bench/topic",), qos) for number in range(subscribers)]
    data = b"".join(encode(Publish("bench/topic", PAYLOAD, qos, packet_id=number + 1), version) for number in range(window))
    releases = b"".join(encode(PubRel(number + 1), version) for number in range(window))
    answers = {
        stage: [encode(kind(number), version) for number in range(1, 65_536)] for stage, kind in (("ack", PubAck), ("rec", PubRec), ("comp", PubComp))
    }

    def run() -> float:
        rounds = max(1, 40_000 // (window * subscribers))
        start = time.perf_counter()
        for _ in range(rounds):
            bench.read(publisher, data)
            if qos == 2:
                bench.read(publisher, releases)
            bench.flush()
            for link in links:
                session = link.session
                assert session is not None
                ids = list(session.sender.unacknowledged)
                if qos == 1:
                    bench.read(link, b"".join(answers["ack"][packet_id - 1] for packet_id in ids))
                else:
                    bench.read(link, b"".join(answers["rec"][packet_id - 1] for packet_id in ids))
                    bench.read(link, b"".join(answers["comp"][packet_id - 1] for packet_id in ids))
            bench.flush()
        return rounds * window * subscribers / (time.perf_counter() - start)

    return run


CASES: list[tuple[str, Callable[[], Callable[[], float]]]] = [
    ("QoS 0, 1 to 1, 3.1.1", lambda: stream(MQTT_311, MQTT_311, 1)),
    ("QoS 0, 1 to 1, 5.0", lambda: stream(MQTT_5, MQTT_5, 1)),
    ("QoS 0, 1 to 1, 5.0 to 3.1.1", lambda: stream(MQTT_5, MQTT_311, 1)),
    ("QoS 0, 1 to 100, 3.1.1", lambda: stream(MQTT_311, MQTT_311, 100)),
    ("QoS 0, 1,000 topics in turn, 3.1.1", lambda: many_topics(MQTT_311, 1000)),
    ("QoS 1, 1 to 1, window 100, 3.1.1", lambda: exchange(MQTT_311, 1, 1)),
    ("QoS 1, 1 to 1, window 100, 5.0", lambda: exchange(MQTT_5, 1, 1)),
    ("QoS 1, 1 to 100, window 100, 3.1.1", lambda: exchange(MQTT_311, 1, 100)),
    ("QoS 2, 1 to 1, window 100, 3.1.1", lambda: exchange(MQTT_311, 2, 1)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'case':<38}{'delivered/s':>14}{'µs each':>10}")
    for name, make in CASES:
        run = make()
        rate = statistics.median(run() for _ in range(rounds))
        print(f"{name:<38}{rate:>14,.0f}{1e6 / rate:>10.2f}")


if __name__ == "__main__":
    main()
