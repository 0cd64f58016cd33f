"""Frames put together by hand, for what no honest encoder would make; and frames cut from a stream without the broker's decoder."""

from __future__ import annotations


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def string(text: str | bytes) -> bytes:
    """Length and bytes; give bytes for what is not UTF-8."""
    encoded = text.encode() if isinstance(text, str) else text
    return u16(len(encoded)) + encoded


def properties(*parts: bytes) -> bytes:
    """A property section: each part is an identifier byte with its value."""
    body = b"".join(parts)
    return varint(len(body)) + body


def frame(first_byte: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((first_byte,)) + varint(len(body)) + body


def connect_frame(
    *payload: bytes,
    version: int = 5,
    name: str = "MQTT",
    flags: int = 0x02,
    keep_alive_s: int = 0,
    property_section: bytes | None = b"\x00",
    first_byte: int = 0x10,
) -> bytes:
    """CONNECT; payload: its fields, the Client Identifier too. property_section: left out before 5.0, or when None."""
    section = property_section if version >= 5 and property_section is not None else b""
    return frame(first_byte, string(name), bytes((version, flags)), u16(keep_alive_s), section, *payload)


def publish_frame(
    topic: str | bytes,
    payload: bytes = b"",
    *,
    version: int = 5,
    first_byte: int = 0x30,
    packet_id: int | None = None,
    property_section: bytes = b"\x00",
) -> bytes:
    """PUBLISH; packet_id None: the field is left out."""
    return frame(first_byte, string(topic), b"" if packet_id is None else u16(packet_id), property_section if version >= 5 else b"", payload)


def subscribe_frame(
    packet_id: int, *filters: tuple[str | bytes, int], version: int = 5, first_byte: int = 0x82, property_section: bytes = b"\x00"
) -> bytes:
    """SUBSCRIBE; filters: (Topic Filter, option byte)."""
    payload = b"".join(string(filter) + bytes((options,)) for filter, options in filters)
    return frame(first_byte, u16(packet_id), property_section if version >= 5 else b"", payload)


def take_frame(buffer: bytearray) -> bytes | None:
    """Cut the first whole frame off the buffer; None while there is none."""
    length = 0
    for position in range(1, min(len(buffer), 5)):
        length |= (buffer[position] & 0x7F) << 7 * (position - 1)
        if buffer[position] < 0x80:
            end = position + 1 + length
            if len(buffer) < end:
                return None
            found = bytes(buffer[:end])
            del buffer[:end]
            return found
    assert len(buffer) < 5, f"a Remaining Length of more than four bytes: {bytes(buffer[:8]).hex(' ')}"
    return None


def body_of(frame: bytes) -> bytes:
    """What follows the fixed header."""
    position = 1
    while frame[position] & 0x80:
        position += 1
    return frame[position + 1 :]
