"""Frames made by columns are the codec's frames, and those recognised by columns are what the codec would decode."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bench.frames import Checker, Maker, acknowledgement_run, acknowledgements, payload_of
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, Properties, PubAck, Publish, PubRel

TOKEN = b"run!"
PROPERTIES = Properties(content_type="text/plain", user_properties=(("bench/7", "x"),))


def decoded(data: bytes, version: int) -> list[Publish]:
    decoder = FrameDecoder(1 << 20)
    decoder.feed(data)
    found = []
    while (frame := decoder.next_frame()) is not None:
        packet = decode(*frame, version)
        assert isinstance(packet, Publish)
        found.append(packet)
    assert decoder.buffered_bytes == 0
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 300])
@pytest.mark.parametrize("payload_bytes", [20, 21, 64, 200])
@pytest.mark.parametrize("first", [250, 2**32, 2**47 + 65_530])
@pytest.mark.parametrize(("version", "qos", "properties"), [(MQTT_311, 0, NO_PROPERTIES), (MQTT_5, 1, NO_PROPERTIES), (MQTT_5, 2, PROPERTIES)])
def test_made_frames_are_the_codecs(first: int, count: int, payload_bytes: int, version: int, qos: int, properties: Properties) -> None:
    maker = Maker("bench/7", payload_of(TOKEN, 513, payload_bytes), qos, version, properties)
    ids = array("H", range(60_000, 60_000 + count)) if qos else None
    times = array("Q", range(10**15, 10**15 + count))
    packets = decoded(bytes(maker.make(first, times, count, ids)), version)
    checker = Checker(TOKEN, payload_bytes)
    assert [checker.publisher_of(packet.payload) for packet in packets] == [(513, first + number, 10**15 + number) for number in range(count)]
    assert [packet.packet_id for packet in packets] == (list(ids) if ids is not None else [0] * count)
    assert {(packet.topic, packet.qos, packet.properties) for packet in packets} == {("bench/7", qos, properties)}


def learnt(data: bytes, version: int, payload_bytes: int) -> Checker:
    checker = Checker(TOKEN, payload_bytes)
    packet = decoded(data, version)[0]
    checker.learn(encode(packet, version), packet)
    return checker


def test_nothing_is_recognised_before_something_was_learnt() -> None:
    maker = Maker("bench/7", payload_of(TOKEN, 0, 64), 0, MQTT_5, NO_PROPERTIES)
    assert Checker(TOKEN, 64).match(bytes(maker.make(0, 1, 5, None)), 0) is None


Batches = list[tuple[int, int, int, int]]


@given(
    batches=st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, 2**31) | st.integers(2**32 - 50, 2**32 - 40) | st.just(2**40), st.integers(1, 40), st.integers(0, 3)
        ),
        min_size=1,
        max_size=12,
    ),
    qos=st.sampled_from([0, 1]),
    data=st.data(),
)
def test_recognised_frames_are_what_the_codec_decodes(batches: Batches, qos: int, data: st.DataObject) -> None:
    """Any mixture of publishers, sequence numbers and times; one byte may be wrong, and then it is not recognised."""
    makers = [Maker("bench/7", payload_of(TOKEN, number, 24), qos, MQTT_5, NO_PROPERTIES) for number in range(3)]
    stream = b"".join(
        makers[publisher].make(first, 10**15 + time, count, array("H", range(1, count + 1)) if qos else None)
        for publisher, first, count, time in batches
    )
    packets = decoded(stream, MQTT_5)
    checker = learnt(stream, MQTT_5, 24)
    wrong = data.draw(st.integers(0, len(stream) - 1) | st.none())
    size = len(stream) // len(packets)
    if wrong is not None:
        changed = bytearray(stream)
        changed[wrong] ^= 0xFF
        stream = bytes(changed)
    originals = [encode(packet, MQTT_5) for packet in packets]
    head = originals[0][: size - 24 - 3 * (qos > 0)]
    position = 0
    while position < len(stream):
        run = checker.match(stream, position)
        number = position // size
        if run is None:
            assert wrong is not None
            assert number == wrong // size
            position += size
            continue
        frames = [stream[at : at + size] for at in range(position, run.stop, size)]
        times = [time for time, count in run.times_ns for _ in range(count)]
        # What is recognised says what stands there, and differs from what was published in numbers only.
        assert [checker.publisher_of(frame[-24:]) for frame in frames] == [
            (run.publisher, run.first + step, times[step]) for step in range(run.count)
        ]
        assert {frame[: size - 24 - 3 * (qos > 0)] for frame in frames} == {head}
        ids = b"".join(frame[-24 - 3 : -24 - 1] for frame in frames) if qos else b""
        assert bytes(run.ids) == ids
        if wrong is None:
            assert frames == originals[number : number + run.count]
        position = run.stop
    assert position == len(stream)


def test_a_run_may_end_at_a_multiple_of_2_to_the_32nd_and_another_begin() -> None:
    maker = Maker("bench/7", payload_of(TOKEN, 0, 64), 0, MQTT_5, NO_PROPERTIES)
    stream = bytes(maker.make(2**32 - 8, 1, 8, None) + maker.make(2**32, 1, 8, None))
    checker = learnt(stream, MQTT_5, 64)
    found: list[int] = []
    position = 0
    while position < len(stream):
        run = checker.match(stream, position)
        assert run is not None
        found += range(run.first, run.first + run.count)
        position = run.stop
    assert found == list(range(2**32 - 8, 2**32 + 8))


def test_acknowledgements_are_the_codecs() -> None:
    ids = array("H", [1, 2, 300, 65_535])
    ids.byteswap()
    packed = bytes(ids.tobytes())
    frames = acknowledgements(0x40, packed)
    assert frames == b"".join(encode(PubAck(number), MQTT_5) for number in (1, 2, 300, 65_535))
    assert acknowledgement_run(frames, 0, 0x40) == packed
    assert acknowledgements(0x62, packed[:2]) == encode(PubRel(1), MQTT_5)


@pytest.mark.parametrize("count", [0, 1, 2, 600])
def test_a_run_of_acknowledgements_ends_at_the_first_other_packet(count: int) -> None:
    run = b"".join(b"\x40\x02" + number.to_bytes(2, "big") for number in range(1, count + 1))
    for after in (b"", b"\x40\x03\x00\x01\x10", b"\x50\x02\x00\x01", b"\x40\x02\x00", b"\xd0\x00"):
        data = b"??" + run + after
        found = b""
        position = 2
        while ids := acknowledgement_run(data, position, 0x40):
            found += ids
            position += 2 * len(ids)
        assert found == b"".join(run[place + 2 : place + 4] for place in range(0, len(run), 4))
        assert position == 2 + len(run)
