"""What waits for one client's socket, in two stages.

Encoded bytes are a promise: they are never dropped or encoded again, since a frame may have set a Topic Alias or be half
sent; so there are at most `outbox_bytes_high` of them (and one turn's worth). What comes beyond waits as messages, and
is encoded when bytes drain: expiry, overflow, aliases and size limits act at that moment and nowhere else.
"""

from __future__ import annotations

from typing import Final

from broker.core.waiting import NOTHING_WAITS, Account, WaitingQueue

JOINED_BYTES_MAX: Final = 256
"""Up to so many, frames are joined as they come: most links have one or a few small ones to send, and then need no list of them (a first
message, by sockets, 3.24 to 3.17 us)."""


class Outbox:
    __slots__ = ("account", "chunks", "committed_bytes", "counted_bytes", "head", "head_position", "joined", "sent_bytes_total", "waiting")

    def __init__(self, account: Account) -> None:
        self.joined = b""
        """Whole frames, or one large one; b"" while there are chunks. Who adds to it counts them in `committed_bytes`, as `append` does."""
        self.chunks: list[bytes] | None = None
        """Whole frames, when they are too many bytes to be joined each time."""
        self.head = b""
        """What `data_to_send` gave, from `head_position` on not sent yet; before all others."""
        self.head_position = 0
        self.committed_bytes = 0
        """Encoded and not yet sent."""
        self.account: Account | None = account
        self.counted_bytes = 0
        """So many of them are in the account. More than 0: its socket has been full, and has not taken all since."""
        self.waiting: WaitingQueue = NOTHING_WAITS
        """QoS 0 messages not yet encoded. (QoS 1 and 2 wait in the Session, which outlives this.)"""
        self.sent_bytes_total = 0

    def append(self, frames: bytes) -> None:
        """Commit whole frames."""
        self.committed_bytes += len(frames)
        if self.chunks is not None:
            self.chunks.append(frames)
        elif not self.joined:
            self.joined = frames
        elif self.committed_bytes <= JOINED_BYTES_MAX:
            self.joined += frames
        else:
            self.chunks = [self.joined, frames]
            self.joined = b""

    def own_queue(self) -> WaitingQueue:
        """`waiting`, for something that is to wait: made for the first."""
        if self.waiting is NOTHING_WAITS:
            self.waiting = WaitingQueue(self.account)
        return self.waiting

    def count(self) -> None:
        """Bring the account up to date with what is committed."""
        account = self.account
        if account is not None:
            account.unsent_bytes += self.committed_bytes - self.counted_bytes
            self.counted_bytes = self.committed_bytes

    def uncount(self) -> None:
        """It was counted because it had to wait for something else than its socket, and does no more."""
        if self.account is not None and not self.head:
            self.account.unsent_bytes -= self.counted_bytes
            self.counted_bytes = 0

    def leave_account(self) -> None:
        """Count no more: the stream is gone, and nothing of this will be sent."""
        account = self.account
        if account is not None:
            account.unsent_bytes -= self.counted_bytes
            self.account = None
            self.counted_bytes = 0
            self.waiting.leave_account()

    def data_to_send(self, limit: int) -> bytes | memoryview:
        """Committed bytes in order, at most about `limit` (never less than one chunk); the same again until `bytes_sent`."""
        head = self.head
        if head:
            return memoryview(head)[self.head_position :] if self.head_position else head
        chunks = self.chunks
        if chunks is None:
            head = self.head = self.joined
            self.joined = b""
            return head
        if self.committed_bytes <= limit:
            head = self.head = b"".join(chunks)
            self.chunks = None
            return head
        count = 0
        size = 0
        while count < len(chunks) and size < limit:
            size += len(chunks[count])
            count += 1
        self.head = chunks[0] if count == 1 else b"".join(chunks[:count])
        del chunks[:count]
        if not chunks:
            self.chunks = None
        return self.head

    def give_back(self, data: bytes, count: int) -> None:
        """Only the first `count` bytes were sent of `data`, which was all that there was (`Engine.take_to_send`)."""
        left = len(data) - count
        self.head = data
        self.head_position = count
        self.committed_bytes += left
        self.sent_bytes_total -= left

    def bytes_sent(self, count: int) -> None:
        """The socket took the first `count` of what `data_to_send` returned."""
        self.committed_bytes -= count
        self.sent_bytes_total += count
        position = self.head_position + count
        if position >= len(self.head):
            self.head = b""
            self.head_position = 0
        else:
            self.head_position = position
