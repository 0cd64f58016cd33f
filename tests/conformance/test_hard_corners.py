"""Where several rules meet: Wills, session ends and takeovers; aliases, sizes, expiry and quotas through reconnects; the truth of CONNACK.

Each of these once went wrong in some broker. The oracles are small functions that say in a few lines what the standard says in pages.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, Properties, PubAck, PubComp, Publish, PubRec, PubRel, SubscriptionRequest, WillMessage
from tests.conformance.harness import NEVER, V5, V311, Peer, Scene
from tests.conformance.shorthand import drain, drained
from tests.conformance.wirebytes import body_of, publish_frame

WITH_WILL = ReasonCode(0x04)


# ---- Will delay against session expiry against takeover ----------------------------------------------------------------


def will_time(delay_s: int, expiry_s: int, back_after_s: int | None, clean_start: bool) -> int | None:
    """When the Will goes out, in seconds after the connection ended; None for never. back_after_s: the client returns then."""
    due_s = min(delay_s, expiry_s)
    if back_after_s is None or back_after_s > due_s:
        return due_s
    return back_after_s if clean_start or expiry_s == 0 else None


@pytest.mark.parametrize("goodbye", ["lost", "0x04", "0x04 with a new expiry", "protocol error"])
async def test_when_the_will_goes_out(goodbye: str) -> None:
    for delay_s, expiry_s, back_after_s, clean_start in itertools.product((0, 10, 100), (0, 10, 30, 100), (None, 5, 20), (False, True)):
        if goodbye == "0x04 with a new expiry" and expiry_s == 0:
            continue  # may not be changed
        expected = will_time(delay_s, expiry_s, back_after_s, clean_start)
        async with Scene() as scene:
            watcher = await scene.connect("watcher")
            await watcher.subscribe("will", qos=1)
            will = WillMessage("will", b"gone", 1, properties=Properties(will_delay_interval=delay_s))
            # With a new expiry in the DISCONNECT, that one counts, whatever CONNECT said.
            told_s = 77 if goodbye == "0x04 with a new expiry" else expiry_s
            peer = await scene.connect("a", will=will, session_expiry_interval=told_s)
            if goodbye == "lost":
                await peer.drop()
            elif goodbye == "0x04":
                await peer.send(Disconnect(WITH_WILL))
            elif goodbye == "protocol error":
                await peer.send(b"\xf0\x00")
            else:
                await peer.send(Disconnect(WITH_WILL, Properties(session_expiry_interval=expiry_s)))
            seen = None
            for second in range(110):
                if second == back_after_s:
                    await scene.connect("a", clean_start=clean_start, session_expiry_interval=1000)
                    await scene.settle()
                if messages := await drain(watcher):
                    assert seen is None
                    assert len(messages) == 1
                    seen = second
                await scene.advance(1)
            assert seen == expected, (delay_s, expiry_s, back_after_s, clean_start)


@pytest.mark.parametrize("kept", [True, False])
async def test_the_will_of_a_new_connect_takes_the_place_of_the_old_one(kept: bool) -> None:
    """A resumed session has the Will of its newest CONNECT, and none where that had none."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will/#")
        old, new = WillMessage("will/old", b"x", properties=Properties(will_delay_interval=50)), WillMessage("will/new", b"y")
        peer = await scene.connect("a", will=old, session_expiry_interval=100)
        await peer.drop()
        peer = await scene.connect("a", will=new if kept else None, clean_start=False, session_expiry_interval=100)
        await scene.advance(60)
        await watcher.expect_nothing()
        await peer.drop()
        assert await drained(watcher) == ([b"y"] if kept else [])
        await scene.advance(200)
        await watcher.expect_nothing()


async def test_a_will_that_is_delayed_past_the_session_says_that_the_session_ended() -> None:
    """Will Delay above Session Expiry: one message when the client has really gone, none for each short absence."""
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        will = WillMessage("will", b"ended", properties=Properties(will_delay_interval=NEVER))
        for _ in range(5):
            peer = await scene.connect("a", will=will, clean_start=False, session_expiry_interval=60)
            await peer.drop()
            await scene.advance(59)
        await watcher.expect_nothing()
        await scene.advance(2)
        await watcher.expect(Publish("will", b"ended"))


