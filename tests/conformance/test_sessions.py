"""Sessions: begun, continued, ended, taken over; and who is let in (MQTT 5.0, 3.1.2.4, 3.1.3.1, 3.1.4; 3.1.1 likewise)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.net.authentication import ConnectRequest
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, PubAck, Publish, WillMessage
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.wirebytes import connect_frame, publish_frame, string, subscribe_frame


def lasting(version: int, expiry_s: int = NEVER) -> dict[str, Any]:
    """Options of a CONNECT whose session outlives its connection."""
    return {"clean_start": False} | ({"session_expiry_interval": expiry_s} if version >= V5 else {})


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-4", "MQTT5-3.1.4-4", "MQTT5-3.2.2-2", "MQTT311-3.1.2-6", "MQTT311-3.1.4-3", "MQTT311-3.2.2-1")
async def test_clean_start_drops_the_session(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        first = await scene.connect("c", version, **lasting(version))
        await first.subscribe("a", qos=1)
        await first.drop()
        await sender.publish("a", b"queued", 1)
        second = await scene.connect("c", version, clean_start=True)
        assert second.frames[0][2:4] == b"\x00\x00"
        await sender.publish("a", b"live", 1)
        await second.expect_nothing()


@pytest.mark.statement("MQTT311-3.1.2-6", "MQTT311-3.1.2-4")
async def test_clean_session_lives_as_long_as_its_connection() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", V311)
        first = await scene.connect("c", V311, clean_start=True)
        await first.subscribe("a", qos=1)
        await first.disconnect()
        await sender.publish("a", b"queued", 1)
        second = await scene.connect("c", V311, clean_start=False)
        assert second.frames[0] == b"\x20\x02\x00\x00"
        await sender.publish("a", b"live", 1)
        await second.expect_nothing()


@both_versions
@pytest.mark.parametrize("goodbye", ["drop", "disconnect"])
@pytest.mark.statement(
    "MQTT5-3.1.2-5", "MQTT5-3.1.2-23", "MQTT5-3.1.4-4", "MQTT5-3.2.2-3", "MQTT5-3.2.0-1",
    "MQTT311-3.1.2-4", "MQTT311-3.1.2-5", "MQTT311-3.1.4-3", "MQTT311-3.2.2-2", "MQTT311-3.2.0-1",
)  # fmt: skip
async def test_session_is_continued(version: int, goodbye: str) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        first = await scene.connect("c", version, **lasting(version, 60))
        await first.subscribe("a/+", qos=2)
        await (first.drop() if goodbye == "drop" else first.disconnect())
        await sender.publish("a/1", b"one", 1)
        await sender.publish("a/2", b"two", 2)
        await scene.advance(59)
        second = await scene.connect("c", version, **lasting(version, 60))
        assert second.frames[0][2:4] == b"\x01\x00"  # CONNACK came first: `connect` takes nothing else
        assert await second.payloads() == [b"one", b"two"]
        await sender.publish("a/3", b"three", 1)
        assert await second.payloads() == [b"three"]


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-6", "MQTT5-3.2.2-3", "MQTT311-3.1.2-4", "MQTT311-3.2.2-3")
async def test_session_is_begun_where_there_is_none(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, clean_start=False)
        assert peer.frames[0][2:4] == b"\x00\x00"
        await peer.subscribe("a")
        await peer.publish("a", b"x")
        assert await peer.payloads() == [b"x"]


@pytest.mark.statement("MQTT5-3.1.2-23", "MQTT5-3.2.2-3")
async def test_session_expiry_counts_from_the_close() -> None:
    async with Scene() as scene:
        for wait_s, present in ((59, True), (61, False)):
            peer = await scene.connect("c", session_expiry_interval=60)
            await scene.advance(1000)
            await peer.drop()
            await scene.advance(wait_s)
            peer = await scene.connect("c", clean_start=False, session_expiry_interval=60)
            assert peer.connack is not None
            assert peer.connack.session_present is present


@both_versions
@pytest.mark.statement("MQTT311-3.1.2-7")
async def test_retained_messages_outlive_the_session(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, clean_start=True)
        await peer.publish("a", b"kept", 1, retain=True)
        await peer.disconnect()
        await scene.connect("c", version, clean_start=True)
        other = await scene.connect("d", version)
        await other.subscribe("a")
        await other.expect(Publish("a", b"kept", 0, True))


@both_versions
@pytest.mark.statement("MQTT5-3.1.3-2", "MQTT311-3.1.3-2")
async def test_sessions_are_told_apart_by_the_client_identifier(version: int) -> None:
    async with Scene() as scene:
        names = ["c", "C", "c ", "cc", "é", "e\u0301"]
        for name in names:
            peer = await scene.connect(name, version, **lasting(version))
            assert peer.connack is not None
            assert not peer.connack.session_present
            await peer.subscribe(f"for/{name}", qos=1)
            await peer.drop()
        sender = await scene.connect("s", version)
        for name in names:
            await sender.publish(f"for/{name}", name.encode(), 1)
        for name in names:
            peer = await scene.connect(name, version, **lasting(version))
            assert await peer.payloads() == [name.encode()]


@both_versions
@pytest.mark.parametrize("name", ["a", "0", "Z", "abcdefghijklmnopqrstuvw", "ABCDEFGHIJKLMNOPQRSTUVW", "xyzXYZ01234567890123456"])
@pytest.mark.statement("MQTT5-3.1.3-5", "MQTT311-3.1.3-5")
async def test_plain_client_identifiers_are_accepted(version: int, name: str) -> None:
    async with Scene() as scene:
        assert 1 <= len(name) <= 23
        peer = await scene.connect(name, version)
        await peer.expect_open()


@pytest.mark.statement("MQTT5-3.1.3-6", "MQTT5-3.2.2-16", "MQTT5-3.1.3-7")
async def test_assigned_client_identifiers_are_new_told_and_used() -> None:
    async with Scene() as scene:
        peers = [await scene.connect("", clean_start=start, session_expiry_interval=60) for start in (True, False, True)]
        names = []
        for peer in peers:
            assert peer.connack is not None
            name = peer.connack.properties.assigned_client_identifier
            assert name
            names.append(name)
            await peer.expect_open()
        assert len(set(names)) == 3
        await peers[0].subscribe("a", qos=1)
        await peers[0].drop()
        sender = await scene.connect("s")
        await sender.publish("a", b"x", 1)
        again = await scene.connect(names[0], clean_start=False)
        assert again.connack is not None
        assert again.connack.session_present
        assert again.connack.properties.assigned_client_identifier is None
        assert await again.payloads() == [b"x"]


@pytest.mark.statement("MQTT311-3.1.3-6")
async def test_empty_client_identifiers_get_sessions_of_their_own() -> None:
    async with Scene() as scene:
        one = await scene.connect("", V311)
        two = await scene.connect("", V311)
        await one.subscribe("a")
        await two.subscribe("b")
        await two.publish("a", b"x")
        assert await one.payloads() == [b"x"]
        await two.expect_nothing()


@pytest.mark.statement("MQTT311-3.1.3-7", "MQTT311-3.1.3-8", "MQTT311-3.1.3-9", "MQTT311-3.2.2-4", "MQTT311-3.2.2-5")
async def test_empty_client_identifier_without_clean_session_is_rejected() -> None:
    async with Scene() as scene:
        peer = await scene.peer(V311)
        await peer.send(connect_frame(string(""), version=V311, flags=0x00))
        await peer.expect_bytes(b"\x20\x02\x00\x02")
        await peer.expect_end()


@both_versions
@pytest.mark.statement("MQTT5-3.1.3-8", "MQTT311-3.1.3-9", "MQTT5-3.2.2-7", "MQTT311-3.2.2-5")
async def test_client_identifier_that_is_refused(version: int) -> None:
    async with Scene(client_id_bytes_max=23) as scene:
        for name in ("x" * 24, "é" * 12):
            peer = await scene.peer(version)
            await peer.send(Connect(name, version))
            assert (await peer.take(ConnAck)).reason == ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
            await peer.expect_end()
        assert peer.frames[0][3] == (0x85 if version >= V5 else 0x02)
        await scene.connect("x" * 23, version)


async def check_password(request: ConnectRequest) -> str | None:
    return request.username if request.password == b"right" else None


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-2", "MQTT5-3.2.2-7", "MQTT5-3.2.2-6", "MQTT311-3.2.2-5", "MQTT311-3.2.2-4")
async def test_wrong_password_closes(version: int) -> None:
    async with Scene(authenticate=check_password) as scene:
        peer = await scene.connect("c", version, username="u", password=b"right", **lasting(version))
        await peer.drop()
        peer = await scene.peer(version)
        connack = await peer.connect("c", username="u", password=b"wrong", **lasting(version))
        assert connack.reason in (ReasonCode.BAD_USER_NAME_OR_PASSWORD, ReasonCode.NOT_AUTHORIZED)
        assert not connack.session_present  # although there is a session
        assert peer.frames[0][2] == 0
        await peer.expect_end()
        peer = await scene.connect("c", version, username="u", password=b"right", **lasting(version))
        assert peer.connack is not None
        assert peer.connack.session_present


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-2", "MQTT5-3.2.2-7")
async def test_will_that_is_not_allowed_closes(version: int) -> None:
    async with Scene(authorize=lambda user, client, action, topic: topic != "secret") as scene:
        peer = await scene.peer(version)
        connack = await peer.connect("c", will=WillMessage("secret", b"x"))
        assert connack.reason == ReasonCode.NOT_AUTHORIZED
        await peer.expect_end()


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-2")
async def test_too_many_sessions_closes(version: int) -> None:
    async with Scene(sessions_count_max=1) as scene:
        await scene.connect("a", version)
        peer = await scene.peer(version)
        connack = await peer.connect("b")
        assert connack.reason == (ReasonCode.QUOTA_EXCEEDED if version >= V5 else ReasonCode.SERVER_UNAVAILABLE)
        await peer.expect_end()


@pytest.mark.parametrize("newer", [V5, V311])
@both_versions
@pytest.mark.statement("MQTT5-3.1.4-3", "MQTT311-3.1.4-2")
async def test_takeover_disconnects_the_older_connection(version: int, newer: int) -> None:
    async with Scene() as scene:
        old = await scene.connect("c", version, **lasting(version))
        await old.subscribe("a", qos=1)
        new = await scene.connect("c", newer, **lasting(newer))
        await old.expect_closed(0x8E)
        assert new.connack is not None
        assert new.connack.session_present
        await old.send(publish_frame("a", b"late", version=version))
        await new.expect_nothing()
        await new.publish("a", b"x")
        assert await new.payloads() == [b"x"]


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-3", "MQTT311-3.1.4-2", "MQTT5-3.2.2-3")
async def test_takeover_of_a_session_that_does_not_last(version: int) -> None:
    async with Scene() as scene:
        old = await scene.connect("c", version)
        await old.subscribe("a")
        new = await scene.connect("c", version, clean_start=False)
        await old.expect_closed(0x8E)
        assert new.connack is not None
        assert not new.connack.session_present
        await new.publish("a", b"x")
        await new.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.1.4-6", "MQTT311-3.1.4-5")
async def test_nothing_after_a_refused_connect_is_processed(version: int) -> None:
    async with Scene(authenticate=check_password) as scene:
        watcher = await scene.connect("watcher", version, username="w", password=b"right")
        await watcher.subscribe("#")
        for connect in (
            Connect("c", version, username="u", password=b"wrong"),
            connect_frame(string("c"), version=version, flags=0x03),
        ):
            peer = await scene.peer(version)
            await peer.send(
                connect,
                publish_frame("a", b"x", version=version, first_byte=0x31),
                publish_frame("b", b"x", version=version, first_byte=0x32, packet_id=1),
                subscribe_frame(1, ("a", 0), version=version),
                connect_frame(string("d"), version=version),
            )
            for packet in await peer.receive_all():
                assert isinstance(packet, ConnAck), packet
                assert packet.reason.failed
            await peer.expect_end()
            assert len(peer.frames) <= 1
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.2.0-1", "MQTT311-3.2.0-1", "MQTT5-3.2.0-2")
async def test_connack_comes_first_and_once(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        peer = await scene.connect("c", version, **lasting(version))
        await peer.subscribe("a/#", qos=2)
        await sender.publish("a/0", b"0", 2)
        first = await peer.take(Publish)
        await peer.drop()
        await sender.publish("a/1", b"1", 1, retain=True)
        # All in one write: the messages of the resumed session and the answers come after CONNACK.
        peer = await scene.peer(version)
        await peer.send(
            connect_frame(
                string("c"), version=version, flags=0, property_section=b"\x05\x11\xff\xff\xff\xff"
            ),
            subscribe_frame(9, ("a/#", 2), version=version), b"\xc0\x00", PubAck(first.packet_id + 1),
        )  # fmt: skip
        packets = await peer.receive_all()
        assert isinstance(packets[0], ConnAck)
        assert packets[0].session_present
        assert sum(isinstance(packet, ConnAck) for packet in packets) == 1
        assert len(packets) > 3


@pytest.mark.statement("MQTT5-3.2.0-1")
async def test_packets_ahead_of_the_answer_wait_for_it() -> None:
    """A client may send on without waiting for CONNACK; what it sends is done once it is known who it is."""
    async with Scene(authenticate=check_password) as scene:
        peer = await scene.peer()
        await peer.send(Connect("c", username="u", password=b"right"), subscribe_frame(1, ("a", 0)), publish_frame("a", b"x"), b"\xc0\x00")
        packets = await peer.receive_all()
        assert [type(packet).__name__ for packet in packets] == ["ConnAck", "SubAck", "Publish", "PingResp"]
