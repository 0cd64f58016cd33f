"""What a broker sends, one packet after another in the general way: its frame, the packet in it, and what that changes.

`ClientReading` goes before, and takes what comes by the thousand. Here is all the rest, and every fault that a broker can make has its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.core.client_goodbye import explanation
from broker.core.client_state import Reauthenticated
from broker.errors import MalformedPacket, ProtocolError
from broker.wire.codec import decode, encode_varint
from broker.wire.packets import MQTT_5, Auth, ConnAck, Disconnect, Packet, PingResp, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, UnsubAck

if TYPE_CHECKING:
    from broker.core.client import ClientProtocol

# CONNACK, AUTH, or the rest of one. What is no MQTT ("HTTP/1.1 400 ...") may look like the beginning of a long packet: do not wait for its end.
_MAY_BE_FIRST: Final = (b"", b"\x20", b"\xf0")


class ClientPackets:
    __slots__ = ("_client", "_handlers", "_limits_problem_information")

    def __init__(self, client: ClientProtocol) -> None:
        self._client = client
        self._limits_problem_information = False
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Publish: self._on_publish,
            PubAck: self._on_puback,
            PubRec: self._on_pubrec,
            PubRel: self._on_pubrel,
            PubComp: self._on_pubcomp,
            SubAck: client.exchanges.on_acknowledgement,
            UnsubAck: client.exchanges.on_acknowledgement,
            PingResp: self._on_pingresp,
            Disconnect: self._on_disconnect,
            Auth: self._on_auth,
        }

    def begin(self) -> None:
        """A connection begins."""
        self._limits_problem_information = self._client.options.connect_properties.request_problem_information == 0

    def next(self) -> bool:
        """Act on the next packet of what was fed; False: it is not here as a whole. Raises PeerError for a fault of the broker's."""
        client = self._client
        frames = client.frames
        begins = frames.data[frames.position : frames.position + 1]
        frame = frames.next_frame()
        if frame is None:
            if client.state == "connecting" and begins not in _MAY_BE_FIRST:
                raise ProtocolError("what came first is no CONNACK; is it an MQTT broker?")  # [MQTT5-3.2.0-1]
            return False
        first_byte, body = frame
        if frames.overlong and client.version >= MQTT_5:
            raise MalformedPacket("Remaining Length is not in its shortest form")  # [MQTT5-1.5.5-1]
        packet = decode(first_byte, body, client.version)
        if client.on_packet is not None:
            client.on_packet("received", packet, bytes((first_byte,)) + encode_varint(len(body)) + body)
        if client.state == "connecting":
            self._on_first(packet)
            return True
        if self._limits_problem_information:
            _check_problem_information(packet)
        handler = self._handlers.get(type(packet))
        if handler is None:
            raise ProtocolError(f"{type(packet).__name__} from a broker")
        handler(packet)
        return True

    def _on_first(self, packet: Packet) -> None:
        if isinstance(packet, Auth):
            self._on_auth(packet)
        elif isinstance(packet, ConnAck):
            self._client.greeting.on_connack(packet)
        else:
            raise ProtocolError(f"{type(packet).__name__} before CONNACK")  # [MQTT5-3.2.0-1]

    def _on_publish(self, packet: Publish) -> None:
        client = self._client
        delivery = client.inbox.on_publish(packet)
        if delivery is not None:
            client.events.append(delivery)
        else:
            client.sending.acknowledge()

    def _on_puback(self, packet: PubAck) -> None:
        self._client.outbox.on_puback(packet.packet_id, packet.reason)

    def _on_pubrec(self, packet: PubRec) -> None:
        self._client.sending.send_acknowledgements(self._client.outbox.on_pubrec(packet.packet_id, packet.reason))

    def _on_pubrel(self, packet: PubRel) -> None:
        self._client.sending.send_acknowledgements(self._client.inbox.on_pubrel(packet.packet_id))

    def _on_pubcomp(self, packet: PubComp) -> None:
        self._client.outbox.on_pubcomp(packet.packet_id)

    def _on_pingresp(self, packet: PingResp) -> None:
        self._client.keep_alive.on_pingresp()

    def _on_disconnect(self, packet: Disconnect) -> None:
        client = self._client
        if client.version < MQTT_5:
            raise ProtocolError("DISCONNECT from a 3.1.1 broker")
        client.reason = packet.reason
        why = explanation(packet.properties)
        client.abandon(f"the broker disconnected: {packet.reason.describe()}" + (f" ({why})" if why else ""))

    def _on_auth(self, packet: Auth) -> None:
        client = self._client
        if client.auth.on_auth(packet, client.state == "connected"):
            client.events.append(Reauthenticated())


def _check_problem_information(packet: Packet) -> None:
    if isinstance(packet, (PubAck, PubRec, PubRel, PubComp, SubAck, UnsubAck, Auth)):
        properties = packet.properties
        if properties.reason_string is not None or properties.user_properties:
            raise ProtocolError("a reason string or user property, though Request Problem Information is 0")  # [MQTT5-3.1.2-29]
