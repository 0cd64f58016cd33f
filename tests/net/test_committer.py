"""A disk that is slow or broken: whom it holds up, and that whoever is held up can be cut, closed and let go on."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.core.saved import Changes
from broker.errors import BrokerError, StoreError
from broker.hub import Broker
from broker.net import committer
from broker.opening import open_broker
from broker.store.sqlite import SqliteStore
from broker.wire.packets import (
    MQTT_5,
    ConnAck,
    Connect,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    WillMessage,
)
from tests.net.mqtt import Client
from tests.systems import resets_are_told


class Disk:
    """`turns`: whether it does. Nothing is written while it does not."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.turns = threading.Event()
        self.turns.set()

    def wait(self) -> None:
        assert self.turns.wait(30)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    write = SqliteStore.write

    def slowly(store: SqliteStore, changes: Changes) -> None:
        disk.wait()
        write(store, changes)

    monkeypatch.setattr(SqliteStore, "write", slowly)
    yield disk
    disk.turns.set()


@asynccontextmanager
async def a_broker(disk: Disk, path: Path, **options: Any) -> AsyncIterator[Broker]:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"], store=path / "store", **options) as hub:
        try:
            with trio.fail_after(20):
                yield hub
        finally:
            disk.turns.set()
            for client in disk.clients:
                await trio.aclose_forcefully(client.stream)


async def dialled(disk: Disk, hub: Broker, version: int = 5) -> Client:
    host, _, port = hub.urls[0].removeprefix("mqtt://").rpartition(":")
    client = Client(await trio.open_tcp_stream(host, int(port)), version)
    disk.clients.append(client)
    return client


def end_of(hub: Broker) -> trio.Event:
    """Of the only connection there is."""
    (connection,) = hub._server.connections
    connection.finished = trio.Event()
    return connection.finished


async def one_that_is_held_up(hub: Broker, disk: Disk, monkeypatch: pytest.MonkeyPatch, keep_alive_s: int = 0) -> Client:
    """It has said more than is to wait for the disk."""
    monkeypatch.setattr(committer, "CHANGES_COUNT_MAX", 2)
    client = await dialled(disk, hub)
    await client.send(Connect("kept", MQTT_5, True, keep_alive_s, properties=Properties(session_expiry_interval=1000)))
    assert isinstance(await client.receive(), ConnAck)
    disk.turns.clear()
    # The first is being written, the others have to wait.
    for number in range(1, 10):
        await client.send(Subscribe(number, (SubscriptionRequest(f"t/{number}", 1),)))
        await wait_all_tasks_blocked(0.01)
    return client


