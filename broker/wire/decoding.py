"""Frames to packets: one function for each Control Packet, the version is an argument.

`decode` raises MalformedPacket for bytes that cannot be parsed, ProtocolError for what parses and is not allowed, and nothing
else. Where the standard names no reason code, ours are: packet identifier 0 and unlisted reason codes are Protocol
Errors (they parse); DUP at QoS 0, a wildcard in a Topic Name and Will bits without a Will are Malformed Packets. What 3.1.1
calls reserved is malformed there. Which end is being served is not known here: what only one end may send, and what
depends on earlier packets, is for the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from broker import reasons
from broker.errors import MalformedPacket, ProtocolError
from broker.reasons import ReasonCode
from broker.wire.packets import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    MQTT_5,
    MQTT_31,
    MQTT_311,
    NO_PROPERTIES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
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
from broker.wire.primitives import read_binary, read_byte, read_packet_id, read_string, read_u16
from broker.wire.properties import WILL, decode_properties

DISCONNECT_CODES: Final = reasons.CLIENT_DISCONNECT_CODES | reasons.SERVER_DISCONNECT_CODES
PROTOCOL_NAMES: Final = {MQTT_31: "MQIsdp", MQTT_311: "MQTT", MQTT_5: "MQTT"}

_HEADS: Final = (b"\x00\x04MQTT\x04", b"\x00\x04MQTT\x05")
"""Of 3.1.1 and 5.0."""
_CONNECT_HEAD_BYTES: Final = 10
"""Up to the Keep Alive."""
_CLEAN_START: Final = 0x02

_REASONS: Final[list[ReasonCode | None]] = [None] * 256
"""The enum's members by value: a list look-up is a tenth of what calling the enum costs."""
for _member in ReasonCode:
    _REASONS[_member] = _member

_SUCCESS: Final = ReasonCode.SUCCESS
_SUBACK_CODES_311: Final = frozenset((0x00, 0x01, 0x02, 0x80))
_LEFTOVER: Final = "bytes are left over after the last field"


def decode(first_byte: int, body: bytes, version: int) -> Packet:
    """The packet of one frame. body: what follows the fixed header. version: ignored for CONNECT, which says its own."""
    return _DECODERS[first_byte](first_byte, body, version)


def decode_frame(frame: bytes, version: int) -> Packet:
    """The packet of one whole frame that we made ourselves."""
    start = 1
    while frame[start] & 0x80:
        start += 1
    return decode(frame[0], frame[start + 1 :], version)


def _decode_connect(first_byte: int, body: bytes, version: int) -> Connect:
    if len(body) >= _CONNECT_HEAD_BYTES and body[:7] in _HEADS:
        version = body[6]
        flags = body[7]
        keep_alive_s = body[8] << 8 | body[9]
        if flags & ~_CLEAN_START:
            _check_connect_flags(flags, version)
        position = _CONNECT_HEAD_BYTES
    else:  # the older name, or what is wrong with it
        name, position = read_string(body, 0)
        version, position = read_byte(body, position)
        if PROTOCOL_NAMES.get(version) != name:
            # [MQTT5-3.1.2-1, -2] [MQTT311-3.1.2-1, -2]: what follows is in a language we do not know, so it is not read.
            raise ProtocolError(f"protocol {name[:16]!r} level {version} is not supported", ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)
        flags, position = read_byte(body, position)
        _check_connect_flags(flags, version)
        keep_alive_s, position = read_u16(body, position)
    properties = will_properties = NO_PROPERTIES
    if version >= MQTT_5:
        properties, position = decode_properties(body, position, CONNECT)
    client_id, position = read_string(body, position)
    if flags & ~_CLEAN_START == 0 and position == len(body):
        return Connect(client_id, version, flags != 0, keep_alive_s, properties=properties)
    will: WillMessage | None = None
    if flags & 0x04:
        if version >= MQTT_5:
            will_properties, position = decode_properties(body, position, WILL)
        will_topic, position = read_string(body, position)
        _check_topic_name(will_topic)
        if not will_topic:
            raise MalformedPacket("the Will Topic is empty")  # [MQTT5-4.7.3-1] [MQTT311-4.7.3-1]
        will_payload, position = read_binary(body, position)
        will = WillMessage(will_topic, will_payload, flags >> 3 & 3, bool(flags & 0x20), will_properties)
    username: str | None = None
    password: bytes | None = None
    if version == MQTT_31 and position == len(body):
        # MQTT 3.1 lets the packet end before a user name and password that its flags announce.
        flags &= 0x3F
    if flags & 0x80:
        username, position = read_string(body, position)
        if version == MQTT_31 and position == len(body):
            flags &= 0xBF
    if flags & 0x40:
        password, position = read_binary(body, position)
    if position != len(body):
        raise MalformedPacket(_LEFTOVER)
    return Connect(client_id, version, bool(flags & 0x02), keep_alive_s, will, username, password, properties)


