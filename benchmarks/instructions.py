"""How many instructions the engine's hot paths cost, counted and not timed: the same on a busy machine and on a quiet one.

    python -m benchmarks.instructions            count, and compare with benchmarks/instructions.json
    python -m benchmarks.instructions --only QoS
    python -m benchmarks.instructions --update --reason "why it costs more, or less, now"

Exit code 1 when a path costs more than 5 % more than its committed number, 0 when none does or when nothing is committed for
this Python (another version or build runs other instructions: the file keeps them apart).

valgrind's callgrind runs one Python process that imports the engine and then forks a child for each path, so that no path finds
the interpreter as another one left it (Python adapts its instructions to what they meet: that alone made 3 %). A path is warmed
up and then repeated `few` and `many` times; the difference of the two, divided by the units between them, is its cost, from which
all that is done once has gone. The child says where one count ends and the next begins by calling getpgid(2), which nothing else
here calls and at which callgrind is told to dump. The collector is off, hashes are fixed and memory lies where valgrind puts it,
so two runs differ by less than 0.5 %.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
COMMITTED: Final = Path(__file__).resolve().with_suffix(".json")
TOLERANCE: Final = 0.05
FEW, MANY = 1, 3
UNITS_WANTED: Final = 100
"""Units in `few`, at least: paths whose step is one message are repeated more often."""
WARM_UPS_COUNT: Final = 16
"""Python adapts what it has met eight times, and what that calls only then. After 16 the numbers are those after 64; after 3 some were a tenth less,
or a sixth more: what was counted was in the middle of it."""
SECONDS_MAX: Final = 300
MARK: Final = "getpgid"


def this_python() -> str:
    """What the numbers hold for: "CPython 3.11.7, GCC 12.2.0, x86_64"."""
    compiler = re.sub(r"\s+\d{8}.*", "", platform.python_compiler())  # without the snapshot's date
    return f"{platform.python_implementation()} {platform.python_version()}, {compiler}, {platform.machine()}"


# ---- the counted process ----------------------------------------------------------------------------------------------


def run_paths(names: list[str]) -> None:
    """Under callgrind: each path in a child of its own; then {path: [process id, units of one repeat]} on stdout."""
    from benchmarks.paths import PATHS

    gc.disable()
    found: dict[str, tuple[int, int]] = {}
    for path in PATHS:
        if path.name in names:
            reading, writing = os.pipe()
            process = os.fork()
            if process == 0:
                os.write(writing, str(_run_path(path.make())).encode())
                os._exit(0)
            os.close(writing)
            found[path.name] = process, int(os.read(reading, 32) or 0)
            os.close(reading)
            os.waitpid(process, 0)
    print(json.dumps(found))


def _run_path(step: Callable[[], int]) -> int:
    """A mark, `few` repeats, a mark, `many`, a mark; returns the units of one repeat."""
    for _ in range(WARM_UPS_COUNT):
        size = step()
    repeats = max(1, UNITS_WANTED // size)
    os.getpgid(0)
    for _ in range(FEW * repeats):
        step()
    os.getpgid(0)
    for _ in range(MANY * repeats):
        step()
    os.getpgid(0)
    return size * repeats


# ---- counting ---------------------------------------------------------------------------------------------------------


def count(names: list[str]) -> dict[str, float]:
    """{path: instructions a unit}. Raises RuntimeError with what went wrong."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise RuntimeError("valgrind is not installed (Debian package valgrind)")
    with tempfile.TemporaryDirectory() as directory:
        command = [
            valgrind, "--tool=callgrind", f"--callgrind-out-file={directory}/out.%p", f"--dump-before={MARK}*",
            os.path.realpath(sys.executable), "-S", "-c",
            f"import sys; sys.path[:0] = {[str(ROOT), *_libraries()]!r}; from benchmarks.instructions import run_paths; run_paths({names!r})",
        ]  # fmt: skip
        environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
        # Once without valgrind, so that every module is compiled.
        subprocess.run(
            [sys.executable, "-c", "import benchmarks.paths"], cwd=ROOT, check=True, timeout=SECONDS_MAX, env={**os.environ, "PYTHONHASHSEED": "0"}
        )
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the counted process failed:\n{done.stderr[-2000:]}")
        return _costs(json.loads(done.stdout), Path(directory))


