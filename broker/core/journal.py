"""What has changed of that which is to outlive the process: noted while it happens, and written out as rows when somebody takes it to a store.

What a Session keeps for ever is small things that come and go faster than a disk turns. So nothing is noted of a single message, but only that a
session was touched; when the changes are taken, what the store has of it (its `Record`) is compared with what it has become. What came and went
in between is never written at all, and a step that nobody thought of is not missed. Queues, which may be long, are not compared but known by the
order of their messages: new ones come at the end, and old ones leave at the front.

Nothing may be acknowledged before it is on disk. So a link whose bytes depend on a change has a `gate`, the number of the changes that it waits for,
and is not named by `take_ready` before these are committed (`Engine.committed`). A link that has to do with nothing that lasts never waits.
There may always be something newer for it before that is committed: so what it was to be sent when the changes were taken goes out with them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core.access import is_bridge_state
from broker.core.kept import Expiring, Kept, frame_of
from broker.core.packet_ids import packet_ids
from broker.core.retained import RetainedStore
from broker.core.saved import SENT, WAITING, Changes, SavedId, SavedMessage, SavedRetained, SavedSession, SavedSubscription, SavedWill
from broker.core.waiting import Delivery, KeptDelivery, PublishRun
from broker.wire.codec import encode_properties
from broker.wire.packets import MQTT_5, MQTT_311

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.waiting import Unacknowledged, WaitingQueue

NO_LOCAL: Final = 0x04
RETAIN_AS_PUBLISHED: Final = 0x08
"""As in SUBSCRIBE (MQTT 5.0, 3.8.3.1)."""
WILD: Final = 0x40
"""`Subscription.wild`, in a bit that SUBSCRIBE has no use for."""
OWED: Final = 0x80
"""Of the retained messages that match, some may still be to be sent."""

CLOCKS_APART_S: Final = 1.0
"""The engine's and Unix time do not go quite alike: so small a difference is no other time."""
_ID_FIELD: Final = b"\x00\x01"
"""Of a message that has no Packet Identifier yet."""


class Record:
    """What the store has, or is about to have, of one Session."""

    __slots__ = (
        "filters",
        "held",
        "is_restored",
        "left_at",
        "listener",
        "number",
        "order",
        "replaced",
        "row",
        "sent",
        "waiting_first",
        "waiting_last",
    )

    def __init__(self, number: int, listener: str) -> None:
        self.number = number
        self.listener = listener
        self.is_restored = False
        """It came from the store, and its client has not come back: nobody knows what that one may do."""
        self.left_at = math.inf
        """When its client left, on the engine's clock; `math.inf` while it is there."""
        self.row: SavedSession | None = None
        self.filters: dict[str, None] = {}
        """Those that have been subscribed to, or left, since."""
        self.sent: dict[int, Unacknowledged | None] = {}
        """Of its sender, by Packet Identifier; None: released."""
        self.held: set[int] = set()
        """Of its receiver."""
        self.order = 0
        """Of the row that was written last of `sent`."""
        self.replaced: dict[int, Delivery] = {}
        """By their order, those in its queue that have another message since; some may have left."""
        self.waiting_first = 0
        self.waiting_last = 0
        """Orders of the first and the last waiting message that the store has; it has none where the first is the greater one, or both are 0."""


