"""What one of the two brokers will not have: downgraded, asked again or dropped, always counted, and never in the way of the rest."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from broker import BridgeTopic, Config, ConnectionLost, ConnectRefused, connect, open_broker
from broker.bridge.pump import carried
from broker.reasons import ReasonCode
from broker.wire.packets import NO_PROPERTIES, Disconnect, PingReq, PingResp, Properties, PubAck, Publish, PubRel
from tests.bridge.houses import CLIENT_ID, bridge_to, houses, listening, nothing_more, take, take_all, until, wait_state
from tests.client.scripted import Peer, ScriptedBroker


async def test_less_is_done_where_less_is_possible(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Maximum QoS and Retain Available of the other broker: a downgrade, told once in a while."""
    async with houses(BridgeTopic(filter="#", qos=2), far_limits={"maximum_qos": 1, "retain_available": False}) as (near, far):
        async with listening(far) as there, connect(near) as client:
            for number in range(50):
                await client.publish("a", str(number), qos=2, retain=True)
            assert await take(there, 50) == [("a", str(number)) for number in range(50)]
            assert far.retained("#") == []
        assert (near.bridges[0].out_count, near.bridges[0].dropped) == (50, {})
    lines = [record.message for record in caplog.records if record.name == "broker.bridge"]
    assert lines == [
        "bridge 'b': the other broker takes at most QoS 1; messages are carried with that",
        "bridge 'b': the other broker retains no messages; they are carried as others are",
    ]


@pytest.mark.parametrize("direction", ["out", "in"])
async def test_what_is_too_large_is_dropped_and_the_rest_goes_on(direction: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker(packet_bytes_max=1000 if direction == "out" else 100_000) as far:
        bridge = bridge_to(far)
        async with open_broker(bridges=[bridge], packet_bytes_max=1000 if direction == "in" else 100_000) as near:
            source, sink = (near, far) if direction == "out" else (far, near)
            await wait_state(near)
            async with listening(sink) as there, connect(source) as client:
                for number in range(30):
                    await client.publish("a", str(number).ljust(5000 if number % 10 == 3 else 5), qos=number % 3)
                assert len(await take_all(there)) == 27
            assert near.bridges[0].dropped == {"too-large": 3}
            assert near.bridges[0].connected


@pytest.mark.parametrize("reason", [ReasonCode.NOT_AUTHORIZED, ReasonCode.TOPIC_NAME_INVALID, ReasonCode.PAYLOAD_FORMAT_INVALID])
async def test_what_is_refused_for_good_is_dropped(
    reason: ReasonCode, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"))]) as near, connect(near) as client:
        peer = await scripted.next()
        await peer.accept()
        await wait_state(near)
        for topic in ("poison", "good"):
            await client.publish(topic, "1", qos=1)
            packet = await peer.expect(Publish)
            assert packet.topic == topic
            await peer.send(PubAck(packet.packet_id, reason if topic == "poison" else ReasonCode.SUCCESS))
        await peer.silence(20)
        info = near.bridges[0]
        assert (info.out_count, info.dropped) == (1, {"refused": 1})
        assert f"a message on 'poison' is not carried: it is refused: {reason.describe()}" in caplog.text
        await peer.cut()


@pytest.mark.parametrize("reason", [None, ReasonCode.QOS_NOT_SUPPORTED, ReasonCode.NOT_AUTHORIZED])
@pytest.mark.parametrize("qos", [1, 2])
async def test_one_on_which_the_connection_is_closed_each_time_is_dropped(
    qos: int, reason: ReasonCode | None, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Brokers that cannot say no (3.1.1) or will not: without an end to it, nothing behind that message would ever be carried."""
    scripted = ScriptedBroker()
    bridge = bridge_to(scripted, BridgeTopic(filter="#", qos=2))
    async with open_broker(bridges=[bridge]) as near, connect(near) as client:
        for text in ("poison", "good"):
            await client.publish("a", text, qos=qos)
        closed_count = 0
        while True:
            peer = await scripted.next()
            await peer.accept(session_present=closed_count > 0)
            packet = await peer.receive()
            while isinstance(packet, PubRel):  # ids of an earlier run
                packet = await peer.receive()
            assert isinstance(packet, Publish)
            if packet.payload != b"poison":
                break
            closed_count += 1
            if reason is not None:
                await peer.send(Disconnect(reason))
            await peer.cut()
        assert (packet.payload, closed_count) == (b"good", 5)
        assert near.bridges[0].dropped == {"fatal": 1}
        assert "a message on 'a' is not carried: the other broker closes the connection whenever it comes" in caplog.text
        await peer.cut()


async def test_one_that_is_shut_down_again_and_again_is_no_reason_to_drop(autojump_clock: trio.testing.MockClock) -> None:
    """It says that it is not for the message."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"))]) as near, connect(near) as client:
        await client.publish("a", "1", qos=1)
        for count in range(10):
            peer = await scripted.next()
            await peer.accept(session_present=count > 0)
            assert (await peer.expect(Publish)).payload == b"1"
            await peer.send(Disconnect(ReasonCode.SERVER_SHUTTING_DOWN))
            await peer.cut()
        assert near.bridges[0].dropped == {}


