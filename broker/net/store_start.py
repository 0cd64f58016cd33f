"""The start of a store: it is opened and read in a thread, which a cancellation leaves alone, and the log says so when it takes long.

A disk that hangs holds a thread for as long as it likes. Else it would hold the start with it, without a word, and Ctrl-C too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import trio

from broker.errors import StoreError

if TYPE_CHECKING:
    from broker.core.saved import Saved
    from broker.net.committer import Store

SLOW_S: Final = 5.0
AGAIN_S: Final = 30.0

T = TypeVar("T")

logger = logging.getLogger("broker")


async def opened(path: str | PathLike[str]) -> Store:
    """In a thread: a large one is looked through, and others of this Trio run go on. StoreError."""
    try:
        from broker.store.sqlite import SqliteStore  # late: who keeps nothing needs no SQLite
    except ImportError:
        raise StoreError(fspath(path), "this Python was built without sqlite3: use one that has it") from None

    lock = threading.Lock()
    found: list[SqliteStore] = []
    given_up = False

    def work() -> None:
        store = SqliteStore(path)
        with lock:
            found.append(store)
            if given_up:
                store.close()

    try:
        await aside(work, fspath(path), lambda: "it is opened, and looked through for damage")
    except BaseException:
        with lock:
            given_up = True
            for store in found:  # in the same moment
                store.close()
        raise
    store = found[0]
    if store.set_aside is not None:
        logger.error("the store %s was damaged and is set aside as %s; beginning anew, without what it had", fspath(path), store.set_aside)
    return store


async def aside(work: Callable[[], T], path: str, how_far: Callable[[], str]) -> T:
    """What it returns or raises, in a thread. Cancelled: it may still be at it, and nobody waits for it."""
    fault: BaseException | None = None
    found: list[T] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, path, how_far)
        try:
            found.append(await trio.to_thread.run_sync(work, abandon_on_cancel=True))
        except BaseException as error:  # goes on below, bare: Ctrl-C too is not to come in the group of this nursery
            fault = error
        nursery.cancel_scope.cancel()
    if fault is not None:
        try:
            raise fault
        finally:
            del fault
    return found[0]


async def _tell(path: str, how_far: Callable[[], str]) -> None:
    began_at = trio.current_time()
    await trio.sleep(SLOW_S)
    while True:
        logger.warning("still reading the store %s, since %.0f s: %s", path, trio.current_time() - began_at, how_far())
        await trio.sleep(AGAIN_S)


class Reading:
    """A `core.saved.Saved` that hands on another's rows, and knows how many."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._kind = "sessions"
        self._count = 0

    @property
    def saved(self) -> Saved:
        return cast("Saved", self)

    def how_far(self) -> str:
        return f"{self._count:,} rows are read, now those of its {self._kind}"

    def __getattr__(self, kind: str) -> Iterator[Any]:
        """Whatever kinds of rows there are."""
        return self._counted(kind, getattr(self._saved, kind))

    def _counted(self, kind: str, rows: Iterator[Any]) -> Iterator[Any]:
        self._kind = "retained messages" if kind == "retained" else kind
        for row in rows:
            self._count += 1
            yield row
