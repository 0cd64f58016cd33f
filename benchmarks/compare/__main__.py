"""Start brokers in turn, drive each with mqload, print medians and ratios.

    python -m benchmarks.compare                                     ours, mosquitto, nats; every workload
    python -m benchmarks.compare --list
    python -m benchmarks.compare --loads pair-1,qos1,ping --rounds 5 --version 5
    python -m benchmarks.compare --brokers mosquitto,light --broker mine='mybroker --port {port}'

Each run gets a fresh broker process on the first of --cores, mqload on the second. Rounds alternate over the brokers (A B C A B C), so
that a mood of the machine meets them all. A run waits for a quiet machine, and is repeated when strangers took more than 8 % of a core
while it lasted; what stayed noisy is marked. Raw results go to --out, one JSON object a line. What is built, logged and stored lies in
a directory of the system's temporary one.

Only ratios travel between machines. CPU µs/msg is the broker's, over its process tree, and steadier than the rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.compare.loads import COLUMNS, LOADS, Load, Outcome, figure, noise
from benchmarks.compare.running import BROKERS, Command, given, run_once, wait_quiet

NOISE_MAX: Final = 0.08
DEFAULT_OURS: Final = f"{sys.executable} -m broker"


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def rows_of(load: Load, results: dict[str, list[Outcome]], peers: list[str]) -> list[list[str]]:
    """The table of one workload, heading first: medians, (smallest-largest), ratios to each peer, notes."""
    columns = COLUMNS[load.mode]
    ratio_heads = [f"{heading} × {peer}" for peer in peers for heading, _ in columns[:2]]
    rows = [["broker", "runs", *(heading for heading, _ in columns), *ratio_heads, "note"]]
    medians: dict[str, list[float | None]] = {}
    for name, outcomes in results.items():
        whole = [outcome for outcome in outcomes if "wall_s" in outcome or "store_s" in outcome]
        cells: list[str] = []
        medians[name] = []
        for place, (_, path) in enumerate(columns):
            values = [value for value in (figure(outcome, path) for outcome in whole) if value is not None]
            median = statistics.median(values) if values else None
            medians[name].append(median)
            spread = f" ({shown(min(values))}-{shown(max(values))})" if place < 2 and len(values) > 1 else ""
            cells.append(shown(median) + spread)
        rows.append([name, f"{len(whole)}/{len(outcomes)}", *cells])
    for row, name in zip(rows[1:], results, strict=True):
        for peer in peers:
            for place in range(2):
                ours, theirs = medians[name][place], medians.get(peer, [None, None])[place]
                row.append(f"{ours / theirs:.2f}" if ours is not None and theirs else "-")
        row.append("; ".join(sorted(notes_of(results[name])))[:90])
    return rows


def notes_of(outcomes: list[Outcome]) -> set[str]:
    notes = {str(outcome["error"]) for outcome in outcomes if outcome.get("error")}
    notes |= {f"exit code {outcome['rc']}" for outcome in outcomes if outcome.get("rc")}
    notes |= {f"{outcome['closed_by_broker']} closed by the broker" for outcome in outcomes if outcome.get("closed_by_broker")}
    return notes | {"noisy" for outcome in outcomes if noise(outcome) > NOISE_MAX}


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default=DEFAULT_OURS, metavar="COMMAND", help="our command, without `serve`; empty: leave us out")
    parser.add_argument("--brokers", default="mosquitto,nats", help=f"of {', '.join(BROKERS)}; empty for none")
    parser.add_argument("--broker", action="append", default=[], metavar="NAME=COMMAND", help="another one, with {port} in its command line")
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--version", type=int, choices=(4, 5), default=4, help="4 is MQTT 3.1.1")
    parser.add_argument("--port", type=int, default=21900)
    parser.add_argument("--cores", default="0,1", help="broker,generator; empty: wherever the system puts them")
    parser.add_argument("--quiet", type=float, default=15, metavar="SECONDS", help="wait so long for a quiet machine")
    parser.add_argument("--retries", type=int, default=2, help="of a noisy run")
    parser.add_argument("--out", type=Path, help="[default: results.jsonl in that temporary directory]")
    parser.add_argument("--list", action="store_true", help="the workloads and their mqload flags")
    return parser.parse_args()


def brokers_of(options: argparse.Namespace) -> dict[str, Command]:
    """Name to command; ValueError for a name that nobody knows."""
    found: dict[str, Command] = {}
    if options.ours:
        found["ours"] = given(f"{options.ours} serve --host 127.0.0.1 --port {{port}}")
    for name in filter(None, options.brokers.split(",")):
        if name not in BROKERS:
            raise ValueError(f"no broker {name!r}; there are {', '.join(BROKERS)}, and --broker NAME=COMMAND")
        found[name] = BROKERS[name]
    for text in options.broker:
        name, _, command = text.partition("=")
        found[name] = given(command)
    return found


def main() -> int:
    options = arguments()
    if options.list:
        for name, load in LOADS.items():
            print(f"{name:16} {load.describe()}")
        return 0
    try:
        brokers = brokers_of(options)
        loads = {name: LOADS[name] for name in options.loads.split(",")}
        cores = tuple(int(word) for word in options.cores.split(",")) if options.cores else (None, None)
        if len(cores) != 2:
            raise ValueError("--cores takes two numbers")
    except (ValueError, KeyError) as error:
        print(f"{error}; see --list and --help", file=sys.stderr)
        return 2
    work = Path(tempfile.gettempdir()) / "broker-compare"
    work.mkdir(exist_ok=True)
    raw = options.out or work / "results.jsonl"
    peers = [name for name in brokers if name not in ("ours", "light")] if options.ours else list(brokers)[:1]
    turn = 0
    for load_name, load in loads.items():
        results: dict[str, list[Outcome]] = {name: [] for name in brokers}
        version = load.version or options.version
        for number in range(options.rounds):
            for name, command in brokers.items():
                best: Outcome | None = None
                for _ in range(1 + options.retries):
                    wait_quiet(options.quiet)
                    turn += 1
                    # A port of its own for each run: connections of the last one may linger.
                    outcome = run_once(name, command, load, version, options.port + turn * 2 % 200, cores, work)
                    if best is None or noise(outcome) < noise(best):
                        best = outcome
                    if noise(best) <= NOISE_MAX:
                        break
                assert best is not None
                results[name].append(best)
                with open(raw, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"load": load_name, "round": number, "broker": name, **best}) + "\n")
        print(f"\n## {load_name}: mqload {load.describe(version)}")
        print_table(rows_of(load, results, peers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
