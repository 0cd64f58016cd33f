"""A store that a test holds by the hand: it writes when it is told to, and fails as often as it is told to. And the clients of a broker on it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.core.message import ApplicationMessage
from broker.core.saved import Changes
from broker.errors import StoreError
from broker.hub import Broker
from broker.net.memory import memory_stream_pair
from broker.opening import open_broker
from broker.testing.shelf import Shelf
from broker.wire.packets import (
    ConnAck,
    Connect,
    Packet,
    Properties,
)
from tests.net.mqtt import Client

PATH: Final = "some/store"
REAL_SECONDS_MAX: Final = 20.0


class Disk:
    """What has the place of `SqliteStore`; `shelf` has what was written, and outlives it."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.path = PATH
        self.set_aside = None
        self.shelf = shelf or Shelf()
        self.failures: float = 0
        """So many writes fail from now on."""
        self.writes_count = 0
        """That have been begun."""
        self.closed = threading.Event()
        self._may = threading.Event()
        self._may.set()
        self._token = trio.lowlevel.current_trio_token()
        self._begun = trio.Event()

    # ---- what tests do ----

    def hold(self) -> None:
        """Each write waits from now on."""
        self._may.clear()
        self._begun = trio.Event()

    def release(self) -> None:
        self._may.set()

    async def wait_begun(self) -> None:
        """Until a write has begun since `hold`."""
        await self._begun.wait()

    # ---- what a committer does ----

    def load(self) -> Shelf:
        return self.shelf

    def write(self, changes: Changes) -> None:
        self.writes_count += 1
        self._token.run_sync_soon(lambda: self._begun.set())
        assert not self.closed.is_set()
        assert self._may.wait(REAL_SECONDS_MAX)
        if self.failures:
            self.failures -= 1
            raise StoreError(self.path, "its disk is full: make room there")
        self.shelf.write(changes)

    def close(self) -> None:
        self.closed.set()


@asynccontextmanager
async def broker_on(disk: Disk, monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> AsyncIterator[Broker]:
    """A broker whose store is that disk, which does not stay held at its end whatever the test comes to."""
    monkeypatch.setattr("broker.store.sqlite.SqliteStore", lambda path: disk)
    async with open_broker(*args, store=PATH, **options) as hub:
        try:
            yield hub
        finally:
            disk.release()


RETAINED = ApplicationMessage("t", b"1", 1, True)
LASTING = Properties(session_expiry_interval=3600)


async def attached(hub: Broker, nursery: trio.Nursery, version: int = 5, buffer_bytes: int = 65_536) -> Client:
    ours, theirs = memory_stream_pair(buffer_bytes)
    nursery.start_soon(hub.attach, theirs)
    await wait_all_tasks_blocked()
    return Client(ours, version)


async def lasting(hub: Broker, nursery: trio.Nursery, client_id: str, filter: str = "", qos: int = 2, version: int = 5) -> Client:
    """A client whose session outlives its connection, and the broker."""
    client = await attached(hub, nursery, version)
    await client.send(Connect(client_id, version, clean_start=False, properties=LASTING if version == 5 else Properties()))
    assert isinstance(await client.receive(), ConnAck)
    if filter:
        await client.subscribe(filter, qos)
    return client


async def brief(hub: Broker, nursery: trio.Nursery, client_id: str, filter: str = "") -> Client:
    """One that keeps nothing."""
    client = await attached(hub, nursery)
    await client.connect(client_id)
    if filter:
        await client.subscribe(filter)
    return client


async def silent(*clients: Client) -> None:
    """None of them is sent anything when all that can happen without the disk has happened."""
    told: list[Packet | None] = []

    async def listen(client: Client) -> None:
        told.append(await client.receive())

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(listen, client)
        await wait_all_tasks_blocked(0.005)
        assert not told
        nursery.cancel_scope.cancel()


async def answer(disk: Disk, client: Client, *packets: Packet) -> Packet | None:
    """What the first of these is answered, and that it was not before it was on disk."""
    await wait_all_tasks_blocked(0.005)
    disk.hold()
    await client.send(*packets)
    await disk.wait_begun()
    await silent(client)
    disk.release()
    return await client.receive()


@asynccontextmanager
async def opened(
    monkeypatch: pytest.MonkeyPatch, *args: Any, shelf: Shelf | None = None, **options: Any
) -> AsyncIterator[tuple[Disk, Broker, trio.Nursery]]:
    """A disk, a broker on it, and where its clients are served."""
    disk = Disk(shelf)
    async with broker_on(disk, monkeypatch, *args, **options) as hub, trio.open_nursery() as nursery:
        yield disk, hub, nursery
        nursery.cancel_scope.cancel()
