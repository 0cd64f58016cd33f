"""One that takes 100 kB/s beside one that takes all, in virtual time, where a computer is never too slow: what pauses cost the others."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from broker import open_broker
from broker.net.memory import memory_stream_pair
from broker.testing.network import Network
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, Publish
from tests.net.mqtt import Client
from tests.systems import quick_system_calls

MESSAGE = encode(Publish("load", bytes(2000)), MQTT_5)
PUBLISHED_PER_S = 1000
SECONDS = 40


async def delivered(slow_beside: bool, **limits: Any) -> tuple[int, int]:
    """(to the one of full speed, to the slow one): messages in so many seconds, of a publisher that sends two megabytes in each."""
    quick, slow = Network(1), Network(2)
    quick.bytes_per_s = PUBLISHED_PER_S * len(MESSAGE)
    slow.bytes_per_s = 100_000
    counts = {"quick": 0, "slow": 0}
    async with open_broker(**limits) as hub, trio.open_nursery() as nursery:

        async def come(network: Network, name: str) -> Client:
            near, far = memory_stream_pair()
            nursery.start_soon(network.to(hub).attach, far)
            client = Client(near)
            await client.connect(name)
            return client

        async def read(client: Client, name: str) -> None:
            await client.subscribe("load")
            count = 0
            while data := await client.stream.receive_some(65_536):
                count += len(data)
                counts[name] = count // len(MESSAGE)

        nursery.start_soon(read, await come(quick, "quick"), "quick")
        if slow_beside:
            nursery.start_soon(read, await come(slow, "slow"), "slow")
        publisher = await come(quick, "publisher")
        await trio.sleep(1)
        with trio.move_on_after(SECONDS):
            while True:
                await publisher.stream.send_all(MESSAGE * 10)
        nursery.cancel_scope.cancel()
    return counts["quick"], counts["slow"]


@quick_system_calls
async def test_a_dripping_one_leaves_the_others_more_than_half_of_their_pace(autojump_clock: MockClock) -> None:
    alone, _ = await delivered(False)
    assert alone > 0.95 * PUBLISHED_PER_S * SECONDS
    beside, dripped = await delivered(True)
    # A second of grace, and then a tenth of time: it may hold the publisher up for five of forty seconds.
    assert beside > 0.8 * alone
    assert dripped > 0.9 * 100_000 * SECONDS / len(MESSAGE)


async def test_with_patience_without_end_they_would_not(autojump_clock: MockClock) -> None:
    beside, _ = await delivered(True, slow_subscriber_grace_s=1e6)
    assert beside < 0.2 * PUBLISHED_PER_S * SECONDS
