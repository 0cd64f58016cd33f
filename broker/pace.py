"""Pace: how long a task may go on with what is there already, before the others get their turn.

A scheduling point costs ten times what a small message does, and lets in whoever brings more: a loop that made one for each message
would be outrun by its own connection. A loop that never made one would starve its neighbours. So: some in a row, bounded by count and time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

IN_A_ROW_COUNT_MAX: Final = 256
"""More gains nothing measurable: 64 are within a tenth of it, and one a turn is ten times slower."""
IN_A_ROW_S_MAX: Final = 0.001
"""What a task does between two messages counts too: with a millisecond of work for each, every one is a scheduling point."""


class Pace:
    """One task's; or one hand's, which a task holds."""

    __slots__ = ("_clock", "_left", "_until", "now")

    def __init__(self) -> None:
        self._left = 0
        self._until = 0.0
        self.now = 0.0
        """When it was asked last."""
        self._clock: Callable[[], float] = trio.current_time

    async def checkpoint(self) -> None:
        """Cancellation is honoured each time; the others get their turn after 256 times in a row, or a millisecond."""
        if self.goes_on():
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        await trio.lowlevel.checkpoint()
        self.rested()

    def goes_on(self) -> bool:
        """One more in this row? Then the caller owes a `checkpoint_if_cancelled`, else a checkpoint, and `rested`."""
        self._left -= 1
        now = self.now = self._clock()
        return now < self._until and self._left > 0

    def rested(self) -> None:
        """This task has just had a scheduling point."""
        # Trio's own `current_time` is three calls around this one.
        self._clock = trio.lowlevel.current_clock().current_time
        self._left = IN_A_ROW_COUNT_MAX
        self.now = self._clock()
        self._until = self.now + IN_A_ROW_S_MAX
