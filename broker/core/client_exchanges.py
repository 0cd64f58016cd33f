"""SUBSCRIBE and UNSUBSCRIBE of a client: under way, waiting for a connection, and what stands in the Session.

An exchange that a lost connection cut off is done again on the next. After a lost Session all that stood is made again, each SUBSCRIBE as
it was but for what was unsubscribed meanwhile, and an UNSUBSCRIBE that waited has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import structs

from broker.core.client_state import Capabilities, Event, Exchange, ExchangeDone, Resubscribed
from broker.core.inflight import Sender
from broker.errors import NotSupported, ProtocolError
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Packet, Properties, SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe
from broker.wire.topics import split_shared

_Pairs = tuple[tuple[str, str], ...]


class ClientExchanges:
    """send: takes a packet with its frame. tell: takes an event."""

    __slots__ = ("_capabilities", "_pending", "_remade", "_remaking", "_send", "_sender", "_tell", "_version", "_waiting", "standing")

    def __init__(self, version: int, sender: Sender[Any], send: Callable[[Packet, bytes], int], tell: Callable[[Event], None]) -> None:
        self._version = version
        self._sender = sender
        self._send = send
        self._tell = tell
        self._capabilities = Capabilities(None, version)
        self.standing: dict[str, Exchange] = {}
        """What stands in the Session, each filter under the SUBSCRIBE that made it."""
        self._pending: dict[int, Exchange] = {}
        self._waiting: list[Exchange] = []
        self._remade: list[Exchange] = []  # made again, but the connection was lost before the SUBACK
        self._remaking = 0

    @property
    def count(self) -> int:
        """Under way, or waiting for a connection."""
        return len(self._pending) + len(self._waiting)

    # ---- for the program ---------------------------------------------------------------------------------------------

    def subscribe(self, requests: tuple[SubscriptionRequest, ...], identifier: int | None, user_properties: _Pairs, *, connected: bool) -> Exchange:
        for request in requests:
            if self._version < MQTT_5 and (request.no_local or request.retain_as_published or request.retain_handling):
                raise NotSupported("no_local, retain_as_published and retained need MQTT 5.0")
        refusal = self._refusal(requests) if connected else None
        if refusal is not None:
            raise NotSupported(refusal[1])
        exchange = Exchange(tuple(request.filter for request in requests), requests, identifier, user_properties)
        self._check(exchange)
        self._begin_or_wait(exchange, connected)
        return exchange

    def unsubscribe(self, filters: tuple[str, ...], user_properties: _Pairs, *, connected: bool) -> Exchange:
        exchange = Exchange(filters, user_properties=user_properties)
        self._check(exchange)
        for filter in filters:
            self.standing.pop(filter, None)
        for earlier in (*self._pending.values(), *self._waiting):
            if earlier.requests:
                earlier.left.update(set(filters).intersection(earlier.filters))  # its SUBACK may come yet
        self._begin_or_wait(exchange, connected)
        return exchange

    def cancel(self, exchange: Exchange) -> bool:
        """Do not send it (again). True: it had not left, and nothing has happened."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)
            return not exchange.sent
        return False

    def _check(self, exchange: Exchange) -> None:
        """What cannot be sent is a ValueError of the caller's, and not of every connection that would have to send it."""
        if exchange.user_properties and self._version < MQTT_5:
            raise NotSupported("user_properties need MQTT 5.0")
        encode(self._packet(exchange, 1), self._version)

    def _refusal(self, requests: tuple[SubscriptionRequest, ...]) -> tuple[ReasonCode, str] | None:
        """Why this connection's broker may not be sent them; None if it may."""
        able = self._capabilities
        for request in requests:
            group, plain = split_shared(request.filter)
            if group is not None and not able.shared:
                return ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED, "this broker has no shared subscriptions"  # [MQTT5-3.2.2-18]
            if not able.wildcards and ("+" in plain or "#" in plain):
                return ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED, "this broker has no wildcard subscriptions"
        return None

    # ---- connections -------------------------------------------------------------------------------------------------

    def lose_connection(self) -> None:
        """What was under way is done again on the next."""
        pending = list(self._pending.values())
        for exchange in pending:
            self._sender.unreserve_id(exchange.packet_id)
        self._remade += [exchange for exchange in pending if exchange.remade]
        self._waiting = [exchange for exchange in pending if not exchange.remade] + self._waiting
        self._pending = {}

    def resume(self, capabilities: Capabilities, *, in_doubt: bool = False) -> None:
        """A connection stands, and the Session with it; `send_waiting` follows. in_doubt: it may be another one, which knows of no subscription."""
        self._capabilities = capabilities
        if in_doubt:
            if self._version >= MQTT_5:  # where they stand after all, retained messages do not come a second time
                for exchange in self.standing.values():
                    exchange.requests = tuple([structs.replace(one, retain_handling=one.retain_handling or 1) for one in exchange.requests])
            self._make_again()
            return
        remade, self._remade = self._remade, []
        self._remaking = len(remade)
        for exchange in remade:
            self._begin(exchange)

    def start_anew(self, capabilities: Capabilities) -> None:
        """A connection stands, but the Session is lost: make all that stood again; `send_waiting` follows."""
        self._capabilities = capabilities
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            if not self._is_void(exchange):
                self._waiting.append(exchange)
        if not self._make_again():
            self._tell(Resubscribed())

    def _make_again(self) -> bool:
        """All that stood, each SUBSCRIBE less what was unsubscribed meanwhile. Was there anything?"""
        self._remade = []
        subscribes = list(dict.fromkeys(self.standing.values()))
        self._remaking = len(subscribes)
        for exchange in subscribes:
            requests = tuple(request for request in exchange.requests if self.standing.get(request.filter) is exchange)
            exchange.requests = requests
            exchange.filters = tuple(request.filter for request in requests)
            exchange.remade = True
            self._begin(exchange)
        return bool(subscribes)

    def send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            self._begin(exchange)

    def _is_void(self, exchange: Exchange) -> bool:
        """An UNSUBSCRIBE that waited for a Session which is no more, and not one behind a SUBSCRIBE that waits as well."""
        if exchange.requests or any(not earlier.left.isdisjoint(exchange.filters) for earlier in self._waiting):
            return False
        exchange.reasons = (ReasonCode.NO_SUBSCRIPTION_EXISTED,) * len(exchange.filters)
        exchange.done = True
        self._tell(ExchangeDone(exchange))
        return True

    # ---- packets -----------------------------------------------------------------------------------------------------

    def _begin_or_wait(self, exchange: Exchange, connected: bool) -> None:
        if connected:
            self._begin(exchange)
        else:
            self._waiting.append(exchange)

    def _begin(self, exchange: Exchange) -> None:
        exchange.packet_id = self._sender.reserve_id()
        self._pending[exchange.packet_id] = exchange
        packet = self._packet(exchange, exchange.packet_id)
        frame = encode(packet, self._version)
        refusal = self._refusal(exchange.requests)  # a broker closes the connection for such a one, and would close the next one too
        if len(frame) > self._capabilities.packet_bytes_max:
            refusal = ReasonCode.PACKET_TOO_LARGE, ""  # [MQTT5-3.2.2-15]
        if refusal is not None:
            self._end(exchange, (refusal[0],) * len(exchange.filters))
            return
        exchange.sent = True
        self._send(packet, frame)

    def _packet(self, exchange: Exchange, packet_id: int) -> Subscribe | Unsubscribe:
        identifiers: tuple[int, ...] = ()
        if exchange.identifier is not None and self._capabilities.identifiers:
            identifiers = (exchange.identifier,)
        properties = NO_PROPERTIES
        if self._version >= MQTT_5 and (identifiers or exchange.user_properties):
            properties = Properties(subscription_identifiers=identifiers, user_properties=exchange.user_properties)
        if exchange.requests:
            return Subscribe(packet_id, exchange.requests, properties)
        return Unsubscribe(packet_id, exchange.filters, properties)

    def on_acknowledgement(self, packet: SubAck | UnsubAck) -> None:
        exchange = self._pending.get(packet.packet_id)
        if exchange is None or isinstance(packet, SubAck) is not bool(exchange.requests):
            raise ProtocolError(f"{type(packet).__name__} for packet id {packet.packet_id}, which waits for none")
        if len(packet.reasons) != len(exchange.filters) and (self._version >= MQTT_5 or exchange.requests):
            raise ProtocolError(f"{type(packet).__name__} with {len(packet.reasons)} reason codes for {len(exchange.filters)} filters")
        self._end(exchange, packet.reasons or (ReasonCode.SUCCESS,) * len(exchange.filters))

    def _end(self, exchange: Exchange, reasons: tuple[ReasonCode, ...]) -> None:
        del self._pending[exchange.packet_id]
        self._sender.unreserve_id(exchange.packet_id)
        exchange.reasons = reasons
        exchange.done = True
        for request, reason in zip(exchange.requests, exchange.reasons, strict=False):
            gone = request.filter in exchange.left or (exchange.remade and self.standing.get(request.filter) is not exchange)
            if reason < 0x80 and not gone:
                self.standing[request.filter] = exchange
            elif self.standing.get(request.filter) is exchange:
                del self.standing[request.filter]
        self._tell(ExchangeDone(exchange))
        if exchange.remade:
            exchange.remade = False
            self._remaking -= 1
            if self._remaking == 0:
                self._tell(Resubscribed())
