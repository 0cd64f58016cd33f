"""How cost grows: one broker under one kind of thing after another, more of it each time. Writes benchmarks/growth.json, which `plots` draws.

    python -m benchmarks.growth                          measure all, a quarter of an hour on two quiet cores
    python -m benchmarks.growth --only payload,retained
    python -m benchmarks.plots                           docs/growth-*.svg from what was measured

Each point is a fresh broker on core 0 and mqload on core 1, as in `benchmarks.compare`. A series is what the whole run of one measure gave: points
of x (how much) and of what each cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.compare.__main__ import DEFAULT_OURS
from benchmarks.compare.loads import Load, Outcome, figure
from benchmarks.compare.running import given, run_once, wait_quiet

RESULTS: Final = Path(__file__).with_name("growth.json")


class Measure(NamedTuple):
    title: str
    x: str
    flags: str
    """Of mqload, with {x} where the amount goes."""
    amounts: tuple[int, ...]
    figures: tuple[tuple[str, str], ...]
    """(what it is, unit; path in mqload's result)."""


STEADY: Final = "--warm 0.3 --time 1.5 --cut"
MEASURES: Final = {
    "clients": Measure(  # 19,900: where a process may open 20,000 files, it has a few others
        "Connections that idle", "connections", "conns -N {x} --src 16 --hold 2 --timeout 90", (500, 1_000, 2_000, 5_000, 10_000, 19_900),
        (("memory, bytes each", "bytes_per_conn"), ("CPU to connect, µs each", "broker_us_per_msg"), ("idle CPU, % of a core", "idle_cpu_pct")),
    ),
    "pairs": Measure(
        "Pairs at 5,000 messages/s together", "pairs", "flow -P{x} -S{x} -T{x} -s 64 -r 5000 --warm 1 --time 3 --drain 2",
        (1, 10, 100, 500, 1_000, 2_000, 5_000), (("CPU, µs a message", "broker_us_per_msg"), ("p99, µs", "latency_us/p99")),
    ),
    "fanout": Measure(
        "Subscribers of one topic", "subscribers", f"flow -P1 -S{{x}} -T1 -s 64 --e2e 20k {STEADY}", (1, 3, 10, 30, 100, 300, 1_000),
        (("CPU, µs a delivery", "broker_us_per_msg"),),
    ),
    "subscriptions": Measure(
        "Subscriptions that stand, all different", "subscriptions", "subs -N 100 -M {x} --time 2 --e2e 100 --timeout 90",
        (10, 100, 1_000, 3_000, 10_000),
        (("CPU, µs a message", "broker_us_per_msg"), ("memory, bytes each", "bytes_per_filter"), ("CPU to subscribe, µs each", "subscribe_cpu_us")),
    ),
    "retained": Measure(
        "Retained messages", "messages", "retained -N {x} -s 64 --drain 3 --settle 0.5 --timeout 90", (1_000, 10_000, 100_000, 300_000, 1_000_000),
        (("memory, bytes each", "bytes_per_retained"), ("CPU to store, µs each", "store_cpu_us"), ("CPU to replay, µs each", "broker_us_per_msg")),
    ),
    "payload": Measure(
        "Bytes of payload", "bytes", f"flow -P1 -S1 -T1 -s {{x}} --e2e 1000 {STEADY}", (24, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144),
        (("CPU, µs a message", "broker_us_per_msg"),),
    ),
}  # fmt: skip
MULTIPLIED: Final = {"subscriptions": 100}
"""mqload's -M is for each of its clients."""


def point(measure: Measure, amount: int, rounds: int, ours: str, turn: int, work: Path) -> dict[str, Any]:
    load = Load(measure.flags.format(x=amount))
    outcomes: list[Outcome] = []
    for number in range(rounds):
        wait_quiet(10)
        outcomes.append(
            run_once("ours", given(f"{ours} serve --host 127.0.0.1 --port {{port}}"), load, 4, 22_900 + (turn + number) * 2, (0, 1), work)
        )
    found: dict[str, Any] = {}
    for name, path in measure.figures:
        values = [value for value in (figure(outcome, path) for outcome in outcomes) if value is not None]
        found[name] = round(statistics.median(values), 4) if values else None
    errors = sorted({str(outcome["error"]) for outcome in outcomes if outcome.get("error")})
    return found | ({"errors": errors} if errors else {})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default=DEFAULT_OURS, metavar="COMMAND", help="our command, without `serve`")
    parser.add_argument("--only", default=",".join(MEASURES), help="of " + ", ".join(MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.gettempdir()) / "broker-compare"
    work.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    turn = 0
    for name in options.only.split(","):
        measure = MEASURES[name]
        points = []
        for amount in measure.amounts:
            turn += options.rounds
            found = point(measure, amount, options.rounds, options.ours, turn % 100 * 10, work)
            points.append({"x": amount * MULTIPLIED.get(name, 1), **found})
            print(f"{name:14} {points[-1]}", flush=True)
        results[name] = {
            "title": measure.title, "x": measure.x, "taken": datetime.now(UTC).date().isoformat(), "python": platform.python_version(),
            "points": points,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
