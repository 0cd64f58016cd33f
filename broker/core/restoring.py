"""What a store has becomes sessions and retained messages again, before anybody comes.

Each session is as it was when its client was cut off: what had been sent and was not acknowledged is repeated when it comes back [MQTT5-4.4.0-1],
what waited goes on waiting. The time that the broker was away counts as time, for sessions and for messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import itemgetter
from struct import unpack
from typing import TYPE_CHECKING, Final

from broker.core.deadlines import SESSION_EXPIRY, WILL_DELAY
from broker.core.ending import end_session, keep_will, publish_will, settle_will
from broker.core.inflight import NO_SENDER, Receiver, Sender
from broker.core.journal import Journal
from broker.core.kept import Expiring, Kept, is_on, topic_at, topic_end
from broker.core.message import ApplicationMessage
from broker.core.packet_ids import packet_ids
from broker.core.publish import replaced
from broker.core.record import NO_LOCAL, OWED, RETAIN_AS_PUBLISHED, WILD, Record
from broker.core.replay import Replay
from broker.core.runs import alike
from broker.core.saved import HELD, SENT, WAITING, SavedMessage
from broker.core.session import Session
from broker.core.waiting import Delivery, PublishRun, Unacknowledged
from broker.errors import PeerError
from broker.wire.codec import encode_string
from broker.wire.packets import MQTT_5, NO_PROPERTIES, PUBLISH, WillMessage
from broker.wire.primitives import read_varint
from broker.wire.properties import WILL, decode_properties

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.core.saved import Saved, SavedIds, SavedRetained, SavedRun, SavedSession, SavedSubscription, SavedWill
    from broker.core.state import State
    from broker.core.subscription import SharedGroup

DAMAGE: Final = (PeerError, ValueError, IndexError)
"""What is raised for a frame in which a disk has turned bits: it is lost, and the others are not."""

Sent = tuple[int, list[int], Unacknowledged]
"""Order, Packet Identifiers, and what was sent with them."""
RulesOf = Callable[[str], "tuple[Access, Allowance]"]


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
    sent: dict[int, list[Sent]] = {}
    _messages(state, journal, sessions, saved.messages, sent, now - unix_now)
    _runs(state, journal, sessions, saved.runs, sent, now - unix_now)
    _sent(sessions, sent)
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
        access, allowance = (state.access, state.allowance) if rules_of is None else rules_of(row.listener)
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
    sent: dict[int, list[Sent]],
    to_engine_s: float,
) -> None:
    for row in rows:
        session = sessions.get(row.session)
        if session is None:
            continue
        record = session.record
        assert record is not None
        try:
            delivery = _delivery(state, session, row, to_engine_s)
        except DAMAGE:
            state.count_dropped(session.client_id, "damaged")
            if row.place != WAITING:
                record.sent[row.key] = None  # so that it goes from there
                journal.touch(session)
            continue
        if row.place == WAITING:
            session.own_queue().append(delivery)
            session.order = max(session.order, row.order)
            record.waiting_first = record.waiting_first or row.order
            record.waiting_last = row.order
        else:
            record.sent[row.key] = delivery
            sent.setdefault(row.session, []).append((row.order, [row.key], delivery))


def _runs(
    state: State, journal: Journal, sessions: dict[int, Session], rows: Iterable[SavedRun], sent: dict[int, list[Sent]], to_engine_s: float
) -> None:
    for row in rows:
        session = sessions.get(row.session)
        record = None if session is None else session.record
        if session is None or record is None:
            journal.adopt_run(row.number, gone=True)
            continue
        ids = _numbers(row.ids)
        found = sent.setdefault(row.session, [])
        try:
            run = _run(row, ids)
        except DAMAGE:
            whole = _whole_ones(state, session, row, ids, to_engine_s)
            state.count_dropped(session.client_id, "damaged", len(ids) - len(whole))
            journal.adopt_run(row.number, gone=True)
            journal.touch(session, len(whole))
            found.extend(whole)
        else:
            journal.adopt_run(row.number)
            record.runs[run] = (row.number, len(ids))
            found.append((row.order, ids, run))


def _run(row: SavedRun, ids: list[int]) -> PublishRun:
    """As it was. ValueError: some of it is not."""
    frames, size = row.frames, row.size
    count = len(frames) // max(1, size)
    at = topic_at(frames)
    id_at = topic_end(frames)
    payload_at = id_at + 2
    if row.version >= MQTT_5:
        payload_at = decode_properties(frames, payload_at, PUBLISH)[1]
    if not ids or count * size != len(frames) or not _is_frame_of(frames, size) or payload_at > size:
        raise ValueError("they are not of that size")
    if alike(frames, 0, size, id_at, id_at + 2, payload_at, count) < count or not set(ids).issubset(packet_ids(frames, id_at, size, count).numbers):
        raise ValueError("they are not alike")
    return PublishRun(frames, size, frames[0] >> 1 & 3, str(frames[at + 2 : id_at], "utf-8"), id_at, payload_at, "")


def _whole_ones(state: State, session: Session, row: SavedRun, ids: list[int], to_engine_s: float) -> list[Sent]:
    """Of a run that is damaged the messages that are not."""
    found: dict[int, Sent] = {}
    for start in range(0, len(row.frames), max(1, row.size)):
        frame = row.frames[start : start + row.size]
        try:
            at = topic_end(frame)
            packet_id = frame[at] << 8 | frame[at + 1]
            if packet_id in ids and packet_id not in found and _is_frame_of(frame, row.size):
                single = SavedMessage(row.session, SENT, packet_id, row.order, frame, row.version, "", "", None)
                found[packet_id] = (row.order, [packet_id], _delivery(state, session, single, to_engine_s))
        except DAMAGE:
            continue
    return list(found.values())


def _is_frame_of(data: bytes, size: int) -> bool:
    """Does it say itself that it has so many bytes?"""
    length, position = read_varint(data, 1)
    return position + length == size


def _sent(sessions: dict[int, Session], sent: dict[int, list[Sent]]) -> None:
    for number, all_sent in sent.items():
        session = sessions[number]
        record = session.record
        assert record is not None
        sender = session.sender = Sender()
        for order, ids, unacknowledged in sorted(all_sent, key=itemgetter(0)):
            record.order = order
            for packet_id in ids:
                if packet_id not in sender.unacknowledged:
                    sender.unacknowledged[packet_id] = unacknowledged
                    session.hold(unacknowledged.size)


def _delivery(state: State, session: Session, row: SavedMessage, to_engine_s: float) -> Delivery:
    frame = row.frame
    at = topic_at(frame)
    stop = topic_end(frame)
    payload_at = stop + 2  # behind the packet id
    properties = NO_PROPERTIES
    if row.version >= MQTT_5:
        properties, payload_at = decode_properties(frame, payload_at, PUBLISH)
    topic = str(frame[at + 2 : stop], "utf-8")
    qos = frame[0] >> 1 & 3
    retain = frame[0] & 1 != 0
    expires_at = math.inf if row.expires_at is None else row.expires_at + to_engine_s
    message = ApplicationMessage(topic, frame[payload_at:], qos, retain, properties, "", expires_at, frame[at:stop])
    identifiers = tuple([int(identifier) for identifier in row.identifiers.split()])
    group = _group(state, session, row.share, topic) if row.share else None
    return Delivery(message, qos, retain, identifiers, group, row.order)


def _group(state: State, session: Session, name: str, topic: str) -> SharedGroup | None:
    """The shared subscription's group of that name that chose this session for a message on that topic, if it is still a member."""
    for group in state.topics.route(topic).groups:
        if group.name == name and group.has(session):
            return group
    return None


def _ids(sessions: dict[int, Session], rows: Iterable[SavedIds]) -> None:
    for number, kind, ids in rows:
        session = sessions.get(number)
        record = None if session is None else session.record
        if session is None or record is None:
            continue
        if kind == HELD:
            session.receiver = Receiver()
            session.receiver.held.apart().update(dict.fromkeys(_numbers(ids)))
            record.held = ids
        else:
            if session.sender is NO_SENDER:
                session.sender = Sender()
            session.sender.released.apart().update(dict.fromkeys(_numbers(ids), False))
            record.released = ids


def _numbers(ids: bytes) -> list[int]:
    count = len(ids) // 2
    return list(unpack(f">{count}H", ids[: 2 * count]))


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
            access, allowance = (state.access, state.allowance) if rules_of is None else rules_of(row.listener)
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
