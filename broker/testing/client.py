"""A small MQTT client for simulations: what the standard asks of one, written without looking at `broker.core.client`, so that a fault
of either shows in the other. It follows the rules itself and holds the broker to them: whatever the broker may not do raises
`BrokenPromise` at once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from broker.reasons import ReasonCode
from broker.testing.ledger import NEVER, BrokenPromise, Note, Receipt, View
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    MQTT_31,
    NO_PROPERTIES,
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

if TYPE_CHECKING:
    from broker.testing.script import ClientSpec
    from broker.testing.simulation import Simulation
    from broker.testing.wire import Line

FRAME_BYTES_MAX = 1 << 28
EXPECTED_GOODBYES = {ReasonCode.SESSION_TAKEN_OVER, ReasonCode.SERVER_SHUTTING_DOWN, ReasonCode.ADMINISTRATIVE_ACTION}


class SimulatedClient:
    def __init__(self, simulation: Simulation, index: int, spec: ClientSpec) -> None:
        self.simulation = simulation
        self.index = index
        self.spec = spec
        self.client_id = spec.client_id
        self.version = spec.version
        self.line: Line | None = None
        self.connected = False
        self.connected_serial = NEVER
        self.holding = False
        """Acknowledgements are kept back."""
        self.is_whole = False
        """At the end: its session has come through, so that all that was promised to it must be there."""
        # Of the session.
        self.views: list[View] = []
        self.receipts: list[Receipt] = []
        self.receipts_by_epoch: list[list[Receipt]] = [self.receipts]
        self.all_views: list[View] = []
        self.losses: list[int] = []
        self.stale = False
        """The broker has begun a new session, and we have not been told yet."""
        self.outgoing: dict[int, tuple[Note, bool]] = {}
        """Packet id: (message, True once PUBREL was sent)."""
        self.waiting: deque[tuple[Note, bool]] = deque()
        self.held: dict[int, Receipt] = {}
        """QoS 2 ids received and not released."""
        self._last_id = 0
        # Of the connection.
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)
        self._aliases_in: dict[int, str] = {}
        self._aliases_out: dict[str, int] = {}
        self._alias_maximum = 0
        self._quota = 0
        self._on_this_connection: dict[int, None] = {}
        self._unfinished_in: dict[int, None] = {}
        self._kept_answers: list[Packet] = []
        self._asked: dict[int, list[View] | View] = {}
        self._unproven: list[Note] = []
        """QoS 0 messages sent, of which nothing says yet that they arrived."""
        self._pings: deque[int] = deque()

    @property
    def all_receipts(self) -> list[Receipt]:
        return [receipt for receipts in self.receipts_by_epoch for receipt in receipts]

    @property
    def has_retain_as_published(self) -> bool:
        return self.simulation.uses_retain_as_published

    def lost_session_since(self, serial: int) -> bool:
        return any(loss > serial for loss in self.losses) or not self.is_whole

    # ---- the session ----

    def lose_session(self, serial: int) -> None:
        """From the broker's side: it serves this client with a new session from now on."""
        for view in self.views:
            view.certain_until = min(view.certain_until, serial)
            view.gone_serial = min(view.gone_serial, serial)
        self.views = []
        self.receipts = []
        self.receipts_by_epoch.append(self.receipts)
        self.losses.append(serial)
        self.stale = True
        for note, _ in self.outgoing.values():
            note.may_repeat = True

    def _forget_session(self) -> None:
        """Our own side of it."""
        self.stale = False
        self.outgoing.clear()
        self.waiting.clear()
        self.held.clear()

    # ---- a connection ----

    def wants_clean(self, clean: bool) -> bool:
        return clean

    def connect(self, clean: bool, expiry_s: int, will: WillMessage | None) -> None:
        simulation = self.simulation
        self.line = line = simulation.surroundings.open_line(self)
        self.connected = False
        self.connected_serial = NEVER
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)
        self._aliases_in.clear()
        self._aliases_out.clear()
        self._unfinished_in.clear()
        self._on_this_connection.clear()
        self._kept_answers.clear()
        self._asked.clear()
        self._unproven.clear()
        self._pings.clear()
        spec = self.spec
        properties = NO_PROPERTIES
        if self.version >= MQTT_5:
            properties = Properties(
                session_expiry_interval=expiry_s or None,
                receive_maximum=spec.receive_maximum,
                maximum_packet_size=spec.packet_bytes_max,
                topic_alias_maximum=spec.topic_alias_maximum,
            )
        if clean:
            for view in self.views:
                view.certain_until = min(view.certain_until, simulation.serial)
        packet = Connect(self.client_id, self.version, clean, spec.keep_alive_s, will, spec.username, None, properties)
        line.up.send(encode(packet, self.version))

    def disconnected(self) -> None:
        """The stream is over, or given up."""
        self.line = None
        self.connected = False
        self.connected_serial = NEVER

    def _send(self, packet: Packet) -> None:
        if self.line is not None:
            self.line.up.send(encode(packet, self.version))

    # ---- what it does ----

    def publish(self, note: Note, alias: bool) -> None:
        if note.qos > self.simulation.maximum_qos:
            note.qos = self.simulation.maximum_qos
        if note.qos == 0:
            self._mark_sent(note)
            self._send_publish(note, 0, False, alias)
            note.refused = not self.simulation.ledger.may_use(self.spec.username, note.topic)
            self._unproven.append(note)
        else:
            self.waiting.append((note, alias))
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self.waiting and self._quota > 0 and self.connected:
            note, alias = self.waiting.popleft()
            packet_id = self._take_id()
            self._quota -= 1
            self.outgoing[packet_id] = (note, False)
            self._on_this_connection[packet_id] = None
            self._mark_sent(note)
            self._send_publish(note, packet_id, False, alias)

    def _mark_sent(self, note: Note) -> None:
        if note.sends == 0:
            note.sent_serial = self.simulation.serial
        note.sends += 1

    def _send_publish(self, note: Note, packet_id: int, dup: bool, use_alias: bool) -> None:
        properties = NO_PROPERTIES
        topic = note.topic
        if self.version >= MQTT_5:
            expiry_s = None if note.expires_at > 1e12 else round(note.expires_at - note.at)
            number = self._aliases_out.get(topic)
            alias = None
            if use_alias and number is None and len(self._aliases_out) < self._alias_maximum:
                alias = self._aliases_out[topic] = len(self._aliases_out) + 1
            elif use_alias and number is not None:
                alias = number
                topic = ""
            if alias is not None or expiry_s is not None:
                properties = Properties(message_expiry_interval=expiry_s, topic_alias=alias)
        self._send(Publish(topic, note.payload, note.qos, note.retain, dup, packet_id, properties))

    def _take_id(self) -> int:
        while True:
            self._last_id = self._last_id % 65_535 + 1
            if self._last_id not in self.outgoing and self._last_id not in self._asked:
                return self._last_id

    def subscribe(self, how: dict[str, Any]) -> None:
        is_5 = self.version >= MQTT_5
        packet_id = self._take_id()
        views = []
        requests = []
        serial = self.simulation.serial
        filters = [filter for filter in how["filters"] if is_5 or not filter.startswith("$share/")]
        if not filters:
            return
        for filter in filters:
            qos = min(how["qos"], self.simulation.maximum_qos)
            for old in self.views:
                if old.filter == filter:
                    old.certain_until = min(old.certain_until, serial)
            view = View(filter, qos, how["no_local"] and is_5, serial)
            self.views.append(view)
            self.all_views.append(view)
            views.append(view)
            requests.append(
                SubscriptionRequest(filter, how["qos"], how["no_local"], how["retain_as_published"], how["retain_handling"])
                if is_5
                else SubscriptionRequest(filter, how["qos"])
            )
        self._asked[packet_id] = views
        identifier = how["identifier"]
        properties = Properties(subscription_identifiers=(identifier,)) if is_5 and identifier else NO_PROPERTIES
        self._send(Subscribe(packet_id, tuple(requests), properties))

    def unsubscribe(self, filter: str) -> None:
        packet_id = self._take_id()
        gone = View(filter, 0, False, self.simulation.serial)
        for view in self.views:
            if view.filter == filter:
                view.certain_until = min(view.certain_until, self.simulation.serial)
        self._asked[packet_id] = gone
        self._send(Unsubscribe(packet_id, (filter,)))

    def ping(self) -> None:
        self._pings.append(len(self._unproven))
        self._send(PingReq())

    def say_goodbye(self) -> None:
        self._send(Disconnect())

    def hold(self, on: bool) -> None:
        self.holding = on
        if not on:
            kept, self._kept_answers = self._kept_answers, []
            for packet in kept:
                self._answer(packet)

    # ---- what comes ----

    def receive(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (frame := self._decoder.next_frame()) is not None:
            packet = decode(frame[0], frame[1], self.version)
            limit = self.spec.packet_bytes_max
            if limit is not None and len(frame[1]) + 2 > limit:
                raise BrokenPromise(f"{self.client_id} was sent {len(frame[1]) + 2} bytes and takes {limit}")
            self._handle(packet)
            if self.line is None:
                return

    def _handle(self, packet: Packet) -> None:
        if isinstance(packet, ConnAck):
            self._on_connack(packet)
        elif not self.connected:
            raise BrokenPromise(f"{self.client_id} got {packet} before CONNACK")
        elif isinstance(packet, Publish):
            self._on_publish(packet)
        elif isinstance(packet, (PubAck, PubRec)):
            self._on_ack(packet)
        elif isinstance(packet, PubRel):
            self.held.pop(packet.packet_id, None)
            self._answer(PubComp(packet.packet_id))
        elif isinstance(packet, PubComp):
            if packet.packet_id not in self.outgoing:
                raise BrokenPromise(f"{self.client_id} got a PUBCOMP that it does not wait for: {packet.packet_id}")
            self._finish_outgoing(packet.packet_id)
        elif isinstance(packet, SubAck):
            self._on_suback(packet)
        elif isinstance(packet, UnsubAck):
            self._on_unsuback(packet)
        elif isinstance(packet, PingResp):
            count = self._pings.popleft()
            for note in self._unproven[:count]:
                note.acked_serial = self.simulation.serial
            del self._unproven[:count]
            self._pings = deque(left - count for left in self._pings)
        elif isinstance(packet, Disconnect):
            self.simulation.check_goodbye(self, packet)
        else:
            raise BrokenPromise(f"{self.client_id} got {packet}")

    def _on_connack(self, packet: ConnAck) -> None:
        if self.connected:
            raise BrokenPromise(f"{self.client_id} got a second CONNACK")
        if packet.reason != ReasonCode.SUCCESS:
            self.simulation.check_refusal(self, packet)
            return
        assert self.line is not None
        present = packet.session_present
        if self.version > MQTT_31:  # MQTT 3.1 has no such flag: its client has to know by itself
            self.simulation.check_session_present(self.line, present)
        else:
            present = True
        self.connected = True
        self.connected_serial = self.simulation.serial
        self._alias_maximum = packet.properties.topic_alias_maximum or 0
        self._quota = packet.properties.receive_maximum or 65_535
        if not present or self.stale:
            self._forget_session()
        for packet_id, (note, released) in self.outgoing.items():
            if released:
                self._send(PubRel(packet_id))
            else:
                self._quota -= 1
                self._on_this_connection[packet_id] = None
                self._mark_sent(note)
                self._send_publish(note, packet_id, True, False)
        self._send_waiting()

    def _on_publish(self, packet: Publish) -> None:
        topic = packet.topic
        alias = packet.properties.topic_alias
        if alias is not None:
            if alias > (self.spec.topic_alias_maximum or 0) or (not topic and alias not in self._aliases_in):
                raise BrokenPromise(f"{self.client_id} got Topic Alias {alias}, which is not set or too high")
            if topic:
                self._aliases_in[alias] = topic
            topic = self._aliases_in[alias]
        packet_id = packet.packet_id
        repeated = packet.qos == 2 and packet_id in self.held
        if packet.qos:
            if not packet.dup and (packet_id in self._unfinished_in or repeated):
                raise BrokenPromise(f"{self.client_id} got packet id {packet_id} for something new while it is in use")
            self._unfinished_in[packet_id] = None
            most = min(self.spec.receive_maximum or 65_535, self.simulation.limits.inflight_count_max)
            if len(self._unfinished_in) > most:
                raise BrokenPromise(f"{self.client_id} has {len(self._unfinished_in)} unfinished messages, above {most}")
        note = self.simulation.ledger.note_of(packet.payload) if packet.payload else None
        if packet.payload and (note is None or note.topic != topic or note.payload != packet.payload):
            raise BrokenPromise(f"{self.client_id} got on {topic} what nobody sent there: {packet.payload[:60]!r}")
        if note is not None and not repeated:
            receipt = Receipt(note, packet.qos, packet.retain, packet.dup, 0 if self.line is None else self.line.number, self.simulation.serial)
            if packet.qos == 2:
                self.held[packet_id] = receipt
            self.simulation.ledger.check_receipt(self, receipt)
            expiry_s = packet.properties.message_expiry_interval
            if expiry_s is not None and (note.expires_at > 1e12 or not (0 if packet.dup else 1) <= expiry_s <= round(note.expires_at - note.at)):
                raise BrokenPromise(f"{note.key} came with {expiry_s} s to live, of {note.expires_at - note.at}")
            self.receipts.append(receipt)
        elif packet.qos == 2 and not repeated:
            self.held[packet_id] = Receipt(Note("", "", 0, topic, b"", 2, False), 2, False, False, 0, 0)
        if packet.qos == 1:
            self._answer(PubAck(packet_id))
        elif packet.qos == 2:
            self._answer(PubRec(packet_id))

    def _answer(self, packet: PubAck | PubRec | PubComp | Packet) -> None:
        if self.holding:
            self._kept_answers.append(packet)
            return
        if isinstance(packet, (PubAck, PubComp)):
            self._unfinished_in.pop(packet.packet_id, None)
        self._send(packet)

    def _on_ack(self, packet: PubAck | PubRec) -> None:
        known = self.outgoing.get(packet.packet_id)
        if known is None or known[0].qos != (1 if isinstance(packet, PubAck) else 2):
            raise BrokenPromise(f"{self.client_id} got {packet}, which it does not wait for")
        note, released = known
        note.acked_serial = min(note.acked_serial, self.simulation.serial)
        if packet.reason.failed:
            note.refused = True
            self.simulation.check_refused_publish(self, note, packet.reason)
        elif not self.simulation.ledger.may_use(self.spec.username, note.topic):
            if self.version >= MQTT_5:
                raise BrokenPromise(f"{self.client_id} may not publish {note.key}, and was told that it went well")
            note.refused = True  # 3.1.1 has no word for it
        if isinstance(packet, PubAck) or packet.reason.failed:
            self._finish_outgoing(packet.packet_id)
        elif not released:
            self.outgoing[packet.packet_id] = (note, True)
            self._send(PubRel(packet.packet_id))

    def _finish_outgoing(self, packet_id: int) -> None:
        del self.outgoing[packet_id]
        if packet_id in self._on_this_connection:
            del self._on_this_connection[packet_id]
            self._quota += 1
        self._send_waiting()

    def _on_unsuback(self, packet: UnsubAck) -> None:
        gone = self._asked.pop(packet.packet_id)
        assert isinstance(gone, View)
        for view in self.views:
            if view.filter == gone.filter and view.asked_serial < gone.asked_serial:
                view.gone_serial = min(view.gone_serial, self.simulation.serial)

    def _on_suback(self, packet: SubAck) -> None:
        views = self._asked.pop(packet.packet_id)
        assert isinstance(views, list)
        serial = self.simulation.serial
        for view, reason in zip(views, packet.reasons, strict=True):
            if reason != view.qos:
                raise BrokenPromise(f"{self.client_id} asked for {view.filter} at QoS {view.qos} and was answered {reason!r}")
            view.certain_from = serial
            for old in self.views:
                if old.filter == view.filter and old.asked_serial < view.asked_serial:
                    old.gone_serial = min(old.gone_serial, serial)
