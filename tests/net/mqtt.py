"""A few packets by hand, and the frames that come back, for tests that need a client without being about one."""

from __future__ import annotations

import trio

from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import ConnAck, Connect, Packet, Properties, SubAck, Subscribe, SubscriptionRequest


class Client:
    def __init__(self, stream: trio.abc.Stream, version: int = 5) -> None:
        self.stream = stream
        self.version = version
        self._decoder = FrameDecoder(1_000_000)

    async def send(self, *packets: Packet) -> None:
        await self.stream.send_all(b"".join(encode(packet, self.version) for packet in packets))

    async def receive(self) -> Packet | None:
        """The next packet; None at the end of the stream."""
        while True:
            frame = self._decoder.next_frame()
            if frame is not None:
                return decode(frame[0], frame[1], self.version)
            data = await self.stream.receive_some(65_536)
            if not data:
                return None
            self._decoder.feed(bytes(data))

    def feed(self, data: bytes) -> None:
        """What was read from the stream by hand, ahead of what comes."""
        self._decoder.feed(data)

    async def connect(self, client_id: str, *, session_expiry_s: int = 0, username: str | None = None, clean_start: bool = True) -> ConnAck:
        properties = Properties(session_expiry_interval=session_expiry_s or None)
        await self.send(Connect(client_id, self.version, clean_start, username=username, properties=properties))
        packet = await self.receive()
        assert isinstance(packet, ConnAck)
        return packet

    async def subscribe(self, filter: str, qos: int = 0) -> None:
        await self.send(Subscribe(1, (SubscriptionRequest(filter, qos),)))
        assert isinstance(await self.receive(), SubAck)
