"""The thread in which a store is written, and the task that waits for it.

`trio.to_thread` finds a thread for each call anew, names it, gives it a context and counts it. For what is called with each window of messages,
by one task, that was a tenth of all that it cost (QoS 1 to a Session that lasts: 11.6 to 10.5 us of CPU a message).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

import trio

from broker.core.saved import Changes


class StoreWriter:
    """work: what the thread does with each of the changes."""

    def __init__(self, work: Callable[[Changes], None]) -> None:
        self._work = work
        self._jobs: SimpleQueue[tuple[int, Changes] | None] = SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None
        """None: there is no thread yet."""
        self._number = 0
        """Of the newest job."""
        self._task: trio.lowlevel.Task | None = None
        """It waits for that."""
        self._error: BaseException | None = None

    async def write(self, changes: Changes) -> None:
        """Raises what `work` does. Cancelled: it may still be at it, and nobody hears what comes of it. One at a time."""
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
            threading.Thread(target=self._run, args=(self._token,), name="broker store", daemon=True).start()
        self._number += 1
        self._task = trio.lowlevel.current_task()
        self._jobs.put((self._number, changes))

        def abandon(raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """There is no more to come: the thread is gone when it has done what it has. Idempotent."""
        self._jobs.put(None)

    def _run(self, token: trio.lowlevel.TrioToken) -> None:
        while (job := self._jobs.get()) is not None:
            number, changes = job
            error: BaseException | None = None
            try:
                self._work(changes)
            except BaseException as raised:  # the task's, as all that happens here
                error = raised
            del job, changes  # not kept until the next one comes
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._done, number, error)

    def _done(self, number: int, error: BaseException | None) -> None:
        task = self._task
        if task is not None and number == self._number:  # else nobody waits for it any more
            self._task = None
            self._error = error
            trio.lowlevel.reschedule(task)
