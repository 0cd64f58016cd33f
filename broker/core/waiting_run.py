"""Messages that came in one run and wait, as one, for a client that is behind.

A slow reader among a thousand fast ones must not cost what they do not: message by message, each that it made wait and then drop took fourteen times
what relaying it to the others did. At QoS 0, whether they go out or are dropped, they do it one by one, as if each had waited by itself. At QoS 1
and 2 as many go out together as may be under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.message import ApplicationMessage, properties_size
from broker.wire.packets import NO_PROPERTIES, Properties

if TYPE_CHECKING:
    from broker.core.owed import PublishRun


class WaitingRun:
    """At QoS 0. frames: of one size, topic and property set, as they came; shared with others who wait for them. order: of the first, in its
    session."""

    __slots__ = (
        "_at", "_frame_size", "_frames", "_origin", "_payload_at", "_properties", "count", "order", "qos", "size", "topic",
    )  # fmt: skip

    def __init__(self, frames: bytes, frame_size: int, payload_at: int, topic: str, properties: Properties, origin: str, order: int) -> None:
        self._frames = frames
        self._frame_size = frame_size
        self._payload_at = payload_at
        self._at = 0
        self._properties = properties
        self._origin = origin
        self.topic = topic
        self.qos = 0
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


class QueuedRun(WaitingRun):
    """At QoS 1 or 2, in a session's queue: those of a run, as it came, from `start` on."""

    __slots__ = ("run", "start")

    def __init__(self, run: PublishRun, start: int, count: int, qos: int, order: int) -> None:
        super().__init__(run.frames, run.frame_size, run.payload_at, run.topic, NO_PROPERTIES, run.origin, order)
        self.run = run
        self.start = start
        self.count = count
        self.qos = qos
        self.size = run.size

    def take(self) -> ApplicationMessage:
        message = self.run.all_messages()[self.start]
        self.skip(1)
        return message

    def take_run(self, count: int) -> PublishRun:
        """The oldest that are left, with the packet ids that they came with."""
        part = self.run.part(self.start, count)
        self.skip(count)
        return part

    def skip(self, count: int) -> None:
        self.start += count
        self.order += count
        self.count -= count

    def first(self, count: int) -> QueuedRun:
        """The oldest alone, with the bytes of all: what a store has of the run, it has as one."""
        return QueuedRun(self.run, self.start, count, self.qos, self.order)
