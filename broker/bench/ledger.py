"""Which messages of one publisher have come to one subscriber: lost, doubled and out of order are told apart, in bounded memory."""

from __future__ import annotations

from typing import Final

GAPS_COUNT_MAX: Final = 10_000
"""Gaps remembered a stream. Beyond, what comes late counts as a duplicate, for want of knowing better."""


class Stream:
    __slots__ = ("_missing", "credited_count", "distinct_count", "duplicated_count", "next_sequence", "out_of_order_count")

    def __init__(self) -> None:
        self.next_sequence = 0
        """One more than the highest that has come."""
        self.credited_count = 0
        """How far the publisher's window counts it: `next_sequence`, or beyond, what was given up waiting for."""
        self.distinct_count = 0
        self.duplicated_count = 0
        self.out_of_order_count = 0
        """Came after one that was published later."""
        self._missing: list[tuple[int, int]] = []
        """[first, stop) of what was passed over, in order."""

    def credit(self, sequence: int) -> int:
        """Count it as if everything below `sequence` had come, or been lost for good; returns how many were not so counted before."""
        more = max(0, sequence - self.credited_count)
        self.credited_count += more
        return more

    def take(self, first: int, count: int) -> None:
        """The messages first, first + 1, ... have come, in this order."""
        stop = first + count
        for sequence in range(first, min(stop, self.next_sequence)):
            self._take_late(sequence)
        if first > self.next_sequence and len(self._missing) < GAPS_COUNT_MAX:
            self._missing.append((self.next_sequence, first))
        if stop > self.next_sequence:
            self.distinct_count += stop - max(first, self.next_sequence)
            self.next_sequence = stop

    def _take_late(self, sequence: int) -> None:
        for index, (first, stop) in enumerate(self._missing):
            if first <= sequence < stop:
                self._missing[index : index + 1] = [gap for gap in ((first, sequence), (sequence + 1, stop)) if gap[0] < gap[1]]
                self.distinct_count += 1
                self.out_of_order_count += 1
                return
        self.duplicated_count += 1
