"""`Broker.reload` and bridges: new ones start, changed ones begin anew, those that are gone end, the others notice nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from broker import Bridge, BridgeTopic, Broker, Config, ConfigError, ConnectError, ConnectRequest, Listener, connect, open_broker
from tests.bridge.houses import bridge_to, listening, nothing_more, take, until, wait_cause, wait_state

NOTHING = Config(listeners=(), sys_interval_s=0)


def with_bridges(*bridges: Bridge) -> Config:
    return msgspec.structs.replace(NOTHING, bridges=bridges)


def sessions(broker: Broker) -> dict[str, bool]:
    return {client.client_id: client.peer is not None for client in broker.clients()}


async def test_from_none_to_one_and_back(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker(NOTHING) as near:
        assert near.reload(with_bridges(bridge_to(far))) == []
        await wait_state(near)
        assert sessions(near) == {"bridge:b": True}
        assert sessions(far) == {"near": True}
        near.reload(NOTHING)
        await trio.sleep(10)
        assert near.bridges == []
        assert sessions(near) == sessions(far) == {}
        assert near.retained("$SYS/#") == []
        async with connect(near, client_id="bridge:b"):
            pass  # it is a name as any other again


async def test_the_log_and_the_counts_are_of_clients_and_not_of_a_bridges_own(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "broker")
    async with open_broker() as far, open_broker(with_bridges(bridge_to(far))) as near:
        await wait_state(near)
        near.reload(NOTHING)
        await trio.sleep(10)
        found = near.statistics()
        assert (found["connects_count"], found["clients_lost_count"]) == (0, 0)
        assert far.statistics()["connects_count"] == 1
    told = [record.message for record in caplog.records]
    assert not any("'bridge:b'" in line for line in told)
    assert any(line.startswith("connected 'near'") for line in told)


async def test_a_shutdown_that_is_cancelled_while_bridges_end_has_begun(autojump_clock: trio.testing.MockClock) -> None:
    """`move_on_after(1)` around `shutdown()` bounds the waiting, not whether it ends."""
    async with open_broker() as far, open_broker(with_bridges(bridge_to(far))) as near:
        await wait_state(near)
        _hold_up(near)
        with trio.move_on_after(1):
            await near.shutdown(30)
        with trio.fail_after(1):
            await near.wait_closed()


async def test_nobody_comes_in_while_bridges_end(autojump_clock: trio.testing.MockClock) -> None:
    """It would be shown the door at once; the bridge's own client still may, to finish what is under way."""
    config = msgspec.structs.replace(NOTHING, listeners=(Listener(port=0),))
    async with open_broker() as far, open_broker(config, bridges=[bridge_to(far)]) as near, trio.open_nursery() as nursery:
        await wait_state(near)
        async with connect(near) as client:
            _hold_up(near)
            nursery.start_soon(near.shutdown, 30)
            await trio.testing.wait_all_tasks_blocked()
            for where in (near, near.urls[0]):
                with pytest.raises(ConnectError):
                    async with connect(where, reconnect=None):
                        pass
            await client.publish("a", "1", qos=1)  # who is here is served
            near.disconnect("bridge:b")
            await until(lambda: [one.peer is not None for one in near.clients() if one.client_id == "bridge:b"] == [True])
        await near.shutdown(0)


def _hold_up(near: Broker) -> None:
    """A bridge that does not end by itself."""
    (keeper,) = near._bridges._keepers.values()
    keeper.end = lambda grace_s: None  # type: ignore[method-assign]


