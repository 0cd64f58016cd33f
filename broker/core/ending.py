"""How connections and sessions end: what is said to the peer, what happens to the Will, what stays.

A link *leaves* at the moment the core knows that it is over, which is before its stream is gone. From then on nothing
that arrives on it counts, and its later `detach` does nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from broker.core import incoming, pausing
from broker.core.deadlines import SESSION_EXPIRY, WILL_DELAY
from broker.core.gates import note
from broker.core.link import CONNECTED, ENDED
from broker.core.message import ApplicationMessage
from broker.core.observer import DISCONNECTED
from broker.core.session import granted_expiry_s
from broker.errors import ProtocolError
from broker.reasons import SERVER_DISCONNECT_CODES, ReasonCode
from broker.wire.codec import encode, encode_properties
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Disconnect, Properties, WillMessage

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State


def close_link(state: State, link: Link, reason: ReasonCode, cause: str, now: float) -> None:
    """End a connection from our side: DISCONNECT with the reason where MQTT 5.0 has one, then close [MQTT5-4.13.2-1]."""
    if link.phase == CONNECTED and link.is_mqtt_5 and reason in SERVER_DISCONNECT_CODES:
        # Its code alone: three bytes fit wherever a CONNACK did [MQTT5-3.14.2-3, -4]. No DISCONNECT before CONNACK [MQTT5-3.14.0-1].
        state.send(link, encode(Disconnect(reason), MQTT_5))
    leave(state, link, now, cause, error=True)
    link.closing = True
    state.mark_ready(link)


def on_disconnect(state: State, link: Link, reason: ReasonCode, properties: Properties, now: float) -> None:
    session = link.session
    expiry = properties.session_expiry_interval
    if session is not None and expiry is not None:
        if expiry > 0 and not session.lasts:
            raise ProtocolError("DISCONNECT sets a Session Expiry Interval, where CONNECT had none")  # not a valid DISCONNECT (3.14.2.2.2)
        session.expiry_s = granted_expiry_s(expiry, link.limits.session_expiry_s_max)
    normal = reason == ReasonCode.SUCCESS
    leave(state, link, now, DISCONNECTED if normal else f"{DISCONNECTED}: {reason.describe()}", error=not normal, discard_will=normal)
    link.closing = True
    state.mark_ready(link)


def leave(state: State, link: Link, now: float, cause: str, *, error: bool, discard_will: bool = False, keep_waiting: bool = False) -> None:
    """Part the link from its session, which ends too, or waits for its client.

    keep_waiting: the peer may have closed only its sending side; what was queued for it is still to be sent, until `discard`.
    """
    if link.phase == ENDED:
        return
    link.phase = ENDED
    link.cause = cause
    link.error = error
    state.stop_timer(link)
    if link.auth_deadline is not None:
        state.deadlines.cancel(link.auth_deadline)
        link.auth_deadline = None
    if link.auth is not None:
        link.auth.end()
    link.known_topics = {}
    link.passed = None
    pausing.release(state, link, now)
    pausing.withdraw(state, link, now)
    if link.receiving_bytes:
        incoming.abandon(state, link)
    session = link.session
    link.session = None
    if not keep_waiting and link.outbox.waiting.count:
        state.count_dropped(link.client_id, "disconnected", link.outbox.waiting.clear())
    if session is None:
        if error:
            state.observer.refused(link, ReasonCode.UNSPECIFIED_ERROR, cause)
        return
    session.link = None
    state.connected_count -= 1
    if link.username is not None:
        count = state.users[link.username] - 1
        if count:
            state.users[link.username] = count
        else:
            del state.users[link.username]
    if session.record is not None:
        session.record.left_at = now
        note(state, session)
    settle_will(state, session, now, discard_will)
    if not session.lasts:
        if keep_waiting:
            link.leaving = session
        end_session(state, session, now, keep_waiting=keep_waiting)
    elif not session.never_expires:
        session.expiry_deadline = state.deadlines.add(now + session.expiry_s, SESSION_EXPIRY, session)
    state.observer.disconnected(link, cause, error)


def discard(state: State, link: Link) -> None:
    """Its stream is gone: what was still to be sent is not, and takes no memory any more."""
    if link.outbox.waiting.count:
        state.count_dropped(link.client_id, "disconnected", link.outbox.waiting.clear())
    link.outbox.leave_account()
    state.gated.pop(link, None)
    if link.receiving_bytes:
        incoming.leave_account(state, link)
    leaving = link.leaving
    if leaving is not None:
        link.leaving = None
        if leaving.queue.count:
            state.count_dropped(leaving.client_id, "session-ended", leaving.queue.clear())
        leaving.queue.leave_account()


def settle_will(state: State, session: Session, now: float, discard: bool) -> None:
    """Drop the Will [MQTT5-3.14.4-3], publish it, or wait for its delay [MQTT5-3.1.2-8]."""
    will = session.will
    if will is None:
        return
    if discard:
        drop_will(state, session)
        return
    delay_s = will.properties.will_delay_interval or 0
    if delay_s > 0 and session.lasts and delay_s < session.expiry_s:
        session.will_deadline = state.deadlines.add(now + delay_s, WILL_DELAY, session)
        if state.journal is not None:
            state.journal.touch_will(session)
    elif delay_s == 0 or not session.lasts:
        publish_will(state, session, now)
    # Otherwise the session ends first, and the Will goes out with it.


def publish_will(state: State, session: Session, now: float) -> None:
    """Put it on the work list, once [MQTT5-3.1.2-10]; it is published at the end of the verb."""
    will = session.will
    size = drop_will(state, session)
    if will is None:
        return
    # Asked now and not at CONNECT, since rules change. A Will that they forbid is no reason to refuse its client, but for `authorize`.
    if not session.access.may(session.username, session.client_id, "publish", will.topic):
        state.count_dropped(session.client_id, "not-authorized")
    else:
        state.waiting.will_bytes += size  # still: until it is published
        state.wills.append((will_message(will, session.client_id, now), size))


def keep_will(state: State, session: Session, will: WillMessage) -> None:
    """[MQTT5-3.1.2-7] The caller has seen that there is a place for it."""
    session.will = will
    state.waiting.will_bytes += will_size(will)


def drop_will(state: State, session: Session) -> int:
    """It has none any more; how much that one counted for."""
    will = session.will
    state.deadlines.cancel(session.will_deadline)
    session.will_deadline = None
    if will is None:
        return 0
    session.will = None
    if state.journal is not None:
        state.journal.touch_will(session)
    size = will_size(will)
    state.waiting.will_bytes -= size
    return size


def will_size(will: WillMessage) -> int:
    """What it counts for, in bytes. (Worked out again when it goes: a place for the number would be in every session.)"""
    properties = 0 if will.properties is NO_PROPERTIES else len(encode_properties(will.properties))
    return len(will.topic.encode()) + len(will.payload) + properties


def will_message(will: WillMessage, client_id: str, now: float) -> ApplicationMessage:
    interval = will.properties.message_expiry_interval
    return ApplicationMessage(
        will.topic, will.payload, will.qos, will.retain, will.properties, client_id, math.inf if interval is None else now + interval
    )


def end_session(state: State, session: Session, now: float, *, keep_waiting: bool = False) -> None:
    """Everything of it goes: subscriptions, queue, in-flight messages. A Will that was waiting goes out [MQTT5-3.1.2-8].

    keep_waiting: its link is still to be sent what waits, see `leave`.
    """
    if session.ended:
        return
    if session.inflight_bytes:
        session.let_go(session.inflight_bytes)
    session.ended = True
    if session.record is not None and state.journal is not None:
        state.journal.end(session)
    if session.will is not None:
        publish_will(state, session, now)
    state.deadlines.cancel(session.expiry_deadline)
    session.expiry_deadline = None
    if state.sessions.get(session.client_id) is session:
        del state.sessions[session.client_id]
    state.work += 1 + len(session.subscriptions) + (session.queue.count >> 4)
    for filter in list(session.subscriptions):
        state.topics.remove(session, filter)
    session.asked = None
    # A shared group's messages go to another member, but never one whose QoS 2 delivery had begun [MQTT5-4.8.2-5].
    unsettled = session.sender.unacknowledged.items()
    lost_count = len(unsettled)
    for packet_id, unacknowledged in unsettled:
        if unacknowledged.group is not None and unacknowledged.qos == 1:
            lost_count -= 1
            state.orphans.append((unacknowledged.group, unacknowledged.at(packet_id).message, session.client_id))
    if lost_count:
        state.count_dropped(session.client_id, "unacknowledged", lost_count)
    for delivery in session.queue.take_groups():
        if delivery.group is not None:
            state.orphans.append((delivery.group, delivery.message, session.client_id))
    if not keep_waiting:
        if session.queue.count:
            state.count_dropped(session.client_id, "session-ended", session.queue.clear())
        session.queue.leave_account()
