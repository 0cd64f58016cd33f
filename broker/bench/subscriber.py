"""A subscriber of a load: it checks what comes, and acknowledges it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.bench.endpoint import Endpoint
from broker.bench.frames import Checker, Run, acknowledgement_run, acknowledgements
from broker.bench.ledger import Stream
from broker.errors import ConnectionLost, SubscribeRefused
from broker.net.transport import Transport
from broker.wire.codec import encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import Packet, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe, SubscriptionRequest

if TYPE_CHECKING:
    from broker.bench.load import Load

_PUBACK: Final = 0x40
_PUBREC: Final = 0x50
_PUBREL: Final = 0x62
_PUBCOMP: Final = 0x70


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
