"""The server: listeners inside, clients outside, around them the timer and the flusher; and how all of it ends.

`run` is shielded, so that clients can be told goodbye when the scope around a broker is cancelled; what bounds the shield is
the deadline that `begin_shutdown` sets on the clients, and whoever starts `run` calls that in a `finally`. (The store has its own, `Committer`.)
"""

from __future__ import annotations

import errno
import gc
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from broker.auth.throttle import address_of
from broker.auth.tokens import kept_rules
from broker.core.access import Access
from broker.core.allowance import Allowance, UserLimits
from broker.net import life
from broker.net.addresses import Addresses
from broker.net.authentication import QUESTIONS_COUNT_MAX
from broker.net.bound_socket import HANDS_DOWN, BoundSocket
from broker.net.connection import Connection, send_in_a_row
from broker.net.inside import INSIDE, InsideDoor
from broker.net.locks import Guard, Lock
from broker.net.proxy_protocol import is_trusted
from broker.net.seldom import Seldom
from broker.net.tally import Tally
from broker.net.tls_transport import TlsTransport
from broker.net.transport import Commons, SocketTransport, StreamTransport, Transport, peer_name, set_options
from broker.net.transport_stream import TransportStream
from broker.net.vigil import Vigil
from broker.reasons import ReasonCode
from broker.words import strerror

if TYPE_CHECKING:
    from broker.core.engine import Engine
    from broker.core.limits import Limits
    from broker.core.link import Link
    from broker.net.committer import Committer

FLUSH_COUNT_MAX: Final = 256
"""Links that one flush serves; the rest is the flusher's, so that a fan-out to thousands is no long turn."""
IN_A_ROW_COUNT_MIN: Final = 4
"""Fewer are served one by one: to put them in a row has its cost too."""
ACCEPT_COUNT_MAX: Final = 64
PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 1.0
REFUSALS_COUNT_MAX: Final = 64
"""Connections of addresses above their limits that are heard out at a time, to be told why; more are closed at once."""

# Nothing left to accept with: waiting helps. Everything else about one connection that was never made: the next, please.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FATAL: Final = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})

logger = logging.getLogger("broker")


