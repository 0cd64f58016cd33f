"""Driver: the insides of a Client. Between `connect` and its Connector, which own the connection, and the core, which knows the rules.

Every verb of the core is followed by `handle`: the core's events are told to whoever waits for them, then its bytes leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final
from weakref import WeakSet

import trio

from broker.channel import MessageChannel
from broker.client.connection import Connector
from broker.client.line import Line
from broker.client.news import News, NewsIterator
from broker.client.publishing import Publisher
from broker.client.requests import Requester, Requests
from broker.client.router import Router
from broker.client.subscribing import Subscriber
from broker.core.client import ClientProtocol
from broker.core.client_state import Connected, Delivery, Event, ExchangeDone, Outgoing, Reauthenticated, Refused, Resubscribed
from broker.errors import ConnectionLost, ConnectRefused
from broker.reasons import ReasonCode
from broker.wire.packets import Publish

_SUCCESS: Final = ReasonCode.SUCCESS
_NONE: Final = Publish("")


class Driver:
    def __init__(self, core: ClientProtocol, address: str, *, outgoing_count_max: int, unclaimed_grace_s: float) -> None:
        self.core = core
        self.router = Router(self._settled, trio.current_time, unclaimed_grace_s)
        self.line = Line(core, address, self.handle, self.handle_publish)
        self.publisher = Publisher(self.line, outgoing_count_max)
        self.requests = Requests()
        self.subscriber = Subscriber(self.line, self.router, self.requests.forget_topics, self.requests.is_response_topic)
        self.requester = Requester(self.line, self.router, self.requests, self.publisher, self.subscriber)
        self.news: WeakSet[NewsIterator] = WeakSet()
        self.failure: BaseException | None = None
        """Why no connection came, or none comes back; None if the program itself ended it."""
        self._on_lost: Callable[[], None] = lambda: None
        self._was_connected = False
        self._counts = dict.fromkeys(("connections", "received"), 0)

    def statistics(self) -> Mapping[str, int]:
        return {
            **self._counts,
            **self.publisher.counts,
            "late_answers": self.requests.late,
            "refused_messages": self.router.refused,
            "unclaimed_refused": self.router.unclaimed_refused,
            "outgoing": self.core.outgoing_count,
            "unsettled": self.core.inbox.unsettled_count,
        }

    # ---- for connect() -----------------------------------------------------------------------------------------------

    def attach_connector(self, connector: Connector, on_lost: Callable[[], None]) -> None:
        self.line.connector = connector
        self._on_lost = on_lost

    async def wait_idle(self) -> None:
        """Returns when nothing that we sent or owe is under way, or nothing can be any more."""
        while self.line.lost is None and not self.core.idle:
            await self.line.changed.park()

    def fail(self, error: BaseException) -> None:
        """No connection will come any more."""
        if self.line.lost is None:
            # First the body's cancellation, so that its own waits end with that and `connect` raises the error, once.
            self.failure = error
            self._on_lost()
            self.finish(error)

    def end(self) -> None:
        """The scope of `connect` is over."""
        self.finish(ConnectionLost("this client is closed: its connect() scope has ended"))

    def finish(self, error: BaseException) -> None:
        """Everybody who waits gets to hear of it, and nothing begins any more."""
        self.router.unclaimed.close()
        self.line.end(error)
        self.publisher.end()
        self.subscriber.stop_leaving()
        self.requests.wake()
        for news in self.news:
            news.end()

    # ---- what the core says ------------------------------------------------------------------------------------------

    def connection_lost(self) -> None:
        """A connection is over, whether or not another follows."""
        if self._was_connected:
            self._was_connected = False
            self.tell("lost")
        self.subscriber.stop_leaving()
        self.line.changed.unpark_all()

    def disconnect_overflowing(self) -> None:
        self.core.disconnect(ReasonCode.QUOTA_EXCEEDED, trio.current_time(), cause="a subscription's buffer is full, and its rule is to disconnect")

    def tell(self, what: News) -> None:
        for news in self.news:
            news.tell(what)

    def _settled(self, delivery: Delivery, taken: bool) -> None:
        core, connector = self.core, self.line.connector
        core.settle(delivery, _SUCCESS if taken else ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
        if connector is not None and (connector.resting or core.state == "closing"):
            connector.wake_writer()

    def handle(self) -> None:
        """After every verb of the core: take the core's events, then see to it that its bytes leave."""
        self.take_events()
        if self.line.connector is not None:
            self.line.connector.wake()

    def handle_publish(self) -> None:
        """The same after a publish, which changes no deadline and asks nothing of anybody else."""
        core, connector = self.core, self.line.connector
        if core.events:
            self.take_events()
        if connector is not None and (connector.resting or core.state == "closing"):
            connector.wake_writer()

    def take_events(self) -> None:
        core = self.core
        while core.events:
            received_at = 0.0
            # Where the last message went: nothing that comes between two of them changes who takes what.
            last = _NONE
            channel: MessageChannel | None = None
            for event in core.take_events():
                if isinstance(event, Delivery):
                    publish = event.publish
                    if channel is not None and publish.topic is last.topic and publish.properties is last.properties:
                        self._counts["received"] += 1
                        self.router.offer(channel, event, received_at)
                        continue
                    # What came in one read came at one time.
                    received_at = received_at or time.time()
                    last, channel = publish, self._on_received(event, received_at)
                    continue
                channel = None
                if isinstance(event, Outgoing):
                    self.publisher.on_done(event)
                else:
                    self._handle_event(event)
        if self.line.changed and core.idle:
            self.line.changed.unpark_all()

    def _handle_event(self, event: Event) -> None:
        if isinstance(event, ExchangeDone):
            self.subscriber.on_done(event.exchange)
        elif isinstance(event, Connected):
            self._counts["connections"] += 1
            self._was_connected = True
            self.router.inherited = self.router.inherited and event.resumed
            if self.line.connector is not None:
                self.line.connector.connected()
            if event.resumed:
                self.tell("resumed")
            self.line.changed.unpark_all()
        elif isinstance(event, Reauthenticated):
            self.line.changed.unpark_all()
        elif isinstance(event, Resubscribed):
            self.tell("connected")
        elif isinstance(event, Refused) and self.line.connector is not None:
            self.line.connector.refused = ConnectRefused(self.line.address, event.reason, event.explanation, return_code=event.return_code)

    def _on_received(self, delivery: Delivery, received_at: float) -> MessageChannel | None:
        """The channel that it went to, if all with that topic and those properties go to this one."""
        self._counts["received"] += 1
        publish = delivery.publish
        if publish.properties.correlation_data is None and publish.topic not in self.requests.topics:
            return self.router.route(delivery, received_at)
        answered = self.requests.take(publish, received_at)
        channels = self.router.channels(publish)
        if not channels and (answered or self.requests.is_response_topic(publish.topic)):
            self.requests.late += not answered
            self.core.settle(delivery)
            return None
        self.router.offer_to(channels, delivery, received_at)
        return None
