"""UNSUBSCRIBE and UNSUBACK (3.10 and 3.11 of both standards)."""

from __future__ import annotations

import pytest

from broker.wire.packets import Publish, PubRec, PubRel, UnsubAck, Unsubscribe
from tests.conformance.harness import NEVER, V5, Scene, both_versions
from tests.conformance.shorthand import codes
from tests.conformance.wirebytes import frame, string, u16


def unsubscribe_frame(packet_id: int, *filters: str | bytes, version: int = 5, first_byte: int = 0xA2) -> bytes:
    return frame(first_byte, u16(packet_id), b"\x00" if version == V5 else b"", *(string(filter) for filter in filters))


@pytest.mark.statement("MQTT5-3.10.1-1", "MQTT311-3.10.1-1")
@both_versions
@pytest.mark.parametrize("flags", [flags for flags in range(16) if flags != 2])
async def test_other_flags_close(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(unsubscribe_frame(1, "t", version=version, first_byte=0xA0 | flags))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-3.10.3-1", "MQTT311-3.10.3-1")
@both_versions
@pytest.mark.parametrize("filter", [b"\xff", b"\xed\xa0\x80", b"a\x00b"])
async def test_filter_that_is_no_utf8_closes(version: int, filter: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(unsubscribe_frame(1, "fine", filter, version=version))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-3.10.3-2", "MQTT311-3.10.3-2")
@both_versions
async def test_no_filter_closes(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(unsubscribe_frame(1, version=version))
        await peer.expect_closed(0x82)


@pytest.mark.statement("MQTT5-3.10.4-1", "MQTT311-3.10.4-1")
@both_versions
async def test_only_the_very_same_filter_goes(version: int) -> None:
    """Not what it matches, not one that differs by case, by a level, by its share."""
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        publisher = await scene.connect("p", version)
        await peer.subscribe("a/+")
        await peer.unsubscribe("a/b", "a/#", "#", "A/+", "a/+/", "/a/+", "$share/g/a/+", "a")
        await publisher.publish("a/b", b"x")
        await peer.expect(Publish("a/b", b"x"))
        await peer.unsubscribe("a/+")
        await publisher.publish("a/b", b"y")
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.10.4-1")
async def test_a_share_goes_by_its_whole_filter() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.subscribe("$share/g/t", "$share/h/t", "t")
        assert (await peer.unsubscribe("$share/i/t", "t", "$share/g/t", "$share/g/t")).reasons == (0x11, 0, 0, 0x11)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x")
        assert await peer.payloads() == [b"x"]  # from h


@pytest.mark.statement("MQTT5-3.10.4-2", "MQTT311-3.10.4-2")
@both_versions
async def test_nothing_new_after_the_unsuback(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version, clean_start=False, **({"session_expiry_interval": NEVER} if version == V5 else {}))
        publisher = await scene.connect("p", version)
        await peer.subscribe("t", qos=2)
        for qos in (0, 1, 2):
            await publisher.publish("t", b"before", qos)
        assert await peer.payloads() == [b"before"] * 3
        await peer.unsubscribe("t")
        for qos in (0, 1, 2):
            await publisher.publish("t", b"after", qos)
        await peer.expect_nothing()
        await peer.drop()  # nor is anything kept for it
        await publisher.publish("t", b"after", 1)
        peer = await scene.connect("a", version, clean_start=False)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.10.4-3", "MQTT311-3.10.4-3")
@both_versions
async def test_deliveries_that_have_begun_are_finished(version: int) -> None:
    """Also by a client that was lost in between."""
    async with Scene() as scene:
        expiry = {"session_expiry_interval": NEVER} if version == V5 else {}
        peer = await scene.connect("a", version, clean_start=False, **expiry)
        publisher = await scene.connect("p", version)
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"one", 1)
        await publisher.publish("t", b"two", 2)
        one, two = await peer.take(Publish), await peer.take(Publish)
        await peer.unsubscribe("t")
        await peer.send(PubRec(two.packet_id))
        await peer.expect(PubRel(two.packet_id))
        await peer.drop()
        peer = await scene.connect("a", version, clean_start=False, **expiry)
        await peer.expect(PubRel(two.packet_id), Publish("t", b"one", 1, dup=True, packet_id=one.packet_id))


@pytest.mark.statement("MQTT5-3.10.4-4", "MQTT5-3.10.4-5", "MQTT5-3.10.4-6", "MQTT5-3.11.3-1", "MQTT5-3.11.3-2")
async def test_one_unsuback_with_a_code_for_each_filter_in_order() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.subscribe("a", "b")
        await peer.send(unsubscribe_frame(0xABCD, "b", "nothing", "a", "a", "a#"))
        await peer.expect_bytes(bytes.fromhex("B0 08 AB CD 00 00 11 00 11 11"))
        await peer.send(unsubscribe_frame(7, "a"))
        await peer.expect_bytes(bytes.fromhex("B0 04 00 07 00 11"))


@pytest.mark.statement("MQTT311-3.10.4-4", "MQTT311-3.10.4-5", "MQTT311-3.10.4-6")
async def test_in_311_the_unsuback_has_no_codes() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", 4)
        await peer.subscribe("a", "b")
        await peer.send(unsubscribe_frame(0xABCD, "b", "nothing", "a", version=4))
        await peer.expect_bytes(bytes.fromhex("B0 02 AB CD"))
        await peer.send(unsubscribe_frame(7, "a", version=4))
        await peer.expect_bytes(bytes.fromhex("B0 02 00 07"))
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.11.2-1", "MQTT5-3.11.2-2")
async def test_unsuback_fits_the_clients_maximum_packet_size() -> None:
    """It has neither Reason String nor User Properties; one that cannot be made to fit ends the connection before anything is done."""
    async with Scene() as scene:
        peer = await scene.connect("a", maximum_packet_size=40)
        await peer.unsubscribe(*(f"{number}" for number in range(35)))
        assert len(peer.frames[-1]) == 40
        await peer.send(Unsubscribe(99, tuple(f"{number}" for number in range(36))))
        await peer.expect_closed(0x95)


@pytest.mark.statement("MQTT5-3.10.4-6", "MQTT311-3.10.4-6")
@both_versions
async def test_many_filters_at_once(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        filters = tuple(f"t/{number}" for number in range(200))
        await peer.subscribe(*filters)
        await peer.send(Unsubscribe(5, filters[:199]))
        await peer.expect(UnsubAck(5, codes(*[0] * 199) if version == V5 else ()))
        publisher = await scene.connect("p", version)
        for filter in filters:
            await publisher.publish(filter, filter.encode())
        assert await peer.payloads() == [b"t/199"]
