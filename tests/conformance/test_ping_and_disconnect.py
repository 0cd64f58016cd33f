"""PINGREQ and DISCONNECT (3.12 to 3.14 of both standards), and what every error ends in (5.0: 4.13; 3.1.1: 4.8)."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Disconnect, PingReq, PingResp, Publish, WillMessage
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.wirebytes import connect_frame, publish_frame, string, subscribe_frame

WILL = WillMessage("will", b"gone")
FROM_CLIENT = (0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)
NOT_FROM_CLIENT = (
    0x01,
    0x02,
    0x03,
    0x10,
    0x18,
    0x85,
    0x87,
    0x89,
    0x8B,
    0x8D,
    0x8E,
    0x8F,
    0x91,
    0x92,
    0x9A,
    0x9C,
    0x9D,
    0x9E,
    0x9F,
    0xA0,
    0xA1,
    0xA2,
    0xFF,
)


@pytest.mark.statement("MQTT5-3.12.4-1", "MQTT311-3.12.4-1")
@both_versions
async def test_pingreq_is_answered(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(b"\xc0\x00" * 3)
        await peer.expect_bytes(b"\xd0\x00", b"\xd0\x00", b"\xd0\x00")
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.14.1-1", "MQTT311-3.14.1-1")
@both_versions
@pytest.mark.parametrize("flags", range(1, 16))
async def test_disconnect_with_flags_is_none(version: int, flags: int) -> None:
    """So the Will goes out."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("a", version, will=WILL)
        await peer.send(bytes((0xE0 | flags, 0)))
        await peer.expect_closed(0x81)
        await watcher.expect(Publish("will", b"gone"))


@pytest.mark.statement("MQTT5-3.14.2-1")
@pytest.mark.parametrize("code", FROM_CLIENT, ids=hex)
async def test_codes_a_client_may_send(code: int) -> None:
    """Taken in silence; the Will goes out with all but 0x00."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("a", will=WILL)
        await peer.send(bytes((0xE0, 1, code)))
        await peer.expect_end()
        assert await watcher.payloads() == ([] if code == 0 else [b"gone"])


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-4.13.1-1")
@pytest.mark.parametrize("code", NOT_FROM_CLIENT, ids=hex)
async def test_codes_a_client_may_not_send(code: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("a", will=WILL)
        await peer.send(bytes((0xE0, 1, code)))
        await peer.expect_closed(0x82)
        await watcher.expect(Publish("will", b"gone"))


async def test_a_client_has_no_server_reference_to_give() -> None:
    """It is no valid DISCONNECT then, so the Will goes out."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("a", will=WILL)
        await peer.send(bytes.fromhex("e0 06 00 04 1c 00 01 62"))
        await peer.expect_closed(0x82)
        assert await watcher.payloads() == [b"gone"]


