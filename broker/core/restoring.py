"""What a store has becomes sessions and retained messages again, before anybody comes.

Each session is as it was when its client was cut off: what had been sent and was not acknowledged is repeated when it comes back [MQTT5-4.4.0-1],
what waited goes on waiting. The time that the broker was away counts as time, for sessions and for messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TYPE_CHECKING

from broker.core.deadlines import SESSION_EXPIRY, WILL_DELAY
from broker.core.ending import end_session, keep_will, publish_will, settle_will
from broker.core.inflight import NO_SENDER, Receiver, Sender
from broker.core.journal import Journal
from broker.core.kept import Expiring, Kept, is_on
from broker.core.owed import PublishRun
from broker.core.publish import replaced
from broker.core.record import NO_LOCAL, OWED, RETAIN_AS_PUBLISHED, WILD, Record
from broker.core.replay import Replay
from broker.core.restoring_messages import DAMAGE, Sent, delivery_of, numbers_of
from broker.core.restoring_runs import RestoredRuns
from broker.core.saved import HELD, WAITING
from broker.core.session import Session
from broker.wire.codec import encode_string
from broker.wire.packets import NO_PROPERTIES, WillMessage
from broker.wire.properties import WILL, decode_properties

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.core.saved import Saved, SavedIds, SavedMessage, SavedRetained, SavedSession, SavedSubscription, SavedWill
    from broker.core.state import State

RulesOf = Callable[[str, str], "tuple[Access, Allowance]"]


class Restored:
    """What was read, and is still to be settled."""

    __slots__ = ("now", "rules_of", "sessions", "unix_now", "wills")

    def __init__(self, sessions: dict[int, Session], wills: list[SavedWill], now: float, unix_now: float, rules_of: RulesOf | None) -> None:
        self.sessions = sessions
        self.wills = wills
        self.now = now
        self.unix_now = unix_now
        self.rules_of = rules_of


def read(state: State, saved: Saved, now: float, unix_now: float, rules_of: RulesOf | None) -> Restored:
    """All that is in the store; nobody is told anything yet, and no rule is asked."""
    journal = state.journal
    assert journal is not None
    sessions = _sessions(state, saved.sessions, now, unix_now, rules_of)
    owed = _subscriptions(state, sessions, saved.subscriptions)
    runs = RestoredRuns(state, journal, sessions)
    runs.read(saved)
    _messages(state, journal, sessions, saved.messages, runs, now - unix_now)
    runs.settle()
    _sent(sessions, runs.sent)
    _ids(sessions, saved.ids)
    _retained(state, saved.retained, now - unix_now)
    for session, filter in owed:  # from the beginning: what was sent of it is not known
        session.replays = session.replays or {}
        session.replays[filter] = Replay(state.retained.cursor(filter), session.subscriptions[filter])
    return Restored(sessions, list(saved.wills), now, unix_now, rules_of)


def settle(state: State, restored: Restored) -> None:
    """What became due while the broker was away."""
    journal = state.journal
    assert journal is not None
    now = restored.now
    sessions = restored.sessions
    _wills(state, journal, restored.wills, now, restored.unix_now, restored.rules_of)
    journal.forget_topics()
    for session in sessions.values():
        if session.record is not None:
            journal.adopt(session, session.record)
        # Now that all is there: its Will goes out, and what a shared group chose it for to another member.
        if session.expiry_deadline is not None and session.expiry_deadline.at <= now:  # or it was to end with its connection
            state.counters.clients_expired += 1
            end_session(state, session, now)


def _sessions(state: State, rows: Iterable[SavedSession], now: float, unix_now: float, rules_of: RulesOf | None) -> dict[int, Session]:
    found: dict[int, Session] = {}
    for row in rows:
        away_s = 0.0 if row.left_at is None else max(0.0, unix_now - row.left_at)
        expiry_s = math.inf if row.expiry_s is None else row.expiry_s
        access, allowance = (state.access, state.allowance) if rules_of is None else rules_of(row.listener, row.rights)
        session = Session(row.client_id, access, allowance, state.waiting, row.username, None, row.mount_point)
        session.expiry_s = expiry_s
        if expiry_s < math.inf:
            session.expiry_deadline = state.deadlines.add(now + expiry_s - away_s, SESSION_EXPIRY, session)
        record = Record(row.number, row.listener)
        record.left_at = now - away_s
        record.row = row
        record.is_restored = True
        session.record = record
        state.sessions[row.client_id] = session
        found[row.number] = session
    return found


def _subscriptions(state: State, sessions: dict[int, Session], rows: Iterable[SavedSubscription]) -> list[tuple[Session, str]]:
    """Those that are owed retained messages."""
    owed: list[tuple[Session, str]] = []
    for number, filter, options, identifier in rows:
        session = sessions.get(number)
        if session is not None:
            no_local = options & NO_LOCAL != 0
            as_published = options & RETAIN_AS_PUBLISHED != 0
            state.topics.add(filter, session.subscription(options & 3, no_local, as_published, identifier, options & WILD != 0))
            if options & OWED:
                owed.append((session, filter))
    return owed


def _messages(
    state: State,
    journal: Journal,
    sessions: dict[int, Session],
    rows: Iterable[SavedMessage],
    runs: RestoredRuns,
    to_engine_s: float,
) -> None:
    for row in rows:
        session = sessions.get(row.session)
        if session is None:
            continue
        record = session.record
        assert record is not None
        try:
            delivery = delivery_of(state, session, row, to_engine_s)
        except DAMAGE:
            state.count_dropped(session.client_id, "damaged")
            if row.place != WAITING:
                record.sent[row.key] = None  # so that it goes from there
                journal.touch(session)
            continue
        if row.place == WAITING:
            runs.let_in(session, row.session, row.order)
            session.own_queue().append(delivery)
            session.order = max(session.order, row.order)
            record.waiting_first = record.waiting_first or row.order
            record.single_last = record.waiting_last = row.order
        else:
            record.sent[row.key] = delivery
            runs.sent.setdefault(row.session, []).append((row.order, [row.key], delivery))


def _sent(sessions: dict[int, Session], sent: dict[int, list[Sent]]) -> None:
    for number, all_sent in sent.items():
        session = sessions[number]
        record = session.record
        assert record is not None
        sender = session.sender = Sender()
        for order, ids, unacknowledged in sorted(all_sent, key=itemgetter(0)):
            record.order = order + (unacknowledged.count if isinstance(unacknowledged, PublishRun) else 1) - 1
            for packet_id in ids:
                if packet_id not in sender.unacknowledged:
                    sender.unacknowledged[packet_id] = unacknowledged
                    session.hold(unacknowledged.size)


def _ids(sessions: dict[int, Session], rows: Iterable[SavedIds]) -> None:
    for number, kind, ids in rows:
        session = sessions.get(number)
        record = None if session is None else session.record
        if session is None or record is None:
            continue
        if kind == HELD:
            session.receiver = Receiver()
            session.receiver.held.apart().update(dict.fromkeys(numbers_of(ids)))
            record.held = ids
        else:
            if session.sender is NO_SENDER:
                session.sender = Sender()
            session.sender.released.apart().update(dict.fromkeys(numbers_of(ids), False))
            record.released = ids


def _wills(state: State, journal: Journal, rows: Iterable[SavedWill], now: float, unix_now: float, rules_of: RulesOf | None) -> None:
    """Whoever was connected is not any more, and has not said goodbye [MQTT5-3.1.2-8]."""
    for row in rows:
        session = state.sessions.get(row.client_id)
        try:
            properties = decode_properties(row.properties, 0, WILL)[0]
        except DAMAGE:
            properties = NO_PROPERTIES
        will = WillMessage(row.topic, row.payload, row.qos, bool(row.retain), properties)
        if session is None:  # it ended with its connection, or meanwhile
            access, allowance = (state.access, state.allowance) if rules_of is None else rules_of(row.listener, row.rights)
            session = Session(row.client_id, access, allowance, state.waiting, row.username)
            keep_will(state, session, will)
            publish_will(state, session, now)
            journal.drop_will(row.number)
            continue
        keep_will(state, session, will)
        journal.keep_will(session, row.listener, row.number)
        record = session.record
        if row.due_at is not None:
            session.will_deadline = state.deadlines.add(row.due_at + now - unix_now, WILL_DELAY, session)
        elif record is not None and record.row is not None and record.row.left_at is None:
            settle_will(state, session, now, False)


def _retained(state: State, rows: Iterable[SavedRetained], to_engine_s: float) -> None:
    for topic, frame, expires_at in rows:
        kept: Kept = frame if expires_at is None else Expiring(frame, expires_at + to_engine_s)
        topic_field = encode_string(topic)
        try:
            is_whole = is_on(kept, topic_field)
        except DAMAGE:
            is_whole = False
        if is_whole:
            replaced(state, kept, state.retained.put(topic, topic_field, kept))
