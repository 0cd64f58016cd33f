"""Bytes on their way to a socket: whatever the socket takes at a time, they come once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.message import ApplicationMessage
from broker.core.outbox import Outbox
from broker.core.overflow import OverflowRules
from broker.core.owed import Delivery
from broker.core.subscription import SharedGroup
from broker.core.waiting import Account, WaitingQueue


def delivery(payload: bytes = b"") -> Delivery:
    return Delivery(ApplicationMessage("t", payload), 0, False, (), None, 0)


def take_all(outbox: Outbox, limit: int) -> bytes:
    """As `Engine.take_to_send`, where it does."""
    if outbox.head or outbox.committed_bytes > limit:
        return b""
    data = outbox.joined if outbox.chunks is None else b"".join(outbox.chunks)
    outbox.joined = b""
    outbox.chunks = None
    outbox.committed_bytes = 0
    outbox.sent_bytes_total += len(data)
    return data


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.binary(min_size=100, max_size=300), st.tuples(st.integers(1, 64), st.integers(0, 50)))),
    st.integers(1, 30),
)
def test_every_byte_comes_once_and_in_order(steps: list[bytes | tuple[int, int]], last_count: int) -> None:
    outbox = Outbox(Account())
    given_bytes = taken = b""
    for step in steps:
        if isinstance(step, bytes):
            outbox.append(step)
            given_bytes += step
        else:
            at_once = take_all(outbox, step[0])
            if at_once:
                count = min(len(at_once), step[1])
                taken += at_once[:count]
                outbox.append(b"behind")
                given_bytes += b"behind"
                if count < len(at_once):
                    outbox.give_back(at_once, count)
                continue
            data = outbox.data_to_send(step[0])
            assert bytes(outbox.data_to_send(step[0])) == bytes(data)
            count = min(len(data), step[1])
            taken += bytes(data[:count])
            outbox.bytes_sent(count)
        assert outbox.committed_bytes == len(given_bytes) - len(taken)
        assert outbox.sent_bytes_total == len(taken)
    while data := outbox.data_to_send(16):
        count = min(len(data), last_count)
        taken += bytes(data[:count])
        outbox.bytes_sent(count)
    assert taken == given_bytes
    assert outbox.committed_bytes == 0


def test_about_the_limit_and_never_less_than_one_chunk() -> None:
    outbox = Outbox(Account())
    for _ in range(100):
        outbox.append(b"x" * 100)
    assert len(outbox.data_to_send(1000)) == 1000
    outbox.bytes_sent(1000)
    assert len(outbox.data_to_send(1)) == 100
    outbox.bytes_sent(60)
    assert len(outbox.data_to_send(1)) == 40
    outbox.bytes_sent(40)
    assert len(outbox.data_to_send(1 << 20)) == 8900


def test_a_large_payload_is_not_copied() -> None:
    outbox = Outbox(Account())
    payload = b"p" * 300_000
    outbox.append(b"head")
    outbox.append(payload)
    assert outbox.data_to_send(4) == b"head"
    outbox.bytes_sent(4)
    assert outbox.data_to_send(262_144) is payload
    outbox.bytes_sent(10)
    rest = outbox.data_to_send(262_144)
    assert isinstance(rest, memoryview)
    assert rest.obj is payload


def test_nothing_sent_changes_nothing() -> None:
    outbox = Outbox(Account())
    assert outbox.data_to_send(10) == b""
    outbox.append(b"abc")
    assert outbox.data_to_send(10) == b"abc"
    outbox.bytes_sent(0)
    assert outbox.data_to_send(10) == b"abc"


# ---- the queue of what waits unencoded ----


def test_waiting_messages_are_counted_here_and_in_the_account_of_all() -> None:
    account = Account()
    outbox, other = Outbox(account), WaitingQueue(account)
    first = delivery(b"12345")
    outbox.own_queue().append(first)
    outbox.own_queue().append(delivery(b"1"))
    other.append(delivery())
    assert (outbox.waiting.count, outbox.waiting.bytes) == (2, 8)
    assert (account.count, account.bytes) == (3, 9)
    assert outbox.waiting.pop() is first
    other.leave_account()
    assert (other.count, account.count, account.bytes) == (1, 1, 2)
    assert other.clear() == 1
    assert outbox.waiting.clear() == 1
    assert (account.count, account.bytes) == (0, 0)


VERBS = st.sampled_from(["append", "pop", "replace", "overtaken", "groups", "clear"])
STEPS = st.lists(st.tuples(VERBS, st.sampled_from("abc"), st.integers(0, 9)), max_size=60)


@given(STEPS)
def test_the_waiting_queue_is_like_a_list(steps: list[tuple[str, str, int]]) -> None:
    account = Account()
    queue = WaitingQueue(account)
    group = SharedGroup("g")
    model: list[tuple[str, bytes, bool]] = []
    for what, topic, number in steps:
        payload = b"x" * number
        shared = number % 2 == 1
        made = Delivery(ApplicationMessage(topic, payload), 1, False, (), group if shared else None, 0)
        if what == "append":
            queue.append(made)
            model.append((topic, payload, shared))
        elif what == "pop" and model:
            got = queue.pop()
            assert (got.message.topic, got.message.payload, got.group is group) == model.pop(0)
        elif what == "replace":
            places = [position for position, entry in enumerate(model) if entry[0] == topic]
            if model and not queue.is_indexed:
                assert queue.index(OverflowRules()) == 0
            older = queue.newest_on(topic)
            assert (older is not None) == bool(places)
            if older is not None:
                queue.replace(older, made)
                model[places[-1]] = (topic, payload, shared)
        elif what == "overtaken" and model:
            kept = [entry for position, entry in enumerate(model) if entry[0] == "c" or entry[0] not in {later[0] for later in model[position + 1 :]}]
            assert queue.index(OverflowRules({"c": "drop-oldest", "#": "latest"})) == len(model) - len(kept)
            model = kept
        elif what == "groups":
            assert [(d.message.topic, d.message.payload, True) for d in queue.take_groups()] == [entry for entry in model if entry[2]]
            model = [entry for entry in model if not entry[2]]
        elif what == "clear":
            assert queue.clear() == len(model)
            model = []
        assert (queue.count, queue.bytes) == (len(model), sum(1 + len(entry[1]) for entry in model))
        assert (account.count, account.bytes) == (queue.count, queue.bytes)
    assert [(d.message.topic, d.message.payload) for d in iter(lambda: queue.pop() if queue.count else None, None)] == [e[:2] for e in model]
