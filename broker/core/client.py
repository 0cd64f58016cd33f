"""The client's side of MQTT: bytes and time in, bytes and events out; nothing here awaits or reads a clock.

It holds the Session over many connections (what is unacknowledged, both ways, and the subscriptions) and the state of the
one there is (quotas, aliases, keepalive). Both sides obey the tables of `core.inflight`. The caller's duty, after each verb:
take the events, send what `data_to_send` gives, and come back at `next_deadline`. No verb raises for what a broker did:
the connection is marked closing, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

from broker.core.client_auth import ClientAuth
from broker.core.client_connect import connect_packet
from broker.core.client_exchanges import ClientExchanges
from broker.core.client_goodbye import ClientGoodbye, explanation, fault_of
from broker.core.client_inbox import ClientInbox
from broker.core.client_keepalive import ClientKeepAlive
from broker.core.client_outbox import ClientOutbox
from broker.core.client_reading import ClientReading
from broker.core.client_state import (
    Capabilities,
    ClientOptions,
    Connected,
    Delivery,
    Event,
    Exchange,
    OnPacket,
    Outgoing,
    Reauthenticated,
    Refused,
)
from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.reasons import ReasonCode, to_connack_return_code
from broker.wire.codec import decode, decode_frame, encode, encode_varint
from broker.wire.framing import FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
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
)

BATCH_BYTES: Final = 65_536
"""About so much is encoded at a time; what waits beyond it is still unencoded and can be taken back."""

PACKET_COUNT_MAX: Final = 1 << 62

ACKNOWLEDGEMENT_BYTES_MAX: Final = 5
"""With a reason code, and no properties."""

# CONNACK, AUTH, or the rest of one. What is no MQTT ("HTTP/1.1 400 ...") may look like the beginning of a long packet: do not wait for its end.
_MAY_BE_FIRST: Final = (b"", b"\x20", b"\xf0")

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
        self.session_expiry_s = options.session_expiry_s
        self.goodbye = ClientGoodbye(options)
        # The Session.
        self.has_session = False
        self._connack_awaited = False
        self._in_doubt = False
        """A CONNECT was not answered since the last CONNACK: it may have begun another Session."""
        self.events: list[Event] = []
        """What the caller has not taken yet."""
        self.outbox = ClientOutbox(options.version, self._send, self._send_publish, self.events.append)
        self.sender = self.outbox.sender
        self.inbox = ClientInbox(options)
        self.auth = ClientAuth(options.connect_properties.authentication_method)
        self.exchanges = ClientExchanges(options.version, self.sender, self._send, self.events.append)
        # The connection.
        self.connection = 0
        self.frames = FrameDecoder(options.packet_bytes_max)
        self._reading = ClientReading(self)
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._acknowledges = False
        """Something is settled that has not been said: all of it at once, when bytes are asked for."""
        self._batch = b""
        self._keep_alive = ClientKeepAlive()
        self._connack_deadline = math.inf
        self._limits_problem_information = False
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Publish: self._on_publish,
            PubAck: self._on_puback,
            PubRec: self._on_pubrec,
            PubRel: self._on_pubrel,
            PubComp: self._on_pubcomp,
            SubAck: self._on_suback,
            UnsubAck: self._on_suback,
            PingResp: self._on_pingresp,
            Disconnect: self._on_disconnect,
            Auth: self._on_auth,
        }

    # ---- the connection's life ---------------------------------------------------------------------------------------

    def begin_connection(self, now: float, connack_deadline: float = math.inf) -> None:
        """A byte stream stands: say CONNECT. The CONNACK must come by `connack_deadline`."""
        self.connection += 1
        self.state = "connecting"
        self.cause = ""
        self.reason = None
        self.said_goodbye = False
        self.frames = FrameDecoder(self.options.packet_bytes_max)
        self._parts, self._parts_bytes, self._batch, self._acknowledges = [], 0, b"", False
        self.inbox.begin(self.connection)
        self._keep_alive.begin(now, self.options.response_timeout_s)
        self._connack_deadline = connack_deadline
        self._connack_awaited = True
        self.auth.begin()
        self._send(connect_packet(self.options, self.client_id, self._says_clean_start, self.auth.first))
        self._limits_problem_information = self.options.connect_properties.request_problem_information == 0

    @property
    def _says_clean_start(self) -> bool:
        # A 3.1.1 Clean Session flag rules how long the Session lives, not only how it starts: it is the same each time.
        return self.options.clean_start and not (self.has_session and self.version >= MQTT_5)

    def receive(self, data: bytes, now: float, packet_count_max: int = PACKET_COUNT_MAX) -> bool:
        """Act on any bytes, at most `packet_count_max` packets of them. True: more is here, call again with b"".

        Good packets before a bad one are done first.
        """
        if self.state == "closing" or self.state == "away":
            return False
        self.outbox.now = now
        if data:
            self._keep_alive.received_at = now
        frames = self.frames
        try:
            if data:
                frames.feed(data)
            while not self.closing:
                done = self._reading.run(packet_count_max) if self.state == "connected" else 0
                packet_count_max -= done
                if done:
                    continue
                if packet_count_max == 0:
                    return True
                packet_count_max -= 1
                begins = frames.data[frames.position : frames.position + 1]
                frame = frames.next_frame()
                if frame is None:
                    if self.state == "connecting" and begins not in _MAY_BE_FIRST:
                        raise ProtocolError("what came first is no CONNACK; is it an MQTT broker?")  # [MQTT5-3.2.0-1]
                    break
                first_byte, body = frame
                if frames.overlong and self.version >= MQTT_5:
                    raise MalformedPacket("Remaining Length is not in its shortest form")  # [MQTT5-1.5.5-1]
                packet = decode(first_byte, body, self.version)
                if self.on_packet is not None:
                    self.on_packet("received", packet, bytes((first_byte,)) + encode_varint(len(body)) + body)
                if self.state == "connecting":
                    self._on_first(packet, now)
                    continue
                if self._limits_problem_information:
                    self._check_problem_information(packet)
                handler = self._handlers.get(type(packet))
                if handler is None:
                    raise ProtocolError(f"{type(packet).__name__} from a broker")
                handler(packet, now)
        except PeerError as error:
            self._fail(error.reason, f"the broker broke the protocol: {error}")
        return False

    def connection_lost(self, now: float) -> None:
        """The stream is gone, whoever ended it. What belongs to the Session waits for the next connection."""
        if self.state == "away":
            return
        self.state = "away"
        self._in_doubt = self._in_doubt or self._connack_awaited
        self.outbox.lose_connection()
        self._parts, self._parts_bytes, self._batch, self._acknowledges = [], 0, b"", False
        self.exchanges.lose_connection()
        self._connack_deadline = math.inf

    def end_of_stream(self, now: float) -> None:
        """The broker will send nothing more; an end inside a packet is a fault with its own name."""
        if self.state == "closing" or self.state == "away":
            return
        if self._acknowledges:
            self.acknowledge()
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
        if self._acknowledges:
            self.acknowledge()
        if self.state == "connected":
            goodbye = self.goodbye.packet(reason, self.capabilities.packet_bytes_max)
            if goodbye is not None:
                self._send(*goodbye)
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
        if not self._batch and self.state != "away":
            if self._acknowledges:
                self.acknowledge()
            if self.state == "connected":
                self.outbox.pump(self._parts_bytes, limit)
            if self._parts:
                self._batch = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts, self._parts_bytes = [], 0
        return self._batch

    def bytes_sent(self, count: int, now: float) -> None:
        """The first `count` bytes of what `data_to_send` gave are the kernel's."""
        self._batch = self._batch[count:]
        self.outbox.now = now
        self._keep_alive.bytes_sent(count, now)
        if not self._batch:
            self.outbox.batch_sent()

    def moves_on(self, now: float) -> None:
        """Some of what `data_to_send` gave has left; `bytes_sent` is called when all has."""
        self._keep_alive.moves_on(now)

    @property
    def bytes_sent_at(self) -> float:
        """When the last of our bytes became the kernel's."""
        return self._keep_alive.sent_at

    @property
    def wants_to_send(self) -> bool:
        if self._batch or self._parts:
            return True
        if self._acknowledges and self.state == "connected":
            return True
        return self.state == "connected" and self.outbox.can_send

    def next_deadline(self) -> float:
        return min(self._connection_deadline(), self.outbox.next_expiry())

    def _connection_deadline(self) -> float:
        if self.state == "connecting":
            return self._connack_deadline
        return self._keep_alive.deadline() if self.state == "connected" else math.inf

    def tick(self, now: float) -> None:
        """Do what is due. No harm if nothing is."""
        self.outbox.expire(now)
        if now < self._connection_deadline():
            return
        if self.state == "connecting":
            self._fail(None, "no CONNACK came in time")
        elif self._keep_alive.is_overdue(now):
            self._fail(None, f"the broker has not answered a PINGREQ for {self.options.response_timeout_s:g} s")
        else:
            self._send(PingReq())
            self._keep_alive.ping_made(len(self._batch) + self._parts_bytes, now)

    def take_events(self) -> list[Event]:
        """In the order in which they happened."""
        events = self.events.copy()
        self.events.clear()
        return events

    @property
    def idle(self) -> bool:
        """Nothing of ours is under way: all published and acknowledged, what we took at QoS 2 released, all bytes gone."""
        return not (self._batch or self._parts or self._acknowledges or self.exchanges.count or self.outbox.count or self.inbox.releasing_count)

    # ---- authentication ----------------------------------------------------------------------------------------------

    def answer_challenge(self, data: bytes) -> None:
        """To what is in `auth.challenge`; nothing if that has gone with its connection."""
        if self.auth.challenge is not None:
            self.auth.challenge = None
            self._send(self.auth.packet(ReasonCode.CONTINUE_AUTHENTICATION, data))

    def reauthenticate(self) -> None:
        """With what `auth.prepare` was given; `Reauthenticated` tells of success, and the broker's DISCONNECT of the contrary."""
        self._send(self.auth.packet(ReasonCode.REAUTHENTICATE, self.auth.first))  # [MQTT5-4.12.1-1]
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
        if self.state != "connected" or self._batch or self._parts or self.on_packet is not None:
            return None
        return self.outbox.frame_at_once(publish)

    def join(self, publish: Publish, owner: object) -> bool:
        """Put a message of QoS 0 without properties to the bytes that leave next, for an owner who waits for none by itself: it is one `Outgoing` for
        all of his that leave together. False: something stands before it, and `publish` has to be called."""
        if self._batch or self.state != "connected" or self.on_packet is not None or self._parts_bytes >= BATCH_BYTES:
            return False
        frame = self.outbox.join(publish, owner)
        if frame is None:
            return False
        self._parts.append(frame)
        self._parts_bytes += len(frame)
        return True

    def sent_at_once(self, frame: bytes, count: int, publish: Publish, offline: str, now: float) -> Outgoing | None:
        """The kernel has taken so many bytes of that frame, one at least. None: all, and the message is done; else `data_to_send` has the rest."""
        self._keep_alive.sent_at = self.outbox.now = now
        if count == len(frame):
            return None
        self._batch = frame[count:]
        return self.outbox.began_at_once(publish, offline)

    def cancel_publish(self, outgoing: Outgoing) -> bool:
        """True: its PUBLISH had not left, and nothing has happened. False: the handshake goes on, and its event will come."""
        return self.outbox.cancel(outgoing)

    @property
    def outgoing_count(self) -> int:
        """Publishes that wait, or whose handshake is not complete."""
        return self.outbox.count

    def _on_puback(self, packet: PubAck, now: float) -> None:
        self.outbox.on_puback(packet.packet_id, packet.reason)

    def _on_pubrec(self, packet: PubRec, now: float) -> None:
        self.send_acknowledgement(self.outbox.on_pubrec(packet.packet_id, packet.reason))

    def _on_pubcomp(self, packet: PubComp, now: float) -> None:
        self.outbox.on_pubcomp(packet.packet_id)

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

    def _on_suback(self, packet: SubAck | UnsubAck, now: float) -> None:
        self.exchanges.on_acknowledgement(packet)

    # ---- receiving ---------------------------------------------------------------------------------------------------

    def settle(self, delivery: Delivery, reason: ReasonCode = ReasonCode.SUCCESS) -> None:
        """This message is done, or refused. Its PUBACK or PUBREC leaves when all that came before it is settled too."""
        if not delivery.settled:
            delivery.settled = True
            delivery.reason = reason
        if not self._acknowledges and self.state == "connected":
            self._acknowledges = self.inbox.is_due

    def acknowledge(self) -> None:
        """What is settled and may leave now."""
        self._acknowledges = False
        if self.state == "connected":
            self.send_acknowledgement(self.inbox.due())

    def _on_publish(self, packet: Publish, now: float) -> None:
        delivery = self.inbox.on_publish(packet)
        if delivery is not None:
            self.events.append(delivery)
        else:
            self.acknowledge()

    def _on_pubrel(self, packet: PubRel, now: float) -> None:
        self.send_acknowledgement(self.inbox.on_pubrel(packet.packet_id))

    # ---- CONNACK and the rest ----------------------------------------------------------------------------------------

    def _on_first(self, packet: Packet, now: float) -> None:
        if isinstance(packet, Auth):
            self._on_auth(packet, now)
            return
        if not isinstance(packet, ConnAck):
            raise ProtocolError(f"{type(packet).__name__} before CONNACK")  # [MQTT5-3.2.0-1]
        self._connack_deadline = math.inf
        self._connack_awaited = False
        properties = packet.properties
        if packet.reason >= 0x80:
            self.reason = packet.reason
            code = packet.reason if self.version >= MQTT_5 else to_connack_return_code(packet.reason)
            self.events.append(Refused(packet.reason, int(code or packet.reason), explanation(properties)))
            self.abandon(f"connection refused: {packet.reason.describe()}")
            return
        if packet.session_present and self._says_clean_start:
            raise ProtocolError("Session Present after Clean Start")  # [MQTT5-3.2.2-2, -4]
        self.auth.check(properties.authentication_data)
        if properties.assigned_client_identifier is not None:
            self.client_id = properties.assigned_client_identifier
        elif not self.client_id and self.version >= MQTT_5:
            raise ProtocolError("no Client Identifier was assigned")  # [MQTT5-3.2.2-16]
        self.state = "connected"
        self.connack = packet
        self.capabilities = Capabilities(packet, self.version)
        # [MQTT5-3.2.2-21]
        self._keep_alive.agreed(self.options.keep_alive_s if properties.server_keep_alive is None else properties.server_keep_alive)
        if properties.session_expiry_interval is not None:
            self.session_expiry_s = properties.session_expiry_interval
        self.events.append(Connected(packet, packet.session_present))
        if packet.session_present:
            if not self.has_session:
                self.outbox.inherit()
            self._resume()
        else:
            self._start_anew()
        self.has_session = True
        self._in_doubt = False
        self.exchanges.send_waiting()

    def _resume(self) -> None:
        """Go on where we were; what is to be repeated as PUBLISH follows from the outbox."""
        for pubrel in self.outbox.begin(self.capabilities):
            self._send(pubrel)
        if self._in_doubt:
            self.inbox.doubt()
        self.exchanges.resume(self.capabilities, in_doubt=self._in_doubt)

    def _start_anew(self) -> None:
        """The Session is lost, and so is all that the broker knew of it [MQTT5-3.2.2-5]: make it again."""
        self.outbox.forget_session()
        self.outbox.begin(self.capabilities)
        self.inbox.forget()
        self.exchanges.start_anew(self.capabilities)

    def _on_pingresp(self, packet: PingResp, now: float) -> None:
        self._keep_alive.on_pingresp()

    def _on_disconnect(self, packet: Disconnect, now: float) -> None:
        if self.version < MQTT_5:
            raise ProtocolError("DISCONNECT from a 3.1.1 broker")
        self.reason = packet.reason
        why = explanation(packet.properties)
        self.abandon(f"the broker disconnected: {packet.reason.describe()}" + (f" ({why})" if why else ""))

    def _on_auth(self, packet: Auth, now: float) -> None:
        if self.auth.on_auth(packet, self.state == "connected"):
            self.events.append(Reauthenticated())

    def _check_problem_information(self, packet: Packet) -> None:
        if isinstance(packet, (PubAck, PubRec, PubRel, PubComp, SubAck, UnsubAck, Auth)):
            properties = packet.properties
            if properties.reason_string is not None or properties.user_properties:
                raise ProtocolError("a reason string or user property, though Request Problem Information is 0")  # [MQTT5-3.1.2-29]

    # ---- the way out -------------------------------------------------------------------------------------------------

    def _send(self, packet: Packet, frame: bytes | None = None) -> int:
        """How many bytes wait to be sent now."""
        if self._acknowledges:
            self.acknowledge()
        if self.state == "closing":
            return self._parts_bytes
        if frame is None:
            frame = encode(packet, self.version)
            if len(frame) > self.capabilities.packet_bytes_max and self.state == "connected":  # not CONNECT: nothing was announced yet
                # It may be neither sent [MQTT5-3.2.2-15] nor left out: nobody would know how things stand.
                self.abandon(f"the broker takes packets of {self.capabilities.packet_bytes_max} bytes, and {type(packet).__name__} has {len(frame)}")
                return self._parts_bytes
        self._parts.append(frame)
        self._parts_bytes += len(frame)
        if self.on_packet is not None:
            self.on_packet("sent", packet, frame)
        if self._parts_bytes > self.options.unsent_bytes_max and not isinstance(packet, (Publish, Connect, Subscribe, Unsubscribe)):
            self._abandon_deaf()
        return self._parts_bytes

    def _send_publish(self, frame: bytes) -> int:
        """A new PUBLISH, within what the broker takes. How many bytes wait to be sent now."""
        if self.state != "closing":
            if self.on_packet is not None:
                return self._send(decode_frame(frame, self.version), frame)
            self._parts.append(frame)
            self._parts_bytes += len(frame)
        return self._parts_bytes

    def send_acknowledgement(self, frames: bytes) -> None:
        """Whole ones, as many as there are."""
        if not frames or self.state == "closing":
            return
        if self.on_packet is not None or self.capabilities.packet_bytes_max < ACKNOWLEDGEMENT_BYTES_MAX:
            position = 0
            while position < len(frames):
                end = position + 2 + frames[position + 1]
                self._send(decode_frame(frames[position:end], self.version))
                position = end
            return
        self._parts.append(frames)
        self._parts_bytes += len(frames)
        if self._parts_bytes > self.options.unsent_bytes_max:
            self._abandon_deaf()

    def _abandon_deaf(self) -> None:
        self.abandon("the broker does not read, and more answers wait for it than may")

    def report_received(self, first_byte: int, body: bytes) -> None:
        """To `on_packet`."""
        if self.on_packet is not None:
            self.on_packet("received", decode(first_byte, body, self.version), bytes((first_byte,)) + encode_varint(len(body)) + body)

    def _fail(self, reason: ReasonCode | None, cause: str) -> None:
        """Close for a fault of the broker's, saying which where 5.0 lets us."""
        if self._acknowledges:
            self.acknowledge()
        if reason is not None and self.state == "connected" and self.version >= MQTT_5:
            self._send(fault_of(reason))
            self.said_goodbye = True
        self.abandon(cause)

    def abandon(self, cause: str) -> None:
        """Close without another word."""
        if self._acknowledges:
            self.acknowledge()
        self.state = "closing"
        self.cause = cause
