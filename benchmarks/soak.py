"""A broker under mixed load for as long as one likes: publishers of every QoS, subscribers slow and quick, sessions that come back, clients
that break off. Prints memory, tasks, file descriptors and queues at the start, on the way and at the end.

    python -m benchmarks.soak --seconds 180

The load runs in the same process (its own share of the memory is the same at the start and at the end), over real sockets.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import trio

from broker import Broker, BrokerError, connect, open_broker

WARM_S = 10.0


class Load:
    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.counts = {"connects": 0, "published": 0, "received": 0, "cut": 0}
        self.numbers = itertools.count()

    async def publisher(self, qos: int) -> None:
        while True:
            try:
                async with connect(self.url, client_id=f"publisher-{qos}", session_expiry_s=60, clean_start=False) as client:
                    self.counts["connects"] += 1
                    for _ in range(self.random.randint(50, 500)):
                        topic = f"load/{self.random.randrange(200)}"
                        await client.publish(topic, bytes(self.random.choice((10, 100, 2000))), qos=qos, retain=self.random.random() < 0.05)
                        self.counts["published"] += 1
            except BrokerError:
                await trio.sleep(0.05)

    async def subscriber(self, number: int) -> None:
        """Stays away now and then, so that its queue fills; every third one reads slowly."""
        while True:
            try:
                options: dict[str, Any] = {"client_id": f"subscriber-{number}", "session_expiry_s": 60, "clean_start": False, "reconnect": None}
                async with (
                    connect(self.url, **options) as client,
                    client.subscribe("load/#" if number < 3 else f"load/{number}", qos=number % 3) as messages,
                ):
                    self.counts["connects"] += 1
                    left = self.random.randint(100, 2000)
                    async for _ in messages:
                        self.counts["received"] += 1
                        left -= 1
                        if number % 3 == 0:
                            await trio.sleep(0.001)
                        if not left:
                            break
                await trio.sleep(self.random.random())
            except BrokerError:
                await trio.sleep(0.05)

    async def passer_by(self) -> None:
        """Connects with a keepalive of 18 hours and a Will, says little, and breaks off."""
        while True:
            try:
                async with connect(self.url, client_id=f"short-{next(self.numbers)}", keep_alive_s=65_535) as client:
                    self.counts["connects"] += 1
                    await client.publish("load/short", b"x", qos=1)
            except BrokerError:
                await trio.sleep(0.05)

    async def breaker(self, hub: Broker) -> None:
        while True:
            await trio.sleep(self.random.uniform(2, 6))
            hub.drop_clients()
            self.counts["cut"] += 1


def figures(hub: Broker) -> dict[str, int | float]:
    gc.collect()
    statistics = hub.statistics()
    status = Path("/proc/self/status").read_text("utf-8")
    return {
        "rss_kib": int(status.partition("VmRSS:")[2].split()[0]),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "file_descriptors": len(os.listdir("/proc/self/fd")),
        **{
            name: statistics[name]
            for name in ("clients_total", "links_count", "subscriptions_count", "queued_count", "queued_bytes", "deadlines_count")
        },
        "retained_count": statistics["retained_count"],
        "dropped": statistics["publish_dropped"],
    }


def show(when: str, found: dict[str, int | float]) -> None:
    print(f"{when:>8}  " + "  ".join(f"{name} {value:,}" for name, value in found.items()), flush=True)


async def soak(seconds: float, seed: int) -> None:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"], queue_count_max=2000) as hub:
        show("empty", figures(hub))
        load = Load(hub.urls[0], seed)
        async with trio.open_nursery() as nursery:
            for qos in range(3):
                nursery.start_soon(load.publisher, qos)
            for number in range(9):
                nursery.start_soon(load.subscriber, number)
            for _ in range(4):
                nursery.start_soon(load.passer_by)
            nursery.start_soon(load.breaker, hub)
            began = time.monotonic()
            await trio.sleep(min(WARM_S, seconds / 4))
            show("start", figures(hub))
            while (left := seconds - (time.monotonic() - began)) > 0:
                await trio.sleep(min(left, max(10.0, seconds / 6)))
                show(f"{time.monotonic() - began:.0f} s", figures(hub))
            nursery.cancel_scope.cancel()
        for client in hub.clients():
            hub.disconnect(client.client_id, drop_session=True)
        await trio.sleep(6)
        show("end", figures(hub))
        print(load.counts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    trio.run(soak, options.seconds, options.seed)


if __name__ == "__main__":
    main()
