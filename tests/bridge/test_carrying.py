"""What a bridge carries, where to, and with what: both directions, prefixes, every QoS, the retain flag, properties; and nothing twice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from broker import BridgeTopic, Broker, Client, connect, open_broker
from tests.bridge.houses import bridge_to, houses, listening, nothing_more, take, until, wait_state
from tests.bridge.test_away import Place


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_out_and_in_with_prefixes(qos: int, version: str, autojump_clock: trio.testing.MockClock) -> None:
    out = BridgeTopic(filter="sensors/#", qos=qos, local_prefix="home/", remote_prefix="site/7/")
    back = BridgeTopic(filter="commands/+", direction="in", qos=qos, local_prefix="home/", remote_prefix="site/7/")
    async with houses(out, back, version=version) as (near, far), listening(near) as here, listening(far) as there:
        async with connect(near) as sensor, connect(far) as app:
            await sensor.publish("home/sensors/kitchen", "21.5", qos=qos)
            await sensor.publish("home/other", "x", qos=qos)
            message = await there.receive()
            assert (message.topic, message.text, message.qos) == ("site/7/sensors/kitchen", "21.5", qos)
            await app.publish("site/7/commands/lamp", "on", qos=qos)
            await app.publish("site/7/commands/lamp/deep", "on", qos=qos)
            assert await take(here, 3) == [("home/sensors/kitchen", "21.5"), ("home/other", "x"), ("home/commands/lamp", "on")]
            assert await take(there, 2) == [("site/7/commands/lamp", "on"), ("site/7/commands/lamp/deep", "on")]
        await nothing_more(here)
        await nothing_more(there)
        (info,) = near.bridges
        assert (info.connected, info.out_count, info.in_count, info.dropped) == (True, 1, 1, {})


async def test_the_qos_of_an_entry_is_the_most(autojump_clock: trio.testing.MockClock) -> None:
    async with houses(BridgeTopic(filter="#", qos=1)) as (near, far), listening(far) as there, connect(near) as client:
        await client.publish("a", "1", qos=2)
        assert (await there.receive()).qos == 1


async def test_both_ways_nothing_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    async with houses() as (near, far), listening(near) as here, listening(far) as there, connect(near) as one, connect(far) as other:
        for number in range(20):
            await one.publish("a", f"here {number}", qos=number % 3)
            await other.publish("a", f"there {number}", qos=number % 3)
        assert sorted(await take(here, 40)) == sorted(await take(there, 40))
        await nothing_more(here)
        await nothing_more(there)


async def test_one_topic_and_its_other_name(autojump_clock: trio.testing.MockClock) -> None:
    """Mosquitto's `topic "" out 1 local/alarm remote/siren`."""
    topic = BridgeTopic(filter="", direction="both", local_prefix="local/alarm", remote_prefix="remote/siren")
    async with houses(topic) as (near, far), listening(near) as here, listening(far) as there:
        await near.publish("local/alarm", "1", qos=1)
        assert await take(there, 1) == [("remote/siren", "1")]
        async with connect(far) as client:
            await client.publish("remote/siren", "2", qos=1)
        assert await take(here, 2) == [("local/alarm", "1"), ("local/alarm", "2")]


async def test_the_first_entry_that_fits_counts_and_overlaps_come_once(autojump_clock: trio.testing.MockClock) -> None:
    topics = (BridgeTopic(filter="a/+", remote_prefix="x/", qos=1), BridgeTopic(filter="#", remote_prefix="y/", qos=2))
    async with houses(*topics) as (near, far), listening(far) as there, connect(near) as client:
        await client.publish("a/1", "1", qos=1)
        await client.publish("b", "2", qos=2)
        assert await take(there, 2) == [("x/a/1", "1"), ("y/b", "2")]
        await nothing_more(there)


