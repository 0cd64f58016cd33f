"""What the store has of one Session, and the rows to be written for it to have what the Session has become.

What is under way is compared: the unacknowledged, the released, the QoS 2 ids that came. A queue may be long, and is known by the order of its
messages instead: new ones come at the end, old ones leave at the front; where a rule has taken some from its middle it is written anew. What came
together is one row in either (`core.run_rows`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core.owed import Delivery, PublishRun, Unacknowledged
from broker.core.packet_ids import any_of
from broker.core.run_rows import ALL, Piece, RunRow, RunRows
from broker.core.saved import HELD, RELEASED, SENT, WAITING, Changes, SavedIds, SavedMessage, SavedSession, SavedSubscription
from broker.core.waiting_run import QueuedRun
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.run_rows import StoredRuns
    from broker.core.session import Session
    from broker.core.waiting import WaitingQueue

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
        "released",
        "replaced",
        "row",
        "runs",
        "sent",
        "single_last",
        "waiting_first",
        "waiting_last",
    )

    def __init__(self, number: int, listener: str) -> None:
        self.number = number
        self.listener = listener
        self.is_restored = False
        """It came from the store, and its client has not come back: other rules may hold than when it left."""
        self.left_at = math.inf
        """When its client left, on the engine's clock; `math.inf` while it is there."""
        self.row: SavedSession | None = None
        self.filters: dict[str, None] = {}
        """Those that have been subscribed to, or left, since."""
        self.sent: dict[int, Unacknowledged | None] = {}
        """What its sender has by itself, by Packet Identifier; None: it could not be read."""
        self.runs: RunRows | None = None
        """Of its sender and of its queue."""
        self.released = b""
        self.held = b""
        """Packet Identifiers of its sender, and of its receiver."""
        self.order = 0
        """Of the last message that was sent, in the rows of `sent` and `runs`."""
        self.replaced: dict[int, Delivery] = {}
        """By their order, those in its queue that have another message since; some may have left."""
        self.single_last = 0
        """Order of the last waiting message that the store has by itself, if it has one."""
        self.waiting_first = 0
        self.waiting_last = 0
        """Orders of the first and the last waiting message that the store has; it has none where the first is the greater one, or both are 0."""

    def own_runs(self) -> RunRows:
        if self.runs is None:
            self.runs = RunRows()
        return self.runs


def note_replaced(session: Session, queue: WaitingQueue, delivery: Delivery) -> None:
    """What waits there has another message in its place: one row, as long as such are fewer than all that wait."""
    record = session.record
    if record is not None and queue is session.queue:
        record.replaced[delivery.order] = delivery
        if len(record.replaced) > queue.count:
            record.replaced = {}
            queue.rearranged = True


def compare(session: Session, record: Record, to_unix_s: float, changes: Changes, stored: StoredRuns) -> None:
    """Add what has changed, and take it for written. to_unix_s: from the engine's clock."""
    _session_row(session, record, to_unix_s, changes)
    _subscription_rows(session, record, changes)
    _waiting_rows(session, record, to_unix_s, changes, stored)  # before what is sent: part of a run may have left the queue for that
    _sent_rows(session, record, to_unix_s, changes, stored)
    _id_rows(session, record, changes)


def _session_row(session: Session, record: Record, to_unix_s: float, changes: Changes) -> None:
    before = record.row
    left_at = None if record.left_at == math.inf else record.left_at + to_unix_s
    if left_at is not None and before is not None and before.left_at is not None and abs(left_at - before.left_at) < CLOCKS_APART_S:
        left_at = before.left_at
    expiry_s = None if session.never_expires else session.expiry_s
    rights = session.access.own
    row = SavedSession(record.number, session.client_id, session.username, session.mount_point, record.listener, expiry_s, left_at, rights)
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


