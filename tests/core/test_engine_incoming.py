"""What has been read and not worked through is counted for all clients, and those who hold the most of it give way."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.incoming import FREE_BYTES
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, Auth, Connect, Disconnect, Properties, Publish, WillMessage
from tests.core.harness import Peer, World

LARGE = encode(Publish("t", bytes(10_000)), MQTT_5)
PART = LARGE[:9000]


def receiving(world: World) -> int:
    return int(world.engine.statistics()["receiving_bytes"])


def check_small_packets(world: World) -> None:
    neighbour = world.client("neighbour")
    neighbour.subscribe("n")
    publisher = world.client("neighbour's neighbour")
    for piece in (encode(Publish("n", bytes(3000)), MQTT_5)[:1500], encode(Publish("n", bytes(3000)), MQTT_5)[1500:]):
        publisher.give(piece)
    assert neighbour.payloads() == [bytes(3000)]
    publisher.detach()
    neighbour.detach()


def test_a_packet_counts_while_it_comes_in() -> None:
    world = World()
    peer = world.client("a")
    for size in (9000, 900):
        peer.give(PART[:size] if size == 9000 else LARGE[9000:9900])
    assert receiving(world) == 9900
    assert world.engine.statistics()["memory_bytes"] == 9900
    peer.give(LARGE[9900:] + LARGE[:1])  # the first byte of a header is not the read that it came in
    assert receiving(world) == 1
    peer.give(LARGE[1:])
    assert receiving(world) == 0
    assert not peer.link.closing


@pytest.mark.parametrize("ends", ["detach", "half_close", "malformed"])
def test_it_counts_no_more_when_its_link_is_over(ends: str) -> None:
    world = World()
    peer = world.client("a")
    if ends == "malformed":
        peer.give(LARGE[:20] + bytes(9_970))
        peer.give(bytes(len(LARGE) - 9_990 - 20 + 20) + b"\x00\x00" + PART)
    else:
        peer.give(PART)
        getattr(peer, ends)()
    assert receiving(world) == 0


def test_it_counts_no_more_when_its_session_is_taken_over() -> None:
    world = World()
    peer = world.client("a")
    peer.give(PART)
    world.client("a")
    assert peer.link.closing
    assert receiving(world) == 0


def test_what_a_rate_and_a_pause_hold_back_counts() -> None:
    world = World(publish_per_s_max=1, outbox_bytes_high=2000)
    peer = world.client("fast")
    frame = encode(Publish("nobody", bytes(100)), MQTT_5)
    peer.give(frame * 100)
    assert peer.link.paused
    assert receiving(world) > 90 * len(frame)
    world.after(200)
    assert receiving(world) == 0

    world = World(outbox_bytes_high=2000)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    publisher.give(encode(Publish("t", bytes(100)), MQTT_5) * 200 + PART)
    assert publisher.link.paused
    assert receiving(world) > len(PART)
    receiver.read()
    assert receiving(world) == len(PART)


def test_what_is_sent_ahead_of_connack_counts() -> None:
    world = World(asks_authentication=True)
    peer = world.peer("a")
    connect = encode(Connect("a"), MQTT_5)
    peer.give(connect)
    assert receiving(world) == len(connect) - 2
    peer.give(PART)
    assert receiving(world) == len(connect) - 2 + len(PART)
    world.engine.authenticated(peer.link, None, world.now)
    peer.give(LARGE[len(PART) :])
    assert receiving(world) == 0
    assert not peer.link.closing


def asked(world: World, size: int, name: str = "a", **properties: Any) -> Peer:
    """It has sent a CONNECT with a Will and a password of so many bytes together, and it is asked who it is."""
    peer = world.peer(name)
    will = WillMessage("w", bytes(size // 2), 0, False)
    peer.give(encode(Connect(name, will=will, password=bytes(size - size // 2), properties=Properties(**properties)), MQTT_5))
    assert peer.link.auth is not None
    return peer


@pytest.mark.parametrize("refused", [None, ReasonCode.NOT_AUTHORIZED])
def test_a_connect_counts_until_it_is_decided(refused: ReasonCode | None) -> None:
    world = World(asks_authentication=True)
    peer = asked(world, 20_000)
    assert 20_000 < receiving(world) < 20_100
    world.engine.authenticated(peer.link, None, world.now, refused=refused)
    assert receiving(world) == 0
    assert peer.link.connected == (refused is None)
    peer.detach()
    assert receiving(world) == 0


@pytest.mark.parametrize("ends", ["detach", "half_close", "timeout", "DISCONNECT", "malformed", "shutdown"])
def test_a_connect_that_is_never_decided_counts_until_its_link_is_over(ends: str) -> None:
    world = World(asks_authentication=True)
    peer = asked(world, 20_000, authentication_method="m")
    if ends == "timeout":
        world.after(world.state.limits.connect_timeout_s)
    elif ends == "DISCONNECT":
        peer.give(encode(Disconnect(), MQTT_5))
    elif ends == "malformed":
        peer.give(LARGE)
    elif ends == "shutdown":
        world.engine.shutdown(world.now)
    else:
        getattr(peer, ends)()
    assert receiving(world) == 0


def test_what_auth_brings_counts_until_it_is_answered() -> None:
    world = World(asks_authentication=True)
    properties = Properties(authentication_method="m", authentication_data=bytes(5000))
    peer = asked(world, 0, authentication_method="m")
    before = receiving(world)
    for _ in range(3):
        world.engine.challenge(peer.link, b"?", world.now)
        peer.give(encode(Auth(ReasonCode.CONTINUE_AUTHENTICATION, properties), MQTT_5))
        assert receiving(world) == before + 5000
        assert peer.link.auth is not None
        peer.link.auth.answers.popleft()
    world.engine.authenticated(peer.link, None, world.now)
    assert receiving(world) == 0
    peer.give(encode(Auth(ReasonCode.REAUTHENTICATE, properties), MQTT_5))
    assert receiving(world) == 5000
    world.engine.authenticated(peer.link, None, world.now)
    assert receiving(world) == 0
    assert peer.link.connected


def test_connects_that_wait_are_bounded_and_small_ones_come_in() -> None:
    world = World(asks_authentication=True, memory_bytes_max=800_000)
    peers = []
    for number in range(100):
        peers.append(asked(world, 20_000, f"hostile{number}"))
        assert receiving(world) <= 100_000
        world.engine.authenticated(asked(world, 100, f"neighbour{number}").link, None, world.now)
        assert f"neighbour{number}" in world.state.sessions
    refused = [peer for peer in peers if peer.link.closing]
    assert 95 <= len(refused) < 100
    assert all(peer.ends_with(ReasonCode.QUOTA_EXCEEDED) for peer in refused)


def test_who_waits_for_our_answer_does_not_give_way_to_who_waits_for_nothing() -> None:
    world = World(asks_authentication=True, memory_bytes_max=800_000)
    waiting = [asked(world, 20_000, f"waiting{number}") for number in range(3)]
    challenged = asked(world, 10_000, "challenged", authentication_method="m")
    world.engine.challenge(challenged.link, b"?", world.now)
    world.after(2)
    asked(world, 24_000, "more")
    asked(world, 10_000, "still more")
    assert challenged.link.closing
    assert not any(peer.link.closing for peer in waiting)


def test_a_hundred_that_stop_within_a_packet_are_bounded_and_their_neighbours_go_on() -> None:
    world = World(memory_bytes_max=800_000, packet_bytes_max=len(LARGE))
    peers: list[Peer] = []
    for number in range(100):
        peer = world.client(f"hostile{number}")
        for start in range(0, len(PART), 1000):
            peer.give(PART[start : start + 1000])
            assert receiving(world) <= 100_000
        peers.append(peer)
        check_small_packets(world)
    ended = [peer for peer in peers if peer.link.closing]
    assert 89 <= len(ended) < 100
    assert all(peer.ends_with(ReasonCode.QUOTA_EXCEEDED) for peer in ended)
    assert not world.record.of("violation")


def test_who_has_fallen_silent_gives_way_before_who_goes_on() -> None:
    world = World(memory_bytes_max=800_000)
    silent = [world.client(f"silent{number}") for number in range(10)]
    for peer in silent:
        peer.give(PART)
    world.after(2)
    active = world.client("active")
    active.subscribe("large")
    large = encode(Publish("large", bytes(40_000)), MQTT_5)  # the largest of all
    for start in range(0, len(large), 4000):
        active.give(large[start : start + 4000])
        assert receiving(world) <= 100_000
    assert active.payloads() == [bytes(40_000)]
    assert [peer.link.closing for peer in silent].count(True) in (4, 5, 6)


def test_who_gives_way_keeps_nothing_that_its_rate_held_back() -> None:
    """It is counted no more, and its peer may take its time to close."""
    world = World(memory_bytes_max=800_000, receive_bytes_per_s_max=100)
    crowd = [world.client(f"fast{number}") for number in range(4)]
    for peer in crowd:
        peer.give(encode(Publish("nobody", bytes(100)), MQTT_5) * 400)
    ended = [peer.link for peer in crowd if peer.link.closing]
    assert ended
    for link in ended:
        assert link.rate is not None
        assert (link.rate.held_bytes, link.decoder.held_bytes) == (0, 0)
    assert receiving(world) <= 100_000


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
def test_who_holds_little_never_gives_way(version: int) -> None:
    world = World(memory_bytes_max=80_000)
    small = [world.client(f"small{number}", version) for number in range(20)]
    large = encode(Publish("t", bytes(20_000)), version)
    for peer in small:
        peer.give(large[:FREE_BYTES])
    assert receiving(world) == 20 * FREE_BYTES
    only, greedy = world.client("only", version), world.client("greedy", version)
    only.give(large[: FREE_BYTES + 1])
    assert not only.link.closing  # one large packet at a time may always come
    greedy.give(large[: FREE_BYTES + 2])
    assert greedy.link.closing
    assert not only.link.closing
    assert greedy.ends_with(ReasonCode.QUOTA_EXCEEDED) is (version == MQTT_5)
    assert not any(peer.link.closing for peer in small)
    check_small_packets(world)


def test_a_stranger_gives_way_too_and_is_told_nothing() -> None:
    world = World(memory_bytes_max=80_000)
    world.client("a").give(PART)
    stranger = world.peer("stranger")
    stranger.give(b"\x10\xff\xff\x01" + bytes(12_000))
    assert stranger.link.closing
    assert stranger.raw == b""
    assert receiving(world) == len(PART)


def test_half_packets_cost_nobody_a_queued_message() -> None:
    world = World(memory_bytes_max=80_000, slow_subscriber_grace_s=0.0)
    publisher, away = world.client("p"), world.client("away", expiry=1000)
    away.subscribe(("t", 1))
    away.detach()
    for number in range(10):
        world.client(f"hostile{number}").give(PART)
    for number in range(1, 60):
        publisher.publish("t", bytes(999), 1, number)
    assert world.dropped("queue-full") == 0


def test_who_was_held_up_by_one_that_gives_way_goes_on() -> None:
    """All in the one call that brought its messages, so that nobody saw it paused."""
    world = World(memory_bytes_max=60_000, outbox_bytes_high=1000)
    slow = world.client("slow")
    slow.subscribe("t")
    slow.takes = 0
    slow.give(PART)
    world.after(2)
    publisher = world.client("p")
    messages = b"".join(encode(Publish("t", bytes(300), 1, packet_id=number), MQTT_5) for number in range(1, 41))
    more = world.engine.receive(publisher.link, messages, world.now)
    assert slow.link.closing
    assert not publisher.link.paused
    while more:
        more = world.engine.receive(publisher.link, b"", world.now)
    assert world.engine.statistics()["publish_received"] == 40
    assert receiving(world) == 0
