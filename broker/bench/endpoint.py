"""One connection of a load: how it is opened and ended, and its bytes, of which runs are taken without decoding them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import trio
from msgspec.structs import replace

from broker.core.client_goodbye import explanation
from broker.errors import ConnectionLost, ConnectRefused, NotSupported, PeerError
from broker.net.transport import BROKEN, Transport, receive
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import PACKET_BYTES_LARGEST, FrameDecoder
from broker.wire.packets import Auth, ConnAck, Connect, Disconnect, Packet, PingResp, Properties

if TYPE_CHECKING:
    from broker.bench.load import Load

PINGREQ_BYTES: Final = b"\xc0\x00"


class Endpoint:
    letter: ClassVar = ""

    def __init__(self, load: Load, number: int, client_id: str, transport: Transport) -> None:
        self.load = load
        self.number = number
        self.client_id = client_id
        self.transport = transport
        self.decoder = FrameDecoder(PACKET_BYTES_LARGEST)
        self.keep_alive_s = load.plan.keep_alive_s
        self.pong = trio.Event()
        self.connack: ConnAck | None = None
        self.broken_off = False
        """Cancelled inside a frame: nothing sensible can follow."""
        self._sending = trio.Lock()

    @property
    def is_sending(self) -> bool:
        return self._sending.locked()

    # ---- opening ----

    async def open(self) -> None:
        """CONNECT, and what the broker says to it. Raises ConnectRefused."""
        plan = self.load.plan
        exchange = None if plan.auth is None else plan.auth.begin()
        properties = plan.connect_properties
        if plan.auth is not None and exchange is not None:
            properties = replace(properties, authentication_method=plan.auth.method, authentication_data=exchange.first())
        connect = Connect(
            self.client_id,
            version=plan.version,
            keep_alive_s=plan.keep_alive_s,
            username=plan.username,
            password=plan.password,
            properties=properties,
        )
        await self.send(encode(connect, plan.version))
        answer = await self._next_packet()
        while isinstance(answer, Auth) and exchange is not None:
            data = await exchange.answer(answer.properties.authentication_data or b"")
            reply = Properties(authentication_method=properties.authentication_method, authentication_data=data)
            await self.send(encode(Auth(ReasonCode.CONTINUE_AUTHENTICATION, reply), plan.version))
            answer = await self._next_packet()
        if not isinstance(answer, ConnAck):
            raise ConnectionLost(f"{self.client_id}: the broker answered CONNECT with {type(answer).__name__.upper()}")
        if answer.reason.failed:
            raise ConnectRefused(self.load.address, answer.reason, explanation(answer.properties))
        if exchange is not None and not exchange.accepts(answer.properties.authentication_data or b""):
            raise ConnectionLost(f"{self.client_id}: the broker has not shown that it knows us")
        self.connack = answer
        if answer.properties.server_keep_alive is not None:
            self.keep_alive_s = answer.properties.server_keep_alive
        if answer.properties.maximum_qos is not None and plan.qos > answer.properties.maximum_qos:
            raise NotSupported(f"the broker's highest QoS is {answer.properties.maximum_qos}, and -q asks for {plan.qos}")

    async def _next_packet(self) -> Packet:
        """While opening, nothing else reads."""
        while (frame := self.decoder.next_frame()) is None:
            data = await receive(self.transport)
            if not data:
                raise ConnectionLost(f"{self.client_id}: the broker closed the connection while it was being opened")
            self.decoder.feed(data)
        return self._decode(*frame)

    def _decode(self, first_byte: int, body: bytes) -> Packet:
        try:
            return decode(first_byte, body, self.load.plan.version)
        except PeerError as error:
            raise ConnectionLost(f"{self.client_id}: what the broker sent cannot be read: {error}") from error

    # ---- bytes ----

    async def send(self, data: bytes | bytearray) -> None:
        """All of it, one sender after the other. Without a checkpoint if the socket takes it at once."""
        if self._sending.locked():
            await self._sending.acquire()
        else:
            self._sending.acquire_nowait()
        try:
            left = memoryview(data)
            left = left[self.transport.send_nowait(left) :]
            self.broken_off = True
            while left:
                left = left[await self.transport.send_some(left) :]
            self.broken_off = False
        finally:
            self._sending.release()

    async def read(self) -> None:
        """Until the end of the run. Raises ConnectionLost when it comes from the other side."""
        try:
            await self._read()
        except BROKEN as error:
            if not self.load.ending:
                raise ConnectionLost(f"{self.client_id}: the connection was lost") from error

    async def _read(self) -> None:
        while True:
            data = await receive(self.transport)
            if not data:
                if self.load.ending:
                    return
                raise ConnectionLost(f"{self.client_id}: the broker closed the connection")
            now = trio.current_time()
            self.decoder.feed(data)
            answer = self.take(now)
            self.load.note_progress(now)
            if answer:
                await self.send(answer)

    def take(self, now: float) -> bytes:
        """Act on all whole frames that are there; returns what is to be sent for them."""
        decoder = self.decoder
        answers: list[bytes] = []
        while True:
            while decoder.position < len(decoder.data) and self.take_run(decoder, answers, now):
                pass
            frame = decoder.next_frame()
            if frame is None:
                return b"".join(answers)
            self._take_packet(self._decode(*frame), frame[1], answers, now)

    def take_run(self, decoder: FrameDecoder, answers: list[bytes], now: float) -> bool:
        """Take what stands at the decoder's position without decoding it; False: that is not possible."""
        raise NotImplementedError

    def take_packet(self, packet: Packet, frame: bytes, answers: list[bytes], now: float) -> None:
        """A frame that `take_run` left."""
        raise NotImplementedError

    def _take_packet(self, packet: Packet, body: bytes, answers: list[bytes], now: float) -> None:
        if isinstance(packet, PingResp):
            self.pong.set()
        elif isinstance(packet, Disconnect):
            raise ConnectionLost(f"{self.client_id}: the broker disconnected it: {packet.reason.describe()}", packet.reason)
        else:
            # The fixed header stands just before the body.
            stop = self.decoder.position
            start = stop - len(body) - 2
            for limit in (1 << 7, 1 << 14, 1 << 21):
                start -= len(body) >= limit
            self.take_packet(packet, self.decoder.data[start:stop], answers, now)

    async def ping(self) -> None:
        """PINGREQ. Raises ConnectionLost."""
        try:
            await self.send(PINGREQ_BYTES)
        except BROKEN as error:
            if not self.load.ending:
                raise ConnectionLost(f"{self.client_id}: the connection was lost") from error

    async def say_goodbye(self) -> None:
        if self.broken_off:
            return
        try:
            await self.send(encode(Disconnect(), self.load.plan.version))
            if self.transport.half_closes:
                await self.transport.end()
        except BROKEN:
            return  # it has gone by itself
