"""Topic Names and Topic Filters (4.7 of both standards), on the wire."""

from __future__ import annotations

import pytest

from broker.wire.packets import ConnAck, Publish, SubAck, UnsubAck, Unsubscribe
from tests.conformance.harness import V5, V311, Peer, Scene, both_versions
from tests.conformance.shorthand import drained
from tests.conformance.wirebytes import connect_frame, properties, publish_frame, string, subscribe_frame


async def assert_no_subscription(scene: Scene, peer: Peer, filter: str, version: int) -> None:
    """The reaction to a bad filter is not named by the standard: closing, or a failure code. Either way there is no subscription."""
    await peer.send(subscribe_frame(1, (filter, 0), version=version))
    await scene.settle()
    if peer.ended:
        await peer.expect_closed()
        return
    (reason,) = (await peer.take(SubAck)).reasons
    assert reason.failed
    if filter:
        await peer.send(Unsubscribe(2, (filter,)))
        unsuback = await peer.take(UnsubAck)
        assert version == V311 or unsuback.reasons == (0x11,)
    publisher = await scene.connect("p")
    for topic in ("a", "a/b", "ab", "/", "b/a"):
        await publisher.publish(topic, b"x")
    await peer.expect_nothing()


@pytest.mark.statement("MQTT5-4.7.1-1", "MQTT5-4.7.1-2", "MQTT5-4.7.3-1", "MQTT311-4.7.1-2", "MQTT311-4.7.1-3", "MQTT311-4.7.3-1")
@both_versions
@pytest.mark.parametrize(
    "filter", ["", "a#", "#a", "a/#/b", "##", "#/#", "#/", "#/a", "a/b#", "a+", "+a", "a/+b", "a/b+/c", "++", "+a/b", "+#", "a/++", "/+a"]
)
async def test_bad_filters_make_no_subscription(version: int, filter: str) -> None:
    async with Scene() as scene:
        await assert_no_subscription(scene, await scene.connect("a", version), filter, version)


@pytest.mark.statement("MQTT5-4.7.1-1", "MQTT5-4.7.1-2", "MQTT311-4.7.1-2", "MQTT311-4.7.1-3")
@both_versions
@pytest.mark.parametrize(
    ("filter", "matching", "others"),
    [
        ("#", ["a", "a/b", "/", "/a", "a/", "a//b", "x"], ["$a", "$a/b"]),
        ("a/#", ["a", "a/", "a/b", "a/b/c", "a//"], ["ab", "b", "/a", "A"]),
        ("/#", ["/", "/a", "//"], ["a", "a/b"]),
        ("+", ["a", "b", "a b"], ["/", "/a", "a/", "a/b", "$a"]),
        ("+/+", ["a/b", "/", "/a", "a/"], ["a", "a/b/c", "//", "$a/b"]),
        ("/+", ["/a", "/"], ["a", "a/b", "/a/b"]),
        ("a/+/b", ["a/x/b", "a//b"], ["a/b", "a/x/y/b", "a/x/b/"]),
        ("+/a/#", ["x/a", "/a", "x/a/b/c"], ["a", "a/b", "x/b/a", "$x/a"]),
        ("a/+", ["a/", "a/b"], ["a", "a/b/c"]),
        ("+/+/#", ["a/b", "a/b/c", "/"], ["a"]),
        ("$a/#", ["$a", "$a/b"], ["a", "$ab"]),
        ("$a/+", ["$a/b", "$a/$b"], ["$a", "a/b"]),
        ("a/$b", ["a/$b"], ["a/b"]),
        ("a/+/#", ["a/$b", "a/$b/c"], ["a"]),
    ],
)
async def test_wildcards_match_whole_levels(version: int, filter: str, matching: list[str], others: list[str]) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.subscribe(filter)
        publisher = await scene.connect("p", version)
        for topic in matching + others:
            await publisher.publish(topic, topic.encode())
        assert await drained(peer) == [topic.encode() for topic in matching]


