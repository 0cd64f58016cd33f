"""What one session is owed: a message, a run of them, or one that is retained. It waits in a queue, and at QoS 1 and 2 stays in the Session until
it is acknowledged; each can say then what to repeat for a Packet Identifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.kept import message_of, size_of
from broker.core.message import ApplicationMessage
from broker.core.runs import at_qos_0, tails
from broker.wire.codec import encode_string, encode_varint
from broker.wire.packets import NO_PROPERTIES, PUBLISH
from broker.wire.properties import decode_properties

if TYPE_CHECKING:
    from broker.core.packet_ids import PacketIds
    from broker.core.subscription import SharedGroup


class Delivery:
    """One message on its way to one session: the recipient's QoS, RETAIN flag and Subscription Identifiers.

    It waits in a queue, and at QoS 1 and 2 then stays in the Session until it is acknowledged.
    """

    __slots__ = ("group", "identifiers", "message", "order", "qos", "retain", "size")

    def __init__(
        self, message: ApplicationMessage, qos: int, retain: bool, identifiers: tuple[int, ...], group: SharedGroup | None, order: int
    ) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.identifiers = identifiers
        self.group = group
        """The shared subscription that chose this session, to choose another if this one ends."""
        self.order = order
        """Position in the session's arrival order, over both of its queues."""
        self.size = message.size
        """What it counts for while it is unacknowledged."""

    def at(self, packet_id: int) -> Delivery:
        """What to repeat for this id: itself. (See `PublishRun`.)"""
        return self


class PublishRun:
    """PUBLISH frames of one size, topic, property set and QoS: as they came, or as some of their recipients have them.

    It stands for the deliveries of all of them, in all sessions that got it, and is taken apart only if one of them has
    to be repeated; so an ordinary QoS 1 message costs no object of its own.
    """

    __slots__ = ("first", "frame_size", "frames", "group", "id_at", "messages", "origin", "payload_at", "qos", "size", "source", "topic")

    def __init__(self, frames: bytes, frame_size: int, qos: int, topic: str, id_at: int, payload_at: int, origin: str) -> None:
        self.frames = frames
        self.frame_size = frame_size
        section = payload_at - id_at - 2  # of plain properties, at most 258 bytes with their length
        self.size = len(topic) + frame_size - payload_at + (0 if section == 0 else section - 1 if section <= 128 else section - 2)
        """What each of its messages counts for while it is unacknowledged: as much as `Delivery.size`, however they came."""
        self.qos = qos
        self.topic = topic
        self.id_at = id_at
        self.payload_at = payload_at
        self.origin = origin
        self.group: SharedGroup | None = None
        self.messages: list[ApplicationMessage] | None = None
        self.source: PublishRun | None = None
        """As they came: the messages have what the other version cannot say."""
        self.first = 0
        """Where in that they begin."""

    def as_came(self) -> tuple[PublishRun, int]:
        """The run that came, and the place of the first of these in it."""
        run = self
        first = 0
        while run.source is not None:
            first += run.first
            run = run.source
        return run, first

    @property
    def count(self) -> int:
        return len(self.frames) // self.frame_size

    def all_messages(self) -> list[ApplicationMessage]:
        """The messages of the frames, in order; made once."""
        source = self.source
        if source is not None:
            messages = source.all_messages()
            count = self.count
            return messages if count == len(messages) else messages[self.first : self.first + count]
        if self.messages is None:
            properties = NO_PROPERTIES
            if self.payload_at > self.id_at + 2:
                properties = decode_properties(self.frames, self.id_at + 2, PUBLISH)[0]
            payloads = tails(self.frames, self.frame_size, self.payload_at)
            self.messages = [ApplicationMessage(self.topic, payload, self.qos, properties=properties, origin=self.origin) for payload in payloads]
        return self.messages

    def form(self, is_mqtt_5: bool, qos: int) -> PublishRun:
        """The same for sessions of either version, at the lesser QoS of 1 or 2: 5.0 has properties, or a zero that says there
        are none, where 3.1.1 has nothing."""
        frames, id_at, payload_at, size = self.frames, self.id_at, self.payload_at, self.frame_size
        first = bytes((0x30 | qos << 1,))
        if is_mqtt_5 == (payload_at > id_at + 2):
            changed = bytearray(frames)
            changed[0::size] = first * (len(frames) // size)
            return self._derived(bytes(changed), size, qos, id_at, payload_at)
        field = encode_string(self.topic)
        properties = b"\x00" if is_mqtt_5 else b""
        head = first + encode_varint(len(field) + 2 + len(properties) + size - payload_at) + field
        parts: list[bytes] = []
        for start in range(0, len(frames), size):
            parts.append(head)
            parts.append(frames[start + id_at : start + id_at + 2])
            parts.append(properties)
            parts.append(frames[start + payload_at : start + size])
        new_payload_at = len(head) + 2 + len(properties)
        return self._derived(b"".join(parts), new_payload_at + size - payload_at, qos, len(head), new_payload_at)

    def at_qos_0(self, is_mqtt_5: bool) -> bytes:
        """The frames for sessions that have them at most once."""
        properties = b""
        if is_mqtt_5:
            properties = self.frames[self.id_at + 2 : self.payload_at] or b"\x00"
        return at_qos_0(self.frames, self.frame_size, self.topic, properties, self.payload_at)

    def part(self, start: int, count: int) -> PublishRun:
        """Some that stand in a row."""
        if count == self.count:
            return self
        size = self.frame_size
        part = self._derived(self.frames[start * size : (start + count) * size], size, self.qos, self.id_at, self.payload_at)
        part.first = start
        return part

    def with_ids(self, ids: PacketIds) -> PublishRun:
        """The same with other packet ids, in the order of the frames."""
        changed = bytearray(self.frames)
        ids.write(changed, self.id_at, self.frame_size)
        return self._derived(bytes(changed), self.frame_size, self.qos, self.id_at, self.payload_at)

    def _derived(self, frames: bytes, frame_size: int, qos: int, id_at: int, payload_at: int) -> PublishRun:
        derived = PublishRun(frames, frame_size, qos, self.topic, id_at, payload_at, self.origin)
        derived.source = self
        derived.size = self.size
        return derived

    def at(self, packet_id: int) -> Delivery:
        """The delivery of the frame with this id; the caller knows that there is one."""
        wanted = packet_id.to_bytes(2, "big")
        for number, start in enumerate(range(self.id_at, len(self.frames), self.frame_size)):
            if self.frames[start : start + 2] == wanted:
                return Delivery(self.all_messages()[number], self.qos, False, (), None, 0)
        raise KeyError(packet_id)


class KeptDelivery:
    """A retained message that was sent at QoS 1 or 2, as it is kept: it is a message again only if it has to be repeated."""

    __slots__ = ("frame", "group", "order", "qos", "size")

    def __init__(self, frame: bytes, qos: int, order: int) -> None:
        self.frame = frame
        self.qos = qos
        self.order = order
        self.group: SharedGroup | None = None
        self.size = size_of(frame)
        """The whole frame: what it would take if it were retained no more."""

    def at(self, packet_id: int) -> Delivery:
        """What to repeat."""
        return Delivery(message_of(self.frame), self.qos, True, (), None, self.order)


Unacknowledged = Delivery | PublishRun | KeptDelivery
