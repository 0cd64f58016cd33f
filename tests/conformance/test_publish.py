"""PUBLISH: its flags, its topic, its properties, its answers, and who gets it (MQTT 5.0, 3.3; 3.1.1, 3.3)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Properties, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe, SubscriptionRequest
from broker.wire.topics import matches
from tests.conformance.harness import NEVER, V5, V311, Peer, Scene, both_versions
from tests.conformance.shorthand import drain
from tests.conformance.wirebytes import connect_frame, properties, publish_frame, string, u16, u32


def lasting(version: int) -> dict[str, Any]:
    return {"clean_start": False} | ({"session_expiry_interval": NEVER} if version >= V5 else {})


# ---- flags ----


@both_versions
@pytest.mark.statement("MQTT5-3.3.1-1", "MQTT311-3.3.1-1")
async def test_what_is_sent_again_has_dup(version: int) -> None:
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        peer = await scene.connect("c", version, **lasting(version))
        await peer.subscribe("a", qos=2)
        await sender.publish("a", b"1", 1)
        await sender.publish("a", b"2", 2)
        first = [await peer.receive_frame(), await peer.receive_frame()]
        assert [one[0] for one in first] == [0x32, 0x34]
        await peer.drop()
        for _ in range(2):
            peer = await scene.connect("c", version, **lasting(version))
            again = [await peer.receive_frame(), await peer.receive_frame()]
            assert again == [bytes((one[0] | 0x08,)) + one[1:] for one in first]
            await peer.expect_nothing()
            await peer.drop()


@both_versions
@pytest.mark.parametrize("first_byte", [0x38, 0x39])
@pytest.mark.statement("MQTT5-3.3.1-2", "MQTT311-3.3.1-2")
async def test_dup_at_qos_0(version: int, first_byte: int) -> None:
    """What becomes of it is left open; we close. The broker itself never sends it, whatever came in."""
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        await peer.send(publish_frame("a", b"x", version=version, first_byte=first_byte))
        await peer.expect_closed()
        watcher = await scene.connect("w", version)
        await watcher.subscribe("a", qos=0)
        sender = await scene.connect("s", version)
        for qos in (1, 2):
            await sender.send(Publish("a", b"x", qos, dup=True, packet_id=1))
            assert (await watcher.receive_frame())[0] == 0x30


@both_versions
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.statement("MQTT5-3.3.1-3", "MQTT311-3.3.1-3")
async def test_dup_is_not_passed_on(version: int, qos: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("a", qos=2)
        sender = await scene.connect("s", version)
        await sender.send(Publish("a", b"x", qos, dup=True, packet_id=1))
        message = await watcher.take_message()
        assert (message.payload, message.qos, message.dup) == (b"x", qos, False)


@both_versions
@pytest.mark.parametrize("first_byte", [0x36, 0x37, 0x3E, 0x3F])
@pytest.mark.statement("MQTT5-3.3.1-4", "MQTT311-3.3.1-4")
async def test_qos_3_closes(version: int, first_byte: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("#", qos=2)
        peer = await scene.connect("c", version)
        await peer.send(publish_frame("a", b"x", version=version, first_byte=first_byte, packet_id=1))
        await peer.expect_closed(0x81)
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.3.1-2", "MQTT5-3.3.1-4", "MQTT311-3.3.1-2", "MQTT311-3.3.1-4", "MQTT5-3.3.2-3", "MQTT311-3.3.2-3")
async def test_flags_and_topics_of_what_the_broker_sends(version: int) -> None:
    """Every QoS to every grant: the lesser of both, no DUP, and a topic that the filter matches."""
    filters = {0: "q0/#", 1: "+/one", 2: "q2/+"}
    async with Scene() as scene:
        sender = await scene.connect("s", version)
        for granted, filter in filters.items():
            watcher = await scene.connect("w", version)
            await watcher.subscribe(filter, qos=granted)
            for published in range(3):
                for topic in ("q0", "q0/one", "q0/x/y", "q1/one", "q2/one", "q2/x", "q2", "q2/x/y", "one", "/one", "$SYS/one", "$q/one"):
                    await sender.send(Publish(topic, b"", published, packet_id=published))
                    answers = await sender.receive_all()
                    if published == 2 and isinstance(answers[0], PubRec) and not answers[0].reason.failed:
                        await sender.send(PubRel(2))
                        await sender.take(PubComp)
                    wanted = matches(filter, topic) and not topic.startswith("$SYS")
                    if wanted:
                        message = await watcher.take_message()
                        assert (message.topic, message.qos, message.dup) == (topic, min(published, granted), False)
                    else:
                        await watcher.expect_nothing()


# ---- topic name ----


@both_versions
@pytest.mark.parametrize("topic", ["a/+", "+", "#", "a/#", "a+", "a#b", "a/+/b"])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.3.2-2", "MQTT311-3.3.2-2")
async def test_wildcard_in_a_topic_name_closes(version: int, topic: str, qos: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("#", topic if topic in ("a/+", "+", "#", "a/#", "a/+/b") else "a")
        peer = await scene.connect("c", version)
        await peer.send(publish_frame(topic, b"x", version=version, first_byte=0x30 | qos << 1, packet_id=1 if qos else None))
        await peer.expect_closed(0x90, 0x81, 0x82)
        await watcher.expect_nothing()


@both_versions
@pytest.mark.statement("MQTT5-3.3.2-1", "MQTT311-3.3.2-1")
async def test_topic_name_comes_first(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("#", qos=1)
        peer = await scene.connect("c", version)
        await peer.send(publish_frame("a/é", b"x", version=version, first_byte=0x32, packet_id=0x6162))
        received = await watcher.receive_frame()
        assert received[2:8] == b"\x00\x04a/\xc3\xa9"
        # Cut short: a length that points past the packet's end.
        await peer.send(b"\x30\x03\x00\x05a")
        await peer.receive_frame()
        await peer.expect_closed(0x81)


# ---- properties ----


@pytest.mark.parametrize("version", [V5])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement(
    "MQTT5-3.3.2-4", "MQTT5-3.3.2-15", "MQTT5-3.3.2-16", "MQTT5-3.3.2-17", "MQTT5-3.3.2-18", "MQTT5-3.3.2-20"
)  # fmt: skip
async def test_properties_are_forwarded_unchanged(version: int, qos: int) -> None:
    cases = [
        Properties(payload_format_indicator=0), Properties(payload_format_indicator=1),
        Properties(response_topic="answers/é"), Properties(response_topic="a", correlation_data=b"\x00\xff\x00"), Properties(correlation_data=b""),
        Properties(content_type="text/plain; charset=utf-8"), Properties(content_type=""),
        Properties(user_properties=(("b", "1"), ("a", "2"), ("b", "1"), ("b", "3"), ("", ""), ("é", "\ufeff"))),
        Properties(1, None, "t", "r", b"c", user_properties=(("x", "y" * 1000),)),
    ]  # fmt: skip
    async with Scene() as scene:
        watchers = [await scene.connect(name, version, topic_alias_maximum=alias) for name, alias in (("w1", 0), ("w2", 5))]
        for watcher in watchers:
            await watcher.subscribe("a", qos=qos)
        sender = await scene.connect("s", version)
        for one in cases:
            for retain in (False, True):
                await sender.send(Publish("a", b"\xc3\xa9", qos, retain, packet_id=sender.next_id() if qos else 0, properties=one))
                for watcher in watchers:
                    message = await watcher.take_message()
                    found = message.properties
                    assert [getattr(found, name) for name in found.__struct_fields__ if name != "topic_alias"] == [
                        getattr(one, name) for name in one.__struct_fields__ if name != "topic_alias"
                    ]
                    assert message.payload == b"\xc3\xa9"
            late = await scene.connect("late")
            await late.subscribe("a", qos=qos)
            assert (await late.take_message()).properties == one
            await late.disconnect()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement(
    "MQTT5-3.3.2-4", "MQTT5-3.3.2-15", "MQTT5-3.3.2-16", "MQTT5-3.3.2-17", "MQTT5-3.3.2-18", "MQTT5-3.3.2-20", "MQTT5-3.3.4-3"
)  # fmt: skip
@pytest.mark.parametrize("identifier", [0, 7])
async def test_properties_of_many_are_forwarded_unchanged_to_each(qos: int, identifier: int) -> None:
    """At once or from a queue, at any lesser QoS, also as retained messages to whoever comes late; and they stand in nobody's way who has none."""
    one = Properties(1, None, "text", "answers", b"c", user_properties=(("b", "1"), ("a", "2")))
    payloads = [b"%d" % (number % 25 + 1) for number in range(50)]

    async def watch(scene: Scene, name: str, granted: int, version: int) -> Peer:
        watcher = await scene.connect(f"{name}{granted}{version}", version, **({"receive_maximum": 5 + 20 * granted} if version == V5 else {}))
        section = Properties(subscription_identifiers=(identifier,)) if identifier and version == V5 else Properties()
        await watcher.send(Subscribe(1, (SubscriptionRequest("t/+", granted),), section))
        await watcher.take(SubAck)
        return watcher

    kinds = [(granted, version) for granted in (0, 1, 2) for version in (V5, V311)]
    async with Scene() as scene:
        watchers = [(granted, await watch(scene, "w", granted, version), 50) for granted, version in kinds]
        publisher = await scene.connect("p")
        for retain in (False, True):
            ids = range(1, 26)
            await publisher.send(*(Publish("t/1", b"%d" % id, qos, retain, packet_id=id if qos else 0, properties=one) for id in ids))
            if qos == 2:
                await publisher.send(*(PubRel(id) for id in ids))
        await publisher.receive_all()
        watchers += [(granted, await watch(scene, "late", granted, version), 1) for granted, version in kinds]
        for granted, watcher, count in watchers:
            messages = await drain(watcher)
            assert [message.payload for message in messages] == payloads[-count:]
            assert {message.qos for message in messages} == {min(qos, granted)}
            expected = structs.replace(one, subscription_identifiers=(identifier,) if identifier else ()) if watcher.version == V5 else Properties()
            assert all(message.properties == expected for message in messages)


