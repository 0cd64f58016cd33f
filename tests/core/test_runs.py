"""Runs are what a look at each frame says they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.runs import alike, cells, tails


def one_by_one(data: bytes, position: int, size: int, columns: list[int], count_max: int) -> int:
    count = 1
    while count < count_max and position + (count + 1) * size <= len(data):
        at = position + count * size
        if any(data[at + column] != data[position + column] for column in columns):
            break
        count += 1
    return count


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, int, int, int, int, int, int]:
    """A frame many times, some bytes of which were changed, between other bytes."""
    size = draw(st.integers(2, 60))
    head = draw(st.integers(1, size))
    tail = draw(st.integers(head, size))
    tail_stop = draw(st.integers(tail, size))
    before = draw(st.binary(max_size=5))
    data = bytearray(before + draw(st.binary(min_size=size, max_size=size)) * draw(st.integers(1, 700)) + draw(st.binary(max_size=size)))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(0, 255))
    return bytes(data), len(before), size, head, tail, tail_stop, draw(st.sampled_from([0, 1, 5, 13, 100, 10_000]))


@given(tables())
def test_a_run_ends_at_the_first_frame_that_is_not_like_the_first(table: tuple[bytes, int, int, int, int, int, int]) -> None:
    data, position, size, head, tail, tail_stop, count_max = table
    columns = [*range(head), *range(tail, tail_stop)]
    assert alike(*table) == one_by_one(data, position, size, columns, count_max)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 150))
def test_tails(size: int, start: int, count: int) -> None:
    start = min(start, size)
    frames = [bytes([number] * size) for number in range(count)]
    assert tails(b"".join(frames), size, start) == [frame[start:] for frame in frames]


@given(st.integers(0, 5), st.integers(1, 9), st.integers(0, 8), st.integers(1, 9), st.integers(1, 300))
def test_cells(position: int, size: int, start: int, length: int, count: int) -> None:
    start = min(start, size - 1)
    length = min(length, size - start)
    frames = [bytes(range(number % 200, number % 200 + size)) for number in range(count)]
    data = bytes(position) + b"".join(frames) + b"more"
    assert cells(data, position, size, start, length, count) == [frame[start : start + length] for frame in frames]
