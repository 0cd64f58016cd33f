"""A client's life: a task that reads; and a nursery around it from the moment that it needs a second one, its writer while the socket is full.

Most clients never do, and are a fifth smaller and made sooner without one (decision 0030).

The barrier is outermost: whatever goes wrong in here ends this client, is logged with its traceback, and never reaches a
neighbour. `engine.detach` stands in a `finally`; it is synchronous, so it needs no shield. All waiting on the peer is
bounded: by the core's own deadlines while it is served, by `close_timeout_s` once either side has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from broker.net.handshake import shake_hands
from broker.net.reading import hear_out, read, read_until_shut
from broker.net.transport import BROKEN, SocketTransport

if TYPE_CHECKING:
    from broker.net.connection import Connection


def hear(connection: Connection, now: float) -> None:
    """What came with the connection, which mostly is its CONNECT: before it has a task, so that those who come together are served
    step by step and not one by one. Never raises. Does nothing where a handshake comes first."""
    if connection.proxied is not None or type(connection.transport) is not SocketTransport:
        return
    try:
        connection.attached_at = now
        link = connection.attach()
        data = connection.transport.take()
        if data:  # its end, and that nothing has come, is told again when `read` asks
            connection.held = connection.server.engine.receive(link, data, now) or link.paused  # the flush that follows may end that
    except Exception as error:
        connection.fail(error)


async def run(connection: Connection) -> None:
    """To its end, whatever that is. Raises nothing but a cancellation from outside."""
    try:
        try:
            # Each coroutine between here and the socket costs every idle client 250 bytes.
            over = connection.ended  # it was cancelled before it began
            while not over:
                if connection.link is not None:
                    try:
                        over = await read(connection)
                    except BROKEN as error:
                        connection.broken(error)
                        over = True
                if not over:
                    over = await run_in_nursery(connection)
        finally:
            connection.ended = True
            connection.detach()
            await connection.transport.aclose()
    except BROKEN:
        pass  # while closing: there is nobody left to tell
    except Exception as error:
        connection.log_fault(error)
    except BaseExceptionGroup as group:
        faults, others = group.split(Exception)
        if faults is not None:
            connection.log_fault(faults)
        if others is not None:
            raise others from None
    finally:
        if connection.link is not None:
            connection.link.transport = None  # no cycle: a busy broker's collector comes late
        connection.server.forget(connection)
        if connection.finished is not None:
            connection.finished.set()


async def run_in_nursery(connection: Connection) -> bool:
    """From the beginning, or from where the reading task alone did not suffice. False: it suffices again."""
    over = True
    async with trio.open_nursery() as nursery:
        try:
            connection.nursery = nursery
            link = connection.link
            if link is None:
                connection.attached_at = now = connection.server.clock()
                proxied, connection.proxied = connection.proxied, None
                if not await shake_hands(connection, nursery, proxied, now + connection.limits.connect_timeout_s):
                    return True
                connection.attach()
                connection.server.flush()
            else:
                connection.asks = link.auth is not None
                if link.closing:
                    connection.hurry()
                if connection.writing:
                    nursery.start_soon(connection.write, link)
            over = await (read(connection) if connection.transport.half_closes else read_until_shut(connection))
        except BROKEN as error:
            connection.broken(error)
            await hear_out(connection)
        finally:
            # Before the nursery closes, or a flush might start a writer in a closed one.
            if over:
                connection.ended = True
                nursery.cancel_scope.cancel()
            else:
                connection.nursery = None
                connection.nursery_wanted = False
    return over