@pytest.mark.parametrize("identifier", [b"\x08", b"\x03"], ids=["response topic", "content type"])
@pytest.mark.parametrize("bad", [b"\xff", b"a\xed\xa0\x80", b"a\x00b"])
@pytest.mark.statement("MQTT5-3.3.2-13", "MQTT5-3.3.2-19")
async def test_response_topic_and_content_type_are_utf8(identifier: bytes, bad: bytes) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w")
        await watcher.subscribe("#")
        peer = await scene.connect("c")
        await peer.send(publish_frame("a", property_section=properties(identifier, string(bad))))
        await peer.expect_closed(0x81)
        # The same in a Will.
        peer = await scene.peer()
        await peer.send(connect_frame(string("c"), properties(identifier, string(bad)), string("w"), string(b""), flags=0x06))
        await peer.expect_closed(0x81)
        await watcher.expect_nothing()


@pytest.mark.parametrize("topic", ["a/#", "+", "a/+/b"])
@pytest.mark.statement("MQTT5-3.3.2-14")
async def test_wildcard_in_a_response_topic_closes(topic: str) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w")
        await watcher.subscribe("#")
        peer = await scene.connect("c")
        await peer.send(publish_frame("a", property_section=properties(b"\x08", string(topic))))
        await peer.expect_closed()
        peer = await scene.peer()
        await peer.send(connect_frame(string("c"), properties(b"\x08", string(topic)), string("w"), string(b""), flags=0x06))
        await peer.expect_closed()
        await watcher.expect_nothing()


