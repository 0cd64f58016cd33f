"""The hot path of QoS 1 and 2: acknowledgements of four bytes, and runs of PUBLISH on known topics, straight from what was read.

The tables are those of `inflight`, the rules those of `publish`; this is what they come to when nothing is out of the
ordinary: known topic, plain route, room at the recipient, no properties, a reason code of 0x00. Anything else stays at the
decoder's position and goes the general way. Where the publisher's packet ids are free in the recipient's session they are
used there too, so that a run goes on as one slice, and no message needs an object of its own.

"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core import pausing
from broker.core.delivery import deliver, pump
from broker.core.link import CONNECTED
from broker.core.waiting import PublishRun
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State
    from broker.core.topic_table import Route

RUN_BYTES_MAX: Final = 8_192
"""A run is kept as long as one of its messages is unacknowledged."""

_PUBACK: Final = 0x40
_PUBREC: Final = 0x50
_PUBREL: Final = 0x62
_PUBCOMP: Final = 0x70
_PUBLISH_QOS_1: Final = 0x32
_PUBLISH_QOS_2: Final = 0x34


def exchange(state: State, link: Link, session: Session, now: float) -> bool:
    """Do what stands at the decoder's position and is ordinary; the rest stays there. False: paused, or the budget is used up."""
    decoder = link.decoder
    data = decoder.data
    end = len(data)
    position = decoder.position
    if position >= end or data[position] not in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP, _PUBLISH_QOS_1, _PUBLISH_QOS_2):
        return True
    sender = session.sender
    unacknowledged = sender.unacknowledged
    held = session.receiver.held
    answers: list[bytes] = []
    acknowledged = 0
    settled_bytes = 0
    received = 0
    go_on = True
    work_max = state.limits.work_per_turn_max
    while end - position >= 4:
        first = data[position]
        if first in (_PUBLISH_QOS_1, _PUBLISH_QOS_2):
            before = len(answers)
            size = _publish_run(state, link, session, data, position, first, answers, now)
            if size == 0:
                break
            position += size
            received += len(answers) - before
            if link.paused or state.work >= work_max:
                go_on = False
                break
        elif data[position + 1] == 2:
            # An acknowledgement with reason 0x00, as `inflight` has it; unknown ids go the general way.
            packet_id = data[position + 2] << 8 | data[position + 3]
            if first == _PUBACK:
                waiting = unacknowledged.get(packet_id)
                if waiting is None or waiting.qos != 1:
                    break
                del unacknowledged[packet_id]
                settled_bytes += waiting.size
                if sender.quota < sender.quota_max:
                    sender.quota += 1
            elif first == _PUBREC:
                waiting = unacknowledged.get(packet_id)
                if waiting is None or waiting.qos != 2:
                    break
                del unacknowledged[packet_id]
                settled_bytes += waiting.size
                sender.released[packet_id] = True
                answers.append(b"\x62\x02" + data[position + 2 : position + 4])
            elif first == _PUBREL:
                if packet_id not in held:
                    break
                del held[packet_id]
                answers.append(b"\x70\x02" + data[position + 2 : position + 4])
            elif first == _PUBCOMP:
                took_quota = sender.released.pop(packet_id, None)
                if took_quota is None:
                    break
                if took_quota and sender.quota < sender.quota_max:
                    sender.quota += 1
            else:
                break
            position += 4
            acknowledged += 1
        else:
            break
    decoder.position = position
    counters = state.counters
    counters.packets_received += acknowledged + received
    counters.publish_received += received
    state.work += acknowledged // 8
    if settled_bytes:
        session.let_go(settled_bytes)
    if answers and link.phase == CONNECTED:  # nothing after a DISCONNECT [MQTT5-3.14.4-1]
        counters.packets_sent += len(answers)
        link.outbox.append(b"".join(answers))
        state.mark_ready(link)
    if acknowledged and (session.queue.count or session.replays or session.sender.resend):
        pump(state, link, now)
    return go_on


