"""How a connection of a client begins: CONNECT, CONNACK, and whether the Session goes on or is made again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from broker.core.client_connect import connect_packet
from broker.core.client_goodbye import explanation
from broker.core.client_state import Capabilities, Connected, Refused
from broker.errors import ProtocolError
from broker.reasons import to_connack_return_code
from broker.wire.packets import MQTT_5, ConnAck

if TYPE_CHECKING:
    from broker.core.client import ClientProtocol


class ClientGreeting:
    __slots__ = ("_awaits_connack", "_client", "_has_session", "_in_doubt", "deadline")

    def __init__(self, client: ClientProtocol) -> None:
        self._client = client
        self.deadline = math.inf
        """By which the CONNACK must come."""
        self._awaits_connack = False
        self._has_session = False
        self._in_doubt = False
        """A CONNECT was not answered since the last CONNACK: it may have begun another Session."""

    @property
    def _says_clean_start(self) -> bool:
        # A 3.1.1 Clean Session flag rules how long the Session lives, not only how it starts: it is the same each time.
        client = self._client
        return client.options.clean_start and not (self._has_session and client.version >= MQTT_5)

    def begin(self, deadline: float) -> None:
        """A byte stream stands: say CONNECT."""
        client = self._client
        self.deadline = deadline
        self._awaits_connack = True
        client.sending.send(connect_packet(client.options, client.client_id, self._says_clean_start, client.auth.first))

    def lose_connection(self) -> None:
        self._in_doubt = self._in_doubt or self._awaits_connack
        self.deadline = math.inf

    def on_connack(self, packet: ConnAck) -> None:
        client = self._client
        properties = packet.properties
        self.deadline = math.inf
        self._awaits_connack = False
        if packet.reason >= 0x80:
            client.reason = packet.reason
            code = packet.reason if client.version >= MQTT_5 else to_connack_return_code(packet.reason)
            client.events.append(Refused(packet.reason, int(code or packet.reason), explanation(properties)))
            client.abandon(f"connection refused: {packet.reason.describe()}")
            return
        if packet.session_present and self._says_clean_start:
            raise ProtocolError("Session Present after Clean Start")  # [MQTT5-3.2.2-2, -4]
        client.auth.check(properties.authentication_data)
        if properties.assigned_client_identifier is not None:
            client.client_id = properties.assigned_client_identifier
        elif not client.client_id and client.version >= MQTT_5:
            raise ProtocolError("no Client Identifier was assigned")  # [MQTT5-3.2.2-16]
        client.state = "connected"
        client.connack = packet
        client.capabilities = Capabilities(packet, client.version)
        # [MQTT5-3.2.2-21]
        client.keep_alive.agreed(client.options.keep_alive_s if properties.server_keep_alive is None else properties.server_keep_alive)
        client.events.append(Connected(packet, packet.session_present))
        if packet.session_present:
            if not self._has_session:
                client.outbox.inherit()
            self._resume()
        else:
            self._start_anew()
        self._has_session = True
        self._in_doubt = False
        client.exchanges.send_waiting()

    def _resume(self) -> None:
        """Go on where we were; what is to be repeated as PUBLISH follows from the outbox."""
        client = self._client
        for pubrel in client.outbox.begin(client.capabilities):
            client.sending.send(pubrel)
        if self._in_doubt:
            client.inbox.doubt()
        client.exchanges.resume(client.capabilities, in_doubt=self._in_doubt)

    def _start_anew(self) -> None:
        """The Session is lost, and so is all that the broker knew of it [MQTT5-3.2.2-5]: make it again."""
        client = self._client
        client.outbox.forget_session()
        client.outbox.begin(client.capabilities)
        client.inbox.forget()
        client.exchanges.start_anew(client.capabilities)
