"""A table of packet ids is a dict, whatever of it is kept together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.id_table import RUN_COUNT_MIN, RUNS_COUNT_MAX, IdTable
from broker.core.packet_ids import any_of, in_turn

PUBREL = 0x62


def frames(ids: list[int], kind: int = PUBREL) -> bytes:
    return b"".join(bytes((kind, 2)) + packet_id.to_bytes(2, "big") for packet_id in ids)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add down", "add odd", "take", "take", "take part", "take mixed", "set", "delete", "apart", "clear"]),
        st.integers(1, 60),
        st.integers(1, 20),
    ),
    max_size=30,
)


@given(STEPS)
def test_it_is_a_dict(steps: list[tuple[str, int, int]]) -> None:
    table: IdTable[int] = IdTable()
    model: dict[int, int] = {}
    for value, (what, first, count) in enumerate(steps, 1):
        wanted = list(range(first, first + count))
        if what == "add down":
            wanted.reverse()
        elif what == "add odd":
            wanted = [first + 7 * number % 23 for number in range(min(count, 23))]
        if what.startswith("add"):
            ids = in_turn(first, count) if what == "add" else any_of(wanted)
            assert table.has_none_of(ids) == model.keys().isdisjoint(wanted)
            if model.keys().isdisjoint(wanted):
                table.add(ids, value)
                model.update(dict.fromkeys(wanted, value))
        elif what.startswith("take"):
            # What stands there: the oldest ids, all of them or some, and something else behind.
            asked = list(model)[: len(model) if what == "take" else count]
            if what == "take mixed":
                asked.append(first)
            data = b"xyz" + frames(asked) + b"\x62\x02\x00"
            taken = table.take(PUBREL, data, 3) if asked else None
            if taken is not None:
                assert list(taken.numbers) == asked[: taken.count]
                assert len({model.pop(packet_id) for packet_id in taken.numbers}) == 1
        elif what == "set":
            table[first] = value
            model[first] = value
        elif what == "delete" and first in model:
            del table[first]
            del model[first]
        elif what == "apart":
            assert table.apart() == model
        elif what == "clear" and count == 1:
            table.clear()
            model.clear()
        assert (table.items(), len(table)) == (list(model.items()), len(model))
        assert (list(table), table.values()) == (list(model), list(model.values()))
        for packet_id in (first, first + count, *list(model)[:3]):
            assert (packet_id in table, table.get(packet_id)) == (packet_id in model, model.get(packet_id))


def table_of(*runs: list[int]) -> IdTable[int]:
    table: IdTable[int] = IdTable()
    for number, run in enumerate(runs):
        table.add(any_of(run), number)
    return table


ONE, TWO = list(range(1, 21)), list(range(30, 40))


def test_runs_leave_as_they_came() -> None:
    table = table_of(ONE, TWO)
    for run in (ONE, TWO):
        taken = table.take(PUBREL, frames(ONE + TWO), 4 * (0 if run is ONE else len(ONE)))
        assert taken is not None
        assert list(taken.numbers) == run
    assert len(table) == 0
    assert table.take(PUBREL, frames(ONE), 0) is None


def test_a_run_may_leave_in_parts() -> None:
    table = table_of(ONE, TWO)
    for start, stop in ((0, 8), (8, 14), (14, 20)):
        taken = table.take(PUBREL, frames(ONE[start:stop]) + b"\xc0\x00", 0)
        assert taken is not None
        assert list(taken.numbers) == ONE[start:stop]
    assert list(table) == TWO


@pytest.mark.parametrize(
    "said",
    [TWO, ONE[1:], ONE[: RUN_COUNT_MIN - 1], [*ONE[:10], 99, *ONE[11:]], ONE[::-1]],
    ids=["the second run first", "without the first", "too few to be worth it", "with a stranger", "backwards"],
)
def test_what_was_not_said_stays(said: list[int]) -> None:
    table = table_of(ONE, TWO)
    assert table.take(PUBREL, frames(said), 0) is None
    assert list(table) == ONE + TWO


def test_another_kind_is_not_what_it_waits_for() -> None:
    assert table_of(ONE).take(PUBREL, frames(ONE, 0x70), 0) is None


def test_few_are_kept_by_themselves_but_for_the_rest_of_a_window() -> None:
    assert table_of(ONE[:3]).runs is None
    table = table_of(ONE, [30])
    assert table.take(PUBREL, frames([*ONE, 30]), 0) is not None
    assert table.take(PUBREL, frames([30]), 0) is not None
    assert len(table) == 0


def test_there_are_never_many_runs() -> None:
    table = table_of(*[list(range(10 * number, 10 * number + 10)) for number in range(RUNS_COUNT_MAX + 1)])
    assert table.runs is None
    assert list(table) == list(range(10 * (RUNS_COUNT_MAX + 1)))
