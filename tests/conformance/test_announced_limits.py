"""What client and broker tell each other in CONNECT and CONNACK, and that both keep to it (MQTT 5.0, 3.1.2.11, 3.2.2)."""

from __future__ import annotations

from typing import Any

import pytest

from broker import Config
from broker.core.engine import Engine
from broker.net.authentication import ConnectRequest
from broker.reasons import CONNACK_CODES, ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.packets import ConnAck, Connect, Properties, PubAck, Publish, PubRec, SubscriptionRequest, WillMessage
from tests.conformance.harness import NEVER, V5, V311, Scene, both_versions
from tests.conformance.wirebytes import body_of, connect_frame, properties, publish_frame, string, subscribe_frame, u16

# ---- Maximum Packet Size ----


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.1.2-24", "MQTT5-3.1.2-25")
async def test_too_large_for_the_client_is_not_sent(qos: int) -> None:
    async with Scene() as scene:
        small = await scene.connect("small", maximum_packet_size=50, receive_maximum=2)
        large = await scene.connect("large")
        await small.subscribe("a", qos=qos)
        await large.subscribe("a", qos=qos)
        sender = await scene.connect("s")
        for number in range(20):
            assert await sender.publish("a", bytes(100), qos) == ReasonCode.SUCCESS
            await small.expect_nothing()
            assert await large.payloads() == [bytes(100)]
            # As if it had been sent: no quota is lost, and later messages come.
            text = str(number).encode()
            await sender.publish("a", text, qos)
            assert await small.payloads() == [text]
            assert await large.payloads() == [text]
        # Two may be under way still.
        if qos:
            for _ in range(3):
                await sender.publish("a", b"x", qos)
            under_way = await small.receive_all()
            assert len({packet.packet_id for packet in under_way if isinstance(packet, Publish)}) == 2


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.statement("MQTT5-3.1.2-24", "MQTT5-3.1.2-25")
async def test_exactly_the_maximum_is_sent_and_one_more_byte_is_not(qos: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", maximum_packet_size=100)
        await peer.subscribe("a", qos=qos)
        sender = await scene.connect("s")
        overhead = 6 + (2 if qos else 0)
        await sender.publish("a", bytes(101 - overhead), qos)
        await peer.expect_nothing()
        await sender.publish("a", bytes(100 - overhead), qos)
        assert len(await peer.receive_frame()) == 100


@pytest.mark.statement("MQTT5-3.1.2-24", "MQTT5-3.1.2-25")
async def test_too_large_from_the_queue_the_resend_and_the_retained_store() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        peer = await scene.connect("c", session_expiry_interval=NEVER)
        await peer.subscribe("a", qos=1)
        await sender.publish("a", bytes(100), 1)
        await peer.take(Publish)  # under way, not acknowledged
        await peer.drop()
        await sender.publish("a", bytes(200), 1)
        await sender.publish("a", b"small", 1)
        await sender.publish("kept", bytes(100), 1, retain=True)
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=NEVER, maximum_packet_size=60)
        assert await peer.payloads() == [b"small"]
        await peer.subscribe("kept", qos=1)
        await peer.expect_nothing()
        await sender.publish("a", b"more", 1)
        assert await peer.payloads() == [b"more"]


@pytest.mark.statement("MQTT5-3.2.2-19", "MQTT5-3.1.2-24")
async def test_connack_leaves_its_reason_string_out_where_it_would_not_fit() -> None:
    async def refuse(request: ConnectRequest) -> str | None:
        return None

    async with Scene(authenticate=refuse) as scene:
        peer = await scene.peer()
        await peer.send(Connect("c"))
        whole = await peer.receive_frame()
        assert len(whole) > 5, "no Reason String to leave out"
        for size, expected in ((len(whole), whole), (len(whole) - 1, b"\x20\x03\x00\x86\x00"), (5, b"\x20\x03\x00\x86\x00")):
            peer = await scene.peer()
            await peer.send(Connect("c", properties=Properties(maximum_packet_size=size)))
            await peer.expect_bytes(expected)
            await peer.expect_end()
        peer = await scene.peer()
        await peer.send(Connect("c", properties=Properties(maximum_packet_size=4)))
        await peer.expect_end()