async def test_the_expiry_of_a_delayed_will_counts_from_its_publication() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        sleeper = await scene.connect("sleeper", session_expiry_interval=NEVER)
        await sleeper.subscribe("will", qos=1)
        await sleeper.drop()
        will = WillMessage("will", b"x", 1, properties=Properties(will_delay_interval=50, message_expiry_interval=20))
        peer = await scene.connect("a", will=will, session_expiry_interval=100)
        await peer.drop()
        await scene.advance(50)
        message = await watcher.take(Publish)
        assert message.properties.message_expiry_interval == 20
        assert message.properties.will_delay_interval is None
        await scene.advance(15)
        sleeper = await scene.connect("sleeper", clean_start=False, session_expiry_interval=NEVER)
        message = await sleeper.take(Publish)
        assert message.properties.message_expiry_interval == 5


async def test_disconnect_0x04_may_end_the_session_and_so_the_delay() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        will = WillMessage("will", b"x", properties=Properties(will_delay_interval=1000))
        peer = await scene.connect("a", will=will, session_expiry_interval=1000)
        await peer.send(Disconnect(WITH_WILL, Properties(session_expiry_interval=0)))
        await watcher.expect(Publish("will", b"x"))
        assert not (await scene.connect("a", clean_start=False)).connack.session_present  # type: ignore[union-attr]  # connect has set it


# ---- re-subscribing with each retain handling --------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("second", [0, 1, 2])
@pytest.mark.parametrize("between", ["nothing", "resume", "unsubscribe", "new session"])
@pytest.mark.parametrize("filter", ["t/a", "t/+", "#"])
async def test_retained_messages_at_the_second_subscribe(first: int, second: int, between: str, filter: str) -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        await publisher.publish("t/a", b"kept", 1, retain=True)
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe(SubscriptionRequest(filter, 1, retain_handling=first))
        assert len(await drained(peer)) == (0 if first == 2 else 1)
        is_new = between in ("unsubscribe", "new session")
        if between == "unsubscribe":
            await peer.unsubscribe(filter)
        elif between != "nothing":
            await peer.drop()
            peer = await scene.connect("a", clean_start=between == "new session", session_expiry_interval=NEVER)
            await peer.expect_nothing()  # resuming is no subscribing
        await peer.subscribe(SubscriptionRequest(filter, 0, retain_handling=second))
        messages = await drain(peer)
        assert len(messages) == int(second == 0 or (second == 1 and is_new))
        assert all(message.retain and message.qos == 0 for message in messages)
        await publisher.publish("t/a", b"live", 1)  # whatever was or was not sent, the new options are in force
        await peer.expect(Publish("t/a", b"live", 0))


# ---- overlapping filters with identifiers ------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [0, 1, 2])
async def test_overlap_is_one_copy_at_the_highest_qos_with_all_identifiers(published: int) -> None:
    """Also from the queue; also when one of them goes, or changes, meanwhile."""
    async with Scene() as scene:
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t/a", qos=0, identifier=1)
        await peer.subscribe("t/+", qos=2, identifier=268_435_455)
        await peer.subscribe("t/#", qos=1)
        await peer.subscribe("#", "+/a", qos=1, identifier=7)
        publisher = await scene.connect("p")
        for here in (True, False):
            if not here:
                await peer.drop()
            await publisher.publish("t/a", b"x", published)
            if not here:
                peer = await scene.connect("a", clean_start=False, session_expiry_interval=NEVER)
            messages = await drain(peer)
            if not here and published == 0:
                assert messages == []
                continue
            (message,) = messages
            assert message.qos == published
            assert sorted(message.properties.subscription_identifiers) == [1, 7, 7, 268_435_455]
        await peer.unsubscribe("t/+")
        await peer.subscribe("#", qos=0, identifier=9)
        await publisher.publish("t/a", b"y", published)
        (message,) = await drain(peer)
        assert message.qos == min(published, 1)
        assert sorted(message.properties.subscription_identifiers) == [1, 7, 9]


