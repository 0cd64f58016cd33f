"""A store in memory: what `broker.store` does with a disk, for simulations and tests."""

from __future__ import annotations

from collections.abc import Iterable

from broker.core.saved import Changes, SavedIds, SavedMessage, SavedRetained, SavedRun, SavedSession, SavedShared, SavedSubscription, SavedWill


class Shelf:
    """It outlives an engine, and has what was written to it."""

    def __init__(self) -> None:
        self.number = 0
        """Of the changes that were written last."""
        self._sessions: dict[int, SavedSession] = {}
        self._subscriptions: dict[tuple[int, str], SavedSubscription] = {}
        self._messages: dict[tuple[int, int, int], SavedMessage] = {}
        self._shared: dict[int, SavedShared] = {}
        self._runs: dict[int, SavedRun] = {}
        self._ids: dict[tuple[int, int], SavedIds] = {}
        self._wills: dict[int, SavedWill] = {}
        self._retained: dict[str, SavedRetained] = {}

    def write(self, changes: Changes) -> None:
        ended = set(changes.ended)
        if ended:
            self._sessions = {number: row for number, row in self._sessions.items() if number not in ended}
            self._subscriptions = {key: row for key, row in self._subscriptions.items() if row.session not in ended}
            self._messages = {key: row for key, row in self._messages.items() if row.session not in ended}
            self._ids = {key: row for key, row in self._ids.items() if row.session not in ended}
        for number, order in changes.cut:
            for key in [key for key in self._messages if key[0] == number and key[1] == 0 and key[2] < order]:
                del self._messages[key]
        for gone in changes.subscriptions_gone:
            self._subscriptions.pop(gone, None)
        for key in changes.messages_gone:
            self._messages.pop(key, None)
        for number in changes.runs_gone:
            self._runs.pop(number, None)
        for number in changes.shared_gone:
            self._shared.pop(number, None)
        for pair in changes.ids_gone:
            self._ids.pop(pair, None)
        for number in changes.wills_gone:
            self._wills.pop(number, None)
        for topic in changes.retained_gone:
            self._retained.pop(topic, None)
        self._sessions.update({row.number: row for row in changes.sessions})
        self._subscriptions.update({(row.session, row.filter): row for row in changes.subscriptions})
        self._messages.update({(row.session, row.place, row.key): row for row in changes.messages})
        self._shared.update({row.number: row for row in changes.shared})
        self._runs.update({row.number: row for row in changes.runs})
        for order, places, number in changes.runs_changed:
            if number in self._runs:
                self._runs[number] = self._runs[number]._replace(order=order, places=places)
        self._ids.update({(row.session, row.kind): row for row in changes.ids})
        self._wills.update({row.number: row for row in changes.wills})
        self._retained.update({row.topic: row for row in changes.retained})
        self.number = changes.number

    # ---- as a store gives it ----

    @property
    def sessions(self) -> Iterable[SavedSession]:
        return list(self._sessions.values())

    @property
    def subscriptions(self) -> Iterable[SavedSubscription]:
        return list(self._subscriptions.values())

    @property
    def messages(self) -> Iterable[SavedMessage]:
        return sorted(self._messages.values(), key=lambda row: (row.session, row.place, row.key))

    @property
    def shared(self) -> Iterable[SavedShared]:
        return list(self._shared.values())

    @property
    def runs(self) -> Iterable[SavedRun]:
        return list(self._runs.values())

    @property
    def ids(self) -> Iterable[SavedIds]:
        return list(self._ids.values())

    @property
    def wills(self) -> Iterable[SavedWill]:
        return list(self._wills.values())

    @property
    def retained(self) -> Iterable[SavedRetained]:
        return list(self._retained.values())

    @property
    def messages_count(self) -> int:
        """That wait or are unacknowledged, by themselves or in runs."""
        count = len(self._messages)
        for row in self._runs.values():
            ids = [row.places[at : at + 2] for at in range(2, len(row.places), 2)]
            count += len(ids) - int.from_bytes(row.places[:2], "big") + sum(one != b"\0\0" for one in ids)
        return count

    @property
    def rows_count(self) -> int:
        """Of sessions, and of what is theirs."""
        tables = (self._sessions, self._subscriptions, self._messages, self._shared, self._runs, self._ids, self._wills)
        return sum([len(table) for table in tables])
