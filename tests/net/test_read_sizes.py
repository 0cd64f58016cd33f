"""How much one read takes: more from who streams large frames, and then up to the end of one of them."""

from __future__ import annotations

import socket

import trio

from broker import open_broker
from broker.net.transport import READ_BYTES, READ_BYTES_CROWDED, READ_BYTES_TOGETHER, Commons, SocketTransport
from broker.wire.packets import Publish
from tests.net.mqtt import Client

CROWD_COUNT = READ_BYTES_TOGETHER // READ_BYTES_CROWDED


def test_who_streams_shares_a_round_evenly() -> None:
    commons = Commons()
    sizes = {0: commons.read_bytes}
    for count in range(1, 4 * CROWD_COUNT):
        commons.change_streaming(1)
        sizes[count] = commons.read_bytes
    together = {count: count * size for count, size in sizes.items()}
    assert sizes[0] == sizes[1] == sizes[READ_BYTES_TOGETHER // READ_BYTES] == READ_BYTES
    assert all(size == READ_BYTES_CROWDED for count, size in sizes.items() if count >= CROWD_COUNT)
    assert all(together[count] <= READ_BYTES_TOGETHER for count in range(CROWD_COUNT + 1))
    # No step: one more takes from the others what it needs itself, and no more.
    assert all(together[count] > READ_BYTES_TOGETHER - count for count in range(READ_BYTES_TOGETHER // READ_BYTES, CROWD_COUNT + 1))
    for count in reversed(range(1, 4 * CROWD_COUNT)):
        assert commons.read_bytes == sizes[count]
        commons.change_streaming(-1)
    assert commons.read_bytes == READ_BYTES


async def test_the_next_read_only_and_not_in_a_crowd() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        commons = Commons()
        transport = SocketTransport(ours, commons)
        theirs.sendall(bytes(READ_BYTES + 3000))
        transport.read_more(1000)
        assert transport.take() == bytes(1000)
        assert transport.streaming
        commons.change_streaming(CROWD_COUNT)
        transport.read_more(1000)
        assert transport.take() == bytes(READ_BYTES_CROWDED)
        commons.change_streaming(-CROWD_COUNT)
        assert transport.take() == bytes(READ_BYTES + 2000 - READ_BYTES_CROWDED)
        assert not transport.streaming
        transport.close()


async def test_large_frames_of_all_sizes_arrive_whole_and_in_order() -> None:
    lengths = [16_384] * 40 + [30_000] * 7 + [90] * 300 + [300_000] * 3 + [4_000] * 50 + [100_000, 16_384] * 4 + [16_384] * 20
    payloads = [b"%d " % number + bytes(length) for number, length in enumerate(lengths)]
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as hub:
        port = int(hub.urls[0].rpartition(":")[2])
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        publisher, subscriber = (Client(stream) for stream in streams)
        await publisher.connect("publisher")
        await subscriber.connect("subscriber")
        await subscriber.subscribe("t")
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                await publisher.send(*[Publish("t", payload) for payload in payloads])

            nursery.start_soon(publish)
            for payload in payloads:
                packet = await subscriber.receive()
                assert isinstance(packet, Publish)
                assert packet.payload == payload
        for stream in streams:
            await stream.aclose()
