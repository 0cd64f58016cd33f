"""When a client has to speak, so that the broker knows it is there, and when the broker has been silent for too long."""

from __future__ import annotations

import math
from typing import Final

_PING_SHARE: Final = 0.9  # of the Keep Alive: the packet must be there within it, not merely sent [MQTT5-3.1.2-20]


class ClientKeepAlive:
    """Of one connection after the other. The owner says when something was sent or received, and sends what `deadline` asks for."""

    __slots__ = ("_asked_at", "_before_it_bytes", "_is_asked", "_response_timeout_s", "_seconds", "received_at", "sent_at")

    def __init__(self) -> None:
        self._response_timeout_s = math.inf
        self._seconds = 0
        self.sent_at = 0.0
        self.received_at = 0.0
        self._asked_at: float | None = None
        """When the first PINGREQ left that has not been answered, or what stands before it last moved on: until then nobody can answer."""
        self._is_asked = False
        """It has left."""
        self._before_it_bytes = 0
        """To be sent until the last one has left; that one among them."""

    def begin(self, now: float, response_timeout_s: float) -> None:
        """A connection begins."""
        self._response_timeout_s = response_timeout_s
        self.sent_at = self.received_at = now
        self._asked_at = None
        self._is_asked = False
        self._before_it_bytes = 0

    def agreed(self, seconds: int) -> None:
        """The broker has accepted it; 0: nobody has to say anything."""
        self._seconds = seconds

    def deadline(self) -> float:
        """When a PINGREQ is due; or when the answer to one is, or anything else from the broker."""
        if self._asked_at is None:
            return min(self.sent_at, self.received_at) + self._seconds * _PING_SHARE if self._seconds else math.inf
        # The answer may stand behind much that comes slowly, and the broker has to hear of us meanwhile; one PINGREQ that has not left is enough.
        ping_due = self.sent_at + self._seconds * _PING_SHARE if self._seconds and not self._before_it_bytes else math.inf
        return min(ping_due, self._answer_due())

    def is_overdue(self, now: float) -> bool:
        """Has the broker been silent for too long? Else a PINGREQ is due."""
        return now >= self._answer_due()

    def _answer_due(self) -> float:
        return math.inf if self._asked_at is None else max(self._asked_at, self.received_at) + self._response_timeout_s

    def ping_made(self, bytes_to_send: int, now: float) -> None:
        """A PINGREQ stands at the end of so many bytes, itself included."""
        self._before_it_bytes = bytes_to_send
        if self._asked_at is None:
            self._asked_at = now

    def moves_on(self, now: float) -> None:
        """Bytes of ours are leaving, though what `data_to_send` gave has not left as a whole."""
        self.sent_at = now
        if self._before_it_bytes and not self._is_asked:
            self._asked_at = now

    def bytes_sent(self, count: int, now: float) -> None:
        """So many have left."""
        self.moves_on(now)
        if self._before_it_bytes:
            self._before_it_bytes = max(0, self._before_it_bytes - count)
            self._is_asked = self._is_asked or not self._before_it_bytes

    def on_pingresp(self) -> None:
        self._asked_at = None
        self._is_asked = False
