"""Virtual time: a heap of things to do, and a clock that jumps to the next of them.

Things due at the same instant happen in an order that the seed chooses: that is how events on different connections get
reordered. What has to stay in order (the bytes of one direction) keeps its own queue and asks only to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random


class Timeline:
    def __init__(self, random: Random, now: float = 1000.0) -> None:
        self.now = now
        """Seconds."""
        self._random = random
        self._heap: list[tuple[float, float, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do it then, or now if that is over."""
        self._sequence += 1
        heappush(self._heap, (max(when, self.now), self._random.random(), self._sequence, action))

    def run_until(self, end: float, actions_max: int = 1_000_000) -> None:
        """Let time go by. RuntimeError when it stands still: `actions_max` things were done and there is always one more."""
        heap = self._heap
        for _ in range(actions_max):
            if not heap or heap[0][0] > end:
                self.now = max(self.now, end)
                return
            when, _, _, action = heappop(heap)
            self.now = when
            action()
        raise RuntimeError(f"time stands still at {self.now}: there is always something more to do")
