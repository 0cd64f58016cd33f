"""SUBSCRIBE and SUBACK (3.8 and 3.9 of both standards)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.wire.packets import NO_PROPERTIES, Properties, PubAck, Publish, SubAck, Subscribe, SubscriptionRequest
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.shorthand import codes
from tests.conformance.wirebytes import frame, publish_frame, subscribe_frame

S = SubscriptionRequest


# ---- what may not be asked ---------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.8.1-1", "MQTT311-3.8.1-1")
@both_versions
@pytest.mark.parametrize("flags", [flags for flags in range(16) if flags != 2])
async def test_other_flags_close(version: int, flags: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(subscribe_frame(1, ("t", 0), version=version, first_byte=0x80 | flags))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-3.8.3-1", "MQTT311-3.8.3-1", "MQTT5-4.7.3-2", "MQTT311-4.7.3-2")
@both_versions
@pytest.mark.parametrize("filter", [b"\xff", b"a/\xc0\xaf", b"\xed\xa0\x80", b"a\x00b"])
async def test_filter_that_is_no_utf8_closes(version: int, filter: bytes) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(subscribe_frame(1, ("fine", 0), (filter, 0), version=version))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-3.8.3-2", "MQTT311-3.8.3-3")
@both_versions
async def test_no_filter_closes(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(subscribe_frame(1, version=version))
        await peer.expect_closed(0x82)


@pytest.mark.statement("MQTT5-3.8.3-4")
async def test_no_local_on_a_shared_subscription_closes() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(subscribe_frame(1, ("$share/g/a", 0x04)))
        await peer.expect_closed(0x82)


@pytest.mark.statement("MQTT5-3.8.3-5")
@pytest.mark.parametrize("options", [0x40, 0x80, 0xC0, 0x41])
async def test_reserved_option_bits_close(options: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(subscribe_frame(1, ("fine", 0), ("t", options)))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT311-3.8.3-4")
@pytest.mark.parametrize("options", [0x03, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF])
async def test_reserved_bits_of_the_qos_byte_close(options: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", V311)
        await peer.send(subscribe_frame(1, ("t", options), version=V311))
        await peer.expect_closed()


@pytest.mark.statement("MQTT311-3.8.3-2")
@pytest.mark.parametrize(
    ("limits", "filter"),
    [
        ({"wildcard_subscription_available": False}, "#"),
        ({"wildcard_subscription_available": False}, "a/+"),
        ({"wildcard_subscription_available": False}, "$share/g/a/#"),
        ({"shared_subscription_available": False}, "$share/g/a"),
    ],
)
async def test_filters_that_are_not_supported_are_refused_one_by_one(limits: dict[str, Any], filter: str) -> None:
    """A 3.1.1 client was not told so by its CONNACK: the rest of what it asks for is served, and it stays."""
    async with Scene(**limits) as scene:
        peer = await scene.connect("a", V311)
        publisher = await scene.connect("p")
        await peer.send(Subscribe(1, (S("plain", 1), S(filter), S("other"))))
        await peer.expect(SubAck(1, codes(1, 0x80, 0)))
        await publisher.publish("a/b", b"x")
        await publisher.publish("a", b"x")
        await publisher.publish("other", b"y")
        await peer.expect(Publish("other", b"y"))


# ---- the answer --------------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.8.4-1", "MQTT5-3.8.4-2", "MQTT5-3.8.4-5", "MQTT5-3.8.4-6", "MQTT5-3.8.4-7", "MQTT5-3.9.3-1")
@pytest.mark.statement("MQTT311-3.8.4-1", "MQTT311-3.8.4-2", "MQTT311-3.8.4-4", "MQTT311-3.8.4-5", "MQTT311-3.9.3-1")
@pytest.mark.statement("MQTT5-2.2.1-6", "MQTT311-2.3.1-7")
@both_versions
async def test_one_suback_with_a_code_for_each_filter_in_order(version: int) -> None:
    section = b"\x00" if version == V5 else b""
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(subscribe_frame(0xABCD, ("a", 0), ("b", 1), ("c", 2), ("d", 1), version=version))
        await peer.expect_bytes(frame(0x90, b"\xab\xcd", section, bytes((0, 1, 2, 1))))
        await peer.send(subscribe_frame(0x1234, ("a", 0), version=version))
        await peer.expect_bytes(frame(0x90, b"\x12\x34", section, b"\x00"))
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.8.4-5", "MQTT311-3.8.4-4")
@both_versions
async def test_same_filter_twice_in_one_packet_the_last_counts(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        publisher = await scene.connect("p", version)
        await publisher.publish("t", b"kept", retain=True)
        await peer.send(Subscribe(1, (S("t", 0), S("t", 2), S("t", 1))))
        await peer.expect(SubAck(1, codes(0, 2, 1)))
        retained = await peer.receive_all()
        assert [(message.payload, message.retain) for message in retained if isinstance(message, Publish)] == [(b"kept", True)] * len(retained)
        assert 1 <= len(retained) <= 3  # as single SUBSCRIBEs would have it three times; a repetition that has not begun may be left out
        await publisher.publish("t", b"x", 2)
        message = await peer.take(Publish)
        assert (message.qos, message.payload) == (1, b"x")
        await peer.send(PubAck(message.packet_id))
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.8.4-7", "MQTT5-3.9.3-2", "MQTT5-3.9.3-1")
async def test_failure_codes_are_listed_and_in_order() -> None:
    """Granted, a bad filter, a forbidden one, one too many; at a lower QoS than asked."""

    def authorize(username: str | None, client_id: str, action: str, topic: str) -> bool:
        return topic != "forbidden"

    async with Scene(authorize=authorize, subscriptions_count_max=2, maximum_qos=1) as scene:
        peer = await scene.connect("a")
        suback = await peer.subscribe("a", "a#", "forbidden", "b", "c", qos=2)
        assert suback.reasons == (1, 0x8F, 0x87, 1, 0x97)


@pytest.mark.statement("MQTT311-3.8.4-5", "MQTT311-3.9.3-2", "MQTT311-3.9.3-1")
async def test_in_311_every_failure_is_0x80() -> None:
    def authorize(username: str | None, client_id: str, action: str, topic: str) -> bool:
        return topic != "forbidden"

    async with Scene(authorize=authorize, subscriptions_count_max=2) as scene:
        peer = await scene.connect("a", V311)
        await peer.send(subscribe_frame(1, ("a", 2), ("a#", 2), ("forbidden", 2), ("b", 0), ("c", 1), version=V311))
        await peer.expect_bytes(bytes.fromhex("90 07 00 01 02 80 80 00 80"))


@pytest.mark.statement("MQTT5-3.9.2-1", "MQTT5-3.9.2-2")
@pytest.mark.parametrize("mark", ["-", "#"], ids=["ordinary", "refused"])
async def test_suback_fits_the_clients_maximum_packet_size(mark: str) -> None:
    """It has neither Reason String nor User Properties. One that cannot be made to fit ends the connection: it may not be sent, nor left out."""
    async with Scene() as scene:
        peer = await scene.connect("a", maximum_packet_size=40)
        await peer.subscribe(*(f"a{mark}{number}" for number in range(35)))
        assert len(peer.frames[-1]) == 40
        await peer.send(Subscribe(99, tuple(S(f"b{mark}{number}") for number in range(36))))
        await peer.expect_closed(0x95)


# ---- what a subscription does ------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.8.3-3")
async def test_no_local_keeps_a_clients_own_messages_from_it() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        other = await scene.connect("b")
        await peer.subscribe("t", no_local=True)
        for qos in (0, 1, 2):
            await peer.publish("t", b"own", qos)
            await peer.expect_nothing()
            await other.publish("t", b"other", qos)
            await peer.expect(Publish("t", b"other"))


@pytest.mark.statement("MQTT5-3.8.3-3")
async def test_no_local_goes_by_the_client_identifier_and_the_subscription() -> None:
    """On a new connection it is still the same client; and an overlapping subscription without it gets the message."""
    async with Scene() as scene:
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t", no_local=True, identifier=1)
        await peer.drop()
        peer = await scene.connect("a", clean_start=False, session_expiry_interval=NEVER)
        await peer.publish("t", b"own")
        await peer.expect_nothing()
        await peer.subscribe("#", identifier=2)
        await peer.publish("t", b"own")
        await peer.expect(Publish("t", b"own", properties=Properties(subscription_identifiers=(2,))))
        other = await scene.connect("b")
        await other.publish("t", b"other")
        message = await peer.take(Publish)
        assert sorted(message.properties.subscription_identifiers) == [1, 2]


@pytest.mark.statement("MQTT5-3.8.4-3", "MQTT311-3.8.4-3")
@both_versions
@pytest.mark.parametrize("filter", ["t/x", "t/+", "#"])
async def test_same_filter_again_replaces_the_subscription(version: int, filter: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        publisher = await scene.connect("p", version)
        await peer.subscribe(filter, qos=2)
        await peer.subscribe(filter, qos=0)
        await publisher.publish("t/x", b"x", 2)
        await peer.expect(Publish("t/x", b"x", 0))
        await peer.subscribe(filter, qos=1)
        await publisher.publish("t/x", b"y", 2)
        message = await peer.take_message()
        assert (message.qos, message.payload) == (1, b"y")
        await peer.expect_nothing()
        await peer.unsubscribe(filter)
        await publisher.publish("t/x", b"z", 0)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.8.4-3")
async def test_replacing_takes_the_new_options_and_identifier() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        publisher = await scene.connect("p")
        await peer.subscribe("t", identifier=5, retain_as_published=True)
        await publisher.publish("t", b"x", retain=True)
        await peer.expect(Publish("t", b"x", retain=True, properties=Properties(subscription_identifiers=(5,))))
        await peer.subscribe("t", retain_handling=2)  # without an identifier: it has none any more
        await publisher.publish("t", b"y", retain=True)
        await peer.expect(Publish("t", b"y", properties=NO_PROPERTIES))


@pytest.mark.statement("MQTT5-3.8.4-4", "MQTT311-3.8.4-3")
@both_versions
async def test_replacing_sends_retained_messages_again_and_loses_nothing(version: int) -> None:
    """A stream of QoS 1 messages, the filter renewed between any two of them, in one write and in several."""
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        publisher = await scene.connect("p", version)
        await publisher.publish("t/kept", b"kept", retain=True)
        await peer.subscribe("t/#", qos=1)
        expected = []
        for number in range(40):
            payload = b"%d" % number
            await publisher.send(Publish("t/live", payload, 1, packet_id=number + 1))
            if number % 3 == 0:
                await peer.send(Subscribe(1000 + number, (S("t/#", 1),)))
            expected.append(payload)
        live, kept, subacks = [], 0, 0
        await scene.settle()
        for packet in await peer.receive_all():
            if isinstance(packet, SubAck):
                subacks += 1
            elif isinstance(packet, Publish):
                if packet.qos:
                    await peer.send(PubAck(packet.packet_id))
                if packet.payload == b"kept":
                    assert packet.retain
                    kept += 1
                else:
                    live.append(packet.payload)
        assert live == expected
        assert subacks == 14
        assert kept == 15


@pytest.mark.statement("MQTT5-3.8.4-8", "MQTT311-3.8.4-6")
@both_versions
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
async def test_delivered_at_the_lesser_qos(version: int, published: int, granted: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        publisher = await scene.connect("p", version)
        assert (await peer.subscribe("t", qos=granted)).reasons == (granted,)
        await publisher.publish("t", b"live", published)
        assert (await peer.take_message()).qos == min(published, granted)
        await publisher.publish("t", b"kept", published, retain=True)
        await peer.take_message()
        await peer.subscribe("t", qos=granted)
        message = await peer.take_message()
        assert (message.qos, message.retain) == (min(published, granted), True)
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-3.8.4-8")
async def test_maximum_qos_bounds_what_is_granted() -> None:
    async with Scene(maximum_qos=1) as scene:
        peer = await scene.connect("a")
        assert (await peer.subscribe("a", "b", "c", qos=2)).reasons == (1, 1, 1)


async def test_messages_may_come_before_the_rest_of_the_answers() -> None:
    """Bytes of a SUBSCRIBE and a PUBLISH in one write: the SUBACK comes first, then the message."""
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(subscribe_frame(1, ("t", 0)) + publish_frame("t", b"x"))
        await peer.expect(SubAck(1, codes(0)), Publish("t", b"x"))
