"""Client: what a program does with one connection. Each method is a few awaits around a verb of `core.client`.

What waits is a task at an Event that the core's own token carries; what ends it is an event of the core. So a cancelled caller
leaves nothing behind but what the wire has seen, and that ends in the background.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import trio

from broker.channel import MessageChannel, Subscription
from broker.client.authentication import Authentication
from broker.client.driver import Driver
from broker.client.news import News, NewsIterator
from broker.client.publishing import Pipeline, new_publish
from broker.client.requests import new_request
from broker.client.router import OpenSubscription
from broker.client.subscribing import RETAIN_HANDLING
from broker.core.client import ClientProtocol
from broker.errors import ConnectionLost, InvalidTopic, NotSupported, shown
from broker.messages import (
    Ack,
    Message,
    Overflow,
    Payload,
    UserProperties,
    Version,
    check_qos,
    check_topic_filter,
    user_property_pairs,
    whole_seconds,
)
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, ConnAck, Properties, SubscriptionRequest


class Client:
    """One client of a broker, over as many connections as its `Reconnect` policy makes. `connect` gives it; safe from any task of this Trio run."""

    def __init__(self, driver: Driver, version: Version) -> None:
        self._driver = driver
        self._version: Version = version
        self._unclaimed = Subscription((), (), driver.router.unclaimed)

    def __repr__(self) -> str:
        return f"Client({self.client_id!r}, {self._driver.line.address})"

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def core(self) -> ClientProtocol:
        """The rules underneath, for those who need more than this class says."""
        return self._driver.core

    @property
    def client_id(self) -> str:
        """The broker's, if it assigned one."""
        return self.core.client_id

    @property
    def version(self) -> Version:
        """That of the protocol, as `connect` was told."""
        return self._version

    @property
    def connected(self) -> bool:
        """Is there a connection now, with its CONNACK?"""
        return self.core.state == "connected"

    @property
    def connack(self) -> ConnAck | None:
        """The newest CONNACK."""
        return self.core.connack

    @property
    def session_present(self) -> bool:
        """Of the newest CONNACK."""
        return self.core.connack is not None and self.core.connack.session_present

    @property
    def unclaimed(self) -> Subscription:
        """Messages that no open subscription matches (a resumed session speaks before you subscribe). Held unsettled
        unclaimed_grace_s, offered to each new subscription, then answered 0x83, counted and logged. What was unsubscribed from needs no grace."""
        return self._unclaimed

    def statistics(self) -> Mapping[str, int]:
        """Counts since `connect`, and how many publishes and settlements are under way."""
        return self._driver.statistics()

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
        message_expiry_s counts from the call: what is left of it is sent, and what ends before the message could be sent raises MessageExpired.
        Each call honours cancellation; other tasks get their turn when there is something to wait for, after 256 calls, or a millisecond.
        Raises PublishRefused, Offline, DeliveryUnknown, MessageExpired, InvalidTopic, NotSupported, ConnectionLost.
        """
        publish = new_publish(
            topic, payload, qos, retain, content_type, response_topic, correlation_data, user_properties, message_expiry_s, payload_is_text
        )
        if offline not in ("wait", "raise", "drop"):
            raise ValueError(f"offline must be wait, raise or drop, not {offline!r}")
        return await self._driver.publisher.publish(publish, offline, topic_alias)

    @asynccontextmanager
    async def pipeline(self, *, count_max: int = 1000, bytes_max: int = 8_388_608) -> AsyncIterator[Pipeline]:
        """For many messages: `await pipeline.publish(...)` waits for a place, not for the end of the handshake, and many leave at a time.

        At most count_max messages and about bytes_max payload bytes are under way; they leave in the order of the calls. Left normally: waits
        for all handshakes. The first message that fails raises what `publish` would, from the next call or from the end of the scope.
        """
        pipeline = Pipeline(self._driver.publisher, self._driver.line, count_max, bytes_max)
        try:
            yield pipeline
            await pipeline.wait_done()
        finally:
            pipeline.abandon()

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
        if cancelled) unless keep=True, which leaves it in the Session, so that messages queue while the program is away; also
        where the wait for the grant is cancelled.
        Overlap: a message goes to every subscription whose identifier it carries, and is settled when all have settled it.
        Without identifiers (3.1.1) filters are matched here, and a server that sends one copy each is seen twice.
        identifier: 1 to 268,435,455, instead of one that is chosen here. Raises also InvalidTopic, SubscriptionExists,
        NotSupported, ConnectionLost.
        """
        if not filters:
            raise ValueError("subscribe() needs at least one topic filter")
        for filter in filters:
            check_topic_filter(filter)
        if len(set(filters)) != len(filters):
            raise ValueError("a topic filter is given twice")
        if group is not None and "/" in group:
            raise InvalidTopic(f"a group must not contain /: {group!r}")  # [MQTT5-4.8.2-2]: it would be the group "a" and another filter
        full = tuple(filters if group is None else (f"$share/{group}/{filter}" for filter in filters))
        if retained not in RETAIN_HANDLING:
            raise ValueError(f"retained must be send, if-new or never, not {retained!r}")
        self._driver.subscriber.check(full, no_local, identifier)
        channel = MessageChannel(
            ack=ack,
            buffer_count_max=buffer_count_max,
            overflow=overflow,
            spares_acknowledged=True,
            on_disconnect=self._driver.disconnect_overflowing,
        )
        requests = tuple(SubscriptionRequest(filter, check_qos(qos), no_local, retain_as_published, RETAIN_HANDLING[retained]) for filter in full)
        opened = OpenSubscription(full, self._driver.router.new_identifier() if identifier is None else identifier, channel, keep)
        return self._driver.subscriber.scope(opened, requests, user_property_pairs(user_properties))

    async def unsubscribe(self, *filters: str, user_properties: UserProperties = ()) -> tuple[ReasonCode, ...]:
        """One UNSUBSCRIBE for filters that the Session holds, whoever made them; a reason code for each (3.1.1: SUCCESS).

        An open `subscribe` scope with one of these filters stays open, and gets nothing more for it.
        """
        if not filters:
            raise ValueError("unsubscribe() needs at least one topic filter")
        for filter in filters:
            check_topic_filter(filter)
        return await self._driver.subscriber.unsubscribe(filters, user_property_pairs(user_properties))

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
        request = new_request(response_topic)
        data = request.correlation_data
        publish = new_publish(topic, payload, qos, False, content_type, response_topic, data, user_properties, message_expiry_s, None)
        return await self._driver.requester.ask(publish, request, own=own)

    async def reply(
        self, request: Message, payload: Payload = b"", *, qos: int = 1, content_type: str | None = None, user_properties: UserProperties = ()
    ) -> ReasonCode:
        """Publish to the request's response topic with its correlation data. ValueError if it has no response topic."""
        if request.response_topic is None:
            raise ValueError(f"the message on {shown(request.topic)} has no response topic, so it is not a request")
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
            self._driver.line.check_open()
            await self._driver.line.changed.park()

    async def reauthenticate(self, auth: Authentication | None = None) -> None:
        """Show the broker anew who this is; returns when it has accepted. auth: from now on instead of that of `connect`, with the same method,
        such as a newer token. ConnectionLost if the broker does not accept it. Where the connection is lost meanwhile, the next one's CONNECT does
        the same. NotSupported without an `auth=` in `connect`."""
        connector = self._driver.line.connector
        if connector is None or connector.auth is None:
            raise NotSupported("there is nothing to authenticate anew with: connect(auth=...)")
        if auth is not None:
            if auth.method != connector.auth.method:
                raise ValueError(f"the connection began with {connector.auth.method!r}, and cannot go on with {auth.method!r}")  # [MQTT5-4.12.1-1]
            connector.auth = auth
        await self._wait_authenticated()
        connector.prepare_authentication()
        self._driver.core.reauthenticate()
        self._driver.handle()
        await self._wait_authenticated()

    async def _wait_authenticated(self) -> None:
        """There is a connection, and no AUTH of ours is under way on it."""
        await self.wait_connected()
        while self._driver.core.auth.renewing or not self.connected:
            self._driver.line.check_open()
            await self._driver.line.changed.park()

    def connections(self) -> AsyncIterator[News]:
        """What happens to the connection from now on: "connected" (the session is new, re-subscribed), "resumed", "lost"; ends with the client."""
        news = NewsIterator()
        news.ended = self._driver.line.lost is not None
        self._driver.news.add(news)
        return news

    async def disconnect(self, *, publish_will: bool = False, session_expiry_s: float | None = None, user_properties: UserProperties = ()) -> None:
        """Say goodbye now, without waiting for what is under way; with 0x04 if the broker shall publish the Will. What follows raises ConnectionLost.

        session_expiry_s: from now on, instead of what `connect` said; ValueError if that was 0 and this is not. It and user_properties need
        5.0 (NotSupported). 3.1.1 has no goodbye that publishes a Will: with publish_will the connection just ends.
        """
        if session_expiry_s is not None or user_properties:
            expiry_s = None if session_expiry_s is None else whole_seconds(session_expiry_s, "session_expiry_s")
            properties = Properties(session_expiry_interval=expiry_s, user_properties=user_property_pairs(user_properties))
            self.core.goodbye.check(properties)
            self.core.goodbye.properties = properties
        await trio.lowlevel.checkpoint()
        if self._driver.line.lost is None and self._driver.line.connector is not None:
            self._driver.line.connector.close(ReasonCode.DISCONNECT_WITH_WILL if publish_will else ReasonCode.SUCCESS)
            self._driver.finish(ConnectionLost("this client has disconnected"))
            await self._driver.line.connector.ended.wait()
