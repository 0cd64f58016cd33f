"""The client's rules, driven with scripted bytes and a clock that is a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.client import ClientProtocol
from broker.core.client_state import ClientOptions, Connected, Delivery, Event, ExchangeDone, Outgoing, Refused, Resubscribed
from broker.errors import NotSupported
from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    NO_PROPERTIES,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)


class Bench:
    """A client core, and what a broker says to it."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("client_id", "me")
        self.core = ClientProtocol(ClientOptions(**options))
        self.now = 100.0

    def connect(self, properties: Properties = NO_PROPERTIES, *, session_present: bool = False) -> list[Packet]:
        """Up to and with CONNACK; what the client says then."""
        self.core.begin_connection(self.now, self.now + 10)
        (connect,) = self.sent()
        assert isinstance(connect, Connect)
        self.hear(ConnAck(session_present, ReasonCode.SUCCESS, properties))
        return self.sent()

    def hear(self, *packets: Packet) -> None:
        self.core.receive(b"".join(encode(packet, self.core.version) for packet in packets), self.now)

    def sent(self) -> list[Packet]:
        frames = FrameDecoder(268_435_460)
        packets = []
        while data := self.core.data_to_send():
            self.core.bytes_sent(len(data), self.now)
            frames.feed(data)
            while (frame := frames.next_frame()) is not None:
                packets.append(decode(*frame, self.core.version))
        return packets

    def events(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.core.take_events() if isinstance(event, kind)]


def bench(**options: Any) -> Bench:
    made = Bench(**options)
    made.connect()
    made.core.take_events()
    return made


def test_connect_says_what_it_was_told() -> None:
    made = Bench(session_expiry_s=60, receive_maximum=7, connect_properties=Properties(topic_alias_maximum=3, request_problem_information=0))
    made.core.begin_connection(0.0)
    (connect,) = made.sent()
    assert isinstance(connect, Connect)
    assert connect.properties == Properties(
        session_expiry_interval=60,
        receive_maximum=7,
        topic_alias_maximum=3,
        maximum_packet_size=16_777_216,
        request_response_information=1,
        request_problem_information=0,
    )


def test_connack_comes_first_and_once() -> None:
    made = Bench()
    made.core.begin_connection(0.0)
    made.hear(PingResp())
    assert made.core.closing
    made = bench()
    made.hear(ConnAck(False, ReasonCode.SUCCESS))
    assert made.sent() == [Disconnect(ReasonCode.PROTOCOL_ERROR)]


def test_a_refusal() -> None:
    made = Bench(version=MQTT_311)
    made.core.begin_connection(0.0)
    made.hear(ConnAck(False, ReasonCode.SERVER_UNAVAILABLE))
    assert made.events(Refused) == [Refused(ReasonCode.SERVER_UNAVAILABLE, 3, None)]
    assert made.core.closing


def test_session_present_after_clean_start_is_a_fault() -> None:
    made = Bench()
    made.connect(session_present=True)
    assert made.core.closing
    assert made.core.state == "closing"


def test_an_unassigned_client_id_is_a_fault() -> None:
    made = Bench(client_id="")
    made.connect()
    assert made.core.closing
    made = Bench(client_id="")
    made.connect(Properties(assigned_client_identifier="yours"))
    assert made.core.client_id == "yours"
    made.core.connection_lost(0.0)
    made.core.begin_connection(0.0)
    (connect,) = made.sent()
    assert isinstance(connect, Connect)
    assert (connect.client_id, connect.clean_start) == ("yours", False)


def test_3_1_1_keeps_its_clean_session_flag() -> None:
    made = bench(version=MQTT_311)
    made.core.connection_lost(0.0)
    made.core.begin_connection(0.0)
    (connect,) = made.sent()
    assert isinstance(connect, Connect)
    assert connect.clean_start


