"""The data types of the wire (MQTT 5.0, 1.5): read at a position of a body, or made into bytes.

A reader returns (value, position after it), and raises MalformedPacket where the bytes end too early or are not what
the standard allows. An encoder raises ValueError for a value that the type cannot hold: that is never the peer's fault.

Control characters and non-characters are let through, from clients and servers alike: the standard allows either, and
a receiver that closes on a U+0085 in somebody else's topic would be cut off by a stranger.
"""

from __future__ import annotations

from typing import Final

from broker.errors import MalformedPacket, ProtocolError

VARINT_MAX: Final = 268_435_455
STRING_BYTES_MAX: Final = 65_535

_OVERRUN: Final = "a field runs past the end of the packet"


# ---- bytes -> values --------------------------------------------------------------------------------------------------


def read_byte(body: bytes, position: int) -> tuple[int, int]:
    if position >= len(body):
        raise MalformedPacket(_OVERRUN)
    return body[position], position + 1


def read_u16(body: bytes, position: int) -> tuple[int, int]:
    end = position + 2
    if end > len(body):
        raise MalformedPacket(_OVERRUN)
    return body[position] << 8 | body[position + 1], end


def read_u32(body: bytes, position: int) -> tuple[int, int]:
    end = position + 4
    if end > len(body):
        raise MalformedPacket(_OVERRUN)
    return body[position] << 24 | body[position + 1] << 16 | body[position + 2] << 8 | body[position + 3], end


def read_varint(body: bytes, position: int) -> tuple[int, int]:
    """1 to 4 bytes, in the shortest form [MQTT5-1.5.5-1]. (Inside a packet only 5.0 has them.)"""
    value = 0
    for shift in (0, 7, 14, 21):
        if position >= len(body):
            raise MalformedPacket(_OVERRUN)
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise MalformedPacket("a variable byte integer is longer than it need be")
            return value, position
    raise MalformedPacket("a variable byte integer has more than four bytes")


def read_binary(body: bytes, position: int) -> tuple[bytes, int]:
    start = position + 2
    if start > len(body):
        raise MalformedPacket(_OVERRUN)
    end = start + (body[position] << 8 | body[position + 1])
    if end > len(body):
        raise MalformedPacket(_OVERRUN)
    return body[start:end], end


def read_string(body: bytes, position: int) -> tuple[str, int]:
    """Strict UTF-8, so no surrogates and no over-long forms, and no U+0000 [MQTT5-1.5.4-1, -2] [MQTT311-1.5.3-1, -2]."""
    start = position + 2
    size = len(body)
    if start > size:
        raise MalformedPacket(_OVERRUN)
    end = start + (body[position] << 8 | body[position + 1])
    if end > size:
        raise MalformedPacket(_OVERRUN)
    text: str | None
    try:
        text = str(body[start:end], "utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None:
        # Not raised inside `except`: what it is about would come along as its context, and may be a password.
        raise MalformedPacket("a string is not well-formed UTF-8")
    if "\0" in text:
        raise MalformedPacket("a string contains U+0000")
    return text, end


def read_string_pair(body: bytes, position: int) -> tuple[tuple[str, str], int]:
    name, position = read_string(body, position)
    value, position = read_string(body, position)
    return (name, value), position


def read_packet_id(body: bytes, position: int) -> tuple[int, int]:
    """1 to 65,535 [MQTT5-2.2.1-3] [MQTT311-2.3.1-1]. The standard names no code for 0; it parses, so it is a Protocol Error here."""
    end = position + 2
    if end > len(body):
        raise MalformedPacket(_OVERRUN)
    packet_id = body[position] << 8 | body[position + 1]
    if packet_id == 0:
        raise ProtocolError("packet identifier 0")
    return packet_id, end


# ---- values -> bytes --------------------------------------------------------------------------------------------------


_SHORT_VARINTS: Final = [bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7)) for value in range(2_048)]
"""The varints of small packets, made once: nearly all that are ever sent."""


_SHORT_LENGTHS: Final = [size.to_bytes(2, "big") for size in range(256)]


def encode_varint(value: int) -> bytes:
    """The shortest form of 0 to 268,435,455. ValueError beyond."""
    if 0 <= value < 2_048:
        return _SHORT_VARINTS[value]
    if value < 0 or value > VARINT_MAX:
        raise ValueError(f"{value} does not fit a variable byte integer (0 to {VARINT_MAX})")
    if value < 16_384:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 2_097_152:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))


def encode_u16(value: int) -> bytes:
    if value < 0 or value > 0xFFFF:
        raise ValueError(f"{value} does not fit two bytes")
    return value.to_bytes(2, "big")


def encode_binary(value: bytes) -> bytes:
    size = len(value)
    if size > STRING_BYTES_MAX:
        raise ValueError(f"{size} bytes of binary data do not fit a field of {STRING_BYTES_MAX}")
    return size.to_bytes(2, "big") + value


def encode_string(value: str) -> bytes:
    """Length and UTF-8. ValueError for more than 65,535 bytes, U+0000 or a lone surrogate."""
    encoded = value.encode()
    size = len(encoded)
    if size > STRING_BYTES_MAX:
        raise ValueError(f"a string of {size} bytes does not fit a field of {STRING_BYTES_MAX}")
    if "\0" in value:
        raise ValueError("a string with U+0000 cannot be sent")
    if size < 256:
        return _SHORT_LENGTHS[size] + encoded
    return size.to_bytes(2, "big") + encoded


def encode_string_pair(value: tuple[str, str]) -> bytes:
    return encode_string(value[0]) + encode_string(value[1])


def encode_packet_id(value: int) -> bytes:
    if value < 1 or value > 0xFFFF:
        raise ValueError(f"{value} is no packet identifier (1 to 65535)")
    return value.to_bytes(2, "big")
