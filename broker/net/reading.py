"""What a client says: read, worked through by the core, and what that led to sent, by one task and in one turn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from broker.net.connection import Connection
from broker.net.inquiry import Inquiry
from broker.net.pausing import wait_unpaused, wait_written
from broker.net.silence import TALKS_COUNT, TALKS_GAP_S
from broker.net.transport import READ_BYTES_MORE, Transport
from broker.net.vigil import AWAKE_GAP_S

if TYPE_CHECKING:
    from broker.core.auth import AuthRequest
    from broker.core.link import Link
    from broker.wire.framing import FrameDecoder

LARGE_FRAME_MISSING: Final = 4_096
"""Where a full read leaves a frame lacking more than this, frames are large, and a larger read costs nobody a longer turn."""


async def read(connection: Connection) -> bool:
    """Until the peer sends no more, and has got what was queued for it. False: it was alone, and needs a nursery to go on; or it has one that it
    needs no longer.

    Long, because what waits in here belongs to no coroutine of its own: each would cost every idle client 250 bytes. And because a read of a lone
    message (docs/performance.md, `ping`) pays for every call.
    """
    link = connection.link
    assert link is not None
    server = connection.server
    engine = server.engine
    clock = server.clock
    committer = server.committer
    now = -math.inf
    quick = False
    talked_count = 0
    frame_bytes = 0
    transport = connection.transport
    alone = connection.nursery is None
    held, connection.held = connection.held or (not alone and (link.paused or link.auth is not None)), False
    data: bytes | None
    recipient: Link | None
    while True:
        if alone and (connection.nursery_wanted or link.auth is not None):
            connection.held = held
            # Mostly it leaves at once, when it has said DISCONNECT.
            return connection.ended or (connection.shut and transport.take() == b"")
        if connection.asks and not held and may_be_alone(connection, link):
            connection.asks = False
            return False
        if committer is not None and committer.holds_up(link) and not link.closing:
            if alone:
                connection.held = held
                return False
            if not await wait_written(connection, committer):
                return True
        if link.paused and not link.closing:
            if alone:
                connection.held = True
                return False
            if not await wait_unpaused(connection):
                return True
            data = b""  # what it held when it was paused
        elif held:
            await trio.lowlevel.checkpoint()
            data = b""
        else:
            data = recipient = None  # the last read is not kept alive for as long as nothing comes
            try:
                await transport.arrival(talked_count < TALKS_COUNT)
            except trio.ClosedResourceError:
                if not connection.nursery_wanted:
                    raise
            if alone and connection.nursery_wanted:
                return connection.ended
            data = transport.take()
            if data == b"":
                await hear_out(connection)
                break
            if data is None or link.closing:
                continue  # when closing: discarded, so that the kernel sends no RST, which may overtake our last bytes
        before = now
        now = clock()
        gap_s = now - before
        if gap_s < AWAKE_GAP_S:
            if quick and not transport.streaming:
                server.vigil.begin()
            quick = True
        else:
            quick = False
        talked_count = talked_count + 1 if gap_s < TALKS_GAP_S else 0
        recipient = engine.sole_recipient(link, data)
        if recipient is not None and isinstance(recipient.transport, Connection) and recipient.transport.pass_on(link, data, now):
            continue
        # A pause may be over before we see it: this very flush can end it.
        held = engine.receive(link, data, now) or link.paused
        server.flush(now)
        if transport.streaming:
            frame_bytes = size_next_read(transport, link.decoder, frame_bytes)
        if link.auth is not None and not alone:
            held = ask(connection, link.auth) or held
    # The peer sends no more; it may still read, so it gets what was queued for it.
    engine.detach(link, clock(), still_reads=True)
    server.flush()
    if alone:
        return not (connection.writing or engine.is_behind(link) or engine.held_back(link))
    await drain(connection)
    return True


def size_next_read(transport: Transport, decoder: FrameDecoder, frame_bytes: int) -> int:
    """Of who streams large frames: it ends where a frame does, so that none is taken apart and joined. frame_bytes, and what comes back: how large
    they are, 0 if they are not; for a read that ended with a frame cannot tell."""
    missing = decoder.missing_bytes
    if missing > LARGE_FRAME_MISSING:
        frame_bytes = decoder.frame_bytes
    elif missing:
        frame_bytes = 0
    if frame_bytes:
        transport.read_more(min(READ_BYTES_MORE, missing + max(0, READ_BYTES_MORE - missing) // frame_bytes * frame_bytes))
    return frame_bytes


def may_be_alone(connection: Connection, link: Link) -> bool:
    """Has it been told who it is, and is there nothing to do beside reading?"""
    assert connection.nursery is not None
    return link.connected and link.auth is None and not (link.paused or link.closing or connection.nursery.child_tasks)


async def read_until_shut(connection: Connection) -> bool:
    """Over a stream that closes both ways at once: reading stops when the writer has said goodbye."""
    with trio.CancelScope() as connection.read_scope:
        await read(connection)
    if connection.shut:
        await connection.transport.end()
    return True


def ask(connection: Connection, question: AuthRequest) -> bool:
    """Was it answered at once, so that there may be something that the client has sent ahead?"""
    assert connection.nursery is not None
    if question.done or (connection.inquiry is not None and connection.inquiry.question is question):
        return False
    inquiry = Inquiry(connection, question)
    if inquiry.ask(connection.nursery, trio.current_time() if question.reauthentication else connection.attached_at):
        return True
    connection.inquiry = inquiry
    return False


async def hear_out(connection: Connection) -> None:
    """Its stream has ended. What it has sent ahead is worked off all the same, when it is known who it is; if there is nothing, nobody is asked
    any more."""
    inquiry = connection.inquiry
    if inquiry is not None and connection.link is not None and (inquiry.question.done or connection.link.has_spoken_ahead):
        await inquiry.over.wait()


async def drain(connection: Connection) -> None:
    """Until everything is sent, or it took too long."""
    link = connection.link
    assert link is not None
    connection.hurry()
    while True:
        connection.flush(trio.current_time())
        if connection.writing:
            connection.drained = trio.Event()
            await connection.drained.wait()
        elif connection.server.engine.is_behind(link):
            await trio.lowlevel.checkpoint()  # the timer's turn
        elif connection.server.committer is not None and connection.server.engine.held_back(link):
            await connection.server.committer.written.wait()
        else:
            return
