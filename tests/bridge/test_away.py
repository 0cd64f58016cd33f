"""The other broker is away, comes, goes, forgets; this one ends and begins again: nothing that was acknowledged is lost, and the house goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from broker import Bridge, BridgeTopic, Broker, connect, open_broker
from broker.bridge.mapping import Mapping
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import Connect, Disconnect, PingReq, PingResp, Properties, Publish, Subscribe
from tests.bridge.houses import CLIENT_ID, bridge_to, houses, listening, nothing_more, take, take_all, until, wait_cause, wait_state
from tests.client.scripted import ScriptedBroker


class Place:
    """Where a broker may be, or not."""

    def __init__(self) -> None:
        self.broker: Broker | ScriptedBroker | None = None

    async def attach(self, stream: trio.abc.Stream, *, peer: str = "in-process") -> None:
        if self.broker is None:
            await stream.aclose()
        else:
            await self.broker.attach(stream, peer=peer)


def waiting(near: Broker) -> tuple[bool, int]:
    """(is the bridge's own client connected?, what waits for it)"""
    (client,) = [client for client in near.clients() if client.client_id == CLIENT_ID]
    return client.peer is not None, client.queue_count + client.inflight_count


async def test_away_from_the_start_what_comes_waits(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """QoS 1 and 2 wait in a Session, QoS 0 does not; the log says it once; then all of it goes out in order."""
    caplog.set_level(logging.INFO)
    place = Place()
    async with open_broker() as far, open_broker(bridges=[bridge_to(place)]) as near, connect(near) as client:
        await client.publish("a", "at once", qos=1)  # before anything was dialled
        await trio.sleep(600)
        for number in range(300):
            await client.publish("a", str(number), qos=number % 3)
        assert waiting(near) == (False, 201)
        assert "before a CONNACK came" in near.bridges[0].cause
        assert not near.bridges[0].connected
        assert near.bridges[0].since_s is None
        assert [(one.topic, one.text) for one in near.retained("$SYS/#")] == [("$SYS/broker/connection/b/state", "0")]
        async with listening(far) as there:
            place.broker = far
            await wait_state(near)
            found = await take(there, 201)
            assert found == [("a", "at once"), *(("a", str(number)) for number in range(300) if number % 3)]
            await nothing_more(there)
        assert waiting(near) == (True, 0)
        lines = [record for record in caplog.records if record.name == "broker.bridge"]
        assert [record.levelname for record in lines] == ["WARNING", "INFO"]
        assert "no connection" in lines[0].message
        assert "it is tried again until it succeeds" in lines[0].message
        assert lines[1].message == "bridge 'b': connected to in-process as 'near'"


@pytest.mark.parametrize("qos", [1, 2])
async def test_lost_in_the_middle_of_a_stream(qos: int, autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """Cut again and again: at QoS 2 each comes once, at QoS 1 at least once, in order."""
    mqtt_network.delay_s = 0.05
    async with houses(network=mqtt_network) as (near, far), listening(near) as here, listening(far) as there:

        async def cut() -> None:
            while True:
                await trio.sleep(1.3)
                mqtt_network.cut()

        async def send(broker: Broker, name: str) -> None:
            async with connect(broker) as client:
                for number in range(400):
                    await client.publish(name, str(number), qos=qos)
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            async with trio.open_nursery() as senders:
                senders.start_soon(send, near, "here")
                senders.start_soon(send, far, "there")
            await trio.sleep(120)
            nursery.cancel_scope.cancel()
        await trio.sleep(60)
        for subscription, name in ((there, "here"), (here, "there")):
            texts = [int(text) for topic, text in await take_all(subscription) if topic == name]
            if qos == 2:
                assert texts == list(range(400))
            else:
                assert list(dict.fromkeys(texts)) == list(range(400))
        assert near.bridges[0].dropped == {}


@pytest.mark.parametrize("qos", [1, 2])
async def test_the_other_broker_forgets_everything(qos: int, autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """It is killed with messages under way and begins anew without a store: what was acknowledged here arrives, and it is subscribed to again."""
    place = Place()
    async with open_broker(bridges=[bridge_to(place)]) as near, connect(near) as client:
        owed = iter(range(10_000))
        sent: list[str] = []
        received: set[str] = set()
        for _ in range(3):
            async with open_broker() as far, listening(far) as there:
                place.broker = far
                await wait_state(near)
                for number in [next(owed) for _ in range(50)]:
                    await client.publish("a", str(number), qos=qos)
                    sent.append(str(number))
                received |= {text for _, text in await take(there, 30)}
                place.broker = None
                far.drop_clients()
                await wait_state(near, b"0")
                received |= {text for _, text in await take_all(there)}
            for number in [next(owed) for _ in range(50)]:
                await client.publish("a", str(number), qos=qos)
                sent.append(str(number))
        async with open_broker() as far, listening(far) as there, listening(near, "b") as here, connect(far) as app:
            place.broker = far
            await wait_state(near)
            await trio.sleep(60)
            received |= {text for _, text in await take_all(there)}
            assert received == set(sent)
            await app.publish("b", "subscribed again", qos=qos)
            assert await take(here, 1) == [("b", "subscribed again")]


async def test_qos_2_that_nobody_knows_the_end_of_comes_again(autojump_clock: trio.testing.MockClock) -> None:
    """The other broker loses its Session between our PUBLISH and its PUBREC: rather twice than never."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#", qos=2))]) as near, connect(near) as client:
        peer = await scripted.next()
        await peer.accept()
        await wait_state(near)
        await client.publish("a", "1", qos=2)
        await client.publish("a", "2", qos=2)
        await peer.expect(Publish)
        await peer.cut()
        peer = await scripted.next()
        await peer.accept()
        seen: list[bytes] = []
        while len(seen) < 2:
            packet = await peer.receive()
            if isinstance(packet, Publish):
                seen.append(packet.payload)
        assert seen == [b"1", b"2"]
        await peer.cut()


async def test_what_is_published_there_waits_there(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """This broker is away for a day: its Session at the other one keeps what comes."""
    bridge = bridge_to(None, BridgeTopic(filter="#", direction="in", qos=2))
    async with open_broker() as far, connect(far) as app:
        place = Place()
        place.broker = far
        async with open_broker(bridges=[bridge_to(place, *bridge.topics)]) as near:
            await wait_state(near)
        await app.publish("a", "1", qos=2)
        await trio.sleep(86_400)
        async with open_broker(bridges=[bridge_to(place, *bridge.topics)]) as near, listening(near) as here:
            assert await take(here, 1) == [("a", "1")]


async def test_a_store_and_restarts(tmp_path: Path) -> None:
    """What was queued for the other broker outlives this one; also QoS 2, with the identifiers of the run before. (In real time: the store is a
    thread's.)"""
    place = Place()
    store = tmp_path / "broker.db"
    async with open_broker() as far, listening(far) as there:
        for run in range(4):
            async with open_broker(store=store, bridges=[bridge_to(place)]) as near, connect(near) as client:
                if run % 2:
                    place.broker = far
                    await wait_state(near)
                for number in range(20):
                    await client.publish("a", f"{run}-{number}", qos=1 + number % 2)
                if run % 2:
                    await until(lambda: waiting(near) == (True, 0), 20, 0.01)
            place.broker = None
        found = [text for _, text in await take(there, 80)]
        assert found == [f"{run}-{number}" for run in range(4) for number in range(20)]
        await nothing_more(there, 0.1)


@pytest.mark.parametrize("how", ["left", "cancelled", "failed"])
async def test_what_waits_stays_in_the_store_however_the_broker_ends(how: str, tmp_path: Path) -> None:
    store = tmp_path / "broker.db"
    with trio.CancelScope() as scope:
        try:
            async with open_broker(store=store, bridges=[bridge_to(Place())]) as near, connect(near) as client:
                await client.publish("a", "1", qos=1)
                if how == "cancelled":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                elif how == "failed":
                    raise OSError("the body")
        except OSError as error:
            assert str(error) == "the body"  # noqa: PT017  # there is no other one
    async with open_broker() as far, listening(far) as there, open_broker(store=store, bridges=[bridge_to(far)]):
        assert await take(there, 1) == [("a", "1")]


async def test_what_is_no_bridge_any_more_at_the_next_start_is_dropped(tmp_path: Path) -> None:
    store = tmp_path / "broker.db"
    async with open_broker(store=store, bridges=[bridge_to(Place())]) as near:
        await near.publish("a", "1", qos=1)
        assert waiting(near) == (False, 1)
    async with open_broker(store=store) as near:
        assert near.clients() == []


async def test_who_had_that_name_before_the_bridge_came_is_not_taken_for_it(tmp_path: Path) -> None:
    """A session of somebody else's is in the store under the name that a bridge has from now on."""
    store = tmp_path / "broker.db"
    async with (
        open_broker(store=store) as near,
        connect(near, client_id=CLIENT_ID, session_expiry_s=1000) as stranger,
        stranger.subscribe("secret/#", qos=1, keep=True),
    ):
        await stranger.disconnect()
        await near.publish("secret/0", "is the stranger's", qos=1)
    async with open_broker() as far, listening(far) as there, open_broker(store=store, bridges=[bridge_to(far, BridgeTopic(filter="a"))]) as near:
        assert near.statistics()["dropped_session_ended"] == 1
        await wait_state(near)
        await near.publish("secret/1", "x", qos=1)
        await near.publish("a", "y", qos=1)
        assert await take(there, 1) == [("a", "y")]
        assert near.bridges[0].dropped == {}


async def test_qos_2_after_a_run_that_was_killed(autojump_clock: trio.testing.MockClock) -> None:
    """The other broker still holds identifiers of that run: new messages with the same ones are not taken for repetitions."""
    async with open_broker() as far, listening(far) as there:
        # Ids 1 to 5 published, and never released: as if this client had been killed.
        near_end, far_end = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.attach, far_end)
            asked = Connect("near", clean_start=False, keep_alive_s=60, properties=Properties(session_expiry_interval=1000))
            await near_end.send_all(encode(asked, 5))
            for packet_id in range(1, 6):
                await near_end.send_all(encode(Publish("a", b"old", 2, packet_id=packet_id), 5))
            assert await take(there, 5) == [("a", "old")] * 5
            await near_end.aclose()
        async with open_broker(bridges=[bridge_to(far)]) as near, connect(near) as client:
            await wait_state(near)
            for number in range(10):
                await client.publish("a", str(number), qos=2)
            assert await take(there, 10) == [("a", str(number)) for number in range(10)]


async def test_a_password_that_is_wrong_is_told_once_and_tried_slowly(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    async def nobody(request: Any) -> None:
        asked.append(trio.current_time())

    async with open_broker(authenticate=nobody) as far, open_broker(bridges=[bridge_to(far, username="ann")]) as near:
        await wait_cause(near, "bad user name")
        await trio.sleep(600)
        assert 5 <= len(asked) <= 11
        lines = [record for record in caplog.records if record.name == "broker.bridge"]
        assert [(record.levelname, "tried again every minute" in record.message) for record in lines] == [("ERROR", True)]


async def test_one_that_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Neither CONNACK nor SUBACK is waited for without an end."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted)]) as near:
        await wait_cause(near, "no CONNACK came in time")
        peer = await scripted.next()
        await peer.cut()
        peer = await scripted.next()
        await peer.accept()  # and PINGREQs are answered, SUBSCRIBE is not
        async with trio.open_nursery() as nursery:

            async def play() -> None:
                while (packet := await peer.receive()) is not None:
                    if isinstance(packet, PingReq):
                        await peer.send(PingResp())

            nursery.start_soon(play)
            await wait_cause(near, "has not answered SUBSCRIBE or UNSUBSCRIBE for 60 s")
            nursery.cancel_scope.cancel()


async def test_what_is_retained_is_not_forgotten_by_a_bad_beginning(autojump_clock: trio.testing.MockClock) -> None:
    """The first connection came to nothing: with the next one it is carried all the same."""
    place, scripted = Place(), ScriptedBroker()
    place.broker = scripted
    topics = (BridgeTopic(filter="out/#"), BridgeTopic(filter="in/#", direction="in"))
    async with open_broker() as far, open_broker(bridges=[bridge_to(place, *topics)]) as near:
        await near.publish("out/1", "kept", retain=True)
        peer = await scripted.next()
        await peer.accept()
        assert {type(await peer.receive()), type(await peer.receive())} == {Publish, Subscribe}
        place.broker = far
        await peer.send(Disconnect(ReasonCode.NOT_AUTHORIZED))
        await peer.cut()
        await wait_state(near)
        await until(lambda: len(far.retained("out/1")) == 1, 10)


async def test_the_house_is_not_slowed_by_one_that_does_not_read(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    async with houses(network=mqtt_network) as (near, _), connect(near) as client, listening(near, "a") as here:
        mqtt_network.silence()
        began_at = trio.current_time()
        for number in range(2000):
            await client.publish("a", str(number), qos=1)
            await here.receive()
        assert trio.current_time() - began_at < 1
        await wait_state(near, b"0")
        await trio.sleep(1)
        assert waiting(near) == (False, 2000)


async def test_a_fault_of_ours_ends_the_bridge_alone(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With its traceback in the log; then it begins anew, and what it had in hand comes again."""
    faults = iter([RuntimeError("planted")])
    target = Mapping.target

    def faulty(self: Mapping, topic: str) -> tuple[str, int] | None:
        for fault in faults:
            raise fault
        return target(self, topic)

    monkeypatch.setattr(Mapping, "target", faulty)
    async with houses(BridgeTopic(filter="#")) as (near, far), listening(far) as there, connect(near) as client:
        await client.publish("a", "1", qos=1)
        assert await take(there, 1) == [("a", "1")]
        assert client.connected
        assert "bridge 'b': ended by a fault of the broker, please report it; it begins anew" in caplog.text
        assert "RuntimeError: planted" in caplog.text


async def test_cancelled_at_any_moment(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """While it opens, connects, carries: nothing but the cancellation comes out, and nothing stays."""
    async with open_broker() as far:
        for turns in range(0, 120, 3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel(turns: int = turns, scope: trio.CancelScope = scope) -> None:
                        for _ in range(turns):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel)
                    async with open_broker(bridges=[bridge_to(mqtt_network.to(far))]) as near:
                        await near.publish("a", str(turns), qos=2)
                        await trio.sleep_forever()
            assert scope.cancelled_caught
        await trio.sleep(60)
        assert mqtt_network.connections == []


async def test_a_broker_without_a_place_for_it_opens_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker() as third:
        first = Bridge(name="first", url=third, topics=(BridgeTopic(filter="#", direction="out"),))
        async with open_broker(bridges=[first, bridge_to(far)], sessions_count_max=1) as near:
            causes = {one.name: one.cause for one in near.bridges}
            assert causes["b"] == "this broker has no place for its own bridge: quota exceeded (0x97)"
            near._engine.set_limits(msgspec.structs.replace(near._server.limits, sessions_count_max=2), trio.current_time())
            await wait_state(near)


@pytest.mark.parametrize("how", ["left", "shutdown", "cancelled", "failed"])
async def test_an_end_leaves_nothing(how: str, autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """And within its grace, whether or not the other broker answers. (A task that stayed would hold the nursery of `open_broker`.)"""
    async with open_broker() as far:
        for silent in (False, True):
            began_at = trio.current_time()
            with trio.CancelScope() as scope:
                try:
                    async with open_broker(bridges=[bridge_to(mqtt_network.to(far))]) as near, connect(near) as client:
                        await wait_state(near)
                        mqtt_network.silence(silent)
                        await client.publish("a", "1", qos=2)
                        began_at = trio.current_time()
                        if how == "shutdown":
                            await near.shutdown(grace_s=4)
                        elif how == "cancelled":
                            scope.cancel()
                            await trio.sleep(1)
                        elif how == "failed":
                            raise OSError("the body")
                except OSError as error:
                    assert str(error) == "the body"  # noqa: PT017  # and of the silent one too
            assert trio.current_time() - began_at <= 12
            mqtt_network.silence(False)
        await trio.sleep(60)
        assert mqtt_network.connections == []
