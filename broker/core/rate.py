"""How fast one client may send: a token bucket for its messages and one for its bytes, each of a second's worth.

What is beyond waits and is not lost: a little of it here, the rest in the client's own socket, since a link that is held up is not
read. What was read goes to the decoder in pieces, none much larger than what is left in the buckets, so that the hot paths count
whole runs as ever; a link without a rate pays one test a read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.core.deadlines import Deadline
    from broker.core.limits import Limits

BURST_S: Final = 1.0
"""So long a silence is saved up."""
WAIT_S_MIN: Final = 0.02
"""A timer for each message would cost more than the message."""
PUBLISH_BYTES_MIN: Final = 5
"""A PUBLISH of one letter's topic and nothing else."""
PIECE_BYTES_MIN: Final = 64
"""A piece of so few bytes may hold a dozen messages too many; they are paid for by a longer wait."""


class Rate:
    __slots__ = (
        "_at", "_bytes", "_bytes_per_s", "_held", "_messages", "_messages_per_s", "_position", "deadline",
    )  # fmt: skip

    def __init__(self, limits: Limits, now: float) -> None:
        self.deadline: Deadline | None = None
        """When a link that is held up goes on."""
        self._held = b""
        self._position = 0
        self._at = now
        self.use(limits)
        self._messages = max(1.0, self._messages_per_s * BURST_S)
        self._bytes = max(1.0, self._bytes_per_s * BURST_S)

    def use(self, limits: Limits) -> None:
        """From now on. 0: as fast as it likes."""
        self._messages_per_s = float(limits.publish_per_s_max)
        self._bytes_per_s = float(limits.receive_bytes_per_s_max)

    @property
    def holds(self) -> bool:
        """Was more read than the decoder has been given?"""
        return self._position < len(self._held)

    @property
    def held_bytes(self) -> int:
        """What is kept in memory of it."""
        return len(self._held)

    def abandon(self) -> None:
        """Let go of what is held."""
        self._held = b""
        self._position = 0

    def hold(self, data: bytes) -> None:
        self._held = data if not self.holds else self._held[self._position :] + data
        self._position = 0

    def spend(self, messages: int) -> None:
        self._messages -= messages

    def wait_s(self, now: float) -> float:
        """How long until more may be taken from what is held; 0 for now."""
        elapsed_s = now - self._at
        self._at = now
        wait_s = 0.0
        rate = self._messages_per_s
        if rate:
            self._messages = min(max(1.0, rate * BURST_S), self._messages + elapsed_s * rate)
            if self._messages < 1:
                wait_s = (1 - self._messages) / rate
        rate = self._bytes_per_s
        if rate:
            self._bytes = min(max(1.0, rate * BURST_S), self._bytes + elapsed_s * rate)
            if self._bytes < 1:
                wait_s = max(wait_s, (1 - self._bytes) / rate)
        return max(WAIT_S_MIN, wait_s) if wait_s else 0.0

    def next_piece(self, missing_bytes: int) -> bytes:
        """What the decoder is to have next. missing_bytes: so many make the frame whole that it has begun."""
        size = len(self._held) - self._position
        if self._messages_per_s:
            size = min(size, max(PIECE_BYTES_MIN, missing_bytes, int(self._messages) * PUBLISH_BYTES_MIN))
        if self._bytes_per_s:
            size = min(size, max(PIECE_BYTES_MIN, int(self._bytes)))
            self._bytes -= size
        piece = self._held[self._position : self._position + size]
        self._position += size
        if not self.holds:
            self._held = b""
            self._position = 0
        return piece
