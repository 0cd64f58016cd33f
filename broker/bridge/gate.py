"""The way from a bridge's local client into this broker: open while the other broker is there, shut while it is not.

While it is shut the client is away like any other, and what comes for it waits in its Session. Nothing is asked at the gate (`net.inside`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

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
