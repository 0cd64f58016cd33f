"""Our client as sender and as receiver of QoS 0, 1 and 2: 4.1 to 4.6 and 4.9 of both standards, and its acknowledgements (3.4 to 3.7).

No scripted broker here says anything that a broker may not; those stand in test_client_errors.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.client_state import Delivery
from broker.reasons import ReasonCode
from broker.wire.packets import Properties, Publish, SubscriptionRequest
from tests.conformance.scripted import ScriptedBroker

VERSIONS = pytest.mark.parametrize("version", [5, 4], ids=["5.0", "3.1.1"])
EXPIRY: dict[int, dict[str, Any]] = {5: {"clean_start": False, "session_expiry_s": 3600}, 4: {"clean_start": False}}


def packet_id(publish: bytes) -> int:
    """Of a short PUBLISH on the topic "t"."""
    return int.from_bytes(publish[5:7], "big")


@pytest.mark.statement("MQTT5-4.3.1-1", "MQTT311-4.3.1-1", side="client")
@VERSIONS
@pytest.mark.parametrize("retain", [False, True])
def test_qos_0_has_no_dup(version: int, retain: bool) -> None:
    broker = ScriptedBroker(version)
    broker.connect()
    broker.client.publish(Publish("t", b"x", 0, retain))
    assert [frame[0] for frame in broker.sent()] == [0x31 if retain else 0x30]


@pytest.mark.statement("MQTT5-4.3.2-1", "MQTT5-4.3.2-2", "MQTT5-4.3.3-1", "MQTT5-4.3.3-2", "MQTT311-4.3.2-1", "MQTT311-4.3.3-1", side="client")
@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_new_messages_have_unused_ids_and_no_dup(version: int, qos: int) -> None:
    broker = ScriptedBroker(version)
    broker.connect()
    frames = []
    for _ in range(20):  # more wait, in 3.1.1
        frames += broker.publish(qos=qos)[1]
    assert {frame[0] for frame in frames} == {0x30 | qos << 1}
    assert len({packet_id(frame) for frame in frames}) == 20
    assert 0 not in {packet_id(frame) for frame in frames}


@pytest.mark.statement("MQTT5-4.3.2-3", "MQTT5-4.4.0-1", "MQTT311-4.3.2-1", "MQTT311-4.4.0-1", "MQTT5-4.1.0-1", "MQTT311-4.1.0-1", side="client")
@VERSIONS
def test_qos_1_is_sent_again_on_resume_until_its_puback(version: int) -> None:
    broker = ScriptedBroker(version, **EXPIRY[version])
    broker.connect()
    outgoing, (first,) = broker.publish(payload=b"x", qos=1)
    broker.now += 1000
    broker.client.tick(broker.now)
    assert [frame for frame in broker.sent() if frame[0] >> 4 == 3] == []  # never on the same connection
    assert broker.resume() == [b"\x3a" + first[1:]]
    assert broker.resume() == [b"\x3a" + first[1:]]
    broker.say(b"\x40\x02" + first[5:7])
    assert outgoing.outcome == "acknowledged"
    assert broker.resume() == []


@pytest.mark.statement("MQTT5-4.3.3-3", "MQTT5-4.3.3-4", "MQTT5-4.3.3-5", "MQTT5-4.3.3-6", "MQTT5-4.4.0-1", side="client")
@pytest.mark.statement("MQTT311-4.3.3-1", "MQTT311-4.4.0-1", side="client")
@VERSIONS
def test_qos_2_goes_on_where_it_stood(version: int) -> None:
    broker = ScriptedBroker(version, **EXPIRY[version])
    broker.connect()
    outgoing, (first,) = broker.publish(payload=b"x", qos=2)
    id = first[5:7]
    assert broker.resume() == [b"\x3c" + first[1:]]
    assert broker.say(b"\x50\x02" + id) == [b"\x62\x02" + id]
    assert broker.resume() == [b"\x62\x02" + id]  # the PUBREL, and never the PUBLISH again
    assert broker.resume() == [b"\x62\x02" + id]
    assert not outgoing.done
    assert broker.say(b"\x70\x02" + id) == []
    assert outgoing.outcome == "acknowledged"
    assert broker.resume() == []


@pytest.mark.statement("MQTT5-4.3.3-6", "MQTT311-4.3.3-1", side="client")
@VERSIONS
def test_pubrec_again_gets_pubrel_again_and_no_publish(version: int) -> None:
    broker = ScriptedBroker(version)
    broker.connect()
    _, (first,) = broker.publish(qos=2)
    id = first[5:7]
    assert broker.say(b"\x50\x02" + id, b"\x50\x02" + id) == [b"\x62\x02" + id] * 2


@pytest.mark.statement("MQTT5-4.3.3-7", side="client")
def test_expiry_ends_no_exchange_that_has_begun() -> None:
    broker = ScriptedBroker(**EXPIRY[5])
    broker.connect()
    broker.client.publish(Publish("t", b"x", 2, properties=Properties(message_expiry_interval=1)))
    (first,) = broker.sent()
    broker.now += 10
    assert broker.resume() == [b"\x3c" + first[1:]]


@pytest.mark.statement("MQTT5-4.4.0-2", side="client")
@pytest.mark.parametrize(("qos", "kind"), [(1, "40"), (2, "50")])
def test_a_refused_message_is_done(qos: int, kind: str) -> None:
    broker = ScriptedBroker(**EXPIRY[5])
    broker.connect()
    outgoing, (first,) = broker.publish(qos=qos)
    assert broker.say(f"{kind} 03 {first[5:7].hex()} 80") == []  # no PUBREL either
    assert (outgoing.outcome, outgoing.reason) == ("refused", 0x80)
    assert broker.resume() == []


@pytest.mark.statement("MQTT5-4.3.2-4", "MQTT5-4.5.0-2", "MQTT311-4.3.2-2", "MQTT311-4.5.0-2", side="client")
@pytest.mark.statement("MQTT5-4.3.3-8", "MQTT5-4.3.3-11", "MQTT311-4.3.3-2", side="client")
@VERSIONS
def test_every_publish_is_acknowledged_by_its_qos(version: int) -> None:
    """Nothing was subscribed to: the program has no use for these."""
    broker = ScriptedBroker(version)
    broker.connect()
    assert broker.say(broker.message(0, 0)) == []
    broker.say(broker.message(10, 1))
    broker.say(broker.message(11, 2))
    assert broker.settle_all() == [bytes.fromhex("40 02 00 0A"), bytes.fromhex("50 02 00 0B")]
    assert broker.say("62 02 00 0B") == [bytes.fromhex("70 02 00 0B")]


@pytest.mark.statement("MQTT5-4.3.2-4", "MQTT5-4.5.0-2", "MQTT311-4.3.2-2", "MQTT311-4.5.0-2", "MQTT5-4.3.3-8", "MQTT311-4.3.3-2", side="client")
@VERSIONS
@pytest.mark.parametrize("settled_while_away", [False, True])
def test_what_comes_again_is_acknowledged_on_its_new_connection(version: int, settled_while_away: bool) -> None:
    broker = ScriptedBroker(version, **EXPIRY[version])
    broker.connect()
    broker.say(broker.message(10, 1), broker.message(11, 2))
    if settled_while_away:
        broker.client.connection_lost(broker.now)
        broker.settle_all()
    answers = broker.resume()
    answers += broker.say(broker.message(10, 1, dup=True), broker.message(11, 2, dup=True))
    answers += broker.settle_all()
    assert answers == [bytes.fromhex("40 02 00 0A"), bytes.fromhex("50 02 00 0B")]
    assert len(broker.received) == 2


@pytest.mark.statement("MQTT5-4.5.0-2", "MQTT5-3.3.4-1", side="client")
@pytest.mark.parametrize("reason", [0x00, 0x83])
def test_what_was_acknowledged_counts_no_more_against_the_receive_maximum(reason: int) -> None:
    broker = ScriptedBroker(receive_maximum=1)
    broker.connect()
    for number in range(1, 10):
        qos = 1 + number % 2
        broker.say(broker.message(number, qos))
        event = broker.events[-1]
        assert isinstance(event, Delivery)
        broker.client.settle(event, ReasonCode(reason))
        assert [frame[0] for frame in broker.sent()] == [0x40 if qos == 1 else 0x50]
        if qos == 2 and not reason:
            assert [frame[0] for frame in broker.say(b"\x62\x02\x00" + bytes((number,)))] == [0x70]
    assert len(broker.received) == 9


@pytest.mark.statement("MQTT5-4.3.2-5", "MQTT311-4.3.2-2", side="client")
@VERSIONS
@pytest.mark.parametrize("dup", [False, True])
def test_after_its_puback_an_id_is_a_new_message(version: int, dup: bool) -> None:
    broker = ScriptedBroker(version)
    broker.connect()
    for again in (False, dup):
        broker.say(broker.message(10, 1, b"again" if again else b"first", dup=again))
        assert broker.settle_all() == [bytes.fromhex("40 02 00 0A")]
    assert len(broker.received) == 2


@pytest.mark.statement("MQTT5-4.3.3-10", "MQTT5-4.3.3-12", "MQTT311-4.3.3-2", side="client")
@VERSIONS
def test_qos_2_repeated_before_pubrel_is_given_once(version: int) -> None:
    broker = ScriptedBroker(version, **EXPIRY[version])
    broker.connect()
    broker.say(broker.message(10, 2, b"one"))
    assert broker.settle_all() == [bytes.fromhex("50 02 00 0A")]
    assert broker.say(broker.message(10, 2, b"one", dup=True)) == [bytes.fromhex("50 02 00 0A")]
    broker.resume()
    assert broker.say(broker.message(10, 2, b"one", dup=True)) == [bytes.fromhex("50 02 00 0A")]
    assert broker.received == [b"one"]
    assert broker.say("62 02 00 0A") == [bytes.fromhex("70 02 00 0A")]
    broker.say(broker.message(10, 2, b"two"))
    assert broker.settle_all() == [bytes.fromhex("50 02 00 0A")]
    assert broker.received == [b"one", b"two"]


@pytest.mark.statement("MQTT5-4.3.3-9", side="client")
def test_after_a_refusing_pubrec_an_id_is_a_new_message() -> None:
    broker = ScriptedBroker()
    broker.connect()
    broker.say(broker.message(10, 2, b"one"))
    (event,) = [event for event in broker.events if isinstance(event, Delivery)]
    broker.client.settle(event, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
    assert broker.sent() == [bytes.fromhex("50 03 00 0A 83")]
    broker.say(broker.message(10, 2, b"two"))
    assert broker.settle_all() == [bytes.fromhex("50 02 00 0A")]
    assert broker.received == [b"one", b"two"]


@pytest.mark.statement("MQTT5-4.3.3-13", side="client")
def test_the_handshake_of_an_expired_message_is_completed() -> None:
    broker = ScriptedBroker()
    broker.connect()
    broker.say("34 0C 0001 74 0009 05 0200000001 6D")  # Message Expiry Interval 1
    broker.now += 100
    assert broker.settle_all() == [bytes.fromhex("50 02 00 09")]
    assert broker.say("62 02 00 09") == [bytes.fromhex("70 02 00 09")]


# ---- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.6.0-1", "MQTT311-4.6.0-1", side="client")
@VERSIONS
def test_repetitions_go_in_the_original_order_before_anything_new(version: int) -> None:
    broker = ScriptedBroker(version, **EXPIRY[version])
    broker.connect()
    first = [broker.publish(payload=bytes((number,)), qos=1 + number % 2)[1][0] for number in range(10)]
    broker.client.connection_lost(broker.now)
    broker.publish(payload=b"new", qos=1)
    again = broker.connect(bytes.fromhex("20 03 01 00 00" if version == 5 else "20 02 01 00"))
    assert [frame[1:] for frame in again[:-1]] == [frame[1:] for frame in first]
    assert again[-1][0] == 0x32
    assert again[-1].endswith(b"new")


@pytest.mark.statement("MQTT5-4.6.0-2", "MQTT5-4.6.0-3", "MQTT311-4.6.0-2", "MQTT311-4.6.0-3", side="client")
@VERSIONS
@pytest.mark.parametrize(("qos", "kind"), [(1, 0x40), (2, 0x50)])
def test_acknowledgements_follow_the_order_of_arrival(version: int, qos: int, kind: int) -> None:
    """However the program settles them."""
    broker = ScriptedBroker(version)
    broker.connect()
    for id in (7, 3, 9):
        broker.say(broker.message(id, qos))
    deliveries = [event for event in broker.events if isinstance(event, Delivery)]
    for delivery in reversed(deliveries):
        broker.client.settle(delivery)
    assert broker.sent() == [bytes((kind, 2, 0, id)) for id in (7, 3, 9)]


@pytest.mark.statement("MQTT5-4.6.0-4", "MQTT311-4.6.0-4", side="client")
@VERSIONS
def test_pubrels_follow_the_order_of_the_pubrecs(version: int) -> None:
    broker = ScriptedBroker(version, **EXPIRY[version])
    broker.connect()
    ids = [broker.publish(qos=2)[1][0][5:7] for _ in range(3)]
    order = [ids[1], ids[2], ids[0]]
    assert broker.say(*(b"\x50\x02" + id for id in order)) == [b"\x62\x02" + id for id in order]
    assert broker.resume() == [b"\x62\x02" + id for id in order]


# ---- flow control -----------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.9.0-1", "MQTT5-4.9.0-2", "MQTT5-4.9.0-3", side="client")
def test_no_more_under_way_than_the_receive_maximum() -> None:
    broker = ScriptedBroker(**EXPIRY[5])
    broker.connect("20 06 00 00 03 21 00 02")
    sent = [frame for qos in (1, 2, 1, 2) for frame in broker.publish(qos=qos)[1]]
    assert [frame[0] for frame in sent] == [0x32, 0x34]
    # Everything else goes on at quota 0: QoS 0, PUBREL, subscribing, pings, answers.
    assert [frame[0] for frame in broker.publish(qos=0)[1]] == [0x30]
    assert broker.say(b"\x50\x02" + sent[1][5:7]) == [b"\x62\x02" + sent[1][5:7]]  # a PUBREC gives nothing back
    broker.say(broker.message(5, 1))
    assert broker.settle_all() == [bytes.fromhex("40 02 00 05")]
    broker.client.subscribe((SubscriptionRequest("a"),))
    assert [frame[0] for frame in broker.sent()] == [0x82]
    assert [frame[0] for frame in broker.say(b"\x70\x02" + sent[1][5:7])] == [0x32]
    assert [frame[0] for frame in broker.say(b"\x40\x03" + sent[0][5:7] + b"\x80")] == [0x34]  # a refusal gives back too


@pytest.mark.statement("MQTT5-3.3.4-7", "MQTT5-4.9.0-2", side="client")
def test_repetitions_count_and_the_quota_begins_anew() -> None:
    broker = ScriptedBroker(**EXPIRY[5])
    broker.connect()
    first = [broker.publish(payload=bytes((number,)), qos=1)[1][0] for number in range(3)]
    broker.client.connection_lost(broker.now)
    again = broker.connect("20 06 01 00 03 21 00 01")
    assert again == [b"\x3a" + first[0][1:]]
    for number in (1, 2):
        assert broker.say(b"\x40\x02" + first[number - 1][5:7]) == [b"\x3a" + first[number][1:]]


@pytest.mark.statement("MQTT5-4.9.0-1", side="client")
def test_pubcomp_of_an_earlier_connection_does_not_raise_the_quota() -> None:
    broker = ScriptedBroker(**EXPIRY[5])
    broker.connect("20 06 00 00 03 21 00 01")
    _, (first,) = broker.publish(qos=2)
    broker.say(b"\x50\x02" + first[5:7])
    broker.client.connection_lost(broker.now)
    assert broker.connect("20 06 01 00 03 21 00 01") == [b"\x62\x02" + first[5:7]]
    assert [frame[0] for frame in broker.publish(qos=1)[1]] == [0x32]
    assert broker.say(b"\x70\x02" + first[5:7]) == []
    assert broker.publish(qos=1)[1] == []


# ---- the codes and properties of acknowledgements ---------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.4.2-1", "MQTT5-3.4.2-2", "MQTT5-3.4.2-3", "MQTT5-3.5.2-1", "MQTT5-3.5.2-2", "MQTT5-3.5.2-3", side="client")
@pytest.mark.statement("MQTT5-3.6.1-1", "MQTT5-3.6.2-1", "MQTT5-3.6.2-2", "MQTT5-3.6.2-3", "MQTT311-3.6.1-1", side="client")
@pytest.mark.statement("MQTT5-3.7.2-1", "MQTT5-3.7.2-2", "MQTT5-3.7.2-3", side="client")
def test_acknowledgements_fit_the_smallest_packet_and_have_listed_codes() -> None:
    """Every code our client can answer with, towards a broker that takes packets of seven bytes: no Reason String, no User Property."""
    broker = ScriptedBroker(user_properties=(("a", "b" * 100),))
    broker.connect("20 08 00 00 05 27 00 00 00 07")
    answers = []
    for number, reason in enumerate((0x00, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99), 1):
        for qos in (1, 2):
            broker.say(broker.message(number, qos))
            (event,) = [event for event in broker.events if isinstance(event, Delivery)]
            broker.client.settle(event, ReasonCode(reason))
            answers += broker.sent()
            broker.events.clear()
            answers += broker.say(b"\x62\x02" + number.to_bytes(2, "big"))  # 0x92 where it was refused
    answers += broker.say("50 02 03 E7")  # PUBREC of an id that nobody has: PUBREL 0x92
    assert {answer[0] for answer in answers} == {0x40, 0x50, 0x62, 0x70}
    assert all(len(answer) in (4, 5) for answer in answers)
    codes = {kind: {answer[4] for answer in answers if answer[0] == kind and len(answer) == 5} for kind in (0x40, 0x50, 0x62, 0x70)}
    assert codes[0x40] == codes[0x50] == {0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
    assert codes[0x62] == codes[0x70] == {0x92}


@pytest.mark.statement("MQTT5-3.2.2-15", side="client")
@pytest.mark.parametrize("size", [4, 5])
def test_an_acknowledgement_that_the_broker_has_no_room_for_is_not_sent(size: int) -> None:
    broker = ScriptedBroker()
    broker.connect(f"20 08 00 00 05 27 00 00 00 0{size}")
    broker.say(broker.message(1, 1))
    assert isinstance(broker.events[-1], Delivery)
    broker.client.settle(broker.events[-1], ReasonCode.NOT_AUTHORIZED)
    assert broker.sent() == ([bytes.fromhex("40 03 00 01 87")] if size == 5 else [])
    assert broker.client.closing is (size == 4)
