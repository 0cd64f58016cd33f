"""Peers that ask for too much: each is bounded before memory is taken, with its reason, and its neighbours are served on."""

from __future__ import annotations

import tracemalloc

import pytest

from broker.reasons import ReasonCode
from broker.wire.codec import encode, encode_varint
from broker.wire.packets import MQTT_5, MQTT_311, Connect, PingReq, Properties, Publish, Subscribe, SubscriptionRequest, WillMessage
from tests.core.harness import Peer, World


def check_served(world: World) -> None:
    neighbour = world.client("neighbour")
    neighbour.subscribe("n")
    neighbour.publish("n", b"hello")
    assert neighbour.payloads() == [b"hello"]


def feed(peer: Peer, data: bytes, size: int = 65_536) -> None:
    for start in range(0, len(data), size):
        peer.give(data[start : start + size])
        if peer.link.closing:
            return


def test_announced_and_never_sent_takes_no_memory() -> None:
    world = World(packet_bytes_max=268_435_460)
    peer = world.client("big")
    tracemalloc.start()
    peer.give(b"\x30\xff\xff\xff\x7f\x00\x01t")
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert not peer.link.closing
    assert grown < 10_000
    assert peer.link.decoder.buffered_bytes < 100
    check_served(world)


def test_announced_above_the_limit_is_refused_at_the_header() -> None:
    world = World()
    peer = world.client("big")
    peer.give(b"\x30\xff\xff\xff\x7f")
    assert peer.ends_with(ReasonCode.PACKET_TOO_LARGE)
    check_served(world)


def test_a_subscribe_with_a_million_filters() -> None:
    world = World()
    peer = world.client("greedy")
    body = b"\x00\x01\x00" + b"\x00\x01a\x00" * 1_000_000
    tracemalloc.start()
    feed(peer, b"\x82" + encode_varint(len(body)) + body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peer.ends_with(ReasonCode.PACKET_TOO_LARGE)
    assert peak < 16_000_000  # four times what has arrived, this test's own slices included
    check_served(world)


def test_an_ordinary_large_subscribe_is_served() -> None:
    world = World()
    peer = world.client("large")
    assert len(peer.subscribe(*(f"sensors/{number}" for number in range(5000)))) == 5000


@pytest.mark.parametrize("kind", ["publish", "connect", "will", "subscribe"])
def test_megabytes_of_user_properties(kind: str) -> None:
    world = World()
    many = Properties(user_properties=(("k", "v"),) * 300_000)
    packet: Connect | Publish | Subscribe
    if kind in ("connect", "will"):
        peer = world.peer()
        packet = Connect("c", properties=many) if kind == "connect" else Connect("c", will=WillMessage("w", b"", properties=many))
    else:
        peer = world.client("c")
        packet = Publish("t", properties=many) if kind == "publish" else Subscribe(1, (SubscriptionRequest("a"),), many)
    data = encode(packet, MQTT_5)
    tracemalloc.start()
    feed(peer, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peer.link.closing
    assert getattr(peer.inbox[-1], "reason", None) == ReasonCode.PACKET_TOO_LARGE
    assert peak < 12_000_000
    check_served(world)


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_peer_that_asks_and_never_reads_its_answers(version: int) -> None:
    world = World(outbox_bytes_high=4096, outbox_bytes_max=8192)
    peer = world.client("mute", version)
    peer.takes = 0
    for _ in range(200):
        peer.give(encode(PingReq(), version) * 1000)
        if peer.link.closing:
            break
    assert peer.link.closing
    assert peer.link.outbox.committed_bytes < 200_000
    check_served(world)


def test_a_million_levels_and_aliases() -> None:
    world = World()
    peer = world.client("deep")
    peer.publish("/" * 60_000, b"", 1, 1)
    assert peer.take()[0].reason == ReasonCode.TOPIC_NAME_INVALID  # type: ignore[union-attr]  # a PUBACK
    for alias in range(1, 33):
        peer.publish(f"t/{alias}", topic_alias=alias)
    assert not peer.link.closing
    peer.publish("t", topic_alias=33)
    assert peer.ends_with(ReasonCode.TOPIC_ALIAS_INVALID)
    check_served(world)


def test_never_a_connect_or_a_byte_a_minute() -> None:
    world = World()
    silent = world.peer()
    slow = world.peer()
    data = encode(Connect("slow"), MQTT_5)
    for at in range(12):
        slow.give(data[at : at + 1])
        world.after(1)
    assert silent.link.closing
    assert slow.link.closing
    check_served(world)
