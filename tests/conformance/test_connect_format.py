"""CONNECT as bytes: what must be in it, and what becomes of one that is not so (MQTT 5.0 and 3.1.1, 3.1)."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Properties, WillMessage
from tests.conformance.harness import NEVER, V5, V31, V311, Peer, Scene, both_versions
from tests.conformance.wirebytes import connect_frame, frame, properties, publish_frame, string, subscribe_frame, u16

NAME = string("c")
WILL = string("will/topic") + string(b"gone")


def will_properties(version: int) -> bytes:
    return b"\x00" if version >= V5 else b""


async def expect_refused(peer: Peer, *reasons: int) -> None:
    """5.0 may say why in a CONNACK, 3.1.1 closes without a byte; both close."""
    await (peer.expect_closed(*reasons) if peer.version >= V5 else peer.expect_end())


@both_versions
@pytest.mark.statement("MQTT5-3.1.0-1", "MQTT311-3.1.0-1")
@pytest.mark.parametrize("kind", ["PINGREQ", "PUBLISH", "SUBSCRIBE", "DISCONNECT", "PUBACK", "AUTH", "CONNACK", "reserved"])
async def test_first_packet_is_connect(version: int, kind: str) -> None:
    first = {
        "PINGREQ": b"\xc0\x00", "PUBLISH": publish_frame("a", b"x", version=version), "SUBSCRIBE": subscribe_frame(1, ("a", 0), version=version),
        "DISCONNECT": b"\xe0\x00", "PUBACK": b"\x40\x02\x00\x01", "AUTH": b"\xf0\x00", "CONNACK": b"\x20\x02\x00\x00", "reserved": b"\x00\x00",
    }[kind]  # fmt: skip
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.peer(version)
        await peer.send(first, connect_frame(NAME, version=version))
        await peer.expect_end()
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.1.0-2", "MQTT311-3.1.0-2")
async def test_second_connect_closes(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("will/topic")
        peer = await scene.connect("c", version, will=WillMessage("will/topic", b"gone"))
        await peer.send(connect_frame(NAME, version=version), b"\xc0\x00")
        await peer.expect_closed(0x82)
        assert await watcher.payloads() == [b"gone"]


@both_versions
@pytest.mark.parametrize("name", ["MQTX", "mqtt", "MQTT ", "", "MQIsdp"])
@pytest.mark.statement("MQTT5-3.1.2-1", "MQTT311-3.1.2-1")
async def test_other_protocol_name_closes(version: int, name: str) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, version=version, name=name))
        await scene.settle()
        if peer._buffer:
            # An answer is allowed; it refuses the version, in 3.1.1's form for a name that only 3.1 had.
            peer.version = V5 if version >= V5 and name != "MQIsdp" else V311
            assert (await peer.take(ConnAck)).reason == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION
        await peer.expect_end()


@pytest.mark.parametrize("level", [6, 7, 9, 127, 255])
@pytest.mark.statement("MQTT5-3.1.2-2")
async def test_later_protocol_version_is_refused_in_the_newest_form(level: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer()
        await peer.send(connect_frame(NAME, version=level))
        await peer.expect_closed(0x84)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.statement("MQTT5-3.1.2-2", "MQTT311-3.1.2-2")
async def test_earlier_protocol_level_is_refused_in_3_1_1s_form(level: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(NAME, version=level))
        await peer.expect_bytes(b"\x20\x02\x00\x01")
        await peer.expect_end()


@both_versions
@pytest.mark.parametrize("flags", [0x03, 0x01])
@pytest.mark.statement("MQTT5-3.1.2-3", "MQTT311-3.1.2-3")
async def test_reserved_connect_flag_closes(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, version=version, flags=flags))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.parametrize(
    "payload", [NAME, NAME + b"\x00", NAME + string("t"), NAME + b"\x00" + string("t")], ids=["nothing", "00", "topic only", "00 topic"]
)
@pytest.mark.statement("MQTT5-3.1.2-9", "MQTT311-3.1.2-9")
async def test_will_flag_without_the_wills_fields_closes(version: int, payload: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(payload, version=version, flags=0x06))
        await expect_refused(peer, 0x81)


@pytest.mark.statement("MQTT5-3.1.2-9")
async def test_will_without_its_properties_closes() -> None:
    async with Scene() as scene:
        peer = await scene.peer()
        await peer.send(connect_frame(NAME, WILL, flags=0x06))
        await peer.expect_closed()


@both_versions
@pytest.mark.parametrize("flags", [0x0A, 0x12, 0x1A])
@pytest.mark.statement("MQTT5-3.1.2-11", "MQTT311-3.1.2-11", "MQTT311-3.1.2-13")
async def test_will_qos_without_a_will_closes(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, version=version, flags=flags))
        await expect_refused(peer, 0x81, 0x82)


@both_versions
@pytest.mark.parametrize("flags", [0x1E, 0x3E])
@pytest.mark.statement("MQTT5-3.1.2-12", "MQTT311-3.1.2-14")
async def test_will_qos_3_closes(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, will_properties(version), WILL, version=version, flags=flags))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-13", "MQTT311-3.1.2-15", "MQTT311-3.1.2-11")
async def test_will_retain_without_a_will_closes(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, version=version, flags=0x22))
        await expect_refused(peer, 0x81, 0x82)


@pytest.mark.statement("MQTT311-3.1.2-11")
async def test_will_fields_without_the_will_flag_close() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(NAME, WILL, version=V311, flags=0x02))
        await peer.expect_end()


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-16", "MQTT311-3.1.2-18", "MQTT5-3.1.2-18", "MQTT311-3.1.2-20")
async def test_field_without_its_flag_closes(version: int) -> None:
    """What no flag announces is left over at the end: a user name without its flag, a password without its own."""
    async with Scene() as scene:
        for flags, extra in ((0x02, string("user")), (0x82, string("user") + string(b"password"))):
            peer = await scene.peer(version)
            await peer.send(connect_frame(NAME, extra, version=version, flags=flags))
            await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.parametrize(("flags", "payload"), [(0x82, NAME), (0x82, NAME + b"\x00"), (0x82, NAME + b"\x00\x05use")])
@pytest.mark.statement("MQTT5-3.1.2-17", "MQTT311-3.1.2-19")
async def test_user_name_flag_without_the_field_closes(version: int, flags: int, payload: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(payload, version=version, flags=flags))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.parametrize("payload", [NAME + string("user"), NAME + string("user") + b"\x00\x09pass"])
@pytest.mark.statement("MQTT5-3.1.2-19", "MQTT311-3.1.2-21")
async def test_password_flag_without_the_field_closes(version: int, payload: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(payload, version=version, flags=0xC2))
        await expect_refused(peer, 0x81)


@pytest.mark.statement("MQTT5-3.1.2-19")
async def test_password_without_a_user_name_is_good_in_5_0() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", password=b"secret")
        await peer.expect_open()


@pytest.mark.statement("MQTT311-3.1.2-22")
async def test_password_without_a_user_name_closes_in_3_1_1() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(NAME, string(b"secret"), version=V311, flags=0x42))
        await peer.expect_end()


@both_versions
@pytest.mark.statement("MQTT5-3.1.3-1", "MQTT311-3.1.3-1")
async def test_payload_is_read_in_its_order(version: int) -> None:
    seen: list[tuple[str, str | None, bytes | None]] = []

    async def authenticate(request: object) -> str | None:
        seen.append((request.client_id, request.username, request.password))  # type: ignore[attr-defined]
        return "user"

    async with Scene(authenticate=authenticate) as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        peer = await scene.peer(version)
        fields = (string("client"), will_properties(version), string("will"), string(b"\x00payload"), string("name"), string(b"\xffpass"))
        await peer.send(connect_frame(*fields, version=version, flags=0xC6))
        assert (await peer.take(ConnAck)).reason == ReasonCode.SUCCESS
        assert seen[1:] == [("client", "name", b"\xffpass")]
        await peer.drop()
        await watcher.expect_bytes(publish_frame("will", b"\x00payload", version=version))
        # In another order it is another CONNECT, or none: here the password's byte stands where a string has to be.
        peer = await scene.peer(version)
        await peer.send(connect_frame(*fields[:4], fields[5], fields[4], version=version, flags=0xC6))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.statement("MQTT5-3.1.3-3", "MQTT311-3.1.3-3")
async def test_client_identifier_is_always_there(version: int) -> None:
    async with Scene() as scene:
        for payload in (b"", b"\x00", b"\x00\x03ab"):
            peer = await scene.peer(version)
            await peer.send(connect_frame(payload, version=version))
            await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.parametrize("bad", [b"\xff\xfe", b"a\xed\xa0\x80", b"a\x00b"])
@pytest.mark.statement("MQTT5-3.1.3-4", "MQTT311-3.1.3-4")
async def test_client_identifier_is_utf8(version: int, bad: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(string(bad), version=version))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.parametrize("bad", [b"\xff", b"a\xed\xa0\x80", b"a\x00b"])
@pytest.mark.statement("MQTT5-3.1.3-11", "MQTT311-3.1.3-10")
async def test_will_topic_is_utf8(version: int, bad: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, will_properties(version), string(bad), string(b""), version=version, flags=0x06))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.parametrize("bad", [b"\xff", b"a\xed\xa0\x80", b"a\x00b"])
@pytest.mark.statement("MQTT5-3.1.3-12", "MQTT311-3.1.3-11")
async def test_user_name_is_utf8(version: int, bad: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        await peer.send(connect_frame(NAME, string(bad), version=version, flags=0x82))
        await expect_refused(peer, 0x81)


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-1", "MQTT311-3.1.4-1", "MQTT311-3.2.2-6")
async def test_connect_cut_or_lengthened_anywhere_closes(version: int) -> None:
    """A good CONNECT with all fields, its length made to fit: each shorter form and one longer."""
    fields = (NAME, will_properties(version), WILL, string("user"), string(b"password"))
    section = properties(b"\x11\x00\x00\x00\x05")
    good = connect_frame(*fields, version=version, flags=0xC6, property_section=section)
    body = good[2:]
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        for length in range(len(body)):
            peer = await scene.peer(version)
            await peer.send(frame(0x10, body[:length]))
            await scene.settle()
            if peer._buffer:
                answer = await peer.take(ConnAck)
                assert version >= V5, answer
                assert answer.reason.failed
            await peer.expect_end()
        peer = await scene.peer(version)
        await peer.send(frame(0x10, body, b"\x00"))
        await expect_refused(peer, 0x81)
        await watcher.expect_nothing()
        peer = await scene.peer(version)
        await peer.send(good)
        assert (await peer.take(ConnAck)).reason == ReasonCode.SUCCESS


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-1")
async def test_connect_in_single_bytes_is_a_connect(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        for byte in connect_frame(NAME, version=version):
            await peer.expect_nothing()
            await peer.send(bytes((byte,)))
        assert (await peer.take(ConnAck)).reason == ReasonCode.SUCCESS


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-5", "MQTT311-3.1.4-4")
async def test_valid_connect_is_accepted(version: int) -> None:
    async with Scene() as scene:
        await scene.connect("c", version)
        peer = await scene.connect(
            "d", version, clean_start=False, keep_alive_s=65_535, will=WillMessage("w", b"", 2, True), username="", password=b""
        )
        assert peer.frames[0][0] == 0x20
        assert peer.frames[0][2:4] == b"\x00\x00"
        await peer.expect_open()


async def test_mqtt_3_1_is_served() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V31)
        await peer.send(connect_frame(NAME, version=V31, name="MQIsdp"))
        await peer.expect_bytes(b"\x20\x02\x00\x00")
        await peer.subscribe("a", qos=1)
        assert await peer.publish("b", b"x", 1) == ReasonCode.SUCCESS
        sender = await scene.connect("s")
        await sender.publish("a", b"x", 1)
        assert await peer.payloads() == [b"x"]


@pytest.mark.parametrize(
    ("version", "answer"),
    [(V5, ConnAck(False, ReasonCode.SUCCESS, Properties(topic_alias_maximum=32, maximum_packet_size=16_777_216)))],
)
async def test_connack_tells_the_limits(version: int, answer: ConnAck) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        assert await peer.connect("c") == answer
        peer = await scene.peer(version)
        connack = await peer.connect("c", session_expiry_interval=NEVER)
        assert connack.properties.session_expiry_interval == 1_209_600
        assert u16(0) not in peer.frames


@pytest.mark.statement("MQTT311-3.2.2-6", "MQTT311-3.2.2-5")
@pytest.mark.parametrize("will", [WillMessage("$SYS/x", b""), WillMessage("w", b"", 2)])
async def test_a_refusal_that_3_1_1_has_no_code_for_is_silent(will: WillMessage) -> None:
    async with Scene(maximum_qos=1, retain_available=False) as scene:
        peer = await scene.peer(V311)
        await peer.send(Connect("c", V311, will=will))
        await peer.expect_end()
