"""The end under full load: in time, and with nothing lost that was acknowledged to a publisher and promised to a session that stays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from broker import Broker, ConnectionLost, PublishRefused, connect, open_broker
from broker.core.session import Session
from broker.net.memory import memory_stream_pair
from tests.net.mqtt import Client
from tests.systems import quick_system_calls

GRACE_S = 3.0
PUBLISHERS_COUNT = 6
ACKNOWLEDGED_COUNT = 2000
"""So many are acknowledged before the end begins; more are under way then."""


def owed(session: Session) -> Iterator[bytes]:
    """The payloads that a session still has to deliver."""
    for packet_id, unacknowledged in session.sender.unacknowledged.items():
        yield unacknowledged.at(packet_id).message.payload
    for delivery in session.queue.deliveries():
        yield delivery.message.payload


async def open_stream(hub: Broker, nursery: trio.Nursery) -> trio.abc.Stream:
    if hub.urls:
        host, _, port = hub.urls[0].rpartition("//")[2].rpartition(":")
        return await trio.open_tcp_stream(host, int(port))
    ours, theirs = memory_stream_pair()
    nursery.start_soon(hub.attach, theirs)
    return ours


async def shut_down_under_load(hub: Broker) -> None:
    """Publishers as fast as they can at QoS 1 and 2, one subscriber that has stopped reading, one that reads all, and a session without a client."""
    acknowledged: set[bytes] = set()
    enough = trio.Event()
    numbers = itertools.count()

    async def publish(qos: int) -> None:
        try:
            async with connect(hub.urls[0] if hub.urls else hub, reconnect=None, close_grace_s=1) as client:
                while True:
                    payload = b"%d" % next(numbers)
                    await client.publish("load", payload, qos=qos)
                    acknowledged.add(payload)
                    if len(acknowledged) == ACKNOWLEDGED_COUNT:
                        enough.set()
        except (ConnectionLost, PublishRefused):
            return

    async def read(client: Client, goodbyes: list[object]) -> None:
        while (packet := await client.receive()) is not None:
            goodbyes.append(packet)

    goodbyes: list[object] = []
    async with trio.open_nursery() as nursery:
        clients = {}
        for name in ("stuck", "away", "quick"):
            clients[name] = client = Client(await open_stream(hub, nursery))
            await client.connect(name, session_expiry_s=3600)
            await client.subscribe("load", 2)
        await clients["away"].stream.aclose()
        nursery.start_soon(read, clients["quick"], goodbyes)
        for number in range(PUBLISHERS_COUNT):
            nursery.start_soon(publish, 1 + number % 2)
        await enough.wait()
        began = trio.current_time()
        await hub.shutdown(GRACE_S)
        if not hub.urls:
            assert trio.current_time() - began <= GRACE_S + 1
        for client in clients.values():
            await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()
    assert type(goodbyes[-1]).__name__ == "Disconnect"
    sessions = {session.client_id: session for session in hub._engine.clients()}
    assert sessions.keys() == {"stuck", "away", "quick"}  # and none of the publishers'
    for session in sessions.values():
        assert acknowledged <= set(owed(session))  # nobody has acknowledged anything to the broker
        assert not session.dropped
    for info in hub.clients():
        assert info.queue_count + info.inflight_count >= len(acknowledged)
        assert info.peer is None


async def test_it_ends_in_time_and_keeps_what_was_acknowledged(autojump_clock: MockClock) -> None:
    async with open_broker() as hub:
        await shut_down_under_load(hub)


@quick_system_calls
async def test_the_same_over_sockets() -> None:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as hub:
        await shut_down_under_load(hub)


@pytest.mark.parametrize("grace_s", [0.0, 2.0])
async def test_one_that_never_reads_holds_up_no_end(grace_s: float, autojump_clock: MockClock) -> None:
    async with open_broker() as hub, trio.open_nursery() as nursery:
        client = Client(await open_stream(hub, nursery))
        await client.connect("stuck")
        await client.subscribe("t")
        for _ in range(300):
            await hub.publish("t", b"x" * 10_000)
        began = trio.current_time()
        await hub.shutdown(grace_s)
        assert trio.current_time() - began <= grace_s + 1
        nursery.cancel_scope.cancel()
