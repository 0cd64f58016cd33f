"""The client's side of MQTT: bytes and time in, bytes and events out; nothing here awaits or reads a clock.

It holds the Session over many connections (what is unacknowledged, both ways, and the subscriptions) and the state of the
one there is (quotas, aliases, keepalive). Both sides obey the tables of `core.inflight`. The caller's duty, after each verb:
take the events, send what `data_to_send` gives, and come back at `next_deadline`. No verb raises for what a broker did:
the connection is marked closing, with the reason.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from broker.core.client_auth import ClientAuth
from broker.core.client_exchanges import ClientExchanges
from broker.core.client_goodbye import ClientGoodbye, fault_of
from broker.core.client_greeting import ClientGreeting
from broker.core.client_inbox import ClientInbox
from broker.core.client_keepalive import ClientKeepAlive
from broker.core.client_outbox import ClientOutbox
from broker.core.client_packets import ClientPackets
from broker.core.client_reading import ClientReading
from broker.core.client_sending import ClientSending
from broker.core.client_state import Capabilities, ClientOptions, Delivery, Event, Exchange, OnPacket, Outgoing
from broker.errors import PeerError
from broker.reasons import ReasonCode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_5, ConnAck, PingReq, Publish, SubscriptionRequest

BATCH_BYTES: Final = 65_536
"""About so much is encoded at a time; what waits beyond it is still unencoded and can be taken back."""

PACKET_COUNT_MAX: Final = 1 << 62

State = Literal["away", "connecting", "connected", "closing"]


class ClientProtocol:
    """One client: `begin_connection`, then `receive` what comes, until `connection_lost`; and again."""

    def __init__(self, options: ClientOptions, on_packet: OnPacket | None = None) -> None:
        self.options = options
        self.version = options.version
        self.on_packet = on_packet
        self.client_id = options.client_id
        """The broker's, once it has assigned one."""
        self.state: State = "away"
        self.cause = ""
        """Why the connection is closing, for people."""
        self.reason: ReasonCode | None = None
        """Of the broker's DISCONNECT or CONNACK; None if it said nothing."""
        self.said_goodbye = False
        """This connection ends with a DISCONNECT of ours, which the broker should get the time to read."""
        self.connack: ConnAck | None = None
        self.capabilities = Capabilities(None, options.version)
        self.events: list[Event] = []
        """What the caller has not taken yet."""
        self.sending = ClientSending(self)
        # The Session.
        self.outbox = ClientOutbox(options.version, self.sending.send, self.sending.send_publish, self.events.append)
        self.sender = self.outbox.sender
        self.inbox = ClientInbox(options)
        self.exchanges = ClientExchanges(options.version, self.sender, self.sending.send, self.events.append)
        # The connection.
        self.connection = 0
        self.greeting = ClientGreeting(self)
        self.auth = ClientAuth(options.connect_properties.authentication_method)
        self.goodbye = ClientGoodbye(options)
        self.keep_alive = ClientKeepAlive()
        self.frames = FrameDecoder(options.packet_bytes_max)
        self._reading = ClientReading(self)
        self._packets = ClientPackets(self)

    # ---- the connection's life ---------------------------------------------------------------------------------------

    def begin_connection(self, now: float, connack_deadline: float = math.inf) -> None:
        """A byte stream stands: say CONNECT. The CONNACK must come by `connack_deadline`."""
        self.connection += 1
        self.state = "connecting"
        self.cause = ""
        self.reason = None
        self.said_goodbye = False
        self.frames = FrameDecoder(self.options.packet_bytes_max)
        self.sending.clear()
        self.inbox.begin(self.connection)
        self.keep_alive.begin(now, self.options.response_timeout_s)
        self.auth.begin()
        self._packets.begin()
        self.greeting.begin(connack_deadline)

    def receive(self, data: bytes, now: float, packet_count_max: int = PACKET_COUNT_MAX) -> bool:
        """Act on any bytes, at most `packet_count_max` packets of them. True: more is here, call again with b"".

        Good packets before a bad one are done first.
        """
        if self.state == "closing" or self.state == "away":
            return False
        self.outbox.now = now
        if data:
            self.keep_alive.received_at = now
        frames = self.frames
        try:
            if data:
                frames.feed(data)
            while True:
                if self.state == "connected":
                    packet_count_max -= self._reading.run(packet_count_max)
                if self.closing or frames.is_drained():
                    break
                if packet_count_max == 0:
                    return True
                packet_count_max -= 1
                if not self._packets.next():
                    break
        except PeerError as error:
            self._fail(error.reason, f"the broker broke the protocol: {error}")
        return False

    def connection_lost(self, now: float) -> None:
        """The stream is gone, whoever ended it. What belongs to the Session waits for the next connection."""
        if self.state == "away":
            return
        self.state = "away"
        self.greeting.lose_connection()
        self.sending.clear()
        self.outbox.lose_connection()
        self.exchanges.lose_connection()

    def end_of_stream(self, now: float) -> None:
        """The broker will send nothing more; an end inside a packet is a fault with its own name."""
        if self.state == "closing" or self.state == "away":
            return
        self.sending.acknowledge()
        try:
            self.frames.end_of_stream()
        except PeerError as error:
            self.cause = str(error)
        else:
            early = " before a CONNACK came" if self.state == "connecting" else ""
            self.cause = f"the broker closed the connection{early}"
        self.state = "closing"

    def disconnect(self, reason: ReasonCode, now: float, *, cause: str = "") -> None:
        """Say DISCONNECT and close."""
        self.sending.acknowledge()
        if self.state == "connected":
            goodbye = self.goodbye.packet(reason, self.capabilities.packet_bytes_max)
            if goodbye is not None:
                self.sending.send(*goodbye)
                self.said_goodbye = True
        if self.state != "away":
            self.state = "closing"
            self.cause = self.cause or cause

    @property
    def closing(self) -> bool:
        """Send what is left, then close the stream."""
        return self.state == "closing"

    # ---- bytes and time ----------------------------------------------------------------------------------------------

    def data_to_send(self, limit: int = BATCH_BYTES) -> bytes:
        """The bytes to send next, the same until `bytes_sent`; b"" if there are none. Encodes about `limit` bytes of what waits."""
        sending = self.sending
        if not sending.batch and self.state != "away":
            if sending.acknowledges:
                sending.acknowledge()
            if self.state == "connected":
                self.outbox.pump(sending.waiting_bytes, limit)
            if sending.waiting_bytes:
                sending.begin_batch()
        return sending.batch

    def bytes_sent(self, count: int, now: float) -> None:
        """The first `count` bytes of what `data_to_send` gave are the kernel's."""
        sending = self.sending
        sending.batch = sending.batch[count:]
        self.outbox.now = now
        self.keep_alive.bytes_sent(count, now)
        if not sending.batch:
            self.outbox.batch_sent()

    def moves_on(self, now: float) -> None:
        """Some of what `data_to_send` gave has left; `bytes_sent` is called when all has."""
        self.keep_alive.moves_on(now)

    @property
    def bytes_sent_at(self) -> float:
        """When the last of our bytes became the kernel's."""
        return self.keep_alive.sent_at

    @property
    def wants_to_send(self) -> bool:
        sending = self.sending
        if sending.batch or sending.waiting_bytes:
            return True
        return self.state == "connected" and (sending.acknowledges or self.outbox.can_send)

    def next_deadline(self) -> float:
        return min(self._connection_deadline(), self.outbox.next_expiry())

    def _connection_deadline(self) -> float:
        if self.state == "connecting":
            return self.greeting.deadline
        return self.keep_alive.deadline() if self.state == "connected" else math.inf

    def tick(self, now: float) -> None:
        """Do what is due. No harm if nothing is."""
        self.outbox.expire(now)
        if now < self._connection_deadline():
            return
        if self.state == "connecting":
            self._fail(None, "no CONNACK came in time")
        elif self.keep_alive.is_overdue(now):
            self._fail(None, f"the broker has not answered a PINGREQ for {self.options.response_timeout_s:g} s")
        else:
            waiting_bytes = self.sending.send(PingReq())
            self.keep_alive.ping_made(len(self.sending.batch) + waiting_bytes, now)

    def take_events(self) -> list[Event]:
        """In the order in which they happened."""
        events = self.events.copy()
        self.events.clear()
        return events

    @property
    def idle(self) -> bool:
        """Nothing of ours is under way: all published and acknowledged, what we took at QoS 2 released, all bytes gone."""
        sending = self.sending
        if sending.batch or sending.waiting_bytes or sending.acknowledges:
            return False
        return not (self.exchanges.count or self.outbox.count or self.inbox.releasing_count)

    # ---- authentication ----------------------------------------------------------------------------------------------

    def answer_challenge(self, data: bytes) -> None:
        """To what is in `auth.challenge`; nothing if that has gone with its connection."""
        if self.auth.challenge is not None:
            self.auth.challenge = None
            self.sending.send(self.auth.packet(ReasonCode.CONTINUE_AUTHENTICATION, data))

    def reauthenticate(self) -> None:
        """With what `auth.prepare` was given; `Reauthenticated` tells of success, and the broker's DISCONNECT of the contrary."""
        self.sending.send(self.auth.packet(ReasonCode.REAUTHENTICATE, self.auth.first))  # [MQTT5-4.12.1-1]
        self.auth.renewing = True

    # ---- publishing --------------------------------------------------------------------------------------------------

    def publish(self, publish: Publish, *, offline: str = "wait", topic_alias: int | None = None, now: float | None = None) -> Outgoing:
        """Put a message on its way, at once or when there is a connection; what is returned comes again as an event, with how it ended.

        A Message Expiry Interval counts from now (None: from the last verb that said what time it is): what is left is sent, and what ended
        before it was sent is "expired".

        The caller bounds how many are under way. NotSupported for what this connection's broker said it has not, ValueError for
        what cannot be expressed. offline: for QoS 0, "raise" and "drop" end it where there is no connection, or no more before it was sent.
        """
        self.outbox.check(publish, topic_alias, connected=self.state == "connected")
        if now is not None:
            self.outbox.now = now
        outgoing = self.outbox.add(publish, offline, topic_alias)
        if offline != "wait" and not publish.qos and self.state != "connected":
            self.outbox.lose(outgoing)
        return outgoing

    def frame_at_once(self, publish: Publish) -> bytes | None:
        """A message of QoS 0 without properties, on a good topic, that may be given to the kernel now because nothing waits before it; None if it may
        not, and `publish` has to be called. The caller then says how much of it went, with `sent_at_once`, before anything else is done."""
        sending = self.sending
        if self.state != "connected" or sending.batch or sending.waiting_bytes or self.on_packet is not None:
            return None
        return self.outbox.frame_at_once(publish)

    def join(self, publish: Publish, owner: object) -> bool:
        """Put a message of QoS 0 without properties to the bytes that leave next, for an owner who waits for none by itself: it is one `Outgoing` for
        all of his that leave together. False: something stands before it, and `publish` has to be called."""
        sending = self.sending
        if sending.batch or self.state != "connected" or self.on_packet is not None or sending.waiting_bytes >= BATCH_BYTES:
            return False
        return self.outbox.join(publish, owner)

    def sent_at_once(self, frame: bytes, count: int, publish: Publish, offline: str, now: float) -> Outgoing | None:
        """The kernel has taken so many bytes of that frame, one at least. None: all, and the message is done; else `data_to_send` has the rest."""
        self.keep_alive.sent_at = self.outbox.now = now
        if count == len(frame):
            return None
        self.sending.batch = frame[count:]
        return self.outbox.began_at_once(publish, offline)

    def cancel_publish(self, outgoing: Outgoing) -> bool:
        """True: its PUBLISH had not left, and nothing has happened. False: the handshake goes on, and its event will come."""
        return self.outbox.cancel(outgoing)

    @property
    def outgoing_count(self) -> int:
        """Publishes that wait, or whose handshake is not complete."""
        return self.outbox.count

    # ---- subscribing -------------------------------------------------------------------------------------------------

    def subscribe(
        self, requests: tuple[SubscriptionRequest, ...], identifier: int | None = None, user_properties: tuple[tuple[str, str], ...] = ()
    ) -> Exchange:
        """One SUBSCRIBE, now or after the next CONNACK; `ExchangeDone` brings its reasons.

        identifier: left out where the broker has no Subscription Identifiers. NotSupported for what it said it has not.
        """
        return self.exchanges.subscribe(requests, identifier, user_properties, connected=self.state == "connected")

    def unsubscribe(self, filters: tuple[str, ...], user_properties: tuple[tuple[str, str], ...] = ()) -> Exchange:
        """One UNSUBSCRIBE; from now on the filters are not made again after a lost Session."""
        return self.exchanges.unsubscribe(filters, user_properties, connected=self.state == "connected")

    def cancel_exchange(self, exchange: Exchange) -> bool:
        """Do not send it (again). True: it had not left, and nothing has happened."""
        return self.exchanges.cancel(exchange)

    @property
    def subscriptions(self) -> dict[str, Exchange]:
        """What stands in the Session, each filter under the SUBSCRIBE that made it."""
        return self.exchanges.standing

    # ---- receiving ---------------------------------------------------------------------------------------------------

    def settle(self, delivery: Delivery, reason: ReasonCode = ReasonCode.SUCCESS) -> None:
        """This message is done, or refused. Its PUBACK or PUBREC leaves when all that came before it is settled too."""
        if not delivery.settled:
            delivery.settled = True
            delivery.reason = reason
        if not self.sending.acknowledges and self.state == "connected":
            self.sending.acknowledges = self.inbox.is_due

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, reason: ReasonCode | None, cause: str) -> None:
        """Close for a fault of the broker's, saying which where 5.0 lets us."""
        if reason is not None and self.state == "connected" and self.version >= MQTT_5:
            self.sending.send(fault_of(reason))
            self.said_goodbye = True
        self.abandon(cause)

    def abandon(self, cause: str) -> None:
        """Close without another word."""
        self.sending.acknowledge()
        self.state = "closing"
        self.cause = cause
