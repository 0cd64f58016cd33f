"""What a store has of runs becomes what is under way, and what waits, again: see `core.run_rows`."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from broker.core.kept import topic_at, topic_end
from broker.core.owed import Delivery, PublishRun
from broker.core.packet_ids import any_of
from broker.core.restoring_messages import DAMAGE, Sent, delivery_of, is_frame_of, numbers_of
from broker.core.run_rows import ALL, RunRow, SharedFrames
from broker.core.runs import alike
from broker.core.saved import SENT, SavedMessage
from broker.core.waiting_run import QueuedRun
from broker.wire.packets import MQTT_5, PUBLISH
from broker.wire.properties import decode_properties

if TYPE_CHECKING:
    from broker.core.journal import Journal
    from broker.core.saved import Saved, SavedRun
    from broker.core.session import Session
    from broker.core.state import State


class Queued:
    """What waits of a run. row: None where the store's is damaged; then each message waits by itself."""

    __slots__ = ("deliveries", "is_begun", "order", "row", "run")

    def __init__(self, order: int, is_begun: bool, row: RunRow | None, run: QueuedRun | None, deliveries: list[Delivery]) -> None:
        self.order = order
        self.is_begun = is_begun
        """Some of it were sent: it is before all others."""
        self.row = row
        self.run = run
        self.deliveries = deliveries


