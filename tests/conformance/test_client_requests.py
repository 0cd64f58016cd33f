"""What our client asks for and what it refuses to say: SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH (3.8 to 3.15), topics (4.7, 4.8), errors (4.13).

A rule about what may not be sent is shown by the call that raises, and by a broker that then has got nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from broker.client import Client, Will, connect
from broker.core.client_state import Reauthenticated
from broker.errors import InvalidTopic
from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, Packet, PingReq, Properties, PubAck, Publish, SubscriptionRequest
from tests.client.scripted import Peer, connected
from tests.conformance.scripted import ScriptedBroker
from tests.conformance.wirebytes import body_of

VERSIONS = pytest.mark.parametrize("version", [5, 4], ids=["5.0", "3.1.1"])
NAMES: dict[int, Any] = {5: "5.0", 4: "3.1.1"}


async def assert_nothing_was_sent(peer: Peer) -> None:
    await peer.silence()


# ---- SUBSCRIBE and UNSUBSCRIBE -----------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.8.1-1", "MQTT5-3.8.3-1", "MQTT5-3.8.3-2", "MQTT5-3.10.1-1", "MQTT5-3.10.3-1", "MQTT5-3.10.3-2", side="client")
@pytest.mark.statement(
    "MQTT311-3.8.1-1", "MQTT311-3.8.3-1", "MQTT311-3.8.3-3", "MQTT311-3.10.1-1", "MQTT311-3.10.3-1", "MQTT311-3.10.3-2", side="client"
)
@VERSIONS
def test_requests_byte_by_byte(version: int) -> None:
    broker = ScriptedBroker(version)
    broker.connect()
    section = "00" if version == 5 else ""
    broker.client.subscribe((SubscriptionRequest("a", 1), SubscriptionRequest("é/😀", 2)))
    assert broker.sent() == [_frame("82", f"0001 {section} 0001 61 01 0007 C3A9 2F F09F9880 02")]
    broker.say(_frame("90", f"0001 {section} 01 02"))
    broker.client.unsubscribe(("a", "é/😀"))
    assert broker.sent() == [_frame("A2", f"0002 {section} 0001 61 0007 C3A9 2F F09F9880")]


@pytest.mark.statement("MQTT5-3.8.3-1", "MQTT5-3.8.3-2", "MQTT5-3.10.3-1", "MQTT5-3.10.3-2", side="client")
@pytest.mark.statement("MQTT311-3.8.3-1", "MQTT311-3.8.3-3", "MQTT311-3.10.3-1", "MQTT311-3.10.3-2", side="client")
@pytest.mark.statement("MQTT5-4.7.1-1", "MQTT5-4.7.1-2", "MQTT5-4.7.3-1", "MQTT5-4.7.3-2", "MQTT5-4.7.3-3", side="client")
@pytest.mark.statement("MQTT5-4.8.2-1", "MQTT5-4.8.2-2", side="client")
@pytest.mark.statement("MQTT311-4.7.1-2", "MQTT311-4.7.1-3", "MQTT311-4.7.3-1", "MQTT311-4.7.3-2", "MQTT311-4.7.3-3", side="client")
@VERSIONS
async def test_filters_that_are_none_are_never_sent(version: int) -> None:
    bad = ["", "a#", "#/a", "a/#/b", "##", "#/#", "a+", "+a/b", "a/+b", "a\0b", "\ud800", "x" * 65_536, "é" * 32_768]
    if version == 5:
        bad += ["$share//a", "$share/", "$share/g", "$share/g/", "$share/g+/a", "$share/#/a", "$share/g/a#"]
    async with connected(version=NAMES[version]) as (client, peer, _):
        for filter in bad:
            with pytest.raises(InvalidTopic):
                client.subscribe("fine", filter)
            with pytest.raises(InvalidTopic):
                await client.unsubscribe("fine", filter)
        with pytest.raises(ValueError, match="at least one"):
            client.subscribe()
        with pytest.raises(ValueError, match="at least one"):
            await client.unsubscribe()
        await assert_nothing_was_sent(peer)


@pytest.mark.statement("MQTT5-4.8.2-1", "MQTT5-4.8.2-2", "MQTT5-3.8.3-4", side="client")
async def test_groups() -> None:
    async with connected() as (client, peer, _):
        for group in ("", "a/b", "a+", "#"):
            with pytest.raises(ValueError):
                client.subscribe("t", group=group)
        with pytest.raises(ValueError, match="no_local"):
            client.subscribe("t", group="g", no_local=True)
        with pytest.raises(ValueError, match="no_local"):
            client.subscribe("$share/g/t", no_local=True)
        await assert_nothing_was_sent(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.grant)
            scope = client.subscribe("t", "/u", group="g")
            subscription = await scope.__aenter__()
        assert subscription.filters == ("$share/g/t", "$share/g//u")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.let_go)
            await scope.__aexit__(None, None, None)


# ---- Topic Names -------------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.7.0-1", "MQTT5-4.7.3-1", "MQTT5-4.7.3-2", "MQTT5-4.7.3-3", side="client")
@pytest.mark.statement("MQTT311-4.7.1-1", "MQTT311-4.7.3-1", "MQTT311-4.7.3-2", "MQTT311-4.7.3-3", side="client")
@VERSIONS
@pytest.mark.parametrize("topic", ["", "#", "a/+", "a+", "a\0b", "\udfff", "x" * 65_536], ids=lambda topic: repr(topic[:10]))
async def test_topic_names_that_are_none_are_never_sent(version: int, topic: str) -> None:
    async with connected(version=NAMES[version]) as (client, peer, _):
        for qos in (0, 1, 2):
            with pytest.raises(InvalidTopic):
                await client.publish(topic, b"x", qos=qos)
        if version == 5:
            with pytest.raises(ValueError):
                await client.publish("t", b"x", response_topic=topic)
        with pytest.raises(ValueError):
            Will(topic)
        await assert_nothing_was_sent(peer)


@pytest.mark.statement("MQTT5-4.7.3-3", "MQTT311-4.7.3-3", side="client")
@VERSIONS
async def test_the_longest_topic_is_sent(version: int) -> None:
    async with connected(version=NAMES[version]) as (client, peer, _):
        got: list[Publish] = []

        async def take() -> None:
            got.append(await peer.expect(Publish))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await client.publish("x" * 65_535, b"x")
        assert got[0].topic == "x" * 65_535


# ---- DISCONNECT --------------------------------------------------------------------------------------------------------


async def scope_ended_by(error: type[BaseException] | None, version: int, sent: list[Packet]) -> None:
    """Connect, publish once, and leave the scope in this way; what the broker saw, until the stream's end."""
    seen = trio.Event()
    finished = trio.Event()

    class Attached:
        async def attach(self, stream: trio.abc.Stream, *, peer: str = "") -> None:
            end = Peer(stream)
            await end.accept()
            await end.expect(Publish)
            seen.set()
            while (packet := await end.receive()) is not None:
                sent.append(packet)
            await stream.aclose()
            finished.set()

    async def run() -> None:
        async with connect(Attached(), client_id="me", version=NAMES[version], keep_alive_s=0) as client:
            await client.publish("t", b"x")
            await seen.wait()
            if error is not None:
                raise error("the program's own")

    if error is None:
        await run()
    else:
        with pytest.raises(error):
            await run()
    assert finished.is_set()