@pytest.mark.statement("MQTT5-3.1.2-24")
async def test_a_client_too_small_for_connack_gets_nothing() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("will")
        peer = await scene.peer()
        await peer.send(Connect("c", properties=Properties(maximum_packet_size=6), will=WillMessage("will", b"gone")))
        await peer.expect_end()
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-3.2.2-20")
async def test_connack_has_no_user_properties_that_could_be_too_large() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", user_properties=(("n", "v" * 100),))
        assert peer.connack is not None
        size = len(peer.frames[0])
        assert not peer.connack.properties.user_properties
        peer = await scene.connect("c", maximum_packet_size=size, user_properties=(("n", "v" * 100),))
        assert len(peer.frames[0]) <= size


@both_versions
@pytest.mark.statement("MQTT5-3.2.2-15")
async def test_too_large_for_the_broker_closes_at_the_header(version: int) -> None:
    async with Scene(packet_bytes_max=1000) as scene:
        peer = await scene.connect("c", version)
        if version >= V5:
            assert peer.connack is not None
            assert peer.connack.properties.maximum_packet_size == 1000
        whole = publish_frame("a", bytes(1000 - 6 - (version >= V5)), version=version)
        assert len(whole) == 1000
        await peer.send(whole)
        await peer.expect_open()
        await peer.send(b"\x30\xe6\x07")  # 998 + 3 bytes, of which none has come
        await peer.expect_closed(0x95)


# ---- Topic Aliases ----


@pytest.mark.statement("MQTT5-3.1.2-26", "MQTT5-3.3.2-11", "MQTT5-3.3.2-8")
async def test_aliases_to_the_client_stay_within_its_maximum() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", topic_alias_maximum=2)
        await peer.subscribe("a/#", qos=1)
        sender = await scene.connect("s")
        known: dict[int, str] = {}
        for number in [0, 1, 2, 3, 0, 1, 2, 3, 0]:
            await sender.publish(f"a/{number}", str(number).encode(), number % 2)
            message = await peer.take_message()
            alias = message.properties.topic_alias
            assert alias in (None, 1, 2)
            if alias is not None and message.topic:
                known[alias] = message.topic
            assert (message.topic or known[alias or 0]) == f"a/{number}"
        assert set(known) == {1, 2}


@pytest.mark.parametrize("options", [{}, {"topic_alias_maximum": 0}])
@pytest.mark.statement("MQTT5-3.1.2-27")
async def test_no_alias_for_a_client_that_announced_none(options: dict[str, int]) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", **options)
        await peer.subscribe("a/#", qos=1)
        sender = await scene.connect("s", topic_alias_maximum=10)
        for number in range(4):
            await sender.publish("a/b", b"x", number % 2, topic_alias=3)
            message = await peer.take_message()
            assert message.topic == "a/b"
            assert message.properties.topic_alias is None


@pytest.mark.statement("MQTT5-3.2.2-17", "MQTT5-3.3.2-9", "MQTT5-3.3.2-12")
async def test_aliases_up_to_the_brokers_maximum_are_accepted_and_no_others() -> None:
    async with Scene(topic_alias_maximum=5) as scene:
        peer = await scene.connect("c")
        assert peer.connack is not None
        assert peer.connack.properties.topic_alias_maximum == 5
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        for alias in range(1, 6):
            await peer.publish(f"t/{alias}", b"named", topic_alias=alias)
        for alias in range(1, 6):
            await peer.publish("", b"by alias", topic_alias=alias)
        packets = [packet for packet in await watcher.receive_all() if isinstance(packet, Publish)]
        assert [(packet.topic, packet.payload) for packet in packets] == [
            (f"t/{alias}", payload) for payload in (b"named", b"by alias") for alias in range(1, 6)
        ]
        # Another name for a number that is in use.
        await peer.publish("changed", b"", topic_alias=1)
        await peer.publish("", b"", topic_alias=1)
        packets = [packet for packet in await watcher.receive_all() if isinstance(packet, Publish)]
        assert [packet.topic for packet in packets] == ["changed", "changed"]
        await peer.send(publish_frame("t", property_section=properties(b"\x23\x00\x06")))
        await peer.expect_closed(0x94)
        await watcher.expect_nothing()


@pytest.mark.parametrize("alias", [1, 65_535])
@pytest.mark.statement("MQTT5-3.2.2-18", "MQTT5-3.3.2-9")
async def test_no_alias_where_the_broker_announced_none(alias: int) -> None:
    async with Scene(topic_alias_maximum=0) as scene:
        peer = await scene.connect("c")
        assert peer.connack is not None
        assert peer.connack.properties.topic_alias_maximum in (None, 0)
        await peer.send(publish_frame("t", property_section=properties(b"\x23", u16(alias))))
        await peer.expect_closed(0x94)


