"""Log lines at a bounded rate: what repeats a thousand times a second must not fill the disk too."""

from __future__ import annotations

import logging
import math
from typing import Final

import trio

INTERVAL_S: Final = 10.0


class Seldom:
    """One line of each kind in ten seconds, which says how many were left out before it. The kinds are few, and the caller's."""

    __slots__ = ("_last", "_left_out", "_logger")

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warn(self, kind: str, text: str, *arguments: object) -> None:
        now = trio.current_time()
        if now - self._last.get(kind, -math.inf) < INTERVAL_S:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last[kind] = now
        left_out = self._left_out.pop(kind, 0)
        if left_out:
            text += " (and %d more since the last such line)"
            arguments = (*arguments, left_out)
        self._logger.warning(text, *arguments)