class Journal:
    """Of one broker. `number` is that of the changes that are being collected."""

    def __init__(self) -> None:
        self.number = 1
        self.count = 0
        """Changes noted since the start."""
        self.taken_count = 0
        """Those of them that have been taken."""
        self.going: dict[str, int] = {}
        """Client Identifiers of sessions that have ended, with the number of the changes that say so, until these are committed."""
        self._touched: dict[Session, None] = {}
        self._ended: list[int] = []
        self._topics: dict[str, None] = {}
        self._wills: dict[Session, None] = {}
        self._will_numbers: dict[Session, tuple[int, str]] = {}
        """In the store, 0 of those that it does not have yet; and where their clients came in."""
        self._wills_gone: list[int] = []
        self._next_will = 1
        self._next_record = 1

    # ---- what happens ----

    def begin(self, session: Session, listener: str) -> None:
        """It is to last from now on, with all that it has."""
        record = session.record = Record(self._next_record, listener)
        self._next_record += 1
        record.filters = dict.fromkeys(session.subscriptions)

    def adopt(self, session: Session, record: Record) -> None:
        """It came from the store."""
        session.record = record
        self._next_record = max(self._next_record, record.number + 1)
        if record.row is not None and record.row.left_at is None:  # it was there, and is not any more
            self.touch(session)

    def touch(self, session: Session, count: int = 1) -> None:
        """Something of it has changed, or is about to: about so many rows."""
        self._touched[session] = None
        self.count += count

    def end(self, session: Session) -> None:
        record = session.record
        session.record = None
        self._touched.pop(session, None)
        if record is not None and record.row is not None:  # else the store has never heard of it
            self.going[session.client_id] = self.number
            self._ended.append(record.number)
            self.count += 1

    def keep_will(self, session: Session, listener: str, number: int = 0) -> None:
        """It has one from now on, of a client that came in there. number: that it has in the store, if it came from there."""
        if not number and session in self._will_numbers:
            number = self._will_numbers[session][0]
        self._next_will = max(self._next_will, number + 1)
        self._will_numbers[session] = (number, listener)
        self.touch_will(session)

    def touch_will(self, session: Session) -> None:
        """It has gone, or is known to go at some time."""
        known = self._will_numbers.get(session)
        if known is None:
            return
        self.count += 1
        if session.will is None and not known[0]:  # the store has never heard of it
            del self._will_numbers[session]
            self._wills.pop(session, None)
        else:
            self._wills[session] = None

    def drop_will(self, number: int) -> None:
        """One that came from the store, and went at once."""
        self._wills_gone.append(number)
        self._next_will = max(self._next_will, number + 1)
        self.count += 1

    def retain(self, topic: str) -> None:
        """Its retained message has come, changed or gone. Those of the broker itself are made anew after each start."""
        if not topic.startswith("$SYS/") or is_bridge_state(topic):
            self._topics[topic] = None
            self.count += 1

    def forget_topics(self) -> None:
        """Those that have been noted are as the store has them."""
        self.count -= len(self._topics)
        self._topics.clear()

    @property
    def has_changes(self) -> bool:
        """Also if nothing has come of them: somebody may wait until they are committed."""
        return self.count != self.taken_count

    @property
    def newest(self) -> int:
        """Number of the newest changes that there are, taken or not."""
        return self.number if self.has_changes else self.number - 1

    @property
    def pending_count(self) -> int:
        """About how many rows the next changes will have."""
        return self.count - self.taken_count

    # ---- what it comes to ----

    def take(self, state: State, now: float, unix_now: float) -> Changes | None:
        """All that has changed since the last time; None if nothing has."""
        if not self.has_changes or state.wills or state.orphans:  # what is on its way is neither here nor there, and `tick` soon goes on with it
            return None
        changes = Changes(self.number)
        self.number += 1
        self.taken_count = self.count
        to_unix_s = unix_now - now
        for link in state.gated:
            link.taken_bytes = link.outbox.sent_bytes_total + link.outbox.committed_bytes
        changes.ended, self._ended = self._ended, []
        touched, self._touched = self._touched, {}
        for session in touched:
            record = session.record
            if record is not None:
                _session_row(session, record, to_unix_s, changes)
                _subscription_rows(session, record, changes)
                _sent_rows(session, record, to_unix_s, changes)
                _waiting_rows(session, record, to_unix_s, changes)
                _id_rows(session, record, changes)
        self._will_rows(to_unix_s, changes)
        topics, self._topics = self._topics, {}
        for topic in topics:
            kept = state.retained.get(topic)
            if kept is None:
                changes.retained_gone.append(topic)
            else:
                expires_at = kept.expires_at + to_unix_s if isinstance(kept, Expiring) else None
                changes.retained.append(SavedRetained(topic, frame_of(kept), expires_at))
        return changes

    def _will_rows(self, to_unix_s: float, changes: Changes) -> None:
        changes.wills_gone, self._wills_gone = self._wills_gone, []
        wills, self._wills = self._wills, {}
        for session in wills:
            number, listener = self._will_numbers[session]
            will = session.will
            if will is None:
                del self._will_numbers[session]
                changes.wills_gone.append(number)
            else:
                if not number:
                    number = self._next_will
                    self._next_will += 1
                    self._will_numbers[session] = (number, listener)
                due_at = None if session.will_deadline is None else session.will_deadline.at + to_unix_s
                properties = encode_properties(will.properties)
                changes.wills.append(
                    SavedWill(
                        number, session.client_id, session.username, listener, will.topic, will.payload, will.qos, will.retain, properties, due_at
                    )
                )


