"""Who waits in silence, and that nothing is different for them: they are heard, woken, cancelled and closed as others are."""

from __future__ import annotations

import select

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.net.server import Server
from broker.net.silence import TALKS_COUNT, TALKS_GAP_S
from tests.net.relay import RelayEngine, dial, receive_all, receive_exactly, running

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll: everybody waits with Trio")

MEGABYTES = b"0123456789abcdef" * 262_144


def sleepers(server: Server) -> int:
    return len(server._commons.silence._sleepers)


async def say(stream: trio.SocketStream) -> None:
    """And hear it again."""
    await stream.send_all(b"hello")
    assert await receive_exactly(stream, 5) == b"hello"
    await wait_all_tasks_blocked()


async def test_who_talks_leaves_and_who_falls_silent_comes_back(mock_clock: MockClock) -> None:
    async with running(RelayEngine()) as server:
        stream = await dial(server)
        await wait_all_tasks_blocked()
        assert sleepers(server) == 1
        for _ in range(TALKS_COUNT):
            await say(stream)
            assert sleepers(server) == 1
        await say(stream)
        assert sleepers(server) == 0
        mock_clock.jump(TALKS_GAP_S)
        await say(stream)
        assert sleepers(server) == 1
        await stream.aclose()
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert sleepers(server) == 0


async def test_many_are_heard_at_once() -> None:
    engine = RelayEngine(relays=False)
    async with running(engine) as server:
        streams = [await dial(server) for _ in range(50)]
        await wait_all_tasks_blocked()
        assert sleepers(server) == 50
        for stream in streams:
            await stream.send_all(b"x")
        while len(engine.received) < 50:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert sleepers(server) == 50


async def test_a_cancelled_one_leaves_nothing_behind() -> None:
    async with running(RelayEngine()) as server:
        peer = await dial(server)
        await wait_all_tasks_blocked()
        silence = server._commons.silence
        (descriptor,) = silence._sleepers
        server._clients_scope.cancel()
        await server.wait_ended()
        assert not silence._sleepers
        assert not silence.wake(descriptor)
        assert await receive_all(peer) == b""
        assert not silence.enter(descriptor)  # it is over


async def test_one_that_needs_a_nursery_is_woken() -> None:
    engine = RelayEngine(relays=False)
    async with running(engine) as server:
        peer = await dial(server)
        await wait_all_tasks_blocked()
        assert sleepers(server) == 1
        engine.send(engine.links[0], MEGABYTES)  # more than its socket takes: it needs a writer
        engine.close(engine.links[0], b"bye")
        server.flush()
        assert await receive_all(peer) == MEGABYTES + b"bye"


async def test_one_that_is_cut_is_woken() -> None:
    async with running(RelayEngine()) as server:
        peer = await dial(server)
        await wait_all_tasks_blocked()
        assert sleepers(server) == 1
        server.drop_all()
        assert await receive_all(peer) == b""
        while server.connections:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("missing", ["epoll", "descriptor", "watch"])
async def test_without_it_everybody_waits_with_trio(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError

    if missing == "epoll":
        monkeypatch.delattr(select, "epoll")
    elif missing == "descriptor":
        monkeypatch.setattr(select, "epoll", fails)
    async with running(RelayEngine()) as server:
        if missing == "watch":
            await wait_all_tasks_blocked()

            class Full:
                register = fails

            monkeypatch.setattr(server._commons.silence, "_epoll", Full())
        stream = await dial(server)
        await wait_all_tasks_blocked()
        assert sleepers(server) == 0
        await say(stream)
        await say(stream)
        await stream.aclose()
        monkeypatch.undo()
