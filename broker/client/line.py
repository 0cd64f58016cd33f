"""Line: what all parts of a Client share. The rules underneath, the tasks that move its bytes, and whether there will be a connection (again)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from broker.client.connection import Connector
from broker.core.client import ClientProtocol
from broker.errors import ConnectionLost


class Waiter(Protocol):
    """Told when what it waits for has ended, or never will."""

    def set(self) -> None: ...


class Line:
    """handle: takes the core's events, then sees to it that its bytes leave; to be called after every verb of the core.
    handle_publish: the same, and less, after a publish that expires at no time."""

    def __init__(self, core: ClientProtocol, address: str, handle: Callable[[], None], handle_publish: Callable[[], None]) -> None:
        self.core = core
        self.address = address
        self.handle = handle
        self.handle_publish = handle_publish
        self.connector: Connector | None = None
        self.lost: BaseException | None = None
        """Why there is no connection, and will be none."""
        self.waiters: set[Waiter] = set()
        """Of publishes, subscribes and unsubscribes."""
        self.changed = trio.lowlevel.ParkingLot()
        """Unparked when a connection comes or goes, and when nothing is under way."""

    @property
    def connected(self) -> bool:
        return self.core.state == "connected"

    def check_open(self) -> None:
        if self.lost is not None:
            reason = self.lost.reason if isinstance(self.lost, ConnectionLost) else None
            raise ConnectionLost(str(self.lost), reason) from self.lost

    async def wait(self, done: trio.Event) -> None:
        """Until that is set, or no connection will come any more."""
        self.waiters.add(done)
        try:
            await done.wait()
        finally:
            self.waiters.discard(done)

    def send_now(self, now: float) -> None:
        """Give the kernel what waits, without a turn for the writing task, as far as it takes that at once."""
        if self.connector is not None:
            self.connector.send_now(now)

    def end(self, error: BaseException) -> None:
        """No connection will come any more; the first reason counts."""
        if self.lost is None:
            self.lost = error
        waiters = list(self.waiters)
        self.waiters.clear()
        for waiter in waiters:
            waiter.set()
        self.changed.unpark_all()
