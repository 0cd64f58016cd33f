"""When to dial again, and when never: the whole policy in one place, without a clock or a socket."""

from __future__ import annotations

import math
import random
from typing import Final

from broker.errors import BrokerError, ConnectionLost, ConnectRefused, NotSupported
from broker.reasons import ReasonCode

NEVER_AGAIN: Final = frozenset(
    {
        ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
        ReasonCode.BAD_USER_NAME_OR_PASSWORD,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.BANNED,
        ReasonCode.SESSION_TAKEN_OVER,
        ReasonCode.SERVER_MOVED,
    }
)
"""Asking again would get the same answer; and two programs with one client id would throw each other out for ever."""


class Reconnect:
    """When to dial again: delay = random(0, min(delay_s_max, delay_s * 2**n)). `first=True` also retries the first dial.

    n: dials in a row without success, or, up to 3, connections in a row that lasted less than 30 s, unless the broker said that it was shutting
    down (MQTT 5.0); so that what ends each new connection, as a message that no broker takes, costs neither side more than a few dials.
    delay_s, delay_s_max: seconds.
    attempts_max: dials in a row without success, None for no limit; give_up_after_s: seconds since the connection was lost; the last
    dial is made then.
    Never after Not authorized, Bad user name, Banned, Unsupported version, Client Identifier not valid, Server moved, or **Session taken
    over** (two programs with one client id would throw each other out for ever): ConnectionLost.
    """

    __slots__ = ("attempts_max", "delay_s", "delay_s_max", "first", "give_up_after_s")

    def __init__(
        self,
        *,
        first: bool = False,
        delay_s: float = 0.5,
        delay_s_max: float = 30,
        attempts_max: int | None = None,
        give_up_after_s: float = math.inf,
    ) -> None:
        if not (delay_s >= 0 and delay_s_max >= 0 and give_up_after_s >= 0):
            raise ValueError("delay_s, delay_s_max and give_up_after_s must be 0 or more seconds")
        if attempts_max is not None and attempts_max < 1:
            raise ValueError(f"attempts_max must be at least 1, or None, not {attempts_max!r}")
        self.first = first
        self.delay_s = delay_s
        self.delay_s_max = delay_s_max
        self.attempts_max = attempts_max
        self.give_up_after_s = give_up_after_s

    def delay(self, attempt: int) -> float:
        """Seconds to wait before dial number `attempt` in a row, from 0; jittered, so that a thousand clients do not return at once."""
        return random.uniform(0, min(self.delay_s_max, self.delay_s * 2.0 ** min(attempt, 60)))

    def why_not(self, attempts: int, away_s: float) -> str | None:
        """Why not to dial again after so many failures in a row and so many seconds; None: dial."""
        if self.attempts_max is not None and attempts >= self.attempts_max:
            return f"gave up after {attempts} attempts"
        if away_s >= self.give_up_after_s:
            return f"gave up after {away_s:.0f} s"
        return None


def is_final(error: BrokerError) -> bool:
    """No policy dials again after this."""
    if isinstance(error, (ConnectRefused, ConnectionLost)):
        return error.reason in NEVER_AGAIN
    return isinstance(error, NotSupported)
