"""A broker that dials another one is a client there, and a broker here."""

from __future__ import annotations

import pytest
import trio.testing

from broker import Bridge, BridgeTopic, connect, open_broker
from broker.wire.packets import MQTT_311, ConnAck, Connect, Publish, PubRec, PubRel, Subscribe
from tests.client.scripted import ScriptedBroker


@pytest.mark.statement("MQTT311-7.0.0-1")
async def test_a_bridge_is_a_client_of_the_one_and_the_broker_of_the_other(autojump_clock: trio.testing.MockClock) -> None:
    """What it brings in from there, as any client would take it, its own clients get, as from any broker."""
    scripted = ScriptedBroker()
    topics = [BridgeTopic(filter="out/#", qos=2), BridgeTopic(filter="in/#", direction="in", qos=2)]
    bridge = Bridge(name="b", url=scripted, client_id="near", topics=topics, version="3.1.1")
    async with (
        open_broker(bridges=[bridge]) as near,
        connect(near, version="3.1.1") as client,
        client.subscribe("in/#", qos=2) as here,
    ):
        peer = await scripted.next()
        asked = await peer.expect(Connect)
        assert (asked.version, asked.client_id, asked.clean_start) == (MQTT_311, "near", False)
        await peer.send(ConnAck(False, 0))  # type: ignore[arg-type]  # 3.1.1 has return codes
        subscribe = await peer.grant()
        assert isinstance(subscribe, Subscribe)
        assert [(one.filter, one.qos) for one in subscribe.subscriptions] == [("in/#", 2)]
        await peer.send(Publish("in/a", b"1", 2, packet_id=1))
        assert await peer.receive() == PubRec(1)
        await peer.send(PubRel(1))
        assert (await here.receive()).payload == b"1"
        await client.publish("out/a", "2", qos=2)
        packets = [await peer.receive() for _ in range(2)]
        (published,) = [packet for packet in packets if isinstance(packet, Publish)]
        assert (published.topic, published.payload, published.qos, published.packet_id > 0) == ("out/a", b"2", 2, True)
        await peer.cut()