async def test_who_has_not_changed_is_not_touched(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker(with_bridges(bridge_to(far))) as near:
        await wait_state(near)
        since_s = near.bridges[0].since_s
        count = far.statistics()["connections_count"]
        near.reload(with_bridges(bridge_to(far), Bridge(name="second", url=far, topics=[BridgeTopic(filter="$x/1")], client_id="2nd")))
        await trio.sleep(10)
        assert [info.name for info in near.bridges] == ["b", "second"]
        assert near.bridges[0].since_s == since_s
        assert far.statistics()["connections_count"] == count + 1


async def test_other_topics(autojump_clock: trio.testing.MockClock) -> None:
    """What waits stays, what is not wanted any more is unsubscribed from on both sides."""
    old = BridgeTopic(filter="old/#", direction="both")
    new = BridgeTopic(filter="new/#", direction="both")
    async with open_broker() as far, open_broker(with_bridges(bridge_to(far, old))) as near, connect(near) as one, connect(far) as other:
        await wait_state(near)
        near.reload(with_bridges(bridge_to(far, new)))
        await trio.sleep(10)
        async with listening(near) as here, listening(far) as there:
            for topic in ("old/1", "new/1"):
                await one.publish(topic, "out", qos=1)
                await other.publish(topic, "in", qos=1)
            assert sorted(await take(here, 3)) == [("new/1", "in"), ("new/1", "out"), ("old/1", "out")]
            assert sorted(await take(there, 3)) == [("new/1", "in"), ("new/1", "out"), ("old/1", "in")]
            await nothing_more(here)
            await nothing_more(there)
        assert far.statistics()["subscriptions_count"] == 1
        assert near.statistics()["subscriptions_count"] == 2  # and what it knows to stand there
        assert near.bridges[0].dropped == {}


async def test_a_reload_tries_again_at_once(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Nothing in the file has changed, but what it names has."""
    password = tmp_path / "password"
    password.write_text("wrong\n")

    async def check(request: ConnectRequest) -> str | None:
        return request.username if request.password == b"right" else None

    async with open_broker(authenticate=check) as far:
        config = with_bridges(bridge_to(far, username="ann", password_file=str(password)))
        async with open_broker(config) as near:
            await wait_cause(near, "bad user name")
            password.write_text("right\n")
            began_at = trio.current_time()
            near.reload(config)
            await wait_state(near)
            assert trio.current_time() - began_at < 1


async def test_a_reload_asks_again_for_a_filter_that_was_refused(autojump_clock: trio.testing.MockClock) -> None:
    """The other broker's rules were wrong, and nothing has changed here."""
    allowed: set[str] = set()
    topics = [BridgeTopic(filter=filter, direction="in") for filter in ("a/#", "b/#")]
    async with open_broker(authorize=lambda *asked: asked[2] != "subscribe" or asked[3] in allowed | {"b/#"}) as far:
        config = with_bridges(bridge_to(far, *topics))
        async with open_broker(config) as near, listening(near) as here:
            await wait_state(near)
            assert far.statistics()["subscriptions_count"] == 1
            allowed.add("a/#")
            far.forget_permissions()
            near.reload(config)
            await wait_state(near, b"0")
            await wait_state(near)
            await far.publish("a/1", "x", qos=1)
            assert await take(here, 1) == [("a/1", "x")]
            since_s = near.bridges[0].since_s
            near.reload(config)  # and not a second time
            await trio.sleep(10)
            assert near.bridges[0].since_s == since_s


async def test_another_broker(autojump_clock: trio.testing.MockClock) -> None:
    """What waited goes to the new one; the old one keeps nothing for it."""
    async with open_broker() as first, open_broker() as second, open_broker(with_bridges(bridge_to(first))) as near, listening(second, "a") as there:
        await wait_state(near)
        near.reload(with_bridges(bridge_to(second)))
        await near.publish("a", "1", qos=1)
        assert await take(there, 1) == [("a", "1")]
        await trio.sleep(1)
        assert sessions(first) == {}


async def test_a_mistake_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker(with_bridges(bridge_to(far))) as near:
        await wait_state(near)
        wrong: Any = Bridge(name="b", url=far, topics=[BridgeTopic(filter="a/#/b")])
        with pytest.raises(ConfigError, match=r"bridges\[0\].topics\[0\].filter: # must be the last"):
            near.reload(with_bridges(wrong))
        await trio.sleep(10)
        assert near.bridges[0].connected


async def test_a_programs_own_bridges_are_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with open_broker() as far, open_broker(NOTHING, bridges=[bridge_to(far)]) as near:
        await wait_state(near)
        near.reload(NOTHING)
        await trio.sleep(10)
        assert near.bridges[0].connected


async def test_again_and_again_while_it_ends(autojump_clock: trio.testing.MockClock, mqtt_network: Any) -> None:
    async with open_broker() as far, open_broker(NOTHING) as near:
        where = mqtt_network.to(far)
        for number in range(20):
            near.reload(with_bridges(bridge_to(where, keepalive_s=10 + number)) if number % 3 else NOTHING)
            await trio.sleep(0.001 * number)
        await wait_state(near)
        assert [info.connected for info in near.bridges] == [True]
        async with listening(far) as there:
            await near.publish("a", "1", qos=2)
            assert await take(there, 1) == [("a", "1")]
            await nothing_more(there)