# ---- Message Expiry ----


@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.statement("MQTT5-3.3.2-5")
async def test_expired_in_the_queue_is_not_delivered(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version, **lasting(version))
        await peer.subscribe("a", qos=1)
        await peer.drop()
        sender = await scene.connect("s")
        await sender.publish("a", b"short", 1, message_expiry_interval=2)
        await sender.publish("a", b"long", 1, message_expiry_interval=100)
        await sender.publish("a", b"for ever", 1)
        await scene.advance(3)
        peer = await scene.connect("c", version, **lasting(version))
        assert await peer.payloads() == [b"long", b"for ever"]


@pytest.mark.statement("MQTT5-3.3.2-5")
async def test_expired_behind_the_receive_maximum_is_not_delivered() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", receive_maximum=1)
        await peer.subscribe("a", qos=1)
        sender = await scene.connect("s")
        await sender.publish("a", b"under way", 1, message_expiry_interval=2)
        await sender.publish("a", b"waiting", 1, message_expiry_interval=2)
        await sender.publish("a", b"later", 1)
        await scene.advance(3)
        assert await peer.payloads() == [b"under way", b"later"]


@pytest.mark.statement("MQTT5-3.3.2-5")
async def test_expired_retained_message_is_gone() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        await sender.publish("a", b"x", 1, retain=True, message_expiry_interval=5)
        for wait_s, payloads in ((4, [b"x"]), (2, [])):
            await scene.advance(wait_s)
            peer = await scene.connect("c")
            await peer.subscribe("a")
            assert await peer.payloads() == payloads


