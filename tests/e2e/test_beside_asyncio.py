"""A Trio program with a broker in it, and an asyncio program in a thread of the same process, talk over a real socket."""

from __future__ import annotations

import asyncio

import aiomqtt
import trio

from broker import open_broker
from tests.e2e.tools import SECONDS_MAX


async def converse(host: str, port: int) -> bytes:
    async with asyncio.timeout(SECONDS_MAX), aiomqtt.Client(host, port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe("to/asyncio", qos=2)
        await client.publish("to/trio", "hello", qos=2)
        async for message in client.messages:
            return message.payload
    raise AssertionError("no answer")


async def test_both_ways() -> None:
    answers: list[bytes] = []

    async def asyncio_program() -> None:
        answers.append(await trio.to_thread.run_sync(asyncio.run, converse(host, int(port))))

    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as hub:
        host, port = hub.urls[0].removeprefix("mqtt://").split(":")
        async with hub.subscribe("to/trio") as messages, trio.open_nursery() as nursery:
            nursery.start_soon(asyncio_program)
            message = await messages.receive()
            assert (message.topic, message.text, message.qos) == ("to/trio", "hello", 2)
            await hub.publish("to/asyncio", "and back", qos=2)
        assert [client.client_id for client in hub.clients()] == []
    assert answers == [b"and back"]