async def test_retained_messages_come_once_for_each_filter_with_its_identifier() -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        await publisher.publish("t/a", b"kept", 2, retain=True)
        peer = await scene.connect("a")
        await peer.subscribe("t/a", "t/+", qos=1, identifier=3)
        messages = await drain(peer)
        assert [(message.qos, message.retain, message.properties.subscription_identifiers) for message in messages] == [(1, True, (3,))] * 2


# ---- Receive Maximum 1, QoS 2, and losses ------------------------------------------------------------------------------


async def test_receive_maximum_1_with_qos_2_and_a_loss_at_every_step() -> None:
    """Twenty messages; the connection is lost after each packet that the client would have sent. Each arrives once and in order, and at no time is
    there more than one that the client has not answered on this connection."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        options: dict[str, Any] = {"clean_start": False, "receive_maximum": 1, "session_expiry_interval": NEVER}
        peer = await scene.connect("a", **options)
        await peer.subscribe("t", qos=2)
        for number in range(20):
            await publisher.publish("t", b"%d" % number, 2)
        got: list[bytes] = []
        held: set[int] = set()
        for _ in range(200):
            packets = await peer.receive_all()
            if not packets:
                break
            assert sum(isinstance(packet, Publish) for packet in packets) <= 1
            lose = len(got) % 2 == 0
            for packet in packets:
                if isinstance(packet, Publish):
                    if packet.packet_id not in held:
                        assert not packet.dup or len(packets) == 1
                        held.add(packet.packet_id)
                        got.append(packet.payload)
                        lose = True
                    await peer.send(PubRec(packet.packet_id))
                else:
                    assert isinstance(packet, PubRel)
                    held.discard(packet.packet_id)
                    await peer.send(PubComp(packet.packet_id))
            if lose:
                await peer.drop()
                peer = await scene.connect("a", **options)
        assert got == [b"%d" % number for number in range(20)]
        assert not held


# ---- topic aliases in both directions ----------------------------------------------------------------------------------


def parts(frame: bytes) -> tuple[bytes, int]:
    """(the topic, the Topic Alias or 0) of a QoS 0 or 1 PUBLISH with no property before its alias."""
    body = body_of(frame)
    size = int.from_bytes(body[:2], "big")
    rest = body[2 + size + (2 if frame[0] & 6 else 0) :]
    return body[2 : 2 + size], int.from_bytes(rest[2:4], "big") if rest[0] and rest[1] == 0x23 else 0


async def test_aliases_of_the_broker_are_right_on_every_connection() -> None:
    """At most as many as the client takes; a number stands for one topic; each connection begins with none; repetitions too."""
    async with Scene(topic_alias_maximum=10) as scene:
        publisher = await scene.connect("p")
        for maximum in (3, 1, 0, 3):
            options: dict[str, Any] = {"topic_alias_maximum": maximum} if maximum else {}
            peer = await scene.connect("a", clean_start=False, session_expiry_interval=NEVER, **options)
            await peer.receive_all()  # what the last one left, repeated
            await peer.subscribe("t/#", qos=1)
            known: dict[int, bytes] = {}
            for frame in peer.frames:
                if frame[0] >> 4 == 3:
                    note(frame, known, maximum)
            count = len(peer.frames)
            for topic in (b"t/a", b"t/b", b"t/c", b"t/d", b"t/a", b"t/d", b"t/c", b"t/a"):
                for qos in (0, 1):
                    await publisher.publish(topic.decode(), topic, qos)
            await peer.receive_all()
            assert len(peer.frames) == count + 16
            for frame in peer.frames[count:]:
                topic = note(frame, known, maximum)
                assert frame.endswith(topic)  # the payload says which it is
            assert len(known) == min(maximum, 4)
            await peer.drop()  # the QoS 1 half is not acknowledged


def note(frame: bytes, known: dict[int, bytes], maximum: int) -> bytes:
    """Follow the aliases as a client would; the topic that the PUBLISH means."""
    topic, alias = parts(frame)
    assert alias <= maximum
    if topic and alias:
        known[alias] = topic
    elif not topic:
        assert alias in known
        topic = known[alias]
    return topic


async def test_aliases_of_a_client_end_with_its_connection_and_may_be_set_anew() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.connect("a", session_expiry_interval=NEVER)

        def aliased(topic: str, alias: int) -> bytes:
            return publish_frame(topic, b"x", property_section=b"\x03\x23\x00" + bytes((alias,)))

        await peer.send(aliased("one", 1), aliased("two", 2), aliased("", 1), aliased("three", 1), aliased("", 1), aliased("", 2))
        assert [message.topic for message in await drain(watcher)] == ["one", "two", "one", "three", "three", "two"]
        for message_frame in watcher.frames[-6:]:
            assert b"\x23" not in message_frame  # the watcher takes no aliases, and the publisher's are nobody else's
        await peer.drop()
        peer = await scene.connect("a", clean_start=False)
        await peer.send(aliased("four", 2), aliased("", 2))
        assert [message.topic for message in await drain(watcher)] == ["four", "four"]
        await peer.send(aliased("", 1))
        await peer.expect_closed(0x82)


async def test_aliased_topics_are_kept_by_name() -> None:
    """Retained, queued and in a Will's way: what was published by alias is found under its topic."""
    async with Scene() as scene:
        sleeper = await scene.connect("sleeper", session_expiry_interval=NEVER)
        await sleeper.subscribe("t", qos=1)
        await sleeper.drop()
        peer = await scene.connect("a")
        section = b"\x03\x23\x00\x01"
        await peer.send(
            publish_frame("t", b"1", property_section=section),
            publish_frame("", b"2", first_byte=0x33, packet_id=1, property_section=section),
            publish_frame("", b"3", first_byte=0x34, packet_id=2, property_section=section),
            publish_frame("", b"3", first_byte=0x3C, packet_id=2, property_section=section),
        )
        await peer.expect(PubAck(1), PubRec(2), PubRec(2))
        sleeper = await scene.connect("sleeper", clean_start=False)
        assert [(message.topic, message.payload) for message in await drain(sleeper)] == [("t", b"2"), ("t", b"3")]
        late = await scene.connect("late")
        await late.subscribe("t")
        await late.expect(Publish("t", b"2", retain=True))


