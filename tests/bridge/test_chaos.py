"""A bridge in virtual time, with everything around it breaking at random moments: at QoS 2 each message comes once, in its topic's order."""

from __future__ import annotations

from random import Random
from typing import Any, Final

import pytest
import trio
import trio.testing

from broker import Broker, connect, open_broker
from broker.testing.network import Network
from tests.bridge.houses import CLIENT_ID, bridge_to, take_all, wait_state

MESSAGES_COUNT: Final = 100
TOPICS_COUNT: Final = 3
LASTING: Final[dict[str, Any]] = {"clean_start": False, "session_expiry_s": 1_000_000}


async def break_things(network: Network, near: Broker, far: Broker, random: Random) -> None:
    while True:
        await trio.sleep(random.uniform(0, 3))
        what = random.choice(["cut", "cut", "silence", "near", "far", "thrown out"])
        if what == "cut":
            network.cut()
        elif what == "silence":
            network.silence()
            await trio.sleep(random.choice([0.5, 5, 100]))
            network.silence(False)
        elif what == "thrown out":
            near.disconnect(CLIENT_ID)
        else:
            (near if what == "near" else far).drop_clients()


async def publish(broker: Broker, name: str, random: Random) -> None:
    async with connect(broker, client_id=f"publisher {name}", **LASTING) as client:
        for number in range(MESSAGES_COUNT):
            await client.publish(f"x/{name}/{number % TOPICS_COUNT}", str(number), qos=2)
            await trio.sleep(random.uniform(0, 0.1))


@pytest.mark.parametrize("seed", range(10))
async def test_each_comes_once_and_in_order(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    random = Random(seed)
    network = Network(seed)
    network.delay_s = random.choice([0, 0.01, 0.1])
    network.split_bytes = random.choice([0, 0, 3, 50])
    async with (
        open_broker() as far,
        open_broker(bridges=[bridge_to(network.to(far))]) as near,
        connect(near, client_id="watcher", **LASTING) as one,
        connect(far, client_id="watcher", **LASTING) as other,
        one.subscribe("x/#", qos=2, keep=True) as here,
        other.subscribe("x/#", qos=2, keep=True) as there,
    ):
        await wait_state(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_things, network, near, far, random)
            async with trio.open_nursery() as publishers:
                publishers.start_soon(publish, near, "near", random)
                publishers.start_soon(publish, far, "far", random)
            nursery.cancel_scope.cancel()
        network.silence(False)
        for subscription in (here, there):
            found = await take_all(subscription, 200)
            for name in ("near", "far"):
                for rest in range(TOPICS_COUNT):
                    numbers = [int(text) for topic, text in found if topic == f"x/{name}/{rest}"]
                    assert numbers == list(range(rest, MESSAGES_COUNT, TOPICS_COUNT))
        assert near.bridges[0].dropped == {}
