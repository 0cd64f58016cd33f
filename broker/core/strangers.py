"""Who speaks something else than a listener does: known by the first bytes, so that the log can say what to do about it."""

from __future__ import annotations

from typing import Final

_HTTP: Final = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PRI * HTTP/2")
_TLS: Final = "this looks like TLS, which this listener does not speak: give it tls, or use another"


def other_than_mqtt(data: bytes) -> str | None:
    """What these first bytes of a connection look like; None if they are no protocol that people mistake for ours."""
    if _is_tls(data):
        return _TLS
    if data.startswith(_HTTP):
        return 'this looks like HTTP, which this listener does not speak: MQTT over WebSocket needs one with protocol = "websocket"'
    return None


def other_than_http(data: bytes) -> str | None:
    """The same where a WebSocket is to begin."""
    if _is_tls(data):
        return _TLS
    if data[:1] == b"\x10" and data[4:6] == b"MQ":  # CONNECT, behind a length of one byte, and MQTT or MQIsdp
        return 'this looks like MQTT without WebSocket: it needs a listener with protocol = "mqtt", or a client that is told to use WebSocket'
    return None


def other_than_a_request(data: bytes) -> str | None:
    """The same where nothing but HTTP is spoken."""
    if _is_tls(data):
        return _TLS
    if data[:1] == b"\x10" and b"MQ" in data[4:8]:
        return "this looks like MQTT, which is not spoken here: use another listener"
    return None


def _is_tls(data: bytes) -> bool:
    """A handshake record of TLS 1.x."""
    return data[:2] == b"\x16\x03"
