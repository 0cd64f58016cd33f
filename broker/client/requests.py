"""Requests that wait for their answers: by response topic and correlation data, found as the answer is received.

An answer goes straight from the reading task to whoever asked, past every channel, and the response topic is subscribed to at QoS 0,
so that neither a slow loop nor a used-up Receive Maximum can hold it up.
"""

from __future__ import annotations

import secrets
from typing import Final

import trio

from broker.client.line import Line
from broker.client.publishing import Publisher
from broker.client.router import Router
from broker.client.subscribing import Subscriber
from broker.core.client_state import Exchange, Outgoing
from broker.errors import PublishRefused, SubscribeRefused
from broker.messages import Message
from broker.reasons import ReasonCode
from broker.wire.packets import Publish, SubscriptionRequest

REQUESTS_COUNT_MAX: Final = 65_535


class Request:
    """One question under way. changed: unparked when `reply` is there, or when something else may have happened to it."""

    __slots__ = ("changed", "correlation_data", "reply", "response_topic")

    def __init__(self, response_topic: str, correlation_data: bytes) -> None:
        self.response_topic = response_topic
        self.correlation_data = correlation_data
        self.reply: Message | None = None
        self.changed = trio.lowlevel.ParkingLot()

    def set(self) -> None:
        """Its publish has ended: news for the request too."""
        self.changed.unpark_all()


class ResponseTopic:
    """A topic that answers come to, subscribed to once for all requests that name it. waiting: those of them that wait for their answers."""

    __slots__ = ("changed", "exchange", "users", "waiting")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.changed = trio.Event()
        self.users = 0
        self.waiting: set[Request] = set()

    def set(self) -> None:
        """Its SUBSCRIBE has ended, be it the first or one that made it again after the Session was lost."""
        self.changed.set()
        for request in self.waiting:
            request.set()

    @property
    def refused(self) -> ReasonCode | None:
        """Why no answers come here, if the broker has said so."""
        reasons = self.exchange.reasons
        return reasons[0] if reasons and reasons[0] >= 0x80 else None


class Requests:
    def __init__(self) -> None:
        self.topics: dict[str, ResponseTopic] = {}
        self.late = 0
        """Answers that nobody waited for (any more)."""
        self._waiting: dict[tuple[str, bytes], Request] = {}

    def begin(self, request: Request) -> None:
        if len(self._waiting) >= REQUESTS_COUNT_MAX:
            raise RuntimeError(f"more than {REQUESTS_COUNT_MAX:,} requests wait for their answers")
        self._waiting[request.response_topic, request.correlation_data] = request

    def end(self, request: Request) -> None:
        self._waiting.pop((request.response_topic, request.correlation_data), None)

    def wake(self) -> None:
        """The connection will not come back."""
        for request in self._waiting.values():
            request.changed.unpark_all()
        for topic in self.topics.values():
            topic.changed.set()

    def take(self, publish: Publish, received_at: float) -> bool:
        """Give this message to the request it answers, the first answer only; False if it answers none."""
        data = publish.properties.correlation_data
        request = None if data is None else self._waiting.get((publish.topic, data))
        if request is None or request.reply is not None:
            return False
        request.reply = Message.of(publish, received_at)
        request.changed.unpark_all()
        return True

    def is_response_topic(self, topic: str) -> bool:
        return topic in self.topics

    def forget_topics(self, filters: tuple[str, ...]) -> None:
        """They are unsubscribed from."""
        for filter in filters:
            topic = self.topics.pop(filter, None)
            if topic is not None:
                topic.set()


class Requester:
    """Asks: subscribes to where the answers come, publishes, waits for the first answer."""

    def __init__(self, line: Line, router: Router, requests: Requests, publisher: Publisher, subscriber: Subscriber) -> None:
        self._line = line
        self._router = router
        self._requests = requests
        self._publisher = publisher
        self._subscriber = subscriber

    async def ask(self, publish: Publish, request: Request, *, own: bool) -> Message:
        """own: the response topic is ours, and is kept for the next request."""
        self._line.check_open()
        waits_at = await self._subscribe(request.response_topic, own)
        outgoing: Outgoing | None = None
        self._requests.begin(request)
        if waits_at is not None:
            waits_at.waiting.add(request)
        try:
            outgoing = await self._publisher.begin(publish)
            if not outgoing.done:
                self._publisher.wait_for(outgoing, request)
            while request.reply is None:
                if outgoing.done and self._publisher.outcome(outgoing) == ReasonCode.NO_MATCHING_SUBSCRIBERS:
                    raise PublishRefused(publish.topic, ReasonCode.NO_MATCHING_SUBSCRIBERS)
                if waits_at is not None:
                    self._check_granted(request.response_topic, waits_at)
                self._line.check_open()
                await request.changed.park()
            return request.reply
        finally:
            if outgoing is not None and not outgoing.done:
                self._publisher.give_up(outgoing)
            self._requests.end(request)
            if waits_at is not None:
                waits_at.waiting.discard(request)
            self._leave(request.response_topic, waits_at, own)

    async def _subscribe(self, response_topic: str, own: bool) -> ResponseTopic | None:
        """Make sure that answers come here; None if a subscription of the program's own brings them."""
        topics = self._requests.topics
        if self._router.is_open(response_topic):
            await trio.lowlevel.checkpoint()
            return None
        waits_at = topics.get(response_topic)
        if waits_at is None:
            wanted = (SubscriptionRequest(response_topic, qos=0, retain_handling=2),)
            waits_at = ResponseTopic(self._line.core.subscribe(wanted, self._router.new_identifier()))
            waits_at.exchange.owner = waits_at
            topics[response_topic] = waits_at
            self._line.handle()
        waits_at.users += 1
        try:
            await waits_at.changed.wait()
            if not waits_at.exchange.done:
                self._line.check_open()
            self._check_granted(response_topic, waits_at)
        except BaseException:
            self._leave(response_topic, waits_at, own)
            raise
        return waits_at

    def _check_granted(self, response_topic: str, waits_at: ResponseTopic) -> None:
        """SubscribeRefused; the next request asks anew."""
        reason = waits_at.refused
        if reason is not None:
            if self._requests.topics.get(response_topic) is waits_at:
                del self._requests.topics[response_topic]
            raise SubscribeRefused(response_topic, reason)

    def _leave(self, response_topic: str, waits_at: ResponseTopic | None, own: bool) -> None:
        """A response topic that the program chose is left with its last request; our own stays."""
        if waits_at is None:
            return
        waits_at.users -= 1
        if waits_at.users or own or self._requests.topics.get(response_topic) is not waits_at:
            return
        del self._requests.topics[response_topic]
        if self._line.lost is None and not self._router.is_open(response_topic):  # else it is the program's by now
            self._subscriber.begin_unsubscribe((response_topic,), ())


def new_request(response_topic: str) -> Request:
    return Request(response_topic, secrets.token_bytes(12))
