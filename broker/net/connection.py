"""One client: a task that reads; and a nursery around it from the moment that it needs a second one, its writer while the socket is full.

Most clients never do, and are a fifth smaller and made sooner without one (decision 0030).

The barrier is outermost: whatever goes wrong in here ends this client, is logged with its traceback, and never reaches a
neighbour. `engine.detach` stands in a `finally`; it is synchronous, so it needs no shield. All waiting on the peer is
bounded: by the core's own deadlines while it is served, by `close_timeout_s` once either side has ended.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.net.handshake import shake_hands
from broker.net.inquiry import Inquiry
from broker.net.silence import TALKS_COUNT, TALKS_GAP_S
from broker.net.transport import BROKEN, READ_BYTES_MORE, SocketTransport, Transport, strerror
from broker.net.vigil import AWAKE_GAP_S

if TYPE_CHECKING:
    from broker.core.auth import AuthRequest
    from broker.core.engine import Engine
    from broker.core.limits import Limits
    from broker.core.link import Link
    from broker.net.listen import BoundSocket
    from broker.net.server import Server
    from broker.reasons import ReasonCode

SEND_BYTES: Final = 262_144
LARGE_FRAME_MISSING: Final = 4_096
"""Where a full read leaves a frame lacking more than this, frames are large, and a larger read costs nobody a longer turn."""
TAKE_BYTES: Final = 16_384
"""Taken for one send, with others': of a flush to many, not all may lie there joined."""
DIRECT_SENDS_MAX: Final = 4
"""Of SEND_BYTES each; a link with more goes on in its writer, so that one flush stays short."""

PAUSED_LOOK_S: Final = 1.0
"""So often a connection that is not read, because a slow subscriber has paused it, is looked at whether it still stands."""

logger = logging.getLogger("broker")


def bytes_underway(link: Link) -> int:
    """What a link's kernel has taken and its peer's has not: for the core, which cannot know."""
    connection = link.transport
    return connection.transport.bytes_underway() if isinstance(connection, Connection) else 0


