"""Two brokers with stores and a bridge between them in virtual time, both killed at random moments, with a network that breaks and clients that come
back, with reloads, and sometimes two ways to the one broker: whatever was acknowledged to a publisher comes to the lasting Sessions at both, each
topic in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import msgspec
import pytest
import trio
import trio.testing

from broker import Bridge, Broker, Config, DeliveryUnknown, PublishRefused, Reconnect, connect, open_broker
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

    def __init__(self, network: Network, random: Random, bridges: Sequence[Bridge] = ()) -> None:
        self.networks = [network]
        self.broker: Broker | None = None
        self.bridges = tuple(bridges)
        """As they stand in its config now."""
        self._random = random
        self._shelf = Shelf()
        self._store: ShelfStore | None = None
        self._scope = trio.CancelScope()

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        if self.broker is None:
            await trio.aclose_forcefully(stream)
        else:
            await Road(self.networks[0], self.broker).attach(stream, peer=peer)

    @property
    def config(self) -> Config:
        return Config(listeners=(), sys_interval_s=0, bridges=self.bridges)

    def kill(self) -> None:
        """Between two steps of the program: nothing more is written, nothing more is said."""
        if self._store is not None:
            self._store.killed = True
        self.broker = None
        for network in self.networks:
            network.cut()
        self._scope.cancel()

    async def live(self, stores: list[ShelfStore]) -> None:
        """Again and again, killed or not."""
        while True:
            self._store = ShelfStore(self._shelf)
            stores.append(self._store)  # `open_broker` takes it at once
            with trio.CancelScope() as self._scope:
                async with open_broker(self.config, store="a shelf") as self.broker:
                    await trio.sleep_forever()
            self.broker = None
            await trio.sleep(self._random.uniform(0, 20))


class SecondWay:
    """Another address of the same broker."""

    def __init__(self, house: House, network: Network) -> None:
        self._network = network
        self._house = house
        house.networks.append(network)

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        if self._house.broker is None:
            await trio.aclose_forcefully(stream)
        else:
            await Road(self._network, self._house.broker).attach(stream, peer=peer)


async def break_things(near: House, far: House, networks: Sequence[Network], random: Random) -> None:
    while True:
        await trio.sleep(random.uniform(0, 8))
        what = random.choice(["near", "far", "reload", "cut", "silence", "cut"])
        network = random.choice(networks)
        if what in ("near", "far"):
            (near if what == "near" else far).kill()
        elif what == "reload":
            near.bridges = tuple(msgspec.structs.replace(one, keepalive_s=random.choice([10, 60])) for one in near.bridges)
            if near.broker is not None:
                near.broker.reload(near.config)
        elif what == "cut":
            network.cut()
        else:
            network.silence()
            await trio.sleep(random.choice([0.5, 5, 100]))
            network.silence(False)


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
    networks = near_network, far_network, other_network = [Network(seed + number) for number in range(3)]
    for network in networks:
        network.delay_s = random.choice([0, 0.01, 0.1])
        network.split_bytes = random.choice([0, 0, 3, 50])
    far = House(far_network, random)
    options: dict[str, Any] = {"answer_timeout_s": random.choice([1, 5, 60])}
    if random.random() < 0.5:
        options["fallback_urls"] = (SecondWay(far, other_network),)
    if random.random() < 0.5:
        options["notification_topic"] = "x/told"
    near = House(near_network, random, [bridge_to(far, **options)])
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
                    faults.start_soon(break_things, near, far, networks, random)
                    async with trio.open_nursery() as publishers:
                        publishers.start_soon(publish, near, "near", random)
                        publishers.start_soon(publish, far, "far", random)
                    faults.cancel_scope.cancel()
                for network in networks:
                    network.silence(False)
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
