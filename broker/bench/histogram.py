"""Latencies in buckets that grow with the value, as HdrHistogram has them: 0.8 % wide, whatever comes and however much of it."""

from __future__ import annotations

from typing import Final

_BITS: Final = 7
_STEPS: Final = 1 << _BITS


class Histogram:
    """Whole numbers (nanoseconds) from 0 to 2**63. Bounded: about 7,000 counters."""

    __slots__ = ("_counts", "count", "maximum", "total")

    def __init__(self) -> None:
        self._counts = [0] * ((64 - _BITS + 1) * _STEPS)
        self.count = 0
        self.maximum = 0
        self.total = 0

    def add(self, value: int, count: int = 1) -> None:
        if value < 0:
            value = 0
        shift = value.bit_length() - _BITS - 1
        # Below 2**7 each value has a bucket; above, each power of two has 2**7.
        self._counts[value if shift < 0 else (shift + 1) * _STEPS + (value >> shift) - _STEPS] += count
        self.count += count
        self.total += value * count
        self.maximum = max(self.maximum, value)

    def percentile(self, percent: float) -> float:
        """The middle of the bucket that holds it, never above the maximum; 0 when there is nothing."""
        wanted = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                power, step = divmod(index, _STEPS)
                value = step if power == 0 else (step + _STEPS + 0.5) * (1 << (power - 1)) - 0.5
                return min(value, self.maximum)
        return 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0
