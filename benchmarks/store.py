"""What the store costs: messages a second on this disk, by how many share a transaction, and how long a large file takes to open and read.

    python -m benchmarks.store                  the tables
    python -m benchmarks.store --only write --folder /var/lib/broker      on another disk

Nothing but `SqliteStore`: no broker, no socket. `write` returns when a batch is on disk (synchronous FULL, one fsync); NORMAL, which a power cut
undoes, stands beside it to show what that costs. Rounds of the two alternate, and figures are medians. Payloads of 64 bytes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from broker.core.publish_run import RUN_BYTES_MAX
from broker.core.saved import SENT, WAITING, Changes, SavedMessage, SavedRetained, SavedRun, SavedSession, places
from broker.store.sqlite import SqliteStore
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, Publish

FRAME: Final = encode(Publish("sensors/kitchen/temperature", bytes(64), 1, packet_id=7), MQTT_5)
BATCHES: Final = (1, 10, 100, 1000)
SESSIONS: Final = (1, 1000)
WRITES_MAX: Final = 500
ROWS_MAX: Final = 50_000
"""Of one round."""
PER_WRITE: Final = 1000
"""Where a large file is made."""


def messages(first: int, count: int, sessions: int, place: int = WAITING) -> list[SavedMessage]:
    return [SavedMessage(number % sessions, place, number, number, FRAME, 5, "", "", None) for number in range(first, first + count)]


def file_system(folder: Path) -> str:
    """Of that folder, as the kernel lists it; Linux."""
    try:
        mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    device, _, kind = max((mount for mount in mounts if folder.is_relative_to(mount[1])), key=lambda mount: len(mount[1]))
    return f"{kind} on {device}"


def take(store: SqliteStore, all_changes: Sequence[Changes]) -> tuple[float, float, float]:
    """(seconds in all, the median write, CPU seconds in all)."""
    spans = []
    cpu = time.process_time()
    for changes in all_changes:
        start = time.perf_counter()
        store.write(changes)
        spans.append(time.perf_counter() - start)
    return sum(spans), statistics.median(spans), time.process_time() - cpu


def written(batch: int, sessions: int) -> list[Changes]:
    """Messages that come to stay."""
    found = []
    for number in range(min(WRITES_MAX, ROWS_MAX // batch)):
        changes = Changes(number)
        changes.messages = messages(number * batch, batch, sessions)
        found.append(changes)
    return found


def passed_on(batch: int, sessions: int) -> list[Changes]:
    """Messages that come, are sent with the next batch, and acknowledged with the one after: five statements a message."""
    found = written(batch, sessions)
    for earlier, later in itertools.pairwise(found):
        later.messages_gone = [(row.session, WAITING, row.key) for row in earlier.messages if row.place == WAITING]
        later.messages_gone += [(row.session, SENT, row.key) for row in earlier.messages if row.place == SENT]
        later.messages = later.messages + [row._replace(place=SENT) for row in earlier.messages if row.place == WAITING]
    return found


def in_runs(batch: int, sessions: int) -> list[Changes]:
    """Messages that came together, each time in the place of those before: what a stream to a session that acknowledges them comes to."""
    size = len(FRAME)
    share, found = max(1, batch // sessions), []
    counts = [min(RUN_BYTES_MAX // size, share - start) for start in range(0, share, RUN_BYTES_MAX // size)] * min(sessions, batch)
    for number in range(min(WRITES_MAX, ROWS_MAX // batch)):
        changes = Changes(number)
        changes.runs = [
            SavedRun(place + 1, place, number, 1, size, 5, 0, places(count, b"", count), FRAME * count) for place, count in enumerate(counts)
        ]
        found.append(changes)
    return found


def measure_writes(folder: Path, rounds: int, what: str, make: Callable[[int, int], list[Changes]]) -> None:
    print(f"\n{what:<34}{'FULL: msg/s':>12}{'ms a write':>12}{'CPU us/msg':>12}{'NORMAL: msg/s':>15}{'ms a write':>12}")
    for sessions in SESSIONS:
        for batch in BATCHES:
            results: dict[str, list[tuple[float, float, float]]] = {"FULL": [], "NORMAL": []}
            for _ in range(rounds):
                for level, found in results.items():
                    all_changes = make(batch, sessions)
                    with tempfile.TemporaryDirectory(dir=folder) as own:
                        store = SqliteStore(Path(own) / "broker.db")
                        store.connection.execute(f"PRAGMA synchronous = {level}")
                        total, each, cpu = take(store, all_changes)
                        store.close()
                    count = len(all_changes) * batch
                    found.append((count / total, each * 1e3, cpu / count * 1e6))
            full, normal = ([statistics.median(column) for column in zip(*results[level], strict=True)] for level in ("FULL", "NORMAL"))
            name = f"batches of {batch}, to {sessions} session{'s' if sessions > 1 else ''}"
            print(f"{name:<34}{full[0]:>12,.0f}{full[1]:>12.2f}{full[2]:>12.1f}{normal[0]:>15,.0f}{normal[1]:>12.2f}")


def measure_large(folder: Path, count: int) -> None:
    print(f"\n{f'{count:,} rows':<34}{'made, s':>12}{'bytes each':>12}{'opened, s':>12}{'read, s':>15}")
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for kind in ("retained", "messages"):
            path = Path(own) / f"{kind}.db"
            store = SqliteStore(path)
            start = time.perf_counter()
            for number in range(0, count, PER_WRITE):
                changes = Changes(number)
                if kind == "retained":
                    names = range(number, number + PER_WRITE)
                    changes.retained = [SavedRetained(f"sensors/{name * 7919 % count}/temperature", FRAME, None) for name in names]
                else:
                    changes.sessions = [SavedSession(number % 1000, "c", None, "", "", None, None)]
                    changes.messages = messages(number, PER_WRITE, 1000)
                store.write(changes)
            made = time.perf_counter() - start
            store.close()
            size = os.path.getsize(path) / count
            start = time.perf_counter()
            store = SqliteStore(path)
            opened = time.perf_counter() - start
            saved = store.load()
            start = time.perf_counter()
            found = sum(1 for _ in (saved.retained if kind == "retained" else saved.messages))
            read = time.perf_counter() - start
            store.close()
            if found != count:
                raise ValueError(f"{found} of {count} rows")
            print(f"{kind:<34}{made:>12.1f}{size:>12.0f}{opened:>12.2f}{read:>15.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured (default: this one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large files")
    parser.add_argument("--only", choices=("write", "pass", "runs", "large"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    print(f"{folder}: {file_system(folder)}; frames of {len(FRAME)} bytes")
    if options.only in (None, "write"):
        measure_writes(folder, options.rounds, "messages that stay", written)
    if options.only in (None, "pass"):
        measure_writes(folder, options.rounds, "messages that are passed on", passed_on)
    if options.only in (None, "runs"):
        measure_writes(folder, options.rounds, "messages that come together", in_runs)
    if options.only in (None, "large"):
        measure_large(folder, options.rows // PER_WRITE * PER_WRITE)


if __name__ == "__main__":
    main()
