"""The engine's surroundings without any: `World` is a broker whose sockets are lists and whose clock is a number.

A `Peer` encodes packets, gives the bytes to `Engine.receive` and decodes what comes out, which must always be valid frames.
A peer whose `takes` is a number reads only that many bytes more: so a slow, a stuck or a dripping reader is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker.core.access import Authorize
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import Link
from broker.core.observer import Observer
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    NO_PROPERTIES,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
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

FRAME_BYTES_MAX = 1 << 28


class Record(Observer):
    """What the engine told its surroundings, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def connected(self, link: Link) -> None:
        self.events.append(("connected", link.client_id))

    def refused(self, link: Link, reason: ReasonCode, cause: str) -> None:
        self.events.append(("refused", link.client_id, reason, cause))

    def violation(self, link: Link, cause: str) -> None:
        self.events.append(("violation", link.client_id, cause))

    def disconnected(self, link: Link, cause: str, error: bool) -> None:
        self.events.append(("disconnected", link.client_id, cause, error))

    def dropped(self, client_id: str, reason: str, count: int) -> None:
        self.events.append(("dropped", client_id, reason, count))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == kind]


class World:
    """An engine, its clock `now`, and its peers."""

    takes_short_way = True
    """Is `sole_recipient` asked, as a connection does?"""

    def __init__(
        self,
        *,
        overflow: Mapping[str, str] | None = None,
        authorize: Authorize | None = None,
        asks_authentication: bool = False,
        response_information: str = "",
        on_authorize_error: Callable[[Exception], None] | None = None,
        **limits: Any,
    ) -> None:
        self.now = 1000.0
        self.record = Record()
        self._ids = 0
        self.engine = Engine(
            Limits(**limits),
            new_client_id=self._new_client_id,
            overflow=overflow or {},
            authorize=authorize,
            on_authorize_error=on_authorize_error,
            asks_authentication=asks_authentication,
            response_information=response_information,
            observer=self.record,
        )
        self.peers: dict[Link, Peer] = {}
        self.most_work = 0
        """The most work that one verb did."""

    @property
    def state(self) -> Any:
        return self.engine.state

    def _new_client_id(self) -> str:
        self._ids += 1
        return f"assigned-{self._ids}"

    def peer(self, name: str = "peer", version: int = MQTT_5, mount_point: str = "") -> Peer:
        """A byte stream, on which nothing has been said yet."""
        return Peer(self, self.engine.attach(name, self.now, mount_point=mount_point), version)

    def client(
        self, client_id: str, version: int = MQTT_5, *, clean: bool = True, expiry: int | None = None, will: WillMessage | None = None,
        keep_alive: int = 0, username: str | None = None, password: bytes | None = None, mount_point: str = "", **properties: Any,
    ) -> Peer:  # fmt: skip
        """A connected client; its CONNACK, which has to be a good one, is in `connack`."""
        peer = self.peer(client_id, version, mount_point)
        if expiry is not None:
            properties["session_expiry_interval"] = expiry
        packet = Connect(client_id, version, clean, keep_alive, will, username, password, Properties(**properties) if properties else NO_PROPERTIES)
        peer.send(packet)
        got = peer.take()
        assert got, "no CONNACK"
        assert isinstance(got[0], ConnAck), got
        assert got[0].reason == 0, got
        peer.connack = got[0]
        peer.inbox[:0] = got[1:]
        return peer

    def settle(self, rounds_max: int = 1_000_000) -> None:
        """Move bytes until nothing moves any more, as the surroundings would: flush who is ready, go on with what was left, tick."""
        engine = self.engine
        for _ in range(rounds_max):
            self._worked()
            ready = engine.take_ready()
            for link in ready:
                peer = self.peers.get(link)
                if peer is not None:
                    peer.flush()
            more = False
            for peer in list(self.peers.values()):
                if peer.more and not peer.link.paused:
                    peer.more = engine.receive(peer.link, b"", self.now) or peer.link.paused
                    self._worked()
                    more = True
            if engine.next_deadline() <= self.now:
                engine.tick(self.now)
                more = True
            if not more and not engine.state.ready:
                return
        raise AssertionError("it never comes to rest")

    def _worked(self) -> None:
        self.most_work = max(self.most_work, self.engine.state.work)

    def after(self, seconds: float) -> None:
        """Let time go by, stopping at each deadline."""
        end = self.now + seconds
        while (at := self.engine.next_deadline()) <= end:
            self.now = max(self.now, at)
            self.engine.tick(self.now)
            self.settle()
        self.now = end
        self.settle()

    def dropped(self, reason: str) -> int:
        return int(self.state.dropped.get(reason, 0))

    def end_all(self) -> None:
        """Every stream ends and every session's time runs out."""
        for peer in list(self.peers.values()):
            peer.detach()
        self.settle()
        self.after(1e12)

    def assert_empty(self) -> None:
        """Nothing of anybody is left (but retained messages)."""
        state = self.state
        assert (state.waiting.total_bytes, state.waiting.count) == (0, 0)
        assert not state.links
        assert not state.sessions
        assert state.connected_count == 0
        assert state.topics.subscriptions_count == 0
        assert state.topics.shared_count == 0
        assert not state.wills
        assert not state.orphans
        assert not state.backlog


