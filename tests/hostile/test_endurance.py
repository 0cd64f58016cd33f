"""Clients and sessions that come and go leave nothing behind, keepalives of 18 hours among them."""

from __future__ import annotations

import gc
import os
import tracemalloc

from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, Connect, Publish, Subscribe, SubscriptionRequest, WillMessage
from tests.core.harness import World

CLIENTS_COUNT = int(os.environ.get("BROKER_SHORT_CLIENTS", "4000"))
GROWTH_BYTES_MAX = 80_000
"""For all of them: a byte each at 100,000. Some 50,000 are bounded tables, whose entries of before were not traced: the same for 2,000 clients
and for 20,000."""


def come_and_go(world: World, count: int) -> None:
    engine = world.engine
    for number in range(count):
        client_id = f"short-{number}"
        link = engine.attach(client_id, world.now)
        data = encode(Connect(client_id, MQTT_5, True, 65_535, WillMessage(f"w/{number}", b"")), MQTT_5)
        data += encode(Subscribe(1, (SubscriptionRequest(f"s/{number}", 1), SubscriptionRequest(f"s/+/{number}", 1))), MQTT_5)
        data += encode(Publish(f"s/{number}", b"x", 1, packet_id=2), MQTT_5)
        engine.receive(link, data, world.now)
        engine.take_ready()
        engine.detach(link, world.now)
        engine.take_ready()
        world.now += 0.001


def test_short_clients_leave_no_memory_behind() -> None:
    world = World(routes_count_max=100)
    tracemalloc.start()  # now, so that the hundred routes which are kept are no growth when they have given way to a hundred others
    come_and_go(world, 1000)
    world.record.events.clear()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    come_and_go(world, CLIENTS_COUNT)
    world.record.events.clear()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    world.assert_empty()
    assert len(world.state.deadlines) == 0
    print(f"{CLIENTS_COUNT} short clients: {grown} bytes more than before")
    assert grown < GROWTH_BYTES_MAX