@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        ([Auth(ReasonCode.CONTINUE_AUTHENTICATION, Properties(authentication_method="m"))], ReasonCode.PROTOCOL_ERROR),
        ([PingReq()], ReasonCode.PROTOCOL_ERROR),
        ([Subscribe(1, (SubscriptionRequest("a"),))], ReasonCode.PROTOCOL_ERROR),
        ([SubAck(9, (ReasonCode.SUCCESS,))], ReasonCode.PROTOCOL_ERROR),
        ([Publish("", b"", properties=Properties(topic_alias=1))], ReasonCode.PROTOCOL_ERROR),
        ([Publish("a", b"", properties=Properties(topic_alias=17))], ReasonCode.TOPIC_ALIAS_INVALID),
        ([Publish("a", b"", 1, packet_id=1), Publish("a", b"", 1, packet_id=1)], ReasonCode.PROTOCOL_ERROR),
        ([Publish("a", b"", 2, packet_id=1), PubRel(1)], ReasonCode.PROTOCOL_ERROR),
        ([Publish("a", b"", 1, packet_id=number) for number in range(1, 102)], ReasonCode.RECEIVE_MAXIMUM_EXCEEDED),
    ],
)
def test_faults_of_the_broker_end_the_connection_with_their_reason(packets: list[Packet], reason: ReasonCode) -> None:
    made = bench()
    made.hear(*packets)
    assert made.sent() == [Disconnect(reason)]
    assert made.core.closing
    assert made.core.said_goodbye


def test_a_packet_too_large_is_seen_at_its_header() -> None:
    made = bench(packet_bytes_max=100)
    made.core.receive(b"\x30\xff\x7f", 0.0)
    assert made.sent() == [Disconnect(ReasonCode.PACKET_TOO_LARGE)]


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"H", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x30"])
def test_what_is_no_mqtt_is_not_waited_for(said: bytes) -> None:
    core = ClientProtocol(ClientOptions())
    core.begin_connection(0.0, 10.0)
    core.receive(said, 0.0)
    assert core.closing
    assert "is it an MQTT broker?" in core.cause


def test_a_connack_may_come_in_pieces() -> None:
    core = ClientProtocol(ClientOptions(client_id="c"))
    core.begin_connection(0.0, 10.0)
    for byte in b"\x20\x03\x00\x00\x00":
        core.receive(bytes((byte,)), 0.0)
    assert core.state == "connected"


def test_at_most_so_many_packets_are_acted_on() -> None:
    made = bench()
    made.core.take_events()
    assert made.core.receive(encode(Publish("a"), 5) * 5, 0.0, 2)
    assert len(made.core.take_events()) == 2
    assert made.core.receive(b"", 0.0, 2)
    assert not made.core.receive(b"", 0.0, 2)
    assert len(made.core.take_events()) == 3
    assert not made.core.receive(encode(Publish("a"), 5) * 2, 0.0, 2)  # and there is no more


def test_an_end_inside_a_packet_has_its_own_name() -> None:
    made = bench()
    made.core.receive(b"\x30\x05\x00", 0.0)
    made.core.end_of_stream(0.0)
    assert "inside a packet" in made.core.cause


def test_problem_information_that_was_not_asked_for() -> None:
    made = bench(connect_properties=Properties(request_problem_information=0))
    made.core.publish(Publish("a", b"", 1))
    made.sent()
    made.hear(PubAck(1, ReasonCode.SUCCESS, Properties(reason_string="why not")))
    assert made.sent() == [Disconnect(ReasonCode.PROTOCOL_ERROR)]


