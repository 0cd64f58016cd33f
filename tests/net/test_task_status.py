"""What Trio's `nursery.start` hands to `serve` honours the TaskStatus protocol, asked at run time of trio-typing, which can."""

from __future__ import annotations

import pytest
import trio

from broker.hub import Broker
from broker.opening import serve
from tests.net.relay import RelayEngine, make_server

trio_typing = pytest.importorskip("trio_typing", reason="trio-typing is not installed")


async def test_serve_reports_its_broker_through_what_nursery_start_hands_over() -> None:
    async def serve_watched(*, task_status: trio.TaskStatus[Broker]) -> None:
        assert isinstance(task_status, trio_typing.TaskStatus)
        await serve(listeners=["mqtt://127.0.0.1:0"], task_status=task_status)

    async with trio.open_nursery() as nursery:
        hub = await nursery.start(serve_watched)  # RuntimeError if `started` was not called, or called twice
        assert isinstance(hub, Broker)
        assert hub.urls
        nursery.cancel_scope.cancel()


async def test_the_server_below_honours_it_too() -> None:
    server = make_server(RelayEngine())

    async def run_watched(*, task_status: trio.TaskStatus[None]) -> None:
        assert isinstance(task_status, trio_typing.TaskStatus)
        await server.run((), task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run_watched)
        server.begin_shutdown(0)


def test_what_is_no_task_status_is_told_apart() -> None:
    assert isinstance(trio.TASK_STATUS_IGNORED, trio_typing.TaskStatus)
    assert not isinstance(object(), trio_typing.TaskStatus)
