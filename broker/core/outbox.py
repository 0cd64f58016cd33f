"""What waits for one client's socket, in two stages.

Encoded bytes are a promise: they are never dropped or encoded again, since a frame may have set a Topic Alias or be half
sent; so there are at most `outbox_bytes_high` of them (and one turn's worth). What comes beyond waits as messages, and
is encoded when bytes drain: expiry, overflow, aliases and size limits act at that moment and nowhere else.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.core.message import ApplicationMessage
    from broker.core.topic_table import SharedGroup


class Delivery:
    """One message on its way to one session: the recipient's QoS, RETAIN flag and Subscription Identifiers.

    It waits in a queue, and at QoS 1 and 2 then stays in the Session until it is acknowledged.
    """

    __slots__ = ("group", "identifiers", "message", "order", "qos", "retain")

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
        """Position in the session's arrival order, over both queues."""


class Outbox:
    __slots__ = ("_chunks", "_head", "_head_position", "committed_bytes", "sent_bytes_total", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._head = b""
        self._head_position = 0
        self.committed_bytes = 0
        """Encoded and not yet sent."""
        self.waiting: deque[Delivery] = deque()
        """QoS 0 messages not yet encoded. (QoS 1 and 2 wait in the Session, which outlives this.)"""
        self.waiting_bytes = 0
        self.sent_bytes_total = 0

    def append(self, frames: bytes) -> None:
        """Commit whole frames."""
        self._chunks.append(frames)
        self.committed_bytes += len(frames)

    def data_to_send(self, limit: int) -> bytes | memoryview:
        """Committed bytes in order, at most about `limit` (never less than one chunk); the same again until `bytes_sent`."""
        if self._head_position:
            return memoryview(self._head)[self._head_position :]
        if self._head:
            return self._head
        chunks = self._chunks
        if not chunks:
            return b""
        if self.committed_bytes <= limit:
            self._head = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            return self._head
        count = 0
        size = 0
        while count < len(chunks) and size < limit:
            size += len(chunks[count])
            count += 1
        self._head = chunks[0] if count == 1 else b"".join(chunks[:count])
        del chunks[:count]
        return self._head

    def bytes_sent(self, count: int) -> None:
        """The socket took the first `count` of what `data_to_send` returned."""
        self.committed_bytes -= count
        self.sent_bytes_total += count
        position = self._head_position + count
        if position >= len(self._head):
            self._head = b""
            self._head_position = 0
        else:
            self._head_position = position

    def wait(self, delivery: Delivery) -> None:
        self.waiting.append(delivery)
        self.waiting_bytes += delivery.message.size

    def pop_waiting(self) -> Delivery:
        delivery = self.waiting.popleft()
        self.waiting_bytes -= delivery.message.size
        return delivery

    def discard(self) -> int:
        """The stream is gone: forget everything; how many messages were still waiting."""
        count = len(self.waiting)
        self.waiting.clear()
        self.waiting_bytes = 0
        self._chunks.clear()
        self._head = b""
        self._head_position = 0
        self.committed_bytes = 0
        return count
