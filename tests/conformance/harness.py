"""A broker and clients of bytes, in one Trio run: what a test sends, what comes back, and how time passes.

    async with Scene(receive_maximum=2) as scene:
        alice = await scene.connect("alice", version=5)
        await alice.subscribe("a/#", qos=1)
        await alice.send(Publish("a/b", b"x", 1, packet_id=7), b"\xc0\x00")
        await alice.expect(PubAck(7))

Nothing is waited for with a timeout: `receive` lets every task run until all are blocked, and what has not come by then does
not come. `advance` lets (virtual) time pass. Bytes may be given wherever packets may be, and `frames` keeps all that came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import pytest
import trio
import trio.testing

from broker import Authenticate, Authorize, Broker, Overflow, ReasonCode, open_broker
from broker.net.memory import memory_stream_pair
from broker.wire.codec import decode, encode
from broker.wire.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    WillMessage,
)
from tests.conformance.wirebytes import take_frame

V5: Final = 5
V311: Final = 4
V31: Final = 3
NEVER: Final = 0xFFFF_FFFF

both_versions: Final = pytest.mark.parametrize("version", [V5, V311], ids=["5.0", "3.1.1"])
"""The rule is the same in both standards."""

P = TypeVar("P", bound=Packet)


class Scene:
    """One broker and the peers that talk to it. limits: keywords of `open_broker`. tcp: over a real socket, for tests marked `real_clock`."""

    def __init__(
        self,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        overflow: Mapping[str, Overflow] | None = None,
        tcp: bool = False,
        **limits: Any,
    ) -> None:
        listeners = ["mqtt://127.0.0.1:0"] if tcp else None
        self.tcp = tcp
        self._manager = open_broker(listeners=listeners, authenticate=authenticate, authorize=authorize, overflow=overflow, **limits)
        self._nursery_manager = trio.open_nursery()
        self._peers: list[Peer] = []
        self._broker: Broker | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def broker(self) -> Broker:
        assert self._broker is not None, "not entered"
        return self._broker

    async def __aenter__(self) -> Self:
        self._broker = await self._manager.__aenter__()
        self._nursery = await self._nursery_manager.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        await self._nursery_manager.__aexit__(None, None, None)
        for peer in self._peers:
            await trio.aclose_forcefully(peer.stream)
        await self._manager.__aexit__(kind, error, traceback)

    async def peer(self, version: int = V5) -> Peer:
        """A byte stream to the broker, nothing sent yet."""
        assert self._nursery is not None
        if self.tcp:
            host, _, port = self.broker.urls[0].removeprefix("mqtt://").rpartition(":")
            peer = Peer(await trio.open_tcp_stream(host, int(port)), version, patience_s=5)
        else:
            ours, theirs = memory_stream_pair()
            self._nursery.start_soon(self.broker.attach, theirs)
            peer = Peer(ours, version)
        self._peers.append(peer)
        self._nursery.start_soon(peer.read)
        return peer

    async def connect(self, client_id: str = "", version: int = V5, **options: Any) -> Peer:
        """A peer whose CONNECT was accepted; `peer.connack` is the answer. options: as `Peer.connect` has them."""
        peer = await self.peer(version)
        connack = await peer.connect(client_id, **options)
        assert connack.reason == ReasonCode.SUCCESS, connack
        return peer

    async def settle(self) -> None:
        """Until nobody has anything left to do at this time."""
        await trio.testing.wait_all_tasks_blocked()

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass, and what is due happen."""
        await trio.sleep(seconds)
        await self.settle()

    async def shutdown(self) -> None:
        """The broker says goodbye to all; `Scene` may be left after it."""
        assert self._nursery is not None
        self._nursery.start_soon(self.broker.shutdown, 5)
        await self.settle()


