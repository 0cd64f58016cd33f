"""One client over real sockets and memory streams, on an engine that only relays: writes, ends, pauses, faults."""

from __future__ import annotations

import logging
import socket
import struct
import sys

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.net.listener import Listener
from broker.net.memory import MemoryStream, memory_stream_pair
from broker.net.transport import SocketTransport, StreamTransport
from tests.net.relay import RelayEngine, attach, dial, receive_all, receive_exactly, running, wait_until_gone
from tests.systems import quick_system_calls, resets_are_told

MEGABYTES = b"0123456789abcdef" * 65_536 * 4


# ---- writing -------------------------------------------------------------------------------------------------------------


async def test_what_one_sends_all_receive() -> None:
    async with running(RelayEngine()) as server:
        one, other = await dial(server), await dial(server)
        inside = await attach(server)
        await one.send_all(b"hello")
        for stream in (one, other, inside):
            assert await receive_exactly(stream, 5) == b"hello"


@quick_system_calls
async def test_partial_writes_arrive_whole_and_in_order() -> None:
    engine = RelayEngine()
    async with running(engine, Listener(port=0, send_buffer_bytes=4096)) as server:
        slow = await dial(server, receive_buffer_bytes=4096)
        await wait_all_tasks_blocked()
        engine.send(engine.links[0], MEGABYTES)
        server.flush()
        assert len(server.writing) == 1  # the socket was full, so a writer task took over
        assert await receive_exactly(slow, len(MEGABYTES)) == MEGABYTES
        await wait_all_tasks_blocked()
        assert not server.writing
        engine.send(engine.links[0], b"again")
        server.flush()
        assert await receive_exactly(slow, 5) == b"again"


async def test_a_client_has_a_nursery_from_the_moment_that_it_needs_one() -> None:
    engine = RelayEngine()
    async with running(engine, Listener(port=0, send_buffer_bytes=4096)) as server:
        slow = await dial(server, receive_buffer_bytes=4096)
        await wait_all_tasks_blocked()  # so that it is the engine's first
        quick = await dial(server)
        await wait_all_tasks_blocked()
        await quick.send_all(b"hello")
        assert await receive_exactly(slow, 5) == await receive_exactly(quick, 5) == b"hello"
        await wait_all_tasks_blocked()
        assert [connection.nursery for connection in server.connections] == [None, None]
        engine.send(engine.links[0], MEGABYTES)
        server.flush()
        await wait_all_tasks_blocked()
        (full,) = server.writing
        (other,) = server.connections - server.writing
        assert full.nursery is not None
        assert other.nursery is None
        other.cancel()
        assert await receive_all(quick) == b""
        await wait_all_tasks_blocked()
        full.cancel()
        await wait_until_gone(server)


async def test_a_stream_that_never_reads_holds_up_nobody() -> None:
    engine = RelayEngine()
    async with running(engine, grace_s=0) as server:
        await attach(server, 10)
        quick = await attach(server)
        await quick.send_all(b"x" * 1000)
        assert await receive_exactly(quick, 1000) == b"x" * 1000
        assert len(engine.links[0].out) > 0


async def test_more_links_than_one_flush_serves() -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        streams = [await dial(server) for _ in range(300)]
        while len(engine.links) < 300:
            await wait_all_tasks_blocked()
        await streams[0].send_all(b"!")
        for stream in streams:
            assert await receive_exactly(stream, 1) == b"!"
            await stream.aclose()


# ---- ending --------------------------------------------------------------------------------------------------------------


async def test_half_closed_peer_gets_what_was_queued() -> None:
    engine = RelayEngine()
    async with running(engine, Listener(port=0, send_buffer_bytes=4096)) as server:
        peer = await dial(server, receive_buffer_bytes=4096)
        await peer.send_all(MEGABYTES[:100_000])
        await peer.send_eof()
        assert await receive_all(peer) == MEGABYTES[:100_000]
        assert len(engine.detached) == 1


async def test_half_closed_peer_that_reads_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    engine = RelayEngine()
    async with running(engine, close_timeout_s=7) as server:
        peer = await attach(server, 10)
        await peer.send_all(b"x" * 9)
        engine.send(engine.links[0], b"x" * 100)
        await peer.send_eof()
        began = trio.current_time()
        await wait_until_gone(server)
        assert trio.current_time() - began == 7


async def test_our_last_words_arrive_despite_unread_input() -> None:
    """Closing with input unread makes the kernel send RST, which destroys what the peer has not read yet."""
    engine = RelayEngine()
    async with running(engine) as server:
        peer = await dial(server)
        await peer.send_all(b"!close")
        # More than one read, still under way when we close.
        await peer.send_all(MEGABYTES[:300_000])
        assert await receive_all(peer) == b"bye"
        await peer.send_eof()
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert engine.received == b""


async def test_a_peer_that_does_not_close_after_us_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    engine = RelayEngine()
    async with running(engine, close_timeout_s=3) as server:
        peer = await attach(server)
        await peer.send_all(b"!close")
        assert await receive_all(peer) == b"bye"
        began = trio.current_time()
        await wait_until_gone(server)
        assert trio.current_time() - began == 3


async def test_a_stream_that_cannot_half_close_is_closed_both_ways() -> None:
    class Plain(trio.abc.Stream):
        def __init__(self, inner: MemoryStream) -> None:
            self.inner = inner

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await self.inner.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return await self.inner.receive_some(max_bytes)

        async def aclose(self) -> None:
            await self.inner.aclose()

    async with running(RelayEngine()) as server:
        ours, theirs = memory_stream_pair()
        assert server.admit(StreamTransport(Plain(theirs)), "x") is not None
        await ours.send_all(b"!close")
        assert await receive_all(ours) == b"bye"
        await wait_all_tasks_blocked()
        assert not server.connections


