"""PUBACK, PUBREC, PUBREL and PUBCOMP: their flags, codes and sizes (3.4 to 3.7 of both standards)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, Properties, PubComp, Publish, PubRec, PubRel
from tests.conformance.harness import V5, V311, Peer, Scene, both_versions

LISTED = (0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)
UNLISTED = tuple(code for code in (0x01, 0x04, 0x05, 0x11, 0x18, 0x81, 0x82, 0x8F, 0x92, 0x93, 0x95, 0xFF))


async def receiving(scene: Scene, qos: int, **options: Any) -> tuple[Peer, int]:
    """A client that has got a message of this QoS and not answered yet; the message's id."""
    peer = await scene.connect("receiver", **options)
    await peer.subscribe("t", qos=2)
    publisher = await scene.connect("publisher")
    await publisher.publish("t", b"x", qos)
    return peer, (await peer.take(Publish)).packet_id


@pytest.mark.statement("MQTT5-3.4.2-1", "MQTT5-3.5.2-1")
@pytest.mark.parametrize(("qos", "kind"), [(1, 0x40), (2, 0x50)], ids=["PUBACK", "PUBREC"])
@pytest.mark.parametrize("code", LISTED, ids=hex)
async def test_listed_codes_are_taken(qos: int, kind: int, code: int) -> None:
    async with Scene() as scene:
        peer, packet_id = await receiving(scene, qos)
        await peer.send(bytes((kind, 3)) + packet_id.to_bytes(2, "big") + bytes((code,)))
        if qos == 2 and code < 0x80:
            await peer.expect(PubRel(packet_id))
        await peer.expect_open()


@pytest.mark.statement("MQTT5-3.4.2-1", "MQTT5-3.5.2-1", "MQTT5-4.13.1-1")
@pytest.mark.parametrize(("qos", "kind"), [(1, 0x40), (2, 0x50)], ids=["PUBACK", "PUBREC"])
@pytest.mark.parametrize("code", UNLISTED, ids=hex)
async def test_other_codes_close(qos: int, kind: int, code: int) -> None:
    async with Scene() as scene:
        peer, packet_id = await receiving(scene, qos)
        await peer.send(bytes((kind, 3)) + packet_id.to_bytes(2, "big") + bytes((code,)))
        await peer.expect_closed()


@pytest.mark.statement("MQTT5-3.6.2-1", "MQTT5-3.7.2-1", "MQTT5-4.13.1-1")
@pytest.mark.parametrize("kind", [0x62, 0x70], ids=["PUBREL", "PUBCOMP"])
@pytest.mark.parametrize("code", [0x01, 0x10, 0x80, 0x91, 0x93, 0xFF], ids=hex)
async def test_other_codes_of_the_second_half_close(kind: int, code: int) -> None:
    async with Scene() as scene:
        peer, packet_id = await receiving(scene, 2)
        await peer.send(PubRec(packet_id))
        await peer.expect(PubRel(packet_id))
        await peer.send(bytes((kind, 3)) + packet_id.to_bytes(2, "big") + bytes((code,)))
        await peer.expect_closed()


@pytest.mark.statement("MQTT5-3.6.2-1", "MQTT5-3.7.2-1")
async def test_both_codes_of_the_second_half_are_taken_and_sent() -> None:
    async with Scene() as scene:
        peer, packet_id = await receiving(scene, 2)
        await peer.send(PubRec(packet_id))
        await peer.expect_bytes(b"\x62\x02" + packet_id.to_bytes(2, "big"))
        await peer.send(PubComp(packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND))
        await peer.send(PubRel(77, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND), PubRec(78), Publish("x", b"", 2, packet_id=79), PubRel(79))
        await peer.expect_bytes(
            bytes.fromhex("70 03 00 4D 92"), bytes.fromhex("62 03 00 4E 92"), bytes.fromhex("50 03 00 4F 10"), bytes.fromhex("70 02 00 4F")
        )
        await peer.expect_open()


