"""What a client is told when it is let in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core.session import NEVER_EXPIRES, Session
from broker.reasons import ReasonCode
from broker.wire.codec import encode, encode_within
from broker.wire.framing import PACKET_BYTES_LARGEST
from broker.wire.packets import MQTT_5, MQTT_311, ConnAck, Connect, Properties

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

CONNACK_NEW: Final = encode(ConnAck(False, ReasonCode.SUCCESS), MQTT_311)
CONNACK_PRESENT: Final = encode(ConnAck(True, ReasonCode.SUCCESS), MQTT_311)


def connack(
    state: State, link: Link, session: Session, packet: Connect, present: bool, told_keep_alive: int | None, final_data: bytes | None
) -> bytes | None:
    """For 5.0; None if it is larger than the client takes. told_keep_alive: to be used instead of its own.

    Where nothing in it is this client's alone, it is encoded once for all."""
    wanted = packet.properties.session_expiry_interval or 0
    told_expiry: int | None = NEVER_EXPIRES if session.expiry_s == math.inf else int(session.expiry_s)
    if told_expiry == wanted:
        told_expiry = None
    assigned = not packet.client_id
    wants_information = packet.properties.request_response_information == 1  # [MQTT5-3.1.2-28]
    own = assigned or wants_information or link.auth_method is not None
    key = (present, told_expiry, told_keep_alive)
    if not own:
        if state.connacks_of is not link.promised:
            state.connacks_of = link.promised
            state.connacks = {}
        encoded = state.connacks.get(key)
        if encoded is not None and len(encoded) <= link.packet_bytes_max:
            return encoded
    properties = _properties(state, link, told_expiry, told_keep_alive, assigned, wants_information, final_data)
    encoded = encode_within(ConnAck(present, ReasonCode.SUCCESS, properties), MQTT_5, link.packet_bytes_max)
    if encoded is not None and not own:
        state.connacks[key] = encoded  # few: what is told is a limit's, or nothing
    return encoded


def _properties(
    state: State,
    link: Link,
    told_expiry: int | None,
    told_keep_alive: int | None,
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
        server_keep_alive=told_keep_alive,
        response_information=(state.response_information or None) if wants_information else None,
        authentication_method=link.auth_method,  # [MQTT5-4.12.0-5]
        authentication_data=final_data if link.auth_method is not None else None,
    )
