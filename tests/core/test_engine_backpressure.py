"""Whoever does not read holds up those who publish to it: for a while, or for as long as it makes progress; and nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.limits import Limits
from broker.core.link import Link
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    Connect,
    PubAck,
    Publish,
    PubRel,
)
from tests.core.harness import World


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


def publish_while_it_reads(world: World, publisher: Any, receiver: Any, step_s: float) -> int:
    """A thousand steps of 100 bytes read, and five messages where the publisher is not paused; how many were published."""
    sent = 0
    for _ in range(1000):
        if not publisher.link.paused:
            fill(publisher, 5)
            sent += 5
        receiver.read(100)
        receiver.takes = 0
        world.after(step_s)
    return sent


def test_a_sole_recipient_that_makes_progress_paces_its_publisher_without_loss() -> None:
    world, publisher, receiver = slow()
    sent = publish_while_it_reads(world, publisher, receiver, 0.5)
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
    sent = publish_while_it_reads(world, publisher, receiver, 0.1)
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
