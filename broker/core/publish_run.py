"""Runs of PUBLISH at QoS 1 and 2 on known topics, straight from what was read to all who are to have them.

The rules are those of `publish`; this is what they come to when nothing is out of the ordinary: known topic, plain route, room at
the recipient, plain properties. Where the publisher's packet ids are free in the recipient's session they are used there too, so
that a run goes on as one slice, and no message needs an object of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core import pausing
from broker.core.delivery import deliver, goes_as_run, may_send, send_first
from broker.core.gates import gate_exactly, note
from broker.core.inflight import NO_RECEIVER, PACKET_ID_MAX
from broker.core.owed import PublishRun
from broker.core.packet_ids import PacketIds, packet_ids
from broker.core.plain_properties import plain_stop
from broker.core.publish import recognise
from broker.core.queueing import queue_run
from broker.core.runs import OTHER_FORM_BYTES_MAX, alike
from broker.core.waiting_run import QueuedRun
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.topic_table import Route

RUN_BYTES_MAX: Final = 8_192
"""A run is kept as long as one of its messages is unacknowledged."""
RUN_WORK: Final = 12
"""To give a run, of one message too, costs as much as so many deliveries of one."""
RUN_SHARES: Final = 4
"""Deliveries of a run are cheap, and each recipient costs a send: one that finds the turn's share not used up may take so many of them."""

LONE_BYTES_MIN: Final = 256
"""A smaller message that comes alone for a client that is away waits as a message: it may wait for long, and as a run of one it would take 350 bytes
of memory more. From here on that is little beside its frame, and a store can have the frames of a run once for all Sessions."""

_PUBACK: Final = 0x40
_PUBREC: Final = 0x50
_NOBODY: Final = 0x10
"""No matching subscribers."""


