"""What the core tells its surroundings, for logs and counters. Every method may be left as it is: nothing depends on it.

Called in the middle of a verb: an observer returns at once and calls nothing of the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.reasons import ReasonCode

CONNECTION_LOST: Final = "the connection was lost"
"""The cause of whatever the core knows no other cause for."""
DISCONNECTED: Final = "it disconnected"
"""By a DISCONNECT of Normal disconnection. The words of another reason code follow."""


class Observer:
    def connected(self, link: Link) -> None:
        """CONNACK 0x00 went out: client_id, username and version are set."""

    def refused(self, link: Link, reason: ReasonCode, cause: str) -> None:
        """A CONNECT was refused, or (link.version is 0) none came."""

    def violation(self, link: Link, cause: str) -> None:
        """The peer broke the protocol; `disconnected` or `refused` follows."""

    def disconnected(self, link: Link, cause: str, error: bool) -> None:
        """A served connection is over; error: not by a DISCONNECT 0x00 of the client."""

    def held_up(self, link: Link) -> None:
        """It sends faster than it may, and is made to wait."""

    def not_retained(self, link: Link) -> None:
        """A message, or a Will, of a 3.1.1 client was to be retained where nothing is: it is passed on, and not retained."""

    def dropped(self, client_id: str, reason: str, count: int) -> None:
        """`count` messages were not delivered to this client; reason is one of those in `statistics()`."""
