"""Errors of MQTT 5.0 that its text names without giving them a number: each property where it may not stand, twice, or out of its range;
packets that do not fit their own length; and what CONNACK may not say to our client."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Disconnect, Publish, PubRec, PubRel
from tests.conformance.harness import V5, Peer, Scene
from tests.conformance.scripted import ScriptedBroker
from tests.conformance.wirebytes import connect_frame, frame, properties, publish_frame, string, subscribe_frame, u16, u32

MALFORMED, PROTOCOL = 0x81, 0x82

# Every property with a value that is fine in itself, and the packets from a client that may carry it.
VALUES: dict[int, bytes] = {
    0x01: b"\x01", 0x02: u32(10), 0x03: string("x"), 0x08: string("x"), 0x09: string("x"), 0x0B: b"\x01", 0x11: u32(0), 0x12: string("x"),
    0x13: u16(10), 0x15: string("x"), 0x16: string("x"), 0x17: b"\x01", 0x18: u32(1), 0x19: b"\x01", 0x1A: string("x"), 0x1C: string("x"),
    0x1F: string("x"), 0x21: u16(10), 0x22: u16(10), 0x23: u16(1), 0x24: b"\x01", 0x25: b"\x01", 0x26: string("a") + string("b"),
    0x27: u32(1000), 0x28: b"\x01", 0x29: b"\x01", 0x2A: b"\x01",
}  # fmt: skip
CARRIERS = {
    "CONNECT": {0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27},
    "Will": {0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26},
    "PUBLISH": {0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26},
    "PUBACK": {0x1F, 0x26},
    "PUBREC": {0x1F, 0x26},
    "PUBREL": {0x1F, 0x26},
    "PUBCOMP": {0x1F, 0x26},
    "SUBSCRIBE": {0x0B, 0x26},
    "UNSUBSCRIBE": {0x26},
    "DISCONNECT": {0x11, 0x1C, 0x1F, 0x26},
}


def packet_with(kind: str, section: bytes) -> bytes:
    """A packet that is good but for its properties."""
    return {
        "CONNECT": lambda: connect_frame(string("a"), property_section=section),
        "Will": lambda: connect_frame(string("a"), section, string("t"), string("x"), flags=0x06),
        "PUBLISH": lambda: publish_frame("t", property_section=section),
        "PUBACK": lambda: frame(0x40, b"\x00\x01\x00", section),
        "PUBREC": lambda: frame(0x50, b"\x00\x01\x00", section),
        "PUBREL": lambda: frame(0x62, b"\x00\x01\x00", section),
        "PUBCOMP": lambda: frame(0x70, b"\x00\x01\x00", section),
        "SUBSCRIBE": lambda: subscribe_frame(1, ("t", 0), property_section=section),
        "UNSUBSCRIBE": lambda: frame(0xA2, b"\x00\x01", section, string("t")),
        "DISCONNECT": lambda: frame(0xE0, b"\x00", section),
    }[kind]()


async def peer_for(scene: Scene, kind: str) -> Peer:
    return await (scene.peer() if kind in ("CONNECT", "Will") else scene.connect("a", session_expiry_interval=5))


ALL = [(kind, id) for kind in CARRIERS for id in VALUES]


@pytest.mark.parametrize(
    ("kind", "id"), [(kind, id) for kind, id in ALL if id not in CARRIERS[kind]], ids=lambda value: value if isinstance(value, str) else hex(value)
)
async def test_a_property_where_it_may_not_stand(kind: str, id: int) -> None:
    async with Scene() as scene:
        peer = await peer_for(scene, kind)
        await peer.send(packet_with(kind, properties(bytes((id,)) + VALUES[id])))
        # A Subscription Identifier from a client has its own sentence: a Protocol Error.
        await peer.expect_closed(*((MALFORMED, PROTOCOL) if (kind, id) == ("PUBLISH", 0x0B) else (MALFORMED,)))


@pytest.mark.parametrize(
    ("kind", "id"),
    [(kind, id) for kind, id in ALL if id in CARRIERS[kind] and id != 0x26],
    ids=lambda value: value if isinstance(value, str) else hex(value),
)
async def test_a_property_twice(kind: str, id: int) -> None:
    async with Scene() as scene:
        peer = await peer_for(scene, kind)
        one = bytes((id,)) + VALUES[id]
        extra = (b"\x15" + string("x"),) if id == 0x16 else ()
        await peer.send(packet_with(kind, properties(*extra, one, one)))
        await peer.expect_closed(PROTOCOL)


@pytest.mark.parametrize("kind", list(CARRIERS))
@pytest.mark.parametrize("id", [0x00, 0x04, 0x0A, 0x0C, 0x14, 0x1B, 0x20, 0x2B, 0x7F], ids=hex)
async def test_a_property_that_does_not_exist(kind: str, id: int) -> None:
    async with Scene() as scene:
        peer = await peer_for(scene, kind)
        await peer.send(packet_with(kind, properties(bytes((id, 0)))))
        await peer.expect_closed(MALFORMED)


@pytest.mark.parametrize("kind", list(CARRIERS))
async def test_user_properties_may_repeat(kind: str) -> None:
    async with Scene() as scene:
        peer = await peer_for(scene, kind)
        one = b"\x26" + string("a") + string("b")
        await peer.send(packet_with(kind, properties(one, one, one)))
        for packet in await peer.receive_all():
            assert not isinstance(packet, Disconnect)
        assert peer.ended is (kind == "DISCONNECT")


@pytest.mark.parametrize(
    ("kind", "section", "code"),
    [
        ("CONNECT", b"\x21" + u16(0), PROTOCOL),
        ("CONNECT", b"\x27" + u32(0), PROTOCOL),
        ("CONNECT", b"\x17\x02", PROTOCOL),
        ("CONNECT", b"\x19\x02", PROTOCOL),
        ("CONNECT", b"\x16" + string("x"), PROTOCOL),
        ("PUBLISH", b"\x01\x02", PROTOCOL),
        ("Will", b"\x01\x02", PROTOCOL),
        ("PUBLISH", b"\x08" + string("a/+"), PROTOCOL),
        ("Will", b"\x08" + string("a/#"), PROTOCOL),
        ("PUBLISH", b"\x23" + u16(0), 0x94),
        ("PUBLISH", b"\x23" + u16(33), 0x94),
        ("SUBSCRIBE", b"\x0b\x00", PROTOCOL),
        ("SUBSCRIBE", b"\x0b\x80\x80\x80\x80\x01", MALFORMED),
        ("SUBSCRIBE", b"\x0b\x81\x00", MALFORMED),
        ("PUBLISH", b"\x03" + string(b"\xff"), MALFORMED),
        ("PUBLISH", b"\x26" + string("a") + string(b"\xc0\x80"), MALFORMED),
        ("PUBLISH", b"\x26" + string("a\0") + string("b"), MALFORMED),
    ],
)
async def test_a_value_out_of_its_range(kind: str, section: bytes, code: int) -> None:
    async with Scene(topic_alias_maximum=32) as scene:
        peer = await peer_for(scene, kind)
        await peer.send(packet_with(kind, properties(section)))
        # What the standard infers only by its classes may be told as either.
        await peer.expect_closed(code, *((MALFORMED, PROTOCOL) if code in (MALFORMED, PROTOCOL) else ()))


@pytest.mark.parametrize(
    "data",
    [
        frame(0x82, u16(1), b"\x00", string("t"), b"\x03"),
        frame(0x82, u16(1), b"\x00", string("t"), b"\x30"),
        frame(0x82, u16(1), b"\x02\x0b\x00", string("t"), b"\x00"),
        frame(0x82, u16(1), b"\x04\x0b\x01\x0b\x02", string("t"), b"\x00"),
        frame(0x82, u16(1), b"\x00"),
        frame(0xA2, u16(1), b"\x00"),
        publish_frame(""),
        publish_frame("", property_section=b"\x03\x23\x00\x05"),
        connect_frame(string("again")),
        b"\xf0\x00",
    ],
    ids=lambda data: data.hex(" "),
)
async def test_protocol_errors(data: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(data)
        await peer.expect_closed(PROTOCOL)


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("36 06 00 01 74 00 01 00"),
        bytes.fromhex("30 03 00 05 74"),
        bytes.fromhex("30 03 00 01 74"),
        bytes.fromhex("30 04 00 01 74 05"),
        bytes.fromhex("30 05 00 01 74 01 01"),
        bytes.fromhex("32 04 00 01 74 00"),
        bytes.fromhex("82 06 00 01 00 00 01 74"),
        bytes.fromhex("82 05 00 01 00 00 05"),
        bytes.fromhex("82 01 00"),
        bytes.fromhex("A2 06 00 01 00 00 02 74"),
        bytes.fromhex("40 01 00"),
        bytes.fromhex("40 05 00 01 00 00 00"),
        bytes.fromhex("40 04 00 01 00 03"),
        bytes.fromhex("62 05 00 01 00 00 FF"),
        bytes.fromhex("C0 01 00"),
        bytes.fromhex("E0 03 00 00 00"),
        bytes.fromhex("E0 02 00 05"),
        bytes.fromhex("00 00"),
        bytes.fromhex("30 80 80 80 80 01"),
        bytes.fromhex("30 84 00 00 01 74 00"),
    ],
    ids=lambda data: data.hex(" "),
)
async def test_malformed_packets(data: bytes) -> None:
    """Fields that overrun the packet, properties that overrun their section, bytes left over, QoS 3, lengths not in the shortest form."""
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(data)
        await peer.expect_closed(MALFORMED)


@pytest.mark.parametrize("flags", [0x03, 0x1E, 0x0A, 0x22])
async def test_malformed_connect_flags(flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer()
        payload = (b"\x00", string("w"), string("x")) if flags & 4 else ()
        await peer.send(connect_frame(string("a"), *payload, flags=flags))
        await peer.expect_closed(MALFORMED)


async def test_disconnect_may_not_raise_the_session_expiry_from_zero() -> None:
    """Nor is it then a DISCONNECT: the Will goes out."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("w")
        for section in (b"\x00", b"\x05\x11" + u32(0)):
            peer = await scene.peer()
            await peer.send(connect_frame(string("a"), b"\x00", string("w"), string("x"), flags=0x06, property_section=section))
            peer.connack = await peer.take(ConnAck)
            await peer.send(frame(0xE0, b"\x00", properties(b"\x11" + u32(1))))
            await peer.expect_closed(PROTOCOL)
            await watcher.expect(Publish("w", b"x"))


