"""Messages on their way: each QoS in both directions, what a return repeats, and the receiver's limits."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.message import ApplicationMessage
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.framing import PACKET_BYTES_LARGEST
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Disconnect,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
)
from tests.core.harness import Peer, World

VERSIONS = pytest.mark.parametrize("version", [MQTT_5, MQTT_311])


def lasting(world: World, client_id: str, version: int, **properties: Any) -> Peer:
    return world.client(client_id, version, clean=False, expiry=1000 if version == MQTT_5 else None, **properties)


# ---- from a client ----


@VERSIONS
def test_qos_1_from_a_client(version: int) -> None:
    world = World()
    publisher, receiver = world.client("p", version), world.client("r", version)
    publisher.publish("t", b"1", 1, 7)
    assert publisher.take() == [PubAck(7, ReasonCode.NO_MATCHING_SUBSCRIBERS if version == MQTT_5 else ReasonCode.SUCCESS)]
    receiver.subscribe(("t", 1))
    for number in range(3):  # the first the general way, the others the fast one
        publisher.publish("t", b"%d" % number, 1, 7)
        assert publisher.take() == [PubAck(7)]
    publisher.publish("t", b"again", 1, 7, dup=True)  # new, whatever its DUP says
    publisher.pop(PubAck)
    got = receiver.messages()
    assert [message.payload for message in got] == [b"0", b"1", b"2", b"again"]
    assert len({message.packet_id for message in got}) == 4
    assert not any(message.dup for message in got)  # [MQTT5-3.3.1-3]


@VERSIONS
def test_qos_2_from_a_client(version: int) -> None:
    world = World()
    publisher, receiver = world.client("p", version), world.client("r", version)
    receiver.subscribe(("t", 0))
    for number in range(3):
        publisher.publish("t", b"%d" % number, 2, 7)
        publisher.publish("t", b"repeated", 2, 7, dup=True)
        assert publisher.take() == [PubRec(7)] * 2  # [MQTT5-4.3.3-10]
        publisher.send(PubRel(7), PubRel(7))
        not_found = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if version == MQTT_5 else ReasonCode.SUCCESS
        assert publisher.take() == [PubComp(7), PubComp(7, not_found)]
    assert receiver.payloads() == [b"0", b"1", b"2"]


@VERSIONS
def test_a_held_id_is_still_held_after_a_return(version: int) -> None:
    world = World()
    receiver = world.client("r")
    receiver.subscribe("t")
    publisher = lasting(world, "p", version)
    publisher.publish("t", b"1", 2, 7)
    publisher.detach()
    publisher = lasting(world, "p", version)
    publisher.publish("t", b"1", 2, 7, dup=True)
    publisher.send(PubRel(7))
    assert publisher.take() == [PubRec(7), PubComp(7)]
    assert receiver.payloads() == [b"1"]


def test_more_unfinished_qos_2_messages_than_the_receive_maximum() -> None:
    world = World(receive_maximum=3)
    publisher = lasting(world, "p", MQTT_5)
    for number in range(1, 4):
        publisher.publish("t", b"", 2, number)
    publisher.publish("t", b"", 2, 3, dup=True)  # a repetition counts once
    assert not publisher.link.closing
    publisher.detach()
    publisher = lasting(world, "p", MQTT_5)
    for number in range(4, 7):  # the quota begins anew with each connection (4.9)
        publisher.publish("t", b"", 2, number)
    assert not publisher.link.closing
    publisher.send(PubRel(1))
    publisher.publish("t", b"", 2, 7)
    assert not publisher.link.closing
    publisher.publish("t", b"", 2, 8)
    assert publisher.ends_with(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)


def test_unless_told_otherwise_the_receive_maximum_is_that_of_the_standard() -> None:
    """Clients publish on, whatever they were told; then come back and send all of it again, for ever."""
    world = World()
    publisher = world.client("p", MQTT_5)
    assert publisher.connack is not None
    assert publisher.connack.properties.receive_maximum is None
    publisher.send(*(Publish("t", b"", 2, packet_id=number) for number in range(1, 65_536)))
    assert not publisher.link.closing
    publisher.send(PubRel(1), Publish("t", b"", 2, packet_id=1))
    assert not publisher.link.closing


def test_3_1_1_knows_no_receive_maximum() -> None:
    world = World(receive_maximum=3)
    publisher = world.client("p", MQTT_311)
    publisher.send(*(Publish("t", b"", 2, packet_id=number) for number in range(1, 500)))
    assert publisher.take() == [PubRec(number) for number in range(1, 500)]


# ---- to a client ----


@VERSIONS
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_delivered_at_the_lesser_qos(version: int, published: int, granted: int) -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r", version)
    receiver.subscribe(("t", granted))
    for number in range(3):
        publisher.publish("t", b"x", published, number + 1 if published else 0)
        message = receiver.pop(Publish)
        assert message.qos == min(published, granted)  # [MQTT5-3.8.4-8]
        receiver.acknowledge(message)
    assert receiver.take() == []
    assert world.state.sessions["r"].sender.count == 0


@VERSIONS
def test_order_is_kept_across_all_ways_to_send(version: int) -> None:
    world = World(outbox_bytes_high=2000)
    publisher, receiver = world.client("p", version), world.client("r", version)
    receiver.subscribe(("t", 2))
    for qos in (0, 1, 2):
        receiver.takes = 100
        publisher.send(*(Publish("t", b"%05d" % number, qos, packet_id=number if qos else 0) for number in range(1, 100)))
        receiver.takes = 0
        got = []
        while True:
            receiver.read(333)
            batch = [packet for packet in receiver.take() if isinstance(packet, Publish)]
            if not batch and not receiver.link.outbox.committed_bytes:
                break
            for message in batch:
                got.append(message.payload)
                receiver.takes = 0
                if message.qos == 1:
                    receiver.send(PubAck(message.packet_id))
                elif message.qos == 2:
                    receiver.send(PubRec(message.packet_id), PubComp(message.packet_id))
        assert got == [b"%05d" % number for number in range(1, 100)]  # [MQTT5-4.6.0-6]
        publisher.send(*(PubRel(number) for number in range(1, 100) if qos == 2))
        receiver.read()
        receiver.take()


def test_a_closed_client_gets_nothing_and_an_absent_one_waits() -> None:
    world = World()
    publisher = world.client("p")
    receiver = lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 2))
    receiver.detach()
    publisher.send(*(Publish("t", b"%d" % qos, qos, packet_id=qos) for qos in (0, 1, 2)))
    assert world.state.waiting.count == 2
    receiver = lasting(world, "r", MQTT_5)
    assert [(message.payload, message.qos, message.dup) for message in receiver.messages()] == [(b"1", 1, False), (b"2", 2, False)]
    assert world.state.waiting.count == 0


# ---- repeated on return ----


@VERSIONS
def test_what_was_not_acknowledged_is_repeated_in_order(version: int) -> None:
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", version)
    receiver.subscribe(("t", 2))
    publisher.send(*(Publish("t", b"%d" % number, 1 + number % 2, packet_id=number) for number in range(1, 7)))
    first = receiver.messages()
    receiver.send(PubAck(first[1].packet_id))
    receiver.send(PubRec(first[2].packet_id))
    assert receiver.take() == [PubRel(first[2].packet_id)]
    receiver.detach()
    publisher.publish("t", b"new", 1, 9)
    receiver = lasting(world, "r", version)
    assert receiver.pop(PubRel).packet_id == first[2].packet_id  # [MQTT5-4.4.0-1]
    again = receiver.messages()
    assert [(message.payload, message.dup) for message in again] == [(b"1", True), (b"4", True), (b"5", True), (b"6", True), (b"new", False)]
    assert [message.packet_id for message in again[:4]] == [first[number - 1].packet_id for number in (1, 4, 5, 6)]
    receiver.send(PubComp(first[2].packet_id))
    for message in again:
        receiver.acknowledge(message)
    receiver.detach()
    assert lasting(world, "r", version).take() == []


def test_nothing_is_repeated_on_a_living_connection() -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", 1))
    publisher.publish("t", b"x", 1, 1)
    assert len(receiver.messages()) == 1
    world.after(10_000)
    receiver.send(PingReq())
    assert receiver.take() == [PingResp()]  # [MQTT5-4.4.0-1]


def test_a_session_may_return_in_the_other_version() -> None:
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 1), identifier=7)
    publisher.publish("t", b"x", 1, 1, content_type="text")
    assert receiver.pop(Publish).properties == Properties(content_type="text", subscription_identifiers=(7,))
    receiver.detach()
    receiver = lasting(world, "r", MQTT_311)
    [message] = receiver.messages()
    assert (message.payload, message.dup, message.properties) == (b"x", True, Properties())
    receiver.detach()
    [message] = lasting(world, "r", MQTT_5).messages()
    assert message.properties == Properties(content_type="text", subscription_identifiers=(7,))


@pytest.mark.parametrize("count", [3, 20])
def test_what_is_answered_before_it_is_repeated_leaves_no_place_above_the_receive_maximum(count: int) -> None:
    """[MQTT5-3.3.4-9] It had them from the connection before."""
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 2))
    publisher.send(*(Publish("t", b"%d" % number, 2, packet_id=number) for number in range(1, count + 1)))
    ids = [message.packet_id for message in receiver.messages()]
    receiver.detach()
    receiver = lasting(world, "r", MQTT_5, receive_maximum=1)
    assert [message.packet_id for message in receiver.messages()] == ids[:1]
    receiver.send(*(PubRec(packet_id) for packet_id in ids))
    assert receiver.take() == [PubRel(packet_id) for packet_id in ids]
    publisher.publish("t", b"new", 2, 99)
    receiver.send(*(PubComp(packet_id) for packet_id in ids[1:]))
    assert receiver.take() == []
    receiver.send(PubComp(ids[0]))
    assert receiver.payloads() == [b"new"]


@pytest.mark.parametrize("count", [3, 20])
def test_a_pubrel_that_was_repeated_gives_back_no_place(count: int) -> None:
    """[MQTT5-3.3.4-9] It took none on this connection; however many are answered in a row."""
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 2))
    publisher.send(*(Publish("t", b"%d" % number, 2, packet_id=number) for number in range(1, count + 1)))
    ids = [message.packet_id for message in receiver.messages()]
    receiver.send(*(PubRec(packet_id) for packet_id in ids))
    receiver.detach()
    receiver = lasting(world, "r", MQTT_5, receive_maximum=2)
    assert receiver.take() == [PubRel(packet_id) for packet_id in ids]
    publisher.send(*(Publish("t", b"new %d" % number, 1, packet_id=50 + number) for number in range(4)))
    new = receiver.messages()
    assert [message.payload for message in new] == [b"new 0", b"new 1"]
    receiver.send(*(PubComp(packet_id) for packet_id in ids))
    assert receiver.take() == []
    receiver.send(PubAck(new[0].packet_id))
    assert receiver.payloads() == [b"new 2"]


def test_what_waits_comes_in_the_order_in_which_it_came_whatever_its_qos() -> None:
    world = World(outbox_bytes_high=1000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t/#", 2))
    receiver.takes = 0
    publisher.publish("t", bytes(2000))
    for number in range(12):
        qos = number % 3
        publisher.publish(f"t/{qos}", b"%d" % number, qos, number + 1 if qos else 0)
    receiver.takes = float("inf")
    receiver.read()
    assert receiver.payloads() == [bytes(2000), *(b"%d" % number for number in range(12))]


def test_a_return_repeats_within_the_new_receive_maximum() -> None:
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 2))
    publisher.send(*(Publish("t", b"%d" % number, 1, packet_id=number) for number in range(1, 5)))
    assert len(receiver.messages()) == 4
    receiver.detach()
    publisher.publish("t", b"5", 2, 5)
    receiver = lasting(world, "r", MQTT_5, receive_maximum=2)
    got = []
    while receiver.inbox:
        assert sum(isinstance(packet, Publish) for packet in receiver.inbox) <= 2
        message = receiver.pop(Publish)
        got.append((message.payload, message.dup))
        receiver.acknowledge(message)
    assert got == [(b"1", True), (b"2", True), (b"3", True), (b"4", True), (b"5", False)]


# ---- the receiver's limits ----


@pytest.mark.parametrize("qos", [1, 2])
def test_receive_maximum_1(qos: int) -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r", receive_maximum=1)
    receiver.subscribe(("t", 2))
    publisher.send(*(Publish("t", b"%d" % number, qos, packet_id=number) for number in range(1, 6)))
    publisher.publish("t", b"zero")  # QoS 0 goes on [MQTT5-3.3.4-8]
    first = receiver.pop(Publish)
    assert receiver.pop(Publish).payload == b"zero"
    assert receiver.take() == []
    receiver.send(PingReq())
    receiver.pop(PingResp)
    got = [first.payload]
    receiver.acknowledge(first)
    while receiver.inbox:
        message = receiver.pop(Publish)
        assert not receiver.inbox
        got.append(message.payload)
        receiver.acknowledge(message)
    assert got == [b"1", b"2", b"3", b"4", b"5"]


def test_the_brokers_own_limit_of_what_is_under_way() -> None:
    world = World(inflight_count_max=2)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", 1))
    publisher.send(*(Publish("t", b"", 1, packet_id=number) for number in range(1, 6)))
    assert len(receiver.messages()) == 2


def test_a_refusing_pubrec_frees_its_place() -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r", receive_maximum=1)
    receiver.subscribe(("t", 2))
    publisher.publish("t", b"1", 2, 1)
    publisher.publish("t", b"2", 2, 2)
    receiver.send(PubRec(receiver.pop(Publish).packet_id, ReasonCode.QUOTA_EXCEEDED))
    assert receiver.pop(Publish).payload == b"2"
    assert world.dropped("refused-by-client") == 1


def test_a_refusing_puback_is_counted_and_not_repeated() -> None:
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 1))
    publisher.publish("t", b"1", 1, 1)
    receiver.send(PubAck(receiver.pop(Publish).packet_id, ReasonCode.NOT_AUTHORIZED))
    assert world.dropped("refused-by-client") == 1
    receiver.detach()
    assert lasting(world, "r", MQTT_5).take() == []


def test_acknowledgements_that_nobody_asked_for() -> None:
    peer = World().client("a")
    peer.send(PubAck(5), PubComp(5), PubRec(5), PubRel(5))
    not_found = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
    assert peer.take() == [PubRel(5, not_found), PubComp(5, not_found)]
    old = World().client("a", MQTT_311)
    old.send(PubAck(5), PubComp(5), PubRec(5), PubRel(5))
    assert old.take() == [PubRel(5), PubComp(5)]


@pytest.mark.parametrize(("qos", "answer"), [(1, PubRec(1)), (2, PubAck(1))])
def test_the_wrong_acknowledgement_ends_the_connection(qos: int, answer: PubRec | PubAck) -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", 2))
    publisher.publish("t", b"1", qos, 1)
    assert receiver.pop(Publish).packet_id == 1
    receiver.send(answer)
    assert receiver.ends_with(ReasonCode.PROTOCOL_ERROR)
    assert not publisher.link.closing


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_is_too_large_for_a_client_is_left_out(qos: int) -> None:
    world = World()
    publisher = world.client("p")
    receiver = world.client("r", maximum_packet_size=50, receive_maximum=1)
    receiver.subscribe(("t", 2))
    for payload in (b"x" * 30, b"x" * 60, b"y" * 30, b"x" * 9000, b"z" * 30):
        publisher.publish("t", payload, qos, 1 if qos else 0)
        if qos == 2:
            publisher.send(PubRel(1))
    got = []
    while receiver.inbox:
        message = receiver.pop(Publish)
        got.append(message.payload)
        receiver.acknowledge(message)
    assert got == [b"x" * 30, b"y" * 30, b"z" * 30]  # [MQTT5-3.1.2-24, -25]
    assert world.dropped("too-large") == 2


def test_what_grows_beyond_the_protocols_largest_packet_for_a_client_is_left_out() -> None:
    """As large as one of 3.1.1 can be it is a byte more in 5.0, and more yet with a Subscription Identifier: that was its publisher's end.
    (Nothing copies the payload, which so takes no memory: its zeros are never written.)"""
    payload = bytes(PACKET_BYTES_LARGEST - 5 - 3)
    world = World(memory_bytes_max=1 << 34)
    peer = world.client("c")
    peer.subscribe(("t", 1), identifier=7)
    for qos in (0, 1):
        world.engine.publish(ApplicationMessage("t", payload, qos), world.now)
    assert world.dropped("too-large") == 2
    assert not peer.inbox
    assert not peer.link.closing


@pytest.mark.pure_python("it makes the protocol's largest packet a small one")
def test_what_grows_beyond_the_protocols_largest_packet_is_left_out_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """In those that are copied, too: as it came, retained, and replayed."""
    largest = 10_000
    for module in ("wire.primitives", "core.message", "core.kept"):
        monkeypatch.setattr(f"broker.{module}.VARINT_MAX", largest)
    world = World()
    plain, identified, retained = [world.client(name, maximum_packet_size=3 + largest) for name in ("plain", "identified", "retained")]
    plain.subscribe("t")
    identified.subscribe(("t", 1), identifier=7)
    payload = bytes(largest - 3)
    for qos in (0, 1):
        world.engine.publish(ApplicationMessage("t", payload, qos), world.now)
    assert world.dropped("too-large") == 4
    world.engine.publish(ApplicationMessage("kept", payload, retain=True), world.now)
    retained.subscribe("kept")
    assert world.dropped("too-large") == 5
    for peer in (plain, identified, retained):
        assert not peer.inbox
        assert not peer.link.closing


def test_a_packet_above_the_brokers_maximum_is_refused_at_its_header() -> None:
    world = World(packet_bytes_max=1000)
    peer = world.client("a")
    peer.publish("t", b"x" * 990)
    assert not peer.link.closing
    peer.give(b"\x30\xff\xff\x7f")
    assert peer.ends_with(ReasonCode.PACKET_TOO_LARGE)


# ---- message expiry ----


def test_a_message_that_waited_too_long_is_not_sent() -> None:
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5)
    receiver.subscribe(("t", 1))
    receiver.detach()
    publisher.publish("t", b"short", 1, 1, message_expiry_interval=10)
    publisher.publish("t", b"long", 1, 2, message_expiry_interval=100)
    publisher.publish("t", b"for ever", 1, 3)
    world.after(12.5)
    receiver = lasting(world, "r", MQTT_5)
    got = receiver.messages()
    assert [message.payload for message in got] == [b"long", b"for ever"]  # [MQTT5-3.3.2-5]
    assert [message.properties.message_expiry_interval for message in got] == [88, None]  # [MQTT5-3.3.2-6]
    assert world.dropped("expired") == 1
    world.after(200)
    receiver.detach()
    again = lasting(world, "r", MQTT_5).messages()  # its delivery had begun
    assert [(message.payload, message.dup) for message in again] == [(b"long", True), (b"for ever", True)]


def test_a_message_in_a_full_outbox_expires_too() -> None:
    world = World(outbox_bytes_high=1000, slow_subscriber_grace_s=0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    for number in range(30):
        publisher.publish("t", b"%d" % number + b"x" * 90, 0, message_expiry_interval=5)
    world.after(6)
    receiver.read()
    assert 10 <= len(receiver.messages()) < 15  # those that were encoded
    assert world.dropped("expired") > 15
    assert world.state.waiting.count == 0


def test_an_interval_of_zero_stays_zero() -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    publisher.publish("t", b"x", message_expiry_interval=0)
    assert [message.properties.message_expiry_interval for message in receiver.messages()] == [0]


# ---- topic aliases ----


def test_aliases_towards_a_client() -> None:
    world = World(topic_alias_maximum=2)
    publisher, receiver = world.client("p"), world.client("r", topic_alias_maximum=10)
    receiver.subscribe("#")
    for topic in ("a", "b", "c", "a", "b", "c"):
        publisher.publish(topic, b"x")
    got = [(message.topic, message.properties.topic_alias) for message in receiver.messages()]
    assert got == [("a", 1), ("b", 2), ("c", None), ("", 1), ("", 2), ("c", None)]  # [MQTT5-3.1.2-26]


def test_no_aliases_towards_who_did_not_ask() -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("#")
    publisher.publish("a", b"x", topic_alias=1)
    publisher.publish("", b"y", topic_alias=1)
    assert [(message.topic, message.properties) for message in receiver.messages()] == [("a", Properties())] * 2  # [MQTT5-3.1.2-27]


def test_a_repetition_names_its_topic_in_full_on_the_new_connection() -> None:
    world = World()
    publisher, receiver = world.client("p"), lasting(world, "r", MQTT_5, topic_alias_maximum=5)
    receiver.subscribe(("t", 1))
    publisher.publish("t", b"1", 1, 1)
    publisher.publish("t", b"2", 1, 2)
    assert [message.topic for message in receiver.messages()] == ["t", ""]
    receiver.detach()
    receiver = lasting(world, "r", MQTT_5, topic_alias_maximum=5)
    assert [(message.topic, message.payload) for message in receiver.messages()] == [("t", b"1"), ("", b"2")]
    receiver.detach()
    receiver = lasting(world, "r", MQTT_5)
    assert [(message.topic, message.payload) for message in receiver.messages()] == [("t", b"1"), ("t", b"2")]


def test_a_frame_too_large_sets_no_alias() -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r", topic_alias_maximum=5, maximum_packet_size=40)
    receiver.subscribe("#")
    publisher.publish("t", b"x" * 100)
    publisher.publish("t", b"x")
    assert [(message.topic, message.properties.topic_alias) for message in receiver.messages()] == [("t", 1)]


@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_that_has_no_room_for_an_alias_is_named_in_full(qos: int) -> None:
    """[MQTT5-3.1.2-25] allows to leave out what is too large, and this is not."""
    world = World()
    frame = encode(Publish("long/topic", b"", qos, packet_id=qos), MQTT_5)
    publisher, receiver = world.client("p"), world.client("r", topic_alias_maximum=5, maximum_packet_size=len(frame) + 4)
    receiver.subscribe(("#", 1))
    for topic in ("long/topic", "t"):
        largest = b"x" * (4 + len("long/topic") - len(topic))
        publisher.publish(topic, largest, qos, qos)  # no room for one that is new
        publisher.publish(topic, b"", qos, qos)
        publisher.publish(topic, largest, qos, qos)  # nor for one that is as long as its topic
        got = receiver.take()
        receiver.send(*[PubAck(message.packet_id) for message in got if isinstance(message, Publish) and qos])
        assert [message.payload for message in got if isinstance(message, Publish)] == [largest, b"", largest]
    assert world.dropped("too-large") == 0


# ---- after the end ----


def test_nothing_follows_a_disconnect() -> None:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("#", 1))
    receiver.send(Disconnect(), Publish("t", b"late"), PingReq())
    publisher.publish("t", b"x", 1, 1)
    assert receiver.take() == []
    assert receiver.link.closing
    assert publisher.take() == [PubAck(1, ReasonCode.NO_MATCHING_SUBSCRIBERS)]


def test_good_packets_before_a_bad_one_are_done() -> None:
    world = World()
    peer, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    peer.give(b"\x30\x04\x00\x01t\x00" * 3 + b"\xc0\x01\x00" + b"\x30\x04\x00\x01t\x00")
    assert len(receiver.messages()) == 3
    assert peer.ends_with(ReasonCode.MALFORMED_PACKET)
