"""What a peer's bytes lead to: frames, the packets in them, their handlers; and the answer to whoever breaks the protocol.

The hot paths take what is ordinary where it stands (`relay`, `exchange`); all else is decoded and handled packet by packet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.core import incoming, pausing
from broker.core.admission import refuse, waits_for_us
from broker.core.authenticating import on_auth
from broker.core.connect import on_connect
from broker.core.ending import close_link, leave, on_disconnect
from broker.core.exchange import exchange
from broker.core.link import AUTHENTICATING, AWAITING_CONNECT, CONNECTED, ENDED
from broker.core.publish import on_puback, on_pubcomp, on_publish, on_pubrec, on_pubrel
from broker.core.relay import relay
from broker.core.retaining import retain
from broker.core.strangers import other_than_mqtt
from broker.core.subscribe import on_subscribe, on_unsubscribe, subscribe_alike
from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.reasons import CLIENT_DISCONNECT_CODES, ReasonCode
from broker.wire.codec import decode
from broker.wire.packets import (
    AUTH,
    CONNECT,
    DISCONNECT,
    MQTT_5,
    MQTT_311,
    PINGREQ,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Connect,
    Disconnect,
    PingReq,
)  # fmt: skip
from broker.wire.primitives import read_varint

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.rate import Rate
    from broker.core.state import State

_OVERLONG: Final = "Remaining Length is not in its shortest form"  # [MQTT5-1.5.5-1]
PINGRESP_BYTES: Final = b"\xd0\x00"
SILENT_S: Final = 1.0
"""Whoever has sent nothing for so long in the middle of a packet gives way before those who go on sending."""
_SUBSCRIBE_BYTE: Final = 0x82
PACKET_WORK: Final = 16
"""A packet that goes the general way costs as much as so many deliveries."""
TURN_BYTES: Final = 131_072
"""What others may add to an outbox that was just below its mark, relaying one read's worth; that is no fault of its client's."""


def process(state: State, link: Link, now: float) -> bool:
    """What its decoder has been fed, up to the budget. True: there is more. Raises PeerError."""
    decoder = link.decoder
    if link.phase == AWAITING_CONNECT and not _begin(state, link, now):
        return False
    work_max = state.work_max
    while not link.closing and not link.paused:
        if state.work >= work_max:
            return True
        phase = link.phase
        if phase == CONNECTED:
            session = link.session
            assert session is not None
            if not relay(state, link, now):
                continue
            if decoder.is_drained():
                return False
            if not exchange(state, link, session, now):
                continue
        elif phase == AUTHENTICATING and link.auth_method is None:
            # Plain authentication: what the client sends ahead is kept, bounded, and not looked at [MQTT5-3.1.4-6].
            if decoder.buffered_bytes > link.limits.unauthenticated_bytes_max:
                raise ProtocolError("too much was sent ahead of CONNACK", ReasonCode.QUOTA_EXCEEDED)
            decoder.is_drained()
            return False
        if link.outbox.committed_bytes > link.outbox_bytes_high + link.limits.outbox_bytes_max + TURN_BYTES:
            raise ProtocolError("it asks for more answers than it reads", ReasonCode.QUOTA_EXCEEDED)
        if phase == CONNECTED and retain(state, link, now):
            continue
        frame = decoder.next_frame()
        if frame is None:
            return False
        state.counters.packets_received += 1
        state.work += PACKET_WORK
        _handle(state, link, frame[0], frame[1], now)
        if decoder.is_drained():
            return False
    return False


def _begin(state: State, link: Link, now: float) -> bool:
    """With CONNECT, and nothing else. Has it come, and something behind it?"""
    decoder = link.decoder
    data = decoder.data  # from its beginning: nothing was given out yet
    size = len(data)
    if size and data[0] >> 4 != CONNECT:
        raise ProtocolError("the first packet is not CONNECT")  # [MQTT5-3.1.0-1], seen before the rest of it is waited for
    if 2 <= size < 0x82 and data[1] == size - 2 and size <= decoder.packet_bytes_max:  # alone in its read, as it mostly is
        decoder.data = b""
        _connect(state, link, data[0], data[2:], False, now)
        return False
    frame = decoder.next_frame()
    if frame is None:
        return False
    _connect(state, link, frame[0], frame[1], decoder.overlong, now)
    return not decoder.is_drained()


def _connect(state: State, link: Link, first_byte: int, body: bytes, overlong: bool, now: float) -> None:
    state.counters.packets_received += 1
    state.work += 1
    try:
        if len(body) > link.limits.control_bytes_max:
            raise ProtocolError(f"a packet of {len(body)} bytes that is no PUBLISH", ReasonCode.PACKET_TOO_LARGE)
        packet = decode(first_byte, body, 0)
        assert isinstance(packet, Connect)
        if overlong and packet.version >= MQTT_5:
            raise MalformedPacket(_OVERLONG)
    except PeerError:
        link.version = _announced_version(body)  # for the refusal
        raise
    on_connect(state, link, packet, now)
    if link.auth is not None:
        link.auth.asked_bytes = len(body)
        incoming.count(state, link)  # and who gives way is seen to at the end of the verb


def paced(state: State, link: Link, rate: Rate, more: bool, published: int, now: float) -> bool:
    """Go on, piece by piece, with what a link with a rate has sent, until that is used up; then hold it up."""
    while True:
        rate.spend(state.counters.publish_received - published)
        if more or link.paused or link.closing:
            return more
        if not rate.holds:
            return False
        wait_s = rate.wait_s(now)
        if wait_s:
            if link.limits.disconnect_above_rate:
                close_link(state, link, ReasonCode.MESSAGE_RATE_TOO_HIGH, "it sends faster than it may", now)
            else:
                pausing.hold_up(state, link, rate, wait_s, now)
            return False
        published = state.counters.publish_received
        link.decoder.feed(rate.next_piece(link.decoder.missing_bytes))
        more = process(state, link, now)


def _handle(state: State, link: Link, first_byte: int, body: bytes, now: float) -> None:
    kind = first_byte >> 4
    phase = link.phase
    if link.version >= MQTT_5 and link.decoder.overlong:
        raise MalformedPacket(_OVERLONG)
    if phase == AUTHENTICATING and kind not in (AUTH, DISCONNECT):
        raise ProtocolError("only AUTH and DISCONNECT may come before CONNACK")  # [MQTT5-3.1.2-30]
    limits = link.limits
    if kind != PUBLISH:
        if len(body) > limits.control_bytes_max:
            raise ProtocolError(f"a packet of {len(body)} bytes that is no PUBLISH", ReasonCode.PACKET_TOO_LARGE)
    elif len(body) > limits.properties_bytes_max and link.version >= MQTT_5:
        _check_properties_length(first_byte, body, limits.properties_bytes_max)
    if first_byte == _SUBSCRIBE_BYTE and phase == CONNECTED and len(body) >= 6 and subscribe_alike(state, link, body):
        return
    packet = decode(first_byte, body, link.version)
    handler = _HANDLERS[kind]
    if handler is None:
        raise ProtocolError(f"{type(packet).__name__} is not for a client to send")
    handler(state, link, packet, now)


def violation(state: State, link: Link, error: PeerError, now: float) -> None:
    """Answer what the peer did wrong with its reason, and close."""
    cause = str(error)
    if link.phase == AWAITING_CONNECT:
        cause = other_than_mqtt(link.decoder.data) or cause
    state.observer.violation(link, cause)
    if link.phase == CONNECTED:
        close_link(state, link, error.reason, cause, now)
    elif link.phase == AWAITING_CONNECT and not _answers_bad_connect(link, error):
        leave(state, link, now, cause, error=True)
        link.closing = True
        state.mark_ready(link)
    elif link.phase != ENDED:
        refuse(state, link, error.reason, cause)


def make_room(state: State, now: float) -> None:
    """Packets that are coming in take too much: end those who hold the most, first of those who have fallen silent, and never the last one.

    Until an eighth of the share is free, so that the next look at every link comes only after so much more was sent.
    """
    account = state.waiting
    room_at = state.receiving_bytes_max // 8 * 7
    large = [link for link in state.links if link.receiving_bytes > incoming.FREE_BYTES and not link.closing]
    large.sort(key=lambda link: (link.paused or waits_for_us(link) or link.last_received_at + SILENT_S > now, -link.receiving_bytes))
    for link in large[:-1]:
        if account.receiving_bytes <= room_at:
            break
        cause = (
            f"it holds {link.receiving_bytes} bytes that are not worked through, and all such together {account.receiving_bytes}: "
            "more than their share of memory_bytes_max"
        )
        incoming.leave_account(state, link)
        if link.phase == CONNECTED:
            close_link(state, link, ReasonCode.QUOTA_EXCEEDED, cause, now)
        else:
            refuse(state, link, ReasonCode.QUOTA_EXCEEDED, cause)


def _check_properties_length(first_byte: int, body: bytes, bytes_max: int) -> None:
    """Of a PUBLISH, read where it stands; what is malformed there is the decoder's to say."""
    position = 2 + (body[0] << 8 | body[1]) + (2 if first_byte & 0x06 else 0)
    try:
        length = read_varint(body, position)[0]
    except MalformedPacket:
        return
    if length > bytes_max:
        raise ProtocolError(f"a PUBLISH with {length} bytes of properties", ReasonCode.PACKET_TOO_LARGE)


