"""`python -m broker.testing --seeds 10000`: simulate that many random scripts; the first that fails is printed, shortened, to be pasted
into a test. Exit code 1 for a broken promise.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import re
import time

from broker.testing.script import Script, random_script, shorten
from broker.testing.simulation import Outcome, simulate


def run_seed(seed: int, steps_count: int = 60) -> Outcome:
    return simulate(random_script(seed, steps_count))


def kind_of(fault: str) -> str:
    """The fault without its numbers and names, to tell whether a shorter script fails in the same way."""
    return re.sub(r"\[.*\]|client[\d.]+|house[\d.]+|[\d.]+", "", fault)[:60]


def shortened(outcome: Outcome, runs_max: int = 400) -> Script:
    kind = kind_of(outcome.fault)
    return shorten(outcome.script, lambda script: kind_of(simulate(script).fault) == kind, runs_max)


def explain(outcome: Outcome) -> str:
    """What failed, and the shortest script found that fails so."""
    script = shortened(outcome)
    return f"seed {outcome.script.seed}: {outcome.fault}\nthe shortest script found:\n\n{script.pasteable()}\n\n{simulate(script).fault}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m broker.testing", description="Simulate the broker with random clients in virtual time.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each script (60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one for each core)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    began = time.monotonic()
    failed = messages = receipts = done = 0
    virtual_s = 0.0
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for outcome in pool.imap(functools.partial(run_seed, steps_count=options.steps), seeds, chunksize=4):
            done += 1
            messages += outcome.messages_count
            receipts += outcome.receipts_count
            virtual_s += min(outcome.virtual_s, 1e6)
            if outcome.fault:
                failed += 1
                print(explain(outcome), flush=True)
                if not options.keep_going:
                    break
    elapsed_s = time.monotonic() - began
    print(
        f"{done} seeds in {elapsed_s:.1f} s ({done / elapsed_s:.0f} a second), {failed} failed: "
        f"{messages} messages published, {receipts} received, in {virtual_s / 86_400:.0f} virtual days"
    )
    return 1 if failed else 0
