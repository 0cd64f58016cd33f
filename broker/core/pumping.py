"""What waits for a link, on its way into its outbox: repetitions, queued messages and retained ones, while there is room and the budget lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.delivery import commit, goes_as_run, may_send, send, send_first
from broker.core.gates import note
from broker.core.kept import FIRST_BYTE, KEPT_PLAIN, KEPT_PLAIN_5, Kept, message_of, replayed, topic_of, with_packet_id
from broker.core.owed import Delivery, KeptDelivery
from broker.wire.codec import encode_varint
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.subscription import Subscription

REPLAY_BATCH_COUNT: Final = 64
REPLAY_BATCH_BYTES: Final = 65_536
"""So many, and then one more message."""
REPLAY_VISITS_COUNT: Final = 64
"""Retained topics looked at in each step of a replay, whether they match or not."""
REPLAY_STEP_WORK: Final = 16
"""What such a step counts for in a verb's budget, besides the messages it sends."""


def pump(state: State, link: Link, now: float) -> None:
    """Encode what waits for this link while its outbox is low and the verb's budget lasts; the rest goes on the backlog.

    Repetitions come first [MQTT5-4.6.0-5], then what came first; a retained replay when nothing else waits. What a
    half-closed peer's link still has to drain is no longer counted as waiting.
    """
    outbox = link.outbox
    low = link.outbox_bytes_high // 2
    while outbox.committed_bytes < low:
        if outbox.committed_bytes and state.over_memory(0):
            return  # one at a time: what is committed counts once more
        if state.work >= state.limits.work_per_turn_max:
            state.backlog[link] = None
            return
        state.work += 1
        session = link.session if link.session is not None else link.leaving
        if session is not None and session.sender.resend:
            again = session.sender.next_resend()
            if again is not None:
                packet_id, unacknowledged = again
                delivery = unacknowledged.at(packet_id)
                if not commit(state, link, delivery.message, delivery.qos, delivery.retain, delivery.identifiers, packet_id, True, now):
                    session.sender.abandon(packet_id)
                    session.let_go(unacknowledged.size)
                    note(state, session)
                continue
        from_session = session is not None and session.queue.count > 0 and not session.sender.resend and may_send(state, session, link)
        if session is not None and from_session and (not outbox.waiting.count or session.queue.first_order() < outbox.waiting.first_order()):
            run = session.queue.first_run()
            if run is not None and goes_as_run(link, run.run, run.count):
                session.queue.taken(send_first(state, link, session, run, low), run.size)
                continue
            delivery = session.queue.pop()
            if not _expired(state, link, delivery, now):
                send(state, link, session, delivery, now)
            else:
                note(state, session)
        elif outbox.waiting.count:
            delivery = outbox.waiting.pop()
            if not _expired(state, link, delivery, now):
                commit(state, link, delivery.message, 0, delivery.retain, delivery.identifiers, 0, False, now)
        elif session is None or not session.replays or not _replay(state, link, session, now):
            return


def _expired(state: State, link: Link, delivery: Delivery, now: float) -> bool:
    """Has it waited past its Message Expiry Interval? Then it is not sent [MQTT5-3.3.2-5]."""
    if delivery.message.expires_at > now:
        return False
    state.count_dropped(link.client_id, "expired")
    return True


def _replay(state: State, link: Link, session: Session, now: float) -> bool:
    """One step of the oldest retained replay; False when it has to wait for acknowledgements."""
    replays = session.replays
    assert replays is not None
    filter, replay = next(iter(replays.items()))
    # A subscription renewed meanwhile goes on with its newest options.
    subscription = replay.subscription if session.ended else session.subscriptions[filter]
    count = REPLAY_BATCH_COUNT
    if subscription.qos > 0:
        if session.queue.count or session.sender.resend or not may_send(state, session, link):
            return False
        count = min(count, session.sender.quota)
    batch = replay.cursor.next_batch(REPLAY_VISITS_COUNT, count, now, REPLAY_BATCH_BYTES)
    if replay.cursor.exhausted:
        del replays[filter]
        if session.record is not None and state.journal is not None:
            session.record.filters[filter] = None
            state.journal.touch(session)
    state.work += REPLAY_STEP_WORK + len(batch)
    _send_kept(state, link, session, subscription, batch, now)
    return True


def _send_kept(state: State, link: Link, session: Session, subscription: Subscription, batch: list[Kept], now: float) -> None:
    """Retained messages to one client: as they are kept, and together, where nothing is out of the ordinary."""
    is_mqtt_5 = link.version >= MQTT_5
    allows_all = session.access.allows_all
    identifiers = (subscription.identifier,) if subscription.identifier else ()
    own = b"\x0b" + encode_varint(subscription.identifier) if identifiers and is_mqtt_5 else b""
    ready_made = 0
    if allows_all and not link.mount_point and not own:
        ready_made = KEPT_PLAIN_5 if is_mqtt_5 else KEPT_PLAIN
    frames: list[bytes] = []
    for kept in batch:
        if isinstance(kept, bytes) and kept[0] == ready_made:
            frames.append(FIRST_BYTE + kept[1:] if is_mqtt_5 else kept)
        elif not allows_all and not session.may_receive(topic_of(kept)):
            continue
        elif isinstance(kept, bytes) and not link.mount_point and (subscription.qos == 0 or not kept[0] & 0x06):
            frames.append(replayed(kept, is_mqtt_5, own))
        elif isinstance(kept, bytes) and kept[0] & ~0x06 == ready_made and len(kept) + 3 <= link.packet_bytes_max:
            session.order += 1
            delivery = KeptDelivery(kept, min(kept[0] >> 1 & 3, subscription.qos), session.order)
            session.hold(delivery.size)
            frames.append(with_packet_id(kept, delivery.qos, session.sender.send(delivery)))
            if session.record is not None:
                note(state, session)
        else:
            _commit_frames(state, link, frames)
            frames = []
            message = message_of(kept)
            if link.mount_point and not (session.may_receive(message.topic) and subscription.matches(message.topic)):
                continue
            qos = min(message.qos, subscription.qos)
            if qos == 0:
                commit(state, link, message, 0, True, identifiers, 0, False, now)
            else:
                session.order += 1
                send(state, link, session, Delivery(message, qos, True, identifiers, None, session.order), now)
    _commit_frames(state, link, frames)


def _commit_frames(state: State, link: Link, frames: list[bytes]) -> None:
    """Encoded PUBLISH packets for one link, less those that are larger than the client's Maximum Packet Size [MQTT5-3.1.2-24]."""
    joined = b"".join(frames)
    if len(joined) > link.packet_bytes_max:
        fitting = [frame for frame in frames if len(frame) <= link.packet_bytes_max]
        if len(fitting) < len(frames):
            state.count_dropped(link.client_id, "too-large", len(frames) - len(fitting))
        frames = fitting
        joined = b"".join(frames)
    if not frames:
        return
    link.outbox.append(joined)
    state.counters.publish_sent += len(frames)
    state.counters.packets_sent += len(frames)
    state.mark_ready(link)
