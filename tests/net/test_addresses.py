"""Connections counted by address: how many at once, how many a second, and a table that does not grow."""

from __future__ import annotations

from broker.core.limits import Limits
from broker.net.addresses import Addresses
from broker.reasons import ReasonCode

NONE = Limits()


def reason_of(refusal: tuple[ReasonCode, str] | None) -> ReasonCode | None:
    return None if refusal is None else refusal[0]


def test_so_many_at_once() -> None:
    addresses = Addresses()
    two = Limits(connections_per_address_max=2)
    assert [reason_of(addresses.enter("192.0.2.1", two, 0.0)) for _ in range(3)] == [None, None, ReasonCode.QUOTA_EXCEEDED]
    assert addresses.enter("192.0.2.2", two, 0.0) is None
    addresses.leave("192.0.2.1")
    assert addresses.enter("192.0.2.1", two, 0.0) is None
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        addresses.leave(address)
    assert addresses.statistics()["addresses_open"] == 0


def test_so_many_a_second_with_a_burst() -> None:
    addresses = Addresses()
    limits = Limits(connects_per_address_per_s_max=2, connects_per_address_burst_max=3)

    def connects(now: float) -> list[ReasonCode | None]:
        found = [reason_of(addresses.enter("192.0.2.1", limits, now)) for _ in range(5)]
        return [reason for reason in found if reason is None]

    assert [len(connects(now)) for now in (0.0, 0.5, 1.5, 1.6, 100.0)] == [3, 1, 2, 0, 3]
    assert reason_of(addresses.enter("192.0.2.1", limits, 100.0)) == ReasonCode.CONNECTION_RATE_EXCEEDED


def test_no_bound_counts_all_the_same() -> None:
    addresses = Addresses()
    for _ in range(1000):
        assert addresses.enter("192.0.2.1", NONE, 0.0) is None
    assert reason_of(addresses.enter("192.0.2.1", Limits(connections_per_address_max=1000), 0.0)) == ReasonCode.QUOTA_EXCEEDED


def test_what_has_no_address_is_not_counted() -> None:
    addresses = Addresses()
    limits = Limits(connections_per_address_max=1, connects_per_address_per_s_max=1, connects_per_address_burst_max=1)
    for _ in range(5):
        assert addresses.enter("", limits, 0.0) is None
    addresses.leave("")
    assert addresses.statistics() == {"addresses_open": 0, "addresses_remembered": 0}


def test_the_table_forgets_the_quietest() -> None:
    addresses = Addresses(addresses_count_max=100)
    limits = Limits(connects_per_address_per_s_max=0.001, connects_per_address_burst_max=1)
    for number in range(1000):
        address = f"{number}"
        assert addresses.enter(address, limits, float(number)) is None
        addresses.leave(address)
        assert reason_of(addresses.enter("regular", limits, float(number))) in (None, ReasonCode.CONNECTION_RATE_EXCEEDED)
    assert addresses.statistics()["addresses_remembered"] == 100
    assert reason_of(addresses.enter("999", limits, 1000.0)) == ReasonCode.CONNECTION_RATE_EXCEEDED
