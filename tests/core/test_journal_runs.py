"""Messages that came together: whatever becomes of them, what is read from the store is what the engine had when it was written.

Random steps, and after each write the engine is compared with another one that begins with the store as it is then.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.session import Session
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, Properties, PubAck, PubComp, Publish, PubRec, PubRel
from tests.core.harness import Peer
from tests.core.test_journal import LastingWorld

Held = dict[str, tuple[list[Any], list[Any], list[int], set[int]]]

PUBLISHERS = (("p4", MQTT_311), ("p5", MQTT_5))
SUBSCRIBERS = (("s4", MQTT_311), ("s5", MQTT_5), ("few", MQTT_5), ("away", MQTT_5))


def held(sessions: dict[str, Session]) -> Held:
    """Of each Session what is under way, what waits, and ids."""
    found: Held = {}
    for client_id, session in sessions.items():
        if session.record is None:
            continue
        sent: list[Any] = []
        for packet_id, unacknowledged in session.sender.unacknowledged.items():
            delivery = unacknowledged.at(packet_id)
            sent.append((packet_id, delivery.qos, delivery.message.topic, delivery.message.payload, delivery.message.properties))
        waiting: list[Any] = [
            (delivery.qos, delivery.message.topic, delivery.message.payload, delivery.message.properties) for delivery in session.queue.deliveries()
        ]
        found[client_id] = (sent, waiting, list(session.sender.released), set(session.receiver.held))
    return found


class Steps:
    """One script, by its seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.limits: dict[str, Any] = {
            "inflight_count_max": self.random.choice((3, 10, 40)),
            "queue_count_max": self.random.choice((15, 100, 1000)),
            "queue_bytes_max": self.random.choice((2000, 1_000_000)),
            "outbox_bytes_high": self.random.choice((300, 65_536)),
        }
        overflow = {"l/#": "latest", "r/#": "refuse", "n/#": "drop-newest"}
        self.world = LastingWorld(overflow=overflow, **self.limits)
        self.number = 0
        self.next_id = dict.fromkeys([name for name, _ in PUBLISHERS], 1)
        self.peers: dict[str, Peer] = {}
        self.unacknowledged: dict[str, list[Publish]] = {}
        self.releases: dict[str, list[int]] = {}
        for name, version in SUBSCRIBERS:
            peer = self.come(name, version)
            peer.subscribe(("#", self.random.choice((1, 2))) if name != "few" else ("a/#", 2))
        self.peers.pop("away").detach()
        for name, version in PUBLISHERS:
            self.come(name, version)

    def come(self, name: str, version: int) -> Peer:
        options: dict[str, Any] = {}
        if version == MQTT_5 and self.random.random() < 0.5:
            options = {"receive_maximum": self.random.choice((1, 7, 100)), "topic_alias_maximum": self.random.choice((0, 2))}
        self.unacknowledged[name] = []
        self.releases[name] = []
        self.world.disk_works = True
        self.world.settle()
        peer = self.peers[name] = self.world.lasting(name, version, **options)
        return peer

    def step(self) -> None:
        chance = self.random
        what = chance.random()
        if what < 0.4:
            self.publish(*chance.choice(PUBLISHERS))
        elif what < 0.75:
            self.acknowledge(chance.choice([name for name, _ in SUBSCRIBERS]))
        elif what < 0.83:
            name, version = chance.choice(SUBSCRIBERS)
            if name in self.peers:
                self.peers.pop(name).detach()
            else:
                self.come(name, version)
        elif what < 0.86:
            self.world.disk_works = not self.world.disk_works
            self.world.settle()
        elif what < 0.88:
            self.crash()
        else:
            self.check()

    def publish(self, name: str, version: int) -> None:
        chance = self.random
        peer = self.peers.get(name)
        if peer is None or peer.link.session is None:  # it was thrown out
            peer = self.come(name, version)
        count = chance.choice((1, 1, 2, 7, 20, 90))
        qos = chance.choice((1, 1, 2))
        properties = Properties()
        if version == MQTT_5 and chance.random() < 0.3:
            properties = Properties(user_properties=(("a", "b"),)) if chance.random() < 0.7 else Properties(message_expiry_interval=1000)
        topic = chance.choice(("a/1", "a/2", "b", "l/1", "r", "r/1", "n/1"))
        size = chance.choice((4, 4, 300))
        packets: list[Publish] = []
        first = self.next_id[name]
        for packet_id in range(first, first + count):
            self.number += 1
            packets.append(Publish(topic, b"%0*d" % (size, self.number), qos, packet_id=packet_id, properties=properties))
        self.next_id[name] = first + count if first + count < 60_000 else 1
        peer.give(b"".join(encode(packet, version) for packet in packets))
        if qos == 2 and chance.random() < 0.8:
            peer.give(b"".join(encode(PubRel(packet.packet_id), version) for packet in packets))
        peer.take()

    def acknowledge(self, name: str) -> None:
        peer = self.peers.get(name)
        if peer is None or peer.link.session is None:
            return
        chance = self.random
        came = peer.take()
        self.unacknowledged[name] += [packet for packet in came if isinstance(packet, Publish) and packet.qos]
        self.releases[name] += [packet.packet_id for packet in came if isinstance(packet, PubRel)]
        if self.releases[name] and chance.random() < 0.7:
            releases, self.releases[name] = self.releases[name], []
            peer.send(*[PubComp(packet_id) for packet_id in releases])
        waiting = self.unacknowledged[name]
        if chance.random() < 0.3:
            chance.shuffle(waiting)
        count = chance.choice((0, 1, len(waiting) // 2, len(waiting)))
        done, self.unacknowledged[name] = waiting[:count], waiting[count:]
        if done:
            peer.give(b"".join(encode(PubAck(one.packet_id) if one.qos == 1 else PubRec(one.packet_id), peer.version) for one in done))

    def check(self) -> None:
        world = self.world
        if not world.disk_works:
            world.write()
        if world.engine.has_changes:
            world.write()
        if world.engine.has_changes:
            return
        other = Engine(Limits(**self.limits), new_client_id=str, lasting=True)
        other.restore(world.shelf, world.now, world.now + world.unix_ahead)
        assert held(other.state.sessions) == held(world.state.sessions)
        changes = other.take_changes(world.now, world.now + world.unix_ahead)
        if changes is not None:
            rewritten = [changes.cut, changes.messages, changes.messages_gone, changes.runs, changes.runs_changed, changes.runs_gone]
            assert not any([*rewritten, changes.shared, changes.shared_gone])

    def crash(self) -> None:
        self.check()
        self.peers.clear()
        self.world.crash()


@pytest.mark.parametrize("seed", range(60))
def test_what_is_read_is_what_was_written(seed: int) -> None:
    steps = Steps(seed)
    for _ in range(150):
        steps.step()
    steps.check()
    steps.world.disk_works = True
    steps.world.settle()
    for name, version in SUBSCRIBERS:
        if name not in steps.peers or steps.peers[name].link.session is None:
            steps.come(name, version)
        while steps.peers[name].inbox or steps.unacknowledged[name] or steps.releases[name]:
            steps.acknowledge(name)
    steps.check()
    assert not steps.world.shelf.messages_count
    assert not [*steps.world.shelf.messages, *steps.world.shelf.runs, *steps.world.shelf.shared]


def test_what_a_client_may_not_have_any_more_goes_from_between_runs_that_stay() -> None:
    world = LastingWorld(inflight_count_max=5)
    world.lasting("sub").subscribe(("#", 1))
    pub = world.client("pub", MQTT_311)
    for name in "abc":
        pub.publish(name, b"first", 1, 999)
    for number, name in enumerate("abcab"):
        pub.give(b"".join(encode(Publish(name, b"%d" % at, 1, packet_id=at), MQTT_311) for at in range(10 + 10 * number, 20 + 10 * number)))
    world.crash()
    numbers = {row.number for row in world.shelf.runs}
    assert len(numbers) == 5
    world.state.access.use(lambda _name, _client_id, action, topic: action != "receive" or topic != "b")
    came: list[bytes] = []
    sub = world.back("sub")
    assert world.dropped("not-authorized") == 20
    for _ in range(2):
        came += [message.payload for message in _acknowledged(sub)]
    assert {row.number for row in world.shelf.runs} < numbers  # none is written anew
    world.crash()
    sub = world.back("sub")
    while messages := _acknowledged(sub):
        came += [message.payload for message in messages]
    assert [payload for payload in came if payload != b"first"] == [b"%d" % at for at in (*range(10, 20), *range(30, 50))]
    assert not world.shelf.messages_count


def _acknowledged(peer: Peer) -> list[Publish]:
    messages = peer.messages()
    for message in messages:
        peer.acknowledge(message)
    return messages
