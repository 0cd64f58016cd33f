"""Client: what a program does with one connection. Each method is a few awaits around a verb of `core.client`.

What waits is a task at an Event that the core's own token carries; what ends it is an event of the core. So a cancelled caller
leaves nothing behind but what the wire has seen, and that ends in the background.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Literal, Protocol, Self
from weakref import WeakSet

import trio

from broker.channel import MessageChannel, Subscription
from broker.client.connection import Connector
from broker.client.requests import Request, Requests, ResponseTopic
from broker.client.router import OpenSubscription, Router, settlement
from broker.core.client import ClientProtocol
from broker.core.client_state import Connected, Delivery, Event, Exchange, ExchangeDone, Outgoing, PublishDone, Received, Resubscribed
from broker.errors import ConnectionLost, ConnectRefused, DeliveryUnknown, InvalidTopic, NotSupported, Offline, PublishRefused, SubscribeRefused
from broker.messages import (
    Ack,
    Message,
    Overflow,
    Payload,
    QoS,
    UserProperties,
    Version,
    check_qos,
    check_topic_name,
    message_properties,
    payload_bytes,
    user_property_pairs,
)
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, NO_PROPERTIES, ConnAck, Properties, Publish, SubscriptionRequest
from broker.wire.topics import topic_filter_fault

_RETAIN_HANDLING: Final = {"send": 0, "if-new": 1, "never": 2}
_NEWS_COUNT_MAX: Final = 100

News = Literal["connected", "resumed", "lost"]


class Client:
    """One client of a broker, over as many connections as its `Reconnect` policy makes. `connect` gives it; safe from any task of this Trio run."""

    def __init__(self, core: ClientProtocol, address: str, version: Version, *, outgoing_count_max: int, unclaimed_grace_s: float) -> None:
        self.version: Version = version
        self._router = Router(self._settled, trio.current_time, unclaimed_grace_s)
        self.unclaimed = Subscription((), (), self._router.unclaimed)
        """Messages that no open subscription matches (a resumed session speaks before you subscribe). Held unsettled
        unclaimed_grace_s, offered to each new subscription, then answered 0x83, counted and logged."""
        self.core = core
        """The rules underneath, for those who need more than this class says."""
        self._address = address
        self._window = trio.Semaphore(outgoing_count_max)
        self._requests = Requests()
        self._connector: Connector | None = None
        self._lost: BaseException | None = None
        self._failure: BaseException | None = None
        self._on_lost: Callable[[], None] = lambda: None
        self._was_connected = False
        self._waiters: set[_Waiter] = set()  # of publishes, subscribes and unsubscribes
        self._leaving: set[trio.Event] = set()  # of the UNSUBSCRIBEs that a scope waits for, though no longer than the connection stands
        self._changed = trio.lowlevel.ParkingLot()
        self._news: WeakSet[_News] = WeakSet()
        self._counts = dict.fromkeys(("connections", "published", "received", "refused", "dropped_offline", "unknown"), 0)

    def __repr__(self) -> str:
        return f"Client({self.client_id!r}, {self._address})"

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def client_id(self) -> str:
        """The broker's, if it assigned one."""
        return self.core.client_id

    @property
    def connected(self) -> bool:
        return self.core.state == "connected"

    @property
    def connack(self) -> ConnAck | None:
        """The newest CONNACK."""
        return self.core.connack

    @property
    def session_present(self) -> bool:
        """Of the newest CONNACK."""
        return self.core.connack is not None and self.core.connack.session_present

    def statistics(self) -> Mapping[str, int]:
        """Counts since `connect`, and how many publishes and settlements are under way."""
        return {
            **self._counts,
            "late_answers": self._requests.late,
            "refused_messages": self._router.refused,
            "unclaimed_refused": self._router.unclaimed_refused,
            "outgoing": self.core.outgoing_count,
            "unsettled": self.core.inbox.unsettled_count,
        }

    # ---- publishing --------------------------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        payload: Payload = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        user_properties: UserProperties = (),
        message_expiry_s: int | None = None,
        payload_is_text: bool | None = None,
        offline: Literal["wait", "raise", "drop"] = "wait",
        topic_alias: int | None = None,
    ) -> ReasonCode:
        """Returns when the handshake of that QoS is complete (QoS 0: when the bytes are the kernel's); retain with an empty payload clears.

        Away: QoS 0 does what `offline` says ("drop" is counted, and returns SUCCESS); QoS 1 and 2 take a place in the outgoing
        window (outgoing_count_max; waits when full), are sent after the reconnection, and QoS 1 is sent anew if the session was
        lost. Cancelled: before the PUBLISH has left, nothing happened; after, the handshake ends in the background and its
        packet id is freed then. topic_alias: set for the topic with this message, or used if it is set on this connection.
        Raises PublishRefused, Offline, DeliveryUnknown, InvalidTopic, NotSupported, ConnectionLost.
        """
        fields = message_properties(content_type, response_topic, correlation_data, user_properties, message_expiry_s, payload_is_text)
        publish = self._new_publish(topic, payload, qos, retain, fields)
        if offline not in ("wait", "raise", "drop"):
            raise ValueError(f"offline must be wait, raise or drop, not {offline!r}")
        self._check_open()
        if publish.qos == 0 and offline != "wait" and not self.connected:
            await trio.lowlevel.checkpoint()
            if offline == "raise":
                raise Offline(f"not connected to {self._address}, so {topic!r} was not published")
            self._counts["dropped_offline"] += 1
            return ReasonCode.SUCCESS
        done = trio.Event()
        outgoing = await self._begin_publish(publish, done, offline=offline, topic_alias=topic_alias)
        try:
            await done.wait()
        except trio.Cancelled:
            self._give_up(outgoing)
            raise
        return self._outcome(outgoing)

    def _new_publish(self, topic: str, payload: Payload, qos: int, retain: bool, fields: dict[str, Any]) -> Publish:
        check_topic_name(topic)
        return Publish(topic, payload_bytes(payload), check_qos(qos), bool(retain), properties=Properties(**fields) if fields else NO_PROPERTIES)

    async def _begin_publish(self, publish: Publish, owner: _Waiter, *, offline: str = "wait", topic_alias: int | None = None) -> Outgoing:
        if publish.qos:
            await self._window.acquire()
        try:
            self._check_open()
            outgoing = self.core.publish(publish, offline=offline, topic_alias=topic_alias)
        except BaseException:
            if publish.qos:
                self._window.release()
            raise
        outgoing.owner = owner
        self._waiters.add(owner)
        self._turn()
        return outgoing

    def _give_up(self, outgoing: Outgoing) -> None:
        """Nobody waits for it any more: take it back, or let it end in the background."""
        self._waiters.discard(outgoing.owner)
        if self.core.cancel_publish(outgoing) and outgoing.qos:
            self._window.release()

    def _outcome(self, outgoing: Outgoing) -> ReasonCode:
        if not outgoing.done:
            self._check_open()
        topic = outgoing.publish.topic
        if outgoing.outcome == "refused":
            raise PublishRefused(topic, outgoing.reason)
        if outgoing.outcome == "unknown":
            raise DeliveryUnknown(f"the broker lost the session while {topic!r} was on its way at QoS 2: it may have been delivered, or not")
        if outgoing.outcome == "offline":
            raise Offline(f"the connection to {self._address} was lost before {topic!r} was sent")
        return outgoing.reason

    # ---- subscribing -------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        *filters: str,
        qos: int = 0,
        group: str | None = None,
        no_local: bool = False,
        retain_as_published: bool = False,
        retained: Literal["send", "if-new", "never"] = "send",
        ack: Ack = "on_next",
        buffer_count_max: int = 1000,
        overflow: Overflow = "drop-oldest",
        keep: bool = False,
        user_properties: UserProperties = (),
        identifier: int | None = None,
    ) -> AbstractAsyncContextManager[Subscription]:
        """One SUBSCRIBE, one Subscription Identifier, one channel; entered when every filter is granted, else SubscribeRefused.

        group="g" subscribes to $share/g/...; with no_local it is a ValueError. Leaving sends UNSUBSCRIBE (without waiting
        if cancelled) unless keep=True, which leaves it in the Session, so that messages queue while the program is away.
        Overlap: a message goes to every subscription whose identifier it carries, and is settled when all have settled it.
        Without identifiers (3.1.1) filters are matched here, and a server that sends one copy each is seen twice.
        identifier: 1 to 268,435,455, instead of one that is chosen here. Raises also InvalidTopic, SubscriptionExists,
        NotSupported, ConnectionLost.
        """
        if not filters:
            raise ValueError("subscribe() needs at least one topic filter")
        if len(set(filters)) != len(filters):
            raise ValueError("a topic filter is given twice")
        if group is not None and "/" in group:
            raise InvalidTopic(f"a group must not contain /: {group!r}")  # [MQTT5-4.8.2-2]: it would be the group "a" and another filter
        full = tuple(filters if group is None else (f"$share/{group}/{filter}" for filter in filters))
        for filter in full:
            fault = topic_filter_fault(filter)
            if fault is not None:
                raise InvalidTopic(f"{filter!r} is not a topic filter: {fault}")
            if no_local and filter.startswith("$share/"):
                raise ValueError("no_local cannot be used with a shared subscription")  # [MQTT5-3.8.3-4]
        if retained not in _RETAIN_HANDLING:
            raise ValueError(f"retained must be send, if-new or never, not {retained!r}")
        if identifier is not None and not 1 <= identifier <= 268_435_455:
            raise ValueError(f"identifier must be from 1 to 268,435,455, not {identifier!r}")
        if identifier is not None and (self.core.version < MQTT_5 or not (self.core.capabilities.identifiers or not self.connected)):
            raise NotSupported("this broker has no subscription identifiers")
        channel = MessageChannel(
            ack=ack,
            buffer_count_max=buffer_count_max,
            overflow=overflow,
            spares_acknowledged=True,
            on_disconnect=self._disconnect_overflowing,
        )
        requests = tuple(SubscriptionRequest(filter, check_qos(qos), no_local, retain_as_published, _RETAIN_HANDLING[retained]) for filter in full)
        opened = OpenSubscription(full, self._router.new_identifier() if identifier is None else identifier, channel, keep)
        return self._subscribed(opened, requests, user_property_pairs(user_properties))

    @asynccontextmanager
    async def _subscribed(
        self, opened: OpenSubscription, requests: tuple[SubscriptionRequest, ...], user_properties: tuple[tuple[str, str], ...]
    ) -> AsyncIterator[Subscription]:
        keep = opened.keep
        await self._enter(opened, requests, user_properties)
        assert opened.subscription is not None
        failed = True
        try:
            yield opened.subscription
            failed = False
        finally:
            self._router.close(opened, failed=failed)
            exchange = None if keep or self._lost is not None else self._begin_unsubscribe(opened.filters, ())
            self._turn()
            if exchange is not None and not failed and self.connected:
                await self._wait_left(exchange)

    async def _enter(self, opened: OpenSubscription, requests: tuple[SubscriptionRequest, ...], user_properties: tuple[tuple[str, str], ...]) -> None:
        """SUBSCRIBE and wait for its grants. Whatever fails, nothing of it stays."""
        self._check_open()
        self._router.open(opened)
        exchange: Exchange | None = None
        try:
            exchange = self.core.subscribe(requests, opened.identifier, user_properties)
            exchange.owner = opened
            self._waiters.add(opened.changed)
            self._turn()
            await opened.changed.wait()
            if not exchange.done:
                self._check_open()
            for filter, reason in zip(exchange.filters, exchange.reasons, strict=True):
                if reason >= 0x80:
                    raise SubscribeRefused(filter, reason)
        except BaseException:
            keep, opened.keep = opened.keep, True  # what it was offered goes back to the unclaimed
            self._router.close(opened, failed=True)
            opened.keep = keep
            if exchange is not None and self._lost is None:
                self._withdraw(exchange)
            raise
        finally:
            self._waiters.discard(opened.changed)
        opened.entered = True
        opened.subscription = Subscription(opened.filters, tuple(QoS(reason) for reason in exchange.reasons), opened.channel)

    def _withdraw(self, exchange: Exchange) -> None:
        """Undo a SUBSCRIBE that nobody waits for: all of it if its answer is not here yet, else what was granted."""
        if self.core.cancel_exchange(exchange):
            return
        granted = tuple(filter for filter, reason in zip(exchange.filters, exchange.reasons, strict=False) if reason < 0x80)
        filters = granted if exchange.done else exchange.filters
        if filters:
            self._begin_unsubscribe(filters, ())
        self._turn()

    def _begin_unsubscribe(self, filters: tuple[str, ...], user_properties: tuple[tuple[str, str], ...]) -> Exchange:
        exchange = self.core.unsubscribe(filters, user_properties)
        exchange.owner = trio.Event()
        for filter in filters:
            self._requests.topics.pop(filter, None)
        self._turn()
        return exchange

    async def _wait_left(self, exchange: Exchange) -> None:
        left: trio.Event = exchange.owner
        self._leaving.add(left)
        try:
            await left.wait()
        finally:
            self._leaving.discard(left)

    async def unsubscribe(self, *filters: str, user_properties: UserProperties = ()) -> tuple[ReasonCode, ...]:
        """One UNSUBSCRIBE for filters that the Session holds, whoever made them; a reason code for each (3.1.1: SUCCESS).

        An open `subscribe` scope with one of these filters stays open, and gets nothing more for it.
        """
        if not filters:
            raise ValueError("unsubscribe() needs at least one topic filter")
        for filter in filters:
            fault = topic_filter_fault(filter)
            if fault is not None:
                raise InvalidTopic(f"{filter!r} is not a topic filter: {fault}")
        self._check_open()
        exchange = self._begin_unsubscribe(filters, user_property_pairs(user_properties))
        done: trio.Event = exchange.owner
        self._waiters.add(done)
        try:
            await done.wait()
        finally:
            self._waiters.discard(done)
        if not exchange.done:
            self._check_open()
        return exchange.reasons

    def _disconnect_overflowing(self) -> None:
        self.core.disconnect(ReasonCode.QUOTA_EXCEEDED, trio.current_time(), cause="a subscription's buffer is full, and its rule is to disconnect")

    # ---- requests ----------------------------------------------------------------------------------------------------

    async def request(
        self,
        topic: str,
        payload: Payload = b"",
        *,
        qos: int = 1,
        response_topic: str | None = None,
        content_type: str | None = None,
        user_properties: UserProperties = (),
        message_expiry_s: int | None = None,
    ) -> Message:
        """Publish with a response topic ("<response information or 'reply'>/<client_id>") and fresh correlation data; the first
        answer. Wrap it in trio.fail_after. NO_MATCHING_SUBSCRIBERS raises PublishRefused at once. Late answers are counted. 5.0 only.

        Answers are subscribed to at QoS 0, so that no slow subscription can hold them up.
        """
        if self.core.version < MQTT_5:
            raise NotSupported("request() needs MQTT 5.0")
        own = response_topic is None
        if response_topic is None:
            response_topic = f"{self.core.capabilities.response_information or 'reply'}/{self.client_id}"
        request = Request(response_topic, secrets.token_bytes(12))
        fields = message_properties(content_type, response_topic, request.correlation_data, user_properties, message_expiry_s, None)
        publish = self._new_publish(topic, payload, qos, False, fields)
        self._check_open()
        waits_at = await self._subscribe_to_answers(response_topic)
        outgoing: Outgoing | None = None
        self._requests.begin(request)
        try:
            outgoing = await self._begin_publish(publish, _Wakes(request))
            while request.reply is None:
                if outgoing.done and self._outcome(outgoing) == ReasonCode.NO_MATCHING_SUBSCRIBERS:
                    raise PublishRefused(topic, ReasonCode.NO_MATCHING_SUBSCRIBERS)
                self._check_open()
                await request.changed.park()
            return request.reply
        finally:
            if outgoing is not None and not outgoing.done:
                self._give_up(outgoing)
            self._requests.end(request)
            self._leave_answers(response_topic, waits_at, own)

    async def _subscribe_to_answers(self, response_topic: str) -> ResponseTopic | None:
        """Make sure that answers come here; None if a subscription of the program's own brings them."""
        if self._router.is_open(response_topic):
            await trio.lowlevel.checkpoint()
            return None
        waits_at = self._requests.topics.get(response_topic)
        if waits_at is None:
            wanted = (SubscriptionRequest(response_topic, qos=0, retain_handling=2),)
            waits_at = ResponseTopic(self.core.subscribe(wanted, self._router.new_identifier()))
            waits_at.exchange.owner = waits_at.changed
            self._requests.topics[response_topic] = waits_at
            self._turn()
        waits_at.users += 1
        try:
            await waits_at.changed.wait()
            if not waits_at.exchange.done:
                self._check_open()
            reason = waits_at.exchange.reasons[0]
            if reason >= 0x80:
                if self._requests.topics.get(response_topic) is waits_at:
                    del self._requests.topics[response_topic]
                raise SubscribeRefused(response_topic, reason)
        except BaseException:
            waits_at.users -= 1
            raise
        return waits_at

    def _leave_answers(self, response_topic: str, waits_at: ResponseTopic | None, own: bool) -> None:
        """A response topic that the program chose is left with its last request; our own stays."""
        if waits_at is None:
            return
        waits_at.users -= 1
        if waits_at.users == 0 and not own and self._requests.topics.get(response_topic) is waits_at and self._lost is None:
            self._begin_unsubscribe((response_topic,), ())

    async def reply(
        self, request: Message, payload: Payload = b"", *, qos: int = 1, content_type: str | None = None, user_properties: UserProperties = ()
    ) -> ReasonCode:
        """Publish to the request's response topic with its correlation data. ValueError if it has no response topic."""
        if request.response_topic is None:
            raise ValueError(f"the message on {request.topic!r} has no response topic, so it is not a request")
        return await self.publish(
            request.response_topic,
            payload,
            qos=qos,
            content_type=content_type,
            correlation_data=request.correlation_data,
            user_properties=user_properties,
        )

    # ---- the connection ----------------------------------------------------------------------------------------------

    async def wait_connected(self) -> None:
        """Returns when there is a connection. ConnectionLost if there will be none."""
        await trio.lowlevel.checkpoint()
        while not self.connected:
            self._check_open()
            await self._changed.park()

    def connections(self) -> AsyncIterator[News]:
        """What happens to the connection from now on: "connected" (the session is new, re-subscribed), "resumed", "lost"; ends with the client."""
        news = _News()
        news.ended = self._lost is not None
        self._news.add(news)
        return news

    async def disconnect(self, *, publish_will: bool = False) -> None:
        """Say goodbye now, without waiting for what is under way; with 0x04 if the broker shall publish the Will. What follows raises ConnectionLost.

        3.1.1 has no such goodbye: with publish_will the connection just ends.
        """
        await trio.lowlevel.checkpoint()
        if self._lost is None and self._connector is not None:
            self._connector.close(ReasonCode.DISCONNECT_WITH_WILL if publish_will else ReasonCode.SUCCESS)
            self._end(ConnectionLost("this client has disconnected"))
            await self._connector.ended.wait()

    # ---- for connect() -----------------------------------------------------------------------------------------------

    def attach_connector(self, connector: Connector, on_lost: Callable[[], None]) -> None:
        self._connector = connector
        self._on_lost = on_lost

    @property
    def failure(self) -> BaseException | None:
        """Why no connection came, or none comes back; None if the program itself ended it."""
        return self._failure

    async def wait_idle(self) -> None:
        """Returns when nothing that we sent or owe is under way, or nothing can be any more."""
        while self._lost is None and not self.core.idle:
            await self._changed.park()

    def fail(self, error: BaseException) -> None:
        """No connection will come any more."""
        if self._lost is None:
            # First the body's cancellation, so that its own waits end with that and `connect` raises the error, once.
            self._failure = error
            self._on_lost()
            self._end(error)

    def end(self) -> None:
        """The scope of `connect` is over."""
        self._end(ConnectionLost("this client is closed: its connect() scope has ended"))

    def _end(self, error: BaseException) -> None:
        if self._lost is None:
            self._lost = error
        self._router.unclaimed.close()
        waiters: list[_Waiter] = [*self._waiters, *self._leaving]
        for waiter in waiters:
            waiter.set()
        self._waiters.clear()
        self._requests.wake()
        self._changed.unpark_all()
        for news in self._news:
            news.end()

    def _check_open(self) -> None:
        if self._lost is not None:
            reason = self._lost.reason if isinstance(self._lost, ConnectionLost) else None
            raise ConnectionLost(str(self._lost), reason) from self._lost

    # ---- what the core says ------------------------------------------------------------------------------------------

    @property
    def turns(self) -> Router:
        return self._router

    def due(self) -> float:
        return self._router.next_deadline()

    def on_due(self, now: float) -> None:
        self._router.tick(now)

    def connection_lost(self) -> None:
        """A connection is over, whether or not another follows."""
        if self._was_connected:
            self._was_connected = False
            self.tell("lost")
        for left in self._leaving:
            left.set()
        self._changed.unpark_all()

    def tell(self, what: News) -> None:
        for news in self._news:
            news.tell(what)

    def _settled(self, delivery: Delivery, taken: bool) -> None:
        self.core.settle(delivery, settlement(taken))
        if self._connector is not None:
            self._connector.wake()

    def _turn(self) -> None:
        """After every verb of the core."""
        self.handle()

    def handle(self) -> None:
        """Take the core's events, then see to it that its bytes leave."""
        core = self.core
        events = core.take_events()
        while events:
            for event in events:
                self._handle_event(event)
            events = core.take_events()
        if core.idle:
            self._changed.unpark_all()
        if self._connector is not None:
            self._connector.wake()

    def _handle_event(self, event: Event) -> None:
        if isinstance(event, Received):
            self._on_received(event.delivery)
        elif isinstance(event, PublishDone):
            self._on_publish_done(event.outgoing)
        elif isinstance(event, ExchangeDone):
            self._on_exchange_done(event.exchange)
        elif isinstance(event, Connected):
            self._counts["connections"] += 1
            self._was_connected = True
            if self._connector is not None:
                self._connector.connected()
            if event.resumed:
                self.tell("resumed")
            self._changed.unpark_all()
        elif isinstance(event, Resubscribed):
            self.tell("connected")
        elif self._connector is not None:
            self._connector.refused = ConnectRefused(self._address, event.reason, event.explanation, return_code=event.return_code)

    def _on_received(self, delivery: Delivery) -> None:
        self._counts["received"] += 1
        publish = delivery.publish
        received_at = time.time()
        if self._requests.topics or publish.properties.correlation_data is not None:
            answered = self._requests.take(publish, received_at)
            channels = self._router.channels(delivery)
            if not channels and (answered or self._requests.is_response_topic(publish.topic)):
                self._requests.late += not answered
                self.core.settle(delivery)
                return
        else:
            channels = self._router.channels(delivery)
        self._router.route(delivery, channels, received_at)

    def _on_publish_done(self, outgoing: Outgoing) -> None:
        self._counts["published" if outgoing.outcome == "acknowledged" else "unknown" if outgoing.outcome == "unknown" else "refused"] += 1
        if outgoing.qos:
            self._window.release()
        owner = outgoing.owner
        self._waiters.discard(owner)
        owner.set()

    def _on_exchange_done(self, exchange: Exchange) -> None:
        owner = exchange.owner
        if not isinstance(owner, OpenSubscription):
            owner.set()
            return
        owner.changed.set()
        if owner.subscription is None:
            return
        # Made again after the Session was lost.
        granted = dict(zip(owner.subscription.filters, owner.subscription.granted, strict=True))
        for filter, reason in zip(exchange.filters, exchange.reasons, strict=True):
            if reason < 0x80:
                granted[filter] = QoS(reason)
                continue
            for channel in owner.channel.siblings:
                channel.close(SubscribeRefused(filter, reason))
        owner.subscription.granted = tuple(granted.values())


class _Waiter(Protocol):
    def set(self) -> None: ...


class _Wakes:
    """Stands where a publish has its Event: the end of the handshake is news for the request too."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def set(self) -> None:
        self._request.changed.unpark_all()


class _News:
    """One iteration over `Client.connections()`: bounded, the oldest news go first."""

    def __init__(self) -> None:
        self.ended = False
        self._waiting: deque[News] = deque(maxlen=_NEWS_COUNT_MAX)
        self._changed = trio.lowlevel.ParkingLot()

    def tell(self, what: News) -> None:
        self._waiting.append(what)
        self._changed.unpark_all()

    def end(self) -> None:
        self.ended = True
        self._changed.unpark_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self.ended:
                raise StopAsyncIteration
            await self._changed.park()
        return self._waiting.popleft()
