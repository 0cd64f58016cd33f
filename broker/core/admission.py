"""Who is let in, and who is not: what a CONNECT is refused for, and how that is said.

Some of it is known when CONNECT comes; what belongs to a user only when it is known who that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core import incoming
from broker.core.access import is_bridge_state
from broker.core.ending import will_size
from broker.core.link import ENDED
from broker.reasons import CONNACK_CODES, ReasonCode, to_connack_return_code
from broker.wire.codec import encode, encode_within
from broker.wire.packets import MQTT_5, MQTT_31, ConnAck, Connect, Properties, WillMessage
from broker.wire.topics import topic_name_fault

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

CAUSE_LENGTH_MAX: Final = 256
UTF8_BYTES_MAX: Final = 4
"""Of one character."""


def unserved(state: State, link: Link, packet: Connect) -> tuple[ReasonCode, str] | None:
    """What this broker, as it is configured, cannot serve, whoever asks for it; None if it can."""
    if state.shutting_down:
        return ReasonCode.SERVER_UNAVAILABLE, "the broker is shutting down"
    if link.refusal is not None:
        return link.refusal
    if not packet.client_id and packet.version == MQTT_31:
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "MQTT 3.1 has no empty Client Identifier"
    if not packet.client_id and not packet.clean_start and packet.version < MQTT_5:
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "an empty Client Identifier needs Clean Session 1"  # [MQTT311-3.1.3-8]
    bytes_max = link.limits.client_id_bytes_max
    if len(packet.client_id) * UTF8_BYTES_MAX > bytes_max and len(packet.client_id.encode()) > bytes_max:
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "the Client Identifier is too long"
    return None


def refusal_of(state: State, link: Link, will: WillMessage | None, now: float) -> tuple[ReasonCode, str] | None:
    """What there is no place for, of a client that is known by now; None if there is."""
    if state.reserved and state.reserved.get(link.client_id, link.listener) != link.listener:
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "this Client Identifier is reserved for a bridge of this broker"
    if len(state.sessions) >= state.limits.sessions_count_max and link.client_id not in state.sessions:
        return ReasonCode.QUOTA_EXCEEDED, "there are too many sessions"
    refusal = None
    if will is not None:
        refusal = _check_will(state, link, will)
    if refusal is None and link.username is not None:
        refusal = _check_user(state, link)
    if refusal is None and link.limits.connects_per_client_id_per_s_max:
        refusal = _check_pace(state, link, now)
    return refusal


def _check_will(state: State, link: Link, will: WillMessage) -> tuple[ReasonCode, str] | None:
    """What this client's limits, which are known when it is known, have no place for."""
    limits = link.limits
    if will.qos > limits.maximum_qos:
        return ReasonCode.QOS_NOT_SUPPORTED, f"Will QoS {will.qos} is above the maximum"  # [MQTT5-3.2.2-12]
    if will.retain and not limits.retain_available and link.is_mqtt_5:
        return ReasonCode.RETAIN_NOT_SUPPORTED, "a retained Will is not supported"  # [MQTT5-3.2.2-13]
    fault = topic_name_fault(will.topic)  # it may have become too long
    is_the_brokers = will.topic.startswith("$SYS/") and not is_bridge_state(will.topic)
    if fault is not None or is_the_brokers or will.topic.count("/") >= limits.filter_levels_max:
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


def refuse(state: State, link: Link, reason: ReasonCode, cause: str) -> None:
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


def time_out(state: State, link: Link) -> None:
    """It is not connected, and should be by now. Where it waits for an answer of ours it may well come again, which 0x87 would tell it not to."""
    refuse(state, link, ReasonCode.SERVER_UNAVAILABLE if waits_for_us(link) else ReasonCode.NOT_AUTHORIZED, "it was not connected in time")
