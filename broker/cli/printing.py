"""What `broker sub` does once its options are known."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any, Final

import trio

from broker.cli.connecting import open_connection
from broker.cli.formatting import NotJson
from broker.cli.output import Output
from broker.cli.progress import Meter
from broker.cli.running import DONE, Failure, run_tool, say, timed_out
from broker.cli.settings import Connection
from broker.cli.sub import Listening, Printed
from broker.client import Client, Message, Subscription
from broker.errors import PublishRefused
from broker.wire.topics import matches

BUFFER_COUNT_MAX: Final = 100_000
"""Messages of QoS 0 held while the reader of stdout is busy; the oldest go first, and how many went is told at the end."""


def listen(connection: Connection, listening: Listening) -> int:
    """Returns the exit code."""
    return run_tool(partial(_listen, connection, listening), quiet=connection.quiet)


async def _listen(connection: Connection, listening: Listening) -> int:
    output = Output(ends_lines=bool(listening.printed.end))
    meter = Meter("received", shown=connection.progress, total=listening.count_max, output=output)
    async with open_connection(connection, stay=True) as client:
        with trio.move_on_after(connection.timeout_s) as scope, meter:
            receiver = Receiver(client, connection, listening, output, meter)
            await receiver.run()
    if scope.cancelled_caught:
        return timed_out(connection.timeout_s, quiet=connection.quiet)
    return receiver.code


class Receiver:
    """Takes messages from every subscription of one run until one of the reasons to end comes true."""

    def __init__(self, client: Client, connection: Connection, listening: Listening, output: Output, meter: Meter) -> None:
        self.client = client
        self.connection = connection
        self.listening = listening
        self.output = output
        self.meter = meter
        self.received_count = 0
        self.code = DONE

    async def run(self) -> None:
        if not self.listening.filters:
            await self._unsubscribe()
            return
        async with self.client.subscribe(*self.listening.filters, **self._subscribe_keywords()) as subscription:
            if self.listening.unsubscribe:
                await self._unsubscribe()
            if self.listening.exit_after_subscribe:
                return
            try:
                await self._receive(subscription)
            finally:
                self._tell_dropped(subscription)

    def _subscribe_keywords(self) -> dict[str, Any]:
        given = self.listening.subscribe_properties
        keywords: dict[str, Any] = {
            "qos": self.listening.qos,
            "retain_as_published": self.listening.retain_as_published,
            # What a kept session holds is asked for again next time; one that is not kept ends with the connection.
            "keep": True,
            "buffer_count_max": BUFFER_COUNT_MAX,
        }
        if given.user_properties:
            keywords["user_properties"] = given.user_properties
        if given.subscription_identifiers:
            keywords["identifier"] = given.subscription_identifiers[0]
        return keywords

    async def _unsubscribe(self) -> None:
        listening = self.listening
        reasons = await self.client.unsubscribe(*listening.unsubscribe, user_properties=listening.unsubscribe_properties.user_properties)
        for topic_filter, reason in zip(listening.unsubscribe, reasons, strict=False):
            if reason.failed:
                raise Failure(f"unsubscribing from {topic_filter!r} refused: {reason.describe()}", int(reason))

    async def _receive(self, subscription: Subscription) -> None:
        if self.connection.clean_start:
            await self._receive_from(subscription)
            return
        # A session that was taken up may hold messages of filters that this run does not name.
        async with trio.open_nursery() as nursery:

            async def until_end(source: Subscription) -> None:
                await self._receive_from(source)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_end, subscription)
            nursery.start_soon(until_end, self.client.unclaimed)

    async def _receive_from(self, source: Subscription) -> None:
        """Until the last message wanted."""
        async for message in source:
            if await self._take(message):
                return

    async def _take(self, message: Message) -> bool:
        """One message; True if it was the last one wanted."""
        listening = self.listening
        if listening.retained_only and not message.retain:
            return True
        if any(matches(topic_filter, message.topic) for topic_filter in listening.filter_out):
            return False
        if listening.remove_retained and message.retain:
            await self._forget(message.topic)
        if listening.no_retained and message.retain:
            return False
        if listening.percentage >= 100 or random.random() * 100 < listening.percentage:
            await show(self.output, listening.printed, message, quiet=self.connection.quiet)
        self.meter.count(len(message.payload))
        self.received_count += 1
        return self.received_count == listening.count_max

    async def _forget(self, topic: str) -> None:
        try:
            await self.client.publish(topic, b"", qos=1, retain=True)
        except PublishRefused as refused:
            self.code = int(refused.reason)
            if not self.connection.quiet:
                say(f"the retained message on {topic!r} stays: {refused.reason.describe()}")

    def _tell_dropped(self, subscription: Subscription) -> None:
        dropped = sum(count for name, count in subscription.statistics().items() if "drop" in name)
        if dropped and not self.connection.quiet:
            say(f"{dropped:,} messages of QoS 0 were dropped: whoever reads our output was too slow")


async def show(output: Output, printed: Printed, message: Message, *, quiet: bool = False) -> None:
    """Print one message; a payload that is not JSON (%J) leaves an empty line and a word on stderr, as with Mosquitto."""
    if printed.skip_empty and not message.payload:
        return
    try:
        text = printed.render(message, time.time_ns())
    except NotJson as fault:
        if not quiet:
            say(str(fault))
        text = b""
    await output.write(text + printed.end)