# ---- message expiry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["queue", "behind the quota", "retained", "will in the queue", "retained will"])
async def test_expiry_counts_down_wherever_a_message_waits(place: str) -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        for waited_s, left_s in ((0, 10), (1, 9), (7, 3), (9, 1), (10, None), (60, None)):
            peer = await scene.connect("a", session_expiry_interval=NEVER, receive_maximum=1)
            message = {"qos": 1, "message_expiry_interval": 10}
            will = WillMessage("t", b"x", 1, place == "retained will", Properties(message_expiry_interval=10))
            if "retained" not in place:
                await peer.subscribe("t", qos=1)
            blocker = None
            if place == "behind the quota":
                await publisher.publish("t", b"first", 1)
                blocker = (await peer.take(Publish)).packet_id
            else:
                await peer.drop()
            if "will" in place:
                willing = await scene.connect("w", will=will)
                await willing.drop()
            else:
                await publisher.publish("t", b"x", retain=place == "retained", **message)
            await scene.advance(waited_s)
            if blocker is not None:
                await peer.send(PubAck(blocker))
            else:
                peer = await scene.connect("a", clean_start=False, session_expiry_interval=NEVER)
                if "retained" in place:
                    await peer.subscribe("t", qos=1)
            messages = await drain(peer)
            assert [one.properties.message_expiry_interval for one in messages] == ([] if left_s is None else [left_s]), waited_s
            await peer.drop()


async def test_no_expiry_is_never_and_the_longest_is_136_years() -> None:
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t", qos=1)
        await peer.drop()
        await publisher.publish("t", b"for ever", 1)
        await publisher.publish("t", b"long", 1, message_expiry_interval=0xFFFF_FFFF)
        await scene.advance(1_000_000)
        peer = await scene.connect("a", clean_start=False)
        first, second = await drain(peer)
        assert first.properties.message_expiry_interval is None
        assert second.properties.message_expiry_interval == 0xFFFF_FFFF - 1_000_000


