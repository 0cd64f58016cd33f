"""One simulated connection: two directions, each a queue of bytes with faults of its choice, never reordered within itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.testing.timeline import Timeline


READ_BYTES = 65_536
PIECES_MAX = 12
"""So many small pieces of one write; then the rest of it in one. Else a simulation does nothing but carry bytes."""


class Faults(msgspec.Struct, frozen=True):
    """What a network does to one client's connections, in both directions."""

    delay_s: float = 0.0
    """Each piece takes this long, more or less by half."""
    split_bytes: int = 0
    """Pieces of at most so many bytes; 0: all that is due comes in one read."""
    capacity_bytes: int = 65_536
    """What fits between a sender and a reader who does not read."""


class Pipe:
    """One direction. `deliver` gets the bytes, and b"" for the end of the stream, when they arrive and `may_deliver` says so."""

    def __init__(
        self, timeline: Timeline, random: Random, faults: Faults, deliver: Callable[[bytes], None], may_deliver: Callable[[], bool] | None = None
    ) -> None:
        self.timeline = timeline
        self.random = random
        self.faults = faults
        self.deliver = deliver
        self.may_deliver = may_deliver
        self.frozen = False
        """Nobody reads at the other end, and nobody is told."""
        self.dead = False
        """Bytes go nowhere."""
        self.ended = False
        self.delivered_bytes = 0
        self.sent_bytes = 0
        self._queue: deque[tuple[float, bytes]] = deque()
        self._last_at = 0.0
        self._looking = False

    @property
    def room_bytes(self) -> int:
        return self.faults.capacity_bytes - (self.sent_bytes - self.delivered_bytes)

    def send(self, data: bytes) -> None:
        """b"" ends the stream."""
        if self.dead or self.ended:
            return
        self.sent_bytes += len(data)
        faults = self.faults
        size = faults.split_bytes or READ_BYTES
        if not data:
            self.ended = True
            self._enqueue(data)
        split = min(len(data), size * PIECES_MAX)
        for start in range(0, split, size):
            self._enqueue(data[start : start + size])
        if split < len(data):
            self._enqueue(data[split:])
        self.look()

    def _enqueue(self, piece: bytes) -> None:
        at = self.timeline.now + self.faults.delay_s * (0.5 + self.random.random())
        self._last_at = at = max(at, self._last_at)
        self._queue.append((at, piece))

    def look(self) -> None:
        """Something may have changed: bytes, the reader, the other side's readiness."""
        if self._queue and not self._looking and not self.frozen and not self.dead:
            self._looking = True
            self.timeline.at(self._queue[0][0], self._arrive)

    def kill(self) -> None:
        """What is under way is lost, and what comes too."""
        self.dead = True
        self._queue.clear()

    def _arrive(self) -> None:
        self._looking = False
        if self.frozen or self.dead or not self._queue:
            return
        if self.may_deliver is not None and not self.may_deliver():
            return  # whoever changes that calls `look`
        if self._queue[0][0] <= self.timeline.now:
            _, piece = self._queue.popleft()
            if piece and not self.faults.split_bytes:
                piece += self._due_bytes(READ_BYTES - len(piece))
            self.delivered_bytes += len(piece)
            self.deliver(piece)
        self.look()

    def _due_bytes(self, count_max: int) -> bytes:
        """What else has arrived, up to an end of the stream."""
        pieces: list[bytes] = []
        while self._queue and self._queue[0][0] <= self.timeline.now and 0 < len(self._queue[0][1]) <= count_max:
            pieces.append(self._queue.popleft()[1])
            count_max -= len(pieces[-1])
        return b"".join(pieces)


class Line:
    """One connection between a simulated client and the engine."""

    def __init__(self, number: int, client_index: int) -> None:
        self.number = number
        self.client_index = client_index
        self.link: Link | None = None
        self.up: Pipe
        self.down: Pipe
        self.more = False
        """The engine has work left from what it got."""
        self.was_paused = False
        self.was_deaf = False
        """Its client has not read for a while."""
        self.question: object = None
        self.ended_at: float | None = None
        """When the core said that it was over."""
        self.detached = False
        self.abandoned = False
        """The broker that served it is gone."""
        self.accepted_in = 0
        """The changes of that number have to be written before its CONNACK leaves."""
        self.accepted_at = 0.0
