"""One direction of a bridge: each message is published at the other side, and acknowledged at its own when that is done, never before.

At most so many messages and bytes are under way, so that many go at a time and their order is kept. What the other side refuses for now
is asked again, a bounded number of times, and nothing new is taken meanwhile; what it will never take is dropped, counted and logged.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Literal

import trio
from msgspec import structs

from broker.client.workings import Workings
from broker.errors import InvalidTopic, NotSupported, shown
from broker.messages import check_topic_name
from broker.net.seldom import Seldom
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Properties, Publish

if TYPE_CHECKING:
    from broker.bridge.mapping import Mapping
    from broker.bridge.settings import Bridge
    from broker.channel import Subscription
    from broker.client.client import Client
    from broker.core.client_state import Outgoing
    from broker.messages import Message

UNDER_WAY_COUNT_MAX: Final = 1000
UNDER_WAY_BYTES_MAX: Final = 8_388_608
GIVEN_COUNT_MAX: Final = 10_000
AGAIN: Final = 100
"""The Subscription Identifier of what is asked for again, for what is retained: what the queue had before has another."""

ATTEMPTS: Final = {
    ReasonCode.QUOTA_EXCEEDED: 8,
    ReasonCode.UNSPECIFIED_ERROR: 2,
    ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR: 2,
    ReasonCode.PACKET_IDENTIFIER_IN_USE: 2,
}
"""How often a message is sent again that was refused for now. All other reasons would be given again."""
ATTEMPT_S: Final = 1.0
ATTEMPT_S_MAX: Final = 30.0

logger = logging.getLogger("broker.bridge")


class Tally:
    """carried: messages that were acknowledged, by direction. dropped: those that were not, by reason. fatal: topic and payload of one on which
    the other broker closes the connection whenever it comes."""

    __slots__ = ("carried", "dropped", "fatal")

    def __init__(self) -> None:
        self.carried: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.fatal: tuple[str, bytes] | None = None


class Pump:
    """tally: kept by whoever outlives this."""

    def __init__(self, bridge: Bridge, direction: Literal["out", "in"], mapping: Mapping, target: Client, seldom: Seldom, tally: Tally) -> None:
        self._name = bridge.name
        self._own = bridge.notification_topic if direction == "in" else None
        """Of what comes from there that is ours: the Will does, though not what we publish."""
        self._retain = bridge.outgoing_retain or direction == "in"
        self._direction = direction
        self._where = "the other broker" if direction == "out" else "this broker"
        self._mapping = mapping
        self._target = target
        self._publisher = Workings(target).publisher
        self._seldom = seldom
        self._offline = "drop" if direction == "out" else "wait"
        """QoS 0: what has come from afar need not be lost here, where the client is back in no time."""
        self._tally = tally
        self._under_way: dict[Parcel, None] = {}
        self._under_way_bytes = 0
        self._again: deque[Parcel] = deque()
        """Those that were refused for now, or have to be sent in another form."""
        self._sending_again = False
        self._refused_count = 0
        """Under way, and refused before: who comes after them waits, so that the order is kept as far as it can be."""
        self._changed = trio.lowlevel.ParkingLot()
        """Of what is under way."""
        self._asked = trio.lowlevel.ParkingLot()
        """Unparked when something is to be sent again, and not for each acknowledgement."""
        self._settled_count = 0
        self._given: dict[str, bytes] | None = None
        self._queued: dict[str, bytes] = {}
        """While what is retained is given: what came of it from the queue, the newest payload by topic."""
        self.echoes: dict[str, bytes] = {}
        """What comes back to this one of it, once each: for retained messages No Local says nothing."""
        self._taking = trio.CancelScope()
        self.finished = trio.Event()
        """Nothing is under way any more, after `stop`."""

    async def run(self, source: Subscription) -> None:
        """Until `stop`. ConnectionLost when no connection will come any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_again)
            with self._taking:
                while True:
                    await self._carry(await source.receive())
            await self._wait_done()
            self.finished.set()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Take nothing more; `run` ends when what is under way is done."""
        self._taking.cancel()

    @property
    def oldest(self) -> Message | None:
        """Of those under way."""
        return next((parcel.message for parcel in self._under_way), None)

    @property
    def oldest_outgoing(self) -> Outgoing | None:
        """What the other side has to acknowledge first; what is to be sent again is none of it."""
        return next((parcel.outgoing for parcel in self._under_way if parcel.outgoing is not None and not parcel.outgoing.done), None)

    def begin_retained(self, given: dict[str, bytes]) -> None:
        """What is retained at the source will be asked for, as AGAIN. given: gets what of it is carried, by topic there."""
        self._given = given
        self._queued = {}

    def end_retained(self) -> None:
        """All of it has come."""
        self._given = None
        self._queued = {}

    def _is_known(self, message: Message) -> bool:
        """Is it, retained, what the queue had too, or an echo? Once each."""
        topic, payload = message.topic, message.payload
        if self.echoes.get(topic) == payload:
            del self.echoes[topic]
            return True
        if self._given is None:
            return False
        if AGAIN in message.properties.subscription_identifiers:
            return self._queued.pop(topic, None) == payload
        if len(self._queued) < GIVEN_COUNT_MAX:
            self._queued[topic] = payload
        return False

    async def wait_settled(self, count: int) -> None:
        """Until it is done with so many messages."""
        while self._settled_count < count:
            await self._changed.park()

    def _settle(self, message: Message) -> None:
        self._settled_count += 1
        message.ack()

    async def _wait_done(self) -> None:
        while self._under_way or self._sending_again:
            await self._changed.park()

    async def _carry(self, message: Message) -> None:
        if self._tally.fatal == (message.topic, message.payload):
            self._tally.fatal = None  # the next one like it may be taken
            self._drop(message, "fatal", "the other broker closes the connection whenever it comes")
            return
        found = self._mapping.target(message.topic)
        if message.topic == self._own:
            self._settle(message)
            return
        if message.retain and (self.echoes or self._given is not None) and self._is_known(message):
            self._settle(message)
            return
        if found is None:
            self._drop(message, "no-mapping", "no entry of its topics fits it (any more)")
            return
        topic, qos = found
        try:
            check_topic_name(topic)
        except InvalidTopic:
            self._drop(message, "invalid-topic", "with its other prefix the topic is none")
            return
        while not self._has_room(len(message.payload)):
            await self._changed.park()
        publish = Publish(topic, message.payload, min(qos, message.qos), message.retain and self._retain, properties=carried(message.properties))
        if publish.retain and self._given is not None and len(self._given) < GIVEN_COUNT_MAX:
            self._given[topic] = message.payload
        parcel = Parcel(self, message, publish)
        lifetime_s = publish.properties.message_expiry_interval
        if lifetime_s is not None:  # it counted while the message waited to be taken, too
            parcel.expires_at = trio.current_time() + lifetime_s - max(0.0, time.time() - message.received_at)
        await self._send(parcel)

    def _has_room(self, size: int) -> bool:
        if self._again or self._sending_again or self._refused_count:
            return False
        count = len(self._under_way)
        return not count or (count < UNDER_WAY_COUNT_MAX and self._under_way_bytes + size <= UNDER_WAY_BYTES_MAX)

    async def _send(self, parcel: Parcel) -> None:
        if parcel.expires_at != math.inf and not self._dated(parcel):
            self._refused_count -= parcel.attempts > 0
            self._drop(parcel.message, *_words("expired", ReasonCode.SUCCESS))
            return
        self._adapt(parcel)
        publish = parcel.publish
        self._under_way[parcel] = None
        self._under_way_bytes += len(publish.payload)
        try:
            outgoing = await self._publisher.begin(publish, offline=self._offline if parcel.message.qos == 0 else "wait", at_once=False)
        except (NotSupported, ValueError) as error:
            self._refused_count -= parcel.attempts > 0
            self._leave(parcel)
            self._drop(parcel.message, "not-possible", str(error))
            return
        except BaseException:
            self._leave(parcel)
            raise
        parcel.outgoing = outgoing
        if outgoing.done:
            self.ended(parcel)
        else:
            self._publisher.wait_for(outgoing, parcel)

    def _dated(self, parcel: Parcel) -> bool:
        """With what is left of its Message Expiry Interval; False: nothing. (What may live for 0 s may still go at once.)"""
        properties = parcel.publish.properties
        left_s = math.ceil(parcel.expires_at - trio.current_time() - 0.001)
        if left_s <= 0 and properties.message_expiry_interval != 0:
            return False
        if left_s != properties.message_expiry_interval:
            parcel.publish = structs.replace(parcel.publish, properties=structs.replace(properties, message_expiry_interval=max(0, left_s)))
        return True

    def _adapt(self, parcel: Parcel) -> None:
        """To what the target takes, as far as that is known: the message matters more than how surely it comes, or that it is kept."""
        core = self._target.core
        able = core.capabilities
        publish = parcel.publish
        if core.version < MQTT_5 and publish.properties is not NO_PROPERTIES:
            publish = structs.replace(publish, properties=NO_PROPERTIES)
        if publish.qos > able.maximum_qos:
            self._seldom.warn("qos", "bridge %r: %s takes at most QoS %d; messages are carried with that", self._name, self._where, able.maximum_qos)
            publish = structs.replace(publish, qos=able.maximum_qos)
        if publish.retain and not able.retain:
            self._seldom.warn("retain", "bridge %r: %s retains no messages; they are carried as others are", self._name, self._where)
            publish = structs.replace(publish, retain=False)
        parcel.publish = publish

    def ended(self, parcel: Parcel) -> None:
        """The client says that it has: synchronous, in the middle of what its connection brought."""
        outgoing = parcel.outgoing
        assert outgoing is not None
        if not outgoing.done:  # no connection will come any more: it stays unacknowledged, and comes again
            self._leave(parcel)
            return
        outcome, reason = outgoing.outcome, outgoing.reason
        if outcome == "acknowledged":
            self._tally.carried[self._direction] += 1
            self._settle(parcel.message)
        elif outcome == "unknown":
            # At QoS 2, when the target lost its Session. Twice is the lesser evil: what is acknowledged here is not to be lost.
            self._ask_again(parcel)
        elif outcome == "refused" and reason in (ReasonCode.QOS_NOT_SUPPORTED, ReasonCode.RETAIN_NOT_SUPPORTED) and not parcel.adapted:
            parcel.adapted = True  # it can do less than on its last connection
            self._ask_again(parcel)
        elif outcome == "refused" and parcel.attempts < ATTEMPTS.get(reason, 0):
            self._refused_count += not parcel.attempts
            parcel.attempts += 1
            parcel.wait_s = min(ATTEMPT_S_MAX, ATTEMPT_S * 2.0 ** (parcel.attempts - 1))
            self._seldom.warn("for now", "bridge %r: %s refuses messages: %s; they are sent again", self._name, self._where, reason.describe())
            self._ask_again(parcel)
        else:
            self._drop(parcel.message, *_words(outcome, reason))
        if not self._again or self._again[-1] is not parcel:
            self._refused_count -= parcel.attempts > 0
            self._leave(parcel)

    def _ask_again(self, parcel: Parcel) -> None:
        self._again.append(parcel)
        self._asked.unpark_all()

    async def _send_again(self) -> None:
        while True:
            while not self._again:
                await self._asked.park()
            parcel = self._again[0]
            await trio.sleep(parcel.wait_s)
            parcel.wait_s = 0.0
            self._again.popleft()
            self._sending_again = True  # nothing newer may overtake it
            self._leave(parcel)
            await self._send(parcel)
            self._sending_again = False
            self._changed.unpark_all()

    def _leave(self, parcel: Parcel) -> None:
        del self._under_way[parcel]
        self._under_way_bytes -= len(parcel.publish.payload)
        if self._changed:  # to wake nobody costs ten times as much as to look
            self._changed.unpark_all()

    def _drop(self, message: Message, reason: str, why: str) -> None:
        self._tally.dropped[reason] += 1
        if reason != "away":
            self._seldom.warn(reason, "bridge %r: a message on %s is not carried: %s", self._name, shown(message.topic), why)
        self._settle(message)
        self._changed.unpark_all()


class Parcel:
    """One message under way, and in which form."""

    __slots__ = ("adapted", "attempts", "expires_at", "message", "outgoing", "publish", "pump", "wait_s")

    def __init__(self, pump: Pump, message: Message, publish: Publish) -> None:
        self.pump = pump
        self.message = message
        self.publish = publish
        self.outgoing: Outgoing | None = None
        self.attempts = 0
        self.adapted = False
        self.wait_s = 0.0
        self.expires_at = math.inf

    def set(self) -> None:
        self.pump.ended(self)


def carried(properties: Properties) -> Properties:
    """Without what is a matter of the connection that it came by."""
    if properties.subscription_identifiers or properties.topic_alias is not None:
        properties = structs.replace(properties, subscription_identifiers=(), topic_alias=None)
    return NO_PROPERTIES if properties == NO_PROPERTIES else properties


def _words(outcome: str, reason: ReasonCode) -> tuple[str, str]:
    """(the reason it is counted under, why)."""
    if outcome == "expired":
        return "expired", "its Message Expiry Interval is over"
    if outcome in ("dropped", "offline"):
        return "away", "QoS 0, and the connection was lost"
    if reason == ReasonCode.PACKET_TOO_LARGE:
        return "too-large", "it is larger than the other side takes"
    return "refused", f"it is refused: {reason.describe()}"