def _sent_rows(session: Session, record: Record, to_unix_s: float, changes: Changes, stored: StoredRuns) -> None:
    """What is unacknowledged, in the order of its sending."""
    before = record.sent
    unacknowledged = session.sender.unacknowledged
    if not (before or record.runs is not None or unacknowledged.singles or unacknowledged.runs):
        return
    number = record.number
    current: dict[int, Unacknowledged | None] = {}
    apart: dict[PublishRun, list[int]] = {}
    pieces: dict[PublishRun, list[Piece]] = {}
    for packet_id, sent in (unacknowledged.singles or {}).items():
        if isinstance(sent, PublishRun):
            if sent in apart:
                apart[sent].append(packet_id)
            else:
                apart[sent] = [packet_id]
                _place(record, sent, pieces)
        else:
            current[packet_id] = sent
            if before.get(packet_id) is not sent:
                record.order += 1
                changes.messages.append(_message_row(number, SENT, packet_id, record.order, sent.at(packet_id), to_unix_s))
    changes.messages_gone.extend([(number, SENT, packet_id) for packet_id in before if packet_id not in current])
    record.sent = current
    for sent, numbers in apart.items():
        run, first = sent.as_came()
        pieces[run].append((first, sent, any_of(numbers)))
    for ids, sent in unacknowledged.runs or ():
        assert isinstance(sent, PublishRun)
        run, first = _place(record, sent, pieces)
        pieces[run].append((first, sent, ids))
    rows = record.runs
    if rows is not None:
        rows.begun = {run: row for run, row in rows.begun.items() if stored.look(number, row, pieces.get(run, []), changes)}
        if not rows.begun and not rows.waiting:
            record.runs = None


def _place(record: Record, sent: PublishRun, pieces: dict[PublishRun, list[Piece]]) -> tuple[PublishRun, int]:
    """It is unacknowledged: the run that it is of has a place in the order of what is sent from now on."""
    run, first = sent.as_came()
    if run in pieces:
        return run, first
    pieces[run] = []
    rows = record.own_runs()
    row = rows.begun.get(run)
    if row is None:  # it has never waited
        row = rows.begun[run] = RunRow(run, sent.qos, 0, run.count)
    if not row.is_sent:
        row.is_sent = True
        row.order = max(row.order, record.order + 1)
        record.order = row.order + row.count - 1
    return run, first


def _waiting_rows(session: Session, record: Record, to_unix_s: float, changes: Changes, stored: StoredRuns) -> None:
    queue = session.queue
    number = record.number
    had = record.waiting_last >= record.waiting_first > 0
    replaced, record.replaced = record.replaced, {}
    rows = record.runs
    if not queue.count:
        if had:
            _cut(record, record.waiting_last + 1, changes)
            if rows is not None:
                rows.leave(ALL)
        record.waiting_first = record.waiting_last = 0
        return
    first = queue.first_order()
    last = record.waiting_last if had else 0
    if queue.rearranged:
        queue.rearranged = False
        if had:
            _cut(record, last + 1, changes)
            if rows is not None:
                rows.leave(ALL)  # those of which some wait are found again below
        last = 0
    elif had and first > record.waiting_first:
        _cut(record, first, changes)
        if rows is not None:
            rows.leave(first)
    found = [one for order, one in replaced.items() if first <= order <= last]
    for entry in queue.later_than(last):
        if isinstance(entry, Delivery):
            found.append(entry)
            record.single_last = record.waiting_last = entry.order
        elif isinstance(entry, QueuedRun):
            row = record.own_runs().wait(entry)
            if not entry.start:
                stored.look(number, row, [], changes)
            record.waiting_last = entry.order + entry.count - 1
    changes.messages.extend([_message_row(number, WAITING, one.order, one.order, one, to_unix_s) for one in found])
    record.waiting_first = first


def _cut(record: Record, order: int, changes: Changes) -> None:
    """What waited by itself and is before that has left the queue."""
    if record.single_last >= record.waiting_first:
        changes.cut.append((record.number, order))


def _id_rows(session: Session, record: Record, changes: Changes) -> None:
    released = session.sender.released.fields()
    if released != record.released:
        record.released = released
        _ids_row(record.number, RELEASED, released, changes)
    held = session.receiver.held.fields()
    if held != record.held:
        record.held = held
        _ids_row(record.number, HELD, held, changes)


def _ids_row(number: int, kind: int, ids: bytes, changes: Changes) -> None:
    if ids:
        changes.ids.append(SavedIds(number, kind, ids))
    else:
        changes.ids_gone.append((number, kind))


def _message_row(number: int, place: int, key: int, order: int, delivery: Delivery, to_unix_s: float) -> SavedMessage:
    message = delivery.message
    first_byte = 0x30 | delivery.qos << 1 | (1 if delivery.retain else 0)
    head, tail = message.frame(MQTT_5, first_byte, _ID_FIELD, b"", message.topic_field)
    identifiers = " ".join([str(identifier) for identifier in delivery.identifiers]) if delivery.identifiers else ""
    share = "" if delivery.group is None else delivery.group.name
    expires_at = None if message.expires_at == math.inf else message.expires_at + to_unix_s
    return SavedMessage(number, place, key, order, head + tail if tail else head, MQTT_5, identifiers, share, expires_at)
