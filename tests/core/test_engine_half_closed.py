"""A peer that has closed only its sending side, as `mosquitto_pub` and many a script do, still gets what it was owed."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, Disconnect, Publish, Subscribe, SubscriptionRequest
from tests.core.harness import Peer, World


def one_that_reads_nothing(count: int, payload_bytes: int) -> tuple[World, Peer]:
    """And was sent so many messages; no grace."""
    world = World(outbox_bytes_high=2000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    for _ in range(count):
        publisher.publish("t", b"x" * payload_bytes)
    return world, receiver


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
def test_a_backlog_of_qos_0_is_drained(version: int) -> None:
    world = World(outbox_bytes_high=2000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r", version)
    receiver.subscribe("t")
    receiver.takes = 0
    for number in range(500):
        publisher.publish("t", b"%04d" % number + b"x" * 20)
    assert world.state.waiting.count > 300
    receiver.half_close()
    assert world.state.waiting.count > 300  # it is still there, and so it still counts
    publisher.publish("t", b"too late")
    while receiver.link.outbox.committed_bytes:
        receiver.read(700)
        assert receiver.link.outbox.committed_bytes < 4000
    assert [payload[:4] for payload in receiver.payloads()] == [b"%04d" % number for number in range(500)]
    publisher.detach()
    world.assert_empty()


@pytest.mark.parametrize("expiry", [0, 100])
def test_retained_replays_of_a_session_that_ends_with_the_stream(expiry: int) -> None:
    world = World(outbox_bytes_high=2000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r", expiry=expiry)
    for number in range(300):
        publisher.publish(f"k/{number}", b"x" * 20, retain=True)
    receiver.takes = 0
    receiver.give(encode(Subscribe(1, (SubscriptionRequest("k/#"),)), MQTT_5))
    receiver.half_close()
    receiver.read()
    got = {packet.topic for packet in receiver.take() if isinstance(packet, Publish)}
    if expiry:  # the rest is for its return
        receiver = world.client("r", clean=False, expiry=expiry)
        got |= {message.topic for message in receiver.messages()}
    assert got == {f"k/{number}" for number in range(300)}


def test_qos_1_that_waited_is_sent_once_to_who_does_not_come_back() -> None:
    world = World(outbox_bytes_high=2000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", 1))
    receiver.takes = 0
    for number in range(1, 91):
        publisher.publish("t", b"%04d" % number + b"x" * 50, 1, number)
    assert world.state.waiting.count > 30
    receiver.half_close()
    assert world.state.waiting.count > 30
    assert world.state.waiting.inflight_bytes == 0  # nobody will acknowledge it
    receiver.read()
    assert len(receiver.messages()) == 90
    publisher.detach()
    world.assert_empty()


@pytest.mark.parametrize(("qos", "reason"), [(0, "disconnected"), (1, "session-ended")])
def test_what_it_is_still_sent_counts_until_its_stream_is_gone(qos: int, reason: str) -> None:
    world = World(outbox_bytes_high=2000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", qos))
    receiver.takes = 0
    for number in range(1, 91):
        publisher.publish("t", b"x" * 54, qos, number if qos else 0)
    waiting = world.state.waiting.count
    receiver.half_close()
    assert world.state.waiting.count == waiting > 30
    assert world.state.waiting.unsent_bytes == receiver.link.outbox.committed_bytes > 1000
    receiver.detach()
    assert world.dropped(reason) == waiting
    publisher.detach()
    world.assert_empty()


def test_what_a_link_that_we_close_is_still_sent_counts_until_its_stream_is_gone() -> None:
    world, receiver = one_that_reads_nothing(30, 54)
    world.client("r")  # takes over
    assert receiver.link.closing
    assert world.state.waiting.unsent_bytes == receiver.link.outbox.committed_bytes > 1000
    receiver.detach()
    assert world.state.waiting.unsent_bytes == 0


def test_what_the_stream_ended_inside_of_is_told_to_the_log() -> None:
    world = World()
    peer = world.client("a")
    peer.give(b"\x30\x10\x00")
    peer.half_close()
    assert [event[0] for event in world.record.events] == ["connected", "violation", "disconnected"]
    assert "inside a packet" in peer.link.cause


def test_detach_is_idempotent_and_ends_everything() -> None:
    world = World()
    peer = world.client("a")
    peer.send(Disconnect())
    peer.half_close()
    peer.half_close()
    peer.detach()
    assert not world.engine.receive(peer.link, b"\xc0\x00", world.now)
    assert world.record.of("disconnected") == [("disconnected", "a", "it disconnected", False)]
    world.assert_empty()


def test_a_link_that_we_close_sends_nothing_but_its_goodbye() -> None:
    world, receiver = one_that_reads_nothing(100, 90)
    receiver.give(b"\x00\x00")
    assert world.state.waiting.count == 0
    assert world.dropped("disconnected") > 50
    receiver.read()
    assert receiver.ends_with(ReasonCode.MALFORMED_PACKET)
    assert 20 <= len(receiver.inbox) < 40
