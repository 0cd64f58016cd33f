"""What was read and may not be worked through yet: a slow subscriber has paused its publisher, or somebody is being asked who that is, or the disk
is behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from broker.net.committer import Committer
    from broker.net.connection import Connection

PAUSED_LOOK_S: Final = 1.0
"""So often a connection that is not read, because a slow subscriber has paused it, is looked at whether it still stands."""


async def work_off(connection: Connection) -> None:
    """What was read and held back while something had to be decided first. (The reading task may be waiting for more.)"""
    link = connection.link
    assert link is not None
    while True:
        held = connection.server.engine.receive(link, b"", trio.current_time()) or link.paused
        connection.server.flush()
        if link.paused and not link.closing:
            if not await wait_unpaused(connection):
                return  # the reading task will find out too
        elif held:
            await trio.lowlevel.checkpoint()
        else:
            return


async def wait_unpaused(connection: Connection) -> bool:
    """Nothing is read meanwhile, so all that can be seen is a connection that broke: then it is False, and what it had sent is lost."""
    unpaused = connection.unpaused
    if unpaused is None:  # else the reading task waits already, or the one that works off what came ahead
        unpaused = connection.unpaused = trio.Event()
    try:
        while not unpaused.is_set():
            with trio.move_on_after(PAUSED_LOOK_S):
                await unpaused.wait()
                return True
            if connection.transport.is_gone():
                connection.cause = "the connection broke while it was paused"
                return False
        return True
    finally:
        if connection.unpaused is unpaused:
            connection.unpaused = None


async def wait_written(connection: Connection, committer: Committer) -> bool:
    """As long as the disk holds it up. False: it broke meanwhile, as in `wait_unpaused`."""
    link = connection.link
    assert link is not None
    link.unread = True
    try:
        while committer.holds_up(link) and not link.closing:
            with trio.move_on_after(PAUSED_LOOK_S):
                await committer.written.wait()
                continue
            if connection.transport.is_gone():
                connection.cause = "the connection broke while it was held up by the disk"
                return False
        return True
    finally:
        link.unread = False
        link.last_received_at = trio.current_time()  # what it has said meanwhile is still to be read
