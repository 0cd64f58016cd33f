"""Every byte of valid packets, flipped in every bit: never an exception, and neighbours are served on."""

from __future__ import annotations

import pytest

from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    Properties,
    PubAck,
    Publish,
    PubRel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    WillMessage,
)
from tests.core.harness import World

PACKETS: list[Packet] = [
    Connect("c", keep_alive_s=10, will=WillMessage("w", b"bye", 1, True), username="u", password=b"p"),
    Publish("a/b", b"payload", 0),
    Publish("a/b", b"payload", 1, packet_id=5),
    Publish("a/b", b"payload", 2, True, packet_id=6, properties=Properties(topic_alias=1, content_type="t", user_properties=(("k", "v"),))),
    Subscribe(7, (SubscriptionRequest("a/+", 2), SubscriptionRequest("$share/g/#", 1)), Properties(subscription_identifiers=(3,))),
    Unsubscribe(8, ("a/+",)),
    PubAck(1),
    PubRel(2),
    PingReq(),
    Disconnect(),
]


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: type(packet).__name__)
def test_flipped(packet: Packet, version: int) -> None:
    if version < MQTT_5 and isinstance(packet, (Publish, Subscribe)):
        packet = Publish("a/b", b"payload", 2, True, packet_id=6) if isinstance(packet, Publish) else Subscribe(7, (SubscriptionRequest("a/+", 2),))
    if isinstance(packet, Connect):
        packet = Connect("c", version, True, 10, packet.will, "u", b"p")
    data = encode(packet, version)
    world = World()
    neighbour = world.client("neighbour")
    neighbour.subscribe("n")
    for at in range(len(data)):
        for bit in range(8):
            peer = world.peer("hostile", version) if isinstance(packet, Connect) else world.client("hostile", version)
            peer.version = MQTT_5
            flipped = data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
            world.engine.receive(peer.link, flipped, world.now)
            world.engine.receive(peer.link, bytes(16), world.now)
            peer.takes = 0
            world.settle()
            peer.detach()
            neighbour.publish("n", b"x")
            assert b"x" in [getattr(one, "payload", b"") for one in neighbour.take()]
