"""Any input in any state: never an exception out of a verb, always valid frames out, neighbours untouched; and however the
same bytes are split, the same comes out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from broker.core.link import CONNECTED, ENDED
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    NO_PROPERTIES,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    WillMessage,
)
from tests.core.harness import Peer, World

# ---- packets that a client could think of ----

TOPIC = st.sampled_from(["t", "t/1", "t/2", "/", "$SYS/x", "$x", "ä/ö", "a" * 300])
FILTER = st.sampled_from(["t", "t/+", "#", "+", "+/+", "$share/g/t", "$share/g/#", "$SYS/#", "a/#/b", "$share/", "$share//x", ""])
PACKET_ID = st.integers(1, 4)
PAYLOAD = st.sampled_from([b"", b"x", b"x" * 100, b"x" * 5000])
QOS = st.integers(0, 2)


def some(**choices: Any) -> st.SearchStrategy[Properties]:
    return st.just(NO_PROPERTIES) | st.fixed_dictionaries({}, optional=choices).map(lambda chosen: Properties(**chosen))


USER = st.sampled_from([(), (("k", "v"),)])
METHOD = st.sampled_from(["SCRAM", "OTHER"])
WILL = st.none() | st.builds(
    WillMessage, st.sampled_from(["t/w", "$SYS/w"]), PAYLOAD, QOS, st.booleans(), some(will_delay_interval=st.sampled_from([0, 5]))
)
CONNECTS = st.builds(
    Connect,
    st.sampled_from(["", "a", "b"]), st.sampled_from([MQTT_5, MQTT_5, MQTT_311, MQTT_31]), st.booleans(), st.sampled_from([0, 10]), WILL,
    st.just("user"), st.sampled_from([None, b"secret"]),
    some(
        session_expiry_interval=st.sampled_from([0, 30, 0xFFFFFFFF]), receive_maximum=st.sampled_from([1, 3]),
        maximum_packet_size=st.sampled_from([1, 4, 20, 200]), topic_alias_maximum=st.sampled_from([0, 2]),
        request_problem_information=st.integers(0, 1),
        authentication_method=METHOD, user_properties=USER,
    ),
)  # fmt: skip
PUBLISHES = st.builds(
    lambda topic, payload, qos, retain, dup, packet_id, properties: Publish(
        "" if properties.topic_alias == 3 else topic, payload, qos, retain, dup and qos > 0, packet_id if qos else 0, properties
    ),
    TOPIC, PAYLOAD, QOS, st.booleans(), st.booleans(), PACKET_ID,
    some(
        topic_alias=st.integers(1, 3), message_expiry_interval=st.sampled_from([0, 5]), subscription_identifiers=st.just((5,)), user_properties=USER,
        content_type=st.just("text"),
    ),
)  # fmt: skip
REQUESTS = st.builds(SubscriptionRequest, FILTER, QOS, st.booleans(), st.booleans(), st.integers(0, 2))
SUBSCRIBES = st.builds(
    lambda packet_id, requests, properties: Subscribe(packet_id, tuple(requests), properties),
    PACKET_ID, st.lists(REQUESTS, min_size=1, max_size=3), some(subscription_identifiers=st.just((7,))),
)  # fmt: skip
UNSUBSCRIBES = st.builds(lambda packet_id, filters: Unsubscribe(packet_id, tuple(filters)), PACKET_ID, st.lists(FILTER, min_size=1, max_size=3))
ACK_CODE = st.sampled_from([ReasonCode.SUCCESS, ReasonCode.SUCCESS, ReasonCode.NOT_AUTHORIZED])
REL_CODE = st.sampled_from([ReasonCode.SUCCESS, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND])
ACKS = (
    st.builds(PubAck, PACKET_ID, ACK_CODE)
    | st.builds(PubRec, PACKET_ID, ACK_CODE)
    | st.builds(PubRel, PACKET_ID, REL_CODE)
    | st.builds(PubComp, PACKET_ID, REL_CODE)
)
AUTHS = st.builds(
    Auth,
    st.sampled_from([ReasonCode.SUCCESS, ReasonCode.CONTINUE_AUTHENTICATION, ReasonCode.REAUTHENTICATE]),
    some(authentication_method=METHOD, authentication_data=st.just(b"data")),
)
DISCONNECTS = st.builds(
    Disconnect,
    st.sampled_from([ReasonCode.SUCCESS, ReasonCode.DISCONNECT_WITH_WILL, ReasonCode.SESSION_TAKEN_OVER]),
    some(session_expiry_interval=st.sampled_from([0, 5])),
)
WRONG_WAY: st.SearchStrategy[Packet] = st.sampled_from(
    [ConnAck(False, ReasonCode.SUCCESS), SubAck(1, (ReasonCode.SUCCESS,)), UnsubAck(1, (ReasonCode.SUCCESS,)), PingResp()]
)
USUAL = st.one_of(PUBLISHES, PUBLISHES, SUBSCRIBES, UNSUBSCRIBES, ACKS, ACKS, st.just(PingReq()))
PACKETS = st.one_of(USUAL, USUAL, CONNECTS, AUTHS, DISCONNECTS, WRONG_WAY)


def encoded(packet: Packet, version: int) -> bytes:
    """As this version has it; what it cannot say, as 5.0 would."""
    try:
        return encode(packet, version)
    except ValueError:
        return encode(packet, MQTT_5)


def say(peer: Peer, packet: Packet) -> None:
    if isinstance(packet, Connect):
        if peer.link.phase < CONNECTED and not peer.link.version:
            peer.version = packet.version
        peer.give(encode(packet, packet.version))
    else:
        peer.give(encoded(packet, peer.version))


def check_frames(peer: Peer) -> None:
    """What came are whole packets, none larger than allowed, CONNACK first, and nothing after a DISCONNECT. (Decoding is the harness's.)"""
    assert peer._decoder.buffered_bytes == 0 or peer.takes == 0
    packets = peer.inbox
    kinds = [type(packet) for packet in packets]
    if packets:
        assert kinds[0] in (ConnAck, Auth)
        assert kinds.count(ConnAck) <= 1
        assert ConnAck not in kinds[1:] or set(kinds[: kinds.index(ConnAck)]) == {Auth}
        assert Disconnect not in kinds[:-1]  # [MQTT5-3.14.4-1]
    if peer.link.phase == ENDED:
        assert peer.link.cause
        if peer.link.attached:
            assert peer.link.closing


def check_neighbour(world: World, neighbour: Peer, publisher: Peer) -> None:
    assert neighbour.link.connected
    publisher.publish("neighbours/only", b"hello", 1, 1)
    assert [packet.reason for packet in publisher.take() if isinstance(packet, PubAck)] == [ReasonCode.SUCCESS]
    assert any(isinstance(packet, Publish) and packet.payload == b"hello" for packet in neighbour.take())


STEP = st.one_of(
    st.tuples(st.just("packet"), st.integers(0, 2), PACKETS),
    st.tuples(st.just("packet"), st.integers(0, 2), PACKETS),
    st.tuples(st.just("packet"), st.integers(0, 2), PACKETS),
    st.tuples(st.just("bytes"), st.integers(0, 2), st.binary(max_size=30)),
    st.tuples(st.just("detach"), st.integers(0, 2)),
    st.tuples(st.just("half close"), st.integers(0, 2)),
    st.tuples(st.just("stuck"), st.integers(0, 2)),
    st.tuples(st.just("answer"), st.integers(0, 2), st.sampled_from([None, ReasonCode.NOT_AUTHORIZED])),
    st.tuples(st.just("challenge"), st.integers(0, 2)),
    st.tuples(st.just("time"), st.sampled_from([0.5, 6.0, 40.0])),
)


@pytest.mark.parametrize("asks", [False, True])
@settings(max_examples=150)
@given(first=st.lists(CONNECTS, min_size=3, max_size=3), steps=st.lists(STEP, max_size=40), data=st.data())
def test_any_packets_in_any_order_on_several_links(asks: bool, first: list[Connect], steps: list[Any], data: st.DataObject) -> None:
    world = World(
        asks_authentication=asks, outbox_bytes_high=2000, outbox_bytes_max=3000, queue_bytes_max=3000, memory_bytes_max=20_000, receive_maximum=2,
        work_per_turn_max=20, inflight_count_max=3, topic_alias_maximum=2, unauthenticated_bytes_max=500, packet_bytes_max=6000,
        overflow={"t/1": "disconnect", "t/2": "latest"}, slow_subscriber_grace_s=0.2,
    )  # fmt: skip

    def come_in(packet: Connect) -> Peer:
        peer = world.peer("stranger", packet.version)
        say(peer, packet)
        if asks and peer.link.auth is not None:
            settle_question(peer, None)
        return peer

    def settle_question(peer: Peer, refused: ReasonCode | None) -> None:
        world.engine.authenticated(peer.link, "user", world.now, refused=refused, data=b"final")
        peer.more = world.engine.receive(peer.link, b"", world.now)
        world.settle()

    neighbour, publisher = come_in(Connect("neighbour", username="n")), come_in(Connect("publisher", username="p"))
    neighbour.subscribe(("neighbours/#", 0))
    publisher.take()
    strangers = [come_in(packet) for packet in first]
    everybody = list(strangers)
    for step in steps:
        what = step[0]
        if what == "time":
            world.after(step[1])
            continue
        peer = strangers[step[1]]
        if what == "packet":
            say(peer, step[2])
        elif what == "bytes":
            peer.give(step[2])
        elif what == "half close":
            peer.half_close()
        elif what == "stuck":
            peer.takes = 0
        elif what == "answer":
            settle_question(peer, step[2])
        elif what == "challenge":
            world.engine.challenge(peer.link, b"?", world.now)
            world.settle()
        else:
            peer.detach()
            strangers[step[1]] = come_in(first[step[1]])
            everybody.append(strangers[step[1]])
        for one in everybody:
            check_frames(one)
    world.after(2)
    check_neighbour(world, neighbour, publisher)
    for one in everybody:
        one.read()
        check_frames(one)
    world.end_all()
    world.state.deadlines.next_at()
    world.assert_empty()


@settings(max_examples=300)
@example([b"\x10\x12\x00\x04MQTT\x04\x00\x00\x00\x00\x06nobody"], None)  # bytes that happen to be a CONNECT, and of another version
@given(st.lists(st.binary(max_size=60), max_size=8), st.sampled_from([None, Connect("a"), Connect("a", MQTT_311), Connect("a", MQTT_31)]))
def test_any_bytes_in_any_state(pieces: list[bytes], first: Connect | None) -> None:
    world = World(packet_bytes_max=1000)
    neighbour, publisher = world.client("neighbour"), world.client("publisher")
    neighbour.subscribe("neighbours/#")
    peer = world.peer()
    if first is not None:
        say(peer, first)
    for piece in pieces:
        peer.give(piece)
        check_frames(peer)
    check_neighbour(world, neighbour, publisher)
    peer.detach()
    assert not peer.link.attached
    world.end_all()
    world.assert_empty()


def in_packets(data: bytes, version: int) -> list[Packet]:
    decoder = FrameDecoder(len(data) + 5)
    decoder.feed(data)
    packets = []
    while frame := decoder.next_frame():
        packets.append(decode(*frame, version))
    decoder.end_of_stream()
    return packets


@settings(max_examples=200)
@given(
    st.sampled_from([MQTT_5, MQTT_311]), st.lists(USUAL, max_size=12), st.lists(st.integers(0, 3000), max_size=12), st.binary(max_size=4),
    st.booleans(),
)  # fmt: skip
def test_however_the_bytes_are_split_the_same_comes_out(version: int, packets: list[Packet], cuts: list[int], tail: bytes, again: bool) -> None:
    opening = [Connect("a", version), Subscribe(1, (SubscriptionRequest("t/#", 2), SubscriptionRequest("t", 1)))]
    data = b"".join(encoded(packet, version) for packet in [*opening, *packets, *(packets if again else ())]) + tail

    def run(pieces: list[bytes]) -> tuple[Sequence[Packet], Sequence[Packet], bool, str, list[bytes], Any]:
        world = World()
        watcher = world.client("w", topic_alias_maximum=3)
        watcher.subscribe("#")
        peer = world.peer("p", version)
        for piece in pieces:
            peer.give(piece)
        statistics = world.engine.statistics()
        statistics.pop("bytes_received")
        statistics.pop("bytes_sent")  # only a message that comes alone takes a Topic Alias
        # Messages in order and answers in order; how the two lie between each other depends on what one read brought.
        got = in_packets(peer.raw, version)
        # Whether an id is the publisher's or the broker's own depends on that too.
        messages = [structs.replace(packet, packet_id=0) for packet in got if isinstance(packet, Publish)]
        answers = [packet for packet in got if not isinstance(packet, Publish)]
        return messages, answers, peer.link.closing, peer.link.cause, [message.payload for message in watcher.messages()], statistics

    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    whole = run([data])
    assert run([data[start:stop] for start, stop in itertools.pairwise(places)]) == whole
    if len(data) < 400:
        assert run([data[index : index + 1] for index in range(len(data))]) == whole
