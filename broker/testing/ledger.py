"""What MQTT promises, kept as books: who published and subscribed what and when, and what came of it.

A promise is held to an interval, because nobody sees the moment at which a broker acts: a message was routed between being
sent and being acknowledged, a subscription stood from its SUBACK to the moment its UNSUBSCRIBE was sent at least, and from
its SUBSCRIBE to its UNSUBACK at most. What *must* come needs the first, what *may* come the second. Intervals are in event
numbers (`serial`), not seconds: much happens at one instant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from broker.wire.topics import matches, split_shared

if TYPE_CHECKING:
    from broker.testing.client import SimulatedClient

NEVER = 1 << 60


class BrokenPromise(AssertionError):
    """The broker did not do what it promises; the text says what."""


class Note:
    """One published message."""

    __slots__ = (
        "acked_serial", "at", "client_id", "expires_at", "key", "may_repeat", "number", "payload", "qos", "refused", "retain", "sends", "sent_serial",
        "topic",
    )  # fmt: skip

    def __init__(self, key: str, client_id: str, number: int, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        self.key = key
        self.client_id = client_id
        self.number = number
        """In the publisher's order."""
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.expires_at = math.inf
        self.at = 0.0
        self.sent_serial = NEVER
        self.acked_serial = NEVER
        self.refused = False
        self.sends = 0
        self.may_repeat = False
        """The publisher's session was lost in between, and it does not know."""


class View:
    """One subscription of one client, from first asking to having been rid of it for sure."""

    __slots__ = ("asked_serial", "certain_from", "certain_until", "filter", "gone_serial", "group", "no_local", "plain", "qos")

    def __init__(self, filter: str, qos: int, no_local: bool, serial: int) -> None:
        self.filter = filter
        self.group, self.plain = split_shared(filter)
        self.qos = qos
        self.no_local = no_local
        self.asked_serial = serial
        self.certain_from = NEVER
        self.certain_until = NEVER
        self.gone_serial = NEVER

    def stood_for(self, note: Note) -> bool:
        """Certainly there for the whole time in which the message may have been routed?"""
        return self.certain_from < note.sent_serial and note.acked_serial < self.certain_until and matches(self.plain, note.topic)

    def may_have_had(self, note: Note) -> bool:
        return note.sent_serial < self.gone_serial and matches(self.plain, note.topic)


class Receipt:
    __slots__ = ("dup", "line_number", "note", "qos", "retain", "serial")

    def __init__(self, note: Note, qos: int, retain: bool, dup: bool, line_number: int, serial: int) -> None:
        self.note = note
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.line_number = line_number
        self.serial = serial


class WillView:
    """One connection's Will: how often it has to come out, as far as that can be known."""

    __slots__ = ("delay_s", "due_at", "expected", "may_miss", "note", "settled")

    def __init__(self, note: Note, delay_s: float) -> None:
        self.note = note
        self.delay_s = delay_s
        self.due_at = math.inf
        self.expected: int | None = 0
        """None: once or not at all."""
        self.settled = False
        self.may_miss = False


