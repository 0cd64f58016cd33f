"""QoS 1 and 2 as tables: each row of the docstring of core/inflight.py, then ids and quotas under any sequence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.inflight import PACKET_ID_MAX, Receiver, Sender
from broker.errors import ProtocolError


@dataclass(eq=False)
class Message:
    qos: int
    number: int = 0


def sender(quota: int = 10) -> Sender[Message]:
    made: Sender[Message] = Sender()
    made.begin(quota)
    return made


# ---- the rows of the table ----


def test_qos_1_puback_frees_id_and_quota() -> None:
    out = sender(1)
    message = Message(1)
    packet_id = out.send(message)
    assert (packet_id, out.quota, out.count) == (1, 0, 1)
    assert out.on_puback(packet_id) is message
    assert (out.quota, out.count) == (1, 0)
    assert out.on_puback(packet_id) is None  # unknown id: nothing
    assert out.quota == 1


def test_qos_2_through_both_states() -> None:
    out = sender(1)
    message = Message(2)
    packet_id = out.send(message)
    assert out.on_pubrec(packet_id, False) == (message, True)
    assert (out.quota, list(out.released), out.count) == (0, [packet_id], 1)
    assert out.on_pubrec(packet_id, False) == (None, True)  # PUBREL again
    assert out.on_pubcomp(packet_id)
    assert (out.quota, out.count) == (1, 0)
    assert not out.on_pubcomp(packet_id)
    assert out.on_pubrec(packet_id, False) == (None, False)


def test_qos_2_refused_by_the_receiver() -> None:
    out = sender(1)
    message = Message(2)
    packet_id = out.send(message)
    assert out.on_pubrec(packet_id, True) == (message, True)
    assert (out.quota, out.count) == (1, 0)


def test_the_wrong_acknowledgement_is_an_error_and_changes_nothing() -> None:
    out = sender()
    one, two = out.send(Message(1)), out.send(Message(2))
    with pytest.raises(ProtocolError):
        out.on_puback(two)
    with pytest.raises(ProtocolError):
        out.on_pubrec(one, False)
    assert not out.on_pubcomp(two)
    assert out.count == 2


def test_receiver_holds_an_id_from_publish_to_pubrel() -> None:
    receiver = Receiver()
    assert receiver.on_publish(7)
    assert not receiver.on_publish(7)
    assert receiver.on_pubrel(7)
    assert not receiver.on_pubrel(7)
    assert receiver.on_publish(7)


# ---- ids ----


def test_ids_wrap_past_the_largest_and_pass_over_those_in_use() -> None:
    out = sender(PACKET_ID_MAX)
    kept = out.send(Message(1))
    assert kept == 1
    reserved = out.reserve_id()
    assert reserved == 2
    for expected in range(3, PACKET_ID_MAX + 1):
        packet_id = out.send(Message(1))
        assert packet_id == expected
        out.on_puback(packet_id)
    assert out.send(Message(1)) == 3
    out.unreserve_id(reserved)
    out.on_puback(kept)
    for _ in range(PACKET_ID_MAX - 3):
        out.on_puback(out.send(Message(1)))
    assert out.send(Message(1)) == 1
    assert out.send(Message(1)) == 2


def test_all_ids_may_be_in_use_at_once() -> None:
    out = sender(PACKET_ID_MAX)
    assert {out.send(Message(1)) for _ in range(PACKET_ID_MAX)} == set(range(1, PACKET_ID_MAX + 1))
    assert out.quota == 0
    out.on_puback(40_000)
    assert out.send(Message(1)) == 40_000


def test_exchanges_that_the_peer_never_finishes_cannot_use_up_the_ids() -> None:
    """Released ids outlive a connection and take no quota on the next one, so they alone could fill the space."""
    out = sender(30_000)
    for _ in range(4):
        out.begin(30_000)
        while out.quota > 0:
            assert out.on_pubrec(out.send(Message(2)), False)[1]
    assert out.count <= PACKET_ID_MAX
    some = next(iter(out.released))
    assert out.on_pubcomp(some)


# ---- resumption ----


def test_what_is_unacknowledged_is_repeated_in_order_within_the_new_quota() -> None:
    out = sender(10)
    messages = [Message(1 + number % 2, number) for number in range(6)]
    ids = [out.send(message) for message in messages]
    out.on_puback(ids[2])
    out.on_pubrec(ids[1], False)
    out.begin(2)
    assert list(out.released) == [ids[1]]
    assert out.next_resend() == (ids[0], messages[0])
    assert out.next_resend() == (ids[3], messages[3])
    assert out.next_resend() is None
    assert out.quota == 0
    out.on_puback(ids[0])
    out.on_pubrec(ids[5], True)  # answered before it was repeated: not repeated any more
    assert out.next_resend() == (ids[4], messages[4])
    assert out.next_resend() is None
    assert not out.resend


def test_pubcomp_for_a_repeated_pubrel_does_not_raise_the_quota_above_its_start() -> None:
    out = sender(3)
    ids = [out.send(Message(2)) for _ in range(3)]
    for packet_id in ids:
        out.on_pubrec(packet_id, False)
    out.begin(2)
    for packet_id in ids:
        assert out.on_pubcomp(packet_id)
        assert out.quota == 2


@pytest.mark.parametrize("qos", [1, 2])
def test_who_answers_what_was_not_repeated_uses_up_no_ids(qos: int) -> None:
    """All of them wait, and on the next connection are answered before they are said again: what goes on then still takes its place."""
    out = sender(PACKET_ID_MAX)
    for _ in range(PACKET_ID_MAX):
        out.send(Message(qos))
    out.begin(PACKET_ID_MAX)
    for packet_id in range(1, PACKET_ID_MAX + 1):
        if qos == 1:
            out.on_puback(packet_id)
        else:
            out.on_pubrec(packet_id, False)
    assert not out.resend
    assert out.quota == (PACKET_ID_MAX if qos == 1 else 0)
    assert qos == 1 or out.on_pubcomp(7)
    assert out.send(Message(2)) == (7 if qos == 2 else 1)


def test_what_was_answered_before_it_was_repeated_leaves_no_place_above_the_receive_maximum() -> None:
    out = sender(3)
    ids = [out.send(Message(2)) for _ in range(3)]
    out.begin(1)
    assert out.next_resend() is not None
    for packet_id in ids:
        out.on_pubrec(packet_id, False)
    assert out.on_pubcomp(ids[1])
    assert out.quota <= 0  # the first is still under way, and so is the third [MQTT5-3.3.4-9]
    assert out.on_pubcomp(ids[0])
    assert out.on_pubcomp(ids[2])
    assert out.quota == 1


def test_abandon_frees_id_and_quota() -> None:
    out = sender(1)
    out.abandon(out.send(Message(2)))
    assert (out.quota, out.count) == (1, 0)


def test_forget_gives_back_what_was_not_acknowledged() -> None:
    out = sender(3)
    messages = [Message(1), Message(2), Message(2)]
    ids = [out.send(message) for message in messages]
    out.on_pubrec(ids[1], False)
    assert out.forget() == [messages[0], messages[2]]
    assert (out.count, out.quota) == (0, 3)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["send", "puback", "pubrec", "failed", "pubcomp", "begin", "resend", "reserve"]), st.integers(1, 6)), max_size=80
)


@given(EVENTS)
def test_ids_are_never_used_twice_and_the_quota_keeps_its_bounds(events: list[tuple[str, int]]) -> None:
    out = sender(3)
    for what, number in events:
        try:
            if what == "send" and out.quota > 0 and not out.resend:
                before = set(out.unacknowledged) | set(out.released) | set(out.reserved)
                assert out.send(Message(1 + number % 2)) not in before
            elif what == "puback":
                out.on_puback(number)
            elif what == "pubrec":
                out.on_pubrec(number, False)
            elif what == "failed":
                out.on_pubrec(number, True)
            elif what == "pubcomp":
                out.on_pubcomp(number)
            elif what == "begin":
                out.begin(number % 3 + 1)
            elif what == "resend":
                out.next_resend()
            elif what == "reserve" and len(out.reserved) < 3:
                out.reserve_id()
        except ProtocolError:
            pass
        underway = len(out.unacknowledged) - len(out.resend or ()) + sum(out.released.get(packet_id) is True for packet_id in out.released)
        assert out.quota == out.quota_max - underway  # below 0 while what was answered unasked is above it
        assert not set(out.unacknowledged) & set(out.released)
        assert not set(out.reserved) & (set(out.unacknowledged) | set(out.released))
