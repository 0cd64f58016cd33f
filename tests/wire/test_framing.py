"""FrameDecoder: cuts, limits, over-long lengths, and that its work and its memory are bounded by what has come."""

from __future__ import annotations

import tracemalloc

import pytest

from broker.errors import IncompletePacket, MalformedPacket, PacketTooLarge
from broker.wire.framing import FrameDecoder

PING = b"\xc0\x00"


def fed(data: bytes, packet_bytes_max: int = 1000) -> FrameDecoder:
    decoder = FrameDecoder(packet_bytes_max)
    decoder.feed(data)
    return decoder


def test_many_frames_in_one_feed() -> None:
    decoder = fed(PING + b"\x30\x03abc" + PING)
    assert [decoder.next_frame() for _ in range(4)] == [(0xC0, b""), (0x30, b"abc"), (0xC0, b""), None]
    assert decoder.buffered_bytes == 0


def test_nothing_was_fed() -> None:
    decoder = FrameDecoder(10)
    assert decoder.next_frame() is None
    decoder.feed(b"")
    assert decoder.next_frame() is None
    decoder.end_of_stream()


def test_an_empty_buffer_takes_the_data_itself() -> None:
    data = PING * 100
    decoder = fed(data)
    assert decoder.data is data
    while decoder.next_frame():
        pass
    more = PING * 50
    decoder.feed(more)
    assert decoder.data is more
    assert decoder.position == 0


def test_reading_in_place() -> None:
    decoder = fed(PING + b"\x30\x01a" + b"\x30\x05ab")
    assert decoder.data[decoder.position :].startswith(PING)
    decoder.position += 2
    assert decoder.next_frame() == (0x30, b"a")
    assert decoder.data[decoder.position :] == b"\x30\x05ab"
    assert decoder.next_frame() is None
    decoder.feed(b"cde" + PING)
    # The whole frame stands in place again, with what followed it.
    assert decoder.data[decoder.position :] == b"\x30\x05abcde" + PING
    assert decoder.next_frame() == (0x30, b"abcde")
    assert decoder.next_frame() == (0xC0, b"")


def test_feeding_twice_without_reading_between() -> None:
    decoder = fed(b"\x30\x05a")
    decoder.feed(b"bcde")
    decoder.feed(PING)
    assert decoder.next_frame() == (0x30, b"abcde")
    assert decoder.next_frame() == (0xC0, b"")


@pytest.mark.parametrize("header", ["30", "3080", "308080", "30808080"])
def test_an_unfinished_header_is_no_frame_and_an_incomplete_packet(header: str) -> None:
    decoder = fed(bytes.fromhex(header))
    assert decoder.next_frame() is None
    with pytest.raises(IncompletePacket, match=f"after {len(header) // 2} bytes"):
        decoder.end_of_stream()


def test_the_stream_ends_inside_a_body() -> None:
    decoder = fed(PING + b"\x30\x05ab")
    assert decoder.next_frame() == (0xC0, b"")
    assert decoder.next_frame() is None
    decoder.feed(b"cd")
    assert decoder.buffered_bytes == 6
    with pytest.raises(IncompletePacket, match="after 6 bytes"):
        decoder.end_of_stream()


@pytest.mark.parametrize("data", ["3080808080", "308080808000", "30FFFFFFFF7F"])
def test_a_fifth_length_byte(data: str) -> None:
    decoder = fed(bytes.fromhex(data), 1 << 30)
    for _ in range(2):  # the stream stays broken
        with pytest.raises(MalformedPacket):
            decoder.next_frame()


def test_a_fifth_length_byte_is_announced_by_the_fourth() -> None:
    decoder = FrameDecoder(1000)
    for byte in b"\x30\x80\x80\x80":
        decoder.feed(bytes((byte,)))
        assert decoder.next_frame() is None
    decoder.feed(b"\x80")
    with pytest.raises(MalformedPacket):
        decoder.next_frame()


@pytest.mark.parametrize(("data", "overlong"), [("C000", False), ("C08000", True), ("C0808000", True), ("C080808000", True), ("308100FF", True)])
def test_lengths_longer_than_need_be(data: str, overlong: bool) -> None:
    decoder = fed(bytes.fromhex(data))
    frame = decoder.next_frame()
    assert frame is not None
    assert frame[1] == (b"\xff" if data.endswith("FF") else b"")
    assert decoder.overlong is overlong
    decoder.feed(PING)
    assert decoder.next_frame() == (0xC0, b"")
    assert not decoder.overlong


