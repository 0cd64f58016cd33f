"""Packets to frames: one function for each Control Packet, the version is an argument.

`encode` raises ValueError for what cannot be expressed, and nothing that it gives is refused by `decode`. What a version has
no words for (properties, the reasons of acknowledgements) is left out, so that callers need not ask which version they speak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import structs

from broker import reasons
from broker.reasons import ReasonCode
from broker.wire.decoding import DISCONNECT_CODES, PROTOCOL_NAMES
from broker.wire.packets import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    MQTT_5,
    MQTT_31,
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
    UnsubAck,
    Unsubscribe,
)
from broker.wire.primitives import VARINT_MAX, encode_binary, encode_packet_id, encode_string, encode_u16, encode_varint
from broker.wire.properties import WILL, encode_properties

_Ack: TypeAlias = PubAck | PubRec | PubRel | PubComp
_Answer: TypeAlias = ConnAck | _Ack | SubAck | UnsubAck | Disconnect | Auth
_SUCCESS: Final = ReasonCode.SUCCESS


def encode(packet: Packet, version: int) -> bytes:
    """The whole frame in its shortest form. version: ignored for CONNECT, which says its own.

    What the version cannot say (properties, reasons of acknowledgements) is left out. ValueError for what cannot be expressed:
    a string of more than 65,535 bytes, a number out of its range, a reason code or property that this packet may not
    carry, AUTH before 5.0, a CONNACK refusal that 3.1.1 has no code for, a packet of more than 268,435,455 bytes.
    """
    first_byte, body = _ENCODERS[type(packet)](packet, version)
    size = len(body)
    if size < 128:
        return _SHORT_HEADERS[first_byte][size] + body
    if size > VARINT_MAX:
        raise ValueError(f"a packet of {size} bytes after its fixed header; at most {VARINT_MAX} can be sent")
    return b"".join((bytes((first_byte,)), encode_varint(size), body))


def encode_within(packet: Packet, version: int, packet_bytes_max: int) -> bytes | None:
    """`encode`, but at most packet_bytes_max bytes, fixed header included: the Reason String goes first, then User Properties.

    None if it is still too long [MQTT5-3.1.2-24]. Only answers can be cut: a PUBLISH is whole or not at all [MQTT5-3.3.2-17].
    """
    frame = encode(packet, version)
    if len(frame) <= packet_bytes_max:
        return frame
    if not isinstance(packet, _Answer):
        return None
    properties = packet.properties
    if properties.reason_string is not None:
        properties = structs.replace(properties, reason_string=None)
        frame = encode(structs.replace(packet, properties=properties), version)
        if len(frame) <= packet_bytes_max:
            return frame
    if properties.user_properties:
        properties = structs.replace(properties, user_properties=())
        frame = encode(structs.replace(packet, properties=properties), version)
        if len(frame) <= packet_bytes_max:
            return frame
    return None


def _encode_connect(packet: Connect, version: int) -> tuple[int, bytes]:
    version = packet.version
    if version not in PROTOCOL_NAMES:
        raise ValueError(f"there is no MQTT with protocol level {version}")
    if packet.password is not None and packet.username is None and version < MQTT_5:
        raise ValueError("before MQTT 5.0 a password needs a user name")  # [MQTT311-3.1.2-22]
    flags = 0x02 if packet.clean_start else 0
    parts = [encode_string(packet.client_id)]
    will = packet.will
    if will is not None:
        flags |= 0x04 | _qos(will.qos) << 3 | (0x20 if will.retain else 0)
        if version >= MQTT_5:
            parts.append(encode_properties(will.properties, WILL))
        parts += (_topic_name(will.topic), encode_binary(will.payload))
    if packet.username is not None:
        flags |= 0x80
        parts.append(encode_string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        parts.append(encode_binary(packet.password))
    head = encode_string(PROTOCOL_NAMES[version]) + bytes((version, flags)) + encode_u16(packet.keep_alive_s)
    return 0x10, b"".join((head, _properties(packet.properties, CONNECT, version), *parts))


def _encode_connack(packet: ConnAck, version: int) -> tuple[int, bytes]:
    present = 1 if packet.session_present and version != MQTT_31 else 0
    if version >= MQTT_5:
        return 0x20, bytes((present, _code(packet.reason, reasons.CONNACK_CODES, "CONNACK"))) + encode_properties(packet.properties, CONNACK)
    code = reasons.to_connack_return_code(packet.reason)
    if code is None:
        raise ValueError(f"CONNACK before MQTT 5.0 has no return code for {packet.reason!r}")
    return 0x20, bytes((present, code))


def _encode_publish(packet: Publish, version: int) -> tuple[int, bytes]:
    qos = _qos(packet.qos)
    topic = packet.topic
    properties = packet.properties
    first_byte = 0x30 | qos << 1 | (1 if packet.retain else 0)
    if packet.dup:
        if not qos:
            raise ValueError("PUBLISH with DUP at QoS 0")  # [MQTT5-3.3.1-2] [MQTT311-3.3.1-2]
        first_byte |= 0x08
    if topic:
        head = _topic_name(topic)
    elif version >= MQTT_5 and properties.topic_alias is not None:
        head = b"\x00\x00"
    else:
        raise ValueError("PUBLISH with neither a topic nor a Topic Alias")
    if qos:
        head += encode_packet_id(packet.packet_id)
    elif packet.packet_id:
        raise ValueError("PUBLISH at QoS 0 has no packet identifier")  # [MQTT5-2.2.1-2] [MQTT311-2.3.1-5]
    if version >= MQTT_5:
        head += b"\x00" if properties is NO_PROPERTIES else encode_properties(properties, PUBLISH)
    return first_byte, head + packet.payload


def _encode_puback(packet: PubAck, version: int) -> tuple[int, bytes]:
    return 0x40, _ack_body(packet, version, PUBACK, reasons.PUBACK_CODES)


def publish_frame(first_byte: int, head: bytes, payload: bytes) -> bytes:
    """The frame of a PUBLISH whose topic, packet id and properties stand in `head`, as they are sent. The caller knows that they may be, and bounds
    the payload."""
    size = len(head) + len(payload)
    if size < 128:
        return _SHORT_HEADERS[first_byte][size] + head + payload
    return b"".join((bytes((first_byte,)), encode_varint(size), head, payload))


def acknowledgement(first_byte: int, packet_id: int, reason: ReasonCode, version: int) -> bytes:
    """The frame of a PUBACK, PUBREC, PUBREL or PUBCOMP that says no more than this. The caller knows that it may carry that reason."""
    if reason == 0 or version < MQTT_5:
        return bytes((first_byte, 2, packet_id >> 8, packet_id & 0xFF))
    return bytes((first_byte, 3, packet_id >> 8, packet_id & 0xFF, reason))


def _encode_pubrec(packet: PubRec, version: int) -> tuple[int, bytes]:
    return 0x50, _ack_body(packet, version, PUBREC, reasons.PUBACK_CODES)


def _encode_pubrel(packet: PubRel, version: int) -> tuple[int, bytes]:
    return 0x62, _ack_body(packet, version, PUBREL, reasons.PUBREL_CODES)


def _encode_pubcomp(packet: PubComp, version: int) -> tuple[int, bytes]:
    return 0x70, _ack_body(packet, version, PUBCOMP, reasons.PUBREL_CODES)


def _ack_body(packet: _Ack, version: int, kind: int, allowed: frozenset[int]) -> bytes:
    packet_id = encode_packet_id(packet.packet_id)
    if version < MQTT_5:
        return packet_id
    properties = encode_properties(packet.properties, kind)
    if properties != b"\x00":
        return packet_id + bytes((_code(packet.reason, allowed, "an acknowledgement"),)) + properties
    if packet.reason == _SUCCESS:
        return packet_id
    return packet_id + bytes((_code(packet.reason, allowed, "an acknowledgement"),))


def _encode_subscribe(packet: Subscribe, version: int) -> tuple[int, bytes]:
    parts = [encode_packet_id(packet.packet_id), _properties(packet.properties, SUBSCRIBE, version)]
    if not packet.subscriptions:
        raise ValueError("SUBSCRIBE without a Topic Filter")
    for request in packet.subscriptions:
        options = _qos(request.qos)
        if version >= MQTT_5:
            if not 0 <= request.retain_handling <= 2:
                raise ValueError(f"retain handling is {request.retain_handling}, not 0 to 2")
            options |= (0x04 if request.no_local else 0) | (0x08 if request.retain_as_published else 0) | request.retain_handling << 4
        parts += (encode_string(request.filter), bytes((options,)))
    return 0x82, b"".join(parts)


def _encode_suback(packet: SubAck, version: int) -> tuple[int, bytes]:
    if not packet.reasons:
        raise ValueError("SUBACK without a reason code")
    codes = _codes(packet.reasons, reasons.SUBACK_CODES, "SUBACK")
    if version < MQTT_5:
        codes = codes.translate(_FAILURES_ARE_ONE)  # [MQTT311-3.9.3-2]
    return 0x90, encode_packet_id(packet.packet_id) + _properties(packet.properties, SUBACK, version) + codes


def _encode_unsubscribe(packet: Unsubscribe, version: int) -> tuple[int, bytes]:
    if not packet.filters:
        raise ValueError("UNSUBSCRIBE without a Topic Filter")
    head = encode_packet_id(packet.packet_id) + _properties(packet.properties, UNSUBSCRIBE, version)
    return 0xA2, head + b"".join([encode_string(filter) for filter in packet.filters])


def _encode_unsuback(packet: UnsubAck, version: int) -> tuple[int, bytes]:
    packet_id = encode_packet_id(packet.packet_id)
    if version < MQTT_5:
        return 0xB0, packet_id
    if not packet.reasons:
        raise ValueError("UNSUBACK without a reason code")
    codes = _codes(packet.reasons, reasons.UNSUBACK_CODES, "UNSUBACK")
    return 0xB0, packet_id + encode_properties(packet.properties, UNSUBACK) + codes


def _encode_pingreq(packet: PingReq, version: int) -> tuple[int, bytes]:
    return 0xC0, b""


def _encode_pingresp(packet: PingResp, version: int) -> tuple[int, bytes]:
    return 0xD0, b""


def _encode_disconnect(packet: Disconnect, version: int) -> tuple[int, bytes]:
    if version < MQTT_5:
        return 0xE0, b""
    return 0xE0, _short_body(packet, DISCONNECT, DISCONNECT_CODES, "DISCONNECT")


def _encode_auth(packet: Auth, version: int) -> tuple[int, bytes]:
    if version < MQTT_5:
        raise ValueError("there is no AUTH before MQTT 5.0")
    body = _short_body(packet, AUTH, reasons.AUTH_CODES, "AUTH")
    return 0xF0, body + b"\x00" if len(body) == 1 else body  # AUTH has no form of a code alone


def _short_body(packet: Disconnect | Auth, kind: int, allowed: frozenset[int], what: str) -> bytes:
    code = bytes((_code(packet.reason, allowed, what),))
    properties = encode_properties(packet.properties, kind)
    if properties != b"\x00":
        return code + properties
    return b"" if packet.reason == _SUCCESS else code


def _properties(properties: Properties, kind: int, version: int) -> bytes:
    if version < MQTT_5:
        return b""
    return b"\x00" if properties is NO_PROPERTIES else encode_properties(properties, kind)


def _qos(qos: int) -> int:
    if qos < 0 or qos > 2:
        raise ValueError(f"QoS is {qos}, not 0 to 2")
    return qos


def _topic_name(topic: str) -> bytes:
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(f"{topic!r} is no Topic Name: empty, or with a wildcard")
    return encode_string(topic)


_FAILURES_ARE_ONE: Final = bytes([min(code, 0x80) for code in range(256)])
"""What 3.1.1 makes of the codes of a SUBACK, by code."""


def _codes(many: tuple[ReasonCode, ...], allowed: frozenset[int], what: str) -> bytes:
    if not allowed.issuperset(many):
        for reason in many:
            _code(reason, allowed, what)
    return bytes(many)


def _code(reason: int, allowed: frozenset[int], what: str) -> int:
    if reason not in allowed:
        raise ValueError(f"{what} does not carry reason code 0x{reason:02X}")
    return reason


_ENCODERS: Final[dict[type, Callable[[Any, int], tuple[int, bytes]]]] = {
    Connect: _encode_connect, ConnAck: _encode_connack, Publish: _encode_publish, PubAck: _encode_puback, PubRec: _encode_pubrec,
    PubRel: _encode_pubrel, PubComp: _encode_pubcomp, Subscribe: _encode_subscribe, SubAck: _encode_suback,
    Unsubscribe: _encode_unsubscribe, UnsubAck: _encode_unsuback, PingReq: _encode_pingreq, PingResp: _encode_pingresp,
    Disconnect: _encode_disconnect, Auth: _encode_auth,
}  # fmt: skip

_FIRST_BYTES: Final = (0x10, 0x20, *range(0x30, 0x3E), 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xA2, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0)
_SHORT_HEADERS: Final = {first_byte: [bytes((first_byte, size)) for size in range(128)] for first_byte in _FIRST_BYTES}
"""Fixed headers of two bytes, made once: a PUBACK goes from 0.51 to 0.40 µs."""