async def test_who_keeps_nothing_is_heard_all_the_same(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_broker(disk, tmp_path) as hub:
        early = await dialled(disk, hub)
        await early.connect("early")
        held = await one_that_is_held_up(hub, disk, monkeypatch)
        late = await dialled(disk, hub)
        await late.connect("late")
        for client in (early, late, early, late):
            await client.send(PingReq())
            assert isinstance(await client.receive(), PingResp)
        disk.turns.set()
        for _ in range(9):
            assert isinstance(await held.receive(), SubAck)


async def test_one_that_is_held_up_can_be_cut(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_broker(disk, tmp_path) as hub:
        await one_that_is_held_up(hub, disk, monkeypatch)
        over = end_of(hub)
        hub.drop_clients()
        await over.wait()


async def test_one_that_is_thrown_out_has_its_time_to_close(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_broker(disk, tmp_path, close_timeout_s=0.1) as hub:
        await one_that_is_held_up(hub, disk, monkeypatch)
        over = end_of(hub)
        hub.disconnect("kept")
        await over.wait()


@resets_are_told
async def test_one_that_goes_while_it_is_held_up_is_noticed(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_broker(disk, tmp_path) as hub:
        held = await one_that_is_held_up(hub, disk, monkeypatch)
        held.stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # type: ignore[attr-defined]
        over = end_of(hub)
        await held.stream.aclose()
        await over.wait()


async def test_one_that_is_not_read_is_not_silent(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_broker(disk, tmp_path) as hub:
        held = await one_that_is_held_up(hub, disk, monkeypatch, keep_alive_s=1)
        await held.send(PingReq())
        (link,) = hub._engine.state.links
        hub._engine.tick(trio.current_time() + 100)
        assert link.connected
        disk.turns.set()
        for _ in range(9):
            assert isinstance(await held.receive(), SubAck)
        assert isinstance(await held.receive(), PingResp)


async def test_one_that_does_not_wait_for_answers_is_held_up_before_they_are_too_many(disk: Disk, tmp_path: Path) -> None:
    async with a_broker(disk, tmp_path, outbox_bytes_high=1024, outbox_bytes_max=1024) as hub:
        client = await dialled(disk, hub, 4)
        await client.connect("sub", clean_start=False)
        await client.subscribe("t", 1)
        await client.send(Publish("kept", b"", 1, True, packet_id=1))
        assert isinstance(await client.receive(), PubAck)
        publisher = await dialled(disk, hub, 4)
        await publisher.connect("pub")
        disk.turns.clear()
        count = 60_000
        got = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.stream.aclose)
            nursery.start_soon(_pour, publisher, count)
            await wait_all_tasks_blocked(0.1)
            assert [info.client_id for info in hub.clients() if info.peer is not None] == ["pub"]
            disk.turns.set()
            while got < count:
                assert isinstance(await publisher.receive(), PubAck)
                got += 1


async def _pour(client: Client, count: int) -> None:
    for start in range(0, count, 1000):
        await client.send(*[Publish("t", b"x", 1, packet_id=1 + number % 65_535) for number in range(start, start + 1000)])


async def test_who_publishes_after_the_end_does_not_wait_for_ever(disk: Disk, tmp_path: Path) -> None:
    async with a_broker(disk, tmp_path) as hub:
        await hub.shutdown()
        with pytest.raises(BrokerError):
            await hub.publish("t", b"x", qos=1, retain=True)


async def test_who_waits_for_the_disk_at_the_end_does_not_wait_for_ever(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(store: SqliteStore, changes: Changes) -> None:
        raise StoreError("here", "its disk is full")

    raised: list[BaseException] = []

    async def publish(hub: Broker) -> None:
        try:
            await hub.publish("t", b"x", qos=1, retain=True)
        except BrokerError as error:
            raised.append(error)

    async def live() -> None:
        async with a_broker(disk, tmp_path) as hub, trio.open_nursery() as nursery:
            monkeypatch.setattr(SqliteStore, "write", fails)
            nursery.start_soon(publish, hub)
            await wait_all_tasks_blocked()
            await hub.shutdown(0)

    with pytest.raises(StoreError):
        await live()
    assert raised


async def test_who_changes_nothing_waits_for_nothing(disk: Disk, tmp_path: Path) -> None:
    async with a_broker(disk, tmp_path) as hub:
        client = await dialled(disk, hub)
        disk.turns.clear()
        await client.send(Connect("kept", MQTT_5, properties=Properties(session_expiry_interval=1000)))
        await wait_all_tasks_blocked(0.05)
        await hub.publish("nobody", b"x", qos=2)


async def test_what_the_start_has_changed_is_written_though_nobody_comes(disk: Disk, tmp_path: Path) -> None:
    async with a_broker(disk, tmp_path) as hub:
        client = await dialled(disk, hub)
        await client.connect("kept", session_expiry_s=1000)
        crashed = (tmp_path / "store").read_bytes(), (tmp_path / "store-wal").read_bytes()
    (tmp_path / "again").mkdir()
    for name, data in zip(("store", "store-wal"), crashed, strict=True):
        (tmp_path / "again" / name).write_bytes(data)
    async with a_broker(disk, tmp_path / "again") as hub:
        assert [info.client_id for info in hub.clients()] == ["kept"]
        committer = hub._server.committer
        assert committer is not None
        await committer.wait_written()
        assert not hub._engine.has_changes


async def test_an_embedders_rule_is_asked_in_its_own_thread_also_at_the_start(disk: Disk, tmp_path: Path) -> None:
    asked: list[threading.Thread] = []

    def authorize(*question: Any) -> bool:
        asked.append(threading.current_thread())
        return True

    async with a_broker(disk, tmp_path) as hub:
        client = await dialled(disk, hub)
        await client.send(Connect("kept", MQTT_5, True, 0, WillMessage("will", b"x"), properties=Properties(session_expiry_interval=1000)))
        assert isinstance(await client.receive(), ConnAck)
        crashed = (tmp_path / "store").read_bytes(), (tmp_path / "store-wal").read_bytes()
    (tmp_path / "again").mkdir()
    for name, data in zip(("store", "store-wal"), crashed, strict=True):
        (tmp_path / "again" / name).write_bytes(data)
    async with a_broker(disk, tmp_path / "again", authorize=authorize):
        pass
    assert set(asked) == {threading.current_thread()}
