"""What carries bytes, behind one small seam: a socket that is written to directly, or any Trio stream with a writer task.

A direct non-blocking `send` from the task that made the bytes saves a task switch for each recipient, and that is most of
the cost of sparse traffic (over TLS: `tls_transport`). A stream that can only be awaited (memory, WebSocket, an embedder's own) answers 0 to
`send_nowait`, so that the connection's writer does the work: two ways to write, one connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from broker.net.memory import BUFFER_BYTES as BUFFER_BYTES
from broker.net.memory import MemoryStream as MemoryStream
from broker.net.memory import memory_stream_pair as memory_stream_pair
from broker.net.silence import Silence

if TYPE_CHECKING:
    from trio.lowlevel import RaiseCancelT

READ_BYTES: Final = 65_536
READ_BYTES_CROWDED: Final = 16_384
READ_BYTES_TOGETHER: Final = 8 * READ_BYTES
"""Of all who stream, one read each: about 1 ms of small messages. Shared out evenly, not by a step from 64 to 16 KiB: a load near the step went
back and forth over it (`pairs-10` in 5.0, whose frames are a byte longer, stayed below it and cost 1.17 times 3.1.1)."""
READ_BYTES_MORE: Final = 131_008
"""For those who stream large frames: seven of 16 KiB with their heads. From 128 KiB on malloc would map and clear the memory anew for each read."""
STREAM_SEND_BYTES: Final = 65_536
"""Handed to `send_all` at a time: what lies inside a foreign stream is no longer ours to count."""

BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a transport raises when the connection is gone."""


checkpoint: Final = trio.lowlevel.checkpoint
wait_readable: Final = trio.lowlevel.wait_readable
wait_task_rescheduled: Final = trio.lowlevel.wait_task_rescheduled
"""Under names of our own: `arrival` hands on what these give, and a linter that knows Trio's misses an `await` there."""


