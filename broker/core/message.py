"""One Application Message inside the broker: immutable, shared by all its recipients, encoded at most once per wire form.

The forms differ by version and QoS only. What differs by recipient (packet id, Subscription Identifiers, a Topic Alias,
the seconds of expiry that are left) is put between two shared parts, so that a thousand subscribers share one payload.
"""

from __future__ import annotations

import math
from typing import Final

from broker.wire.codec import encode_properties, encode_string, encode_varint
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Properties
from broker.wire.primitives import VARINT_MAX

_SHARED_PAYLOAD_BYTES_MIN: Final = 4096
"""From here on a payload is a chunk of its own in the outbox, not copied into a frame for each recipient."""

_KEPT_COUNT_MAX: Final = 256
_KEPT_BYTES_MAX: Final = 256
_encodings: dict[int, tuple[Properties, bytes]] = {}
"""The newest property sets and what they are encoded, by identity; emptied when it is full."""


class ApplicationMessage:
    """topic, payload, qos and retain as published; origin: the publisher's Client Identifier ("" for the broker itself);
    expires_at: on the engine's clock, `math.inf` for never. Of `properties` only those that are forwarded are kept."""

    __slots__ = (
        "_fixed_properties",
        "_frame_5",
        "_frame_311",
        "_topic_field",
        "expires_at",
        "origin",
        "payload",
        "properties",
        "qos",
        "retain",
        "size",
        "topic",
    )  # fmt: skip)

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
        origin: str = "",
        expires_at: float = math.inf,
        topic_field: bytes | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = forwarded(properties)
        self.origin = origin
        self.expires_at = expires_at
        self._topic_field = topic_field
        self._fixed_properties: bytes | None = None
        self._frame_311: bytes | None = None
        self._frame_5: bytes | None = None
        self.size: int = len(topic) + len(payload)
        """What it counts for in queues, in bytes: topic, properties and payload."""
        if self.properties is not NO_PROPERTIES:
            self.size += len(self.fixed_properties)

    def __repr__(self) -> str:
        return f"ApplicationMessage({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, retain={self.retain})"

    @property
    def topic_field(self) -> bytes:
        field = self._topic_field
        if field is None:
            field = self._topic_field = encode_string(self.topic)
        return field

    @property
    def fixed_properties(self) -> bytes:
        """The forwarded properties, encoded, without their length."""
        fixed = self._fixed_properties
        if fixed is None:
            fixed = b"" if self.properties is NO_PROPERTIES else _encoded(self.properties)
            self._fixed_properties = fixed
        return fixed

    def expiry_left_s(self, now: float) -> int:
        """What came less the whole seconds that it has waited [MQTT5-3.3.2-6]: at least 1 while it has not expired."""
        left_s = self.expires_at - now
        # A sum of floats less one of them may be a little more than the other: 60 s must not go out as 61.
        return max(1, math.ceil(left_s - 0.001)) if left_s > 0 else 0

    def plain_frame(self, version: int) -> bytes:
        """The frame at QoS 0, RETAIN 0, with nothing of one recipient in it; made once for each version."""
        frame = self._frame_5 if version >= MQTT_5 else self._frame_311
        if frame is None:
            head, tail = self.frame(version, 0x30, b"", b"", self.topic_field)
            frame = head + tail if tail else head
            if version >= MQTT_5:
                self._frame_5 = frame
            else:
                self._frame_311 = frame
        return frame

    def frame(self, version: int, first_byte: int, packet_id: bytes, own_properties: bytes, topic_field: bytes) -> tuple[bytes, bytes]:
        """A PUBLISH for one recipient in two parts, of which the second may be empty or shared.

        packet_id: two bytes, or none at QoS 0. own_properties: encoded properties of this recipient's copy. What the protocol has no length for
        is larger than any client takes, and not to be sent.
        """
        if version >= MQTT_5:
            fixed = self.fixed_properties
            length = len(own_properties) + len(fixed)
            properties = encode_varint(length) + own_properties + fixed if length else b"\x00"
        else:
            properties = b""
        payload = self.payload
        remaining = len(topic_field) + len(packet_id) + len(properties) + len(payload)
        if remaining > VARINT_MAX:
            remaining = VARINT_MAX
        if len(payload) < _SHARED_PAYLOAD_BYTES_MIN:
            return b"".join((bytes((first_byte,)), encode_varint(remaining), topic_field, packet_id, properties, payload)), b""
        return b"".join((bytes((first_byte,)), encode_varint(remaining), topic_field, packet_id, properties)), payload


def properties_size(properties: Properties) -> int:
    """What a set adds to `ApplicationMessage.size`: so much of it as goes on."""
    return 0 if properties is NO_PROPERTIES else len(_encoded(forwarded(properties)))


def _encoded(properties: Properties) -> bytes:
    """A set encoded without its length. Sets that come again are the same object (`wire.properties`), so its identity is the key."""
    known = _encodings.get(id(properties))
    if known is not None and known[0] is properties:
        return known[1]
    encoded = encode_properties(properties)
    start = 0
    while encoded[start] & 0x80:
        start += 1
    fixed = encoded[start + 1 :]
    if len(fixed) <= _KEPT_BYTES_MAX:
        if len(_encodings) >= _KEPT_COUNT_MAX:
            _encodings.clear()
        _encodings[id(properties)] = (properties, fixed)
    return fixed


def forwarded(properties: Properties) -> Properties:
    """What of a PUBLISH's or Will's properties goes on to subscribers unchanged [MQTT5-3.3.2-4, -15, -16, -17, -20].

    Topic Alias, Message Expiry Interval, Subscription Identifiers and Will Delay Interval belong to one hop.
    """
    if properties is NO_PROPERTIES:
        return NO_PROPERTIES
    if (
        properties.topic_alias is None
        and properties.message_expiry_interval is None
        and properties.will_delay_interval is None
        and not properties.subscription_identifiers
    ):
        return properties
    kept = Properties(
        payload_format_indicator=properties.payload_format_indicator,
        content_type=properties.content_type,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
        user_properties=properties.user_properties,
    )
    return NO_PROPERTIES if kept == NO_PROPERTIES else kept
