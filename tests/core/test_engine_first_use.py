"""What most clients never use is made when it is first used, and then is as if it had been there from the beginning."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.inflight import NO_RECEIVER, NO_SENDER
from broker.core.limits import Limits
from broker.core.waiting import NOTHING_WAITS
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, MQTT_311, Disconnect, PubRec
from tests.core.harness import Peer, World

VERSIONS = pytest.mark.parametrize("version", [MQTT_5, MQTT_311])


def own(peer: Peer) -> tuple[bool, bool, bool, bool]:
    """What this client has of its own: to send with, to receive with, and for what waits at QoS 1 and 2, and at QoS 0."""
    session: Any = peer.link.session
    found = session.sender is not NO_SENDER, session.receiver is not NO_RECEIVER, session.queue is not NOTHING_WAITS
    return *found, peer.link.outbox.waiting is not NOTHING_WAITS


@VERSIONS
def test_each_is_made_by_what_needs_it_and_for_whom_it_is(version: int) -> None:
    world = World(outbox_bytes_high=1000)
    sender, receiver = world.client("s", version), world.client("r", version)
    receiver.subscribe(("t", 1))
    for number in range(3):  # one by one and in runs
        sender.publish("t", b"%d" % number)
    assert (own(sender), own(receiver)) == ((False,) * 4, (False,) * 4)
    sender.publish("t", b"x", 1, 1)
    assert (own(sender), own(receiver)) == ((False,) * 4, (True, False, False, False))
    sender.publish("t", b"x", 2, 2)
    assert (own(sender), own(receiver)) == ((False, True, False, False), (True, False, False, False))
    receiver.takes = 0
    for _ in range(20):
        sender.publish("t", b"x" * 100)
    world.after(5)  # its patience is spent, and what it was held up with goes on
    sender.publish("t", b"x", 1, 3)
    assert own(receiver) == (True, False, True, True)
    assert own(world.client("late", version)) == (False,) * 4


def test_a_quota_is_what_held_when_its_connection_began() -> None:
    world = World(inflight_count_max=2)
    sender, plain, modest = world.client("s"), world.client("plain"), world.client("modest", receive_maximum=1)
    for peer in plain, modest:
        peer.subscribe(("t", 1))
    world.engine.set_limits(Limits(inflight_count_max=50), world.now)
    for number in range(4):
        sender.publish("t", b"%d" % number, 1, number + 1)
    for peer, count in (plain, 2), (modest, 1):
        messages = peer.messages()
        assert len(messages) == count
        peer.acknowledge(messages[0])
        assert len(peer.messages()) == 1


def test_a_receive_maximum_is_what_connack_said() -> None:
    world = World(receive_maximum=2)
    sender = world.client("s")
    world.engine.set_limits(Limits(receive_maximum=50), world.now)
    for packet_id in 1, 2:
        sender.publish("t", b"", 2, packet_id)
        assert sender.pop(PubRec).packet_id == packet_id
    sender.publish("t", b"", 2, 3)
    assert sender.pop(Disconnect).reason == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


def test_a_session_that_has_sent_nothing_yet_begins_with_what_the_next_connection_allows() -> None:
    world = World()
    sender, peer = world.client("s"), world.client("a", expiry=1000, receive_maximum=50)
    peer.subscribe(("t", 1))
    peer.detach()
    for number in range(3):
        sender.publish("t", b"%d" % number, 1, number + 1)
    peer = world.client("a", clean=False, expiry=1000, receive_maximum=1)
    assert [message.payload for message in peer.messages()] == [b"0"]


def test_the_time_to_connect_counts_from_the_beginning_however_late_its_timer_is_set() -> None:
    world = World(connect_timeout_s=10)
    at_once = world.client("a")
    assert world.engine.statistics()["deadlines_count"] == 0  # connected before anybody asked
    peer = world.peer()
    assert world.engine.statistics()["deadlines_count"] == 1
    world.now += 4
    peer.give(b"\x10")
    assert world.engine.next_deadline() == world.now + 6
    gone = world.peer()
    gone.detach()
    assert world.engine.statistics()["deadlines_count"] == 1
    world.after(6)
    assert (peer.link.closing, at_once.link.closing) == (True, False)


def test_a_timer_that_nobody_has_asked_for_yet_goes_off_all_the_same() -> None:
    world = World(connect_timeout_s=10)
    peer = world.peer()
    world.now += 11
    world.engine.tick(world.now)
    assert peer.link.closing
