"""Between asking who a client is and answering it: AUTH (MQTT 5.0, 4.12), the surroundings' verdict, and the end of what it showed.

The question itself is `core.auth`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from broker.core import incoming
from broker.core.admission import refuse
from broker.core.auth import AuthRequest
from broker.core.connect import accept, give_access
from broker.core.deadlines import AUTHENTICATION_END
from broker.core.ending import close_link
from broker.core.gates import note
from broker.core.link import AUTHENTICATING, CONNECTED
from broker.errors import ProtocolError
from broker.reasons import ReasonCode
from broker.wire.codec import encode_within
from broker.wire.packets import Auth, Properties

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.link import Link
    from broker.core.state import State

_REFUSALS: Final = {
    ReasonCode.BANNED: "it is banned",
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: "its user may not have this Client Identifier",
}


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
    link.goes_on = True
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
        refuse(state, link, ReasonCode.PACKET_TOO_LARGE, "its Maximum Packet Size is too small for an AUTH")


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
        refuse(state, link, refused, cause)  # [MQTT5-4.12.0-4]
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
        give_access(state, session, link)
        note(state, session)
        if state.journal is not None:
            state.journal.touch_will(session)