def _check_connect_flags(flags: int, version: int) -> None:
    if flags & 0x18 == 0x18:
        raise MalformedPacket("Will QoS 3")  # [MQTT5-3.1.2-12] [MQTT311-3.1.2-14]
    if version >= MQTT_311:  # 3.1 says of these bits only that they are not used
        if flags & 0x01:
            raise MalformedPacket("the reserved bit of the Connect Flags is set")  # [MQTT5-3.1.2-3] [MQTT311-3.1.2-3]
        if not flags & 0x04 and flags & 0x38:
            raise MalformedPacket("Will QoS or Will Retain without a Will")  # [MQTT5-3.1.2-11, -13] [MQTT311-3.1.2-11]
    if version < MQTT_5 and flags & 0xC0 == 0x40:
        raise MalformedPacket("a password without a user name")  # [MQTT311-3.1.2-22]


def _decode_connack(first_byte: int, body: bytes, version: int) -> ConnAck:
    flags, position = read_byte(body, 0)
    code, position = read_byte(body, position)
    if version == MQTT_31:
        flags = 0  # not used there
    if flags & 0xFE:
        raise MalformedPacket("a reserved bit of the Connect Acknowledge Flags is set")  # [MQTT5-3.2.2-1]
    if version < MQTT_5:
        reason = reasons.from_connack_return_code(code)
        if reason is None:
            raise MalformedPacket(f"CONNACK with the reserved return code {code}")
    elif len(body) == 2 and code == 0x01:
        # A server that has no 5.0 refuses in 3.1.1's form [MQTT311-3.1.2-2]; the reason should reach the user.
        return ConnAck(False, ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)
    else:
        reason = _reason(code, reasons.CONNACK_CODES, "CONNACK")
    return ConnAck(bool(flags), reason, _last_properties(body, position, CONNACK, version))


def _decode_publish(first_byte: int, body: bytes, version: int) -> Publish:
    topic, position = read_string(body, 0)
    if "+" in topic or "#" in topic:
        _check_topic_name(topic)
    qos = first_byte >> 1 & 3
    packet_id = 0
    if qos:
        packet_id, position = read_packet_id(body, position)
    properties = NO_PROPERTIES
    if version >= MQTT_5:
        properties, position = decode_properties(body, position, PUBLISH)
    if not topic and properties.topic_alias is None:
        raise ProtocolError("PUBLISH with neither a topic nor a Topic Alias")
    return Publish(topic, body[position:], qos, first_byte & 1 != 0, first_byte & 8 != 0, packet_id, properties)


def _decode_puback(first_byte: int, body: bytes, version: int) -> PubAck:
    packet_id, reason, properties = _ack_fields(body, version, PUBACK, reasons.PUBACK_CODES)
    return PubAck(packet_id, reason, properties)


def _decode_pubrec(first_byte: int, body: bytes, version: int) -> PubRec:
    packet_id, reason, properties = _ack_fields(body, version, PUBREC, reasons.PUBACK_CODES)
    return PubRec(packet_id, reason, properties)


def _decode_pubrel(first_byte: int, body: bytes, version: int) -> PubRel:
    packet_id, reason, properties = _ack_fields(body, version, PUBREL, reasons.PUBREL_CODES)
    return PubRel(packet_id, reason, properties)


def _decode_pubcomp(first_byte: int, body: bytes, version: int) -> PubComp:
    packet_id, reason, properties = _ack_fields(body, version, PUBCOMP, reasons.PUBREL_CODES)
    return PubComp(packet_id, reason, properties)


