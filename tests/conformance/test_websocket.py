"""WebSocket as the transport (chapter 6 of both standards), with frames made by hand at the other end of a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from urllib.parse import urlsplit

import pytest
import trio

from broker import ConnectError, ConnectionLost, Listener, Message, connect, open_broker
from broker.client import Client
from broker.messages import Version
from tests.conformance.harness import both_versions
from tests.conformance.wirebytes import connect_frame, frame, publish_frame, string, subscribe_frame, take_frame, u16
from tests.net.frames import BINARY, CLOSE, CONTINUATION, TEXT, Peer, response
from tests.net.frames import frame as websocket_frame

pytestmark = pytest.mark.real_clock

named_versions = pytest.mark.parametrize("version", ["5.0", "3.1.1"])
UNSUPPORTED_DATA = (1003).to_bytes(2)


# ---- the broker ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened() -> AsyncIterator[Peer]:
    """A bare WebSocket to a broker; nothing asked yet."""
    async with open_broker(listeners=[Listener(port=0, protocol="websocket")]) as broker:
        parts = urlsplit(broker.urls[0])
        async with await trio.open_tcp_stream(str(parts.hostname), int(parts.port or 0)) as stream:
            yield Peer(stream)


async def packets(peer: Peer, count: int) -> list[bytes]:
    """That many MQTT packets, all of binary frames."""
    buffer = bytearray()
    found: list[bytes] = []
    while len(found) < count:
        one = take_frame(buffer)
        if one is not None:
            found.append(one)
            continue
        came = await peer.receive()
        assert came is not None, f"closed after {found}"
        assert came[0] == BINARY, came
        buffer += came[1]
    assert not buffer
    return found


@pytest.mark.statement("MQTT5-6.0.0-4", "MQTT311-6.0.0-4")
@pytest.mark.parametrize("offered", ["mqtt", "chat, mqtt"])
async def test_the_broker_chooses_mqtt(offered: str) -> None:
    async with opened() as peer:
        head = (await peer.handshake(subprotocols=offered)).lower()
        assert head.startswith(b"http/1.1 101 ")
        assert b"\r\nsec-websocket-protocol: mqtt\r\n" in head


@pytest.mark.statement("MQTT5-6.0.0-4", "MQTT311-6.0.0-4")
async def test_who_does_not_offer_mqtt_is_turned_away() -> None:
    async with opened() as peer:
        assert (await peer.handshake(subprotocols="chat")).startswith(b"HTTP/1.1 400 ")


@both_versions
@pytest.mark.statement("MQTT5-6.0.0-1", "MQTT311-6.0.0-1")
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "before CONNECT"])
async def test_a_text_frame_closes_the_connection(version: int, connected: bool) -> None:
    async with opened() as peer:
        await peer.handshake()
        if connected:
            await peer.send(connect_frame(string("c"), version=version))
            await packets(peer, 1)
        await peer.send(b"hello", TEXT)
        closing = await peer.receive()
        assert closing is not None
        assert (closing[0], closing[1][:2]) == (CLOSE, UNSUPPORTED_DATA)
        await peer.send(UNSUPPORTED_DATA, CLOSE)
        assert await peer.receive() is None


@both_versions
@pytest.mark.statement("MQTT5-6.0.0-1", "MQTT311-6.0.0-1")
async def test_a_data_frame_of_another_kind_closes_the_connection(version: int) -> None:
    async with opened() as peer:
        await peer.handshake()
        await peer.send(connect_frame(string("c"), version=version))
        await packets(peer, 1)
        await peer.send(b"\xc0\x00", 3)
        closing = await peer.receive()
        assert closing is not None
        assert closing[0] == CLOSE
        await peer.stream.aclose()


@both_versions
@pytest.mark.statement("MQTT5-6.0.0-1", "MQTT5-6.0.0-2", "MQTT311-6.0.0-1", "MQTT311-6.0.0-2")
async def test_many_packets_in_one_frame(version: int) -> None:
    async with opened() as peer:
        await peer.handshake()
        data = connect_frame(string("c"), version=version) + subscribe_frame(1, ("t", 2), version=version)
        data += publish_frame("t", b"x" * 300_000, version=version, first_byte=0x34, packet_id=2) + frame(0x62, u16(2)) + b"\xc0\x00"
        await peer.send(data)
        answers = await packets(peer, 6)
        assert [one[0] for one in answers[:2]] == [0x20, 0x90]
        assert {one[0] for one in answers[2:]} == {0x34, 0x50, 0x70, 0xD0}


@both_versions
@pytest.mark.statement("MQTT5-6.0.0-2", "MQTT311-6.0.0-2")
@pytest.mark.parametrize("cut", [1, 2, 7])
async def test_packets_cut_anywhere(version: int, cut: int) -> None:
    """Over frames, and over the frames of one message."""
    data = connect_frame(string("c"), version=version) + subscribe_frame(1, ("t", 1), version=version) + publish_frame("t", b"abc", version=version)
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    for fragments in (False, True):
        async with opened() as peer:
            await peer.handshake()
            for index, piece in enumerate(pieces):
                opcode = CONTINUATION if fragments and index else BINARY
                await peer.send(piece, opcode, fin=not fragments or index == len(pieces) - 1)
            answers = await packets(peer, 3)
            assert [one[0] & 0xF0 for one in answers] == [0x20, 0x90, 0x30]
            assert answers[2].endswith(b"abc")


# ---- our client ------------------------------------------------------------------------------------------------------------


class Counterpart:
    """A server by hand for one client: what was asked, what came, and what to say."""

    def __init__(self, subprotocol: str | None = "mqtt") -> None:
        self.subprotocol = subprotocol
        self.asked = b""
        self.section = b""
        self.frames: list[tuple[int, bytes]] = []
        self.peer: Peer | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        self.peer = peer = Peer(stream, is_client=False)
        self.asked = await peer.head()
        await stream.send_all(response(self.asked, self.subprotocol))
        buffer = bytearray()
        with suppress(trio.BrokenResourceError):
            while (one := await peer.receive()) is not None:
                self.frames.append(one)
                if one[0] == CLOSE:
                    await peer.send(one[1][:2], CLOSE)
                    return
                buffer += one[1]
                while (packet := take_frame(buffer)) is not None:
                    await self.answer(packet)

    async def answer(self, packet: bytes) -> None:
        assert self.peer is not None
        if packet[0] == 0x10:
            self.section = b"\x00" if packet[8] == 5 else b""
            await self.peer.send(frame(0x20, b"\x00\x00", self.section))
        elif packet[0] in (0x82, 0xA2):  # SUBSCRIBE, UNSUBSCRIBE; each packet here is shorter than 128 bytes
            reasons = b"\x00" if self.section or packet[0] == 0x82 else b""
            await self.peer.send(frame(packet[0] + 0x0E, packet[2:4], self.section, reasons))

    async def say(self, data: bytes) -> None:
        assert self.peer is not None
        await self.peer.stream.send_all(data)


@asynccontextmanager
async def against(counterpart: Counterpart, version: Version) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, counterpart.serve, 0, host="127.0.0.1"))
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/mqtt"
        async with connect(url, version=version, client_id="c", reconnect=None) as client:
            yield client
        nursery.cancel_scope.cancel()


@named_versions
@pytest.mark.statement("MQTT5-6.0.0-3", "MQTT311-6.0.0-3", side="client")
async def test_our_client_offers_mqtt(version: Version) -> None:
    counterpart = Counterpart()
    async with against(counterpart, version):
        pass
    offers = [line for line in counterpart.asked.lower().split(b"\r\n") if line.startswith(b"sec-websocket-protocol:")]
    assert offers == [b"sec-websocket-protocol: mqtt"]


@named_versions
@pytest.mark.statement("MQTT5-6.0.0-3", "MQTT311-6.0.0-3", side="client")
async def test_our_client_leaves_where_mqtt_is_not_chosen(version: Version) -> None:
    counterpart = Counterpart(subprotocol=None)
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectError, match="did not choose the subprotocol mqtt"), flatten_subgroups=True):
        async with against(counterpart, version):
            pass
    assert not [one for one in counterpart.frames if one[0] != CLOSE], "it sent packets all the same"


@named_versions
@pytest.mark.statement("MQTT5-6.0.0-1", "MQTT311-6.0.0-1", side="client")
async def test_our_client_sends_binary_frames_only(version: Version) -> None:
    counterpart = Counterpart()
    async with against(counterpart, version) as client:
        await client.publish("t", b"x" * 200_000)
    assert {opcode for opcode, _ in counterpart.frames} == {BINARY, CLOSE}
    assert counterpart.frames[-2][1][:1] == b"\xe0", "DISCONNECT comes before the close frame"


@named_versions
@pytest.mark.statement("MQTT5-6.0.0-1", "MQTT311-6.0.0-1", side="client")
async def test_our_client_closes_at_a_text_frame(version: Version) -> None:
    counterpart = Counterpart()
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost, match="a text message came"), flatten_subgroups=True):
        async with against(counterpart, version):
            await counterpart.say(websocket_frame(b"hello", TEXT, masked=False))
            await trio.sleep_forever()
    assert counterpart.frames[-1][0] == CLOSE
    assert counterpart.frames[-1][1][:2] == UNSUPPORTED_DATA


@named_versions
@pytest.mark.statement("MQTT5-6.0.0-2", "MQTT311-6.0.0-2", side="client")
async def test_our_client_takes_packets_however_they_are_cut(version: Version) -> None:
    counterpart = Counterpart()
    async with against(counterpart, version) as client, client.subscribe("t") as subscription:
        level = 5 if version == "5.0" else 4
        data = b"".join(publish_frame("t", bytes([n]) * 300, version=level) for n in range(3))
        await counterpart.say(websocket_frame(data, masked=False))
        for n in range(len(data)):
            await counterpart.say(websocket_frame(data[n : n + 1], masked=False))
        for n in range(len(data)):
            fin = n == len(data) - 1
            await counterpart.say(websocket_frame(data[n : n + 1], CONTINUATION if n else BINARY, fin=fin, masked=False))
        found: list[Message] = [await subscription.receive() for _ in range(9)]
        assert [message.payload for message in found] == [bytes([n]) * 300 for n in range(3)] * 3