@pytest.mark.statement("MQTT5-3.14.4-1", "MQTT311-3.14.4-2")
@both_versions
async def test_nothing_counts_after_a_disconnect(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.connect("a", version)
        await peer.send(Disconnect(), Publish("t", b"late", 1, packet_id=1), PingReq())
        await peer.expect_end()
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-3.14.4-2", "MQTT311-3.14.4-1")
@both_versions
async def test_the_broker_closes_when_the_client_does_not(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(b"\xe0\x00")
        await peer.expect_end()


@pytest.mark.statement("MQTT5-3.14.4-3", "MQTT311-3.14.4-3")
@both_versions
@pytest.mark.parametrize("data", [b"\xe0\x00", b"\xe0\x01\x00", b"\xe0\x02\x00\x00"], ids=["short", "code", "long"])
async def test_a_plain_disconnect_discards_the_will(version: int, data: bytes) -> None:
    if version == V311:
        data = b"\xe0\x00"
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("a", version, will=WILL, clean_start=False, **({"session_expiry_interval": 100} if version == V5 else {}))
        await peer.send(data)
        await peer.expect_end()
        await peer.drop()
        await scene.advance(2_000_000)  # nor when the session ends
        await watcher.expect_nothing()


# ---- the broker's own DISCONNECT ---------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.14.0-1")
@pytest.mark.parametrize(
    "first",
    [
        b"\xc0\x00",
        b"\xe0\x00",
        publish_frame("t"),
        subscribe_frame(1, ("t", 0)),
        b"\xf0\x00",
        b"\x00\x00",
        b"\x10\xff\xff\xff\xff\x7f",
        connect_frame(string("a"), flags=0x03),
        connect_frame(string("a"), flags=0x1E),
        connect_frame(string("a"), property_section=b"\x02\x17\x02"),
        connect_frame(string("a"), property_section=b"\x04\x15\x00\x01x"),
        connect_frame(string("a"), version=6),
        connect_frame(string("a"), version=4, flags=0x40),
        connect_frame(string(""), version=4, flags=0x00),
    ],
)
async def test_no_disconnect_before_a_good_connack(first: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311 if first[8:9] == b"\x04" else V5)
        await peer.send(first)
        for packet in await peer.receive_all():
            assert isinstance(packet, ConnAck)
            assert packet.reason.failed
        await peer.expect_end()


@pytest.mark.statement("MQTT5-3.14.0-1")
async def test_no_disconnect_to_a_client_that_never_spoke() -> None:
    async with Scene(connect_timeout_s=10) as scene:
        silent, shut_out = await scene.peer(), await scene.peer()
        await scene.advance(5)
        await shut_out.send(connect_frame(string("a"))[:9])
        await scene.advance(6)
        await silent.expect_end()
        await shut_out.expect_end()


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-3.14.2-2", "MQTT5-3.14.2-3", "MQTT5-3.14.2-4", "MQTT5-3.14.4-2", "MQTT5-4.13.2-1")
async def test_every_disconnect_of_the_broker() -> None:
    """By what each is for: its code and no property, so small enough for every client that a CONNACK was for; then the end."""
    quiet = {"maximum_packet_size": 32, "session_expiry_interval": 100}
    async with Scene(keepalive_s_max=65_535) as scene:
        bad = {
            b"\xe1\x00": 0x81,
            b"\x10\x00": 0x81,
            connect_frame(string("again")): 0x82,
            b"\xf0\x00": 0x82,
            publish_frame("", property_section=b"\x03\x23\x00\x00"): 0x94,
            publish_frame("", property_section=b"\x00"): 0x82,
            b"\x30\xff\xff\xff\x7f": 0x95,
        }
        ended = []
        for number, (data, code) in enumerate(bad.items()):
            peer = await scene.connect(f"bad{number}", **quiet)
            await peer.send(data)
            ended.append((peer, code))
        idle = await scene.connect("idle", keep_alive_s=1, **quiet)
        await scene.advance(1.6)
        ended.append((idle, 0x8D))
        old = await scene.connect("taken", **quiet)
        taker = await scene.connect("taken", **quiet)
        ended.append((old, 0x8E))
        await scene.shutdown()
        ended.append((taker, 0x8B))
        for peer, code in ended:
            await peer.expect_bytes(bytes((0xE0, 1, code)))
            await peer.expect_end()


@pytest.mark.statement("MQTT5-4.13.2-1")
async def test_every_refusing_connack_is_followed_by_the_end() -> None:
    async with Scene(maximum_qos=0, retain_available=False, sessions_count_max=1, client_id_bytes_max=10) as scene:
        await scene.connect("one")
        for code, options in {
            0x85: {"client_id": "a" * 11},
            0x97: {"client_id": "two"},
            0x9B: {"client_id": "one", "will": WillMessage("w", b"", 1)},
            0x9A: {"client_id": "one", "will": WillMessage("w", b"", retain=True)},
            0x8C: {"client_id": "one", "authentication_method": "x"},
        }.items():
            peer = await scene.peer()
            assert (await peer.connect(**options)).reason == code  # type: ignore[arg-type]  # a table of options
            await peer.expect_end()


@pytest.mark.statement("MQTT5-4.13.1-1", "MQTT311-4.8.0-1")
@both_versions
@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("20 02 00 00"),
        bytes.fromhex("90 03 00 01 00"),
        bytes.fromhex("B0 02 00 01"),
        bytes.fromhex("D0 00"),
        bytes.fromhex("00 00"),
        bytes.fromhex("36 05 00 01 74 00 01"),
        bytes.fromhex("30 02 00 05"),
        bytes.fromhex("32 05 00 01 74 00 00"),
        bytes.fromhex("C0 01 00"),
        bytes.fromhex("C1 00"),
        bytes.fromhex("40 01 00"),
        bytes.fromhex("30 FF FF FF FF 01"),
        bytes.fromhex("F0 02 18 00"),
    ],
    ids=lambda data: data.hex(" "),
)
async def test_a_violation_ends_that_connection_and_no_other(version: int, data: bytes) -> None:
    async with Scene() as scene:
        bystander = await scene.connect("bystander", version)
        peer = await scene.connect("a", version)
        await peer.send(data)
        await peer.expect_closed()
        await bystander.expect_open()


@pytest.mark.statement("MQTT311-4.8.0-2")
async def test_an_error_of_our_own_ends_that_connection_and_no_other() -> None:
    """An `authenticate` hook that fails; and an `authorize` hook that does, which refuses what was asked and nothing else."""

    async def authenticate(request: object) -> str | None:
        if getattr(request, "client_id", "") == "unlucky":
            raise OSError("no disk")
        return "user"

    async with Scene(authenticate=authenticate) as scene:
        bystander = await scene.connect("bystander", V311)
        peer = await scene.peer(V311)
        assert (await peer.connect("unlucky")).reason == ReasonCode.SERVER_UNAVAILABLE
        await peer.expect_end()
        await bystander.expect_open()


async def test_disconnect_0x04_publishes_the_will_and_keeps_the_session() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("a", will=WILL, session_expiry_interval=NEVER)
        await peer.disconnect(ReasonCode(0x04))
        await watcher.expect(Publish("will", b"gone"))
        again = await scene.connect("a", clean_start=False)
        assert again.connack is not None
        assert again.connack.session_present
        await again.send(PingReq())
        await again.expect(PingResp())