@pytest.mark.statement("MQTT5-3.3.2-8")
async def test_alias_zero_closes() -> None:
    async with Scene() as scene:
        for topic in ("t", ""):
            peer = await scene.connect("c")
            await peer.send(publish_frame(topic, property_section=properties(b"\x23\x00\x00")))
            await peer.expect_closed(0x94)


@pytest.mark.statement("MQTT5-3.3.2-7")
async def test_the_clients_aliases_end_with_the_connection() -> None:
    async with Scene() as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("#")
        peer = await scene.connect("c", session_expiry_interval=NEVER)
        await peer.publish("t", b"x", topic_alias=1)
        await watcher.take(Publish)
        await peer.drop()
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=NEVER)
        assert peer.connack is not None
        assert peer.connack.session_present
        other = await scene.connect("d")
        for one in (peer, other):
            await one.send(publish_frame("", b"x", property_section=properties(b"\x23\x00\x01")))
            await one.expect_closed(0x82)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-3.3.2-7")
async def test_the_brokers_aliases_end_with_the_connection() -> None:
    async with Scene() as scene:
        sender = await scene.connect("s")
        options: dict[str, Any] = {"topic_alias_maximum": 5, "session_expiry_interval": NEVER, "clean_start": False}
        peer = await scene.connect("c", **options)
        await peer.subscribe("t", qos=1)
        for _ in range(2):
            await sender.publish("t", b"x", 1)
        first, second = await peer.take(Publish), await peer.take(Publish)
        assert (first.topic, second.topic) == ("t", "")
        await peer.drop()
        # Not acknowledged, so they come again: with the name.
        peer = await scene.connect("c", **options)
        again = await peer.take(Publish)
        assert (again.topic, again.dup) == ("t", True)
        await peer.drop()
        peer = await scene.connect("c", clean_start=False, session_expiry_interval=NEVER)
        for _ in range(2):
            message = await peer.take(Publish)
            assert (message.topic, message.properties.topic_alias) == ("t", None)


# ---- request information ----


@pytest.mark.parametrize("options", [{}, {"request_response_information": 0}])
@pytest.mark.statement("MQTT5-3.1.2-28")
async def test_no_response_information_unasked(options: dict[str, int]) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", **options)
        assert peer.connack is not None
        assert peer.connack.properties.response_information is None


@pytest.mark.statement("MQTT5-3.1.2-28")
def test_response_information_only_when_asked_for() -> None:
    """No broker that is opened has any to give yet, so this asks the core, which would."""
    for asked, told in ((None, None), (0, None), (1, "answers/")):
        engine = Engine(new_client_id=lambda: "new", response_information="answers/")
        link = engine.attach("test", 0)
        engine.receive(link, encode(Connect("c", properties=Properties(request_response_information=asked)), V5), 0)
        connack = bytes(engine.data_to_send(link))
        assert peer_properties(connack).response_information == told


@pytest.mark.statement("MQTT5-3.1.2-29")
async def test_no_reason_strings_where_the_client_wants_none() -> None:
    async with Scene(authorize=lambda user, client, action, topic: "secret" not in topic) as scene:
        peer = await scene.connect("c", request_problem_information=0)
        assert await peer.publish("secret", b"", 1) == ReasonCode.NOT_AUTHORIZED
        assert await peer.publish("secret", b"", 2) == ReasonCode.NOT_AUTHORIZED
        await peer.subscribe("secret", "a/#/b")
        await peer.unsubscribe("nowhere")
        await peer.send(b"\x62\x02\x00\x63", b"\x50\x02\x00\x63")
        await peer.receive()
        await peer.receive()
        for one in peer.frames[1:]:
            properties_of = peer_properties(one)
            assert properties_of.reason_string is None
            assert properties_of.user_properties == ()
        # Those that are a message's own are forwarded.
        await peer.subscribe("open")
        await peer.publish("open", b"", user_properties=(("n", "v"),))
        assert (await peer.take(Publish)).properties.user_properties == (("n", "v"),)


