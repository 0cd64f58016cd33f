"""The last part of a message's way: from a session that is to have it to bytes in its link's outbox.

A message goes out at once if nothing is before it and there is room; otherwise it waits, bounded, and `pump` encodes it
when bytes drain or an acknowledgement comes. Nothing here raises into the publisher.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core import pausing
from broker.core.ending import close_link
from broker.core.gates import gate_exactly, note
from broker.core.kept import FIRST_BYTE, KEPT_PLAIN, KEPT_PLAIN_5, Kept, message_of, replayed, topic_of, with_packet_id
from broker.core.mount import own_topic_field
from broker.core.owed import Delivery, KeptDelivery, PublishRun
from broker.core.packet_ids import packet_ids
from broker.core.record import note_replaced
from broker.core.runs import OTHER_FORM_BYTES_MAX
from broker.core.waiting import WaitingQueue
from broker.core.waiting_run import QueuedRun, WaitingRun
from broker.reasons import ReasonCode
from broker.wire.codec import encode_varint
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.message import ApplicationMessage
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.subscription import SharedGroup, Subscription
    from broker.core.topic_table import Route

REPLAY_BATCH_COUNT: Final = 64
REPLAY_BATCH_BYTES: Final = 65_536
"""So many, and then one more message."""
REPLAY_VISITS_COUNT: Final = 64
"""Retained topics looked at in each step of a replay, whether they match or not."""
REPLAY_STEP_WORK: Final = 16
"""What such a step counts for in a verb's budget, besides the messages it sends."""


def deliver(
    state: State,
    session: Session,
    message: ApplicationMessage,
    qos: int,
    retain: bool,
    identifiers: tuple[int, ...],
    group: SharedGroup | None,
    publisher: Link | None,
    route: Route | None,
    now: float,
) -> bool:
    """Give a message to one session. False: it was refused a place, and this recipient will not have it.

    publisher: whom to pause if the recipient cannot keep up; route: where else its message goes.
    """
    state.work += 1
    if session.sink is not None:
        session.sink(message, qos, retain, now)
        return True
    link = session.link
    if state.journal is not None and link is not None:
        gate_exactly(state, publisher, link, message.qos)
    if qos == 0:
        if link is None:
            return True  # at most once: nobody is there, and that is all right
        outbox = link.outbox
        taken = True
        if (
            outbox.committed_bytes < link.outbox_bytes_high
            and not outbox.waiting.count
            and not (outbox.counted_bytes and state.over_memory(message.size))
        ):
            commit(state, link, message, 0, retain, identifiers, 0, False, now)
        else:
            session.order += 1
            taken = _wait_in_outbox(state, link, session, Delivery(message, 0, retain, identifiers, group, session.order), now)
    else:
        sender = session.sender
        session.order += 1
        delivery = Delivery(message, qos, retain, identifiers, group, session.order)
        if link is None:
            return _wait_in_session(state, session, delivery, now)
        if not session.queue.count and not sender.resend and link.outbox.committed_bytes < link.outbox_bytes_high and may_send(state, session, link):
            send(state, link, session, delivery, now)
            return True
        taken = _wait_in_session(state, session, delivery, now)
    if publisher is not None and publisher is not link and link.outbox.committed_bytes >= link.outbox_bytes_high:
        pausing.press(state, publisher, link, route, now)
    return taken


def may_send(state: State, session: Session, link: Link) -> bool:
    """May one more QoS 1 or 2 message be under way? When all of memory is full, only to a client with nothing unsent or unacknowledged."""
    if session.sender.quota <= 0 and session.own_sender(link).quota <= 0:
        return False
    if session.inflight_bytes >= link.limits.inflight_bytes_max:
        return False
    return not (session.inflight_bytes or link.outbox.counted_bytes) or not state.over_memory(0)


def send(state: State, link: Link, session: Session, delivery: Delivery, now: float) -> None:
    """Start a QoS 1 or 2 exchange; the caller has seen that the quota allows it."""
    sender = session.sender
    packet_id = sender.send(delivery)
    session.hold(delivery.size)
    if session.record is not None:
        note(state, session)
    if not commit(state, link, delivery.message, delivery.qos, delivery.retain, delivery.identifiers, packet_id, False, now):
        # Too large for this client: as if it had been fully sent, so no id and no quota stay taken [MQTT5-3.1.2-25].
        sender.abandon(packet_id)
        session.let_go(delivery.size)


def goes_as_run(link: Link, run: PublishRun, count: int) -> bool:
    """Does it get so many of them as they are, but for version, QoS and packet ids?"""
    if link.mount_point or (count == 1 and link.aliases_out is not None):
        return False
    return link.packet_bytes_max >= run.frame_size + OTHER_FORM_BYTES_MAX