def _publish_run(state: State, link: Link, session: Session, data: bytes, position: int, first: int, answers: list[bytes], now: float) -> int:
    """A run of PUBLISH at QoS 1 or 2 on one known topic; how many bytes it is long, or 0 if it is not the ordinary case."""
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
    payload_at = id_at + 3 if is_mqtt_5 else id_at + 2
    if position + size > end or payload_at > size or size > limits.packet_bytes_max or (is_mqtt_5 and data[topic_stop + 2] != 0):
        return 0
    route = link.known_topics.get(data[body:topic_stop])
    if route is None:
        return 0
    if not state.topics.is_fresh(route):
        route = state.topics.route(route.topic)
        link.known_topics[data[body:topic_stop]] = route
    qos = (first & 0x06) >> 1
    targets = route.targets
    if not route.plain or not targets or qos > limits.maximum_qos:
        return 0
    # The run: frames that begin with the very same bytes, no longer than what one message may keep alive, nor than the budget.
    count_max = max(1, min(RUN_BYTES_MAX // size, (state.limits.work_per_turn_max - state.work) // len(targets)))
    prefix = data[position:topic_stop]
    ids: list[int] = []
    start = position
    while True:
        at = start + id_at
        ids.append(data[at] << 8 | data[at + 1])
        start += size
        if len(ids) == count_max or start + size > end or not data.startswith(prefix, start) or (is_mqtt_5 and data[start + id_at + 2] != 0):
            break
    if not _are_new(session, ids, qos, limits.receive_maximum):
        del ids[1:]
        if not _are_new(session, ids, qos, limits.receive_maximum):
            return 0
    run = PublishRun(data[position : position + size * len(ids)], size, qos, route.topic, id_at, payload_at, link.client_id)
    refused = _give(state, link, route, run, ids, now)
    kind = b"\x40" if qos == 1 else b"\x50"
    for packet_id in ids:
        id_bytes = packet_id.to_bytes(2, "big")
        if refused is not None and packet_id in refused and is_mqtt_5:
            answers.append(kind + b"\x03" + id_bytes + b"\x97")  # Quota exceeded
        else:
            answers.append(kind + b"\x02" + id_bytes)
            if qos == 2:
                session.receiver.held[packet_id] = None
    return size * len(ids)


def _are_new(session: Session, ids: list[int], qos: int, receive_maximum: int) -> bool:
    """Are these packet ids valid, different and, at QoS 2, none that is held, nor more than may be?"""
    if 0 in ids or (len(ids) > 1 and len(set(ids)) != len(ids)):
        return False
    if qos == 1:
        return True
    held = session.receiver.held
    return len(held) + len(ids) <= receive_maximum and held.keys().isdisjoint(ids)


def _give(state: State, link: Link, route: Route, run: PublishRun, ids: list[int], now: float) -> set[int] | None:
    """Give a run to all targets of a plain route; the ids of messages that were refused a place, if any were."""
    count = len(ids)
    size = len(run.frames)
    qos = run.qos
    targets = route.targets
    is_mqtt_5 = link.version >= MQTT_5
    refused_counts: dict[int, int] | None = None
    full = state.over_memory(0)
    inflight_bytes_max = state.limits.inflight_bytes_max
    sent_count = 0
    for target in targets:
        session = target.session
        recipient = session.link
        sender = session.sender
        if (
            recipient is None
            or target.qos < qos
            or sender.quota < count
            or session.queue.count
            or sender.resend
            or recipient.aliases_out is not None
            or recipient.packet_bytes_max < run.size
            or (recipient.version >= MQTT_5) != is_mqtt_5
            or recipient.outbox.committed_bytes >= recipient.outbox_bytes_high
            or session.inflight_bytes >= inflight_bytes_max
            or (full and (session.inflight_bytes or recipient.outbox.counted_bytes))
            or not sender.unacknowledged.keys().isdisjoint(ids)
            or (sender.released and not sender.released.keys().isdisjoint(ids))
        ):
            for packet_id, message in zip(ids, run.all_messages(), strict=True):
                state.refused = False
                taken = deliver(state, session, message, min(qos, target.qos), False, (), None, link, route, now)
                if state.refused or not taken:
                    refused_counts = refused_counts or {}
                    refused_counts[packet_id] = refused_counts.get(packet_id, 0) + (len(targets) if state.refused else 1)
            continue
        # Room for all of it, and all its ids are free: what `Sender.send` and `delivery.commit` would do, in one step.
        sender.unacknowledged.update(dict.fromkeys(ids, run))
        sender.quota -= count
        session.inflight_bytes += size  # `Session.hold`
        outbox = recipient.outbox
        outbox.append(run.frames)
        sent_count += count
        if not recipient.ready:
            recipient.ready = True
            state.ready.append(recipient)
        if outbox.committed_bytes >= recipient.outbox_bytes_high and recipient is not link:
            pausing.press(state, link, recipient, route, now)
    state.work += sent_count + 1
    state.waiting.inflight_bytes += sent_count * run.size
    state.counters.publish_sent += sent_count
    state.counters.packets_sent += sent_count
    if refused_counts is None:
        return None
    # Told only when nobody could take it, or the rule is `refuse`.
    return {packet_id for packet_id, times in refused_counts.items() if times >= len(targets)}
