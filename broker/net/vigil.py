"""Staying awake for a moment, where the next bytes are expected within it.

To fall asleep and be woken costs more than to look again a few times: the processor leaves an idle state, in a virtual machine by way of its
host, and nothing is warm. So when three reads of one client came within AWAKE_GAP_S of each other, the event loop goes on for AWAKE_TURNS
turns after the last of them instead of sleeping. Everybody has their turn in each of them, one `epoll_wait` looks at all sockets, and a
broker whose clients are slower than that, or silent, sleeps as ever (docs/decisions/0033-staying-awake.md).
"""

from __future__ import annotations

from typing import Final

import trio

AWAKE_GAP_S: Final = 0.00015
AWAKE_TURNS: Final = 8
"""Of some 4 µs each, if nothing comes. Counted and not timed: a clock that stands still (a test's) must not keep us awake."""


class Vigil:
    """One for a server, which runs `keep`."""

    __slots__ = ("_turns_left", "_wanted")

    def __init__(self) -> None:
        self._turns_left = 0
        self._wanted = trio.Event()

    def begin(self) -> None:
        """From now on; or, if it goes on already, for so much longer."""
        if not self._turns_left:
            self._wanted.set()
        self._turns_left = AWAKE_TURNS

    async def keep(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while self._turns_left:
                self._turns_left -= 1
                await trio.lowlevel.cancel_shielded_checkpoint()
