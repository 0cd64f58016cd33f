"""Hypothesis strategies for every packet that a version can express, and nothing more: what they make must survive a round trip."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from broker import reasons
from broker.reasons import ReasonCode
from broker.wire import packets as pk
from broker.wire.packets import MQTT_5, MQTT_31, NO_PROPERTIES, Packet, Properties
from broker.wire.properties import BINARY, PROPERTIES, STRING, STRING_PAIR, WILL

VERSIONS = st.sampled_from((pk.MQTT_31, pk.MQTT_311, pk.MQTT_5))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
TOPIC = st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=20)
BYTES = st.binary(max_size=200)
QOS = st.integers(0, 2)
PACKET_ID = st.integers(1, 65_535)


def _property_values(kind: int) -> st.SearchStrategy[dict[str, Any]]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for row in PROPERTIES:
        if not row.carriers >> kind & 1:
            continue
        value: st.SearchStrategy[Any]
        if row.is_topic:
            value = TOPIC
        elif row.type is STRING:
            value = TEXT
        elif row.type is BINARY:
            value = BYTES
        elif row.type is STRING_PAIR:
            value = st.tuples(TEXT, TEXT)
        else:
            assert row.number_max is not None
            value = st.integers(row.number_min, row.number_max)
        if row.repeats_in:
            value = st.lists(value, min_size=1, max_size=3 if row.repeats_in >> kind & 1 else 1).map(tuple)
        fields[row.field] = value
    return st.fixed_dictionaries({}, optional=fields)


def properties(kind: int, version: int) -> st.SearchStrategy[Properties]:
    if version < MQTT_5:
        return st.just(NO_PROPERTIES)

    def make(values: dict[str, Any]) -> Properties:
        if "authentication_method" not in values:
            values.pop("authentication_data", None)
        return Properties(**values) if values else NO_PROPERTIES

    return _property_values(kind).map(make)


def codes(allowed: frozenset[int]) -> st.SearchStrategy[ReasonCode]:
    return st.sampled_from(sorted(allowed)).map(ReasonCode)


@st.composite
def connects(draw: st.DrawFn, version: int) -> pk.Connect:
    will = None
    if draw(st.booleans()):
        will = pk.WillMessage(draw(TOPIC), draw(BYTES), draw(QOS), draw(st.booleans()), draw(properties(WILL, version)))
    username = draw(st.none() | TEXT)
    password = draw(st.none() | BYTES) if username is not None or version >= MQTT_5 else None
    return pk.Connect(
        draw(TEXT), version, draw(st.booleans()), draw(st.integers(0, 65_535)), will, username, password, draw(properties(pk.CONNECT, version))
    )


@st.composite
def publishes(draw: st.DrawFn, version: int) -> pk.Publish:
    qos = draw(QOS)
    owned = draw(properties(pk.PUBLISH, version))
    topic = draw(TOPIC | st.just("")) if owned.topic_alias is not None else draw(TOPIC)
    return pk.Publish(topic, draw(BYTES), qos, draw(st.booleans()), bool(qos) and draw(st.booleans()), draw(PACKET_ID) if qos else 0, owned)


def packets(version: int) -> st.SearchStrategy[Packet]:
    five = version >= MQTT_5
    success = st.just(ReasonCode.SUCCESS)
    returned = frozenset(
        code for code in reasons.CONNACK_CODES if reasons.from_connack_return_code(reasons.to_connack_return_code(code) or 0) == code
    )
    ack_codes = codes(reasons.PUBACK_CODES) if five else success
    release_codes = codes(reasons.PUBREL_CODES) if five else success
    suback_codes = codes(reasons.SUBACK_CODES if five else frozenset((0, 1, 2, 0x80)))
    flag = st.booleans() if five else st.just(False)
    request = st.builds(pk.SubscriptionRequest, TEXT, QOS, flag, flag, st.integers(0, 2) if five else st.just(0))

    def own(kind: int) -> st.SearchStrategy[Properties]:
        return properties(kind, version)

    kinds: list[st.SearchStrategy[Packet]] = [
        connects(version),
        st.builds(
            pk.ConnAck, st.just(False) if version == MQTT_31 else st.booleans(), codes(reasons.CONNACK_CODES if five else returned), own(pk.CONNACK)
        ),
        publishes(version),
        st.builds(pk.PubAck, PACKET_ID, ack_codes, own(pk.PUBACK)),
        st.builds(pk.PubRec, PACKET_ID, ack_codes, own(pk.PUBREC)),
        st.builds(pk.PubRel, PACKET_ID, release_codes, own(pk.PUBREL)),
        st.builds(pk.PubComp, PACKET_ID, release_codes, own(pk.PUBCOMP)),
        st.builds(pk.Subscribe, PACKET_ID, st.lists(request, min_size=1, max_size=4).map(tuple), own(pk.SUBSCRIBE)),
        st.builds(pk.SubAck, PACKET_ID, st.lists(suback_codes, min_size=1, max_size=4).map(tuple), own(pk.SUBACK)),
        st.builds(pk.Unsubscribe, PACKET_ID, st.lists(TEXT, min_size=1, max_size=4).map(tuple), own(pk.UNSUBSCRIBE)),
        st.builds(
            pk.UnsubAck,
            PACKET_ID,
            st.lists(codes(reasons.UNSUBACK_CODES), min_size=1, max_size=4).map(tuple) if five else st.just(()),
            own(pk.UNSUBACK),
        ),
        st.builds(pk.PingReq),
        st.builds(pk.PingResp),
        st.builds(pk.Disconnect, codes(reasons.CLIENT_DISCONNECT_CODES | reasons.SERVER_DISCONNECT_CODES) if five else success, own(pk.DISCONNECT)),
    ]
    if five:
        kinds.append(st.builds(pk.Auth, codes(reasons.AUTH_CODES), own(pk.AUTH)))
    return st.one_of(kinds)
