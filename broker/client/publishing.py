"""Our publishes: each takes a place in the window, goes into the core, and ends with an event of the core.

A publish of QoS 0 is given to the kernel by the task that calls, if it takes it at once: that is all it waits for, and a writing task
and two turns would cost five times as much. Whoever has many does not wait for each: `Pipeline`.
"""

from __future__ import annotations

from typing import Final

import trio

from broker.client.line import Line, Waiter
from broker.core.client_state import Outgoing
from broker.errors import DeliveryUnknown, MessageExpired, Offline, PublishRefused, shown
from broker.messages import Payload, UserProperties, check_qos, check_topic_name, message_properties, payload_bytes
from broker.pace import Pace
from broker.reasons import ReasonCode
from broker.wire.packets import NO_PROPERTIES, Properties, Publish

_NOT_GIVEN: Final = Outgoing(Publish(""), 0)
"""It has to go the general way."""


class Publisher:
    def __init__(self, line: Line, outgoing_count_max: int) -> None:
        self._line = line
        self._places_count = self._places = outgoing_count_max
        """So many of QoS 1 and 2 may be under way; and so many more."""
        self._placeless = trio.lowlevel.ParkingLot()
        self._pace = Pace()
        self.counts = dict.fromkeys(("published", "refused", "unknown", "expired", "dropped_offline"), 0)

    async def publish(self, publish: Publish, offline: str, topic_alias: int | None) -> ReasonCode:
        """Wait for the end of its handshake."""
        line = self._line
        if line.lost is not None:
            line.check_open()
        if publish.qos == 0 and publish.properties is NO_PROPERTIES and topic_alias is None:
            if self._pace.goes_on():
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await trio.lowlevel.checkpoint()
                self._pace.rested()
            outgoing = self._give_to_kernel(publish, offline)
            if outgoing is None:
                return ReasonCode.SUCCESS
            if outgoing is not _NOT_GIVEN:
                await self._wait_done(outgoing)
                return self.outcome(outgoing)
        if publish.qos == 0 and offline != "wait" and not line.connected:
            await trio.lowlevel.checkpoint()
            if offline == "raise":
                raise Offline(f"not connected to {line.address}, so {shown(publish.topic)} was not published")
            self.counts["dropped_offline"] += 1
            return ReasonCode.SUCCESS
        outgoing = await self.begin(publish, offline=offline, topic_alias=topic_alias)
        if not outgoing.done:
            await self._wait_done(outgoing)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return self.outcome(outgoing)

    def _give_to_kernel(self, publish: Publish, offline: str) -> Outgoing | None:
        """A message of QoS 0 without properties, as whole as nothing stands before it and the socket takes it. None: it is done."""
        line = self._line
        core, connector = line.core, line.connector
        frame = core.frame_at_once(publish) if connector is not None else None
        count = connector.give_to_kernel(frame) if connector is not None and frame is not None else 0
        if frame is None or not count:
            return _NOT_GIVEN
        outgoing = core.sent_at_once(frame, count, publish, offline, self._pace.now)
        if outgoing is None:
            self.counts["published"] += 1
        else:
            line.handle_publish()
        return outgoing

    async def _wait_done(self, outgoing: Outgoing) -> None:
        done = trio.Event()
        self.wait_for(outgoing, done)
        try:
            await done.wait()
        except trio.Cancelled:
            self.give_up(outgoing)
            raise

    async def begin(self, publish: Publish, *, offline: str = "wait", topic_alias: int | None = None, at_once: bool = True) -> Outgoing:
        """Take a place in the window and put it on its way. Cancelled: nothing happened. The caller sets its owner, or looks at `done`.

        at_once: for a message that is waited for by itself; of QoS 1 and 2 its caller has to wait for the end, which is a scheduling point.
        """
        line = self._line
        if self._pace.goes_on() or (publish.qos and at_once):
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
            self._pace.rested()
        now = self._pace.now
        if publish.qos:
            if self._places:
                self._places -= 1
            else:
                await self._placeless.park()  # whoever leaves the window hands its place over
                now = trio.current_time()
        try:
            if line.lost is not None:
                line.check_open()
            outgoing = line.core.publish(publish, offline=offline, topic_alias=topic_alias, now=now)
        except BaseException:
            if publish.qos:
                self._leave_window()
            raise
        # Others' publishes of QoS 1 and 2 wait for answers anyway: the writing task sends all of a turn's at once.
        if at_once and (publish.qos == 0 or self._places == self._places_count - 1):
            line.send_now(now)
        if publish.properties.message_expiry_interval is None:
            line.handle_publish()
        else:
            line.handle()
        return outgoing

    async def join(self, publish: Publish, owner: Pipeline) -> bool:
        """Of QoS 0, without properties: let it leave with the others. Cancelled: nothing happened. False: it has to `begin`."""
        if self._pace.goes_on():
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
            self._pace.rested()
        line = self._line
        if line.lost is not None:
            line.check_open()
        if not line.core.join(publish, owner):
            return False
        connector = line.connector
        if connector is not None and connector.resting:
            connector.wake_writer()
        return True

    def end(self) -> None:
        """No connection will come any more: nobody has to wait for a place to hear of that."""
        self._placeless.unpark_all()

    def _leave_window(self) -> None:
        if self._placeless:
            self._placeless.unpark()
        else:
            self._places += 1

    def wait_for(self, outgoing: Outgoing, owner: Waiter) -> None:
        """`owner` is told when it has ended, or when no connection will come any more."""
        outgoing.owner = owner
        self._line.waiters.add(owner)

    def give_up(self, outgoing: Outgoing) -> None:
        """Nobody waits for it any more: take it back, or let it end in the background."""
        if not isinstance(outgoing.owner, Pipeline):
            self._line.waiters.discard(outgoing.owner)
        outgoing.owner = None
        if self._line.core.cancel_publish(outgoing) and outgoing.qos:
            self._leave_window()

    def on_done(self, outgoing: Outgoing) -> None:
        """The core says that it has ended."""
        outcome = outgoing.outcome
        if outcome == "acknowledged":
            self.counts["published"] += outgoing.count
        elif outcome == "dropped":
            self.counts["dropped_offline"] += 1
        else:
            self.counts[outcome if outcome in self.counts else "refused"] += 1
        if outgoing.qos:
            self._leave_window()
        owner = outgoing.owner
        if isinstance(owner, Pipeline):
            owner.ended(outgoing)
        elif owner is not None:
            self._line.waiters.discard(owner)
            owner.set()

    def outcome(self, outgoing: Outgoing) -> ReasonCode:
        """What publish() returns or raises, once it is told that it need not wait any longer."""
        if not outgoing.done:
            self._line.check_open()
        topic = outgoing.publish.topic
        if outgoing.outcome in ("acknowledged", "dropped"):
            return outgoing.reason
        if outgoing.outcome == "unknown":
            raise DeliveryUnknown(f"the broker lost the session while {shown(topic)} was on its way at QoS 2: it may have been delivered, or not")
        if outgoing.outcome == "offline":
            raise Offline(f"the connection to {self._line.address} was lost before {shown(topic)} was sent")
        if outgoing.outcome == "expired":
            raise MessageExpired(
                f"{shown(topic)} was not published: its {outgoing.publish.properties.message_expiry_interval} s ended before it could be sent"
            )
        raise PublishRefused(topic, outgoing.reason)


