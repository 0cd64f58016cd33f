"""Random clients that are held to a rate: all that is promised stays promised, later."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from broker.testing.script import Script, random_script
from broker.testing.simulation import simulate


def with_rate(seed: int) -> Script:
    script = random_script(seed)
    random = Random(seed)
    name, most = random.choice((("publish_per_s_max", 5), ("publish_per_s_max", 200), ("receive_bytes_per_s_max", 5_000)))
    return msgspec.structs.replace(script, limits=script.limits | {name: most})


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_promises_are_kept_at_a_rate(first: int) -> None:
    for seed in range(first, first + 20):
        outcome = simulate(with_rate(seed))
        assert not outcome.fault, f"{outcome.fault}\n{outcome.script.pasteable()}"
