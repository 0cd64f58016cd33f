"""CONNECT as a list of steps: check, identify, authenticate, take over, resume or begin, answer, deliver.

All of it is one synchronous step unless somebody has to be asked who the client is; so a takeover has no race, and
nobody waits for anybody. AUTH belongs here too: it is what happens between asking and answering.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import structs

from broker.core import incoming
from broker.core.auth import AuthRequest
from broker.core.deadlines import AUTHENTICATION_END, KEEP_ALIVE
from broker.core.delivery import pump
from broker.core.ending import close_link, drop_will, end_session, keep_will, leave, will_size
from broker.core.inflight import PACKET_ID_MAX
from broker.core.limits import outbox_mark
from broker.core.link import AUTHENTICATING, CONNECTED, ENDED, PACKET_BYTES_LARGEST
from broker.core.mount import mounted_will
from broker.core.rate import Rate
from broker.core.runs import OTHER_FORM_BYTES_MAX
from broker.core.session import Session
from broker.errors import ProtocolError
from broker.reasons import CONNACK_CODES, ReasonCode, to_connack_return_code
from broker.wire.codec import encode, encode_within
from broker.wire.packets import MQTT_5, MQTT_31, MQTT_311, NO_PROPERTIES, Auth, ConnAck, Connect, Properties, PubRel, WillMessage
from broker.wire.topics import topic_name_fault

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.limits import Limits
    from broker.core.link import Link
    from broker.core.state import State

CAUSE_LENGTH_MAX: Final = 256
CONNACK_NEW: Final = encode(ConnAck(False, ReasonCode.SUCCESS), MQTT_311)
CONNACK_PRESENT: Final = encode(ConnAck(True, ReasonCode.SUCCESS), MQTT_311)
UTF8_BYTES_MAX: Final = 4
"""Of one character."""
NEVER_EXPIRES: Final = 0xFFFF_FFFF
_REFUSALS: Final = {
    ReasonCode.BANNED: "it is banned",
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: "its user may not have this Client Identifier",
}


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
    refusal = _check(state, link, packet)
    if refusal is not None:
        refuse(state, link, *refusal, now)
        return
    method = properties.authentication_method
    if state.asks_authentication:
        link.phase = AUTHENTICATING
        link.auth_method = method
        link.auth = AuthRequest(packet.client_id, packet.username, packet.password, method, properties.authentication_data)
        link.auth.connect = packet
    elif method is not None:
        refuse(state, link, ReasonCode.BAD_AUTHENTICATION_METHOD, f"authentication method {method!r} is not supported", now)  # [MQTT5-4.12.0-1]
    else:
        accept(state, link, packet, now)


def _check(state: State, link: Link, packet: Connect) -> tuple[ReasonCode, str] | None:
    """What this broker, as it is configured, cannot serve, whoever asks for it; None if it can."""
    if state.shutting_down:
        return ReasonCode.SERVER_UNAVAILABLE, "the broker is shutting down"
    if link.refusal is not None:
        return link.refusal
    if not packet.client_id and not packet.clean_start and packet.version < MQTT_5:
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "an empty Client Identifier needs Clean Session 1"  # [MQTT311-3.1.3-8]
    bytes_max = link.limits.client_id_bytes_max
    if len(packet.client_id) * UTF8_BYTES_MAX > bytes_max and len(packet.client_id.encode()) > bytes_max:
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "the Client Identifier is too long"
    return None


def _check_will(state: State, link: Link, will: WillMessage) -> tuple[ReasonCode, str] | None:
    """What this client's limits, which are known when it is known, have no place for."""
    limits = link.limits
    if will.qos > limits.maximum_qos:
        return ReasonCode.QOS_NOT_SUPPORTED, f"Will QoS {will.qos} is above the maximum"  # [MQTT5-3.2.2-12]
    if will.retain and not limits.retain_available:
        return ReasonCode.RETAIN_NOT_SUPPORTED, "a retained Will is not supported"  # [MQTT5-3.2.2-13]
    fault = topic_name_fault(will.topic)  # it may have become too long
    if fault is not None or will.topic.startswith("$SYS/") or will.topic.count("/") >= limits.filter_levels_max:
        return ReasonCode.TOPIC_NAME_INVALID, f"the Will Topic {will.topic!r} is not for clients"
    session = state.sessions.get(link.client_id)
    size = will_size(will)
    if state.over_memory_for_wills(size, size if session is None or session.will is None else size - will_size(session.will)):
        return ReasonCode.QUOTA_EXCEEDED, "the Wills of all clients take as much memory as they may"
    return None


