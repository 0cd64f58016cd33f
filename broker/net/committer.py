"""What has to outlive the process goes to the store: all that has changed in one step, and while the disk is at it what comes is gathered for
the next. What nobody waits for, as that a message was acknowledged, waits a moment for something that somebody does.

So a disk that turns a hundred times a second still takes a hundred thousand messages in that time, and whoever waits for an acknowledgement waits
for one or two of its turns. A store that cannot be written stops nobody who keeps nothing in it: what depends on it is not acknowledged, and its
publishers are not read on, until it can.

Nothing can cancel a thread that waits for a disk. So at the end it is waited for up to a deadline, and then left alone with the file, as a crash
would have it: what it was to write may be there or not, and nobody was told that it is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from broker.core.saved import Changes, Saved
from broker.errors import BrokerError, StoreError
from broker.net.store_start import Reading, aside
from broker.net.store_writer import StoreWriter

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.core.engine import Engine
    from broker.core.link import Link
    from broker.core.restoring import Restored
    from broker.net.server import Server

CHANGES_COUNT_MAX: Final = 4_096
"""Who has more to say while so many wait to be written is not read before they are: the turn that gathers them stays short."""
UNAWAITED_COUNT_MAX: Final = 1_024
UNAWAITED_S: Final = 0.1
"""So many changes that nobody waits for, and for so long, may wait to be written."""
RETRY_S: Final = 1.0
END_S: Final = 5.0
"""At the end each write has so long from its beginning, and longer while clients have."""

logger = logging.getLogger("broker")


class Store(Protocol):
    @property
    def path(self) -> str: ...

    def load(self) -> Saved:
        """All that it has. StoreError."""

    def close(self) -> None: ...

    def write(self, changes: Changes) -> None:
        """All or nothing, on disk when it returns. StoreError: the same may be tried again."""


class Committer:
    """One task; `run` is it. `finish` and `close` are its end."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.written = trio.Event()
        """Something has been, or nothing will be any more; replaced whenever it is set."""
        self.is_over = False
        """There is no `run` any more."""
        self._engine = engine
        self._store = store
        self._restored = False
        self._wanted = trio.Event()
        self._idle = trio.CancelScope()
        """Until something is wanted, or has been there for a while."""
        self._unwritten: Changes | None = None
        self._writer = StoreWriter(self._work)
        self._failing = False
        self._ending = False
        self._failure: StoreError | None = None
        """Why the rest is not written."""
        self._until = math.inf
        self._began = -math.inf
        """The last write."""
        self._taken_at = math.inf
        """What is unwritten, if anything is."""
        self._writes_count = 0
        self._write_errors_count = 0
        self._write_s = 0.0
        """Of the writes that have succeeded, together."""
        self._patience = trio.CancelScope()
        self._lock = threading.Lock()
        self._busy = False
        """A thread is writing, or reads it at the start."""
        self._left_alone = False
        """It closes the store itself."""

    async def restore(self, rules_of: Callable[[str, str], tuple[Access, Allowance]], *, in_thread: bool) -> None:
        """Before anybody is served: read in a thread, where a million messages take seconds. in_thread: and settled there, for that takes long
        too; but not every rule may be asked there. StoreError."""
        now, unix_now = trio.current_time(), time.time()
        reading = Reading(self._store.load())
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on nothing is cancelled before the thread is there
        self._busy = True
        restored = await aside(partial(self._read, reading.saved, now, unix_now, rules_of, in_thread), self._store.path, reading.how_far)
        if not in_thread:
            self._engine.settle(restored)
        self._restored = True
        self.look()
        had = self._engine.statistics()
        words = "opened the store %s (sessions: %d, queued messages: %d, retained messages: %d)"
        logger.info(words, self._store.path, had["clients_total"], had["queued_count"], had["retained_count"])

    def _read(self, saved: Saved, now: float, unix_now: float, rules_of: Callable[[str, str], tuple[Access, Allowance]], settled: bool) -> Restored:
        try:
            restored = self._engine.read(saved, now, unix_now, rules_of)
            if settled:
                self._engine.settle(restored)
            return restored
        finally:
            self._rest()

    def look(self) -> None:
        """Has a verb changed something?"""
        engine = self._engine
        if engine.is_awaited or engine.changes_count > UNAWAITED_COUNT_MAX or (self._ending and engine.has_changes):
            self._wanted.set()
        elif self._idle.deadline == math.inf and engine.has_changes:
            self._idle.deadline = trio.current_time() + UNAWAITED_S

    def holds_up(self, link: Link) -> bool:
        """Has it changed something that is not on disk, and is there too much of that, or of what is to be said to it then?"""
        engine = self._engine
        if engine.is_committed(link.gate):
            return False
        return engine.changes_count > CHANGES_COUNT_MAX or link.outbox.committed_bytes >= link.outbox_bytes_high

    async def wait_written(self) -> None:
        """Until all that has changed up to now is on disk. BrokerError."""
        number = self._engine.last_change
        self._wanted.set()
        while not self._engine.is_committed(number):
            if self._failure is not None:
                raise self._failure
            if self.is_over:
                raise BrokerError("the broker has shut down before it was on disk")
            await self.written.wait()

    async def run(self, server: Server) -> None:
        """For as long as clients are served, and `finish` waits."""
        try:
            while True:
                with self._idle:
                    await self._wanted.wait()
                self._wanted = trio.Event()
                self._idle = trio.CancelScope()
                await trio.lowlevel.checkpoint()  # what has come by now comes along: at QoS 2, 2.3 commits a window of 100 instead of 2.8
                self._unwritten = self._take()
                if self._unwritten is None:
                    continue
                if not await self._write(self._unwritten):
                    return  # nothing may be written after what is not
                self._done(self._unwritten)
                server.flush()
        finally:
            self.is_over = True
            self._tell()

    def statistics(self) -> dict[str, int | float]:
        return {
            "store_writes_count": self._writes_count,
            "store_write_s": self._write_s,
            "store_write_errors_count": self._write_errors_count,
            "store_changes_count": self._engine.changes_count,
            "store_behind_s": 0 if self._unwritten is None else trio.current_time() - self._taken_at,
        }

    # ---- the end ----

    def hurry(self, until: float) -> None:
        """It is to end, and clients have until then."""
        self._until = min(self._until, until)
        self._be_patient()

    async def finish(self) -> None:
        """Clients are gone. Until the rest is written, cannot be, or takes too long; while `run` runs."""
        self._ending = True
        self._wanted.set()
        if not self._busy:
            self._began = trio.current_time()
        self._be_patient()
        with self._patience:
            while self._owes and self._failure is None:
                await self.written.wait()
        if self._owes and self._failure is None:
            self._failure = self._hangs()

    async def close(self) -> StoreError | None:
        """When `run` and all who could change anything are gone: write what has come since, and close the store. What prevented it, if something
        did."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_S):
            if self._restored and self._failure is None and not self._busy:
                self._failure = await self._write_rest()
        self._writer.end()
        with self._lock:
            self._left_alone = self._busy
        if self._left_alone:  # while it is read there is nothing yet that could not be in it
            return self._failure or (self._hangs() if self._restored else None)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_S):
            await trio.to_thread.run_sync(self._store.close, abandon_on_cancel=True)
        return self._failure

    async def _write_rest(self) -> StoreError | None:
        changes = self._unwritten
        while changes is not None or self._engine.has_changes:
            if changes is None:
                await trio.lowlevel.checkpoint()
                self._engine.tick(trio.current_time())
            else:
                try:
                    await self._write_once(changes)
                except StoreError as error:
                    return error
                self._done(changes)
            changes = self._take()
        return None

    @property
    def _owes(self) -> bool:
        return self._unwritten is not None or self._engine.has_changes

    def _be_patient(self) -> None:
        self._patience.deadline = max(self._until, self._began + END_S)

    def _hangs(self) -> StoreError:
        return StoreError(self._store.path, "does not answer, and what came last is perhaps not in it; look at its disk")

    # ---- a write ----

    def _take(self) -> Changes | None:
        self._taken_at = now = trio.current_time()
        return self._engine.take_changes(now, time.time())

    async def _write(self, changes: Changes) -> bool:
        """Again and again; False: it cannot be, and all is about to end."""
        while True:
            try:
                await self._write_once(changes)
            except StoreError as error:
                self._write_errors_count += 1
                if self._ending:
                    self._failure = error
                    self._tell()
                    return False
                if not self._failing:
                    logger.error("%s; until it can be written, nothing that has to outlive the broker is acknowledged", error)
                self._failing = True
                await trio.sleep(RETRY_S)
            else:
                if self._failing:
                    logger.warning("the store can be written again")
                self._failing = False
                return True

    async def _write_once(self, changes: Changes) -> None:
        """In a thread. Cancelled: it may still be at it."""
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on nothing is cancelled before the thread is there
        self._busy = True
        self._began = trio.current_time()
        self._be_patient()
        await self._writer.write(changes)

    def _work(self, changes: Changes) -> None:
        try:
            self._store.write(changes)
        finally:
            self._rest()

    def _rest(self) -> None:
        """The thread's last step."""
        with self._lock:
            self._busy = False
            if self._left_alone:
                self._store.close()

    def _done(self, changes: Changes) -> None:
        self._unwritten = None
        self._writes_count += 1
        self._write_s += trio.current_time() - self._began
        self._engine.committed(changes.number)
        self._tell()

    def _tell(self) -> None:
        written, self.written = self.written, trio.Event()
        written.set()
