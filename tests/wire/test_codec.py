"""The table of vectors, run as decode, encode and byte by byte; what encode refuses; what encode_within drops."""

from __future__ import annotations

import contextlib

import pytest
from msgspec import structs

from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode, encode_properties, encode_string, encode_varint, encode_within
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
    Properties,
    PubAck,
    Publish,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    WillMessage,
)
from broker.wire.properties import PROPERTIES, WILL
from tests.wire.vectors import VECTORS, Vector


def name(vector: Vector) -> str:
    return f"{ {3: '3.1', 4: '3.1.1', 5: '5.0'}[vector.version] } {vector.shows}"


GOOD = [vector for vector in VECTORS if vector.packet is not None]
BAD = [vector for vector in VECTORS if vector.packet is None]


def split(frame: bytes) -> tuple[int, bytes]:
    assert frame[1] == len(frame) - 2, "a vector with a wrong Remaining Length"
    return frame[0], frame[2:]


@pytest.mark.parametrize("vector", GOOD, ids=name)
def test_decode(vector: Vector) -> None:
    assert decode(*split(vector.frame), vector.version) == vector.packet


@pytest.mark.parametrize("vector", BAD, ids=name)
def test_refuse(vector: Vector) -> None:
    assert vector.error is not None
    with pytest.raises(PeerError) as caught:
        decode(*split(vector.frame), vector.version)
    assert (type(caught.value), caught.value.reason) == (vector.error, vector.reason), caught.value


@pytest.mark.parametrize("vector", GOOD, ids=name)
def test_encode(vector: Vector) -> None:
    assert vector.packet is not None
    encoded = encode(vector.packet, vector.version)
    if vector.shortest:
        assert encoded == vector.frame
    else:
        assert encoded != vector.frame
        assert decode(*split(encoded), vector.version) == vector.packet


@pytest.mark.parametrize("vector", GOOD, ids=name)
def test_byte_by_byte(vector: Vector) -> None:
    decoder = FrameDecoder(1000)
    for index in range(len(vector.frame) - 1):
        decoder.feed(vector.frame[index : index + 1])
        assert decoder.next_frame() is None
    decoder.feed(vector.frame[-1:])
    frame = decoder.next_frame()
    assert frame is not None
    assert decode(*frame, vector.version) == vector.packet
    decoder.end_of_stream()


@pytest.mark.parametrize("vector", [vector for vector in GOOD if len(vector.frame) > 2], ids=name)
def test_every_cut_is_an_error_or_another_packet_and_nothing_else(vector: Vector) -> None:
    first_byte, body = split(vector.frame)
    for size in range(len(body)):
        with contextlib.suppress(MalformedPacket, ProtocolError):
            assert isinstance(decode(first_byte, body[:size], vector.version), Packet)


def test_the_table_has_every_packet_and_every_property() -> None:
    assert {type(vector.packet).__name__ for vector in GOOD} == {kind.__name__ for kind in Packet.__args__}
    shown = {
        field
        for vector in GOOD
        for properties in (
            getattr(vector.packet, "properties", NO_PROPERTIES),
            getattr(getattr(vector.packet, "will", None), "properties", NO_PROPERTIES),
        )
        for field in Properties.__struct_fields__
        if getattr(properties, field) not in (None, ())
    }
    assert shown == set(Properties.__struct_fields__)


def test_property_rows_stand_in_the_order_of_the_fields_and_of_their_ids() -> None:
    assert tuple(row.field for row in PROPERTIES) == Properties.__struct_fields__
    assert [row.id for row in PROPERTIES] == sorted({row.id for row in PROPERTIES})
    assert len(PROPERTIES) == 27


def test_which_packet_may_carry_which_property() -> None:
    # Written again from the standard's list by packet, so that a slip in the table by property shows.
    allowed = {
        WILL: "01 02 03 08 09 18 26",
        1: "11 15 16 17 19 21 22 26 27",
        2: "11 12 13 15 16 1A 1C 1F 21 22 24 25 26 27 28 29 2A",
        3: "01 02 03 08 09 0B 23 26",
        **dict.fromkeys((4, 5, 6, 7, 9, 11), "1F 26"),
        8: "0B 26",
        10: "26",
        12: "",
        13: "",
        14: "11 1C 1F 26",
        15: "15 16 1F 26",
    }
    for kind, identifiers in allowed.items():
        assert [f"{row.id:02X}" for row in PROPERTIES if row.carriers >> kind & 1] == identifiers.split(), kind


