"""Our client's bytes, and what it does with bytes that are not so: sections 1, 2 and 3.1 of both standards, from its side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from broker import Will, connect
from broker.core.client_state import Delivery
from broker.errors import ConnectError
from broker.messages import Version
from broker.reasons import ReasonCode
from broker.wire.packets import Properties, Publish, SubscriptionRequest, WillMessage
from tests.conformance.harness import Scene
from tests.conformance.scripted import ScriptedBroker
from tests.conformance.wirebytes import body_of, connect_frame, frame, properties, publish_frame, string, subscribe_frame, u16, varint

VERSIONS = pytest.mark.parametrize("version", [5, 4], ids=["5.0", "3.1.1"])
NAMES: dict[int, Version] = {5: "5.0", 4: "3.1.1"}
ILL_FORMED = pytest.mark.parametrize("bad", [b"\xed\xa0\x80", b"\xc0\xaf", b"\xff", b"a\xe2\x82"])


class Listening:
    """A broker that never answers, and keeps what it was sent."""

    def __init__(self) -> None:
        self.received = b""

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        try:
            while data := await stream.receive_some():
                self.received += bytes(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def sent_by(version: int, **options: Any) -> bytes:
    """What `connect` sends before any answer."""
    broker = Listening()
    with pytest.raises(ConnectError):
        async with connect(broker, version=NAMES[version], reconnect=None, connect_timeout_s=1, **options):
            raise AssertionError("it cannot be connected")
    return broker.received


async def sends_nothing(make: Callable[[], Any]) -> None:
    """The call is refused here, and not a byte goes out."""
    broker = Listening()
    with pytest.raises(ValueError):  # noqa: PT012  # either the call or the entering may refuse; both before a byte is sent
        options = make()
        async with connect(broker, reconnect=None, connect_timeout_s=1, **options):
            raise AssertionError("it cannot be connected")
    assert broker.received == b""


def faulted(broker: ScriptedBroker, bad: bytes, *codes: int) -> None:
    """The client closes; 5.0 says why."""
    broker.events.clear()
    answer = broker.say(bad)
    assert broker.client.closing
    assert broker.received == []
    if broker.version < 5:
        assert answer == []
        return
    (goodbye,) = answer
    assert goodbye[0] == 0xE0
    assert goodbye[2] in (codes or (0x81, 0x82))


def ready(version: int = 5, **options: Any) -> ScriptedBroker:
    broker = ScriptedBroker(version, **options)
    assert broker.connect() == []
    return broker


# ---- 1.5: strings and numbers ----


@VERSIONS
@ILL_FORMED
@pytest.mark.statement("MQTT5-1.5.4-1", "MQTT311-1.5.3-1", "MQTT5-3.3.2-1", "MQTT311-3.3.2-1", side="client")
def test_ill_formed_strings_from_a_broker_close(version: int, bad: bytes) -> None:
    faulted(ready(version), publish_frame(bad, b"x", version=version), 0x81)


@pytest.mark.statement("MQTT5-1.5.4-1", "MQTT5-1.5.7-1", "MQTT5-3.3.2-13", "MQTT5-3.3.2-19", side="client")
@ILL_FORMED
def test_ill_formed_strings_in_properties_close(bad: bytes) -> None:
    for one in (b"\x08" + string(bad), b"\x03" + string(bad), b"\x26" + string(bad) + string("v"), b"\x26" + string("n") + string(bad)):
        faulted(ready(), publish_frame("t", property_section=properties(one)), 0x81)


@VERSIONS
@pytest.mark.statement("MQTT5-1.5.4-2", "MQTT311-1.5.3-2", side="client")
def test_null_characters_from_a_broker_close(version: int) -> None:
    faulted(ready(version), publish_frame(b"a\x00b", b"x", version=version), 0x81)


@pytest.mark.statement(
    "MQTT5-1.5.4-1", "MQTT5-1.5.4-2", "MQTT5-1.5.7-1", "MQTT5-3.1.3-4", "MQTT5-3.1.3-11", "MQTT5-3.1.3-12",
    "MQTT311-1.5.3-1", "MQTT311-1.5.3-2", "MQTT311-3.1.3-4", "MQTT311-3.1.3-10", "MQTT311-3.1.3-11", side="client",
)  # fmt: skip
@VERSIONS
@pytest.mark.parametrize("bad", ["a\x00b", "\ud800"])
async def test_strings_that_are_none_are_never_sent_in_connect(version: int, bad: str) -> None:
    cases: list[Callable[[], Any]] = [
        lambda: {"client_id": bad},
        lambda: {"client_id": "c", "username": bad},
        lambda: {"client_id": "c", "will": Will(bad, b"x")},
    ]
    if version >= 5:
        cases += [
            lambda: {"client_id": "c", "user_properties": [("n", bad)]},
            lambda: {"client_id": "c", "user_properties": [(bad, "v")]},
            lambda: {"client_id": "c", "will": Will("w", b"x", content_type=bad)},
            lambda: {"client_id": "c", "will": Will("w", b"x", response_topic=bad)},
        ]
    for case in cases:
        await sends_nothing(lambda case=case: case() | {"version": NAMES[version]})  # type: ignore[misc]


@pytest.mark.statement(
    "MQTT5-1.5.4-1", "MQTT5-1.5.4-2", "MQTT5-1.5.7-1", "MQTT5-3.3.2-1", "MQTT5-3.3.2-2", "MQTT5-3.3.2-13", "MQTT5-3.3.2-14", "MQTT5-3.3.2-19",
    "MQTT311-1.5.3-1", "MQTT311-1.5.3-2", "MQTT311-3.3.2-1", "MQTT311-3.3.2-2", side="client",
)  # fmt: skip
@VERSIONS
async def test_strings_that_are_none_are_never_sent_in_publish(version: int) -> None:
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("#")
        async with connect(scene.broker, version=NAMES[version]) as client:
            for topic in ("a\x00b", "\ud800", "a/+", "#", "a/#", "a+", "", "x" * 65_536):
                with pytest.raises(ValueError):
                    await client.publish(topic, b"x")
            bad_options: list[dict[str, Any]] = [
                {"response_topic": "a/#"}, {"response_topic": "+"}, {"response_topic": "a\x00b"}, {"response_topic": "\ud800"},
                {"content_type": "\ud800"}, {"content_type": "a\x00b"}, {"user_properties": [("\ud800", "v")]}, {"user_properties": [("n", "\x00")]},
            ]  # fmt: skip
            for options in bad_options if version >= 5 else ():
                with pytest.raises(ValueError):
                    await client.publish("t", b"x", **options)
            await watcher.expect_nothing()
            await client.publish("good", b"x")
        assert await watcher.payloads() == [b"x"]


@VERSIONS
@pytest.mark.statement("MQTT5-1.5.4-3", "MQTT311-1.5.3-3", side="client")
def test_byte_order_mark_is_kept_both_ways(version: int) -> None:
    broker = ready(version)
    assert broker.publish("\ufeffa", b"x")[1] == [publish_frame(b"\xef\xbb\xbfa", b"x", version=version)]
    broker.say(publish_frame(b"\xef\xbb\xbfa", b"x", version=version), publish_frame("a", b"y", version=version))
    topics = [event.publish.topic for event in broker.events if isinstance(event, Delivery)]
    assert topics == ["\ufeffa", "a"]


@VERSIONS
@pytest.mark.parametrize("length", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
@pytest.mark.statement("MQTT5-1.5.5-1", side="client")
def test_lengths_have_the_fewest_bytes(version: int, length: int) -> None:
    broker = ready(version)
    payload = bytes(length - 3 - (version == 5))
    (sent,) = broker.publish("t", payload)[1]
    del sent  # put together anew by the scripted broker; what counts is what it was made of
    broker.client.publish(Publish("t", payload))
    raw = broker.client.data_to_send()
    assert raw[: 1 + len(varint(length))] == b"\x30" + varint(length)


@pytest.mark.statement("MQTT5-1.5.5-1", side="client")
def test_overlong_numbers_from_a_broker_close() -> None:
    faulted(ready(), b"\xd0\x80\x00")
    faulted(ready(), b"\x30\x84\x80\x80\x80\x00\x00\x01t\x00")
    faulted(ready(), publish_frame("t", property_section=b"\x80\x00"))


# ---- 2: fixed header, identifiers, property length ----


@VERSIONS
@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT311-2.2.2-1", "MQTT5-3.3.1-2", "MQTT5-3.3.1-4", "MQTT311-3.3.1-2", "MQTT311-3.3.1-4", side="client")
def test_the_clients_flags(version: int) -> None:
    broker = ScriptedBroker(version, keep_alive_s=10)
    broker.client.begin_connection(0)
    frames = broker.sent()
    frames += broker.say(b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00")
    broker.client.subscribe((SubscriptionRequest("t", 2),))
    broker.client.unsubscribe(("u",))
    frames += broker.sent()
    for qos in range(3):
        for retain in (False, True):
            broker.client.publish(Publish("t", b"x", qos, retain))
    frames += broker.sent()
    frames += broker.say(b"\x50\x02" + body_of(frames[-1])[3:5])
    broker.say(broker.message(1, 1), broker.message(2, 2))
    frames += broker.settle_all()
    frames += broker.say(b"\x62\x02\x00\x02")
    broker.now = 10
    broker.client.tick(10)
    broker.client.disconnect(ReasonCode.SUCCESS, 10)
    frames += broker.sent()
    flags: dict[int, set[int]] = {}
    for one in frames:
        flags.setdefault(one[0] >> 4, set()).add(one[0] & 0x0F)
    assert flags == {1: {0}, 3: {0, 1, 2, 3, 4, 5}, 4: {0}, 5: {0}, 6: {2}, 7: {0}, 8: {2}, 10: {2}, 12: {0}, 14: {0}}


RIGHT_FLAGS = {2: 0, 4: 0, 5: 0, 6: 2, 7: 0, 9: 0, 11: 0, 13: 0}
"""Of what a broker sends, but for PUBLISH, DISCONNECT and AUTH."""


@VERSIONS
@pytest.mark.parametrize("first_byte", [kind << 4 | flags for kind in RIGHT_FLAGS for flags in range(16)], ids=hex)
@pytest.mark.statement("MQTT5-2.1.3-1", "MQTT311-2.2.2-1", "MQTT311-2.2.2-2", side="client")
def test_wrong_flags_from_a_broker_close(version: int, first_byte: int) -> None:
    """In a packet that the client waits for, so that the same one with the right flags is good."""
    kind, flags = first_byte >> 4, first_byte & 0x0F
    broker = ScriptedBroker(version)
    if kind == 2:
        broker.client.begin_connection(0)
    else:
        broker.connect()
        broker.client.subscribe((SubscriptionRequest("s"),))
        broker.client.unsubscribe(("u",))
        for qos in (1, 2, 2):
            broker.client.publish(Publish("t", b"", qos))
        broker.sent()
        broker.say(b"\x50\x02" + u16(5), broker.message(9, 2))
        broker.settle_all()
    section = b"\x00" if version == 5 else b""
    bodies = {2: b"\x00\x00" + section, 4: u16(3), 5: u16(4), 6: u16(9), 7: u16(5), 9: u16(1) + section + b"\x00", 11: u16(2) + section * 2, 13: b""}
    broker.sent()
    answer = broker.say(frame(first_byte, bodies[kind]))
    assert broker.client.closing is (flags != RIGHT_FLAGS[kind])
    if broker.client.closing:
        assert answer == ([b"\xe0\x01\x81"] if version == 5 and kind != 2 else [])


@VERSIONS
@pytest.mark.parametrize("first_byte", [0x36, 0x37, 0x3E, 0x3F], ids=hex)
@pytest.mark.statement("MQTT5-3.3.1-4", "MQTT311-3.3.1-4", side="client")
def test_qos_3_from_a_broker_closes(version: int, first_byte: int) -> None:
    faulted(ready(version), publish_frame("t", version=version, first_byte=first_byte, packet_id=1), 0x81)


@VERSIONS
@pytest.mark.parametrize("first_byte", [0x38, 0x39], ids=hex)
@pytest.mark.statement("MQTT5-3.3.1-2", "MQTT311-3.3.1-2", side="client")
def test_dup_at_qos_0_from_a_broker_closes(version: int, first_byte: int) -> None:
    faulted(ready(version), publish_frame("t", version=version, first_byte=first_byte), 0x81)


@VERSIONS
@pytest.mark.statement("MQTT5-2.2.1-2", "MQTT311-2.3.1-5", side="client")
def test_qos_0_has_no_packet_identifier(version: int) -> None:
    broker = ready(version)
    assert broker.publish("t", b"xy")[1] == [b"\x30\x06\x00\x01t\x00xy" if version == 5 else b"\x30\x05\x00\x01txy"]
    broker.say(broker.message(0, 0, b"xy"))
    assert broker.received == [b"xy"]


@VERSIONS
@pytest.mark.statement("MQTT5-2.2.1-3", "MQTT311-2.3.1-1", "MQTT311-2.3.1-2", "MQTT311-2.3.1-3", side="client")
def test_packet_identifiers_are_one_pool(version: int) -> None:
    """PUBLISH, SUBSCRIBE and UNSUBSCRIBE under way never share a number, none is 0, and each is free again when its answer has come."""
    broker = ready(version)
    frames = []
    for number in range(20):
        broker.client.publish(Publish("t", b"", 1 + number % 2))
        broker.client.subscribe((SubscriptionRequest(f"s/{number}"),))
        broker.client.unsubscribe((f"u/{number}",))
        frames += broker.sent()
    ids = {body_of(one)[3:5] if one[0] >> 4 == 3 else body_of(one)[:2] for one in frames}
    assert len(ids) == 60
    assert b"\x00\x00" not in ids
    publishes = [body_of(one)[3:5] for one in frames if one[0] >> 4 == 3]
    for one in frames:
        kind, packet_id = one[0] >> 4, body_of(one)[:2]
        if kind == 8:
            broker.say(frame(0x90, packet_id, b"\x00\x00" if version == 5 else b"\x00"))
        elif kind == 10:
            broker.say(frame(0xB0, packet_id, b"\x00\x00" if version == 5 else b""))
    for number, packet_id in enumerate(publishes):
        if number % 2:
            assert broker.say(b"\x50\x02" + packet_id) == [b"\x62\x02" + packet_id]
            broker.say(b"\x70\x02" + packet_id)
        else:
            broker.say(b"\x40\x02" + packet_id)
    assert broker.client.sender.count == 0
    assert not broker.client.sender.reserved
    assert not broker.client.closing


@pytest.mark.statement("MQTT5-2.2.1-3", "MQTT311-2.3.1-1", "MQTT311-2.3.1-2", side="client")
@pytest.mark.statement("MQTT5-4.3.2-1", "MQTT5-4.3.3-1", "MQTT311-4.3.2-1", "MQTT311-4.3.3-1", side="client")
def test_packet_identifiers_go_past_65535_and_pass_over_those_in_use() -> None:
    """Of a SUBSCRIBE, an UNSUBSCRIBE, a QoS 1 message, and a QoS 2 message before and after its PUBREC. 0 is none."""
    broker = ready()
    broker.client.subscribe((SubscriptionRequest("s"),))
    broker.client.unsubscribe(("u",))
    for qos in (1, 2, 2):
        broker.client.publish(Publish("t", b"", qos))
    broker.sent()
    broker.say(b"\x50\x02" + u16(5))
    used = []
    for _ in range(65_532):
        _, (one,) = broker.publish(qos=1)
        used.append(body_of(one)[3:5])
        broker.say(b"\x40\x02" + used[-1])
    assert used == [u16(number) for number in (*range(6, 65_536), 6, 7)]


@VERSIONS
@pytest.mark.statement("MQTT5-2.2.1-5", "MQTT311-2.3.1-6", "MQTT5-3.3.4-1", "MQTT311-3.3.4-1", side="client")
@pytest.mark.parametrize("packet_id", [1, 255, 256, 65_535])
def test_answers_by_qos_repeat_the_packet_identifier(version: int, packet_id: int) -> None:
    broker = ready(version)
    broker.say(broker.message(0, 0))
    assert broker.settle_all() == []
    broker.say(broker.message(packet_id, 1))
    assert broker.settle_all() == [b"\x40\x02" + u16(packet_id)]
    broker.say(broker.message(packet_id, 2))
    assert broker.settle_all() == [b"\x50\x02" + u16(packet_id)]
    assert broker.say(b"\x62\x02" + u16(packet_id)) == [b"\x70\x02" + u16(packet_id)]


@VERSIONS
@pytest.mark.statement("MQTT5-2.2.1-3", "MQTT311-2.3.1-1", side="client")
def test_packet_identifier_zero_from_a_broker_closes(version: int) -> None:
    faulted(ready(version), publish_frame("t", version=version, first_byte=0x32, packet_id=0))


@pytest.mark.statement("MQTT5-2.2.2-1", side="client")
def test_an_empty_property_set_is_one_zero() -> None:
    broker = ScriptedBroker(5, client_id="c", receive_maximum=65_535, topic_alias_maximum=0)
    broker.client.begin_connection(0)
    (hello,) = broker.sent()
    assert body_of(hello)[10] > 0  # CONNECT always has something to say; its length stands there
    broker.say(b"\x20\x03\x00\x00\x00")
    broker.client.subscribe((SubscriptionRequest("t", 1),))
    broker.client.unsubscribe(("t",))
    assert broker.sent() == [subscribe_frame(1, ("t", 1)), frame(0xA2, u16(2), b"\x00", string("t"))]
    assert broker.publish("t")[1] == [b"\x30\x04\x00\x01t\x00"]
    will = ScriptedBroker(5, will=WillMessage("w", b"x"))
    will.client.begin_connection(0)
    (hello,) = will.sent()
    assert hello.endswith(string("c") + b"\x00" + string("w") + string("x"))


@pytest.mark.statement("MQTT5-2.2.2-1", side="client")
def test_missing_property_length_from_a_broker_closes() -> None:
    faulted(ready(), frame(0x30, string("t")))
    broker = ScriptedBroker(5)
    broker.client.begin_connection(0)
    broker.sent()
    assert broker.say(b"\x20\x02\x00\x00") == []
    assert broker.client.closing


# ---- 3.1: CONNECT ----


@VERSIONS
@pytest.mark.statement("MQTT5-3.1.0-1", "MQTT311-3.1.0-1", "MQTT5-3.1.2-1", side="client")
async def test_first_comes_connect(version: int) -> None:
    sent = await sent_by(version, client_id="c")
    assert sent[0] == 0x10
    assert body_of(sent)[:7] == b"\x00\x04MQTT" + bytes((version,))
    assert len(sent) == 2 + sent[1]  # and nothing else before the answer
    # Whatever is asked of it before there is a connection waits.
    broker = ScriptedBroker(version)
    for qos in (0, 1):
        broker.client.publish(Publish("t", b"x", qos))
    broker.client.subscribe((SubscriptionRequest("t"),))
    assert broker.sent() == []
    broker.client.begin_connection(0)
    assert [one[0] for one in broker.sent()] == [0x10]
    assert sorted(one[0] for one in broker.say(b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00")) == [0x30, 0x32, 0x82]


def parts_of(version: int, *, will: bool, username: bool, password: bool) -> tuple[int, list[bytes]]:
    """(Connect Flags, the payload's fields), as the standard orders them."""
    flags = 0x02 | (0x2C if will else 0) | (0x80 if username else 0) | (0x40 if password else 0)
    fields = [string("client")]
    if will:
        fields += [properties(b"\x18" + (5).to_bytes(4, "big"))] if version == 5 else []
        fields += [string("will/topic"), string(b"\x00gone")]
    fields += [string("user")] if username else []
    fields += [string(b"\xffpass")] if password else []
    return flags, fields


@VERSIONS
@pytest.mark.parametrize("will", [False, True])
@pytest.mark.parametrize("username", [False, True])
@pytest.mark.parametrize("password", [False, True])
@pytest.mark.statement(
    "MQTT5-3.1.2-9", "MQTT5-3.1.2-11", "MQTT5-3.1.2-13", "MQTT5-3.1.2-16", "MQTT5-3.1.2-17", "MQTT5-3.1.2-18", "MQTT5-3.1.2-19",
    "MQTT5-3.1.3-1", "MQTT5-3.1.3-3", "MQTT5-3.1.2-12", side="client",
)  # fmt: skip
@pytest.mark.statement(
    "MQTT311-3.1.2-9", "MQTT311-3.1.2-11", "MQTT311-3.1.2-13", "MQTT311-3.1.2-15", "MQTT311-3.1.2-18", "MQTT311-3.1.2-19", "MQTT311-3.1.2-20",
    "MQTT311-3.1.2-21", "MQTT311-3.1.3-1", "MQTT311-3.1.3-3", "MQTT311-3.1.2-14", side="client",
)  # fmt: skip
async def test_connect_has_the_fields_that_its_flags_say(version: int, will: bool, username: bool, password: bool) -> None:
    if version == 4 and password and not username:
        return  # not to be expressed in 3.1.1: the next test
    flags, fields = parts_of(version, will=will, username=username, password=password)
    broker = ScriptedBroker(
        version,
        client_id="client",
        keep_alive_s=10,
        will=WillMessage("will/topic", b"\x00gone", 1, True, Properties(will_delay_interval=5) if version == 5 else Properties()) if will else None,
        username="user" if username else None,
        password=b"\xffpass" if password else None,
        receive_maximum=65_535,
        topic_alias_maximum=0,
    )
    broker.client.begin_connection(0)
    section = properties(b"\x19\x01", b"\x27" + (16_777_216).to_bytes(4, "big"))
    (sent,) = broker.sent()
    expected = connect_frame(*fields, version=version, flags=flags, keep_alive_s=10, property_section=section)
    # The order of properties is nobody's rule.
    other = connect_frame(
        *fields, version=version, flags=flags, keep_alive_s=10, property_section=properties(b"\x27" + (16_777_216).to_bytes(4, "big"), b"\x19\x01")
    )
    assert sent in (expected, other)


@pytest.mark.statement("MQTT311-3.1.2-22", side="client")
async def test_no_password_without_a_user_name_in_3_1_1() -> None:
    await sends_nothing(lambda: {"client_id": "c", "password": b"secret", "version": "3.1.1"})


@VERSIONS
@pytest.mark.parametrize("qos", [3, -1, 4])
@pytest.mark.statement("MQTT5-3.1.2-12", "MQTT311-3.1.2-14", "MQTT5-3.3.1-4", "MQTT311-3.3.1-4", side="client")
async def test_qos_3_is_never_sent(version: int, qos: int) -> None:
    await sends_nothing(lambda: {"client_id": "c", "will": Will("w", b"x", qos=qos), "version": NAMES[version]})
    async with Scene() as scene:
        watcher = await scene.connect("w", version)
        await watcher.subscribe("#")
        async with connect(scene.broker, version=NAMES[version]) as client:
            with pytest.raises(ValueError):
                await client.publish("t", b"x", qos=qos)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT311-3.1.3-7", side="client")
async def test_no_empty_client_identifier_without_clean_session_in_3_1_1() -> None:
    await sends_nothing(lambda: {"client_id": "", "clean_start": False, "version": "3.1.1"})


@pytest.mark.statement("MQTT5-3.1.2-30", side="client")
def test_nothing_but_auth_before_connack_with_an_authentication_method() -> None:
    broker = ScriptedBroker(5, connect_properties=Properties(authentication_method="M"), keep_alive_s=10)
    broker.client.publish(Publish("t", b"x", 1))
    broker.client.begin_connection(0)
    (hello,) = broker.sent()
    assert b"\x15" + string("M") in hello
    broker.client.publish(Publish("t", b"y"))
    broker.client.subscribe((SubscriptionRequest("t"),))
    broker.now = 100
    broker.client.tick(100)
    assert broker.sent() == []
    assert len(broker.say(frame(0x20, b"\x00\x00", properties(b"\x15" + string("M"))))) == 3
