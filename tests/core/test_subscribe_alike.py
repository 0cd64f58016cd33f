"""The short way of an ordinary SUBSCRIBE (`subscribe_alike`) does what the general way does, and leaves to it what is not ordinary."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import broker.core.receiving as receiving
from broker.core.subscribe import subscribe_alike
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, Properties, Publish, SubAck, Subscribe, SubscriptionRequest
from tests.core.harness import World

FILTERS = st.sampled_from(
    [
        "a", "a/b", "a/c", "b", "", "/", "a/+", "+", "#", "a/#", "a/+/b", "a+", "a/#/b", "b#", "+/+", "$SYS/x", "$share/g/a", "$share/g/+",
        "$share/g", "\u00e4/b", "a/" + "b" * 33, "a/" + "b" * 34, "x" * 35, "x" * 36, "x" * 43, "x" * 127, "x" * 128, "a/b/c/d/e/f",
        "\1", "a\1", "\2\1", "a" * 8 + "\x01",
    ]
)  # fmt: skip
OPTIONS = st.sampled_from([(0,), (0,), (0,), (1,), (2,), (0, True), (0, False, True), (0, False, False, 1), (1, False, False, 2)])
PACKETS = st.one_of(
    st.builds(lambda some, options: [SubscriptionRequest(filter, *options) for filter in some], st.lists(FILTERS, min_size=1, max_size=6), OPTIONS),
    st.lists(st.builds(lambda filter, options: SubscriptionRequest(filter, *options), FILTERS, OPTIONS), min_size=1, max_size=6),
)
LIMITS = st.sampled_from(
    [{}, {}, {"subscriptions_count_max": 4}, {"filter_levels_max": 3}, {"maximum_qos": 1}, {"wildcard_subscription_available": False}]
)
CHANGES = st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 40), st.sampled_from([b"", b"\0", b"\1", b"\3", b"\xc3", b"a"]), st.booleans()))


def answers(packets: list[Any], version: int, identifier: int, limits: dict[str, Any]) -> Any:
    """What came of it: the answers, the retained messages, who has what, and who gets the next messages."""
    world = World(**limits)
    publisher = world.client("p", MQTT_5)
    for topic in ("a/b", "x" * 36, "c"):
        publisher.publish(topic, b"kept", retain=True)
        publisher.publish(topic, b"known")
    small: dict[str, Any] = {"maximum_packet_size": 20} if version == MQTT_5 else {}
    peers = [world.client("one", version), world.client("other", version, **small)]
    got: list[Any] = []
    for number, (requests, change) in enumerate(packets):
        properties = Properties(subscription_identifiers=(identifier,)) if identifier and version == MQTT_5 else NO_PROPERTIES
        data = encode(Subscribe(number + 1, tuple(requests), properties), version)
        if change is not None:
            place, byte, insert = change
            place = 2 + place % (len(data) - 2)
            data = data[:place] + byte + data[place + (0 if insert else 1) :]
            if len(data) < 130:
                data = data[:1] + bytes([len(data) - 2]) + data[2:]
        peer = peers[number % 2]
        peer.give(data)
        for topic in ("a/b", "a", "x" * 36, "b", "\u00e4/b"):
            publisher.send(Publish(topic, b"now", 1, packet_id=1))
        got.append([peer.take() for peer in peers])
    table = world.state.topics
    sessions = {
        session.client_id: {
            filter: (one.qos, one.no_local, one.retain_as_published, one.identifier, one.session is session)
            for filter, one in session.subscriptions.items()
        }
        for session in world.engine.clients()
    }
    counts = (table.subscriptions_count, table.shared_count, table.wildcards.filters_count, len(table.literals))
    found = got, sessions, counts, world.engine.statistics(), [(peer.link.closing, peer.link.cause) for peer in peers]
    world.end_all()
    world.assert_empty()
    return found


@pytest.mark.pure_python("it puts the general way in the place of the short one")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(PACKETS, CHANGES), min_size=1, max_size=5),
    st.sampled_from([MQTT_5, MQTT_311]),
    st.sampled_from([0, 0, 7]),
    LIMITS,
)
def test_the_short_way_does_what_the_general_way_does(
    monkeypatch: pytest.MonkeyPatch, packets: list[Any], version: int, identifier: int, limits: dict[str, Any]
) -> None:
    short = answers(packets, version, identifier, limits)
    with monkeypatch.context() as patch:
        patch.setattr(receiving, "subscribe_alike", lambda state, link, body: False)
        general = answers(packets, version, identifier, limits)
    for one, other in zip(short, general, strict=True):
        assert one == other


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_ordinary_ones_take_it(version: int, qos: int) -> None:
    world = World()
    one = world.client("one", version)
    body = encode(Subscribe(258, (SubscriptionRequest("a/b", qos), SubscriptionRequest("a/+", qos), SubscriptionRequest("c", qos))), version)[2:]
    assert subscribe_alike(world.state, one.link, body)
    session = one.link.session
    assert session is not None
    assert list(session.subscriptions) == ["a/b", "c", "a/+"]
    assert len(set(session.subscriptions.values())) == 1  # one object stands for them all
    one.flush()
    answer = one.pop(SubAck)
    assert (answer.packet_id, answer.reasons) == (258, (qos, qos, qos))


@pytest.mark.parametrize("filter", ["$share/g/a", "$SYS/a", "a\0b", "a+", "#a", "\u00e4", "x" * 128, "kept"])
def test_what_is_not_ordinary_changes_nothing(filter: str) -> None:
    world = World()
    one = world.client("one")
    one.publish("kept", b"1", retain=True)
    fields = [text.encode() for text in ("a/b", filter)]
    body = b"\0\1\0" + b"".join(len(field).to_bytes(2, "big") + field + b"\0" for field in fields)
    assert not subscribe_alike(world.state, one.link, body)
    assert one.link.session is not None
    assert not one.link.session.subscriptions