class Peer:
    """The client's end of one Network Connection. version: what it speaks; also how its packets are encoded and decoded."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, version: int, patience_s: float = 0) -> None:
        self.version = version
        self.patience_s = patience_s
        """How long what has to come may take in real time; 0 on memory streams, where it is there when nobody has anything left to do."""
        self.stream = stream
        self.connack: ConnAck | None = None
        self.frames: list[bytes] = []
        """Every frame that was received and looked at, in order."""
        self.ended = False
        """The broker has closed its sending side, or all of the connection."""
        self._buffer = bytearray()
        self._changed = trio.Event()
        self._packet_id = 0

    async def read(self) -> None:
        """The scene runs this."""
        try:
            while data := await self.stream.receive_some():
                self._buffer += data
                self._changed.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.ended = True
        self._changed.set()

    def next_id(self) -> int:
        self._packet_id += 1
        return self._packet_id

    # ---- out ----

    async def send(self, *items: bytes | Packet) -> None:
        """All of it in one write. A broker that has closed is no error: what it said is still to be read."""
        data = b"".join(item if isinstance(item, bytes) else encode(item, self.version) for item in items)
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.ended = True

    async def half_close(self) -> None:
        await self.stream.send_eof()

    async def drop(self) -> None:
        """The connection is lost, without a DISCONNECT."""
        await self.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()

    async def disconnect(self, reason: ReasonCode = ReasonCode.SUCCESS, **properties: Any) -> None:
        """DISCONNECT, then close."""
        await self.send(Disconnect(reason, Properties(**properties)))
        await trio.testing.wait_all_tasks_blocked()
        await self.drop()

    # ---- in ----

    async def _wait(self, happened: Callable[[], bool]) -> None:
        """Until nobody has anything left to do; over a socket, until it has happened or patience ends."""
        if not self.patience_s:
            await trio.testing.wait_all_tasks_blocked()
            return
        with trio.move_on_after(self.patience_s):
            while not happened():
                self._changed = trio.Event()
                await self._changed.wait()

    async def receive_frame(self) -> bytes:
        """The next frame as bytes; fails when there is none."""
        found = take_frame(self._buffer)
        if found is None:
            await self._wait(lambda: take_frame(bytearray(self._buffer)) is not None or self.ended)
            found = take_frame(self._buffer)
        assert found is not None, f"nothing came; {'closed' if self.ended else 'open'}, {len(self._buffer)} bytes of a frame"
        self.frames.append(found)
        return found

    async def receive(self) -> Packet:
        found = await self.receive_frame()
        start = 2
        while found[start - 1] & 0x80:
            start += 1
        return decode(found[0], found[start:], self.version)

    async def take(self, kind: type[P]) -> P:
        """The next packet, which is of this kind."""
        packet = await self.receive()
        assert isinstance(packet, kind), packet
        return packet

    async def receive_all(self) -> list[Packet]:
        """Everything that comes at this time."""
        found: list[Packet] = []
        await trio.testing.wait_all_tasks_blocked()
        while self._buffer:
            found.append(await self.receive())
            await trio.testing.wait_all_tasks_blocked()
        return found

    async def expect(self, *packets: Packet) -> None:
        """Exactly these, in this order."""
        for packet in packets:
            assert await self.receive() == packet

    async def expect_bytes(self, *frames: bytes) -> None:
        for expected in frames:
            found = await self.receive_frame()
            assert found == expected, f"{found.hex(' ')}, not {expected.hex(' ')}"

    async def expect_nothing(self) -> None:
        """No packet, and the connection stays open."""
        assert not self.patience_s, "over a socket nobody knows what has not come"
        await trio.testing.wait_all_tasks_blocked()
        if self._buffer:
            pytest.fail(f"came: {await self.receive()}")
        assert not self.ended, "closed"

    async def expect_open(self) -> None:
        """The broker answers a PINGREQ with nothing but PINGRESP."""
        await self.send(PingReq())
        await self.expect(PingResp())

    async def expect_closed(self, *reasons: int) -> None:
        """The broker closes. 5.0: after a DISCONNECT (before CONNACK: a CONNACK) with one of the reasons; without reasons any
        failure will do, or none. 3.1.1 has no words: not a byte comes."""
        await self._wait(lambda: self.ended)
        if self.version >= V5 and (reasons or self._buffer):
            goodbye = await self.receive()
            assert isinstance(goodbye, ConnAck if self.connack is None else Disconnect), goodbye
            assert goodbye.reason in reasons if reasons else goodbye.reason.failed, goodbye
        await self.expect_end()

    async def expect_end(self) -> None:
        """The broker closes, and nothing more comes."""
        await self._wait(lambda: self.ended)
        if self._buffer:
            pytest.fail(f"came before the close: {await self.receive()}")
        assert self.ended, "still open"

    async def _take_out(self, expected: bytes) -> None:
        """That frame, wherever it stands among those that have come; the others stay to be read."""
        await trio.testing.wait_all_tasks_blocked()
        others = bytearray()
        while (found := take_frame(self._buffer)) is not None and found != expected:
            others += found
        assert found == expected, f"{expected.hex(' ')} has not come"
        self._buffer[:0] = others

    # ---- whole exchanges ----

    async def connect(
        self,
        client_id: str = "",
        *,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        will: WillMessage | None = None,
        username: str | None = None,
        password: bytes | None = None,
        **properties: Any,
    ) -> ConnAck:
        """CONNECT and its answer. properties: fields of `Properties`."""
        await self.send(Connect(client_id, self.version, clean_start, keep_alive_s, will, username, password, Properties(**properties)))
        self.connack = await self.take(ConnAck)
        return self.connack

    async def subscribe(self, *filters: str | SubscriptionRequest, qos: int = 0, **options: Any) -> SubAck:
        """SUBSCRIBE and its answer. options: of `SubscriptionRequest`, and `identifier` for a Subscription Identifier."""
        identifier = options.pop("identifier", 0)
        requests = tuple(one if isinstance(one, SubscriptionRequest) else SubscriptionRequest(one, qos, **options) for one in filters)
        packet_id = self.next_id()
        await self.send(Subscribe(packet_id, requests, Properties(subscription_identifiers=(identifier,) if identifier else ())))
        suback = await self.take(SubAck)
        assert suback.packet_id == packet_id
        return suback

    async def unsubscribe(self, *filters: str) -> UnsubAck:
        packet_id = self.next_id()
        await self.send(Unsubscribe(packet_id, filters))
        unsuback = await self.take(UnsubAck)
        assert unsuback.packet_id == packet_id
        return unsuback

    async def publish(
        self, topic: str, payload: bytes = b"", qos: int = 0, *, retain: bool = False, packet_id: int | None = None, **properties: Any
    ) -> ReasonCode:
        """PUBLISH with its whole handshake; the reason of PUBACK or PUBREC. Use `send` where this peer may get other packets between."""
        packet_id = 0 if qos == 0 else packet_id or self.next_id()
        await self.send(Publish(topic, payload, qos, retain, False, packet_id, Properties(**properties)))
        if qos == 0:
            await trio.testing.wait_all_tasks_blocked()
            return ReasonCode.SUCCESS
        answer = await self.take(PubAck) if qos == 1 else await self.take(PubRec)
        assert answer.packet_id == packet_id
        if qos == 2 and not answer.reason.failed:
            await self.send(PubRel(packet_id))
            await self.expect(PubComp(packet_id))
        return answer.reason

    async def take_message(self) -> Publish:
        """The next packet, a PUBLISH, answered as its QoS asks."""
        message = await self.take(Publish)
        if message.qos == 1:
            await self.send(PubAck(message.packet_id))
        elif message.qos == 2:
            await self.send(PubRec(message.packet_id))
            await self._take_out(encode(PubRel(message.packet_id), self.version))
            await self.send(PubComp(message.packet_id))
        return message

    async def payloads(self) -> list[bytes]:
        """What messages come at this time, all answered."""
        found: list[bytes] = []
        await trio.testing.wait_all_tasks_blocked()
        while self._buffer:
            found.append((await self.take_message()).payload)
            await trio.testing.wait_all_tasks_blocked()
        return found