class RestoredRuns:
    """In this order: `read`, `let_in` for each message that waits by itself, `settle`."""

    def __init__(self, state: State, journal: Journal, sessions: dict[int, Session]) -> None:
        self._state = state
        self._journal = journal
        self._sessions = sessions
        self.sent: dict[int, list[Sent]] = {}
        """By the session's number."""
        self._queued: dict[int, list[Queued]] = {}
        """The same; the first one last."""
        self._irregular: dict[int, None] = {}
        """Sessions some of whose rows are not as they were written: what waits for them is to be written anew."""

    def read(self, saved: Saved) -> None:
        shared_frames = {row.number: row.frames for row in saved.shared}
        shared = {number: SharedFrames(number) for number in shared_frames}
        runs: dict[int, PublishRun] = {}
        for row in saved.runs:
            self._journal.runs.adopt(row.number)
            session = self._sessions.get(row.session)
            if session is None:
                self._journal.drop_run(row.number)
                continue
            frames = shared_frames.get(row.shared, b"") if row.shared else row.frames
            try:
                run = runs.get(row.shared)
                if run is None:
                    run = _run(row, frames)
                    if row.shared:
                        runs[row.shared] = run
                taken = self._take(session, row, run)
            except DAMAGE:
                self._journal.drop_run(row.number)
                self._take_whole_ones(session, row, frames)
            else:
                if row.shared and taken is not None:
                    taken.shared = shared[row.shared]
                    taken.shared.count += 1
        for number, one in shared.items():
            self._journal.runs.adopt_shared(number)
            if not one.count:
                self._journal.drop_shared(number)
        for waiting in self._queued.values():
            waiting.sort(key=attrgetter("order"), reverse=True)
            waiting.sort(key=attrgetter("is_begun"))

    def let_in(self, session: Session, number: int, before: int = ALL) -> None:
        """Into its queue comes what waits and is older than that."""
        waiting = self._queued.get(number)
        while waiting and (waiting[-1].is_begun or waiting[-1].order < before):
            one = waiting.pop()
            if one.is_begun:  # its order was that of what is sent
                one.order = min(one.order, (min(before, waiting[-1].order) if waiting else before) - _count(one))
            self._let_in(session, number, one)
        if session.record is not None and session.record.waiting_last >= before:
            self._irregular[number] = None

    def settle(self) -> None:
        """All messages that wait by themselves are there."""
        for number in list(self._queued):
            self.let_in(self._sessions[number], number)
        for number in self._irregular:
            session = self._sessions[number]
            record = session.record
            queue = session.queue
            if record is None or not queue.count:
                continue
            deliveries = queue.deliveries()
            for place, delivery in enumerate(deliveries, 1):
                delivery.order = place
            queue.keep_only(deliveries)
            queue.rearranged = True
            session.order = max(session.order, len(deliveries))
            record.waiting_first, record.waiting_last = 1, session.order
            self._journal.touch(session, len(deliveries))

    def _let_in(self, session: Session, number: int, one: Queued) -> None:
        record = session.record
        assert record is not None
        queue = session.own_queue()
        row, run = one.row, one.run
        if one.order <= record.waiting_last:
            self._irregular[number] = None
        record.waiting_first = record.waiting_first or max(1, one.order)
        record.waiting_last = max(record.waiting_last, one.order + _count(one) - 1)
        session.order = max(session.order, record.waiting_last)
        if row is None or run is None:
            for delivery in one.deliveries:
                queue.append(delivery)
            return
        run.order = one.order
        row.queue_order = one.order - run.start
        rows = record.own_runs()
        if one.is_begun:
            if rows.front is not None:
                self._irregular[number] = None
                rows.front.sent_count = rows.front.count
            rows.front = row
        else:
            rows.waiting.append(row)
        queue.append_run(run)

    def _take(self, session: Session, row: SavedRun, run: PublishRun) -> RunRow | None:
        """As it was. ValueError: some of it is not; None: nothing is left of it."""
        count = run.count
        sent_count = int.from_bytes(row.places[:2], "big")
        numbers = numbers_of(row.places[2:])
        if row.size != run.frame_size or not 1 <= row.qos <= run.qos or sent_count > count or len(numbers) != count or any(numbers[sent_count:]):
            raise ValueError("it is not what such a row says")
        ids = [number for number in numbers if number]
        if not ids and sent_count == count:
            self._journal.drop_run(row.number)
            return None
        record = session.record
        assert record is not None
        known = RunRow(run, row.qos, row.order, sent_count)
        known.number = row.number
        known.written_sent = sent_count
        known.written_left = len(ids)
        if ids:
            known.is_sent = True
            form = run.part(0, sent_count)
            if row.qos != run.qos:
                form = form.form(row.version >= MQTT_5, row.qos)
            unacknowledged = form.with_ids(any_of(numbers[:sent_count]))
            self.sent.setdefault(row.session, []).append((row.order, ids, unacknowledged))
        if sent_count:
            record.own_runs().begun[run] = known
        if sent_count < count:
            waiting = QueuedRun(run, sent_count, count - sent_count, row.qos, row.order + sent_count)
            self._queued.setdefault(row.session, []).append(Queued(waiting.order, sent_count > 0, known, waiting, []))
        return known

    def _take_whole_ones(self, session: Session, row: SavedRun, frames: bytes) -> None:
        """Of a run that is damaged the messages that are not."""
        self._irregular[row.session] = None
        sent_count = int.from_bytes(row.places[:2], "big")
        numbers = numbers_of(row.places[2:])
        found = self.sent.setdefault(row.session, [])
        waiting: list[Delivery] = []
        lost_count = 0
        for place, packet_id in enumerate(numbers):
            if not packet_id and place < sent_count:
                continue
            frame = frames[place * row.size : (place + 1) * row.size]
            single = SavedMessage(row.session, SENT, packet_id, row.order + place, frame, row.version, "", "", None)
            try:
                if not is_frame_of(frame, row.size):
                    raise ValueError("it is not of that size")
                delivery = delivery_of(self._state, session, single, 0.0)
            except DAMAGE:
                lost_count += 1
                continue
            if 1 <= row.qos < delivery.qos:
                delivery.qos = row.qos
            if packet_id:
                found.append((row.order, [packet_id], delivery))
            elif delivery.qos:
                waiting.append(delivery)
        self._journal.touch(session, len(numbers))
        if lost_count:
            self._state.count_dropped(session.client_id, "damaged", lost_count)
        if waiting:
            self._queued.setdefault(row.session, []).append(Queued(waiting[0].order, sent_count > 0, None, None, waiting))


def _count(one: Queued) -> int:
    return len(one.deliveries) if one.run is None else one.run.count


def _run(row: SavedRun, frames: bytes) -> PublishRun:
    """As it came. ValueError: some of it is not."""
    size = row.size
    count = len(frames) // max(1, size)
    at = topic_at(frames)
    id_at = topic_end(frames)
    payload_at = id_at + 2
    if row.version >= MQTT_5:
        payload_at = decode_properties(frames, payload_at, PUBLISH)[1]
    if not count or count * size != len(frames) or not is_frame_of(frames, size) or payload_at > size:
        raise ValueError("they are not of that size")
    if alike(frames, 0, size, id_at, id_at + 2, payload_at, count) < count:
        raise ValueError("they are not alike")
    return PublishRun(frames, size, frames[0] >> 1 & 3, str(frames[at + 2 : id_at], "utf-8"), id_at, payload_at, "")