def peer_properties(one: bytes) -> Properties:
    packet = decode(one[0], body_of(one), V5)
    found = getattr(packet, "properties", Properties())
    assert isinstance(found, Properties)
    return found


# ---- capabilities (3.2.2.3) ----


@pytest.mark.parametrize("maximum", [0, 1])
@pytest.mark.statement("MQTT5-3.2.2-9", "MQTT5-3.2.2-10", "MQTT5-3.2.2-11")
async def test_maximum_qos(maximum: int) -> None:
    async with Scene(maximum_qos=maximum) as scene:
        peer = await scene.connect("c")
        assert bytes((0x24, maximum)) in peer.frames[0]
        suback = await peer.subscribe(*(SubscriptionRequest(f"q/{qos}", qos) for qos in range(3)))
        assert suback.reasons == tuple(min(qos, maximum) for qos in range(3))
        assert (await peer.subscribe("q/3", qos=2)).reasons == (maximum,)
        sender = await scene.connect("s")
        await sender.publish("q/2", b"x", maximum)
        assert (await peer.take_message()).qos == maximum
        await peer.send(publish_frame("q/0", b"x", first_byte=0x30 | maximum + 1 << 1, packet_id=1))
        await peer.expect_closed(0x9B)


@pytest.mark.statement("MQTT5-3.2.2-9")
async def test_maximum_qos_2_is_not_told() -> None:
    async with Scene() as scene:
        peer = await scene.connect("c")
        assert peer.connack is not None
        assert peer.connack.properties.maximum_qos is None


@pytest.mark.statement("MQTT5-3.2.2-12")
async def test_will_qos_above_the_maximum_is_refused() -> None:
    async with Scene(maximum_qos=1) as scene:
        peer = await scene.peer()
        connack = await peer.connect("c", will=WillMessage("w", b"", 2))
        assert connack.reason == ReasonCode.QOS_NOT_SUPPORTED
        await peer.expect_end()
        await scene.connect("c", will=WillMessage("w", b"", 1))
        peer = await scene.peer(V311)
        await peer.send(Connect("c", V311, will=WillMessage("w", b"", 2)))
        await peer.expect_end()


@pytest.mark.statement("MQTT5-3.2.2-13")
async def test_retained_will_without_retain_is_refused() -> None:
    async with Scene(retain_available=False) as scene:
        peer = await scene.peer()
        connack = await peer.connect("c", will=WillMessage("w", b"", 0, True))
        assert connack.reason == ReasonCode.RETAIN_NOT_SUPPORTED
        await peer.expect_end()
        await scene.connect("c", will=WillMessage("w", b""))


@pytest.mark.statement("MQTT5-3.2.2-14")
async def test_retain_without_retain_available_closes() -> None:
    async with Scene(retain_available=False) as scene:
        watcher = await scene.connect("watcher")
        await watcher.subscribe("a")
        peer = await scene.connect("c")
        assert b"\x25\x00" in peer.frames[0]
        await peer.publish("a", b"plain")
        assert await watcher.payloads() == [b"plain"]
        await peer.send(publish_frame("a", b"x", first_byte=0x31))
        await peer.expect_closed(0x9A)
        await watcher.expect_nothing()


@pytest.mark.parametrize(
    ("limit", "identifier", "request_frame", "reason"),
    [
        ("wildcard_subscription_available", 0x28, subscribe_frame(1, ("ok", 0), ("a/+", 0)), 0xA2),
        ("wildcard_subscription_available", 0x28, subscribe_frame(1, ("a/#", 0)), 0xA2),
        ("subscription_identifier_available", 0x29, subscribe_frame(1, ("ok", 0), property_section=properties(b"\x0b\x01")), 0xA1),
        ("shared_subscription_available", 0x2A, subscribe_frame(1, ("ok", 0), ("$share/g/a", 0)), 0x9E),
    ],
)
async def test_capabilities_that_are_off_are_told_and_refused(limit: str, identifier: int, request_frame: bytes, reason: int) -> None:
    limits: dict[str, Any] = {limit: False}
    async with Scene(**limits) as scene:
        peer = await scene.connect("c")
        assert bytes((identifier, 0)) in peer.frames[0]
        assert (await peer.subscribe("plain")).reasons == (ReasonCode.SUCCESS,)
        await peer.send(request_frame)
        await peer.expect_closed(reason)
    async with Scene() as scene:  # what is there is not mentioned
        peer = await scene.connect("c")
        assert peer.connack is not None
        assert getattr(peer.connack.properties, limit) is None


