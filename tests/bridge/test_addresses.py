"""Several addresses: the first that is there, and back to the first of all when it is; and where the other broker is told that we are here."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from broker import BridgeTopic, Broker, connect, open_broker
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Disconnect, PubAck, Publish
from tests.bridge.houses import bridge_to, houses, listening, nothing_more, take, take_all, until, wait_state
from tests.bridge.test_away import Place
from tests.client.scripted import ScriptedBroker

TOPIC = "bridges/near"


async def test_to_the_next_one_and_back(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing that was acknowledged is lost on the way, and what comes in comes from where the bridge is."""
    first, second = Place(), Place()
    bridge = bridge_to(first, fallback_urls=[second])
    async with open_broker() as one, open_broker() as other, open_broker(bridges=[bridge]) as near, connect(near) as client:
        second.broker = other
        await wait_state(near)
        async with listening(one) as at_one, listening(other) as at_other, listening(near, "in") as here:
            await client.publish("a", "1", qos=2)
            assert await take(at_other, 1) == [("a", "1")]
            first.broker = one
            await wait_state(near, b"0")
            await wait_state(near)
            assert [info.client_id for info in one.clients() if info.client_id == "near"] == ["near"]
            await client.publish("a", "2", qos=2)
            assert await take(at_one, 1) == [("a", "2")]
            async with connect(one) as app:
                await app.publish("in", "from one", qos=1)
            assert await take(here, 1) == [("in", "from one")]
            await take(at_one, 1)
            first.broker = None
            one.drop_clients()
            await client.publish("a", "3", qos=2)
            await wait_state(near, b"0")
            await wait_state(near)
            assert await take(at_other, 1) == [("a", "3")]
            await nothing_more(at_other)
        assert near.bridges[0].dropped == {}


async def test_all_away_then_any_of_them(autojump_clock: trio.testing.MockClock) -> None:
    places = [Place(), Place(), Place()]
    async with open_broker() as far, open_broker(bridges=[bridge_to(places[0], fallback_urls=places[1:])]) as near, connect(near) as client:
        await client.publish("a", "1", qos=1)
        await trio.sleep(1000)
        assert not near.bridges[0].connected
        async with listening(far) as there:
            places[2].broker = far
            began_at = trio.current_time()
            await wait_state(near)
            assert trio.current_time() - began_at <= 31
            assert await take(there, 1) == [("a", "1")]


async def test_one_that_says_that_it_is_away_is_not_gone_back_to(autojump_clock: trio.testing.MockClock) -> None:
    """And one that accepts nobody's probe, but us, is: it is there."""
    scripted = ScriptedBroker()
    async with open_broker() as far, open_broker(bridges=[bridge_to(scripted, fallback_urls=[far])]) as near:
        answers = [ReasonCode.SERVER_UNAVAILABLE] * 3 + [ReasonCode.CLIENT_IDENTIFIER_NOT_VALID]
        asked: list[Connect] = []
        for answer in answers:
            peer = await scripted.next()
            asked.append(await peer.expect(Connect))
            await peer.send(ConnAck(False, answer))
            await peer.cut()
            if len(asked) == 1:
                await wait_state(near)
            assert near.bridges[0].connected
        assert [(one.client_id, one.clean_start) for one in asked] == [("near", False), *[("", True)] * 3]
        peer = await scripted.next()
        assert (await peer.accept()).client_id == "near"
        await peer.cut()


async def test_an_end_does_not_wait_for_the_first_one(autojump_clock: trio.testing.MockClock) -> None:
    """It is being asked, and says nothing: what is under way at the other one has its grace all the same."""
    scripted, second = ScriptedBroker(), Place()
    async with open_broker() as far, open_broker(bridges=[bridge_to(scripted, fallback_urls=[second])]) as near, connect(near) as client:
        second.broker = far
        peer = await scripted.next()
        await peer.cut()
        await wait_state(near)
        asked = await scripted.next()
        await asked.expect(Connect)
        async with listening(far) as there:
            await client.publish("a", "1", qos=1)
            began_at = trio.current_time()
            await near.shutdown(60)
            assert trio.current_time() - began_at < 5
            assert await take(there, 1) == [("a", "1")]
        assert near.bridges == []


