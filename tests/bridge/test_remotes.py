"""Brokers of every kind at the other end: what they cannot do, what they do wrong, how they refuse; the bridge goes on as far as that goes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from broker import Bridge, BridgeTopic, Config, Listener, connect, open_broker
from broker.bridge.mapping import Mapping
from broker.client.reconnect import NEVER_AGAIN
from broker.reasons import ReasonCode
from broker.wire.packets import (
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
    Unsubscribe,
)
from tests.bridge.houses import bridge_to, listening, nothing_more, take, until, wait_cause, wait_state
from tests.bridge.test_answers import play
from tests.client.scripted import Peer, ScriptedBroker

BOTH = BridgeTopic(filter="a/#", direction="both", qos=2)
SERVER_REFUSALS = [
    ReasonCode.UNSPECIFIED_ERROR,
    ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
    ReasonCode.BAD_USER_NAME_OR_PASSWORD,
    ReasonCode.NOT_AUTHORIZED,
    ReasonCode.SERVER_UNAVAILABLE,
    ReasonCode.SERVER_BUSY,
    ReasonCode.BANNED,
    ReasonCode.QUOTA_EXCEEDED,
    ReasonCode.USE_ANOTHER_SERVER,
    ReasonCode.SERVER_MOVED,
    ReasonCode.CONNECTION_RATE_EXCEEDED,
]


@pytest.mark.parametrize(
    "announced",
    [
        Properties(receive_maximum=1),
        Properties(maximum_qos=0, retain_available=0),
        Properties(maximum_qos=1),
        Properties(server_keep_alive=5, assigned_client_identifier="theirs", topic_alias_maximum=1, session_expiry_interval=0),
        Properties(subscription_identifier_available=0, shared_subscription_available=0),
        Properties(maximum_packet_size=64),
    ],
    ids=lambda announced: ",".join(name for name in announced.__struct_fields__ if getattr(announced, name) not in (None, (), "")),
)
async def test_one_that_can_do_less(announced: Properties, autojump_clock: trio.testing.MockClock) -> None:
    """Within what it said: 30 messages of every QoS go out, and one comes in."""
    scripted = ScriptedBroker()
    seen: list[Packet] = []
    async with open_broker(bridges=[bridge_to(scripted, BOTH)]) as near, connect(near) as client, listening(near, "a/in") as here:
        peer = await scripted.next()
        await peer.accept(announced)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, peer, None, seen)
            await wait_state(near)
            for number in range(30):
                await client.publish("a/out", str(number), qos=number % 3, retain=True)
            await until(lambda: near.bridges[0].out_count == 30)
            await peer.send(Publish("a/in", b"1", 1 if announced.maximum_qos != 0 else 0, packet_id=1 if announced.maximum_qos != 0 else 0))
            assert await take(here, 1) == [("a/in", "1")]
            began = len(seen)
            await trio.sleep(300)
            nursery.cancel_scope.cancel()
        sent = [packet for packet in seen if isinstance(packet, Publish)]
        assert [packet.payload.decode() for packet in sent if packet.qos] == [
            str(number) for number in range(30) if min(number % 3, 2 if announced.maximum_qos is None else announced.maximum_qos)
        ]
        assert all(packet.qos <= (2 if announced.maximum_qos is None else announced.maximum_qos) for packet in sent)
        assert all(packet.retain is (announced.retain_available is None) for packet in sent)
        pings = sum(isinstance(packet, PingReq) for packet in seen[began:])
        assert (pings >= 60) is (announced.server_keep_alive == 5)
        assert (near.bridges[0].dropped, near.bridges[0].timeouts_count) == ({}, 0)
        await peer.cut()


async def test_one_without_wildcards_takes_the_rest(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is not asked for what it would close the connection for, and what goes out goes."""
    scripted = ScriptedBroker()
    topics = (BridgeTopic(filter="a/#", direction="both"), BridgeTopic(filter="b", direction="in"))
    async with open_broker(bridges=[bridge_to(scripted, *topics)]) as near, connect(near) as client:
        peer = await scripted.next()
        await peer.accept(Properties(wildcard_subscription_available=0))
        seen: list[Packet] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, peer, None, seen)
            await wait_state(near)
            await client.publish("a/1", "x", qos=1)
            await until(lambda: near.bridges[0].out_count == 1)
            nursery.cancel_scope.cancel()
        assert [one.filter for packet in seen if isinstance(packet, Subscribe) for one in packet.subscriptions] == ["b"]
        assert "subscription to 'a/#' refused: wildcard subscriptions not supported" in caplog.text
        await peer.cut()


