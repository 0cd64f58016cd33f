"""What all rules of the broker share: the tables, the limits, the timers, the work lists and the counters. No rule of its own."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker.core.allowance import Allowance
from broker.core.buckets import Buckets
from broker.core.deadlines import CONNECT_TIMEOUT, Deadlines
from broker.core.incoming import FREE_BYTES
from broker.core.journal import Journal, LastingRetainedStore
from broker.core.retained import RetainedStore
from broker.core.topic_table import TopicTable
from broker.core.waiting import Account

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.limits import Limits
    from broker.core.link import Link
    from broker.core.message import ApplicationMessage
    from broker.core.observer import Observer
    from broker.core.overflow import OverflowRules
    from broker.core.session import Session
    from broker.core.subscription import SharedGroup


COUNTER_NAMES: Final = (
    "bytes_received", "bytes_sent", "clients_expired", "clients_maximum", "connections_count", "held_up_count", "packets_received",
    "packets_sent", "publish_dropped", "publish_received", "publish_sent",
)  # fmt: skip


class Counters:
    """Since the start. Packets and bytes are MQTT's, not the network's."""

    __slots__ = COUNTER_NAMES

    def __init__(self) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.packets_received = 0
        self.packets_sent = 0
        self.publish_received = 0
        self.publish_sent = 0
        self.publish_dropped = 0
        self.clients_expired = 0
        self.clients_maximum = 0
        self.connections_count = 0
        self.held_up_count = 0
        """How often a client was made to wait for its rate."""


class State:
    def __init__(
        self,
        limits: Limits,
        access: Access,
        observer: Observer,
        overflow: OverflowRules,
        new_client_id: Callable[[], str],
        asks_authentication: bool,
        response_information: str,
        bytes_underway: Callable[[Link], int],
        journal: Journal | None,
    ) -> None:
        self.limits = limits
        """Of the broker as a whole; those of one client are `link.limits`."""
        self.allowance = Allowance(limits)
        """Of links that were attached without one."""
        self.access = access
        self.observer = observer
        self.overflow = overflow
        self.new_client_id = new_client_id
        self.asks_authentication = asks_authentication
        self.response_information = response_information
        self.bytes_underway = bytes_underway
        self.topics = TopicTable(limits.routes_count_max, self.spend)
        self.journal = journal
        """None: nothing outlives the process."""
        self.committed = 0
        """The changes up to that number are on disk."""
        self.retained = RetainedStore() if journal is None else LastingRetainedStore(journal)
        self.deadlines = Deadlines()
        self.sessions: dict[str, Session] = {}
        self.reserved: dict[str, str] = {}
        """Client Identifiers that only who comes in by a certain listener may have, whether or not it is here: whoever else had one would get its
        Session, and what waits in it."""
        self.links: dict[Link, None] = {}  # not a set: its order would change from run to run, and shutdown's goodbyes with it
        self.newcomers: dict[Link, float] = {}
        """Those of them that have come since somebody asked when the next timer is due, and until when each should be connected: mostly it is
        before anybody asks, and needs no timer for that."""
        self.connected_count = 0
        self.users: dict[str, int] = {}
        """How many clients are connected with each user name."""
        self.connects = Buckets()
        """How often each user has connected with each Client Identifier, where that is bounded."""
        self.connacks: dict[tuple[bool, int | None, int | None], bytes] = {}
        """CONNACKs of 5.0 that say nothing of one client alone, under `connacks_of`: see `connect`."""
        self.connacks_of: Limits | None = None
        self.counters = Counters()
        self.dropped: dict[str, int] = {}
        """Messages not delivered, by reason."""
        self.shutting_down = False
        # What one verb leaves for its own end, or for the next.
        self.ready: list[Link] = []
        """For `take_ready`."""
        self.gated: dict[Link, None] = {}
        """They would have been named by `take_ready`, but wait for the disk."""
        self.wills: deque[tuple[ApplicationMessage, int]] = deque()
        """To be published, with the bytes that each counts for until then."""
        self.publishes_wills = False
        """What is being published now is one of them."""
        self.orphans: deque[tuple[SharedGroup, ApplicationMessage, str]] = deque()
        """Messages of a shared group whose member's session, with this Client Identifier, ended: each to be offered to another member."""
        self.backlog: dict[Link, None] = {}
        """Links whose waiting messages were not all looked at within one verb's budget."""
        self.closing: list[Link] = []
        """Links that shutdown has still to say goodbye to."""
        self.work = 0
        """Deliveries and the like done in this verb, against `work_per_turn_max`."""
        self.busy: OrderedDict[Link, float] = OrderedDict()
        """Links whose turns are long, and when each had its last one, oldest first: see `core.turns`."""
        self.busy_until = math.inf
        """Then one of them is not any more, if it has not had another one."""
        self.work_max = limits.work_per_turn_max
        """For what a link has sent: less, while many are busy."""
        self.refused = False
        """The rule `refuse` acted on the message being routed."""
        self.waiting = Account()
        """All queues and outboxes' waiting messages together, and what else is held for clients."""

    def spend(self, work: int) -> None:
        """A look-up was as much work as so many deliveries."""
        self.work += work

    def time_newcomers(self) -> None:
        """Set the timers of those who have not been connected at once."""
        for link, until in self.newcomers.items():
            link.deadline = self.deadlines.add(until, CONNECT_TIMEOUT, link)
        self.newcomers.clear()

    def stop_timer(self, link: Link) -> None:
        """What it waits for, CONNECT or whatever its Keep Alive demands, has come, or does not matter any more."""
        if link.deadline is not None:
            self.deadlines.cancel(link.deadline)
            link.deadline = None
        else:
            self.newcomers.pop(link, None)

    def mark_ready(self, link: Link) -> None:
        if not link.ready:
            link.ready = True
            self.ready.append(link)

    def send(self, link: Link, packet_bytes: bytes) -> None:
        """Commit one packet that is not a PUBLISH."""
        self.counters.packets_sent += 1
        link.outbox.append(packet_bytes)
        if not link.ready:
            link.ready = True
            self.ready.append(link)

    def count_dropped(self, client_id: str, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        session = self.sessions.get(client_id)
        if session is not None:
            if session.dropped is None:
                session.dropped = {}
            session.dropped[reason] = session.dropped.get(reason, 0) + count
        self.counters.publish_dropped += count
        self.observer.dropped(client_id, reason, count)

    @property
    def memory_bytes(self) -> int:
        """What counts against `memory_bytes_max`."""
        return self.outgoing_bytes + self.waiting.receiving_bytes + self.waiting.will_bytes

    @property
    def outgoing_bytes(self) -> int:
        """All of it but what is coming in, and Wills, which have a share of their own."""
        account = self.waiting
        return account.bytes + account.inflight_bytes + account.unsent_bytes + self.retained.bytes

    @property
    def receiving_bytes_max(self) -> int:
        """The share of packets that are coming in, but for one of them: the last eighth, less the Wills. So neither they nor what waits can
        starve the other."""
        limit = self.limits.memory_bytes_max
        return max(limit >> 4, (limit >> 3) - self.waiting.will_bytes)

    def over_memory_for_wills(self, size: int, more_bytes: int) -> bool:
        """Is there no place for a Will of that size, with which they take `more_bytes` more? All may take half of the last eighth, large ones no
        more than half of that, or a few would keep out everybody who has one."""
        return self.waiting.will_bytes + more_bytes > self.limits.memory_bytes_max >> (4 if size <= FREE_BYTES else 5)

    @property
    def memory_left(self) -> int:
        """For those who are connected; below 0 when there is none."""
        limit = self.limits.memory_bytes_max
        return limit - (limit >> 3) - self.outgoing_bytes

    def over_memory(self, more_bytes: int) -> bool:
        """Would so many more be too many for those who are connected?"""
        return more_bytes > self.memory_left

    def over_memory_for_later(self, more_bytes: int) -> bool:
        """The same for what may wait as long as it likes: the last quarter is for those who are connected, so that nobody's absence starves them."""
        return more_bytes > self.memory_left_for_later

    @property
    def memory_left_for_later(self) -> int:
        return self.limits.memory_bytes_max // 4 * 3 - self.outgoing_bytes
