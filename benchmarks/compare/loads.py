"""The workloads, and what of each result stands in the table. `mqload --help` explains the flags."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

STEADY: Final = "--warm 0.5 --time 2 --cut"
BYSTANDER: Final = "flow -P1 -S1 -T1 -s 64 -r 100 --warm 1 --time 4 --drain 2"
"""Latency from the schedule, of a pair that has nothing to do with the load beside it."""


class Load(NamedTuple):
    flags: str
    beside: str = ""
    """What else loads the broker meanwhile, unmeasured: flags of mqload, or `churn`, strangers who subscribe and unsubscribe (churn.py)."""
    version: int | None = None
    """The only one that it makes sense with."""

    @property
    def mode(self) -> str:
        return self.flags.split()[0]

    def describe(self, version: int | None = None) -> str:
        """Its flags, and what goes on beside it."""
        version = version or self.version
        return self.flags + (f" -V {version}" if version else "") + (f", beside {self.beside}" if self.beside else "")


LOADS: Final = {
    "pair-1": Load(f"flow -P1 -S1 -T1 -s 64 --e2e 10k {STEADY}"),
    "pair-1-w100": Load(f"flow -P1 -S1 -T1 -s 64 --e2e 100 {STEADY}"),
    "pair-1-flood": Load(f"flow -P1 -S1 -T1 -s 64 {STEADY}"),
    "pairs-10": Load(f"flow -P10 -S10 -T10 -s 64 --e2e 10k {STEADY}"),
    "fanout-100": Load(f"flow -P1 -S100 -T1 -s 64 --e2e 10k {STEADY}"),
    "fanout-1000": Load(f"flow -P1 -S1000 -T1 -s 64 --e2e 20k {STEADY}"),
    "fanin-100-w": Load(f"flow -P100 -S1 -T1 -s 64 --e2e 1000 {STEADY}"),
    "qos1": Load(f"flow -P1 -S1 -T1 -q1 -w 100 -s 64 {STEADY}"),
    "qos2": Load(f"flow -P1 -S1 -T1 -q2 -w 100 -s 64 {STEADY}"),
    "qos1-fan100": Load(f"flow -P1 -S100 -T1 -q1 -w 100 -s 64 {STEADY}"),
    "pair-1-props": Load(f"flow -P1 -S1 -T1 -s 64 --props 3 --e2e 10k {STEADY}", version=5),
    "mixed-10": Load(f"flow -P1 -S10 -T1 -s 64 --mixed --e2e 10k {STEADY}"),
    "pair-16k": Load(f"flow -P1 -S1 -T1 -s 16384 {STEADY}"),
    "ping": Load("ping -s 64 --warm 0.5 --time 2"),
    "ping-qos1": Load("ping -q1 -s 64 --warm 0.5 --time 2"),
    "open-1k": Load("flow -P200 -S200 -T200 -s 64 -r 1000 --warm 1 --time 3 --drain 2"),
    "open-5k": Load("flow -P1000 -S1000 -T1000 -s 64 -r 5000 --warm 1 --time 3 --drain 2"),
    "bystander-pairs": Load(BYSTANDER, beside="flow -P20 -S20 -T20 -s 64 --e2e 10k --prefix crowd --time 11"),
    "bystander-fanout": Load(BYSTANDER, beside="flow -P1 -S1000 -T1 -s 64 --e2e 20k --prefix crowd --time 11"),
    "known-1k": Load(f"flow -P1 -S1 -T1000 --spread --wild -s 64 --e2e 10k {STEADY}"),
    "known-1k-churn": Load(f"flow -P1 -S1 -T1000 --spread --wild -s 64 --e2e 10k {STEADY}", beside="churn"),
    "conns-10k": Load("conns -N 10000 --src 16 --hold 2"),
    "subs-10k": Load("subs -N 100 -M 100 --time 2 --e2e 100 --timeout 60"),
    "subs-100k": Load("subs -N 100 -M 1000 --time 2 --e2e 100 --timeout 60"),
    "subs-1m": Load("subs -N 100 -M 10000 --time 2 --e2e 100 --timeout 90"),
    "plus-100k": Load("subs -N 100 -M 1000 --filters plus --time 2 --e2e 100 --timeout 60"),
    "retained-100k": Load("retained -N 100k -s 64 --drain 3 --settle 0.5 --timeout 60"),
}

LATENCIES: Final = (("p50 µs", "latency_us/p50"), ("p99 µs", "latency_us/p99"), ("p99.9 µs", "latency_us/p99.9"))
FLOW: Final = (
    ("delivered/s", "out_per_s"),
    ("CPU µs/msg", "broker_us_per_msg"),
    ("busy", "@busy"),
    ("own µs/msg", "own_us_per_msg"),
    *LATENCIES,
    ("peak MB", "@peak"),
    ("lost %", "@lost"),
)
COLUMNS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "flow": FLOW,
    "ping": FLOW,
    "conns": (
        ("connects/s", "connects_per_s"),
        ("CPU µs each", "broker_us_per_msg"),
        ("bytes each", "bytes_per_conn"),
        ("idle CPU %", "idle_cpu_pct"),
        ("connected", "connected"),
        ("p99 µs", "connect_us/p99"),
    ),
    "subs": (
        ("subscribes/s", "subscribes_per_s"),
        ("CPU µs each", "subscribe_cpu_us"),
        ("bytes each", "bytes_per_filter"),
        ("delivered/s", "out_per_s"),
        ("CPU µs/msg", "broker_us_per_msg"),
        ("p50 µs", "latency_us/p50"),
        ("lost %", "@lost"),
    ),
    "retained": (
        ("stored/s", "store_per_s"),
        ("CPU µs each", "store_cpu_us"),
        ("bytes each", "bytes_per_retained"),
        ("replayed/s", "out_per_s"),
        ("CPU µs/msg", "broker_us_per_msg"),
        ("lost %", "@lost"),
    ),
}
"""mode: (heading, path in mqload's result). The first two columns get ratios."""

Outcome = dict[str, Any]


def figure(outcome: Outcome, path: str) -> float | None:
    """One number of mqload's result, or None where it has none."""
    if path == "@busy":  # share of the time that the broker computed
        return outcome["broker_exec_s"] / outcome["wall_s"] if outcome.get("wall_s") and "broker_exec_s" in outcome else None
    if path == "@lost":
        return 100.0 * outcome["lost"] / outcome["expected"] if outcome.get("expected") else None
    if path == "@peak":
        return outcome["broker_peak_rss_kb"] / 1024 if "broker_peak_rss_kb" in outcome else None
    found: Any = outcome
    for part in path.split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def noise(outcome: Outcome) -> float:
    """The share of a core that strangers took meanwhile."""
    return float(outcome.get("other_cpu_s", 0)) / max(float(outcome.get("wall_s") or 1), 0.5)