def _libraries() -> list[str]:
    """Where site-packages are: -S keeps `site`, with whatever .pth files are installed, out of the counted process."""
    import sysconfig

    return [sysconfig.get_path("purelib")]


def _costs(children: dict[str, tuple[int, int]], directory: Path) -> dict[str, float]:
    costs: dict[str, float] = {}
    for name, (process, units) in children.items():
        if not units:
            raise RuntimeError(f"{name}: the counted process failed")
        # Dump 1 is what came before the first mark, 2 is `few`, 3 is `many`; what follows has no number.
        few, many = (total_of(directory / f"out.{process}.{number}") for number in (2, 3))
        costs[name] = (many - few) / ((MANY - FEW) * units)
    return costs


def total_of(dump: Path) -> int:
    try:
        found = re.search(r"^totals: (\d+)", dump.read_text("utf-8", "replace"), re.MULTILINE)
    except FileNotFoundError:
        found = None
    if found is None:
        raise RuntimeError(f"callgrind wrote no {dump.name}: does it know the function {MARK}?")
    return int(found[1])


# ---- the committed numbers --------------------------------------------------------------------------------------------


def load() -> dict[str, Any]:
    """{"python": {this_python(): {path: instructions}}, "history": [{date, python, reason, changed: {path: [old, new]}}]}"""
    if not COMMITTED.exists():
        return {"python": {}, "history": []}
    found: dict[str, Any] = json.loads(COMMITTED.read_text("utf-8"))
    return found


def compare(costs: dict[str, float], committed: dict[str, float]) -> tuple[list[str], list[str]]:
    """(lines of the table, what failed)."""
    lines = [f"{'instructions':<38}{'committed':>12}{'now':>12}{'':>9}"]
    failed: list[str] = []
    for name, cost in costs.items():
        before = committed.get(name)
        if before is None:
            lines.append(f"{name:<38}{'-':>12}{_figure(cost):>12}   not committed")
            continue
        change = cost / before - 1
        note = ""
        if change > TOLERANCE:
            note = "  TOO MUCH"
            failed.append(f"{name}: {change:+.1%}")
        elif change < -TOLERANCE:
            note = "  a gain: commit it, so that it is kept"
        lines.append(f"{name:<38}{_figure(before):>12}{_figure(cost):>12}{change:>+9.1%}{note}")
    return lines, failed


def updated(data: dict[str, Any], python: str, costs: dict[str, float], reason: str) -> dict[str, Any]:
    """The file's content with these numbers in it, and why in its history."""
    before = data["python"].get(python, {})
    now = {name: round(cost, 1) for name, cost in costs.items()}
    changed = {name: [before.get(name), cost] for name, cost in now.items() if before.get(name) != cost}
    entry = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "python": python, "reason": reason, "changed": changed}
    return {"python": {**data["python"], python: {**before, **now}}, "history": [*data["history"], entry]}


def _figure(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:,.1f}"


def main() -> int:
    from benchmarks.paths import PATHS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="paths whose name holds this")
    parser.add_argument("--update", action="store_true", help="commit what is counted now to benchmarks/instructions.json")
    parser.add_argument("--reason", default="", help="why, for the history; needed with --update")
    options = parser.parse_args()
    if options.update and not options.reason:
        parser.error("--update needs --reason")
    names = [path.name for path in PATHS if options.only in path.name]
    if not names:
        parser.error("no path has such a name")
    python = this_python()
    data = load()
    committed = data["python"].get(python)
    if committed is None and not options.update:
        print(f"nothing is committed for {python} (but for {'; '.join(data['python']) or 'none'}): not compared")
        return 0
    try:
        costs = count(names)
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    lines, failed = compare(costs, committed or {})
    print("\n".join([python, *lines]))
    if options.update:
        COMMITTED.write_text(json.dumps(updated(data, python, costs, options.reason), indent=1, ensure_ascii=False) + "\n", "utf-8")
        return 0
    if failed:
        advice = "Make it cheaper, or commit the new numbers with a reason: python -m benchmarks.instructions --update --reason '...'"
        print(f"\nmore than {TOLERANCE:.0%} above what is committed: {'; '.join(failed)}\n{advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
