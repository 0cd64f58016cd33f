"""QoS 0 messages that came in one run and wait, as one, for a client that is behind.

A slow reader among a thousand fast ones must not cost what they do not: message by message, each that it made wait and then drop took fourteen times
what relaying it to the others did. Whether they go out or are dropped, they do it one by one, as if each had waited by itself.
"""

from __future__ import annotations

from broker.core.message import ApplicationMessage, properties_size
from broker.wire.packets import Properties


class WaitingRun:
    """frames: of one size, topic and property set, as they came; shared with others who wait for them. order: of the first, in its session."""

    __slots__ = ("_at", "_frame_size", "_frames", "_origin", "_payload_at", "_properties", "count", "order", "size", "topic")

    def __init__(self, frames: bytes, frame_size: int, payload_at: int, topic: str, properties: Properties, origin: str, order: int) -> None:
        self._frames = frames
        self._frame_size = frame_size
        self._payload_at = payload_at
        self._at = 0
        self._properties = properties
        self._origin = origin
        self.topic = topic
        self.order = order
        """Of the oldest that is left; each has the next."""
        self.count = len(frames) // frame_size
        self.size = len(topic) + frame_size - payload_at + properties_size(properties)
        """What each counts for in queues, in bytes: as `ApplicationMessage.size`."""

    def take(self) -> ApplicationMessage:
        """The oldest that is left."""
        payload = self._frames[self._at + self._payload_at : self._at + self._frame_size]
        self.skip(1)
        return ApplicationMessage(self.topic, payload, properties=self._properties, origin=self._origin)

    def skip(self, count: int) -> None:
        """Do without the oldest."""
        self._at += count * self._frame_size
        self.order += count
        self.count -= count

    def first(self, count: int) -> WaitingRun:
        """A run of the oldest alone, which does not keep the others in memory."""
        frames = self._frames[self._at : self._at + count * self._frame_size]
        return WaitingRun(frames, self._frame_size, self._payload_at, self.topic, self._properties, self._origin, self.order)

    def last(self, count: int) -> WaitingRun:
        """The same of the newest."""
        self.skip(self.count - count)
        return self.first(count)
