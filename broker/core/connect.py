"""CONNECT as a list of steps: check, identify, authenticate, take over, resume or begin, answer, deliver.

All of it is one synchronous step unless somebody has to be asked who the client is (`authenticating`); so a takeover has no
race, and nobody waits for anybody.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import structs

from broker.core.admission import refusal_of, refuse, unserved
from broker.core.auth import AuthRequest
from broker.core.connack import CONNACK_NEW, CONNACK_PRESENT, connack
from broker.core.deadlines import KEEP_ALIVE
from broker.core.ending import close_link, drop_will, end_session, keep_will, leave
from broker.core.gates import gate, note
from broker.core.inflight import PACKET_ID_MAX
from broker.core.limits import outbox_mark
from broker.core.link import AUTHENTICATING, CONNECTED
from broker.core.mount import mounted_will
from broker.core.pumping import pump
from broker.core.rate import Rate
from broker.core.runs import OTHER_FORM_BYTES_MAX
from broker.core.session import Session, granted_expiry_s
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.framing import PACKET_BYTES_LARGEST
from broker.wire.packets import MQTT_5, MQTT_31, NO_PROPERTIES, Connect, PubRel

if TYPE_CHECKING:
    from broker.core.journal import Journal
    from broker.core.link import Link
    from broker.core.state import State


def on_connect(state: State, link: Link, packet: Connect, now: float) -> None:
    if link.mount_point and packet.will is not None:
        packet = structs.replace(packet, will=mounted_will(link.mount_point, packet.will))
    link.version = packet.version
    link.client_id = packet.client_id
    link.username = packet.username
    properties = packet.properties
    if properties is not NO_PROPERTIES:
        link.packet_bytes_max = properties.maximum_packet_size or PACKET_BYTES_LARGEST
        link.receive_maximum = properties.receive_maximum or PACKET_ID_MAX
    refusal = unserved(state, link, packet)
    if refusal is not None:
        refuse(state, link, *refusal)
        return
    method = properties.authentication_method
    if state.asks_authentication:
        link.phase = AUTHENTICATING
        link.auth_method = method
        link.auth = AuthRequest(packet.client_id, packet.username, packet.password, method, properties.authentication_data)
        link.auth.connect = packet
    elif method is not None:
        refuse(state, link, ReasonCode.BAD_AUTHENTICATION_METHOD, f"authentication method {method!r} is not supported")  # [MQTT5-4.12.0-1]
    else:
        accept(state, link, packet, now)


def accept(state: State, link: Link, packet: Connect, now: float, final_data: bytes | None = None) -> None:
    """It is known who the client is, or nobody asks: it gets its session and a CONNACK, unless there is no place for it."""
    if link.username is not None:
        link.limits = link.allowance.of(link.username)
    will = packet.will
    # Here, not when CONNECT came: others may have been let in while it was asked who this one is, and under which identifier it is served.
    refusal = refusal_of(state, link, will, now)
    if refusal is not None:
        refuse(state, link, *refusal)
        return
    if not link.client_id:
        link.client_id = state.new_client_id()  # [MQTT5-3.1.3-6]
        while link.client_id in state.sessions:
            link.client_id = state.new_client_id()
    access = link.access
    if will is not None and access.refuses_wills and not access.may(link.username, link.client_id, "publish", will.topic):
        refuse(state, link, ReasonCode.NOT_AUTHORIZED, f"the Will Topic {will.topic!r} is not allowed")
        return
    if will is not None and will.retain and not link.limits.retain_available:  # of 3.1.1, which has no word for that
        will = structs.replace(will, retain=False)
        state.observer.not_retained(link)
    session = state.sessions.get(link.client_id)
    if session is not None:
        session = _taken_over(state, link, session, packet, now)
    present = session is not None
    if session is None:
        session = Session(link.client_id, access, link.allowance, state.waiting, link.username, None, link.mount_point)
        state.sessions[link.client_id] = session
    expiry_s_max = link.limits.session_expiry_s_max
    if packet.version >= MQTT_5:
        session.expiry_s = granted_expiry_s(packet.properties.session_expiry_interval or 0, expiry_s_max)
    else:
        session.expiry_s = 0.0 if packet.clean_start else float(expiry_s_max)
    if will is not None:
        keep_will(state, session, will)
    session.link = link
    link.session = session
    link.phase = CONNECTED
    state.connected_count += 1
    if link.username is not None:
        state.users[link.username] = state.users.get(link.username, 0) + 1
    if state.journal is not None:
        _record(state, state.journal, session, link)
    _adopt_capabilities(link, packet, now)
    if _welcome(state, link, session, packet, present, final_data, now) and present:
        session.resume(link)
        for packet_id in session.sender.released:  # [MQTT5-4.4.0-1]
            state.send(link, encode(PubRel(packet_id), link.version))
        pump(state, link, now)


def _record(state: State, journal: Journal, session: Session, link: Link) -> None:
    """What is to outlive the process is written down before its client is told that it is there."""
    will = session.will
    if will is not None:
        journal.keep_will(session, link.listener)
    if session.record is None:
        if not session.lasts:
            if will is not None or session.client_id in journal.going:  # what it had has to be gone for good
                gate(state, link)
            return
        journal.begin(session, link.listener)
    record = session.record
    assert record is not None
    record.listener = link.listener
    record.left_at = math.inf
    note(state, session)


def _welcome(state: State, link: Link, session: Session, packet: Connect, present: bool, final_data: bytes | None, now: float) -> bool:
    """CONNACK, and from now on Keep Alive. False: the client has no room for one."""
    keep_alive_s = packet.keep_alive_s
    encoded: bytes | None
    if packet.version < MQTT_5:
        encoded = CONNACK_PRESENT if present and packet.version != MQTT_31 else CONNACK_NEW
    else:
        told_keep_alive = None  # its own holds [MQTT5-3.2.2-22]
        keep_alive_s_max = link.limits.keepalive_s_max
        if keep_alive_s_max < 65_535 and not 0 < keep_alive_s <= keep_alive_s_max:
            keep_alive_s = told_keep_alive = keep_alive_s_max  # [MQTT5-3.2.2-21]
        encoded = connack(state, link, session, packet, present, told_keep_alive, final_data)
    if encoded is None:
        # Nobody was told that it is connected: no DISCONNECT [MQTT5-3.14.0-1], and no Will.
        leave(state, link, now, "its Maximum Packet Size is too small for a CONNACK", error=True, discard_will=True)
        link.closing = True
        state.mark_ready(link)
        return False
    state.send(link, encoded)  # [MQTT5-3.2.0-1]
    link.keep_alive_s = float(keep_alive_s)
    state.stop_timer(link)  # for CONNECT to come
    if keep_alive_s:
        link.deadline = state.deadlines.add(now + keep_alive_s * 1.5, KEEP_ALIVE, link)
    if state.connected_count > state.counters.clients_maximum:
        state.counters.clients_maximum = state.connected_count
    state.observer.connected(link)
    return True


def _taken_over(state: State, link: Link, session: Session, packet: Connect, now: float) -> Session | None:
    """The session that is there, from another connection if need be; None if it is to begin anew."""
    if session.link is not None:
        close_link(state, session.link, ReasonCode.SESSION_TAKEN_OVER, f"its session was taken over from {link.peer}", now)  # [MQTT5-3.1.4-3]
    # A session belongs to the user who made it, and its topics to their mount point: another one with the same Client Identifier begins anew.
    stranger = session.username != link.username or session.mount_point != link.mount_point
    if packet.clean_start or stranger:
        end_session(state, session, now)  # [MQTT5-3.1.2-4]
    if session.ended:
        return None
    state.deadlines.cancel(session.expiry_deadline)
    session.expiry_deadline = None
    drop_will(state, session)  # [MQTT5-3.1.3-9]
    is_restored = session.record is not None and session.record.is_restored
    if session.record is not None:
        session.record.is_restored = False
    give_access(state, session, link, is_restored=is_restored)
    session.allowance = link.allowance
    return session


def _keep_permitted(state: State, session: Session) -> None:
    """Of what waits for it: that was put there by other rights."""
    queue = session.queue
    if queue.count and not session.access.allows_all:
        state.work += queue.count
        dropped = queue.keep_topics(session.may_receive)
        if dropped:
            state.count_dropped(session.client_id, "not-authorized", dropped)


def give_access(state: State, session: Session, link: Link, *, is_restored: bool = False) -> None:
    """A session may do what its link may: another one than before, if it came in by another listener, or with other rights of its own."""
    before = session.access
    if before is not link.access:
        session.access = link.access
        state.work += len(session.subscriptions) >> 4
        state.topics.forget_routes_to(session)
    if is_restored or before.own != link.access.own:
        _keep_permitted(state, session)


def _adopt_capabilities(link: Link, packet: Connect, now: float) -> None:
    limits = link.limits
    if link.promised is not limits:
        link.promised = limits
        link.decoder.packet_bytes_max = limits.packet_bytes_max
        link.outbox_bytes_high = outbox_mark(limits)
    wanted = packet.properties.topic_alias_maximum
    if wanted:
        aliases_max = min(wanted, limits.topic_alias_maximum)
        link.aliases_out_max = aliases_max  # [MQTT5-3.1.2-26, -27]
        link.aliases_out = {} if aliases_max else None
    _bound(link, now)


def follow_limits(link: Link, now: float) -> None:
    """They have changed while it is connected: what CONNACK did not promise follows."""
    bytes_high = outbox_mark(link.limits)
    if link.outbox.committed_bytes <= bytes_high + link.limits.outbox_bytes_max:  # else its next packet would end it (`receiving.process`)
        link.outbox_bytes_high = bytes_high
    _bound(link, now)


def _bound(link: Link, now: float) -> None:
    """How fast it may send, from what it has sent already on; and what may be passed to it, by its high mark and by what its client takes."""
    limits = link.limits
    if link.rate is not None:
        link.rate.use(limits)
    elif limits.publish_per_s_max or limits.receive_bytes_per_s_max:
        link.rate = Rate(limits, now)
        link.rate.hold(link.decoder.take_rest())
    if link.aliases_out is None:
        link.passing_bytes_max = min(link.outbox_bytes_high, link.packet_bytes_max + 1) - OTHER_FORM_BYTES_MAX
