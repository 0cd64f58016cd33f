"""One connection of a load: a subscriber that checks what comes and acknowledges it, or a publisher that keeps its window full."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Final

import trio
from msgspec.structs import replace

from broker.bench.frames import SEQUENCES_PER_RUN, Checker, Maker, Run, acknowledgement_run, acknowledgements, numbers_of, payload_of
from broker.bench.ledger import Stream
from broker.core.client_goodbye import explanation
from broker.errors import BrokerError, ConnectionLost, ConnectRefused, NotSupported, PeerError, SubscribeRefused
from broker.net.transport import BROKEN, Transport, receive
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import PACKET_BYTES_LARGEST, FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
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
)

if TYPE_CHECKING:
    from broker.bench.load import Load

CONNECT_TIMEOUT_S: Final = 10.0
DIALS_COUNT_MAX: Final = 64
"""Connections being opened at a time."""
BATCH_BYTES: Final = 65_536
"""Published with one send, at most."""
STALLED_S: Final = 30.0
_PUBACK, _PUBREC, _PUBREL, _PUBCOMP = 0x40, 0x50, 0x62, 0x70


class LoadStalled(BrokerError):
    """Nothing moved for a long time, though the plan wants more."""


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

    async def say_goodbye(self) -> None:
        if self.broken_off:
            return
        try:
            await self.send(encode(Disconnect(), self.load.plan.version))
            if self.transport.half_closes:
                await self.transport.end()
        except BROKEN:
            return  # it has gone by itself


class Subscriber(Endpoint):
    letter = "s"

    def __init__(self, load: Load, number: int, client_id: str, transport: Transport) -> None:
        super().__init__(load, number, client_id, transport)
        self.granted_qos = load.plan.qos
        self.streams: dict[int, Stream] = {}
        self._checker = Checker(load.token, load.plan.payload_bytes)

    async def open(self) -> None:
        """And SUBSCRIBE. Raises SubscribeRefused."""
        await super().open()
        plan = self.load.plan
        topic = plan.topic_of(self.number)
        await self.send(encode(Subscribe(1, (SubscriptionRequest(topic, plan.qos),)), plan.version))
        answer = await self._next_packet()
        while isinstance(answer, Publish):  # a retained message, which may come first
            answer = await self._next_packet()
        if not isinstance(answer, SubAck):
            raise ConnectionLost(f"{self.client_id}: the broker answered SUBSCRIBE with {type(answer).__name__.upper()}")
        if answer.reasons[0].failed:
            raise SubscribeRefused(topic, answer.reasons[0])
        self.granted_qos = int(answer.reasons[0])

    def take_run(self, decoder: FrameDecoder, answers: list[bytes], now: float) -> bool:
        data = decoder.data
        position = decoder.position
        first = data[position]
        if first == _PUBREL:
            ids = acknowledgement_run(data, position, _PUBREL)
            if not ids:
                return False
            decoder.position = position + 2 * len(ids)
            answers.append(acknowledgements(_PUBCOMP, ids))
            return True
        run = self._checker.match(data, position)
        if run is None:
            return False
        decoder.position = run.stop
        self._take(run, now)
        if run.ids:
            answers.append(acknowledgements(_PUBREC if first & 0x04 else _PUBACK, run.ids))
        return True

    def take_packet(self, packet: Packet, frame: bytes, answers: list[bytes], now: float) -> None:
        version = self.load.plan.version
        if isinstance(packet, Publish):
            stamp = self._checker.publisher_of(packet.payload)
            if stamp is None or packet.topic != self.load.plan.topic_of(self.number):
                self.load.foreign_count += 1
            else:
                if not packet.dup:
                    self._checker.learn(frame, packet)
                publisher, sequence, sent_ns = stamp
                self._take(Run(publisher, sequence, 1, [(sent_ns, 1)], b"", 0), now)
            if packet.qos:
                answers.append(encode(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id), version))
        elif isinstance(packet, PubRel):
            answers.append(encode(PubComp(packet.packet_id), version))
        else:
            self.load.unexpected_count += 1

    def _take(self, run: Run, now: float) -> None:
        load = self.load
        publishers = load.publishers
        if run.publisher >= len(publishers) or (run.publisher - self.number) % load.plan.topics_count:
            load.foreign_count += run.count  # on a topic that this publisher does not publish to
            return
        load.received_count += run.count
        now_ns = int(now * 1e9)
        for sent_ns, count in run.times_ns:
            load.recent.add(now_ns - sent_ns, count)
            if sent_ns >= load.measure_from_ns:
                load.latency.add(now_ns - sent_ns, count)
        stream = self.stream_of(run.publisher)
        before = stream.distinct_count
        stream.take(run.first, run.count)
        publishers[run.publisher].delivered(stream.distinct_count - before, stream.credit(stream.next_sequence))

    def stream_of(self, publisher: int) -> Stream:
        stream = self.streams.get(publisher)
        if stream is None:
            stream = self.streams[publisher] = Stream()
        return stream


class Publisher(Endpoint):
    letter = "p"

    def __init__(self, load: Load, number: int, client_id: str, transport: Transport) -> None:
        super().__init__(load, number, client_id, transport)
        plan = load.plan
        self.fan_out = plan.fan_out(number)
        self.sent_count = 0
        self.refused_count = 0
        payload = payload_of(load.token, number, plan.payload_bytes)
        self._maker = Maker(plan.topic_of(number), payload, plan.qos, plan.version, plan.publish_properties)
        self._batch_count = max(1, BATCH_BYTES // self._maker.size)
        self._distinct_count = 0
        """Deliveries, each message once for each subscriber."""
        self._credited_count = 0
        """Deliveries that came, that later ones have overtaken, or that were given up waiting for."""
        self._room: trio.Event | None = None
        self._free_ids: list[int] = []
        self.unacknowledged: set[int] = set()
        self.released: set[int] = set()
        """QoS 2: PUBREL sent."""

    async def open(self) -> None:
        await super().open()
        assert self.connack is not None
        properties = self.connack.properties
        plan = self.load.plan
        if properties.maximum_packet_size is not None and self._maker.size > properties.maximum_packet_size:
            raise NotSupported(f"a message is {self._maker.size:,} bytes long, and the broker takes at most {properties.maximum_packet_size:,}")
        if plan.qos:
            receive_maximum = properties.receive_maximum or 65_535
            self._free_ids = list(range(1, 1 + min(plan.window, receive_maximum, 65_535)))

    # ---- the window ----

    def delivered(self, distinct_count: int, credited_count: int) -> None:
        """A subscriber got so many new messages, and has come so much further."""
        self._distinct_count += distinct_count
        self._credited_count += credited_count
        self._wake()

    def _wake(self) -> None:
        if self._room is not None:
            self._room.set()

    def is_settled(self) -> bool:
        """Has everything come that is owed?"""
        done = self._distinct_count >= (self.sent_count - self.refused_count) * self.fan_out
        return done and not self.unacknowledged and not self.released

    def _room_count(self) -> int:
        plan = self.load.plan
        room = min(self._batch_count, SEQUENCES_PER_RUN - self.sent_count % SEQUENCES_PER_RUN)
        if self.fan_out and plan.rate is None:
            under_way = self.sent_count - self.refused_count - self._credited_count // self.fan_out
            room = min(room, plan.window - under_way)
        if plan.qos:
            room = min(room, len(self._free_ids))
        if plan.count is not None:
            room = min(room, plan.count - self.sent_count)
        return room

    async def _wait_for_room(self, now: float) -> None:
        load = self.load
        self._room = trio.Event()
        with trio.move_on_at(min(load.stop_at, now + max(load.plan.drain_s, 0.1))) as scope:
            await self._room.wait()
        self._room = None
        if scope.cancelled_caught and trio.current_time() < load.stop_at:
            if trio.current_time() - load.moved_at > STALLED_S:
                raise LoadStalled(f"nothing has come from the broker for {STALLED_S:g} s")
            # What has not come by now will not come; if it does, it is counted all the same.
            for subscriber in load.subscribers[self.number % load.plan.topics_count :: load.plan.topics_count]:
                self._credited_count += subscriber.stream_of(self.number).credit(self.sent_count)

    # ---- publishing ----

    async def publish(self) -> None:
        """Until the plan's end."""
        load = self.load
        plan = load.plan
        try:
            while True:
                now = trio.current_time()
                if now >= load.stop_at or (plan.count is not None and self.sent_count >= plan.count):
                    return
                room = self._room_count()
                if plan.rate is not None:
                    due = self._due_count(now)
                    if due <= 0:
                        await trio.sleep_until(min(self._due_at(self.sent_count), load.stop_at))
                        continue
                    room = min(room, due)
                if room <= 0:
                    await self._wait_for_room(now)
                    continue
                await self._send_batch(room, now)
                await trio.lowlevel.checkpoint()
        except BROKEN as error:
            raise ConnectionLost(f"{self.client_id}: the connection was lost while publishing") from error

    async def _send_batch(self, count: int, now: float) -> None:
        load = self.load
        first = self.sent_count
        ids: array[int] | None = None
        if load.plan.qos:
            ids = array("H", self._free_ids[:count])
            del self._free_ids[:count]
            self.unacknowledged.update(ids)
        times: int | array[int] = int(now * 1e9)
        if load.plan.rate is not None:
            # From the time when it was to be sent: a broker that holds us up does not make its own latency look better.
            times = array("Q", [int(self._due_at(number) * 1e9) for number in range(first, first + count)])
        self.sent_count += count
        load.published_count += count
        await self.send(self._maker.make(first, times, count, ids))

    def _due_at(self, number: int) -> float:
        """When this publisher's message of that number is to go: the publishers take turns."""
        plan = self.load.plan
        assert plan.rate is not None
        return self.load.began_at + (number * plan.publishers_count + self.number) / plan.rate

    def _due_count(self, now: float) -> int:
        plan = self.load.plan
        assert plan.rate is not None
        return int(((now - self.load.began_at) * plan.rate - self.number) / plan.publishers_count + 1) - self.sent_count

    # ---- acknowledgements ----

    def take_run(self, decoder: FrameDecoder, answers: list[bytes], now: float) -> bool:
        first = decoder.data[decoder.position]
        if first not in (_PUBACK, _PUBREC, _PUBCOMP):
            return False
        ids = acknowledgement_run(decoder.data, decoder.position, first)
        if not ids:
            return False
        decoder.position += 2 * len(ids)
        self._acknowledged(first, numbers_of("H", ids), answers)
        return True

    def _acknowledged(self, kind: int, ids: Iterable[int], answers: list[bytes]) -> None:
        waiting = self.released if kind == _PUBCOMP else self.unacknowledged
        ids = list(ids)
        known = waiting.intersection(ids)
        self.load.unexpected_count += len(ids) - len(known)
        waiting -= known
        if kind == _PUBREC:
            self.released |= known
            answers.append(acknowledgements(_PUBREL, array_bytes(ids)))
        else:
            self._free_ids.extend(known)
            self._wake()

    def take_packet(self, packet: Packet, frame: bytes, answers: list[bytes], now: float) -> None:
        if not isinstance(packet, PubAck | PubRec | PubComp):
            self.load.unexpected_count += 1
            return
        kind = frame[0]
        if packet.reason.failed and self.load.plan.version >= MQTT_5:
            self.refused_count += 1
            self.load.refused_count += 1
            kind = _PUBACK  # after a refusal there is no second half
        self._acknowledged(kind, (packet.packet_id,), answers)


def array_bytes(ids: list[int]) -> bytes:
    return b"".join([packet_id.to_bytes(2, "big") for packet_id in ids])