@pytest.mark.parametrize("seed", range(5))
async def test_two_that_come_and_go(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """Whatever was acknowledged here arrives at one of them."""
    random = Random(seed)
    places = [Place(), Place()]
    async with open_broker() as one, open_broker() as other, open_broker(bridges=[bridge_to(places[0], fallback_urls=places[1:])]) as near:
        brokers: list[Broker] = [one, other]

        async def come_and_go() -> None:
            while True:
                index = random.randrange(2)
                places[index].broker = random.choice([None, brokers[index]])
                brokers[index].drop_clients()
                await trio.sleep(random.uniform(0, 60))

        lasting: dict[str, Any] = {"client_id": "watcher", "clean_start": False, "session_expiry_s": 100_000}
        async with (
            connect(one, **lasting) as here,
            connect(other, **lasting) as there,
            here.subscribe("a", qos=2, keep=True) as at_one,
            there.subscribe("a", qos=2, keep=True) as at_other,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_and_go)
                async with connect(near) as client:
                    for number in range(200):
                        await client.publish("a", str(number), qos=1 + number % 2)
                        await trio.sleep(random.uniform(0, 10))
                nursery.cancel_scope.cancel()
            places[0].broker = one
            found = await take_all(at_one, 300) + await take_all(at_other, 300)
            assert {int(text) for _, text in found} == set(range(200))
        assert near.bridges[0].dropped == {}


# ---- telling the other broker ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_the_other_broker_is_told(version: str, autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """1 while it is connected, 0 when it is cut off, or has ended; and that comes back from there by no entry."""
    topics = (BridgeTopic(filter="out/#"), BridgeTopic(filter="#" if version == "5.0" else "bridges/#", direction="in"))
    async with open_broker() as far, far.subscribe(TOPIC) as told:
        where = mqtt_network.to(far)
        async with open_broker(bridges=[bridge_to(where, *topics, notification_topic=TOPIC, version=version, keepalive_s=10)]) as near:
            await wait_state(near)
            assert (await told.receive()).payload == b"1"
            mqtt_network.silence()
            assert (await told.receive()).payload == b"0"
            mqtt_network.silence(False)
            assert (await told.receive()).payload == b"1"
            await trio.sleep(10)
            assert near.bridges[0].connected
            assert near.retained("bridges/#") == []
            assert near.bridges[0].dropped == {}
        assert (await told.receive()).payload == b"0"
        assert [message.payload for message in far.retained(TOPIC)] == [b"0"]


async def test_an_end_without_time_tells_it_too(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, far.subscribe(TOPIC) as told:
        with trio.CancelScope() as scope:
            async with open_broker(bridges=[bridge_to(far, notification_topic=TOPIC)]) as near:
                await wait_state(near)
                assert (await told.receive()).payload == b"1"
                scope.cancel()
                await trio.sleep(1)
        assert (await told.receive()).payload == b"0"


async def test_where_it_may_not_be_told_all_else_goes_on(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"), notification_topic=TOPIC)]) as near, connect(near) as client:
        await client.publish("a", "1", qos=1)
        peer = await scripted.next()
        asked = await peer.accept()
        assert asked.will is not None
        assert (asked.will.topic, asked.will.payload, asked.will.qos, asked.will.retain) == (TOPIC, b"0", 1, True)
        seen = []
        for _ in range(2):
            packet = await peer.expect(Publish)
            seen.append((packet.topic, packet.payload, packet.retain))
            await peer.send(PubAck(packet.packet_id, ReasonCode.NOT_AUTHORIZED if packet.topic == TOPIC else ReasonCode.SUCCESS))
        assert sorted(seen) == [("a", b"1", False), (TOPIC, b"1", True)]
        await until(lambda: near.bridges[0].out_count == 1)
        assert f"bridge 'b': its notification_topic is not published: publish to '{TOPIC}' refused: not authorized (0x87)" in caplog.text
        assert near.bridges[0].connected
        await peer.cut()


async def test_one_that_closes_the_connection_on_it_has_no_message_to_blame(autojump_clock: trio.testing.MockClock) -> None:
    """What waits is kept, and the cause is told."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"), notification_topic=TOPIC)]) as near, connect(near) as client:
        await client.publish("a", "1", qos=1)
        for count in range(10):
            peer = await scripted.next()
            await peer.accept(session_present=count > 0)
            await peer.receive()
            await peer.send(Disconnect(ReasonCode.NOT_AUTHORIZED))
            await peer.cut()
            await until(lambda: "not authorized" in near.bridges[0].cause)
        assert near.bridges[0].dropped == {}


async def test_what_goes_out_need_not_be_retained_there(autojump_clock: trio.testing.MockClock) -> None:
    async with houses(outgoing_retain=False) as (near, far), listening(near) as here, listening(far) as there, connect(far) as app:
        await near.publish("a", "1", qos=1, retain=True)
        assert await take(there, 1) == await take(here, 1) == [("a", "1")]
        await app.publish("b", "2", qos=1, retain=True)
        assert await take(here, 1) == [("b", "2")]
        assert [message.topic for message in far.retained("#")] == ["b"]
        assert sorted(message.topic for message in near.retained("#")) == ["a", "b"]
