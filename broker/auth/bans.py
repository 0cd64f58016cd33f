"""Who is not let in, whatever they can show: by Client Identifier, user name or address, each found by a look-up and not by a walk.

What a ban names must all fit: a client id and an address are that client id from that address. One that has ended is as if it were not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from msgspec import Struct

from broker.auth.throttle import ip_of


class Ban(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """address: "192.0.2.7", or a network as "192.0.2.0/24". until: without a zone it is local time; None for as long as it is written."""

    client_id: str | None = None
    username: str | None = None
    address: str | None = None
    until: datetime | None = None


class BanInfo(Ban, frozen=True, kw_only=True):
    """A ban that holds: client_id, username and address that must all fit, until when, and whether it is in_config (and not the program's)."""

    in_config: bool = False


def ban_fault(ban: Ban) -> tuple[str, str] | None:
    """(key, what was expected); None for one that can be used."""
    if ban.client_id is None and ban.username is None and ban.address is None:
        return "", "expected client_id, username or address"
    if ban.address is not None:
        try:
            _network(ban.address)
        except ValueError:
            return "address", f"expected an address or a network as 192.0.2.0/24, got {ban.address!r}"
    return None


class Bans:
    """Without faults. `now_s`: Unix time."""

    __slots__ = ("_all", "_by_client_id", "_by_network", "_by_username")

    def __init__(self, bans: Iterable[Ban] = ()) -> None:
        self._begin(bans)

    def _begin(self, bans: Iterable[Ban]) -> None:
        self._all: dict[Ban, None] = {}
        self._by_client_id: dict[str, list[Ban]] = {}
        self._by_username: dict[str, list[Ban]] = {}
        self._by_network: dict[tuple[int, int], dict[int, list[Ban]]] = {}
        """(IP version, bits of the prefix) to the prefix."""
        for ban in bans:
            self.add(ban)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, ban: Ban) -> None:
        if ban in self._all:
            return
        self._all[ban] = None
        self._place(ban).append(ban)

    def remove(self, client_id: str | None, username: str | None, address: str | None) -> bool:
        """All that name exactly these, whenever they end; were there any?"""
        found = [ban for ban in self._all if (ban.client_id, ban.username, ban.address) == (client_id, username, address)]
        self._drop(found)
        return bool(found)

    def forget_ended(self, now_s: float) -> None:
        self._drop([ban for ban in self._all if not _holds(ban, now_s)])

    def holding(self, now_s: float) -> list[Ban]:
        """Those that have not ended."""
        return [ban for ban in self._all if _holds(ban, now_s)]

    def find(self, client_id: str, username: str | None, peer: str, now_s: float) -> Ban | None:
        """The ban that fits a client, whose `peer` is "192.0.2.7:50123" or "unix"."""
        found = list(self._by_client_id.get(client_id, ()))
        if username is not None:
            found += self._by_username.get(username, ())
        address = ip_of(peer)
        if address is not None:
            for (version, bits), networks in self._by_network.items():
                if version == address.version:
                    found += networks.get(int(address) >> (address.max_prefixlen - bits), ())
        for ban in found:
            if (
                ban.client_id in (None, client_id)
                and ban.username in (None, username)
                and (ban.address is None or (address is not None and address in _network(ban.address)))
                and _holds(ban, now_s)
            ):
                return ban
        return None

    def _place(self, ban: Ban) -> list[Ban]:
        """Where it is found: by the most telling of what it names."""
        if ban.client_id is not None:
            return self._by_client_id.setdefault(ban.client_id, [])
        if ban.username is not None:
            return self._by_username.setdefault(ban.username, [])
        network = _network(ban.address or "")
        networks = self._by_network.setdefault((network.version, network.prefixlen), {})
        return networks.setdefault(int(network.network_address) >> (network.max_prefixlen - network.prefixlen), [])

    def _drop(self, bans: list[Ban]) -> None:
        """The index is made anew: bans go seldom, and in numbers when they end."""
        if bans:
            gone = set(bans)
            self._begin([ban for ban in self._all if ban not in gone])


@lru_cache(maxsize=4096)
def _network(address: str) -> IPv4Network | IPv6Network:
    """ValueError. An IPv4 network that was mapped to IPv6 as itself, as `ip_of` has the addresses of clients."""
    found = ip_network(address, strict=False)
    if isinstance(found, IPv6Network) and found.prefixlen >= 96 and (mapped := found.network_address.ipv4_mapped) is not None:
        return IPv4Network((mapped, found.prefixlen - 96))
    return found


def _holds(ban: Ban, now_s: float) -> bool:
    return ban.until is None or _unix_time(ban.until) > now_s


def _unix_time(moment: datetime) -> float:
    """The ends of the calendar, by which people mean "always" and "never", have none in every zone."""
    try:
        return moment.timestamp()
    except (OverflowError, ValueError, OSError):  # OSError: Windows, of all years before 1970 and after 3000
        return math.inf if moment.year > 1970 else -math.inf
