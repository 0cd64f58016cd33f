"""Rows for the tests of a store, and a store that is full of them."""

from __future__ import annotations

from pathlib import Path

from broker.core.saved import WAITING, Changes, SavedMessage, SavedSession
from broker.store.sqlite import SqliteStore


def message(session: int, key: int, place: int = WAITING, frame: bytes = b"\x32\x05\x00\x01a\x00\x01", order: int | None = None) -> SavedMessage:
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


def two_kinds(number: int) -> Changes:
    changes = Changes(number)
    changes.ended = [1]
    changes.sessions = [session(2)]
    changes.messages = [message(2, key, frame=bytes(5000)) for key in range(100)]
    return changes
