"""What goes through the engine alone each second: bytes in, bytes out, no socket and no Trio.

    python -m benchmarks.engine [--rounds 5] [--only QoS]

Each path (benchmarks/paths.py) is repeated for about `--seconds` a round, on 64-byte payloads. Figures are medians of the
rounds; compare them within one run only. A count that does not depend on the machine's mood: benchmarks/instructions.py.
"""

from __future__ import annotations

import argparse
import statistics
import time

from benchmarks.paths import PATHS, Step


def rate(step: Step, seconds: float) -> float:
    """Units a second."""
    units = 0
    start = time.perf_counter()
    while True:
        units += step()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return units / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--only", default="", help="paths whose name holds this")
    options = parser.parse_args()
    print(f"{'path':<38}{'each second':>14}{'µs each':>10}")
    for path in PATHS:
        if options.only not in path.name:
            continue
        step = path.make()
        median = statistics.median(rate(step, options.seconds) for _ in range(options.rounds))
        print(f"{path.name:<38}{median:>14,.0f}{1e6 / median:>10.3f}")


if __name__ == "__main__":
    main()
