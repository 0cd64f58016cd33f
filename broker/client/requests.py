"""Requests that wait for their answers: by response topic and correlation data, found as the answer is received.

An answer goes straight from the reading task to whoever asked, past every channel, and the response topic is subscribed to at QoS 0,
so that neither a slow loop nor a used-up Receive Maximum can hold it up.
"""

from __future__ import annotations

from typing import Final

import trio

from broker.core.client_state import Exchange
from broker.messages import Message
from broker.wire.packets import Publish

REQUESTS_COUNT_MAX: Final = 65_535


class Request:
    """One question under way. changed: unparked when `reply` is there, or when something else may have happened to it."""

    __slots__ = ("changed", "correlation_data", "reply", "response_topic")

    def __init__(self, response_topic: str, correlation_data: bytes) -> None:
        self.response_topic = response_topic
        self.correlation_data = correlation_data
        self.reply: Message | None = None
        self.changed = trio.lowlevel.ParkingLot()


class ResponseTopic:
    """A topic that answers come to, subscribed to once for all requests that name it."""

    __slots__ = ("changed", "exchange", "users")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.changed = trio.Event()
        self.users = 0


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
        request.reply = Message(
            publish.topic,
            publish.payload,
            qos=publish.qos,
            retain=publish.retain,
            dup=publish.dup,
            properties=publish.properties,
            packet_id=publish.packet_id,
            received_at=received_at,
        )
        request.changed.unpark_all()
        return True

    def is_response_topic(self, topic: str) -> bool:
        return topic in self.topics
