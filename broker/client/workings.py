"""What of a Client's insides others of the house may use: a bridge's clients do more than a program's methods say.

The one place that looks behind `Client` from outside its own modules, so that those can change without asking who else leans on them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from broker.channel import MessageChannel, Subscription
from broker.client.client import Client
from broker.client.publishing import Publisher
from broker.client.router import OpenSubscription
from broker.core.client_state import Outgoing
from broker.errors import SubscribeRefused
from broker.reasons import ReasonCode
from broker.wire.packets import SubscriptionRequest


class Workings:
    """Of one client."""

    __slots__ = ("_core", "_driver")

    def __init__(self, client: Client) -> None:
        self._driver = client._driver
        self._core = client.core

    @property
    def publisher(self) -> Publisher:
        """For messages whose end is told to an owner, and not waited for by a task each."""
        return self._driver.publisher

    def subscribed(
        self,
        requests: tuple[SubscriptionRequest, ...],
        identifier: int,
        channel: MessageChannel,
        on_refused: Callable[[SubscribeRefused], None],
    ) -> AbstractAsyncContextManager[Subscription]:
        """Filters with a QoS each in one SUBSCRIBE, which stay in the Session. Where some are refused the others are entered."""
        opened = OpenSubscription(tuple(request.filter for request in requests), identifier, channel, True, on_refused)
        return self._driver.subscriber.scope(opened, requests, ())

    def ask(self, requests: tuple[SubscriptionRequest, ...], identifier: int | None = None) -> trio.Event:
        """A SUBSCRIBE that no scope is about, now or with the next connection. The event is of its SUBACK."""
        exchange = self._core.subscribe(requests, identifier)
        answered = exchange.owner = trio.Event()
        self._driver.handle()
        return answered

    async def ask_and_wait(self, requests: tuple[SubscriptionRequest, ...]) -> None:
        """The same, until it is answered, however, or nobody will answer any more."""
        await self._driver.line.wait(self.ask(requests))

    def owed(self, oldest: Outgoing | None) -> tuple[object, ...] | None:
        """What the broker owes on this connection, an answer to SUBSCRIBE or to that message; None: nothing. It is another as soon as anything has
        moved, bytes of ours included."""
        core = self._core
        if core.state != "connected":
            return None
        if core.exchanges.count:
            return core.connection, None
        if oldest is None:
            return None
        return core.connection, oldest, core.bytes_sent_at if core.wants_to_send else 0.0

    def break_off(self, cause: str) -> None:
        """End this connection for a fault of the broker's; another follows."""
        self._core.disconnect(ReasonCode.UNSPECIFIED_ERROR, trio.current_time(), cause=cause)
        self._driver.handle()

    async def end_with_will(self, grace_s: float) -> None:
        """Say goodbye so that the Will is published, after what is under way has had its grace. Cancelled: at once."""
        connector = self._driver.line.connector
        try:
            with trio.move_on_after(grace_s):
                await self._driver.wait_idle()
        finally:
            if connector is not None:
                connector.close(ReasonCode.DISCONNECT_WITH_WILL)