def gate(state: State, link: Link) -> None:
    """What it is to be sent, and has not been, waits until all that has changed up to now is committed."""
    journal = state.journal
    assert journal is not None
    link.gate = journal.newest
    state.mark_ready(link)  # so that it is named when it may go on, whoever had named it before


def note(state: State, session: Session, count: int = 1) -> None:
    """Something of a session that lasts has changed, about so many rows, and its client is not told before it is committed."""
    journal = state.journal
    assert journal is not None
    journal.touch(session, count)
    if session.link is not None:
        gate(state, session.link)


def note_replaced(session: Session, queue: WaitingQueue, delivery: Delivery) -> None:
    """What waits there has another message in its place: one row, as long as such are fewer than all that wait."""
    record = session.record
    if record is not None and queue is session.queue:
        record.replaced[delivery.order] = delivery
        if len(record.replaced) > queue.count:
            record.replaced = {}
            queue.rearranged = True


def gate_exactly(state: State, publisher: Link | None, recipient: Link, qos: int) -> None:
    """A message at QoS 2 leaves when it is on disk that it has come, whatever its recipient keeps: else it would be taken for another one when its
    publisher, who was not answered, repeats it. And a Will when it is on disk that nobody has it any more."""
    if state.publishes_wills:
        gate(state, recipient)
        return
    session = None if publisher is None or qos < 2 else publisher.session
    if session is not None and session.record is not None:
        note(state, session)
        gate(state, recipient)


def let_through(state: State, links: list[Link]) -> list[Link]:
    """Those that wait for nothing, and those that are named for something else than bytes: to be closed, to be read again. What is to be sent to who
    waits takes memory meanwhile, as if its socket were full."""
    through: list[Link] = []
    for link in links:
        is_gated = link.gate > state.committed
        if is_gated:
            link.ready = False
            if link.outbox.account is not None:  # else its stream is gone
                state.gated[link] = None
                link.outbox.count()
        if not is_gated or link.closing or link.goes_on or link.clear_bytes > link.outbox.sent_bytes_total:
            link.goes_on = False
            through.append(link)
    return through


def open_gates(state: State, number: int) -> None:
    """The changes up to that number are committed."""
    state.committed = number
    journal = state.journal
    if journal is not None and journal.going:
        journal.going = {client_id: gone_in for client_id, gone_in in journal.going.items() if gone_in > number}
    for link in list(state.gated):
        if link.gate <= number:
            del state.gated[link]
            link.outbox.uncount()
            state.mark_ready(link)
        elif link.taken_bytes > link.outbox.sent_bytes_total:
            link.clear_bytes = link.taken_bytes
            state.mark_ready(link)


