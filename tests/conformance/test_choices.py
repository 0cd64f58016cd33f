"""Where the standards are silent: the ways taken, as choices.md (and with it docs/conformance.md) says them."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Properties, PubAck, Publish, WillMessage
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.wirebytes import connect_frame, publish_frame, string


@both_versions
@pytest.mark.parametrize("text", ["a\x01b", "\x7f", "\x9f", "\ufdd0", "\uffff", "\U0001fffe"])
async def test_control_characters_and_non_characters_are_accepted(version: int, text: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c" + text, version)
        await peer.subscribe(text)
        await peer.publish(text, b"x")
        await peer.expect_bytes(publish_frame(text, b"x", version=version))


async def test_connect_above_the_maximum_packet_size_closes_without_a_byte() -> None:
    async with Scene(packet_bytes_max=1000) as scene:
        for version in (V5, V311):
            peer = await scene.peer(version)
            await peer.send(connect_frame(string("c" * 2000), version=version)[:10])
            await peer.expect_end()


@both_versions
async def test_bytes_of_a_packet_under_way_count_for_keep_alive(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, keep_alive_s=10)
        frame = publish_frame("a", bytes(100), version=version, first_byte=0x32, packet_id=1)
        for byte in frame[:5]:
            await scene.advance(14)
            await peer.send(bytes((byte,)))
        await peer.send(frame[5:])
        assert (await peer.take(PubAck)).packet_id == 1
        await scene.advance(16)
        await peer.expect_closed(0x8D)


async def test_no_local_does_not_hold_back_retained_messages() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.publish("a", b"kept", 1, retain=True)
        await peer.subscribe("a", no_local=True)
        assert await peer.payloads() == [b"kept"]
        await peer.publish("a", b"live")
        await peer.expect_nothing()


@both_versions
async def test_qos_0_is_not_kept_for_a_client_that_is_away(version: int) -> None:
    async with Scene() as scene:
        options = {"session_expiry_interval": NEVER} if version >= V5 else {}
        peer = await scene.connect("c", version, clean_start=False, **options)
        await peer.subscribe("a", qos=2)
        await peer.drop()
        sender = await scene.connect("s", version)
        await sender.publish("a", b"zero")
        await sender.publish("a", b"one", 1)
        peer = await scene.connect("c", version, clean_start=False, **options)
        assert await peer.payloads() == [b"one"]


async def test_what_3_1_1_wants_retained_where_nothing_is_comes_through_once(caplog: pytest.LogCaptureFixture) -> None:
    async with Scene(retain_available=False) as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("a", qos=2, retain_as_published=True)
        peer = await scene.connect("c", V311, will=WillMessage("a", b"will", 1, True))
        for qos in (0, 1, 2):
            await peer.publish("a", b"%d" % qos, qos, retain=True)
        await peer.publish("a", b"", 1, retain=True)
        await peer.drop()
        messages = [await watcher.take(Publish) for _ in range(5)]
        assert [message.payload for message in messages] == [b"0", b"1", b"2", b"", b"will"]
        assert not any(message.retain for message in messages)
        await watcher.expect_nothing()
        later = await scene.connect("later")
        await later.subscribe("a")
        await later.expect_nothing()
    said = [record.getMessage() for record in caplog.records if "retained" in record.getMessage()]
    assert len(said) == 1
    assert "'c' from " in said[0]
    assert "retain_available = false" in said[0]


async def test_a_session_of_3_1_1_expires_like_the_longest_of_5_0() -> None:
    async with Scene(session_expiry_s_max=1000) as scene:
        for wait_s, present in ((999, True), (1001, False)):
            peer = await scene.connect("c", V311, clean_start=False)
            await peer.drop()
            await scene.advance(wait_s)
            peer = await scene.connect("c", V311, clean_start=False)
            assert peer.connack == ConnAck(present, ReasonCode.SUCCESS)


async def test_a_session_expiry_that_is_too_long_is_cut_and_told() -> None:
    async with Scene(session_expiry_s_max=1000) as scene:
        for wanted, told in ((NEVER, 1000), (1001, 1000), (1000, None), (0, None)):
            peer = await scene.connect("c", session_expiry_interval=wanted)
            assert peer.connack is not None
            assert peer.connack.properties.session_expiry_interval == told


@both_versions
async def test_a_session_belongs_to_the_user_who_made_it(version: int) -> None:
    async def anybody(request: object) -> str | None:
        name = getattr(request, "username", None)
        return name if isinstance(name, str) else None

    async with Scene(authenticate=anybody) as scene:
        options = {"session_expiry_interval": NEVER} if version >= V5 else {}
        peer = await scene.connect("c", version, clean_start=False, username="alice", **options)
        await peer.subscribe("a", qos=1)
        await peer.drop()
        sender = await scene.connect("s", version, username="s")
        await sender.publish("a", b"for alice", 1)
        peer = await scene.connect("c", version, clean_start=False, username="mallory", **options)
        assert peer.connack is not None
        assert not peer.connack.session_present
        await peer.expect_nothing()


async def test_a_new_connect_replaces_the_will() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w")
        await watcher.subscribe("will/#")
        for will in (WillMessage("will/new", b""), None):
            old = WillMessage("will/old", b"", 0, False, Properties(will_delay_interval=5))
            peer = await scene.connect("c", session_expiry_interval=60, clean_start=False, will=old)
            await peer.drop()
            peer = await scene.connect("c", session_expiry_interval=60, clean_start=False, will=will)
            await peer.drop()
            await scene.advance(10)
            topics = [packet.topic for packet in await watcher.receive_all() if isinstance(packet, Publish)]
            assert topics == (["will/new"] if will else [])


async def test_sys_topics_are_not_for_clients_and_other_dollar_topics_are() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w")
        await watcher.subscribe("$SYS/#", "$other/#", "#", "+/x")
        peer = await scene.connect("c")
        assert await peer.publish("$SYS/x", b"x", 1) == ReasonCode.NOT_AUTHORIZED
        await watcher.expect_nothing()
        assert await peer.publish("$other/x", b"x", 1) == ReasonCode.SUCCESS
        assert len(await watcher.payloads()) == 1
        refused = await scene.peer()
        await refused.send(Connect("d", will=WillMessage("$SYS/x", b"")))
        assert (await refused.take(ConnAck)).reason == ReasonCode.TOPIC_NAME_INVALID


async def test_shared_subscriptions_serve_3_1_1_and_never_match_dollar_by_a_wildcard() -> None:
    async with Scene() as scene:
        one, two = await scene.connect("one", V311), await scene.connect("two", V5)
        for peer in (one, two):
            await peer.subscribe("$share/g/#", qos=1)
        sender = await scene.connect("s")
        await sender.publish("$other/x", b"x", 1)
        for number in range(10):
            await sender.publish("a", str(number).encode(), 1)
        first, second = await one.payloads(), await two.payloads()
        assert len(first) == len(second) == 5
        assert sorted(first + second) == [str(number).encode() for number in range(10)]
