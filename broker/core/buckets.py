"""Token buckets by name: how often somebody may do something, with a burst after a silence.

The table is bounded: it forgets whoever has been quiet the longest, so that a million names cost no more than a few thousand.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

COUNT_MAX: Final = 10_000
NAME_LENGTH_MAX: Final = 256
"""Longer ones are known by their hash, or ten thousand Client Identifiers of 64 KiB would be kept."""


class Buckets:
    """`now`: seconds of any clock."""

    __slots__ = ("_tokens", "count_max")

    def __init__(self, count_max: int = COUNT_MAX) -> None:
        self.count_max = count_max
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """(what may come at once, when that was so)."""

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, name: str, per_s: float, burst: float, now: float) -> bool:
        """One more of this name; False: it has come too often, and this one does not count."""
        if len(name) > NAME_LENGTH_MAX:
            name = f"{hash(name):x}"
        tokens, at = self._tokens.get(name, (burst, now))
        tokens = min(burst, tokens + (now - at) * per_s)
        taken = tokens >= 1
        self._tokens[name] = (tokens - 1 if taken else tokens, now)
        self._tokens.move_to_end(name)
        if len(self._tokens) > self.count_max:
            self._tokens.popitem(last=False)
        return taken