@pytest.mark.statement("MQTT5-3.3.2-6")
async def test_forwarded_expiry_is_what_is_left() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        live = await scene.connect("live")
        away = await scene.connect("away", session_expiry_interval=NEVER)
        for peer in (live, away):
            await peer.subscribe("a", qos=1)
        await away.drop()
        await sender.publish("a", b"x", 1, retain=True, message_expiry_interval=10)
        assert (await live.take_message()).properties.message_expiry_interval == 10
        await scene.advance(3)
        away = await scene.connect("away", clean_start=False, session_expiry_interval=NEVER)
        assert (await away.take_message()).properties.message_expiry_interval == 7
        late = await scene.connect("late")
        await late.subscribe("a")
        assert (await late.take_message()).properties.message_expiry_interval == 7
        await sender.publish("a", b"x", 1)
        assert (await live.take_message()).properties.message_expiry_interval is None
        await sender.send(publish_frame("a", property_section=properties(b"\x02", u32(0xFFFF_FFFF))))
        assert (await live.take_message()).properties.message_expiry_interval == 0xFFFF_FFFF


# ---- answers ----


@both_versions
@pytest.mark.statement("MQTT5-3.3.4-1", "MQTT311-3.3.4-1")
async def test_answers_by_qos(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("a")
        peer = await scene.connect("c", version)
        await peer.send(publish_frame("a", b"0", version=version))
        await peer.expect_nothing()
        await peer.send(publish_frame("a", b"1", version=version, first_byte=0x32, packet_id=1))
        await peer.expect_bytes(b"\x40\x02\x00\x01")
        await peer.send(publish_frame("a", b"2", version=version, first_byte=0x34, packet_id=2))
        await peer.expect_bytes(b"\x50\x02\x00\x02")
        await peer.expect_nothing()
        assert await watcher.payloads() == [b"0", b"1", b"2"]


@both_versions
@pytest.mark.statement("MQTT5-3.3.4-1", "MQTT311-3.3.4-1", "MQTT311-3.3.5-2")
async def test_what_is_not_allowed_is_answered_and_dropped(version: int) -> None:
    async with Scene(authorize=lambda user, client, action, topic: not (action == "publish" and topic == "secret")) as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("#", qos=2)
        peer = await scene.connect("c", version)
        for retain in (False, True):
            refused = ReasonCode.NOT_AUTHORIZED if version >= V5 else ReasonCode.SUCCESS
            assert await peer.publish("secret", b"x", 0, retain=retain) == ReasonCode.SUCCESS
            assert await peer.publish("secret", b"x", 1, retain=retain) == refused
            assert await peer.publish("secret", b"x", 2, retain=retain) == refused
        await watcher.expect_nothing()
        late = await scene.connect("late", version)
        await late.subscribe("secret")
        await late.expect_nothing()
        assert await peer.publish("open", b"y", 1) == ReasonCode.SUCCESS
        assert await watcher.payloads() == [b"y"]


# ---- overlapping subscriptions ----


@both_versions
@pytest.mark.statement("MQTT5-3.3.4-2", "MQTT311-3.3.5-1")
async def test_overlapping_subscriptions_deliver_at_the_highest_qos(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", version)
        for filter, qos in (("a/#", 0), ("a/b", 2), ("+/b", 1), ("#", 0)):
            await peer.subscribe(filter, qos=qos)
        sender = await scene.connect("s", version)
        for published in range(3):
            await sender.publish("a/b", b"x", published)
            copies = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
            assert max(packet.qos for packet in copies) == published
            assert len(copies) == 1  # one copy is our way


@pytest.mark.statement("MQTT5-3.3.4-3", "MQTT5-3.3.4-4", "MQTT5-3.3.4-5")
async def test_subscription_identifiers_come_with_what_they_caused() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", session_expiry_interval=NEVER)
        await peer.subscribe("a/#", qos=0, identifier=1)
        await peer.subscribe("a/b", qos=2, identifier=2)
        await peer.subscribe("+/b", qos=1)
        await peer.subscribe("a/+", qos=1, identifier=268_435_455)
        await peer.subscribe("other", qos=1, identifier=9)
        sender = await scene.connect("s")

        async def identifiers(topic: str) -> list[int]:
            await sender.publish(topic, b"x", 1)
            copies = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
            await peer.send(*(PubAck(packet.packet_id) for packet in copies if packet.qos == 1))
            assert copies
            if len(copies) > 1:  # one copy each: each with its own
                assert all(len(packet.properties.subscription_identifiers) <= 1 for packet in copies)
            return sorted({identifier for packet in copies for identifier in packet.properties.subscription_identifiers})

        assert await identifiers("a/b") == [1, 2, 268_435_455]
        assert await identifiers("a/b/c") == [1]
        assert await identifiers("x/b") == []
        assert await identifiers("other") == [9]
        # From the session of a client that was away too.
        await peer.drop()
        await sender.publish("a/b", b"x", 1)
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=NEVER)
        message = await peer.take_message()
        assert sorted(message.properties.subscription_identifiers) == [1, 2, 268_435_455]
        # And with retained messages.
        await sender.publish("kept", b"x", 0, retain=True)
        await peer.subscribe("kept", identifier=7)
        assert (await peer.take_message()).properties.subscription_identifiers == (7,)


@pytest.mark.statement("MQTT5-3.3.4-4")
async def test_one_copy_for_two_identical_identifiers() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.subscribe("a/#", identifier=5)
        await peer.subscribe("a/b", identifier=5)
        await peer.publish("a/b", b"x")
        copies = [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
        assert {identifier for packet in copies for identifier in packet.properties.subscription_identifiers} == {5}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.3.4-6")
async def test_subscription_identifier_from_a_client_closes(qos: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w")
        await watcher.subscribe("#")
        peer = await scene.connect("c")
        frame = publish_frame("a", b"x", first_byte=0x30 | qos << 1, packet_id=1 if qos else None, property_section=properties(b"\x0b\x01"))
        await peer.send(frame)
        await peer.expect_closed(0x82)
        await watcher.expect_nothing()


async def test_empty_topic_without_an_alias_closes() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        await peer.send(publish_frame("", b"x"))
        await peer.expect_closed(0x82)
        peer = await scene.connect("c", V311)
        await peer.send(publish_frame("", b"x", version=V311))
        await peer.expect_closed()


@both_versions
async def test_payload_may_be_empty_and_large(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("a")
        sender = await scene.connect("s", version)
        for size in (0, 1, 65_535, 65_536, 300_000):
            payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
            await sender.send(Publish("a", payload))
            assert (await watcher.take(Publish)).payload == payload


async def test_packets_of_one_write_are_answered_in_order() -> None:
    async with Scene() as scene:
        peer = await scene.peer()
        await peer.send(
            connect_frame(string("c")), publish_frame("a", first_byte=0x32, packet_id=1), b"\xc0\x00",
            publish_frame("a", first_byte=0x34, packet_id=2), b"\x62\x02" + u16(2), b"\x82\x07" + u16(3) + b"\x00" + string("b")[:2] + b"b\x00",
        )  # fmt: skip
        assert [type(packet) for packet in await peer.receive_all()][:1] == [ConnAck]
        kinds = [one[0] >> 4 for one in peer.frames]
        assert kinds == [2, 4, 13, 5, 7, 9]
        assert SubAck is not None
