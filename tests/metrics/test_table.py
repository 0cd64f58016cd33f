"""The one table: all that is counted has a row, no name comes twice, and a name says what its number is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.metrics.sys_topics import COUNTS, LOADS
from broker.metrics.table import NUMBERS, OF_BRIDGES, Number
from broker.opening import open_broker

NOT_ON_THE_PAGE = {
    "publish_dropped": "the sum of messages_dropped",
    "refused_connections_count": "the sum of connections_refused",
    "memory_bytes": "the sum of memory",
    "uptime_s": "time() - start_time",
}


async def test_every_statistic_has_a_row(tmp_path: Path) -> None:
    async with open_broker(store=tmp_path / "store") as hub:
        assert [number.key for number in NUMBERS if not number.everywhere] == list(
            dict.fromkeys(number.key for number in NUMBERS if not number.everywhere)
        )
        assert {number.key for number in NUMBERS if not number.everywhere} == set(hub.statistics())
    async with open_broker() as hub:
        assert {number.key for number in NUMBERS if number.key.startswith("store_")}.isdisjoint(hub.statistics())


def test_what_is_not_on_the_page_is_there_in_another_way() -> None:
    assert {number.key for number in NUMBERS if number.name is None} == NOT_ON_THE_PAGE.keys()


@pytest.mark.parametrize("number", [number for number in (*NUMBERS, *OF_BRIDGES) if number.name is not None], ids=lambda number: number.key)
def test_a_name_says_what_it_is(number: Number) -> None:
    assert re.fullmatch(r"mqtt_broker_[a-z]+(_[a-z]+)*", number.family)
    assert not re.search(r"_(total|count|info|sum|bucket|created)$", number.family)  # which the format adds, or has other uses for
    assert number.unit == ("bytes" if "bytes" in number.key else "seconds" if number.key.endswith("_s") else "")
    assert re.fullmatch(r"[A-Z].*\.", number.help)


def test_what_has_one_name_differs_by_its_label_alone() -> None:
    seen: dict[str, Number] = {}
    places = set()
    for number in (*NUMBERS, *OF_BRIDGES):
        if number.name is None:
            continue
        assert (number.family, number.label) not in places
        places.add((number.family, number.label))
        first = seen.setdefault(number.family, number)
        if first is not number:
            assert first.label is not None
            assert number.label is not None
            assert (first.kind, first.help, first.unit, first.label[0]) == (number.kind, number.help, number.unit, number.label[0])


def test_no_topic_of_sys_comes_twice() -> None:
    assert sum(len(number.topics) for number in NUMBERS) == len(COUNTS)
    assert sum(len(number.load) for number in NUMBERS) == len(LOADS)
    assert all(number.kind == "counter" for number in NUMBERS if number.load)
