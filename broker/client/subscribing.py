"""Our SUBSCRIBEs and UNSUBSCRIBEs: a subscription is a scope, and whatever way it is left, nothing of it stays that was not to be kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from broker.channel import Subscription
from broker.client.line import Line
from broker.client.router import OpenSubscription, Router
from broker.core.client_state import Exchange
from broker.errors import NotSupported, SubscribeRefused
from broker.messages import QoS, check_topic_filter
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, SubscriptionRequest

RETAIN_HANDLING: Final = {"send": 0, "if-new": 1, "never": 2}

_Pairs = tuple[tuple[str, str], ...]


class Subscriber:
    """left: called with the filters of each UNSUBSCRIBE. is_awaited: do requests wait for answers there, for whom it has to stay?"""

    def __init__(self, line: Line, router: Router, left: Callable[[tuple[str, ...]], None], is_awaited: Callable[[str], bool]) -> None:
        self._line = line
        self._router = router
        self._left = left
        self._is_awaited = is_awaited
        self._leaving: set[trio.Event] = set()  # of the UNSUBSCRIBEs that a scope waits for, though no longer than the connection stands

    def check(self, filters: tuple[str, ...], no_local: bool, identifier: int | None) -> None:
        """Raises InvalidTopic, NotSupported, ValueError."""
        for filter in filters:
            check_topic_filter(filter)
            if no_local and filter.startswith("$share/"):
                raise ValueError("no_local cannot be used with a shared subscription")  # [MQTT5-3.8.3-4]
        if identifier is None:
            return
        if not isinstance(identifier, int):
            raise TypeError(f"identifier must be a whole number, not {type(identifier).__name__}")
        if not 1 <= identifier <= 268_435_455:
            raise ValueError(f"identifier must be from 1 to 268,435,455, not {identifier!r}")
        core = self._line.core
        if core.version < MQTT_5 or (self._line.connected and not core.capabilities.identifiers):
            raise NotSupported("this broker has no subscription identifiers")

    @asynccontextmanager
    async def scope(
        self, opened: OpenSubscription, requests: tuple[SubscriptionRequest, ...], user_properties: _Pairs
    ) -> AsyncIterator[Subscription]:
        keep = opened.keep
        line = self._line
        await self._enter(opened, requests, user_properties)
        assert opened.subscription is not None
        failed = True
        try:
            yield opened.subscription
            failed = False
        finally:
            self._router.close(opened, failed=failed)
            filters = () if keep or line.lost is not None else tuple(filter for filter in opened.filters if not self._is_awaited(filter))
            exchange = self.begin_unsubscribe(filters, ()) if filters else None
            line.handle()
            if exchange is not None and not failed and line.connected:
                await self._wait_left(exchange)

    async def _enter(self, opened: OpenSubscription, requests: tuple[SubscriptionRequest, ...], user_properties: _Pairs) -> None:
        """SUBSCRIBE and wait for its grants. Whatever fails, nothing of it stays, but for what is to be kept where only the wait was cancelled."""
        line = self._line
        line.check_open()
        self._router.open(opened)
        exchange: Exchange | None = None
        try:
            exchange = line.core.subscribe(requests, opened.identifier, user_properties)
            exchange.owner = opened
            line.waiters.add(opened.changed)
            line.handle()
            await opened.changed.wait()
            if not exchange.done:
                line.check_open()
            for filter, reason in zip(exchange.filters, exchange.reasons, strict=True):
                if reason >= 0x80:
                    refuse(opened, SubscribeRefused(filter, reason))
        except BaseException as error:
            # An earlier run may have kept it: a program that ends while it starts is not to lose what comes meanwhile.
            opened.entered = opened.keep and isinstance(error, trio.Cancelled)
            keep, opened.keep = opened.keep, True  # what it was offered goes back to the unclaimed
            self._router.close(opened, failed=True)
            opened.keep = keep
            if exchange is not None and line.lost is None:
                self._withdraw(exchange, stays=opened.entered)
            raise
        finally:
            line.waiters.discard(opened.changed)
        opened.entered = True
        granted = [(filter, QoS(reason)) for filter, reason in zip(exchange.filters, exchange.reasons, strict=True) if reason < 0x80]
        opened.subscription = Subscription(tuple(filter for filter, _ in granted), tuple(qos for _, qos in granted), opened.channel)

    def _withdraw(self, exchange: Exchange, *, stays: bool) -> None:
        """Undo a SUBSCRIBE that nobody waits for: all of it if its answer is not here yet, else what was granted. stays: only if it has not left."""
        if self._line.core.cancel_exchange(exchange) or stays:
            return
        granted = tuple(filter for filter, reason in zip(exchange.filters, exchange.reasons, strict=False) if reason < 0x80)
        filters = granted if exchange.done else exchange.filters
        if filters:
            self.begin_unsubscribe(filters, ())
        self._line.handle()

    def begin_unsubscribe(self, filters: tuple[str, ...], user_properties: _Pairs) -> Exchange:
        exchange = self._line.core.unsubscribe(filters, user_properties)
        exchange.owner = trio.Event()
        self._left(filters)
        self._line.handle()
        return exchange

    async def _wait_left(self, exchange: Exchange) -> None:
        left: trio.Event = exchange.owner
        self._leaving.add(left)
        try:
            await left.wait()
        finally:
            self._leaving.discard(left)

    def stop_leaving(self) -> None:
        """The connection is over: no UNSUBACK is waited for."""
        for left in self._leaving:
            left.set()

    async def unsubscribe(self, filters: tuple[str, ...], user_properties: _Pairs) -> tuple[ReasonCode, ...]:
        line = self._line
        line.check_open()
        exchange = self.begin_unsubscribe(filters, user_properties)
        self._router.give_up(filters)
        await line.wait(exchange.owner)
        if not exchange.done:
            line.check_open()
        return exchange.reasons

    def on_done(self, exchange: Exchange) -> None:
        """The core says that it has ended."""
        owner = exchange.owner
        if not isinstance(owner, OpenSubscription):
            owner.set()
            return
        owner.changed.set()
        if owner.subscription is None:
            return
        # Made again after the Session was lost.
        granted = dict(zip(owner.subscription.filters, owner.subscription.granted, strict=True))
        for filter, reason in zip(exchange.filters, exchange.reasons, strict=True):
            if reason < 0x80:
                granted[filter] = QoS(reason)
                continue
            refused = SubscribeRefused(filter, reason)
            if owner.on_refused is not None:
                owner.on_refused(refused)
                continue
            for channel in owner.channel.siblings:
                channel.close(refused)
        owner.subscription.granted = tuple(granted[filter] for filter in owner.subscription.filters)


def refuse(opened: OpenSubscription, error: SubscribeRefused) -> None:
    """Whose scope it is says whether it goes on without that filter."""
    if opened.on_refused is None:
        raise error
    opened.on_refused(error)
