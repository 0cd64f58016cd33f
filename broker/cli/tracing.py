"""`-d`: one line a packet on stderr, in Mosquitto's words; `-dd`: its bytes too, with what is secret masked."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

from broker.wire import packets

_ROW: Final = 16
_BYTES_SHOWN_MAX: Final = 4096  # of one packet; the rest is counted


class Tracer:
    """The `on_packet` of a connection. It knows the client id from CONNECT, and from CONNACK if the broker chose it."""

    def __init__(self, with_bytes: bool = False) -> None:
        self.with_bytes = with_bytes
        self.name = "(null)"

    def __call__(self, direction: str, packet: packets.Packet, raw: bytes) -> None:
        if isinstance(packet, packets.Connect) and packet.client_id:
            self.name = packet.client_id
        elif isinstance(packet, packets.ConnAck) and packet.properties.assigned_client_identifier:
            self.name = packet.properties.assigned_client_identifier
        verb = "sending" if direction == "sent" else "received"
        lines = [f"Client {self.name} {verb} {text}" for text in describe(packet)]
        if self.with_bytes:
            lines += hexadecimal(mask(packet, raw))
        with contextlib.suppress(OSError):  # stderr is gone; the connection is not to suffer for it
            print("\n".join(lines), file=sys.stderr, flush=True)


def describe(packet: packets.Packet) -> list[str]:
    """A packet in Mosquitto's words; SUBSCRIBE and UNSUBSCRIBE have a line for each filter."""
    match packet:
        case packets.ConnAck():
            return [f"CONNACK ({int(packet.reason)})"]
        case packets.Publish():
            head = f"d{packet.dup:d}, q{packet.qos}, r{packet.retain:d}, m{packet.packet_id}"
            return [f"PUBLISH ({head}, '{packet.topic}', ... ({len(packet.payload)} bytes))"]
        case packets.PubAck() | packets.PubRec() | packets.PubRel() | packets.PubComp():
            return [f"{type(packet).__name__.upper()} (Mid: {packet.packet_id}, RC:{int(packet.reason)})"]
        case packets.Subscribe():
            return [
                f"SUBSCRIBE (Mid: {packet.packet_id}, Topic: {request.filter}, QoS: {request.qos}, Options: 0x{_options(request):02x})"
                for request in packet.subscriptions
            ]
        case packets.SubAck() | packets.UnsubAck():
            reasons = ", ".join(str(int(reason)) for reason in packet.reasons)
            return [f"{type(packet).__name__.upper()} (Mid: {packet.packet_id}" + (f", RC: {reasons})" if reasons else ")")]
        case packets.Unsubscribe():
            return [f"UNSUBSCRIBE (Mid: {packet.packet_id}, Topic: {topic_filter})" for topic_filter in packet.filters]
        case packets.Disconnect() if packet.reason:
            return [f"DISCONNECT ({int(packet.reason)})"]
        case packets.Auth():
            return [f"AUTH ({int(packet.reason)})"]
        case _:
            return [type(packet).__name__.upper()]


def _options(request: packets.SubscriptionRequest) -> int:
    """The Subscription Options without the QoS, which has its own place in the line."""
    return request.no_local << 2 | request.retain_as_published << 3 | request.retain_handling << 4


def mask(packet: packets.Packet, raw: bytes) -> list[str]:
    """The packet's bytes as hexadecimal, two letters each; those of a password or of authentication data are `**`."""
    shown = [f"{byte:02x}" for byte in raw]
    if isinstance(packet, packets.Connect) and packet.password:
        # The password is the last field of CONNECT [MQTT5-3.1.3-1], so it is found without parsing.
        _hide(shown, len(raw) - len(packet.password), len(packet.password))
    if isinstance(packet, packets.Connect | packets.ConnAck | packets.Auth) and packet.properties.authentication_data:
        secret = packet.properties.authentication_data
        start = raw.find(b"\x16" + len(secret).to_bytes(2, "big") + secret)
        if start >= 0:
            _hide(shown, start + 3, len(secret))
    return shown


def _hide(shown: list[str], start: int, count: int) -> None:
    shown[start : start + count] = ["**"] * count


def hexadecimal(shown: list[str]) -> list[str]:
    rows = [f"  {start:04x}  {' '.join(shown[start : start + _ROW])}" for start in range(0, min(len(shown), _BYTES_SHOWN_MAX), _ROW)]
    if len(shown) > _BYTES_SHOWN_MAX:
        rows.append(f"  ... and {len(shown) - _BYTES_SHOWN_MAX:,} bytes more")
    return rows
