"""The end of a broker with a store: the rest is written, what prevents that is told, and a disk that hangs holds up nothing for ever."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker import connect
from broker.config import Config
from broker.core.message import ApplicationMessage
from broker.errors import BrokerError, StoreError
from broker.hub import Broker
from broker.net.committer import END_S, UNAWAITED_S
from broker.opening import open_broker
from broker.testing.shelf import Shelf
from broker.wire.packets import (
    ConnAck,
    Connect,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
)
from tests.net.disk import LASTING, RETAINED, Disk, attached, broker_on, lasting, opened, silent


async def test_what_is_published_after_the_end_is_written_with_the_last(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, _):
        await hub.shutdown()
        with pytest.raises(BrokerError, match="has shut down before it was on disk"):
            await hub.publish("t", b"1", retain=True)
        assert not list(disk.shelf.retained)
    assert [row.topic for row in disk.shelf.retained] == ["t"]
    assert disk.closed.is_set()


async def test_shutdown_returns_when_the_rest_is_on_disk(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with opened(monkeypatch) as (disk, hub, nursery):
        client = await lasting(hub, nursery, "a", "t")
        disk.hold()
        await client.send(Publish("t", b"1", 1, packet_id=1))
        await disk.wait_begun()
        over = trio.Event()

        async def shut_down() -> None:
            await hub.shutdown()
            over.set()

        nursery.start_soon(shut_down)
        await silent(client)
        disk.release()
        assert isinstance(await client.receive(), Publish)
        assert isinstance(await client.receive(), PubAck)
        assert isinstance(await client.receive(), Disconnect)
        await client.stream.aclose()
        await over.wait()
        assert disk.shelf.messages_count == 1
        assert next(iter(disk.shelf.sessions)).left_at is not None


async def test_a_disk_that_was_idle_for_long_has_its_time_at_the_end_too(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    config = Config(listeners=(), shutdown_grace_s=0, sys_interval_s=0)
    async with opened(monkeypatch, config) as (disk, hub, nursery):
        await lasting(hub, nursery, "a")
        mock_clock.jump(50)
        await hub.shutdown()
        assert next(iter(disk.shelf.sessions)).left_at is not None


async def test_nothing_is_written_after_what_could_not_be(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """It would be what has changed since."""
    disk = Disk()
    with pytest.raises(StoreError, match="disk is full"):  # noqa: PT012  # it comes out at the end
        async with broker_on(disk, monkeypatch) as hub, trio.open_nursery() as nursery:
            disk.hold()
            disk.failures = 1
            hub._engine.publish(RETAINED, trio.current_time())
            hub._server.flush()
            await wait_all_tasks_blocked()
            mock_clock.jump(UNAWAITED_S)
            await disk.wait_begun()
            hub._engine.publish(ApplicationMessage("u", b"1", 1, True), trio.current_time())
            hub._server.flush()
            nursery.start_soon(hub.shutdown)
            await wait_all_tasks_blocked()
            disk.release()
    assert not list(disk.shelf.retained)


async def test_what_was_acknowledged_under_load_is_there_after_a_cancelled_scope(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    acknowledged: set[bytes] = set()
    disk = Disk()

    async def publish(hub: Broker, number: int, scope: trio.CancelScope) -> None:
        async with connect(hub, reconnect=None, close_grace_s=1) as client:
            for count in range(10_000):
                payload = b"%d-%d" % (number, count)
                await client.publish("load", payload, qos=1 + number % 2)
                acknowledged.add(payload)
                if len(acknowledged) == 500:
                    scope.cancel()

    with trio.CancelScope() as scope:
        async with broker_on(disk, monkeypatch) as hub, trio.open_nursery() as nursery:
            away = await lasting(hub, nursery, "away", "load")
            await away.stream.aclose()
            for number in range(6):
                nursery.start_soon(publish, hub, number, scope)
    assert scope.cancelled_caught
    assert len(acknowledged) >= 500
    assert disk.closed.is_set()
    async with opened(monkeypatch, shelf=disk.shelf) as (_, hub, nursery):
        client = await attached(hub, nursery)
        await client.send(Connect("away", clean_start=False, properties=LASTING))
        connack = await client.receive()
        assert isinstance(connack, ConnAck)
        assert connack.session_present
        found: list[bytes] = []
        while len(acknowledged - set(found)):
            packet = await client.receive()
            if isinstance(packet, PubRel):
                await client.send(PubComp(packet.packet_id))
                continue
            assert isinstance(packet, Publish)
            found.append(packet.payload)
            await client.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
        assert len(found) == len(set(found))


async def test_a_store_that_fails_at_the_end_is_told_bare(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    disk = Disk()
    with pytest.raises(StoreError, match="disk is full") as caught:  # noqa: PT012  # it comes out at the end
        async with broker_on(disk, monkeypatch) as hub:
            disk.failures = math.inf
            hub._engine.publish(RETAINED, trio.current_time())
    assert caught.value.__context__ is None
    assert disk.closed.is_set()


async def test_the_bodys_own_error_comes_before_it(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012
        async with broker_on(disk, monkeypatch) as hub:
            disk.failures = math.inf
            hub._engine.publish(RETAINED, trio.current_time())
            raise KeyError("mine")
    assert [record.getMessage() for record in caplog.records][-1] == "store some/store: its disk is full: make room there"
    assert disk.closed.is_set()


async def test_and_so_does_a_cancellation(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    with trio.CancelScope() as scope:
        async with broker_on(disk, monkeypatch) as hub:
            disk.failures = math.inf
            hub._engine.publish(RETAINED, trio.current_time())
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert [record.getMessage() for record in caplog.records][-1] == "store some/store: its disk is full: make room there"
    assert disk.closed.is_set()


async def test_what_could_not_be_read_is_not_written_over(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    class Broken(Shelf):
        broken = False

        @property
        def wills(self) -> Any:  # the last that is read
            if self.broken:
                raise StoreError("some/store", "cannot be read")
            return super().wills

    shelf = Broken()
    async with broker_on(Disk(shelf), monkeypatch) as hub:
        await hub.publish("t", b"1", retain=True)
    shelf.broken = True
    disk = Disk(shelf)
    with pytest.raises(StoreError, match="cannot be read"):
        async with broker_on(disk, monkeypatch):
            pytest.fail("entered")
    assert disk.writes_count == 0
    assert disk.closed.is_set()


@pytest.mark.parametrize("grace_s", [0.0, 2.0, 9.0])
async def test_a_store_that_hangs_holds_up_the_end_for_as_long_as_clients_may_and_five_seconds(
    grace_s: float, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    """The thread is left to itself: it closes the store if it ever comes back."""
    disk = Disk()
    refused: list[StoreError] = []

    async def publish(hub: Broker) -> None:
        try:
            await hub.publish("t", b"1", retain=True)
        except StoreError as error:
            refused.append(error)

    monkeypatch.setattr("broker.store.sqlite.SqliteStore", lambda path: disk)
    config = Config(listeners=(), shutdown_grace_s=grace_s, sys_interval_s=0)
    async with trio.open_nursery() as outer:  # who waits for a publish may outlive the broker
        with pytest.raises(StoreError, match="does not answer"):  # noqa: PT012  # it comes out at the end
            async with open_broker(config, store=disk.path) as hub:
                disk.hold()
                outer.start_soon(publish, hub)
                await disk.wait_begun()
                mock_clock.autojump_threshold = 0.05
        assert trio.current_time() == pytest.approx(max(grace_s, END_S))
    assert len(refused) == 1
    assert not disk.closed.is_set()
    disk.release()
    mock_clock.autojump_threshold = math.inf
    assert await trio.to_thread.run_sync(disk.closed.wait, 10)
