"""Where messages wait that cannot leave yet, and what happens when there is no place: the overflow rules, at QoS 0 and above, one by one and in runs.

Each queue is bounded by count and by bytes, and all of them together by `memory_bytes_max`; whatever is dropped is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.ending import close_link
from broker.core.gates import note
from broker.core.owed import Delivery
from broker.core.record import note_replaced
from broker.core.waiting import WaitingQueue
from broker.core.waiting_run import QueuedRun, WaitingRun
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State


def wait_in_outbox(state: State, link: Link, session: Session, delivery: Delivery, now: float) -> bool:
    limits = link.limits
    return _wait(state, session, link.outbox.own_queue(), delivery, limits.outbox_count_max, limits.outbox_bytes_max, "overflow", now)


def wait_in_session(state: State, session: Session, delivery: Delivery, now: float) -> bool:
    limits = session.limits
    if session.record is not None:
        note(state, session)
    return _wait(state, session, session.own_queue(), delivery, limits.queue_count_max, limits.queue_bytes_max, "queue-full", now)


def queue_run(state: State, session: Session, run: QueuedRun) -> bool:
    """As `deliver` for each message of it, where none can leave at once, and only what is oldest may have to give way. False: nothing was done."""
    queue = session.own_queue()
    limits = session.limits
    connected = session.link is not None
    places = _places(state, queue, run.size, limits.queue_count_max, limits.queue_bytes_max, connected)
    if queue.is_indexed or (run.count > places and state.overflow.rule_for(run.topic) != "drop-oldest"):
        return False
    _displace(state, session, queue, run, places, limits.queue_count_max, limits.queue_bytes_max, "queue-full")
    return True


def wait_run(state: State, link: Link, session: Session, run: WaitingRun, now: float) -> None:
    """The same at QoS 0: it waits, or its rule acts, in a few steps."""
    queue = link.outbox.own_queue()
    limits = link.limits
    total = run.count
    places = _places(state, queue, run.size, limits.outbox_count_max, limits.outbox_bytes_max, True)
    rule = "" if total <= places and not queue.is_indexed else state.overflow.rule_for(run.topic)
    if rule == "drop-oldest" or (total <= places and rule != "latest"):
        _displace(state, session, queue, run, places, limits.outbox_count_max, limits.outbox_bytes_max, "overflow")
        return
    if rule == "latest":
        _wait_latest(state, link, session, run, now)
        return
    if places:
        queue.append_run(run.first(places))
        run.skip(places)
    state.count_dropped(session.client_id, "overflow", run.count if rule != "disconnect" else 1)  # for the others nobody is there
    if rule == "disconnect":
        close_link(state, link, ReasonCode.QUOTA_EXCEEDED, "it takes its messages too slowly", now)


def _wait(state: State, session: Session, queue: WaitingQueue, delivery: Delivery, count_max: int, bytes_max: int, reason: str, now: float) -> bool:
    """Put it into a queue, or do what the overflow rule of its topic says; False if it found no place.

    Oldest first is what gives way; when all of memory is full and this queue has nothing to give, the newcomer does.
    """
    size = delivery.message.size
    connected = session.link is not None
    has_place = _has_place(state, queue, size, count_max, bytes_max, connected)
    rule = "" if has_place and not queue.is_indexed else state.overflow.rule_for(delivery.message.topic)
    if not has_place or rule == "latest":
        link = session.link
        if rule in ("drop-newest", "refuse") or (rule == "disconnect" and link is not None):
            state.refused = state.refused or rule == "refuse"
            state.count_dropped(session.client_id, reason)
            if rule == "disconnect" and link is not None:
                close_link(state, link, ReasonCode.QUOTA_EXCEEDED, "it takes its messages too slowly", now)
            return False
        if rule == "latest":
            # What a newer one on its topic has overtaken gives way first, and from here on there is one of each, until nothing waits any more.
            overtaken = 0 if queue.is_indexed or not queue.count else queue.index(state.overflow)
            if overtaken:
                state.count_dropped(session.client_id, reason, overtaken)
            older = queue.newest_on(delivery.message.topic)
            growth = 0 if older is None else size - older.message.size
            if older is not None and (growth <= 0 or (queue.bytes + growth <= bytes_max and not _over_memory(state, growth, connected))):
                queue.replace(older, delivery)
                note_replaced(session, queue, older)
                state.count_dropped(session.client_id, reason)
                return True  # where it is too much larger, what came first gives way, for the newest on a topic is what this rule keeps
        while queue.count and not _has_place(state, queue, size, count_max, bytes_max, connected):
            queue.pop()
            state.count_dropped(session.client_id, reason)
        if not _has_place(state, queue, size, count_max, bytes_max, connected):
            state.count_dropped(session.client_id, reason)
            return False
    queue.append(delivery)
    return True


def _displace(state: State, session: Session, queue: WaitingQueue, run: WaitingRun, places: int, count_max: int, bytes_max: int, reason: str) -> None:
    """Put a run into a queue, for which what is oldest there gives way. places: how many of it have one without that."""
    total = run.count
    if total > places:
        connected = session.link is not None
        dropped = 0
        while queue.count and places < total:
            dropped += queue.drop_first(total - places, run.size)
            places = _places(state, queue, run.size, count_max, bytes_max, connected)
        if places < total:
            dropped += total - places
            run = run.last(places)
        state.count_dropped(session.client_id, reason, dropped)
    if run.count:
        queue.append_run(run)


def _wait_latest(state: State, link: Link, session: Session, run: WaitingRun, now: float) -> None:
    """Where the newest one of a topic takes the place of the one before it."""
    queue = link.outbox.own_queue()
    limits = link.limits
    while run.count:
        places = _places(state, queue, run.size, limits.outbox_count_max, limits.outbox_bytes_max, True)
        places = 0 if queue.is_indexed else min(places, run.count)
        if places:
            queue.append_run(run.first(places))
            run.skip(places)
        if run.count:
            order = run.order
            wait_in_outbox(state, link, session, Delivery(run.take(), 0, False, (), None, order), now)
        full = queue.is_indexed or not _places(state, queue, run.size, limits.outbox_count_max, limits.outbox_bytes_max, True)
        if run.count and full:  # nor for any of the others, but in the place of this one
            if run.count > 1:
                state.count_dropped(session.client_id, "overflow", run.count - 1)
            run.skip(run.count - 1)


def _places(state: State, queue: WaitingQueue, size: int, count_max: int, bytes_max: int, connected: bool) -> int:
    """How many more messages of so many bytes may wait there."""
    room = min(bytes_max - queue.bytes, state.memory_left if connected else state.memory_left_for_later)
    return max(0, min(count_max - queue.count, room // size))


def _has_place(state: State, queue: WaitingQueue, size: int, count_max: int, bytes_max: int, connected: bool) -> bool:
    return queue.count < count_max and queue.bytes + size <= bytes_max and not _over_memory(state, size, connected)


def _over_memory(state: State, size: int, connected: bool) -> bool:
    return state.over_memory(size) if connected else state.over_memory_for_later(size)
