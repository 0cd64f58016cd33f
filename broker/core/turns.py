"""How much one turn of a link may do, so that a round, in which everybody has one, stays short however many have a lot to do.

A link is busy for a second after a turn that was not a short one. Who is busy shares a round evenly; those who are not take what they need,
which is little, and come between them (docs/decisions/0049-turns-and-rounds.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

ROUND_WORK: Final = 50_000
"""Of all who are busy together: some 50 ms."""
TURN_WORK_MIN: Final = 128
"""With less than that a turn is a short one; nor is it cut to less, or it would be its own cost that it pays for."""
BUSY_S: Final = 1.0
"""Longer than a round, so that who is busy stays so from one turn to the next."""


def note_busy(state: State, link: Link, now: float) -> None:
    """Its turn was not a short one."""
    state.busy[link] = now
    state.busy.move_to_end(link)
    share_out(state, now)


def share_out(state: State, now: float) -> None:
    """How much may a turn do, from now until `busy_until`?"""
    busy = state.busy
    state.busy_until = math.inf
    while busy:
        state.busy_until = busy[next(iter(busy))] + BUSY_S
        if state.busy_until >= now:
            break
        busy.popitem(last=False)
        state.busy_until = math.inf
    state.work_max = min(state.limits.work_per_turn_max, max(TURN_WORK_MIN, ROUND_WORK // (len(busy) or 1)))
