"""Who speaks something else on a port of MQTT: known by the first bytes, so that the log can say what to do about it."""

from __future__ import annotations

from typing import Final

_HTTP: Final = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PRI * HTTP/2")


def other_protocol(data: bytes) -> str | None:
    """What these first bytes of a connection look like; None if they are no protocol that people mistake for ours."""
    if data[:2] == b"\x16\x03":  # a handshake record of TLS 1.x
        return "this looks like TLS, which this listener does not speak: give it tls, or use another"
    if data.startswith(_HTTP):
        return 'this looks like HTTP, which this listener does not speak: MQTT over WebSocket needs one with protocol = "websocket"'
    return None
