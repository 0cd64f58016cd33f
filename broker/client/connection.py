"""The Trio tasks of a client: dial, read always, write, keep time, and dial again as the policy says.

They live in a shield, so that a cancelled body can still say goodbye. The shield has an end all the same: `close`, which the
body's end always reaches, gives it a deadline. Nothing here knows a packet: bytes go to `core.client`, its events to `handle`.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio
from msgspec import structs

from broker.client.authentication import Authentication, Exchange
from broker.client.reconnect import Reconnect, is_final
from broker.core.client import ClientProtocol
from broker.errors import BrokerError, ConnectError, ConnectionLost, ConnectRefused, PeerError
from broker.net.tls import reason_of
from broker.net.transport import STREAM_SEND_BYTES, SocketTransport, receive
from broker.reasons import ReasonCode

READ_BYTES: Final = 65_536
SHORT_S: Final = 30.0
"""A broker that accepts each connection and ends it sooner is dialled less often each time, as one that is not there ..."""
SHORT_COUNT_MAX: Final = 3
"""... up to so many times."""
BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError)

Dial = Callable[[trio.Nursery], Awaitable[trio.abc.Stream]]
"""Gives a connected stream; what must live as long as it (an in-process broker's end) runs in that nursery."""


class Turns(Protocol):
    """Who says how much of one read is acted on before the others get their turn."""

    def room(self) -> int: ...
    async def give_way(self) -> None: ...


class Connector:
    """handle: called after every verb of the core, to take its events. failed: called when no connection will come any more.

    refused: what the CONNACK said, put there by `handle`. due: deadline and action of timers that are not the core's.
    """

    def __init__(
        self,
        core: ClientProtocol,
        dial: Dial,
        address: str,
        policy: Reconnect | None,
        *,
        connect_timeout_s: float,
        close_grace_s: float,
        handle: Callable[[], None],
        lost: Callable[[], None],
        failed: Callable[[BaseException], None],
        due: tuple[Callable[[], float], Callable[[float], None]],
        turns: Turns,
        auth: Authentication | None = None,
        password: Callable[[], str | bytes] | None = None,
    ) -> None:
        self._core = core
        self._dial = dial
        self._address = address
        self._policy = policy
        self._connect_timeout_s = connect_timeout_s
        self._close_grace_s = close_grace_s
        self._handle = handle
        self._lost = lost
        self._failed = failed
        self.ended = trio.Event()
        self._due = due
        self._turns = turns
        self.auth = auth
        self._password = password
        self._exchange: Exchange | None = None
        self._challenged = trio.lowlevel.ParkingLot()
        self.refused: ConnectRefused | None = None
        self.opened = False
        """A connection has stood: from now on failures are ConnectionLost."""
        self._connected_now = False
        self._connected_at = 0.0
        self._stopping = trio.Event()
        self._linger_s = close_grace_s
        self._scope = trio.CancelScope(shield=True)  # ended by close(), see above
        self._tasks: trio.CancelScope | None = None
        self._writer = trio.lowlevel.ParkingLot()
        self.resting = False  # the writing task waits for bytes
        self._sending = False  # the writing task is in the middle of what data_to_send gave it
        self._direct: SocketTransport | None = None  # past Trio's stream, where that is a socket
        self._timer = trio.lowlevel.ParkingLot()
        self._timer_deadline = math.inf
        self._closing_seen = False

    # ---- for the client ----------------------------------------------------------------------------------------------

    def connected(self) -> None:
        self.opened = self._connected_now = True
        self._connected_at = trio.current_time()

    def wake_writer(self) -> None:
        """Bytes may wait, and no deadline has come nearer."""
        core = self._core
        closing = core.closing
        if closing and not self._closing_seen:
            self._closing_seen = True
            self._end_within(self._close_grace_s)
        if self.resting and (closing or core.wants_to_send):
            self.resting = False
            self._writer.unpark_all()

    def wake(self) -> None:
        """Bytes may wait, or a deadline may have come nearer; to be called after every verb of the core."""
        self.wake_writer()
        if self._core.auth.challenge is not None:
            self._challenged.unpark_all()
        if self._next_deadline() < self._timer_deadline:
            self._timer.unpark_all()

    def prepare_authentication(self) -> None:
        """A new exchange, for a connection or on it."""
        if self.auth is not None:
            self._exchange = self.auth.begin()
            self._core.auth.prepare(self._exchange.first(), self._exchange.accepts)

    def give_to_kernel(self, frame: bytes) -> int:
        """How many of these bytes it took, which nothing stands before; 0 where that is the writing task's to do, and to fail at."""
        if self._direct is None or self._sending:
            return 0
        try:
            return self._direct.send_nowait(frame)
        except BROKEN:
            return 0

    def send_now(self, now: float) -> None:
        """Give the kernel what waits as far as it takes it at once. What it does not take, or fails at, is the writing task's."""
        core = self._core
        if self._direct is None or self._sending or core.closing:
            return
        data = core.data_to_send()
        count = self.give_to_kernel(data) if data else 0
        if count:
            core.bytes_sent(count, now)

    def close(self, reason: ReasonCode, *, linger: bool = True) -> None:
        """Say goodbye and end all tasks within a deadline. linger: wait (close_grace_s at most) for the broker to close its side.

        Idempotent. `run` returns soon after, and then `ended` is set.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        if not linger:
            self._linger_s = 0
        self._scope.deadline = trio.current_time() + self._close_grace_s + 1
        if self._core.state == "connected":
            self._core.disconnect(reason, trio.current_time(), cause="closed by this program")
            self.wake()
        elif self._tasks is not None:
            self._tasks.cancel()

    async def run(self) -> None:
        """All connections, one after another, until `close` or until there will be no other; then `failed`, unless it was closed."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_time)
                    error = await self._connect_again_and_again()
                    if error is not None and not self._stopping.is_set():
                        self._failed(error)
                    nursery.cancel_scope.cancel()
        except Exception as error:
            # A fault of ours, or of an in-process broker's: it ends this client, as itself and not in our nurseries' groups. A broker in this
            # program that takes nobody any more will not come back.
            fault = unwrap(error)
            self._failed(self._final(ConnectError(self._address, str(fault)), None) if isinstance(fault, BrokerError) else fault)
        finally:
            self.ended.set()

    # ---- the connections ---------------------------------------------------------------------------------------------

    async def _connect_again_and_again(self) -> BrokerError | None:
        attempts = short = 0
        since = trio.current_time()
        while not self._stopping.is_set():
            self._connected_now = False
            self.refused = None
            error = await self._one_connection()
            if self._stopping.is_set():
                return None
            if self._connected_now:
                attempts = 0
                since = trio.current_time()
                if since - self._connected_at >= SHORT_S:
                    short = 0
                elif not (isinstance(error, ConnectionLost) and error.reason == ReasonCode.SERVER_SHUTTING_DOWN):  # which says that it was not for us
                    short = min(SHORT_COUNT_MAX, short + 1)
            else:
                attempts += 1
            policy = self._policy
            if policy is None or is_final(error) or not (self.opened or policy.first):
                return self._final(error, None)
            away_s = trio.current_time() - since
            why_not = policy.why_not(attempts, away_s)
            if why_not is not None:
                return self._final(error, why_not)
            with trio.move_on_after(min(policy.delay(max(attempts, short)), policy.give_up_after_s - away_s)):
                await self._stopping.wait()
        return None

    def _final(self, error: BrokerError, why_not: str | None) -> BrokerError:
        """ConnectError as it is while no connection has stood; ConnectionLost from then on."""
        if not self.opened or (isinstance(error, ConnectionLost) and why_not is None):
            return error
        reason = error.reason if isinstance(error, (ConnectRefused, ConnectionLost)) else None
        lost = ConnectionLost(f"{error} ({why_not})" if why_not else str(error), reason)
        lost.__cause__ = error
        return lost

    async def _one_connection(self) -> BrokerError:
        """From dialling to the end of the stream; why it ended."""
        core = self._core
        deadline = trio.current_time() + self._connect_timeout_s
        async with trio.open_nursery() as keeper:
            stream: trio.abc.Stream | None = None
            with trio.CancelScope(deadline=deadline) as self._tasks:
                try:
                    stream = await self._dial(keeper)
                except BrokerError as error:
                    keeper.cancel_scope.cancel()
                    return error
            if stream is None:
                keeper.cancel_scope.cancel()  # an in-process broker would wait for the CONNECT that will never come
                return ConnectError(self._address, f"no connection within {self._connect_timeout_s:g} s")
            try:
                await self._serve(stream, deadline)
            finally:
                core.connection_lost(trio.current_time())
                self._handle()
                self._lost()
                with trio.CancelScope(deadline=trio.current_time() + self._linger_s):
                    await stream.aclose()
                keeper.cancel_scope.deadline = trio.current_time() + self._close_grace_s
        if self.refused is not None:
            return self.refused
        cause = core.cause or "the connection broke"
        return ConnectionLost(cause, core.reason) if self._connected_now else ConnectError(self._address, cause)

    async def _serve(self, stream: trio.abc.Stream, connack_deadline: float) -> None:
        self._closing_seen = False
        with trio.CancelScope() as self._tasks:
            if self._stopping.is_set():
                return
            self.prepare_authentication()
            if self._password is not None:
                self._core.options = structs.replace(self._core.options, password=password_bytes(self._password()))
            self._core.begin_connection(trio.current_time(), connack_deadline)
            self._sending = self.resting = False
            with past_trio(stream) as self._direct:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write, stream)
                        if self.auth is not None:
                            nursery.start_soon(self._answer_challenges)
                        self.wake()
                        await self._read(stream)
                        nursery.cancel_scope.cancel()
                finally:
                    self._direct = None

    async def _read(self, stream: trio.abc.Stream) -> None:
        """To the end of the stream, whatever else waits; what comes after our goodbye is thrown away."""
        core, direct = self._core, self._direct
        while True:
            try:
                data = await (stream.receive_some(READ_BYTES) if direct is None else receive(direct))
            except BROKEN as error:
                if not core.closing:
                    core.abandon(f"the connection broke: {_words(error)}")
                break
            if not data:
                core.end_of_stream(trio.current_time())
                break
            more = core.receive(bytes(data), trio.current_time(), self._turns.room())
            self._handle()
            while more:
                await self._turns.give_way()
                more = core.receive(b"", trio.current_time(), self._turns.room())
                self._handle()
        self._handle()

    async def _answer_challenges(self) -> None:
        """As slowly as that has to be; the core's deadline for CONNACK, and the broker's own, bound it."""
        core = self._core
        while True:
            challenge, exchange = core.auth.challenge, self._exchange
            if challenge is None or exchange is None:
                await self._challenged.park()
                continue
            try:
                answer = await exchange.answer(challenge)
            except PeerError as error:
                core.abandon(f"authentication failed: {error}")
                self._handle()
                return
            core.answer_challenge(answer)
            self._handle()

    async def _write(self, stream: trio.abc.Stream) -> None:
        """Send what the core has; after its last word end our side, and give the broker `linger_s` to end its own."""
        core = self._core
        try:
            while True:
                data = core.data_to_send()
                if data:
                    count = 0 if self._direct is None else self._direct.send_nowait(data)
                    if not count:
                        self._sending = True
                        await self._send_all(stream, data)
                        self._sending = False
                        count = len(data)
                    core.bytes_sent(count, trio.current_time())
                    self._handle()
                    if core.wants_to_send:
                        await trio.lowlevel.checkpoint()
                elif core.closing:
                    break
                else:
                    self._handle()  # what was refused, or had expired, instead of being sent
                    if not core.wants_to_send and not core.closing:
                        self.resting = True
                        await self._writer.park()
            ends = stream if core.said_goodbye and self._linger_s > 0 and isinstance(stream, trio.abc.HalfCloseableStream) else None
            if ends is not None:
                await ends.send_eof()
        except BROKEN:
            # The reader gets what the broker said before, and sees the end of the stream too; but not for ever.
            self._end_within(self._close_grace_s)
            return
        self._end_within(0 if ends is None else self._linger_s)

    async def _send_all(self, stream: trio.abc.Stream, data: bytes) -> None:
        """In parts, so that the core sees a long packet move on: it would else take the broker for dead, which cannot answer before it has it all."""
        direct = self._direct
        left = memoryview(data)
        while left:
            if direct is not None:
                count = await direct.send_some(left)
            else:
                count = min(len(left), STREAM_SEND_BYTES)
                await stream.send_all(left[:count])
            left = left[count:]
            self._core.moves_on(trio.current_time())

    def _end_within(self, seconds: float) -> None:
        if self._tasks is not None:
            self._tasks.deadline = min(self._tasks.deadline, trio.current_time() + seconds)

    # ---- time --------------------------------------------------------------------------------------------------------

    def _next_deadline(self) -> float:
        return min(self._core.next_deadline(), self._due[0]())

    async def _keep_time(self) -> None:
        while True:
            self._timer_deadline = self._next_deadline()
            with trio.CancelScope(deadline=self._timer_deadline):
                await self._timer.park()
            now = trio.current_time()
            self._core.tick(now)
            self._due[1](now)
            self._handle()


@contextmanager
def past_trio(stream: trio.abc.Stream) -> Iterator[SocketTransport | None]:
    """What sends without waiting, and waits without trying to read first, which most often is in vain; None for a stream that can only be awaited."""
    if not isinstance(stream, trio.SocketStream):
        yield None
        return
    # A second object for the same descriptor, to be let go of before that is closed: Trio's own has no send that does not wait.
    direct = socket.socket(fileno=stream.socket.fileno())
    try:
        yield SocketTransport(direct)
    finally:
        direct.detach()


def _words(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ssl.SSLError):  # in TLS 1.3 a broker's refusal of our certificate comes after the handshake
        return reason_of(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def password_bytes(password: str | bytes | None) -> bytes | None:
    """As CONNECT has it. TypeError."""
    if password is None or isinstance(password, bytes):
        return password
    if isinstance(password, str):
        return password.encode("utf-8")
    raise TypeError(f"password must be str or bytes, not {type(password).__name__}")


def unwrap(error: BaseException) -> BaseException:
    """The only leaf of a group of groups, with its own traceback; the group itself if it has several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