@pytest.mark.statement("MQTT5-3.14.1-1", "MQTT5-3.14.2-1", "MQTT5-3.14.2-3", "MQTT5-3.14.2-4", "MQTT5-3.14.4-1", "MQTT5-3.14.4-2", side="client")
@pytest.mark.statement("MQTT311-3.14.4-1", "MQTT311-3.14.4-2", side="client")
@VERSIONS
@pytest.mark.parametrize("error", [None, RuntimeError])
async def test_the_client_says_goodbye_last_and_closes(version: int, error: type[BaseException] | None) -> None:
    """0x00 when all is well, 0x04 when the program failed (3.1.1: nothing, so that its Will goes out). Never with any property."""
    sent: list[Packet] = []
    await scope_ended_by(error, version, sent)
    if error is None:
        assert sent == [Disconnect()]
    else:
        assert sent == ([Disconnect(ReasonCode(0x04))] if version == 5 else [])


@pytest.mark.statement("MQTT5-3.14.2-3", "MQTT5-3.14.2-4", "MQTT5-3.2.2-15", side="client")
@pytest.mark.parametrize(
    ("size", "goodbye"), [(17, "E0 0F 00 0D 1F 0003 627965 26 0001 61 0001 62"), (16, "E0 09 00 07 26 0001 61 0001 62"), (10, "E0 00")]
)
def test_a_goodbye_leaves_out_what_the_broker_cannot_take(size: int, goodbye: str) -> None:
    broker = ScriptedBroker(disconnect_properties=Properties(reason_string="bye", user_properties=(("a", "b"),)))
    broker.connect(bytes.fromhex("20 08 00 00 05 27") + size.to_bytes(4, "big"))
    broker.client.disconnect(ReasonCode.SUCCESS, 0)
    assert broker.sent() == [bytes.fromhex(goodbye)]


