"""The packet ids that are in one state of their exchange, with what is kept for each, in the order in which they came into it.

Ids that came in a row mostly leave in the same row, so a run of them is one entry: to take it in and to let it go costs the same
for six messages or a hundred. It is taken apart as soon as one of its ids is dealt with by itself; so what stands singly is always
older than the runs, and nobody outside needs to know of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack
from typing import Final, Generic, TypeVar

from broker.core.packet_ids import PacketIds
from broker.core.runs import alike

RUN_COUNT_MIN: Final = 6
"""Fewer are as cheap one by one, if no longer run is before them."""
RUNS_COUNT_MAX: Final = 32
"""More of them at once would be looked through for long whenever ids are to be new."""

V = TypeVar("V")


class IdTable(Generic[V]):
    """Read like a dict."""

    __slots__ = ("runs", "singles")

    def __init__(self) -> None:
        # Most sessions never have one: so they have neither a dict nor a list.
        self.singles: dict[int, V] | None = None
        """Those that are by themselves; older than the runs, so they leave first."""
        self.runs: list[tuple[PacketIds, V]] | None = None
        """None when there is none."""

    # ---- one by one ----

    def __len__(self) -> int:
        count = 0 if self.singles is None else len(self.singles)
        if self.runs is not None:
            for ids, _ in self.runs:
                count += ids.count
        return count

    def __contains__(self, packet_id: int) -> bool:
        return (self.singles is not None and packet_id in self.singles) or (self.runs is not None and self._run_of(packet_id) is not None)

    def __iter__(self) -> Iterator[int]:
        return iter([packet_id for packet_id, _ in self.items()])

    def items(self) -> list[tuple[int, V]]:
        found = [] if self.singles is None else list(self.singles.items())
        if self.runs is not None:
            for ids, value in self.runs:
                found.extend([(packet_id, value) for packet_id in ids.numbers])
        return found

    def values(self) -> list[V]:
        return [value for _, value in self.items()]

    def get(self, packet_id: int) -> V | None:
        if self.singles is not None:
            value = self.singles.get(packet_id)
            if value is not None:
                return value
        run = self._run_of(packet_id)
        return None if run is None else run[1]

    def __setitem__(self, packet_id: int, value: V) -> None:
        self.apart()[packet_id] = value

    def __delitem__(self, packet_id: int) -> None:
        del self.apart()[packet_id]

    def fields(self) -> bytes:
        """All ids in order, two bytes each."""
        found = b"" if not self.singles else pack(f">{len(self.singles)}H", *self.singles)
        if self.runs is not None:
            for ids, _ in self.runs:
                found += ids.fields()
        return found

    def clear(self) -> None:
        self.singles = self.runs = None

    def _run_of(self, packet_id: int) -> tuple[PacketIds, V] | None:
        if self.runs is not None:
            for run in self.runs:
                if run[0].has(packet_id):
                    return run
        return None

    def apart(self) -> dict[int, V]:
        """All of them by themselves: the runs are taken apart."""
        singles = self.singles
        if singles is None:
            singles = self.singles = {}
        if self.runs is not None:
            for ids, value in self.runs:
                singles.update(dict.fromkeys(ids.numbers, value))
            self.runs = None
        return singles

    # ---- many at once ----

    def add(self, ids: PacketIds, value: V) -> None:
        """Different ones, none of which is here."""
        if self.runs is not None:
            self.runs.append((ids, value))  # a short one too: mostly the rest of a window
            if len(self.runs) > RUNS_COUNT_MAX:
                self.apart()
        elif ids.count >= RUN_COUNT_MIN:
            self.runs = [(ids, value)]
        else:
            singles = self.singles
            if singles is None:
                singles = self.singles = {}
            for packet_id in ids.numbers:
                singles[packet_id] = value

    def has_none_of(self, ids: PacketIds) -> bool:
        if self.singles and not self.singles.keys().isdisjoint(ids.numbers):
            return False
        if self.runs is not None:
            for run in self.runs:
                if run[0].meet(ids):
                    return False
        return True

    def take(self, kind: int, data: bytes, position: int) -> PacketIds | None:
        """Let the oldest run go, or the first part of it, if that is what the acknowledgements of this kind that stand there speak of."""
        runs = self.runs
        if runs is None:
            return None
        ids, value = runs[0]
        if ids.numbers[0] != data[position + 2] << 8 | data[position + 3]:
            return None
        expected = ids.acknowledgements(kind)
        if data.startswith(expected, position):
            if len(runs) == 1:
                self.runs = None
            else:
                del runs[0]
            return ids
        count = alike(data, position, 4, 2, 0, 0, ids.count)
        if count < RUN_COUNT_MIN or not expected.startswith(data[position : position + 4 * count]):
            return None
        runs[0] = (ids.part(count, ids.count), value)
        return ids.part(0, count)
