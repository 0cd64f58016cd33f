"""The last part of a message's way: from a session that is to have it to bytes in its link's outbox.

A message goes out at once if nothing is before it and there is room; otherwise it waits (`queueing`), and `pumping` encodes it
when bytes drain or an acknowledgement comes. Nothing here raises into the publisher.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from broker.core import pausing
from broker.core.gates import gate_exactly, note
from broker.core.mount import own_topic_field
from broker.core.owed import Delivery, PublishRun
from broker.core.packet_ids import packet_ids
from broker.core.queueing import wait_in_outbox, wait_in_session
from broker.core.runs import OTHER_FORM_BYTES_MAX
from broker.core.waiting_run import QueuedRun
from broker.wire.codec import encode_varint
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.message import ApplicationMessage
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.subscription import SharedGroup
    from broker.core.topic_table import Route


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
            taken = wait_in_outbox(state, link, session, Delivery(message, 0, retain, identifiers, group, session.order), now)
    else:
        sender = session.sender
        session.order += 1
        delivery = Delivery(message, qos, retain, identifiers, group, session.order)
        if link is None:
            return wait_in_session(state, session, delivery, now)
        if not session.queue.count and not sender.resend and link.outbox.committed_bytes < link.outbox_bytes_high and may_send(state, session, link):
            send(state, link, session, delivery, now)
            return True
        taken = wait_in_session(state, session, delivery, now)
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