@pytest.mark.statement("MQTT5-3.14.4-1", "MQTT311-3.14.4-2", side="client")
@VERSIONS
def test_nothing_leaves_after_the_disconnect(version: int) -> None:
    """Not what was waiting, not an answer to what still comes."""
    broker = ScriptedBroker(version)
    broker.connect()
    broker.client.disconnect(ReasonCode.SUCCESS, broker.now)
    broker.client.receive(broker.message(5, 1) + bytes.fromhex("62 02 00 09"), broker.now)
    broker.client.publish(Publish("t", b"late", 1))
    assert broker.sent() == [b"\xe0\x00"]
    assert broker.received == []


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-3.14.2-3", "MQTT5-3.14.2-4", "MQTT5-4.13.2-1", side="client")
@pytest.mark.parametrize(
    "code", [0x00, 0x80, 0x81, 0x82, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x93, 0x95, 0x97, 0x98, 0x9C, 0x9D, 0xA0, 0xA2], ids=hex
)
def test_the_brokers_disconnect_ends_the_connection(code: int) -> None:
    broker = ScriptedBroker()
    broker.connect()
    assert broker.say(bytes((0xE0, 1, code))) == []
    assert (broker.client.state, broker.client.reason) == ("closing", code)


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-4.13.2-1", side="client")
@pytest.mark.parametrize("code", [0x01, 0x03, 0x05, 0x10, 0x7F, 0x85, 0x91, 0xA3, 0xFF], ids=hex)
def test_a_code_that_is_none_ends_it_too(code: int) -> None:
    broker = ScriptedBroker()
    broker.connect()
    (goodbye,) = broker.say(bytes((0xE0, 1, code)))
    assert goodbye[0] == 0xE0
    assert goodbye[2] in (0x81, 0x82)
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT5-3.14.1-1", side="client")
@pytest.mark.parametrize("flags", range(1, 16))
def test_a_disconnect_with_flags_is_malformed(flags: int) -> None:
    broker = ScriptedBroker()
    broker.connect()
    assert broker.say(bytes((0xE0 | flags, 0))) == [b"\xe0\x01\x81"]
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT5-4.13.2-1", side="client")
@pytest.mark.parametrize("code", [0x80, 0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x88, 0x8A, 0x95, 0x97, 0x9C, 0x9F], ids=hex)
def test_a_refusing_connack_ends_the_connection(code: int) -> None:
    broker = ScriptedBroker()
    assert broker.connect(bytes((0x20, 3, 0, code, 0))) == []
    assert (broker.client.state, broker.client.reason) == ("closing", code)


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-3.14.2-3", "MQTT5-4.13.2-1", side="client")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("F0 00", 0x82),
        ("30 03 00 05 74", 0x81),
        ("30 06 00 00 03 23 00 01", 0x82),
        ("30 07 00 01 74 03 23 00 63", 0x94),
        ("30 FF FF FF 7F", 0x95),
        ("34 05 00 01 74 00 01 00 34 06 00 01 74 00 02 00", 0x81),
    ],
)
def test_a_brokers_violation_is_named_and_ends_the_connection(data: str, code: int) -> None:
    """In three bytes: it fits whatever the broker takes."""
    broker = ScriptedBroker()
    broker.connect("20 08 00 00 05 27 00 00 00 05")
    assert broker.say(data) == [bytes((0xE0, 1, code))]
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-4.13.2-1", side="client")
@pytest.mark.parametrize(("qos", "answer"), [(1, 0x50), (2, 0x40)], ids=["PUBREC at QoS 1", "PUBACK at QoS 2"])
def test_an_acknowledgement_of_the_other_qos_ends_the_connection(qos: int, answer: int) -> None:
    broker = ScriptedBroker()
    broker.connect()
    _, (frame,) = broker.publish(payload=b"x", qos=qos)
    assert broker.say(bytes((answer, 2)) + body_of(frame)[3:5]) == [b"\xe0\x01\x82"]
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-4.13.2-1", side="client")
def test_more_than_the_clients_receive_maximum_is_0x93() -> None:
    broker = ScriptedBroker(receive_maximum=2)
    broker.connect()
    assert broker.say(broker.message(1, 1), broker.message(2, 2)) == []
    assert broker.say(broker.message(3, 1)) == [b"\xe0\x01\x93"]


