"""What a program sends and receives: `Message`, `Will`, `QoS`, and the words of the public signatures.

A Message is read-only and may be shared by all who receive it. What one receiver owes the other end for it, its
acknowledgement, is a `Receipt` that rides along and is nobody's business but the channel's (see broker/channel.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, Union

from broker.errors import InvalidTopic, shown
from broker.wire.packets import NO_PROPERTIES, Properties, Publish, WillMessage
from broker.wire.topics import topic_filter_fault, topic_name_fault

# typing's form, which takes a docstring: see broker/__init__.py.
Payload: TypeAlias = Union[bytes, bytearray, memoryview, str]  # noqa: UP007
UserProperties: TypeAlias = Union[Sequence[tuple[str, str]], Mapping[str, str]]  # noqa: UP007
Overflow: TypeAlias = Literal["drop-oldest", "drop-newest", "latest", "disconnect", "refuse"]
Version: TypeAlias = Literal["5.0", "3.1.1", "3.1"]
Ack: TypeAlias = Literal["on_next", "on_receipt", "manual"]

FOUR_BYTE_MAX: Final = 0xFFFF_FFFF


class QoS(IntEnum):
    """How surely a message arrives: at most once (0), at least once (1), exactly once (2). Where a `qos` is asked for, the number will do."""

    AT_MOST_ONCE = 0
    AT_LEAST_ONCE = 1
    EXACTLY_ONCE = 2


class Receipt(Protocol):
    """What one receiver owes for one message of QoS 1 or 2; idempotent, the first verb counts."""

    manual: bool
    done: bool

    def settle(self) -> None: ...
    def refuse(self) -> None: ...


class Message:
    """One Application Message, immutable, shared by all its receivers."""

    __slots__ = ("_publish", "_receipt", "_received_at")

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        properties: Properties = NO_PROPERTIES,
        packet_id: int = 0,
        received_at: float = 0.0,
        receipt: Receipt | None = None,
    ) -> None:
        self._publish = Publish(topic, payload, qos, retain, dup, packet_id, properties)
        self._received_at = received_at
        self._receipt = receipt

    @classmethod
    def of(cls, publish: Publish, received_at: float, receipt: Receipt | None = None) -> Self:
        """As it came, or will be sent."""
        message = cls.__new__(cls)
        message._publish = publish
        message._received_at = received_at
        message._receipt = receipt
        return message

    def __repr__(self) -> str:
        payload = f"{self.payload[:40]!r}{'...' if len(self.payload) > 40 else ''}"
        return f"Message({self.topic!r}, {payload}, qos={self._publish.qos}, retain={self.retain})"

    @property
    def topic(self) -> str:
        """The Topic Name it was published to."""
        return self._publish.topic

    @property
    def payload(self) -> bytes:
        """What was published, as it came; see `text` and `json`."""
        return self._publish.payload

    @property
    def qos(self) -> QoS:
        """As delivered: min(published, granted)."""
        return QoS(self._publish.qos)

    @property
    def retain(self) -> bool:
        """True: replayed from the retained store (or retain_as_published)."""
        return self._publish.retain

    @property
    def dup(self) -> bool:
        """The broker sent it again, and it may have been here before (QoS 1)."""
        return self._publish.dup

    @property
    def content_type(self) -> str | None:
        """The publisher's word for what the payload is, such as "application/json"; None: none was given, as below."""
        return self._publish.properties.content_type

    @property
    def response_topic(self) -> str | None:
        """Where an answer is awaited: this message is a request."""
        return self._publish.properties.response_topic

    @property
    def correlation_data(self) -> bytes | None:
        """By which the asker knows which request an answer belongs to."""
        return self._publish.properties.correlation_data

    @property
    def user_properties(self) -> tuple[tuple[str, str], ...]:
        """(name, value) pairs in the publisher's order; a name may come twice."""
        return self._publish.properties.user_properties

    @property
    def message_expiry_s(self) -> int | None:
        """Seconds left when it was received; None: it never expires."""
        return self._publish.properties.message_expiry_interval

    @property
    def payload_is_text(self) -> bool:
        """The Payload Format Indicator: the publisher says that the payload is UTF-8."""
        return self._publish.properties.payload_format_indicator == 1

    @property
    def subscription_identifiers(self) -> tuple[int, ...]:
        """Of the subscriptions that it came for, where they had one."""
        return self._publish.properties.subscription_identifiers

    @property
    def packet_id(self) -> int:
        """The Packet Identifier it came with; 0 at QoS 0."""
        return self._publish.packet_id

    @property
    def received_at(self) -> float:
        """Unix time in seconds; 0.0 if it was never received from a connection."""
        return self._received_at

    @property
    def properties(self) -> Properties:
        """All properties as they came."""
        return self._publish.properties

    @property
    def receipt(self) -> Receipt | None:
        """For whoever feeds a channel: what is owed for this message; None at QoS 0. Programs call `ack()`."""
        return self._receipt

    @property
    def text(self) -> str:
        """The payload as UTF-8; UnicodeDecodeError if it is not."""
        return self._publish.payload.decode("utf-8")

    def json(self) -> Any:
        """The payload as JSON; ValueError if it is not."""
        return json.loads(self._publish.payload)

    def ack(self) -> None:
        """For subscriptions with ack="manual": this message is done. Synchronous, idempotent, allowed from any task of this Trio run.

        At QoS 0 there is nothing to acknowledge. RuntimeError in a subscription that settles by itself.
        """
        if self._receipt is None:
            return
        if not self._receipt.manual:
            raise RuntimeError('ack() is for subscribe(..., ack="manual"); this subscription settles its messages by itself')
        self._receipt.settle()


