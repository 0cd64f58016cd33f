"""Two brokers with stores and a bridge between them in virtual time, both killed at random moments, with a network that breaks and clients that come
back: whatever was acknowledged to a publisher comes to the lasting Sessions at both, each topic in its order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

import pytest
import trio
import trio.testing

from broker import Broker, DeliveryUnknown, PublishRefused, Reconnect, connect, open_broker
from broker.core.saved import Changes, Saved
from broker.testing.network import Network, Road
from broker.testing.shelf import Shelf
from tests.bridge.houses import bridge_to, take_all, until

MESSAGES_COUNT: Final = 80
TOPICS_COUNT: Final = 3
LASTING: Final[dict[str, Any]] = {"clean_start": False, "session_expiry_s": 1_000_000, "reconnect": Reconnect(first=True)}


class ShelfStore:
    """What was written to it before it was killed is on the shelf."""

    path = "a shelf"
    set_aside = None

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.killed = False

    def load(self) -> Saved:
        return self._shelf

    def write(self, changes: Changes) -> None:
        if not self.killed:
            self._shelf.write(changes)

    def close(self) -> None: ...


class AtOnce:
    """A `StoreWriter` without a thread."""

    def __init__(self, work: Callable[[Changes], None]) -> None:
        self._work = work

    async def write(self, changes: Changes) -> None:
        await trio.lowlevel.checkpoint()
        self._work(changes)

    def end(self) -> None: ...


class House:
    """Where a broker is, or is not because it was killed; what it had on disk stays."""

    def __init__(self, network: Network, random: Random, **options: Any) -> None:
        self.network = network
        self.broker: Broker | None = None
        self._random = random
        self._options = options
        self._shelf = Shelf()
        self._store: ShelfStore | None = None
        self._scope = trio.CancelScope()

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        if self.broker is None:
            await trio.aclose_forcefully(stream)
        else:
            await Road(self.network, self.broker).attach(stream, peer=peer)

    def kill(self) -> None:
        """Between two steps of the program: nothing more is written, nothing more is said."""
        if self._store is not None:
            self._store.killed = True
        self.broker = None
        self.network.cut()
        self._scope.cancel()

    async def live(self, stores: list[ShelfStore]) -> None:
        """Again and again, killed or not."""
        while True:
            self._store = ShelfStore(self._shelf)
            stores.append(self._store)  # `open_broker` takes it at once
            with trio.CancelScope() as self._scope:
                async with open_broker(store="a shelf", **self._options) as self.broker:
                    await trio.sleep_forever()
            self.broker = None
            await trio.sleep(self._random.uniform(0, 20))


async def break_things(near: House, far: House, random: Random) -> None:
    while True:
        await trio.sleep(random.uniform(0, 8))
        what = random.choice(["near", "far", "cut", "silence", "cut"])
        house = random.choice([near, far])
        if what in ("near", "far"):
            (near if what == "near" else far).kill()
        elif what == "cut":
            house.network.cut()
        else:
            house.network.silence()
            await trio.sleep(random.choice([0.5, 5, 100]))
            house.network.silence(False)


async def publish(house: House, name: str, random: Random) -> None:
    """Each until it is acknowledged."""
    async with connect(house, client_id=f"publisher {name}", **LASTING) as client:
        for number in range(MESSAGES_COUNT):
            while True:
                try:
                    await client.publish(f"x/{name}/{number % TOPICS_COUNT}", str(number), qos=1 + number // TOPICS_COUNT % 2)
                    break
                except (DeliveryUnknown, PublishRefused):
                    continue
            await trio.sleep(random.uniform(0, 0.3))


async def run(seed: int) -> None:
    random = Random(seed)
    near_network, far_network = Network(seed), Network(seed + 1)
    for network in (near_network, far_network):
        network.delay_s = random.choice([0, 0.01, 0.1])
        network.split_bytes = random.choice([0, 0, 3, 50])
    far = House(far_network, random)
    bridge = bridge_to(far, answer_timeout_s=random.choice([1, 5, 60]))
    near = House(near_network, random, bridges=[bridge])
    stores: list[ShelfStore] = []

    async def opened(path: Any) -> ShelfStore:
        return stores.pop()

    async def aside(work: Callable[[], Any], path: str, how_far: Callable[[], str]) -> Any:
        await trio.lowlevel.checkpoint()
        return work()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.opening.opened", opened)
        patch.setattr("broker.net.committer.aside", aside)
        patch.setattr("broker.net.committer.StoreWriter", AtOnce)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.live, stores)
            nursery.start_soon(near.live, stores)
            await trio.testing.wait_all_tasks_blocked()
            async with (
                connect(near, client_id="watcher", **LASTING) as one,
                connect(far, client_id="watcher", **LASTING) as other,
                one.subscribe("x/#", qos=2, keep=True, buffer_count_max=10_000) as here,
                other.subscribe("x/#", qos=2, keep=True, buffer_count_max=10_000) as there,
            ):
                await until(lambda: near.broker is not None and near.broker.bridges[0].connected)
                async with trio.open_nursery() as faults:
                    faults.start_soon(break_things, near, far, random)
                    async with trio.open_nursery() as publishers:
                        publishers.start_soon(publish, near, "near", random)
                        publishers.start_soon(publish, far, "far", random)
                    faults.cancel_scope.cancel()
                for house in (near, far):
                    house.network.silence(False)
                for subscription in (here, there):
                    found = await take_all(subscription, 300)
                    for name in ("near", "far"):
                        for rest in range(TOPICS_COUNT):
                            numbers = [int(text) for topic, text in found if topic == f"x/{name}/{rest}"]
                            assert list(dict.fromkeys(numbers)) == list(range(rest, MESSAGES_COUNT, TOPICS_COUNT)), (seed, name)
                assert near.broker is not None
                assert near.broker.bridges[0].dropped == {}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(8))
async def test_what_was_acknowledged_comes(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    await run(seed)
