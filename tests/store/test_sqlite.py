"""The store of one file, without a broker: what goes in comes out, every way not to open it, and what is left when it is killed or damaged."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.saved import SENT, WAITING, Changes, SavedId, SavedMessage, SavedRetained, SavedSession, SavedSubscription, SavedWill
from broker.errors import StoreError
from broker.store import sqlite as module
from broker.store.sqlite import SqliteStore
from tests.e2e.tools import ROOT
from tests.store.writer import KEPT, batch

IN_USE: Final = "another broker is using it: stop that one, or choose another path"
SECONDS_MAX: Final = 20.0


def message(
    session: int, key: int, place: int = WAITING, frame: bytes | None = b"\x32\x05\x00\x01a\x00\x01", order: int | None = None
) -> SavedMessage:
    return SavedMessage(session, place, key, key if order is None else order, frame, 5, "", "", None)


def session(number: int) -> SavedSession:
    return SavedSession(number, f"c{number}", None, "", "mqtt://127.0.0.1:1883", None, None)


def filled(path: Path, count: int = 2000) -> None:
    """A store of some hundred pages."""
    store = SqliteStore(path)
    changes = Changes(1)
    changes.sessions = [session(1)]
    changes.messages = [message(1, key, frame=bytes(500)) for key in range(count)]
    store.write(changes)
    store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "broker.db")
    yield opened
    opened.close()


# ---- what goes in comes out ----------------------------------------------------------------------------------------------


class Model:
    """What `Changes` asks for, with dicts."""

    def __init__(self) -> None:
        self.sessions: dict[int, SavedSession] = {}
        self.subscriptions: dict[tuple[int, str], SavedSubscription] = {}
        self.messages: dict[tuple[int, int, int], SavedMessage] = {}
        self.ids: dict[tuple[int, int], SavedId] = {}
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
        self.ids = {key: row for key, row in self.ids.items() if key not in changes.ids_gone}
        self.wills = {key: row for key, row in self.wills.items() if key not in changes.wills_gone}
        self.retained = {key: row for key, row in self.retained.items() if key not in changes.retained_gone}
        self.sessions.update((row.number, row) for row in changes.sessions)
        self.subscriptions.update(((row.session, row.filter), row) for row in changes.subscriptions)
        self.messages.update(((row.session, row.place, row.key), row) for row in changes.messages)
        self.ids.update(((row.session, row.packet_id), row) for row in changes.ids)
        self.wills.update((row.number, row) for row in changes.wills)
        self.retained.update((row.topic, row) for row in changes.retained)

    def is_in(self, store: SqliteStore) -> bool:
        saved = store.load()
        messages = list(saved.messages)
        return (
            list(saved.sessions) == sorted(self.sessions.values(), key=lambda row: row.number)
            and list(saved.subscriptions) == sorted(self.subscriptions.values(), key=lambda row: (row.session, row.filter.encode()))
            and messages == sorted(messages, key=lambda row: (row.session, row.place, row.order))
            and {(row.session, row.place, row.key): row for row in messages} == self.messages
            and len(messages) == len(self.messages)
            and list(saved.ids) == sorted(self.ids.values())
            and list(saved.wills) == sorted(self.wills.values(), key=lambda row: row.number)
            and list(saved.retained) == sorted(self.retained.values(), key=lambda row: row.topic.encode())
        )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.sampled_from(["a", "a/b", "+/#", "ü/\U0001f600"]) | texts  # few, so that they meet
numbers = st.sampled_from([1, 2, 3, 2**40])
times = st.none() | st.floats(0, allow_nan=False)
places = st.sampled_from([WAITING, SENT])
keys = st.integers(0, 4) | st.integers(0, 2**63 - 1)
bits = st.integers(0, 1)
wills = st.builds(SavedWill, numbers, texts, st.none() | texts, texts, names, st.binary(max_size=40), bits, bits, st.binary(max_size=40), times)


@st.composite
def saved_messages(draw: st.DrawFn) -> SavedMessage:
    place, key = draw(places), draw(keys)
    frame = draw(st.none() | st.binary(max_size=40) | st.binary(min_size=3000, max_size=3000))
    order = key if place == WAITING else draw(keys)
    return SavedMessage(draw(numbers), place, key, order, frame, draw(st.sampled_from([4, 5])), draw(texts), draw(texts), draw(times))


@st.composite
def changes_of_all(draw: st.DrawFn) -> Changes:
    changes = Changes(draw(st.integers(1, 2**62)))
    changes.ended = draw(st.lists(numbers, max_size=1))
    changes.cut = draw(st.lists(st.tuples(numbers, keys), max_size=1))
    changes.sessions = draw(st.lists(st.builds(SavedSession, numbers, texts, st.none() | texts, texts, texts, times, times), max_size=3))
    changes.subscriptions = draw(st.lists(st.builds(SavedSubscription, numbers, names, st.integers(0, 255), st.integers(0, 2**28)), max_size=3))
    changes.subscriptions_gone = draw(st.lists(st.tuples(numbers, names), max_size=3))
    changes.messages = draw(st.lists(saved_messages(), max_size=6))
    changes.messages_gone = draw(st.lists(st.tuples(numbers, places, keys), max_size=3))
    changes.ids = draw(st.lists(st.builds(SavedId, numbers, st.integers(1, 5)), max_size=3))
    changes.ids_gone = draw(st.lists(st.tuples(numbers, st.integers(1, 5)), max_size=3))
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
    changes.ids = [SavedId(7, 1)]
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


def test_messages_come_by_their_order(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.messages = [message(1, 65_535, SENT, order=1), message(1, 2, SENT, order=3), message(1, 9, SENT, order=2), message(1, 4)]
    store.write(changes)
    assert [(row.place, row.key) for row in store.load().messages] == [(WAITING, 4), (SENT, 65_535), (SENT, 9), (SENT, 2)]


def test_it_is_used_by_one_thread_after_another(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.sessions = [session(1)]
    thread = threading.Thread(target=store.write, args=[changes])
    thread.start()
    thread.join(SECONDS_MAX)
    assert list(store.load().sessions) == [session(1)]


def test_it_is_read_row_by_row(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.messages = [message(1, key) for key in range(1000)]
    store.write(changes)
    rows = store.load().messages
    assert next(rows) == message(1, 0)
    assert sum(1 for _ in rows) == 999


# ---- the file ------------------------------------------------------------------------------------------------------------


def test_a_new_one_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "broker.db")
    finally:
        os.umask(before)
    store.write(Changes(1))
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {"broker.db": 0o600, "broker.db-wal": 0o600}
    store.close()
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["broker.db"]


def test_an_empty_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.touch(0o640)
    path.chmod(0o640)
    filled(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "broker.db").symlink_to(tmp_path / "disk" / "real.db")
    filled(tmp_path / "broker.db")
    (tmp_path / "disk" / "real.db").write_bytes((tmp_path / "disk" / "real.db").read_bytes()[:20_000])
    store = SqliteStore(tmp_path / "broker.db")
    store.close()
    assert (tmp_path / "broker.db").is_symlink()
    assert store.set_aside is not None
    assert Path(store.set_aside).parent == (tmp_path / "disk").resolve()


def test_space_is_given_back_a_little_each_time(store: SqliteStore, tmp_path: Path) -> None:
    changes = Changes(1)
    changes.messages = [message(1, key, frame=bytes(1000)) for key in range(20_000)]
    changes.sessions = [session(1)]
    store.write(changes)
    ended = Changes(2)
    ended.ended = [1]
    small = Changes(3)
    small.ids = [SavedId(2, 1)]
    before = pages_of(store)
    for changes in (ended, *[small] * (before // module.GIVEN_BACK_PAGES)):
        store.write(changes)
        after = pages_of(store)
        assert before - after <= module.GIVEN_BACK_PAGES + 1  # and one that says where the others are
        before = after
    assert after <= module.FREE_PAGES_MAX + module.GIVEN_BACK_PAGES
    store.close()
    assert (tmp_path / "broker.db").stat().st_size == after * module.PAGE_BYTES


def pages_of(store: SqliteStore) -> int:
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    assert isinstance(pages, int)
    return pages


def test_the_log_beside_it_is_bounded(store: SqliteStore, tmp_path: Path) -> None:
    large = Changes(1)
    large.messages = [message(1, key, frame=bytes(2000)) for key in range(12_000)]
    store.write(large)
    for number in range(2000):
        changes = Changes(number)
        changes.messages = [message(number % 50, 0, frame=bytes(100)), message(number % 20, 1, frame=bytes(5000))]
        store.write(changes)
    assert (tmp_path / "broker.db-wal").stat().st_size <= module.WAL_BYTES_MAX


# ---- every way not to open it ----------------------------------------------------------------------------------------------


def cause_of(path: str | Path) -> str:
    with pytest.raises(StoreError) as caught:
        SqliteStore(path)
    text = str(caught.value)
    assert text.startswith(f"store {path}: ")
    assert "\n" not in text
    assert not caught.value.damaged
    return text.removeprefix(f"store {path}: ")


def test_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "no" / "where"
    assert cause_of(folder / "x.db") == f"cannot be opened: no such file or directory: make its folder, {folder}, or choose another path"
    assert not (tmp_path / "no").exists()


def test_what_is_no_file(tmp_path: Path) -> None:
    assert cause_of(tmp_path) == "is a folder: give the path of a file in it"
    os.mkfifo(tmp_path / "pipe")
    assert cause_of(tmp_path / "pipe") == "is no file: choose another path"
    (tmp_path / "file").touch()
    assert cause_of(tmp_path / "file" / "x.db") == "cannot be opened: not a directory; choose another path"
    assert cause_of(tmp_path / ("x" * 300)) == "cannot be opened: file name too long; choose another path"


@contextlib.contextmanager
def powerless() -> Iterator[Path]:
    """A folder that a process may enter which is root's no more: root may do everything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    if os.geteuid() == 0:
        os.seteuid(65_534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)


