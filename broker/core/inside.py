"""Those inside the house: a subscription without a client, what is retained, and who subscribed to what, for the program around the broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.core.access import Access
from broker.core.kept import message_of
from broker.core.session import Session
from broker.core.subscription import Subscription
from broker.errors import InvalidTopic, shown
from broker.wire.topics import topic_filter_fault, topic_name_fault

if TYPE_CHECKING:
    from broker.core.filter_trie import FilterCursor
    from broker.core.message import ApplicationMessage
    from broker.core.retained import ReplayCursor
    from broker.core.session import Sink
    from broker.core.state import State


class InternalSubscription:
    """A session of the house, with what it subscribes to."""

    __slots__ = ("session",)

    def __init__(self, session: Session) -> None:
        self.session = session


def subscribe_internal(state: State, name: str, filters: Sequence[str], qos: int, sink: Sink, now: float, retained: bool) -> InternalSubscription:
    """Raises InvalidTopic."""
    for filter in filters:
        _check(filter)
    session = Session(f"${name}", Access(), state.allowance, state.waiting, sink=sink)
    subscription = Subscription(session, qos, False, True, 0)
    for filter in filters:
        state.topics.add(filter, subscription)
    if retained:
        for filter in filters:
            for message in retained_on(state, filter, now):
                sink(message, min(qos, message.qos), True, now)
    return InternalSubscription(session)


def retained_on(state: State, filter: str, now: float) -> list[ApplicationMessage]:
    """All retained messages that match. Raises InvalidTopic."""
    found: list[ApplicationMessage] = []
    cursor = retained_cursor(state, filter)
    while not cursor.exhausted:
        found.extend([message_of(kept) for kept in cursor.next_batch(10_000, 10_000, now)])
    return found


def retained_cursor(state: State, filter: str) -> ReplayCursor:
    """The same in steps. Raises InvalidTopic."""
    _check(filter)
    return state.retained.cursor(filter)


def filter_cursor(state: State, topic: str) -> FilterCursor:
    """The Topic Filters that match, in steps; it asks no access rules. Raises InvalidTopic."""
    fault = topic_name_fault(topic)
    if fault is not None:
        raise InvalidTopic(f"{shown(topic)} is not a topic name: {fault}")
    return state.topics.cursor(topic)


def _check(filter: str) -> None:
    fault = topic_filter_fault(filter)
    if fault is not None:
        raise InvalidTopic(f"{shown(filter)} is not a topic filter: {fault}")
