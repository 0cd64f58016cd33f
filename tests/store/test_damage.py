"""What is left of a store that was damaged, or whose writer was killed."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from broker.core.saved import Changes, SavedRetained
from broker.errors import StoreError
from broker.store import sqlite as module
from broker.store.sqlite import SqliteStore
from tests.e2e.tools import ROOT
from tests.store.rows import filled, two_kinds
from tests.store.writer import KEPT, batch
from tests.systems import KILLED, PRIVATE_MODE


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
    assert stat.S_IMODE(path.stat().st_mode) == PRIVATE_MODE
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
    assert process.returncode == KILLED
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
        last = check_whole(path, killed(path, chance))
        assert check_whole(path, last) == last  # what was begun, taken back and begun again is known as ours too
