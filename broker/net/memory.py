"""A pair of connected in-memory byte streams: how a program talks to a broker in its own Trio run, with no socket.

Bounded, like a socket's buffers: `send_all` waits while the other side has `buffer_bytes_max` unread, so that a slow reader
is felt on this road too. (trio.testing has a similar pair, unbounded and meant for tests only.)
"""

from __future__ import annotations

import operator
from typing import Final

import trio

BUFFER_BYTES: Final = 65_536


class _Pipe:
    """One direction. At most one task sends and one receives at a time; a second one gets trio.BusyResourceError."""

    __slots__ = ("_buffer", "_busy_receiver", "_busy_sender", "_bytes_max", "_changed", "ended", "receiver_closed", "sender_closed")

    def __init__(self, bytes_max: int) -> None:
        self._buffer = bytearray()
        self._bytes_max = bytes_max
        self._changed = trio.Event()
        self._busy_sender = False
        self._busy_receiver = False
        self.ended = False
        """The sender has said that nothing more will come."""
        self.sender_closed = False
        self.receiver_closed = False

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def end(self) -> None:
        if self._busy_sender:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self.sender_closed:
            raise trio.ClosedResourceError("this stream was closed")
        self.ended = True
        self.change()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        if self._busy_sender:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._busy_sender = True
        try:
            await trio.lowlevel.checkpoint()
            view = memoryview(data).cast("B")
            position = 0
            while True:
                if self.sender_closed or self.ended:
                    raise trio.ClosedResourceError("this stream was closed for sending")
                if self.receiver_closed:
                    raise trio.BrokenResourceError("the other side has closed the stream")
                room = self._bytes_max - len(self._buffer)
                if room > 0 and position < len(view):
                    self._buffer += view[position : position + room]
                    position = min(position + room, len(view))
                    self.change()
                if position == len(view):
                    return
                await self._changed.wait()
        finally:
            self._busy_sender = False

    async def wait_room(self) -> None:
        if self._busy_sender:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._busy_sender = True
        try:
            await trio.lowlevel.checkpoint()
            while len(self._buffer) >= self._bytes_max and not self.receiver_closed and not self.sender_closed:
                await self._changed.wait()
            if self.sender_closed:
                raise trio.ClosedResourceError("this stream was closed for sending")
        finally:
            self._busy_sender = False

    async def receive(self, bytes_max: int) -> bytes:
        bytes_max = operator.index(bytes_max)  # TypeError for 1.5
        if bytes_max < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._busy_receiver:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._busy_receiver = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                if self.receiver_closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if self._buffer:
                    data = bytes(self._buffer[:bytes_max])
                    del self._buffer[:bytes_max]
                    self.change()
                    return data
                if self.ended or self.sender_closed:
                    return b""
                await self._changed.wait()
        finally:
            self._busy_receiver = False


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of the pair."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._outgoing.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._outgoing.wait_room()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._outgoing.end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._incoming.receive(BUFFER_BYTES if max_bytes is None else max_bytes)

    def close(self) -> None:
        """Synchronous and idempotent; the other side still gets what was sent before."""
        self._outgoing.sender_closed = True
        self._incoming.receiver_closed = True
        self._outgoing.change()
        self._incoming.change()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def memory_stream_pair(buffer_bytes_max: int = BUFFER_BYTES) -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one in-memory connection, at most `buffer_bytes_max` unread bytes in each direction."""
    one, other = _Pipe(buffer_bytes_max), _Pipe(buffer_bytes_max)
    return MemoryStream(one, other), MemoryStream(other, one)