def test_an_empty_set_decodes_to_the_one_object() -> None:
    for frame in ("30 04 0001 61 00", "40 02 0001", "40 04 0001 00 00", "E0 00", "20 03 00 00 00"):
        assert structs.asdict(decode(*split(bytes.fromhex(frame)), MQTT_5))["properties"] is NO_PROPERTIES


def test_a_version_leaves_out_what_it_cannot_say() -> None:
    with_properties = Properties(user_properties=(("k", "v"),), reason_string="x")
    assert encode(PubAck(1, ReasonCode.QUOTA_EXCEEDED, with_properties), MQTT_311) == bytes.fromhex("40020001")
    assert encode(Disconnect(ReasonCode.SERVER_SHUTTING_DOWN, with_properties), MQTT_311) == bytes.fromhex("E000")
    assert encode(SubAck(1, (ReasonCode.NOT_AUTHORIZED, ReasonCode.GRANTED_QOS_2)), MQTT_31) == bytes.fromhex("900400018002")
    assert encode(UnsubAck(1, (ReasonCode.NO_SUBSCRIPTION_EXISTED,)), MQTT_311) == bytes.fromhex("B0020001")
    assert encode(Subscribe(1, (SubscriptionRequest("a", 1, True, True, 2),)), MQTT_311) == bytes.fromhex("82060001 0001 61 01")
    assert encode(ConnAck(True, ReasonCode.SUCCESS), MQTT_31) == bytes.fromhex("20020000")
    assert encode(ConnAck(False, ReasonCode.BANNED, with_properties), MQTT_311) == bytes.fromhex("20020005")
    assert encode(Publish("a", b"", properties=Properties(topic_alias=1)), MQTT_311) == bytes.fromhex("3003000161")


LONG = "x" * 65_536


@pytest.mark.parametrize(
    ("packet", "version"),
    [
        (Publish(LONG), MQTT_311),
        (Publish("ü" * 32_768), MQTT_311),
        (Publish(""), MQTT_5),
        (Publish("", properties=Properties(topic_alias=1)), MQTT_311),
        (Publish("a/+"), MQTT_5),
        (Publish("a\0"), MQTT_5),
        (Publish("\ud800"), MQTT_5),
        (Publish("a", qos=3, packet_id=1), MQTT_5),
        (Publish("a", qos=1), MQTT_5),
        (Publish("a", qos=1, packet_id=65_536), MQTT_5),
        (Publish("a", packet_id=1), MQTT_5),
        (Publish("a", dup=True), MQTT_5),
        (Publish("a", properties=Properties(will_delay_interval=1)), MQTT_5),
        (Publish("a", properties=Properties(message_expiry_interval=2**32)), MQTT_5),
        (Publish("a", properties=Properties(message_expiry_interval=-1)), MQTT_5),
        (Publish("a", properties=Properties(topic_alias=0)), MQTT_5),
        (Publish("a", properties=Properties(payload_format_indicator=2)), MQTT_5),
        (Publish("a", properties=Properties(response_topic="a/#")), MQTT_5),
        (Publish("a", properties=Properties(correlation_data=bytes(65_536))), MQTT_5),
        (Publish("a", properties=Properties(user_properties=(("k", LONG),))), MQTT_5),
        (Publish("a", properties=Properties(subscription_identifiers=(0,))), MQTT_5),
        (Publish("a", properties=Properties(subscription_identifiers=(268_435_456,))), MQTT_5),
        (Connect("c", version=6), MQTT_5),
        (Connect("c", version=MQTT_311, password=b"x"), MQTT_311),
        (Connect("c", keep_alive_s=65_536), MQTT_5),
        (Connect("c", will=WillMessage("", b"")), MQTT_5),
        (Connect("c", will=WillMessage("a", b"", qos=3)), MQTT_5),
        (Connect("c", will=WillMessage("a", bytes(65_536))), MQTT_5),
        (Connect("c", properties=Properties(receive_maximum=0)), MQTT_5),
        (ConnAck(False, ReasonCode.MALFORMED_PACKET), MQTT_311),
        (ConnAck(False, ReasonCode.SESSION_TAKEN_OVER), MQTT_5),
        (PubAck(0), MQTT_5),
        (PubRel(1, ReasonCode.QUOTA_EXCEEDED), MQTT_5),
        (PubAck(1, ReasonCode.SUCCESS, Properties(topic_alias=1)), MQTT_5),
        (Subscribe(1, ()), MQTT_5),
        (Subscribe(0, (SubscriptionRequest("a"),)), MQTT_5),
        (Subscribe(1, (SubscriptionRequest("a", 3),)), MQTT_311),
        (Subscribe(1, (SubscriptionRequest("a", retain_handling=3),)), MQTT_5),
        (Subscribe(1, (SubscriptionRequest("a"),), Properties(subscription_identifiers=(1, 2))), MQTT_5),
        (SubAck(1, ()), MQTT_5),
        (SubAck(1, (ReasonCode.NO_SUBSCRIPTION_EXISTED,)), MQTT_5),
        (Unsubscribe(1, ()), MQTT_5),
        (UnsubAck(1, ()), MQTT_5),
        (Disconnect(ReasonCode.GRANTED_QOS_1), MQTT_5),
        (Auth(), MQTT_311),
        (Auth(ReasonCode.NOT_AUTHORIZED), MQTT_5),
    ],
    ids=lambda one: repr(one)[:100],  # Windows has it in an environment variable, of 32,767 letters at most
)
def test_encode_refuses_what_cannot_be_expressed(packet: Packet, version: int) -> None:
    with pytest.raises(ValueError):
        encode(packet, version)


