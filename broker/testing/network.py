"""A network with faults, in memory, for Trio programs: connections are delayed, split, slowed, cut or left half-open when the test says so.

Use it under `trio.testing.MockClock(autojump_threshold=0)` (pytest-trio's `autojump_clock`): whatever waits for time is then over at
once, and a day of keepalives passes in milliseconds.
"""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import trio

from broker.errors import BrokerError
from broker.net.memory import MemoryStream, memory_stream_pair

if TYPE_CHECKING:
    from broker.hub import Broker

READ_BYTES = 65_536
LINGER_S = 5.0
"""How long the broker's last words may take to arrive, beyond the network's delay."""


class Network:
    """The attributes say what happens to all of its connections, those that are open included."""

    def __init__(self, seed: int = 0) -> None:
        """seed: of how delays vary; the same for the same seed."""
        self.delay_s = 0.0
        """How long bytes are under way, more or less by half; their order stays."""
        self.split_bytes = 0
        """Bytes come in pieces of at most so many; 0: as they were sent."""
        self.bytes_per_s = math.inf
        """How fast each direction of each connection is."""
        self.connections: list[Connection] = []
        """Those that are open."""
        self._random = Random(seed)
        self._silent = False
        self._changed = trio.Event()

    def to(self, hub: Broker) -> Road:
        """Where to connect: `connect(network.to(hub))`."""
        return Road(self, hub)

    def cut(self) -> None:
        """Every open connection breaks; both sides notice at once."""
        for connection in list(self.connections):
            connection.cut()

    def silence(self, on: bool = True) -> None:
        """Half-open: nothing arrives any more, in any direction, and nobody is told. `silence(False)`: what is under way arrives after all."""
        self._silent = on
        self._changed.set()
        self._changed = trio.Event()

    async def wait_heard(self) -> None:
        """Until it is not silent."""
        while self._silent:
            await self._changed.wait()

    def next_delay_s(self) -> float:
        """How long the next bytes are under way."""
        return self.delay_s * (0.5 + self._random.random()) if self.delay_s else 0.0


class Connection:
    """The wire between two streams."""

    def __init__(self, network: Network, client: trio.abc.Stream, near: MemoryStream) -> None:
        self._network = network
        self._client = client
        self._near = near
        self._scope = trio.CancelScope()
        self.heard = trio.Event()
        """All that the broker said has come to the client, or never will."""

    def cut(self) -> None:
        """It breaks; both sides notice at once."""
        self._scope.cancel()

    async def run(self) -> None:
        """Carry bytes until both directions have ended, or it is cut."""
        self._network.connections.append(self)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, self._client, self._near)
                    await self._carry(self._near, self._client)
                    self.heard.set()
        finally:
            self.heard.set()
            self._network.connections.remove(self)
            self._near.close()
            await trio.aclose_forcefully(self._client)

    async def _carry(self, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        """One direction. The next bytes are read when these have arrived, so that a slow reader is felt at the other end."""
        network = self._network
        try:
            while data := await source.receive_some(READ_BYTES):
                await trio.sleep(network.next_delay_s())
                size = network.split_bytes or READ_BYTES
                for start in range(0, len(data), size):
                    piece = data[start : start + size]
                    if network.bytes_per_s != math.inf:
                        await trio.sleep(len(piece) / network.bytes_per_s)
                    await network.wait_heard()
                    await sink.send_all(piece)
            await network.wait_heard()
            if isinstance(sink, trio.abc.HalfCloseableStream):
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the other direction may still have something to say


class Road:
    """A broker seen through a network; `connect` dials it like a broker in the same program."""

    def __init__(self, network: Network, hub: Broker) -> None:
        self._network = network
        self._hub = hub

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        """Serve a byte stream through the network, to its end. BrokerError while the broker shuts down."""
        near, far = memory_stream_pair()
        connection = Connection(self._network, stream, near)
        failure: BrokerError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                await self._hub.attach(far, peer=peer)
            except BrokerError as error:
                failure = error
            with trio.move_on_after(LINGER_S + 2 * self._network.delay_s):
                await connection.heard.wait()
            connection.cut()
        if failure is not None:
            raise failure
