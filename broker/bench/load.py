"""The load itself: a task for each connection that reads, one for each publisher that writes, and the hand-over between them.

Everything is timed by Trio's clock, so a test may run an hour of load at once. What waits for the broker is bounded: connecting by
CONNECT_TIMEOUT_S, publishing by the plan, the rest by `drain_s` and STALLED_S.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import trio

from broker.bench.endpoint import Endpoint
from broker.bench.histogram import Histogram
from broker.bench.plan import Plan
from broker.bench.publisher import Publisher
from broker.bench.report import Interval, Result
from broker.bench.subscriber import Subscriber
from broker.errors import ConnectError
from broker.net.transport import BROKEN, SocketTransport, StreamTransport, Transport

Dial = Callable[[trio.Nursery], Awaitable[trio.abc.Stream]]
"""A connected stream to the broker; what it needs to live runs in the nursery given. Raises ConnectError."""
CONNECT_TIMEOUT_S: Final = 10.0
DIALS_COUNT_MAX: Final = 64
"""Connections being opened at a time."""
DRAIN_S_MAX: Final = 60.0
GOODBYE_S: Final = 2.0
SHARE_S_MIN: Final = 0.1


class _Mark(NamedTuple):
    """What has been done up to a time."""

    at: float
    published_count: int = 0
    received_count: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Load:
    """One run. `run` returns what it came to; of one that was cut short, `result` says what there is.

    `published_count`, `received_count` and `recent` may be looked at meanwhile.
    """

    def __init__(self, plan: Plan, dial: Dial, address: str) -> None:
        self.plan = plan
        self.address = address
        self._dial = dial
        self.token = secrets.token_bytes(4)
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        self.phase = "connecting"
        """connecting, warming up, measuring, draining, done."""
        self.published_count = 0
        self.received_count = 0
        self.foreign_count = 0
        self.unexpected_count = 0
        self.refused_count = 0
        self.latency = Histogram()
        """Of what was published while measuring."""
        self.recent = Histogram()
        """Of everything, for whoever looks on and puts a new one in its place."""
        self.began_at = 0.0
        self.measure_from_ns = 0
        self.stop_at = 0.0
        self.moved_at = 0.0
        """When something was received last."""
        self.progress = trio.Event()
        self.ending = False
        self._first: _Mark | None = None
        self._last: _Mark | None = None
        """Between them is what was measured."""

    @property
    def endpoints(self) -> list[Endpoint]:
        return [*self.subscribers, *self.publishers]

    async def run(self) -> Result:
        """Raises ConnectError, ConnectRefused, SubscribeRefused, ConnectionLost, NotSupported, LoadStalled."""
        try:
            async with trio.open_nursery() as readers:
                await self._connect_all(readers)
                for endpoint in self.endpoints:
                    readers.start_soon(endpoint.read)
                readers.start_soon(self._ping)
                await self._publish_all()
                self.phase = "draining"
                await self._drain()
                self.ending = True
                with trio.move_on_after(GOODBYE_S):
                    async with trio.open_nursery() as nursery:
                        for endpoint in self.endpoints:
                            nursery.start_soon(endpoint.say_goodbye)
                readers.cancel_scope.cancel()
        finally:
            if self._last is None:  # cut short
                self._last = self._mark(trio.current_time())
            # Closing a stream may be a checkpoint, and a cancellation there would take the place of what went wrong.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
                for endpoint in self.endpoints:
                    await endpoint.transport.aclose()
        self.phase = "done"
        return self.result()

    # ---- connecting ----

    async def _connect_all(self, keeper: trio.Nursery) -> None:
        """Subscribers first, so that nothing is published before all of them listen."""
        prefix = self.plan.client_id or f"bench-{self.token.hex()}"
        limiter = trio.CapacityLimiter(DIALS_COUNT_MAX)
        for kind, count in ((Subscriber, self.plan.subscribers_count), (Publisher, self.plan.publishers_count)):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(self._connect, kind, number, f"{prefix}-{kind.letter}{number}", limiter, keeper)
        self.subscribers.sort(key=lambda one: one.number)
        self.publishers.sort(key=lambda one: one.number)

    async def _connect(
        self, kind: type[Subscriber] | type[Publisher], number: int, client_id: str, limiter: trio.CapacityLimiter, keeper: trio.Nursery
    ) -> None:
        async with limiter:
            with trio.move_on_after(CONNECT_TIMEOUT_S) as scope:
                transport = transport_over(await self._dial(keeper))
                endpoint = kind(self, number, client_id, transport)
                self._keep(endpoint)
                try:
                    await endpoint.open()
                except BROKEN as error:
                    raise ConnectError(self.address, f"{client_id}: the connection was lost before it was accepted") from error
            if scope.cancelled_caught:
                raise ConnectError(self.address, f"{client_id}: no answer within {CONNECT_TIMEOUT_S:g} s")

    def _keep(self, endpoint: Publisher | Subscriber) -> None:
        if isinstance(endpoint, Publisher):
            self.publishers.append(endpoint)
        else:
            self.subscribers.append(endpoint)

    # ---- publishing ----

    async def _publish_all(self) -> None:
        plan = self.plan
        self.began_at = self.moved_at = trio.current_time()
        measure_at = self.began_at + plan.warmup_s
        self.measure_from_ns = int(measure_at * 1e9)
        self.stop_at = measure_at + plan.duration_s if plan.count is None else float("inf")
        if plan.warmup_s:
            self.phase = "warming up"
        else:
            self._begin_measuring(self.began_at)
        with trio.CancelScope(deadline=self.stop_at + plan.drain_s):
            async with trio.open_nursery() as nursery:
                if plan.warmup_s:
                    nursery.start_soon(self._measure_from, measure_at)
                async with trio.open_nursery() as publishing:
                    for publisher in self.publishers:
                        publishing.start_soon(publisher.publish)
                nursery.cancel_scope.cancel()
        if plan.count is None:
            self._last = self._mark(trio.current_time())

    async def _measure_from(self, at: float) -> None:
        await trio.sleep_until(at)
        self._begin_measuring(trio.current_time())

    def _begin_measuring(self, now: float) -> None:
        self._first = self._mark(now)
        self.phase = "measuring"

    def _mark(self, now: float) -> _Mark:
        return _Mark(now, self.published_count, self.received_count, time.process_time(), time.perf_counter())

    def note_progress(self, now: float) -> None:
        self.moved_at = now
        if self.phase == "draining":
            self.progress.set()

    # ---- the end ----

    def is_settled(self) -> bool:
        """Has everything come that is owed?"""
        return all(publisher.is_settled() for publisher in self.publishers)

    async def _drain(self) -> None:
        """Wait for what is owed; then, by a ping that overtakes nothing, for what might come twice."""
        published_at = trio.current_time()
        with trio.move_on_after(DRAIN_S_MAX):
            while not self.is_settled():
                self.progress = trio.Event()
                with trio.move_on_after(self.plan.drain_s) as scope:
                    await self.progress.wait()
                if scope.cancelled_caught:
                    break
            if self.plan.count is not None:
                self._last = self._mark(max(self.moved_at, published_at))
            with trio.move_on_after(self.plan.drain_s):
                asked = [subscriber for subscriber in self.subscribers if not subscriber.broken_off]
                for subscriber in asked:
                    subscriber.pong = trio.Event()
                    await subscriber.ping()
                for subscriber in asked:
                    await subscriber.pong.wait()

    async def _ping(self) -> None:
        keep_alives = [endpoint.keep_alive_s for endpoint in self.endpoints if endpoint.keep_alive_s]
        if not keep_alives:
            return
        while True:
            await trio.sleep(min(keep_alives) / 2)
            for endpoint in self.endpoints:
                if not endpoint.is_sending and not endpoint.broken_off:
                    await endpoint.ping()

    def result(self, cut_short: str | None = None) -> Result:
        """cut_short: why, of a run that did not come to its end. What had not come by then counts as lost only where later messages of its
        publisher had come before it."""
        streams = [stream for subscriber in self.subscribers for stream in subscriber.streams.values()]
        owed = sum(publisher.sent_count * publisher.fan_out for publisher in self.publishers)
        refused = sum(publisher.refused_count * publisher.fan_out for publisher in self.publishers)
        distinct = sum(stream.distinct_count for stream in streams)
        missing = max(0, owed - refused - distinct)
        passed_over = max(0, sum(stream.next_sequence - stream.distinct_count for stream in streams) - refused)
        lost = missing if cut_short is None else min(missing, passed_over)
        first = self._first or _Mark(self.began_at)  # the warm-up never ended: a count that was soon done, or cut short
        last = self._last or first
        return Result(
            plan=self.plan,
            address=self.address,
            cut_short=cut_short,
            effective_qos=min([self.plan.qos, *(subscriber.granted_qos for subscriber in self.subscribers)]),
            published_count=self.published_count,
            refused_count=self.refused_count,
            expected_count=owed - refused,
            delivered_count=distinct,
            lost_count=lost,
            under_way_count=missing - lost,
            unacknowledged_count=sum(len(publisher.unacknowledged) + len(publisher.released) for publisher in self.publishers),
            duplicated_count=sum(stream.duplicated_count for stream in streams),
            out_of_order_count=sum(stream.out_of_order_count for stream in streams),
            foreign_count=self.foreign_count,
            unexpected_count=self.unexpected_count,
            measured=Interval(
                seconds=max(last.at - first.at, 1e-9),
                published_count=last.published_count - first.published_count,
                received_count=last.received_count - first.received_count,
                own_cpu_share=(last.cpu_s - first.cpu_s) / (last.wall_s - first.wall_s) if _is_long(first, last) else None,
            ),
            latency=self.latency,
        )


def _is_long(first: _Mark, last: _Mark) -> bool:
    """Enough to say what part of a core was used: a moment of work is all of it."""
    return first.wall_s > 0 and last.wall_s - first.wall_s >= SHARE_S_MIN


def transport_over(stream: trio.abc.Stream) -> Transport:
    """A plain socket is written to directly; anything else through its own methods."""
    if isinstance(stream, trio.SocketStream):
        plain = socket.socket(stream.socket.family, stream.socket.type, stream.socket.proto, fileno=stream.socket.detach())
        return SocketTransport(plain)
    return StreamTransport(stream)
