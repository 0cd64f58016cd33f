"""First messages on topics (`core.first`) come to the same as by the general way, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import broker.core.receiving as receiving
from broker.core import first
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, Properties, Publish, Subscribe, SubscriptionRequest
from tests.core.harness import World

TOPICS = st.sampled_from(["a", "a/b", "a/b/c", "a/c", "b", "b/c", "/", "ä/b", "$SYS/a", "$x/a", "nobody", "a/b/c/d/e/f/g/h", "c" * 140])
FILTERS = st.sampled_from(["a", "a/b", "a/b/c", "b", "ä/b", "$x/a", "c" * 140, "a/+", "a/+/c", "a/#", "+/b", "#", "b/+", "/", "+/+", "$share/g/a/b"])
SUBSCRIPTIONS = st.tuples(
    st.integers(0, 2),  # who; 0 publishes too
    st.builds(
        lambda filter, qos, no_local, retain: SubscriptionRequest(filter, qos, no_local and not filter.startswith("$share"), retain),
        FILTERS,
        st.integers(0, 2),
        st.sampled_from([False, False, True]),
        st.booleans(),
    ),
    st.sampled_from([0, 0, 5]),
)
PUBLISHES = st.tuples(
    TOPICS,
    st.sampled_from([0, 1, 90, 120, 700, 17_000]),
    st.sampled_from(
        [NO_PROPERTIES, NO_PROPERTIES, Properties(content_type="text"), Properties(message_expiry_interval=9), Properties(topic_alias=1)]
    ),
    # the frame may be changed: a byte set in its topic, or after it
    st.sampled_from([None, None, None, None, (4, b"+"), (4, b"#"), (4, b"\0"), (4, b"\xff"), (1, b"\x05"), (0, b"\x31"), (5, b"/")]),
)
# Of one size, so that they are taken together.
ALIKE = st.tuples(
    st.sampled_from(["a/b", "a/c", "b/c", "b/b", "a/b", "a/c", "$x/", "xyz"]),
    st.just(90),
    st.sampled_from([NO_PROPERTIES, NO_PROPERTIES, NO_PROPERTIES, Properties(content_type="text")]),
    st.sampled_from([None] * 12 + [(4, b"+"), (6, b"#"), (6, b"\0"), (5, b"\xff"), (6, b"/")]),
)
STEPS = st.lists(
    st.one_of(
        SUBSCRIPTIONS,
        st.lists(PUBLISHES, min_size=1, max_size=8),
        st.lists(ALIKE, min_size=4, max_size=30),
        st.sampled_from(["drop", "read", "unsubscribe"]),
    ),
    max_size=14,
)


def outcome(steps: list[Any], versions: list[int], small: bool) -> Any:
    world = World(outbox_bytes_high=2_000, slow_subscriber_grace_s=5.0, filter_levels_max=7)
    peers = []
    for number, version in enumerate(versions):
        limits: dict[str, Any] = {"maximum_packet_size": 120} if small and version == MQTT_5 and number == 1 else {}
        peers.append(world.client(f"c{number}", version, **limits))
    peers[2].takes = 300 if small else 1e9
    got: list[list[Any]] = [[], [], []]
    for step in steps:
        if step == "drop":
            peers[2].detach()
            peers[2] = world.client("c2", versions[2])
        elif step == "read":
            peers[2].read()
        elif step == "unsubscribe":
            session = peers[1].link.session
            if session is not None and session.subscriptions:
                peers[1].unsubscribe(*session.subscriptions)
        elif isinstance(step, list):
            data = b""
            for topic, size, properties, change in step:
                frame = encode(Publish(topic, b"x" * size, properties=properties if versions[0] == MQTT_5 else NO_PROPERTIES), versions[0])
                if change is not None and len(frame) < 120:
                    frame = frame[: change[0]] + change[1] + frame[change[0] + 1 :]
                data += frame
            peers[0].give(data)
        else:
            who, request, identifier = step
            version = versions[who]
            own = Properties(subscription_identifiers=(identifier,)) if identifier and version == MQTT_5 else NO_PROPERTIES
            peers[who].give(encode(Subscribe(1, (request,), own), version))
        for some, peer in zip(got, peers, strict=True):
            some.extend(peer.take())
    paused = peers[0].link.paused
    world.after(60)
    for some, peer in zip(got, peers, strict=True):
        peer.read()
        some.extend(peer.take())
    counters = world.engine.statistics()
    found = got, counters, world.state.dropped, paused, [(peer.link.closing, peer.link.cause) for peer in peers]
    world.end_all()
    world.assert_empty()
    return found


@pytest.mark.pure_python("it puts the general way in the place of the short ones")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.lists(st.sampled_from([MQTT_5, MQTT_311]), min_size=3, max_size=3), st.booleans())
def test_it_is_as_the_general_way_has_it(monkeypatch: pytest.MonkeyPatch, steps: list[Any], versions: list[int], small: bool) -> None:
    short = outcome(steps, versions, small)
    with monkeypatch.context() as patch:
        patch.setattr(receiving, "relay", lambda state, link, now: True)
        general = outcome(steps, versions, small)
    for one, other in zip(short, general, strict=True):
        assert one == other


def published(world: World, *topics: str) -> None:
    """In one read."""
    link = next(link for link in world.state.links if link.client_id == "p")
    world.peers[link].give(b"".join(encode(Publish(topic, b"1"), MQTT_5) for topic in topics))


@pytest.mark.parametrize("filters", [["a/1", "a/2", "a/3"], ["a/+"]])
def test_a_topic_among_others_is_not_learned_before_it_comes_twice_in_a_row(filters: list[str]) -> None:
    world = World()
    one, p = world.client("one"), world.client("p")
    one.subscribe(*filters)
    for _ in range(3):
        published(world, "a/1", "a/2", "a/3")
    assert len(one.messages()) == 9
    assert not p.link.known_topics
    published(world, "a/1", "a/1")
    assert [route.topic for route in p.link.known_topics.values()] == ["a/1"]


def test_a_topic_that_comes_alone_is_learned_when_it_comes_again() -> None:
    """For then it goes past the decoder too (`Engine.sole_recipient`)."""
    world = World()
    one, p = world.client("one"), world.client("p")
    one.subscribe("a/1", "a/2")
    for topic in ("a/1", "a/2", "a/1"):
        published(world, topic)
    assert [route.topic for route in p.link.known_topics.values()] == ["a/1"]
    assert len(one.messages()) == 3


def test_long_topics_pass_and_are_not_noted() -> None:
    world = World()
    one, p = world.client("one"), world.client("p")
    one.subscribe("#")
    for number in (1, 2, 1, 1):
        published(world, f"t/{number}/" + "x" * 10_000)
    assert len(one.messages()) == 4
    assert not p.link.passed
    assert not p.link.known_topics


def test_topics_that_passed_are_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    one, p = world.client("one"), world.client("p")
    one.subscribe("#")
    for number in range(first.PASSED_COUNT_MAX + 10):
        published(world, f"t/{number}")
    assert len(one.messages()) == first.PASSED_COUNT_MAX + 10
    assert p.link.passed is not None
    assert len(p.link.passed) == 10
    p.disconnect()
    assert p.link.passed is None


def test_who_has_passed_messages_to_others_is_not_paced_by_one() -> None:
    """A sole recipient may pace its publisher for long; what went the short way has recipients too."""
    world = World(outbox_bytes_high=1_000, slow_subscriber_grace_s=1.0)
    slow, other, p = world.client("slow"), world.client("other"), world.client("p")
    slow.subscribe("slow/#")
    other.subscribe("other/1", "other/2")
    published(world, "other/1", "slow/1", "other/2")
    slow.takes = 0
    for _ in range(3):
        p.publish("slow/stream", b"x" * 600)
    assert p.link.paused
    assert slow.link.pausing == {p.link: False}  # on its credit, then: others wait
    world.after(2)
    assert not p.link.paused


@pytest.mark.parametrize("sizes", [[10], [2_000], [10, 20, 30], [10, 2_000, 10], [2_000, 10, 2_000], [90] * 8, [10] * 100])
def test_what_one_client_gets_of_one_read_comes_whole_and_in_order(sizes: list[int]) -> None:
    """However many they are, and of whatever size: joined in its outbox as they come, or in chunks."""
    world = World()
    one, p = world.client("one"), world.client("p")
    topics = [f"t/{number}" for number in range(len(sizes))]
    one.subscribe(*topics)
    for _ in range(2):
        p.give(b"".join(encode(Publish(topic, b"x" * size), MQTT_5) for topic, size in zip(topics, sizes, strict=True)))
        assert [(message.topic, len(message.payload)) for message in one.messages()] == list(zip(topics, sizes, strict=True))
        assert not one.link.outbox.committed_bytes


def test_rules_are_asked_by_the_general_way() -> None:
    world = World(authorize=lambda username, client_id, action, topic: not (action == "receive" and topic == "secret"))
    one, p = world.client("one"), world.client("p")
    one.subscribe("secret", "open")
    for _ in range(3):
        published(world, "secret", "open")
    assert [message.topic for message in one.messages()] == ["open"] * 3
    assert p.link.passed is None
    assert not p.link.passed_last


def test_it_is_taken_at_all() -> None:
    """The general way would count no less: that it is not gone is seen by what it leaves."""
    world = World()
    one, old, p = world.client("one"), world.client("old", MQTT_311), world.client("p")
    one.subscribe("a/b", "c/+/d")
    old.subscribe("b")
    published(world, "a/b", "b", "c/x/d")
    assert [message.topic for message in [*one.messages(), *old.messages()]] == ["a/b", "c/x/d", "b"]
    assert not p.link.known_topics
    assert not world.state.topics.remembered
    assert p.link.passed is None
    assert p.link.passed_to == ""
    p.give(encode(Publish("c/x/d", b"1"), MQTT_5).replace(b"x", b"+"))
    assert p.ends_with(ReasonCode.MALFORMED_PACKET)
