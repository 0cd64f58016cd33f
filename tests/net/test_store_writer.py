"""The thread of a store: what it does is told to who waits for it, and to nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.core.saved import Changes
from broker.errors import StoreError
from broker.net.store_writer import StoreWriter


class Work:
    """What the thread does: waits until it may, and raises what it is told to."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.done: list[int] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, changes: Changes) -> None:
        assert self.may.acquire(timeout=30)
        self.threads.add(threading.current_thread())
        if self.error is not None:
            raise self.error
        self.done.append(changes.number)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def gone(work: Work) -> bool:
    return not any(thread.is_alive() for thread in work.threads)


async def test_one_after_the_other_in_one_thread() -> None:
    work = Work()
    writer = StoreWriter(work)
    for number in range(3):
        work.may.release()
        await writer.write(Changes(number))
        assert work.done[-1] == number
    assert len(work.threads) == 1
    writer.end()
    writer.end()
    await until(lambda: gone(work))


async def test_what_it_raises_is_raised_where_it_was_asked_for() -> None:
    work = Work()
    writer = StoreWriter(work)
    work.error = StoreError("path", "is full")
    work.may.release()
    with pytest.raises(StoreError, match="is full"):
        await writer.write(Changes(1))
    work.error = None
    work.may.release()
    await writer.write(Changes(2))
    assert work.done == [2]
    writer.end()


async def test_the_end_of_one_that_was_given_up_is_not_that_of_the_next() -> None:
    work = Work()
    writer = StoreWriter(work)
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.write(Changes(1))
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        written = trio.Event()

        async def write() -> None:
            await writer.write(Changes(2))
            written.set()

        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        work.may.release()
        await until(lambda: work.done == [1])
        await wait_all_tasks_blocked(0.02)
        assert not written.is_set()
        work.may.release()
        await written.wait()
    assert work.done == [1, 2]
    writer.end()


def test_a_run_that_is_over_is_told_nothing() -> None:
    work = Work()
    writer = StoreWriter(work)

    async def give_up() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await writer.write(Changes(1))

    trio.run(give_up)
    work.may.release()
    writer.end()
    trio.run(until, lambda: work.done == [1] and gone(work))
