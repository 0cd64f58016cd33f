"""Whatever can be said survives the wire, however it is cut; whatever arrives is a packet, need-more or a named error."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.errors import IncompletePacket, MalformedPacket, PacketTooLarge, ProtocolError
from broker.wire.codec import decode, encode, encode_within
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_5, MQTT_31, MQTT_311, Packet
from tests.wire.strategies import VERSIONS, packets
from tests.wire.vectors import VECTORS, Vector


def frames(decoder: FrameDecoder) -> list[tuple[int, bytes]]:
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    return found


def one_frame(encoded: bytes) -> tuple[int, bytes]:
    decoder = FrameDecoder(len(encoded))
    decoder.feed(encoded)
    frame = decoder.next_frame()
    assert frame is not None
    decoder.end_of_stream()
    return frame


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("version", [MQTT_31, MQTT_311, MQTT_5])
def test_every_packet_survives(version: int) -> None:
    @given(packets(version))
    def survives(packet: Packet) -> None:
        frame = encode(packet, version)
        assert decode(*one_frame(frame), version) == packet

    survives()


@given(st.data(), VERSIONS, st.integers(0, 200))
def test_encode_within_keeps_its_word(data: st.DataObject, version: int, packet_bytes_max: int) -> None:
    packet = data.draw(packets(version))
    whole = encode(packet, version)
    fitted = encode_within(packet, version, packet_bytes_max)
    if len(whole) <= packet_bytes_max:
        assert fitted == whole
    elif fitted is not None:
        assert len(fitted) <= packet_bytes_max
        assert type(decode(*one_frame(fitted), version)) is type(packet)


@given(st.data(), st.lists(st.integers(0, 10_000), max_size=20))
def test_a_stream_may_be_cut_anywhere(data: st.DataObject, cuts: list[int]) -> None:
    sent = data.draw(st.lists(packets(MQTT_5), max_size=6))
    stream = b"".join([encode(packet, MQTT_5) for packet in sent])
    decoder = FrameDecoder(100_000)
    received: list[Packet] = []
    fed = 0
    for piece in pieces(stream, cuts):
        decoder.feed(piece)
        fed += len(piece)
        for frame in frames(decoder):
            received.append(decode(*frame, MQTT_5))
        assert decoder.buffered_bytes == fed - sum(len(encode(packet, MQTT_5)) for packet in received)
    assert received == sent
    decoder.end_of_stream()


def understand(stream: bytes, cuts: list[int], version: int) -> None:
    """Any exception but those that a peer may cause ends the test."""
    decoder = FrameDecoder(500)
    with contextlib.suppress(MalformedPacket, ProtocolError, PacketTooLarge):
        for piece in pieces(stream, cuts):
            decoder.feed(piece)
            for first_byte, body in frames(decoder):
                assert isinstance(decode(first_byte, body, version), Packet)
        # No error: every byte belongs to a packet that was given, or to one that is not complete.
        if decoder.buffered_bytes:
            with pytest.raises(IncompletePacket):
                decoder.end_of_stream()
        else:
            decoder.end_of_stream()


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4), VERSIONS)
@example(b"\x30\xff\xff\xff\xff\x01", [], MQTT_5)
def test_garbage(stream: bytes, cuts: list[int], version: int) -> None:
    understand(stream, cuts, version)


@given(st.sampled_from(range(16)), st.integers(0, 15), st.binary(max_size=100), VERSIONS)
def test_garbage_with_a_good_header(kind: int, flags: int, body: bytes, version: int) -> None:
    understand(bytes((kind << 4 | flags, len(body))) + body, [], version)


@given(st.sampled_from(VECTORS), st.data(), VERSIONS)
def test_damaged_packets(vector: Vector, data: st.DataObject, version: int) -> None:
    frame = bytearray(vector.frame)
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    understand(bytes(frame), [], version)


@given(st.data(), VERSIONS)
def test_what_is_decoded_can_be_sent_again(data: st.DataObject, version: int) -> None:
    """From damaged frames too: the decoder gives nothing that the encoder cannot express."""
    frame = bytearray(encode(data.draw(packets(version)), version))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decoder = FrameDecoder(100_000)
    decoder.feed(bytes(frame))
    try:
        decoded = [decode(*frame, version) for frame in frames(decoder)]
    except (MalformedPacket, ProtocolError, PacketTooLarge):
        return
    for packet in decoded:
        assert decode(*one_frame(encode(packet, version)), version) == packet
