"""A plain TCP client for comparing brokers: it does as it is told, answers what must be answered, and notes all that it sees.

`settle` is how a comparison knows that everything has come: rounds of PINGREQ on every connection, until a whole round brings
nothing but PINGRESPs. Both brokers answer in order, so what a step caused stands before the answer.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import trio

from broker.wire.codec import decode, encode
from broker.wire.packets import ConnAck, Connect, Disconnect, Packet, PingReq, PingResp, PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance.wirebytes import take_frame

QUIET_ROUNDS: Final = 3


class WireClient:
    """One connection. answers=False: it acknowledges no PUBLISH, as a client that dies before it could."""

    def __init__(self, stream: trio.SocketStream, version: int, answers: bool) -> None:
        self.version = version
        self.answers = answers
        self.seen: list[Packet] = []
        self.closed = trio.Event()
        self.connack: ConnAck | None = None
        self._stream = stream
        self._sending = trio.Lock()  # the test asks while the reader answers
        self._pongs = 0
        self._changed = trio.Event()

    @classmethod
    async def open(cls, nursery: trio.Nursery, port: int, connect: Connect, answers: bool) -> WireClient:
        """CONNECT, and wait for its CONNACK or the close."""
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = cls(stream, connect.version, answers)
        nursery.start_soon(client._read)
        await client.send(connect)
        while client.connack is None and not client.closed.is_set():
            await client._changed.wait()
        return client

    async def send(self, *packets: Packet) -> None:
        try:
            async with self._sending:
                await self._stream.send_all(b"".join(encode(packet, self.version) for packet in packets))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.closed.set()

    async def drop(self) -> None:
        """Close without a word."""
        await self._stream.aclose()
        await self.closed.wait()

    async def ping(self) -> None:
        """A PINGREQ and all that comes before its answer; or the close."""
        wanted = self._pongs + 1
        await self.send(PingReq())
        while self._pongs < wanted and not self.closed.is_set():
            await self._changed.wait()

    async def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := await self._stream.receive_some():
                buffer += data
                while (frame := take_frame(buffer)) is not None:
                    start = 2
                    while frame[start - 1] & 0x80:
                        start += 1
                    await self._note(decode(frame[0], frame[start:], self.version))
                self._change()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed.set()
            self._change()
            await trio.aclose_forcefully(self._stream)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _note(self, packet: Packet) -> None:
        if isinstance(packet, PingResp):
            self._pongs += 1
            return
        self.seen.append(packet)
        if isinstance(packet, ConnAck):
            self.connack = packet
        elif isinstance(packet, PubRec) and not packet.reason.failed:
            await self.send(PubRel(packet.packet_id))
        elif self.answers and isinstance(packet, Publish) and packet.qos:
            await self.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
        elif self.answers and isinstance(packet, PubRel):
            await self.send(PubComp(packet.packet_id))


async def settle(clients: Iterable[WireClient]) -> None:
    """Until nothing more comes to any of them."""
    clients = list(clients)
    quiet = 0
    while quiet < QUIET_ROUNDS:
        before = sum(len(client.seen) for client in clients)
        for client in clients:
            if not client.closed.is_set():
                await client.ping()
        quiet = quiet + 1 if sum(len(client.seen) for client in clients) == before else 0


def goodbye(seen: list[Packet]) -> int | None:
    """The reason code of the DISCONNECT in it, if there is one."""
    return next((int(packet.reason) for packet in seen if isinstance(packet, Disconnect)), None)
