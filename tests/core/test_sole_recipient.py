"""The short way: who alone is to have what was read, as it came; and everything that makes it the engine's business instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, Properties, Publish
from tests.core.harness import Peer, World


def pair(version: int = MQTT_5, **limits: Any) -> tuple[World, Peer, Peer]:
    """A publisher and its subscriber; the topic "t" is known."""
    world = World(**limits)
    subscriber = world.client("subscriber", version)
    subscriber.subscribe(("t", 0))
    publisher = world.client("publisher", version)
    publisher.publish("t", b"first")
    publisher.publish("t", b"known")
    assert subscriber.take() == [Publish("t", b"first"), Publish("t", b"known")]
    return world, publisher, subscriber


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
@pytest.mark.parametrize("size", [1, 100, 123, 124, 125, 126, 200, 16_000])
def test_a_lone_message_goes_as_it_came(version: int, size: int) -> None:
    world, publisher, subscriber = pair(version)
    data = encode(Publish("t", b"x" * size), version)
    before = world.engine.statistics()
    world.now += 5
    assert world.engine.sole_recipient(publisher.link, data) is subscriber.link
    assert world.engine.statistics() == before  # nothing is done until it is passed on
    publisher.give(data)
    assert subscriber.take() == [Publish("t", b"x" * size)]
    assert publisher.link.last_received_at == world.now
    assert subscriber.link.outbox.sent_bytes_total == len(subscriber.raw)
    after = world.engine.statistics()
    changed = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    assert changed == {
        "bytes_received": len(data), "bytes_sent": len(data), "packets_received": 1, "packets_sent": 1, "publish_received": 1, "publish_sent": 1,
    }  # fmt: skip


@pytest.mark.parametrize("takes", [0, 1, 5])
def test_what_the_socket_does_not_take_waits_in_order(takes: int) -> None:
    world, publisher, subscriber = pair()
    subscriber.takes = takes
    first, second = Publish("t", b"first"), Publish("t", b"second")
    publisher.send(first)
    assert subscriber.link.outbox.committed_bytes == subscriber.link.outbox.counted_bytes == len(encode(first, MQTT_5)) - takes
    assert world.engine.sole_recipient(publisher.link, encode(second, MQTT_5)) is None
    publisher.send(second)
    subscriber.read()
    assert subscriber.take() == [first, second]
    assert world.state.waiting.unsent_bytes == 0
    assert world.engine.sole_recipient(publisher.link, encode(second, MQTT_5)) is subscriber.link


ORDINARY = encode(Publish("t", b"payload"), MQTT_5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x30\x04\x00\x01t",
        ORDINARY[:-1],
        ORDINARY + b"\x30",
        ORDINARY * 2,
        b"\x30\x83\x00" + ORDINARY[2:],
        b"\x30\x80\x80\x01" + b"\x00\x01t\x00" + b"x" * 16_380,
        b"\x30\x03\x00\x01t\x00",
        b"\x30\x04\x00\x05t\x00",
        b"\x30\x04\xff\xfft\x00",
        encode(Publish("t", b"payload", 1, packet_id=1), MQTT_5),
        encode(Publish("t", b"payload", retain=True), MQTT_5),
        encode(Publish("t", b"payload", properties=Properties(content_type="text")), MQTT_5),
        encode(Publish("u", b"payload"), MQTT_5),
        b"\xc0\x00",
        b"\xc0\x00" * 3,
    ],
)
def test_anything_else_is_for_receive(data: bytes) -> None:
    world, publisher, _ = pair()
    assert world.engine.sole_recipient(publisher.link, data) is None


def _second_subscriber(world: World, publisher: Peer, subscriber: Peer) -> None:
    world.client("another").subscribe(("t", 0))


def _unsubscribed(world: World, publisher: Peer, subscriber: Peer) -> None:
    subscriber.detach()


def _half_a_packet_before(world: World, publisher: Peer, subscriber: Peer) -> None:
    publisher.give(ORDINARY[:3])


def _a_byte_before(world: World, publisher: Peer, subscriber: Peer) -> None:
    publisher.give(ORDINARY[:1])


def _paused(world: World, publisher: Peer, subscriber: Peer) -> None:
    publisher.link.paused = True


def _other_version(world: World, publisher: Peer, subscriber: Peer) -> None:
    subscriber.detach()
    world.client("other", MQTT_311).subscribe(("t", 0))


def _aliases(world: World, publisher: Peer, subscriber: Peer) -> None:
    subscriber.detach()
    world.client("other", topic_alias_maximum=3).subscribe(("t", 0))


def _too_large(world: World, publisher: Peer, subscriber: Peer) -> None:
    subscriber.link.packet_bytes_max = len(ORDINARY) - 1


def _its_permissions_are_asked_anew(world: World, publisher: Peer, subscriber: Peer) -> None:
    world.engine.forget_permissions()


def _gone(world: World, publisher: Peer, subscriber: Peer) -> None:
    publisher.disconnect()


@pytest.mark.parametrize(
    "change",
    [_second_subscriber, _unsubscribed, _half_a_packet_before, _a_byte_before, _paused, _other_version, _aliases, _too_large,
     _its_permissions_are_asked_anew, _gone],
)  # fmt: skip
def test_with_anything_out_of_the_ordinary_too(change: Callable[[World, Peer, Peer], None]) -> None:
    world, publisher, subscriber = pair()
    assert world.engine.sole_recipient(publisher.link, ORDINARY) is subscriber.link
    change(world, publisher, subscriber)
    assert world.engine.sole_recipient(publisher.link, ORDINARY) is None


def test_neither_above_a_limit_nor_with_a_rate() -> None:
    for limits in ({"packet_bytes_max": 60}, {"outbox_bytes_high": 60}, {"publish_per_s_max": 100}, {"receive_bytes_per_s_max": 1000}):
        world, publisher, _ = pair(**limits)
        assert world.engine.sole_recipient(publisher.link, encode(Publish("t", b"x" * 60), MQTT_5)) is None
