"""The retained store against a dict and the naive matcher; what a cursor promises while messages come and go; work by counts."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.core.kept import Expiring, Kept, kept_of, size_of, topic_of
from broker.core.message import ApplicationMessage
from broker.core.retained import ReplayCursor, RetainedStore
from broker.wire.topics import matches

LEVEL = st.sampled_from(["", "a", "b", "c", "$x"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = st.lists(LEVEL | st.just("+"), max_size=4).flatmap(lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"])])).filter(bool)


def kept(topic: str, payload: bytes = b"x") -> Kept:
    return kept_of(message(topic, payload))


def message(topic: str, payload: bytes = b"x", expires_at: float = float("inf")) -> ApplicationMessage:
    return ApplicationMessage(topic, payload, 0, True, expires_at=expires_at)


def store_of(*topics: str) -> RetainedStore:
    store = RetainedStore()
    for topic in topics:
        store.set(message(topic))
    return store


def drain(cursor: ReplayCursor, now: float = 0.0, visits_max: int = 7, matches_max: int = 5) -> list[Kept]:
    found: list[Kept] = []
    while not cursor.exhausted:
        before = cursor.visits
        batch = cursor.next_batch(visits_max, matches_max, now)
        assert len(batch) <= matches_max
        assert 0 < cursor.visits - before <= visits_max
        found += batch
    assert cursor.next_batch(visits_max, matches_max, now) == []
    return found


def topics(store: RetainedStore, filter: str, now: float = 0.0) -> list[str]:
    return sorted(topic_of(found) for found in drain(store.cursor(filter), now))


# ---- one after the other ----------------------------------------------------------------------------------------------


def test_set_get_clear() -> None:
    store = RetainedStore()
    first, second = message("a/b", b"12"), message("a/b", b"345")
    assert store.set(first) is None
    assert store.get("a/b") == kept_of(first)
    assert (len(store), store.bytes) == (1, 9)
    assert store.set(second) == kept_of(first)
    assert (len(store), store.bytes) == (1, 10)
    assert store.get("a") is None
    assert store.get("a/b/c") is None
    assert store.clear("a") is None
    assert store.clear("a/b/c") is None
    assert store.clear("a/b") == kept_of(second)
    assert store.clear("a/b") is None
    assert store.get("a/b") is None
    assert (len(store), store.bytes) == (0, 0)
    assert store.statistics() == {"messages": 0, "bytes": 0}


def test_bytes_are_those_of_the_frame() -> None:
    store = RetainedStore()
    store.set(message("é/温", b"123"))
    assert store.bytes == 4 + 2 + 1 + 3 + 3


def test_a_topic_and_those_below_it_live_and_go_each_by_itself() -> None:
    store = store_of("a", "a/b", "a/b/c")
    assert topics(store, "#") == ["a", "a/b", "a/b/c"]
    assert store.clear("a/b") is not None
    assert topics(store, "#") == ["a", "a/b/c"]
    assert store.clear("a/b/c") is not None
    assert topics(store, "#") == ["a"]
    store.set(message("a/z"))
    assert store.clear("a") is not None
    assert topics(store, "a/#") == ["a/z"]
    assert store.get("a") is None


def test_an_empty_store_has_nothing_to_look_at() -> None:
    for filter in ("#", "+", "+/a"):
        assert RetainedStore().cursor(filter).exhausted
    assert topics(RetainedStore(), "a/b") == []


@given(st.sets(TOPIC, max_size=20), FILTER, st.integers(1, 5), st.integers(1, 5))
def test_the_same_as_a_naive_search(names: set[str], filter: str, visits_max: int, matches_max: int) -> None:
    found = [topic_of(message) for message in drain(store_of(*sorted(names)).cursor(filter), 0.0, visits_max, matches_max)]
    assert sorted(found) == sorted(name for name in names if matches(filter, name))


def test_expired_messages_are_passed_over() -> None:
    store = RetainedStore()
    store.set(message("a", expires_at=10.0))
    store.set(message("b", expires_at=10.5))
    store.set(message("c"))
    assert topics(store, "#", now=9.9) == ["a", "b", "c"]
    assert topics(store, "#", now=10.0) == ["b", "c"]
    assert len(store) == 3


def test_drop_expired_takes_only_that_very_message() -> None:
    store = RetainedStore()
    store.set(message("a", expires_at=1.0))
    old = store.get("a")
    assert isinstance(old, Expiring)
    store.set(message("a", expires_at=1.0))
    assert not store.drop_expired(old)
    new = store.get("a")
    assert isinstance(new, Expiring)
    assert new is not old
    assert store.drop_expired(new)
    assert not store.drop_expired(new)
    assert len(store) == 0


# ---- a cursor while messages come and go --------------------------------------------------------------------------------


def test_the_value_is_that_of_the_time_of_visiting() -> None:
    store = store_of("a", "b", "c")
    cursor = store.cursor("#")
    assert [topic_of(found) for found in cursor.next_batch(10, 1, 0.0)] == ["a"]
    store.set(message("c", b"newer"))
    store.clear("b")
    assert cursor.next_batch(10, 10, 0.0) == [kept("c", b"newer")]
    assert cursor.exhausted


def test_cleared_and_set_again_is_given_at_most_once() -> None:
    store = store_of("a", "b", "c")
    cursor = store.cursor("+")
    assert len(cursor.next_batch(1, 1, 0.0)) == 1
    for topic in ("a", "c"):
        store.clear(topic)
        store.set(message(topic))
    assert [topic_of(found) for found in drain(cursor)] == ["b", "c"]


def test_a_node_made_anew_under_a_cursor() -> None:
    names = [f"t/{index}" for index in range(1000)]
    store = store_of(*names)
    cursor = store.cursor("t/+")
    seen = [topic_of(found) for found in cursor.next_batch(1000, 100, 0.0)]
    for name in names[:90] + names[200:900]:  # far more than half: the names are compacted, more than once
        store.clear(name)
    for name in names[200:300]:
        store.set(message(name))
    for index in range(1000, 1100):
        store.set(message(f"t/{index}"))
    seen += [topic_of(found) for found in drain(cursor)]
    assert Counter(seen).most_common(1)[0][1] == 1
    assert {*names[100:200], *names[900:]} <= set(seen)


def test_a_leaf_becomes_a_branch_and_a_leaf_again_under_a_cursor() -> None:
    store = store_of("a", "b", "c")
    cursor = store.cursor("#")
    assert [topic_of(found) for found in cursor.next_batch(1, 1, 0.0)] == ["a"]
    store.set(message("a/x"))  # behind the cursor
    store.set(message("b/x"))  # before it
    store.set(message("c/x"))
    store.clear("c/x")
    seen = [topic_of(found) for found in drain(cursor)]
    assert [name for name in seen if name in ("b", "c")] == ["b", "c"]
    assert "a" not in seen


def test_a_branch_that_goes_while_the_cursor_is_in_it() -> None:
    store = store_of("a/1", "a/2", "b")
    cursor = store.cursor("#")
    assert [topic_of(found) for found in cursor.next_batch(2, 1, 0.0)] == ["a/1"]
    store.clear("a/1")
    store.clear("a/2")
    store.set(message("a/2"))
    assert [topic_of(found) for found in drain(cursor) if topic_of(found) == "b"] == ["b"]


class CursorMachine(RuleBasedStateMachine):
    """Sets, clears and cursors in any order. Truth is a dict; of each cursor we know what it must, may and may not give."""

    @initialize(names=st.sets(TOPIC, max_size=30))
    def start(self, names: set[str]) -> None:
        self.store = RetainedStore()
        self.truth: dict[str, Kept] = {}
        self.serial = 0
        self.cursor: ReplayCursor | None = None
        for name in sorted(names):
            self.put(name)

    @rule(name=TOPIC)
    def put(self, name: str) -> None:
        self.serial += 1
        new = message(name, b"%04d" % (self.serial % 10_000))
        assert self.store.set(new) == self.truth.get(name)
        self.truth[name] = kept_of(new)

    @rule(name=TOPIC)
    def take(self, name: str) -> None:
        assert self.store.clear(name) == self.truth.pop(name, None)
        if self.cursor is not None:
            self.due.discard(name)

    @rule(data=st.data())
    def take_several(self, data: st.DataObject) -> None:
        for name in data.draw(st.lists(st.sampled_from(sorted(self.truth)), max_size=20, unique=True)) if self.truth else []:
            self.take(name)

    @rule(index=st.integers(0, 3))
    def churn_one_node(self, index: int) -> None:
        # Enough of them to have the node made anew.
        names = [f"{['', 'a/', 'a/b/', 'c/'][index]}churn{number}" for number in range(20)]
        for name in names:
            self.put(name)
        for name in names:
            self.take(name)

    @rule(filter=FILTER)
    def open(self, filter: str) -> None:
        self.cursor = self.store.cursor(filter)
        self.filter = filter
        self.due = {name for name in self.truth if matches(filter, name)}
        self.given: set[str] = set()

    @precondition(lambda self: self.cursor is not None)
    @rule(visits_max=st.integers(1, 10), matches_max=st.integers(1, 10))
    def step(self, visits_max: int, matches_max: int) -> None:
        assert self.cursor is not None
        before = self.cursor.visits
        batch = self.cursor.next_batch(visits_max, matches_max, 0.0)
        assert len(batch) <= matches_max
        assert self.cursor.visits - before <= visits_max
        for found in batch:
            topic = topic_of(found)
            assert self.truth[topic] == found
            assert matches(self.filter, topic)
            assert topic not in self.given
            self.given.add(topic)
            self.due.discard(topic)
        if self.cursor.exhausted:
            assert not self.due
            self.cursor = None

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "truth"):
            assert len(self.store) == len(self.truth)
            assert self.store.bytes == sum(map(size_of, self.truth.values()))

    def teardown(self) -> None:
        if hasattr(self, "truth"):
            assert sorted(self.truth) == sorted(topics(self.store, "#") + topics(self.store, "$x/#"))
            for name in list(self.truth):
                self.take(name)
            assert topics(self.store, "#") == []


TestCursorMachine = CursorMachine.TestCase
TestCursorMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---- bounds, by counts --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> RetainedStore:
    """100,000 topics: 100 buildings with 100 rooms with 10 sensors."""
    store = RetainedStore()
    for building in range(100):
        for room in range(100):
            for sensor in range(10):
                store.set(message(f"building{building}/room{room}/sensor{sensor}"))
    return store


def test_a_replay_of_everything_is_bounded_per_step(large: RetainedStore) -> None:
    cursor = large.cursor("#")
    steps = 0
    count = 0
    while not cursor.exhausted:
        before = cursor.visits
        count += len(cursor.next_batch(500, 200, 0.0))
        steps += 1
        assert cursor.visits - before <= 500
    assert count == len(large) == 100_000
    assert cursor.visits <= 100_000 + 100 * 100 + 100
    assert steps >= 500


@pytest.mark.parametrize(
    ("filter", "count", "visits_max"),
    [
        ("building7/room3/sensor2", 1, 3),
        ("building7/room3/+", 10, 12),
        ("building7/room3/#", 10, 12),
        ("building7/+/sensor2", 100, 1 + 100 + 100),
        ("+/room3/sensor2", 100, 100 + 100 + 100),
        ("building7/#", 1000, 1 + 100 + 1000),
        ("building7/none/#", 0, 2),
        ("none/+/#", 0, 1),
        ("+", 0, 100),
    ],
)
def test_narrow_filters_touch_only_their_branches(large: RetainedStore, filter: str, count: int, visits_max: int) -> None:
    cursor = large.cursor(filter)
    assert len(drain(cursor)) == count
    assert cursor.visits <= visits_max


def test_visits_that_find_nothing_are_bounded_too(large: RetainedStore) -> None:
    cursor = large.cursor("+/+/none")
    assert cursor.next_batch(1000, 10, 0.0) == []
    assert cursor.visits == 1000
    assert not cursor.exhausted


def test_tombstones_cost_visits_and_not_more_than_what_lives() -> None:
    store = store_of(*(f"t{index}" for index in range(10_000)))
    for index in range(9_990):
        store.clear(f"t{index}")
    cursor = store.cursor("#")
    assert len(drain(cursor)) == 10
    assert cursor.visits <= 2 * 10 + 32


@pytest.mark.parametrize("pattern", ["{}", "a/{}", "a/{}/b", "a/b/{}/c/d"])
def test_adding_and_clearing_for_ever_takes_no_memory(pattern: str) -> None:
    store = store_of("a", "a/b", "z/z")
    tracemalloc.start()
    try:
        for index in range(20_000):
            topic = pattern.format(index)
            store.set(message(topic))
            store.clear(topic)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()
    assert topics(store, "#") == ["a", "a/b", "z/z"]


@pytest.mark.parametrize("pattern", ["sensors/{}", "device-{}", "site/room-{}/temperature"])
def test_memory_for_a_message(pattern: str) -> None:
    count = 20_000
    store = RetainedStore()
    tracemalloc.start()
    try:
        for index in range(count):
            store.set(message(pattern.format(index), bytes(64)))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / count <= 450
