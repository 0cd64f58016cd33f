"""Limits of one listener's clients, and of one user: what CONNACK promises, what is refused, and what a reload changes."""

from __future__ import annotations

import pytest

from broker.core.allowance import Allowance, LimitOverrides
from broker.core.limits import Limits
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import ConnAck, Connect, PingReq, PubAck, Publish, WillMessage
from tests.core.harness import Peer, World

GENERAL = Limits(queue_count_max=3)
USERS = (("ann", LimitOverrides(maximum_qos=1, receive_maximum=9, queue_count_max=1, subscriptions_count_max=1)),)


def at(world: World, allowance: Allowance, client_id: str, username: str | None = None, **options: object) -> Peer:
    """A client that comes in by another listener; its answer is in the inbox."""
    peer = Peer(world, world.engine.attach(client_id, world.now, allowance=allowance))
    peer.send(Connect(client_id, username=username, **options))  # type: ignore[arg-type]
    return peer


def test_what_connack_promises() -> None:
    world = World(queue_count_max=3)
    small = Allowance(LimitOverrides(packet_bytes_max=1000, keepalive_s_max=60, topic_alias_maximum=4).over(GENERAL), USERS)
    anybody = at(world, small, "anybody", "eve").pop(ConnAck).properties
    assert (anybody.maximum_packet_size, anybody.server_keep_alive, anybody.topic_alias_maximum) == (1000, 60, 4)
    assert (anybody.maximum_qos, anybody.receive_maximum) == (None, None)
    ann = at(world, small, "ann's", "ann").pop(ConnAck).properties
    assert (ann.maximum_packet_size, ann.server_keep_alive, ann.topic_alias_maximum) == (1000, 60, 4)
    assert (ann.maximum_qos, ann.receive_maximum) == (1, 9)
    other = world.client("by the other listener", username="ann").connack
    assert other is not None
    assert (other.properties.maximum_packet_size, other.properties.maximum_qos) == (16_777_216, None)


def test_each_is_held_to_its_own() -> None:
    world = World()
    strict = Allowance(Limits(packet_bytes_max=128, filter_levels_max=2), USERS)
    peer = at(world, strict, "p")
    neighbour = world.client("neighbour")
    neighbour.subscribe("#")
    peer.pop(ConnAck)
    assert peer.subscribe("a/b/c", "a/b") == (ReasonCode.TOPIC_FILTER_INVALID, 0)
    neighbour.publish("a/b/c/d", bytes(1000))
    for size in (50, 50, 200):  # on the way that knows the topic, too
        peer.publish("t", bytes(size))
    assert peer.ends_with(ReasonCode.PACKET_TOO_LARGE)
    assert [len(message) for message in neighbour.payloads()] == [1000, 50, 50]
    ann = at(world, strict, "ann's", "ann")
    ann.pop(ConnAck)
    assert ann.subscribe("a", "b") == (0, ReasonCode.QUOTA_EXCEEDED)
    ann.publish("t", b"", 2, 1)
    assert ann.ends_with(ReasonCode.QOS_NOT_SUPPORTED)


@pytest.mark.parametrize("version", [4, 5])
def test_a_will_above_its_users_limits(version: int) -> None:
    world = World(asks_authentication=True)
    world.state.allowance.use(GENERAL, USERS)
    peer = world.peer("p", version)
    peer.send(Connect("p", version, username="somebody", will=WillMessage("w", b"", 2)))
    assert not peer.inbox  # nobody knows yet whose it is
    world.engine.authenticated(peer.link, "ann", world.now)
    world.settle()
    assert peer.ends_with(ReasonCode.QOS_NOT_SUPPORTED) if version == 5 else peer.link.closing and not peer.inbox  # 3.1.1 has no word for it


@pytest.mark.parametrize("together", [False, True])
def test_what_may_be_unacknowledged_is_the_listeners_or_the_users(together: bool) -> None:
    world = World()
    users = (("ann", LimitOverrides(inflight_bytes_max=2_500)),)
    strict = Allowance(Limits(inflight_bytes_max=4_500), users)
    ann, eve = (at(world, strict, name, name) for name in ("ann", "eve"))
    other = world.client("other", username="ann")
    for peer in (ann, eve, other):
        peer.take()
        peer.subscribe(("t", 1))
    packets = [Publish("t", bytes(999), 1, packet_id=number) for number in range(1, 31)]
    publisher = world.client("p")
    for start in range(0, 30, 5 if together else 1):  # in runs of five, and one by one
        publisher.send(*packets[start : start + (5 if together else 1)])
    # A run goes out as one.
    assert [len(peer.messages()) for peer in (ann, eve, other)] == ([5, 5, 30] if together else [3, 5, 30])
    world.engine.set_limits(Limits(inflight_bytes_max=1), world.now)  # those of all are not theirs
    publisher.publish("t", b"", 1, 99)
    assert ann.messages() == []
    ann.send(*(PubAck(number) for number in range(1, 6 if together else 4)))
    assert len(ann.messages()) == 3


