"""Runs of PUBLISH frames, made and checked by columns: what differs between the frames of a run stands at the same place of each.

A payload begins with a stamp, big-endian: token (which run of the tool; 4 bytes), publisher (2), sequence number (6), time in ns (8). The
rest is filler. Only the lower four bytes of the sequence number go by columns, so no run crosses a multiple of 2**32.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Final

from broker.wire.codec import encode
from broker.wire.packets import Properties, Publish

STAMP_BYTES: Final = 20
TOKEN_BYTES: Final = 4
_PUBLISHER, _SEQUENCE, _LOW, _TIME = 4, 6, 8, 12  # offsets in the stamp
SEQUENCES_PER_RUN: Final = 1 << 32
_SWAP: Final = sys.byteorder == "little"


def big_endian(typecode: str, numbers: Iterable[int]) -> bytes:
    """Of `array`'s types: "H" 2, "I" 4, "Q" 8 bytes each."""
    packed = array(typecode, numbers)
    if _SWAP:
        packed.byteswap()
    return packed.tobytes()


def numbers_of(typecode: str, packed: bytes | bytearray) -> array[int]:
    found = array(typecode)
    found.frombytes(packed)
    if _SWAP:
        found.byteswap()
    return found


def put_column(frames: bytearray, at: int, size: int, packed: bytes | bytearray, width: int) -> None:
    """Number i of `width` bytes to place `at` of frame i; all frames are `size` long."""
    for byte in range(width):
        frames[at + byte :: size] = packed[byte::width]


