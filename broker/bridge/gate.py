"""The way from a bridge's local client into this broker: open while the other broker is there, shut while it is not.

While it is shut the client is away like any other, and what comes for it waits in its Session. Nothing is asked at the gate (`net.inside`).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from broker.bridge.far import GOODBYE_S, RECEIVE_COUNT_MAX
from broker.bridge.pump import UNDER_WAY_COUNT_MAX
from broker.client.client import Client
from broker.client.connect import connect
from broker.client.reconnect import Reconnect
from broker.errors import BrokerError, ConnectRefused
from broker.net.transport import StreamTransport

if TYPE_CHECKING:
    from broker.net.connection import Connection
    from broker.net.server import Server


class Gate:
    """What `connect` dials. peer: what `Broker.clients` calls who comes by it."""

    def __init__(self, server: Server, peer: str) -> None:
        self._server = server
        self._peer = peer
        self._open = True
        self._ended = False
        self._changed = trio.Event()
        self._connection: Connection | None = None

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "") -> None:
        """Serve the stream as soon as the gate is open, until it is shut."""
        while not self._open and not self._ended:
            await self._changed.wait()
        connection = None if self._ended else self._server.admit_inside(StreamTransport(stream), self._peer)
        if connection is None:
            await trio.aclose_forcefully(stream)
            return
        finished = connection.finished = trio.Event()
        self._connection = connection
        try:
            await finished.wait()
        finally:
            connection.cancel()
            if self._connection is connection:
                self._connection = None

    def open(self) -> None:
        """Whoever waits may come in."""
        self._open = True
        self._wake()

    def shut(self) -> None:
        """Whoever is in is cut off, and waits."""
        self._open = False
        if self._connection is not None:
            self._connection.cancel()

    def end(self) -> None:
        """Nobody comes in any more, and nobody waits for it."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def entered(gate: Gate, client_id: str) -> AsyncIterator[Client]:
    """This broker's client, which comes in by the gate."""
    async with AsyncExitStack() as stack:
        try:
            local = await stack.enter_async_context(
                connect(
                    gate,
                    client_id=client_id,
                    clean_start=False,
                    session_expiry_s=math.inf,
                    keep_alive_s=0,
                    reconnect=Reconnect(delay_s=0.1, delay_s_max=1),
                    connect_timeout_s=math.inf,  # at the gate it waits for the other broker
                    close_grace_s=GOODBYE_S,
                    receive_maximum=RECEIVE_COUNT_MAX,
                    outgoing_count_max=UNDER_WAY_COUNT_MAX,
                    topic_alias_maximum=0,
                )
            )
        except ConnectRefused as error:
            raise BrokerError(f"this broker has no place for its own bridge: {error.reason.describe()}") from None
        yield local