async def test_an_expiry_of_zero_is_for_those_who_are_there() -> None:
    """It is given on as the zero that was received, and waits for nobody."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t", qos=1)
        await publisher.publish("t", b"x", 1, message_expiry_interval=0)
        messages = await drain(peer)
        assert [message.properties.message_expiry_interval for message in messages] in ([], [0])
        await peer.drop()
        await publisher.publish("t", b"y", 1, retain=True, message_expiry_interval=0)
        peer = await scene.connect("a", clean_start=False)
        await peer.subscribe("t", qos=1)
        await peer.expect_nothing()


async def test_a_retained_message_that_expires_is_gone_for_the_next_one_too() -> None:
    """Its end does not take a successor with it."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        await publisher.publish("t", b"old", retain=True, message_expiry_interval=10)
        await scene.advance(5)
        await publisher.publish("t", b"new", retain=True, message_expiry_interval=10)
        await scene.advance(6)
        peer = await scene.connect("a")
        await peer.subscribe("t")
        message = await peer.take(Publish)
        assert (message.payload, message.properties.message_expiry_interval) == (b"new", 4)
        await publisher.publish("u", b"old", retain=True, message_expiry_interval=10)
        await publisher.publish("u", b"lasting", retain=True)
        await scene.advance(100)
        await peer.subscribe("u")
        await peer.expect(Publish("u", b"lasting", retain=True))


# ---- Maximum Packet Size -----------------------------------------------------------------------------------------------


async def test_a_refusal_is_told_as_fully_as_fits() -> None:
    """The Reason String goes first; a refused client with less room than that still gets its code, and one with no room just the close."""
    seen = set()
    for size in (1, 4, 5, 10, 60, 100, 1000):
        async with Scene(client_id_bytes_max=3) as scene:
            peer = await scene.peer()
            await peer.send(Connect("abcd", properties=Properties(maximum_packet_size=size)))
            packets = await peer.receive_all()
            await peer.expect_end()
            assert all(len(frame) <= size for frame in peer.frames)
            if packets:
                assert packets[0].reason == 0x85  # type: ignore[union-attr]  # a CONNACK, or this fails
                seen.add(packets[0].properties.reason_string is not None)  # type: ignore[union-attr]
            else:
                assert size < 5
    assert seen == {True, False}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("sole", [False, True])
