"""Reason codes as the numbers that the standard prints, and a client that answers everything as it should."""

from __future__ import annotations

from broker.reasons import ReasonCode
from broker.wire.packets import PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance.harness import Peer


def codes(*values: int) -> tuple[ReasonCode, ...]:
    return tuple(ReasonCode(value) for value in values)


async def drain(peer: Peer) -> list[Publish]:
    """All messages that come at this time, acknowledged as soon as they are there, whatever comes between. Fails on any other packet."""
    messages: list[Publish] = []
    while packets := await peer.receive_all():
        for packet in packets:
            if isinstance(packet, Publish):
                messages.append(packet)
                if packet.qos:
                    await peer.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
            else:
                assert isinstance(packet, PubRel), packet
                await peer.send(PubComp(packet.packet_id))
    return messages


async def drained(peer: Peer) -> list[bytes]:
    """The payloads of `drain`."""
    return [message.payload for message in await drain(peer)]
