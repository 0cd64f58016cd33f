"""A broker on a real port with two neighbours in it, whose messages have to flow whatever is done beside them; nothing may be left afterwards."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from broker.core.allowance import LimitOverrides
from broker.hub import Broker
from broker.net.listener import Listener
from broker.opening import open_broker
from broker.wire.packets import PingReq, PingResp, Publish
from tests.net.mqtt import Client

GAUGES = (
    "addresses_open", "clients_connected", "clients_total", "connections_blocked_count", "connections_open_count", "deadlines_count", "links_count",
    "queued_bytes", "queued_count", "shared_subscriptions_count", "subscriptions_count",
)  # fmt: skip
NEIGHBOURS_ADDRESS = "127.0.0.2"


class Scene:
    def __init__(self, hub: Broker) -> None:
        self.hub = hub
        self._ports = [int(url.rpartition(":")[2]) for url in hub.urls]
        self._streams = AsyncExitStack()
        self._number = 0
        self.talker: Client
        self.listener: Client

    async def dial(self, version: int = 5, *, address: str | None = None, small: bool = False) -> Client:
        """A connection on which nothing was said; it ends with the scene, unless somebody ends it before. small: it has no place for
        what it does not read."""
        port = self._ports[1 if address == NEIGHBOURS_ADDRESS else 0]
        stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=address)
        if small:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return Client(await self._streams.enter_async_context(stream), version)

    async def client(self, client_id: str, version: int = 5, *, address: str | None = None, small: bool = False) -> Client:
        client = await self.dial(version, address=address, small=small)
        connack = await client.connect(client_id)
        assert connack.reason == 0, connack
        return client

    async def check_neighbours(self) -> None:
        """A message goes from one to the other, and the way there is free."""
        self._number += 1
        payload = b"%d" % self._number
        with trio.fail_after(10):
            await self.talker.send(Publish("neighbours", payload, 1, packet_id=1 + self._number % 60_000), PingReq())
            message = await self.listener.receive()
            assert isinstance(message, Publish), message
            assert message.payload == payload
            while await self.talker.receive() != PingResp():
                pass

    def gauges(self) -> dict[str, int]:
        found: Mapping[str, Any] = self.hub.statistics()
        return {name: int(found[name]) for name in GAUGES}

    async def until(self, **wanted: int) -> None:
        """Until these gauges are what they should be."""
        with trio.move_on_after(10):
            while any(self.gauges()[name] != value for name, value in wanted.items()):
                await trio.lowlevel.checkpoint()
        assert {name: self.gauges()[name] for name in wanted} == wanted


@asynccontextmanager
async def scene(caplog: pytest.LogCaptureFixture, **limits: Any) -> AsyncIterator[Scene]:
    """Only the neighbours are left when the block ends, then nobody; and the broker has found no fault of its own."""
    # However short the time for strangers is, on a busy machine too: the neighbours' listener gives them enough.
    patient = Listener(port=0, limits=LimitOverrides(connect_timeout_s=10))
    async with open_broker(listeners=[Listener(port=0, send_buffer_bytes=65_536), patient], **limits) as hub:
        one = Scene(hub)
        async with one._streams:
            one.talker = await one.client("talker", address=NEIGHBOURS_ADDRESS)
            one.listener = await one.client("listener", address=NEIGHBOURS_ADDRESS)
            await one.listener.subscribe("neighbours")
            before = one.gauges()
            yield one
            await one.check_neighbours()
            await one.until(**before)
        await one.until(**dict.fromkeys(GAUGES, 0))
    faults = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not faults, faults[0].getMessage()
