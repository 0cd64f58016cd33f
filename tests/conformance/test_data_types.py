"""Data representation: UTF-8 strings, variable byte integers, string pairs (MQTT 5.0, 1.5; 3.1.1, 1.5)."""

from __future__ import annotations

import pytest

from broker.wire.packets import Disconnect, Publish, SubAck
from tests.conformance.harness import V5, V311, Scene, both_versions
from tests.conformance.shorthand import drained
from tests.conformance.wirebytes import connect_frame, frame, properties, publish_frame, string, subscribe_frame, u16

ILL_FORMED = {
    "surrogate": b"\xed\xa0\x80",
    "surrogate pair (CESU-8)": b"a\xed\xa0\xbd\xed\xb8\x80",
    "overlong /": b"\xc0\xaf",
    "overlong a, 3 bytes": b"\xe0\x81\xa1",
    "byte FF": b"\xff",
    "cut short": b"a\xe2\x82",
    "above 10FFFF": b"\xf4\x90\x80\x80",
    "lone continuation": b"\x80",
}
bad_strings = pytest.mark.parametrize("bad", ILL_FORMED.values(), ids=ILL_FORMED.keys())


@both_versions
@bad_strings
@pytest.mark.statement("MQTT5-1.5.4-1", "MQTT311-1.5.3-1", "MQTT5-3.3.2-1", "MQTT311-3.3.2-1")
async def test_topic_name_that_is_not_utf8_closes(version: int, bad: bytes) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        peer = await scene.connect("c", version)
        await peer.send(publish_frame(bad, b"x", version=version))
        await peer.expect_closed(0x81)
        await watcher.expect_nothing()


