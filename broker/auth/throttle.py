"""How long an address has to wait that has guessed wrong: twice as long each time, and less again as time goes by.

The table is bounded: it forgets whoever has been quiet the longest, so that a thousand addresses cost no more than one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

ADDRESSES_COUNT_MAX: Final = 10_000
DELAY_S_MIN: Final = 0.2
DELAY_S_MAX: Final = 4.0
"""Below `connect_timeout_s`, so that a client which mistypes still gets its answer."""
FORGET_S: Final = 60.0
"""One failure is forgiven each so many seconds."""


class Throttle:
    """Failures by address, from "192.0.2.7:50123" without the port. `now`: seconds of any clock."""

    __slots__ = ("_failures", "addresses_count_max")

    def __init__(self, addresses_count_max: int = ADDRESSES_COUNT_MAX) -> None:
        self.addresses_count_max = addresses_count_max
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, address: str, now: float) -> float:
        """Count a failure; how many seconds its answer is to wait."""
        count = self._count(address, now) + 1
        self._failures[address] = (min(count, 30.0), now)
        self._failures.move_to_end(address)
        if len(self._failures) > self.addresses_count_max:
            self._failures.popitem(last=False)
        return min(DELAY_S_MAX, DELAY_S_MIN * math.pow(2.0, min(count, 30.0) - 1))

    def is_suspect(self, address: str, now: float) -> bool:
        """Has it failed lately, more often than a person at a keyboard does?"""
        return self._count(address, now) >= 3

    def has_failed(self, address: str, now: float) -> bool:
        """Lately, and be it once."""
        return self._count(address, now) > 0

    def _count(self, address: str, now: float) -> float:
        known = self._failures.get(address)
        if known is None:
            return 0.0
        count, at = known
        return max(0.0, count - (now - at) / FORGET_S)


def ip_of(peer: str) -> IPv4Address | IPv6Address | None:
    """Of "192.0.2.7:50123" or "[2001:db8::1]:50123"; an IPv4 address that was mapped to IPv6 as itself. None for "unix" and the like."""
    return _ip_of_host(peer.rpartition(":")[0])


def address_of(peer: str) -> str:
    """Whom a peer stands for: its address; of IPv6 the /64, since a single machine has that many. "" for "unix" and the like."""
    return _stands_for(peer.rpartition(":")[0])


def _ip_of_host(host: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


@lru_cache(maxsize=4096)  # asked for each connection that comes, and reading an address costs as much as accepting it
def _stands_for(host: str) -> str:
    address = _ip_of_host(host)
    if isinstance(address, IPv6Address):
        return f"{address.packed[:8].hex()}/64"
    return str(address) if address is not None else host