async def test_a_message_that_is_too_large_is_as_if_delivered(qos: int, away: bool, sole: bool) -> None:
    """To the byte; no id and no quota stays taken; others, if there are any, get it; nothing in it is cut."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        other = await scene.connect("other")
        if not sole:
            await other.subscribe("t", qos=qos)
        options: dict[str, Any] = {"maximum_packet_size": 100, "receive_maximum": 1, "session_expiry_interval": NEVER}
        peer = await scene.connect("a", **options)
        await peer.subscribe("t", qos=qos)
        if away:
            await peer.drop()
        fits = 100 - 2 - 3 - (2 if qos else 0) - 1  # header, topic, id, property length
        payloads = [b"x" * fits, b"y" * (fits + 1), b"z" * 1000, b"last"]
        for payload in payloads:
            await publisher.publish("t", payload, qos)
        await publisher.publish("t", b"p", qos, user_properties=(("a", "b" * 100),))
        if away:
            peer = await scene.connect("a", clean_start=False, **options)
        messages = await drained(peer)
        assert messages == ([] if away and qos == 0 else [b"x" * fits, b"last"])
        assert await drained(other) == ([] if sole else [*payloads, b"p"])
        await peer.expect_open()


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_that_are_too_large_together(qos: int, granted: int) -> None:
    """As the first on their topics, as a run on one, and again when that is known."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", maximum_packet_size=60)
        await peer.subscribe("t/+", qos=granted)
        number = 0
        for topics in (("t/1", "t/2", "t/3", "t/4", "t/5"), ("t/1",) * 20, ("t/1",) * 20):
            ids = range(number + 1, number + 1 + len(topics))
            number += len(topics)
            await publisher.send(*(Publish(topic, bytes(100), qos, packet_id=id if qos else 0) for topic, id in zip(topics, ids, strict=True)))
        if qos == 2:
            await publisher.send(*(PubRel(id) for id in range(1, number + 1)))
        await publisher.receive_all()
        await peer.expect_nothing()
        await publisher.publish("t/1", b"fits", qos)
        assert await drained(peer) == [b"fits"]


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("identifier", [0, 7])
async def test_retained_messages_that_are_too_large(qos: int, granted: int, identifier: int) -> None:
    """To the byte, and those that fit come all; no quota stays taken."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        for size in range(30, 70):
            await publisher.publish(f"t/{size}", bytes(size), qos, retain=True)
        peer = await scene.connect("a", maximum_packet_size=60, receive_maximum=5)
        await peer.subscribe("t/+", qos=granted, identifier=identifier)
        room = 60 - 2 - 6 - (2 if min(qos, granted) else 0) - (3 if identifier else 1)  # header, topic, id, properties with their length
        assert await drained(peer) == [bytes(size) for size in range(30, room + 1)]
        await publisher.publish("t/1", b"fits", qos)
        assert await drained(peer) == [b"fits"]


async def test_a_message_that_no_longer_fits_on_the_next_connection() -> None:
    """Sent and not acknowledged; the client returns with less room. It is dropped, and so is its id; the rest goes on."""
    async with Scene() as scene:
        publisher = await scene.connect("p")
        peer = await scene.connect("a", session_expiry_interval=NEVER)
        await peer.subscribe("t", qos=2)
        await publisher.publish("t", b"x" * 200, 1)
        await publisher.publish("t", b"y" * 200, 2)
        await publisher.publish("t", b"small", 1)
        assert len(await peer.receive_all()) == 3
        await peer.drop()
        peer = await scene.connect("a", clean_start=False, maximum_packet_size=100, receive_maximum=1, session_expiry_interval=NEVER)
        assert await drained(peer) == [b"small"]
        await publisher.publish("t", b"next", 2)
        assert await drained(peer) == [b"next"]


async def test_too_large_for_the_broker_is_refused_at_the_header() -> None:
    """0x95 without waiting for the rest; in 3.1.1 a close."""
    async with Scene(packet_bytes_max=1000) as scene:
        for version in (V5, V311):
            peer = await scene.connect("a", version)
            await peer.send(publish_frame("t", b"x" * (1000 - 1 - 2 - 3 - (1 if version == V5 else 0)), version=version))
            await peer.expect_open()  # exactly 1,000 bytes
            await peer.send(b"\x30\xe6\x07")  # 998 + 3
            await peer.expect_closed(0x95)


# ---- what CONNACK says is so -------------------------------------------------------------------------------------------


async def test_session_present_is_the_truth() -> None:
    """Over every way to leave and every way to return: 1 exactly where the subscription is still there."""
    ways: list[tuple[dict[str, Any], int | None, dict[str, Any]]] = [
        (first, disconnect, second)
        for first in (
            {"session_expiry_interval": 0},
            {"session_expiry_interval": 10},
            {"session_expiry_interval": NEVER},
            {"version": V311, "clean_start": False},
            {"version": V311},
        )
        for disconnect in (None, 0)
        for second in ({"clean_start": False}, {"clean_start": True}, {"version": V311, "clean_start": False}, {"version": V311})
    ]
    for (first, disconnect, second), wait_s, connected in itertools.product(ways, (0, 20), (False, True)):
        async with Scene() as scene:
            peer = await scene.connect("a", **first)
            await peer.subscribe("t")
            if not connected:
                if disconnect is None:
                    await peer.drop()
                else:
                    await peer.send(Disconnect())
            await scene.advance(wait_s)
            again = await scene.connect("a", **second)
            assert again.connack is not None
            publisher = await scene.connect("p")
            await publisher.publish("t", b"x")
            has_it = await drained(again) == [b"x"]
            assert again.connack.session_present is has_it, (first, disconnect, second, wait_s, connected)


async def test_the_assigned_identifier_can_be_returned_with() -> None:
    """It is told once, is nobody else's, and resumes the session it was given to."""
    async with Scene() as scene:
        peer = await scene.connect("", session_expiry_interval=NEVER, clean_start=False)
        assert peer.connack is not None
        assigned = peer.connack.properties.assigned_client_identifier
        assert assigned
        await peer.subscribe("t", qos=1)
        await peer.drop()
        other = await scene.connect("", clean_start=False)
        assert other.connack is not None
        assert not other.connack.session_present
        assert other.connack.properties.assigned_client_identifier not in (None, assigned)
        publisher = await scene.connect("p")
        await publisher.publish("t", b"x", 1)
        peer = await scene.connect(assigned, clean_start=False)
        assert peer.connack is not None
        assert peer.connack.session_present
        assert peer.connack.properties.assigned_client_identifier is None
        assert await drained(peer) == [b"x"]