async def test_a_reset_ends_only_that_connection() -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        rude, polite = await dial(server), await dial(server)
        await polite.send_all(b"hello")
        await receive_exactly(rude, 5)
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await rude.aclose()
        await polite.send_all(b"still here")
        assert await receive_exactly(polite, 15) == b"hellostill here"
        while len(server.connections) > 1:
            await trio.lowlevel.checkpoint()
        assert len(engine.detached) == 1


async def test_a_crash_ends_one_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        bad, good = await dial(server), await dial(server)
        with caplog.at_level(logging.ERROR, "broker"):
            await bad.send_all(b"!crash")
            assert await receive_all(bad) == b""
        assert "a fault on purpose" in caplog.text
        assert "Traceback" in caplog.text
        await good.send_all(b"alive")
        assert await receive_exactly(good, 5) == b"alive"
        assert len(engine.detached) == 1


async def test_a_fault_while_flushing_to_another_is_the_others(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        one, other = await attach(server), await attach(server)
        broken = engine.links[1]
        original = engine.data_to_send

        def data_to_send(link: object, limit: int = 1) -> bytes:
            if link is broken:
                raise KeyError("a fault on purpose")
            return original(link, limit)  # type: ignore[arg-type]  # the same link

        monkeypatch.setattr(engine, "data_to_send", data_to_send)
        with caplog.at_level(logging.ERROR, "broker"):
            await one.send_all(b"hello")
            assert await receive_exactly(one, 5) == b"hello"
            assert await receive_all(other) == b""
        assert "a fault on purpose" in caplog.text


# ---- pausing -------------------------------------------------------------------------------------------------------------


async def test_a_paused_link_is_not_read_until_it_is_named_again() -> None:
    engine = RelayEngine(relays=False)
    async with running(engine) as server:
        peer = await attach(server)
        await peer.send_all(b"!pause")
        await wait_all_tasks_blocked()
        await peer.send_all(b"later")
        await wait_all_tasks_blocked()
        assert engine.received == b""
        engine.unpause(engine.links[0])
        server.flush()
        await wait_all_tasks_blocked()
        assert engine.received == b"later"


def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@resets_are_told
async def test_a_paused_link_that_breaks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.net.pausing.PAUSED_LOOK_S", 0.01)
    engine = RelayEngine()
    async with running(engine) as server:
        peer = await dial(server)
        await peer.send_all(b"!pause")
        while not (engine.links and engine.links[0].paused):
            await trio.lowlevel.checkpoint()
        link = engine.links[0]
        reset(peer)
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert engine.detached == [link]
        assert not engine.received


async def test_what_came_before_the_end_of_a_paused_link_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.net.pausing.PAUSED_LOOK_S", 0.001)
    engine = RelayEngine(relays=False)
    async with running(engine) as server:
        peer = await dial(server)
        await peer.send_all(b"!pause")
        while not (engine.links and engine.links[0].paused):
            await trio.lowlevel.checkpoint()
        link = engine.links[0]
        await peer.send_all(b"later")
        await peer.send_eof()
        for _ in range(20):  # it is looked at, and nothing is to be seen
            await trio.sleep(0.001)
        assert server.connections
        engine.unpause(link)
        server.flush()
        assert await receive_all(peer) == b""
        assert engine.received == b"later"


async def test_what_came_before_the_end_of_a_paused_unix_socket_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the end is to be seen at once, though the last messages have not been read."""
    monkeypatch.setattr("broker.net.pausing.PAUSED_LOOK_S", 0.001)
    engine = RelayEngine(relays=False)
    ours, theirs = socket.socketpair()
    async with running(engine) as server:
        assert server.admit(SocketTransport(theirs), "unix") is not None
        ours.send(b"!pause")
        while not (engine.links and engine.links[0].paused):
            await trio.lowlevel.checkpoint()
        link = engine.links[0]
        ours.send(b"later")
        ours.close()
        for _ in range(20):
            await trio.sleep(0.001)
        assert server.connections
        engine.unpause(link)
        server.flush()
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert engine.received == b"later"


@resets_are_told
async def test_the_transport_knows_what_the_peer_has_not_taken() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        for transport in (SocketTransport(ours), StreamTransport(memory_stream_pair()[0], ours)):
            assert not transport.is_gone()
            assert transport.bytes_underway() == 0
            ours.send(b"x" * 1000)
            if sys.platform == "linux":
                assert transport.bytes_underway() >= 1000
            theirs.recv(1000)
            assert transport.bytes_underway() == 0
        ours.send(b"x")
    assert transport.is_gone()  # for it has not read that
    ours.close()
    assert not transport.is_gone()
    assert transport.bytes_underway() == 0
    assert StreamTransport(memory_stream_pair()[0]).bytes_underway() == 0


async def test_a_paused_link_can_be_closed() -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        peer = await attach(server)
        await peer.send_all(b"!pause")
        await wait_all_tasks_blocked()
        engine.close(engine.links[0], b"bye")
        server.flush()
        assert await receive_all(peer) == b"bye"


# ---- reading in turns ----------------------------------------------------------------------------------------------------


async def test_reads_shrink_while_many_stream() -> None:
    engine = RelayEngine(relays=False)
    async with running(engine) as server:
        assert server._commons.read_bytes == 65_536
        server._commons.change_streaming(32)
        assert server._commons.read_bytes == 16_384
        peer = await dial(server)
        await peer.send_all(MEGABYTES[:500_000])
        await peer.send_eof()
        assert await receive_all(peer) == b""
        assert engine.received == MEGABYTES[:500_000]
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert server._commons.streaming_count == 32  # a closed connection streams no more
