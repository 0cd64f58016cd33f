"""What a listener with protocol = "http" has: /metrics, for Prometheus and whatever else reads its format, and /health, for whoever has to know
whether to send clients here.

The page costs nobody anything until it is asked for: then it reads what is counted already. prometheus-client writes the format and reads what the
system knows of the process; its registry, of which there is one for a process, is not used, so two brokers in one process tell each of themselves.

A page lives as long as clients are served, those included that are told goodbye: then /health says so, and /metrics can still be read.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from broker.metrics.table import NUMBERS, OF_BRIDGES, PREFIX, Number, Statistics
from broker.net.http import Answer, Reception, Request
from broker.net.visitors import receive_visitors

if TYPE_CHECKING:
    from broker.net.server import Server

_METHODS: Final = ("GET", "HEAD")
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Process(ProcessCollector):
    """config/broker.service shows the broker nothing of /proc but its own processes (ProcSubset=pid): so not when the machine was started, either."""

    def _boot_time(self) -> float:
        if sys.platform == "linux":
            return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        else:
            return 0.0


class BridgeFigures(Protocol):
    """`broker.bridge.settings.BridgeInfo` is one."""

    @property
    def name(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def out_count(self) -> int: ...
    @property
    def in_count(self) -> int: ...
    @property
    def timeouts_count(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...


class Page:
    """All that the listeners of one broker with protocol = "http" serve. `run` is a chore of its server. bridges: how they are now."""

    def __init__(self, bridges: Callable[[], Sequence[BridgeFigures]]) -> None:
        self._bridges = bridges
        self._process = _Process(registry=None)
        self._limiter = trio.CapacityLimiter(1)
        """One thread, never behind others'. So pages are made one after another too, and who asks without end takes turns with MQTT."""

    async def run(self, server: Server) -> None:
        await receive_visitors(server, "http", Reception(partial(self._answer, server)))

    async def _answer(self, server: Server, request: Request) -> Answer:
        if request.path not in ("/metrics", "/health"):
            return Answer(404, b"there are /metrics and /health here\n")
        if request.method not in _METHODS:
            return Answer(405, b"only GET and HEAD are served here\n", headers={"Allow": ", ".join(_METHODS)})
        if request.path == "/health":
            return Answer(503, b"shutting down\n") if server.is_stopping else Answer(200, b"ok\n")
        began = time.perf_counter()
        await trio.lowlevel.checkpoint()
        turn_s = time.perf_counter() - began
        # In a thread: of a hundred thousand open files the system's list takes a tenth of a second.
        process = await trio.to_thread.run_sync(self._process.collect, abandon_on_cancel=True, limiter=self._limiter)
        own = (*_families(server.statistics()), *_of_bridges(self._bridges()), *_itself(server.began_at_s, turn_s))
        return _written((*own, *process), request.accept)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _written(families: Iterable[Metric], accept: str) -> Answer:
    """In OpenMetrics' format where that is asked for, else in Prometheus' own."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # prometheus-client's, for a version that is none
        encode, content_type = generate_latest, _CONTENT_TYPE
    return Answer(200, encode(_Collected(families)), content_type)


class _Families:
    """Each begun with its first sample."""

    def __init__(self) -> None:
        self.found: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def add(self, number: Number, value: float, labels: Sequence[tuple[str, str]] = ()) -> None:
        """labels: beside the number's own."""
        if number.label is not None:
            labels = (*labels, number.label)
        family = self.found.get(number.family)
        if family is None:
            kind = CounterMetricFamily if number.kind == "counter" else GaugeMetricFamily
            names = [name for name, _ in labels]
            family = self.found[number.family] = kind(number.family, number.help, labels=names, unit=number.unit)
        family.add_metric([text for _, text in labels], value)


def _families(statistics: Statistics) -> Iterable[Metric]:
    """Of the table, those that are counted here: without a store there is nothing to tell of one."""
    families = _Families()
    for number in NUMBERS:
        value = statistics.get(number.key, 0 if number.everywhere else None)
        if number.name is not None and value is not None:
            families.add(number, value)
    return families.found.values()


def _of_bridges(bridges: Sequence[BridgeFigures]) -> Iterable[Metric]:
    families = _Families()
    for number in OF_BRIDGES:
        for bridge in bridges:
            value = getattr(bridge, number.key)
            by_reason = [((("reason", reason),), count) for reason, count in value.items()] if isinstance(value, Mapping) else [((), value)]
            for labels, one in by_reason:
                families.add(number, one, (("bridge", bridge.name), *labels))
    return families.found.values()


def _itself(began_at_s: float, turn_s: float) -> list[Metric]:
    from broker import __version__, compiled

    build = {"version": __version__, "python": platform.python_version(), "compiled": "yes" if compiled else "no"}
    return [
        InfoMetricFamily(f"{PREFIX}build", "Which broker this is. compiled: is its core machine code (make wheel)?", build),
        GaugeMetricFamily(f"{PREFIX}start_time_seconds", "When the broker was opened, in seconds since 1970.", began_at_s, unit="seconds"),
        GaugeMetricFamily(
            f"{PREFIX}event_loop_turn_seconds",
            "How long the event loop took for one turn when this page was asked for. Everybody who has something to do waits about so long.",
            turn_s,
            unit="seconds",
        ),
    ]
