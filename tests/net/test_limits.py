"""Limits of listeners and users over real sockets, as the configuration says them, and as a reload changes them."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from math import inf, nan
from typing import Any

import pytest
import trio
import trustme

from broker.client.connect import connect
from broker.config import Config
from broker.core.allowance import LimitOverrides
from broker.core.limits import Limits
from broker.errors import ConfigError
from broker.hub import Broker
from broker.net.authentication import ConnectRequest
from broker.net.listener import Listener
from broker.opening import open_broker
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Properties, Publish, SubAck, Subscribe, SubscriptionRequest
from tests.net.mqtt import Client


class Phone:
    """Dials; hangs up at the end of the block."""

    def __init__(self, hub: Broker) -> None:
        self.hub = hub
        self._calls = AsyncExitStack()

    async def __aenter__(self) -> Phone:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._calls.aclose()

    async def dial(self, number: int = 0, version: int = 5) -> Client:
        host, _, port = self.hub.urls[number].removeprefix("mqtt://").rpartition(":")
        return Client(await self._calls.enter_async_context(await trio.open_tcp_stream(host, int(port))), version)


async def promised(client: Client, username: str | None = None) -> Properties:
    await client.send(Connect("", username=username))
    connack = await client.receive()
    assert isinstance(connack, ConnAck), connack
    assert connack.reason == 0, connack
    return connack.properties


def settings(packets: int, ann: int, general: int = 50_000) -> Config:
    return Config.from_dict(
        {
            "sys_interval_s": 0,
            "limits": {"packet_bytes_max": general, "receive_maximum": 30},
            "listeners": [{"port": 0, "limits": {"packet_bytes_max": packets}}, {"port": 0}],
            "limits_for": [{"users": ["ann"], "receive_maximum": ann, "subscriptions_count_max": 1}],
        }
    )


async def test_each_listener_and_user_has_its_own_and_a_reload_changes_them() -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        return None if request.username is None else request.username.lower()

    async with open_broker(settings(1000, 7), authenticate=authenticate) as hub, Phone(hub) as phone:
        first, second, ann = await phone.dial(0), await phone.dial(1), await phone.dial(0)
        assert [(await promised(one, "eve")).maximum_packet_size for one in (first, second)] == [1000, 50_000]
        told = await promised(ann, "ANN")  # what counts is the name that authentication gave
        assert (told.maximum_packet_size, told.receive_maximum) == (1000, 7)
        await ann.send(Subscribe(1, (SubscriptionRequest("a"), SubscriptionRequest("b"))))
        assert await ann.receive() == SubAck(1, (ReasonCode.SUCCESS, ReasonCode.QUOTA_EXCEEDED))
        assert hub.reload(settings(2000, 8)) == []
        await ann.send(Publish("a", bytes(900)))
        message = await ann.receive()
        assert isinstance(message, Publish)
        later = await phone.dial(0)
        told = await promised(later, "ann")
        assert (told.maximum_packet_size, told.receive_maximum) == (2000, 8)
        await first.send(Publish("a", bytes(1500)))  # it was told 1000
        assert await first.receive() is not None
        assert await first.receive() is None


async def test_limits_given_by_the_program_stay_over_those_of_the_file() -> None:
    async with open_broker(settings(1000, 7), receive_maximum=11) as hub, Phone(hub) as phone:
        assert (await promised(await phone.dial(1))).receive_maximum == 11
        hub.reload(settings(1000, 7, general=40_000))
        told = await promised(await phone.dial(1))
        assert (told.receive_maximum, told.maximum_packet_size) == (11, 40_000)


async def test_a_listeners_connect_timeout(caplog: pytest.LogCaptureFixture) -> None:
    hasty = Listener(port=0, limits=LimitOverrides(connect_timeout_s=0.001))
    async with open_broker(listeners=[hasty, Listener(port=0)]) as hub, Phone(hub) as phone:
        quick, patient = await phone.dial(0), await phone.dial(1)
        assert await quick.receive() is None
        assert (await promised(patient)).maximum_packet_size is not None


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (LimitOverrides(memory_bytes_max=5), r"listeners\[0\]\.limits\.memory_bytes_max: holds for the whole broker"),
        (LimitOverrides(receive_maximum=0), r"listeners\[0\]\.limits\.receive_maximum: expected 1 to 65,535, got 0"),
        (LimitOverrides(maximum_qos=1.5), r"listeners\[0\]\.limits\.maximum_qos: expected a whole number, got 1\.5"),
        (LimitOverrides(queue_count_max=nan), r"listeners\[0\]\.limits\.queue_count_max: expected a whole number, got nan"),
        (LimitOverrides(receive_maximum=inf), r"listeners\[0\]\.limits\.receive_maximum: expected a whole number, got inf"),
        (LimitOverrides(retained_replays_count_max=0), r"listeners\[0\]\.limits\.retained_replays_count_max: expected 1 or more, got 0"),
        (LimitOverrides(close_timeout_s=nan), r"listeners\[0\]\.limits\.close_timeout_s: expected 0\.001 to 1,000,000,000, got nan"),
        (LimitOverrides(publish_per_s_max=inf), r"listeners\[0\]\.limits\.publish_per_s_max: expected 0 to 1,000,000,000, got inf"),
    ],
)
async def test_mistakes_in_a_listeners_limits(limits: LimitOverrides, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        async with open_broker(listeners=[Listener(port=0, limits=limits)]):
            pass


@pytest.mark.parametrize("name", ["memory_bytes_max", "sessions_count_max", "retained_replays_count_max"])
async def test_at_0_nothing_would_work(name: str) -> None:
    with pytest.raises(ConfigError, match=f"limits.{name}: expected"):
        async with open_broker(Config(listeners=(), limits=LimitOverrides(**{name: 0}).over(Limits()))):
            pass


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [({"port": True}, "port: expected a number, got True"), ({"backlog": "9"}, "backlog: expected a number, got '9'")],
)
async def test_what_is_no_number_in_a_listener(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        async with open_broker(listeners=[Listener(**wrong)]):
            pass


async def test_the_least_memory_is_enough_for_something() -> None:
    async with open_broker(listeners=[], memory_bytes_max=16_384) as hub, connect(hub) as client, client.subscribe("a", qos=1) as messages:
        await client.publish("a", bytes(1000), qos=1)
        async for message in messages:
            assert len(message.payload) == 1000
            break


async def test_an_address_above_its_limit_is_not_worth_a_tls_handshake() -> None:
    authority, context, trusting = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)
    locked = Listener(port=0, tls=context, limits=LimitOverrides(connections_per_address_max=1))
    async with open_broker(listeners=[locked]) as hub:
        port = int(hub.urls[0].rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as first, await trio.open_tcp_stream("127.0.0.1", port) as second:
            assert await second.receive_some(1) == b""
            await first.aclose()
        while hub.statistics()["connections_open_count"]:
            await trio.lowlevel.checkpoint()
        async with await trio.open_tcp_stream("127.0.0.1", port) as third:
            await trio.SSLStream(third, trusting, server_hostname="127.0.0.1").do_handshake()
        assert hub.statistics()["refused_connections_count"] == hub.statistics()["refused_address_count"] == 1
