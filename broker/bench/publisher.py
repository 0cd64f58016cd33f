"""A publisher of a load: it keeps its window full, or to its rate, and is told by the subscribers how far they are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import trio

from broker.bench.endpoint import Endpoint
from broker.bench.frames import SEQUENCES_PER_RUN, Maker, acknowledgement_run, acknowledgements, numbers_of, payload_of
from broker.errors import BrokerError, ConnectionLost, NotSupported
from broker.net.transport import BROKEN, Transport
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_5, Packet, PubAck, PubComp, PubRec

if TYPE_CHECKING:
    from broker.bench.load import Load

BATCH_BYTES: Final = 65_536
"""Published with one send, at most."""
STALLED_S: Final = 30.0
_PUBACK: Final = 0x40
_PUBREC: Final = 0x50
_PUBREL: Final = 0x62
_PUBCOMP: Final = 0x70


class LoadStalled(BrokerError):
    """Nothing moved for a long time, though the plan wants more."""


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