@pytest.mark.statement("MQTT311-4.8.0-1", side="client")
@pytest.mark.parametrize(
    "data",
    ["C0 00", "82 05 00 01 00 01 61", "36 05 00 01 74 00 01", "30 02 00 05", "E0 00", "F0 00", "90 03 00 01 05", "40 01 00", "00 00", "20 02 00 00"],
)
def test_in_311_a_violation_ends_the_connection_without_a_word(data: str) -> None:
    broker = ScriptedBroker(4)
    broker.connect()
    assert broker.say(data) == []
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT311-4.8.0-2", side="client")
@VERSIONS
def test_what_the_client_cannot_cope_with_ends_that_connection(version: int) -> None:
    """A broker that sends and never reads: the answers that wait for it are bounded. The session stays, so nothing is lost."""
    broker = ScriptedBroker(version, unsent_bytes_max=100, clean_start=False, session_expiry_s=100 if version == 5 else 0)
    broker.connect()
    for number in range(1, 60):
        broker.client.receive(bytes.fromhex("62 02") + number.to_bytes(2, "big"), broker.now)
    assert broker.client.state == "closing"
    assert "does not read" in broker.client.cause
    broker.resume()
    assert broker.connected


# ---- the Session while connected ---------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.1.0-1", "MQTT311-4.1.0-2", "MQTT311-4.1.0-1", side="client")
@VERSIONS
def test_state_stays_while_connected(version: int) -> None:
    """However long, and though the Session ends with the connection."""
    broker = ScriptedBroker(version, keep_alive_s=0)
    broker.connect()
    _, (sent,) = broker.publish(qos=2)
    broker.say(broker.message(5, 2, b"once"))
    broker.settle_all()
    broker.now += 10_000_000
    broker.client.tick(broker.now)
    assert broker.say(broker.message(5, 2, b"once", dup=True)) == [bytes.fromhex("50 02 00 05")]
    assert broker.received == [b"once"]
    assert broker.say(b"\x50\x02" + sent[5:7]) == [b"\x62\x02" + sent[5:7]]