@pytest.mark.parametrize("reason", SERVER_REFUSALS, ids=lambda reason: reason.name)
async def test_one_that_refuses(reason: ReasonCode, autojump_clock: trio.testing.MockClock) -> None:
    """Tried again for ever, slowly where the same answer is to be expected; and taken when it changes its mind."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BOTH)]) as near:
        times = []
        for _ in range(6):
            peer = await scripted.next()
            times.append(trio.current_time())
            await peer.expect(Connect)
            await peer.send(ConnAck(False, reason, Properties(server_reference="elsewhere.example")))
            await peer.cut()
        assert reason.describe() in near.bridges[0].cause
        assert "elsewhere.example" in near.bridges[0].cause
        pauses = [after - before for before, after in pairwise(times)]
        assert all(pause >= 60 for pause in pauses) if reason in NEVER_AGAIN else all(pause <= 32 for pause in pauses)
        peer = await scripted.next()
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, peer, None, [])
            await wait_state(near)
            nursery.cancel_scope.cancel()
        await peer.cut()


WRONG: list[tuple[str, Sequence[Packet]]] = [
    ("PUBACK for what was never sent", [PubAck(77)]),
    ("PUBREC for what was never sent", [PubRec(77)]),
    ("PUBCOMP for what was never sent", [PubComp(77)]),
    ("SUBACK of nothing", [SubAck(77, (ReasonCode.GRANTED_QOS_1,))]),
    ("a topic alias that was not offered", [Publish("a/1", b"x", 0, properties=Properties(topic_alias=17))]),
    ("a packet id twice", [Publish("a/1", b"x", 1, packet_id=5), Publish("a/1", b"x", 1, packet_id=5)]),
    ("a topic that nothing asked for", [Publish("elsewhere", b"x", 1, packet_id=6)]),
    ("a client's packet", [PingReq()]),
    ("DISCONNECT", [Disconnect(ReasonCode.SESSION_TAKEN_OVER)]),
    ("PUBREL before PUBREC", [PubRel(9)]),
]


@pytest.mark.parametrize(("what", "packets"), WRONG, ids=[what for what, _ in WRONG])
async def test_one_that_does_wrong(what: str, packets: Sequence[Packet], autojump_clock: trio.testing.MockClock) -> None:
    """Whatever it says, what was acknowledged here arrives in the end, nothing else comes in, and nothing fails on this side."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BOTH)]) as near, connect(near) as client, listening(near, "#") as here:
        peer = await scripted.next()
        await peer.accept()
        seen: list[Packet] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, peer, None, seen)
            await wait_state(near)
            await peer.send(*packets)
            await client.publish("a/out", "1", qos=1)

            async def serve_more() -> None:
                while True:
                    other = await scripted.next()
                    await other.accept(session_present=True)
                    nursery.start_soon(play, other, None, seen)

            nursery.start_soon(serve_more)
            await until(lambda: near.bridges[0].out_count >= 1, 200)
            nursery.cancel_scope.cancel()
        assert {packet.payload for packet in seen if isinstance(packet, Publish)} == {b"1"}
        assert {topic for topic, _ in await _so_far(here)} <= {"a/1", "a/out"}
        assert "fault of the broker" not in near.bridges[0].cause


async def _so_far(subscription: Any) -> list[tuple[str, str]]:
    found = []
    with trio.move_on_after(1):
        while True:
            found += await take(subscription, 1)
    return found


async def test_one_that_accepts_and_ends_each_connection_is_dialled_less_often(autojump_clock: trio.testing.MockClock) -> None:
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BOTH)]):

        async def end_each() -> None:
            while True:
                peer = await scripted.next()
                await peer.accept()
                await peer.cut()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_each)
            await trio.sleep(1000)
            nursery.cancel_scope.cancel()
        assert 125 <= scripted.dialled <= 500