class Server:
    """One engine with its clients, listeners and timers. All methods but `run` and `wait_ended` are synchronous."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        lock: Lock | None = None,
        chores: Sequence[Callable[[Server], Awaitable[None]]] = (),
        committer: Committer | None = None,
        tally: Tally | None = None,
    ) -> None:
        """lock: who may come in where a listener has none of its own. chores: tasks that live exactly as long as clients are served; so does that
        of the committer, if there is a store. tally: counts of whoever the engine tells."""
        self.engine = engine
        self.limits = limits
        self.lock = lock or Lock(Guard(), None, None, None, "none")
        self.limiter = trio.CapacityLimiter(QUESTIONS_COUNT_MAX)
        self.connections: set[Connection] = set()
        self.bound: Sequence[BoundSocket] = ()
        self.inside = InsideDoor(limits)
        self.writing: set[Connection] = set()
        """Those whose socket was full."""
        self.progressed = trio.Event()
        """One of `writing` has sent something; replaced whenever it is set."""
        self.committer = committer
        self._tally = Tally() if tally is None else tally
        self.chores = [*chores] if committer is None else [*chores, committer.run]
        """More may be added before `run`."""
        self.accepted_count = 0
        self.accept_errors_count = 0
        self.clock = trio.lowlevel.current_clock().current_time
        """`trio.current_time`, without asking each time which run this is."""
        self.began_at_s = time.time()
        """Unix time."""
        self._began_at = self.clock()
        self._commons = Commons()
        self._ready: deque[Link] = deque()
        self._flush_wanted = trio.Event()
        self._flushing = False
        self.vigil = Vigil()
        self._timer_scope = trio.CancelScope()
        self._timer_at = math.inf
        """Its deadline, which Trio keeps behind a property."""
        self._clients: trio.Nursery | None = None
        self._clients_scope = trio.CancelScope()
        self._stopping = trio.Event()
        self._ends = trio.Event()
        self._ended = trio.Event()
        self.on_ended: Callable[[], None] = lambda: None
        """Told when every client is gone."""
        self._freed = trio.Event()
        """A connection has ended: there may be a file descriptor again."""
        self.addresses = Addresses()
        self._refused = {"listener_full": 0, "address_count": 0, "address_rate": 0}
        """Connections, by reason: for want of a place at their listener, for their address."""
        self._refusing_count = 0
        self._seldom = Seldom(logger)

    # ---- its life ----

    async def run(self, bound: Sequence[BoundSocket], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `begin_shutdown`, then until every client is gone. Owns the sockets."""
        self.bound = bound
        try:
            # Before the shield: a `nursery.start` that was cancelled waits for us to end, and nobody would ask us to.
            task_status.started()
            await trio.lowlevel.checkpoint_if_cancelled()
            with trio.CancelScope(shield=True):  # its deadline: that of `_clients_scope`, from begin_shutdown
                async with trio.open_nursery() as house:
                    house.start_soon(self._keep_time)
                    house.start_soon(self._flush_the_rest)
                    house.start_soon(self.vigil.keep)
                    house.start_soon(self._commons.silence.keep)
                    for chore in self.chores:
                        house.start_soon(chore, self)
                    with self._clients_scope:
                        async with trio.open_nursery() as clients:
                            self._clients = clients
                            await self._listen(bound)
                    self._clients = None
                    if self.committer is not None:
                        await self.committer.finish()
                    house.cancel_scope.cancel()
        finally:
            self._clients = None
            self._stopping.set()
            for one in bound:
                one.close()
            self._ended.set()
            self.on_ended()

    async def _listen(self, bound: Sequence[BoundSocket]) -> None:
        doors = [one for one in bound if one.listener.speaks_mqtt]  # others are there for as long as anybody is (`net.visitors`)
        async with trio.open_nursery() as listeners:
            for one in doors:
                listeners.start_soon(self.accept, one, self._let_in)
            await self._ends.wait()
            listeners.cancel_scope.cancel()
        for one in doors:
            one.close()
        await self._stopping.wait()

    def begin_shutdown(self, grace_s: float) -> None:
        """Stop accepting, tell clients goodbye, close what is left after `grace_s`. Again: only a shorter grace counts."""
        scope = self._clients_scope
        now = trio.current_time()
        scope.deadline = min(scope.deadline, now + max(0.0, grace_s))
        if self.committer is not None:
            self.committer.hurry(scope.deadline)
        if not self._stopping.is_set():
            self._ends.set()
            self._stopping.set()
            # At once, and not when `run` wakes: with no grace at all a client that reads still gets the word.
            self.engine.shutdown(now)
            self.flush()

    def announce_end(self) -> None:
        """Stop accepting; `begin_shutdown` will follow, and bridges end before that."""
        self._ends.set()

    @property
    def is_stopping(self) -> bool:
        """Is it to end, or ending?"""
        return self._ends.is_set()

    async def wait_stopping(self) -> None:
        await self._stopping.wait()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    # ---- connections ----

    def admit(
        self, transport: Transport, peer: str, listener: str = "", bound: BoundSocket | None = None, proxied: socket.socket | None = None
    ) -> Connection | None:
        """Serve a byte stream in a task of its own; None while shutting down, and the transport is still the caller's.

        proxied: the socket below, if a PROXY header must come first and says who the peer is.
        """
        if self._clients is None or self._stopping.is_set() or (self._ends.is_set() and bound is not self.inside):
            return None
        connection = Connection(self, transport, peer, listener, bound, proxied)
        self._begin(connection, self._clients)
        return connection

    def admit_inside(self, transport: Transport, peer: str) -> Connection | None:
        """The same for a client of the house, who is asked nothing and may do everything."""
        connection = self.admit(transport, peer, INSIDE, self.inside)
        if connection is not None:
            self.inside.connections_count += 1
        return connection

    def _begin(self, connection: Connection, clients: trio.Nursery) -> None:
        self.connections.add(connection)
        clients.start_soon(life.run, connection, name="client")  # else Trio makes a name of 85 bytes for each

    def forget(self, connection: Connection) -> None:
        """Its `run` is over."""
        self.connections.discard(connection)
        self.addresses.leave(connection.address)
        if connection.refusal is not None:
            self._refusing_count -= 1
        if connection.bound is not None:
            connection.bound.connections_count -= 1
        self._freed.set()

    def lock_of(self, bound: BoundSocket | None) -> Lock:
        """A listener's own, or that of all."""
        return self.lock if bound is None or bound.lock is None else bound.lock

    def access_of(self, bound: BoundSocket | None) -> Access:
        return self.engine.access if bound is None or bound.access is None else bound.access

    def rules_of(self, url: str, own: str) -> tuple[Access, Allowance]:
        """What who came in there may do, and how much; where there is no such listener any more, what holds at the first one. "": by none.
        own: `Access.own`, which counts as long as clients bring such there."""
        bound: BoundSocket | None = None
        if url == INSIDE:
            bound = self.inside
        elif url:
            first = [one for one in self.bound if one.listener.speaks_mqtt][:1]
            bound = next(iter([one for one in self.bound if one.url == url] or first), None)
        access = self.access_of(bound)
        if own and self.lock_of(bound).takes_rules:
            access = Access(kept_rules(own), refuses_wills=False, own=own)
        return access, self.engine.allowance if bound is None or bound.allowance is None else bound.allowance

    def limits_of(self, bound: BoundSocket | None) -> Limits:
        """Of a client that comes in there, while nobody knows who it is."""
        return self.limits if bound is None or bound.allowance is None else bound.allowance.limits

    def set_limits(self, limits: Limits, users: UserLimits) -> None:
        """For what comes from now on: of all, of each listener, and of users that have their own."""
        self.limits = limits
        for one in (*self.bound, self.inside):
            own = one.listener.limits.over(limits)
            if one.allowance is None:
                one.allowance = Allowance(own, users)
            else:  # clients and sessions hold it
                one.allowance.use(own, users)
        self.engine.set_limits(limits, trio.current_time(), users)

    def count_address(self, peer: str, bound: BoundSocket | None) -> tuple[str, tuple[ReasonCode, str] | None]:
        """Where a connection comes from is known: the address under which it counts, and why it is to be refused, if it is. For
        `Connection.address` and `.refusal`, before it is attached; `forget` takes both back."""
        address = address_of(peer)
        refusal = self.addresses.enter(address, self.limits_of(bound), self.clock())
        if refusal is None:
            return address, None
        self._refused["address_rate" if refusal[0] == ReasonCode.CONNECTION_RATE_EXCEEDED else "address_count"] += 1
        self._refusing_count += 1
        self._seldom.warn("address", "refused a connection from %s: %s", peer, refusal[1])
        return "", refusal

    def refuses_silently(self, bound: BoundSocket) -> bool:
        """Without a word: a handshake costs more than a refusal is worth, and so do too many refusals."""
        return bound.tls is not None or bound.listener.protocol == "websocket" or self._refusing_count > REFUSALS_COUNT_MAX

    def drop_all(self) -> None:
        """Cut every connection without a goodbye."""
        for connection in list(self.connections):
            connection.cancel()

    # ---- accepting ----

    async def accept(self, bound: BoundSocket, let_in: Callable[[BoundSocket], OSError | None]) -> None:
        """Those who come there, for ever. let_in: takes those who wait; the error that keeps others out."""
        pause_s = PAUSE_S_MIN
        while True:
            await trio.lowlevel.wait_readable(bound.socket)
            error = let_in(bound)
            if error is None:
                pause_s = PAUSE_S_MIN
                continue
            if error.errno not in _EXHAUSTED:
                raise error
            self._seldom.warn(
                "exhausted", "cannot accept connections on %s: %s; waiting for others to close (see ulimit -n)", bound.url, strerror(error)
            )
            self._freed = trio.Event()
            with trio.move_on_after(pause_s):
                await self._freed.wait()
            pause_s = min(PAUSE_S_MAX, pause_s * 2)

    def _let_in(self, bound: BoundSocket) -> OSError | None:
        """Those who wait outside, ACCEPT_COUNT_MAX of them at most: each step for all of them, then the next one, so that its code and its data
        are at hand, and their answers go one right after the other, to a peer that the first of them woke. The error that keeps the others out."""
        clients = self._clients
        if clients is None or self._ends.is_set():
            return None
        listening = bound.socket
        found: OSError | None = None
        arrived: list[Connection] = []
        for _ in range(ACCEPT_COUNT_MAX):
            try:
                connected, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                found = self.accept_failed(error)
                if found is not None:
                    break
                continue
            connection = self._connection_of(bound, connected, address)
            if connection is not None:
                arrived.append(connection)
        now = self.clock()
        for connection in arrived:
            life.hear(connection, now)
        self.flush(now)
        for connection in arrived:
            self._begin(connection, clients)
        return found

    def accept_failed(self, error: OSError) -> OSError | None:
        """Count it; None if it is nothing to the next one."""
        self.accept_errors_count += 1
        if error.errno in _FATAL or error.errno in _EXHAUSTED:
            return error
        return None  # it gave up before we came: ECONNABORTED, and on Linux any error of its network

    def refuse_full(self, bound: BoundSocket, connected: socket.socket) -> None:
        """There is no place left at that listener."""
        self._refused["listener_full"] += 1
        self._seldom.warn("full", "%s has %d connections, its connections_count_max; closing new ones", bound.url, bound.connections_count)
        connected.close()

    def _connection_of(self, bound: BoundSocket, connected: socket.socket, address: object) -> Connection | None:
        """Of a socket that was accepted; None, and it is closed, if there is no place for it."""
        listener = bound.listener
        if bound.connections_count >= listener.connections_count_max:
            self.refuse_full(bound, connected)
            return None
        peer = peer_name(address, bound.family)
        proxied = connected if listener.proxy_protocol_from and is_trusted(listener.proxy_protocol_from, address, bound.family) else None
        # Who comes by a proxy counts when its header has said where from.
        counted, refusal = self.count_address(peer, bound) if proxied is None else ("", None)
        if refusal is not None and self.refuses_silently(bound):
            self._refusing_count -= 1
            connected.close()
            return None
        if bound.is_tcp and not HANDS_DOWN:
            set_options(connected, nodelay=listener.nodelay, tcp_keepalive_s=listener.tcp_keepalive_s)
        connection = Connection(self, self.transport_of(bound, connected), peer, bound.url, bound, proxied)
        connection.address = counted
        connection.refusal = refusal
        self.accepted_count += 1
        bound.connections_count += 1
        return connection

    def transport_of(self, bound: BoundSocket, connected: socket.socket) -> Transport:
        """Its handshakes are still to be made."""
        if bound.tls is not None:
            return TlsTransport(connected, bound.tls, self._commons)
        plain = SocketTransport(connected, self._commons)
        return plain if bound.listener.protocol != "websocket" else StreamTransport(TransportStream(plain), connected)

    # ---- what it tells of itself ----

    @property
    def refused_count(self) -> int:
        """Connections."""
        return sum(self._refused.values())

    def statistics(self) -> dict[str, int | float]:
        """Counters since the start and gauges of now: the core's, of the listeners, of the store if there is one. Nothing is counted for it."""
        found = self.engine.statistics()
        found |= {
            "memory_bytes_max": self.limits.memory_bytes_max,
            "uptime_s": self.clock() - self._began_at,
            "connections_open_count": len(self.connections),
            "connections_blocked_count": len(self.writing),
            "accepted_count": self.accepted_count,
            "accept_errors_count": self.accept_errors_count,
            "refused_connections_count": self.refused_count,
        }
        found |= {f"refused_{reason}": count for reason, count in self._refused.items()}
        found |= self.addresses.statistics() | self._tally.statistics()
        if self.committer is not None:
            found |= self.committer.statistics()
        return found

    # ---- sending ----

    def flush(self, now: float | None = None) -> None:
        """Send what the last verb has made: directly, at most FLUSH_COUNT_MAX links; and see that the timer wakes in time.

        now: Trio's time, if the caller has it at hand.
        """
        engine = self.engine
        if self._flushing:  # called by what a flush calls, such as an embedder's log: not between what is made ready and its sending
            self._flush_wanted.set()
            return
        if now is None:
            now = self.clock()
        waiting = self._ready
        budget = FLUSH_COUNT_MAX
        while budget:
            links = engine.take_ready()
            if waiting or len(links) > budget:
                waiting.extend(links)
                # Each once, though one may have been named again since.
                links = list(dict.fromkeys([waiting.popleft() for _ in range(min(budget, len(waiting)))]))
            if not links:
                break
            budget -= len(links)
            if len(links) >= IN_A_ROW_COUNT_MIN:
                self._flushing = True
                try:
                    send_in_a_row(engine, links, now)
                finally:
                    self._flushing = False
                continue
            for link in links:
                connection = link.transport
                if isinstance(connection, Connection):
                    connection.flush(now)
        if waiting or not budget:
            self._flush_wanted.set()
        if self.committer is not None:
            self.committer.look()
        deadline = engine.next_deadline()
        if deadline < self._timer_at:
            self._timer_at = self._timer_scope.deadline = deadline

    def note_progress(self) -> None:
        """A full socket has taken something, or is gone."""
        self.progressed.set()
        self.progressed = trio.Event()

    async def _flush_the_rest(self) -> None:
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted = trio.Event()
            self.flush()
            await trio.lowlevel.checkpoint()

    # ---- time ----

    async def _keep_time(self) -> None:
        """One sleeper for all timers of the core; `flush` moves its deadline forward."""
        engine = self.engine
        while True:
            self._timer_at = engine.next_deadline()
            with trio.CancelScope(deadline=self._timer_at) as self._timer_scope:
                await trio.sleep_forever()
            more = True
            while more:
                more = engine.tick(trio.current_time())
                self.flush()
                await trio.lowlevel.checkpoint()


def tune_collector() -> None:
    """For a process that is a broker and nothing else, after its start: what lives now lives for ever, and garbage comes in
    thousands. (10,000 connects: 13.5 to 20 thousand a second, p99 69 to 10 ms.) An embedder's collector is not ours to tune."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
