"""One client as the server knows it: its stream, its link in the core, and the way from the one's bytes into the other.

Whoever made the bytes sends them; a writer task exists only while the socket is full. What a client says is read in `reading.py`; how it
begins and ends is `life.py`.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.net.transport import BROKEN, SocketTransport, Transport
from broker.words import strerror

if TYPE_CHECKING:
    from broker.core.engine import Engine
    from broker.core.limits import Limits
    from broker.core.link import Link
    from broker.net.bound_socket import BoundSocket
    from broker.net.inquiry import Inquiry
    from broker.net.server import Server
    from broker.reasons import ReasonCode

SEND_BYTES: Final = 262_144
TAKE_BYTES: Final = 16_384
"""Taken for one send, with others': of a flush to many, not all may lie there joined."""
DIRECT_SENDS_MAX: Final = 4
"""Of SEND_BYTES each; a link with more goes on in its writer, so that one flush stays short."""

logger = logging.getLogger("broker")


def bytes_underway(link: Link) -> int:
    """What a link's kernel has taken and its peer's has not: for the core, which cannot know."""
    connection = link.transport
    return connection.transport.bytes_underway() if isinstance(connection, Connection) else 0


class Connection:
    __slots__ = (
        "address", "asks", "attached_at", "bound", "cause", "certificate", "connected_at_s", "drained", "ended", "finished", "held", "inquiry",
        "link", "listener", "nursery", "nursery_wanted", "peer", "proxied", "read_scope", "refusal", "server", "shut", "transport", "unpaused",
        "writing",
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
        self.proxied = proxied
        """The socket from which a PROXY header must come first."""
        self.nursery: trio.Nursery | None = None
        """None while the reading task is alone."""
        self.nursery_wanted = False
        self.asks = False
        """It has a nursery only because somebody has to be asked who it is."""
        self.read_scope: trio.CancelScope | None = None
        """Of reading, where that has to stop for the stream to be closed."""
        self.attached_at = 0.0
        """Trio's time: from when its CONNECT is waited for."""
        self.held = False
        """What was read has not all been worked through. (While `read` runs, it knows.)"""
        self.writing = False
        """The socket is full, and what is to be sent is the writer's."""
        self.shut = False
        """Our sending side is closed, or the reading task is to close both."""
        self.unpaused: trio.Event | None = None
        """Awaited while it is paused."""
        self.drained: trio.Event | None = None
        """Awaited, at its end, while there is a writer."""

    def describe(self) -> str:
        return f"({self.peer})" if self.link is None else self.link.describe()

    @property
    def limits(self) -> Limits:
        return self.server.limits_of(self.bound) if self.link is None else self.link.limits

    def cancel(self) -> None:
        """End it at once, without a goodbye."""
        self.ended = True
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()
        else:
            self.want_nursery()

    def fail(self, error: Exception) -> None:
        """It ends by that."""
        if isinstance(error, BROKEN):
            self.broken(error)
        else:
            self.log_fault(error)
        self.cancel()

    def broken(self, error: BaseException) -> None:
        """The stream failed: it counts as gone, and the log says how."""
        if self.link is not None and not self.link.cause:
            cause = strerror(error) if isinstance(error, OSError) else (str(error) or "closed")
            self.cause = f"the connection was lost: {cause}"

    def log_fault(self, fault: BaseException) -> None:
        logger.error("a fault of the broker ended the connection of %s", self.describe(), exc_info=fault)

    def want_nursery(self) -> None:
        """There is more to do than the reading task can do alone; or it is to end."""
        self.nursery_wanted = True
        self.transport.wake()

    def attach(self) -> Link:
        # Counted from accept: a slow handshake leaves less for CONNECT.
        engine, bound, at = self.server.engine, self.bound, self.attached_at
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

    def detach(self) -> None:
        if self.link is not None:
            self.server.engine.detach(self.link, trio.current_time())
            self.server.flush()

    def hurry(self) -> None:
        """From now on the peer has `close_timeout_s`."""
        if self.nursery is None:
            self.want_nursery()
        else:
            scope = self.nursery.cancel_scope
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
            if link.closing or self.unpaused is not None or self.inquiry is not None:
                self._attend(link)
            if not self.writing and not self._send(link, now):
                self._begin_writing(link)
        except Exception as error:
            self.fail(error)

    def _begin_writing(self, link: Link) -> None:
        """The rest is the writer's."""
        self.writing = True
        self.server.writing.add(self)
        if self.nursery is None:
            self.want_nursery()
        else:
            self.nursery.start_soon(self.write, link)

    def pass_on(self, publisher: Link, data: bytes, now: float) -> bool:
        """Send what was read from a publisher, whose `sole_recipient` this is. False: not sent. Never raises, as `flush`."""
        link = self.link
        if self.ended or self.writing or link is None:
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
        if self.unpaused is not None and (link.closing or not link.paused):
            self.unpaused.set()
        if self.inquiry is not None:
            self.inquiry.attend()
        if link.closing and not self.shut:
            self.hurry()

    def _send(self, link: Link, now: float) -> bool:
        """Directly. False: the rest is the writer's."""
        engine = self.server.engine
        sends_left = DIRECT_SENDS_MAX
        while sends_left:
            data = engine.data_to_send(link, SEND_BYTES)
            if not data:
                if link.closing and not self.shut and not engine.held_back(link):
                    self.shut = self.transport.shutdown_write_nowait()
                    return self.shut
                return True
            count = self.transport.send_nowait(data)
            more = engine.bytes_sent(link, count, now)
            if count < len(data):
                return False
            if not more and not link.closing:
                return True
            sends_left -= 1
        return False

    async def write(self, link: Link) -> None:
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
            if link.closing and not self.shut and not engine.held_back(link):
                self.shut = True
                if transport.half_closes:
                    await transport.end()
                elif self.read_scope is not None:
                    self.read_scope.cancel()  # it closes both ways, which nobody may be reading for
        except BROKEN as error:
            self.broken(error)
            self.cancel()
        finally:
            self.writing = False
            server.writing.discard(self)
            server.note_progress()
            if self.drained is not None:
                self.drained.set()
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
        if connection.writing or link.closing or connection.unpaused is not None or connection.inquiry is not None:
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
