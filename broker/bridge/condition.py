"""What is known of a bridge, over all its runs: is it connected, why not, what has it carried, and does one message end each connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from broker.bridge.pump import Tally
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.messages import Message

CAUSES_COUNT_MAX: Final = 10

CLOSED_COUNT_MAX: Final = 5
"""So often the other broker may close the connection while it owes the acknowledgement of the same message and gives no other."""

OF_A_MESSAGE: Final = frozenset(
    {
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.MALFORMED_PACKET,
        ReasonCode.PROTOCOL_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.TOPIC_NAME_INVALID,
        ReasonCode.PACKET_TOO_LARGE,
        ReasonCode.PAYLOAD_FORMAT_INVALID,
        ReasonCode.RETAIN_NOT_SUPPORTED,
        ReasonCode.QOS_NOT_SUPPORTED,
    }
)
"""Reasons of a DISCONNECT that may be for what was sent; others are for the connection, or the other broker's own."""


class Condition:
    def __init__(self) -> None:
        self.connected = False
        self.since_s: float | None = None
        self.cause = "it has not been tried yet"
        self.address = ""
        self.timeouts_count = 0
        self.tally = Tally()
        self.suspicion = Suspicion(self.tally)
        self._told: set[tuple[str, bool]] = set()

    def up(self) -> None:
        self.connected = True
        self.since_s = time.time()
        self.cause = ""
        self._told.clear()

    def down(self, cause: str, slowly: bool = False) -> bool:
        """Is that news? Each cause is told once until it is connected again, and no more than a few. slowly: it will not mend itself, which is news
        of its own."""
        if self.connected:
            self.since_s = time.time()
        self.connected = False
        self.cause = cause
        news = (cause, slowly) not in self._told and len(self._told) < CAUSES_COUNT_MAX
        if news:
            self._told.add((cause, slowly))
        return news


class Suspicion:
    """That the other broker ends each connection for one message, which would come first on the next one, for ever."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._carried_count = 0
        """When the connection began."""
        self._judged = True
        self._suspect: tuple[str, bytes] | None = None
        """Topic and payload of what was the oldest message under way when the other broker closed the connection last, and had acknowledged nothing
        on it."""
        self._closed_count = 0

    def begin(self) -> None:
        """A connection stands."""
        self._carried_count, self._judged = self._tally.carried["out"], False

    def judge(self, reason: ReasonCode | None, cause: str, oldest: Message | None) -> bool:
        """A connection has ended, for this reason of a DISCONNECT and this cause, while that was the oldest message under way: is it the one? Then it
        is the tally's `fatal`. Once for each connection."""
        if self._judged:
            return False
        self._judged = True
        closed = reason in OF_A_MESSAGE if reason is not None else "closed the connection" in cause or "reset" in cause
        if not closed or oldest is None or self._tally.carried["out"] != self._carried_count:
            self._suspect = None
            return False
        suspect = oldest.topic, oldest.payload
        self._closed_count = self._closed_count + 1 if suspect == self._suspect else 1
        self._suspect = suspect
        if self._closed_count < CLOSED_COUNT_MAX:
            return False
        self._suspect = None
        self._tally.fatal = suspect
        return True