def test_an_away_sessions_queue_is_its_users() -> None:
    world = World(queue_count_max=3)
    world.state.allowance.use(GENERAL, USERS)
    for name in ("ann", "ben"):
        peer = world.client(name, clean=False, expiry=1000, username=name)
        peer.subscribe(("q", 1))
        peer.detach()
    publisher = world.client("publisher")
    for number in range(1, 6):
        publisher.publish("q", b"%d" % number, 1, number)
    world.engine.set_limits(GENERAL, world.now, (("ben", LimitOverrides(queue_count_max=2)),))
    publisher.publish("q", b"6", 1, 6)
    assert [len(world.client(name, clean=False, expiry=0, username=name).payloads()) for name in ("ann", "ben")] == [2, 2]


def test_a_reload_keeps_what_was_promised() -> None:
    world = World()
    listener = Allowance(Limits())
    peer = at(world, listener, "p")
    peer.pop(ConnAck)
    listener.use(Limits(packet_bytes_max=128, maximum_qos=0, subscriptions_count_max=1))
    world.engine.set_limits(Limits(), world.now)
    assert peer.subscribe(("t", 2), "u") == (2, ReasonCode.QUOTA_EXCEEDED)
    peer.publish("t", bytes(1000), 1, 1)
    peer.publish("t", bytes(1000), 1, 2)
    assert [len(packet.payload) for packet in peer.take() if isinstance(packet, Publish)] == [1000, 1000]
    late = at(world, listener, "late").pop(ConnAck).properties
    assert (late.maximum_packet_size, late.maximum_qos) == (128, 0)


def test_a_reload_changes_how_many_topics_are_kept_resolved() -> None:
    world = World()
    world.client("r").subscribe("#")
    publisher = world.client("p")

    def publish() -> int:
        for number in range(20):
            publisher.send(Publish(f"t/{number}"), Publish(f"t/{number}"))
        return len(world.state.topics._routes)

    assert publish() == 20
    world.engine.set_limits(Limits(routes_count_max=5), world.now)
    publisher.send(Publish("new"), Publish("new"))
    assert publish() == 5


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_reload_that_lowers_the_levels_holds_for_topics_that_are_known(qos: int, version: int) -> None:
    world = World()
    reader, publisher = world.client("reader", version), world.client("publisher", version)
    reader.subscribe("#")

    def publish(first_id: int) -> list[bytes]:
        """Alone, and several in a row."""
        for packets in ([b"1"], [b"2", b"3"]):
            frames = [Publish("a/b/c", one, qos, packet_id=qos and first_id + int(one)) for one in packets]
            publisher.give(b"".join(encode(frame, version) for frame in frames))
        return reader.payloads()

    assert publish(0) == publish(10) == [b"1", b"2", b"3"]
    world.engine.set_limits(Limits(filter_levels_max=2), world.now)
    assert publish(20) == []
    publisher.take()
    publisher.publish("a/b", b"4")
    assert reader.payloads() == [b"4"]


def test_a_session_goes_over_to_the_listener_it_comes_back_by() -> None:
    world = World()
    small = Allowance(Limits(queue_count_max=1))
    world.client("c", clean=False, expiry=1000).subscribe(("q", 1))
    assert world.state.sessions["c"].limits.queue_count_max == 100_000
    at(world, small, "c", clean_start=False)
    assert world.state.sessions["c"].limits.queue_count_max == 1


def test_names_of_limits() -> None:
    with pytest.raises(TypeError, match="no limit of the name 'packets'"):
        LimitOverrides(packets=3)
    one = LimitOverrides(queue_count_max=1, maximum_qos=0)
    assert one == LimitOverrides(maximum_qos=0, queue_count_max=1)
    assert repr(one) == "LimitOverrides(maximum_qos=0, queue_count_max=1)"
    assert len({one, LimitOverrides(maximum_qos=0, queue_count_max=1), LimitOverrides()}) == 2


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("count", [1, 40])  # one by one, and in runs
def test_a_reload_changes_what_is_encoded_for_those_who_are_connected(version: int, count: int) -> None:
    """It held only for those who came after it."""
    world = World(outbox_bytes_high=4000, slow_subscriber_grace_s=0.0)
    reader, publisher = world.client("reader", version), world.client("publisher", version)
    reader.subscribe("#")

    def unread() -> int:
        reader.takes = 0
        for start in range(0, 400, count):
            publisher.give(b"".join(encode(Publish(f"t/{number}", bytes(90)), version) for number in range(start, start + count)))
        return reader.link.outbox.committed_bytes

    for mark in (2000, 20_000, 1024):
        world.engine.set_limits(Limits(outbox_bytes_high=mark, slow_subscriber_grace_s=0.0), world.now)
        assert mark <= unread() <= mark + count * 120
        reader.read()
        assert len(reader.payloads()) == 400


def test_nobody_is_thrown_out_by_a_reload_that_takes_away_what_is_used() -> None:
    world = World(outbox_bytes_high=1_000_000, slow_subscriber_grace_s=0.0)
    reader, publisher = world.client("reader"), world.client("publisher")
    reader.subscribe("#")
    reader.takes = 0
    for _ in range(50):
        publisher.publish("t", bytes(10_000))
    world.engine.set_limits(Limits(outbox_bytes_high=1024, outbox_bytes_max=1024), world.now)
    reader.send(PingReq())
    assert not reader.link.closing
    reader.read()
    assert len([packet for packet in reader.take() if isinstance(packet, Publish)]) == 50
