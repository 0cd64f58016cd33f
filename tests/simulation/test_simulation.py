"""The simulation finds nothing in the broker, is the same on every run, and does find whatever is planted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from broker.testing.campaign import explain, kind_of, run_seed, shortened
from broker.testing.script import random_script
from broker.testing.simulation import simulate
from tests.simulation.mutations import MUTATIONS, Mutation

SEEDS_COUNT = int(os.environ.get("BROKER_SIMULATION_SEEDS", "300"))
"""`.ci/run` asks for thousands; at a desk the suite is to be quick."""
CHUNK_COUNT = 20
"""Parts, so that two workers share the seeds and no test takes long."""
SEEDS_PER_MUTATION = 200
planted = pytest.mark.pure_python("a planted fault replaces functions and methods, which machine code calls without looking them up")


@pytest.mark.parametrize("part", range(CHUNK_COUNT))
def test_every_promise_is_kept(part: int) -> None:
    for seed in range(part, SEEDS_COUNT, CHUNK_COUNT):
        outcome = run_seed(seed)
        assert not outcome.fault, explain(outcome)


def test_it_does_something() -> None:
    outcomes = [run_seed(seed) for seed in range(30)]
    assert sum(outcome.messages_count for outcome in outcomes) > 1000
    assert sum(outcome.receipts_count for outcome in outcomes) > 500
    assert len({outcome.digest for outcome in outcomes}) == 30


def test_a_seed_replays_byte_for_byte_in_another_process() -> None:
    program = "from broker.testing.campaign import run_seed\nfor seed in range(25): print(run_seed(seed).digest)"
    digests = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert digests[0].split() == [run_seed(seed).digest for seed in range(25)]


@planted
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_planted_fault_is_caught(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    assert any(run_seed(seed).fault for seed in range(SEEDS_PER_MUTATION))


@planted
def test_a_failing_script_is_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[0](monkeypatch)
    outcome = next(outcome for seed in range(SEEDS_PER_MUTATION) if (outcome := run_seed(seed)).fault)
    script = shortened(outcome, runs_max=150)
    assert len(script.steps) < len(outcome.script.steps) / 3
    assert kind_of(simulate(script).fault) == kind_of(outcome.fault)
    assert "('publish'" in script.pasteable()


def test_a_printed_script_can_be_pasted() -> None:
    script = random_script(5)
    names: dict[str, object] = {}
    exec("from broker.testing.script import ClientSpec, Script", names)
    assert eval(script.pasteable(), names) == script
