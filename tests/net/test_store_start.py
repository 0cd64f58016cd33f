"""The start of a broker with a store whose disk is slow, or hangs: the log says so, and a cancellation does not wait for it."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.core.access import Authorize
from broker.errors import StoreError
from broker.net.store_start import AGAIN_S, SLOW_S
from broker.opening import open_broker
from broker.testing.shelf import Shelf
from broker.wire.packets import ConnAck, Connect, WillMessage
from tests.net.disk import PATH, REAL_SECONDS_MAX, Disk, attached, broker_on, lasting, opened


class Gate:
    """Where a thread waits for a test."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._may = threading.Event()

    def pass_through(self) -> None:
        self._token.run_sync_soon(self.reached.set)
        assert self._may.wait(REAL_SECONDS_MAX)

    def open(self) -> None:
        self._may.set()


class SlowShelf(Shelf):
    """It has three retained messages; the third comes when the gate is open."""

    gate: Gate

    @property
    def retained(self) -> Iterator[Any]:
        for number, row in enumerate(super().retained):
            if number == 2:
                self.gate.pass_through()
            yield row


async def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    shelf = SlowShelf()
    async with broker_on(Disk(shelf), monkeypatch) as hub:
        for topic in "abc":
            await hub.publish(topic, b"1", retain=True)
    shelf.gate = Gate()
    return Disk(shelf)


async def wait_for(clock: MockClock, seconds: float) -> None:
    await wait_all_tasks_blocked(0.005)
    clock.jump(seconds)
    await wait_all_tasks_blocked(0.005)


async def test_a_start_that_takes_long_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = await slow_disk(monkeypatch)
    assert isinstance(disk.shelf, SlowShelf)
    gate = disk.shelf.gate
    caplog.set_level(logging.INFO, "broker")
    caplog.clear()

    async def let_it_be() -> None:
        await gate.reached.wait()
        await wait_for(mock_clock, SLOW_S - 0.1)
        assert not caplog.records
        await wait_for(mock_clock, 0.1)
        await wait_for(mock_clock, AGAIN_S)
        gate.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_it_be)
        async with broker_on(disk, monkeypatch):
            said = [record.getMessage() for record in caplog.records]
    assert said == [
        "still reading the store some/store, since 5 s: 2 rows are read, now those of its retained messages",
        "still reading the store some/store, since 35 s: 2 rows are read, now those of its retained messages",
        "opened the store some/store (sessions: 0, queued messages: 0, retained messages: 3)",
    ]


@pytest.mark.parametrize("authorize", [None, lambda *asked: True])
async def test_a_start_that_hangs_while_it_reads_can_be_cancelled(
    authorize: Authorize | None, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = await slow_disk(monkeypatch)
    assert isinstance(disk.shelf, SlowShelf)
    caplog.clear()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                assert isinstance(disk.shelf, SlowShelf)
                await disk.shelf.gate.reached.wait()
                scope.cancel()

            nursery.start_soon(cancel)
            async with broker_on(disk, monkeypatch, authorize=authorize):
                pytest.fail("entered")
    assert scope.cancelled_caught
    assert not caplog.records  # nothing can be missing in it
    assert not disk.closed.is_set()
    disk.shelf.gate.open()  # whenever the disk comes back, its thread closes it
    assert await trio.to_thread.run_sync(disk.closed.wait, REAL_SECONDS_MAX)
    assert disk.writes_count == 0


async def test_a_start_that_hangs_while_it_is_opened_says_so_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    disk = Disk()

    def slow(path: str) -> Disk:
        gate.pass_through()
        return disk

    monkeypatch.setattr("broker.store.sqlite.SqliteStore", slow)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await gate.reached.wait()
                await wait_for(mock_clock, SLOW_S)
                scope.cancel()

            nursery.start_soon(cancel)
            async with open_broker(store=PATH):
                pytest.fail("entered")
    assert scope.cancelled_caught
    assert [record.getMessage() for record in caplog.records] == [
        "still reading the store some/store, since 5 s: it is opened, and looked through for damage"
    ]
    gate.open()
    assert await trio.to_thread.run_sync(disk.closed.wait, REAL_SECONDS_MAX)


async def test_a_rule_of_the_program_is_asked_in_its_own_thread(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    asked: list[bool] = []
    here = threading.get_ident()

    def authorize(username: str | None, client_id: str, action: str, topic: str) -> bool:
        asked.append(threading.get_ident() == here)
        return True

    shelf = Shelf()
    async with opened(monkeypatch, shelf=shelf) as (_, hub, nursery):
        watcher = await lasting(hub, nursery, "watcher", "gone")
        await watcher.stream.aclose()
        client = await attached(hub, nursery)
        await client.send(Connect("a", clean_start=True, will=WillMessage("gone", b"w", 1, False)))
        assert isinstance(await client.receive(), ConnAck)
        await wait_all_tasks_blocked(0.005)
        crashed = copy.deepcopy(shelf)
    async with opened(monkeypatch, shelf=crashed, authorize=authorize) as (_, hub, nursery):
        await wait_all_tasks_blocked(0.005)
        assert len(asked) == 2  # may it be published, and received
        assert all(asked)
        assert [client.client_id for client in hub.clients()] == ["watcher"]
        assert hub.statistics()["queued_count"] == 1


async def test_what_is_wrong_with_it_comes_out_bare(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    def broken(path: str) -> Disk:
        raise StoreError(path, "is a folder")

    monkeypatch.setattr("broker.store.sqlite.SqliteStore", broken)
    with pytest.raises(StoreError, match="is a folder"):
        async with open_broker(store=PATH):
            pytest.fail("entered")


async def test_one_that_is_cancelled_already_is_not_begun(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    disk = Disk()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with broker_on(disk, monkeypatch):
            pytest.fail("entered")
    assert scope.cancelled_caught
