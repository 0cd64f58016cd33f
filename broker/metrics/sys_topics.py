"""$SYS/broker/...: what the broker counts, as retained messages under Mosquitto's names, so that its dashboards work here.
Two of its names are missing: heap/..., which is its allocator's, and publish/bytes/..., for which each message would have to be measured twice.

Load averages are Mosquitto's too: for each of 1, 5 and 15 minutes a rate per minute, decayed exponentially at every interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from broker.core.message import ApplicationMessage
from broker.metrics.table import NUMBERS, Statistics

if TYPE_CHECKING:
    from broker.net.server import Server

COUNTS: Final = {topic: number.key for number in NUMBERS for topic in number.topics}
"""Topic below $SYS/broker/ : key of statistics."""
LOADS: Final = {topic: number.key for number in NUMBERS for topic in number.load}
"""Topic below $SYS/broker/load/ : likewise."""
MINUTES: Final = (1, 5, 15)


class LoadAverages:
    """Rates per minute over 1, 5 and 15 minutes of every counter in LOADS."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self.rates: dict[str, float] = {f"{name}/{minutes}min": 0.0 for name in LOADS for minutes in MINUTES}

    def update(self, statistics: Statistics, elapsed_s: float) -> None:
        """elapsed_s since the last update, which must be more than 0."""
        for name, key in LOADS.items():
            count = float(statistics.get(key, 0))
            rate = (count - self._last.get(name, 0.0)) * 60 / elapsed_s
            self._last[name] = count
            for minutes in MINUTES:
                kept = math.exp(-elapsed_s / (minutes * 60))
                topic = f"{name}/{minutes}min"
                self.rates[topic] = rate + kept * (self.rates[topic] - rate)


class SysTopics:
    """interval_s: seconds between two rounds; 0 is off. Only what has changed is published again."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._changed = trio.Event()
        self._told: dict[str, str] = {}
        self._loads = LoadAverages()

    def set_interval(self, interval_s: float) -> None:
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            self._changed.set()

    async def run(self, server: Server) -> None:
        """Publish for ever. A chore of the server: it ends when the last client is gone."""
        from broker import __version__

        updated_at = trio.current_time()
        while True:
            if self._interval_s > 0:
                now = trio.current_time()
                statistics = server.statistics()
                if now > updated_at:
                    self._loads.update(statistics, now - updated_at)
                    updated_at = now
                self._publish(server, self.topics(statistics, f"broker version {__version__}"), now)
            self._changed = trio.Event()
            with trio.move_on_after(self._interval_s if self._interval_s > 0 else math.inf):
                await self._changed.wait()

    def topics(self, statistics: Statistics, version: str) -> dict[str, str]:
        """Every topic below $SYS/broker/ with its payload."""
        found = {topic: str(statistics[key]) for topic, key in COUNTS.items() if key in statistics}
        away = max(0, int(statistics.get("clients_total", 0)) - int(statistics.get("clients_connected", 0)))
        found["clients/disconnected"] = found["clients/inactive"] = str(away)
        stored = int(statistics.get("queued_count", 0)) + int(statistics.get("retained_count", 0))
        found["messages/stored"] = found["store/messages/count"] = str(stored)
        found["version"] = version
        found["uptime"] = f"{int(statistics['uptime_s'])} seconds"
        found |= {f"load/{topic}": f"{rate:.2f}" for topic, rate in self._loads.rates.items()}
        return found

    def _publish(self, server: Server, topics: Mapping[str, str], now: float) -> None:
        for topic, payload in topics.items():
            if self._told.get(topic) != payload:
                self._told[topic] = payload
                server.engine.publish(ApplicationMessage(f"$SYS/broker/{topic}", payload.encode(), 0, True), now)
        server.flush()
