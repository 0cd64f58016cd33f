"""How many connections an address has open, and how fast it makes new ones: asked when a connection is accepted, before anything is made for it.

An address is an IPv4 address, or the /64 of an IPv6 one. Loopback is an address like others: the listener of this machine can have
limits of its own. Unix sockets and streams of the same process have none, and are not counted. Both tables are bounded: one has an
entry only for addresses that have a connection open; the other forgets whoever has been quiet the longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.buckets import COUNT_MAX, Buckets
from broker.reasons import ReasonCode

if TYPE_CHECKING:
    from broker.core.limits import Limits


class Addresses:
    """`now`: seconds of any clock. address: as `auth.throttle.address_of` has it; "" is none, and counts for nothing."""

    __slots__ = ("_buckets", "_open")

    def __init__(self, addresses_count_max: int = COUNT_MAX) -> None:
        self._open: dict[str, int] = {}
        self._buckets = Buckets(addresses_count_max)

    def enter(self, address: str, limits: Limits, now: float) -> tuple[ReasonCode, str] | None:
        """Count one more connection, until `leave`; or say why there may be none, and count nothing."""
        if not address:
            return None
        rate = limits.connects_per_address_per_s_max
        if rate and not self._buckets.take(address, rate, limits.connects_per_address_burst_max, now):
            return ReasonCode.CONNECTION_RATE_EXCEEDED, f"its address connects more often than {rate:g} times a second"
        count = self._open.get(address, 0)
        if limits.connections_per_address_max and count >= limits.connections_per_address_max:
            return ReasonCode.QUOTA_EXCEEDED, f"its address has {count} connections already"
        self._open[address] = count + 1
        return None

    def leave(self, address: str) -> None:
        """A connection that was counted is over."""
        if address:
            count = self._open[address] - 1
            if count:
                self._open[address] = count
            else:
                del self._open[address]

    def statistics(self) -> dict[str, int]:
        return {"addresses_open": len(self._open), "addresses_remembered": len(self._buckets)}
