"""What the store has of one Session, and the rows to be written for it to have what the Session has become.

What is under way is compared: the unacknowledged, of which a run is one row whose ids become fewer, the released, the QoS 2 ids that came. A
queue may be long, and is known by the order of its messages instead: new ones come at the end, old ones leave at the front; where a rule has taken
some from its middle it is written anew.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core.packet_ids import PacketIds, any_of, packet_ids
from broker.core.saved import HELD, RELEASED, SENT, WAITING, Changes, SavedIds, SavedMessage, SavedRun, SavedSession, SavedSubscription
from broker.core.waiting import Delivery, PublishRun
from broker.wire.packets import MQTT_5, MQTT_311

if TYPE_CHECKING:
    from broker.core.session import Session
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
        "released",
        "replaced",
        "row",
        "runs",
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
        """What its sender has by itself, by Packet Identifier; None: it could not be read."""
        self.runs: dict[PublishRun, tuple[int, int]] = {}
        """Of its sender: number, and how many are left of it."""
        self.released = b""
        self.held = b""
        """Packet Identifiers of its sender, and of its receiver."""
        self.order = 0
        """Of the row that was written last of `sent` and `runs`."""
        self.replaced: dict[int, Delivery] = {}
        """By their order, those in its queue that have another message since; some may have left."""
        self.waiting_first = 0
        self.waiting_last = 0
        """Orders of the first and the last waiting message that the store has; it has none where the first is the greater one, or both are 0."""


def note_replaced(session: Session, queue: WaitingQueue, delivery: Delivery) -> None:
    """What waits there has another message in its place: one row, as long as such are fewer than all that wait."""
    record = session.record
    if record is not None and queue is session.queue:
        record.replaced[delivery.order] = delivery
        if len(record.replaced) > queue.count:
            record.replaced = {}
            queue.rearranged = True


def compare(session: Session, record: Record, to_unix_s: float, changes: Changes) -> None:
    """Add what has changed, and take it for written. to_unix_s: from the engine's clock."""
    _session_row(session, record, to_unix_s, changes)
    _subscription_rows(session, record, changes)
    _sent_rows(session, record, to_unix_s, changes)
    _waiting_rows(session, record, to_unix_s, changes)
    _id_rows(session, record, changes)


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
    unacknowledged = session.sender.unacknowledged
    if not (before or record.runs or unacknowledged.singles or unacknowledged.runs):
        return
    number = record.number
    current: dict[int, Unacknowledged | None] = {}
    apart: dict[PublishRun, list[int]] = {}
    orders: dict[PublishRun, int] = {}
    for packet_id, sent in (unacknowledged.singles or {}).items():
        if isinstance(sent, PublishRun):
            if sent in apart:
                apart[sent].append(packet_id)
            else:
                apart[sent] = [packet_id]
                if sent not in record.runs:
                    record.order += 1
                    orders[sent] = record.order
        else:
            current[packet_id] = sent
            if before.get(packet_id) is not sent:
                record.order += 1
                changes.messages.append(_message_row(number, SENT, packet_id, record.order, sent.at(packet_id), to_unix_s))
    changes.messages_gone.extend([(number, SENT, packet_id) for packet_id in before if packet_id not in current])
    record.sent = current
    left = {run: any_of(ids) for run, ids in apart.items()}
    for ids, sent in unacknowledged.runs or ():
        assert isinstance(sent, PublishRun)
        left[sent] = ids
    _run_rows(record, left, orders, changes)


def _run_rows(record: Record, left: dict[PublishRun, PacketIds], orders: dict[PublishRun, int], changes: Changes) -> None:
    """left: what is unacknowledged of each. orders: of new ones that are not the newest."""
    before = record.runs
    changes.runs_gone.extend([known[0] for run, known in before.items() if run not in left])  # first: new ones take their places
    record.runs = {}
    for run, ids in left.items():
        known = before.get(run)
        if known is None:
            order = orders.get(run, 0)
            if not order:
                record.order += 1
                order = record.order
            known = (changes.new_run(), ids.count)
            said = _with_all(run)
            version = MQTT_311 if said.payload_at == said.id_at + 2 else MQTT_5
            changes.runs.append(SavedRun(known[0], record.number, order, said.frame_size, version, ids.fields(), said.frames))
        elif known[1] != ids.count:
            known = (known[0], ids.count)
            changes.runs_left.append((ids.fields(), known[0]))
        record.runs[run] = known


def _with_all(run: PublishRun) -> PublishRun:
    """With the properties that this form of it has not."""
    source = run.source
    while source is not None and source.source is not None:
        source = source.source
    if source is None or not run.has_more_to_say:
        return run
    size = run.frame_size
    form = source if source.qos == run.qos else source.form(True, run.qos)
    return form.with_ids(packet_ids(run.frames, run.id_at, size, len(run.frames) // size))


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