def _announced_version(body: bytes) -> int:
    """The protocol level of a CONNECT, as far as it can be seen; 0 if it is none. It decides how a refusal is written."""
    if body[:7] == b"\x00\x04MQTT\x04":
        return MQTT_311
    if body[:6] == b"\x00\x04MQTT" and len(body) > 6:
        return MQTT_5 if body[6] & 0x7F >= MQTT_5 else MQTT_311  # a bridge of Mosquitto's first sets the highest bit; told 0x01, it does not
    return MQTT_311 if body[:8] == b"\x00\x06MQIsdp" else 0


def _answers_bad_connect(link: Link, error: PeerError) -> bool:
    """A CONNECT that is not one ends without an answer in 3.1.1 [MQTT311-3.1.4-1], save for an unknown level [MQTT311-3.1.2-2]; 5.0 says why."""
    return link.version >= MQTT_5 or (link.version > 0 and error.reason == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)


# ---- one handler a packet type ----


def _on_ping(state: State, link: Link, packet: PingReq, now: float) -> None:
    state.send(link, PINGRESP_BYTES)  # [MQTT5-3.12.4-1]


def _on_second_connect(state: State, link: Link, packet: Any, now: float) -> None:
    raise ProtocolError("a second CONNECT")  # [MQTT5-3.1.0-2]


def _on_disconnect(state: State, link: Link, packet: Disconnect, now: float) -> None:
    if packet.reason not in CLIENT_DISCONNECT_CODES:
        raise ProtocolError(f"DISCONNECT with {packet.reason.describe()} from a client")  # [MQTT5-3.14.2-1]
    if packet.properties.server_reference is not None:
        raise ProtocolError("DISCONNECT with a Server Reference from a client")  # only a server sends one (3.14.2.2.5)
    on_disconnect(state, link, packet.reason, packet.properties, now)


_HANDLERS: Final[list[Callable[[State, Link, Any, float], None] | None]] = [None] * 16
_HANDLERS[CONNECT] = _on_second_connect
_HANDLERS[PUBLISH] = on_publish
_HANDLERS[PUBACK] = on_puback
_HANDLERS[PUBREC] = on_pubrec
_HANDLERS[PUBREL] = on_pubrel
_HANDLERS[PUBCOMP] = on_pubcomp
_HANDLERS[SUBSCRIBE] = on_subscribe
_HANDLERS[UNSUBSCRIBE] = on_unsubscribe
_HANDLERS[PINGREQ] = _on_ping
_HANDLERS[DISCONNECT] = _on_disconnect
_HANDLERS[AUTH] = on_auth