def _check_user(state: State, link: Link) -> tuple[ReasonCode, str] | None:
    """One more client of this user; the one that it takes over from makes room."""
    count_max = link.limits.connections_per_user_max
    if not count_max or link.username is None:
        return None
    count = state.users.get(link.username, 0)
    if count >= count_max:
        session = state.sessions.get(link.client_id)
        if session is not None and session.link is not None and session.link.username == link.username:
            count -= 1
    return (ReasonCode.QUOTA_EXCEEDED, f"its user has {count} clients connected already") if count >= count_max else None


def _check_pace(state: State, link: Link, now: float) -> tuple[ReasonCode, str] | None:
    """One more connect of this Client Identifier. Asked of those only who have shown who they are, and counted for each user, so that nobody
    can use up what another's may."""
    per_s = link.limits.connects_per_client_id_per_s_max
    if not per_s or not link.client_id:
        return None
    if state.connects.take(f"{link.username or ''}\0{link.client_id}", per_s, link.limits.connects_per_client_id_burst_max, now):
        return None
    cause = f"its Client Identifier connects more often than {per_s:g} times a second: do two devices have the same one?"
    return ReasonCode.CONNECTION_RATE_EXCEEDED, cause


def refuse(state: State, link: Link, reason: ReasonCode, cause: str, now: float) -> None:
    """CONNACK with the reason where this version has one [MQTT5-3.1.4-2] [MQTT311-3.2.2-6], then close; nothing after it counts.

    A peer that has sent no CONNECT is told nothing.
    """
    cause = cause[:CAUSE_LENGTH_MAX]  # it may quote what the peer sent, of any length
    packet: bytes | None = None
    if link.is_mqtt_5:
        if reason in CONNACK_CODES:
            explanation = Properties(reason_string=cause)
            packet = encode_within(ConnAck(False, reason, explanation), link.version, link.packet_bytes_max)  # [MQTT5-3.2.2-19]
    elif link.version and to_connack_return_code(reason) is not None:
        packet = encode(ConnAck(False, reason), link.version)
    if packet is not None:
        state.send(link, packet)
    link.cause = cause
    link.error = True
    if link.auth is not None:
        link.auth.end()
    link.phase = ENDED
    if link.receiving_bytes:
        incoming.abandon(state, link)
    state.stop_timer(link)
    link.closing = True
    state.mark_ready(link)
    state.observer.refused(link, reason, cause)


def waits_for_us(link: Link) -> bool:
    """Is it asked of us, and not of the client, who that is?"""
    return link.auth is not None and not link.auth.done and not link.auth.challenged


def time_out(state: State, link: Link, now: float) -> None:
    """It is not connected, and should be by now. Where it waits for an answer of ours it may well come again, which 0x87 would tell it not to."""
    refuse(state, link, ReasonCode.SERVER_UNAVAILABLE if waits_for_us(link) else ReasonCode.NOT_AUTHORIZED, "it was not connected in time", now)