@pytest.mark.statement("MQTT5-4.7.2-1", "MQTT311-4.7.2-1")
@both_versions
async def test_filters_that_begin_with_a_wildcard_match_no_dollar(version: int) -> None:
    """Live and retained."""
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        await publisher.publish("$x/y", b"kept", retain=True)
        for filters, expected in ((("#", "+/y", "+/#", "+"), []), (("$x/#",), [b"kept", b"live"]), (("$x/+",), [b"kept", b"live"])):
            peer = await scene.connect("a", version)
            await peer.subscribe(*filters)
            await publisher.publish("$x/y", b"live")
            assert await drained(peer) == expected


@pytest.mark.statement("MQTT5-4.7.0-1", "MQTT311-4.7.1-1", "MQTT5-4.13.1-1", "MQTT311-4.8.0-1")
@both_versions
@pytest.mark.parametrize("topic", ["#", "+", "a/#", "a/+", "a+", "a#b", "+/b"])
async def test_wildcards_in_a_topic_name_close(version: int, topic: str) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.connect("a", version)
        await peer.send(publish_frame(topic, b"x", version=version))
        await peer.expect_closed()
        peer = await scene.peer(version)
        will = [b"\x00"] if version == V5 else []
        await peer.send(connect_frame(string("a"), *will, string(topic), string("x"), version=version, flags=0x06))
        for packet in await peer.receive_all():
            assert isinstance(packet, ConnAck)
            assert packet.reason.failed
        await peer.expect_end()
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-4.7.0-1")
@pytest.mark.parametrize("topic", ["#", "a/+"])
async def test_wildcards_in_a_response_topic_close(topic: str) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.send(publish_frame("t", property_section=properties(b"\x08" + string(topic))))
        await peer.expect_closed()


@pytest.mark.statement("MQTT5-4.7.3-1", "MQTT311-4.7.3-1")
@both_versions
async def test_an_empty_topic_name_closes(version: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        await peer.send(publish_frame("", b"x", version=version))
        await peer.expect_closed(0x82)


@pytest.mark.statement("MQTT5-4.7.3-2", "MQTT311-4.7.3-2")
@both_versions
async def test_a_null_character_closes(version: int) -> None:
    async with Scene() as scene:
        for data in (publish_frame("a\0b", version=version), subscribe_frame(1, ("a\0b", 0), version=version)):
            peer = await scene.connect("a", version)
            await peer.send(data)
            await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-4.7.3-3", "MQTT311-4.7.3-3")
@both_versions
async def test_the_longest_topic(version: int) -> None:
    """65,535 bytes; one more cannot be said on the wire. As name and as filter, of one-byte and of four-byte characters."""
    async with Scene() as scene:
        peer = await scene.connect("a", version)
        for topic in ("t" * 65_535, "😀" * 16_383 + "abc"):
            assert (await peer.subscribe(topic)).reasons == (0,)
            await peer.publish(topic, b"x")
            await peer.expect(Publish(topic, b"x"))


@pytest.mark.statement("MQTT5-4.7.3-4", "MQTT311-4.7.3-4")
@both_versions
async def test_nothing_is_normalized(version: int) -> None:
    """Case, the two forms of é, doubled slashes, spaces, a byte order mark: each is another topic."""
    topics = ["a/b", "A/b", "a/B", "é", "e\u0301", "a//b", "a/b/", "/a/b", " a/b", "a/ b", "\ufeffa/b", "ſ", "s", "ﬁ", "fi", "a\u200db", "ab"]
    async with Scene() as scene:
        publisher = await scene.connect("p", version)
        for filter in topics:
            peer = await scene.connect("a", version)
            await peer.subscribe(filter)
            for topic in topics:
                await publisher.publish(topic, topic.encode())
            assert await drained(peer) == [filter.encode()]
            message = peer.frames[-1]
            assert filter.encode() in message  # given on as it came


async def test_clients_do_not_publish_to_the_brokers_own_topics() -> None:
    """5.0, 4.7.2: a server should keep clients from exchanging messages on such topics; $SYS is ours."""
    async with Scene() as scene:
        peer = await scene.connect("a")
        await peer.subscribe("$SYS/#")
        assert await peer.publish("$SYS/broker/x", b"x", 1) == 0x87
        await peer.expect_nothing()
