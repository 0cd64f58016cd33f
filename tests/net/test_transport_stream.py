"""A transport as a stream: all that a library which awaits it may meet."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.net.transport import SocketTransport
from broker.net.transport_stream import TransportStream
from tests.systems import resets_are_told


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[TransportStream, trio.SocketStream]]:
    """(ours, the peer's)."""
    async with trio.open_nursery() as nursery:
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        theirs = trio.SocketStream(trio.socket.socket())
        nursery.start_soon(theirs.socket.connect, listener.getsockname())
        connected, _ = await listener.accept()
        listener.close()
    ours = TransportStream(SocketTransport(socket.socket(fileno=connected.detach())))
    async with ours, theirs:
        yield ours, theirs


async def test_all_of_it_arrives_though_the_socket_is_full() -> None:
    data = os.urandom(5_000_000)
    async with joined() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, data)
        await wait_all_tasks_blocked()
        found = bytearray()
        while len(found) < len(data):
            found += await theirs.receive_some(100_000)
        assert found == data
        await ours.wait_send_all_might_not_block()


async def test_what_comes_and_its_end() -> None:
    async with joined() as (ours, theirs):
        await theirs.send_all(b"x")
        assert await ours.receive_some(5) == b"x"
        await theirs.send_eof()
        assert await ours.receive_some() == b""


@resets_are_told
async def test_a_reset_breaks_it_both_ways() -> None:
    async with joined() as (ours, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await theirs.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"x")


async def test_closed_it_ends_who_waits_and_refuses_who_comes() -> None:
    async def read(stream: TransportStream) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    async with joined() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, ours)
            await wait_all_tasks_blocked()
            await ours.aclose()
        assert await theirs.receive_some() == b""
        await read(ours)
        for verb in (partial(ours.send_all, b"x"), ours.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await verb()


async def test_closing_does_not_wait_though_it_is_cancelled() -> None:
    async with joined() as (ours, theirs):
        await trio.aclose_forcefully(ours)
        assert await theirs.receive_some() == b""
