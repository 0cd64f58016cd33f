"""Messages from the broker until they are acknowledged: order of arrival, held ids, Receive Maximum and aliases of a client.

PUBACK and PUBREC leave in the order in which their PUBLISHes came over the whole connection [MQTT5-4.6.0-2, -3]: a settled message
waits behind an older unsettled one. What is unsettled outlives the connection: the broker will repeat it on the next, and the
program that has it in hand must not get it twice.
"""

from __future__ import annotations

from collections import deque

from msgspec import structs

from broker.core.client_state import ClientOptions, Delivery
from broker.core.inflight import Receiver
from broker.errors import ProtocolError
from broker.reasons import ReasonCode
from broker.wire.codec import acknowledgement
from broker.wire.packets import MQTT_5, Publish


class ClientInbox:
    __slots__ = ("_aliases", "_doubted", "_options", "_queue", "_receiver", "_receiving", "_receiving_max", "_releasing", "_unsettled", "connection")

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self.connection = 0
        self._receiver = Receiver()
        self._doubted: set[int] = set()
        """Held ids that may be of another Session than the one that goes on, until the broker says something of them."""
        self._unsettled: dict[int, Delivery] = {}  # QoS 1 and 2 by packet id; carried over a lost connection
        self._queue: deque[Delivery] = deque()  # the same of this connection in order of arrival
        self._receiving_max = options.receive_maximum if options.version >= MQTT_5 else 65_535
        self._receiving: set[int] = set()  # ids that count against our Receive Maximum
        self._releasing: set[int] = set()  # of those, at QoS 2: PUBREC sent, PUBREL awaited
        self._aliases: dict[int, str] = {}

    def begin(self, connection: int) -> None:
        """A connection begins: acknowledgements are owed on it only for what comes on it, repetitions included."""
        self.connection = connection
        self._queue = deque()
        self._receiving = set()
        self._releasing = set()
        self._aliases = {}

    def forget(self) -> None:
        """The Session is lost: the broker knows none of the ids that are held here."""
        self._receiver = Receiver()
        self._unsettled = {}
        self._doubted.clear()

    def doubt(self) -> None:
        """The Session that goes on may be another than that in which these ids came; what comes with them may do so much later."""
        self._doubted.update(self._receiver.held)

    @property
    def unsettled_count(self) -> int:
        """Messages of this connection whose acknowledgement has not left."""
        return len(self._queue)

    @property
    def releasing_count(self) -> int:
        """QoS 2 handshakes of this connection that only wait for the broker: PUBREC has been said, PUBREL has not come."""
        return len(self._releasing)

    @property
    def is_due(self) -> bool:
        """May an acknowledgement leave?"""
        return bool(self._queue) and self._queue[0].settled

    def due(self) -> bytes:
        """The acknowledgements that may leave now; the caller sends them all."""
        queue = self._queue
        version = self._options.version
        acknowledgements: list[bytes] = []
        while queue and queue[0].settled:
            delivery = queue.popleft()
            packet_id = delivery.publish.packet_id
            if self._unsettled.get(packet_id) is delivery:
                del self._unsettled[packet_id]
            if delivery.publish.qos == 1:
                self._receiving.discard(packet_id)
                acknowledgements.append(acknowledgement(0x40, packet_id, delivery.reason, version))
                continue
            if delivery.reason >= 0x80 and version >= MQTT_5:  # the exchange ends here, and the id is free
                self._receiving.discard(packet_id)
                self._receiver.on_pubrel(packet_id)
            else:
                self._releasing.add(packet_id)
            acknowledgements.append(acknowledgement(0x50, packet_id, delivery.reason, version))
        return b"".join(acknowledgements)

    def on_publish(self, packet: Publish) -> Delivery | None:
        """The message, if it is new; None for a repetition of one that is held or still in hand."""
        alias = packet.properties.topic_alias
        if alias is not None:
            packet = self._resolve_alias(packet, alias)
        if packet.qos == 0:
            return Delivery(packet, self.connection)
        packet_id = packet.packet_id
        if packet.qos == 1 and packet_id not in self._unsettled and packet_id not in self._receiving and len(self._receiving) < self._receiving_max:
            self._receiving.add(packet_id)
            delivery = self._unsettled[packet_id] = Delivery(packet, self.connection)
            self._queue.append(delivery)
            return delivery
        if packet.qos == 2 and packet.packet_id in self._doubted:
            self._doubted.remove(packet.packet_id)
            if not packet.dup:
                # A repetition would say so [MQTT5-3.3.1-1]: it is another Session's first with this id.
                self._receiver.on_pubrel(packet.packet_id)
                self._unsettled.pop(packet.packet_id, None)
        self._charge(packet.packet_id)
        earlier = self._unsettled.get(packet.packet_id)
        new = self._receiver.on_publish(packet.packet_id) if packet.qos == 2 else self._is_new_at_qos_1(packet, earlier)
        if new:
            delivery = self._unsettled[packet.packet_id] = Delivery(packet, self.connection)
            self._queue.append(delivery)
            return delivery
        if earlier is None:  # QoS 2, done before; its PUBREC was lost, or is said again [MQTT5-4.3.3-10]
            done = Delivery(packet, self.connection)
            done.settled = True
            self._queue.append(done)
        elif earlier.connection != self.connection:  # the program still has it, or is done with it: owed here now
            earlier.connection = self.connection
            self._queue.append(earlier)
        return None

    def _is_new_at_qos_1(self, packet: Publish, earlier: Delivery | None) -> bool:
        if earlier is None:
            return True
        if earlier.connection == self.connection and not packet.dup:
            raise ProtocolError(f"packet id {packet.packet_id} is in use")  # [MQTT5-2.2.1-4]
        # A repetition keeps its id until we acknowledge it, so the same id, DUP and topic mean the same message.
        return not packet.dup or earlier.publish.qos != 1 or earlier.publish.topic != packet.topic

    def _charge(self, packet_id: int) -> None:
        if packet_id in self._receiving:
            return
        if len(self._receiving) >= self._receiving_max:
            raise ProtocolError(
                f"more than {self._options.receive_maximum} messages under way (Receive Maximum)", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
            )  # [MQTT5-3.3.4-9]
        self._receiving.add(packet_id)

    def _resolve_alias(self, packet: Publish, alias: int) -> Publish:
        if not 1 <= alias <= self._options.topic_alias_maximum:  # [MQTT5-3.1.2-26]
            raise ProtocolError(f"Topic Alias {alias}; 1 to {self._options.topic_alias_maximum} are accepted", ReasonCode.TOPIC_ALIAS_INVALID)
        if packet.topic:
            self._aliases[alias] = packet.topic
            return packet
        topic = self._aliases.get(alias)
        if topic is None:
            raise ProtocolError(f"Topic Alias {alias} was never set")
        return structs.replace(packet, topic=topic)

    def on_pubrel(self, packet_id: int) -> bytes:
        """Release the id; the PUBCOMP to answer."""
        delivery = self._unsettled.get(packet_id)
        if delivery is not None and delivery.publish.qos == 2:
            if delivery.connection == self.connection:
                raise ProtocolError(f"PUBREL for packet id {packet_id} before its PUBREC")
            del self._unsettled[packet_id]
        known = self._receiver.on_pubrel(packet_id)
        self._doubted.discard(packet_id)
        self._receiving.discard(packet_id)
        self._releasing.discard(packet_id)
        return acknowledgement(0x70, packet_id, ReasonCode.SUCCESS if known else ReasonCode.PACKET_IDENTIFIER_NOT_FOUND, self._options.version)