class LastingRetainedStore(RetainedStore):
    """One whose changes are noted."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def put(self, topic: str, topic_field: bytes, kept: Kept) -> Kept | None:
        self._journal.retain(topic)
        return super().put(topic, topic_field, kept)

    def clear(self, topic: str) -> Kept | None:
        gone = super().clear(topic)
        if gone is not None:
            self._journal.retain(topic)
        return gone


# ---- a session's rows -------------------------------------------------------------------------------------------------


def _session_row(session: Session, record: Record, to_unix_s: float, changes: Changes) -> None:
    before = record.row
    left_at = None if record.left_at == math.inf else record.left_at + to_unix_s
    if left_at is not None and before is not None and before.left_at is not None and abs(left_at - before.left_at) < CLOCKS_APART_S:
        left_at = before.left_at
    expiry_s = None if session.never_expires else session.expiry_s
    row = SavedSession(record.number, session.client_id, session.username, session.mount_point, record.listener, expiry_s, left_at)
    if row != before:
        record.row = row
        changes.sessions.append(row)


def _subscription_rows(session: Session, record: Record, changes: Changes) -> None:
    filters = record.filters
    if not filters:
        return
    record.filters = {}
    for filter in filters:
        subscription = session.subscriptions.get(filter)
        if subscription is None:
            changes.subscriptions_gone.append((record.number, filter))
        else:
            options = (
                subscription.qos
                | (NO_LOCAL if subscription.no_local else 0)
                | (RETAIN_AS_PUBLISHED if subscription.retain_as_published else 0)
                | (WILD if subscription.wild else 0)
                | (OWED if session.replays and filter in session.replays else 0)
            )
            changes.subscriptions.append(SavedSubscription(record.number, filter, options, subscription.identifier))


def _sent_rows(session: Session, record: Record, to_unix_s: float, changes: Changes) -> None:
    before = record.sent
    sender = session.sender
    if not before and not sender.count:
        return
    number = record.number
    current: dict[int, Unacknowledged | None] = dict(sender.unacknowledged.items())
    for packet_id in sender.released:
        current[packet_id] = None
    for packet_id in before:
        if packet_id not in current:
            changes.messages_gone.append((number, SENT, packet_id))
    last_run: PublishRun | None = None
    places: dict[int, int] = {}
    for packet_id, sent in current.items():
        if packet_id in before and before[packet_id] is sent:
            continue
        record.order += 1
        if sent is None:
            row = SavedMessage(number, SENT, packet_id, record.order, None, 0, "", "", None)
        elif isinstance(sent, PublishRun):
            size = sent.frame_size
            if sent is not last_run:
                last_run = sent
                ids = packet_ids(sent.frames, sent.id_at, size, len(sent.frames) // size).numbers
                places = {one: place for place, one in enumerate(ids)}
            start = places[packet_id] * size
            version = MQTT_311 if sent.payload_at == sent.id_at + 2 else MQTT_5
            row = SavedMessage(number, SENT, packet_id, record.order, sent.frames[start : start + size], version, "", "", None)
        else:
            delivery = sent.at(packet_id) if isinstance(sent, KeptDelivery) else sent
            row = _message_row(number, SENT, packet_id, record.order, delivery, to_unix_s)
        changes.messages.append(row)
    record.sent = current


def _waiting_rows(session: Session, record: Record, to_unix_s: float, changes: Changes) -> None:
    queue = session.queue
    number = record.number
    had = record.waiting_last >= record.waiting_first > 0
    replaced, record.replaced = record.replaced, {}
    if not queue.count:
        if had:
            changes.cut.append((number, record.waiting_last + 1))
        record.waiting_first = record.waiting_last = 0
        return
    first = queue.first_order()
    last = record.waiting_last if had else 0
    if queue.rearranged:
        queue.rearranged = False
        if had:
            changes.cut.append((number, last + 1))
        last = 0
    elif had and first > record.waiting_first:
        changes.cut.append((number, first))
    again = [one for order, one in replaced.items() if first <= order <= last]
    newest = queue.later_than(last)
    changes.messages.extend([_message_row(number, WAITING, one.order, one.order, one, to_unix_s) for one in again + newest])
    record.waiting_first = first
    if newest:
        record.waiting_last = newest[-1].order


def _id_rows(session: Session, record: Record, changes: Changes) -> None:
    held = session.receiver.held
    if not record.held and not (held.singles or held.runs):
        return
    number = record.number
    current = set(held)
    changes.ids_gone.extend([(number, packet_id) for packet_id in sorted(record.held - current)])
    changes.ids.extend([SavedId(number, packet_id) for packet_id in sorted(current - record.held)])
    record.held = current


def _message_row(number: int, place: int, key: int, order: int, delivery: Delivery, to_unix_s: float) -> SavedMessage:
    message = delivery.message
    first_byte = 0x30 | delivery.qos << 1 | (1 if delivery.retain else 0)
    head, tail = message.frame(MQTT_5, first_byte, _ID_FIELD, b"", message.topic_field)
    identifiers = " ".join([str(identifier) for identifier in delivery.identifiers]) if delivery.identifiers else ""
    share = "" if delivery.group is None else delivery.group.name
    expires_at = None if message.expires_at == math.inf else message.expires_at + to_unix_s
    return SavedMessage(number, place, key, order, head + tail if tail else head, MQTT_5, identifiers, share, expires_at)
