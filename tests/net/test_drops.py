"""Messages that were dropped, as the log tells of them: at once, and then added up."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.client import connect
from broker.errors import ConnectRefused
from broker.net.authentication import ConnectRequest
from broker.net.drops import CLIENTS_COUNT_MAX, INTERVAL_S, LINES_COUNT_MAX, Drops
from broker.opening import open_broker
from tests.net.test_hub import attached


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines since it was asked before."""
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records if record.getMessage().startswith("dropped")]
    caplog.clear()
    return lines


async def test_a_slow_client_is_named_with_what_it_lost(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    caplog.set_level(logging.INFO, "broker")
    async with open_broker(outbox_bytes_high=2000, outbox_bytes_max=2000, slow_subscriber_grace_s=0) as hub, trio.open_nursery() as nursery:
        slow = await attached(hub, nursery, buffer_bytes=100)
        await slow.connect("slow")
        await slow.subscribe("t")

        async def flood() -> int:
            before = int(hub.statistics().get("dropped_overflow", 0))
            for _ in range(100):
                await hub.publish("t", b"x" * 100)
            return int(hub.statistics()["dropped_overflow"]) - before

        first = await flood()
        await wait_all_tasks_blocked()
        lines = said(caplog)
        assert len(lines) == 1
        assert re.fullmatch(r"WARNING dropped \d+ messages? for 'slow': it reads too slowly \(overflow\)", lines[0])
        told = int(lines[0].split()[2])
        lost = first + sum([await flood() for _ in range(50)])
        assert said(caplog) == []
        await trio.sleep(INTERVAL_S)
        await wait_all_tasks_blocked()
        assert said(caplog) == [f"WARNING dropped {lost - told} messages for 'slow': it reads too slowly (overflow)"]  # none is left out
        await flood()
        await slow.stream.aclose()
        nursery.cancel_scope.cancel()
    assert any("'slow'" in line for line in said(caplog))  # told at the end, and not thirty seconds after it


async def test_lines_and_memory_are_bounded(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    caplog.set_level(logging.INFO, "broker")
    drops = Drops()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drops.run, None)
        for number in range(CLIENTS_COUNT_MAX * 2):
            drops.note(f"c{number}", "expired", 2 if number == 7 else 1)
        assert len(drops._counts) == CLIENTS_COUNT_MAX
        await wait_all_tasks_blocked()
        lines = said(caplog)
        assert len(lines) == LINES_COUNT_MAX + 1
        assert lines[0] == "INFO dropped 2 messages for 'c7': expired"
        assert lines[1] == "INFO dropped 1 message for 'c0': expired"
        assert lines[-1] == f"INFO dropped {CLIENTS_COUNT_MAX * 2 - LINES_COUNT_MAX} messages for other clients: expired"
        nursery.cancel_scope.cancel()


async def test_a_name_of_64_kib_is_cut_in_every_line(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    """Each connection wrote 300 kB, as escapes that its sender paid a quarter of: 500 of them were 76 MB of log."""
    caplog.set_level(logging.INFO, "broker")
    name = "\n" * 60_000
    longest: Any = {"client_id": name, "username": name, "password": "x"}
    async with open_broker(authenticate=_refuses) as hub:
        with pytest.raises(ConnectRefused):
            async with connect(hub, **longest):
                pytest.fail("entered")
    async with open_broker() as hub, connect(hub, **longest), open_broker(authenticate=_fails) as other:
        hub._log.dropped(name, "expired", 1)
        with pytest.raises(ConnectRefused):
            async with connect(other, **longest):
                pytest.fail("entered")
    lines = [record.getMessage() for record in caplog.records]
    for begin in ("refused ", "connected ", "disconnected ", "dropped ", "the authenticate hook failed"):
        assert any(line.startswith(begin) for line in lines), begin
    assert all("60,000 letters" in line and len(line) < 1500 for line in lines)


async def _refuses(request: ConnectRequest) -> str | None:
    return None


async def _fails(request: ConnectRequest) -> str | None:
    raise RuntimeError
