"""What a run came to: figures, promises, and both ways of writing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from broker.bench.histogram import Histogram
from broker.bench.plan import Plan
from broker.wire.packets import MQTT_5, MQTT_31, MQTT_311

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
OWN_CPU_SHARE_HIGH: Final = 0.85
VERSIONS: Final = {MQTT_5: "5.0", MQTT_311: "3.1.1", MQTT_31: "3.1"}


@dataclass(frozen=True)
class Interval:
    """From the end of the warm-up to the end of publishing (with a count: to the last delivery), or to where it was cut short."""

    seconds: float
    published_count: int
    received_count: int
    own_cpu_share: float | None
    """Of one core, that this program used; None when it was over too soon to say."""


@dataclass(frozen=True)
class Result:
    plan: Plan
    address: str
    cut_short: str | None
    """Why it did not come to its end; None: it did."""
    effective_qos: int
    published_count: int
    refused_count: int
    """Answered with a reason code of 0x80 or more."""
    expected_count: int
    """Deliveries owed."""
    delivered_count: int
    """Different ones that came."""
    lost_count: int
    under_way_count: int
    """Of a run that was cut short: neither delivered nor known to be lost."""
    unacknowledged_count: int
    duplicated_count: int
    out_of_order_count: int
    foreign_count: int
    """Not of this run, or not as they were published."""
    unexpected_count: int
    """Packets that answer nothing."""
    measured: Interval
    latency: Histogram

    def broken_promises(self) -> list[str]:
        """What MQTT promises at this QoS and did not hold, each in a few words."""
        broken = []
        if self.effective_qos >= 1 and self.lost_count:
            broken.append(f"{self.lost_count:,} messages lost at QoS {self.effective_qos}")
        if self.unacknowledged_count and self.cut_short is None:
            broken.append(f"{self.unacknowledged_count:,} messages never acknowledged")
        if self.effective_qos == 2 and self.duplicated_count:
            broken.append(f"{self.duplicated_count:,} messages doubled at QoS 2")
        if self.out_of_order_count:
            broken.append(f"{self.out_of_order_count:,} messages out of order")
        return broken


def figures(result: Result) -> dict[str, Any]:
    """For --json. Times in the unit that the key ends with; counts are of deliveries unless they say published."""
    plan, measured, latency = result.plan, result.measured, result.latency
    microseconds = {f"p{percent:g}": round(latency.percentile(percent) / 1000, 1) for percent in PERCENTILES}
    return {
        "broker": result.address,
        "cut_short": result.cut_short,
        "version": VERSIONS[plan.version],
        "qos": plan.qos,
        "effective_qos": result.effective_qos,
        "payload_bytes": plan.payload_bytes,
        "publishers": plan.publishers_count,
        "subscribers": plan.subscribers_count,
        "topics": plan.topics_count,
        "rate": plan.rate,
        "window": plan.window,
        "seconds": round(measured.seconds, 4),
        "published_per_s": round(measured.published_count / measured.seconds, 1),
        "delivered_per_s": round(measured.received_count / measured.seconds, 1),
        "latency_us": {**microseconds, "max": round(latency.maximum / 1000, 1), "mean": round(latency.mean / 1000, 1), "count": latency.count},
        "published": result.published_count,
        "refused": result.refused_count,
        "expected": result.expected_count,
        "delivered": result.delivered_count,
        "lost": result.lost_count,
        "under_way": result.under_way_count,
        "unacknowledged": result.unacknowledged_count,
        "duplicated": result.duplicated_count,
        "out_of_order": result.out_of_order_count,
        "foreign": result.foreign_count,
        "unexpected": result.unexpected_count,
        "own_cpu_share": None if measured.own_cpu_share is None else round(measured.own_cpu_share, 3),
        "broken_promises": result.broken_promises(),
    }


def duration(nanoseconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            value = nanoseconds / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return f"{nanoseconds / 1000:.0f} µs"


def lines(result: Result) -> list[str]:
    """For people."""
    plan, measured, latency = result.plan, result.measured, result.latency
    pace = f"window {plan.window:,}"
    if plan.rate is not None:
        pace = f"{plan.rate:{',.0f' if plan.rate >= 10 else 'g'}} messages/s"
    shape = f"{plan.publishers_count:,} publishers, {plan.subscribers_count:,} subscribers, {plan.topics_count:,} topics"
    shape = shape.replace("1 publishers", "1 publisher") if plan.publishers_count == 1 else shape
    shape = shape.replace(" 1 subscribers", " 1 subscriber") if plan.subscribers_count == 1 else shape
    shape = shape.replace(" 1 topics", " 1 topic") if plan.topics_count == 1 else shape
    published, received = measured.published_count / measured.seconds, measured.received_count / measured.seconds
    cut = [f"cut short  {result.cut_short}; what follows is of {measured.seconds:.1f} s"] if result.cut_short is not None else []
    found = [
        f"{result.address}, MQTT {VERSIONS[plan.version]}: {shape}, QoS {plan.qos}, {plan.payload_bytes:,} bytes, {pace}",
        *cut,
        f"published  {published:>14,.0f}/s  {result.published_count:>14,} in all",
        f"delivered  {received:>14,.0f}/s  {result.delivered_count:>14,} of {result.expected_count:,}",
    ]
    if latency.count:
        shown = [f"p{percent:g} {duration(latency.percentile(percent))}" for percent in PERCENTILES]
        found.append("latency    " + "   ".join([*shown, f"max {duration(latency.maximum)}"]))
    faults = [("lost", result.lost_count), ("duplicated", result.duplicated_count), ("out of order", result.out_of_order_count)]
    more = [
        ("under way", result.under_way_count),
        ("refused", result.refused_count),
        ("unacknowledged", result.unacknowledged_count),
        ("foreign", result.foreign_count),
        ("unexpected packets", result.unexpected_count),
    ]
    found.append("faults     " + ", ".join(f"{count:,} {name}" for name, count in [*faults, *(one for one in more if one[1])]))
    if result.effective_qos < plan.qos:
        found.append(f"note       the broker granted QoS {result.effective_qos} only")
    if measured.own_cpu_share is not None and measured.own_cpu_share >= OWN_CPU_SHARE_HIGH:
        found.append(f"note       this program used {measured.own_cpu_share:.0%} of a core: the figures are its own limit as much as the broker's")
    return found
