"""What the log says of messages that were not delivered: the first at once, then one line for each client and reason an interval.

The core counts each of them, which a slow client makes a hundred thousand times a second. Here they are added up, bounded: so many
clients are remembered by name, and so many lines written.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from broker.words import named

INTERVAL_S: Final = 30.0
CLIENTS_COUNT_MAX: Final = 1000
"""Remembered by name in one interval, a reason; those beyond are counted together."""
LINES_COUNT_MAX: Final = 20

_LOSSES: Final = {"overflow": "it reads too slowly", "queue-full": "its queue is full"}
"""What an operator has to know of, and what it means. The other reasons say so themselves."""

logger = logging.getLogger("broker.clients")


class Drops:
    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._others: dict[str, int] = {}
        """By reason, for the clients that had no place in `_counts`."""
        self._noted = trio.Event()

    def note(self, client_id: str, reason: str, count: int) -> None:
        key = (client_id, reason)
        if key in self._counts or len(self._counts) < CLIENTS_COUNT_MAX:
            self._counts[key] = self._counts.get(key, 0) + count
        else:
            self._others[reason] = self._others.get(reason, 0) + count
        self._noted.set()

    async def run(self, server: object) -> None:
        """Write for ever. A chore of the server: what is left is told when the last client has gone."""
        try:
            while True:
                await self._noted.wait()
                self._tell()
                await trio.sleep(INTERVAL_S)
        finally:
            self._tell()

    def _tell(self) -> None:
        """The largest first, by name; the rest together."""
        self._noted = trio.Event()
        counts, self._counts = self._counts, {}
        others, self._others = self._others, {}
        ranked = sorted(counts.items(), key=lambda item: item[1], reverse=True)
        for (client_id, reason), count in ranked[:LINES_COUNT_MAX]:
            _log(reason, count, repr(named(client_id)))
        for (_, reason), count in ranked[LINES_COUNT_MAX:]:
            others[reason] = others.get(reason, 0) + count
        for reason, count in others.items():
            _log(reason, count, "other clients")


def _log(reason: str, count: int, whom: str) -> None:
    meaning = _LOSSES.get(reason)
    level = logging.INFO if meaning is None else logging.WARNING
    told = reason if meaning is None else f"{meaning} ({reason})"
    logger.log(level, "dropped %d message%s for %s: %s", count, "" if count == 1 else "s", whom, told)