def accept(state: State, link: Link, packet: Connect, now: float, final_data: bytes | None = None) -> None:
    limits = link.limits
    will = packet.will
    refusal = None
    if link.username is not None:
        limits = link.limits = link.allowance.of(link.username)
    # Here, not when CONNECT came: others may have been let in while it was asked who this one is, and under which identifier it is served.
    if len(state.sessions) >= state.limits.sessions_count_max and link.client_id not in state.sessions:
        refusal = ReasonCode.QUOTA_EXCEEDED, "there are too many sessions"
    elif will is not None:
        refusal = _check_will(state, link, will)
    if refusal is None and link.username is not None:
        refusal = _check_user(state, link)
    if refusal is None and limits.connects_per_client_id_per_s_max:
        refusal = _check_pace(state, link, now)
    if refusal is not None:
        refuse(state, link, *refusal, now)
        return
    assigned = not packet.client_id
    if not link.client_id:
        link.client_id = state.new_client_id()  # [MQTT5-3.1.3-6]
        while link.client_id in state.sessions:
            link.client_id = state.new_client_id()
    access = link.access
    if will is not None and access.refuses_wills and not access.may(link.username, link.client_id, "publish", will.topic):
        refuse(state, link, ReasonCode.NOT_AUTHORIZED, f"the Will Topic {will.topic!r} is not allowed", now)
        return
    session = state.sessions.get(link.client_id)
    if session is not None:
        session = _taken_over(state, link, session, packet, now)
    present = session is not None
    if session is None:
        session = Session(link.client_id, access, link.allowance, state.waiting, link.username, None, link.mount_point)
        state.sessions[link.client_id] = session
    expiry_s = _session_expiry_s(limits, packet)
    session.expiry_s = expiry_s
    if will is not None:
        keep_will(state, session, will)
    session.link = link
    link.session = session
    link.phase = CONNECTED
    _adopt_capabilities(link, packet, now)
    keep_alive_s = float(packet.keep_alive_s)
    encoded: bytes | None = CONNACK_PRESENT if present and packet.version != MQTT_31 else CONNACK_NEW
    if packet.version >= MQTT_5:
        server_keep_alive = _server_keep_alive(limits, packet)
        if server_keep_alive is not None:
            keep_alive_s = float(server_keep_alive)
        encoded = _connack(state, link, packet, present, expiry_s, server_keep_alive, assigned, final_data)
    state.connected_count += 1
    if link.username is not None:
        state.users[link.username] = state.users.get(link.username, 0) + 1
    if encoded is None:
        # Nobody was told that it is connected: no DISCONNECT [MQTT5-3.14.0-1], and no Will.
        leave(state, link, now, "its Maximum Packet Size is too small for a CONNACK", error=True, discard_will=True)
        link.closing = True
        state.mark_ready(link)
        return
    state.send(link, encoded)  # [MQTT5-3.2.0-1]
    link.keep_alive_s = keep_alive_s
    state.stop_timer(link)  # for CONNECT to come
    if keep_alive_s:
        link.deadline = state.deadlines.add(now + keep_alive_s * 1.5, KEEP_ALIVE, link)
    if state.connected_count > state.counters.clients_maximum:
        state.counters.clients_maximum = state.connected_count
    state.observer.connected(link)
    if present:
        session.resume(link)
        for packet_id in session.sender.released:  # [MQTT5-4.4.0-1]
            state.send(link, encode(PubRel(packet_id), link.version))
        pump(state, link, now)


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
    _give_access(state, session, link)
    session.allowance = link.allowance
    return session


def _give_access(state: State, session: Session, link: Link) -> None:
    """A session may do what its link may: another one than before, if it came in by another listener, or with other rights of its own."""
    if session.access is not link.access:
        session.access = link.access
        state.work += len(session.subscriptions) >> 4
        state.topics.forget_routes_to(session)


def _session_expiry_s(limits: Limits, packet: Connect) -> float:
    limit = limits.session_expiry_s_max
    if packet.version < MQTT_5:
        return 0.0 if packet.clean_start else float(limit)
    wanted = packet.properties.session_expiry_interval or 0
    return float(min(wanted, limit)) if limit < NEVER_EXPIRES or wanted < NEVER_EXPIRES else math.inf


def _server_keep_alive(limits: Limits, packet: Connect) -> int | None:
    """What a 5.0 client is told to use instead of its own [MQTT5-3.2.2-21]; None: that holds [MQTT5-3.2.2-22]."""
    limit = limits.keepalive_s_max
    return limit if limit < 65_535 and not 0 < packet.keep_alive_s <= limit else None


def limit_rate(link: Link, now: float) -> None:
    """Hold it to its rate, from what it has sent already on."""
    limits = link.limits
    if link.rate is not None:
        link.rate.use(limits)
    elif limits.publish_per_s_max or limits.receive_bytes_per_s_max:
        link.rate = Rate(limits, now)
        link.rate.hold(link.decoder.take_rest())


def follow_limits(link: Link, now: float) -> None:
    """They have changed while it is connected: what CONNACK did not promise follows."""
    limits = link.limits
    bytes_high = outbox_mark(limits)
    if link.outbox.committed_bytes <= bytes_high + limits.outbox_bytes_max:  # else its next packet would end it (`receiving.process`)
        link.outbox_bytes_high = bytes_high
        _bound_passing(link)
    limit_rate(link, now)


def _bound_passing(link: Link) -> None:
    """By its high mark, and by what its client takes."""
    if link.aliases_out is None:
        link.passing_bytes_max = min(link.outbox_bytes_high, link.packet_bytes_max + 1) - OTHER_FORM_BYTES_MAX


