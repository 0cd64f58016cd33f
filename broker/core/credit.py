"""For how long a client that takes its messages slowly may still hold up those who publish them, and whether it takes enough: see `pausing`.

Made when it first does; until then it has all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.core.deadlines import Deadline


class Credit:
    __slots__ = ("at", "charging", "deadline", "left_s", "progress_at", "progress_mark", "stuck")

    def __init__(self, left_s: float, now: float) -> None:
        self.left_s = left_s
        self.at = now
        """When `left_s` was right; while `charging` it has gone down since."""
        self.charging = False
        self.deadline: Deadline | None = None
        """When it is spent, or it is to be seen whether the client takes enough."""
        self.progress_mark = 0
        """So many bytes its peer had taken at `progress_at`."""
        self.progress_at = now
        self.stuck = False
        """It took less than a sole recipient has to, and has not yet mended that."""
