"""The in-memory pair obeys Trio's own stream rules, and is bounded."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from broker.net.memory import MemoryStream, memory_stream_pair


async def test_trios_stream_rules() -> None:
    async def make() -> tuple[MemoryStream, MemoryStream]:
        return memory_stream_pair()

    async def make_clogged() -> tuple[MemoryStream, MemoryStream]:
        ours, theirs = memory_stream_pair(1)
        await ours.send_all(b"x")
        await theirs.send_all(b"x")
        return ours, theirs

    await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_send_waits_for_a_reader() -> None:
    ours, theirs = memory_stream_pair(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, b"0123456789")
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        data = b""
        while len(data) < 10:
            data += await theirs.receive_some()
    assert data == b"0123456789"


async def test_closing_wakes_both_sides() -> None:
    ours, theirs = memory_stream_pair(4)
    async with trio.open_nursery() as nursery:

        async def blocked() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await ours.send_all(b"0123456789")

        nursery.start_soon(blocked)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