def send_first(state: State, link: Link, session: Session, waiting: QueuedRun, bytes_high: int) -> int:
    """`send` for the first of a run, which are no longer in it then: as many as may be under way, and bring the link's outbox to that mark. How many;
    the caller has seen that one may be sent, and that they go as a run."""
    run = waiting.run
    outbox = link.outbox
    sender = session.sender
    size = run.size
    count = min(
        waiting.count,
        sender.quota,
        1 + (link.limits.inflight_bytes_max - session.inflight_bytes - 1) // size,
        1 + (bytes_high - outbox.committed_bytes - 1) // run.frame_size,
        max(1, state.limits.work_per_turn_max - state.work),
    )
    if state.over_memory(0):
        count = 1
    qos = waiting.qos
    form = waiting.take_run(count)
    is_5 = link.version >= MQTT_5
    if qos != run.qos or is_5 != (run.payload_at > run.id_at + 2):
        form = form.form(is_5, qos)
    sent = form
    ids = packet_ids(form.frames, form.id_at, form.frame_size, count)
    if not (ids.smallest and ids.are_different() and sender.are_free(ids)):
        ids = sender.take_ids(count)
        sent = form.with_ids(ids)
        sent.source, sent.first = form.as_came()  # without what was between
    sender.unacknowledged.add(ids, sent)
    sender.quota -= count
    session.hold(size * count)
    outbox.append(sent.frames)
    if session.record is not None:
        note(state, session)
    state.work += count
    counters = state.counters
    counters.publish_sent += count
    counters.packets_sent += count
    state.mark_ready(link)
    return count


def commit(
    state: State, link: Link, message: ApplicationMessage, qos: int, retain: bool, identifiers: tuple[int, ...], packet_id: int, dup: bool, now: float
) -> bool:
    """Encode a PUBLISH for one link. False: larger than the client's Maximum Packet Size, so it is not sent [MQTT5-3.1.2-24]."""
    outbox = link.outbox
    version = link.version
    plain = qos == 0 and not retain and not link.mount_point
    if plain and (version < MQTT_5 or (not identifiers and not link.aliases_out_max and message.expires_at == math.inf)):
        frame = message.plain_frame(version)
        if len(frame) > link.packet_bytes_max:
            state.count_dropped(link.client_id, "too-large")
            return False
        outbox.append(frame)
    else:
        own = aliased = b""
        topic_field = message.topic_field if not link.mount_point else own_topic_field(link.mount_point, message)
        new_alias = 0
        named = topic_field
        if version >= MQTT_5:
            for identifier in identifiers:
                own += b"\x0b" + encode_varint(identifier)
            if message.expires_at != math.inf:
                own += b"\x02" + message.expiry_left_s(now).to_bytes(4, "big")  # [MQTT5-3.3.2-6]
            if link.aliases_out is not None:
                alias = link.aliases_out.get(message.topic, 0)
                if alias:
                    aliased = b"\x23" + alias.to_bytes(2, "big")
                    named = b"\x00\x00"
                elif len(link.aliases_out) < link.aliases_out_max:
                    new_alias = len(link.aliases_out) + 1  # [MQTT5-3.3.2-11]
                    aliased = b"\x23" + new_alias.to_bytes(2, "big")
        first_byte = 0x30 | (0x08 if dup else 0) | qos << 1 | (1 if retain else 0)
        id_field = packet_id.to_bytes(2, "big") if qos else b""
        head, tail = message.frame(version, first_byte, id_field, own + aliased, named)
        if aliased and len(head) + len(tail) > link.packet_bytes_max:  # an alias takes three bytes, which may be those that are too many
            new_alias = 0
            head, tail = message.frame(version, first_byte, id_field, own, topic_field)
        if len(head) + len(tail) > link.packet_bytes_max:
            state.count_dropped(link.client_id, "too-large")
            return False
        if new_alias and link.aliases_out is not None:
            link.aliases_out[message.topic] = new_alias
        outbox.append(head)
        if tail:
            outbox.append(tail)
    counters = state.counters
    counters.publish_sent += 1
    counters.packets_sent += 1
    if not link.ready:
        link.ready = True
        state.ready.append(link)
    return True


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


# ---- waiting, and what happens when there is no place ----


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
            _wait_in_outbox(state, link, session, Delivery(run.take(), 0, False, (), None, order), now)
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


def _wait_in_outbox(state: State, link: Link, session: Session, delivery: Delivery, now: float) -> bool:
    limits = link.limits
    return _wait(state, session, link.outbox.own_queue(), delivery, limits.outbox_count_max, limits.outbox_bytes_max, "overflow", now)


def _wait_in_session(state: State, session: Session, delivery: Delivery, now: float) -> bool:
    limits = session.limits
    if session.record is not None:
        note(state, session)
    return _wait(state, session, session.own_queue(), delivery, limits.queue_count_max, limits.queue_bytes_max, "queue-full", now)
