"""The engine's books looked at from outside, after every step of a simulation.

Memory is inside its limits, accounts add up, nobody is held up for too long; and at the end nothing is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from broker.core.ending import will_size
from broker.core.incoming import FREE_BYTES
from broker.core.inflight import NO_RECEIVER, NO_SENDER
from broker.core.kept import size_of
from broker.core.limits import Limits
from broker.core.link import ENDED, Link
from broker.core.state import State
from broker.core.waiting import NOTHING_WAITS
from broker.testing.ledger import BrokenPromise

ENGINE_TURN_BYTES: Final = 131_072
"""What one call of the core may add to an outbox that was below its mark: what it had read, and answers to it."""
MESSAGE_BYTES_MAX: Final = 5_200
PATIENCE_GRACES: Final = 5
ACCOUNT_CHECK_INTERVAL: Final = 64
"""So many steps between two looks at every queue."""


def incoming_bytes(link: Link) -> int:
    """Added up anew: what of the client's is held, from the objects that hold it."""
    held = link.decoder.held_bytes + (link.rate.held_bytes if link.rate is not None else 0)
    question = link.auth
    if question is not None and not question.done:
        held += question.asked_bytes + question.answer_bytes
    return held


class Audit:
    """fail: is told what is wrong, wherever in the engine's work it came up."""

    def __init__(self, state: State, limits: Limits, fail: Callable[[str], None]) -> None:
        self._state = state
        self._limits = limits
        self._fail = fail
        self._paused: dict[Link, dict[Link, tuple[float, int]]] = {}
        """Those that are not read: by whom, since when, and what that one had been sent."""

    def note_paused(self, link: Link) -> None:
        self._paused.setdefault(link, {})

    def check(self, now: float, serial: int, flushing: bool) -> None:
        """After each step. serial: its number."""
        self._check_memory()
        if serial % ACCOUNT_CHECK_INTERVAL == 0:
            self.check_accounts(flushing)
        if self._paused:
            self._check_paused(now)

    def _check_paused(self, now: float) -> None:
        """Nobody is held up for longer than may be by one that takes nothing."""
        # The span in which it took something last, however soon, the one in which it took nothing, then its credit.
        longest_s = (2 * PATIENCE_GRACES + 2) * self._limits.slow_subscriber_grace_s + 0.001
        for link, pausers in list(self._paused.items()):
            if not link.paused:
                del self._paused[link]
                continue
            for pauser in link.paused_by or ():
                since, taken = pausers.setdefault(pauser, (now, pauser.outbox.sent_bytes_total))
                if taken != pauser.outbox.sent_bytes_total:
                    pausers[pauser] = (now, pauser.outbox.sent_bytes_total)
                elif now > since + longest_s:
                    self._fail(f"{link.client_id} is held up by {pauser.client_id}, which has taken nothing for {now - since:.1f} s")

    def _check_memory(self) -> None:
        """What is kept at every moment."""
        state = self._state
        limits = self._limits
        account = state.waiting
        # Whoever has nothing unsent and nothing unacknowledged gets one message even then, which counts for both; and all of them what one read was.
        allowed = limits.memory_bytes_max + len(state.links) * 2 * MESSAGE_BYTES_MAX + ENGINE_TURN_BYTES
        if state.outgoing_bytes > allowed and state.outgoing_bytes - self._shared_bytes() > allowed:
            self._fail(
                f"{account.bytes} bytes wait, {account.inflight_bytes} are unacknowledged, {account.unsent_bytes} unsent, "
                f"{state.retained.bytes} retained: above {limits.memory_bytes_max}"
            )
        large = sum(link.receiving_bytes > FREE_BYTES for link in state.links if not link.closing)
        share = limits.memory_bytes_max >> 3  # a Will that came since they did takes its part when one of them goes on
        if account.receiving_bytes > share and large > 1:
            self._fail(f"{account.receiving_bytes} bytes of packets that have not come in full are held, above {share}")
        wills = account.will_bytes - sum(size for _, size in state.wills)  # one whose client came back goes out beside its next
        if wills > limits.memory_bytes_max >> 4:
            self._fail(f"Wills take {wills} bytes, above a sixteenth of {limits.memory_bytes_max}")
        if account.bytes + state.retained.bytes > limits.memory_bytes_max:
            self._fail(f"{account.bytes} bytes wait and {state.retained.bytes} are retained, above {limits.memory_bytes_max}")
        for link in state.links:
            if link.outbox.committed_bytes > limits.outbox_bytes_high + ENGINE_TURN_BYTES:
                self._fail(f"{link.client_id} has {link.outbox.committed_bytes} committed bytes")

    def _shared_bytes(self) -> int:
        """Of what is unsent, how much is counted again for another client that has the very same bytes."""
        known: set[int] = set()
        shared = 0
        for link in self._state.links:
            outbox = link.outbox
            for frames in (outbox.head, outbox.joined, *(outbox.chunks or ())):
                if id(frames) in known:
                    shared += len(frames) - (outbox.head_position if frames is outbox.head else 0)
                known.add(id(frames))
        return shared

    def check_accounts(self, flushing: bool) -> None:
        """What all queues come to, added up anew. flushing: links have been given bytes that they have not been asked for yet."""
        state = self._state
        limits = self._limits
        for session in state.sessions.values():
            if session.queue.count > limits.queue_count_max or session.queue.bytes > limits.queue_bytes_max:
                self._fail(f"{session.client_id} has {session.queue.count} messages waiting, {session.queue.bytes} bytes")
        for link in state.links:
            if link.outbox.waiting.count > limits.outbox_count_max or link.outbox.waiting.bytes > limits.outbox_bytes_max:
                self._fail(f"{link.client_id} has {link.outbox.waiting.count} QoS 0 messages waiting, {link.outbox.waiting.bytes} bytes")
        queues = [session.queue for session in state.sessions.values()] + [link.outbox.waiting for link in state.links if link.phase != ENDED]
        for queue in queues:
            deliveries = queue.deliveries()
            if (queue.count, queue.bytes) != (len(deliveries), sum(delivery.message.size for delivery in deliveries)):
                self._fail(f"a queue says {queue.count}, {queue.bytes} bytes; there are {len(deliveries)}")
        if (state.waiting.count, state.waiting.bytes) != (sum(queue.count for queue in queues), sum(queue.bytes for queue in queues)):
            self._fail(f"the account says {state.waiting.bytes} bytes wait, the queues {sum(queue.bytes for queue in queues)}")
        if NOTHING_WAITS.count or NO_SENDER.count or NO_SENDER.quota or NO_RECEIVER.held:
            self._fail("what is to be empty, because all share it who need none of their own, is not")
        inflight = sum(unacknowledged.size for session in state.sessions.values() for unacknowledged in session.sender.unacknowledged.values())
        unsent = sum(link.outbox.counted_bytes for link in state.links)
        behind = 0 if flushing else sum(link.outbox.committed_bytes for link in state.links)
        receiving = sum(map(incoming_bytes, state.links))
        if state.waiting.receiving_bytes != receiving:
            self._fail(f"the account says {state.waiting.receiving_bytes} bytes are coming in, the links hold {receiving}")
        wills = sum(will_size(session.will) for session in state.sessions.values() if session.will is not None) + sum(size for _, size in state.wills)
        if state.waiting.will_bytes != wills:
            self._fail(f"the account says Wills take {state.waiting.will_bytes} bytes, they take {wills}")
        retained = sum(size_of(kept) for filter in ("#", "$SYS/#") for kept in state.retained.cursor(filter).next_batch(1 << 60, 1 << 60, -math.inf))
        if state.retained.bytes != retained:
            self._fail(f"the store says {state.retained.bytes} bytes are retained, there are {retained}")
        if state.waiting.inflight_bytes != inflight or state.waiting.unsent_bytes != unsent or unsent < behind:
            self._fail(
                f"the account says {state.waiting.inflight_bytes} bytes are unacknowledged and {state.waiting.unsent_bytes} unsent, "
                f"the sessions {inflight}, the links {unsent} and {behind}"
            )

    def check_nothing_left(self) -> None:
        """After a shutdown. Raises BrokenPromise."""
        state = self._state
        left = {
            "waiting": (state.waiting.count, state.waiting.total_bytes),
            "links": len(state.links),
            "sessions": len(state.sessions),
            "connected": state.connected_count,
            "subscriptions": state.topics.subscriptions_count + state.topics.shared_count,
            "work lists": len(state.wills) + len(state.orphans) + len(state.backlog) + len(state.closing),
            "deadlines": len(state.deadlines) + len(state.newcomers),
        }
        expected = dict.fromkeys(left, 0) | {"waiting": (0, 0)}
        if left != expected:
            raise BrokenPromise(f"after shutdown there is left: {left}")
