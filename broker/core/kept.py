"""A retained message as it is kept: the frame in which most of its recipients get it, and no object around it.

A replay to somebody of the publisher's version, at QoS 0, is a matter of joining frames then, and a message takes what its bytes take:
as an object with its topic and payload it took twice as much. The first byte says what a PUBLISH at QoS 0 cannot say of itself: the QoS as published
(a packet id is put in where one is sent), and in the place of DUP, which no QoS 0 frame has, whether properties follow the topic as in
5.0 or not as before it. Topic Alias and Message Expiry Interval are not among these properties: they belong to one hop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias

from broker.core.message import ApplicationMessage
from broker.wire.packets import NO_PROPERTIES, PUBLISH
from broker.wire.primitives import VARINT_MAX, encode_varint, read_varint
from broker.wire.properties import decode_properties

if TYPE_CHECKING:
    from broker.core.deadlines import Deadline

KEPT_PLAIN: Final = 0x31
"""The first byte of a message that was published at QoS 0, without properties, by a client before 5.0 or as if it were one."""
WITH_PROPERTIES: Final = 0x08
KEPT_PLAIN_5: Final = KEPT_PLAIN | WITH_PROPERTIES
"""The same with properties, if only the zero that says there are none."""
FIRST_BYTE: Final = bytes((KEPT_PLAIN,))
"""What the frame begins with when it is sent at QoS 0."""


class Expiring:
    """A kept message that goes by itself when its time has come."""

    __slots__ = ("deadline", "expires_at", "frame")

    def __init__(self, frame: bytes, expires_at: float) -> None:
        self.frame = frame
        self.expires_at = expires_at
        self.deadline: Deadline | None = None


Kept: TypeAlias = bytes | Expiring


def kept_of(message: ApplicationMessage, is_mqtt_5: bool = False) -> Kept:
    """is_mqtt_5: its publisher is, so most who ask for it will be."""
    first = KEPT_PLAIN | message.qos << 1
    properties = _properties_of(message, is_mqtt_5)
    if properties:
        first |= WITH_PROPERTIES
    frame = framed(first, message.topic_field, properties, message.payload)
    return frame if message.expires_at == math.inf else Expiring(frame, message.expires_at)


def size_as_kept(message: ApplicationMessage, is_mqtt_5: bool) -> int:
    """What it will count for."""
    remaining = len(message.topic_field) + len(_properties_of(message, is_mqtt_5)) + len(message.payload)
    return 1 + len(encode_varint(min(remaining, VARINT_MAX))) + remaining


def _properties_of(message: ApplicationMessage, is_mqtt_5: bool) -> bytes:
    if message.properties is NO_PROPERTIES:
        return b"\x00" if is_mqtt_5 else b""
    fixed = message.fixed_properties
    return encode_varint(len(fixed)) + fixed


def framed(first_byte: int, topic_field: bytes, properties: bytes, payload: bytes) -> bytes:
    """properties: as they stand in the frame, with their length; nothing before 5.0. What the protocol has no length for is sent to nobody."""
    remaining = len(topic_field) + len(properties) + len(payload)
    return b"".join((bytes((first_byte,)), encode_varint(min(remaining, VARINT_MAX)), topic_field, properties, payload))


def message_of(kept: Kept, origin: str = "") -> ApplicationMessage:
    """The message again; its publisher is not kept, for nobody asks for him any more."""
    frame = kept if isinstance(kept, bytes) else kept.frame
    at = 2 if frame[1] < 0x80 else topic_at(frame)
    payload_at = topic_stop = at + 2 + (frame[at] << 8 | frame[at + 1])
    properties = NO_PROPERTIES
    if frame[0] & WITH_PROPERTIES:
        properties, payload_at = decode_properties(frame, topic_stop, PUBLISH)
    topic = str(frame[at + 2 : topic_stop], "utf-8")
    expires_at = math.inf if isinstance(kept, bytes) else kept.expires_at
    return ApplicationMessage(topic, frame[payload_at:], frame[0] >> 1 & 3, True, properties, origin, expires_at, frame[at:topic_stop])


def frame_of(kept: Kept) -> bytes:
    return kept.frame if isinstance(kept, Expiring) else kept


def topic_of(kept: Kept) -> str:
    frame = frame_of(kept)
    return str(frame[topic_at(frame) + 2 : topic_end(frame)], "utf-8")


def topic_at(frame: bytes) -> int:
    """Where the topic's length stands."""
    at = 1
    while frame[at] >= 0x80:
        at += 1
    return at + 1


def is_on(kept: Kept, topic_field: bytes) -> bool:
    """Is it on that topic? (As it is encoded, with its length.)"""
    frame = kept if isinstance(kept, bytes) else kept.frame
    return frame.startswith(topic_field, 2 if frame[1] < 0x80 else topic_at(frame))


def size_of(kept: Kept) -> int:
    """What it counts for: the whole frame."""
    return len(kept) if isinstance(kept, bytes) else len(kept.frame)


def replayed(frame: bytes, is_mqtt_5: bool, own_properties: bytes) -> bytes:
    """The PUBLISH at QoS 0 for one recipient; own_properties: what 5.0 has only for this one, encoded."""
    with_properties = frame[0] & WITH_PROPERTIES != 0
    if with_properties == is_mqtt_5 and not own_properties:
        return frame if frame[0] == KEPT_PLAIN else FIRST_BYTE + frame[1:]
    at = topic_at(frame)
    topic_stop = payload_at = properties_at = topic_end(frame)
    if with_properties:
        payload_at = _payload_at(frame, topic_stop)
        properties_at = payload_at - read_varint(frame, topic_stop)[0]
    properties = b""
    if is_mqtt_5:
        properties = own_properties + frame[properties_at:payload_at]
        properties = encode_varint(len(properties)) + properties
    topic_field = frame[at:topic_stop]
    payload = frame[payload_at:]
    return framed(KEPT_PLAIN, topic_field, properties, payload)


def with_packet_id(frame: bytes, qos: int, packet_id: int) -> bytes:
    """The PUBLISH at QoS 1 or 2 for a recipient of the same version."""
    at = 2 if frame[1] < 0x80 else topic_at(frame)
    topic_stop = at + 2 + (frame[at] << 8 | frame[at + 1])
    first = bytes((KEPT_PLAIN | qos << 1,))
    return b"".join((first, encode_varint(len(frame) - at + 2), frame[at:topic_stop], packet_id.to_bytes(2, "big"), frame[topic_stop:]))


def topic_end(frame: bytes) -> int:
    """Where what comes after it begins."""
    at = topic_at(frame)
    return at + 2 + (frame[at] << 8 | frame[at + 1])


def _payload_at(frame: bytes, topic_stop: int) -> int:
    length, position = read_varint(frame, topic_stop)
    return position + length