class Peer:
    """The other end of a link."""

    def __init__(self, world: World, link: Link, version: int = MQTT_5) -> None:
        self.world = world
        self.link = link
        self.version = version
        self.connack: ConnAck | None = None
        self.inbox: list[Packet] = []
        """What came and was not taken."""
        self.raw = b""
        """All bytes that came."""
        self.aliases: dict[int, str] = {}
        """For tests that keep track of the Topic Aliases that came."""
        self.takes: float = float("inf")
        """So many bytes more does this peer's socket take."""
        self.more = False
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)
        world.peers[link] = self

    # ---- to the broker ----

    def give(self, data: bytes) -> None:
        """Bytes as they are."""
        world = self.world
        recipient = world.engine.sole_recipient(self.link, data) if world.takes_short_way else None
        if recipient is None:
            self.more = world.engine.receive(self.link, data, world.now) or self.link.paused
        else:
            peer = world.peers[recipient]
            world.engine.passed_on(self.link, recipient, data, peer._took(data), world.now)
        world.settle()

    def send(self, *packets: Packet) -> None:
        self.give(b"".join(encode(packet, self.version) for packet in packets))

    def publish(
        self, topic: str, payload: bytes = b"", qos: int = 0, packet_id: int = 0, *, retain: bool = False, dup: bool = False, **properties: Any
    ) -> None:
        self.send(Publish(topic, payload, qos, retain, dup, packet_id, Properties(**properties) if properties else NO_PROPERTIES))

    def subscribe(self, *requests: SubscriptionRequest | tuple[str, int] | str, packet_id: int = 1, identifier: int | None = None) -> tuple[int, ...]:
        """The codes of the SUBACK; what else came stays in the inbox."""
        asked = tuple(
            SubscriptionRequest(request) if isinstance(request, str) else SubscriptionRequest(*request) if isinstance(request, tuple) else request
            for request in requests
        )
        properties = Properties(subscription_identifiers=(identifier,)) if identifier else NO_PROPERTIES
        before = len(self.inbox)
        self.send(Subscribe(packet_id, asked, properties))
        for position, packet in enumerate(self.inbox[before:], before):
            if isinstance(packet, SubAck):
                del self.inbox[position]
                assert packet.packet_id == packet_id
                return packet.reasons
        raise AssertionError(f"no SUBACK but {self.inbox}")

    def unsubscribe(self, *filters: str, packet_id: int = 2) -> tuple[int, ...]:
        self.send(Unsubscribe(packet_id, filters))
        for position, packet in enumerate(self.inbox):
            if isinstance(packet, UnsubAck):
                del self.inbox[position]
                return packet.reasons
        raise AssertionError(f"no UNSUBACK but {self.inbox}")

    def acknowledge(self, packet: Publish) -> None:
        """Finish the exchange of a received message."""
        if packet.qos == 1:
            self.send(PubAck(packet.packet_id))
        elif packet.qos == 2:
            self.send(PubRec(packet.packet_id))
            assert self.pop(PubRel).packet_id == packet.packet_id
            self.send(PubComp(packet.packet_id))

    def disconnect(self, reason: ReasonCode = ReasonCode.SUCCESS, **properties: Any) -> None:
        self.send(Disconnect(reason, Properties(**properties) if properties else NO_PROPERTIES))
        self.detach()

    def detach(self) -> None:
        """The stream is gone, for both."""
        self.world.peers.pop(self.link, None)
        self.world.engine.detach(self.link, self.world.now)
        self.world.settle()

    def half_close(self) -> None:
        """It sends no more, but reads on."""
        self.world.engine.detach(self.link, self.world.now, still_reads=True)
        self.world.settle()

    # ---- from the broker ----

    def flush(self) -> None:
        """Take what the socket takes."""
        engine = self.world.engine
        (taken,) = engine.take_to_send([self.link], 65_536)
        if taken:
            count = self._took(taken)
            if count < len(taken):
                engine.give_back(self.link, taken, count)
            self.world._worked()
        if self.takes <= 0 and engine.data_to_send(self.link):
            engine.bytes_sent(self.link, 0, self.world.now)
        while self.takes > 0:
            data = engine.data_to_send(self.link)
            if not data:
                return
            engine.bytes_sent(self.link, self._took(data), self.world.now)
            self.world._worked()

    def _took(self, data: bytes | memoryview) -> int:
        count = int(min(len(data), self.takes))
        self.takes -= count
        chunk = bytes(data[:count])
        self.raw += chunk
        self._decoder.feed(chunk)
        while (frame := self._decoder.next_frame()) is not None:
            self.inbox.append(decode(frame[0], frame[1], self.link.version or self.version))  # any bytes may have said another one
        return count

    def read(self, count: float = float("inf")) -> None:
        """Take `count` bytes more, then as before."""
        self.takes = count
        self.flush()
        self.world.settle()

    def take(self) -> list[Packet]:
        """All that came since the last time."""
        got = self.inbox[:]
        self.inbox.clear()
        return got

    def pop(self, kind: type[Any]) -> Any:
        """The next packet, which has to be of that kind."""
        assert self.inbox, f"nothing came, {kind.__name__} was expected"
        assert isinstance(self.inbox[0], kind), self.inbox
        return self.inbox.pop(0)

    def messages(self) -> list[Publish]:
        """The PUBLISHes that came, taken; there has to be nothing else."""
        got = self.take()
        assert all(isinstance(packet, Publish) for packet in got), got
        return got  # type: ignore[return-value]  # just asserted

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages()]

    def ends_with(self, reason: ReasonCode) -> bool:
        """Was the last word a DISCONNECT (or a CONNACK) with this reason, and is the link closing?"""
        last = self.inbox[-1] if self.inbox else None
        return self.link.closing and isinstance(last, ConnAck | Disconnect) and last.reason == reason