class Connection:
    __slots__ = (
        "_asks", "_attached_at", "_drained", "_held", "_nursery", "_nursery_wanted", "_proxied", "_read_scope", "_shut", "_unpaused", "_writing",
        "address", "bound", "cause", "certificate", "connected_at_s", "ended", "finished", "inquiry", "link", "listener", "peer", "refusal",
        "server", "transport",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        transport: Transport,
        peer: str,
        listener: str = "",
        bound: BoundSocket | None = None,
        proxied: socket.socket | None = None,
    ) -> None:
        self.server = server
        self.transport = transport
        self.peer = peer
        """Of a proxied connection, from its PROXY header on, whom that names."""
        self.listener = listener
        self.bound = bound
        self.address = ""
        """Under which it is counted."""
        self.refusal: tuple[ReasonCode, str] | None = None
        """What it is to be told, if it was let in for nothing else."""
        self.link: Link | None = None
        self.connected_at_s = time.time()
        """Unix time."""
        self.certificate: Mapping[str, Any] | None = None
        self.cause = ""
        """How the stream failed, if it did; the core knows only that it is gone."""
        self.ended = False
        """Nothing may be started in its nursery any more."""
        self.finished: trio.Event | None = None
        """Set at the very end, for those who wait for it."""
        self.inquiry: Inquiry | None = None
        """Who it is, while that is being asked and what came ahead of the answer worked off."""
        self._proxied = proxied
        """The socket from which a PROXY header must come first."""
        self._nursery: trio.Nursery | None = None
        """None while the reading task is alone."""
        self._nursery_wanted = False
        self._asks = False
        """It has a nursery only because somebody has to be asked who it is."""
        self._read_scope: trio.CancelScope | None = None
        self._attached_at = 0.0
        self._held = False
        """What was read has not all been worked through. (While `_read` runs, it knows.)"""
        self._writing = False
        self._shut = False
        """Our sending side is closed, or the reading task is to close both."""
        self._unpaused: trio.Event | None = None
        self._drained: trio.Event | None = None

    # ---- its life ----

    def hear(self, now: float) -> None:
        """What came with the connection, which mostly is its CONNECT: before it has a task, so that those who come together are served
        step by step and not one by one. Never raises. Does nothing where a handshake comes first."""
        if self._proxied is not None or type(self.transport) is not SocketTransport:
            return
        try:
            self._attached_at = now
            link = self._attach()
            data = self.transport.take()
            if data:  # its end, and that nothing has come, is told again when `_read` asks
                self._held = self.server.engine.receive(link, data, now) or link.paused  # the flush that follows may end that
        except BROKEN as error:
            self._broken(error)
            self.ended = True
        except Exception:
            logger.exception("a fault of the broker ended the connection of %s", self.describe())
            self.ended = True

    async def run(self) -> None:
        """To its end, whatever that is. Raises nothing but a cancellation from outside."""
        try:
            try:
                # Each coroutine between here and the socket costs every idle client 250 bytes.
                over = self.ended  # it was cancelled before it began
                while not over:
                    if self.link is not None:
                        try:
                            over = await self._read()
                        except BROKEN as error:
                            self._broken(error)
                            over = True
                    if not over:
                        over = await self._run_in_nursery()
            finally:
                self.ended = True
                self._detach()
                await self.transport.aclose()
        except BROKEN:
            pass  # while closing: there is nobody left to tell
        except Exception:
            logger.exception("a fault of the broker ended the connection of %s", self.describe())
        except BaseExceptionGroup as group:
            faults, others = group.split(Exception)
            if faults is not None:
                logger.error("a fault of the broker ended the connection of %s", self.describe(), exc_info=faults)
            if others is not None:
                raise others from None
        finally:
            if self.link is not None:
                self.link.transport = None  # no cycle: a busy broker's collector comes late
            self.server.forget(self)
            if self.finished is not None:
                self.finished.set()

    async def _run_in_nursery(self) -> bool:
        """From the beginning, or from where the reading task alone did not suffice. False: it suffices again."""
        over = True
        async with trio.open_nursery() as nursery:
            try:
                self._nursery = nursery
                link = self.link
                if link is None:
                    self._attached_at = now = self.server.clock()
                    proxied, self._proxied = self._proxied, None
                    if not await shake_hands(self, nursery, proxied, now + self.limits.connect_timeout_s):
                        return True
                    self._attach()
                    self.server.flush()
                else:
                    self._asks = link.auth is not None
                    if link.closing:
                        self._hurry()
                    if self._writing:
                        nursery.start_soon(self._write, link)
                over = await (self._read() if self.transport.half_closes else self._read_until_shut())
            except BROKEN as error:
                self._broken(error)
                await self._hear_out()
            finally:
                # Before the nursery closes, or a flush might start a writer in a closed one.
                if over:
                    self.ended = True
                    nursery.cancel_scope.cancel()
                else:
                    self._nursery = None
                    self._nursery_wanted = False
        return over

    def describe(self) -> str:
        return f"({self.peer})" if self.link is None else self.link.describe()

    @property
    def limits(self) -> Limits:
        return self.server.limits_of(self.bound) if self.link is None else self.link.limits

    def cancel(self) -> None:
        """End it at once, without a goodbye."""
        self.ended = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        else:
            self._want_nursery()

    def _want_nursery(self) -> None:
        """There is more to do than the reading task can do alone; or it is to end."""
        self._nursery_wanted = True
        self.transport.wake()

    def _attach(self) -> Link:
        # Counted from accept: a slow handshake leaves less for CONNECT.
        engine, bound, at = self.server.engine, self.bound, self._attached_at
        if bound is None:
            link = engine.attach(self.peer, at, listener=self.listener, transport=self, refusal=self.refusal)
        else:
            link = engine.attach(
                self.peer,
                at,
                listener=self.listener,
                transport=self,
                access=bound.access,
                allowance=bound.allowance,
                refusal=self.refusal,
                mount_point=bound.listener.mount_point,
            )
        self.link = link
        return link

    def _detach(self) -> None:
        if self.link is not None:
            self.server.engine.detach(self.link, trio.current_time())
            self.server.flush()

    def _broken(self, error: BaseException) -> None:
        """The stream failed: it counts as gone, and the log says how."""
        if self.link is not None and not self.link.cause:
            cause = strerror(error) if isinstance(error, OSError) else (str(error) or "closed")
            self.cause = f"the connection was lost: {cause}"

    # ---- reading ----

    async def _read(self) -> bool:
        """Until the peer sends no more, and has got what was queued for it. False: it was alone, and needs a nursery to go on; or it has one that it
        needs no longer."""
        link = self.link
        assert link is not None
        server = self.server
        engine = server.engine
        clock = server.clock
        now = -math.inf
        quick = False
        talked_count = 0
        frame_bytes = 0  # of who streams large frames: reads end where a frame does, so that none is taken apart and joined
        transport = self.transport
        alone = self._nursery is None
        held, self._held = self._held or (not alone and (link.paused or link.auth is not None)), False
        data: bytes | None
        recipient: Link | None
        while True:
            if alone and (self._nursery_wanted or link.auth is not None):
                self._held = held
                # Mostly it leaves at once, when it has said DISCONNECT.
                return self.ended or (self._shut and transport.take() == b"")
            if self._asks and not held and self._may_be_alone(link):
                self._asks = False
                return False
            if link.paused and not link.closing:
                if alone:
                    self._held = True
                    return False
                if not await self._wait_unpaused():
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
                    if not self._nursery_wanted:
                        raise
                if alone and self._nursery_wanted:
                    return self.ended
                data = transport.take()
                if data == b"":
                    await self._hear_out()
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
                missing = link.decoder.missing_bytes
                if missing > LARGE_FRAME_MISSING:
                    frame_bytes = link.decoder.frame_bytes
                elif missing:
                    frame_bytes = 0
                if frame_bytes:
                    transport.read_more(min(READ_BYTES_MORE, missing + max(0, READ_BYTES_MORE - missing) // frame_bytes * frame_bytes))
            if link.auth is not None and not link.auth.done and (self.inquiry is None or self.inquiry.question is not link.auth):
                if alone:
                    continue
                held = self._ask(link.auth) or held
        # The peer sends no more; it may still read, so it gets what was queued for it.
        engine.detach(link, clock(), still_reads=True)
        server.flush()
        if alone:
            return not (self._writing or engine.is_behind(link))
        await self._drain()
        return True

    def _may_be_alone(self, link: Link) -> bool:
        """Has it been told who it is, and is there nothing to do beside reading?"""
        assert self._nursery is not None
        return link.connected and link.auth is None and not (link.paused or link.closing or self._nursery.child_tasks)

    async def _read_until_shut(self) -> bool:
        """Over a stream that closes both ways at once: reading stops when the writer has said goodbye."""
        with trio.CancelScope() as self._read_scope:
            await self._read()
        if self._shut:
            await self.transport.end()
        return True

    def _ask(self, question: AuthRequest) -> bool:
        assert self._nursery is not None
        inquiry = Inquiry(self, question)
        if inquiry.ask(self._nursery, trio.current_time() if question.reauthentication else self._attached_at):
            return True
        self.inquiry = inquiry
        return False

    async def _hear_out(self) -> None:
        """Its stream has ended. What it has sent ahead is worked off all the same, when it is known who it is; if there is nothing, nobody is asked
        any more."""
        inquiry = self.inquiry
        if inquiry is not None and self.link is not None and (inquiry.question.done or self.link.has_spoken_ahead):
            await inquiry.over.wait()

    async def work_off(self) -> None:
        """What was read and held back while something had to be decided first. (The reading task may be waiting for more.)"""
        link = self.link
        assert link is not None
        while True:
            held = self.server.engine.receive(link, b"", trio.current_time()) or link.paused
            self.server.flush()
            if link.paused and not link.closing:
                if not await self._wait_unpaused():
                    return  # the reading task will find out too
            elif held:
                await trio.lowlevel.checkpoint()
            else:
                return

    async def _wait_unpaused(self) -> bool:
        """Nothing is read meanwhile, so all that can be seen is a connection that broke: then it is False, and what it had sent is lost."""
        unpaused = self._unpaused
        if unpaused is None:  # else the reading task waits already, or the one that works off what came ahead
            unpaused = self._unpaused = trio.Event()
        try:
            while not unpaused.is_set():
                with trio.move_on_after(PAUSED_LOOK_S):
                    await unpaused.wait()
                    return True
                if self.transport.is_gone():
                    self.cause = "the connection broke while it was paused"
                    return False
            return True
        finally:
            if self._unpaused is unpaused:
                self._unpaused = None

    async def _drain(self) -> None:
        """Until everything is sent, or it took too long."""
        link = self.link
        assert link is not None
        self._hurry()
        while True:
            self.flush(trio.current_time())
            if self._writing:
                self._drained = trio.Event()
                await self._drained.wait()
            elif self.server.engine.is_behind(link):
                await trio.lowlevel.checkpoint()  # the timer's turn
            else:
                return

    def _hurry(self) -> None:
        """From now on the peer has `close_timeout_s`."""
        if self._nursery is None:
            self._want_nursery()
        else:
            scope = self._nursery.cancel_scope
            scope.deadline = min(scope.deadline, trio.current_time() + self.limits.close_timeout_s)

    # ---- writing ----

    def keep(self, data: bytes, count: int) -> None:
        """The socket took only `count` bytes of what `take_to_send` gave."""
        link = self.link
        assert link is not None
        self.server.engine.give_back(link, data, count)
        if not self.ended:
            self._begin_writing(link)

    def flush(self, now: float) -> None:
        """Send what the socket takes, and do what the link asks for. Never raises, whoever calls it: the fault is this client's."""
        link = self.link
        if self.ended or link is None:
            return
        try:
            if link.closing or self._unpaused is not None or self.inquiry is not None:
                self._attend(link)
            if not self._writing and not self._send(link, now):
                self._begin_writing(link)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """It ends by that, which is being handled."""
        if isinstance(error, BROKEN):
            self._broken(error)
        else:
            logger.exception("a fault of the broker ended the connection of %s", self.describe())
        self.cancel()

    def _begin_writing(self, link: Link) -> None:
        """The rest is the writer's."""
        self._writing = True
        self.server.writing.add(self)
        if self._nursery is None:
            self._want_nursery()
        else:
            self._nursery.start_soon(self._write, link)

    def pass_on(self, publisher: Link, data: bytes, now: float) -> bool:
        """Send what was read from a publisher, whose `sole_recipient` this is. False: not sent. Never raises, as `flush`."""
        link = self.link
        if self.ended or self._writing or link is None:
            return False
        try:
            count = self.transport.send_nowait(data)
        except Exception as error:
            self.fail(error)
            return False
        self.server.engine.passed_on(publisher, link, data, count, now)
        if count < len(data):
            self.flush(now)
        return True

    def _attend(self, link: Link) -> None:
        """To what is not bytes."""
        if self._unpaused is not None and (link.closing or not link.paused):
            self._unpaused.set()
        if self.inquiry is not None:
            self.inquiry.attend()
        if link.closing and not self._shut:
            self._hurry()

    def _send(self, link: Link, now: float) -> bool:
        """Directly. False: the rest is the writer's."""
        engine = self.server.engine
        sends_left = DIRECT_SENDS_MAX
        while sends_left:
            data = engine.data_to_send(link, SEND_BYTES)
            if not data:
                if link.closing and not self._shut:
                    self._shut = self.transport.shutdown_write_nowait()
                    return self._shut
                return True
            count = self.transport.send_nowait(data)
            more = engine.bytes_sent(link, count, now)
            if count < len(data):
                return False
            if not more and not link.closing:
                return True
            sends_left -= 1
        return False

    async def _write(self, link: Link) -> None:
        """Until everything is sent. The only one that sends, while it lives."""
        server = self.server
        engine = server.engine
        transport = self.transport
        try:
            while data := engine.data_to_send(link, SEND_BYTES):
                count = await transport.send_some(data)
                engine.bytes_sent(link, count, trio.current_time())
                server.flush()  # who waited for this link may go on
                server.note_progress()
            if link.closing and not self._shut:
                self._shut = True
                if transport.half_closes:
                    await transport.end()
                elif self._read_scope is not None:
                    self._read_scope.cancel()  # it closes both ways, which nobody may be reading for
        except BROKEN as error:
            self._broken(error)
            self.cancel()
        finally:
            self._writing = False
            server.writing.discard(self)
            server.note_progress()
            if self._drained is not None:
                self._drained.set()
        # Something may have come in, or closing begun, during the last wait.
        self.flush(trio.current_time())


def send_in_a_row(engine: Engine, links: Sequence[Link], now: float) -> None:
    """Flush many: first everything is made ready, then it is sent, one right after the other: what little lies between two system calls is still
    in the processor's caches after each (decision 0035). Whoever has more to do than to send goes the way of `Connection.flush`.

    Never raises, as that. All in one loop for each half, with no call of ours for a link to whom nothing special happens.
    """
    ordinary: list[Link] = []
    connections: list[Connection] = []
    for link in links:
        connection = link.transport
        if not isinstance(connection, Connection) or connection.ended:
            continue
        if connection._writing or link.closing or connection._unpaused is not None or connection.inquiry is not None:
            connection.flush(now)
        else:
            ordinary.append(link)
            connections.append(connection)
    for connection, data in zip(connections, engine.take_to_send(ordinary, TAKE_BYTES)):  # noqa: B905  # they are of one length
        if not data:
            connection.flush(now)
            continue
        transport = connection.transport
        try:
            count = transport.socket.send(data) if type(transport) is SocketTransport else transport.send_nowait(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except Exception as error:  # whatever it is, it is this client's
            connection.fail(error)
            count = 0
        if count < len(data):
            connection.keep(data, count)
