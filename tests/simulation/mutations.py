"""Planted faults: each takes away one thing that the broker does to keep a promise. The simulation has to notice every one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from broker.core import connect, delivery, due, ending, engine, exchange, gates, incoming, pausing, publish, pumping, queueing, receiving, record
from broker.core.client_inbox import ClientInbox
from broker.core.client_outbox import ClientOutbox
from broker.core.client_state import Delivery as ClientDelivery
from broker.core.filter_trie import FilterTrie
from broker.core.inflight import Receiver, Sender
from broker.core.journal import Journal
from broker.core.kept import Kept
from broker.core.link import Link
from broker.core.outbox import Outbox
from broker.core.owed import Delivery
from broker.core.retained import RetainedStore
from broker.core.run_rows import ALL, RunRow, RunRows, StoredRuns
from broker.core.saved import Changes
from broker.core.session import Session
from broker.core.state import State
from broker.core.subscription import SharedGroup
from broker.core.topic_table import TopicTable
from broker.core.waiting import WaitingQueue
from broker.wire.packets import PUBREC, Publish, PubRec

Mutation = Callable[[pytest.MonkeyPatch], None]


def general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything by the general way, so that what is broken there is not passed by."""
    monkeypatch.setattr(receiving, "exchange", lambda state, link, session, now: True)
    monkeypatch.setattr(receiving, "relay", lambda state, link, now: True)


def resend_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not acknowledged is not repeated when the session resumes."""
    begin = Sender.begin

    def lossy(self: Sender[Any], quota_max: int) -> None:
        begin(self, quota_max)
        self.resend = None

    monkeypatch.setattr(Sender, "begin", lossy)


def pubrel_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PUBREC is noted and not answered."""
    general_way(monkeypatch)

    def forgetful(state: State, link: Link, packet: PubRec, now: float) -> None:
        assert link.session is not None
        link.session.sender.on_pubrec(packet.packet_id, False)

    handlers = list(receiving._HANDLERS)
    handlers[PUBREC] = forgetful
    monkeypatch.setattr(receiving, "_HANDLERS", handlers)


def quota_not_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sender, "restore_quota", lambda self, count: None)


def order_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue gives its newest message first."""
    pop = WaitingQueue.pop

    def newest(self: WaitingQueue) -> Delivery:
        assert self._entries is not None
        self._entries.rotate(1)
        return pop(self)

    monkeypatch.setattr(WaitingQueue, "pop", newest)


def waiting_bytes_leaked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is cleared stays in the account of all."""

    def clear(self: WaitingQueue) -> int:
        count, self.count, self.bytes, self._entries = self.count, 0, 0, None
        return count

    monkeypatch.setattr(WaitingQueue, "clear", clear)
    monkeypatch.setattr(WaitingQueue, "leave_account", lambda self: None)


def will_published_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ending.publish_will

    def twice(state: Any, session: Any, now: float) -> None:
        will = session.will
        real(state, session, now)
        if will is not None:
            state.wills.append((ending.will_message(will, session.client_id, now), 0))

    monkeypatch.setattr(ending, "publish_will", twice)


def will_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Will goes out after a proper DISCONNECT too."""
    settle = ending.settle_will
    monkeypatch.setattr(ending, "settle_will", lambda state, session, now, discard: settle(state, session, now, False))


def qos_2_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated QoS 2 PUBLISH is taken for a new one."""
    general_way(monkeypatch)
    monkeypatch.setattr(Receiver, "on_publish", lambda self, packet_id: True)


def drop_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "count_dropped", lambda self, client_id, reason, count=1: None)


def access_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever subscribed gets everything."""
    monkeypatch.setattr("broker.core.session.Session.may_receive", lambda self, topic: True)


def receive_maximum_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Sender.begin
    monkeypatch.setattr(Sender, "begin", lambda self, quota_max: begin(self, 65_535))


def subscription_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """UNSUBSCRIBE is answered and not done."""
    real = TopicTable.remove

    def remove(self: TopicTable, session: Any, filter: str) -> bool:
        return real(self, session, filter) if session.ended else filter in session.subscriptions

    monkeypatch.setattr(TopicTable, "remove", remove)


def retained_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    real = RetainedStore.put

    def put(self: RetainedStore, topic: str, topic_field: bytes, kept: Kept) -> Kept | None:
        return None if self.get(topic) is not None else real(self, topic, topic_field, kept)

    monkeypatch.setattr(RetainedStore, "put", put)


def stale_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept route is believed for ever."""
    monkeypatch.setattr(TopicTable, "is_fresh", lambda self, route: True)


