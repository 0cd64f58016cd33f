"""Packet ids in a row are what a look at each of them says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.packet_ids import PacketIds, any_of, in_turn, packet_ids, single


def steps(first: int, count: int, step: int) -> list[int]:
    return [number % 65_536 for number in range(first, first + step * count, step)]


NUMBERS = st.one_of(
    st.lists(st.integers(0, 65_535), min_size=1, max_size=300),
    st.builds(steps, st.integers(0, 65_535), st.integers(1, 300), st.sampled_from([1, -1, 2])),
)


def read(ids: list[int], step: int = 2, before: bytes = b"") -> PacketIds:
    return packet_ids(before + b"".join(packet_id.to_bytes(2, "big").ljust(step, b"x") for packet_id in ids), len(before), step, len(ids))


def frames(kind: int, ids: list[int]) -> bytes:
    return b"".join(bytes((kind, 2)) + packet_id.to_bytes(2, "big") for packet_id in ids)


@given(NUMBERS, st.integers(2, 90), st.binary(max_size=5))
def test_what_is_read_is_what_stands_there(ids: list[int], step: int, before: bytes) -> None:
    found = read(ids, step, before)
    assert (list(found.numbers), found.count) == (ids, len(ids))
    assert (found.smallest, found.largest) == (min(ids), max(ids))
    assert found.are_different() == (len(set(ids)) == len(ids))
    assert all(found.has(packet_id) == (packet_id in ids) for packet_id in (*ids, 0, 7, 65_535))


def test_numbers_in_turn_are_known_to_be_either_way() -> None:
    assert read([65_534, 65_535]).numbers == range(65_534, 65_536)
    assert read([2, 1, 0]).numbers == range(2, -1, -1)
    assert not isinstance(read([65_535, 0]).numbers, range)
    assert not isinstance(read([0, 65_535]).numbers, range)


@given(NUMBERS, st.permutations([0x40, 0x50, 0x62, 0x70]), st.integers(0, 300), st.integers(0, 300))
def test_acknowledgements_of_all_and_of_a_part(ids: list[int], kinds: list[int], start: int, count: int) -> None:
    found = read(ids)
    start = min(start, len(ids) - 1)
    part = found.part(start, start + max(1, count))
    for number, kind in enumerate(kinds):
        assert found.acknowledgements(kind) == frames(kind, ids)
        if number == 1:  # made from those that the whole has made
            part = found.part(start, start + max(1, count))
        assert part.acknowledgements(kind) == frames(kind, ids[start : start + max(1, count)])
        reasons = [bytes((kind, 3)) + packet_id.to_bytes(2, "big") + b"\x10" for packet_id in ids]
        assert found.acknowledgements_of(kind, 0x10) == b"".join(reasons)


@given(NUMBERS, st.integers(2, 20), st.integers(0, 5))
def test_they_are_written_where_they_belong(ids: list[int], step: int, position: int) -> None:
    for of in (read(ids), any_of(ids)):
        changed = bytearray(b"x" * (step * len(ids)))
        position = min(position, step - 2)
        of.write(changed, position, step)
        assert changed == b"".join(b"x" * position + packet_id.to_bytes(2, "big") + b"x" * (step - position - 2) for packet_id in ids)


@given(NUMBERS, NUMBERS)
def test_whether_they_meet(some: list[int], others: list[int]) -> None:
    assert read(some).meet(read(others)) == (not set(some).isdisjoint(others))


@given(st.integers(1, 65_000), st.integers(1, 300))
def test_those_in_turn_are_as_if_they_had_been_listed(first: int, count: int) -> None:
    one, other = in_turn(first, count), any_of(list(range(first, first + count)))
    assert (list(one.numbers), one.smallest, one.largest) == (other.numbers, other.smallest, other.largest)
    assert one.acknowledgements(0x50) == other.acknowledgements(0x50) == frames(0x50, list(range(first, first + count)))
    assert single(first).acknowledgements(0x62) == frames(0x62, [first])