async def test_a_reload_or_an_end_while_it_dials(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody waits for a CONNACK that does not come."""
    scripted = ScriptedBroker()
    nothing = Config(listeners=(), sys_interval_s=0)
    async with open_broker(nothing) as near:
        for number in range(5):
            near.reload(Config(listeners=(), sys_interval_s=0, bridges=(bridge_to(scripted, BOTH, keepalive_s=10 + number),)))
            peer = await scripted.next()
            await peer.expect(Connect)
        began_at = trio.current_time()
        near.reload(nothing)
        await until(lambda: near.bridges == [], 5)
        near.reload(Config(listeners=(), sys_interval_s=0, bridges=(bridge_to(scripted, BOTH),)))
        await (await scripted.next()).expect(Connect)
        await near.shutdown(5)
        assert trio.current_time() - began_at <= 5


async def test_one_whose_name_is_not_found_and_later_is() -> None:
    """(In real time: names are looked up by a thread.)"""
    topics = [{"filter": "#", "direction": "both"}]

    class Names(trio.abc.HostnameResolver):
        known = False

        async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
            if host in (b"far.example", "far.example") and self.known:
                return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]
            raise socket.gaierror(socket.EAI_NONAME, "not known")

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    names = Names()
    before = trio.socket.set_custom_hostname_resolver(names)
    try:
        async with open_broker(listeners=[Listener(port=0)]) as far:
            url = far.urls[0].replace("127.0.0.1", "far.example")
            config = Config.from_dict({"listeners": [{"port": 0}], "bridges": [{"name": "b", "url": url, "topics": topics}]})
            async with open_broker(config, listeners=[]) as near:
                await wait_cause(near, "host name not found")
                names.known = True
                near.reload(config)
                await wait_state(near)
    finally:
        trio.socket.set_custom_hostname_resolver(before)


# ---- several bridges ------------------------------------------------------------------------------------------------------


async def test_a_chain_of_three(autojump_clock: trio.testing.MockClock) -> None:
    """Each message once at each of them, from wherever, retained or cleared."""
    async with open_broker() as last, open_broker(bridges=[bridge_to(last, BOTH)]) as middle:
        first_bridge = Bridge(name="up", url=middle, client_id="first", topics=[BOTH])
        async with open_broker(bridges=[first_bridge]) as first:
            brokers = (first, middle, last)
            await wait_state(middle)
            await until(lambda: first.bridges[0].connected)
            async with listening(first) as one, listening(middle) as two, listening(last) as three:
                for number, broker in enumerate(brokers):
                    async with connect(broker) as client:
                        await client.publish(f"a/{number}", "x", qos=2, retain=True)
                for heard in (one, two, three):
                    assert sorted(await take(heard, 3)) == [(f"a/{number}", "x") for number in range(3)]
                assert all(len(broker.retained("a/#")) == 3 for broker in brokers)
                async with connect(middle) as client:
                    for number in range(3):
                        await client.publish(f"a/{number}", "", qos=1, retain=True)
                for heard in (one, two, three):
                    assert len(await take(heard, 3)) == 3
                    await nothing_more(heard)
            assert all(broker.retained("a/#") == [] for broker in brokers)


async def test_two_bridges_that_overlap_at_two_brokers(autojump_clock: trio.testing.MockClock) -> None:
    """A star: what one brings in the other takes out, once."""
    async with open_broker() as left, open_broker() as right:
        bridges = [
            Bridge(name=name, url=far, client_id=name, topics=[BridgeTopic(filter="#", direction="both", qos=2), BridgeTopic(filter="a/+")])
            for name, far in (("left", left), ("right", right))
        ]
        async with open_broker(bridges=bridges) as near, listening(left) as one, listening(right) as two, listening(near) as here:
            await until(lambda: all(info.connected for info in near.bridges))
            for number, broker in enumerate((left, near, right)):
                async with connect(broker) as client:
                    await client.publish(f"a/{number}", "x", qos=2)
            for heard in (one, two, here):
                assert sorted(await take(heard, 3)) == [(f"a/{number}", "x") for number in range(3)]
                await nothing_more(heard)


# ---- topics ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "before", "after", "topic", "expected"),
    [
        ("a/#", "a/", "b/", "a/x", "b/x"),
        ("a/#", "a/", "b/", "a", "b"),
        ("a/#", "a/", "b/", "a/", "b/"),
        ("a/#", "a/", "b/c/", "a", "b/c"),
        ("a/#", "", "b/", "a", "b/a"),
        ("a/b/#", "a/", "", "a/b", "b"),
        ("a/#", "a/", "", "a", ""),
        ("a", "a", "b", "a", "b"),
        ("+/#", "", "b/", "x", "b/x"),
        ("+/#", "", "b/", "$x/y", None),
        ("#", "", "b/", "/", "b//"),
        ("$x/#", "$x/", "b/", "$x/y", "b/y"),
    ],
)
def test_the_other_name(filter: str, before: str, after: str, topic: str, expected: str | None) -> None:
    assert Mapping([(filter, before, after, 1)]).target(topic) == (None if expected is None else (expected, 1))


async def test_overlapping_entries_are_asked_for_once(autojump_clock: trio.testing.MockClock) -> None:
    """Of what one of them covers there would be two copies; and each message is carried with the QoS of the first entry that fits."""
    scripted = ScriptedBroker()
    topics = [BridgeTopic(filter=filter, direction="in", qos=qos) for filter, qos in (("a/+", 1), ("#", 1), ("b", 2), ("b", 0), ("$x/1", 0))]
    async with open_broker(bridges=[bridge_to(scripted, *topics)]) as near:
        peer = await scripted.next()
        await peer.accept()
        asked = await peer.grant()
        assert [(one.filter, one.qos) for one in asked.subscriptions] == [("#", 1), ("b", 2), ("$x/1", 0)]
        await wait_state(near)
        await peer.cut()
    out = [BridgeTopic(filter="a/+", qos=0), BridgeTopic(filter="#", qos=2)]
    async with open_broker() as far, open_broker(bridges=[bridge_to(far, *out)]) as near, listening(far) as there, connect(near) as client:
        await wait_state(near)
        for topic in ("a/1", "b"):
            await client.publish(topic, "x", qos=2)
        assert {message.topic: message.qos for message in [await there.receive(), await there.receive()]} == {"a/1": 0, "b": 2}


async def test_a_parent_has_the_parents_name_and_none_where_there_is_none(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    there_and_back = BridgeTopic(filter="#", direction="both", local_prefix="home/", remote_prefix="site/")
    nameless = BridgeTopic(filter="#", local_prefix="bare/")
    async with open_broker() as far, open_broker(bridges=[bridge_to(far, there_and_back, nameless)]) as near:
        await wait_state(near)
        async with listening(near) as here, listening(far) as there, connect(near) as client, connect(far) as app:
            for topic in ("home", "bare", "bare/x"):
                await client.publish(topic, "1", qos=1)
            await app.publish("site", "2", qos=1)
            assert sorted(await take(there, 3)) == [("site", "1"), ("site", "2"), ("x", "1")]
            assert sorted(await take(here, 4)) == [("bare", "1"), ("bare/x", "1"), ("home", "1"), ("home", "2")]
        assert near.bridges[0].dropped == {"invalid-topic": 1}


async def test_what_comes_in_for_sys_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody at the other broker says what this one tells of itself."""
    topic = BridgeTopic(filter="#", direction="in", remote_prefix="x/")
    async with open_broker() as far, open_broker(bridges=[bridge_to(far, topic)]) as near, connect(far) as app, near.subscribe("$SYS/#", "y") as here:
        await wait_state(near)
        await app.publish("x/$SYS/broker/version", "a lie", qos=1)
        await app.publish("x/$SYS/in/a", "a lie", qos=1)
        await app.publish("x/y", "true", qos=1)
        while (message := await here.receive()).topic != "y":
            assert message.text != "a lie"
        assert near.bridges[0].dropped == {"refused": 2}


async def test_an_expiry_counts_while_a_message_is_refused_for_now(autojump_clock: trio.testing.MockClock) -> None:
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"))]) as near, connect(near) as client:
        peer = await scripted.next()
        await peer.accept()
        await wait_state(near)
        await client.publish("a", "1", qos=1, message_expiry_s=20)
        left: list[int | None] = []
        while True:
            packet = await peer.expect(Publish)
            if packet.payload == b"2":
                break
            left.append(packet.properties.message_expiry_interval)
            await peer.send(PubAck(packet.packet_id, ReasonCode.QUOTA_EXCEEDED))
            if len(left) == 1:
                await trio.sleep(0.5)
                await client.publish("a", "2", qos=1)  # waits behind it
        assert left == [20, 19, 17, 13, 5]
        assert near.bridges[0].dropped == {"expired": 1}
        await peer.cut()


async def test_a_response_topic_goes_along_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """As with Mosquitto: a request crosses a bridge, and its answer too, where both sides call them alike."""
    topics = (BridgeTopic(filter="ask/#", local_prefix="home/", remote_prefix="site/"), BridgeTopic(filter="reply/#", direction="in"))
    async with open_broker() as far, open_broker(bridges=[bridge_to(far, *topics)]) as near, connect(near, client_id="me") as client:
        await wait_state(near)

        async def answer() -> None:
            async with connect(far) as app, app.subscribe("site/ask/#", qos=1) as questions:
                started.set()
                question = await questions.receive()
                await app.reply(question, f"{question.topic} {question.response_topic}")

        started = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await started.wait()
            response = await client.request("home/ask/me")
        assert response.text == "site/ask/me reply/me"


# ---- filters of an earlier start --------------------------------------------------------------------------------------------


async def test_a_filter_that_no_entry_names_any_more_is_unsubscribed_from_after_a_restart(tmp_path: Path) -> None:
    """With a store this broker knows what it had asked for, also when the other one was away at the starts between. (In real time: the store is a
    thread's.)"""
    store = tmp_path / "broker.db"

    def bridge(where: Any, *filters: str) -> Bridge:
        return bridge_to(where, *[BridgeTopic(filter=filter, direction="in", qos=1) for filter in filters])

    async with open_broker() as far, connect(far) as app:
        async with open_broker(store=store, bridges=[bridge(far, "old/#", "kept/#")]) as near:
            await wait_state(near)
        assert far.statistics()["subscriptions_count"] == 2
        async with open_broker(store=store, bridges=[bridge("mqtt://127.0.0.1:9", "kept/#", "new/#")]):
            pass
        await app.publish("kept/1", "waits", qos=1)
        async with open_broker(store=store, bridges=[bridge(far, "new/#", "kept/#")]) as near, listening(near) as here:
            assert await take(here, 1) == [("kept/1", "waits")]
            await wait_state(near)
            assert far.statistics()["subscriptions_count"] == 2
            await app.publish("old/1", "x", qos=1)
            await app.publish("new/1", "y", qos=1)
            assert await take(here, 1) == [("new/1", "y")]
            assert near.statistics()["subscriptions_count"] == 3  # the listener's, and what is known of the other broker
        async with open_broker(store=store, bridges=[bridge_to(far, BridgeTopic(filter="out/#"))]) as near:
            await wait_state(near)
            assert far.statistics()["subscriptions_count"] == 0
            assert near.statistics()["subscriptions_count"] == 1


async def test_a_reload_before_the_other_broker_was_there_forgets_no_filter(autojump_clock: trio.testing.MockClock) -> None:
    scripted = ScriptedBroker()
    begin = partial(Config, listeners=(), sys_interval_s=0)

    def config(where: Any, *filters: str) -> Config:
        return begin(bridges=(bridge_to(where, *[BridgeTopic(filter=filter, direction="in") for filter in filters]),))

    async with open_broker(config(scripted, "a", "b")) as near:
        peer = await scripted.next()
        await peer.accept()
        await peer.grant()
        await wait_state(near)
        for filters in (("b", "c"), ("c", "d")):
            await peer.cut()
            near.reload(config(scripted, *filters))
            peer = await scripted.next()
            if filters == ("b", "c"):
                await peer.expect(Connect)
        await peer.accept(session_present=True)
        gone = await _next(peer, Unsubscribe)
        assert sorted(gone.filters) == ["a", "b"]
        await peer.cut()


async def _next(peer: Peer, kind: type[Any]) -> Any:
    while not isinstance(packet := await peer.receive(), kind):
        if isinstance(packet, PingReq):
            await peer.send(PingResp())
    return packet


async def test_a_token_is_shown_over_auth_the_newest_each_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    scripted, secret = ScriptedBroker(), tmp_path / "token"
    secret.write_text("first\n")
    async with open_broker(bridges=[bridge_to(scripted, BOTH, auth_method="JWT", password_file=str(secret))]):
        for expected in (b"first", b"second"):
            peer = await scripted.next()
            asked = await peer.expect(Connect)
            assert (asked.properties.authentication_method, asked.properties.authentication_data) == ("JWT", expected)
            assert (asked.username, asked.password) == (None, None)
            await peer.send(ConnAck(False, ReasonCode.SUCCESS, Properties(authentication_method="JWT")))
            secret.write_text("second\n")
            await peer.cut()