async def test_properties_go_along_and_expiry_is_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far:
        async with open_broker() as near, connect(near) as client:
            assert near.bridges == []
            await client.publish("a", "0")
        async with open_broker(bridges=[bridge_to(far)]) as near, listening(far) as there, connect(near) as client:
            await wait_state(near)
            await client.publish(
                "a", "1", qos=1, retain=True, content_type="text/plain", response_topic="back", correlation_data=b"7",
                user_properties=[("k", "v"), ("k", "w")], message_expiry_s=100, payload_is_text=True,
            )  # fmt: skip
            message = await there.receive()
            assert (message.content_type, message.response_topic, message.correlation_data) == ("text/plain", "back", b"7")
            assert message.user_properties == (("k", "v"), ("k", "w"))
            assert (message.message_expiry_s, message.payload_is_text, message.retain) == (100, True, True)
            await trio.sleep(40)
            (kept,) = far.retained("a")
            assert kept.message_expiry_s == 60


@pytest.mark.parametrize("qos", [0, 1])
async def test_what_is_retained_comes_first_and_once(qos: int, autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """At the beginning what is retained on either side; after a lost connection nothing again; and what is cleared is cleared."""
    async with open_broker() as far, connect(far) as app:
        await app.publish("far", "1", qos=qos, retain=True)
        async with open_broker() as near:
            pass
        bridge = bridge_to(mqtt_network.to(far))
        async with open_broker(bridges=[bridge]) as near, listening(near) as here, listening(far, retained="never") as there:
            await near.publish("near", "2", qos=qos, retain=True)
            await wait_state(near)
            assert sorted(await take(here, 2)) == [("far", "1"), ("near", "2")]
            await take(there, 1)
            await trio.sleep(10)
            assert {one.topic: one.text for one in near.retained("#")} == {one.topic: one.text for one in far.retained("#")}
            drained = there.statistics()["received"]
            mqtt_network.cut()
            await wait_state(near, b"0")
            await wait_state(near)
            await trio.sleep(10)
            assert here.statistics()["received"] == 2
            assert there.statistics()["received"] == drained
            await app.publish("far", "", retain=True, qos=qos)
            await near.publish("near", "", retain=True, qos=qos)
            await trio.sleep(10)
            assert near.retained("#") == far.retained("#") == []


@pytest.mark.parametrize("options", [{"retain_available": False}, {"retained_count_max": 0}, {"retained_replays_count_max": 1}])
async def test_a_broker_that_retains_nothing_waits_for_nothing(options: dict[str, Any], autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker(bridges=[bridge_to(far)], **options) as near, listening(far) as there:
        began_at = trio.current_time()
        await until(lambda: near.bridges[0].connected)
        assert trio.current_time() - began_at < 1
        await near.publish("a", "1", qos=1)
        assert await take(there, 1) == [("a", "1")]


@pytest.mark.parametrize("direction", ["out", "both"])
async def test_what_is_retained_and_waits_comes_once(direction: Any, autojump_clock: trio.testing.MockClock) -> None:
    """Before the first contact: of what was published at QoS 1 the queue has it already; of QoS 0 only what is retained. The last of each counts."""
    place = Place()
    topic = BridgeTopic(filter="#", direction=direction, qos=2)
    async with open_broker() as far, listening(far) as there, open_broker(bridges=[bridge_to(place, topic)]) as near, connect(near) as client:
        for what, qos in (("a1", 1), ("b1", 2), ("b2", 2), ("c1", 0), ("d1", 1), ("d2", 0), ("e1", 1), ("e1", 1)):
            await client.publish(what[0], what[1], qos=qos, retain=True)
        place.broker = far
        await wait_state(near)
        found = await take(there, 8)
        assert sorted(found) == [(name, text) for name, text in ("a1", "b1", "b2", "c1", "d1", "d2", "e1", "e1")]
        await nothing_more(there)


@pytest.mark.parametrize("qos", [0, 1])
async def test_both_have_retained_something_of_one_topic(qos: int, autojump_clock: trio.testing.MockClock) -> None:
    """At the first contact: what is retained here counts, at both; else the two would be exchanged. What comes back of it is nothing new here."""
    async with open_broker() as far:
        for name in ("t", "far"):
            await far.publish(name, "far", qos=qos, retain=True)
        async with open_broker(bridges=[bridge_to(far)]) as near, listening(near) as here, listening(far, retained="never") as there:
            for name in ("t", "near"):
                await near.publish(name, "near", qos=qos, retain=True)
            await wait_state(near)
            await trio.sleep(100)
            expected = [("far", "far"), ("near", "near"), ("t", "near")]
            assert sorted((one.topic, one.text) for one in near.retained("#")) == expected
            assert sorted((one.topic, one.text) for one in far.retained("#")) == expected
            assert sorted(await take(here, 3)) == expected
            await nothing_more(here)
            received = there.statistics()["received"]
            async with connect(far) as app:
                await app.publish("near", "near", qos=qos, retain=True)  # the same again is carried
                assert await take(here, 1) == [("near", "near")]
            assert there.statistics()["received"] == received + 1


def came(near: Broker, count: int) -> bool:
    return near.bridges[0].in_count == count


@pytest.mark.parametrize("stored", [True, False])
async def test_what_is_retained_there_after_a_restart_here(stored: bool, tmp_path: Path) -> None:
    """A broker that has forgotten all is told again, one with a store is not."""
    store = tmp_path / "broker.db" if stored else None
    bridge = bridge_to(None, BridgeTopic(filter="#", direction="in", qos=1))
    async with open_broker() as far, connect(far) as app:
        bridge = bridge_to(far, *bridge.topics)
        await app.publish("far", "1", qos=1, retain=True)
        for expected in (1, 0 if stored else 1):
            async with open_broker(store=store, bridges=[bridge]) as near, near.subscribe("end") as ends:
                await wait_state(near)
                await app.publish("end", qos=1)
                await ends.receive()
                await until(partial(came, near, expected + 1), 10, 0.01)
                assert [one.text for one in near.retained("far")] == ["1"]


async def test_many_of_either_direction_come_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with houses() as (near, far), listening(near) as here, listening(far) as there, connect(near) as one, connect(far) as other:

        async def send(client: Client, name: str) -> None:
            async with client.pipeline() as pipeline:
                for number in range(3000):
                    await pipeline.publish(f"{name}/{number % 2}", str(number), qos=1 + number % 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one, "here")
            nursery.start_soon(send, other, "there")
        for subscription in (here, there):
            found = await take(subscription, 6000)
            for name in ("here", "there"):
                for odd in (0, 1):
                    assert [int(text) for topic, text in found if topic == f"{name}/{odd}"] == list(range(odd, 3000, 2))


async def test_what_is_large_is_bounded_under_way(autojump_clock: trio.testing.MockClock) -> None:
    """Five times what may be under way at a time comes all the same."""
    payload = bytes(2_000_000)
    async with houses(BridgeTopic(filter="#", qos=1)) as (near, far), listening(far) as there, connect(near) as client:
        for number in range(20):
            await client.publish(f"a/{number}", payload, qos=1)
        for number in range(20):
            message = await there.receive()
            assert (message.topic, len(message.payload)) == (f"a/{number}", len(payload))


async def test_sys_is_not_carried_unless_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    async with houses(BridgeTopic(filter="#"), BridgeTopic(filter="$SYS/#", remote_prefix="home/")) as (near, far), listening(far) as there:
        await near.publish("$SYS/broker/x", "1", qos=1)
        topics = {message.topic for message in [await there.receive(), await there.receive()]}
        assert topics == {"home/$SYS/broker/x", "home/$SYS/broker/connection/b/state"}
    async with houses(BridgeTopic(filter="#")) as (near, far), listening(far) as there:
        await near.publish("$SYS/broker/x", "1", qos=1)
        await nothing_more(there)
