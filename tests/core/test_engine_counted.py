"""What counts against `memory_bytes_max` and is easily forgotten: properties, of retained messages and of those that wait, and Wills."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.kept import size_of
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, ConnAck, Connect, Disconnect, Properties, PubAck, Publish, WillMessage
from tests.core.harness import Peer, World

LARGE = Properties(user_properties=tuple((f"key {number}", "x" * 1000) for number in range(20)))
MIDDLE = Properties(user_properties=(("key", "x" * 180),))


def will_bytes(world: World) -> int:
    statistics = world.engine.statistics()
    found = int(statistics["will_bytes"])
    assert statistics["memory_bytes"] == found + sum(
        int(statistics[f"{name}_bytes"]) for name in ("queued", "inflight", "unsent", "retained", "receiving")
    )
    return found


def refused(world: World, client_id: str, will: WillMessage, version: int = MQTT_5) -> ReasonCode:
    peer = world.peer(client_id, version)
    peer.send(Connect(client_id, version, will=will))
    (connack,) = peer.take()
    assert isinstance(connack, ConnAck)
    assert peer.link.closing
    peer.detach()
    return ReasonCode(connack.reason)


# ---- retained messages ----


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("properties", [NO_PROPERTIES, MIDDLE, LARGE, Properties(message_expiry_interval=9), Properties(topic_alias=1)])
def test_a_retained_message_counts_with_its_properties(qos: int, properties: Properties) -> None:
    world = World()
    message = Publish("a/b", b"payload", qos, True, packet_id=1 if qos else 0, properties=properties)
    world.client("p").send(message)
    kept = world.state.retained.get("a/b")
    assert world.state.retained.bytes == size_of(kept) == world.engine.statistics()["retained_bytes"]
    assert size_of(kept) >= len(encode(message, MQTT_5)) - 8  # less its packet id, and what belongs to one hop
    world.client("q").send(Publish("a/b", b"", 0, True))
    assert world.state.retained.bytes == 0


@pytest.mark.parametrize("properties", [MIDDLE, LARGE])
def test_retained_properties_find_no_place_where_there_is_none(properties: Properties) -> None:
    """One after the other of a few bytes and much around them."""
    world = World(memory_bytes_max=100_000)
    publisher = world.client("p")
    codes: list[int] = []
    for number in range(600):
        publisher.send(Publish(f"k/{number}", b"x", 1, True, packet_id=1, properties=properties))
        codes.extend(int(packet.reason) for packet in publisher.take() if isinstance(packet, PubAck))
        assert world.state.memory_bytes <= 75_000
    assert ReasonCode.QUOTA_EXCEEDED in codes
    assert 75_000 - len(encode(Publish("k/599", b"x", 0, True, properties=properties), MQTT_5)) < world.state.retained.bytes <= 75_000


# ---- messages that wait ----


def properties_bytes(properties: Properties) -> int:
    with_them = encode(Publish("t", b"payload", properties=properties), MQTT_5)
    return len(with_them) - len(encode(Publish("t", b"payload"), MQTT_5))  # and their length, and the packet's


@pytest.mark.parametrize("properties", [NO_PROPERTIES, MIDDLE, LARGE])
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
def test_what_is_queued_or_unacknowledged_counts_with_its_properties(properties: Properties, qos: int, together: bool, version: int) -> None:
    world = World(inflight_count_max=10)
    subscriber = world.client("s", version)
    subscriber.subscribe(("t", qos))
    publisher = world.client("p")
    messages = [Publish("t", b"payload", qos, packet_id=number, properties=properties) for number in range(1, 21)]
    if together:
        publisher.send(*messages)
    else:
        for message in messages:
            publisher.send(message)
    least = len("t") + len(b"payload") + properties_bytes(properties)
    statistics = world.engine.statistics()
    assert least - 4 <= int(statistics["inflight_bytes"]) / 10 <= least
    assert least - 4 <= int(statistics["queued_bytes"]) / 10 <= least
    world.engine.disconnect("s", ReasonCode.ADMINISTRATIVE_ACTION, world.now, drop_session=True)
    world.settle()
    subscriber.detach()
    statistics = world.engine.statistics()
    assert statistics["inflight_bytes"] == statistics["queued_bytes"] == 0


@pytest.mark.parametrize("properties", [NO_PROPERTIES, MIDDLE, LARGE])
@pytest.mark.parametrize("together", [False, True])
def test_what_waits_at_qos_0_counts_with_its_properties(properties: Properties, together: bool) -> None:
    world = World(outbox_bytes_high=1024)
    subscriber = world.client("s")
    subscriber.subscribe("t")
    other = world.client("other")
    other.subscribe("t")
    subscriber.takes = 0
    world.client("filler").send(Publish("t", b"x" * 2000))  # what comes now waits as messages
    publisher = world.client("p")
    messages = [Publish("t", b"payload", properties=properties)] * 20
    if together:
        publisher.send(*messages)
    else:
        for message in messages:
            publisher.send(message)
    queue = subscriber.link.outbox.waiting
    least = len("t") + len(b"payload") + properties_bytes(properties)
    assert queue.count > 0
    assert (least - 4) * queue.count <= queue.bytes <= least * queue.count
    subscriber.read(1 << 30)
    assert (queue.count, queue.bytes) == (0, 0)


# ---- Wills ----


def test_a_will_counts_with_topic_and_properties_until_it_is_gone() -> None:
    world = World()
    will = WillMessage("w/é", b"gone", 1, False, MIDDLE)
    assert will_bytes(world) == 0
    peer = world.client("a", will=will)
    held = will_bytes(world)
    assert held >= len("w/é".encode()) + 4 + 180
    plain = world.client("b", MQTT_311, will=WillMessage("w/b", b"gone"))
    assert will_bytes(world) == held + 7
    plain.send(Disconnect())
    assert will_bytes(world) == held
    peer.detach()
    world.settle()
    assert will_bytes(world) == 0


def test_a_will_that_waits_counts_and_its_successor_takes_its_place() -> None:
    world = World()
    delayed = WillMessage("w", b"x" * 1000, properties=Properties(will_delay_interval=50))
    world.client("a", clean=False, expiry=100, will=delayed).detach()
    held = will_bytes(world)
    assert held > 1000
    world.after(20)
    assert will_bytes(world) == held
    again = world.client("a", clean=False, expiry=100, will=WillMessage("w", b"short"))
    assert will_bytes(world) == 6
    again.detach()
    world.client("a", clean=False, expiry=100, will=delayed).detach()
    world.after(51)
    assert will_bytes(world) == 0
    world.client("a", clean=False, expiry=10, will=delayed).detach()
    assert will_bytes(world) == held
    world.after(11)  # the session ends first, and its Will goes out with it
    assert will_bytes(world) == 0
    world.end_all()
    world.assert_empty()


def test_a_will_counts_until_its_turn_to_be_published_has_come() -> None:
    world = World(work_per_turn_max=1)
    crowd = [world.client(f"c{number}", will=WillMessage("w", b"x" * 100)) for number in range(10)]
    assert will_bytes(world) == 1010
    world.engine.shutdown(world.now)
    assert will_bytes(world) == 101 * (sum(peer.link.session is not None for peer in crowd) + len(world.state.wills))
    world.settle()
    assert will_bytes(world) == 0


@pytest.mark.parametrize(("version", "told"), [(MQTT_5, ReasonCode.QUOTA_EXCEEDED), (MQTT_311, ReasonCode.SERVER_UNAVAILABLE)])
def test_wills_have_their_share(version: int, told: ReasonCode) -> None:
    world = World(memory_bytes_max=16_000)
    will = WillMessage("w", b"x" * 99)
    crowd: list[Peer] = [world.client(f"c{number}", version, will=will) for number in range(10)]
    assert will_bytes(world) == 1000
    assert refused(world, "late", will, version) == told
    assert will_bytes(world) == 1000
    world.client("without", version)
    crowd[0] = world.client("c0", version, will=will)  # who comes back brings the Will that was counted
    assert will_bytes(world) == 1000
    assert refused(world, "c1", WillMessage("w", b"x" * 100), version) == told
    assert crowd[1].link.session is not None  # whom that one would have thrown out
    crowd[2].send(Disconnect())
    world.client("late", version, will=will)
    assert will_bytes(world) == 1000


def test_large_wills_leave_the_small_ones_a_place() -> None:
    world = World(memory_bytes_max=1_600_000)
    large = WillMessage("w", b"x" * 40, properties=LARGE)
    admitted: list[Any] = [world.client(f"large {number}", will=large) for number in range(2)]
    assert refused(world, "one more", large) == ReasonCode.QUOTA_EXCEEDED
    assert will_bytes(world) <= 50_000
    admitted += [world.client(f"small {number}", will=WillMessage("w", b"x" * 4000)) for number in range(10)]
    assert will_bytes(world) <= 100_000


def test_full_queues_and_retained_messages_keep_out_no_will() -> None:
    world = World(memory_bytes_max=16_000)
    publisher = world.client("p")
    for number in range(200):
        publisher.publish(f"k/{number}", b"x" * 200, 1, 1, retain=True)
    assert any(packet.reason == ReasonCode.QUOTA_EXCEEDED for packet in publisher.take() if isinstance(packet, PubAck))
    world.client("a", will=WillMessage("w", b"gone"))
    assert will_bytes(world) == 5


def test_what_comes_in_and_wills_share_an_eighth() -> None:
    world = World(memory_bytes_max=160_000)
    assert world.state.receiving_bytes_max == 20_000
    world.client("a", will=WillMessage("w", b"x" * 3999))
    assert world.state.receiving_bytes_max == 16_000
