"""A broker under mixed load for as long as one likes: publishers of every QoS, subscribers slow and quick, sessions that come back, clients
that break off, some that never read, some that come for a moment with a keepalive of 18 hours. Prints memory, tasks, file descriptors and
queues at the start, on the way and at the end, and what of them has grown.

    python -m benchmarks.soak --seconds 1200
    python -m benchmarks.soak --seconds 1200 --pause-s 0.02      a load that leaves a small machine to others
    python -m benchmarks.soak --short-clients 100000             only clients that come and go, so many

The load runs in the same process over real sockets; its own share of the memory is the same at the start and at the end. Exit code 1 if tasks,
descriptors, sessions or anything queued are left at the end. (routes_count_max is small, so that known topics
do not look like a leak: each takes 290 bytes, 100,000 of them as delivered.)
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trio
import trio.testing

from broker import Broker, BrokerError, Will, connect, open_broker
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, Connect, Publish, Subscribe, SubscriptionRequest, WillMessage

WARM_S: Final = 10.0
SHORT_KEEP_ALIVE_S: Final = 65_535
LEFT_OVER: Final = (
    "tasks", "file_descriptors", "clients_total", "links_count", "subscriptions_count", "queued_count", "inflight_bytes", "unsent_bytes",
)  # fmt: skip
"""What has to be at the end as it was with no client."""


class Load:
    def __init__(self, url: str, seed: int, pause_s: float) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.pause_s = pause_s
        self.counts = {"connects": 0, "published": 0, "received": 0, "cut": 0, "short": 0, "stuck": 0}
        self.numbers = itertools.count()

    async def publisher(self, qos: int) -> None:
        while True:
            try:
                async with connect(self.url, client_id=f"publisher-{qos}", session_expiry_s=60, clean_start=False) as client:
                    self.counts["connects"] += 1
                    for _ in range(self.random.randint(50, 500)):
                        topic = f"load/{self.random.randrange(200)}"
                        payload = bytes(self.random.choice((10, 100, 2000)))
                        await client.publish(topic, payload, qos=qos, retain=self.random.random() < 0.05)
                        self.counts["published"] += 1
                        if self.pause_s:
                            await trio.sleep(self.pause_s)
            except BrokerError:
                await trio.sleep(0.05)

    async def subscriber(self, number: int) -> None:
        """Stays away now and then, so that its queue fills; every third one reads slowly."""
        while True:
            try:
                will = Will(f"gone/{number}", "gone", qos=1, delay_s=number % 2)
                options: dict[str, Any] = {"session_expiry_s": 60, "clean_start": False, "reconnect": None, "will": will}
                async with (
                    connect(self.url, client_id=f"subscriber-{number}", **options) as client,
                    client.subscribe("load/#" if number < 3 else f"load/{number}", "gone/#", qos=number % 3) as messages,
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
        """Comes with a keepalive of 18 hours, subscriptions and a Will, says little, and breaks off."""
        while True:
            await come_and_go(self.url, f"short-{next(self.numbers)}")
            self.counts["short"] += 1
            await trio.sleep(max(self.pause_s, 0.001))

    async def stuck(self) -> None:
        """Subscribes to everything and never reads; it is cut with all others, and comes again."""
        while True:
            try:
                stream = await dial(self.url)
                async with stream:
                    packets = (Connect(f"stuck-{next(self.numbers)}", MQTT_5), Subscribe(1, (SubscriptionRequest("load/#"),)))
                    await stream.send_all(b"".join(encode(packet, MQTT_5) for packet in packets))
                    self.counts["stuck"] += 1
                    while True:  # a reset is felt here, an orderly end is not: so it goes by itself some time
                        await trio.sleep(self.random.uniform(1, 10))
                        await stream.send_all(b"\xc0\x00")
            except (OSError, trio.BrokenResourceError):
                await trio.sleep(0.05)

    async def breaker(self, hub: Broker) -> None:
        while True:
            await trio.sleep(self.random.uniform(2, 6))
            hub.drop_clients()
            self.counts["cut"] += 1


async def dial(url: str) -> trio.SocketStream:
    parts = urlsplit(url)
    return await trio.open_tcp_stream(parts.hostname or "", parts.port or 0)


async def come_and_go(url: str, client_id: str) -> None:
    """Connect, subscribe, publish, be acknowledged, and break off with a reset."""
    number = client_id.rpartition("-")[2]
    packets = (
        Connect(client_id, MQTT_5, True, SHORT_KEEP_ALIVE_S, WillMessage(f"short/will/{number}", b"")),
        Subscribe(1, (SubscriptionRequest(f"short/{number}", 1), SubscriptionRequest(f"short/+/{number}", 1))),
        Publish(f"short/{number}", b"x", 1, packet_id=2),
    )
    try:
        stream = await dial(url)
        async with stream:
            await stream.send_all(b"".join(encode(packet, MQTT_5) for packet in packets))
            got = b""
            while b"\x40\x02\x00\x02" not in got:
                data = await stream.receive_some(4096)
                if not data:
                    break
                got += data
            # A reset leaves no TIME_WAIT behind, of which 100,000 would use up the ports.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    except (OSError, trio.BrokenResourceError):
        return


def figures(hub: Broker) -> dict[str, int | float]:
    gc.collect()
    statistics = hub.statistics()
    status = Path("/proc/self/status").read_text("utf-8")
    names = (
        "clients_total", "links_count", "subscriptions_count", "retained_count", "queued_count", "queued_bytes", "inflight_bytes", "unsent_bytes",
        "memory_bytes", "deadlines_count",
    )  # fmt: skip
    return {
        "rss_kib": int(status.partition("VmRSS:")[2].split()[0]),
        "objects": len(gc.get_objects()),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "file_descriptors": len(os.listdir("/proc/self/fd")),
        **{name: statistics[name] for name in names},
        "dropped": statistics["publish_dropped"],
    }


def show(when: str, found: dict[str, int | float]) -> None:
    print(f"{when:>8}  " + "  ".join(f"{name} {value:,}" for name, value in found.items()), flush=True)


def compare(before: dict[str, int | float], after: dict[str, int | float]) -> bool:
    """Say what has grown; is anything left that should not be?"""
    print("  growth  " + "  ".join(f"{name} {after[name] - before[name]:+,}" for name in after), flush=True)
    left = [name for name in LEFT_OVER if after[name] > before[name]]
    if left:
        print(f"left at the end: {', '.join(left)}")
    return bool(left)


async def settle(hub: Broker) -> None:
    """Nobody is here any more, nor any session or retained message: wait until the broker has noticed."""
    for client in hub.clients():
        hub.disconnect(client.client_id, drop_session=True)
    hub.drop_clients()
    while hub.statistics()["links_count"] or hub.statistics()["connections_open_count"]:  # noqa: ASYNC110
        await trio.sleep(0.05)
    for message in hub.retained("#"):
        await hub.publish(message.topic, b"", retain=True)
    await trio.sleep(0.5)


async def soak(seconds: float, seed: int, pause_s: float) -> bool:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"], queue_count_max=2000, memory_bytes_max=64 << 20, routes_count_max=1000) as hub:
        await trio.testing.wait_all_tasks_blocked()  # it has all that it opens for itself
        empty = figures(hub)
        show("empty", empty)
        load = Load(hub.urls[0], seed, pause_s)
        async with trio.open_nursery() as nursery:
            for qos in range(3):
                nursery.start_soon(load.publisher, qos)
            for number in range(9):
                nursery.start_soon(load.subscriber, number)
            for _ in range(4):
                nursery.start_soon(load.passer_by)
            nursery.start_soon(load.stuck)
            nursery.start_soon(load.breaker, hub)
            began = time.monotonic()
            await trio.sleep(min(WARM_S, seconds / 4))
            start = figures(hub)
            show("start", start)
            while (left := seconds - (time.monotonic() - began)) > 0:
                await trio.sleep(min(left, max(10.0, seconds / 10)))
                show(f"{time.monotonic() - began:.0f} s", figures(hub))
            nursery.cancel_scope.cancel()
        await settle(hub)
        end = figures(hub)
        show("end", end)
        print(load.counts)
        return compare(empty, end)


async def short_clients(count: int) -> bool:
    """So many that come and go, 50 at a time, a keepalive of 18 hours each; the first tenth warms up."""
    async with open_broker(listeners=["mqtt://127.0.0.1:0"], routes_count_max=1000) as hub:
        numbers = iter(range(count))

        async def some(until: int) -> None:
            for number in numbers:
                await come_and_go(hub.urls[0], f"short-{number}")
                if number >= until:
                    return

        async def batch(until: int) -> dict[str, int | float]:
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(some, until)
            await settle(hub)
            found = figures(hub)
            show(f"{until + 1:,}", found)
            return found

        before = after = await batch(count // 10)
        for part in range(1, 4):
            after = await batch(count // 10 + part * (count - count // 10) // 3)
        return compare(before, after)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long (180)")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients choose (1)")
    parser.add_argument("--pause-s", type=float, default=0.0, help="of each publisher after each message, to leave the machine to others (0)")
    parser.add_argument("--short-clients", type=int, default=0, help="instead of all that: so many clients that come and go")
    options = parser.parse_args()
    if options.short_clients:
        return int(trio.run(short_clients, options.short_clients))
    return int(trio.run(soak, options.seconds, options.seed, options.pause_s))


if __name__ == "__main__":
    sys.exit(main())
