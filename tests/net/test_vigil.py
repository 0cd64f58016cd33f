"""Staying awake: so many turns of the loop after reads that came quickly, and none otherwise."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.net.vigil import AWAKE_GAP_S, AWAKE_TURNS, Vigil
from tests.net.relay import RelayEngine, attach, receive_exactly, running


class Sleeps(trio.abc.Instrument):
    """How often the loop looked at its sockets without waiting for them."""

    def __init__(self) -> None:
        self.awake = 0

    def before_io_wait(self, timeout: float) -> None:
        self.awake += timeout == 0


async def test_it_turns_so_often_and_sleeps() -> None:
    vigil = Vigil()
    sleeps = Sleeps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vigil.keep)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(sleeps)
        await wait_all_tasks_blocked()
        idle = sleeps.awake
        vigil.begin()
        await wait_all_tasks_blocked()
        assert AWAKE_TURNS <= sleeps.awake - idle <= AWAKE_TURNS + 5
        vigil.begin()
        await trio.lowlevel.checkpoint()
        vigil.begin()  # for so much longer
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(sleeps)
        nursery.cancel_scope.cancel()


class Begun(Vigil):
    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def begin(self) -> None:
        self.at.append(trio.current_time())


async def test_reads_that_come_quickly_begin_it(mock_clock: MockClock) -> None:
    async with running(RelayEngine()) as server:
        server.vigil = vigil = Begun()
        stream = await attach(server)

        async def say() -> None:
            await stream.send_all(b"hello")
            assert await receive_exactly(stream, 5) == b"hello"

        mock_clock.jump(1)
        await say()
        assert not vigil.at
        mock_clock.jump(AWAKE_GAP_S)
        await say()
        assert not vigil.at
        mock_clock.jump(AWAKE_GAP_S / 2)
        await say()
        assert not vigil.at
        mock_clock.jump(AWAKE_GAP_S / 2)
        await say()
        assert vigil.at == [trio.current_time()]
        mock_clock.jump(0.01)
        await say()
        assert len(vigil.at) == 1
