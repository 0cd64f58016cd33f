"""A transport as a stream, for a library that can only await one: WebSocket stands so on TLS that needs no task and no lock of its own."""

from __future__ import annotations

import trio

from broker.net.transport import SocketTransport, receive


class TransportStream(trio.abc.Stream):
    """Owns the transport. One task receives and one sends; a send that is cancelled leaves nothing that can go on."""

    def __init__(self, transport: SocketTransport) -> None:
        self.transport = transport

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What one read of the transport gives, which may be more than `max_bytes`: whoever asks here takes all."""
        self._check_open()
        try:
            return await receive(self.transport)
        except OSError as error:
            raise trio.BrokenResourceError("the connection broke") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        try:
            left = left[self.transport.send_nowait(left) :]
            while left:
                left = left[await self.transport.send_some(left) :]
        except OSError as error:
            raise trio.BrokenResourceError("the connection broke") from error

    async def wait_send_all_might_not_block(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_writable(self.transport.socket)

    async def aclose(self) -> None:
        """Without waiting; a checkpoint all the same."""
        self.transport.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self.transport.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")