# ---- AUTH --------------------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-3.15.1-1", "MQTT5-3.15.2-1", "MQTT5-3.15.2-2", "MQTT5-3.15.2-3", "MQTT5-4.12.0-7", side="client")
@pytest.mark.parametrize("data", ["F0 02 18 00", "F0 06 18 04 15 00 01 78", "F0 00", "F0 02 00 00", "F1 02 18 00", "F0 02 05 00"])
@pytest.mark.parametrize("after", [False, True], ids=["before CONNACK", "after CONNACK"])
def test_without_a_method_the_client_sends_no_auth_and_takes_none(data: str, after: bool) -> None:
    broker = ScriptedBroker()
    if after:
        broker.connect()
        (goodbye,) = broker.say(data)
        assert goodbye[:2] == b"\xe0\x01"
        assert goodbye[2] in (0x81, 0x82)
    else:
        assert broker.connect(data) == []
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT5-4.12.0-5", "MQTT5-4.12.1-2", side="client")
@pytest.mark.parametrize("data", ["F0 06 18 04 15 00 01 78", "F0 06 18 04 15 00 01 79", "F0 06 00 04 15 00 01 78", "F0 06 19 04 15 00 01 78"])
@pytest.mark.parametrize("after", [False, True], ids=["before CONNACK", "after CONNACK"])
def test_a_client_that_named_a_method_answers_no_auth_but_closes(data: str, after: bool) -> None:
    """With `connect_properties` alone there is nobody who could answer: a challenge, or a broker's failing re-authentication, ends the connection."""
    broker = ScriptedBroker(connect_properties=Properties(authentication_method="x", authentication_data=b"proof"))
    if after:
        assert broker.connect("20 07 00 00 04 15 00 01 78") == []
        assert broker.client.state == "connected"
        (goodbye,) = broker.say(data)
        assert goodbye[0] == 0xE0
    else:
        assert broker.connect(data) == []
    assert broker.client.state == "closing"


def _auth(code: int, data: bytes, method: str = "x", flags: int = 0) -> bytes:
    return bytes((0xF0 | flags, 10, code, 8, 0x15, 0, 1)) + method.encode() + b"\x16\x00\x01" + data


def _authenticating() -> ScriptedBroker:
    """A client that can answer by method x, begins with "a", and is told by "z" that it is the right broker; CONNECT has been sent."""
    broker = ScriptedBroker(connect_properties=Properties(authentication_method="x"))
    broker.client.auth.prepare(b"a", lambda last: last == b"z")
    broker.client.begin_connection(0)
    (hello,) = broker.sent()
    assert bytes.fromhex("15 0001 78 16 0001 61") in hello
    return broker


@pytest.mark.statement("MQTT5-3.15.1-1", "MQTT5-3.15.2-1", "MQTT5-3.15.2-2", "MQTT5-3.15.2-3", "MQTT5-2.1.3-1", side="client")
@pytest.mark.statement("MQTT5-4.12.0-3", "MQTT5-4.12.0-5", "MQTT5-4.12.1-1", side="client")
def test_auth_byte_by_byte() -> None:
    broker = _authenticating()
    assert broker.say(_auth(0x18, b"b")) == []
    broker.client.answer_challenge(b"c")
    assert broker.sent() == [_auth(0x18, b"c")]
    assert broker.say("20 0B 00 00 08 15 0001 78 16 0001 7A") == []
    assert broker.connected
    broker.client.auth.prepare(b"d", lambda last: last == b"z")
    broker.client.reauthenticate()
    assert broker.sent() == [_auth(0x19, b"d")]
    assert broker.say(_auth(0x18, b"e")) == []
    broker.client.answer_challenge(b"f")
    assert broker.sent() == [_auth(0x18, b"f")]
    assert broker.say(_auth(0x00, b"z")) == []
    assert isinstance(broker.events[-1], Reauthenticated)
    assert broker.connected


@pytest.mark.statement("MQTT5-3.2.2-15", side="client")
@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("answer", [False, True])
def test_an_auth_that_the_broker_has_no_room_for_is_not_sent(fits: bool, answer: bool) -> None:
    """Then the connection ends: its next CONNECT shows the same. Before CONNACK nobody knows how much the broker takes."""
    broker = _authenticating()
    broker.say(_auth(0x18, b"b"))
    broker.client.answer_challenge(b"c" * 100)
    assert len(broker.sent()) == 1
    broker.say(bytes.fromhex("20 10 00 00 0D 15 0001 78 16 0001 7A 27 000000 0C"))
    long = b"d" if fits else b"dd"
    broker.client.auth.prepare(b"d" if answer else long, lambda last: True)
    broker.client.reauthenticate()
    if answer:
        assert broker.sent() == [_auth(0x19, b"d")]
        broker.say(_auth(0x18, b"b"))
        broker.client.answer_challenge(long)
    assert broker.sent() == ([_auth(0x18 if answer else 0x19, b"d")] if fits else [])
    assert broker.client.closing is not fits