# ---- the form of CONNACK ----


@both_versions
@pytest.mark.statement("MQTT5-3.2.2-1")
async def test_reserved_acknowledge_flags_are_zero(version: int) -> None:
    async with Scene(client_id_bytes_max=5) as scene:
        options = {"session_expiry_interval": NEVER} if version >= V5 else {}
        found = []
        for _ in range(2):
            peer = await scene.connect("c", version, clean_start=False, **options)
            found.append(peer.frames[0][2])
        peer = await scene.peer(version)
        await peer.connect("too long")
        found.append(peer.frames[0][2])
        assert found == [0, 1, 0]


@both_versions
@pytest.mark.statement("MQTT5-3.2.2-6", "MQTT311-3.2.2-4", "MQTT5-3.2.2-7", "MQTT311-3.2.2-5")
async def test_refusal_has_session_present_0_and_closes(version: int) -> None:
    async with Scene() as scene:
        options = {"session_expiry_interval": NEVER} if version >= V5 else {}
        peer = await scene.connect("c", version, clean_start=False, **options)
        await peer.drop()
        peer = await scene.peer(version)
        if version >= V5:
            connack = await peer.connect("c", clean_start=False, will=WillMessage("$SYS/x", b""))
            assert connack == ConnAck(False, ReasonCode.TOPIC_NAME_INVALID, connack.properties)
        else:
            await peer.send(connect_frame(string("c"), version=2, flags=0))
            await peer.expect_bytes(b"\x20\x02\x00\x01")
        await peer.expect_end()


@pytest.mark.statement("MQTT5-3.2.2-8")
async def test_reason_codes_of_connack_are_from_its_table() -> None:
    """Every way into a refusal that there is; and the encoder has no words for any other code."""
    table = {0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F}
    assert table == CONNACK_CODES
    for reason in ReasonCode:
        if reason in table:
            assert encode(ConnAck(False, reason), V5)[3] == reason
        else:
            with pytest.raises(ValueError, match="CONNACK"):
                encode(ConnAck(False, reason), V5)

    async def refuse(request: ConnectRequest) -> str | None:
        if request.username == "broken":
            raise OSError("the user database is away")
        return "u" if request.username == "u" else None

    limits: dict[str, Any] = {"maximum_qos": 1, "retain_available": False, "client_id_bytes_max": 10, "sessions_count_max": 1}
    seen = set()
    async with Scene(authenticate=refuse, **limits) as scene:
        await scene.connect("first", username="u")
        for request in (
            Connect("first", username="v"), Connect("first", username="broken"), Connect("second", username="u"), Connect("far too long"),
            Connect("first", username="u", will=WillMessage("w", b"", 2)), Connect("first", username="u", will=WillMessage("w", b"", 0, True)),
            Connect("first", username="u", will=WillMessage("$SYS/w", b"")),
            Connect("first", properties=Properties(authentication_method="none such")),
            connect_frame(string("first"), flags=3), connect_frame(string("first"), version=7),
            connect_frame(string("first"), property_section=properties(b"\x21\x00\x00")),
        ):  # fmt: skip
            peer = await scene.peer()
            await peer.send(request)
            connack = await peer.take(ConnAck)
            assert connack.reason.failed
            seen.add(int(connack.reason))
            await peer.expect_end()
    assert seen <= table
    assert len(seen) >= 9


# ---- Receive Maximum ----


@pytest.mark.parametrize("maximum", [1, 2, 7])
@pytest.mark.statement("MQTT5-3.3.4-9", "MQTT5-3.3.4-10")
async def test_no_more_under_way_than_the_client_takes(maximum: int) -> None:
    async with Scene() as scene:
        peer = await scene.connect("c", receive_maximum=maximum)
        await peer.subscribe("a", qos=2)
        sender = await scene.connect("s")
        for number in range(20):
            await sender.publish("a", str(number).encode(), 1 + number % 2)
        held: list[Publish] = []
        payloads = []
        while True:
            held += [packet for packet in await peer.receive_all() if isinstance(packet, Publish)]
            assert len(held) <= maximum
            if not held:
                break
            # At the limit all else goes on at once, QoS 0 too.
            await peer.expect_open()
            assert (await peer.subscribe("b")).reasons == (ReasonCode.SUCCESS,)
            await sender.publish("b", b"zero")
            assert (await peer.take(Publish)).payload == b"zero"
            assert await peer.publish("c", b"", 1) == ReasonCode.NO_MATCHING_SUBSCRIBERS
            message = held.pop(0)
            payloads.append(int(message.payload))
            if message.qos == 1:
                await peer.send(PubAck(message.packet_id))
            elif int(message.payload) % 4 == 1:
                await peer.send(PubRec(message.packet_id, ReasonCode.UNSPECIFIED_ERROR))  # a refusal frees a place too
            else:
                await peer.send(PubRec(message.packet_id))
                assert (await peer.receive_frame())[0] == 0x62
                await peer.expect_nothing()  # PUBREC frees none
                await peer.send(b"\x70\x02" + u16(message.packet_id))
        assert payloads == list(range(20))


