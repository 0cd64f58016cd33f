"""What a program may see of a running broker: clients, their subscriptions, who would be sent what, bans; all at once, or in short steps."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import product

import pytest
import trio

from broker import Broker, Config, InvalidTopic, SubscriptionInfo, open_broker
from broker.auth.bans import BanInfo
from broker.inspection import STEP_BYTES_MAX, STEP_COUNT
from broker.wire.packets import Disconnect, Properties, SubAck, Subscribe, SubscriptionRequest
from tests.net.test_hub import attached


async def test_a_client_and_what_it_subscribes_to() -> None:
    async with open_broker() as hub, trio.open_nursery() as nursery:
        client = await attached(hub, nursery, peer="here")
        await client.connect("a", session_expiry_s=100, username="ann")
        await client.send(
            Subscribe(1, (SubscriptionRequest("x/+", 1, no_local=True),), properties=Properties(subscription_identifiers=(7,))),
            Subscribe(2, (SubscriptionRequest("$share/g/x/y", 2),)),
        )
        assert isinstance(await client.receive(), SubAck)
        assert isinstance(await client.receive(), SubAck)
        info = hub.client("a")
        assert info is not None
        assert [info] == hub.clients()
        assert (info.username, info.keepalive_s, info.session_expiry_s, info.subscriptions_count, info.listener) == ("ann", 0, 100, 2, None)
        wild = SubscriptionInfo(client_id="a", filter="x/+", qos=1, no_local=True, identifier=7)
        shared = SubscriptionInfo(client_id="a", filter="$share/g/x/y", qos=2, share_group="g")
        assert hub.subscriptions("a") == [wild, shared]
        assert hub.subscribers("x/y") == [shared, wild]
        assert hub.subscribers("x/z") == [wild]
        assert hub.subscribers("x") == []
        await client.send(Disconnect())
        assert await client.receive() is None
        info = hub.client("a")
        assert info is not None
        assert (info.peer, info.keepalive_s, info.session_expiry_s, info.subscriptions_count) == (None, None, 100, 2)
        assert hub.subscribers("x/z") == [wild]  # it would wait for it
        assert hub.client("b") is None
        assert hub.subscriptions("b") == []
        await client.stream.aclose()


async def test_a_session_for_ever() -> None:
    async with open_broker(session_expiry_s_max=0xFFFF_FFFF) as hub, trio.open_nursery() as nursery:
        client = await attached(hub, nursery)
        await client.connect("a", session_expiry_s=0xFFFF_FFFF)
        assert hub.clients()[0].session_expiry_s == math.inf
        await client.stream.aclose()


async def test_who_may_not_receive_is_sent_nothing_and_the_house_is_no_client() -> None:
    def authorize(user: str | None, client_id: str, action: str, topic: str) -> bool:
        return not (action == "receive" and user == "ben")

    async with open_broker(authorize=authorize) as hub, trio.open_nursery() as nursery, hub.subscribe("#"):
        clients = []
        for name in ("ann", "ben"):
            client = await attached(hub, nursery)
            await client.connect(name, username=name)
            await client.subscribe("x/#")
            clients.append(client)
        assert [one.client_id for one in hub.subscribers("x")] == ["ann"]
        assert [one.client_id for one in hub.subscriptions("ben")] == ["ben"]
        for client in clients:
            await client.stream.aclose()


async def test_topics_that_are_none_are_told_at_once() -> None:
    async with open_broker() as hub:
        for topic in ("", "a/#", "+"):
            with pytest.raises(InvalidTopic):
                hub.subscribers(topic)
            with pytest.raises(InvalidTopic):
                hub.subscriber_slices(topic)
        with pytest.raises(InvalidTopic):
            hub.retained_slices("a/#/b")


async def filled(hub: Broker, count: int) -> None:
    """That many Sessions, all subscribed to x, whose clients are away."""
    async with trio.open_nursery() as nursery:
        for number in range(count):
            client = await attached(hub, nursery)
            await client.connect(f"c{number}", session_expiry_s=1000)
            await client.subscribe("x", 1)
            await client.send(Disconnect())
            assert await client.receive() is None
            await client.stream.aclose()


async def test_very_many_come_in_steps_and_who_has_ended_meanwhile_does_not() -> None:
    count = 2 * STEP_COUNT + 10
    async with open_broker() as hub:
        await filled(hub, count)
        clients, subscribers = hub.client_slices(), hub.subscriber_slices("x")
        assert [len(next(clients)), len(next(subscribers))] == [STEP_COUNT, STEP_COUNT]
        gone = f"c{count - 1}"
        assert hub.disconnect(gone, drop_session=True)
        assert [len(step) for step in clients] == [STEP_COUNT, 9]
        assert [len(step) for step in subscribers] == [STEP_COUNT, 9]
        assert len(hub.clients()) == len(hub.subscribers("x")) == count - 1


async def test_retained_messages_come_in_steps_of_bytes_too() -> None:
    async with open_broker() as hub:
        for number in range(STEP_COUNT + 1):
            await hub.publish(f"few/{number}", b"x", retain=True)
        for number in range(3):
            await hub.publish(f"large/{number}", bytes(STEP_BYTES_MAX // 2 + 1), qos=1, retain=True, message_expiry_s=60)
        assert [len(step) for step in hub.retained_slices("few/#") if step] == [STEP_COUNT, 1]
        steps = [step for step in hub.retained_slices("large/#") if step]
        assert [len(step) for step in steps] == [2, 1]
        assert (steps[0][0].qos, steps[0][0].retain, steps[0][0].properties.message_expiry_interval) == (1, True, 60)


async def test_bans_that_hold() -> None:
    past, future = datetime(2001, 1, 1, tzinfo=UTC), datetime(2901, 1, 1, tzinfo=UTC)
    banned = [{"username": "ann"}, {"username": "old", "until": past}]
    async with open_broker(Config.from_dict({"banned": banned}), listeners=[]) as hub:
        assert hub.bans() == [BanInfo(username="ann", in_config=True)]
        hub.ban(client_id="c", until=future)
        hub.ban(client_id="d", until=past)
        assert hub.bans() == [BanInfo(client_id="c", until=future), BanInfo(username="ann", in_config=True)]
        assert hub.unban(client_id="c")
        assert not hub.unban(username="ann")
        assert hub.bans() == [BanInfo(username="ann", in_config=True)]


async def test_a_topic_that_matches_in_very_many_ways_is_looked_up_in_steps() -> None:
    async with open_broker() as hub, trio.open_nursery() as nursery:
        client = await attached(hub, nursery)
        await client.connect("a")
        filters = ["/".join(levels) for levels in product("x+", repeat=11)]
        for start in range(0, len(filters), 512):
            await client.send(Subscribe(1, tuple(SubscriptionRequest(filter, 0) for filter in filters[start : start + 512])))
            assert isinstance(await client.receive(), SubAck)
        steps = [len(step) for step in hub.subscriber_slices("/".join("x" * 11))]
        assert (sum(steps), max(steps)) == (len(filters), STEP_COUNT)
        await client.stream.aclose()