def test_settlements_wait_for_older_ones() -> None:
    made = bench()
    made.hear(*(Publish("a", b"", qos, packet_id=number) for number, qos in enumerate((1, 2, 1), 1)))
    one, two, three = made.events(Delivery)
    made.core.settle(three)
    made.core.settle(two, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
    assert made.sent() == []
    made.core.settle(one)
    made.core.settle(one)
    assert made.sent() == [PubAck(1), PubRec(2, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR), PubAck(3)]
    made.hear(Publish("a", b"new", 2, packet_id=2))  # the refusal has freed the id
    assert len(made.events(Delivery)) == 1


def test_qos_2_is_given_once_and_released() -> None:
    made = bench()
    made.hear(Publish("a", b"", 2, packet_id=5))
    (event,) = made.events(Delivery)
    made.core.settle(event)
    assert made.sent() == [PubRec(5)]
    made.hear(Publish("a", b"", 2, dup=True, packet_id=5))
    assert made.events(Delivery) == []
    assert made.sent() == [PubRec(5)]
    made.hear(PubRel(5), PubRel(5))
    assert made.sent() == [PubComp(5), PubComp(5, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)]


def test_settled_while_away_is_acknowledged_when_it_is_repeated() -> None:
    made = bench(clean_start=False)
    made.hear(Publish("a", b"", 1, packet_id=1), Publish("a", b"", 2, packet_id=2))
    deliveries: list[Delivery] = made.events(Delivery)
    made.core.connection_lost(made.now)
    for delivery in deliveries:
        made.core.settle(delivery)
    assert made.connect(session_present=True) == []
    made.hear(Publish("a", b"", 1, dup=True, packet_id=1), Publish("a", b"", 2, dup=True, packet_id=2))
    assert made.events(Delivery) == []
    assert made.sent() == [PubAck(1), PubRec(2)]


def test_a_lost_session_forgets_what_was_unsettled() -> None:
    made = bench(clean_start=False)
    made.hear(Publish("a", b"", 2, packet_id=2))
    (event,) = made.events(Delivery)
    made.core.connection_lost(made.now)
    made.connect(session_present=False)
    made.core.settle(event)
    made.hear(Publish("a", b"", 2, packet_id=2))
    assert len(made.events(Delivery)) == 1
    assert made.sent() == []


def test_keepalive_is_a_number() -> None:
    made = bench(keep_alive_s=100)
    assert made.core.next_deadline() == pytest.approx(190)
    made.now = 150
    made.core.publish(Publish("a"))
    assert made.sent() == [Publish("a")]
    assert made.core.next_deadline() == pytest.approx(190)  # sending alone shows nobody that the broker is there
    made.now = 190
    made.core.tick(made.now)
    assert made.sent() == [PingReq()]
    assert made.core.next_deadline() == pytest.approx(200)
    made.now = 195
    made.hear(PingResp())
    assert made.core.next_deadline() == pytest.approx(280)
    made.core.tick(280)
    made.core.tick(300)
    assert made.core.closing
    assert "PINGREQ" in made.core.cause
    assert bench(keep_alive_s=0).core.next_deadline() == math.inf


def test_the_broker_hears_of_us_while_its_answer_stands_behind_what_comes_slowly() -> None:
    """[MQTT5-3.1.2-20]: also where a PINGREQ is not answered yet."""
    made = bench(keep_alive_s=10)
    slow = encode(Publish("a", bytes(100)), MQTT_5)
    said_at = made.now = made.core.next_deadline()
    made.core.tick(made.now)
    assert made.sent() == [PingReq()]
    for second in range(1, 9):
        made.now = said_at + second
        made.core.receive(slow[second - 1 : second], made.now)
        assert made.sent() == []
    made.now = said_at + 9
    assert made.core.next_deadline() == pytest.approx(made.now)
    made.core.tick(made.now)
    left = made.core.next_deadline()
    made.core.tick(made.now + 8)
    assert left == pytest.approx(said_at + 8 + made.core.options.response_timeout_s)  # one that has not left is enough
    assert made.sent() == [PingReq()]
    made.core.receive(slow[8:], made.now)
    made.hear(PingResp())
    assert not made.core.closing


def test_who_reads_a_long_packet_slowly_is_not_silent() -> None:
    """Nobody can answer a PINGREQ that stands behind it."""
    made = bench(keep_alive_s=10)
    timeout_s = made.core.options.response_timeout_s
    made.core.publish(Publish("a", bytes(100_000)))
    size = len(made.core.data_to_send())
    asked_at = made.now = made.core.next_deadline()
    made.core.tick(made.now)
    for part in range(1, 10):
        made.now = asked_at + part * (timeout_s - 1)
        made.core.moves_on(made.now)
        assert made.core.next_deadline() == pytest.approx(made.now + timeout_s)
    made.core.bytes_sent(size, made.now)
    assert made.sent() == [PingReq()]
    left_at = made.now
    made.now += 9
    made.core.tick(made.now)  # the next one; the first is still what has to be answered
    assert made.sent() == [PingReq()]
    assert made.core.next_deadline() == pytest.approx(left_at + timeout_s)
    made.core.tick(left_at + timeout_s)
    assert made.core.closing


def test_who_reads_nothing_of_a_long_packet_is_given_up() -> None:
    made = bench(keep_alive_s=10)
    made.core.publish(Publish("a", bytes(100_000)))
    made.core.data_to_send()
    made.core.tick(made.core.next_deadline())
    made.core.tick(made.core.next_deadline())
    assert made.core.closing
    assert "PINGREQ" in made.core.cause


def test_connack_deadline() -> None:
    made = Bench()
    made.core.begin_connection(5.0, 8.0)
    assert made.core.next_deadline() == 8.0
    made.core.tick(8.0)
    assert made.core.closing


def test_capabilities_are_kept() -> None:
    made = Bench()
    made.connect(Properties(maximum_qos=0, retain_available=0, wildcard_subscription_available=0, shared_subscription_available=0))
    for refused in Publish("a", b"", 1), Publish("a", b"", 0, True):
        with pytest.raises(NotSupported):
            made.core.publish(refused)
    for filter in "a/#", "$share/g/a":
        with pytest.raises(NotSupported):
            made.core.subscribe((SubscriptionRequest(filter),))


def test_what_waited_is_refused_when_the_next_broker_cannot() -> None:
    made = bench()
    made.core.connection_lost(made.now)
    outgoing = made.core.publish(Publish("a", b"", 2))
    made.connect(Properties(maximum_qos=1))
    assert made.sent() == []
    assert made.events(Outgoing) == [outgoing]
    assert (outgoing.outcome, outgoing.reason) == ("refused", ReasonCode.QOS_NOT_SUPPORTED)
    assert made.core.sender.quota == made.core.sender.quota_max
    assert made.core.idle


def test_no_alias_in_a_repetition() -> None:
    made = Bench(clean_start=False)
    made.connect(Properties(topic_alias_maximum=1))
    made.core.publish(Publish("long", b"1", 1), topic_alias=1)
    made.core.publish(Publish("long", b"2", 1), topic_alias=1)
    assert [packet.topic for packet in made.sent() if isinstance(packet, Publish)] == ["long", ""]
    made.core.connection_lost(made.now)
    again = made.connect(Properties(topic_alias_maximum=1), session_present=True)
    assert again == [Publish("long", b"1", 1, dup=True, packet_id=1), Publish("long", b"2", 1, dup=True, packet_id=2)]


def test_answers_that_nobody_reads_are_bounded() -> None:
    made = bench(unsent_bytes_max=100)
    made.hear(*(PubRel(number) for number in range(1, 40)))
    assert made.core.closing


def test_a_lost_suback_is_asked_for_again() -> None:
    made = bench()
    exchange = made.core.subscribe((SubscriptionRequest("a", 1),), 4)
    assert made.sent() == [Subscribe(1, (SubscriptionRequest("a", 1),), Properties(subscription_identifiers=(4,)))]
    made.core.connection_lost(made.now)
    (again,) = made.connect()
    assert isinstance(again, Subscribe)
    made.hear(SubAck(again.packet_id, (ReasonCode.GRANTED_QOS_1,)))
    assert made.events(ExchangeDone) == [ExchangeDone(exchange)]
    assert not made.core.sender.reserved


def test_subscriptions_are_remade_until_they_stand() -> None:
    """Lost between the new Session and its SUBACK, and resumed then: still asked for."""
    made = bench(clean_start=False)
    made.core.subscribe((SubscriptionRequest("a"),))
    (first,) = made.sent()
    assert isinstance(first, Subscribe)
    made.hear(SubAck(first.packet_id, (ReasonCode.SUCCESS,)))
    again = first
    for session_present in False, True:
        made.core.connection_lost(made.now)
        made.core.take_events()
        (packet,) = made.connect(session_present=session_present)
        assert isinstance(packet, Subscribe)
        again = packet
        assert not made.events(Resubscribed)
    made.hear(SubAck(again.packet_id, (ReasonCode.SUCCESS,)))
    assert made.events(Resubscribed)
    made.core.connection_lost(made.now)
    assert made.connect(session_present=True) == []
    assert [event.resumed for event in made.events(Connected)] == [True]


VERBS = ["publish", "subscribe", "unsubscribe", "settle", "cut", "tick"]


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
def test_a_session_that_may_be_another_one_is_subscribed_anew(version: int) -> None:
    """A CONNACK was lost, which may have said that the session is new. The next one says that it is there, and nothing stands in it."""
    handling: dict[str, Any] = {"retain_handling": 1} if version == MQTT_5 else {}
    made = bench(version=version, clean_start=False, session_expiry_s=60 if version == MQTT_5 else 0)
    made.core.subscribe((SubscriptionRequest("a", 1),))
    (first,) = made.sent()
    assert isinstance(first, Subscribe)
    made.hear(SubAck(first.packet_id, (ReasonCode.GRANTED_QOS_1,)))
    made.core.connection_lost(made.now)
    made.core.begin_connection(made.now)
    made.core.connection_lost(made.now)
    (again,) = made.connect(session_present=True)
    assert isinstance(again, Subscribe)
    assert again.subscriptions == (SubscriptionRequest("a", 1, **handling),)
    made.hear(SubAck(again.packet_id, (ReasonCode.GRANTED_QOS_1,)))
    # No doubt any more; nor where the broker has said no.
    made.core.connection_lost(made.now)
    made.core.begin_connection(made.now)
    made.hear(ConnAck(False, ReasonCode.SERVER_UNAVAILABLE))
    made.core.connection_lost(made.now)
    assert made.connect(session_present=True) == []


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("in_doubt", [False, True])
def test_an_id_that_is_held_may_be_another_sessions_where_a_connack_was_lost(in_doubt: bool, later: bool) -> None:
    """later: on the connection that tells of the Session nothing comes with that id, but on the next."""
    made = bench(session_expiry_s=60)
    for first in (True, False):
        if not first:
            made.core.connection_lost(made.now)
            if in_doubt:
                made.core.begin_connection(made.now)
                made.core.connection_lost(made.now)
            made.connect(session_present=True)
            if later:
                made.core.connection_lost(made.now)
                made.connect(session_present=True)
            made.core.take_events()
        made.hear(_publish(2, 1, dup=False))
        received = made.events(Delivery)
        assert len(received) == (first or in_doubt)
        for event in received:
            made.core.settle(event)
        assert made.sent() == [PubRec(1)]
        made.hear(_publish(2, 1, dup=not first))
        assert not made.events(Delivery)
        assert made.sent() == [PubRec(1)]


def test_what_was_left_before_its_suback_is_not_made_again() -> None:
    made = bench(session_expiry_s=60)
    subscription = made.core.subscribe((SubscriptionRequest("a"), SubscriptionRequest("b")))
    (subscribe,) = made.sent()
    assert isinstance(subscribe, Subscribe)
    made.core.unsubscribe(("a",))
    (unsubscribe,) = made.sent()
    assert isinstance(unsubscribe, Unsubscribe)
    made.hear(SubAck(subscribe.packet_id, (ReasonCode.SUCCESS,) * 2), UnsubAck(unsubscribe.packet_id, (ReasonCode.SUCCESS,)))
    assert made.core.subscriptions == {"b": subscription}
    made.core.connection_lost(made.now)
    assert [packet.subscriptions for packet in made.connect() if isinstance(packet, Subscribe)] == [(SubscriptionRequest("b"),)]


@pytest.mark.parametrize("again", [False, True])
def test_an_unsubscribe_that_waits_behind_its_subscribe_is_sent_to_a_new_session_too(again: bool) -> None:
    made = bench(session_expiry_s=60)
    made.core.subscribe((SubscriptionRequest("a"),))
    made.core.unsubscribe(("a",))
    made.core.unsubscribe(("b",))
    if again:
        made.core.subscribe((SubscriptionRequest("a", 1),))
    made.sent()
    made.core.connection_lost(made.now)
    sent = made.connect()
    kinds = [type(packet) for packet in sent]
    assert kinds == [Subscribe, Unsubscribe, Subscribe] if again else kinds == [Subscribe, Unsubscribe]
    for packet in sent:
        assert isinstance(packet, (Subscribe, Unsubscribe))
        made.hear((SubAck if isinstance(packet, Subscribe) else UnsubAck)(packet.packet_id, (ReasonCode.SUCCESS,)))
    assert list(made.core.subscriptions) == (["a"] if again else [])


def _publish(qos: int, packet_id: int, dup: bool) -> Publish:
    return Publish("a", b"", qos, dup=dup and qos > 0, packet_id=packet_id if qos else 0)


def broker_packets() -> st.SearchStrategy[Packet]:
    ids = st.integers(1, 4)
    codes = st.sampled_from([ReasonCode.SUCCESS, ReasonCode.UNSPECIFIED_ERROR])
    publishes = st.builds(_publish, st.integers(0, 2), ids, st.booleans())
    acks = st.one_of(st.builds(PubAck, ids, codes), st.builds(PubRec, ids, codes), st.builds(PubRel, ids), st.builds(PubComp, ids))
    answers = st.one_of(st.builds(lambda i, c: SubAck(i, (c,)), ids, codes), st.builds(lambda i: UnsubAck(i, (ReasonCode.SUCCESS,)), ids))
    rest: st.SearchStrategy[Packet] = st.sampled_from(
        [PingResp(), PingReq(), ConnAck(True, ReasonCode.SUCCESS), ConnAck(False, ReasonCode.SUCCESS), Disconnect(), Auth()]
    )
    return st.one_of(publishes, acks, answers, rest)


@given(
    version=st.sampled_from([MQTT_5, MQTT_311]),
    script=st.lists(st.one_of(broker_packets(), st.binary(max_size=6), st.sampled_from(VERBS))),
)
def test_any_input_in_any_state(version: int, script: list[Any]) -> None:
    """Whatever a broker says, and whatever the program does meanwhile, no verb raises, and nothing is left when the connection is gone."""
    made = Bench(version=version)
    made.connect()
    for step in script:
        if isinstance(step, bytes):
            made.core.receive(step, made.now)
        elif step == "publish":
            made.core.publish(Publish("a", b"", len(script) % 3))
        elif step == "subscribe":
            made.core.subscribe((SubscriptionRequest("a"),))
        elif step == "unsubscribe":
            made.core.unsubscribe(("a",))
        elif step == "settle":
            for event in made.events(Delivery):
                made.core.settle(event)
        elif step == "tick":
            made.now += 60
            made.core.tick(made.now)
        elif step == "cut":
            made.core.connection_lost(made.now)
            made.core.begin_connection(made.now)
            made.core.receive(encode(ConnAck(False, ReasonCode.SUCCESS), version), made.now)
        elif version == MQTT_5 or not isinstance(step, (Disconnect, Auth)):
            made.hear(step)
        made.core.data_to_send()
        made.core.bytes_sent(10, made.now)
        assert made.core.sender.quota <= made.core.sender.quota_max
    made.core.connection_lost(made.now)
    assert made.core.state == "away"
    assert made.core.next_deadline() == math.inf


# ---- expiry ------------------------------------------------------------------------------------------------------------


def lasting(seconds: int, qos: int = 1, topic: str = "a") -> Publish:
    return Publish(topic, b"", qos, properties=Properties(message_expiry_interval=seconds))


def seconds_left(packet: Packet) -> int | None:
    assert isinstance(packet, Publish)
    return packet.properties.message_expiry_interval


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_is_left_of_its_life_is_sent(qos: int) -> None:
    made = Bench()
    made.core.publish(lasting(60, qos), now=made.now)
    made.now += 20.5
    (sent,) = made.connect()
    assert seconds_left(sent) == 40


def test_at_once_it_is_what_was_said() -> None:
    made = bench()
    for seconds in (0, 1, 60):
        made.core.publish(lasting(seconds), now=made.now)
    assert [seconds_left(packet) for packet in made.sent()] == [0, 1, 60]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_expires_before_it_is_sent_never_is(qos: int) -> None:
    made = Bench()
    short, long = made.core.publish(lasting(5, qos), now=made.now), made.core.publish(lasting(50, qos), now=made.now)
    assert made.core.next_deadline() == made.now + 5
    made.now += 5
    made.core.tick(made.now)
    assert made.core.take_events() == [short]
    assert (short.outcome, short.done) == ("expired", True)
    assert made.core.next_deadline() == made.now + 45
    assert len(made.connect()) == 1
    assert not long.done or long.outcome == "acknowledged"


def test_it_expires_while_the_window_is_full_too() -> None:
    made = Bench()
    made.connect(Properties(receive_maximum=1))
    made.core.publish(Publish("first", b"", 1), now=made.now)
    waits = made.core.publish(lasting(5), now=made.now)
    made.sent()
    made.now += 6
    made.hear(PubAck(1))
    assert made.sent() == []
    assert waits.outcome == "expired"


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_twenty_are_under_way_to_a_broker_that_cannot_say_how_many_it_takes(version: int) -> None:
    """A broker of 5.0 that says nothing has said 65,535."""
    made = Bench(version=version)
    made.connect()
    for _ in range(30):
        made.core.publish(Publish("t", b"", 2), now=made.now)
    published = [packet.packet_id for packet in made.sent() if isinstance(packet, Publish)]
    assert len(published) == (30 if version == MQTT_5 else 20)
    made.hear(PubRec(published[0]))
    assert made.sent() == [PubRel(published[0])]
    made.hear(PubComp(published[0]))
    assert len(made.sent()) == (0 if version == MQTT_5 else 1)


def test_what_was_sent_is_repeated_though_it_has_expired() -> None:
    made = Bench(session_expiry_s=100)
    made.connect()
    outgoing = made.core.publish(lasting(5, 2), now=made.now)
    made.sent()
    made.core.connection_lost(made.now)
    made.now += 10
    made.core.tick(made.now)
    assert not outgoing.done
    (again,) = made.connect(session_present=True)
    assert seconds_left(again) == 1
    assert isinstance(again, Publish)
    assert again.dup


def test_a_stream_of_lasting_messages_does_not_pile_up() -> None:
    made = bench()
    for _ in range(1000):
        made.core.publish(lasting(86_400, 0), now=made.now)
        made.sent()
    assert len(made.core.outbox._expiring) < 100


@pytest.mark.parametrize(
    ("able", "filter", "reason"),
    [
        (Properties(wildcard_subscription_available=0), "a/#", ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
        (Properties(wildcard_subscription_available=0), "$share/g/+", ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
        (Properties(shared_subscription_available=0), "$share/g/a", ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED),
    ],
)
@pytest.mark.parametrize("stood", [False, True])
def test_a_broker_is_never_sent_a_subscription_that_it_has_not(able: Properties, filter: str, reason: ReasonCode, stood: bool) -> None:
    """It closes the connection for one, so what was asked for while away, or stood on another broker, closed one connection after the other."""
    made = bench()
    if not stood:
        made.core.connection_lost(made.now)
    exchange = made.core.subscribe((SubscriptionRequest("x"), SubscriptionRequest(filter)), 1)
    if stood:
        made.sent()
        made.hear(SubAck(exchange.packet_id, (ReasonCode.SUCCESS, ReasonCode.SUCCESS)))
        assert set(made.core.subscriptions) == {"x", filter}
        made.core.connection_lost(made.now)
    made.core.take_events()
    assert made.connect(able) == []
    events = made.core.take_events()
    assert [event.exchange for event in events if isinstance(event, ExchangeDone)] == [exchange]
    assert Resubscribed() in events
    assert exchange.reasons == (reason, reason)
    assert not made.core.subscriptions
    assert made.core.idle