def new_publish(
    topic: str,
    payload: Payload,
    qos: int,
    retain: bool,
    content_type: str | None = None,
    response_topic: str | None = None,
    correlation_data: bytes | None = None,
    user_properties: UserProperties = (),
    message_expiry_s: int | None = None,
    payload_is_text: bool | None = None,
) -> Publish:
    """Raises InvalidTopic, ValueError, TypeError."""
    check_topic_name(topic)
    data = payload if isinstance(payload, bytes) else payload_bytes(payload)
    properties = NO_PROPERTIES
    if (
        content_type is not None
        or response_topic is not None
        or correlation_data is not None
        or user_properties
        or message_expiry_s is not None
        or payload_is_text is not None
    ):
        fields = message_properties(content_type, response_topic, correlation_data, user_properties, message_expiry_s, payload_is_text)
        properties = Properties(**fields)
    return Publish(topic, data, check_qos(qos), bool(retain), False, 0, properties)


class Pipeline:
    """Publishes that are not waited for one by one. `publish` returns when there is a place for the message; they leave in the order of the calls.

    At most count_max messages and about bytes_max payload bytes are under way. The scope ends when all handshakes are complete. The first
    message that failed raises what `Client.publish` would, from the next `publish` or from the end of the scope; what was under way goes on.
    """

    def __init__(self, publisher: Publisher, line: Line, count_max: int, bytes_max: int) -> None:
        if count_max < 1 or bytes_max < 1:
            raise ValueError("count_max and bytes_max must be at least 1")
        self._publisher = publisher
        self._line = line
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._joined = 0  # of QoS 0: their bytes leave next, and one of them stands for all
        self._entering = 0  # there is a place for them, and they are not in it yet
        self._under_way: set[Outgoing] = set()
        self._failed: Outgoing | None = None
        self._changed = trio.lowlevel.ParkingLot()
        line.waiters.add(self)

    async def publish(
        self,
        topic: str,
        payload: Payload = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        user_properties: UserProperties = (),
        message_expiry_s: int | None = None,
        payload_is_text: bool | None = None,
        topic_alias: int | None = None,
    ) -> None:
        """Takes what `Client.publish` takes. Waits for a place; cancelled, nothing happened. What is away at QoS 0 waits for the connection."""
        publish = new_publish(
            topic, payload, qos, retain, content_type, response_topic, correlation_data, user_properties, message_expiry_s, payload_is_text
        )
        size = len(publish.payload)
        if (
            self._failed is not None
            or len(self._under_way) + self._joined + self._entering >= self._count_max
            or self._bytes + size > self._bytes_max
        ):
            await self._wait_until(self._count_max - 1, self._bytes_max - size)
        self._entering += 1
        self._bytes += size
        try:
            if publish.qos == 0 and publish.properties is NO_PROPERTIES and topic_alias is None and await self._publisher.join(publish, self):
                self._joined += 1
                return
            outgoing = await self._publisher.begin(publish, topic_alias=topic_alias, at_once=False)
        except BaseException:
            self._bytes -= size
            self._changed.unpark_all()
            raise
        finally:
            self._entering -= 1
        self._under_way.add(outgoing)
        if outgoing.done:
            self.ended(outgoing)
        else:
            outgoing.owner = self

    async def wait_done(self) -> None:
        """Until all handshakes are complete. Raises what the first one that failed would have raised."""
        await trio.lowlevel.checkpoint()
        await self._wait_until(0, 0)
        self._check()

    async def _wait_until(self, count: int, size: int) -> None:
        while True:
            self._check()
            under_way = len(self._under_way) + self._joined + self._entering
            if not under_way or (under_way <= count and self._bytes <= size):
                return
            await self._changed.park()

    def _check(self) -> None:
        if self._failed is not None:
            self._publisher.outcome(self._failed)

    def ended(self, outgoing: Outgoing) -> None:
        """One has, or no connection will come any more."""
        if outgoing in self._under_way:
            self._under_way.discard(outgoing)
        else:
            self._joined -= outgoing.count
        self._bytes -= outgoing.size
        if outgoing.outcome != "acknowledged" and self._failed is None:
            self._failed = outgoing
        if self._changed:
            self._changed.unpark_all()

    def set(self) -> None:
        """No connection will come any more."""
        for outgoing in list(self._under_way):
            self.ended(outgoing)
        self._changed.unpark_all()

    def abandon(self) -> None:
        """Nobody waits any more: what has not left is taken back."""
        self._line.waiters.discard(self)
        for outgoing in self._under_way:
            self._publisher.give_up(outgoing)
        self._under_way.clear()