@pytest.mark.statement("MQTT5-3.3.4-7")
@pytest.mark.parametrize("wanted", [False, True])
async def test_more_than_the_receive_maximum_closes(wanted: bool) -> None:
    async with Scene(receive_maximum=2) as scene:
        if wanted:
            await (await scene.connect("other")).subscribe("a", qos=2)
        peer = await scene.connect("c")
        assert peer.connack is not None
        assert peer.connack.properties.receive_maximum == 2
        for packet_id in (1, 2):
            await peer.send(Publish("a", b"", 2, packet_id=packet_id))
            await peer.take(PubRec)
        # What is acknowledged at once takes no place, and a repetition takes none either.
        for packet_id in (3, 4, 5):
            assert await peer.publish("a", b"", 1, packet_id=packet_id) in (ReasonCode.SUCCESS, ReasonCode.NO_MATCHING_SUBSCRIBERS)
        await peer.send(Publish("a", b"", 2, dup=True, packet_id=2))
        await peer.take(PubRec)
        await peer.send(b"\x62\x02\x00\x01")
        await peer.receive()
        await peer.send(Publish("a", b"", 2, packet_id=6))
        await peer.take(PubRec)
        await peer.send(Publish("a", b"", 2, packet_id=7))
        await peer.expect_closed(0x93)


async def test_3_1_1_has_no_receive_maximum() -> None:
    async with Scene(receive_maximum=2) as scene:
        peer = await scene.connect("c", V311)
        for packet_id in range(1, 301):
            await peer.send(Publish("a", b"", 2, packet_id=packet_id))
        assert len(await peer.receive_all()) == 300
        for packet_id in range(1, 301):
            await peer.send(b"\x62\x02" + u16(packet_id))
        assert len(await peer.receive_all()) == 300
        await peer.expect_open()


# ---- what was announced stays, though the broker's limits change ----


@pytest.mark.statement("MQTT5-3.3.2-12", "MQTT5-3.3.4-7", "MQTT5-3.2.2-11", "MQTT5-3.2.2-14")
async def test_a_reload_takes_back_nothing_that_connack_promised() -> None:
    less = {
        "maximum_qos": 0, "retain_available": False, "topic_alias_maximum": 0, "receive_maximum": 1, "wildcard_subscription_available": False,
        "subscription_identifier_available": False, "shared_subscription_available": False, "packet_bytes_max": 1000,
    }  # fmt: skip
    async with Scene() as scene:
        before = await scene.connect("before")
        scene.broker.reload(Config.from_dict({"limits": less}))
        await before.subscribe("a/#", qos=2, identifier=5)
        await before.subscribe("$share/g/b")
        await before.send(
            publish_frame("c", b"x", first_byte=0x35, packet_id=1, property_section=properties(b"\x23\x00\x20")),
            publish_frame("", b"y", first_byte=0x34, packet_id=2, property_section=properties(b"\x23\x00\x20")),
            publish_frame("c", bytes(2000), first_byte=0x32, packet_id=3),
        )
        assert [one[0] >> 4 for one in [await before.receive_frame() for _ in range(3)]] == [5, 5, 4]
        await before.expect_open()
        after = await scene.connect("after")
        assert after.connack is not None
        told = after.connack.properties
        assert (told.maximum_qos, told.retain_available, told.topic_alias_maximum, told.receive_maximum, told.maximum_packet_size) == (
            0,
            0,
            None,
            1,
            1000,
        )
        await after.send(publish_frame("c", b"x", property_section=properties(b"\x23\x00\x01")))
        await after.expect_closed(0x94)