@both_versions
@bad_strings
@pytest.mark.statement("MQTT5-1.5.4-1", "MQTT311-1.5.3-1")
async def test_topic_filter_that_is_not_utf8_closes(version: int, bad: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.send(subscribe_frame(1, (bad, 0), version=version))
        await peer.expect_closed(0x81)
        peer = await scene.connect("c", version)
        await peer.send(frame(0xA2, u16(1), b"\x00" if version >= V5 else b"", string(bad)))
        await peer.expect_closed(0x81)


@both_versions
@pytest.mark.statement("MQTT5-1.5.4-2", "MQTT311-1.5.3-2")
async def test_null_character_closes(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        for bad in (publish_frame(b"a\x00b", b"x", version=version), subscribe_frame(1, (b"a\x00b", 0), version=version)):
            peer = await scene.connect("c", version)
            await peer.send(bad)
            await peer.expect_closed(0x81)
        peer = await scene.peer(version)
        await peer.send(connect_frame(string(b"a\x00b"), version=version))
        await (peer.expect_closed(0x81) if version >= V5 else peer.expect_end())
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-1.5.4-3", "MQTT311-1.5.3-3")
async def test_byte_order_mark_is_a_character(version: int) -> None:
    marked = b"\xef\xbb\xbfa"
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.send(subscribe_frame(1, (marked, 0), version=version))
        await peer.take(SubAck)
        plain = await scene.connect("plain", version)
        await plain.subscribe("a")
        frame_out = publish_frame(marked, b"x", version=version)
        await plain.send(frame_out)
        await peer.expect_bytes(frame_out)
        await plain.expect_nothing()
        await plain.send(publish_frame(b"a\xef\xbb\xbf", b"y", version=version))
        await plain.expect_nothing()
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-1.5.5-1")
@pytest.mark.parametrize("bad", [b"\xc0\x80\x00", b"\xc0\x80\x80\x80\x00", b"\xc0\x80\x80\x80\x80\x01", b"\x30\x84\x00\x00\x01a\x00"])
async def test_remaining_length_in_more_bytes_than_it_needs_closes(bad: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.send(bad)
        await peer.expect_closed()


@both_versions
@pytest.mark.statement("MQTT5-1.5.5-1")
@pytest.mark.parametrize("first_byte", [0x30, 0x31, 0x32, 0x33, 0x34])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("together", [False, True])
async def test_a_publish_in_more_bytes_than_it_needs_closes(version: int, first_byte: int, known: bool, together: bool) -> None:
    """In all the ways that it may be taken: the first on its topic or one of many, alone in its read or not. In 3.1.1 it is as good as others."""
    async with Scene() as scene:
        other = await scene.connect("s")
        await other.subscribe("t/+", qos=2)
        peer = await scene.connect("c", version)

        def frame_of(payload: bytes, packet_id: int, topic: str, overlong: bool = False) -> bytes:
            good = publish_frame(topic, payload, first_byte=first_byte, packet_id=packet_id if first_byte & 0x06 else None, version=version)
            return good[:1] + bytes((good[1] | 0x80, 0)) + good[2:] if overlong else good

        expected = []
        if known:
            for number in range(1, 5):
                await peer.send(frame_of(b"good", number, "t/1"))
                await scene.settle()
                expected.append(b"good")
        if together:
            expected.append(b"before")
        await peer.send((frame_of(b"before", 5, "t/2") if together else b"") + frame_of(b"overlong", 6, "t/1", overlong=True))
        if version == V311:
            expected.append(b"overlong")
            await peer.receive_all()
            await peer.expect_open()
        else:
            goodbye = (await peer.receive_all())[-1]
            assert isinstance(goodbye, Disconnect)
            assert goodbye.reason == 0x81
            await peer.expect_end()
        assert await drained(other) == expected


@pytest.mark.statement("MQTT5-1.5.5-1")
async def test_connect_with_overlong_length_is_refused() -> None:
    async with Scene() as scene:
        peer = await scene.peer()
        good = connect_frame(string("c"))
        await peer.send(good[:1] + bytes((good[1] | 0x80, 0)) + good[2:])
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-1.5.5-1")
@pytest.mark.parametrize("section", [b"\x80\x00", b"\x82\x00\x01\x01", b"\x80\x80\x80\x80\x00"])
async def test_property_length_in_more_bytes_than_it_needs_closes(section: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.send(publish_frame("a", property_section=section))
        await peer.expect_closed()
        peer = await scene.connect("c")
        await peer.send(subscribe_frame(1, ("a", 0), property_section=b"\x03\x0b\x81\x00"))  # an identifier of 1 in two bytes
        await peer.expect_closed()


@both_versions
@pytest.mark.statement("MQTT5-1.5.5-1")
@pytest.mark.parametrize(
    ("length", "header"), [(127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), (2_097_151, "ffff7f"), (2_097_152, "80808001")]
)
async def test_broker_encodes_lengths_with_the_fewest_bytes(version: int, length: int, header: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.subscribe("a")
        sender = await scene.connect("s", version)
        payload = bytes(length - 3 - (1 if version >= V5 else 0))
        await sender.send(publish_frame("a", payload, version=version))
        received = await peer.receive_frame()
        assert received[: 1 + len(header) // 2].hex() == "30" + header
        assert len(received) == 1 + len(header) // 2 + length


@pytest.mark.statement("MQTT5-1.5.5-1")
@pytest.mark.parametrize(
    ("number", "encoded"), [(127, "0b7f"), (128, "0b8001"), (16_383, "0bff7f"), (16_384, "0b808001"), (268_435_455, "0bffffff7f")]
)
async def test_broker_encodes_subscription_identifiers_with_the_fewest_bytes(number: int, encoded: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.subscribe("a", identifier=number)
        await peer.send(publish_frame("a"))
        assert await peer.receive_frame() == publish_frame("a", property_section=properties(bytes.fromhex(encoded)))


async def test_overlong_length_is_no_fault_in_3_1_1() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", V311)
        await peer.send(b"\xc0\x80\x00")
        await peer.expect_bytes(b"\xd0\x00")


@pytest.mark.parametrize("bad", [b"\xed\xa0\x80", b"a\x00b", b"\xff"])
@pytest.mark.parametrize("place", ["name", "value"])
@pytest.mark.statement("MQTT5-1.5.7-1")
async def test_user_property_obeys_the_string_rules(bad: bytes, place: str) -> None:
    pair = string(bad) + string("v") if place == "name" else string("n") + string(bad)
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.connect("c")
        await peer.send(publish_frame("a", property_section=properties(b"\x26", pair)))
        await peer.expect_closed(0x81)
        peer = await scene.peer()
        await peer.send(connect_frame(string("c"), property_section=properties(b"\x26", pair)))
        await peer.expect_closed(0x81)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-1.5.7-1")
async def test_user_property_of_good_strings_is_delivered() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.subscribe("a")
        pairs = (("é\ufeff", "😀"), ("", ""))
        await peer.publish("a", b"x", user_properties=pairs)
        assert (await peer.take(Publish)).properties.user_properties == pairs