def _adopt_capabilities(link: Link, packet: Connect, now: float) -> None:
    limits = link.limits
    if link.promised is not limits:
        link.promised = limits
        link.decoder.packet_bytes_max = limits.packet_bytes_max
        link.outbox_bytes_high = outbox_mark(limits)
    limit_rate(link, now)
    wanted = packet.properties.topic_alias_maximum
    if wanted:
        aliases_max = min(wanted, limits.topic_alias_maximum)
        link.aliases_out_max = aliases_max  # [MQTT5-3.1.2-26, -27]
        link.aliases_out = {} if aliases_max else None
    _bound_passing(link)


def _connack(
    state: State,
    link: Link,
    packet: Connect,
    present: bool,
    expiry_s: float,
    server_keep_alive: int | None,
    assigned: bool,
    final_data: bytes | None,
) -> bytes | None:
    """For 5.0; None if it is larger than the client takes. Where nothing in it is this client's alone, it is encoded once for all."""
    wanted = packet.properties.session_expiry_interval or 0
    told: int | None = NEVER_EXPIRES if expiry_s == math.inf else int(expiry_s)
    if told == wanted:
        told = None
    wants_information = packet.properties.request_response_information == 1  # [MQTT5-3.1.2-28]
    own = assigned or wants_information or link.auth_method is not None
    key = (present, told, server_keep_alive)
    if not own:
        if state.connacks_of is not link.promised:
            state.connacks_of = link.promised
            state.connacks = {}
        encoded = state.connacks.get(key)
        if encoded is not None and len(encoded) <= link.packet_bytes_max:
            return encoded
    properties = _connack_properties(state, link, told, server_keep_alive, assigned, wants_information, final_data)
    encoded = encode_within(ConnAck(present, ReasonCode.SUCCESS, properties), MQTT_5, link.packet_bytes_max)
    if encoded is not None and not own:
        state.connacks[key] = encoded  # few: what is told is a limit's, or nothing
    return encoded


def _connack_properties(
    state: State,
    link: Link,
    told_expiry: int | None,
    server_keep_alive: int | None,
    assigned: bool,
    wants_information: bool,
    final_data: bytes | None,
) -> Properties:
    """What the client has to know; what is at its protocol default is left out."""
    limits = link.promised
    return Properties(
        session_expiry_interval=told_expiry,
        receive_maximum=limits.receive_maximum if limits.receive_maximum < 65_535 else None,
        maximum_qos=limits.maximum_qos if limits.maximum_qos < 2 else None,  # [MQTT5-3.2.2-9]
        retain_available=None if limits.retain_available else 0,
        maximum_packet_size=limits.packet_bytes_max if limits.packet_bytes_max < PACKET_BYTES_LARGEST else None,
        assigned_client_identifier=link.client_id if assigned else None,  # [MQTT5-3.2.2-16]
        topic_alias_maximum=limits.topic_alias_maximum or None,
        wildcard_subscription_available=None if limits.wildcard_subscription_available else 0,
        subscription_identifier_available=None if limits.subscription_identifier_available else 0,
        shared_subscription_available=None if limits.shared_subscription_available else 0,
        server_keep_alive=server_keep_alive,
        response_information=(state.response_information or None) if wants_information else None,
        authentication_method=link.auth_method,  # [MQTT5-4.12.0-5]
        authentication_data=final_data if link.auth_method is not None else None,
    )


# ---- AUTH (MQTT 5.0, 4.12) ----


def on_auth(state: State, link: Link, packet: Auth, now: float) -> None:
    properties = packet.properties
    if link.auth_method is None:
        raise ProtocolError("AUTH, but its CONNECT had no Authentication Method")  # [MQTT5-4.12.0-7]
    if properties.authentication_method != link.auth_method:
        raise ProtocolError("AUTH with another Authentication Method than its CONNECT's")  # [MQTT5-4.12.0-5]
    request = link.auth
    if packet.reason == ReasonCode.CONTINUE_AUTHENTICATION:  # [MQTT5-4.12.0-3]
        if request is None or not request.challenged:  # or that has been answered, which nobody would look at before the next challenge
            raise ProtocolError("an AUTH that nobody asked for")
        answer = properties.authentication_data or b""
        request.answers.append(answer)
        request.answer_bytes = len(answer)
        request.challenged = False
    elif packet.reason == ReasonCode.REAUTHENTICATE and link.phase == CONNECTED:  # [MQTT5-4.12.1-1]
        if request is not None and not request.done:
            raise ProtocolError("AUTH asks to re-authenticate while that is under way")
        request = AuthRequest(link.client_id, link.username, None, link.auth_method, properties.authentication_data, reauthentication=True)
        request.asked_bytes = len(request.data or b"")
        link.auth = request
    else:
        raise ProtocolError(f"AUTH with {packet.reason.describe()} from a client")
    incoming.count(state, link)
    state.mark_ready(link)


