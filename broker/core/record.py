"""What the store has of one Session, and the rows to be written for it to have what the Session has become.

What is under way is compared: the unacknowledged, the released, the QoS 2 ids that came. A queue may be long, and is known by the order of its
messages instead: new ones come at the end, old ones leave at the front; where a rule has taken some from its middle it is written anew.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core.packet_ids import packet_ids
from broker.core.saved import SENT, WAITING, Changes, SavedId, SavedMessage, SavedSession, SavedSubscription
from broker.core.waiting import Delivery, KeptDelivery, PublishRun
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
        elif isinstance(sent, PublishRun) and sent.has_more_to_say:
            row = _message_row(number, SENT, packet_id, record.order, sent.at(packet_id), to_unix_s)
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
