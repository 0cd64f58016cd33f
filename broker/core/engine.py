"""The broker as a function from bytes and time to bytes: the verbs that the surroundings call.

The caller's duties. `now` is a clock that never goes back, in seconds. After every verb that may have produced output,
drain `take_ready()`: send what `data_to_send` gives and say with `bytes_sent` how much of it the socket took, if only nothing (or send
what `take_to_send` gives, and hand back with `give_back` what the socket did not take); a link that is `closing` is closed once it has
nothing left; one that is `paused` is not read until it is named again. Sleep until `next_deadline()` and call `tick`. No verb calls back
into another, and none raises for what a peer did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from broker.core import incoming, pausing
from broker.core.access import Access, Authorize
from broker.core.admission import refuse
from broker.core.allowance import Allowance, UserLimits
from broker.core.authenticating import authenticated, challenge
from broker.core.due import on_due
from broker.core.ending import close_link, discard, end_session, leave
from broker.core.gates import gate, let_through, open_gates
from broker.core.inside import InternalSubscription, filter_cursor, retained_cursor, retained_on, subscribe_internal
from broker.core.journal import Journal
from broker.core.leftovers import finish
from broker.core.limits import Limits
from broker.core.link import CONNECTED, ENDED, Link
from broker.core.message import ApplicationMessage
from broker.core.new_limits import use_limits
from broker.core.observer import CONNECTION_LOST, Observer
from broker.core.overflow import OverflowRules
from broker.core.publish import publish
from broker.core.pumping import pump
from broker.core.receiving import make_room, paced, process, violation
from broker.core.relay import passed_on, sole_recipient
from broker.core.reserved import drop_unreserved, release, reserve
from broker.core.restoring import Restored, read, settle
from broker.core.session import Session
from broker.core.state import State
from broker.core.statistics import statistics
from broker.core.turns import TURN_WORK_MIN, note_busy, share_out
from broker.errors import IncompletePacket, InvalidTopic, PeerError, shown
from broker.reasons import ReasonCode
from broker.wire.topics import topic_name_fault

if TYPE_CHECKING:
    from broker.core.filter_trie import FilterCursor
    from broker.core.retained import ReplayCursor
    from broker.core.saved import Changes, Saved
    from broker.core.session import Sink


class Engine:
    def __init__(
        self,
        limits: Limits | None = None,
        *,
        new_client_id: Callable[[], str],
        asks_authentication: bool = False,
        authorize: Authorize | None = None,
        on_authorize_error: Callable[[Exception], None] | None = None,
        observer: Observer | None = None,
        overflow: Mapping[str, str] | None = None,
        response_information: str = "",
        bytes_underway: Callable[[Link], int] | None = None,
        lasting: bool = False,
    ) -> None:
        """new_client_id: makes Client Identifiers for clients that bring none (randomness is not the core's). asks_authentication: each
        CONNECT waits, with its question in `link.auth`, for `authenticated`. authorize: see `core.access`. overflow: Topic Filter to rule.
        bytes_underway: of what `bytes_sent` told, what has not come to the peer yet, if that can be known. lasting: what must outlive the process
        is to be had from `take_changes`, and nothing that depends on it leaves before it is `committed`."""
        self.state = State(
            limits or Limits(),
            Access(authorize, on_authorize_error),
            observer or Observer(),
            OverflowRules(overflow),
            new_client_id,
            asks_authentication,
            response_information,
            bytes_underway or _all_arrived,
            Journal() if lasting else None,
        )

    @property
    def access(self) -> Access:
        """What a client may do whose listener has no rules of its own."""
        return self.state.access

    @property
    def allowance(self) -> Allowance:
        """And how much."""
        return self.state.allowance

    # ---- a byte stream's life ----

    def attach(
        self,
        peer: str,
        now: float,
        *,
        listener: str = "",
        transport: object = None,
        access: Access | None = None,
        allowance: Allowance | None = None,
        refusal: tuple[ReasonCode, str] | None = None,
        mount_point: str = "",
    ) -> Link:
        """A byte stream has come. access, allowance: what its client may do, and how much, if not what holds for all.
        refusal: what its CONNECT is to be answered, come what may. mount_point: see `core.mount`."""
        state = self.state
        link = Link(peer, listener, transport, allowance or state.allowance, state.waiting, access or state.access, now, refusal, mount_point)
        state.links[link] = None
        state.counters.connections_count += 1
        if state.shutting_down:
            refuse(state, link, ReasonCode.SERVER_UNAVAILABLE, "the broker is shutting down")
        else:
            state.newcomers[link] = now + link.limits.connect_timeout_s
        return link

    def sole_recipient(self, link: Link, data: bytes) -> Link | None:
        """The short way of what wakes a broker most often: one whole message at QoS 0, on a known topic, for one client that has nothing
        waiting. If `data` is that, the client's link: its socket may be offered `data` itself, and then `passed_on` be called in place of
        `receive`. Nothing has changed yet."""
        return sole_recipient(self.state, link, data)

    def passed_on(self, link: Link, recipient: Link, data: bytes, count: int, now: float) -> None:
        """The socket of the `sole_recipient` took `count` bytes of `data`; what is left of them is in its outbox."""
        passed_on(self.state, link, recipient, data, count, now)

    def receive(self, link: Link, data: bytes, now: float) -> bool:
        """Act on any bytes, up to `work_per_turn_max` deliveries. True: flush, checkpoint, and call again with b"".

        Good packets before a bad one in the same bytes are done first. A link that is paused, or whose CONNECT is being
        decided, keeps what it got until it is named again.
        """
        state = self.state
        if link.closing or not link.attached:
            return False
        decoder = link.decoder
        if data:
            link.last_received_at = now
            state.counters.bytes_received += len(data)
            if link.rate is None:
                decoder.feed(data)
            else:
                link.rate.hold(data)
        state.work = 0
        if now > state.busy_until:
            share_out(state, now)
        more = False
        published = state.counters.publish_received
        journal = state.journal
        noted = 0 if journal is None else journal.count
        try:
            more = process(state, link, now)
            if link.rate is not None:
                more = paced(state, link, link.rate, more, published, now)
        except PeerError as error:
            violation(state, link, error, now)
        if state.work >= TURN_WORK_MIN:
            note_busy(state, link, now)
        paused = link.paused
        if (decoder.data or decoder.missing_bytes or link.receiving_bytes or link.rate is not None) and incoming.count(state, link):
            make_room(state, now)
        if state.wills or state.orphans:
            finish(self.state, now)
        if journal is not None and journal.count != noted:
            gate(state, link)
        # Whoever it had to wait for may just have been ended, to make room: nobody would see that pause, or its end.
        return more or (paused and not link.paused)

    def take_ready(self) -> list[Link]:
        """The links that have bytes to send, want to close or may be read again, each once."""
        state = self.state
        ready = state.ready
        if not ready:
            return ready
        state.ready = []
        if state.journal is not None:
            ready = let_through(state, ready)
        for link in ready:
            link.ready = False
            if link.outbox.counted_bytes:
                link.outbox.count()
        return ready

    def data_to_send(self, link: Link, limit: int = 262_144) -> bytes | memoryview:
        """What is next for that link's socket, about `limit` at most; the same until `bytes_sent`. Nothing while it is `held_back`."""
        if link.gate <= self.state.committed:
            return link.outbox.data_to_send(limit)
        count = link.clear_bytes - link.outbox.sent_bytes_total
        if count <= 0:
            return b""
        data = link.outbox.data_to_send(min(limit, count))
        return data if len(data) <= count else memoryview(data)[:count]

    def take_to_send(self, links: Sequence[Link], limit: int) -> list[bytes]:
        """For each link all that is next for its socket, at once and as if it were sent, where that is no more than `limit` and nothing else waits
        for it to be; else b"", and `data_to_send` is to be asked. What a socket does not take is to be given back before anything else is sent.
        (For all of them in one loop and in sums, since this is asked for each recipient of each read.)"""
        taken: list[bytes] = []
        total = 0
        for link in links:
            outbox = link.outbox
            session = link.session
            size = outbox.committed_bytes
            if (
                session is None
                or size > limit
                or outbox.counted_bytes
                or outbox.head
                or outbox.waiting.count
                or session.queue.count
                or session.replays
                or session.sender.resend
                or link.pausing is not None
            ):
                taken.append(b"")
                continue
            if outbox.chunks is None:
                taken.append(outbox.joined)
                outbox.joined = b""
            else:
                taken.append(b"".join(outbox.chunks))
                outbox.chunks = None
            outbox.committed_bytes = 0
            outbox.sent_bytes_total += size
            total += size
        self.state.counters.bytes_sent += total
        return taken

    def give_back(self, link: Link, data: bytes, count: int) -> None:
        """The socket took only `count` bytes of what `take_to_send` returned."""
        self.state.counters.bytes_sent -= len(data) - count
        link.outbox.give_back(data, count)
        link.outbox.count()

    def bytes_sent(self, link: Link, count: int, now: float) -> bool:
        """The socket took `count` bytes, or none; is there more? Messages that waited are encoded in their place, publishers that waited go on."""
        state = self.state
        outbox = link.outbox
        outbox.bytes_sent(count)
        state.counters.bytes_sent += count
        if outbox.committed_bytes * 2 < link.outbox_bytes_high:
            session = link.session if link.session is not None else link.leaving
            if outbox.waiting.count or (session is not None and (session.queue.count or session.replays or session.sender.resend)):
                state.work = 0
                outbox.count()  # what it has sent is in nobody's way any more, and in its own client's least of all
                pump(state, link, now)
            if link.pausing is not None and not outbox.waiting.count:
                pausing.release(state, link, now)
        if outbox.counted_bytes != outbox.committed_bytes:
            outbox.count()
        return outbox.committed_bytes > 0

    def is_behind(self, link: Link) -> bool:
        """Is there more for it than a verb's budget allowed to look at? `tick` goes on with it."""
        return link in self.state.backlog

    def detach(self, link: Link, now: float, *, still_reads: bool = False) -> None:
        """The stream has ended, and what is left for its peer is lost.

        still_reads: the peer has closed only its sending side. What was queued for it may still be drained, and is while it `is_behind`, until
        `detach` is called again without.
        """
        state = self.state
        if not link.attached:
            if not still_reads:
                discard(state, link)
            return
        state.work = 0
        if link.phase != ENDED:
            cause = CONNECTION_LOST
            try:
                link.decoder.end_of_stream()
            except IncompletePacket as error:
                cause = str(error)
                state.observer.violation(link, cause)
            leave(state, link, now, cause, error=True, keep_waiting=True)
        link.attached = False
        state.links.pop(link, None)
        state.busy.pop(link, None)
        if still_reads:
            pump(state, link, now)
        else:
            discard(state, link)
        finish(self.state, now)

    # ---- what outlives the process ----

    def restore(self, saved: Saved, now: float, unix_now: float, rules_of: Callable[[str, str], tuple[Access, Allowance]] | None = None) -> None:
        """Before anybody comes: what a store has. rules_of: a listener, as `attach` named it, and an `Access.own`, to what its clients may
        do, and how much."""
        self.settle(self.read(saved, now, unix_now, rules_of))

    def read(self, saved: Saved, now: float, unix_now: float, rules_of: Callable[[str, str], tuple[Access, Allowance]] | None = None) -> Restored:
        """The half of `restore` that may wait for a disk. It asks nobody anything, so a thread may do it."""
        return read(self.state, saved, now, unix_now, rules_of)

    def settle(self, restored: Restored) -> None:
        """The other half: Wills go out, Sessions end, and `authorize` is asked about it."""
        settle(self.state, restored)

    def take_changes(self, now: float, unix_now: float) -> Changes | None:
        """What has changed since the last time, to be written all or not at all, and then told to `committed`; None if nothing has."""
        journal = self.state.journal
        return None if journal is None else journal.take(self.state, now, unix_now)

    def committed(self, number: int) -> None:
        """The changes of that number are on disk, and all before. Whoever waited for that is named by `take_ready`."""
        open_gates(self.state, number)

    def held_back(self, link: Link) -> bool:
        """Is there something for it that waits for the disk?"""
        return link.gate > self.state.committed and link.outbox.committed_bytes > 0

    @property
    def has_changes(self) -> bool:
        journal = self.state.journal
        return journal is not None and journal.has_changes

    @property
    def is_awaited(self) -> bool:
        """Does somebody wait for changes that have not been taken? (Else they may be written with later ones.)"""
        journal = self.state.journal
        return journal is not None and journal.awaited >= journal.number

    @property
    def last_change(self) -> int:
        """Number of the newest changes that there are, taken or not."""
        journal = self.state.journal
        return 0 if journal is None else journal.newest

    def is_committed(self, number: int) -> bool:
        return self.state.committed >= number

    @property
    def changes_count(self) -> int:
        """About how many changes have not been taken."""
        journal = self.state.journal
        return 0 if journal is None else journal.pending_count

    # ---- authentication ----

    def authenticated(
        self,
        link: Link,
        username: str | None,
        now: float,
        *,
        refused: ReasonCode | None = None,
        data: bytes | None = None,
        ends_at: float = math.inf,
        access: Access | None = None,
        client_id: str = "",
    ) -> None:
        """Answer the question in `link.auth`. Then call `receive` with b"": the client may have sent more already.

        ends_at: it holds until then, and the connection with it, unless the client shows something newer. access: what it may do from now on, if
        not what it might before. client_id: under which it is served, if not the one it brought.
        """
        self.state.work = 0
        authenticated(self.state, link, username, now, refused, data, ends_at, access, client_id)
        finish(self.state, now)

    def challenge(self, link: Link, data: bytes, now: float) -> None:
        """Ask the client for more; its answer comes in `link.auth.answers`, and the link is then named by `take_ready`."""
        challenge(self.state, link, data, now)

    # ---- those inside the house ----

    def publish(self, message: ApplicationMessage, now: float) -> ReasonCode:
        """A message of the broker's own; no access rules. Raises InvalidTopic."""
        fault = topic_name_fault(message.topic)
        if fault is not None:
            raise InvalidTopic(f"{shown(message.topic)} is not a topic name: {fault}")
        self.state.work = 0
        reason = publish(self.state, message, None, now)
        finish(self.state, now)
        return reason

    def subscribe_internal(
        self, name: str, filters: Sequence[str], qos: int, sink: Sink, now: float, *, retained: bool = True
    ) -> InternalSubscription:
        """`sink(message, qos, retain, now)` is called at once for each matching message: it must not block or call the engine. Raises
        InvalidTopic."""
        return subscribe_internal(self.state, name, filters, qos, sink, now, retained)

    def unsubscribe_internal(self, subscription: InternalSubscription, now: float) -> None:
        end_session(self.state, subscription.session, now)
        finish(self.state, now)

    def clients(self) -> list[Session]:
        """The sessions of clients, connected or not."""
        return list(self.state.sessions.values())

    def client(self, client_id: str) -> Session | None:
        return self.state.sessions.get(client_id)

    def filter_cursor(self, topic: str) -> FilterCursor:
        """The Topic Filters that match, in steps, for `core.subscription.by_filter`. It asks no access rules. Raises InvalidTopic."""
        return filter_cursor(self.state, topic)

    def disconnect(self, client_id: str, reason: ReasonCode, now: float, *, drop_session: bool = False) -> bool:
        """Throw a client out; was there one, or a session to drop?"""
        state = self.state
        session = state.sessions.get(client_id)
        if session is None:
            return False
        was_connected = session.link is not None
        if session.link is not None:
            close_link(state, session.link, reason, "it was disconnected by the administrator", now)
        if drop_session:
            end_session(state, session, now)
        finish(self.state, now)
        return was_connected or drop_session

    def reserve(self, client_id: str, listener: str, now: float) -> None:
        """From now on only who comes in by that listener may have it; see `core.reserved`."""
        reserve(self.state, client_id, listener, now)
        finish(self.state, now)

    def release(self, client_id: str, now: float) -> None:
        """It is anybody's again."""
        release(self.state, client_id, now)
        finish(self.state, now)

    def drop_unreserved(self, listener: str, now: float) -> list[str]:
        """End the Sessions of who came in by that listener and has no reserved name; whose they were."""
        left = drop_unreserved(self.state, listener, now)
        finish(self.state, now)
        return left

    def retained(self, filter: str, now: float) -> list[ApplicationMessage]:
        """All retained messages that match. Raises InvalidTopic."""
        return retained_on(self.state, filter, now)

    def retained_cursor(self, filter: str) -> ReplayCursor:
        """The same in steps, of what `broker.core.kept` makes messages again. Raises InvalidTopic."""
        return retained_cursor(self.state, filter)

    def forget_permissions(self, username: str | None = None) -> None:
        """Ask `authorize` anew, for one user or for all."""
        state = self.state
        for link in state.links:
            if username is None or link.username == username:
                link.known_topics = {}
        state.topics.forget_routes()

    def set_limits(self, limits: Limits, now: float, users: UserLimits = ()) -> None:
        """For what comes from now on; connected clients keep what their CONNACK said. users: of those who have limits of their own.

        The allowances of listeners have been given theirs before.
        """
        use_limits(self.state, limits, users, now)

    def set_overflow(self, overflow: Mapping[str, str]) -> None:
        """Topic Filter to rule, for what comes from now on. ConfigError: nothing was changed."""
        self.state.overflow = OverflowRules(overflow)

    def set_authentication(self, asked: bool) -> None:
        """Does each CONNECT from now on wait for `authenticated`?"""
        self.state.asks_authentication = asked

    def set_authorize(self, authorize: Authorize | None, *, refuses_wills: bool = True) -> None:
        """The rule of all links that were attached without an `access` of their own; it is asked anew about everything."""
        self.state.access.use(authorize, refuses_wills=refuses_wills)
        self.forget_permissions()

    def statistics(self) -> dict[str, int | float]:
        """Counters since the start and gauges of now; the keys end in their unit, plain counts in none."""
        return statistics(self.state)

    # ---- time ----

    def next_deadline(self) -> float:
        """When `tick` has something to do; `-math.inf` when it has right now, `math.inf` for never."""
        state = self.state
        if state.newcomers:
            state.time_newcomers()
        if state.backlog or state.wills or state.orphans or state.closing:
            return -math.inf
        return state.deadlines.next_at()

    def tick(self, now: float) -> bool:
        """Do what is due, up to the budget. True: there is more; flush, checkpoint and call again."""
        state = self.state
        state.work = 0
        state.time_newcomers()
        work_max = state.limits.work_per_turn_max
        for link in list(state.backlog):
            if state.work >= work_max:
                break
            del state.backlog[link]
            pump(state, link, now)
        while state.closing and state.work < work_max:
            link = state.closing.pop()
            state.work += 1
            self._say_goodbye(link, now)
        while state.work < work_max:
            due = state.deadlines.pop_due(now)
            if due is None:
                break
            state.work += 1
            on_due(state, due[0], due[1], now)
        finish(self.state, now)
        return self.next_deadline() <= now

    def shutdown(self, now: float) -> None:
        """Refuse new links, and tell the others goodbye (0x8B in 5.0), bounded like every verb: `tick` goes on with the rest."""
        state = self.state
        state.shutting_down = True
        state.closing = list(state.links)
        self.tick(now)

    def _say_goodbye(self, link: Link, now: float) -> None:
        if link.phase == CONNECTED:
            close_link(self.state, link, ReasonCode.SERVER_SHUTTING_DOWN, "the broker is shutting down", now)
        elif link.phase != ENDED:
            refuse(self.state, link, ReasonCode.SERVER_UNAVAILABLE, "the broker is shutting down")


def _all_arrived(link: Link) -> int:
    return 0