async def test_a_connection_that_breaks_is_no_reason_to_drop(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """Silence and a cut again and again, with the same message under way: it is still sent."""
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"))]) as near, connect(near) as client:
        await client.publish("a", "1", qos=1)
        for count in range(10):
            peer = await scripted.next()
            await peer.accept(session_present=count > 0)
            assert (await peer.expect(Publish)).payload == b"1"
            await trio.sleep(70.5)  # its PINGREQs are not answered
            await peer.cut()
        assert near.bridges[0].dropped == {}


async def answer(peer: Peer, reason: ReasonCode, published: list[str]) -> None:
    """PUBACKs with that reason, and PINGRESPs, for ever."""
    while True:
        packet = await peer.receive()
        if isinstance(packet, PingReq):
            await peer.send(PingResp())
        elif isinstance(packet, Publish):
            published.append(packet.payload.decode())
            await peer.send(PubAck(packet.packet_id, reason if packet.payload == b"1" else ReasonCode.SUCCESS))


async def test_what_is_refused_for_now_is_asked_again_and_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    scripted = ScriptedBroker()
    async with open_broker(bridges=[bridge_to(scripted, BridgeTopic(filter="#"))]) as near, connect(near) as client, trio.open_nursery() as nursery:
        peer = await scripted.next()
        await peer.accept()
        await wait_state(near)
        published: list[str] = []
        nursery.start_soon(answer, peer, ReasonCode.QUOTA_EXCEEDED, published)
        began_at = trio.current_time()
        await client.publish("a", "1", qos=1)
        await trio.sleep(0.5)
        await client.publish("a", "2", qos=1)  # waits behind it
        await until(lambda: "2" in published)
        assert published == ["1"] * 9 + ["2"]
        assert 100 < trio.current_time() - began_at < 150
        assert near.bridges[0].dropped == {"refused": 1}
        nursery.cancel_scope.cancel()


async def test_a_filter_that_is_refused_there_leaves_the_others(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    topics = (BridgeTopic(filter="secret/#", direction="in"), BridgeTopic(filter="news/#", direction="in"))

    def authorize(username: Any, client_id: str, action: str, topic: str) -> bool:
        return action != "subscribe" or not topic.startswith("secret")

    async with open_broker(authorize=authorize) as far, open_broker(bridges=[bridge_to(far, *topics)]) as near, listening(near) as here:
        await wait_state(near)
        await far.publish("secret/1", "x", qos=1)
        await far.publish("news/1", "y", qos=1)
        assert await take(here, 1) == [("news/1", "y")]
        await nothing_more(here)
    assert "bridge 'b': subscription to 'secret/#' refused: not authorized (0x87); the rest of it goes on, and a reload asks again" in caplog.text


async def test_what_no_entry_fits_any_more_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """A Session at the other broker may hold what earlier settings subscribed to."""
    async with open_broker() as far, connect(far) as app:
        for topic in ("old", "new"):
            async with open_broker(bridges=[bridge_to(far, BridgeTopic(filter=f"{topic}/#", direction="in"))]) as near, listening(near) as here:
                await wait_state(near)
                for name in ("old", "new"):
                    await app.publish(f"{name}/1", "x", qos=1)
                assert await take(here, 1) == [(f"{topic}/1", "x")]
                await nothing_more(here)
        assert near.bridges == []


async def test_what_does_not_come_in_any_more_is_unsubscribed_from(autojump_clock: trio.testing.MockClock) -> None:
    """Where the next start still names it, as what only goes out: nothing of it waits there for the bridge."""
    async with open_broker() as far, connect(far) as app:
        async with open_broker(bridges=[bridge_to(far, BridgeTopic(filter="a/#", direction="both"))]) as near:
            await wait_state(near)
        assert far.statistics()["subscriptions_count"] == 1
        async with open_broker(bridges=[bridge_to(far, BridgeTopic(filter="a/#"))]) as near, listening(near) as here:
            await wait_state(near)
            assert far.statistics()["subscriptions_count"] == 0
            await app.publish("a/1", "x", qos=1)
            await nothing_more(here)


# ---- whose name it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["as it is", "by its user name"])
async def test_nobody_takes_over_the_bridges_session(how: str, autojump_clock: trio.testing.MockClock) -> None:
    """Whether it is connected or away; neither over a stream, nor with clean_start, which would end it, nor as who is given that name at the door."""
    config = Config.from_dict({"username_as_client_id": how != "as it is", "allow_anonymous": True, "sys_interval_s": 0})
    who: dict[str, Any] = {"client_id": CLIENT_ID} if how == "as it is" else {"client_id": "x", "username": CLIENT_ID}
    scripted = ScriptedBroker()
    bridge = bridge_to(scripted, BridgeTopic(filter="#"))
    async with open_broker(config, listeners=[], bridges=[bridge]) as near, connect(near, username="u") as client:
        await client.publish("a", "1", qos=1)
        for connected in (False, True):
            if connected:
                peer = await scripted.next()
                await peer.accept()
                await wait_state(near)
                assert (await peer.expect(Publish)).payload == b"1"
            for clean_start in (False, True):
                with pytest.raises(ConnectRefused) as caught:
                    async with connect(near, clean_start=clean_start, session_expiry_s=100, **who):
                        pass
                assert caught.value.reason == ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
            (session,) = [one for one in near.clients() if one.client_id == CLIENT_ID]
            assert session.queue_count + session.inflight_count == 1 + connected  # behind it the mark after what is retained
            assert (session.peer is not None) == connected
        await peer.cut()


async def test_who_has_that_name_when_a_bridge_comes_goes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker(Config(listeners=())) as near:

        async def stay() -> None:
            async with connect(near, client_id=CLIENT_ID, reconnect=None):
                near.reload(msgspec.structs.replace(Config(listeners=()), bridges=(bridge_to(far),)))
                await trio.sleep(60)

        with pytest.raises(ConnectionLost):
            await stay()
        await wait_state(near)
        assert near.bridges[0].connected


async def test_the_bridge_is_asked_nothing_at_its_own_broker(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    """No password, no rule, no pace: it is the house's."""

    async def nobody(request: Any) -> None:
        return None

    async with open_broker() as far:
        near_options: dict[str, Any] = {"authenticate": nobody, "authorize": lambda *_: False, "publish_per_s_max": 1.0, "session_expiry_s_max": 0}
        async with open_broker(bridges=[bridge_to(mqtt_network.to(far))], **near_options) as near, listening(far) as there, connect(far) as app:
            await wait_state(near)
            await near.publish("a", "1", qos=1)
            assert await take(there, 1) == [("a", "1")]
            async with near.subscribe("b") as here:
                began_at = trio.current_time()
                for number in range(20):
                    await app.publish("b", str(number), qos=1)
                    assert (await here.receive()).text == str(number)
                assert trio.current_time() - began_at < 1
            assert len(await take_all(there)) == 20
            mqtt_network.cut()
            await wait_state(near, b"0")
            await near.publish("c", "waits", qos=1)
            assert await take(there, 1) == [("c", "waits")]


async def test_no_password_is_told(tmp_path: Any, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "password").write_text("t0psecret\n")
    seen = []

    async def check(request: Any) -> str | None:
        seen.append(request.password)
        return request.username if request.password == b"t0psecret" else None

    async with open_broker(authenticate=check) as far:
        bridge = bridge_to(far, username="ann", password_file=str(tmp_path / "password"))
        assert "t0psecret" not in repr(bridge)
        assert "t0psecret" not in repr(bridge_to("mqtt://ann:t0psecret@localhost"))
        async with open_broker(bridges=[bridge]) as near:
            await wait_state(near)
            (tmp_path / "password").unlink()
            far.drop_clients()
            await wait_state(near, b"0")
            await wait_state(near)
    assert seen == [b"t0psecret"] * 2
    assert "t0psecret" not in caplog.text


def test_properties_are_what_they_were() -> None:
    assert carried(Properties(subscription_identifiers=(1,), topic_alias=3)) is NO_PROPERTIES
    assert carried(Properties(subscription_identifiers=(1,), content_type="x")) == Properties(content_type="x")
