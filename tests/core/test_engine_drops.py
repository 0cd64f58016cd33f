"""Every message that is not delivered is counted, by client and by reason; each reason has its test here, and its line in the docs."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.core.engine import Engine
from broker.core.message import ApplicationMessage
from broker.core.saved import WAITING, Changes, SavedMessage, SavedSession
from broker.metrics.table import REASONS
from broker.reasons import ReasonCode
from broker.testing.shelf import Shelf
from broker.wire.packets import MQTT_5, MQTT_311, PubAck, Publish, WillMessage
from tests.core.harness import World

ROOT = Path(__file__).parents[2]
LARGE = b"x" * 400


def overflow() -> World:
    world = World(outbox_bytes_high=1000, outbox_count_max=5, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    for _ in range(11):  # three are encoded, five wait
        publisher.publish("t", LARGE)
    return world


def queue_full() -> World:
    world = World(queue_count_max=5)
    publisher, receiver = world.client("p"), world.client("r", expiry=100)
    receiver.subscribe(("t", 1))
    receiver.detach()
    for number in range(1, 9):
        publisher.publish("t", b"", 1, number)
    return world


def too_large() -> World:
    world = World()
    publisher, receiver = world.client("p"), world.client("r", maximum_packet_size=100)
    receiver.subscribe(("t", 1))
    publisher.publish("t", LARGE)
    publisher.publish("t", LARGE, 1, 1)
    publisher.publish("t", LARGE)  # by the way of known topics
    assert receiver.messages() == []
    return world


def expired() -> World:
    world = World()
    publisher, receiver, member = world.client("p"), world.client("r", expiry=100), world.client("m", expiry=100)
    receiver.subscribe(("t", 1))
    member.subscribe(("$share/g/s", 1))
    for peer in (receiver, member):
        peer.detach()
    for number in (1, 2):
        publisher.publish("t", b"", 1, number, message_expiry_interval=5)
    world.after(10)
    assert world.client("r", clean=False).messages() == []
    publisher.publish("s", b"", 1, 3, message_expiry_interval=5)
    world.after(95)  # its member's session ends, and nobody else gets what has expired
    world.state.dropped["expired"] -= 1
    assert world.record.of("dropped")[-1] == ("dropped", "m", "expired", 1)
    world.record.events.pop()
    return world


def disconnected() -> World:
    world = World(outbox_bytes_high=1000, slow_subscriber_grace_s=0.0)
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe("t")
    receiver.takes = 0
    for _ in range(7):
        publisher.publish("t", LARGE)
    receiver.detach()
    return world


def session_ended() -> World:
    world = World()
    publisher, receiver = world.client("p"), world.client("r", expiry=10)
    receiver.subscribe(("t", 1), ("$share/g/s", 1))
    receiver.detach()
    for number in range(1, 4):
        publisher.publish("t", b"", 1, number)
    publisher.publish("s", b"", 1, 9)  # for a group in which nobody is left
    world.after(11)
    return world


def unacknowledged() -> World:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", 2))
    for number in range(1, 4):
        publisher.publish("t", b"", 1, number)
    receiver.send(PubAck(receiver.pop(Publish).packet_id))
    receiver.detach()
    return world


def refused_by_client() -> World:
    world = World()
    publisher, receiver = world.client("p"), world.client("r")
    receiver.subscribe(("t", 1))
    publisher.publish("t", b"", 1, 1)
    receiver.send(PubAck(receiver.pop(Publish).packet_id, ReasonCode.NOT_AUTHORIZED))
    return world


def not_authorized() -> World:
    world = World(authorize=lambda username, client_id, action, topic: (action, topic) != ("publish", "will") or not world_rules["forbid"])
    world_rules = {"forbid": False}
    peer = world.client("r", will=WillMessage("will", b"gone"))
    world_rules["forbid"] = True
    peer.detach()
    return world


def not_accepted() -> World:
    """Of a publisher that cannot be told, and of a Will."""
    world = World(authorize=lambda username, client_id, action, topic: topic != "secret", retained_count_max=1)
    world.client("first").publish("taken", b"x", retain=True)
    old = world.client("r", MQTT_311, will=WillMessage("will", b"gone", retain=True))
    old.publish("secret", b"")
    old.publish("secret", b"", 1, 1)
    assert old.pop(PubAck).reason == 0  # 3.1.1 has no word for it
    old.publish("more", b"x", retain=True)
    old.detach()
    new = world.client("new", MQTT_5)
    new.publish("secret", b"", 1, 1)
    assert new.pop(PubAck).reason == ReasonCode.NOT_AUTHORIZED  # told, and so not counted
    return world


def damaged() -> World:
    changes = Changes(1)
    changes.sessions.append(SavedSession(1, "r", None, "", "", None, None))
    changes.messages.append(SavedMessage(1, WAITING, 1, 1, b"\x32", MQTT_5, "", "", None))
    shelf = Shelf()
    shelf.write(changes)
    world = World()
    world.engine = Engine(new_client_id=lambda: "", observer=world.record, lasting=True)
    world.engine.restore(shelf, world.now, world.now)
    return world


CASES: dict[str, tuple[Callable[[], World], int]] = {
    "overflow": (overflow, 3),
    "queue-full": (queue_full, 3),
    "too-large": (too_large, 3),
    "expired": (expired, 2),
    "disconnected": (disconnected, 4),
    "session-ended": (session_ended, 4),
    "unacknowledged": (unacknowledged, 2),
    "refused-by-client": (refused_by_client, 1),
    "not-authorized": (not_authorized, 1),
    "not-accepted": (not_accepted, 4),
    "damaged": (damaged, 1),
}


@pytest.mark.parametrize("reason", CASES)
def test_it_is_counted_by_client_and_reason(reason: str) -> None:
    make, count = CASES[reason]
    world = make()
    statistics = world.engine.statistics()
    assert statistics[f"dropped_{reason.replace('-', '_')}"] == count
    told = [event[1:] for event in world.record.of("dropped")]
    assert sum(event[2] for event in told if event[1] == reason) == count
    assert {event[0] for event in told} == {"r"}
    session = world.state.sessions.get("r")
    if session is not None:
        assert session.dropped[reason] == count


def test_the_house_is_not_told_of_what_it_does_itself() -> None:
    world = World(retained_count_max=0)
    world.engine.publish(ApplicationMessage("$SYS/x", b"1", 0, True), world.now)
    assert world.record.of("dropped") == []


def test_there_is_no_other_reason_and_each_is_documented() -> None:
    found = {"overflow", "queue-full"}  # these two are handed through
    for path in (ROOT / "broker" / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "count_dropped":
                reason = node.args[1]
                assert isinstance(reason, ast.Constant) or (isinstance(reason, ast.Name) and path.name == "queueing.py")
                if isinstance(reason, ast.Constant):
                    found.add(str(reason.value))
    assert found == CASES.keys() == set(REASONS)
    documented = (ROOT / "docs" / "reliability.md").read_text()
    assert [reason for reason in CASES if f"| `{reason}` |" not in documented] == []
