"""What is read in place comes to the same as what is read packet by packet, whatever comes and however it is cut."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from broker.core.client import ClientProtocol
from broker.core.client_state import ClientOptions, Delivery, Outgoing
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, ConnAck, Packet, PingResp, Properties, PubAck, PubComp, Publish, PubRec, PubRel

VERSIONS = (MQTT_311, MQTT_5)
SETS = (
    Properties(),
    Properties(subscription_identifiers=(1,)),
    Properties(subscription_identifiers=(300, 2)),
    Properties(topic_alias=1),
    Properties(content_type="x" * 200, user_properties=(("a", "b"),)),
)
CODES = (ReasonCode.SUCCESS, ReasonCode.NO_MATCHING_SUBSCRIBERS, ReasonCode.QUOTA_EXCEEDED)

ids = st.integers(1, 4)
publishes = st.builds(
    lambda topic, size, qos, retain, dup, packet_id, properties: Publish(
        topic, bytes(size), qos, retain, dup and qos > 0, packet_id if qos else 0, properties
    ),
    st.sampled_from(("a", "a", "grüße/1", "b" * 130)),
    st.sampled_from((0, 1, 1, 100, 130, 20_000)),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from((False, False, False, True)),
    ids,
    st.sampled_from(SETS),
)
answers = st.one_of(
    st.builds(PubAck, ids, st.sampled_from(CODES)),
    st.builds(PubRec, ids, st.sampled_from(CODES)),
    st.builds(PubRel, ids),
    st.builds(PubComp, ids),
    st.just(PingResp()),
)
odd = st.sampled_from(
    (
        b"\x30\x05\x00\x01a",  # longer than what came
        b"\x36\x06\x00\x01a\x00\x01\x00",  # QoS 3
        b"\x32\x06\x00\x01a\x00\x00\x00",  # no packet id
        b"\x30\x04\x00\x01+\x00",
        b"\x30\x04\x00\x01\x00\x00",
        b"\x30\x04\x00\x01\xff\x00",
        b"\x30\x04\x00\x09a\x00",  # the topic runs past the end
        b"\x30\x06\x00\x01a\x05\x0b\x01",  # and the properties
        b"\x30\x84\x00\x00\x01a\x00",  # a length in a longer form than need be
        b"\x30\x03\x00\x00\x00",  # no topic, no alias
        b"\x40\x02\x00\x00",
        b"\x40\x03\x00\x01\x55",  # no reason code of a PUBACK
        b"\x50\x04\x00\x01\x00\x00",
        b"\x60\x02\x00\x01",
        b"\xd0\x00",
        b"\x10\x02\x00\x00",
    )
)


class PacketByPacket:
    """In place of what reads in place."""

    def run(self, count_max: int) -> int:
        return 0


def said(core: ClientProtocol) -> list[Any]:
    found: list[Any] = []
    for event in core.take_events():
        if isinstance(event, Delivery):
            found.append((event.publish, event.connection, event.settled))
        elif isinstance(event, Outgoing):
            found.append((event.sequence, event.outcome, event.reason))
        else:
            found.append(event)
    return found


def told(version: int, reads: list[bytes], *, in_place: bool, at_a_time: int, settles: bool) -> list[Any]:
    """All that a client says and does for these reads."""
    seen: list[tuple[str, Packet, bytes]] = []
    core = ClientProtocol(
        ClientOptions(client_id="me", version=version, packet_bytes_max=10_000 if version == MQTT_5 else 16_777_216),
        lambda direction, packet, frame: seen.append((direction, packet, frame)),
    )
    if not in_place:
        core._reading = PacketByPacket()  # type: ignore[assignment]
    core.begin_connection(0.0)
    core.receive(encode(ConnAck(False, ReasonCode.SUCCESS), version), 0.0)
    for qos in (1, 2, 2, 1, 0):
        core.publish(Publish("out", b"", qos))
    found: list[Any] = [core.data_to_send()]
    core.bytes_sent(len(found[0]), 0.0)
    for read in reads:
        more = core.receive(read, 0.0, at_a_time)
        while more:
            more = core.receive(b"", 0.0, at_a_time)
        deliveries = [event for event in core.events if isinstance(event, Delivery)]
        found.append(said(core))
        if settles:
            for delivery in deliveries:
                core.settle(delivery)
        data = core.data_to_send()
        core.bytes_sent(len(data), 0.0)
        found += [data, core.state, core.cause]
    return [*found, seen]


@given(
    st.sampled_from(VERSIONS),
    st.lists(st.one_of(publishes, publishes, answers, odd), max_size=30),
    st.sampled_from((1, 5, 64, 1000, 65_536)),
    st.sampled_from((1, 3, 1000)),
    st.booleans(),
)
@example(MQTT_5, [Publish("a", b"", 0), Publish("a", b"1", 0), Publish("a", b"1", 0, True), b"\x30\x02\x00\x01"], 65_536, 1000, True)
def test_in_place_is_as_packet_by_packet(version: int, packets: list[Packet | bytes], size: int, at_a_time: int, settles: bool) -> None:
    data = b"".join(packet if isinstance(packet, bytes) else encode(packet, version) for packet in packets)
    reads = [data[start : start + size] for start in range(0, len(data), size)] if len(data) // size < 300 else [data]
    assert told(version, reads, in_place=True, at_a_time=at_a_time, settles=settles) == told(
        version, reads, in_place=False, at_a_time=at_a_time, settles=settles
    )


def test_topics_that_are_known_by_their_bytes_are_bounded() -> None:
    core = ClientProtocol(ClientOptions(client_id="me"))
    core.begin_connection(0.0)
    core.receive(encode(ConnAck(False, ReasonCode.SUCCESS), MQTT_5), 0.0)
    frames = [encode(Publish(f"topic/{number}", properties=Properties(subscription_identifiers=(number + 1,))), MQTT_5) for number in range(5000)]
    core.receive(b"".join(frames), 0.0)
    assert [event.publish.topic for event in core.take_events() if isinstance(event, Delivery)] == [f"topic/{number}" for number in range(5000)]
    assert len(core._reading._topics) <= 1000
    assert len(core._reading._sets) <= 256