def test_no_permission() -> None:
    with powerless() as folder:
        filled(folder / "secret.db", 1)
        filled(folder / "readable.db", 1)
        (folder / "secret.db").chmod(0)
        (folder / "readable.db").chmod(0o444)
        filled(folder / "alone.db", 1)
        (folder / "alone.db").chmod(0o666)
        with as_nobody(folder):
            for name in ("new.db", "secret.db", "readable.db"):
                assert cause_of(folder / name) == "cannot be opened: permission denied; choose another path, or let this user read and write there"
            assert "this user needs to read and write it, and to make files beside it" in cause_of(folder / "alone.db")
        assert sorted(path.name for path in folder.iterdir()) == ["alone.db", "readable.db", "secret.db"]


def make_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")


OTHERS: Final[dict[str, Callable[[Path], object]]] = {
    "text": lambda path: path.write_text("what somebody wrote\n" * 20),
    "short": lambda path: path.write_text("x"),
    "database": make_database,
    "zeros": lambda path: path.write_bytes(bytes(20_000)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_ours_is_not_touched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.db"
    OTHERS[kind](path)
    before, changed_at = path.read_bytes(), path.stat().st_mtime_ns
    assert cause_of(path) == "is no store of this broker: choose another path"
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == changed_at
    assert list(tmp_path.iterdir()) == [path]


def test_a_newer_brokers(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    filled(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    assert cause_of(path) == "was written by a newer broker (version 9, this one knows 1): use that one, or choose another path"
    assert list(tmp_path.iterdir()) == [path]


def elsewhere(path: Path) -> str:
    """What another process is told."""
    program = (
        f"from broker.store.sqlite import *\ntry:\n    SqliteStore({str(path)!r}); print('opened')\nexcept StoreError as error:\n    print(error)"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=True).stdout.strip()


def test_another_brokers(store: SqliteStore, tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    assert elsewhere(path) == f"store {path}: {IN_USE}"
    # In this process a look at the file would take the other store's locks away.
    (tmp_path / "link.db").symlink_to(path)
    assert cause_of(path) == cause_of(tmp_path / "link.db") == IN_USE
    assert elsewhere(path) == f"store {path}: {IN_USE}"
    store.write(Changes(1))
    store.close()
    assert elsewhere(path) == "opened"


def test_two_that_begin_at_once_are_not_both_let_in(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.db"
        program = (
            "from broker.store.sqlite import *\ninput()\n"
            f"try:\n    store = SqliteStore({str(path)!r}); print('opened', flush=True); input()\n"
            "except StoreError as error:\n    print(error, flush=True)"
        )
        command = [sys.executable, "-c", program]
        with contextlib.ExitStack() as stack:
            both = [
                stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) for _ in range(2)
            ]
            for process in both:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            said = sorted(process.stdout.readline().strip() for process in both if process.stdout is not None)
            for process in both:
                process.kill()
        assert said == ["opened", f"store {path}: {IN_USE}"]


def test_a_closed_one(store: SqliteStore) -> None:
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.write(Changes(1))
    with pytest.raises(StoreError, match="is closed"):
        list(store.load().sessions)


# ---- what cannot be written ------------------------------------------------------------------------------------------------


def two_kinds(number: int) -> Changes:
    changes = Changes(number)
    changes.ended = [1]
    changes.sessions = [session(2)]
    changes.messages = [message(2, key, frame=bytes(5000)) for key in range(100)]
    return changes


def test_a_full_disk_changes_nothing_and_the_same_may_be_tried_again(store: SqliteStore) -> None:
    first = Changes(1)
    first.sessions = [session(1)]
    first.messages = [message(1, 1)]
    store.write(first)
    store.connection.execute(f"PRAGMA max_page_count = {pages_of(store) + 10}")
    for _ in range(3):
        with pytest.raises(StoreError, match=r"broker\.db: its disk is full: make room there$"):
            store.write(two_kinds(2))
        assert (list(store.load().sessions), list(store.load().messages)) == ([session(1)], [message(1, 1)])
    store.connection.execute("PRAGMA max_page_count = 1000000")
    store.write(two_kinds(2))
    assert list(store.load().sessions) == [session(2)]
    assert list(store.load().messages) == two_kinds(2).messages


@pytest.mark.parametrize("rows", [1, 100])
def test_a_disk_that_fails_likewise(store: SqliteStore, tmp_path: Path, rows: int) -> None:
    """No file may grow: the write itself fails, when the rows are there or only when they are to be on disk."""
    first = Changes(1)
    first.sessions = [session(1)]
    store.write(first)
    second = Changes(2)
    second.ended = [1]
    second.messages = [message(2, key, frame=bytes(200_000)) for key in range(rows)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "broker.db-wal").stat().st_size + 10_000, limits[1]))
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match="disk I/O error; look at its disk"):
                store.write(second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(store.load().sessions) == [session(1)]
    store.write(second)
    store.close()
    store = SqliteStore(tmp_path / "broker.db")
    assert not list(store.load().sessions)
    assert list(store.load().messages) == second.messages
    store.close()


def test_a_fault_of_ours_leaves_nothing_half_written(store: SqliteStore) -> None:
    changes = Changes(1)
    changes.sessions = [session(1)]
    changes.messages = [message(1, 1)._replace(identifiers="\udcff")]
    with pytest.raises(UnicodeEncodeError):
        store.write(changes)
    assert not list(store.load().sessions)
    changes.messages = [message(1, 1)]
    store.write(changes)
    assert list(store.load().sessions) == [session(1)]


# ---- damage ----------------------------------------------------------------------------------------------------------------


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(start: int, length: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(random.Random(start).randbytes(length))

    return damage


def keep_the_header(path: Path) -> None:
    os.truncate(path, 100)


DAMAGES: Final = [halve, overwrite(100, 5000), overwrite(module.PAGE_BYTES * 3, 200_000), keep_the_header]


@pytest.mark.parametrize("damage", DAMAGES, ids=["half of it", "its tables", "its middle", "only its header"])
def test_a_damaged_one_is_set_aside_and_a_new_one_begun(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "broker.db"
    filled(path)
    damage(path)
    damaged = path.read_bytes()
    store = SqliteStore(path)
    assert store.set_aside is not None
    assert store.set_aside.startswith(f"{path}.damaged-2")
    assert Path(store.set_aside).read_bytes() == damaged
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [*store.load().sessions, *store.load().messages]
    store.write(two_kinds(1))
    store.close()
    store = SqliteStore(path)
    assert store.set_aside is None
    assert list(store.load().messages) == two_kinds(1).messages
    store.close()


def test_each_damaged_one_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 1, 2, 3, 4, 5, 0, 0, 0)))
    path = tmp_path / "broker.db"
    for _ in range(3):
        filled(path)
        halve(path)
        SqliteStore(path).close()
    name = "broker.db.damaged-20260102T030405"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["broker.db", name, f"{name}-2", f"{name}-3"]


def test_its_log_goes_with_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "broker.db", tmp_path / "copy.db"
    filled(path)
    store = SqliteStore(path)
    store.write(two_kinds(2))
    log = shutil.copy(f"{path}-wal", f"{copy}-wal")  # as after a kill
    shutil.copy(path, copy)
    store.close()
    written = Path(log).read_bytes()
    overwrite(module.PAGE_BYTES * 3, 200_000)(copy)
    store = SqliteStore(copy)
    assert store.set_aside is not None
    assert not list(store.load().sessions)
    store.close()
    aside = Path(f"{store.set_aside}-wal")
    assert not aside.exists() or aside.read_bytes() == written


def test_damage_while_it_is_used_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    filled(path)
    store = SqliteStore(path)
    store.connection.execute("PRAGMA shrink_memory")  # forget what was read
    overwrite(module.PAGE_BYTES * 3, 500_000)(path)
    with pytest.raises(StoreError, match=r"is damaged \(database disk image is malformed\)") as caught:
        list(store.load().messages)
    assert caught.value.damaged
    ended = Changes(2)
    ended.ended = [1]
    with pytest.raises(StoreError, match="is damaged") as caught:
        store.write(ended)
    assert caught.value.damaged
    store.begin_anew()
    store.write(two_kinds(3))
    assert store.set_aside is not None
    assert list(store.load().messages) == two_kinds(3).messages
    store.close()


def test_one_that_cannot_be_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(13, "no")

    path = tmp_path / "broker.db"
    filled(path)
    halve(path)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError, match="is damaged, and cannot be set aside: permission denied; move it away"):
        SqliteStore(path)
    monkeypatch.undo()
    store = SqliteStore(path)
    assert store.set_aside is not None
    store.close()


def test_text_with_a_turned_bit_is_read_all_the_same(store: SqliteStore) -> None:
    store.connection.execute("INSERT INTO retained VALUES (CAST(x'61ff62' AS TEXT), x'00', NULL)")
    assert list(store.load().retained) == [SavedRetained("a\ufffdb", b"\0", None)]


# ---- kill -9 ---------------------------------------------------------------------------------------------------------------


def killed(path: Path, chance: random.Random) -> int:
    """Let a writer go on with it for a while; the last number that it said, 0 for none."""
    command = [sys.executable, "-m", "tests.store.writer", str(path)]
    said = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if chance.random() < 0.5:
            for _ in range(chance.randrange(80)):
                said = int(process.stdout.readline())
        time.sleep(chance.random() * 0.02)  # any moment: of its opening, if it has said nothing
        process.kill()
        rest = process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    return int(rest[-1]) if rest else said


def check_whole(path: Path, said: int) -> int:
    """Everything that was said is there, and of each batch all or nothing; the last one that is."""
    store = SqliteStore(path)
    saved = store.load()
    there = [row.number for row in saved.sessions]
    last = there[-1] if there else 0
    batches = [batch(number) for number in range(max(1, last - KEPT + 1), last + 1)]
    assert list(saved.sessions) == [row for changes in batches for row in changes.sessions]
    assert list(saved.messages) == [row for changes in batches for row in changes.messages]
    assert list(saved.retained) == (batches[-1].retained if batches else [])
    assert store.set_aside is None
    store.close()
    assert said <= last
    return last


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_was_said_to_be_written_survives_a_kill(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "broker.db"
    last = 0
    for _ in range(10):
        before, said = last, killed(path, chance)
        last = check_whole(path, said)
        assert last <= max(before, said) + 1
    assert last > KEPT


def test_a_kill_while_it_is_made(tmp_path: Path) -> None:
    """Whenever that is, the next one begins, and takes nothing for damaged or somebody else's."""
    chance = random.Random(3)
    for number in range(15):
        path = tmp_path / f"{number}.db"
        check_whole(path, killed(path, chance))
