"""The heap of all timers: order, cancelling, and that those who came and went leave nothing behind."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from broker.core.deadlines import CONNECT_TIMEOUT, KEEP_ALIVE, Deadline, Deadlines
from tests.core.harness import World


def test_nothing_is_due_when_there_is_nothing() -> None:
    deadlines = Deadlines()
    assert deadlines.next_at() == math.inf
    assert deadlines.pop_due(1e18) is None
    deadlines.cancel(None)
    assert len(deadlines) == 0


def test_the_same_time_goes_in_the_order_of_coming() -> None:
    deadlines = Deadlines()
    for name in "abc":
        deadlines.add(5.0, KEEP_ALIVE, name)
    deadlines.add(4.0, CONNECT_TIMEOUT, "first")
    assert deadlines.pop_due(3.9) is None
    assert [deadlines.pop_due(5.0) for _ in range(5)] == [
        (CONNECT_TIMEOUT, "first"), (KEEP_ALIVE, "a"), (KEEP_ALIVE, "b"), (KEEP_ALIVE, "c"), None,
    ]  # fmt: skip


def test_cancelling_is_idempotent_also_after_it_was_due() -> None:
    deadlines = Deadlines()
    gone = deadlines.add(1.0, KEEP_ALIVE, "gone")
    due = deadlines.add(2.0, KEEP_ALIVE, "due")
    deadlines.cancel(gone)
    deadlines.cancel(gone)
    assert len(deadlines) == 1
    assert deadlines.next_at() == 2.0
    assert deadlines.pop_due(2.0) == (KEEP_ALIVE, "due")
    deadlines.cancel(due)
    assert len(deadlines) == 0
    assert deadlines.next_at() == math.inf


@given(st.lists(st.one_of(st.tuples(st.just("add"), st.integers(0, 50)), st.tuples(st.just("cancel"), st.integers(0, 200)))))
def test_like_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    deadlines = Deadlines()
    made: list[Deadline] = []
    live: dict[int, int] = {}
    for what, number in steps:
        if what == "add":
            live[len(made)] = number
            made.append(deadlines.add(float(number), KEEP_ALIVE, len(made)))
        elif made:
            deadlines.cancel(made[number % len(made)])
            live.pop(number % len(made), None)
        assert len(deadlines) == len(live)
        assert deadlines.next_at() == min(live.values(), default=math.inf)
    expected = sorted(live, key=lambda index: (live[index], index))
    popped = []
    while (due := deadlines.pop_due(50.0)) is not None:
        popped.append(due[1])
    assert popped == expected


def test_the_heap_is_rebuilt_when_half_of_it_is_dead() -> None:
    deadlines = Deadlines()
    last = deadlines.add(1.0, KEEP_ALIVE, "last")
    for entry in [deadlines.add(65_535.0, KEEP_ALIVE, object()) for _ in range(10_000)]:
        deadlines.cancel(entry)
    assert len(deadlines._heap) < 200
    assert len(deadlines) == 1
    assert deadlines.next_at() == last.at


def test_clients_that_came_and_went_leave_no_entries() -> None:
    world = World(keepalive_s_max=65_535)
    for number in range(1000):
        world.client(f"c{number}", keep_alive=65_535).disconnect()
    assert len(world.state.deadlines) == 0
    assert len(world.state.deadlines._heap) < 200
    world.assert_empty()