class Will:
    """The message that the broker publishes when this connection ends without a goodbye.

    topic, payload, qos, retain and properties as in `Client.publish`. delay_s: how long the broker waits first; whole seconds are sent,
    rounded up. delay_s and all properties need MQTT 5.0. message: as the packet has it.
    """

    __slots__ = ("message",)

    def __init__(
        self,
        topic: str,
        payload: Payload = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        delay_s: float = 0,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        user_properties: UserProperties = (),
        message_expiry_s: int | None = None,
        payload_is_text: bool | None = None,
    ) -> None:
        check_topic_name(topic)
        data = payload_bytes(payload)
        if len(data) > 65_535:
            raise ValueError(f"the Will's payload may have 65,535 bytes, not {len(data):,}")
        properties = Properties(
            will_delay_interval=whole_seconds(delay_s, "delay_s") or None,
            **message_properties(content_type, response_topic, correlation_data, user_properties, message_expiry_s, payload_is_text),
        )
        self.message = WillMessage(topic, data, check_qos(qos), retain, NO_PROPERTIES if properties == NO_PROPERTIES else properties)

    def __repr__(self) -> str:
        return f"Will({self.message.topic!r}, qos={self.message.qos}, retain={self.message.retain})"


# ---- from a program's words to the wire's ------------------------------------------------------------------------------


def payload_bytes(payload: Payload) -> bytes:
    """The bytes to send; text goes as UTF-8. TypeError for anything else: `publish(topic, 5)` is not five zero bytes."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        return payload.encode("utf-8")
    if isinstance(payload, (bytearray, memoryview)):
        return bytes(payload)
    raise TypeError(f"payload must be bytes-like or str, not {type(payload).__name__}")


def user_property_pairs(user_properties: UserProperties) -> tuple[tuple[str, str], ...]:
    """In order, names may repeat; a mapping gives one of each. TypeError for what is no pair of texts."""
    pairs: tuple[Any, ...] = tuple(user_properties.items() if isinstance(user_properties, Mapping) else user_properties)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"user_properties are (name, value) pairs of str, not {shown(str(pair))}")
    return tuple((name, value) for name, value in pairs)


def message_properties(
    content_type: str | None,
    response_topic: str | None,
    correlation_data: bytes | None,
    user_properties: UserProperties,
    message_expiry_s: int | None,
    payload_is_text: bool | None,
) -> dict[str, Any]:
    """The keywords that PUBLISH and Will have in common, as fields of `Properties`; only those that were given."""
    fields: dict[str, Any] = {}
    if content_type is not None:
        fields["content_type"] = content_type
    if response_topic is not None:
        fields["response_topic"] = check_topic_name(response_topic)
    if correlation_data is not None:
        if not isinstance(correlation_data, (bytes, bytearray, memoryview)):  # of a number, bytes() makes that many zeros
            raise TypeError(f"correlation_data must be bytes-like, not {type(correlation_data).__name__}")
        fields["correlation_data"] = bytes(correlation_data)
    if user_properties:
        fields["user_properties"] = user_property_pairs(user_properties)
    if message_expiry_s is not None:
        fields["message_expiry_interval"] = whole_seconds(message_expiry_s, "message_expiry_s")
    if payload_is_text is not None:
        fields["payload_format_indicator"] = int(payload_is_text)
    return fields


def whole_seconds(value: float, name: str) -> int:
    """Seconds as the wire's four bytes, rounded up; math.inf is their greatest value. ValueError below 0 or above."""
    if value == math.inf:
        return FOUR_BYTE_MAX
    seconds = -1 if math.isnan(value) else math.ceil(value)
    if not 0 <= seconds <= FOUR_BYTE_MAX:
        raise ValueError(f"{name} must be between 0 and {FOUR_BYTE_MAX:,} seconds, not {value!r}")
    return seconds


def check_qos(qos: int) -> int:
    if qos not in (0, 1, 2):
        raise ValueError(f"qos must be 0, 1 or 2, not {qos!r}")
    return int(qos)


def check_topic_name(topic: str) -> str:
    """The topic itself; InvalidTopic says what is wrong with it, and TypeError that it is no text."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic must be str, not {type(topic).__name__}")
    fault = topic_name_fault(topic)
    if fault is not None:
        raise InvalidTopic(f"{shown(topic)} is not a topic name: {fault}")
    return topic


def check_topic_filter(filter: str) -> None:
    """InvalidTopic says what is wrong with it, and TypeError that it is no text."""
    if not isinstance(filter, str):
        raise TypeError(f"a topic filter must be str, not {type(filter).__name__}; several are several arguments")
    fault = topic_filter_fault(filter)
    if fault is not None:
        raise InvalidTopic(f"{shown(filter)} is not a topic filter: {fault}")