def wildcards_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first message goes to the filter that is its topic, whatever else matches."""
    monkeypatch.setattr(FilterTrie, "sole", lambda self, topic, found: found)


def ids_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet id is taken without looking whether it is free."""

    def take_id(self: Sender[Any]) -> int:
        self._last_id = self._last_id % 3 + 1
        return self._last_id

    monkeypatch.setattr(Sender, "take_id", take_id)


def whole_group_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared message goes to the first member, and again to the next."""
    deliver = delivery.deliver

    def both(state: Any, session: Any, message: Any, qos: int, retain: bool, identifiers: Any, group: SharedGroup | None, *rest: Any) -> bool:
        if group is not None:
            for member in group.members:
                deliver(state, member.session, message, qos, retain, identifiers, group, *rest)
            return True
        return deliver(state, session, message, qos, retain, identifiers, group, *rest)

    monkeypatch.setattr(publish, "deliver", both)


def bounds_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a place in a queue."""
    monkeypatch.setattr(queueing, "_has_place", lambda state, queue, size, count_max, bytes_max, connected: True)


def expiry_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose time has run out goes on."""
    monkeypatch.setattr(due, "end_session", lambda state, session, now: None)


def inflight_leaked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged still counts."""
    monkeypatch.setattr(Session, "let_go", lambda self, size: None)


def unsent_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a full socket is in no account."""
    monkeypatch.setattr(Outbox, "count", lambda self: None)


def receiving_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come of packets is in no account."""
    monkeypatch.setattr(incoming, "count", lambda state, link: False)


def questions_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CONNECT is in no account while it is asked who its client is."""

    def held(link: Link) -> int:
        return link.decoder.held_bytes + (link.rate.held_bytes if link.rate is not None else 0)

    monkeypatch.setattr(incoming, "held_bytes", held)


def wills_kept_in_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Will that is dropped still counts."""

    def drop(state: State, session: Session) -> int:
        session.will = None
        state.deadlines.cancel(session.will_deadline)
        session.will_deadline = None
        return 0

    monkeypatch.setattr(ending, "drop_will", drop)
    monkeypatch.setattr(connect, "drop_will", drop)


def half_packets_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much has come of packets, nobody gives way."""
    monkeypatch.setattr(engine, "make_room", lambda state, now: None)


def ended_not_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream left behind that is gone stays in the account."""
    monkeypatch.setattr(engine, "discard", lambda state, link: None)


def pause_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that takes nothing holds its publishers until it is gone."""
    monkeypatch.setattr(pausing, "pause_due", lambda state, link, now: None)


def sole_recipient_always_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher's only recipient may pace it though it takes nothing."""

    def may_pace(state: State, link: Link, now: float) -> bool:
        assert link.credit is not None
        link.credit.progress_at = now + 1  # where there is no grace, `now` would be asked about at the same instant for ever
        return True

    monkeypatch.setattr(pausing, "_may_pace", may_pace)


def resumed_client_sends_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own client, not the broker: what it had published and not seen acknowledged is forgotten when it reconnects."""
    begin = ClientOutbox.begin

    def forgetful(self: ClientOutbox, capabilities: Any) -> Any:
        found = begin(self, capabilities)
        self.sender.resend = None
        return found

    monkeypatch.setattr(ClientOutbox, "begin", forgetful)


def client_takes_repetitions_for_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own client: a repeated QoS 2 PUBLISH reaches the program again."""

    def on_publish(self: ClientInbox, packet: Publish) -> ClientDelivery:
        alias = packet.properties.topic_alias
        if alias is not None:
            packet = self._resolve_alias(packet, alias)
        return ClientDelivery(packet, self.connection) if packet.qos == 0 else _held(self, packet)

    def _held(self: ClientInbox, packet: Publish) -> ClientDelivery:
        delivery = self._unsettled[packet.packet_id] = ClientDelivery(packet, self.connection)
        self._receiver.on_publish(packet.packet_id)
        self._queue.append(delivery)
        return delivery

    monkeypatch.setattr(ClientInbox, "on_publish", on_publish)


