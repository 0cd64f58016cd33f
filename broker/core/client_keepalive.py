"""When a client has to speak, so that the broker knows it is there, and when the broker has been silent for too long."""

from __future__ import annotations

import math
from typing import Final

_PING_SHARE: Final = 0.9  # of the Keep Alive: the packet must be there within it, not merely sent [MQTT5-3.1.2-20]


class ClientKeepAlive:
    """Of one connection after the other. The owner says when something was sent or received, and sends what `deadline` asks for."""

    __slots__ = ("_ping_sent_at", "_response_timeout_s", "_seconds", "received_at", "sent_at")

    def __init__(self) -> None:
        self._response_timeout_s = math.inf
        self._seconds = 0
        self.sent_at = 0.0
        self.received_at = 0.0
        self._ping_sent_at: float | None = None

    def begin(self, now: float, response_timeout_s: float) -> None:
        """A connection begins."""
        self._response_timeout_s = response_timeout_s
        self.sent_at = self.received_at = now
        self._ping_sent_at = None

    def agreed(self, seconds: int) -> None:
        """The broker has accepted it; 0: nobody has to say anything."""
        self._seconds = seconds

    @property
    def is_waiting(self) -> bool:
        """For a PINGRESP."""
        return self._ping_sent_at is not None

    def deadline(self) -> float:
        """When a PINGREQ is due; or when its answer is, or anything else from the broker."""
        if self._seconds == 0:
            return math.inf
        if self._ping_sent_at is not None:
            return max(self._ping_sent_at, self.received_at) + self._response_timeout_s
        return min(self.sent_at, self.received_at) + self._seconds * _PING_SHARE

    def ping_sent(self, now: float) -> None:
        self._ping_sent_at = now

    def on_pingresp(self) -> None:
        self._ping_sent_at = None
