"""The same traffic as one read, frame by frame, cut anywhere, byte by byte, and past every fast path: each recipient gets the same, and the
same is counted.

Between the reads things change that the fast paths have seen before: subscriptions of all kinds come and go, recipients are away, time goes by,
what is retained is replaced and cleared. (`test_engine_fast_paths` has acknowledgements in all orders, and broken frames.)
"""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import pytest
from msgspec import structs

import broker.core.receiving as receiving
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    NO_PROPERTIES,
    Packet,
    PingReq,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)
from tests.core.harness import Peer, World

TOPICS = ("t", "t/1", "t/2", "t", "t/1", "u/x/y", "$d/x", "t/" + "a" * 120, "u")
FILTERS = ("t", "t/1", "t/+", "t/#", "#", "+", "+/+", "u/#", "u/x/y", "$d/#", "$share/g/t/1", "$share/g/#", "+/1", "t/1/#")
PROPERTIES = (
    *(NO_PROPERTIES,) * 6,
    Properties(content_type="text", user_properties=(("a", "1"),)),
    Properties(message_expiry_interval=5),
    Properties(message_expiry_interval=3, content_type="text"),
    Properties(topic_alias=1),
    Properties(topic_alias=2),
    Properties(correlation_data=b"x" * 300),
)


@dataclasses.dataclass
class Recipient:
    """One that stays, comes and goes. heard: what came, over all of its connections."""

    name: str
    version: int
    properties: dict[str, Any]
    mount_point: str
    peer: Peer | None = None
    heard: list[Packet] = dataclasses.field(default_factory=list)

    def come(self, world: World) -> None:
        properties = {"expiry": 1000, **self.properties} if self.version == MQTT_5 else {}
        self.peer = world.client(self.name, self.version, clean=False, mount_point=self.mount_point, **properties)

    def leave(self) -> None:
        assert self.peer is not None
        self.peer.detach()
        self.peer = None

    def read(self) -> bool:
        """Acknowledge what came. Was there anything?"""
        peer = self.peer
        got = [] if peer is None else peer.take()
        answers: list[Packet] = []
        for packet in got:
            if isinstance(packet, Publish) and packet.qos:
                answers.append(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
            elif isinstance(packet, PubRel):
                answers.append(PubComp(packet.packet_id))
            assert peer is not None
            self.heard.append(comparable(peer, packet))
        if answers and peer is not None:
            peer.send(*answers)
        return bool(got)


def comparable(peer: Peer, packet: Packet) -> Packet:
    """Without ids of the broker's choice, and by its topic."""
    if isinstance(packet, PubRel):
        return structs.replace(packet, packet_id=0)
    if not isinstance(packet, Publish):
        return packet
    topic, alias = packet.topic, packet.properties.topic_alias
    if alias is not None:
        topic = peer.aliases[alias] = topic or peer.aliases[alias]
    return structs.replace(packet, packet_id=0, topic=topic, properties=structs.replace(packet.properties, topic_alias=None))


def frames_of(random: Random, version: int, first_id: int) -> list[bytes]:
    """One read's worth: runs of various lengths, and what comes between them."""
    frames: list[bytes] = []
    for _ in range(random.choice((1, 1, 2, 6))):
        topic, qos, retain = random.choice(TOPICS), random.choice((0, 0, 0, 1, 2)), random.random() < 0.25
        properties = random.choice(PROPERTIES) if version == MQTT_5 else NO_PROPERTIES
        size = random.choice((0, 1, 10, 90, 130, 200))
        for number in range(random.choice((1, 1, 1, 2, 5, 15, 30))):
            packet_id = (first_id + len(frames)) % 60_000 + 1 if qos else 0
            payload = b"%05d" % random.randrange(99_999) + b"x" * size if size else b""
            named = "" if properties.topic_alias and number and random.random() < 0.9 else topic
            frames.append(encode(Publish(named, payload, qos, retain, False, packet_id, properties), version))
            if qos == 2:
                frames.append(encode(PubRel(packet_id), version))
    if random.random() < 0.1:
        frames.insert(random.randrange(len(frames)), encode(PingReq(), version))
    return frames


def requests_of(random: Random, version: int) -> tuple[SubscriptionRequest, ...]:
    requests = []
    for filter in random.sample(FILTERS, random.choice((1, 1, 2, 5))):
        request = SubscriptionRequest(filter, random.randint(0, 2))
        if version == MQTT_5 and random.random() < 0.4:
            no_local = random.random() < 0.3 and not filter.startswith("$share")
            request = SubscriptionRequest(filter, request.qos, no_local, random.random() < 0.4, random.randint(0, 2))
        requests.append(request)
    return tuple(requests)


def give(peer: Peer, frames: list[bytes], cut: str, random: Random) -> None:
    data = b"".join(frames)
    if cut == "frames":
        for frame in frames:
            peer.give(frame)
    elif cut in ("bytes", "anywhere"):
        while data:
            size = 1 if cut == "bytes" else random.choice((1, 3, 20, 100, 1000))
            peer.give(data[:size])
            data = data[size:]
    else:
        peer.give(data)


def outcome(seed: int, cut: str) -> dict[str, Any]:
    random, cuts = Random(seed), Random(seed)
    limits: dict[str, Any] = {"inflight_count_max": random.choice((5, 60)), "receive_maximum": 100, "slow_subscriber_grace_s": 0.0}
    limits |= random.choice(({}, {}, {"filter_levels_max": 2}, {"retained_count_max": 2}, {"work_per_turn_max": 3}, {"routes_count_max": 2}))
    world = World(**limits)
    world.takes_short_way = cut != "generally"
    recipients = []
    for number in range(random.randint(1, 4)):
        able = random.choice(({}, {}, {"topic_alias_maximum": 2}, {"maximum_packet_size": 140}, {"receive_maximum": 3}))
        recipients.append(Recipient(f"r{number}", random.choice((MQTT_5, MQTT_311)), able, random.choice(("", "", "", "", "", "m/"))))
        recipients[-1].come(world)
    publisher = Recipient("p", random.choice((MQTT_5, MQTT_311)), {}, "")
    publisher.come(world)
    everybody = [publisher, *recipients]
    for step in range(random.randint(5, 25)):
        one = random.choice(recipients)
        what = random.random()
        if what < 0.2 and one.peer is not None:
            identifier = random.choice((0, 0, 7)) if one.version == MQTT_5 else 0
            properties = Properties(subscription_identifiers=(identifier,)) if identifier else NO_PROPERTIES
            one.peer.send(Subscribe(900, requests_of(random, one.version), properties))
        elif what < 0.27 and one.peer is not None:
            one.peer.send(Unsubscribe(901, tuple(random.sample(FILTERS, 2))))
        elif what < 0.32:
            world.after(random.choice((0.5, 1, 3, 10)))
        elif what < 0.36:
            one.leave() if one.peer is not None else one.come(world)
        else:
            sender = publisher if random.random() < 0.85 else one
            frames = frames_of(random, sender.version, 1000 * step)
            if sender.peer is not None:
                give(sender.peer, frames, cut, cuts)
        while any(one.read() for one in everybody):
            pass
    world.after(1)
    while any(one.read() for one in everybody):
        pass
    found = world.engine.statistics()
    if any("topic_alias_maximum" in one.properties for one in recipients):
        del found["bytes_sent"]
    sessions = []
    for session in world.engine.clients():
        assert session.inflight_bytes == sum(waiting.size for waiting in session.sender.unacknowledged.values())
        exchanges = session.sender.quota, sorted(session.sender.released), sorted(session.receiver.held)
        sessions.append((session.client_id, exchanges, session.queue.count, session.dropped))
    assert world.state.waiting.bytes == sum(session.queue.bytes for session in world.engine.clients())
    kept = [
        (message.topic, message.payload, message.qos, message.properties)
        for filter in ("#", "$d/#")
        for message in world.engine.retained(filter, world.now)
    ]
    for one in everybody:
        if one.peer is not None:
            assert not one.peer.link.closing, one.peer.link.cause
            one.leave()
    world.end_all()
    world.assert_empty()
    heard = [
        (
            [packet for packet in one.heard if isinstance(packet, Publish)],
            sorted(repr(packet) for packet in one.heard if not isinstance(packet, Publish)),
        )
        for one in everybody
    ]
    return {"heard": heard, "statistics": found, "sessions": sorted(sessions, key=repr), "retained": sorted(kept, key=repr)}


@pytest.mark.parametrize("seed", range(40))
def test_however_it_is_cut_everybody_gets_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcome(seed, "whole")
    for cut in ("frames", "anywhere", "bytes") if seed % 4 == 0 else ("frames", "anywhere"):
        assert outcome(seed, cut) == whole, cut
    monkeypatch.setattr(receiving, "relay", lambda state, link, now: True)
    monkeypatch.setattr(receiving, "exchange", lambda state, link, session, now: True)
    monkeypatch.setattr(receiving, "retain", lambda state, link, now: False)
    monkeypatch.setattr(receiving, "subscribe_alike", lambda state, link, body: False)
    assert outcome(seed, "generally") == whole
