"""Where those wait who are silent: their sockets are watched together, in one epoll of our own.

A task that waits with Trio for its socket keeps six frames and a place in Trio's table, and is put there and taken out again with each wait:
right for who has something to say at any moment, much for who says nothing for a minute, as most clients of a broker do. Here a task only
sleeps, which is half as much to begin with and 1.2 kB less to keep; one task of the server's waits for all of them, and wakes each that has
something to read. That is one wake-up more for who comes alone, so nobody stays who has begun to talk (docs/decisions/0041-silence.md).

Only where there is epoll; elsewhere everybody waits with Trio.
"""

from __future__ import annotations

import select
from typing import Any, Final

import trio

TALKS_COUNT: Final = 2
"""Who was read so often in a row, each time within TALKS_GAP_S of the last, is about to say more."""
TALKS_GAP_S: Final = 10.0

_EPOLLIN: Final[int] = getattr(select, "EPOLLIN", 1)


class Silence:
    """One for a server, which runs `keep`. A task that `enter` has let in sleeps until it is rescheduled, or calls `leave`."""

    __slots__ = ("_epoll", "_sleepers")

    def __init__(self) -> None:
        self._epoll: Any = None
        """A `select.epoll`, a name that macOS and Windows do not have."""
        self._sleepers: dict[int, trio.lowlevel.Task] = {}
        """By file descriptor."""

    async def keep(self) -> None:
        """To the end of the last client."""
        make: Any = getattr(select, "epoll", None)
        if make is None:
            return
        try:
            epoll = make()
        except OSError:  # no descriptor is left, or too many watch already: it is only dearer without
            return
        with epoll:
            self._epoll = epoll
            try:
                while True:
                    await trio.lowlevel.wait_readable(epoll)
                    for descriptor, _ in epoll.poll(0):
                        self.wake(descriptor)
            finally:
                self._epoll = None

    def enter(self, descriptor: int) -> bool:
        """The current task will sleep until something can be read there, or it is `wake`d. False: it has to wait by itself."""
        if self._epoll is None:
            return False
        try:
            self._epoll.register(descriptor, _EPOLLIN)
        except OSError:
            return False
        self._sleepers[descriptor] = trio.lowlevel.current_task()
        return True

    def leave(self, descriptor: int) -> trio.lowlevel.Task:
        """Its task sleeps no longer: it was cancelled."""
        assert self._epoll is not None
        self._epoll.unregister(descriptor)
        return self._sleepers.pop(descriptor)

    def wake(self, descriptor: int) -> bool:
        """Is it here? Then its task goes on."""
        if descriptor not in self._sleepers:
            return False
        trio.lowlevel.reschedule(self.leave(descriptor))
        return True
