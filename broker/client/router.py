"""Which channel a received message goes to, and how its acknowledgement comes back from all who hold it.

A message goes to every open subscription whose identifier it carries (or whose filter matches, where there are no identifiers);
what none takes waits in `unclaimed`, unsettled and with a deadline. A message of QoS 1 or 2 is settled when all its holders have
settled it, and refused only when none of them has taken it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import trio

from broker.channel import MessageChannel, Subscription
from broker.core.client_state import Delivery
from broker.errors import SubscribeRefused, SubscriptionExists, shown
from broker.messages import Message
from broker.pace import IN_A_ROW_COUNT_MAX
from broker.wire.packets import Publish
from broker.wire.topics import matches, split_shared

logger = logging.getLogger("broker.client")

UNCLAIMED_COUNT_MAX: Final = 1000
_ENDED_COUNT_MAX: Final = 1000
_KNOWN_COUNT_MAX: Final = 1000
_KNOWN_LENGTH_MAX: Final = 256


Settle = Callable[[Delivery, bool], None]
"""(delivery, was it taken?)"""


class DeliveryReceipt:
    """What one holder owes for a delivery. withdraw: it waits to be offered anew, and need not any more if whoever had it acknowledges it after
    all."""

    __slots__ = ("_delivery", "_settle", "done", "manual", "withdraw")

    def __init__(self, delivery: Delivery, settle: Settle, manual: bool) -> None:
        self._delivery = delivery
        self._settle = settle
        self.manual = manual
        self.done = False
        self.withdraw: Callable[[], object] | None = None

    def settle(self) -> None:
        if not self.done:
            if self.withdraw is not None:
                self._end(True)
                return
            self.done = True
            self._settle(self._delivery, True)

    def refuse(self) -> None:
        if not self.done:
            self._end(False)

    def _end(self, taken: bool) -> None:
        self.done = True
        if self.withdraw is not None:
            self.withdraw()
            self.withdraw = None
        self._settle(self._delivery, taken)


class _Shared:
    """One delivery that several hold."""

    __slots__ = ("_holders", "_settle", "_taken")

    def __init__(self, holders: int, settle: Settle) -> None:
        self._holders = holders
        self._settle = settle
        self._taken = False

    def settle(self, delivery: Delivery, taken: bool) -> None:
        """Of one of them."""
        self._taken = self._taken or taken
        self._holders -= 1
        if self._holders == 0:
            self._settle(delivery, self._taken)


class OpenSubscription:
    """One SUBSCRIBE with its channels, from before it is sent until its scope ends. filters: as sent, `$share/...` included. on_refused: told of
    each filter that is not granted, and the scope goes on with the others; None: it does not."""

    __slots__ = ("changed", "channel", "entered", "filters", "identifier", "keep", "left", "on_refused", "plain_filters", "subscription")

    def __init__(
        self,
        filters: tuple[str, ...],
        identifier: int,
        channel: MessageChannel,
        keep: bool,
        on_refused: Callable[[SubscribeRefused], None] | None = None,
    ) -> None:
        self.filters = filters
        self.plain_filters = tuple(split_shared(filter)[1] for filter in filters)
        self.identifier = identifier
        self.channel = channel
        self.keep = keep
        self.on_refused = on_refused
        self.left: set[str] = set()
        """Filters that the program has unsubscribed from meanwhile."""
        self.entered = False
        self.changed = trio.Event()
        self.subscription: Subscription | None = None

    def takes(self, topic: str) -> bool:
        return any(matches(filter, topic) for filter in self.plain_filters)


class Router:
    """settle(delivery, taken): called once for each delivery of QoS 1 or 2 when its last holder is done with it."""

    def __init__(self, settle: Settle, clock: Callable[[], float], unclaimed_grace_s: float) -> None:
        self._settle = settle
        self._clock = clock
        self._grace_s = unclaimed_grace_s
        self._open: dict[int, OpenSubscription] = {}
        self._filters: set[str] = set()
        self._known: dict[tuple[str, tuple[int, ...]], list[OpenSubscription]] = {}
        """Who takes what, by topic and identifiers, until something of the above or below changes."""
        # Scopes that have ended, by identifier: the filters that stand in the Session, and those that nobody wants any more.
        self._kept: dict[int, set[str]] = {}
        self._given_up: dict[int, set[str]] = {}
        self.inherited = True
        """The Session may hold what an earlier program subscribed to."""
        self._deadlines: deque[tuple[float, Message]] = deque()
        self._last_identifier = 0
        self.unclaimed = MessageChannel(buffer_count_max=UNCLAIMED_COUNT_MAX, spares_acknowledged=True)
        self.unclaimed_refused = 0
        self.refused = 0
        self._warned = False

    # ---- subscriptions -----------------------------------------------------------------------------------------------

    def new_identifier(self) -> int:
        self._last_identifier += 1
        while self._last_identifier in self._open:
            self._last_identifier += 1
        return self._last_identifier

    def open(self, subscription: OpenSubscription) -> None:
        """From now on it gets what is its own, and first what was unclaimed and matches."""
        for filter in subscription.filters:
            if filter in self._filters:
                raise SubscriptionExists(f"this client is subscribed to {shown(filter)} already: use Subscription.clone()")
        if subscription.identifier in self._open:
            raise SubscriptionExists(f"this client uses the subscription identifier {subscription.identifier} already")
        self._known.clear()
        self._filters.update(subscription.filters)
        self._open[subscription.identifier] = subscription
        self._given_up.pop(subscription.identifier, None)
        for message in self.unclaimed.waiting():
            if subscription.takes(message.topic) and self.unclaimed.remove(message):
                if isinstance(message.receipt, DeliveryReceipt):
                    message.receipt.manual = subscription.channel.ack == "manual"
                    message.receipt.withdraw = None
                subscription.channel.offer(message)

    def close(self, subscription: OpenSubscription, *, failed: bool) -> None:
        """Its scope ends. What it held and may not keep is refused, for nobody is left to take it."""
        if self._open.pop(subscription.identifier, None) is None:
            return
        self._known.clear()
        self._filters.difference_update(subscription.filters)
        given_up = subscription.left if subscription.keep and subscription.entered else set(subscription.filters)
        _note(self._given_up, subscription.identifier, given_up)
        _note(self._kept, subscription.identifier, set(subscription.filters) - given_up)
        for channel in subscription.channel.siblings:
            if not failed:
                channel.settle_hands()
            channel.close()
            held, left = channel.release()
            for message in held:
                if not subscription.keep or self._is_given_up(message.topic, message.properties.subscription_identifiers):
                    self._refuse(channel, message)
                else:
                    self._unclaim_held(message)
            for message in left:
                if subscription.keep and not self._is_given_up(message.topic, message.properties.subscription_identifiers):
                    self._unclaim(message)
                else:
                    self._refuse(channel, message)
        if not subscription.keep:
            self.give_up(subscription.filters)

    def give_up(self, filters: tuple[str, ...]) -> None:
        """They are unsubscribed from: what still comes for them, or is here and nobody took, needs no grace."""
        self._known.clear()
        for subscription in self._open.values():
            subscription.left.update(set(filters).intersection(subscription.filters))
        for identifier, kept in list(self._kept.items()):
            gone = kept.intersection(filters)
            _note(self._given_up, identifier, gone)
            kept -= gone
            if not kept:
                del self._kept[identifier]
        for message in self.unclaimed.waiting():
            if self._is_given_up(message.topic, message.properties.subscription_identifiers) and self.unclaimed.remove(message):
                self._refuse(self.unclaimed, message)

    def _refuse(self, channel: MessageChannel, message: Message) -> None:
        if message.receipt is not None and not message.receipt.done:
            channel.count_refused()
            self.refused += 1
            message.receipt.refuse()

    def is_open(self, filter: str) -> bool:
        return filter in self._filters

    # ---- the reader's pace -------------------------------------------------------------------------------------------

    def _all_channels(self) -> Iterator[MessageChannel]:
        yield self.unclaimed
        for subscription in self._open.values():
            yield from subscription.channel.siblings

    def room(self) -> int:
        """So many packets may be acted on before somebody has to give way."""
        room = min(IN_A_ROW_COUNT_MAX, self.unclaimed.room)
        for subscription in self._open.values():
            for channel in subscription.channel.siblings:
                room = min(room, channel.room)
        return max(1, room)

    async def give_way(self) -> None:
        """A turn for all others, and more of them for the loops whose buffers are almost full."""
        await trio.lowlevel.checkpoint()
        for channel in list(self._all_channels()):
            if channel.crowded:
                await channel.give_way()

    # ---- messages ----------------------------------------------------------------------------------------------------

    def channels(self, publish: Publish) -> list[MessageChannel]:
        """All channels that this message belongs to."""
        return [channel for subscription in self._takers(publish) for channel in subscription.channel.siblings if not channel.closed]

    def _takers(self, publish: Publish) -> list[OpenSubscription]:
        identifiers = publish.properties.subscription_identifiers
        key = publish.topic, identifiers
        takers = self._known.get(key)
        if takers is None:
            takers = self._find_takers(publish, identifiers)
            if len(publish.topic) <= _KNOWN_LENGTH_MAX:
                if len(self._known) >= _KNOWN_COUNT_MAX:
                    self._known.clear()
                self._known[key] = takers
        return takers

    def _find_takers(self, publish: Publish, identifiers: tuple[int, ...]) -> list[OpenSubscription]:
        named = [self._open[identifier] for identifier in dict.fromkeys(identifiers) if identifier in self._open]
        # A resumed Session may still use an identifier that an earlier program gave: the filter has to match too.
        takers = [subscription for subscription in named if subscription.takes(publish.topic)]
        if not takers and not (identifiers and self._is_given_up(publish.topic, identifiers)):
            takers = [subscription for subscription in self._open.values() if subscription.takes(publish.topic)]
        return takers

    def route(self, delivery: Delivery, received_at: float) -> MessageChannel | None:
        """Offer the message to its channels, or let it wait for one. The channel, if it is one: the next like it may be put there with `offer`."""
        publish = delivery.publish
        takers = self._takers(publish)
        if len(takers) == 1:
            channel = takers[0].channel
            if len(channel.siblings) == 1 and not channel.closed:
                self.offer(channel, delivery, received_at)
                return channel
        self.offer_to(self.channels(publish), delivery, received_at)
        return None

    def offer(self, channel: MessageChannel, delivery: Delivery, received_at: float) -> None:
        """To the only one that it goes to."""
        publish = delivery.publish
        if publish.qos == 0:
            channel.offer(Message.of(publish, received_at))
            return
        receipt = DeliveryReceipt(delivery, self._settle, channel.ack == "manual")
        if not channel.offer(Message.of(publish, received_at, receipt)):
            receipt.refuse()

    def offer_to(self, channels: list[MessageChannel], delivery: Delivery, received_at: float) -> None:
        """The same, whichever and however many they are."""
        if delivery.publish.qos == 0:
            message = Message.of(delivery.publish, received_at)
            for channel in channels:
                channel.offer(message)
            if not channels and not self._is_given_up(message.topic, message.properties.subscription_identifiers):
                self._unclaim(message)
            return
        settle = self._settle if len(channels) < 2 else _Shared(len(channels), self._settle).settle
        for channel in channels:
            receipt = DeliveryReceipt(delivery, settle, channel.ack == "manual")
            if not channel.offer(Message.of(delivery.publish, received_at, receipt)):
                receipt.refuse()
        if not channels:
            receipt = DeliveryReceipt(delivery, settle, False)
            if self._is_given_up(delivery.publish.topic, delivery.publish.properties.subscription_identifiers):
                self.refused += 1
                receipt.refuse()
            else:
                self._unclaim(Message.of(delivery.publish, received_at, receipt))

    def _is_given_up(self, topic: str, identifiers: tuple[int, ...]) -> bool:
        """It was sent for subscriptions that the program has left, and for no other."""
        if identifiers:
            return all(_take(self._given_up, identifier, topic) and not _take(self._kept, identifier, topic) for identifier in identifiers)
        if self.inherited or not any(_take(self._given_up, identifier, topic) for identifier in self._given_up):
            return False
        return not any(_take(self._kept, identifier, topic) for identifier in self._kept)

    # ---- unclaimed ---------------------------------------------------------------------------------------------------

    def _unclaim_held(self, message: Message) -> None:
        """It was in hand, and its scope has ended: the next one of these filters gets it again, whenever that is, unless whoever has it calls
        `ack` before."""
        if isinstance(message.receipt, DeliveryReceipt):
            message.receipt.withdraw = partial(self.unclaimed.remove, message)
        self.unclaimed.offer(message)

    def _unclaim(self, message: Message) -> None:
        if isinstance(message.receipt, DeliveryReceipt):
            message.receipt.manual = False
        if self.unclaimed.offer(message):
            self._deadlines.append((self._clock() + self._grace_s, message))
            if len(self._deadlines) > 4 * UNCLAIMED_COUNT_MAX and len(self._deadlines) > 2 * len(self.unclaimed.waiting()):
                here = {id(waiting) for waiting in self.unclaimed.waiting()}
                self._deadlines = deque(entry for entry in self._deadlines if id(entry[1]) in here)
        elif message.receipt is not None and self.unclaimed.closed:
            message.receipt.refuse()

    def next_deadline(self) -> float:
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def tick(self, now: float) -> None:
        """Refuse what nobody has claimed in time."""
        while self._deadlines and self._deadlines[0][0] <= now:
            message = self._deadlines.popleft()[1]
            if self.unclaimed.remove(message):
                self.unclaimed_refused += 1
                self.unclaimed.count_refused()
                if not self._warned:
                    self._warned = True
                    logger.warning("nobody subscribed to %r within %g s: refused (this is said once; see statistics())", message.topic, self._grace_s)
                if message.receipt is not None:
                    message.receipt.refuse()


def _note(scopes: dict[int, set[str]], identifier: int, filters: set[str]) -> None:
    """Add filters to those of a scope that has ended; the oldest scope goes when there are too many."""
    if filters:
        scopes.setdefault(identifier, set()).update(filters)
        if len(scopes) > _ENDED_COUNT_MAX:
            del scopes[next(iter(scopes))]


def _take(scopes: dict[int, set[str]], identifier: int, topic: str) -> bool:
    return any(matches(split_shared(filter)[1], topic) for filter in scopes.get(identifier, ()))