@pytest.mark.parametrize(("first", "second", "present"), [(100, 0, False), (100, 200, True), (100, None, True), (0, 0, False), (0, None, False)])
async def test_disconnect_may_otherwise_change_it(first: int, second: int | None, present: bool) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", session_expiry_interval=first)
        await peer.send(frame(0xE0, b"\x00", properties() if second is None else properties(b"\x11" + u32(second))))
        await peer.expect_end()
        await scene.advance(50)
        peer = await scene.connect("a", clean_start=False)
        assert peer.connack is not None
        assert peer.connack.session_present is present


async def test_alias_is_unknown_on_the_next_connection() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", session_expiry_interval=100)
        await peer.send(publish_frame("t", property_section=b"\x03\x23\x00\x01"), publish_frame("", property_section=b"\x03\x23\x00\x01"))
        await peer.expect_open()
        await peer.drop()
        peer = await scene.connect("a", clean_start=False, session_expiry_interval=100)
        await peer.send(publish_frame("", property_section=b"\x03\x23\x00\x01"))
        await peer.expect_closed(PROTOCOL)


async def test_0x92_during_recovery_is_no_error() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(PubRel(9, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND), PubRec(9, ReasonCode.UNSPECIFIED_ERROR))
        await peer.expect_bytes(bytes.fromhex("70 03 00 09 92"), bytes.fromhex("62 03 00 09 92"))
        await peer.expect_open()


