"""The broker's own client core in the simulation, beside the scripted one: it comes back by itself, makes its subscriptions again, and
is held to the same books. What it says and hears is seen packet by packet, so that nothing is taken from its own word but the outcomes it
reports: a publish that it calls acknowledged has to be one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from broker.core.client import ClientProtocol
from broker.core.client_state import ClientOptions, Delivery, Outgoing
from broker.reasons import ReasonCode
from broker.testing.client import SimulatedClient
from broker.testing.ledger import BrokenPromise, Note, Receipt, View
from broker.wire.packets import (
    MQTT_5,
    NO_PROPERTIES,
    ConnAck,
    Disconnect,
    Packet,
    Properties,
    Publish,
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

PATIENCE_S = 1e9
"""It waits for a PINGRESP as long as it takes: whether a connection is dead is the script's to say."""


class OwnClient(SimulatedClient):
    def __init__(self, simulation: Simulation, index: int, spec: ClientSpec) -> None:
        super().__init__(simulation, index, spec)
        self.core: ClientProtocol | None = None
        self._publishing: dict[Outgoing, Note] = {}
        self._kept: list[Delivery] = []
        self._timer_at = 0.0
        self._is_new = False

    # ---- a connection ----

    def wants_clean(self, clean: bool) -> bool:
        """A program that wanted to start anew wants that until it has."""
        return clean or self._is_new

    def connect(self, clean: bool, expiry_s: int, will: WillMessage | None) -> None:
        """clean: as a program that starts anew, which knows nothing of what it was; otherwise as one that reconnects."""
        simulation = self.simulation
        now = simulation.now
        if clean:
            for view in self.views:
                view.certain_until = min(view.certain_until, simulation.serial)
        spec = self.spec
        options = ClientOptions(
            client_id=self.client_id,
            version=self.version,
            clean_start=clean,
            keep_alive_s=spec.keep_alive_s,
            session_expiry_s=expiry_s if self.version >= MQTT_5 else 0,
            will=will,
            username=spec.username,
            receive_maximum=spec.receive_maximum or 100,
            packet_bytes_max=spec.packet_bytes_max or 16_777_216,
            topic_alias_maximum=spec.topic_alias_maximum or 0,
            response_timeout_s=PATIENCE_S,
        )
        if clean or self.core is None:
            self.core = ClientProtocol(options, self._on_packet)
            self._publishing.clear()
            self._kept.clear()
            self.outgoing.clear()
            self._is_new = clean
        core = self.core
        core.options = options
        self.line = simulation.surroundings.open_line(self)
        self.connected = False
        self._asked.clear()
        core.begin_connection(now)
        self._after_verb()

    def disconnected(self) -> None:
        was_connected = self.connected
        super().disconnected()
        if self.core is not None:
            self.core.connection_lost(self.simulation.now)
            self._take_events(self.core)
        if was_connected:
            self.simulation.lost(self)

    def receive(self, data: bytes) -> None:
        assert self.core is not None
        self.core.receive(data, self.simulation.now)
        self._after_verb()

    def _after_verb(self) -> None:
        """What the surroundings owe the client's core after each verb."""
        core, line, now = self.core, self.line, self.simulation.now
        if core is None or line is None:
            return
        self._take_events(core)
        while data := core.data_to_send():
            line.up.send(data)
            core.bytes_sent(len(data), now)
            self._take_events(core)
        if core.closing:
            if "broke the protocol" in core.cause:
                raise BrokenPromise(f"{self.client_id}: {core.cause}")
            line.up.send(b"")
            line.down.frozen = True
            self.disconnected()
            return
        deadline = core.next_deadline()
        if deadline < 1e8 and deadline != self._timer_at:
            self._timer_at = deadline
            self.simulation.timeline.at(deadline, self._tick)

    def _tick(self) -> None:
        if self.core is not None and self.line is not None:
            self.core.tick(self.simulation.now)
            self._after_verb()

    # ---- what it does ----

    def publish(self, note: Note, alias: bool) -> None:
        assert self.core is not None
        note.qos = min(note.qos, self.simulation.maximum_qos)
        expiry_s = None if note.expires_at > 1e12 or self.version < MQTT_5 else round(note.expires_at - note.at)
        properties = NO_PROPERTIES if expiry_s is None else Properties(message_expiry_interval=expiry_s)
        packet = Publish(note.topic, note.payload, note.qos, note.retain, properties=properties)
        if not note.payload:
            note.sent_serial = self.simulation.serial  # it cannot be told by its payload when it leaves
            note.sends = 1
        outgoing = self.core.publish(packet, now=self.simulation.now)
        if not outgoing.done:
            self._publishing[outgoing] = note
            self.outgoing[outgoing.sequence] = (note, False)
        self._after_verb()

    def subscribe(self, how: dict[str, Any]) -> None:
        assert self.core is not None
        is_5 = self.version >= MQTT_5
        filters = [filter for filter in how["filters"] if is_5 or not filter.startswith("$share/")]
        if filters:
            requests = tuple(
                SubscriptionRequest(filter, how["qos"], how["no_local"], how["retain_as_published"], how["retain_handling"])
                if is_5
                else SubscriptionRequest(filter, how["qos"])
                for filter in filters
            )
            self.core.subscribe(requests, how["identifier"] or None)
            self._after_verb()

    def unsubscribe(self, filter: str) -> None:
        assert self.core is not None
        self.core.unsubscribe((filter,))
        self._after_verb()

    def ping(self) -> None:
        """It does that by itself."""

    def say_goodbye(self) -> None:
        assert self.core is not None
        assert self.line is not None
        self.core.disconnect(ReasonCode.SUCCESS, self.simulation.now)
        self._take_events(self.core)
        while data := self.core.data_to_send():
            self.line.up.send(data)
            self.core.bytes_sent(len(data), self.simulation.now)

    def hold(self, on: bool) -> None:
        self.holding = on
        if not on and self.core is not None:
            kept, self._kept = self._kept, []
            for delivery in kept:
                self.core.settle(delivery)
            self._after_verb()

    # ---- what is seen of it ----

    def _on_packet(self, direction: Literal["sent", "received"], packet: Packet, frame: bytes) -> None:
        serial = self.simulation.serial
        if isinstance(packet, ConnAck):
            if packet.reason != ReasonCode.SUCCESS:
                self.simulation.check_refusal(self, packet)
                return
            assert self.line is not None
            self.simulation.check_session_present(self.line, packet.session_present)
            self.connected = True
            self.connected_serial = serial
            self.stale = False
            self._is_new = False
        elif isinstance(packet, Publish) and direction == "sent":
            note = self.simulation.ledger.note_of(packet.payload) if packet.payload else None
            if note is not None:
                self._mark_sent(note)
                if packet.qos == 0:
                    note.refused = not self.simulation.ledger.may_use(self.spec.username, note.topic)
        elif isinstance(packet, Subscribe):
            most = self.simulation.maximum_qos
            views = [View(request.filter, min(request.qos, most), request.no_local, serial) for request in packet.subscriptions]
            for view in views:
                for old in self.views:
                    if old.filter == view.filter:
                        old.certain_until = min(old.certain_until, serial)
            self.views += views
            self.all_views += views
            self._asked[packet.packet_id] = views
        elif isinstance(packet, Unsubscribe):
            for view in self.views:
                if view.filter in packet.filters:
                    view.certain_until = min(view.certain_until, serial)
            self._asked[packet.packet_id] = View(packet.filters[0], 0, False, serial)
        elif isinstance(packet, SubAck):
            self._on_suback(packet)
        elif isinstance(packet, UnsubAck):
            self._on_unsuback(packet)
        elif isinstance(packet, Disconnect) and direction == "received":
            if packet.reason == ReasonCode.KEEP_ALIVE_TIMEOUT and self.line is not None and self.line.was_deaf:
                return  # it did not read the answer to a PINGREQ, and says no other before that
            self.simulation.check_goodbye(self, packet)

    def _take_events(self, core: ClientProtocol) -> None:
        for event in core.take_events():
            if isinstance(event, Delivery):
                self._on_received(event)
            elif isinstance(event, Outgoing) and event in self._publishing:
                self._on_done(event, self._publishing.pop(event))

    def _on_received(self, delivery: Delivery) -> None:
        packet = delivery.publish
        ledger = self.simulation.ledger
        note = ledger.note_of(packet.payload) if packet.payload else None
        if packet.payload and (note is None or note.topic != packet.topic or note.payload != packet.payload):
            raise BrokenPromise(f"{self.client_id} got on {packet.topic} what nobody sent there: {packet.payload[:60]!r}")
        if note is not None:
            number = 0 if self.line is None else self.line.number
            receipt = Receipt(note, packet.qos, packet.retain, packet.dup, number, self.simulation.serial)
            ledger.check_receipt(self, receipt)
            self.receipts.append(receipt)
        if self.holding:
            self._kept.append(delivery)
        elif self.core is not None:
            self.core.settle(delivery)

    def _on_done(self, outgoing: Outgoing, note: Note) -> None:
        self.outgoing.pop(outgoing.sequence, None)
        may = self.simulation.ledger.may_use(self.spec.username, note.topic)
        if outgoing.outcome == "acknowledged" and outgoing.qos > 0:
            note.acked_serial = min(note.acked_serial, self.simulation.serial)
            if not may and self.version >= MQTT_5:
                raise BrokenPromise(f"{self.client_id} may not publish {note.key}, and was told that it went well")
            note.refused = note.refused or not may
        elif outgoing.outcome == "refused":
            note.acked_serial = min(note.acked_serial, self.simulation.serial)
            note.refused = True
            self.simulation.check_refused_publish(self, note, outgoing.reason)
