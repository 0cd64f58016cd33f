"""`serve` keeps Trio's TaskStatus protocol: it takes what `nursery.start` hands over, and reports the open broker, once.

trio_typing is here for its run-time check only; trio's own TaskStatus refuses isinstance (docs/decisions/0004-trio-typing.md).
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio

from broker import Broker, serve

trio_typing = pytest.importorskip("trio_typing")


class Recording:
    """What an embedder may pass instead of trio's: anything with a `started`."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.event = trio.Event()

    def started(self, value: Any = None) -> None:
        self.values.append(value)
        self.event.set()


async def test_serve_reports_the_broker_when_it_listens() -> None:
    assert isinstance(inspect.signature(serve).parameters["task_status"].default, trio_typing.TaskStatus)
    recording = Recording()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Broker] = trio.TASK_STATUS_IGNORED) -> None:
            assert isinstance(task_status, trio_typing.TaskStatus)
            await serve(listeners=["mqtt://127.0.0.1:0"], task_status=task_status)

        async def run_with_ours() -> None:
            await serve(listeners=["mqtt://127.0.0.1:0"], task_status=recording)

        hub = await nursery.start(run)
        assert isinstance(hub, Broker)
        nursery.start_soon(run_with_ours)
        await recording.event.wait()
        (other,) = recording.values
        for each in (hub, other):
            host, port = each.urls[0].removeprefix("mqtt://").split(":")
            await (await trio.open_tcp_stream(host, int(port))).aclose()
        nursery.cancel_scope.cancel()
    assert len(recording.values) == 1
