"""Two brokers and a bridge from the one to the other, in one program; and what tests wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from broker import Bridge, BridgeTopic, Broker, connect, open_broker
from broker.channel import Subscription

CLIENT_ID = "bridge:b"


def bridge_to(where: Any, *topics: BridgeTopic, **options: Any) -> Bridge:
    return Bridge(name="b", url=where, client_id="near", topics=topics or (BridgeTopic(filter="#", direction="both", qos=2),), **options)


async def wait_state(near: Broker, state: bytes = b"1") -> None:
    """Until the bridge says that it is connected, or is not."""
    async with near.subscribe("$SYS/broker/connection/b/state") as states:
        async for message in states:
            if message.payload == state:
                return


async def until(condition: Callable[[], bool], seconds: float = 3600, step_s: float = 0.1) -> None:
    """Of a state that tells nobody when it changes; of virtual time."""
    for _ in range(int(seconds / step_s)):
        if condition():
            return
        await trio.sleep(step_s)
    raise AssertionError("it has not come to that")


async def wait_cause(near: Broker, words: str) -> None:
    """Until the bridge is away for that cause."""
    await until(lambda: words in near.bridges[0].cause)


@asynccontextmanager
async def houses(
    *topics: BridgeTopic, network: Any = None, far_limits: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Broker, Broker]]:
    """(near, far), connected. options: of the Bridge."""
    async with open_broker(**(far_limits or {})) as far:
        where = far if network is None else network.to(far)
        async with open_broker(bridges=[bridge_to(where, *topics, **options)]) as near:
            await wait_state(near)
            yield near, far


@asynccontextmanager
async def listening(broker: Broker, *filters: str, qos: int = 2, **options: Any) -> AsyncIterator[Subscription]:
    """A client's subscription to it, for what comes as it was published."""
    async with connect(broker) as client, client.subscribe(*(filters or ("#",)), qos=qos, retain_as_published=True, **options) as subscription:
        yield subscription


async def take(subscription: Subscription, count: int) -> list[tuple[str, str]]:
    """The next (topic, payload)s."""
    found = []
    for _ in range(count):
        message = await subscription.receive()
        found.append((message.topic, message.text))
    return found


async def take_all(subscription: Subscription, seconds: float = 30) -> list[tuple[str, str]]:
    """Until nothing has come for so long (of virtual time)."""
    found: list[tuple[str, str]] = []
    count = -1
    while len(found) != count:
        count = len(found)
        with trio.move_on_after(seconds):
            found += await take(subscription, 1)
    return found


async def nothing_more(subscription: Subscription, seconds: float = 30) -> None:
    """Of virtual time."""
    with trio.move_on_after(seconds):
        message = await subscription.receive()
        raise AssertionError(f"{message!r} came, and nothing should")
