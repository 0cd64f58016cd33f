"""A broker that does what the test says and nothing else: the other end of an in-process connection, one packet at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from broker.client import Client, connect
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_5, NO_PROPERTIES, ConnAck, Connect, Packet, Properties, PubAck, SubAck, Subscribe, UnsubAck, Unsubscribe

P = TypeVar("P")


class Peer:
    """The broker's end of one connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.version = MQTT_5
        self.ended = trio.Event()
        self._frames = FrameDecoder(268_435_460)

    async def receive(self) -> Packet | None:
        """The client's next packet; None at the end of the stream."""
        while True:
            frame = self._frames.next_frame()
            if frame is not None:
                packet = decode(*frame, self.version)
                if isinstance(packet, Connect):
                    self.version = packet.version
                return packet
            data = await self.stream.receive_some(65_536)
            if not data:
                return None
            self._frames.feed(bytes(data))

    async def expect(self, kind: type[P]) -> P:
        packet = await self.receive()
        assert isinstance(packet, kind), f"{packet!r} is no {kind.__name__}"
        return packet

    async def send(self, *packets: Packet) -> None:
        await self.stream.send_all(b"".join(encode(packet, self.version) for packet in packets))

    async def accept(self, properties: Properties = NO_PROPERTIES, *, session_present: bool = False) -> Connect:
        """CONNECT and a good CONNACK; returns the former."""
        asked = await self.expect(Connect)
        if self.version >= MQTT_5 and not asked.client_id and properties.assigned_client_identifier is None:
            properties = Properties(**{**_fields(properties), "assigned_client_identifier": "assigned"})
        await self.send(ConnAck(session_present, ReasonCode.SUCCESS, properties))
        return asked

    async def grant(self, *reasons: int) -> Subscribe:
        """SUBSCRIBE and its SUBACK; without reasons, what was asked for."""
        asked = await self.expect(Subscribe)
        codes = reasons or tuple(request.qos for request in asked.subscriptions)
        await self.send(SubAck(asked.packet_id, tuple(map(ReasonCode, codes))))
        return asked

    async def let_go(self) -> Unsubscribe:
        asked = await self.expect(Unsubscribe)
        await self.send(UnsubAck(asked.packet_id, (ReasonCode.SUCCESS,) * len(asked.filters)))
        return asked

    async def settled(self, *packet_ids: int) -> None:
        """PUBACKs with success for exactly these, in this order."""
        for packet_id in packet_ids:
            assert await self.receive() == PubAck(packet_id)

    async def cut(self) -> None:
        """No goodbye: the stream just ends."""
        await self.stream.aclose()
        self.ended.set()

    async def silence(self, seconds: float = 0.1) -> None:
        """Nothing comes for so long (of virtual time)."""
        with trio.move_on_after(seconds):
            packet = await self.receive()
            raise AssertionError(f"{packet!r} came, and nothing should")


def _fields(properties: Properties) -> dict[str, Any]:
    return {name: getattr(properties, name) for name in properties.__struct_fields__}


class ScriptedBroker:
    """What `connect` takes for a broker. Each connection becomes a Peer for the test to play."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Peer](100)
        self.dialled = 0

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        self.dialled += 1
        end = Peer(stream)
        self._send.send_nowait(end)
        try:
            await end.ended.wait()
        finally:
            await trio.aclose_forcefully(stream)

    async def next(self) -> Peer:
        return await self._receive.receive()


@asynccontextmanager
async def connected(properties: Properties = NO_PROPERTIES, **options: Any) -> AsyncIterator[tuple[Client, Peer, ScriptedBroker]]:
    """An open client and its broker's end; when the body is done the peer goes too."""
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery:
        peers: list[Peer] = []

        async def serve() -> None:
            peer = await broker.next()
            await peer.accept(properties)
            peers.append(peer)

        nursery.start_soon(serve)
        options.setdefault("client_id", "me")
        options.setdefault("keep_alive_s", 0)
        async with connect(broker, **options) as client:
            while not peers:
                await trio.lowlevel.checkpoint()
            try:
                yield client, peers[0], broker
            finally:
                peers[0].ended.set()
