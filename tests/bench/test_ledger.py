"""Lost, doubled and out of order are told apart, however the messages come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.bench.ledger import GAPS_COUNT_MAX, Stream


def test_in_order() -> None:
    stream = Stream()
    for first, count in ((0, 5), (5, 1), (6, 3)):
        stream.take(first, count)
    assert (stream.next_sequence, stream.distinct_count, stream.duplicated_count, stream.out_of_order_count) == (9, 9, 0, 0)


def test_a_gap_is_lost_until_it_comes_late() -> None:
    stream = Stream()
    stream.take(0, 2)
    stream.take(4, 2)
    assert (stream.next_sequence, stream.distinct_count) == (6, 4)
    stream.take(3, 1)
    assert (stream.distinct_count, stream.out_of_order_count, stream.duplicated_count) == (5, 1, 0)
    stream.take(3, 1)
    assert (stream.distinct_count, stream.out_of_order_count, stream.duplicated_count) == (5, 1, 1)


def test_a_run_may_be_old_and_new() -> None:
    stream = Stream()
    stream.take(0, 4)
    stream.take(2, 5)
    assert (stream.next_sequence, stream.distinct_count, stream.duplicated_count) == (7, 7, 2)


def test_credit_is_given_once() -> None:
    stream = Stream()
    assert [stream.credit(5), stream.credit(3), stream.credit(5), stream.credit(8)] == [5, 0, 0, 3]


def test_gaps_are_bounded() -> None:
    stream = Stream()
    for number in range(GAPS_COUNT_MAX + 10):
        stream.take(number * 2 + 1, 1)
    stream.take(0, 1)  # remembered
    stream.take((GAPS_COUNT_MAX + 5) * 2, 1)  # not any more
    assert (stream.out_of_order_count, stream.duplicated_count) == (1, 1)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=40))
def test_it_counts_what_a_set_would(runs: list[tuple[int, int]]) -> None:
    stream = Stream()
    seen: set[int] = set()
    duplicated = late = 0
    for first, count in runs:
        stream.take(first, count)
        for sequence in range(first, first + count):
            duplicated += sequence in seen
            late += sequence not in seen and bool(seen) and sequence < max(seen)
            seen.add(sequence)
    assert stream.distinct_count == len(seen)
    assert stream.duplicated_count == duplicated
    assert stream.out_of_order_count == late
    assert stream.next_sequence == (max(seen) + 1 if seen else 0)
