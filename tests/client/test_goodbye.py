"""How a connection ends: what the goodbye says, and what is waited for before it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from broker.client import connect
from broker.errors import NotSupported
from broker.reasons import ReasonCode
from broker.wire.packets import Disconnect, Properties, PubComp, Publish, PubRec, PubRel
from tests.client.scripted import ScriptedBroker, connected


async def test_disconnect_says_what_it_is_given(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected(session_expiry_s=60) as (client, peer, _), trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.disconnect(publish_will=True, session_expiry_s=5, user_properties={"why": "done"}))
            properties = Properties(session_expiry_interval=5, user_properties=(("why", "done"),))
            assert await peer.receive() == Disconnect(ReasonCode.DISCONNECT_WITH_WILL, properties)
            await peer.cut()


async def test_leaving_says_what_connect_was_given(autojump_clock: trio.testing.MockClock) -> None:
    given = Properties(user_properties=(("a", "b"),))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            broker = ScriptedBroker()

            async def serve() -> None:
                peer = await broker.next()
                await peer.accept()
                assert await peer.receive() == Disconnect(ReasonCode.SUCCESS, given)
                await peer.cut()

            nursery.start_soon(serve)
            async with connect(broker, client_id="me", disconnect_properties=given):
                pass


async def test_what_the_broker_cannot_take_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected(Properties(maximum_packet_size=20)) as (client, peer, _), trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.disconnect(user_properties={"long": "x" * 100}))
            assert await peer.receive() == Disconnect()
            await peer.cut()


async def test_what_may_not_be_said(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with connected() as (client, _, _):
            with pytest.raises(ValueError, match="cannot be kept"):
                await client.disconnect(session_expiry_s=5)
            assert client.connected
            with pytest.raises(ValueError, match="70000 bytes"):  # which left the scope of `connect` without an end
                await client.disconnect(user_properties={"a": "x" * 70_000})
            assert client.connected
        async with connected(version="3.1.1") as (client, _, _):
            with pytest.raises(NotSupported):
                await client.disconnect(user_properties={"a": "b"})
    with pytest.raises(ValueError, match="70000 bytes"):
        connect("mqtt://localhost", disconnect_properties=Properties(reason_string="x" * 70_000))
    with pytest.raises(ValueError, match="cannot be kept"):
        connect("mqtt://localhost", disconnect_properties=Properties(session_expiry_interval=1))


async def test_a_handshake_under_way_is_finished_before_the_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    """QoS 2: after our PUBREC the broker's PUBREL is waited for, though the program has left."""
    said: list[object] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            broker = ScriptedBroker()

            async def serve() -> None:
                peer = await broker.next()
                await peer.accept()
                await peer.grant()
                await peer.send(Publish("a", b"", 2, packet_id=7))
                assert await peer.receive() == PubRec(7)
                await trio.sleep(1)
                await peer.send(PubRel(7))
                said.extend([await peer.receive(), await peer.receive()])
                await peer.cut()

            nursery.start_soon(serve)
            async with connect(broker, client_id="me") as client, client.subscribe("a", qos=2, keep=True) as subscription:
                async for _ in subscription:
                    break
    assert said == [PubComp(7), Disconnect()]


async def test_but_not_for_longer_than_close_grace_s(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            broker = ScriptedBroker()

            async def serve() -> None:
                peer = await broker.next()
                await peer.accept()
                await peer.grant()
                await peer.send(Publish("a", b"", 2, packet_id=7))
                assert await peer.receive() == PubRec(7)
                began = trio.current_time()
                assert await peer.receive() == Disconnect()
                assert trio.current_time() - began == pytest.approx(3)
                await peer.cut()

            nursery.start_soon(serve)
            async with connect(broker, client_id="me", close_grace_s=3) as client, client.subscribe("a", qos=2, keep=True) as subscription:
                await subscription.receive()
