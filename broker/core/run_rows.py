"""What the store has of runs: messages that came together are one row for each session that has them, until all are acknowledged.

The row keeps the frames as they came, and a small field in which two bytes for each message say what has become of it: so a message that has
waited and is sent, or is acknowledged, is not written again. Where several sessions have a run, its frames are one row that theirs point to.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.core.owed import PublishRun
from broker.core.packet_ids import PacketIds, packet_ids
from broker.core.saved import Changes, SavedRun, SavedShared, places
from broker.core.waiting_run import QueuedRun
from broker.wire.packets import MQTT_5, MQTT_311

SHARED_BYTES_MIN: Final = 256
"""Less is written once for each session: a row of its own would be more."""
ALL: Final = 1 << 62
"""Later than any order."""

Piece = tuple[int, PublishRun, PacketIds]
"""Of a run, what was sent together and is not all acknowledged: where it begins, as it was sent, and the packet ids that are left."""


class SharedFrames:
    __slots__ = ("count", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0
        """Rows of runs that point to it."""


class RunRow:
    """One run, as it came, of one session. number: in the store, 0 while it is not there."""

    __slots__ = ("count", "is_sent", "number", "order", "qos", "queue_order", "run", "sent_count", "shared", "written_left", "written_sent")

    def __init__(self, run: PublishRun, qos: int, order: int, sent_count: int) -> None:
        self.run = run
        self.qos = qos
        self.count = run.count
        self.number = 0
        self.shared: SharedFrames | None = None
        self.order = order
        self.queue_order = order
        """Of its first message, while some of it wait."""
        self.sent_count = sent_count
        """How many have left the queue, to be sent or dropped: the oldest ones."""
        self.is_sent = False
        """Its order is that of what is sent."""
        self.written_sent = 0
        self.written_left = 0
        """What the store says: how many have left the queue, and how many of these are unacknowledged."""

    def places(self, pieces: list[Piece]) -> bytes:
        if not pieces:
            return places(self.sent_count, b"", self.count)
        fields = bytearray(2 * self.count)
        for first, run, ids in pieces:
            count = run.count
            left = packet_ids(run.frames, run.id_at, run.frame_size, count).fields()
            if ids.count != count:
                numbers = set(ids.numbers)
                both = [left[at : at + 2] for at in range(0, 2 * count, 2)]
                left = b"".join([field if field[0] << 8 | field[1] in numbers else b"\x00\x00" for field in both])
            fields[2 * first : 2 * (first + count)] = left
        return places(self.sent_count, bytes(fields), self.count)


class RunRows:
    """Of one session."""

    __slots__ = ("begun", "front", "waiting")

    def __init__(self) -> None:
        self.begun: dict[PublishRun, RunRow] = {}
        """Those of which some have left the queue, or have never waited."""
        self.waiting: deque[RunRow] = deque()
        """All the others, in the order of the queue."""
        self.front: RunRow | None = None
        """One of the begun of which some wait; it is the first in the queue."""

    def leave(self, order: int) -> None:
        """What is before that has left the queue."""
        waiting = self.waiting
        while True:
            row = self.front
            if row is None:
                if not waiting or waiting[0].queue_order >= order:
                    return
                row = self.front = waiting.popleft()
                self.begun[row.run] = row
            row.sent_count = min(row.count, order - row.queue_order)
            if row.sent_count < row.count:
                return
            self.front = None

    def wait(self, entry: QueuedRun) -> RunRow:
        """It has come into the queue, behind all others; or is still there, where others have gone from its middle."""
        order = entry.order - entry.start
        row = self.begun.get(entry.run)
        if row is None:
            row = RunRow(entry.run, entry.qos, order, entry.start)
        else:
            row.queue_order = order
            row.sent_count = entry.start
        if entry.start:
            self.front = self.begun[entry.run] = row
        else:
            self.begun.pop(entry.run, None)
            self.waiting.append(row)
        return row

    def all(self) -> list[RunRow]:
        return [*self.begun.values(), *self.waiting]


class StoredRuns:
    """Of one journal: their numbers, and what has changed of them since changes were taken."""

    __slots__ = ("_fresh", "_gone", "_next_run", "_next_shared", "_shared_gone")

    def __init__(self) -> None:
        self._next_run = 1
        self._next_shared = 1
        self._gone: list[int] = []
        self._shared_gone: list[int] = []
        self._fresh: list[tuple[int, RunRow, bytes]] = []

    def adopt(self, number: int) -> None:
        """It came from the store."""
        self._next_run = max(self._next_run, number + 1)

    def adopt_shared(self, number: int) -> None:
        self._next_shared = max(self._next_shared, number + 1)

    def drop(self, number: int) -> None:
        """It is to go from the store."""
        self._gone.append(number)

    def drop_shared(self, number: int) -> None:
        self._shared_gone.append(number)

    def forget(self, row: RunRow) -> None:
        """All of it has been acknowledged or dropped."""
        if row.number:
            self._gone.append(row.number)
            shared = row.shared
            if shared is not None:
                shared.count -= 1
                if not shared.count:
                    self._shared_gone.append(shared.number)

    def look(self, session: int, row: RunRow, pieces: list[Piece], changes: Changes) -> bool:
        """What has become of it, as a row if that is something else than the store has; False: it is gone."""
        left = 0
        for _, _, ids in pieces:
            left += ids.count
        if row.number and row.written_sent == row.sent_count and row.written_left == left:
            return True
        if not left and row.sent_count == row.count:
            self.forget(row)
            return False
        row.written_sent = row.sent_count
        row.written_left = left
        if row.number:
            changes.runs_changed.append((row.order, row.places(pieces), row.number))
        else:
            self._fresh.append((session, row, row.places(pieces)))
        return True

    def write(self, changes: Changes) -> None:
        """All sessions have been looked at: new rows take the places of those that go."""
        gone, self._gone = self._gone, []
        shared_gone, self._shared_gone = self._shared_gone, []
        fresh, self._fresh = self._fresh, []
        shared = self._shared(fresh, shared_gone, changes)
        for session, row, state in fresh:
            if gone:
                row.number = gone.pop()
            else:
                row.number = self._next_run
                self._next_run += 1
            run = row.run
            row.shared = shared.get(run)
            shared_number, frames = 0, run.frames
            if row.shared is not None:
                row.shared.count += 1
                shared_number, frames = row.shared.number, b""
            version = MQTT_311 if run.payload_at == run.id_at + 2 else MQTT_5
            changes.runs.append(SavedRun(row.number, session, row.order, row.qos, run.frame_size, version, shared_number, state, frames))
        changes.runs_gone = gone
        changes.shared_gone = shared_gone

    def _shared(self, fresh: list[tuple[int, RunRow, bytes]], gone: list[int], changes: Changes) -> dict[PublishRun, SharedFrames]:
        """Those that several sessions have, who have got them at once."""
        found: dict[PublishRun, SharedFrames] = {}
        if len(fresh) < 2:
            return found
        seen: dict[PublishRun, None] = {}
        for _, row, _ in fresh:
            run = row.run
            if len(run.frames) < SHARED_BYTES_MIN or run in found:
                continue
            if run not in seen:
                seen[run] = None
                continue
            if gone:
                number = gone.pop()
            else:
                number = self._next_shared
                self._next_shared += 1
            found[run] = SharedFrames(number)
            changes.shared.append(SavedShared(number, run.frames))
        return found