def _ack_fields(body: bytes, version: int, kind: int, allowed: frozenset[int]) -> tuple[int, ReasonCode, Properties]:
    packet_id, _ = read_packet_id(body, 0)
    if len(body) == 2:
        return packet_id, _SUCCESS, NO_PROPERTIES
    if version < MQTT_5:
        raise MalformedPacket(_LEFTOVER)
    reason = _reason(body[2], allowed, "an acknowledgement")
    if len(body) == 3:
        return packet_id, reason, NO_PROPERTIES
    return packet_id, reason, _last_properties(body, 3, kind, version)


def _decode_subscribe(first_byte: int, body: bytes, version: int) -> Subscribe:
    packet_id, position = read_packet_id(body, 0)
    properties = NO_PROPERTIES
    if version >= MQTT_5:
        properties, position = decode_properties(body, position, SUBSCRIBE)
    requests: list[SubscriptionRequest] = []
    size = len(body)
    while position < size:
        # Only the characters of a filter are checked here: its syntax is answered for each by a SUBACK code.
        filter, position = read_string(body, position)
        if position == size:
            raise MalformedPacket("a subscription has no options")
        options = body[position]
        position += 1
        if version < MQTT_5:
            if options > 2:
                raise MalformedPacket(f"subscription QoS byte 0x{options:02X}")  # [MQTT311-3.8.3-4]
            requests.append(SubscriptionRequest(filter, options))
            continue
        if options & 0xC0:
            raise MalformedPacket("a reserved bit of the Subscription Options is set")  # [MQTT5-3.8.3-5]
        if options & 0x03 == 0x03:
            raise ProtocolError("subscription with QoS 3")
        if options & 0x30 == 0x30:
            raise ProtocolError("subscription with Retain Handling 3")
        requests.append(SubscriptionRequest(filter, options & 3, options & 4 != 0, options & 8 != 0, options >> 4))
    if not requests:
        raise ProtocolError("SUBSCRIBE without a Topic Filter")  # [MQTT5-3.8.3-2] [MQTT311-3.8.3-3]
    return Subscribe(packet_id, tuple(requests), properties)


def _decode_suback(first_byte: int, body: bytes, version: int) -> SubAck:
    packet_id, position = read_packet_id(body, 0)
    properties = NO_PROPERTIES
    if version >= MQTT_5:
        properties, position = decode_properties(body, position, SUBACK)
        codes = tuple(_reason(code, reasons.SUBACK_CODES, "SUBACK") for code in body[position:])
    else:
        for code in body[position:]:
            if code not in _SUBACK_CODES_311:
                raise MalformedPacket(f"SUBACK with the reserved return code {code}")  # [MQTT311-3.9.3-2]
        codes = tuple(ReasonCode(code) for code in body[position:])
    if not codes:
        raise ProtocolError("SUBACK without a reason code")
    return SubAck(packet_id, codes, properties)


def _decode_unsubscribe(first_byte: int, body: bytes, version: int) -> Unsubscribe:
    packet_id, position = read_packet_id(body, 0)
    properties = NO_PROPERTIES
    if version >= MQTT_5:
        properties, position = decode_properties(body, position, UNSUBSCRIBE)
    filters: list[str] = []
    while position < len(body):
        filter, position = read_string(body, position)
        filters.append(filter)
    if not filters:
        raise ProtocolError("UNSUBSCRIBE without a Topic Filter")  # [MQTT5-3.10.3-2] [MQTT311-3.10.3-2]
    return Unsubscribe(packet_id, tuple(filters), properties)


def _decode_unsuback(first_byte: int, body: bytes, version: int) -> UnsubAck:
    packet_id, position = read_packet_id(body, 0)
    if version < MQTT_5:
        if position != len(body):
            raise MalformedPacket(_LEFTOVER)
        return UnsubAck(packet_id)
    properties, position = decode_properties(body, position, UNSUBACK)
    codes = tuple(_reason(code, reasons.UNSUBACK_CODES, "UNSUBACK") for code in body[position:])
    if not codes:
        raise ProtocolError("UNSUBACK without a reason code")
    return UnsubAck(packet_id, codes, properties)


