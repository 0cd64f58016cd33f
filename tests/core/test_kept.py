"""What is kept of a retained message gives the message again, and the very frames that the general encoder makes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.kept import KEPT_PLAIN, Expiring, frame_of, is_on, kept_of, message_of, replayed, size_as_kept, size_of, topic_of, with_packet_id
from broker.core.message import ApplicationMessage
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, NO_PROPERTIES, Properties, Publish

PROPERTIES = st.sampled_from(
    [
        NO_PROPERTIES,
        Properties(content_type="text", user_properties=(("a", "1"), ("a", "2"))),
        Properties(payload_format_indicator=1, response_topic="r", correlation_data=b"x" * 140),
        Properties(correlation_data=b"x" * 20_000),
    ]
)
MESSAGES = st.builds(
    lambda topic, size, qos, properties, expires_at: ApplicationMessage(topic, b"x" * size, qos, True, properties, "p", expires_at),
    st.sampled_from(["t", "a/b/c", "é/温", "/", "t" * 120, "t" * 300, "t" * 65_535]),
    st.sampled_from([1, 2, 60, 121, 122, 123, 124, 125, 5000, 16_380, 16_381, 70_000]),
    st.integers(0, 2),
    PROPERTIES,
    st.sampled_from([math.inf, 12.5]),
)


@given(MESSAGES)
def test_the_message_again(message: ApplicationMessage) -> None:
    kept = kept_of(message)
    again = message_of(kept)
    assert isinstance(kept, Expiring) == (message.expires_at != math.inf)
    for name in ("topic", "payload", "qos", "retain", "properties", "expires_at", "size"):
        assert getattr(again, name) == getattr(message, name), name
    assert (again.properties is NO_PROPERTIES) == (message.properties is NO_PROPERTIES)
    assert topic_of(kept) == message.topic
    assert size_of(kept) == len(frame_of(kept)) == size_as_kept(message, False)
    assert size_of(kept_of(message, True)) == size_as_kept(message, True)
    assert is_on(kept, message.topic_field)
    assert not is_on(kept, ApplicationMessage(message.topic + "/x", b"", 0).topic_field if len(message.topic) < 65_000 else b"\x00\x01t")


@pytest.mark.parametrize("identifier", [0, 7])
@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
@given(message=MESSAGES)
def test_the_frame_of_a_replay_at_qos_0(version: int, identifier: int, message: ApplicationMessage) -> None:
    message.expires_at = math.inf
    kept = kept_of(message)
    assert isinstance(kept, bytes)
    own = bytes((0x0B, identifier)) if identifier and version == MQTT_5 else b""
    head, tail = message.frame(version, KEPT_PLAIN, b"", own, message.topic_field)
    assert replayed(kept, version == MQTT_5, own) == head + tail


@pytest.mark.parametrize("qos", [1, 2])
@given(message=MESSAGES)
def test_the_frame_of_a_replay_at_qos_1_and_2(qos: int, message: ApplicationMessage) -> None:
    message.expires_at = math.inf
    kept = kept_of(message)
    assert isinstance(kept, bytes)
    version = MQTT_311 if message.properties is NO_PROPERTIES else MQTT_5
    assert with_packet_id(kept, qos, 0x1234) == b"".join(message.frame(version, KEPT_PLAIN | qos << 1, b"\x12\x34", b"", message.topic_field))


def test_what_needs_no_change_is_not_copied() -> None:
    kept = kept_of(ApplicationMessage("a/b", b"1", 0, True))
    assert isinstance(kept, bytes)
    assert replayed(kept, False, b"") is kept
    assert kept == encode(Publish("a/b", b"1", 0, True), MQTT_311)
