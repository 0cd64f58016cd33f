"""The store of one file: SQLite, whose transactions are what "all or nothing, and on disk" means here.

One broker has the file to itself for as long as it runs (locking_mode EXCLUSIVE). A file that is not ours is never touched. One that is ours and
damaged is set aside under another name and a new one begun: a gateway that does not start after a power cut helps nobody. No Trio: it blocks,
and is to be called in a thread, by one at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from os import PathLike
from typing import Final, NamedTuple, TypeVar

from broker.core.saved import (
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
from broker.errors import StoreError
from broker.words import strerror

APPLICATION_ID: Final = int.from_bytes(b"TMQB", "big")
VERSION: Final = 4
"""Of the tables; in `user_version`, where 0 is a file without any."""

WAL_BYTES_MAX: Final = 16 * 1024 * 1024
"""To what the write-ahead log is cut after a large transaction; in ordinary work it has about 8 MB."""
PAGE_BYTES: Final = 8192
"""Up to a quarter of it a row lies in its table's own page; one that is larger begins a page for itself. With SQLite's usual 4,096 a message of
1,100 bytes takes 4,710."""
CACHE_KIB: Final = 8 * 1024
FREE_PAGES_MAX: Final = 512
"""4 MiB of the file may lie idle, and half of it: what comes and goes each hour is not to be given back each hour."""
GIVEN_BACK_PAGES: Final = 64
"""At most, with one transaction, so that none takes long."""

# Rows of a table lie together in the order of its key, so that all of one session are one range: no second index, and no second write. Runs, which
# are large, have a number instead: then one is a page, which the next one takes over.
_TABLES: Final = (
    """CREATE TABLE sessions (
        number INTEGER PRIMARY KEY, client_id TEXT NOT NULL, username TEXT, mount_point TEXT NOT NULL, listener TEXT NOT NULL,
        expiry_s REAL, left_at REAL, rights TEXT NOT NULL DEFAULT '')""",
    """CREATE TABLE subscriptions (
        session INTEGER NOT NULL, filter TEXT NOT NULL, options INTEGER NOT NULL, identifier INTEGER NOT NULL,
        PRIMARY KEY (session, filter)) WITHOUT ROWID""",
    """CREATE TABLE messages (
        session INTEGER NOT NULL, place INTEGER NOT NULL, key INTEGER NOT NULL, "order" INTEGER NOT NULL, frame BLOB NOT NULL,
        version INTEGER NOT NULL,
        identifiers TEXT NOT NULL, share TEXT NOT NULL, expires_at REAL,
        PRIMARY KEY (session, place, key)) WITHOUT ROWID""",
    """CREATE TABLE runs (
        number INTEGER PRIMARY KEY, session INTEGER NOT NULL, "order" INTEGER NOT NULL, qos INTEGER NOT NULL, size INTEGER NOT NULL,
        version INTEGER NOT NULL, shared INTEGER NOT NULL, places BLOB NOT NULL, frames BLOB NOT NULL)""",
    "CREATE TABLE shared (number INTEGER PRIMARY KEY, frames BLOB NOT NULL)",
    "CREATE TABLE ids (session INTEGER NOT NULL, kind INTEGER NOT NULL, ids BLOB NOT NULL, PRIMARY KEY (session, kind)) WITHOUT ROWID",
    """CREATE TABLE wills (
        number INTEGER PRIMARY KEY, client_id TEXT NOT NULL, username TEXT, listener TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
        qos INTEGER NOT NULL, retain INTEGER NOT NULL, properties BLOB NOT NULL, due_at REAL, rights TEXT NOT NULL DEFAULT '')""",
    "CREATE TABLE retained (topic TEXT PRIMARY KEY NOT NULL, frame BLOB NOT NULL, expires_at REAL) WITHOUT ROWID",
)

_UPGRADES: Final = {
    3: (
        "ALTER TABLE sessions ADD COLUMN rights TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE wills ADD COLUMN rights TEXT NOT NULL DEFAULT ''",
    )
}
"""What makes the tables of an older version those of this one."""

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_APPLICATION_ID_AT: Final = 68

_NOT_OURS: Final = "is no store of this broker: choose another path"
_IN_USE: Final = "another broker is using it: stop that one, or choose another path"

_in_use: Final[set[tuple[int, int]]] = set()
"""(device, inode) of each store that is open in this process. To open and close such a file by other means would take SQLite's locks away: those of
POSIX belong to a process and a file, and go with the first descriptor that is closed."""
_in_use_lock: Final = threading.Lock()

Row = TypeVar("Row", bound=NamedTuple)


class SqliteStore:
    """Opens the file, or makes it (for this user's eyes only: it holds messages), in a folder that is there. StoreError.

    path: as given. set_aside: where a damaged file went at opening, else None.
    """

    __slots__ = ("_connection", "_file", "_identity", "path", "set_aside")

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.set_aside: str | None = None
        self._file = os.path.realpath(self.path)
        self._identity: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        try:
            self._open()
        except StoreError as error:
            if not error.damaged:
                raise
            self.begin_anew()

    def load(self) -> SqliteSaved:
        """Everything, read as it is asked for; nothing may be written meanwhile. StoreError, also from the iterators."""
        return SqliteSaved(self)

    def write(self, changes: Changes) -> None:
        """All of it is on disk when this returns, and nothing when it raises; the same may then be tried again. StoreError."""
        with self.telling():
            connection = self.connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                _apply(connection, changes)
                _give_back(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # some errors have ended it already
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """What is in the write-ahead log goes into the file. Idempotent; never raises: whatever was written is on disk anyway."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        if self._identity is not None:
            with _in_use_lock:
                _in_use.discard(self._identity)
            self._identity = None

    def begin_anew(self) -> None:
        """Set the file aside, with what belongs to it, and open an empty one. StoreError."""
        self.close()
        now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        target = base = f"{self._file}.damaged-{now}"
        number = 1
        while os.path.lexists(target):
            number += 1
            target = f"{base}-{number}"
        try:
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._file + suffix, target + suffix)
        except OSError as error:
            raise StoreError(self.path, f"is damaged, and cannot be set aside: {strerror(error)}; move it away", damaged=True) from None
        self._open()
        self.set_aside = target

    @property
    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(self.path, "is closed")
        return self._connection

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Errors of SQLite's come out as StoreError."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a fault of ours
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from None

    def _open(self) -> None:
        new = self._claim()
        try:
            with self.telling():
                self._connect(new)
        except StoreError as error:
            self.close()
            if new and error.damaged:  # nothing of ours has ever been in it
                raise StoreError(self.path, _NOT_OURS) from None
            raise
        except BaseException:
            self.close()
            raise

    def _claim(self) -> bool:
        """Is it empty? Made if it is not there; StoreError if it is something else's, or another store of this process has it."""
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            found = os.stat(self._file)
            if not stat.S_ISREG(found.st_mode):
                is_folder = stat.S_ISDIR(found.st_mode)
                raise StoreError(self.path, "is a folder: give the path of a file in it" if is_folder else "is no file: choose another path")
            with _in_use_lock:
                identity = (found.st_dev, found.st_ino)
                if identity in _in_use:
                    raise StoreError(self.path, _IN_USE)
                with open(self._file, "r+b") as file:
                    header = file.read(_HEADER_BYTES)
                # Zeros: made, and cut off before the first page was there; SQLite knows what to do with that.
                new = not header.strip(b"\0")
                if not new and (header[: len(_MAGIC)] != _MAGIC or header[_APPLICATION_ID_AT:][:4] != APPLICATION_ID.to_bytes(4, "big")):
                    raise StoreError(self.path, _NOT_OURS)
                _in_use.add(identity)
                self._identity = identity
        except OSError as error:
            raise StoreError(self.path, f"cannot be opened: {strerror(error)}{self._advice(error)}") from None
        return new

    def _advice(self, error: OSError) -> str:
        folder = os.path.dirname(self._file)
        if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
            return f": make its folder, {folder}, or choose another path"
        if isinstance(error, PermissionError):
            wanted = "read and write it" if os.path.exists(self._file) else f"make files in {folder}"
            return f": let this user {wanted}, or choose another path"
        return "; choose another path"

    def _connect(self, new: bool) -> None:
        # No waiting for locks: whoever has the file keeps it.
        connection = self._connection = sqlite3.connect(self._file, timeout=0, isolation_level=None, check_same_thread=False)
        # A disk may turn bits; a name that is wrong is better than none of them.
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        execute = connection.execute
        # Before anything is read: then the lock is held from the first transaction on, and there is no -shm file.
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA temp_store = MEMORY")  # there may be no place for temporary files
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        execute("BEGIN EXCLUSIVE")
        version = _number(connection, "user_version")
        if version == 0:  # with the first byte that is written, and no log beside it: whenever we are killed, it is empty or known as ours
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute("COMMIT")
        if version not in (0, *_UPGRADES, VERSION):
            age = "a newer" if version > VERSION else "an older"
            raise StoreError(
                self.path, f"was written by {age} broker (version {version}, this one knows {VERSION}): use that one, or choose another path"
            )
        if not new and (fault := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(fault)
        if version == 0:
            execute("PRAGMA auto_vacuum = INCREMENTAL")  # which would be a transaction of its own, and the first, if it came before
            execute(f"PRAGMA page_size = {PAGE_BYTES}")
            execute("VACUUM")
        execute("PRAGMA journal_mode = WAL")
        if version == 0:
            execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                execute(table)
            execute(f"PRAGMA user_version = {VERSION}")
            execute("COMMIT")
        elif version != VERSION:
            execute("BEGIN IMMEDIATE")
            for statement in _UPGRADES[version]:
                execute(statement)
            execute(f"PRAGMA user_version = {VERSION}")
            execute("COMMIT")

    def _explained(self, error: sqlite3.DatabaseError) -> StoreError:
        """In words of ours, where there is something to do."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # none: what a check has found
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreError(self.path, f"is damaged ({error}); restart the broker, and it begins a new one beside it", damaged=True)
        if code == sqlite3.SQLITE_BUSY:
            return StoreError(self.path, _IN_USE)
        if code == sqlite3.SQLITE_FULL:
            return StoreError(self.path, "its disk is full: make room there")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            return StoreError(self.path, f"cannot be written ({error}): this user needs to read and write it, and to make files beside it")
        return StoreError(self.path, f"{error}; look at its disk" if code == sqlite3.SQLITE_IOERR else str(error))


class SqliteSaved:
    """A `core.saved.Saved`: each property begins anew, and holds one row at a time."""

    __slots__ = ("_store",)

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    @property
    def sessions(self) -> Iterator[SavedSession]:
        return self._rows("sessions", SavedSession, "number")

    @property
    def subscriptions(self) -> Iterator[SavedSubscription]:
        return self._rows("subscriptions", SavedSubscription, "session, filter")

    @property
    def messages(self) -> Iterator[SavedMessage]:
        return self._rows("messages", SavedMessage, "session, place, key")  # which is the order of what waits

    @property
    def shared(self) -> Iterator[SavedShared]:
        return self._rows("shared", SavedShared, "number")

    @property
    def runs(self) -> Iterator[SavedRun]:
        return self._rows("runs", SavedRun, "number")

    @property
    def ids(self) -> Iterator[SavedIds]:
        return self._rows("ids", SavedIds, "session, kind")

    @property
    def wills(self) -> Iterator[SavedWill]:
        return self._rows("wills", SavedWill, "number")

    @property
    def retained(self) -> Iterator[SavedRetained]:
        return self._rows("retained", SavedRetained, "topic")

    def _rows(self, table: str, kind: type[Row], order: str) -> Iterator[Row]:
        columns = ", ".join(f'"{name}"' for name in kind._fields)
        with self._store.telling():
            yield from map(kind._make, self._store.connection.execute(f"SELECT {columns} FROM {table} ORDER BY {order}"))


def _apply(connection: sqlite3.Connection, changes: Changes) -> None:
    """In the order that `Changes` asks for; what is written twice leaves what was written once."""

    def each(statement: str, rows: Sequence[Sequence[object]]) -> None:
        if rows:
            connection.executemany(statement, rows)

    if changes.ended:
        ended = [(number,) for number in changes.ended]
        each("DELETE FROM sessions WHERE number = ?", ended)
        for table in ("subscriptions", "messages", "ids"):
            each(f"DELETE FROM {table} WHERE session = ?", ended)
    each(f"DELETE FROM messages WHERE session = ? AND place = {WAITING} AND key < ?", changes.cut)
    each("DELETE FROM subscriptions WHERE session = ? AND filter = ?", changes.subscriptions_gone)
    each("DELETE FROM messages WHERE session = ? AND place = ? AND key = ?", changes.messages_gone)
    each("DELETE FROM runs WHERE number = ?", [(number,) for number in changes.runs_gone])
    each("DELETE FROM shared WHERE number = ?", [(number,) for number in changes.shared_gone])
    each("DELETE FROM ids WHERE session = ? AND kind = ?", changes.ids_gone)
    each("DELETE FROM wills WHERE number = ?", [(number,) for number in changes.wills_gone])
    each("DELETE FROM retained WHERE topic = ?", [(topic,) for topic in changes.retained_gone])
    each("REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", changes.sessions)
    each("REPLACE INTO subscriptions VALUES (?, ?, ?, ?)", changes.subscriptions)
    each("REPLACE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", changes.messages)
    each("REPLACE INTO shared VALUES (?, ?)", changes.shared)
    each("REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", changes.runs)
    each('UPDATE runs SET "order" = ?, places = ? WHERE number = ?', changes.runs_changed)
    each("REPLACE INTO ids VALUES (?, ?, ?)", changes.ids)
    each("REPLACE INTO wills VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", changes.wills)
    each("REPLACE INTO retained VALUES (?, ?, ?)", changes.retained)


def _give_back(connection: sqlite3.Connection) -> None:
    """Pages that are not needed any more, to the file system: a few with each transaction, so that none of them is long."""
    free = _number(connection, "freelist_count")
    if free > FREE_PAGES_MAX and free * 2 > _number(connection, "page_count"):
        for _ in range(GIVEN_BACK_PAGES):  # its argument counts rows without columns, of which Python reads the first only
            connection.execute("PRAGMA incremental_vacuum(1)")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    value = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    assert isinstance(value, int)
    return value
