"""What a bridge subscribes to, here and there, and what it unsubscribes from: a Session may be of an earlier run, with other settings.

What stands in the one at the other broker is known here: in its own Session each of those filters stands below a topic to which nobody can
publish. So the store has it too, and the first contact after a change, or a start with other settings, can unsubscribe from it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from broker.bridge.mapping import covers
from broker.bridge.pump import AGAIN
from broker.bridge.settings import Bridge
from broker.channel import MessageChannel, Subscription
from broker.client.client import Client
from broker.client.workings import Workings
from broker.errors import SubscribeRefused
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, SubscriptionRequest

BUFFER_COUNT_MAX: Final = 10_000
"""Messages of QoS 0 that wait to be taken; beyond them the oldest go."""
THERE: Final = "$SYS/in/"
"""Before each filter of the other broker in a subscription here."""
IDENTIFIER: Final = 1
"""Of all its filters, in each run: what waits in a Session keeps the one that it was queued with."""

_NEVER, _IF_NEW, _SEND = 2, 1, 0

logger = logging.getLogger("broker.bridge")


class Filters:
    """Of one bridge with these settings."""

    def __init__(self, bridge: Bridge) -> None:
        self._name = bridge.name
        self.here = strongest((one.local_filter, one.qos) for one in bridge.topics if one.goes_out)
        """Each with its QoS."""
        self._there = strongest((one.remote_filter, one.qos) for one in bridge.topics if one.comes_in)
        self._out_there = tuple(one.remote_filter for one in bridge.topics if one.goes_out)
        self._stale_there: tuple[str, ...] = ()
        """Those that may stand in its Session at the other broker, and are not wanted there any more."""
        self.is_refused = False
        """One was, at the other broker: what it is about does not come in."""

    async def ask_here(self, stack: AsyncExitStack, local: Client, known: list[str]) -> Subscription | None:
        """What is to go out; None where nothing is to. What is retained is not asked for before it can go out: it would lie in a buffer until then.
        known: what stands in its Session."""
        stale = [filter for filter in known if filter not in self.here and not filter.startswith(THERE)]
        if stale:
            await local.unsubscribe(*stale)
        before = [filter.removeprefix(THERE) for filter in known if filter.startswith(THERE)]
        self._stale_there = tuple(filter for filter in before if filter not in self._there)
        if self._there:
            await Workings(local).ask_and_wait(_requests(local, {THERE + filter: 0 for filter in self._there}, _NEVER))
        return await stack.enter_async_context(self._subscribed(local, self.here, _NEVER)) if self.here else None

    def ask_retained(self, local: Client) -> None:
        """The same SUBSCRIBE once more, which is answered with what is retained."""
        Workings(local).ask(_requests(local, self.here, _SEND), AGAIN)

    async def ask_there(self, stack: AsyncExitStack, local: Client, remote: Client, *, is_new: bool) -> Subscription | None:
        """What is to come in; None where nothing is to. is_new: with all that is retained there."""
        filters = self._there
        # What only goes out may have come in before the last start: Mosquitto's bridges ask for this too.
        out_there = self._out_there if remote.session_present else ()
        stale = [filter for filter in dict.fromkeys((*self._stale_there, *out_there)) if filter not in filters]
        if stale:
            await remote.unsubscribe(*stale)
        if self._stale_there:
            await local.unsubscribe(*[THERE + filter for filter in self._stale_there])
            self._stale_there = ()
        if not remote.core.capabilities.wildcards:  # asked for one, it would have to close the connection
            for filter in [filter for filter in filters if "+" in filter or "#" in filter]:
                self._refused(SubscribeRefused(filter, ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED))
            filters = {filter: qos for filter, qos in filters.items() if "+" not in filter and "#" not in filter}
        return await stack.enter_async_context(self._subscribed(remote, filters, _SEND if is_new else _IF_NEW)) if filters else None

    @asynccontextmanager
    async def _subscribed(self, client: Client, filters: dict[str, int], retain_handling: int) -> AsyncIterator[Subscription]:
        """All of them in one, whose messages come once each."""
        channel = MessageChannel(ack="manual", buffer_count_max=BUFFER_COUNT_MAX, spares_acknowledged=True)
        async with Workings(client).subscribed(_requests(client, filters, retain_handling), IDENTIFIER, channel, self._refused) as subscription:
            yield subscription

    def _refused(self, error: SubscribeRefused) -> None:
        self.is_refused = True
        logger.error("bridge %r: %s; the rest of it goes on, and a reload asks again", self._name, error)


def strongest(asked: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Each filter once, with the most that any entry wants of it; without those that another one covers, for which many brokers, Mosquitto too, send
    a copy of their own."""
    found: dict[str, int] = {}
    for filter, qos in asked:
        found[filter] = max(qos, found.get(filter, 0))
    for filter in list(found):
        if any(other != filter and covers(other, filter) and qos >= found[filter] for other, qos in found.items()):
            del found[filter]
    return found


def _requests(client: Client, filters: dict[str, int], retain_handling: int) -> tuple[SubscriptionRequest, ...]:
    """No Local, so that nothing comes back from where it was carried to; with the retain flag that it was published with. 3.1.1 has neither."""
    is_new = client.core.version >= MQTT_5
    return tuple(SubscriptionRequest(filter, qos, is_new, is_new, retain_handling if is_new else 0) for filter, qos in filters.items())
