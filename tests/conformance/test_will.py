"""The Will: kept, published or dropped, when and how (MQTT 5.0, 3.1.2.5 to 3.1.2.7, 3.1.3.2; 3.1.1, 3.1.2.5 to 3.1.2.7)."""

from __future__ import annotations

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import Properties, Publish, WillMessage
from tests.conformance.harness import NEVER, V5, V311, Peer, Scene, both_versions
from tests.conformance.wirebytes import connect_frame, publish_frame, string

WILL = WillMessage("will", b"gone")


def delayed(seconds: int, **properties: object) -> WillMessage:
    return WillMessage("will", b"gone", 0, False, Properties(will_delay_interval=seconds, **properties))  # type: ignore[arg-type]


async def end_by_drop(scene: Scene, peer: Peer) -> None:
    await peer.drop()


async def end_by_half_close(scene: Scene, peer: Peer) -> None:
    await peer.half_close()
    await scene.settle()


async def end_by_silence(scene: Scene, peer: Peer) -> None:
    await scene.advance(16)


async def end_by_violation(scene: Scene, peer: Peer) -> None:
    await peer.send(b"\xc1\x00")
    await scene.settle()


async def end_by_takeover(scene: Scene, peer: Peer) -> None:
    await scene.connect("c", peer.version)


async def end_inside_a_packet(scene: Scene, peer: Peer) -> None:
    await peer.send(publish_frame("a", b"xyz", version=peer.version)[:-1])
    await peer.drop()


LOSSES = [end_by_drop, end_by_half_close, end_by_silence, end_by_violation, end_by_takeover, end_inside_a_packet]


@both_versions
@pytest.mark.parametrize("end", LOSSES)
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.statement("MQTT5-3.1.2-7", "MQTT5-3.1.2-8", "MQTT5-3.1.2-10", "MQTT311-3.1.2-8", "MQTT311-3.1.2-10")
async def test_will_is_published_once_when_the_connection_is_lost(version: int, end: object, lasting: bool) -> None:
    """Whether or not its session goes on."""
    options = {"session_expiry_interval": NEVER} if lasting and version == V5 else {}
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("will")
        peer = await scene.connect("c", version, keep_alive_s=10, will=WILL, clean_start=not lasting, **options)
        await scene.advance(9)
        await watcher.expect_nothing()
        await end(scene, peer)  # type: ignore[operator]
        assert await watcher.payloads() == [b"gone"]
        await scene.advance(100_000)
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-8", "MQTT5-3.1.2-10", "MQTT311-3.1.2-8", "MQTT311-3.1.2-10")
async def test_will_is_dropped_by_a_normal_disconnect(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("will")
        options = {"session_expiry_interval": 60} if version >= V5 else {}
        peer = await scene.connect("c", version, will=WILL, clean_start=False, **options)
        await peer.send(b"\xe0\x00")
        await scene.settle()
        await peer.expect_end()
        await peer.drop()
        await watcher.expect_nothing()
        await scene.advance(100_000)
        await watcher.expect_nothing()


@pytest.mark.parametrize("reason", [0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99])
@pytest.mark.statement("MQTT5-3.1.2-8")
async def test_will_is_published_after_any_other_disconnect(reason: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=WILL)
        await peer.disconnect(ReasonCode(reason))
        assert await watcher.payloads() == [b"gone"]


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-10", "MQTT311-3.1.2-10", "MQTT311-3.1.2-12")
async def test_a_published_will_does_not_come_back_with_the_session(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("will")
        options = {"session_expiry_interval": 60} if version >= V5 else {}
        peer = await scene.connect("c", version, will=WILL, clean_start=False, **options)
        await peer.drop()
        assert await watcher.payloads() == [b"gone"]
        peer = await scene.connect("c", version, clean_start=False, **options)
        assert peer.connack is not None
        assert peer.connack.session_present
        await peer.drop()
        await scene.advance(1000)
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT311-3.1.2-12")
async def test_no_will_no_message(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("#")
        peer = await scene.connect("c", version)
        await peer.drop()
        await watcher.expect_nothing()


@both_versions
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.1.2-14", "MQTT5-3.1.2-15", "MQTT311-3.1.2-16", "MQTT311-3.1.2-17")
async def test_will_retain_and_qos(version: int, qos: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher", version)
        await watcher.subscribe("will/#", qos=2)
        for topic, retain in (("will/passing", False), ("will/kept", True)):
            peer = await scene.connect("c", version, will=WillMessage(topic, b"gone", qos, retain))
            await peer.drop()
            message = await watcher.take_message()
            assert (message.topic, message.qos, message.retain) == (topic, qos, False)
        late = await scene.connect("late", version)
        await late.subscribe("will/#", qos=2)
        message = await late.take_message()
        assert (message.topic, message.payload, message.qos, message.retain) == ("will/kept", b"gone", qos, True)
        await late.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.1.2-15", "MQTT311-3.1.2-17")
async def test_empty_retained_will_clears(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, will=WillMessage("state", b"", 0, True))
        await peer.publish("state", b"online", 1, retain=True)
        await peer.drop()
        late = await scene.connect("late", version)
        await late.subscribe("state")
        await late.expect_nothing()


@pytest.mark.statement("MQTT5-3.1.2-8")
async def test_will_waits_for_its_delay() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=delayed(10), session_expiry_interval=60)
        await peer.drop()
        await scene.advance(9)
        await watcher.expect_nothing()
        await scene.advance(2)
        assert await watcher.payloads() == [b"gone"]
        await scene.advance(1000)
        await watcher.expect_nothing()


@pytest.mark.parametrize("expiry_s", [0, 5])
@pytest.mark.statement("MQTT5-3.1.2-8")
async def test_will_does_not_wait_past_the_sessions_end(expiry_s: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=delayed(10), session_expiry_interval=expiry_s)
        await peer.drop()
        if expiry_s:
            await scene.advance(4)
            await watcher.expect_nothing()
            await scene.advance(2)
        assert await watcher.payloads() == [b"gone"]
        await scene.advance(1000)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-3.1.3-9", "MQTT5-3.1.2-8")
async def test_will_is_not_sent_when_the_client_is_back_before_the_delay_ends() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=delayed(5), session_expiry_interval=60)
        await peer.drop()
        await scene.advance(4)
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=60)
        await scene.advance(1000)
        await watcher.expect_nothing()
        await peer.drop()
        await scene.advance(1000)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-3.1.3-9", "MQTT5-3.1.2-8")
async def test_the_end_of_an_old_delay_does_not_publish_a_new_will() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=delayed(5), session_expiry_interval=60)
        await peer.drop()
        await scene.advance(4)
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=60, will=delayed(5))
        await scene.advance(100)
        await watcher.expect_nothing()
        await peer.drop()
        await scene.advance(6)
        assert await watcher.payloads() == [b"gone"]


