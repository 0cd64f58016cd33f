"""All timers of the broker in one heap, so that one task sleeping until the first of them drives them all.

Cancelling leaves the entry in the heap without its owner, and the heap is rebuilt when half of it is dead: a lazy heap
alone would keep a client that left after a second alive for as long as its keepalive was (18 hours at 65,535 s).
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Final

CONNECT_TIMEOUT: Final = 0
KEEP_ALIVE: Final = 1
WILL_DELAY: Final = 2
SESSION_EXPIRY: Final = 3
RETAINED_EXPIRY: Final = 4
PAUSE_CREDIT: Final = 5
RATE: Final = 6
AUTHENTICATION_END: Final = 7

_COMPACT_COUNT_MIN: Final = 64


class Deadline:
    """One entry: owner is None when it was cancelled."""

    __slots__ = ("at", "kind", "owner")

    def __init__(self, at: float, kind: int, owner: object) -> None:
        self.at = at
        self.kind = kind
        self.owner: object | None = owner


class Deadlines:
    __slots__ = ("_dead_count", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Deadline]] = []
        """(when, in which order it was added, what): a heap compares tuples ten times as fast as objects with a method for it."""
        self._sequence = 0
        self._dead_count = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead_count

    def add(self, at: float, kind: int, owner: object) -> Deadline:
        self._sequence += 1
        entry = Deadline(at, kind, owner)
        heappush(self._heap, (at, self._sequence, entry))
        return entry

    def cancel(self, entry: Deadline | None) -> None:
        """Idempotent; None is allowed, so that a holder needs no test."""
        if entry is None or entry.owner is None:
            return
        entry.owner = None
        if self._heap[-1][2] is entry:  # as that of a CONNECT which came at once: a heap without its last entry is one
            self._heap.pop()
            return
        self._dead_count += 1
        if self._dead_count > _COMPACT_COUNT_MIN and self._dead_count * 2 > len(self._heap):
            self._heap = [live for live in self._heap if live[2].owner is not None]
            heapify(self._heap)
            self._dead_count = 0

    def next_at(self) -> float:
        """When the first one is due, `math.inf` if there is none."""
        heap = self._heap
        while heap:
            first = heap[0]
            if first[2].owner is not None:
                return first[0]
            heappop(heap)
            self._dead_count -= 1
        return math.inf

    def pop_due(self, now: float) -> tuple[int, object] | None:
        """(kind, owner) of the first one whose time has come, in order of time; None when there is none."""
        if self.next_at() > now:
            return None
        entry = heappop(self._heap)[2]
        owner = entry.owner
        entry.owner = None
        assert owner is not None
        return entry.kind, owner
