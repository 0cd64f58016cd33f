"""Our client keeps to its session, its Keep Alive and what the broker announced: 3.1.2 to 3.3.4 of both standards, from its side."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import pytest
import trio

from broker import Client, connect
from broker.core.client_state import ExchangeDone, Outgoing
from broker.errors import NotSupported
from broker.messages import Version
from broker.reasons import ReasonCode
from broker.wire.packets import Properties, Publish, SubscriptionRequest
from tests.conformance.scripted import ScriptedBroker
from tests.conformance.wirebytes import body_of, frame, properties, publish_frame, string, u16, u32

VERSIONS = pytest.mark.parametrize("version", [5, 4], ids=["5.0", "3.1.1"])
LASTING: dict[int, dict[str, Any]] = {5: {"clean_start": False, "session_expiry_s": 3600}, 4: {"clean_start": False}}


def connack(*parts: bytes, present: bool = False) -> bytes:
    """Of 5.0, with these properties."""
    return frame(0x20, bytes((present, 0)), properties(*parts))


def ready(*parts: bytes, **options: Any) -> ScriptedBroker:
    """A 5.0 client whose broker has announced something."""
    broker = ScriptedBroker(5, **options)
    assert broker.connect(connack(*parts)) == []
    return broker


def outcomes(broker: ScriptedBroker) -> list[tuple[str, int]]:
    return [(event.outcome, int(event.reason)) for event in broker.events if isinstance(event, Outgoing)]


# ---- Keep Alive ----


def pings(broker: ScriptedBroker, seconds: float, answer: bool = True) -> list[float]:
    """Let time pass by the client's own deadlines; when it sent PINGREQ."""
    found = []
    end = broker.now + seconds
    while (due := broker.client.next_deadline()) <= end:
        broker.now = max(broker.now, due)
        broker.client.tick(broker.now)
        for one in broker.sent():
            assert one == b"\xc0\x00"
            found.append(broker.now)
            if answer:
                broker.say(b"\xd0\x00")
    broker.now = end
    return found


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.2-20", "MQTT311-3.1.2-23", side="client")
def test_pings_within_the_keep_alive(version: int) -> None:
    broker = ScriptedBroker(version, keep_alive_s=10)
    broker.connect()
    times = [0.0, *pings(broker, 100)]
    assert len(times) > 9
    assert all(later - earlier <= 10 for earlier, later in itertools.pairwise(times))


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.2-20", "MQTT311-3.1.2-23", side="client")
def test_pings_even_while_the_broker_keeps_talking(version: int) -> None:
    broker = ScriptedBroker(version, keep_alive_s=10)
    broker.connect()
    times = [0.0]
    for second in range(1, 41):
        broker.now = float(second)
        broker.say(broker.message(0, 0))
        broker.client.tick(broker.now)
        if broker.sent() == [b"\xc0\x00"]:
            times.append(broker.now)
            broker.say(b"\xd0\x00")
    assert all(later - earlier <= 10 for earlier, later in zip(times, [*times[1:], 40.0], strict=True))


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.2-20", "MQTT311-3.1.2-23", side="client")
def test_keep_alive_zero_needs_no_pings(version: int) -> None:
    broker = ScriptedBroker(version, keep_alive_s=0)
    broker.connect()
    assert broker.client.next_deadline() == math.inf


@pytest.mark.parametrize(("own_s", "server_s"), [(60, 5), (5, 60), (0, 5), (60, 0)])
@pytest.mark.statement("MQTT5-3.1.2-21", "MQTT5-3.2.2-21", side="client")
def test_server_keep_alive_replaces_the_clients(own_s: int, server_s: int) -> None:
    broker = ready(b"\x13" + u16(server_s), keep_alive_s=own_s)
    times = [0.0, *pings(broker, 300)]
    if not server_s:
        assert times == [0.0]
        return
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= server_s
    assert min(gaps) > server_s / 2  # its own value no longer counts