@pytest.mark.statement("MQTT5-3.1.2-8", "MQTT5-3.1.3-9")
async def test_clean_start_ends_the_session_and_publishes_the_waiting_will() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=delayed(5), session_expiry_interval=60)
        await peer.drop()
        await watcher.expect_nothing()
        await scene.connect("c", clean_start=True)
        assert await watcher.payloads() == [b"gone"]
        await scene.advance(1000)
        await watcher.expect_nothing()


@pytest.mark.parametrize(
    ("delay_s", "expiry_s", "clean_start", "published"), [(0, 60, False, True), (5, 60, False, False), (5, 60, True, True), (5, 0, False, True)]
)
@pytest.mark.statement("MQTT5-3.1.2-8", "MQTT5-3.1.3-9")
async def test_will_at_a_takeover(delay_s: int, expiry_s: int, clean_start: bool, published: bool) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        old = await scene.connect("c", will=delayed(delay_s), session_expiry_interval=expiry_s)
        await scene.connect("c", clean_start=clean_start, session_expiry_interval=expiry_s)
        await old.expect_closed(0x8E)
        assert await watcher.payloads() == ([b"gone"] if published else [])
        await scene.advance(1000)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-3.1.3-10")
async def test_user_properties_of_a_will_keep_their_order() -> None:
    pairs = (("a", "1"), ("b", "2"), ("a", "3"), ("a", "1"))
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.connect("c", will=WillMessage("will", b"gone", properties=Properties(user_properties=pairs)))
        await peer.drop()
        await watcher.expect(Publish("will", b"gone", properties=Properties(user_properties=pairs)))


async def test_will_properties_are_sent_with_it_except_its_delay() -> None:
    properties = Properties(
        payload_format_indicator=1, message_expiry_interval=30, content_type="text/plain", response_topic="answer", correlation_data=b"\x00\xff"
    )
    async with Scene() as scene:
        watcher = await scene.connect("watcher", session_expiry_interval=100)
        await watcher.subscribe("will", qos=1)
        will = WillMessage(
            "will",
            b"gone",
            1,
            False,
            Properties(**{name: getattr(properties, name) for name in properties.__struct_fields__} | {"will_delay_interval": 10}),
        )
        peer = await scene.connect("c", will=will, session_expiry_interval=60)
        await scene.advance(500)
        await peer.drop()
        await scene.advance(10)
        message = await watcher.take_message()
        assert message.properties == properties  # the expiry counts from the publication, not from CONNECT


@pytest.mark.parametrize("topic", ["a/+", "#", ""])
@pytest.mark.parametrize("version", [V5, V311])
async def test_will_topic_that_is_no_topic_name_is_refused(version: int, topic: str) -> None:
    async with Scene() as scene:
        peer = await scene.peer(version)
        section = b"\x00" if version >= V5 else b""
        await peer.send(connect_frame(string("c"), section, string(topic), string(b""), version=version, flags=0x06))
        await (peer.expect_closed() if version >= V5 else peer.expect_end())