@pytest.mark.statement("MQTT5-3.4.2-1", "MQTT5-3.5.2-1")
async def test_what_the_broker_answers_is_listed() -> None:
    """No subscriber, not allowed, too many levels, no room for another retained message; and taken."""

    def authorize(username: str | None, client_id: str, action: str, topic: str) -> bool:
        return topic != "forbidden"

    async with Scene(authorize=authorize, retained_count_max=1) as scene:
        peer = await scene.connect("a")
        other = await scene.connect("b")
        await other.subscribe("t")
        for qos in (1, 2):
            seen = [
                await peer.publish("nobody", b"", qos),
                await peer.publish("forbidden", b"", qos),
                await peer.publish("/" * 300, b"", qos),
                await peer.publish("t", b"x", qos, retain=True),
                await peer.publish("u", b"x", qos, retain=True),
                await peer.publish("$SYS/x", b"x", qos),
            ]
            assert seen == [0x10, 0x87, 0x90, 0x00, 0x97, 0x87]
            assert set(seen) <= set(LISTED)


@pytest.mark.statement("MQTT5-3.4.2-2", "MQTT5-3.4.2-3", "MQTT5-3.5.2-2", "MQTT5-3.5.2-3")
@pytest.mark.statement("MQTT5-3.6.2-2", "MQTT5-3.6.2-3", "MQTT5-3.7.2-2", "MQTT5-3.7.2-3")
async def test_answers_fit_the_clients_maximum_packet_size() -> None:
    """The smallest that a CONNACK fits into; each answer has something to say, and says it in its code alone."""
    async with Scene(authorize=lambda username, client_id, action, topic: action != "publish") as scene:
        small = 0
        for size in range(5, 64):
            peer = await scene.peer()
            await peer.send(Connect("a", properties=Properties(maximum_packet_size=size)))
            await scene.settle()
            if not peer.ended:
                small = size
                break
        assert 5 <= small < 40
        assert len(await peer.receive_frame()) <= small
        await peer.send(Publish("t", b"", 1, packet_id=1), Publish("t", b"", 2, packet_id=2), PubRel(3), PubRec(4))
        answers = [await peer.receive_frame() for _ in range(4)]
        assert [answer.hex(" ") for answer in answers] == ["40 03 00 01 87", "50 03 00 02 87", "70 03 00 03 92", "62 03 00 04 92"]
        assert all(len(answer) <= small for answer in answers)


@pytest.mark.statement("MQTT5-3.6.1-1", "MQTT311-3.6.1-1")
@both_versions
@pytest.mark.parametrize("flags", [flags for flags in range(16) if flags != 2])
async def test_pubrel_with_other_flags_closes(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(Publish("t", b"", 2, packet_id=9))
        await peer.take(PubRec)
        await peer.send(bytes((0x60 | flags, 2, 0, 9)))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-3.6.1-1", "MQTT311-3.6.1-1")
@both_versions
async def test_the_brokers_pubrel_has_its_flags(version: int) -> None:
    async with Scene() as scene:
        peer, packet_id = await receiving(scene, 2, version=version)
        await peer.send(PubRec(packet_id))
        await peer.expect_bytes(b"\x62\x02" + packet_id.to_bytes(2, "big"))


@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.parametrize("first", [0x40, 0x50, 0x62, 0x70], ids=["PUBACK", "PUBREC", "PUBREL", "PUBCOMP"])
async def test_acknowledging_id_zero_closes(version: int, first: int) -> None:
    """No packet has the id 0, so none can be acknowledged."""
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(bytes((first, 2, 0, 0)))
        await peer.expect_closed()


async def test_short_forms_mean_success_and_long_forms_are_read() -> None:
    """5.0: without a code; with a code; with an empty property section; with properties."""
    async with Scene() as scene:
        publisher = await scene.connect("publisher")
        peer = await scene.connect("receiver")
        await peer.subscribe("t", qos=1)
        for tail in ("", "00", "00 00", "80 0A 1F 00 01 78 26 00 01 61 00 00"):
            await publisher.publish("t", b"x", 1)
            packet_id = (await peer.take(Publish)).packet_id
            body = packet_id.to_bytes(2, "big") + bytes.fromhex(tail)
            await peer.send(bytes((0x40, len(body))) + body)
        await peer.expect_open()
        await peer.send(Disconnect())
        await peer.expect_end()
