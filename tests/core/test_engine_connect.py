"""CONNECT and how it ends: who comes in, with what, in whose place, and what is told to whom does not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    Properties,
    Publish,
    Subscribe,
    SubscriptionRequest,
    WillMessage,
)
from tests.core.harness import Peer, World

NEVER = 0xFFFF_FFFF


def refused(world: World, packet: Connect) -> Peer:
    peer = world.peer("peer", packet.version)
    peer.send(packet)
    assert peer.link.closing
    assert not peer.link.connected
    return peer


# ---- coming in ----


def test_what_a_client_does_not_ask_for_it_is_not_told() -> None:
    world = World(packet_bytes_max=268_435_460, receive_maximum=65_535, topic_alias_maximum=0)
    assert world.client("a").connack == ConnAck(False, ReasonCode.SUCCESS)
    assert world.client("b", MQTT_311).connack == ConnAck(False, ReasonCode.SUCCESS)
    assert world.record.of("connected") == [("connected", "a"), ("connected", "b")]


def test_what_differs_from_the_protocols_defaults_is_told() -> None:
    world = World(
        packet_bytes_max=1000, receive_maximum=7, topic_alias_maximum=3, maximum_qos=1, retain_available=False, session_expiry_s_max=60,
        wildcard_subscription_available=False, subscription_identifier_available=False, shared_subscription_available=False, keepalive_s_max=30,
        response_information="answers/",
    )  # fmt: skip
    connack = world.client("", expiry=100, request_response_information=1).connack
    assert connack is not None
    assert connack.properties == Properties(
        session_expiry_interval=60, receive_maximum=7, maximum_qos=1, retain_available=0, maximum_packet_size=1000,
        assigned_client_identifier="assigned-1", topic_alias_maximum=3, wildcard_subscription_available=0, subscription_identifier_available=0,
        shared_subscription_available=0, server_keep_alive=30, response_information="answers/",
    )  # fmt: skip


def test_response_information_is_only_for_those_who_ask() -> None:
    connack = World(response_information="answers/").client("a").connack
    assert connack is not None
    assert connack.properties.response_information is None  # [MQTT5-3.1.2-28]


def test_an_empty_client_identifier() -> None:
    world = World()
    first = world.client("")
    assert first.link.client_id == "assigned-1"
    assert world.client("", MQTT_311).link.client_id == "assigned-2"
    connack = world.client("", clean=False).connack
    assert connack is not None
    assert connack.properties.assigned_client_identifier == "assigned-3"
    peer = refused(world, Connect("", MQTT_311, clean_start=False))
    assert peer.take() == [ConnAck(False, ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)]  # [MQTT311-3.1.3-8]


def test_an_assigned_identifier_is_nobody_elses() -> None:
    world = World()
    world.client("assigned-1")
    assert world.client("").link.client_id == "assigned-2"  # [MQTT5-3.2.2-16]


@pytest.mark.parametrize(
    ("limits", "packet", "reason"),
    [
        ({"client_id_bytes_max": 5}, Connect("äöü"), ReasonCode.CLIENT_IDENTIFIER_NOT_VALID),
        ({"maximum_qos": 1}, Connect("a", will=WillMessage("w", b"", 2)), ReasonCode.QOS_NOT_SUPPORTED),
        ({"retain_available": False}, Connect("a", will=WillMessage("w", b"", 0, True)), ReasonCode.RETAIN_NOT_SUPPORTED),
        ({}, Connect("a", will=WillMessage("$SYS/x", b"")), ReasonCode.TOPIC_NAME_INVALID),
        ({"filter_levels_max": 2}, Connect("a", will=WillMessage("a/b/c", b"")), ReasonCode.TOPIC_NAME_INVALID),
        ({"sessions_count_max": 0}, Connect("a"), ReasonCode.QUOTA_EXCEEDED),
        ({}, Connect("a", properties=Properties(authentication_method="X")), ReasonCode.BAD_AUTHENTICATION_METHOD),
    ],
)
def test_a_connect_that_is_refused(limits: dict[str, Any], packet: Connect, reason: ReasonCode) -> None:
    world = World(**limits)
    peer = refused(world, packet)
    [connack] = peer.take()
    assert isinstance(connack, ConnAck)
    assert connack.reason == reason
    assert not connack.session_present
    assert [event[:3] for event in world.record.events] == [("refused", packet.client_id, reason)]
    peer.detach()
    world.assert_empty()
    assert world.state.deadlines.next_at() == math.inf


@pytest.mark.parametrize(
    ("limits", "packet", "codes"),
    [
        ({"sessions_count_max": 0}, Connect("a", MQTT_311), [ReasonCode.SERVER_UNAVAILABLE]),
        ({"maximum_qos": 1}, Connect("a", MQTT_311, will=WillMessage("w", b"", 2)), []),  # no return code says so
        ({}, Connect("a", MQTT_31, will=WillMessage("$SYS/x", b"")), []),
    ],
)
def test_a_connect_that_is_refused_in_the_words_of_3_1_1(limits: dict[str, Any], packet: Connect, codes: list[ReasonCode]) -> None:
    assert refused(World(**limits), packet).take() == [ConnAck(False, code) for code in codes]


@pytest.mark.parametrize(
    "packet",
    [
        Connect("a", will=WillMessage("$SYS/" + "x" * 65_000 + "\x7f" * 500, b"")),
        Connect("a", properties=Properties(authentication_method="m" * 65_535)),
    ],
)
def test_a_refusal_does_not_grow_with_what_it_quotes(packet: Connect) -> None:
    peer = refused(World(), packet)
    [connack] = peer.take()
    assert isinstance(connack, ConnAck)
    assert 0 < len(connack.properties.reason_string or "") < 300
    assert len(peer.link.cause) < 300


def test_an_existing_session_is_served_although_there_are_too_many() -> None:
    world = World(sessions_count_max=1)
    world.client("a", expiry=100).detach()
    connack = world.client("a", clean=False, expiry=100).connack
    assert connack is not None
    assert connack.session_present


def test_there_are_no_more_sessions_however_many_are_asked_about_at_a_time() -> None:
    world = World(sessions_count_max=2, asks_authentication=True)
    peers = [world.peer(name) for name in ("a", "b", "c", "d")]
    for peer in peers:
        peer.send(Connect(peer.link.peer))
    for peer, served_as in zip(peers, ("a", "b", "c", "a"), strict=True):
        world.engine.authenticated(peer.link, "ann", world.now, client_id=served_as)
        world.settle()
    connacks = [next(packet for packet in peer.take() if isinstance(packet, ConnAck)) for peer in peers]
    assert [connack.reason for connack in connacks] == [ReasonCode.SUCCESS, ReasonCode.SUCCESS, ReasonCode.QUOTA_EXCEEDED, ReasonCode.SUCCESS]
    assert sorted(world.state.sessions) == ["a", "b"]


def test_nothing_after_a_refused_connect_counts() -> None:
    world = World(client_id_bytes_max=3)
    watcher = world.client("w")
    watcher.subscribe("#")
    peer = world.peer()
    peer.send(Connect("long", will=WillMessage("will", b"")), Publish("t", b"x"), Subscribe(1, (SubscriptionRequest("#"),)))  # [MQTT5-3.1.4-6]
    assert len(peer.take()) == 1
    peer.give(encode(PingReq(), MQTT_5))
    peer.detach()
    assert watcher.take() == []
    assert peer.take() == []


def test_packets_sent_ahead_of_connack_are_served_after_it() -> None:
    peer = World().peer()
    peer.send(Connect("a"), Subscribe(1, (SubscriptionRequest("t"),)), Publish("t", b"x"))
    assert [type(packet).__name__ for packet in peer.take()] == ["ConnAck", "SubAck", "Publish"]


# ---- what is no CONNECT ----


@pytest.mark.parametrize(
    "data",
    [
        encode(PingReq(), MQTT_5),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\x10\xff\xff\xff\xff\xff",
        b"\x10\x04\x00\x04MQ",
        b"\x10\x02\x00\x00",
        b"\x00\x00",
        encode(Connect("a"), MQTT_5)[:2] + b"\x00\x04MQTT\x04\x03" + b"\x00" * 6,  # the reserved flag, in 3.1.1
    ],
)
def test_whoever_does_not_speak_mqtt_is_told_nothing(data: bytes) -> None:
    world = World()
    peer = world.peer()
    peer.give(data)
    assert peer.raw == b""
    assert peer.link.closing or data == b"\x10\x04\x00\x04MQ"
    peer.detach()
    world.assert_empty()


def test_an_unknown_protocol_level_is_answered_in_the_form_of_its_time() -> None:
    world = World()
    later = world.peer()
    later.give(b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00")
    assert [packet.reason for packet in later.take() if isinstance(packet, ConnAck)] == [ReasonCode.UNSUPPORTED_PROTOCOL_VERSION]
    earlier = world.peer(version=MQTT_311)
    earlier.give(b"\x10\x0c\x00\x04MQTT\x01\x02\x00\x00\x00\x00")
    assert earlier.take() == [ConnAck(False, ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)]  # [MQTT311-3.1.2-2]
    assert later.link.closing
    assert earlier.link.closing


def test_the_private_level_of_mosquittos_bridges_is_refused_in_their_language() -> None:
    """4, and a bit that says that it is a bridge. It asks without that bit only after a 0x01."""
    bridge = World().peer(version=MQTT_311)
    bridge.give(b"\x10\x0d\x00\x04MQTT\x84\x02\x00\x3c\x00\x01b")
    assert bridge.take() == [ConnAck(False, ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)]
    assert bridge.link.closing


def test_a_malformed_connect_of_5_0_is_told_why() -> None:
    peer = World().peer()
    packet = bytearray(encode(Connect("a"), MQTT_5))
    packet[9] |= 0x01  # the reserved flag [MQTT5-3.1.2-3]
    peer.give(bytes(packet))
    assert peer.ends_with(ReasonCode.MALFORMED_PACKET)
    overlong = encode(Connect("a"), MQTT_5)
    peer = World().peer()
    peer.give(overlong[:1] + bytes([overlong[1] | 0x80, 0]) + overlong[2:])
    assert peer.ends_with(ReasonCode.MALFORMED_PACKET)  # [MQTT5-1.5.5-1]
    overlong = encode(Connect("a", MQTT_311), MQTT_311)
    peer = World().peer(version=MQTT_311)
    peer.give(overlong[:1] + bytes([overlong[1] | 0x80, 0]) + overlong[2:])
    assert peer.take() == [ConnAck(False, ReasonCode.SUCCESS)]  # 3.1.1 has no such rule


def test_a_second_connect_is_an_error() -> None:
    peer = World().client("a")
    peer.send(Connect("a"))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)  # [MQTT5-3.1.0-2]


def test_a_client_that_accepts_no_connack_is_told_nothing_and_has_no_will() -> None:
    world = World()
    watcher = world.client("w")
    watcher.subscribe("#")
    peer = world.peer()
    peer.send(Connect("a", will=WillMessage("will", b""), properties=Properties(maximum_packet_size=4)))
    assert peer.raw == b""  # not even a DISCONNECT [MQTT5-3.14.0-1]
    assert peer.link.closing
    peer.detach()
    assert watcher.take() == []
    watcher.detach()
    world.assert_empty()


# ---- time ----


def test_a_peer_that_sends_no_connect_is_closed_in_silence() -> None:
    world = World(connect_timeout_s=10)
    peer = world.peer()
    world.after(9.9)
    assert not peer.link.closing
    peer.give(b"\x10\x10")
    world.after(0.2)
    assert peer.link.closing
    assert peer.raw == b""


def test_the_connect_timeout_ends_with_connack() -> None:
    world = World(connect_timeout_s=10)
    peer = world.client("a")
    world.after(1000)
    assert not peer.link.closing
    peer.detach()
    assert len(world.state.deadlines) == 0


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
def test_keepalive_is_one_and_a_half_times_the_value(version: int) -> None:
    world = World()
    peer = world.client("a", version, keep_alive=10)
    for _ in range(5):
        world.after(14.9)
        peer.send(PingReq())
        assert peer.take() == [PingResp()]
    world.after(14.9)
    peer.give(b"\xc0")  # any byte shows that somebody is there
    world.after(14.9)
    assert not peer.link.closing
    world.after(0.2)
    assert peer.link.closing
    assert peer.take() == ([Disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT)] if version == MQTT_5 else [])  # [MQTT5-3.1.2-22] [MQTT311-3.1.2-24]


def test_keepalive_zero_is_none_unless_the_server_sets_one() -> None:
    world = World()
    peer = world.client("a")
    world.after(1e6)
    assert not peer.link.closing
    world = World(keepalive_s_max=20)
    told = world.client("a")
    untold = world.client("b", MQTT_311)
    own = world.client("c", keep_alive=15)
    assert [p.connack.properties.server_keep_alive for p in (told, own) if p.connack] == [20, None]
    world.after(29.9)
    assert [p.link.closing for p in (told, untold, own)] == [False, False, True]
    world.after(0.2)
    assert [p.link.closing for p in (told, untold, own)] == [True, False, True]


# ---- takeover ----


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
def test_the_newer_connection_takes_over(version: int) -> None:
    world = World()
    old = world.client("a", version, clean=False, expiry=100 if version == MQTT_5 else None)
    old.subscribe(("t", 1))
    new = world.client("a", version, clean=False, expiry=100 if version == MQTT_5 else None)
    assert old.take() == ([Disconnect(ReasonCode.SESSION_TAKEN_OVER)] if version == MQTT_5 else [])  # [MQTT5-3.1.4-3]
    assert old.link.closing
    assert new.connack is not None
    assert new.connack.session_present
    world.client("p").publish("t", b"x")
    assert new.payloads() == [b"x"]
    old.give(encode(Publish("t", b"late"), version))  # ignored
    old.detach()  # does nothing to the new one
    world.client("q").publish("t", b"y")
    assert new.payloads() == [b"y"]
    assert old.raw.count(b"late") == 0


def test_taking_over_a_session_that_ends_with_its_connection() -> None:
    world = World()
    old = world.client("a")
    old.subscribe("t")
    new = world.client("a", clean=False)
    assert new.connack is not None
    assert not new.connack.session_present
    assert not world.state.sessions["a"].subscriptions


def test_clean_start_takes_over_the_name_and_not_the_state() -> None:
    world = World()
    world.client("a", expiry=100).subscribe("t")
    new = world.client("a", expiry=100)
    assert new.connack is not None
    assert not new.connack.session_present  # [MQTT5-3.2.2-2]
    assert not world.state.sessions["a"].subscriptions


def test_another_user_does_not_get_the_session() -> None:
    world = World()
    world.client("a", expiry=100, username="ann").subscribe("secret")
    new = world.client("a", clean=False, expiry=100, username="bob")
    assert new.connack is not None
    assert not new.connack.session_present
    assert not world.state.sessions["a"].subscriptions


def test_a_hundred_takeovers_leave_one_client() -> None:
    world = World()
    peers = [world.client("a", clean=False, expiry=100) for _ in range(100)]
    assert [peer.link.closing for peer in peers] == [True] * 99 + [False]
    assert world.engine.statistics()["clients_connected"] == 1
    world.end_all()
    world.assert_empty()


# ---- shutdown ----


def test_shutdown_says_goodbye_in_slices() -> None:
    world = World(work_per_turn_max=10)
    peers = [world.client(f"c{number}", MQTT_5 if number % 2 else MQTT_311) for number in range(95)]
    waiting = world.peer()
    world.engine.shutdown(world.now)
    assert 1 <= sum(link.closing for link in world.peers) <= 10
    slices = 1
    while world.engine.next_deadline() <= world.now:
        before = sum(link.closing for link in world.peers)
        more = world.engine.tick(world.now)
        assert sum(link.closing for link in world.peers) - before <= 10
        assert more == (world.engine.next_deadline() <= world.now)
        slices += 1
    assert slices >= 10
    world.settle()
    for peer in peers:
        assert peer.take() == ([Disconnect(ReasonCode.SERVER_SHUTTING_DOWN)] if peer.version == MQTT_5 else [])
        assert peer.link.closing
    assert waiting.link.closing
    assert waiting.raw == b""
    late = world.peer()
    assert late.link.closing
    assert late.raw == b""  # it has sent no CONNECT yet
    world.end_all()
    world.assert_empty()


def test_shutdown_publishes_the_wills() -> None:
    world = World()
    house: list[str] = []
    world.engine.subscribe_internal("house", ["#"], 0, lambda message, qos, retain, now: house.append(message.topic), world.now)
    world.client("a", will=WillMessage("will/a", b""))
    world.client("b", expiry=100, will=WillMessage("will/b", b"", properties=Properties(will_delay_interval=50)))
    world.engine.shutdown(world.now)
    world.settle()
    assert house == ["will/a"]


def test_an_administrator_throws_a_client_out() -> None:
    world = World()
    peer = world.client("a", expiry=100)
    assert world.engine.disconnect("a", ReasonCode.ADMINISTRATIVE_ACTION, world.now)
    world.settle()
    assert peer.ends_with(ReasonCode.ADMINISTRATIVE_ACTION)
    peer.detach()
    assert "a" in world.state.sessions
    assert not world.engine.disconnect("a", ReasonCode.ADMINISTRATIVE_ACTION, world.now)
    assert world.engine.disconnect("a", ReasonCode.ADMINISTRATIVE_ACTION, world.now, drop_session=True)
    assert not world.engine.disconnect("nobody", ReasonCode.ADMINISTRATIVE_ACTION, world.now)
    world.assert_empty()