def publish_run(state: State, link: Link, session: Session, data: bytes, position: int, first: int, answers: list[bytes], now: float) -> int:
    """Take a run of PUBLISH at QoS 1 or 2 on one known topic; how many they are, or 0 if it is not the ordinary case. (As long as `relay`, and for
    the same reason.)"""
    end = len(data)
    if end - position < 8:
        return 0
    limits = link.promised
    is_mqtt_5 = link.version >= MQTT_5
    # The frame at hand, and its route, as in `relay`.
    body = position + 2
    length = data[position + 1]
    if length >= 0x80:
        second = data[position + 2]
        length = (length & 0x7F) | (second & 0x7F) << 7
        body += 1
        if second >= 0x80:
            third = data[position + 3]
            if third >= 0x80 or third == 0:
                return 0
            length |= third << 14
            body += 1
        elif second == 0:
            return 0
    size = body + length - position
    topic_stop = body + 2 + (data[body] << 8 | data[body + 1])
    id_at = topic_stop - position
    payload_at = id_at + 2
    if position + size > end or payload_at > size or size > limits.packet_bytes_max:
        return 0
    if is_mqtt_5:
        if payload_at == size:
            return 0
        if data[position + payload_at] == 0:
            payload_at += 1
        else:
            properties_stop = plain_stop(data, position + payload_at, position + size, link.limits.properties_bytes_max)
            if properties_stop == 0:
                return 0
            payload_at = properties_stop - position
    route = link.known_topics.get(data[body:topic_stop])
    if route is None:
        route = recognise(state, link, data[body:topic_stop])
        if route is None:
            return 0
    if not state.topics.is_fresh(route):
        route = state.topics.route(route.topic)
        link.known_topics[data[body:topic_stop]] = route
    qos = (first & 0x06) >> 1
    targets = route.targets
    if not route.plain or qos > limits.maximum_qos:
        return 0
    if not targets and is_mqtt_5 and link.packet_bytes_max < 5:
        return 0  # it may not be told that nobody wants them [MQTT5-3.1.2-24]
    # The run: frames that begin with the very same bytes, no longer than what one message may keep alive, nor than the budget.
    count_max = min(RUN_BYTES_MAX // size, (min(state.limits.work_per_turn_max, RUN_SHARES * state.work_max) - state.work) // (len(targets) or 1))
    held_count_max = PACKET_ID_MAX
    if qos == 2:
        receiver = session.receiver
        if receiver is NO_RECEIVER:
            receiver = session.own_receiver(link)
        if is_mqtt_5:
            held_count_max = receiver.held_count_max
        count_max = min(count_max, held_count_max - len(receiver.held))
    count = alike(data, position, size, id_at, id_at + 2, payload_at, count_max) if position + 2 * size <= end else 1
    ids = packet_ids(data, position + id_at, size, count)
    if not _are_new(session, ids, qos, held_count_max):
        ids = ids.part(0, 1)
        if not _are_new(session, ids, qos, held_count_max):
            return 0
        count = 1
    refused: set[int] | None = None
    if targets:
        run = PublishRun(data[position : position + size * count], size, qos, route.topic, id_at, payload_at, link.client_id)
        refused = _give(state, link, route, run, ids, now)
    else:
        state.work += RUN_WORK
    if refused is None or not is_mqtt_5:
        kind = _PUBACK if qos == 1 else _PUBREC
        answers.append(ids.acknowledgements(kind) if targets or not is_mqtt_5 else ids.acknowledgements_of(kind, _NOBODY))
        if qos == 2:
            session.receiver.held.add(ids, None)
    else:
        _answer_each(session, ids, refused, qos, answers)
    link.decoder.position = position + size * count
    return count


def _answer_each(session: Session, ids: PacketIds, refused: set[int], qos: int, answers: list[bytes]) -> None:
    """To a 5.0 publisher, where some of a run were refused."""
    kind = _PUBACK if qos == 1 else _PUBREC
    for packet_id in ids.numbers:
        if packet_id in refused:
            answers.append(bytes((kind, 3, packet_id >> 8, packet_id & 0xFF, 0x97)))  # Quota exceeded
        else:
            answers.append(bytes((kind, 2, packet_id >> 8, packet_id & 0xFF)))
            if qos == 2:
                session.receiver.held[packet_id] = None


def _are_new(session: Session, ids: PacketIds, qos: int, held_count_max: int) -> bool:
    """Are these packet ids valid, different and, at QoS 2, none that is held, nor more than may be?"""
    if ids.smallest == 0 or (ids.count > 1 and not ids.are_different()):
        return False
    if qos == 1:
        return True
    held = session.receiver.held
    return len(held) + ids.count <= held_count_max and held.has_none_of(ids)


def _give(state: State, link: Link, route: Route, run: PublishRun, ids: PacketIds, now: float) -> set[int] | None:
    """Give a run to all targets of a plain route; the ids of messages that were refused a place, if any were."""
    count = ids.count
    targets = route.targets
    is_mqtt_5 = link.version >= MQTT_5
    forms: list[PublishRun | None] | None = None
    at_most_once: list[bytes | None] | None = None
    refused_counts: dict[int, int] | None = None
    full = state.over_memory(0)
    held_bytes = 0
    sent_count = 0
    for target in targets:
        session = target.session
        recipient = session.link
        qos = run.qos if run.qos < target.qos else target.qos  # [MQTT5-3.8.4-8]
        if (
            recipient is None
            or (count == 1 and recipient.aliases_out is not None)
            or recipient.packet_bytes_max < run.frame_size + OTHER_FORM_BYTES_MAX
            or recipient.outbox.committed_bytes >= recipient.outbox_bytes_high
            or (full and (recipient.outbox.counted_bytes or (qos > 0 and session.inflight_bytes)))
            or (recipient.outbox.waiting.count if qos == 0 else session.queue.count or session.sender.resend)
            or (qos > 0 and session.inflight_bytes >= recipient.limits.inflight_bytes_max)
            or (qos > 0 and session.sender.quota < count and session.own_sender(recipient).quota < count)
        ):
            if refused_counts is None:
                refused_counts = {}
            if qos == 0:
                _give_each(state, link, route, session, run, ids, qos, refused_counts, now)
            else:
                _give_later(state, link, route, session, run, ids, qos, refused_counts, now)
            continue
        # Room for all of it: what `Sender.send` and `delivery.commit` would do, in one step. A form is made once for all who need it.
        is_5 = recipient.version >= MQTT_5
        outbox = recipient.outbox
        if qos == 0:
            if at_most_once is None:
                at_most_once = [None, None]
            frames = at_most_once[is_5]
            if frames is None:
                frames = at_most_once[is_5] = run.at_qos_0(is_5)
            outbox.append(frames)
        else:
            form = run
            if qos != run.qos or is_5 != is_mqtt_5:
                if forms is None:
                    forms = [None, None, None, None]
                place = 2 * qos - 2 + is_5
                other = forms[place]
                if other is None:
                    other = forms[place] = run.form(is_5, qos)
                form = other
            sender = session.sender
            used = ids
            if not sender.are_free(ids):
                used = sender.take_ids(count)
                form = form.with_ids(used)
            sender.unacknowledged.add(used, form)
            sender.quota -= count
            session.inflight_bytes += run.size * count  # `Session.hold`
            held_bytes += run.size * count
            outbox.append(form.frames)
            if session.record is not None:
                session.order += count  # as what waits has it: a store has both in one order
                note(state, session)
        if run.qos == 2 and state.journal is not None:
            gate_exactly(state, link, recipient, 2)
        sent_count += count
        if not recipient.ready:
            recipient.ready = True
            state.ready.append(recipient)
        if outbox.committed_bytes >= recipient.outbox_bytes_high and recipient is not link:
            pausing.press(state, link, recipient, route, now)
    state.work += RUN_WORK + sent_count
    state.waiting.inflight_bytes += held_bytes
    state.counters.publish_sent += sent_count
    state.counters.packets_sent += sent_count
    if not refused_counts:
        return None
    # Told only when nobody could take it, or the rule is `refuse`.
    return {packet_id for packet_id, times in refused_counts.items() if times >= len(targets)}


def _give_later(
    state: State, link: Link, route: Route, session: Session, run: PublishRun, ids: PacketIds, qos: int, refused_counts: dict[int, int], now: float
) -> None:
    """To one that cannot have all of it at once: as many as may leave do, and the others wait in its queue as one."""
    recipient = session.link
    count = run.count
    goes_each = count == 1 and run.frame_size < LONE_BYTES_MIN if recipient is None else not goes_as_run(recipient, run, count)
    if goes_each:
        _give_each(state, link, route, session, run, ids, qos, refused_counts, now)
        return
    waiting = QueuedRun(run, 0, count, qos, session.order + 1)
    if recipient is not None:
        if state.journal is not None:
            gate_exactly(state, link, recipient, run.qos)
        outbox = recipient.outbox
        if not session.queue.count and not session.sender.resend:
            while waiting.count and outbox.committed_bytes < recipient.outbox_bytes_high and may_send(state, session, recipient):
                session.order += send_first(state, recipient, session, waiting, recipient.outbox_bytes_high)
            if not waiting.count:
                return
    left = waiting.count
    if not queue_run(state, session, waiting):
        start = count - left
        _give_each(state, link, route, session, run.part(start, left), ids.part(start, count), qos, refused_counts, now)
        return
    session.order += left
    state.work += left
    if session.record is not None:
        note(state, session, left)
    if recipient is not None and recipient is not link and recipient.outbox.committed_bytes >= recipient.outbox_bytes_high:
        pausing.press(state, link, recipient, route, now)


def _give_each(
    state: State,
    link: Link,
    route: Route,
    session: Session,
    run: PublishRun,
    ids: PacketIds,
    qos: int,
    refused_counts: dict[int, int],
    now: float,
) -> None:
    """Message by message, to one that is behind or wants a form of its own. refused_counts: how many did not take each."""
    for packet_id, message in zip(ids.numbers, run.all_messages(), strict=True):
        state.refused = False
        taken = deliver(state, session, message, qos, False, (), None, link, route, now)
        if state.refused or not taken:
            refused_counts[packet_id] = refused_counts.get(packet_id, 0) + (len(route.targets) if state.refused else 1)
