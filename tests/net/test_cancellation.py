"""Cancelled at any step whatever, a broker's scope ends in bounded time and leaves no task, no socket and no Unix path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio
from trio.testing import MockClock

from broker.config import Config
from broker.net.memory import memory_stream_pair
from broker.net.unix import HAS_UNIX
from broker.opening import open_broker
from tests.net.mqtt import Client

STEPS_MAX = 400


class CancelAt(trio.abc.Instrument):
    """Cancels the scope before the n-th step of any task."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def program(path: Path) -> None:
    config = Config(shutdown_grace_s=1)
    listeners = ["mqtt://127.0.0.1:0", f"unix://{path}"][: 2 if HAS_UNIX else 1]
    async with open_broker(config, listeners=listeners) as hub, trio.open_nursery() as nursery:
        ours, theirs = memory_stream_pair(64)
        nursery.start_soon(hub.attach, theirs)
        client = Client(ours)
        await client.connect("a")
        await client.subscribe("x", 1)
        async with hub.subscribe("#") as messages:
            await hub.publish("x", b"y" * 200, qos=1)
            await messages.receive()
            await client.receive()
        if HAS_UNIX:
            async with await trio.open_unix_socket(str(path)) as stream:
                await Client(stream).connect("b")
        await client.stream.aclose()


async def test_cancelled_at_every_step(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.01
    path = tmp_path / "mqtt.sock"

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    await program(path)  # what is made once for all is made now
    tasks, fds = trio.lowlevel.current_statistics().tasks_living, descriptors()
    for step in range(1, STEPS_MAX):
        began = trio.current_time()
        with trio.CancelScope() as scope:
            instrument = CancelAt(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await program(path)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert trio.current_time() - began <= 2, f"step {step}"
        assert trio.lowlevel.current_statistics().tasks_living == tasks, f"step {step}"
        assert descriptors() == fds, f"step {step}"
        assert not path.exists(), f"step {step}"
        if not scope.cancel_called:
            assert step > 20  # there were that many to choose from
            return
    raise AssertionError("the program has more steps than that")