@pytest.mark.statement("MQTT5-3.1.2-20", side="client")
async def test_the_trio_client_pings() -> None:
    """The same through `connect`, under a virtual clock: the stream's own bytes."""
    times: list[float] = []

    class Broker:
        async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
            await stream.receive_some()
            await stream.send_all(b"\x20\x03\x00\x00\x00")
            while data := await stream.receive_some():
                if data == b"\xc0\x00":
                    times.append(trio.current_time())
                    await stream.send_all(b"\xd0\x00")

    async with connect(Broker(), client_id="c", keep_alive_s=10, reconnect=None, close_grace_s=0):
        began = trio.current_time()
        await trio.sleep(60)
    assert len(times) >= 6
    assert all(later - earlier <= 10 for earlier, later in zip([began, *times], times, strict=False))


# ---- sessions ----


def clean_start_of(hello: bytes) -> bool:
    return bool(body_of(hello)[7] & 0x02)


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.2-4", "MQTT311-3.1.2-6", "MQTT5-3.2.2-5", side="client")
def test_a_session_that_the_broker_has_not_is_dropped(version: int) -> None:
    """Nothing of it comes again: no PUBREL, no QoS 2 message, no DUP; held ids are forgotten."""
    options = {} if version == 4 else LASTING[version]  # 3.1.1: Clean Session 1, the session ends with its connection
    broker = ScriptedBroker(version, **options)
    broker.client.begin_connection(0)
    assert clean_start_of(broker.sent()[0]) is (version == 4)
    new = b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00"
    broker.say(new)
    broker.publish(payload=b"one", qos=1)
    _, (two,) = broker.publish(payload=b"two", qos=2)
    _, (three,) = broker.publish(payload=b"three", qos=2)
    assert broker.say(b"\x50\x02" + body_of(two)[3:5]) == [b"\x62\x02" + body_of(two)[3:5]]
    broker.say(broker.message(9, 2, b"held"))
    assert broker.settle_all() == [b"\x50\x02\x00\x09"]
    broker.say(broker.message(10, 1, b"in hand"))
    broker.client.connection_lost(0)
    broker.events.clear()
    broker.client.begin_connection(0)
    assert clean_start_of(broker.sent()[0]) is (version == 4)
    again = broker.say(new)
    # The QoS 1 message is published anew, as a new message.
    assert [one[0] for one in again] == [0x32]
    assert again[0].endswith(b"one")
    assert three not in again
    # The same number is a new message too.
    broker.say(broker.message(9, 2, b"new"))
    assert broker.received == [b"new"]
    if version == 5:  # nor when the new session is resumed: what was sent in that alone, and what the broker repeats of it is new here
        assert broker.resume() == [b"\x3a" + again[0][1:]]
        broker.say(broker.message(10, 1, b"other", dup=True))
        assert broker.received == [b"new", b"other"]


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.2-4", "MQTT311-3.1.2-6", "MQTT5-3.1.3-2", "MQTT311-3.1.3-2", side="client")
def test_each_client_begins_with_an_empty_session_of_its_own(version: int) -> None:
    one = ScriptedBroker(version, client_id="one", clean_start=True)
    one.connect()
    one.publish(payload=b"x", qos=1)
    one.client.connection_lost(0)
    other = ScriptedBroker(version, client_id="two", clean_start=True)
    other.client.begin_connection(0)
    (hello,) = other.sent()
    assert clean_start_of(hello)
    assert string("two") in hello
    assert other.say(b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00") == []


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.2-23", "MQTT311-3.1.2-4", "MQTT5-3.1.3-2", "MQTT311-3.1.3-2", "MQTT5-3.3.1-1", "MQTT311-3.3.1-1", side="client")
@pytest.mark.statement("MQTT311-2.3.1-3", side="client")
def test_the_session_is_kept_and_continued(version: int) -> None:
    broker = ScriptedBroker(version, **LASTING[version])
    broker.connect()
    _, (one,) = broker.publish(payload=b"one", qos=1)
    _, (two,) = broker.publish(payload=b"two", qos=2)
    _, (three,) = broker.publish(payload=b"three", qos=2)
    broker.say(b"\x50\x02" + body_of(two)[3:5])
    broker.say(broker.message(9, 2, b"held"))
    broker.settle_all()
    broker.client.connection_lost(0)
    broker.client.begin_connection(0)
    (hello,) = broker.sent()
    assert not clean_start_of(hello)
    assert string("c") in hello  # the same Client Identifier
    again = broker.say(b"\x20\x03\x01\x00\x00" if version == 5 else b"\x20\x02\x01\x00")
    assert again == [b"\x62\x02" + body_of(two)[3:5], b"\x3a" + one[1:], b"\x3c" + three[1:]]
    broker.say(broker.message(9, 2, b"held", dup=True))
    assert broker.received == [b"held"]


@pytest.mark.statement("MQTT5-3.1.2-23", "MQTT5-3.1.3-2", side="client")
def test_an_assigned_client_identifier_is_used_from_then_on() -> None:
    broker = ScriptedBroker(5, client_id="", session_expiry_s=3600)
    broker.connect(connack(b"\x12" + string("yours")))
    broker.client.connection_lost(0)
    broker.client.begin_connection(0)
    (hello,) = broker.sent()
    assert hello.endswith(string("yours"))
    assert not clean_start_of(hello)


@pytest.mark.statement("MQTT5-3.2.2-4", side="client")
def test_session_present_without_a_session_closes() -> None:
    broker = ScriptedBroker(5, clean_start=True)
    broker.client.begin_connection(0)
    broker.sent()
    assert [one for one in broker.say(connack(present=True)) if one[0] != 0xE0] == []
    assert broker.client.closing
    assert not broker.connected


# ---- capabilities ----


@pytest.mark.parametrize("maximum", [0, 1])
@pytest.mark.statement("MQTT5-3.2.2-11", side="client")
def test_no_publish_above_the_maximum_qos(maximum: int) -> None:
    broker = ScriptedBroker(5)
    early = broker.client.publish(Publish("t", b"early", 2))  # before anything was announced
    assert broker.connect(connack(bytes((0x24, maximum)))) == []
    broker.sent()
    assert early.outcome == "refused"
    assert early.reason == ReasonCode.QOS_NOT_SUPPORTED
    for qos in range(maximum + 1, 3):
        with pytest.raises(NotSupported):
            broker.client.publish(Publish("t", b"x", qos))
    assert broker.sent() == []
    assert broker.publish("t", b"x", maximum)[1][0][0] == 0x30 | maximum << 1


@pytest.mark.statement("MQTT5-3.2.2-11", "MQTT5-3.2.2-14", "MQTT5-3.2.2-15", side="client")
def test_what_is_sent_again_keeps_to_what_the_new_connection_announced() -> None:
    broker = ScriptedBroker(5, **LASTING[5])
    broker.connect()
    broker.publish("t", b"too good", 2)
    broker.publish("t", bytes(100), 1)
    broker.client.publish(Publish("t", b"kept", 1, True))
    broker.sent()
    broker.publish("t", b"fine", 1)
    broker.client.connection_lost(0)
    broker.events.clear()
    again = broker.connect(connack(b"\x24\x01", b"\x25\x00", b"\x27" + u32(50), present=True))
    assert [one[0] for one in again] == [0x3A]
    assert again[0].endswith(b"fine")
    assert outcomes(broker) == [("refused", 0x9B), ("refused", 0x95), ("refused", 0x9A)]


@pytest.mark.statement("MQTT5-3.2.2-14", side="client")
def test_no_retain_where_it_is_not_available() -> None:
    broker = ScriptedBroker(5)
    early = broker.client.publish(Publish("t", b"early", 1, True))
    assert broker.connect(connack(b"\x25\x00")) == []
    assert early.outcome == "refused"
    with pytest.raises(NotSupported):
        broker.client.publish(Publish("t", b"x", 0, True))
    assert broker.sent() == []
    assert broker.publish("t", b"x")[1] == [publish_frame("t", b"x")]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.2.2-15", side="client")
def test_no_message_above_the_maximum_packet_size(qos: int) -> None:
    broker = ready(b"\x27" + u32(50))
    room = 50 - 6 - (2 if qos else 0)
    outgoing, sent = broker.publish("t", bytes(room + 1), qos)
    assert sent == []
    assert (outgoing.outcome, outgoing.reason) == ("refused", ReasonCode.PACKET_TOO_LARGE)
    outgoing, (whole,) = broker.publish("t", bytes(room), qos)
    assert len(whole) == 50
    assert broker.client.sender.count == (1 if qos else 0)


@pytest.mark.statement("MQTT5-3.2.2-15", side="client")
def test_no_other_packet_above_the_maximum_packet_size() -> None:
    broker = ScriptedBroker(5)
    early = broker.client.subscribe((SubscriptionRequest("x" * 60),))
    assert broker.connect(connack(b"\x27" + u32(50))) == []
    assert early.done
    assert early.reasons == (ReasonCode.PACKET_TOO_LARGE,)
    for exchange in (
        broker.client.subscribe((SubscriptionRequest("fits"), SubscriptionRequest("x" * 40))),
        broker.client.unsubscribe(("x" * 60,)),
    ):
        assert broker.sent() == []
        assert exchange.done
        assert set(exchange.reasons) == {ReasonCode.PACKET_TOO_LARGE}
        assert not broker.client.sender.reserved
    assert sum(isinstance(event, ExchangeDone) for event in broker.events) == 3
    broker.client.subscribe((SubscriptionRequest("x" * 42),))
    assert [len(one) for one in broker.sent()] == [50]


@pytest.mark.parametrize("maximum", [None, 0, 5])
@pytest.mark.statement("MQTT5-3.2.2-17", "MQTT5-3.2.2-18", "MQTT5-3.3.2-8", "MQTT5-3.3.2-9", side="client")
def test_aliases_keep_to_the_brokers_maximum(maximum: int | None) -> None:
    broker = ScriptedBroker(5)
    most = maximum or 0
    for qos in range(3):  # before anything was announced
        broker.client.publish(Publish("t", b"early", qos), topic_alias=most + 1)
    assert broker.connect(connack(*([] if maximum is None else [b"\x22" + u16(maximum)]))) == []
    assert outcomes(broker) == [("refused", 0x94)] * 3
    for alias in (0, most + 1, 65_535):
        with pytest.raises(NotSupported):
            broker.publish("t", b"x", topic_alias=alias)
    assert broker.sent() == []
    if most:
        assert broker.publish("t", b"x", topic_alias=most)[1] == [publish_frame("t", b"x", property_section=properties(b"\x23" + u16(most)))]
        assert broker.publish("t", b"y", topic_alias=most)[1] == [publish_frame("", b"y", property_section=properties(b"\x23" + u16(most)))]
    # And none of its own accord.
    assert broker.publish("t", b"z")[1] == [publish_frame("t", b"z")]


@pytest.mark.statement("MQTT5-3.3.2-7", side="client")
def test_aliases_end_with_the_connection_both_ways() -> None:
    section = properties(b"\x23\x00\x01")
    broker = ScriptedBroker(5, **LASTING[5])
    broker.connect(connack(b"\x22" + u16(5)))
    broker.publish("t", b"x", 1, topic_alias=1)
    _, (second,) = broker.publish("t", b"y", 1, topic_alias=1)
    assert body_of(second)[:2] == b"\x00\x00"  # by its alias alone
    broker.say(publish_frame("from you", b"1", property_section=section), publish_frame("", b"2", property_section=section))
    assert broker.received == [b"1", b"2"]
    broker.client.connection_lost(0)
    again = broker.connect(connack(b"\x22" + u16(5), present=True))
    assert [body_of(one)[:3] for one in again] == [string("t"), string("t")]  # in full
    assert broker.publish("t", b"z", topic_alias=1)[1] == [publish_frame("t", b"z", property_section=section)]
    (goodbye,) = broker.say(publish_frame("", b"3", property_section=section))
    assert (goodbye[0], goodbye[2]) == (0xE0, 0x82)
    assert broker.client.closing


@pytest.mark.parametrize("maximum", [1, 5, 65_535])
@pytest.mark.statement("MQTT5-3.3.2-10", "MQTT5-3.3.2-8", side="client")
def test_every_alias_up_to_its_own_maximum_is_accepted(maximum: int) -> None:
    broker = ScriptedBroker(topic_alias_maximum=maximum)
    broker.client.begin_connection(0)
    (hello,) = broker.sent()
    assert b"\x22" + u16(maximum) in hello
    broker.say(connack())
    for alias in {1, maximum // 2 + 1, maximum}:
        section = properties(b"\x23" + u16(alias))
        broker.say(publish_frame(f"t/{alias}", b"named", property_section=section), publish_frame("", b"by alias", property_section=section))
    assert broker.received == [b"named", b"by alias"] * len({1, maximum // 2 + 1, maximum})
    bad = 0 if maximum == 65_535 else maximum + 1
    (goodbye,) = broker.say(publish_frame("t", property_section=properties(b"\x23" + u16(bad))))
    assert (goodbye[0], goodbye[2]) == (0xE0, 0x94)


@VERSIONS
@pytest.mark.parametrize("topic", ["a/+", "#"])
@pytest.mark.statement("MQTT5-3.3.2-2", "MQTT311-3.3.2-2", side="client")
def test_wildcards_in_a_topic_name_from_a_broker_close(version: int, topic: str) -> None:
    broker = ScriptedBroker(version)
    broker.connect()
    broker.say(publish_frame(topic, b"x", version=version))
    assert broker.client.closing
    assert broker.received == []


@pytest.mark.parametrize("topic", ["a/+", "#"])
@pytest.mark.statement("MQTT5-3.3.2-14", side="client")
def test_wildcards_in_a_response_topic_from_a_broker_close(topic: str) -> None:
    broker = ready()
    broker.say(publish_frame("t", b"x", property_section=properties(b"\x08" + string(topic))))
    assert broker.client.closing
    assert broker.received == []


@pytest.mark.statement("MQTT5-3.3.4-6", side="client")
def test_no_subscription_identifier_in_a_publish() -> None:
    broker = ready()
    with pytest.raises(ValueError):
        broker.client.publish(Publish("t", b"x", properties=Properties(subscription_identifiers=(1,))))
    assert broker.sent() == []
    assert not [name for name in inspect.signature(Client.publish).parameters if "identifier" in name]


# ---- Receive Maximum ----


@pytest.mark.parametrize("maximum", [1, 3])
@pytest.mark.statement("MQTT5-3.3.4-7", "MQTT5-3.3.4-8", side="client")
def test_no_more_under_way_than_the_broker_takes(maximum: int) -> None:
    broker = ready(b"\x21" + u16(maximum), keep_alive_s=10)
    for number in range(12):
        broker.client.publish(Publish("t", bytes((number,)), 1 + number % 2))
    under_way = broker.sent()
    order = []
    while under_way:
        assert len(under_way) <= maximum
        # All else goes at once.
        broker.client.subscribe((SubscriptionRequest("s"),))
        broker.client.publish(Publish("t", b"zero"))
        kinds = [one[0] >> 4 for one in broker.sent()]
        assert sorted(kinds) == [3, 8]
        assert broker.say(broker.message(77, 1)) + broker.settle_all() == [b"\x40\x02\x00\x4d"]
        broker.now += 9.5
        broker.client.tick(broker.now)
        assert broker.sent() == [b"\xc0\x00"]
        broker.say(b"\xd0\x00")
        one = under_way.pop(0)
        number, packet_id = one[-1], body_of(one)[3:5]
        order.append(number)
        if one[0] == 0x32:
            under_way += broker.say(b"\x40\x02" + packet_id)
        elif number % 4 == 1:
            under_way += broker.say(b"\x50\x03" + packet_id + b"\x80")
        else:
            assert broker.say(b"\x50\x02" + packet_id) == [b"\x62\x02" + packet_id]  # PUBREC frees none
            under_way += broker.say(b"\x70\x02" + packet_id)
    assert order == list(range(12))


@pytest.mark.parametrize("name", ["5.0", "3.1.1"])
@pytest.mark.statement("MQTT5-3.3.1-2", "MQTT311-3.3.1-2", side="client")
async def test_qos_0_is_never_sent_again(name: Version) -> None:
    broker = ScriptedBroker(5 if name == "5.0" else 4, **LASTING[5 if name == "5.0" else 4])
    broker.connect()
    assert broker.publish("t", b"x")[1][0][0] == 0x30
    assert broker.resume() == []
