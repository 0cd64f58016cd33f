"""The file of a store, without a broker: whose it is and how large, every way not to open it, and what cannot be written."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from broker.core.saved import HELD, Changes, SavedIds, SavedWill
from broker.errors import StoreError
from broker.store import sqlite as module
from broker.store.sqlite import SqliteStore
from tests.e2e.tools import ROOT
from tests.store.rows import filled, message, session, two_kinds
from tests.systems import has_modes, has_symlinks

IN_USE: Final = "another broker is using it: stop that one, or choose another path"
SECONDS_MAX: Final = 20.0


# ---- the file ------------------------------------------------------------------------------------------------------------


@has_modes
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


@has_modes
def test_an_empty_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.touch(0o640)
    path.chmod(0o640)
    filled(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@has_symlinks
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
    small.ids = [SavedIds(2, HELD, b"\0\1")]
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
    if sys.platform != "win32":  # where such a path leads nowhere, which is said with the folder's name
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


@has_modes
def test_no_permission() -> None:
    with powerless() as folder:
        filled(folder / "secret.db", 1)
        filled(folder / "readable.db", 1)
        (folder / "secret.db").chmod(0)
        (folder / "readable.db").chmod(0o444)
        filled(folder / "alone.db", 1)
        (folder / "alone.db").chmod(0o666)
        with as_nobody(folder):
            wanted = {"new.db": f"make files in {folder}", "secret.db": "read and write it", "readable.db": "read and write it"}
            for name, right in wanted.items():
                assert cause_of(folder / name) == f"cannot be opened: permission denied: let this user {right}, or choose another path"
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


@pytest.mark.parametrize(("version", "age"), [(9, "a newer"), (1, "an older")])
def test_one_of_another_broker_of_ours(tmp_path: Path, version: int, age: str) -> None:
    path = tmp_path / "x.db"
    filled(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    assert cause_of(path) == f"was written by {age} broker (version {version}, this one knows 4): use that one, or choose another path"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_one_of_version_3_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    filled(path, 1)
    will = SavedWill(1, "c1", None, "mqtt://127.0.0.1:1883", "gone", b"", 0, 0, b"\0", None)
    with contextlib.closing(SqliteStore(path)) as store:
        changes = Changes(2)
        changes.wills = [will]
        store.write(changes)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table in ("sessions", "wills"):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN rights")
        connection.execute("PRAGMA user_version = 3")
    for rights in ("", "some"):
        with contextlib.closing(SqliteStore(path)) as store:
            saved = store.load()
            assert list(saved.sessions) == [session(1)._replace(rights=rights)]
            assert list(saved.wills) == [will._replace(rights=rights)]
            changes = Changes(3)
            changes.sessions = [session(1)._replace(rights="some")]
            changes.wills = [will._replace(rights="some")]
            store.write(changes)


def elsewhere(path: Path) -> str:
    """What another process is told."""
    program = (
        f"from broker.store.sqlite import *\ntry:\n    SqliteStore({str(path)!r}); print('opened')\nexcept StoreError as error:\n    print(error)"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=True).stdout.strip()


@has_symlinks
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
        refused = f"store {path}: {IN_USE}"
        assert said in (["opened", refused], [refused, refused])  # where each came between the other's locks


def test_a_closed_one(store: SqliteStore) -> None:
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.write(Changes(1))
    with pytest.raises(StoreError, match="is closed"):
        list(store.load().sessions)


# ---- what cannot be written ------------------------------------------------------------------------------------------------


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
    resource = pytest.importorskip("resource", reason="Windows bounds no file")
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