async def test_silence_before_connect_is_bounded() -> None:
    async with Scene(connect_timeout_s=10) as scene:
        peer = await scene.peer()
        await scene.advance(9)
        assert not peer.ended
        await scene.advance(2)
        await peer.expect_end()


# ---- a broker's errors towards our client ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        "21 00 00",
        "27 00 00 00 00",
        "24 02",
        "25 02",
        "28 02",
        "29 02",
        "2A 02",
        "24 01 24 01",
        "11 00 00 00 01 11 00 00 00 01",
        "0B 01",
        "17 01",
        "23 00 01",
        "01 01",
    ],
)
def test_connack_that_our_client_does_not_take(section: str) -> None:
    broker = ScriptedBroker()
    body = properties(bytes.fromhex(section))
    assert broker.connect(frame(0x20, b"\x00\x00", body)) == []  # before CONNACK there is nothing to say it with
    assert broker.client.state == "closing"
    assert not broker.connected


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("30 04 00 01 74 01", 0x81),
        ("30 07 00 01 74 03 23 00 00", 0x94),
        ("30 07 00 01 74 03 23 00 11", 0x94),
        ("30 06 00 00 03 23 00 01", 0x82),
        ("30 03 00 00 00", 0x82),
        ("30 06 00 01 74 02 0B 00", 0x82),
        ("36 06 00 01 74 00 01 00", 0x81),
        ("20 03 00 00 00", 0x82),
        ("90 04 00 01 00 00", 0x82),
        ("C0 00", 0x82),
        ("80 00", 0x81),
        ("F0 02 18 00", 0x82),
    ],
)
def test_packets_that_our_client_does_not_take(data: str, code: int) -> None:
    broker = ScriptedBroker(topic_alias_maximum=16)
    broker.connect()
    assert broker.version == V5
    assert broker.say(data) == [bytes((0xE0, 1, code))]
    assert broker.client.state == "closing"