async def test_the_expiry_that_connack_tells_is_the_one_that_counts() -> None:
    async with Scene(session_expiry_s_max=50) as scene:
        for asked, told in ((10, None), (50, None), (51, 50), (NEVER, 50)):
            peer = await scene.connect("a", session_expiry_interval=asked)
            assert peer.connack is not None
            assert peer.connack.properties.session_expiry_interval in (told, told or asked)
            lasts_s = told or asked
            await peer.drop()
            await scene.advance(lasts_s - 1)
            peer = await scene.connect("a", clean_start=False, session_expiry_interval=asked)
            assert peer.connack is not None
            assert peer.connack.session_present
            await peer.drop()
            await scene.advance(lasts_s + 1)
            peer = await scene.connect("a", clean_start=False)
            assert peer.connack is not None
            assert not peer.connack.session_present


# ---- takeover in the middle of everything ------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [(V5, V5), (V5, V311), (V311, V5), (V311, V311)])
async def test_a_takeover_loses_nothing(versions: tuple[int, int]) -> None:
    """In the middle of QoS 1 and 2 both ways, with a queue behind the quota."""

    def lasting(version: int) -> dict[str, Any]:
        return {"clean_start": False} | ({"session_expiry_interval": NEVER} if version == V5 else {})

    async with Scene(inflight_count_max=4) as scene:
        publisher = await scene.connect("p")
        watcher = await scene.connect("watcher")
        await watcher.subscribe("up")
        old = await scene.connect("a", versions[0], **lasting(versions[0]))
        await old.subscribe("t", qos=2)
        for number in range(10):
            await publisher.publish("t", b"%d" % number, 1 + number % 2)
        sent = [packet for packet in await old.receive_all() if isinstance(packet, Publish)]
        assert len(sent) == 4
        await old.send(PubAck(sent[0].packet_id), PubRec(sent[1].packet_id), Publish("up", b"up", 2, packet_id=99))
        await scene.settle()
        new = await scene.connect("a", versions[1], **lasting(versions[1]))
        await old.receive_all()
        assert old.ended
        await new.send(Publish("up", b"up", 2, dup=True, packet_id=99), PubRel(99))
        rest: list[Publish] = []
        while packets := await new.receive_all():
            for packet in packets:
                if isinstance(packet, Publish):
                    rest.append(packet)
                    await new.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
                elif isinstance(packet, PubRel):
                    await new.send(PubComp(packet.packet_id))
        numbers = [int(packet.payload) for packet in rest]
        assert sorted(set(numbers)) == list(range(2, 10))
        assert numbers == sorted(numbers)
        assert await drained(watcher) == [b"up"]


async def test_a_client_that_takes_itself_over_again_and_again() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peers: list[Peer] = []
        for _ in range(20):
            peers.append(await scene.connect("a", clean_start=False, session_expiry_interval=NEVER, will=WillMessage("will", b"x")))
        for peer in peers[:-1]:
            await peer.expect_closed(0x8E)
        await peers[-1].expect_open()
        assert len(await drained(watcher)) == 19