_PINGREQ: Final = PingReq()
_PINGRESP: Final = PingResp()


def _decode_pingreq(first_byte: int, body: bytes, version: int) -> PingReq:
    if body:
        raise MalformedPacket(_LEFTOVER)
    return _PINGREQ


def _decode_pingresp(first_byte: int, body: bytes, version: int) -> PingResp:
    if body:
        raise MalformedPacket(_LEFTOVER)
    return _PINGRESP


def _decode_disconnect(first_byte: int, body: bytes, version: int) -> Disconnect:
    if not body:
        return Disconnect()
    if version < MQTT_5:
        raise MalformedPacket(_LEFTOVER)
    reason = _reason(body[0], DISCONNECT_CODES, "DISCONNECT")
    if len(body) == 1:
        return Disconnect(reason)
    return Disconnect(reason, _last_properties(body, 1, DISCONNECT, version))


def _decode_auth(first_byte: int, body: bytes, version: int) -> Auth:
    if version < MQTT_5:
        raise MalformedPacket("packet type 15 is reserved before MQTT 5.0")
    if not body:
        return Auth()
    reason = _reason(body[0], reasons.AUTH_CODES, "AUTH")
    return Auth(reason, _last_properties(body, 1, AUTH, version))


def _refuse_flags(first_byte: int, body: bytes, version: int) -> Packet:
    """Every first byte that has no decoder of its own."""
    kind = first_byte >> 4
    if version == MQTT_31 and first_byte in (0x6A, 0x8A, 0xAA):
        # MQTT 3.1 sets DUP when it sends PUBREL, SUBSCRIBE or UNSUBSCRIBE again.
        return decode(first_byte & 0xF7, body, version)
    if kind == PUBLISH:
        # [MQTT5-3.3.1-4, -2] [MQTT311-3.3.1-4, -2]
        raise MalformedPacket("PUBLISH with QoS 3" if first_byte & 0x06 == 0x06 else "PUBLISH with DUP at QoS 0")
    if kind == 0:
        raise MalformedPacket("packet type 0 is reserved")
    raise MalformedPacket(f"the reserved flags of packet type {kind} are 0x{first_byte & 0x0F:X}")  # [MQTT5-2.1.3-1] [MQTT311-2.2.2-2]


def _reason(code: int, allowed: frozenset[int], what: str) -> ReasonCode:
    reason = _REASONS[code]
    if reason is None or code not in allowed:
        raise ProtocolError(f"{what} with reason code 0x{code:02X}")
    return reason


def _last_properties(body: bytes, position: int, kind: int, version: int) -> Properties:
    """The properties that end a packet; none before 5.0. MalformedPacket if anything follows."""
    properties = NO_PROPERTIES
    if version >= MQTT_5:
        properties, position = decode_properties(body, position, kind)
    if position != len(body):
        raise MalformedPacket(_LEFTOVER)
    return properties


def _check_topic_name(topic: str) -> None:
    if "+" in topic or "#" in topic:
        raise MalformedPacket("a Topic Name contains a wildcard")  # [MQTT5-3.3.2-2] [MQTT311-3.3.2-2] [MQTT311-4.7.1-1]


_Decoder: TypeAlias = Callable[[int, bytes, int], Packet]

_DECODERS_BY_FLAGS: Final[dict[int, _Decoder]] = {
    0x10: _decode_connect, 0x20: _decode_connack, 0x40: _decode_puback, 0x50: _decode_pubrec, 0x62: _decode_pubrel, 0x70: _decode_pubcomp,
    0x82: _decode_subscribe, 0x90: _decode_suback, 0xA2: _decode_unsubscribe, 0xB0: _decode_unsuback, 0xC0: _decode_pingreq,
    0xD0: _decode_pingresp, 0xE0: _decode_disconnect, 0xF0: _decode_auth,
    **dict.fromkeys((0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x3A, 0x3B, 0x3C, 0x3D), _decode_publish),
}  # fmt: skip
_DECODERS: Final[list[_Decoder]] = [_DECODERS_BY_FLAGS.get(byte, _refuse_flags) for byte in range(256)]
"""By first byte, so that wrong flags never reach a decoder."""
