"""Failures slow an address, are forgiven with time, and cost bounded memory."""

from __future__ import annotations

import pytest

from broker.auth.throttle import DELAY_S_MAX, DELAY_S_MIN, FORGET_S, Throttle, address_of


def test_each_failure_waits_twice_as_long_up_to_a_bound() -> None:
    throttle = Throttle()
    delays = [throttle.failed("a", 0.0) for _ in range(8)]
    assert delays[:4] == [DELAY_S_MIN, DELAY_S_MIN * 2, DELAY_S_MIN * 4, DELAY_S_MIN * 8]
    assert delays[-1] == DELAY_S_MAX
    assert throttle.failed("b", 0.0) == DELAY_S_MIN
    assert throttle.is_suspect("a", 0.0)
    assert not throttle.is_suspect("b", 0.0)


def test_time_forgives() -> None:
    throttle = Throttle()
    for _ in range(4):
        throttle.failed("a", 0.0)
    assert not throttle.is_suspect("a", 2 * FORGET_S)
    assert throttle.failed("a", 10 * FORGET_S) == DELAY_S_MIN


def test_the_table_is_bounded_and_forgets_the_quietest() -> None:
    throttle = Throttle(addresses_count_max=3)
    for _ in range(5):
        throttle.failed("loud", 0.0)
    for number in range(100):
        throttle.failed(f"quiet {number}", 1.0)
        throttle.failed("loud", 1.0)
    assert len(throttle) == 3
    assert throttle.is_suspect("loud", 1.0)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.7:50123", "192.0.2.7"),
        ("[2001:db8:0:1:aaaa::7]:50123", "20010db800000001/64"),
        ("[fe80::1%eth0]:1", "fe80000000000000/64"),
        ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
        ("unix", ""),
        ("in-process", ""),
    ],
)
def test_whom_a_peer_stands_for(peer: str, address: str) -> None:
    assert address_of(peer) == address
