"""What goes in comes out: every kind of row, by its key, in its order, also when the same is written twice."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.saved import (
    HELD,
    RELEASED,
    SENT,
    WAITING,
    Changes,
    SavedIds,
    SavedMessage,
    SavedRetained,
    SavedRun,
    SavedSession,
    SavedShared,
    SavedSubscription,
    SavedWill,
)
from broker.store.sqlite import SqliteStore
from tests.store.rows import message, session


class Model:
    """What `Changes` asks for, with dicts."""

    def __init__(self) -> None:
        self.sessions: dict[int, SavedSession] = {}
        self.subscriptions: dict[tuple[int, str], SavedSubscription] = {}
        self.messages: dict[tuple[int, int, int], SavedMessage] = {}
        self.runs: dict[int, SavedRun] = {}
        self.shared: dict[int, SavedShared] = {}
        self.ids: dict[tuple[int, int], SavedIds] = {}
        self.wills: dict[int, SavedWill] = {}
        self.retained: dict[str, SavedRetained] = {}

    def write(self, changes: Changes) -> None:
        for number in changes.ended:
            self.sessions.pop(number, None)
            self.subscriptions = {key: row for key, row in self.subscriptions.items() if row.session != number}
            self.messages = {key: row for key, row in self.messages.items() if row.session != number}
            self.ids = {key: row for key, row in self.ids.items() if row.session != number}
        for number, order in changes.cut:
            self.messages = {
                key: row for key, row in self.messages.items() if (row.session, row.place) != (number, WAITING) or row.order >= order
            }  # fmt: skip
        self.subscriptions = {key: row for key, row in self.subscriptions.items() if key not in changes.subscriptions_gone}
        self.messages = {key: row for key, row in self.messages.items() if key not in changes.messages_gone}
        self.runs = {key: row for key, row in self.runs.items() if key not in changes.runs_gone}
        self.shared = {key: row for key, row in self.shared.items() if key not in changes.shared_gone}
        self.ids = {key: row for key, row in self.ids.items() if key not in changes.ids_gone}
        self.wills = {key: row for key, row in self.wills.items() if key not in changes.wills_gone}
        self.retained = {key: row for key, row in self.retained.items() if key not in changes.retained_gone}
        self.sessions.update((row.number, row) for row in changes.sessions)
        self.subscriptions.update(((row.session, row.filter), row) for row in changes.subscriptions)
        self.messages.update(((row.session, row.place, row.key), row) for row in changes.messages)
        self.shared.update((row.number, row) for row in changes.shared)
        self.runs.update((row.number, row) for row in changes.runs)
        for order, places, number in changes.runs_changed:
            if number in self.runs:
                self.runs[number] = self.runs[number]._replace(order=order, places=places)
        self.ids.update(((row.session, row.kind), row) for row in changes.ids)
        self.wills.update((row.number, row) for row in changes.wills)
        self.retained.update((row.topic, row) for row in changes.retained)

    def is_in(self, store: SqliteStore) -> bool:
        saved = store.load()
        messages = list(saved.messages)
        return (
            list(saved.sessions) == sorted(self.sessions.values(), key=lambda row: row.number)
            and list(saved.subscriptions) == sorted(self.subscriptions.values(), key=lambda row: (row.session, row.filter.encode()))
            and messages == sorted(messages, key=lambda row: (row.session, row.place, row.key))
            and {(row.session, row.place, row.key): row for row in messages} == self.messages
            and len(messages) == len(self.messages)
            and list(saved.runs) == sorted(self.runs.values())
            and list(saved.shared) == sorted(self.shared.values())
            and list(saved.ids) == sorted(self.ids.values())
            and list(saved.wills) == sorted(self.wills.values(), key=lambda row: row.number)
            and list(saved.retained) == sorted(self.retained.values(), key=lambda row: row.topic.encode())
        )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.sampled_from(["a", "a/b", "+/#", "ü/\U0001f600"]) | texts  # few, so that they meet
numbers = st.sampled_from([1, 2, 3, 2**40])
times = st.none() | st.floats(0, allow_nan=False)
places = st.sampled_from([WAITING, SENT])
kinds = st.sampled_from([RELEASED, HELD])
ids = st.binary(max_size=8)
frames = st.binary(max_size=40) | st.binary(min_size=9000, max_size=9000)
keys = st.integers(0, 4) | st.integers(0, 2**63 - 1)
bits = st.integers(0, 1)
wills = st.builds(SavedWill, numbers, texts, st.none() | texts, texts, names, st.binary(max_size=40), bits, bits, st.binary(max_size=40), times)


@st.composite
def saved_messages(draw: st.DrawFn) -> SavedMessage:
    place, key = draw(places), draw(keys)
    frame = draw(st.binary(max_size=40) | st.binary(min_size=3000, max_size=3000))
    order = key if place == WAITING else draw(keys)
    return SavedMessage(draw(numbers), place, key, order, frame, draw(st.sampled_from([4, 5])), draw(texts), draw(texts), draw(times))


@st.composite
def changes_of_all(draw: st.DrawFn) -> Changes:
    changes = Changes(draw(st.integers(1, 2**62)))
    changes.ended = draw(st.lists(numbers, max_size=1))
    changes.cut = draw(st.lists(st.tuples(numbers, keys), max_size=1))
    changes.sessions = draw(st.lists(st.builds(SavedSession, numbers, texts, st.none() | texts, texts, texts, times, times, texts), max_size=3))
    changes.subscriptions = draw(st.lists(st.builds(SavedSubscription, numbers, names, st.integers(0, 255), st.integers(0, 2**28)), max_size=3))
    changes.subscriptions_gone = draw(st.lists(st.tuples(numbers, names), max_size=3))
    changes.messages = draw(st.lists(saved_messages(), max_size=6))
    changes.messages_gone = draw(st.lists(st.tuples(numbers, places, keys), max_size=3))
    changes.shared = draw(st.lists(st.builds(SavedShared, numbers, frames), max_size=2))
    changes.shared_gone = draw(st.lists(numbers, max_size=2))
    sizes, versions = st.integers(1, 9000), st.sampled_from([4, 5])
    changes.runs = draw(st.lists(st.builds(SavedRun, numbers, numbers, keys, st.integers(1, 2), sizes, versions, numbers, ids, frames), max_size=3))
    changes.runs_changed = draw(st.lists(st.tuples(keys, ids, numbers), max_size=3))
    changes.runs_gone = draw(st.lists(numbers, max_size=2))
    changes.ids = draw(st.lists(st.builds(SavedIds, numbers, kinds, ids), max_size=3))
    changes.ids_gone = draw(st.lists(st.tuples(numbers, kinds), max_size=3))
    changes.wills = draw(st.lists(wills, max_size=3))
    changes.wills_gone = draw(st.lists(numbers, max_size=2))
    changes.retained = draw(st.lists(st.builds(SavedRetained, names, st.binary(max_size=40), times), max_size=3))
    changes.retained_gone = draw(st.lists(names, max_size=3))
    return changes


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was made: it takes some waiting for the disk to make each."""
    path = tmp_path_factory.mktemp("blank") / "broker.db"
    SqliteStore(path).close()
    return path