class Commons:
    """What the sockets of one server share: how much a read takes, which is 64 KiB, and less, down to 16 KiB, while many clients stream, so that a
    bystander's turn comes soon; and where they wait who are silent."""

    __slots__ = ("_scratch", "read_bytes", "silence", "streaming_count")

    def __init__(self) -> None:
        self.read_bytes = READ_BYTES
        self.streaming_count = 0
        self.silence = Silence()
        self._scratch: memoryview | None = None

    def scratch(self, size: int) -> memoryview:
        """One buffer for all of them, whose reads are decrypted one at a time."""
        if self._scratch is None or len(self._scratch) < size:
            self._scratch = memoryview(bytearray(size))
        return self._scratch

    def change_streaming(self, by: int) -> None:
        self.streaming_count += by
        self.read_bytes = max(READ_BYTES_CROWDED, min(READ_BYTES, READ_BYTES_TOGETHER // (self.streaming_count or 1)))


class Transport(Protocol):
    """One byte stream. One task receives; writing is the connection's, never two tasks at once."""

    @property
    def half_closes(self) -> bool:
        """Can it stop sending and go on receiving? If not, `end` closes both ways."""

    @property
    def streaming(self) -> bool:
        """The last read was full: more lies there already."""

    def arrival(self, silent: bool = False) -> Awaitable[None]:
        """Wait, passing a checkpoint, until `take` is worth a try. silent: nothing is expected soon. (Not a coroutine of its own: each would live as
        long as its connection.)"""

    def wake(self) -> None:
        """Have `arrival` end, maybe with ClosedResourceError, though nothing has come: its task has something else to do. Only asked of sockets."""

    def read_more(self, size: int) -> None:
        """The next read may be of so many bytes: frames are large, and more of them lie there."""

    def take(self) -> bytes | None:
        """What has come, b"" at the end of the stream, None if it is nothing yet. Raises one of BROKEN."""

    def send_nowait(self, data: bytes | memoryview) -> int:
        """How many of the first bytes were taken, 0 if it would block; the others are to be given again, first. Raises one of BROKEN."""

    async def send_some(self, data: bytes | memoryview) -> int:
        """Wait until at least one byte is taken; how many were. Raises one of BROKEN."""

    def bytes_underway(self) -> int:
        """Of what was taken for sending, what has not come to the peer yet; 0 where that cannot be known."""

    def is_gone(self) -> bool:
        """Has the peer broken off, both ways? Seen without reading; False where that cannot be known."""

    def shutdown_write_nowait(self) -> bool:
        """Say that nothing more comes; False if that needs `end`."""

    async def end(self) -> None:
        """The same, waiting; where the stream cannot half-close, say goodbye and close as properly as it can."""

    async def aclose(self) -> None:
        """Close at once, also when cancelled."""


async def receive(transport: Transport) -> bytes:
    """At least one byte, or b"" at the end of the stream. Raises one of BROKEN."""
    while True:
        await transport.arrival()
        data = transport.take()
        if data is not None:
            return data


class SocketTransport:
    """A connected, non-blocking stdlib socket: TCP or Unix. Owns it."""

    __slots__ = ("_commons", "_more", "socket", "streaming")

    half_closes: Final = True

    def __init__(self, connected: socket.socket, commons: Commons | None = None) -> None:
        connected.setblocking(False)
        self.socket = connected
        self.streaming = False
        self._more = 0
        self._commons = Commons() if commons is None else commons

    def arrival(self, silent: bool = False) -> Awaitable[None]:
        # After a full read more is likely there: try at once (the others get their turn first). After a short one it is
        # not, and a `recv` that answers EAGAIN costs more than it saves: wait first.
        if self.streaming:
            return checkpoint()
        if silent and self._commons.silence.enter(self.socket.fileno()):
            return wait_task_rescheduled(self._leave_silence)
        return wait_readable(self.socket)

    def _leave_silence(self, _: RaiseCancelT) -> trio.lowlevel.Abort:
        self._commons.silence.leave(self.socket.fileno())
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        descriptor = self.socket.fileno()
        if descriptor >= 0 and not self._commons.silence.wake(descriptor):
            # Trio's word for "stop waiting"; that we do not close it afterwards is nothing to Trio.
            trio.lowlevel.notify_closing(self.socket)

    def read_more(self, size: int) -> None:
        self._more = size

    def take(self) -> bytes | None:
        size = self._commons.read_bytes
        if self._more:
            if size == READ_BYTES:
                size = self._more
            self._more = 0
        try:
            data = self.socket.recv(size)
        except (BlockingIOError, InterruptedError):
            data = None
        if data is not None and len(data) == size:
            if not self.streaming:
                self._set_streaming(True)
        elif self.streaming:
            self._set_streaming(False)
        return data

    def _set_streaming(self, streaming: bool) -> None:
        self.streaming = streaming
        self._commons.change_streaming(1 if streaming else -1)

    def send_nowait(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    async def send_some(self, data: bytes | memoryview) -> int:
        while True:
            await trio.lowlevel.wait_writable(self.socket)
            count = self.send_nowait(data)
            if count:
                return count

    def bytes_underway(self) -> int:
        return bytes_underway(self.socket)

    def is_gone(self) -> bool:
        return is_gone(self.socket)

    def shutdown_write_nowait(self) -> bool:
        # ENOTCONN: the peer has reset the connection; the reading task will see that for itself.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        return True

    async def end(self) -> None:
        await trio.lowlevel.checkpoint()
        self.shutdown_write_nowait()

    def close(self) -> None:
        if self.streaming:
            self._set_streaming(False)
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def aclose(self) -> None:
        self.close()


class StreamTransport:
    """Any trio.abc.Stream: memory, WebSocket, an embedder's own. Owns it."""

    __slots__ = ("_arrived", "below", "half_closes", "stream", "streaming")

    def __init__(self, stream: trio.abc.Stream, below: socket.socket | None = None) -> None:
        """below: the socket that the stream's bytes go through, if there is one and it is ours to ask."""
        self.stream = stream
        self.below = below
        self.streaming = False
        self._arrived: bytes | None = None
        self.half_closes = isinstance(stream, trio.abc.HalfCloseableStream)

    async def arrival(self, silent: bool = False) -> None:
        self._arrived = bytes(await self.stream.receive_some(READ_BYTES))

    def wake(self) -> None:
        pass

    def read_more(self, size: int) -> None:
        pass

    def take(self) -> bytes | None:
        data, self._arrived = self._arrived, None
        return data

    def send_nowait(self, data: bytes | memoryview) -> int:
        return 0

    async def send_some(self, data: bytes | memoryview) -> int:
        part = data if len(data) <= STREAM_SEND_BYTES else memoryview(data)[:STREAM_SEND_BYTES]
        await self.stream.send_all(part)
        return len(part)

    def bytes_underway(self) -> int:
        return 0 if self.below is None else bytes_underway(self.below)

    def is_gone(self) -> bool:
        return self.below is not None and is_gone(self.below)

    def shutdown_write_nowait(self) -> bool:
        return False

    async def end(self) -> None:
        """For TLS: close_notify, the peer's, then the same on the TCP connection below; for others what they offer."""
        stream = self.stream
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
            return
        if isinstance(stream, trio.SSLStream):
            below, _ = await stream.unwrap()
            try:  # it is nobody's now, so that `aclose` would not close it if this is cancelled
                if isinstance(below, trio.abc.HalfCloseableStream):
                    await below.send_eof()
                    while await below.receive_some(READ_BYTES):
                        pass
            finally:
                await trio.aclose_forcefully(below)
            return
        await stream.aclose()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


def bytes_underway(connected: socket.socket) -> int:
    """What lies in the kernel and the peer's has not acknowledged. Linux tells; elsewhere it counts as arrived."""
    if sys.platform == "linux" and connected.fileno() >= 0:
        import fcntl
        import termios

        with contextlib.suppress(OSError):  # a kind of socket that does not know
            return int.from_bytes(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


def is_gone(connected: socket.socket) -> bool:
    """Was the connection reset, or found dead by TCP's own keepalive? An orderly end is not told before all is read."""
    if connected.fileno() < 0:
        return False
    if sys.platform == "win32" or not hasattr(select, "poll"):  # there a reset takes with it what has not been read
        try:
            connected.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return False
    poll = select.poll()
    poll.register(connected, 0)  # POLLHUP and POLLERR come unasked
    seen = sum(event for _, event in poll.poll(0))
    # A Unix socket says POLLHUP as soon as its peer has closed, though its last messages are still to be read; POLLERR too if that was no
    # orderly end.
    return bool(seen & ~select.POLLHUP if connected.family == socket.AF_UNIX else seen)


def peer_name(address: object, family: int) -> str:
    """For people: "192.0.2.7:50123", "[2001:db8::7]:50123", "unix"."""
    if family == socket.AF_INET and isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    if family == socket.AF_INET6 and isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}"
    return "unix"


def set_options(on: socket.socket, *, nodelay: bool, tcp_keepalive_s: float) -> None:
    """TCP_NODELAY and keepalive of a TCP socket."""
    try:
        if nodelay:
            on.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tcp_keepalive_s > 0:
            seconds = max(1, round(tcp_keepalive_s))
            on.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE"):  # Linux, Windows; macOS
                if hasattr(socket, name):
                    on.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
                    break
            if hasattr(socket, "TCP_KEEPINTVL"):
                on.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 3))
    except OSError:
        pass  # a peer that is gone already answers EINVAL on some systems; reading it will tell