def get_column(frames: bytes, at: int, size: int, width: int) -> bytearray:
    packed = bytearray(len(frames) // size * width)
    for byte in range(width):
        packed[byte::width] = frames[at + byte :: size]
    return packed


def same_prefix(data: bytes, start: int, stop: int, stride: int, byte: int) -> int:
    """How many of data[start:stop:stride] are `byte`, from the first one on."""
    column = data[start:stop:stride]
    return len(column) - len(column.lstrip(bytes((byte,))))


def payload_of(token: bytes, publisher: int, payload_bytes: int) -> bytes:
    """With sequence number and time 0."""
    filler = bytes(97 + place % 26 for place in range(payload_bytes - STAMP_BYTES))
    return token + publisher.to_bytes(2, "big") + bytes(14) + filler


class Maker:
    """The frames of one publisher."""

    def __init__(self, topic: str, payload: bytes, qos: int, version: int, properties: Properties) -> None:
        self._frame = encode(Publish(topic, payload, qos, packet_id=1 if qos else 0, properties=properties), version)
        self.size = len(self._frame)
        self._stamp_at = self.size - len(payload)
        self._id_at = self._frame.index(topic.encode()) + len(topic.encode()) if qos else 0

    def make(self, first: int, times_ns: int | array[int], count: int, ids: array[int] | None) -> bytearray:
        """`count` frames with the sequence numbers first, first + 1, ...; one time for all, or one each; packet ids at QoS 1 and 2.

        first to first + count - 1 cross no multiple of SEQUENCES_PER_RUN.
        """
        frame = bytearray(self._frame)
        at = self._stamp_at
        size = self.size
        frame[at + _SEQUENCE : at + _TIME] = first.to_bytes(6, "big")
        if isinstance(times_ns, int):
            frame[at + _TIME : at + _TIME + 8] = times_ns.to_bytes(8, "big")
        if count == 1:
            if not isinstance(times_ns, int):
                frame[at + _TIME : at + _TIME + 8] = times_ns[0].to_bytes(8, "big")
            if ids is not None:
                frame[self._id_at : self._id_at + 2] = ids[0].to_bytes(2, "big")
            return frame
        frames = frame * count
        low = first % SEQUENCES_PER_RUN
        put_column(frames, at + _LOW, size, big_endian("I", range(low, low + count)), 4)
        if not isinstance(times_ns, int):
            put_column(frames, at + _TIME, size, big_endian("Q", times_ns), 8)
        if ids is not None:
            put_column(frames, self._id_at, size, big_endian("H", ids), 2)
        return frames


class Run:
    """`count` frames that came one after the other: one publisher, sequence numbers first, first + 1, ..."""

    __slots__ = ("count", "first", "ids", "publisher", "stop", "times_ns")

    def __init__(self, publisher: int, first: int, count: int, times_ns: list[tuple[int, int]], ids: bytes | bytearray, stop: int) -> None:
        self.publisher = publisher
        self.first = first
        self.count = count
        self.times_ns = times_ns
        """(when they were sent, how many of them)."""
        self.ids = ids
        """Two bytes each; empty at QoS 0."""
        self.stop = stop
        """Where in the data the run ends."""


class Checker:
    """Recognises the frames of one subscriber once one of them has been decoded: then every byte is compared, none is parsed."""

    def __init__(self, token: bytes, payload_bytes: int) -> None:
        self._token = token
        self._filler = payload_of(token, 0, payload_bytes)[STAMP_BYTES:]
        self._payload_bytes = payload_bytes
        self._frame = b""
        """One of them; its numbers mean nothing."""
        self._size = self._id_at = self._stamp_at = 0
        self._guess = 1

    def publisher_of(self, payload: bytes) -> tuple[int, int, int] | None:
        """(publisher, sequence number, time) of a decoded message, or None if it is not of this run or not as it was published."""
        if len(payload) != self._payload_bytes or payload[:TOKEN_BYTES] != self._token or payload[STAMP_BYTES:] != self._filler:
            return None
        return int.from_bytes(payload[4:6], "big"), int.from_bytes(payload[6:12], "big"), int.from_bytes(payload[12:20], "big")

    def learn(self, frame: bytes, packet: Publish) -> None:
        """That is how a frame looks here: `frame` was decoded to `packet`."""
        self._frame = frame
        self._size = len(frame)
        self._stamp_at = len(frame) - len(packet.payload)
        self._id_at = frame.index(packet.topic.encode(), 4) + len(packet.topic.encode()) if packet.qos else 0
        self._guess = 1

    def match(self, data: bytes, position: int) -> Run | None:
        """The run at `position`, or None if what stands there has to be decoded."""
        size = self._size
        if not size or data[position] != self._frame[0]:
            return None
        room = (len(data) - position) // size
        count = min(room, self._guess)
        while count > 1:
            run = self._match_many(data, position, count)
            if run is not None:
                self._guess = count * 2
                return run
            count //= 2
            self._guess = max(1, count)
        if room and self._guess == 1:
            self._guess = 2
        return self._match_one(data, position) if room else None

    def _match_one(self, data: bytes, position: int) -> Run | None:
        at = position + self._stamp_at
        stop = position + self._size
        frame = bytearray(self._frame)
        publisher = data[at + _PUBLISHER : at + _SEQUENCE]
        sequence = data[at + _SEQUENCE : at + _TIME]
        time = data[at + _TIME : at + STAMP_BYTES]
        frame[self._stamp_at + _PUBLISHER : self._stamp_at + STAMP_BYTES] = publisher + sequence + time
        ids = b""
        if self._id_at:
            ids = data[position + self._id_at : position + self._id_at + 2]
            frame[self._id_at : self._id_at + 2] = ids
        if data[position:stop] != frame:
            return None
        return Run(int.from_bytes(publisher, "big"), int.from_bytes(sequence, "big"), 1, [(int.from_bytes(time, "big"), 1)], ids, stop)

    def _match_many(self, data: bytes, position: int, count: int) -> Run | None:
        """What has to stand there if these are `count` frames in a row, compared with what does."""
        size = self._size
        at = self._stamp_at
        stop = position + count * size
        last = (count - 1) * size + at
        first = int.from_bytes(data[position + at + _SEQUENCE : position + at + _TIME], "big")
        low = first % SEQUENCES_PER_RUN
        if low + count > SEQUENCES_PER_RUN:
            return None
        # The last one tells most often that it is no run, and is quickly looked at.
        expected = data[position + at + _PUBLISHER : position + at + _SEQUENCE] + (first + count - 1).to_bytes(6, "big")
        if data[position + last + _PUBLISHER : position + last + _TIME] != expected:
            return None
        found = data[position:stop]
        frame = bytearray(self._frame)
        frame[at + _PUBLISHER : at + STAMP_BYTES] = found[at + _PUBLISHER : at + STAMP_BYTES]
        frames = frame * count
        put_column(frames, at + _LOW, size, big_endian("I", range(low, low + count)), 4)
        ids: bytes | bytearray = b""
        if self._id_at:
            ids = get_column(found, self._id_at, size, 2)
            put_column(frames, self._id_at, size, ids, 2)
        times = [(int.from_bytes(found[at + _TIME : at + STAMP_BYTES], "big"), count)]
        if found[at + _TIME : at + STAMP_BYTES] != found[last + _TIME : last + STAMP_BYTES]:
            packed = get_column(found, at + _TIME, size, 8)
            put_column(frames, at + _TIME, size, packed, 8)
            times = _grouped(numbers_of("Q", packed))
        if frames != found:
            return None
        return Run(int.from_bytes(frame[at + _PUBLISHER : at + _SEQUENCE], "big"), first, count, times, ids, stop)


def _grouped(times: array[int]) -> list[tuple[int, int]]:
    """(time, how many in a row have it)."""
    groups: list[tuple[int, int]] = []
    start = 0
    while start < len(times):
        time = times[start]
        # A batch has one time; `array.count` would look at all, so the end is felt for.
        stop = start + 1
        while stop < len(times) and times[stop] == time:
            stop += 1
        groups.append((time, stop - start))
        start = stop
    return groups


LOOKAHEAD: Final = 512


def acknowledgement_run(data: bytes, position: int, kind: int) -> bytes:
    """The packet ids, two bytes each, of the four-byte acknowledgements of this kind that stand at `position` in a row, reason 0x00."""
    stop = position + min(LOOKAHEAD, (len(data) - position) // 4) * 4
    stop = position + 4 * same_prefix(data, position, stop, 4, kind)
    stop = position + 4 * same_prefix(data, position + 1, stop, 4, 2)
    if stop == position:
        return b""
    found = data[position:stop]
    return found[2:4] if len(found) == 4 else bytes(get_column(found, 2, 4, 2))


def acknowledgements(kind: int, ids: bytes | bytearray) -> bytes:
    """One of four bytes for each packet id."""
    if len(ids) == 2:
        return bytes((kind, 2)) + ids
    frames = bytearray(bytes((kind, 2, 0, 0)) * (len(ids) // 2))
    put_column(frames, 2, 4, ids, 2)
    return bytes(frames)
