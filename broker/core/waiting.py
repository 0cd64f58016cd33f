"""A queue of deliveries that is counted: by itself, and in the account of all that is held for clients (`memory_bytes_max`).

What is counted is what each client is owed: topic, properties and payload of each message for each of its recipients, though they may share the
bytes. So the account is never below what the messages take, a drop always gives back what it says, and where large payloads
wait for many it is above.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker.core.owed import Delivery
from broker.core.waiting_run import QueuedRun, WaitingRun

if TYPE_CHECKING:
    from broker.core.overflow import OverflowRules


class Account:
    """What all waiting messages come to, and what else is held for clients, or has come of what they send."""

    __slots__ = ("bytes", "count", "inflight_bytes", "large_count", "receiving_bytes", "unsent_bytes", "will_bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self.count = 0
        self.inflight_bytes = 0
        """Sent and not acknowledged, in all Sessions."""
        self.unsent_bytes = 0
        """Encoded and not taken by its socket, of all links whose socket was full, until their stream is gone."""
        self.receiving_bytes = 0
        """Read, and not worked through: see `incoming`."""
        self.large_count = 0
        """How many links hold more of it than nobody is blamed for (`incoming.FREE_BYTES`)."""
        self.will_bytes = 0
        """Wills of all Sessions, until they are published or dropped."""

    @property
    def total_bytes(self) -> int:
        return self.bytes + self.inflight_bytes + self.unsent_bytes + self.receiving_bytes + self.will_bytes


class WaitingQueue:
    """First in, first out. `count` and `bytes` are its own; `account` is shared, None once it is not counted any more."""

    __slots__ = ("_by_topic", "_entries", "account", "bytes", "count", "rearranged")

    def __init__(self, account: Account | None) -> None:
        self._entries: deque[Delivery | WaitingRun] | None = None  # most sessions never have one waiting, and an empty deque takes 600 bytes
        self._by_topic: dict[str, Delivery] | None = None
        self.account = account
        self.count = 0
        self.bytes = 0
        self.rearranged = False
        """Since the journal looked something has gone from its middle, or what was a run is by itself."""

    def append(self, delivery: Delivery) -> None:
        assert self is not NOTHING_WAITS
        if self._entries is None:
            self._entries = deque()
        self._entries.append(delivery)
        if self._by_topic is not None:
            self._by_topic[delivery.message.topic] = delivery
        self._count(1, delivery.message.size)

    def append_run(self, run: WaitingRun) -> None:
        """All of its messages, of which there is one at least."""
        if self._by_topic is not None:
            for delivery in _apart(run):
                self.append(delivery)
            return
        assert self is not NOTHING_WAITS
        if self._entries is None:
            self._entries = deque()
        self._entries.append(run)
        self._count(run.count, run.count * run.size)

    def first_order(self) -> int:
        """Of the oldest one; the caller has seen that there is one."""
        assert self._entries is not None
        return self._entries[0].order

    def first_run(self) -> QueuedRun | None:
        """The oldest one, if it came in a run with others."""
        entries = self._entries
        if not entries:
            return None
        first = entries[0]
        return first if isinstance(first, QueuedRun) else None

    def taken(self, count: int, size: int) -> None:
        """So many of that size have left the run that `first_run` gave."""
        entries = self._entries
        assert entries is not None
        first = entries[0]
        if isinstance(first, QueuedRun) and not first.count:
            entries.popleft()
            if not entries:
                self._entries = None
        self._count(-count, -count * size)

    def pop(self) -> Delivery:
        """Take the oldest one."""
        entries = self._entries
        assert entries is not None
        first = entries[0]
        if isinstance(first, WaitingRun):
            order = first.order
            delivery = Delivery(first.take(), first.qos, False, (), None, order)
            left = first.count
        else:
            delivery = first
            left = 0
        if not left:
            entries.popleft()
        if not entries:
            self._entries = None
            self._by_topic = None
        elif self._by_topic is not None and self._by_topic.get(delivery.message.topic) is delivery:
            del self._by_topic[delivery.message.topic]
        self._count(-1, -delivery.message.size)
        return delivery

    def drop_first(self, count: int, size: int) -> int:
        """Forget the oldest ones: as many as make room for `count` messages of `size` bytes, or fewer; at least one. How many it were."""
        entries = self._entries
        assert entries is not None
        first = entries[0]
        if not isinstance(first, WaitingRun):
            self.pop()
            return 1
        dropped = max(1, min(first.count, count, count * size // max(1, first.size)))
        first.skip(dropped)
        if not first.count:
            entries.popleft()
            if not entries:
                self._entries = None
        self._count(-dropped, -dropped * first.size)
        return dropped

    @property
    def is_indexed(self) -> bool:
        """Does it know what waits on a topic? From its first overflow until it is empty; one that never overflows does not pay for it."""
        return self._by_topic is not None

    def index(self, rules: OverflowRules) -> int:
        """Of the topics whose rule keeps the newest, all but that are thrown out; how many."""
        singles = self.deliveries()
        newest = self._by_topic = {waiting.message.topic: waiting for waiting in singles}
        if len(newest) == len(singles):
            kept = singles
        else:
            alone = {topic for topic in newest if rules.rule_for(topic) == "latest"}
            kept = [waiting for waiting in singles if waiting.message.topic not in alone or newest[waiting.message.topic] is waiting]
        return self.keep_only(kept)

    def keep_only(self, kept: list[Delivery]) -> int:
        """Of `deliveries` these, in their order, and forget the others; how many they were."""
        dropped = self.count - len(kept)
        self.rearranged = self.rearranged or dropped > 0 or self._has_runs()
        self._entries = deque(kept) if kept else None
        if dropped:
            if self._by_topic is not None:
                self._by_topic = {waiting.message.topic: waiting for waiting in kept} if kept else None
            self._count(-dropped, sum(waiting.message.size for waiting in kept) - self.bytes)
        return dropped

    def keep_topics(self, may: Callable[[str], bool]) -> int:
        """Of what waits, that on topics of which this is true; how many others are forgotten."""
        kept: list[Delivery | WaitingRun] = []
        count = size = 0
        for entry in self._entries or ():
            if may(entry.message.topic if isinstance(entry, Delivery) else entry.topic):
                kept.append(entry)
            elif isinstance(entry, Delivery):
                count += 1
                size += entry.message.size
            else:
                count += entry.count
                size += entry.count * entry.size
        if count:
            self.rearranged = True
            self._entries = deque(kept) if kept else None
            if self._by_topic is not None:
                self._by_topic = {topic: one for topic, one in self._by_topic.items() if may(topic)} if kept else None
            self._count(-count, -size)
        return count

    def _has_runs(self) -> bool:
        return any(isinstance(entry, QueuedRun) for entry in self._entries or ())

    def newest_on(self, topic: str) -> Delivery | None:
        """What waits on that topic and came last; of an indexed queue."""
        return None if self._by_topic is None else self._by_topic.get(topic)

    def replace(self, older: Delivery, newer: Delivery) -> None:
        """Put a message in the place of one that waits, which is forgotten."""
        self._count(0, newer.message.size - older.message.size)
        older.message = newer.message
        older.qos = newer.qos
        older.retain = newer.retain
        older.identifiers = newer.identifiers
        older.group = newer.group
        older.size = newer.size

    def leave_account(self) -> None:
        """Count no more in the account of all: its stream, or its session, is gone."""
        if self.account is not None:
            self.account.count -= self.count
            self.account.bytes -= self.bytes
            self.account = None

    def clear(self) -> int:
        """Forget everything; how many there were."""
        count = self.count
        if count:
            self._count(-count, -self.bytes)
        self._entries = None
        self._by_topic = None
        return count

    def deliveries(self) -> list[Delivery]:
        """Each message that waits, in order, by itself."""
        found: list[Delivery] = []
        for entry in self._entries or ():
            if isinstance(entry, WaitingRun):
                found.extend(_apart(entry.first(entry.count)))
            else:
                found.append(entry)
        return found

    def later_than(self, order: int) -> list[Delivery | WaitingRun]:
        """Those that came after that one, in order."""
        found: list[Delivery | WaitingRun] = []
        for entry in reversed(self._entries or ()):
            if entry.order <= order:
                break
            found.append(entry)
        found.reverse()
        return found

    def take_groups(self) -> list[Delivery]:
        """Take out, in order, what a shared subscription chose this session for."""
        taken: list[Delivery] = []
        for _ in range(self.count):
            delivery = self.pop()
            if delivery.group is None:
                self.append(delivery)
            else:
                taken.append(delivery)
        return taken

    def _count(self, count: int, size: int) -> None:
        self.count += count
        self.bytes += size
        account = self.account
        if account is not None:
            account.count += count
            account.bytes += size


NOTHING_WAITS: Final = WaitingQueue(None)
"""What all share who have never had anything waiting, which are most."""


def _apart(run: WaitingRun) -> list[Delivery]:
    """Its messages, each by itself; the run is used up."""
    found: list[Delivery] = []
    while run.count:
        order = run.order
        found.append(Delivery(run.take(), run.qos, False, (), None, order))
    return found
