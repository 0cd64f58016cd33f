"""Log lines at a bounded rate: one of each kind in ten seconds, with the number of those that were left out."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from broker.net.seldom import INTERVAL_S, Seldom


async def test_one_line_of_each_kind_and_how_many_were_left_out(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    seldom = Seldom(logging.getLogger("broker"))
    for number in range(1000):
        seldom.warn("full", "%d is too many", number)
    seldom.warn("other", "a percent sign: %s", "100 %")
    await trio.sleep(INTERVAL_S)
    seldom.warn("full", "%d is too many", 1000)
    seldom.warn("other", "nothing was left out")
    assert [record.getMessage() for record in caplog.records] == [
        "0 is too many",
        "a percent sign: 100 %",
        "1000 is too many (and 999 more since the last such line)",
        "nothing was left out",
    ]
