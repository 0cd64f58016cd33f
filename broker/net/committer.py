"""What has to outlive the process goes to the store: all that has changed in one step, and while the disk is at it what comes is gathered for
the next.

So a disk that turns a hundred times a second still takes a hundred thousand messages in that time, and whoever waits for an acknowledgement waits
for one or two of its turns. A store that cannot be written stops nobody who keeps nothing in it: what depends on it is not acknowledged, and its
publishers are not read on, until it can.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from broker.core.saved import Changes, Saved
from broker.errors import BrokerError, StoreError

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.core.engine import Engine
    from broker.core.link import Link
    from broker.net.server import Server

CHANGES_COUNT_MAX: Final = 4_096
"""Who has more to say while so many wait to be written is not read before they are: the turn that gathers them stays short."""
RETRY_S: Final = 1.0

logger = logging.getLogger("broker")


class Store(Protocol):
    def load(self) -> Saved:
        """All that it has. StoreError."""

    def close(self) -> None: ...

    def write(self, changes: Changes) -> None:
        """All or nothing, on disk when it returns. StoreError: the same may be tried again."""


class Committer:
    """One task; `run` is it."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.written = trio.Event()
        """Something has been, or nothing will be any more; replaced whenever it is set."""
        self.is_over = False
        self._engine = engine
        self._store = store
        self._wanted = trio.Event()
        self._unwritten: Changes | None = None
        self._limiter = trio.CapacityLimiter(1)  # never behind others' threads
        self._failing = False

    async def restore(self, rules_of: Callable[[str], tuple[Access, Allowance]], *, in_thread: bool) -> None:
        """Before anybody is served. in_thread: a million messages take seconds; but not every rule may be asked there. StoreError."""
        now, unix_now = trio.current_time(), time.time()
        if in_thread:
            await trio.to_thread.run_sync(lambda: self._engine.restore(self._store.load(), now, unix_now, rules_of))
        else:
            self._engine.restore(self._store.load(), now, unix_now, rules_of)
        self.look()

    def look(self) -> None:
        """Has a verb changed something?"""
        if self._engine.has_changes:
            self._wanted.set()

    def holds_up(self, link: Link) -> bool:
        """Has it changed something that is not on disk, and is there too much of that, or of what is to be said to it then?"""
        engine = self._engine
        if engine.is_committed(link.gate):
            return False
        return engine.changes_count > CHANGES_COUNT_MAX or link.outbox.committed_bytes >= link.outbox_bytes_high

    async def wait_written(self) -> None:
        """Until all that has changed up to now is on disk. BrokerError."""
        number = self._engine.last_change
        while not self._engine.is_committed(number):
            if self.is_over:
                raise BrokerError("the broker has shut down before it was on disk")
            await self.written.wait()

    async def run(self, server: Server) -> None:
        """For as long as clients are served."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                self._unwritten = self._engine.take_changes(trio.current_time(), time.time())
                if self._unwritten is None:
                    continue
                await self._write(self._unwritten)
                self._done(self._unwritten)
                server.flush()
        finally:
            self.is_over = True
            self.written.set()

    def close(self) -> StoreError | None:
        """Write the rest, when `run` and all who could change anything are gone. What prevented it, if something did."""
        changes = self._unwritten
        try:
            while True:
                if changes is not None:
                    self._store.write(changes)
                    self._done(changes)
                changes = self._engine.take_changes(trio.current_time(), time.time())
                if changes is None and not self._engine.has_changes:
                    return None
                if changes is None:
                    self._engine.tick(trio.current_time())
        except StoreError as error:
            return error
        finally:
            self._store.close()

    async def _write(self, changes: Changes) -> None:
        while True:
            try:
                await trio.to_thread.run_sync(self._store.write, changes, limiter=self._limiter)
            except StoreError as error:
                if not self._failing:
                    logger.error("%s; until it can be written, nothing that has to outlive the broker is acknowledged", error)
                self._failing = True
                await trio.sleep(RETRY_S)
            else:
                if self._failing:
                    logger.warning("the store can be written again")
                self._failing = False
                return

    def _done(self, changes: Changes) -> None:
        self._unwritten = None
        self._engine.committed(changes.number)
        written, self.written = self.written, trio.Event()
        written.set()