def test_overlong_is_of_the_last_whole_frame() -> None:
    decoder = fed(bytes.fromhex("C08000") + b"\x30\x02a")
    assert decoder.next_frame() == (0xC0, b"")
    assert decoder.next_frame() is None
    assert decoder.overlong


def test_the_limit_counts_the_fixed_header() -> None:
    assert fed(b"\x30\x08" + bytes(8), 10).next_frame() == (0x30, bytes(8))
    with pytest.raises(PacketTooLarge, match="11 bytes"):
        fed(b"\x30\x09" + bytes(9), 10).next_frame()
    assert fed(b"\x30\x80\x01" + bytes(128), 131).next_frame() == (0x30, bytes(128))
    with pytest.raises(PacketTooLarge):
        fed(b"\x30\x80\x01" + bytes(128), 130).next_frame()


def test_too_large_is_known_from_the_header() -> None:
    decoder = fed(b"\x30\xff\xff\xff\x7f", 1000)
    with pytest.raises(PacketTooLarge, match="268435460 bytes"):
        decoder.next_frame()
    with pytest.raises(PacketTooLarge):
        decoder.next_frame()


def test_good_frames_come_before_a_bad_one() -> None:
    decoder = fed(PING + PING + b"\x30\xff\xff\xff\x7f", 1000)
    assert decoder.next_frame() == (0xC0, b"")
    assert decoder.next_frame() == (0xC0, b"")
    with pytest.raises(PacketTooLarge):
        decoder.next_frame()


def test_the_limit_may_change_between_frames() -> None:
    decoder = fed(b"\x30\x02ab" + b"\x30\x03abc", 5)
    decoder.packet_bytes_max = 4
    assert decoder.next_frame() == (0x30, b"ab")
    with pytest.raises(PacketTooLarge):
        decoder.next_frame()


def large_frame(size: int) -> bytes:
    assert 16_384 <= size < 268_435_456
    length = bytes((size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21))
    return b"\x30" + length + bytes(range(256)) * (size // 256)


def test_a_large_frame_in_many_parts() -> None:
    frame = large_frame(4 << 20)
    decoder = FrameDecoder(1 << 30)
    stream = PING + frame + PING
    for start in range(0, len(stream), 10_007):
        decoder.feed(stream[start : start + 10_007])
        if start == 0:
            assert decoder.next_frame() == (0xC0, b"")
        if start + 10_007 < len(stream):
            assert decoder.next_frame() is None
            assert decoder.buffered_bytes == start + 10_007 - 2
    assert decoder.next_frame() == (0x30, frame[5:])
    assert decoder.next_frame() == (0xC0, b"")
    assert decoder.buffered_bytes == 0


def test_no_memory_is_taken_for_what_has_not_come() -> None:
    tracemalloc.start()
    try:
        decoder = FrameDecoder(1 << 30)
        decoder.feed(b"\x30\xff\xff\xff\x7f" + bytes(100))
        assert decoder.next_frame() is None
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


def test_drops_of_two_bytes_take_little_more_memory_than_they_are() -> None:
    count = 100_000
    decoder = FrameDecoder(1 << 30)
    tracemalloc.start()
    try:
        decoder.feed(b"\x30\xff\xff\xff\x7f")
        assert decoder.next_frame() is None
        for index in range(count):
            decoder.feed(index.to_bytes(3, "big")[1:])
            assert decoder.next_frame() is None
        assert decoder.buffered_bytes == 5 + 2 * count
        assert tracemalloc.get_traced_memory()[0] < 2 * (2 * count)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rest", [b"\x30", b"\x30\x80", b"\x30\xff\xff"])
def test_the_first_bytes_of_a_header_do_not_keep_the_read_that_they_end(rest: bytes) -> None:
    decoder = FrameDecoder(1 << 28)
    decoder.feed(b"\xc0\x00" * 1000 + rest)
    while decoder.next_frame() is not None:
        pass
    assert decoder.held_bytes == decoder.buffered_bytes == len(rest)


def test_a_frame_that_is_abandoned_takes_no_memory() -> None:
    decoder = FrameDecoder(1 << 28)
    decoder.feed(b"\x30\xff\x7f" + bytes(1000))
    assert decoder.next_frame() is None
    decoder.feed(bytes(1000))
    assert decoder.held_bytes == 2003
    decoder.abandon()
    assert decoder.held_bytes == decoder.missing_bytes == 0
