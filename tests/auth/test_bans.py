"""Bans and bound Client Identifiers, without a broker."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.bans import Ban, Bans, ban_fault
from broker.auth.client_ids import ClientIds, pattern_fault
from broker.auth.throttle import ip_of

HERE = "192.0.2.7:50123"


@pytest.mark.parametrize(
    ("ban", "client_id", "username", "peer", "hit"),
    [
        (Ban(client_id="c"), "c", None, "unix", True),
        (Ban(client_id="c"), "d", "c", HERE, False),
        (Ban(username="u"), "c", "u", HERE, True),
        (Ban(username="u"), "u", None, HERE, False),
        (Ban(address="192.0.2.7"), "c", None, HERE, True),
        (Ban(address="192.0.2.8"), "c", None, HERE, False),
        (Ban(address="192.0.2.9/24"), "c", None, HERE, True),
        (Ban(address="0.0.0.0/0"), "c", None, HERE, True),
        (Ban(address="0.0.0.0/0"), "c", None, "[2001:db8::1]:5", False),
        (Ban(address="192.0.2.0/24"), "c", None, "[::ffff:192.0.2.7]:5", True),
        (Ban(address="::ffff:192.0.2.7"), "c", None, HERE, True),  # as the logs of others write an IPv4 client
        (Ban(address="::ffff:192.0.2.0/120"), "c", None, HERE, True),
        (Ban(address="::ffff:192.0.2.0/120"), "c", None, "198.51.100.7:5", False),
        (Ban(address="2001:db8::/32"), "c", None, "[2001:db8:5::1]:5", True),
        (Ban(address="fe80::/10"), "c", None, "[fe80::1%eth0]:5", True),
        (Ban(address="0.0.0.0/0"), "c", None, "in-process", False),
        (Ban(client_id="c", address="192.0.2.7"), "c", None, HERE, True),
        (Ban(client_id="c", address="192.0.2.8"), "c", None, HERE, False),
        (Ban(client_id="c", username="u"), "c", "v", HERE, False),
        (Ban(username="u", address="192.0.2.0/24"), "c", "u", HERE, True),
    ],
)
def test_all_that_a_ban_names_must_fit(ban: Ban, client_id: str, username: str | None, peer: str, hit: bool) -> None:
    others = [Ban(client_id="x"), Ban(username="x"), Ban(address="198.51.100.0/25")]
    assert (Bans([*others, ban]).find(client_id, username, peer, 0.0) == ban) is hit


def set_zone() -> None:
    if sys.platform != "win32":  # where it is the machine's, whatever the environment says
        time.tzset()


def test_the_ends_of_the_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    """`until = 9999-12-31T23:59:59` for ever, 0001-01-01 never; west of Greenwich the one has no Unix time, and the other nowhere."""
    try:
        for zone in ("UTC", "America/New_York", "Asia/Tokyo"):
            monkeypatch.setenv("TZ", zone)
            set_zone()
            assert Bans([Ban(client_id="c", until=datetime.max)]).find("c", None, HERE, 2e9) is not None
            assert Bans([Ban(client_id="c", until=datetime.min)]).find("c", None, HERE, 0.0) is None
    finally:
        monkeypatch.undo()
        set_zone()


@given(
    st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), max_size=8),
    st.lists(st.tuples(st.ip_addresses(v=6), st.integers(0, 128)), max_size=8),
    st.ip_addresses(),
)
def test_networks_are_found_as_by_a_walk(four: list[tuple[object, int]], six: list[tuple[object, int]], address: object) -> None:
    networks = [f"{one}/{bits}" for one, bits in (*four, *six)]
    peer = f"[{address}]:1" if ":" in str(address) else f"{address}:1"
    seen = ip_of(peer)
    assert seen is not None
    expected = any(seen in ip_network(network, strict=False) for network in networks)
    assert (Bans(Ban(address=network) for network in networks).find("c", None, peer, 0.0) is not None) is expected


def test_one_that_has_ended_is_not_there_and_can_be_forgotten() -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    bans = Bans([Ban(client_id="c", until=end), Ban(client_id="d")])
    assert bans.find("c", None, HERE, end.timestamp() - 1) is not None
    assert bans.find("c", None, HERE, end.timestamp()) is None
    bans.forget_ended(end.timestamp())
    assert len(bans) == 1
    assert Bans([Ban(client_id="c", until=datetime(2030, 1, 1))]).find("c", None, HERE, 0.0) is not None  # local time, as TOML has it


def test_the_same_twice_is_one_and_taken_back_by_what_it_names() -> None:
    bans = Bans([Ban(username="u"), Ban(username="u"), Ban(username="u", until=datetime(2030, 1, 1, tzinfo=UTC)), Ban(username="v")])
    assert len(bans) == 3
    assert not bans.remove("u", None, None)
    assert bans.remove(None, "u", None)
    assert len(bans) == 1
    assert bans.find("c", "u", HERE, 0.0) is None
    assert bans.find("c", "v", HERE, 0.0) is not None


@pytest.mark.parametrize(
    ("ban", "key"),
    [(Ban(), ""), (Ban(address="192.0.2.0/33"), "address"), (Ban(address="example.org"), "address"), (Ban(address=""), "address")],
)
def test_a_ban_that_is_none(ban: Ban, key: str) -> None:
    fault = ban_fault(ban)
    assert fault is not None
    assert fault[0] == key
    assert ban_fault(Ban(client_id="")) is None


def test_ip_of() -> None:
    assert ip_of("192.0.2.7:50123") == ip_address("192.0.2.7")
    for peer in ("unix", "in-process", "", "host:1", "[x]:1"):
        assert ip_of(peer) is None


# ---- Client Identifiers ----


@pytest.mark.parametrize(
    ("patterns", "client_id", "username", "fits"),
    [
        (None, "x", None, True),
        (None, "", None, True),
        ([], "x", "ann", False),
        (["%u"], "ann", "ann", True),
        (["%u"], "ann-1", "ann", False),
        (["%u"], "", None, False),
        (["%u", "%u-*"], "ann-1", "ann", True),
        (["%u-*"], "anna", "ann", False),
        (["%u*"], "anything", "", False),
        (["%u*"], "anything", None, False),
        (["secure-*"], "secure-1", None, True),
        (["secure-*"], "secure-", None, True),
        (["secure-*"], "other", None, False),
        (["*"], "other", None, True),
        (["*"], "", None, False),
        (["%u-*"], "*-1", "*", True),
        (["%u-*"], "ann-1", "*", False),
        (["%u"], "%u", "%u", True),
    ],
)
def test_patterns(patterns: Sequence[str] | None, client_id: str, username: str | None, fits: bool) -> None:
    assert ClientIds(patterns).settle(client_id, username) == (client_id if fits else None)


def test_called_as_the_user() -> None:
    ids = ClientIds(from_username=True)
    assert ids.settle("whatever", "ann") == "ann"
    assert ids.settle("", "ann") == "ann"
    assert ids.settle("whatever", None) is None
    assert ids.settle("whatever", "") is None
    assert ClientIds(["a*"], from_username=True).settle("whatever", "ben") is None


def test_pattern_faults() -> None:
    assert pattern_fault("") is not None
    assert pattern_fault("a*b") is not None
    assert pattern_fault("%c-*") is not None
    assert [pattern_fault(one) for one in ("*", "a", "%u-*", "a%ub", "100%")] == [None] * 5
