"""How fast a client may send: beyond it waits, is told 0x96, or is let go on by a reload; what was sent is never lost, doubled or swapped."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.limits import Limits
from broker.core.rate import BURST_S, PIECE_BYTES_MIN, PUBLISH_BYTES_MIN
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, ConnAck, Connect, PubAck, Publish
from tests.core.harness import Peer, World

OVERSHOOT_COUNT = PIECE_BYTES_MIN // PUBLISH_BYTES_MIN + 1


def pair(**limits: Any) -> tuple[World, Peer, Peer]:
    world = World(**limits)
    subscriber = world.client("subscriber")
    subscriber.subscribe(("#", 2))
    return world, world.client("publisher"), subscriber


def messages(count: int, qos: int = 0, size: int = 4, version: int = 5) -> bytes:
    return b"".join(encode(Publish("t", b"%04d" % n + bytes(size - 4), qos, packet_id=n + 1 if qos else 0), version) for n in range(count))


@pytest.mark.parametrize("qos", [0, 1])
def test_at_the_rate_in_order_and_complete(qos: int) -> None:
    world, publisher, subscriber = pair(publish_per_s_max=100)
    publisher.give(messages(1000, qos))
    assert publisher.link.paused
    seen = acknowledged(subscriber)
    assert len(seen) <= 100 * BURST_S + OVERSHOOT_COUNT
    for second in range(1, 12):
        world.after(1)
        seen += acknowledged(subscriber)
        assert len(seen) <= 100 * (second + BURST_S) + OVERSHOOT_COUNT
    assert [int(payload) for payload in seen] == list(range(1000))
    assert not publisher.link.paused
    if qos:
        assert [packet.packet_id for packet in publisher.take() if isinstance(packet, PubAck)] == list(range(1, 1001))
    world.end_all()
    world.assert_empty()


def acknowledged(subscriber: Peer) -> list[bytes]:
    """The payloads that came, and those that come when they are acknowledged."""
    got = []
    while subscriber.inbox:
        for packet in subscriber.messages():
            got.append(packet.payload)
            subscriber.acknowledge(packet)
    return got


def test_a_slow_rate_pays_for_what_one_piece_held_too_many() -> None:
    world, publisher, subscriber = pair(publish_per_s_max=1)
    publisher.give(b"\x30\x04\x00\x01t\x00" * 600)
    for second in range(1, 200):
        world.after(1)
        assert len(subscriber.inbox) <= second + BURST_S + OVERSHOOT_COUNT
    assert len(subscriber.inbox) >= 180


def test_bytes_have_a_rate_too() -> None:
    world, publisher, subscriber = pair(receive_bytes_per_s_max=10_000)
    publisher.give(messages(20, 0, 5000))
    assert len(subscriber.payloads()) in (1, 2)
    count = 2
    for second in range(1, 11):
        world.after(1)
        count += len(subscriber.payloads())
        assert count <= 2 * (second + 2)
    assert count >= 20


def test_what_comes_with_connect_counts() -> None:
    world = World(publish_per_s_max=10)
    subscriber = world.client("subscriber")
    subscriber.subscribe("t")
    peer = world.peer("hasty")
    peer.give(encode(Connect("hasty"), 5) + messages(500))
    assert len(subscriber.payloads()) <= 10 + OVERSHOOT_COUNT
    assert peer.link.paused


def test_within_the_rate_nobody_waits() -> None:
    world, publisher, subscriber = pair(publish_per_s_max=100)
    for _ in range(50):
        publisher.give(messages(10))
        world.after(0.1)
    assert len(subscriber.payloads()) == 500
    assert world.engine.statistics()["held_up_count"] == 0
    assert not world.record.of("held_up")


def test_a_client_that_waits_is_no_silent_one() -> None:
    world = World(publish_per_s_max=1)
    publisher = world.client("publisher", keep_alive=10)
    publisher.give(messages(300))
    world.after(200)
    assert publisher.link.connected
    world.after(200)
    assert not publisher.link.connected  # it has been read again, and said nothing


def test_neighbours_do_not_wait() -> None:
    world, publisher, subscriber = pair(publish_per_s_max=10)
    other = world.client("other")
    publisher.give(messages(500))
    subscriber.payloads()
    other.publish("t", b"mine")
    assert subscriber.payloads() == [b"mine"]


@pytest.mark.parametrize("version", [4, 5])
def test_or_it_is_thrown_out(version: int) -> None:
    world = World(publish_per_s_max=10, disconnect_above_rate=True)
    publisher = world.client("publisher", version)
    publisher.give(messages(10, version=version))
    assert publisher.link.connected
    publisher.give(messages(100, version=version))
    assert publisher.link.closing
    assert publisher.ends_with(ReasonCode.MESSAGE_RATE_TOO_HIGH) is (version == 5)
    world.end_all()
    world.assert_empty()


def test_departure_while_it_waits_leaves_nothing() -> None:
    world, publisher, _ = pair(publish_per_s_max=1)
    publisher.give(messages(100))
    assert publisher.link.paused
    publisher.detach()
    world.end_all()
    world.assert_empty()
    assert world.engine.statistics()["deadlines_count"] == 0


def test_it_waits_for_a_slow_subscriber_and_for_its_rate() -> None:
    world, publisher, subscriber = pair(publish_per_s_max=50, outbox_bytes_high=1024, slow_subscriber_grace_s=3)
    subscriber.takes = 0
    publisher.give(messages(200, 0, 100))
    world.after(0.5)
    assert publisher.link.paused_by
    subscriber.read()
    world.after(10)
    assert len(subscriber.payloads()) == 200
    assert not publisher.link.paused


def test_a_reload_gives_and_takes_a_rate() -> None:
    world, publisher, subscriber = pair()
    world.engine.set_limits(Limits(publish_per_s_max=10), world.now)
    publisher.give(messages(100))
    assert publisher.link.paused
    assert len(subscriber.payloads()) <= 10 + OVERSHOOT_COUNT
    world.engine.set_limits(Limits(), world.now)
    world.after(1)
    assert not publisher.link.paused
    publisher.give(messages(1000))
    assert not publisher.link.paused
    assert len(subscriber.payloads()) >= 1087


@pytest.mark.parametrize(("limits", "wait_s"), [({}, 0), ({"publish_per_s_max": 1000}, 0.2), ({"receive_bytes_per_s_max": 10_000}, 0.2)])
@pytest.mark.parametrize("before", ["publish_per_s_max", "receive_bytes_per_s_max"])
def test_a_reload_shortens_a_wait_that_has_begun(before: str, limits: dict[str, Any], wait_s: float) -> None:
    """Who was held up by a mistaken limit waited for as long as that had said, which may be an hour."""
    world, publisher, subscriber = pair(**{before: 0.01})
    publisher.give(messages(20))
    world.after(1)
    assert publisher.link.paused
    world.engine.set_limits(Limits(**limits), world.now)
    world.settle()
    world.after(wait_s)
    assert not publisher.link.paused
    assert len(subscriber.payloads()) == 20
    world.end_all()
    world.assert_empty()


def test_a_reload_lengthens_a_wait_that_has_begun() -> None:
    world, publisher, subscriber = pair(publish_per_s_max=10)
    publisher.give(messages(60))
    assert publisher.link.paused
    world.engine.set_limits(Limits(publish_per_s_max=0.1), world.now)
    subscriber.payloads()
    world.after(8)
    assert publisher.link.paused
    assert not subscriber.payloads()
    publisher.detach()
    world.end_all()
    world.assert_empty()


def test_clients_of_one_user() -> None:
    world = World(connections_per_user_max=2)
    first, second = (world.client(name, username="ann") for name in ("a", "b"))
    third = world.peer("c")
    third.send(Connect("c", username="ann"))
    assert third.ends_with(ReasonCode.QUOTA_EXCEEDED)
    old = world.peer("c", 4)
    old.send(Connect("c", 4, username="ann"))
    assert old.pop(ConnAck).reason == ReasonCode.SERVER_UNAVAILABLE
    world.client("d", username="ben")
    world.client("e")
    world.client("a", username="ann")  # takes over from the first
    assert first.link.closing
    second.disconnect()
    world.client("c", username="ann")
    world.end_all()
    world.assert_empty()
    assert not world.state.users


# ---- connects of one Client Identifier ----


def answer(world: World, client_id: str, version: int = MQTT_5, username: str | None = None) -> Peer:
    peer = world.peer("another", version)
    peer.send(Connect(client_id, version, username=username))
    return peer


@pytest.mark.parametrize(("version", "refusal"), [(MQTT_5, ReasonCode.CONNECTION_RATE_EXCEEDED), (MQTT_311, ReasonCode.SERVER_UNAVAILABLE)])
def test_the_war_of_two_with_one_client_identifier_ends(version: int, refusal: int) -> None:
    world = World(connects_per_client_id_per_s_max=0.1, connects_per_client_id_burst_max=5)
    owner = world.client("oven", version, username="ann")
    for _ in range(4):  # each takes over, and the other comes back at once
        other = world.client("oven", version, username="ann")
        assert owner.link.closing
        owner = other
    for _ in range(50):
        refused = answer(world, "oven", version, "ann")
        assert refused.pop(ConnAck).reason == refusal
        assert refused.link.closing
        world.after(0.1)
    assert not owner.link.closing  # whoever is connected stays so
    world.after(5.1)
    world.client("oven", version, username="ann")
    assert owner.link.closing
    assert "do two devices have the same one?" in world.record.of("refused")[0][3]


def test_nobody_uses_up_what_anothers_client_identifier_may() -> None:
    world = World(connects_per_client_id_per_s_max=0.001, connects_per_client_id_burst_max=2, asks_authentication=True)
    for _ in range(20):
        stranger = answer(world, "oven", username="ann")
        world.engine.authenticated(stranger.link, None, world.now, refused=ReasonCode.BAD_USER_NAME_OR_PASSWORD)
        other = answer(world, "oven", username="eve")
        world.engine.authenticated(other.link, "eve", world.now)
    assert world.record.of("refused")[-1][2] == ReasonCode.CONNECTION_RATE_EXCEEDED  # eve's own
    ann = answer(world, "oven", username="ann")
    world.engine.authenticated(ann.link, "ann", world.now)
    world.settle()
    assert ann.pop(ConnAck).reason == 0


def test_client_identifiers_that_we_assign_and_others_are_free() -> None:
    world = World(connects_per_client_id_per_s_max=0.001, connects_per_client_id_burst_max=1)
    for number in range(20):
        assert answer(world, "").pop(ConnAck).reason == 0
        assert answer(world, f"c{number}").pop(ConnAck).reason == 0
    assert len(world.state.connects) == 20


def test_it_is_off_by_default() -> None:
    world = World()
    for _ in range(100):
        world.client("oven")
    assert len(world.state.connects) == 0
