"""stdout for messages: raw bytes, each message out before the next, and never a blocked event loop.

A pipe whose reader has paused would stop a plain write inside the loop, and with it the pings, the acknowledgements and Ctrl-C. So it is
asked first whether the pipe has room, and waited for as for a socket; at most PIPE_BUF bytes go at once, which a pipe with room always takes.
Windows has nothing to ask: there a thread writes to what may block.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from typing import Final

import trio

from broker.cli.running import PIPE_BROKEN, Failure, OutputClosed, os_error_line

_PIECE: Final = getattr(select, "PIPE_BUF", 512)
_READER_GONE: Final = (*PIPE_BROKEN, errno.ECONNRESET, errno.EIO, errno.EBADF)
"""EIO is a terminal that was closed."""
_ROOM_ASKED: Final = hasattr(select, "poll") or sys.platform == "win32"


class Output:
    """One message at a time, even with several writers. Raises OutputClosed when the reader has gone, Failure when a disk is full."""

    def __init__(self, descriptor: int | None = None, *, ends_lines: bool = True) -> None:
        """ends_lines: is each message the whole of its lines?"""
        if descriptor is None:
            if sys.stdout is None:  # closed before we began: `broker sub >&-`
                raise OutputClosed
            descriptor = sys.stdout.fileno()
        self._descriptor = descriptor
        self.is_terminal = os.isatty(descriptor)
        self.ends_lines = ends_lines
        self.before = b""
        """Goes before each message: what clears a line of `--progress` on the same terminal."""
        self._whole = trio.Lock()
        # A regular file and /dev/null always take everything, and cannot be waited for.
        self._may_block = _ROOM_ASKED and _is_pipe_or_terminal(self._descriptor)
        # Python's own file is one that tells a Windows console UTF-8; the C library's descriptor is not.
        self._file = open(descriptor, "wb", buffering=0, closefd=False) if sys.platform == "win32" else None  # noqa: SIM115
        if sys.platform != "win32" and self._may_block:
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        try:
            self._whole.acquire_nowait()
        except trio.WouldBlock:
            await self._whole.acquire()
        try:
            await self._write_all(self.before + data)
        except OSError as error:
            if error.errno in _READER_GONE:
                raise OutputClosed from error
            raise Failure(f"stdout: {os_error_line(error)}") from error
        finally:
            self._whole.release()

    async def _write_all(self, data: bytes) -> None:
        if sys.platform == "win32":
            if self._may_block:
                await trio.to_thread.run_sync(self._write_blocking, data, abandon_on_cancel=True)
            else:
                self._write_blocking(data)
            return
        position = 0
        while position < len(data):
            if self._may_block and not self._poll.poll(0):
                await trio.lowlevel.wait_writable(self._descriptor)
            piece = data[position : position + _PIECE] if self._may_block else data[position:]
            position += os.write(self._descriptor, piece)

    def _write_blocking(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            data = data[self._file.write(data) :]


def _is_pipe_or_terminal(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
