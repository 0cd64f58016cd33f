"""The 27 properties of MQTT 5.0 in ONE table: everything that is known of a property is its row (2.2.2.2).

Not allowed in the packet, or not of its type: MalformedPacket. A second copy of one that may come once, or a value that
the standard forbids: ProtocolError. Subscription Identifiers repeat in PUBLISH only; that a client may not send any there
is for the engine to say, since this table serves both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import structs

from broker.errors import MalformedPacket, ProtocolError
from broker.reasons import ReasonCode
from broker.wire.packets import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
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
    Properties,
)
from broker.wire.primitives import (
    VARINT_MAX,
    encode_binary,
    encode_string,
    encode_string_pair,
    encode_varint,
    read_binary,
    read_byte,
    read_string,
    read_string_pair,
    read_u16,
    read_u32,
    read_varint,
)

WILL: Final = 0
"""The kind of the Will Properties, which are inside a CONNECT; no packet has type 0."""
ANY: Final = -1
"""For `encode_properties`: of no packet in particular, every property is let through."""

_Value: TypeAlias = Any  # int, bytes, str or (str, str); which one it is, the row's type says


class PropertyType:
    """How a value is read and written, and the numbers it may be."""

    __slots__ = ("encode", "number_max", "read")

    def __init__(self, read: Callable[[bytes, int], tuple[_Value, int]], encode: Callable[[_Value], bytes], number_max: int | None = None) -> None:
        self.read = read
        self.encode = encode
        self.number_max = number_max
        """None where the value is not a number."""


BYTE: Final = PropertyType(read_byte, lambda value: bytes((value,)), 0xFF)
U16: Final = PropertyType(read_u16, lambda value: value.to_bytes(2, "big"), 0xFFFF)
U32: Final = PropertyType(read_u32, lambda value: value.to_bytes(4, "big"), 0xFFFF_FFFF)
VARINT: Final = PropertyType(read_varint, encode_varint, VARINT_MAX)
STRING: Final = PropertyType(read_string, encode_string)
BINARY: Final = PropertyType(read_binary, encode_binary)
STRING_PAIR: Final = PropertyType(read_string_pair, encode_string_pair)


class Property:
    """One row. `carriers` has bit n set where packets of type n may carry it, `repeats_in` where more than once."""

    __slots__ = ("carriers", "field", "id", "id_byte", "is_topic", "number_max", "number_min", "repeats_in", "type")

    def __init__(
        self,
        id: int,
        field: str,
        type: PropertyType,
        carriers: tuple[int, ...],
        *,
        least: int = 0,
        most: int | None = None,
        repeats_in: tuple[int, ...] = (),
        is_topic: bool = False,
    ) -> None:
        self.id = id
        self.id_byte = bytes((id,))
        self.field = field
        self.type = type
        self.carriers = _bits(carriers)
        self.repeats_in = _bits(repeats_in)
        """Not 0: the field is a tuple, whatever the packet."""
        self.number_min = least
        self.number_max = type.number_max if most is None else most
        self.is_topic = is_topic


def _bits(kinds: tuple[int, ...]) -> int:
    return sum(1 << kind for kind in kinds)


_MESSAGE: Final = (PUBLISH, WILL)
_ANSWERS: Final = (CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH)
_ALL: Final = (WILL, CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, *_ANSWERS)

# In order of id, which is the order of the fields of `Properties` and the order in which we send them.
PROPERTIES: Final[tuple[Property, ...]] = (
    Property(0x01, "payload_format_indicator", BYTE, _MESSAGE, most=1),
    Property(0x02, "message_expiry_interval", U32, _MESSAGE),
    Property(0x03, "content_type", STRING, _MESSAGE),
    Property(0x08, "response_topic", STRING, _MESSAGE, is_topic=True),
    Property(0x09, "correlation_data", BINARY, _MESSAGE),
    Property(0x0B, "subscription_identifiers", VARINT, (PUBLISH, SUBSCRIBE), least=1, repeats_in=(PUBLISH,)),
    Property(0x11, "session_expiry_interval", U32, (CONNECT, CONNACK, DISCONNECT)),
    Property(0x12, "assigned_client_identifier", STRING, (CONNACK,)),
    Property(0x13, "server_keep_alive", U16, (CONNACK,)),
    Property(0x15, "authentication_method", STRING, (CONNECT, CONNACK, AUTH)),
    Property(0x16, "authentication_data", BINARY, (CONNECT, CONNACK, AUTH)),
    Property(0x17, "request_problem_information", BYTE, (CONNECT,), most=1),
    Property(0x18, "will_delay_interval", U32, (WILL,)),
    Property(0x19, "request_response_information", BYTE, (CONNECT,), most=1),
    Property(0x1A, "response_information", STRING, (CONNACK,)),
    Property(0x1C, "server_reference", STRING, (CONNACK, DISCONNECT)),
    Property(0x1F, "reason_string", STRING, _ANSWERS),
    Property(0x21, "receive_maximum", U16, (CONNECT, CONNACK), least=1),
    Property(0x22, "topic_alias_maximum", U16, (CONNECT, CONNACK)),
    Property(0x23, "topic_alias", U16, (PUBLISH,), least=1),
    Property(0x24, "maximum_qos", BYTE, (CONNACK,), most=1),
    Property(0x25, "retain_available", BYTE, (CONNACK,), most=1),
    Property(0x26, "user_properties", STRING_PAIR, _ALL, repeats_in=_ALL),
    Property(0x27, "maximum_packet_size", U32, (CONNECT, CONNACK), least=1),
    Property(0x28, "wildcard_subscription_available", BYTE, (CONNACK,), most=1),
    Property(0x29, "subscription_identifier_available", BYTE, (CONNACK,), most=1),
    Property(0x2A, "shared_subscription_available", BYTE, (CONNACK,), most=1),
)

_BY_ID: Final[list[Property | None]] = [None] * 256
for _row in PROPERTIES:
    _BY_ID[_row.id] = _row


# Most publishers send the same few property sets again and again: reading and writing two of them took
# 14 of a message's 26 µs.
_PUBLISHED_COUNT_MAX: Final = 256
_PUBLISHED_BYTES_MAX: Final = 256
_published: dict[bytes, Properties] = {}
"""What the newest property sets of PUBLISH packets came to, by their bytes; emptied when it is full."""


def decode_properties(body: bytes, position: int, kind: int) -> tuple[Properties, int]:
    """The property set of a packet of type `kind` (or WILL) that starts with its length at `position`, and where it ends.

    An empty set is NO_PROPERTIES itself.
    """
    if position < len(body) and body[position] == 0:
        return NO_PROPERTIES, position + 1
    length, position = read_varint(body, position)
    end = position + length
    if end > len(body):
        raise MalformedPacket("the properties run past the end of the packet")
    section = body[position:end]  # so that no value can reach past the set
    if kind == PUBLISH:
        known = _published.get(section)
        if known is not None:
            return known, end
    values: dict[str, _Value] = {}
    position = 0
    while position < length:
        # Every identifier there is fits one byte, so a longer one is either unknown or not in its shortest form.
        row = _BY_ID[section[position]]
        if row is None or not row.carriers >> kind & 1:
            raise MalformedPacket(f"property 0x{section[position]:02X} is not allowed here")
        value, position = row.type.read(section, position + 1)
        fault = _value_fault(row, value)
        if fault is not None:
            # [MQTT5-3.3.2-8]: 3.3.4 names the code for alias 0.
            raise ProtocolError(fault, ReasonCode.TOPIC_ALIAS_INVALID if row.id == 0x23 else None)
        field = row.field
        if row.repeats_in:
            if field not in values:
                values[field] = [value]
            elif row.repeats_in >> kind & 1:
                values[field].append(value)
            else:
                raise ProtocolError(f"{_words(row)} comes twice")
        elif field in values:
            raise ProtocolError(f"{_words(row)} comes twice")
        else:
            values[field] = value
    for field in ("subscription_identifiers", "user_properties"):
        if field in values:
            values[field] = tuple(values[field])
    properties = Properties(**values)
    if properties.authentication_data is not None and properties.authentication_method is None:
        raise ProtocolError("authentication data without an authentication method")
    if kind == PUBLISH and length <= _PUBLISHED_BYTES_MAX:
        if len(_published) >= _PUBLISHED_COUNT_MAX:
            _published.clear()
        _published[section] = properties
    return properties, end


def _value_fault(row: Property, value: _Value) -> str | None:
    """What the standard forbids of a value that the type could hold."""
    if row.number_max is not None:
        if not row.number_min <= value <= row.number_max:
            return f"{_words(row)} is {value}, not {row.number_min} to {row.number_max}"
    elif row.is_topic and (not value or "+" in value or "#" in value):
        return f"{_words(row)} is empty or contains a wildcard"  # [MQTT5-3.3.2-14] [MQTT5-4.7.3-1]
    return None


def encode_properties(properties: Properties, kind: int = ANY) -> bytes:
    """The set with its length before it. ValueError for a value out of its range, or one that packets of `kind` do not carry."""
    if properties is NO_PROPERTIES:
        return b"\x00"
    parts: list[bytes] = []
    for row, value in zip(PROPERTIES, structs.astuple(properties), strict=True):
        if value is None:
            continue
        if row.repeats_in:
            if not value:
                continue
            _check_sendable(row, kind, len(value) > 1)
            for one in value:
                parts.append(_encode_value(row, one))
        else:
            _check_sendable(row, kind, False)
            parts.append(_encode_value(row, value))
    encoded = b"".join(parts)
    return encode_varint(len(encoded)) + encoded


def _check_sendable(row: Property, kind: int, repeated: bool) -> None:
    if kind == ANY:
        return
    if not row.carriers >> kind & 1:
        raise ValueError(f"{_words(row)} is not allowed in this packet")
    if repeated and not row.repeats_in >> kind & 1:
        raise ValueError(f"{_words(row)} may come only once in this packet")


def _encode_value(row: Property, value: _Value) -> bytes:
    fault = _value_fault(row, value)
    if fault is not None:
        raise ValueError(fault)
    return row.id_byte + row.type.encode(value)


def _words(row: Property) -> str:
    return row.field.removesuffix("s").replace("_", " ") if row.repeats_in else row.field.replace("_", " ")