def test_a_packet_too_long_for_any_header() -> None:
    with pytest.raises(ValueError, match="268435455"):
        encode(Publish("a", bytes(268_435_456)), MQTT_311)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"), (127, "7F"), (128, "8001"), (2_047, "FF0F"), (2_048, "8010"), (16_383, "FF7F"), (16_384, "808001"),
        (2_097_151, "FFFF7F"), (2_097_152, "80808001"), (268_435_455, "FFFFFF7F"),
    ],
)  # fmt: skip
def test_varints(value: int, encoded: str) -> None:
    assert encode_varint(value).hex().upper() == encoded


@pytest.mark.parametrize("value", [-1, 268_435_456])
def test_varints_end_somewhere(value: int) -> None:
    with pytest.raises(ValueError):
        encode_varint(value)


def test_small_encoders() -> None:
    assert encode_string("") == b"\0\0"
    assert encode_string("é") == b"\0\2\xc3\xa9"
    assert encode_properties(NO_PROPERTIES) == b"\0"
    assert encode_properties(Properties()) == b"\0"
    assert encode_properties(Properties(content_type="a", will_delay_interval=1)) == bytes.fromhex("09 030001 61 18 00000001")


def test_lengths_of_two_three_and_four_bytes() -> None:
    for size in (124, 125, 126, 16_380, 16_381, 2_097_148, 2_097_149):
        packet = Publish("a", bytes(size))
        decoder = FrameDecoder(10_000_000)
        decoder.feed(encode(packet, MQTT_311))
        frame = decoder.next_frame()
        assert frame is not None
        assert decode(*frame, MQTT_311) == packet
        assert not decoder.overlong


def test_encode_within_drops_the_reason_string_first() -> None:
    properties = Properties(reason_string="r" * 100, user_properties=(("k", "v" * 100),))
    packet = PubAck(1, ReasonCode.QUOTA_EXCEEDED, properties)
    whole = encode(packet, MQTT_5)
    assert encode_within(packet, MQTT_5, len(whole)) == whole
    without_reason = encode(PubAck(1, ReasonCode.QUOTA_EXCEEDED, Properties(user_properties=properties.user_properties)), MQTT_5)
    assert encode_within(packet, MQTT_5, len(whole) - 1) == without_reason
    assert encode_within(packet, MQTT_5, len(without_reason)) == without_reason
    assert encode_within(packet, MQTT_5, len(without_reason) - 1) == bytes.fromhex("4003000197")
    assert encode_within(packet, MQTT_5, 5) == bytes.fromhex("4003000197")
    assert encode_within(packet, MQTT_5, 4) is None


def test_encode_within_keeps_what_an_answer_needs() -> None:
    packet = ConnAck(False, ReasonCode.SUCCESS, Properties(assigned_client_identifier="c" * 20, reason_string="r" * 20))
    assert encode_within(packet, MQTT_5, 40) == encode(ConnAck(False, ReasonCode.SUCCESS, Properties(assigned_client_identifier="c" * 20)), MQTT_5)
    assert encode_within(packet, MQTT_5, 20) is None


def test_encode_within_does_not_cut_messages() -> None:
    packet = Publish("a", b"x", properties=Properties(user_properties=(("k", "v" * 100),)))
    assert encode_within(packet, MQTT_5, 1000) == encode(packet, MQTT_5)
    assert encode_within(packet, MQTT_5, 50) is None
    assert encode_within(PingReq(), MQTT_5, 1) is None


def test_no_password_in_an_error() -> None:
    frame = bytes.fromhex("0004 4D515454 05 C2 0000 00 0001 63 0002 FFFE 0006") + b"secret"
    with pytest.raises(PeerError) as caught:
        decode(0x10, frame, MQTT_5)
    assert caught.value.__context__ is None
    assert "secret" not in str(caught.value)