@pytest.mark.statement("MQTT5-3.14.4-1", side="client")
def test_no_auth_leaves_after_the_disconnect() -> None:
    broker = _authenticating()
    broker.say(_auth(0x18, b"b"))
    broker.client.answer_challenge(b"c")
    broker.say("20 0B 00 00 08 15 0001 78 16 0001 7A")
    broker.client.reauthenticate()
    broker.say(_auth(0x18, b"e"))
    broker.client.disconnect(ReasonCode.SUCCESS, 0)
    broker.client.answer_challenge(b"f")
    broker.client.reauthenticate()
    assert broker.sent() == [b"\xe0\x00"]


@pytest.mark.statement("MQTT5-3.14.2-1", "MQTT5-4.13.2-1", side="client")
@pytest.mark.statement("MQTT5-3.15.1-1", "MQTT5-3.15.2-1", "MQTT5-4.12.0-5", "MQTT5-4.12.1-2", "MQTT5-2.1.3-1", side="client")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("bad", "code"),
    [
        *((_auth(0x18, b"b", flags=flags), 0x81) for flags in range(1, 16)),
        *((_auth(code, b"z"), 0x82) for code in (0x01, 0x17, 0x19, 0x80, 0x87, 0xFF)),
        (_auth(0x18, b"b", method="y"), 0x82),
        (bytes.fromhex("F0 02 18 00"), 0x82),
        (_auth(0x18, b"b") * 2, 0x82),
        (_auth(0x00, b"y"), 0x82),  # not the right broker
    ],
)
def test_an_auth_that_may_not_come_ends_the_connection(again: bool, bad: bytes, code: int) -> None:
    """When one is waited for: the first time, and when it is done again."""
    broker = _authenticating()
    if again:
        broker.say("20 0B 00 00 08 15 0001 78 16 0001 7A")
        broker.client.reauthenticate()
        broker.sent()
    assert broker.say(bad) == ([bytes((0xE0, 1, code))] if again else [])
    assert broker.client.state == "closing"


@pytest.mark.statement("MQTT5-3.15.2-1", side="client")
def test_success_before_connack_is_none_of_auths() -> None:
    broker = _authenticating()
    assert broker.say(_auth(0x00, b"z")) == []
    assert broker.client.state == "closing"


# ---- nothing beyond the standard ---------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT311-7.0.0-2", side="client")
async def test_a_broker_of_the_bare_standard_is_enough() -> None:
    """3.1.1 with its shortest packets: connect, subscribe, publish at each QoS, receive, ping, leave."""
    packets: list[Packet] = []

    def on_packet(direction: str, packet: Packet, frame: bytes) -> None:
        packets.append(packet)

    async with connected(version="3.1.1", on_packet=on_packet, keep_alive_s=10) as (client, peer, _):
        await _bare_standard(client, peer)
    assert {type(packet) for packet in packets} >= {Connect, Publish, PubAck, PingReq}


async def _bare_standard(client: Client, peer: Peer) -> None:
    async def play(*steps: tuple[type[Packet] | None, str]) -> None:
        for kind, answer in steps:
            if kind is not None:
                await peer.expect(kind)
            await peer.stream.send_all(bytes.fromhex(answer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.grant)
        scope = client.subscribe("t", qos=1)
        subscription = await scope.__aenter__()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play, (Publish, "40 02 00 02"))
        await client.publish("t", b"x", qos=1)
    await play((None, "32 06 00 01 74 00 07 68"))
    assert (await subscription.receive()).payload == b"h"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scope.__aexit__, None, None, None)
        assert await peer.receive() == PubAck(7)  # settled by leaving
        await peer.let_go()
    await play((PingReq, "D0 00"))


def _frame(first: str, body: str) -> bytes:
    encoded = bytes.fromhex(body)
    return bytes.fromhex(first) + bytes((len(encoded),)) + encoded
