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
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, PUBLISH
from broker.wire.primitives import encode_varint, read_varint
from broker.wire.properties import decode_properties

if TYPE_CHECKING:
    from broker.core.deadlines import Deadline

KEPT_PLAIN: Final = 0x31
"""The first byte of a message that was published at QoS 0, without properties, by a client before 5.0 or as if it were one."""
WITH_PROPERTIES: Final = 0x08
KEPT_PLAIN_5: Final = KEPT_PLAIN | WITH_PROPERTIES
"""The same with properties, if only the zero that says there are none."""


class Expiring:
    """A kept message that goes by itself when its time has come."""

    __slots__ = ("deadline", "expires_at", "frame")

    def __init__(self, frame: bytes, expires_at: float) -> None:
        self.frame = frame
        self.expires_at = expires_at
        self.deadline: Deadline | None = None


Kept: TypeAlias = bytes | Expiring


def kept_of(message: ApplicationMessage) -> Kept:
    if message.properties is NO_PROPERTIES:
        head, tail = message.frame(MQTT_311, KEPT_PLAIN | message.qos << 1, b"", b"", message.topic_field)
    else:
        head, tail = message.frame(MQTT_5, KEPT_PLAIN_5 | message.qos << 1, b"", b"", message.topic_field)
    frame = head + tail if tail else head
    return frame if message.expires_at == math.inf else Expiring(frame, message.expires_at)


def message_of(kept: Kept) -> ApplicationMessage:
    """The message again, but for its publisher, whom nobody asks for any more."""
    frame = frame_of(kept)
    topic_stop = _topic_stop(frame)
    topic = str(frame[topic_at(frame) + 2 : topic_stop], "utf-8")
    properties, payload_at = decode_properties(frame, topic_stop, PUBLISH) if frame[0] & WITH_PROPERTIES else (NO_PROPERTIES, topic_stop)
    expires_at = kept.expires_at if isinstance(kept, Expiring) else math.inf
    return ApplicationMessage(topic, frame[payload_at:], frame[0] >> 1 & 3, True, properties, "", expires_at)


def frame_of(kept: Kept) -> bytes:
    return kept.frame if isinstance(kept, Expiring) else kept


def topic_of(kept: Kept) -> str:
    frame = frame_of(kept)
    return str(frame[topic_at(frame) + 2 : _topic_stop(frame)], "utf-8")


def topic_at(frame: bytes) -> int:
    """Where the topic's length stands."""
    at = 1
    while frame[at] >= 0x80:
        at += 1
    return at + 1


def is_on(kept: Kept, topic_field: bytes) -> bool:
    """Is it on that topic? (As it is encoded, with its length.)"""
    frame = frame_of(kept)
    return frame.startswith(topic_field, 2 if frame[1] < 0x80 else topic_at(frame))


def size_of(kept: Kept) -> int:
    """What it counts for: the bytes of topic and payload."""
    frame = frame_of(kept)
    at = 2 if frame[1] < 0x80 else topic_at(frame)
    size = len(frame) - at - 2
    if frame[0] & WITH_PROPERTIES:
        topic_stop = _topic_stop(frame)
        size -= _payload_at(frame, topic_stop) - topic_stop
    return size


def replayed(frame: bytes, is_mqtt_5: bool, own_properties: bytes) -> bytes:
    """The PUBLISH at QoS 0 for one recipient; own_properties: what 5.0 has only for this one, encoded."""
    with_properties = frame[0] & WITH_PROPERTIES != 0
    if with_properties == is_mqtt_5 and not own_properties:
        return frame if frame[0] == KEPT_PLAIN else b"\x31" + frame[1:]
    at = topic_at(frame)
    topic_stop = payload_at = properties_at = _topic_stop(frame)
    if with_properties:
        payload_at = _payload_at(frame, topic_stop)
        properties_at = payload_at - read_varint(frame, topic_stop)[0]
    properties = b""
    if is_mqtt_5:
        properties = own_properties + frame[properties_at:payload_at]
        properties = encode_varint(len(properties)) + properties
    topic_field = frame[at:topic_stop]
    payload = frame[payload_at:]
    return b"".join((b"\x31", encode_varint(len(topic_field) + len(properties) + len(payload)), topic_field, properties, payload))


def _topic_stop(frame: bytes) -> int:
    at = topic_at(frame)
    return at + 2 + (frame[at] << 8 | frame[at + 1])


def _payload_at(frame: bytes, topic_stop: int) -> int:
    length, position = read_varint(frame, topic_stop)
    return position + length