def challenge(state: State, link: Link, data: bytes, now: float) -> None:
    """Ask the client for more: AUTH 0x18 [MQTT5-4.12.0-2]."""
    if link.phase in (AUTHENTICATING, CONNECTED) and link.auth_method is not None:
        if link.auth is not None:
            link.auth.challenged = True
        properties = Properties(authentication_method=link.auth_method, authentication_data=data)
        _send_auth(state, link, Auth(ReasonCode.CONTINUE_AUTHENTICATION, properties), now)


def _send_auth(state: State, link: Link, packet: Auth, now: float) -> None:
    """One that the client has no room for [MQTT5-3.1.2-24] cannot be left out either: without it nobody would know how it stands."""
    encoded = encode_within(packet, link.version, link.packet_bytes_max)
    if encoded is not None:
        state.send(link, encoded)
    elif link.phase == CONNECTED:
        close_link(state, link, ReasonCode.PACKET_TOO_LARGE, "its Maximum Packet Size is too small for an AUTH", now)
    else:
        refuse(state, link, ReasonCode.PACKET_TOO_LARGE, "its Maximum Packet Size is too small for an AUTH", now)


def authenticated(
    state: State,
    link: Link,
    username: str | None,
    now: float,
    refused: ReasonCode | None,
    data: bytes | None,
    ends_at: float,
    access: Access | None,
    client_id: str,
) -> None:
    """The answer to the question in `link.auth`: who the client is, or why it may not come in. A late answer does nothing."""
    request = link.auth
    if request is None or request.done:
        return
    packet = request.connect
    request.end()
    link.auth = None
    if link.receiving_bytes:
        incoming.count(state, link)
    if request.reauthentication:
        if refused is not None:
            close_link(state, link, refused, "re-authentication failed", now)  # [MQTT5-4.12.1-2]
        elif username != link.username:  # its session and its permissions are the other's
            close_link(state, link, ReasonCode.NOT_AUTHORIZED, "it re-authenticated as another user", now)
        else:
            properties = Properties(authentication_method=link.auth_method, authentication_data=data)
            _send_auth(state, link, Auth(ReasonCode.SUCCESS, properties), now)
            _authenticate_until(state, link, ends_at, access)
    elif refused is not None:
        nameless = refused == ReasonCode.NOT_AUTHORIZED and request.username is None and request.method is None
        cause = "it gave no user name" if nameless else _REFUSALS.get(refused, "authentication failed")
        refuse(state, link, refused, cause, now)  # [MQTT5-4.12.0-4]
    else:
        link.username = username
        link.access = access or link.access
        link.client_id = client_id or link.client_id
        assert packet is not None
        accept(state, link, packet, now, data)
        _authenticate_until(state, link, ends_at, access)


def _authenticate_until(state: State, link: Link, ends_at: float, access: Access | None) -> None:
    state.deadlines.cancel(link.auth_deadline)
    link.auth_deadline = None
    session = link.session
    if session is None:  # refused after all
        return
    if ends_at < math.inf:
        link.auth_deadline = state.deadlines.add(ends_at, AUTHENTICATION_END, link)
    if access is not None and link.access is not access:
        link.access = access
        link.known_topics = {}
        _give_access(state, session, link)


def on_disconnect(state: State, link: Link, reason: ReasonCode, properties: Properties, now: float) -> None:
    session = link.session
    expiry = properties.session_expiry_interval
    if session is not None and expiry is not None:
        if expiry > 0 and not session.lasts:
            raise ProtocolError("DISCONNECT sets a Session Expiry Interval, where CONNECT had none")  # not a valid DISCONNECT (3.14.2.2.2)
        limit = link.limits.session_expiry_s_max
        session.expiry_s = float(min(expiry, limit)) if limit < NEVER_EXPIRES or expiry < NEVER_EXPIRES else math.inf
    normal = reason == ReasonCode.SUCCESS
    leave(state, link, now, "it disconnected" if normal else f"it disconnected: {reason.describe()}", error=not normal, discard_will=normal)
    link.closing = True
    state.mark_ready(link)
