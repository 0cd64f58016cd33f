"""Token buckets by name, in a table that does not grow."""

from __future__ import annotations

from broker.core.buckets import Buckets


def test_so_many_a_second_with_a_burst() -> None:
    buckets = Buckets()
    taken = [sum(buckets.take("a", 2.0, 3.0, now) for _ in range(5)) for now in (0.0, 0.5, 1.5, 1.6, 100.0)]
    assert taken == [3, 1, 2, 0, 3]
    assert buckets.take("b", 2.0, 3.0, 100.0)


def test_the_quietest_is_forgotten_first() -> None:
    buckets = Buckets(100)
    for number in range(1000):
        assert buckets.take(f"{number}", 0.001, 1.0, float(number))
        assert buckets.take("regular", 0.001, 1.0, float(number)) is (number == 0)
        assert len(buckets) <= 100
    assert not buckets.take("999", 0.001, 1.0, 1000.0)
    assert buckets.take("1", 0.001, 1.0, 1000.0)


def test_long_names_are_not_kept_and_are_told_apart() -> None:
    buckets = Buckets()
    names = ["x" * 60_000 + end for end in "ab"]
    assert [buckets.take(name, 0.001, 1.0, 0.0) for name in (*names, *names)] == [True, True, False, False]
    assert max(map(len, buckets._tokens)) < 300
