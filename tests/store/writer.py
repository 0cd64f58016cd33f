"""Writes numbered batches into a store until it is killed, and says each number when `write` has returned: `python -m tests.store.writer PATH`."""

from __future__ import annotations

import sys
from typing import Final

from broker.core.saved import WAITING, Changes, SavedMessage, SavedRetained, SavedSession
from broker.store.sqlite import SqliteStore

KEPT: Final = 10
"""Each batch ends what the batch of so many before it began."""


def batch(number: int) -> Changes:
    changes = Changes(number)
    changes.ended = [number - KEPT]
    changes.sessions = [SavedSession(number, f"c{number}", None, "", "", None, None)]
    size = number * 7919 % 9000
    changes.messages = [SavedMessage(number, WAITING, key, key, bytes([number % 256]) * size, 5, "", "", None) for key in range(1 + number % 13)]
    changes.retained = [SavedRetained("last", b"%d" % number, None)]
    return changes


def main(path: str) -> None:
    print("begun", flush=True)
    store = SqliteStore(path)
    store.connection.execute("PRAGMA wal_autocheckpoint = 20")  # so that it is killed in the middle of them too
    number = max((session.number for session in store.load().sessions), default=0)
    while True:
        number += 1
        store.write(batch(number))
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
