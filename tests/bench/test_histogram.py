"""Latencies: exact below 128, within 0.8 % above, whatever their number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bench.histogram import Histogram


def test_small_values_are_exact() -> None:
    histogram = Histogram()
    for value in range(1, 101):
        histogram.add(value)
    assert [histogram.percentile(percent) for percent in (1, 50, 90, 99, 99.9, 100)] == [1, 50, 90, 99, 100, 100]
    assert (histogram.count, histogram.maximum, histogram.mean) == (100, 100, 50.5)


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(1, 1000)), min_size=1, max_size=50), st.floats(0.1, 100))
def test_a_percentile_is_within_its_bucket(values: list[tuple[int, int]], percent: float) -> None:
    histogram = Histogram()
    for value, count in values:
        histogram.add(value, count)
    wanted = histogram.count * percent / 100
    upto = [sum(count for other, count in values if other <= value) for value, _ in values]
    exact = min(value for (value, _), seen in zip(values, upto, strict=True) if seen >= wanted)
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.008, abs=1)
    assert histogram.percentile(percent) <= histogram.maximum


def test_nothing_is_zero_and_a_clock_that_steps_back_is_not_negative() -> None:
    histogram = Histogram()
    assert (histogram.percentile(50), histogram.mean) == (0.0, 0.0)
    histogram.add(-5)
    assert (histogram.count, histogram.percentile(50), histogram.total) == (1, 0, 0)
    histogram.add(2**63 - 1)
    assert math.isclose(histogram.percentile(100), 2**63, rel_tol=0.01)