class Ledger:
    def __init__(self, access_rules: bool, may_refuse: bool) -> None:
        self.access_rules = access_rules
        self.may_refuse = may_refuse
        """A message may be refused that some recipients have."""
        self.notes: dict[str, Note] = {}
        self.clears: list[Note] = []
        """Retained messages removed: PUBLISH with RETAIN and nothing in it."""
        self.wills: list[WillView] = []
        self.dropped: dict[str, dict[str, int]] = {}
        """Client Identifier: reason: how many the broker said it did not deliver."""
        self._number = 0

    def new_note(self, client_id: str, topic: str, qos: int, retain: bool, size: int, clear: bool = False) -> Note:
        self._number += 1
        key = f"{client_id}.{self._number}"
        payload = b"" if clear else f"{key}.".encode().ljust(size, b"x")
        note = Note(key, client_id, self._number, topic, payload, qos, retain)
        if clear:
            self.clears.append(note)
        else:
            self.notes[key] = note
        return note

    def note_of(self, payload: bytes) -> Note | None:
        parts = payload[:60].split(b".")
        return self.notes.get(f"{parts[0].decode()}.{parts[1].decode()}") if len(parts) > 2 else None

    def may_use(self, username: str | None, topic: str) -> bool:
        """The access rule of simulated runs: topics under c are for staff."""
        return not self.access_rules or username == "staff" or not topic.startswith("c/")

    def silently_refused(self, note: Note) -> bool:
        """Perhaps: there was no place to retain it, which MQTT 3.1.1 and QoS 0 have no word for; it was counted."""
        return note.retain and self.dropped.get(note.client_id, {}).get("not-accepted", 0) > 0

    def nobody_is_there(self) -> None:
        """The broker begins anew, with nobody connected: a Will at QoS 0 that goes out now reaches nobody."""
        for will in self.wills:
            will.may_miss = will.may_miss or (will.note.qos == 0 and bool(will.note.sends))

    # ---- as it comes ----

    def check_receipt(self, client: SimulatedClient, receipt: Receipt) -> None:
        """May this client have this message at all?"""
        note = receipt.note
        if not self.may_use(client.spec.username, note.topic):
            raise BrokenPromise(f"{client.client_id} may not have {note.topic}, and got {note.key}")
        if receipt.qos > note.qos:
            raise BrokenPromise(f"{note.key} was published at QoS {note.qos} and came at {receipt.qos}")
        if receipt.retain and not note.retain:
            raise BrokenPromise(f"{note.key} came with RETAIN and was not published so")
        if note.sends == 0:
            raise BrokenPromise(f"{note.key} came before it was sent")
        views = [view for view in client.views if matches(view.plain, note.topic)]
        if not receipt.retain:
            views = [view for view in views if view.may_have_had(note) and not (view.no_local and note.client_id == client.client_id)]
        if not views:
            raise BrokenPromise(f"{client.client_id} got {note.key} on {note.topic}, which it had not subscribed to")
        if receipt.qos > max(view.qos for view in views):
            raise BrokenPromise(f"{client.client_id} got {note.key} at QoS {receipt.qos}, above what was granted")
        if receipt.retain and note.retain:
            self._check_not_overwritten(client, receipt)

    def _check_not_overwritten(self, client: SimulatedClient, receipt: Receipt) -> None:
        """A retained message that was replaced before the subscription was asked for does not come back (nor does a live one come late)."""
        note = receipt.note
        if client.has_retain_as_published or receipt.dup:
            return
        views = [view for view in client.views if matches(view.plain, note.topic)]
        asked = min(view.asked_serial for view in views)
        for later in self._retained_on(note.topic):
            if later.sent_serial > note.acked_serial and later.acked_serial < asked and not later.refused and not self.silently_refused(later):
                raise BrokenPromise(f"{client.client_id} was given {note.key}, which {later.key} had replaced before it subscribed")

    def _retained_on(self, topic: str) -> list[Note]:
        return [note for note in (*self.notes.values(), *self.clears) if note.retain and note.topic == topic]

    # ---- at the end ----

    def check(self, clients: list[SimulatedClient], now: float) -> None:
        for client in clients:
            for receipts in client.receipts_by_epoch:
                self._check_copies(client, receipts)
                self._check_order(client, receipts)
            self._check_complete(client, now)
        self._check_groups(clients, now)

    def _check_copies(self, client: SimulatedClient, receipts: list[Receipt]) -> None:
        """QoS 2 once; anything else no more often than it was sent, repetitions marked as such aside."""
        fresh: dict[str, int] = {}
        for receipt in receipts:
            note = receipt.note
            if receipt.retain or note.may_repeat or (receipt.dup and receipt.qos == 1):
                continue
            fresh[note.key] = fresh.get(note.key, 0) + 1
            # A group's copies are its own: one for the client's own subscriptions, one for each group it is a member of.
            views = [view for view in client.all_views if view.may_have_had(note)]
            ways = len({view.group for view in views if view.group}) + any(view.group is None for view in views)
            # What one recipient's rule refused, and others had: an answer that is lost, and its publisher sends it anew (MQTT 5.0, 4.3.3).
            once = note.qos == 2 and not self.may_refuse
            most = max(1, ways) * (1 if once else note.sends)
            if fresh[note.key] > most:
                raise BrokenPromise(f"{client.client_id} got {note.key} (QoS {note.qos}, came at {receipt.qos}) {fresh[note.key]} times")

    def _check_order(self, client: SimulatedClient, receipts: list[Receipt]) -> None:
        """Each publisher's messages of one topic and QoS come in the order in which they were sent [MQTT5-4.6.0-6], first arrivals counted."""
        last: dict[tuple[str, str, int, int], Note] = {}
        seen: set[str] = set()
        for receipt in receipts:
            note = receipt.note
            if receipt.retain or note.key in seen or note.topic.startswith(("g/", "will/")):
                continue
            seen.add(note.key)
            stream = (note.client_id, note.topic, note.qos, receipt.qos)
            before = last.get(stream)
            # The first copy of what was sent twice may have found nobody who had subscribed yet.
            if before is not None and before.number > note.number and not note.may_repeat and note.sends == 1:
                raise BrokenPromise(f"{client.client_id} got {note.key} after {before.key}: {stream}")
            last[stream] = note

    def _check_complete(self, client: SimulatedClient, now: float) -> None:
        """QoS 1 and 2 are there if the session is; QoS 0 if the connection stood all the time. What is not, was counted."""
        if not client.is_whole:
            return
        came = {receipt.note.key for receipt in client.receipts}
        missing: dict[bool, list[str]] = {True: [], False: []}
        for note in self.notes.values():
            if note.key in came or note.acked_serial >= NEVER or note.refused or note.expires_at <= now:
                continue
            if not self.may_use(client.spec.username, note.topic) or self.silently_refused(note):
                continue
            views = [view for view in client.views if view.group is None and view.stood_for(note)]
            views = [view for view in views if not (view.no_local and note.client_id == client.client_id)]
            if not views:
                continue
            reliable = min(note.qos, max(view.qos for view in views)) > 0
            if reliable or client.connected_serial < note.sent_serial:
                missing[reliable].append(note.key)
        counted = self.dropped.get(client.client_id, {})
        for reliable, keys in missing.items():
            reasons = ("queue-full", "too-large", "expired", "overflow", "refused-by-client") if reliable else tuple(counted)
            if len(keys) > sum(counted.get(reason, 0) for reason in reasons):
                raise BrokenPromise(f"{client.client_id} (QoS {'1 or 2' if reliable else '0'}) lacks {keys}, and only {counted} were counted")

    def _check_groups(self, clients: list[SimulatedClient], now: float) -> None:
        """A shared message goes to one member; at QoS 0 and 2 to nobody else ever, and to somebody if a member was there all the time."""
        for note in self.notes.values():
            if not note.topic.startswith("g/"):
                continue
            takers = [client for client in clients if any(receipt.note is note for receipt in client.all_receipts)]
            members = [client for client in clients if any(view.group and matches(view.plain, note.topic) for view in client.all_views)]
            groups = {view.group for client in members for view in client.all_views if view.group and matches(view.plain, note.topic)}
            if note.qos == 0 and len(takers) > len(groups):
                raise BrokenPromise(f"{note.key} (QoS 0) came to {len(takers)} members of {len(groups)} groups")
            # One that was granted less may be given to somebody else when its taker goes without acknowledging it.
            owners = [client for client in takers if any(receipt.note is note and receipt.qos == 2 for receipt in client.all_receipts)]
            if note.qos == 2 and note.sends and len(owners) > len(groups) and not note.may_repeat:
                raise BrokenPromise(f"{note.key} (QoS 2) came to {len(takers)} members of {len(groups)} groups")
            if note.acked_serial >= NEVER or note.refused or note.expires_at <= now or note.qos == 0 or takers or self.silently_refused(note):
                continue
            there = [
                client for client in members if client.is_whole and any(view.group and view.stood_for(note) and view.qos for view in client.views)
            ]
            all_stayed = all(not client.lost_session_since(note.sent_serial) for client in members)
            # One that was granted QoS 0 may have been chosen while its line was dead: at most once.
            doubtful = [client for client in members if not client.is_whole or client.connected_serial > note.sent_serial]
            is_sure = all(view.qos for client in doubtful for view in client.all_views if view.group and matches(view.plain, note.topic))
            if there and all_stayed and is_sure and not any(self.dropped.get(client.client_id) for client in members):
                raise BrokenPromise(f"{note.key} on {note.topic} came to none of {[client.client_id for client in there]}")

    def check_wills(self, witness: SimulatedClient, now: float) -> None:
        """Each Will came out as often as it had to (MQTT 5.0, 3.1.2.5). A witness whom an overflow rule has thrown out missed some."""
        counts: dict[str, int] = {}
        for receipt in witness.all_receipts:
            if not receipt.retain and not receipt.dup:
                counts[receipt.note.key] = counts.get(receipt.note.key, 0) + 1
        for receipt in witness.all_receipts:
            if not receipt.retain:
                counts.setdefault(receipt.note.key, 1)  # what it is sent again may be the first that it hears of it
        lost = sum(self.dropped.get(witness.client_id, {}).values())
        for will in self.wills:
            count = counts.get(will.note.key, 0)
            if count > 1 or (will.expected == 0 and count):
                raise BrokenPromise(f"the Will {will.note.key} came {count} times, {will.expected} was due")
            if will.expected == 1 and not will.may_miss and will.due_at < now - 1 and not count and witness.connected:
                lost -= 1
                if lost < 0:
                    raise BrokenPromise(f"the Will {will.note.key}, due at {will.due_at}, did not come")

    def check_retained(self, found: dict[str, bytes], refused_some: bool, now: float) -> None:
        """What a new subscriber was given is what was published last with RETAIN, on every topic."""
        topics = {note.topic for note in (*self.notes.values(), *self.clears) if note.retain and not note.topic.startswith("will/")}
        for topic in sorted(topics | set(found)):
            # One that no recipient could take was refused, and is retained all the same.
            candidates = [note for note in self._retained_on(topic) if note.sends]
            sure = [note for note in candidates if note.acked_serial < NEVER and not note.refused and not self.silently_refused(note)]
            last_sure = max((note.sent_serial for note in sure), default=-1)
            possible = [note for note in candidates if note.acked_serial > last_sure]
            values = {note.payload for note in possible if note.expires_at > now}
            if not sure or refused_some or any(note.expires_at <= now or not note.payload for note in possible):
                values.add(b"")  # perhaps there is none
            if found.get(topic, b"") not in values:
                raise BrokenPromise(
                    f"the retained message of {topic} is {found.get(topic, b'')[:40]!r}, expected one of {[value[:40] for value in values]}"
                )
