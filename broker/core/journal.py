"""What has changed of that which is to outlive the process: noted while it happens, and written out as rows when somebody takes it to a store.

What a Session keeps for ever is small things that come and go faster than a disk turns. So nothing is noted of a single message, but only that a
session was touched; when the changes are taken, what the store has of it (`core.record`) is compared with what it has become. What came and went
in between is never written at all, and a step that nobody thought of is not missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.access import is_bridge_state
from broker.core.kept import Expiring, Kept, frame_of
from broker.core.record import Record, compare
from broker.core.retained import RetainedStore
from broker.core.run_rows import StoredRuns
from broker.core.saved import Changes, SavedRetained, SavedWill
from broker.wire.codec import encode_properties

if TYPE_CHECKING:
    from broker.core.session import Session
    from broker.core.state import State


class Journal:
    """Of one broker. `number` is that of the changes that are being collected."""

    def __init__(self) -> None:
        self.number = 1
        self.count = 0
        """Changes noted since the start."""
        self.taken_count = 0
        """Those of them that have been taken."""
        self.awaited = 0
        """Somebody is to be sent something when the changes of that number are committed."""
        self.going: dict[str, int] = {}
        """Client Identifiers of sessions that have ended, with the number of the changes that say so, until these are committed."""
        self._touched: dict[Session, None] = {}
        self._ended: list[int] = []
        self._topics: dict[str, None] = {}
        self._wills: dict[Session, None] = {}
        self._will_numbers: dict[Session, tuple[int, str]] = {}
        """In the store, 0 of those that it does not have yet; and where their clients came in."""
        self._wills_gone: list[int] = []
        self._next_will = 1
        self._next_record = 1
        self.runs = StoredRuns()

    # ---- what happens ----

    def begin(self, session: Session, listener: str) -> None:
        """It is to last from now on, with all that it has."""
        record = session.record = Record(self._next_record, listener)
        self._next_record += 1
        record.filters = dict.fromkeys(session.subscriptions)

    def adopt(self, session: Session, record: Record) -> None:
        """It came from the store."""
        session.record = record
        self._next_record = max(self._next_record, record.number + 1)
        if record.row is not None and record.row.left_at is None:  # it was there, and is not any more
            self.touch(session)

    def touch(self, session: Session, count: int = 1) -> None:
        """Something of it has changed, or is about to: about so many rows."""
        self._touched[session] = None
        self.count += count

    def end(self, session: Session) -> None:
        record = session.record
        session.record = None
        self._touched.pop(session, None)
        if record is not None and record.row is not None:  # else the store has never heard of it
            self.going[session.client_id] = self.number
            self._ended.append(record.number)
            for row in [] if record.runs is None else record.runs.all():
                self.runs.forget(row)
            self.count += 1

    def drop_run(self, number: int) -> None:
        """One that came from the store, and is nobody's, or not as it was written."""
        self.runs.drop(number)
        self.count += 1

    def drop_shared(self, number: int) -> None:
        """Frames that came from the store, and are nobody's."""
        self.runs.drop_shared(number)
        self.count += 1

    def keep_will(self, session: Session, listener: str, number: int = 0) -> None:
        """It has one from now on, of a client that came in there. number: that it has in the store, if it came from there."""
        if not number and session in self._will_numbers:
            number = self._will_numbers[session][0]
        self._next_will = max(self._next_will, number + 1)
        self._will_numbers[session] = (number, listener)
        self.touch_will(session)

    def touch_will(self, session: Session) -> None:
        """It has gone, or is known to go at some time."""
        known = self._will_numbers.get(session)
        if known is None:
            return
        self.count += 1
        if session.will is None and not known[0]:  # the store has never heard of it
            del self._will_numbers[session]
            self._wills.pop(session, None)
        else:
            self._wills[session] = None

    def drop_will(self, number: int) -> None:
        """One that came from the store, and went at once."""
        self._wills_gone.append(number)
        self._next_will = max(self._next_will, number + 1)
        self.count += 1

    def retain(self, topic: str) -> None:
        """Its retained message has come, changed or gone. Those of the broker itself are made anew after each start."""
        if not topic.startswith("$SYS/") or is_bridge_state(topic):
            self._topics[topic] = None
            self.count += 1

    def forget_topics(self) -> None:
        """Those that have been noted are as the store has them."""
        self.count -= len(self._topics)
        self._topics.clear()

    @property
    def has_changes(self) -> bool:
        """Also if nothing has come of them: somebody may wait until they are committed."""
        return self.count != self.taken_count

    @property
    def newest(self) -> int:
        """Number of the newest changes that there are, taken or not."""
        return self.number if self.has_changes else self.number - 1

    @property
    def pending_count(self) -> int:
        """About how many rows the next changes will have."""
        return self.count - self.taken_count

    # ---- what it comes to ----

    def take(self, state: State, now: float, unix_now: float) -> Changes | None:
        """All that has changed since the last time; None if nothing has."""
        if not self.has_changes or state.wills or state.orphans:  # what is on its way is neither here nor there, and `tick` soon goes on with it
            return None
        changes = Changes(self.number)
        self.number += 1
        self.taken_count = self.count
        to_unix_s = unix_now - now
        for link in state.gated:
            link.taken_bytes = link.outbox.sent_bytes_total + link.outbox.committed_bytes
        changes.ended, self._ended = self._ended, []
        touched, self._touched = self._touched, {}
        for session in touched:
            record = session.record
            if record is not None:
                compare(session, record, to_unix_s, changes, self.runs)
        self.runs.write(changes)
        self._will_rows(to_unix_s, changes)
        topics, self._topics = self._topics, {}
        for topic in topics:
            kept = state.retained.get(topic)
            if kept is None:
                changes.retained_gone.append(topic)
            else:
                expires_at = kept.expires_at + to_unix_s if isinstance(kept, Expiring) else None
                changes.retained.append(SavedRetained(topic, frame_of(kept), expires_at))
        return changes

    def _will_rows(self, to_unix_s: float, changes: Changes) -> None:
        changes.wills_gone, self._wills_gone = self._wills_gone, []
        wills, self._wills = self._wills, {}
        for session in wills:
            number, listener = self._will_numbers[session]
            will = session.will
            if will is None:
                del self._will_numbers[session]
                changes.wills_gone.append(number)
            else:
                if not number:
                    number = self._next_will
                    self._next_will += 1
                    self._will_numbers[session] = (number, listener)
                due_at = None if session.will_deadline is None else session.will_deadline.at + to_unix_s
                properties = encode_properties(will.properties)
                client_id, username, rights = session.client_id, session.username, session.access.own
                changes.wills.append(
                    SavedWill(number, client_id, username, listener, will.topic, will.payload, will.qos, will.retain, properties, due_at, rights)
                )


class LastingRetainedStore(RetainedStore):
    """One whose changes are noted."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def put(self, topic: str, topic_field: bytes, kept: Kept) -> Kept | None:
        self._journal.retain(topic)
        return super().put(topic, topic_field, kept)

    def clear(self, topic: str) -> Kept | None:
        gone = super().clear(topic)
        if gone is not None:
            self._journal.retain(topic)
        return gone
