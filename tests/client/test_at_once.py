"""A message of QoS 0 that the calling task gives to the kernel itself: what the socket does not take keeps its place and its promise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import pytest
import trio
import trio.testing

from broker.client import Client, connect
from broker.client.reconnect import Reconnect
from broker.errors import NotSupported, Offline, PublishRefused
from broker.messages import Version
from broker.reasons import ReasonCode
from broker.wire.packets import NO_PROPERTIES, Properties, PubAck, Publish
from tests.client.scripted import Peer

LARGE = bytes(16_000_000)
"""More than the buffers of both ends of a connection take."""


@asynccontextmanager
async def by_socket(properties: Properties = NO_PROPERTIES, **options: Any) -> AsyncIterator[tuple[Client, Peer]]:
    """An open client and the other end of its socket, which reads what the test asks it to. A lost connection does not come back."""
    accepted, peers = trio.open_memory_channel[Peer](1)
    over = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        await peer.accept(properties)
        await accepted.send(peer)
        await over.wait()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(30):
            async with connect(f"mqtt://127.0.0.1:{port}", client_id="me", reconnect=Reconnect(delay_s=1000), close_grace_s=0.1, **options) as client:
                yield client, await peers.receive()
                over.set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_it_has_left_when_publish_returns(version: Version) -> None:
    async with by_socket(version=version) as (client, peer):
        for payload, retain in ((b"", True), (b"x" * 64, False), (b"y" * 200, False), (b"z" * 20_000, True)):
            assert await client.publish("grüße/1", payload, retain=retain) == ReasonCode.SUCCESS
            assert client.core.idle
            assert await peer.receive() == Publish("grüße/1", payload, 0, retain)
        assert client.statistics()["published"] == 4


async def test_what_the_socket_does_not_take_goes_before_what_comes_after_it() -> None:
    async with by_socket() as (client, peer), trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(client.publish, "a", b"%d" % number + (b"" if number else LARGE))
            await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(partial(client.publish, "a", b"3", qos=1))
        nursery.start_soon(client.publish, "a", b"4")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert client.statistics()["published"] == 0, "none has left in full"
        seen = []
        for _ in range(5):
            packet = await peer.receive()
            assert isinstance(packet, Publish)
            seen.append(packet.payload[:1])
            if packet.qos:
                await peer.send(PubAck(packet.packet_id))
        assert seen == [b"0", b"1", b"2", b"3", b"4"]
    assert client.statistics()["published"] == 5


async def test_cancelled_when_a_part_has_left_the_rest_follows() -> None:
    async with by_socket() as (client, peer):
        with trio.move_on_after(0.05) as scope:
            await client.publish("a", LARGE)
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.publish, "a", b"next")
            first, second = await peer.receive(), await peer.receive()
        assert first == Publish("a", LARGE)
        assert second == Publish("a", b"next")


@pytest.mark.parametrize("offline", ["raise", "wait"])
async def test_lost_when_a_part_has_left(offline: Literal["raise", "wait"]) -> None:
    outcome: list[object] = []
    async with by_socket() as (client, peer):

        async def publish() -> None:
            try:
                outcome.append(await client.publish("a", LARGE, offline=offline))
            except Offline as error:
                outcome.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await peer.stream.aclose()
    if offline == "raise":
        assert isinstance(outcome[0], Offline)
    else:
        assert outcome == [ReasonCode.SUCCESS], "at most once: it is not sent again"


async def test_what_the_broker_does_not_take_is_refused_as_ever() -> None:
    async with by_socket(Properties(retain_available=0, maximum_packet_size=100)) as (client, peer):
        with pytest.raises(NotSupported, match="retains no messages"):
            await client.publish("a", b"", retain=True)
        with pytest.raises(PublishRefused):
            await client.publish("a", bytes(100))
        await client.publish("a", bytes(90))
        assert await peer.receive() == Publish("a", bytes(90))


async def test_on_packet_hears_of_it() -> None:
    seen: list[object] = []
    async with by_socket(on_packet=lambda *said: seen.append(said[1])) as (client, peer):
        await client.publish("a", b"1")
        assert await peer.receive() == Publish("a", b"1")
        async with client.pipeline() as pipeline:
            await pipeline.publish("a", b"2")
        assert await peer.receive() == Publish("a", b"2")
    assert [packet for packet in seen if isinstance(packet, Publish)] == [Publish("a", b"1"), Publish("a", b"2")]


async def test_a_pipeline_takes_no_more_than_its_bounds_and_counts_each() -> None:
    async with by_socket() as (client, peer):
        async with client.pipeline(count_max=10) as pipeline:
            for number in range(25):
                await pipeline.publish("a", b"%d" % number)
                assert len(pipeline._under_way) + pipeline._joined <= 10
        assert client.statistics()["published"] == 25
        assert [packet.payload for packet in [await peer.receive() for _ in range(25)] if isinstance(packet, Publish)] == [
            b"%d" % number for number in range(25)
        ]
        with trio.move_on_after(0.5) as scope:
            async with client.pipeline(bytes_max=100_000) as pipeline:
                while True:
                    await pipeline.publish("a", bytes(30_000))
                    assert pipeline._bytes <= 120_000
        assert scope.cancelled_caught, "nobody reads, and the socket is full"