# ---- of a broker with a store, which crashes now and then -----------------------------------------------------------------


def nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledgements and deliveries leave before what they depend on is written."""
    for module in (gates, engine, connect):
        monkeypatch.setattr(module, "gate", lambda state, link: None)


def publisher_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for whoever published it alone."""
    monkeypatch.setattr(engine, "gate", lambda state, link: None)


def unacknowledged_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_sent_rows", lambda session, record, to_unix_s, changes, stored: None)


def not_written(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Rows of one kind."""
    take = Journal.take

    def forgetful(self: Journal, state: State, now: float, unix_now: float) -> Changes | None:
        changes = take(self, state, now, unix_now)
        if changes is not None:
            getattr(changes, kind).clear()
        return changes

    monkeypatch.setattr(Journal, "take", forgetful)


def runs_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that came together."""
    not_written(monkeypatch, "runs")


def what_is_left_of_runs_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was acknowledged before its neighbours comes again with them after a crash, long after."""
    not_written(monkeypatch, "runs_changed")


def shared_frames_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that several Sessions have."""
    not_written(monkeypatch, "shared")


def shared_frames_go_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of these Sessions has no more of the run, nobody has."""
    forget = StoredRuns.forget

    def hasty(self: StoredRuns, row: RunRow) -> None:
        if row.shared is not None:
            row.shared.count = 1
        forget(self, row)

    monkeypatch.setattr(StoredRuns, "forget", hasty)


def what_waits_of_a_run_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """When some of it have been sent, it is written as if all had."""
    leave = RunRows.leave
    monkeypatch.setattr(RunRows, "leave", lambda self, order: leave(self, ALL))


def packet_ids_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of QoS 2 messages that have come, and of those that only PUBREL is to be acknowledged of."""
    monkeypatch.setattr(record, "_ids_row", lambda number, kind, ids, changes: None)


def queue_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_waiting_rows", lambda session, record, to_unix_s, changes, stored: None)


def subscriptions_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_subscription_rows", lambda session, record, changes: None)


def retained_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "retain", lambda self, topic: None)


def wills_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "_will_rows", lambda self, to_unix_s, changes: None)


def acknowledgements_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged comes again after a crash, long after."""
    monkeypatch.setattr(exchange, "note", lambda state, session: None)


def deliveries_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (delivery, pumping, queueing):
        monkeypatch.setattr(module, "note", lambda state, session: None)


def taken_between_two_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Will is neither its session's any more nor its recipients' yet."""
    take = Journal.take

    def at_once(self: Journal, state: State, now: float, unix_now: float) -> Changes | None:
        wills, orphans = state.wills, state.orphans
        state.wills, state.orphans = deque(), deque()
        try:
            return take(self, state, now, unix_now)
        finally:
            state.wills, state.orphans = wills, orphans

    monkeypatch.setattr(Journal, "take", at_once)


MUTATIONS: list[Mutation] = [
    resend_lost, pubrel_forgotten, quota_not_restored, order_swapped, waiting_bytes_leaked, will_published_twice, will_not_cancelled, qos_2_not_held,
    drop_not_counted, access_not_asked, receive_maximum_ignored, subscription_kept, retained_not_replaced, stale_routes, wildcards_forgotten,
    ids_reused,
    whole_group_gets_it, bounds_ignored, expiry_ignored, inflight_leaked, unsent_not_counted, receiving_not_counted, questions_not_counted,
    wills_kept_in_the_account,
    half_packets_not_bounded, ended_not_discarded, pause_without_end, sole_recipient_always_believed,
    resumed_client_sends_nothing_again, client_takes_repetitions_for_new,
    nothing_waits_for_the_disk, publisher_does_not_wait, unacknowledged_not_written, runs_not_written, what_is_left_of_runs_not_written,
    shared_frames_not_written, shared_frames_go_with_the_first, what_waits_of_a_run_forgotten,
    packet_ids_not_written, queue_not_written, subscriptions_not_written,
    retained_not_written, wills_not_written, acknowledgements_not_noted, deliveries_not_noted, taken_between_two_halves,
]  # fmt: skip