@given(all_changes=st.lists(changes_of_all(), max_size=4), twice=st.integers(0, 3))
def test_it_has_what_was_written_and_twice_is_as_once(blank: Path, all_changes: list[Changes], twice: int) -> None:
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(blank, folder))
        store = SqliteStore(path)
        for index, changes in enumerate(all_changes):
            store.write(changes)
            if index == twice:
                store.write(changes)
            model.write(changes)
            assert model.is_in(store)
        store.close()
        store = SqliteStore(path)
        assert model.is_in(store)
        store.close()


def test_an_end_comes_before_what_has_the_same_number(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.sessions = [session(7)]
    changes.messages = [message(7, key) for key in range(5)] + [message(7, 9, SENT)]
    changes.subscriptions = [SavedSubscription(7, "old", 1, 0)]
    changes.ids = [SavedIds(7, HELD, b"\0\1")]
    will = SavedWill(7, "c7", None, "", "gone", b"", 0, 0, b"\0", None)
    changes.wills = [will]
    store.write(changes)
    again = Changes(2)
    again.ended = [7]
    again.sessions = [session(7)]
    again.messages = [message(7, 3)]
    store.write(again)
    saved = store.load()
    assert list(saved.messages) == [message(7, 3)]
    assert list(saved.sessions) == [session(7)]
    assert not [*saved.subscriptions, *saved.ids]
    assert list(saved.wills) == [will]  # with a number of its own, and it may outlive the Session


def test_a_cut_is_of_what_waits(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.messages = [message(7, key) for key in range(5)] + [message(7, 1, SENT), message(8, 1)]
    store.write(changes)
    cut = Changes(2)
    cut.cut = [(7, 3)]
    cut.messages = [message(7, 2)]  # written after the cut
    store.write(cut)
    assert list(store.load().messages) == [message(7, 2), message(7, 3), message(7, 4), message(7, 1, SENT), message(8, 1)]


def test_waiting_messages_come_by_their_order(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.messages = [message(1, 65_535, SENT, order=1), message(1, 2**40), message(1, 9), message(1, 4)]
    store.write(changes)
    assert [(row.place, row.key) for row in store.load().messages] == [(WAITING, 4), (WAITING, 9), (WAITING, 2**40), (SENT, 65_535)]


def test_it_is_used_by_one_thread_after_another(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.sessions = [session(1)]
    thread = threading.Thread(target=store.write, args=[changes])
    thread.start()
    thread.join()
    assert list(store.load().sessions) == [session(1)]


def test_it_is_read_row_by_row(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.messages = [message(1, key) for key in range(1000)]
    store.write(changes)
    rows = store.load().messages
    assert next(rows) == message(1, 0)
    assert sum(1 for _ in rows) == 999
