"""Packet ids in a row: as numbers, as columns of bytes, and as the acknowledgements that they are going to lead to.

An acknowledgement that says nothing but its id is four bytes. So where ids are mostly acknowledged as they came, one after the
other, all those bytes are known beforehand: what comes is compared with them in one step, and what is answered is the same for
all sessions that use these ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack, unpack
from typing import Final

_NUMBERS: Final = pack(">65536H", *range(65_536))
"""All packet ids in turn, as they stand in packets."""
_NUMBERS_DOWN: Final = pack(">65536H", *range(65_535, -1, -1))
"""The same from the last to the first: a client that takes the id that was freed last uses them so every other time."""


class PacketIds:
    __slots__ = ("_acknowledgements", "_lower", "_upper", "count", "largest", "numbers", "smallest")

    def __init__(self, numbers: Sequence[int], smallest: int, largest: int, upper: bytes, lower: bytes) -> None:
        """upper, lower: the first byte of each, and the second; of a single one they are not asked for."""
        self.numbers = numbers
        """A `range` where each is the one after the last, or before it."""
        self.count = len(numbers)
        self.smallest = smallest
        self.largest = largest
        self._upper = upper
        self._lower = lower
        self._acknowledgements: list[bytes] | None = None

    def acknowledgements(self, kind: int) -> bytes:
        """All of them of one kind (its first byte), in order, without a reason code; made once."""
        if self.count == 1:
            return bytes((kind, 2, self.smallest >> 8, self.smallest & 0xFF))
        made = self._acknowledgements
        if made is None:
            changed = bytearray(bytes((kind, 2, 0, 0)) * self.count)
            self.write(changed, 2, 4)
            made = self._acknowledgements = [bytes(changed)]
        for frames in made:
            if frames[0] == kind:
                return frames
        changed = bytearray(made[0])
        changed[0::4] = bytes((kind,)) * self.count
        frames = bytes(changed)
        made.append(frames)
        return frames

    def acknowledgements_of(self, kind: int, reason: int) -> bytes:
        """The same with a reason code: five bytes each."""
        frames = bytearray(bytes((kind, 3, 0, 0, reason)) * self.count)
        self.write(frames, 2, 5)
        return bytes(frames)

    def write(self, frames: bytearray, position: int, step: int) -> None:
        """Put them at `position`, and every `step` bytes from there."""
        if self.count == 1:
            frames[position] = self.smallest >> 8
            frames[position + 1] = self.smallest & 0xFF
        else:
            frames[position::step] = self._upper
            frames[position + 1 :: step] = self._lower

    def fields(self) -> bytes:
        """All of them in order, two bytes each."""
        fields = bytearray(2 * self.count)
        self.write(fields, 0, 2)
        return bytes(fields)

    def part(self, start: int, stop: int) -> PacketIds:
        numbers = self.numbers[start:stop]
        part = PacketIds(numbers, min(numbers), max(numbers), self._upper[start:stop], self._lower[start:stop])
        if self._acknowledgements is not None:
            part._acknowledgements = [frames[4 * start : 4 * stop] for frames in self._acknowledgements]
        return part

    def has(self, packet_id: int) -> bool:
        return self.smallest <= packet_id <= self.largest and packet_id in self.numbers

    def are_different(self) -> bool:
        """Each from all others."""
        return isinstance(self.numbers, range) or len(set(self.numbers)) == self.count

    def meet(self, others: PacketIds) -> bool:
        """Is one of them among the others?"""
        if self.smallest > others.largest or others.smallest > self.largest:
            return False
        return (isinstance(self.numbers, range) and isinstance(others.numbers, range)) or not set(self.numbers).isdisjoint(others.numbers)


def packet_ids(data: bytes, position: int, step: int, count: int) -> PacketIds:
    """Those of two bytes that stand at `position` and every `step` bytes from there."""
    first = data[position] << 8 | data[position + 1]
    if count == 1:
        return single(first)
    stop = position + step * (count - 1) + 2
    upper = data[position:stop:step]
    lower = data[position + 1 : stop : step]
    pairs = bytearray(2 * count)
    pairs[0::2] = upper
    pairs[1::2] = lower
    if _NUMBERS.startswith(pairs, 2 * first):
        return PacketIds(range(first, first + count), first, first + count - 1, upper, lower)
    if _NUMBERS_DOWN.startswith(pairs, 2 * (65_535 - first)):
        return PacketIds(range(first, first - count, -1), first - count + 1, first, upper, lower)
    numbers = unpack(f">{count}H", pairs)
    return PacketIds(numbers, min(numbers), max(numbers), upper, lower)


def single(packet_id: int) -> PacketIds:
    return PacketIds([packet_id], packet_id, packet_id, b"", b"")


def in_turn(first: int, count: int) -> PacketIds:
    """So many, from the first on."""
    pairs = _NUMBERS[2 * first : 2 * (first + count)]
    return PacketIds(range(first, first + count), first, first + count - 1, pairs[0::2], pairs[1::2])


def any_of(numbers: list[int]) -> PacketIds:
    """These."""
    pairs = pack(f">{len(numbers)}H", *numbers)
    return PacketIds(numbers, min(numbers), max(numbers), pairs[0::2], pairs[1::2])
