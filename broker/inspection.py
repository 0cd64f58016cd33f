"""What a program, or whoever runs the broker, may see of its clients, subscriptions and retained messages: looked up when it is asked for, in steps
where there may be very many."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgspec
import trio

from broker.core.engine import Engine
from broker.core.kept import message_of
from broker.core.message import ApplicationMessage
from broker.core.session import Session
from broker.core.subscription import Subscription, by_filter
from broker.messages import Message, Version
from broker.net.connection import Connection
from broker.wire.topics import split_shared

STEP_COUNT: Final = 256
"""Clients, subscriptions or messages of one step: about a millisecond."""
STEP_VISITS_MAX: Final = 2_048
STEP_BYTES_MAX: Final = 1_048_576
"""Of retained messages: a step may be one larger than this."""

_VERSIONS: Final[dict[int, Version]] = {3: "3.1", 4: "3.1.1", 5: "5.0"}


class ClientInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One session: client_id, and the username by which it came in. peer ("192.0.2.7:50123"), listener (its URL), version ("5.0"), keepalive_s (0: it
    has none) and connected_at_s (Unix time) are None while its client is away. session_expiry_s: how long it outlives its connection, math.inf for
    ever. subscriptions_count: its Topic Filters. queue_count, queue_bytes: messages that wait for it, in bytes of topics and payloads;
    inflight_count, inflight_bytes: those sent and not acknowledged. dropped: how many were not delivered to it, by reason."""

    client_id: str
    username: str | None
    peer: str | None
    version: Version | None
    connected_at_s: float | None
    queue_count: int
    queue_bytes: int
    inflight_count: int = 0
    inflight_bytes: int = 0
    dropped: Mapping[str, int] = {}
    listener: str | None = None
    keepalive_s: float | None = None
    session_expiry_s: float = 0.0
    subscriptions_count: int = 0


class SubscriptionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """client_id: whose. filter: its whole Topic Filter, `$share/...` and a mount point included; share_group: the group's name. qos, no_local,
    retain_as_published and identifier (None: it has none) are its options."""

    client_id: str
    filter: str
    qos: int
    share_group: str | None = None
    no_local: bool = False
    retain_as_published: bool = False
    identifier: int | None = None


def client_info(session: Session) -> ClientInfo:
    link = session.link
    waiting = None if link is None else link.outbox.waiting
    transport = None if link is None else link.transport
    return ClientInfo(
        client_id=session.client_id,
        username=session.username,
        peer=None if link is None else link.peer,
        version=None if link is None else _VERSIONS.get(link.version),
        connected_at_s=transport.connected_at_s if isinstance(transport, Connection) else None,
        queue_count=session.queue.count + (0 if waiting is None else waiting.count),
        queue_bytes=session.queue.bytes + (0 if waiting is None else waiting.bytes),
        inflight_count=session.sender.count,
        inflight_bytes=session.inflight_bytes,
        dropped=dict(session.dropped or {}),
        listener=None if link is None else link.listener or None,
        keepalive_s=None if link is None else link.keep_alive_s,
        session_expiry_s=session.expiry_s,
        subscriptions_count=len(session.subscriptions),
    )


def subscription_info(filter: str, subscription: Subscription) -> SubscriptionInfo:
    return SubscriptionInfo(
        client_id=subscription.session.client_id,
        filter=filter,
        qos=subscription.qos,
        share_group=split_shared(filter)[0],
        no_local=subscription.no_local,
        retain_as_published=subscription.retain_as_published,
        identifier=subscription.identifier or None,
    )


def public_message(message: ApplicationMessage, qos: int, retain: bool, now: float) -> Message:
    properties = message.properties
    if message.expires_at != math.inf:
        properties = msgspec.structs.replace(properties, message_expiry_interval=message.expiry_left_s(now))
    return Message(message.topic, message.payload, qos=min(qos, message.qos), retain=retain, properties=properties, received_at=time.time())


def client_slices(engine: Engine) -> Iterator[Sequence[ClientInfo]]:
    sessions = engine.clients()
    return (
        [client_info(session) for session in sessions[start : start + STEP_COUNT] if not session.ended]
        for start in range(0, len(sessions), STEP_COUNT)
    )


def subscriber_slices(engine: Engine, topic: str) -> Iterator[Sequence[SubscriptionInfo]]:
    """InvalidTopic at once."""
    cursor = engine.filter_cursor(topic)

    def steps() -> Iterator[Sequence[SubscriptionInfo]]:
        while not cursor.exhausted:
            found: list[SubscriptionInfo] = []
            seen_count = 0
            for filter, subscriptions in chain.from_iterable(by_filter(*one) for one in cursor.next_batch(STEP_VISITS_MAX)):
                for start in range(0, len(subscriptions), STEP_COUNT):
                    some = subscriptions[start : start + STEP_COUNT]
                    found += [subscription_info(filter, one) for one in some if _is_sent(one, filter, topic)]
                    seen_count += len(some)
                    if seen_count >= STEP_COUNT:
                        yield found
                        found = []
                        seen_count = 0
            yield found

    return steps()


def _is_sent(subscription: Subscription, filter: str, topic: str) -> bool:
    """Is it still there, a client's, and allowed what comes on this topic?"""
    session = subscription.session
    return session.subscriptions.get(filter) is subscription and session.sink is None and session.may_receive(topic) and subscription.matches(topic)


def retained_slices(engine: Engine, filter: str) -> Iterator[Sequence[Message]]:
    """InvalidTopic at once."""
    cursor = engine.retained_cursor(filter)

    def steps() -> Iterator[Sequence[Message]]:
        while not cursor.exhausted:
            now = trio.current_time()
            kept = cursor.next_batch(STEP_VISITS_MAX, STEP_COUNT, now, STEP_BYTES_MAX)
            messages = [message_of(one) for one in kept]
            yield [public_message(message, message.qos, True, now) for message in messages]

    return steps()
