"""Messages that came in one read wait and give way, for a client that is behind, exactly as if each had come by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core.overflow import OverflowRules
from broker.core.owed import Delivery
from broker.core.waiting import Account, WaitingQueue
from broker.core.waiting_run import WaitingRun
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, Properties, Publish
from tests.core.harness import Peer, World

RULES = ("drop-oldest", "drop-newest", "latest", "refuse", "disconnect")
PLAIN = Properties(content_type="x", user_properties=(("a", "b"),))


def behind(rule: str, version: int, **limits: Any) -> tuple[World, Peer, Peer]:
    """A publisher, and a receiver that reads nothing and whose outbox is full."""
    limits = {"outbox_bytes_high": 500, "slow_subscriber_grace_s": 0.0} | limits
    world = World(overflow={"#": rule}, **limits)
    publisher, receiver = world.client("p", version), world.client("r", version)
    receiver.subscribe("t/#")
    publisher.publish("t/1")
    publisher.publish("t/2")  # known from now on
    receiver.read()
    receiver.take()
    receiver.takes = 0
    while receiver.link.outbox.committed_bytes < 500:
        publisher.publish("t/1", b"first")
    return world, publisher, receiver


RUNS = st.lists(st.tuples(st.sampled_from(["t/1", "t/2"]), st.integers(1, 40), st.integers(0, 60), st.integers(0, 150), st.booleans()), max_size=8)


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(runs=RUNS, limits=st.sampled_from([{"outbox_count_max": 30}, {"outbox_bytes_max": 1000}, {"memory_bytes_max": 3000}, {}]))
@example(runs=[("t/1", 1, 0, 0, False), ("t/2", 27, 19, 0, False), ("t/1", 3, 23, 0, True)], limits={"outbox_bytes_max": 1000})
def test_a_run_waits_as_its_messages_would(rule: str, version: int, runs: list[Any], limits: dict[str, int]) -> None:
    outcomes = []
    for together in (True, False):
        world, publisher, receiver = behind(rule, version, **limits)
        for topic, count, size, reads, bare in runs:
            properties = PLAIN if version == MQTT_5 and not bare else NO_PROPERTIES
            frames = [encode(Publish(topic, b"%03d" % number + bytes(size), properties=properties), version) for number in range(count)]
            for data in [b"".join(frames)] if together else frames:
                publisher.give(data)
            queue = receiver.link.outbox.waiting
            if together and queue.count:
                assert (queue.count, queue.bytes) == (len(queue.deliveries()), sum(one.message.size for one in queue.deliveries()))
            if queue.bytes > 1000:  # more than an outbox takes, so that it stays behind
                receiver.read(reads)
                receiver.takes = 0
        statistics = {key: value for key, value in world.engine.statistics().items() if key.startswith("dropped") or key == "queued_bytes"}
        world.after(0)
        receiver.read()
        got = [(packet.topic, packet.payload, packet.properties) for packet in receiver.take() if isinstance(packet, Publish)]
        outcomes.append((got, statistics, receiver.link.closing))
        world.end_all()
        world.assert_empty()
    assert outcomes[0] == outcomes[1]


def test_what_a_run_keeps_in_memory_is_what_counts() -> None:
    run = WaitingRun(b"\x30\x04\x00\x01ab" * 1000, 6, 5, "a", NO_PROPERTIES, "p", 7)
    newest, oldest = run.last(2), run.first(1)
    assert [len(one._frames) for one in (newest, oldest)] == [12, 6]
    assert (newest.count, newest.order, newest.size) == (2, 7 + 998, 2)


def test_a_queue_of_runs_is_like_a_list() -> None:
    account = Account()
    queue = WaitingQueue(account)
    queue.append_run(WaitingRun(b"".join(b"\x30\x04\x00\x01a" + b"%d" % number for number in range(6)), 6, 5, "a", NO_PROPERTIES, "p", 1))
    assert (queue.count, account.bytes, queue.first_order()) == (6, 12, 1)
    assert queue.pop().message.payload == b"0"
    assert queue.drop_first(2, 2) == 2
    assert [one.message.payload for one in queue.deliveries()] == [b"3", b"4", b"5"]
    newest = queue.deliveries()[-1]
    assert queue.index(OverflowRules()) == 0
    assert queue.newest_on("b") is None
    older = queue.newest_on("a")
    assert older is not None
    assert older.message.payload == b"5"
    queue.replace(older, Delivery(newest.message, 0, False, (), None, 9))
    queue.append_run(WaitingRun(b"\x30\x04\x00\x01a7" * 2, 6, 5, "a", NO_PROPERTIES, "p", 10))  # by itself now, for the index
    assert [queue.pop().message.payload for _ in range(5)] == [b"3", b"4", b"5", b"7", b"7"]
    assert (queue.count, queue.bytes, account.count, account.bytes) == (0, 0, 0, 0)
