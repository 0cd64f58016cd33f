"""Shared subscriptions (MQTT 5.0, 4.8.2): who is in a group, who gets a message, and what becomes of it when that one leaves.

Which member gets a message is free. Where these tests say more than "exactly one of them", it is our own promise: connected
members with room first, in turn.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import Disconnect, Properties, PubAck, PubComp, Publish, PubRec, PubRel, SubscriptionRequest
from tests.conformance.harness import NEVER, Peer, Scene
from tests.conformance.shorthand import drain, drained
from tests.conformance.wirebytes import subscribe_frame


async def member(scene: Scene, client_id: str, qos: int = 2, filter: str = "$share/g/t", **options: Any) -> Peer:
    peer = await scene.connect(client_id, **{"session_expiry_interval": NEVER, "clean_start": False} | options)
    if peer.connack is not None and not peer.connack.session_present:
        await peer.subscribe(filter, qos=qos)
    return peer


@pytest.mark.statement("MQTT5-4.8.2-1", "MQTT5-4.8.2-2", "MQTT5-4.7.3-1")
@pytest.mark.parametrize(
    "filter", ["$share//a", "$share/", "$share/g", "$share/g/", "$share/g+/a", "$share/#/a", "$share/+/a", "$share/g#", "$share/g/a#", "$share/g/a+"]
)
async def test_bad_shared_filters_make_no_subscription(filter: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(subscribe_frame(1, (filter, 0)))
        await scene.settle()
        if peer.ended:
            await peer.expect_closed()
            return
        publisher = await scene.connect("p")
        for topic in ("a", "/a", "g/a", "g", "$share/g", "$share/g/a", "$share//a"):
            await publisher.publish(topic, b"x")
        (packet,) = await peer.receive_all()
        assert packet.reasons[0].failed  # type: ignore[union-attr]  # a SUBACK, or this fails


@pytest.mark.statement("MQTT5-4.8.2-1", "MQTT5-4.8.2-2")
@pytest.mark.parametrize(
    ("filter", "topic"),
    [("$share/g/a", "a"), ("$share/g//a", "/a"), ("$share/g//", "/"), ("$share/é $/a/+", "a/b"), ("$share/g/#", "x/y"), ("$share/g/$x/#", "$x/y")],
)
async def test_good_shared_filters(filter: str, topic: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        assert (await peer.subscribe(filter)).reasons == (0,)
        publisher = await scene.connect("p")
        await publisher.publish(topic, b"x")
        await peer.expect(Publish(topic, b"x"))
        await peer.unsubscribe(filter)
        await publisher.publish(topic, b"y")
        await peer.expect_nothing()


async def test_a_shared_wildcard_hides_dollar_topics_too() -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.subscribe("$share/g/#", "$share/h/+/y")
        publisher = await scene.connect("p")
        await publisher.publish("$x/y", b"x")
        await peer.expect_nothing()


async def test_exactly_one_member_of_each_group_and_everybody_else() -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        groups = {name: [await member(scene, f"{name}{number}", filter=f"$share/{name}/t") for number in range(3)] for name in ("g", "h")}
        alone = await member(scene, "alone", filter="t")
        both = await member(scene, "both", filter="$share/g/t")
        await both.subscribe("t", qos=1)
        for number in range(40):
            await publisher.publish("t", b"%d" % number, number % 3)
        expected = Counter(b"%d" % number for number in range(40))
        in_both = Counter(await drained(both))
        assert Counter(await drained(alone)) == expected
        in_h = Counter[bytes]()
        for peer in groups["h"]:
            in_h += Counter(await drained(peer))
        assert in_h == expected
        in_g = in_both - expected  # less its own, unshared copies
        for peer in groups["g"]:
            in_g += Counter(await drained(peer))
        assert in_g == expected


@pytest.mark.statement("MQTT5-4.8.2-3")
@pytest.mark.parametrize("published", [0, 1, 2])
async def test_each_members_granted_qos_is_respected(published: int) -> None:
    async with Scene() as scene:
        members = [await member(scene, f"m{qos}", qos) for qos in range(3)]
        publisher = await scene.connect("p")
        for _ in range(9):
            await publisher.publish("t", b"x", published)
        for qos, peer in enumerate(members):
            messages = await drain(peer)
            assert len(messages) == 3
            assert {message.qos for message in messages} == {min(qos, published)}


async def test_own_identifiers_and_options_only() -> None:
    """Of the member that gets the message; a group member's identifier is not the others'."""
    async with Scene() as scene:
        a, b = await scene.connect("a"), await scene.connect("b")
        await a.subscribe("$share/g/t", identifier=1, retain_as_published=True)
        await b.subscribe("$share/g/t", identifier=2)
        publisher = await scene.connect("p")
        for _ in range(4):
            await publisher.publish("t", b"x", retain=True)
        for message in await drain(a):
            assert (message.properties.subscription_identifiers, message.retain) == ((1,), True)
        for message in await drain(b):
            assert (message.properties.subscription_identifiers, message.retain) == ((2,), False)


async def test_subscribing_again_is_no_second_membership_and_brings_no_retained_message() -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        await publisher.publish("t", b"kept", retain=True)
        a, b = await member(scene, "a"), await member(scene, "b")
        await a.subscribe("$share/g/t", "$share/g/t", qos=1)
        for _ in range(10):
            await publisher.publish("t", b"x")
        assert len(await drained(a)) == len(await drained(b)) == 5
        await a.unsubscribe("$share/g/t")
        for _ in range(10):
            await publisher.publish("t", b"y")
        assert await drained(a) == []
        assert await drained(b) == [b"y"] * 10


# ---- members that are away, idle or full -------------------------------------------------------------------------------


async def test_members_that_are_away_are_passed_over_while_others_are_there() -> None:
    async with Scene() as scene:
        away, here = await member(scene, "away"), await member(scene, "here")
        await away.drop()
        publisher = await scene.connect("p")
        for number in range(10):
            await publisher.publish("t", b"%d" % number, 1)
        assert len(await drained(here)) == 10
        await here.drop()
        await publisher.publish("t", b"waits", 1)  # both are away: it waits for one of them
        await publisher.publish("t", b"gone", 0)  # and at QoS 0 it does not
        assert await drained(await member(scene, "away")) + await drained(await member(scene, "here")) == [b"waits"]


async def test_members_that_can_take_nothing_now_are_passed_over() -> None:
    """One is at its Receive Maximum and never acknowledges; the others go on."""
    async with Scene() as scene:
        stuck = await member(scene, "stuck", receive_maximum=1)
        well = await member(scene, "well")
        publisher = await scene.connect("p")
        got = []
        for number in range(20):
            await publisher.publish("t", b"%d" % number, 1)
            got += await drained(well)
        assert len(got) == 19
        assert len(await stuck.receive_all()) == 1


async def test_messages_that_all_members_are_too_full_for_wait_for_one() -> None:
    async with Scene() as scene:
        a, b = await member(scene, "a", receive_maximum=1), await member(scene, "b", receive_maximum=1)
        publisher = await scene.connect("p")
        for number in range(10):
            await publisher.publish("t", b"%d" % number, 1)
        got = Counter(await drained(a)) + Counter(await drained(b)) + Counter(await drained(a))
        assert got == Counter(b"%d" % number for number in range(10))


# ---- members that leave in the middle ----------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.8.2-4")
@pytest.mark.parametrize("after_pubrec", [False, True])
async def test_qos_2_is_finished_with_the_member_that_began_it(after_pubrec: bool) -> None:
    async with Scene() as scene:
        peer = await member(scene, "a")
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x", 2)
        packet_id = (await peer.take(Publish)).packet_id
        other = await member(scene, "b")
        if after_pubrec:
            await peer.send(PubRec(packet_id))
            await peer.expect(PubRel(packet_id))
        await peer.drop()
        await scene.advance(1_000)
        await other.expect_nothing()
        peer = await member(scene, "a")
        if not after_pubrec:
            await peer.expect(Publish("t", b"x", 2, dup=True, packet_id=packet_id))
            await peer.send(PubRec(packet_id))
        await peer.expect(PubRel(packet_id))
        await peer.send(PubComp(packet_id))
        await peer.expect_open()
        await other.expect_nothing()


@pytest.mark.statement("MQTT5-4.8.2-5")
@pytest.mark.parametrize("after_pubrec", [False, True])
@pytest.mark.parametrize("ending", ["expiry", "clean start", "DISCONNECT"])
async def test_qos_2_goes_to_no_other_member(after_pubrec: bool, ending: str) -> None:
    async with Scene() as scene:
        peer = await member(scene, "a", session_expiry_interval=10)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x", 2)
        packet_id = (await peer.take(Publish)).packet_id
        other = await member(scene, "b")
        if after_pubrec:
            await peer.send(PubRec(packet_id))
            await peer.expect(PubRel(packet_id))
        if ending == "DISCONNECT":
            await peer.send(Disconnect(properties=Properties(session_expiry_interval=0)))
        await peer.drop()
        if ending == "expiry":
            await scene.advance(11)
        elif ending == "clean start":
            peer = await scene.connect("a")
            await peer.expect_nothing()
        await other.expect_nothing()
        await publisher.publish("t", b"next", 2)
        assert await drained(other) == [b"next"]


@pytest.mark.statement("MQTT5-3.3.1-12", "MQTT5-3.3.1-13")
@pytest.mark.parametrize("kept", [False, True])
async def test_what_goes_to_another_member_has_the_retain_flag_that_this_one_asked_for(kept: bool) -> None:
    """RETAIN 0 to whoever did not ask for it as published, though the first one had."""
    async with Scene() as scene:
        peer = await scene.connect("a", receive_maximum=1)
        await peer.subscribe("$share/g/t", qos=2, retain_as_published=not kept)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"sent", 1, retain=True)
        await publisher.publish("t", b"queued", 2, retain=True)
        await publisher.publish("t", b"plain", 1)
        assert (await peer.take(Publish)).retain is not kept
        other = await scene.connect("b")
        await other.subscribe("$share/g/t", qos=2, retain_as_published=kept)
        await peer.drop()
        assert [(message.payload, message.retain) for message in await drain(other)] == [(b"sent", kept), (b"queued", kept), (b"plain", False)]


@pytest.mark.parametrize("ending", ["expiry", "clean start", "DISCONNECT"])
async def test_qos_1_goes_to_another_member_when_the_session_ends(ending: str) -> None:
    """And so does what had only been queued, at any QoS; what has expired meanwhile goes nowhere."""
    async with Scene() as scene:
        peer = await member(scene, "a", session_expiry_interval=10, receive_maximum=1)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"sent", 1)
        await peer.take(Publish)
        await publisher.publish("t", b"queued at QoS 1", 1)
        await publisher.publish("t", b"queued at QoS 2", 2)
        await publisher.publish("t", b"short-lived", 1, message_expiry_interval=1)
        other = await scene.connect("b")
        await other.subscribe("$share/g/t", qos=2, identifier=7)
        await scene.advance(2)
        await other.expect_nothing()
        if ending == "DISCONNECT":
            await peer.send(Disconnect(properties=Properties(session_expiry_interval=0)))
        await peer.drop()
        if ending == "expiry":
            await scene.advance(11)
        elif ending == "clean start":
            await scene.connect("a")
        messages = await drain(other)
        assert [(message.payload, message.qos, message.dup) for message in messages] == [
            (b"sent", 1, False),
            (b"queued at QoS 1", 1, False),
            (b"queued at QoS 2", 2, False),
        ]
        assert {message.properties.subscription_identifiers for message in messages} == {(7,)}


async def test_handed_on_with_the_options_of_the_member_that_gets_it() -> None:
    async with Scene() as scene:
        peer = await member(scene, "a", session_expiry_interval=10)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x", 1, retain=True)
        await peer.take(Publish)
        other = await scene.connect("b")
        await other.subscribe("$share/g/t", qos=0, retain_as_published=True)
        await peer.drop()
        await scene.advance(11)
        await other.expect(Publish("t", b"x", 0, retain=True))


async def test_a_group_vanishes_with_its_last_member_and_all_it_had() -> None:
    async with Scene() as scene:
        peer = await member(scene, "a", session_expiry_interval=10)
        publisher = await scene.connect("p")
        await peer.drop()
        await publisher.publish("t", b"x", 1)
        await scene.advance(11)
        peer = await member(scene, "b")
        await peer.expect_nothing()


async def test_leaving_by_unsubscribe_finishes_what_has_begun() -> None:
    async with Scene() as scene:
        peer = await member(scene, "a")
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x", 2)
        packet_id = (await peer.take(Publish)).packet_id
        other = await member(scene, "b")
        await peer.unsubscribe("$share/g/t")
        await peer.send(PubRec(packet_id))
        await peer.expect(PubRel(packet_id))
        await peer.send(PubComp(packet_id))
        await other.expect_nothing()
        for _ in range(3):
            await publisher.publish("t", b"y", 1)
        assert await drained(other) == [b"y"] * 3
        await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.8.2-6")
@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x97, 0x99], ids=hex)
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_a_member_refuses_goes_to_no_other(code: int, qos: int) -> None:
    """Not at once, not when its session ends, not when it comes back."""
    async with Scene() as scene:
        peer = await member(scene, "a", session_expiry_interval=10)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x", qos)
        packet_id = (await peer.take(Publish)).packet_id
        other = await member(scene, "b")
        await peer.send(PubAck(packet_id, ReasonCode(code)) if qos == 1 else PubRec(packet_id, ReasonCode(code)))
        await peer.expect_nothing()
        await peer.drop()
        await scene.advance(11)
        await other.expect_nothing()


async def test_a_message_too_large_for_its_member_costs_no_other_anything() -> None:
    """It is dropped, or goes to a member that can take it; and no quota or id stays taken."""
    async with Scene() as scene:
        small = await member(scene, "small", maximum_packet_size=100, receive_maximum=2)
        large = await member(scene, "large", receive_maximum=2)
        publisher = await scene.connect("p")
        for _ in range(20):
            await publisher.publish("t", b"x" * 200, 1)
            await drained(large)
        assert len([frame for frame in large.frames if len(frame) > 200]) >= 10
        await small.expect_nothing()
        for number in range(8):
            await publisher.publish("t", b"%d" % number, 1)
        assert Counter(await drained(small)) + Counter(await drained(large)) == Counter(b"%d" % number for number in range(8))


async def test_in_311_a_share_is_the_same_group() -> None:
    """An extension: 3.1.1 knows no shared subscriptions, and every broker gives them to it."""
    async with Scene() as scene:
        old, new = await scene.connect("old", 4), await scene.connect("new", 5)
        for peer in (old, new):
            await peer.subscribe(SubscriptionRequest("$share/g/t", 1))
        publisher = await scene.connect("p", 4)
        for _ in range(10):
            await publisher.publish("t", b"x", 1)
        assert len(await drained(old)) == len(await drained(new)) == 5
