"""What outlives the process, step by step: after each, the broker is gone at once, and the next one has to know of it from what was written.

The simulation asks the same of everything together; here each kind of step stands alone, so that a hook that is missing has a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from broker.core.access import Access
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.message import ApplicationMessage
from broker.core.owed import KeptDelivery, PublishRun
from broker.core.saved import SENT, WAITING
from broker.reasons import ReasonCode
from broker.testing.shelf import Shelf
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    WillMessage,
)
from tests.core.harness import Peer, World

if TYPE_CHECKING:
    from broker.core.restoring import RulesOf

LASTING = 1000
"""Of its Session Expiry Interval, seconds."""


class LastingWorld(World):
    """With a disk. `disk_works`: what has changed is written at once; else nothing is, until `write`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shelf = Shelf()
        self.disk_works = True
        self.unix_ahead = 1_000_000.0
        self._options = options
        self.rules_of: RulesOf | None = None
        self._begin()

    def _begin(self) -> None:
        options = dict(self._options)
        overflow = options.pop("overflow", {})
        authorize = options.pop("authorize", None)
        self.engine = Engine(
            Limits(**options), new_client_id=self._new_client_id, overflow=overflow, authorize=authorize, observer=self.record, lasting=True
        )

    def settle(self, rounds_max: int = 1_000_000) -> None:
        super().settle(rounds_max)
        while self.disk_works and self.engine.has_changes:
            self.write()
            super().settle(rounds_max)

    def write(self) -> None:
        changes = self.engine.take_changes(self.now, self.now + self.unix_ahead)
        if changes is not None:
            self.shelf.write(changes)
            self.engine.committed(changes.number)

    def crash(self, away_s: float = 0.0) -> None:
        """The broker is gone, and back after so long. All connections are."""
        self.peers.clear()
        self.unix_ahead += away_s - 500  # its clock begins somewhere else
        self.now += 500
        self.disk_works = True
        self._begin()
        self.engine.restore(self.shelf, self.now, self.now + self.unix_ahead, self.rules_of)
        self.settle()

    def back(self, client_id: str, version: int = MQTT_5, **options: Any) -> Peer:
        """Its client comes back, to a session that has to be there."""
        peer = self.lasting(client_id, version, **options)
        assert peer.connack is not None
        assert peer.connack.session_present
        return peer

    def lasting(self, client_id: str, version: int = MQTT_5, **options: Any) -> Peer:
        if version < MQTT_5:
            return self.client(client_id, version, clean=False, **options)
        options.setdefault("expiry", LASTING)
        return self.client(client_id, version, clean=False, **options)


def a_world_with(filter: str = "#", qos: int = 2, **limits: Any) -> tuple[LastingWorld, Peer]:
    """A subscriber that is there for ever."""
    world = LastingWorld(**limits)
    subscriber = world.lasting("sub")
    subscriber.subscribe((filter, qos))
    return world, subscriber


# ---- sessions and subscriptions ---------------------------------------------------------------------------------------


def test_a_session_is_there_and_its_subscriptions() -> None:
    world, _ = a_world_with("a/+", 1)
    world.crash()
    sub = world.back("sub")
    world.client("pub").publish("a/1", b"x", 1, 1)
    assert [(message.topic, message.qos) for message in sub.messages()] == [("a/1", 1)]


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_session_without_an_end(version: int) -> None:
    world = LastingWorld(session_expiry_s_max=0xFFFF_FFFF)
    world.lasting("sub", version, **({"expiry": 0xFFFF_FFFF} if version == MQTT_5 else {}))
    world.crash(away_s=4e9 if version == MQTT_5 else 1e6)
    world.back("sub", version)


def test_the_options_of_a_subscription() -> None:
    world = LastingWorld()
    sub = world.lasting("sub")
    sub.subscribe(SubscriptionRequest("own", 1, True), packet_id=1)
    sub.subscribe(SubscriptionRequest("kept", 2, False, True), packet_id=2, identifier=7)
    world.crash()
    sub = world.back("sub")
    sub.publish("own", b"mine", 1, 1)
    assert not [packet for packet in sub.take() if isinstance(packet, Publish)]
    world.client("pub").publish("kept", b"x", 1, 1, retain=True)
    (message,) = sub.messages()
    assert message.retain
    assert message.properties.subscription_identifiers == (7,)


def test_the_options_of_a_subscription_that_was_renewed() -> None:
    world, sub = a_world_with("a", 2)
    sub.subscribe(("a", 0))
    world.crash()
    sub = world.back("sub")
    world.client("pub").publish("a", b"x", 2, 1)
    assert [message.qos for message in sub.messages()] == [0]


def test_what_was_unsubscribed_from_stays_so() -> None:
    world, sub = a_world_with("a", 2)
    sub.unsubscribe("a")
    world.crash()
    sub = world.back("sub")
    world.client("pub").publish("a", b"x", 2, 1)
    assert not sub.messages()


def test_a_session_that_was_begun_anew() -> None:
    world, sub = a_world_with("a", 2)
    sub.detach()
    world.client("pub").publish("a", b"old", 1, 1)
    world.client("sub", expiry=LASTING)
    world.crash()
    sub = world.back("sub")
    world.client("pub").publish("a", b"x", 2, 1)
    assert not sub.messages()


def test_a_session_that_is_to_end_with_its_connection() -> None:
    world, sub = a_world_with("a", 2)
    sub.detach()
    world.client("sub", clean=False)
    world.crash()
    again = world.lasting("sub")
    assert again.connack is not None
    assert not again.connack.session_present


@pytest.mark.parametrize(("interval", "away_s", "present"), [(0, 0, False), (50, 40, True), (50, 60, False), (5000, 2000, True)])
def test_an_expiry_that_disconnect_has_set(interval: int, away_s: float, present: bool) -> None:
    world, sub = a_world_with()
    sub.disconnect(session_expiry_interval=interval)
    world.crash(away_s=away_s)
    again = world.lasting("sub")
    assert again.connack is not None
    assert again.connack.session_present is present


def test_the_time_away_counts_in_all_its_pieces() -> None:
    world, sub = a_world_with()
    sub.detach()
    world.after(400)
    world.crash(away_s=400)
    world.after(150)
    assert "sub" in world.state.sessions
    world.crash(away_s=100)
    assert "sub" not in world.state.sessions


def test_whoever_was_connected_has_all_its_time_from_then_on() -> None:
    world, _ = a_world_with()
    world.crash(away_s=100_000)
    world.after(900)
    world.crash(away_s=99)
    world.back("sub")


def test_a_clock_that_went_back_ends_no_session() -> None:
    world, sub = a_world_with()
    sub.detach()
    world.crash(away_s=-1e6)
    world.back("sub")


# ---- messages that wait -----------------------------------------------------------------------------------------------


def test_what_waits_for_a_client_that_is_away_in_its_order() -> None:
    world, sub = a_world_with()
    sub.detach()
    pub = world.client("pub")
    for number in range(1, 20):
        pub.publish(f"t/{number % 3}", b"%d" % number, 1 + number % 2, number, content_type="text" if number % 5 == 0 else None)
        if number == 10:
            world.crash()
            pub = world.client("pub")
    world.crash()
    messages = world.back("sub").messages()
    assert [message.payload for message in messages] == [b"%d" % number for number in range(1, 20)]
    assert [message.qos for message in messages] == [1 + number % 2 for number in range(1, 20)]
    assert [message.properties.content_type for message in messages] == ["text" if number % 5 == 0 else None for number in range(1, 20)]


def test_identifiers_and_the_retain_flag_of_what_waits() -> None:
    world = LastingWorld()
    sub = world.lasting("sub")
    sub.subscribe(SubscriptionRequest("a/+", 1, False, True), packet_id=1, identifier=5)
    sub.subscribe(SubscriptionRequest("a/#", 1, False, False), packet_id=2, identifier=268_435_455)
    sub.detach()
    world.client("pub").publish("a/b", b"x", 1, 1, retain=True)
    world.crash()
    (message,) = world.back("sub").messages()
    assert message.retain
    assert sorted(message.properties.subscription_identifiers) == [5, 268_435_455]


def test_message_expiry_goes_on_while_nobody_is_there() -> None:
    world, sub = a_world_with()
    sub.detach()
    pub = world.client("pub")
    pub.publish("a", b"short", 1, 1, message_expiry_interval=50)
    pub.publish("a", b"long", 1, 2, message_expiry_interval=500)
    world.after(10)
    world.crash(away_s=50)
    (message,) = world.back("sub").messages()
    assert message.payload == b"long"
    assert message.properties.message_expiry_interval == 440


def test_an_empty_payload_and_the_longest_topic() -> None:
    world, sub = a_world_with(filter_levels_max=70_000)
    sub.detach()
    topic = "x" * 65_535
    world.client("pub").publish(topic, b"", 2, 1)
    world.crash()
    (message,) = world.back("sub").messages()
    assert (message.topic, message.payload, message.qos) == (topic, b"", 2)


@pytest.mark.parametrize("rule", ["drop-oldest", "drop-newest", "latest"])
def test_what_an_overflow_rule_has_left(rule: str) -> None:
    world, sub = a_world_with(queue_count_max=3, overflow={"#": rule})
    sub.detach()
    pub = world.client("pub", MQTT_311)
    kept: list[bytes] = []
    for number in range(1, 12):
        pub.publish(f"t/{number % 4}", b"%d" % number, 1, number)
        if number % 3 == 0:
            waiting = world.state.sessions["sub"].queue.deliveries()
            kept = [delivery.message.payload for delivery in waiting]
            world.crash()
            assert [delivery.message.payload for delivery in world.state.sessions["sub"].queue.deliveries()] == kept
            pub = world.client("pub", MQTT_311)
    expected = [delivery.message.payload for delivery in world.state.sessions["sub"].queue.deliveries()]
    world.crash()
    assert world.back("sub").payloads() == expected


def test_a_queue_that_is_longer_than_the_new_limit() -> None:
    world, sub = a_world_with()
    sub.detach()
    pub = world.client("pub", MQTT_311)
    for number in range(1, 11):
        pub.publish("t", b"%d" % number, 1, number)
    world._options |= {"queue_count_max": 4}
    world.crash()
    world.client("pub", MQTT_311).publish("t", b"11", 1, 1)
    assert world.state.sessions["sub"].queue.count == 4
    world.crash()
    assert world.back("sub").payloads() == [b"8", b"9", b"10", b"11"]


# ---- messages under way -----------------------------------------------------------------------------------------------


def test_what_is_under_way_is_repeated_with_its_id() -> None:
    world, sub = a_world_with()
    pub = world.client("pub")
    for number in range(1, 6):
        pub.publish("t", b"%d" % number, 1 + number % 2, number)
    before = sub.messages()
    sub.send(PubAck(before[1].packet_id))
    world.crash()
    after = world.back("sub").messages()
    assert [message.packet_id for message in after] == [message.packet_id for message in before if message is not before[1]]
    assert [message.payload for message in after] == [b"1", b"3", b"4", b"5"]
    assert all(message.dup for message in after)


def _run(topic: str, payloads: list[bytes], qos: int, first_id: int = 1, version: int = MQTT_5, **properties: Any) -> bytes:
    described = Properties(**properties)
    packets = [Publish(topic, payload, qos, packet_id=first_id + number, properties=described) for number, payload in enumerate(payloads)]
    return b"".join(encode(packet, version) for packet in packets)


RUN = [b"%03d" % number for number in range(40)]


def _held_runs(world: World, client_id: str) -> int:
    """Messages under way that belong to a run."""
    return sum(isinstance(value, PublishRun) for value in world.state.sessions[client_id].sender.unacknowledged.values())


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("to", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("then", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("by", [MQTT_311, MQTT_5])
@pytest.mark.parametrize("granted", [1, 2])
@pytest.mark.parametrize("described", [False, True])
def test_a_run_to_a_subscriber_whose_line_is_stuck(qos: int, to: int, then: int, by: int, granted: int, described: bool) -> None:
    """then: the version by which its client comes back, to all that its publisher had said of the messages."""
    if described and by < MQTT_5:
        return
    world = LastingWorld()
    sub = world.lasting("sub", to)
    sub.subscribe(("t", granted))
    pub = world.client("pub", by)
    pub.publish("t", b"first", qos, 1000)  # so that the topic is known
    for message in sub.messages():
        sub.acknowledge(message)
    sub.takes = 0
    properties = {"user_properties": (("a", "b"),)} if described else {}
    pub.give(_run("t", RUN, qos, 1, by, **properties))
    assert _held_runs(world, "sub") == 40
    world.crash()
    messages = world.back("sub", then).messages()
    assert [message.payload for message in messages] == RUN
    assert [message.packet_id for message in messages] == list(range(1, 41))
    assert {message.qos for message in messages} == {min(qos, granted)}
    assert {message.properties.user_properties for message in messages} == {(("a", "b"),) if described and then == MQTT_5 else ()}


def test_a_run_with_other_ids_and_of_which_a_part_was_acknowledged() -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub")
    pub.publish("t", b"first", 1, 1)  # unacknowledged: its id is taken
    pub.give(_run("t", RUN, 1))
    assert _held_runs(world, "sub") == 40
    messages = sub.messages()
    assert [message.packet_id for message in messages[1:]] != list(range(1, 41))
    sub.give(b"".join(encode(PubAck(message.packet_id), MQTT_5) for message in messages[:11]))
    world.crash()
    sub = world.back("sub")
    again = sub.messages()
    assert [(message.packet_id, message.payload) for message in again] == [(message.packet_id, message.payload) for message in messages[11:]]
    sub.give(b"".join(encode(PubAck(message.packet_id), MQTT_5) for message in again[:20]))
    world.crash()
    assert world.back("sub").payloads() == RUN[30:]


def _acknowledge(peer: Peer, ids: list[int]) -> None:
    for packet_id in ids:
        peer.send(PubAck(packet_id))


def test_a_run_that_is_acknowledged_message_by_message_stays_one_row() -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub", MQTT_311)
    pub.publish("t", b"first", 1, 1000)
    (first,) = sub.messages()
    pub.give(_run("t", RUN, 1, 1, MQTT_311))
    _acknowledge(sub, [message.packet_id for message in sub.messages() if message.payload[-1:] in b"13579"])
    (run,) = world.shelf.runs
    assert sum(run.places[at : at + 2] != b"\0\0" for at in range(2, len(run.places), 2)) == 20
    sub.publish("t", b"last", 1, 1)
    world.crash()
    sub = world.back("sub")
    assert sub.payloads() == [b"first", *RUN[::2], b"last"]  # in the order in which they were sent
    world.crash()
    sub = world.back("sub")
    messages = sub.messages()
    _acknowledge(sub, [message.packet_id for message in messages])
    assert not [*world.shelf.runs, *world.shelf.messages]
    assert messages[0].packet_id == first.packet_id


def test_a_run_takes_the_place_of_one_that_was_acknowledged() -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub", MQTT_311)
    pub.publish("t", b"first", 1, 1000)
    pub.give(_run("t", RUN, 1, 1, MQTT_311))
    messages = sub.messages()
    before = {row.number: row.frames for row in world.shelf.runs}
    world.disk_works = False
    sub.give(b"".join(encode(PubAck(message.packet_id), MQTT_5) for message in messages))
    pub.give(_run("t", RUN[::-1], 1, 1, MQTT_311))
    world.disk_works = True
    world.settle()
    (row,) = world.shelf.runs
    assert row.number in before
    world.crash()
    assert world.back("sub").payloads() == RUN[::-1]
    world.engine.disconnect("sub", ReasonCode.ADMINISTRATIVE_ACTION, world.now, drop_session=True)
    world.settle()
    assert not world.shelf.rows_count


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_what_is_damaged_of_a_run_costs_no_other_message(version: int) -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub", version)
    pub.publish("t", b"first", 1, 1000)
    (first,) = sub.messages()
    _acknowledge(sub, [first.packet_id])
    pub.give(_run("t", RUN, 1, 1, version))
    (row,) = world.shelf.runs
    frames = bytearray(row.frames)
    frames[1] ^= 0x40  # of one its length, of another its topic's, and of a third its topic's text
    frames[row.size * 5 + 2] ^= 0x40
    frames[row.size * 7 + 4] = 0xFF
    world.shelf._runs[row.number] = row._replace(frames=bytes(frames))
    world.crash()
    assert world.dropped("damaged") == 3
    world.settle()
    expected = [payload for number, payload in enumerate(RUN) if number not in (0, 5, 7)]
    assert not list(world.shelf.runs)
    assert world.back("sub").payloads() == expected
    world.crash()
    assert world.dropped("damaged") == 0
    sub = world.back("sub")
    messages = sub.messages()
    assert [message.payload for message in messages] == expected
    _acknowledge(sub, [message.packet_id for message in messages])
    assert not list(world.shelf.messages)


@pytest.mark.parametrize(
    "changed",
    [{"size": 0}, {"size": 7}, {"size": 10_000}, {"frames": b""}, {"frames": b"\x32"}, {"places": b""}, {"places": b"\xff\xff\xff"}, {"session": 77}],
)
def test_a_run_whose_row_is_damaged(changed: dict[str, Any]) -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub")
    pub.publish("t", b"first", 1, 1000)
    sub.messages()
    pub.give(_run("t", RUN, 1))
    (row,) = world.shelf.runs
    world.shelf._runs[row.number] = row._replace(**changed)
    world.crash()
    assert not list(world.shelf.runs)
    assert world.back("sub").payloads() == [b"first"]


def test_ids_in_use_are_not_given_out_again() -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub")
    for number in range(1, 6):
        pub.publish("t", b"%d" % number, 1, number)
    world.crash()
    sub = world.back("sub")
    sub.take()
    pub = world.client("pub")
    pub.publish("t", b"new", 1, 1)
    pub.give(_run("t", RUN, 1, 2))
    messages = sub.messages()
    assert not {message.packet_id for message in messages} & {1, 2, 3, 4, 5}


@pytest.mark.parametrize("qos", [1, 2])
def test_a_retained_message_that_is_sent_to_a_new_subscription(qos: int) -> None:
    world = LastingWorld()
    pub = world.client("pub")
    pub.publish("a/1", b"kept", qos, 1, retain=True)
    sub = world.lasting("sub")
    sub.subscribe(("a/+", 2))
    (before,) = sub.messages()
    assert isinstance(world.state.sessions["sub"].sender.unacknowledged.get(before.packet_id), KeptDelivery)
    sub.detach()
    world.crash()
    (after,) = world.back("sub").messages()
    assert (after.packet_id, after.payload, after.qos, after.retain, after.dup) == (before.packet_id, b"kept", qos, True, True)


def test_a_release_goes_on() -> None:
    world, sub = a_world_with("t")
    world.client("pub").give(_run("t", RUN[:3], 2))
    first, second, third = sub.messages()
    for message in (second, first):
        sub.send(PubRec(message.packet_id))
    assert [packet.packet_id for packet in sub.take() if isinstance(packet, PubRel)] == [second.packet_id, first.packet_id]
    world.crash()
    sub = world.back("sub")
    assert [sub.pop(PubRel).packet_id for _ in range(2)] == [second.packet_id, first.packet_id]  # in the order of the PUBRECs
    (again,) = sub.messages()
    assert again.packet_id == third.packet_id
    sub.send(PubComp(second.packet_id), PubComp(first.packet_id))
    world.crash()
    assert [type(packet) for packet in world.back("sub").take()] == [Publish]


def test_a_run_of_releases_goes_on() -> None:
    world, sub = a_world_with("t")
    pub = world.client("pub")
    pub.publish("t", b"first", 0)
    sub.take()
    pub.give(_run("t", RUN, 2))
    sub.take()
    sub.give(b"".join(encode(PubRec(number), MQTT_5) for number in range(1, 31)))
    world.crash()
    sub = world.back("sub")
    got = sub.take()
    assert [packet.packet_id for packet in got if isinstance(packet, PubRel)] == list(range(1, 31))
    assert [packet.packet_id for packet in got if isinstance(packet, Publish)] == list(range(31, 41))
    sub.give(b"".join(encode(PubComp(number), MQTT_5) for number in range(1, 31)))
    world.crash()
    assert len(world.back("sub").messages()) == 10


def test_a_message_that_the_client_refused() -> None:
    world, sub = a_world_with("t")
    world.client("pub").publish("t", b"x", 2, 1)
    (message,) = sub.messages()
    sub.send(PubRec(message.packet_id, ReasonCode.QUOTA_EXCEEDED))
    world.crash()
    assert not world.back("sub").take()


def test_a_message_that_is_too_large_for_its_client() -> None:
    world = LastingWorld()
    sub = world.lasting("sub", maximum_packet_size=100)
    sub.subscribe(("t", 1))
    world.client("pub").publish("t", bytes(200), 1, 1)
    world.crash()
    assert not world.back("sub").take()


# ---- what has come at QoS 2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_a_message_that_is_repeated_after_a_crash_is_no_new_one(count: int, version: int) -> None:
    world, _ = a_world_with("t")
    pub = world.lasting("pub", version)
    pub.publish("t", b"first", 0)
    pub.give(_run("t", RUN[:count], 2, 1, version))
    world.crash()
    pub = world.back("pub", version)
    pub.give(_run("t", RUN[:count], 2, 1, version))
    assert [packet.packet_id for packet in pub.take() if isinstance(packet, PubRec)] == list(range(1, count + 1))
    assert world.back("sub").payloads() == RUN[:count]


def test_ids_that_were_released_are_free() -> None:
    world, _ = a_world_with("t")
    pub = world.lasting("pub")
    pub.publish("t", b"first", 0)
    pub.give(_run("t", RUN, 2))
    pub.give(b"".join(encode(PubRel(number), MQTT_5) for number in range(1, 21)))
    pub.send(PubRel(25))
    world.crash()
    pub = world.back("pub")
    pub.give(_run("t", [b"new"] * 40, 2))
    payloads = world.back("sub").payloads()
    assert payloads == [*RUN, *[b"new"] * 21]
    pub.send(PubRel(40))
    assert [packet for packet in pub.take() if isinstance(packet, PubComp)] == [PubComp(40)]


# ---- shared subscriptions ---------------------------------------------------------------------------------------------


def test_a_groups_message_goes_to_another_member_when_its_own_ends() -> None:
    world = LastingWorld()
    first = world.lasting("first")
    first.subscribe(("$share/team/t/#", 1))
    first.detach()
    pub = world.client("pub")
    pub.publish("t/1", b"x", 1, 1)
    world.crash()
    other = world.client("other")
    other.subscribe(("$share/team/t/#", 1))
    world.after(LASTING + 1)
    assert other.payloads() == [b"x"]


# ---- retained messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
def test_retained_messages(qos: int, version: int) -> None:
    world = LastingWorld()
    pub = world.client("pub", version)
    for topic in ("a", "a/b", "a/b/c", "x"):
        pub.publish(topic, b"old " + topic.encode(), qos, 1 if qos else 0, retain=True)
        pub.send(PubRel(1))
    pub.publish("a/b", b"new", qos, 2 if qos else 0, retain=True)
    pub.publish("x", b"", qos, 3 if qos else 0, retain=True)
    world.crash()
    reader = world.client("reader")
    reader.subscribe(("#", 2))
    assert {message.topic: (message.payload, message.qos) for message in reader.messages()} == {
        "a": (b"old a", qos),
        "a/b": (b"new", qos),
        "a/b/c": (b"old a/b/c", qos),
    }


def test_a_retained_message_that_expires() -> None:
    world = LastingWorld()
    pub = world.client("pub")
    pub.publish("short", b"x", 1, 1, retain=True, message_expiry_interval=50)
    pub.publish("long", b"x", 1, 2, retain=True, message_expiry_interval=500)
    pub.publish("gone", b"x", 1, 3, retain=True, message_expiry_interval=5)
    world.after(10)
    world.crash(away_s=50)
    assert len(world.state.retained) == 1
    reader = world.client("reader")
    reader.subscribe(("#", 1))
    (message,) = reader.messages()
    assert (message.topic, message.properties.message_expiry_interval) == ("long", 440)
    assert len(list(world.shelf.retained)) == 1


def test_what_a_bridge_says_of_itself_is_kept_and_what_the_broker_says_is_not() -> None:
    world = LastingWorld()
    world.client("bridge").publish("$SYS/broker/connection/bridge/state", b"1", 1, 1, retain=True)
    world.engine.publish(ApplicationMessage("$SYS/broker/uptime", b"1", 0, True), world.now)
    world.settle()
    world.crash()
    assert [row.topic for row in world.shelf.retained] == ["$SYS/broker/connection/bridge/state"]


# ---- Wills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expiry", [None, LASTING])
def test_the_will_of_whoever_was_connected(expiry: int | None) -> None:
    world, _ = a_world_with("will", 1)
    world.client("c", expiry=expiry, will=WillMessage("will", b"gone", 1, False, Properties(content_type="text")))
    world.crash()
    (message,) = world.back("sub").messages()
    assert (message.payload, message.properties.content_type) == (b"gone", "text")
    world.crash()
    assert len(world.back("sub").messages()) == 1  # the same one, once more
    world.client("c", clean=False)
    assert not list(world.shelf.wills)


def test_a_will_that_was_taken_back() -> None:
    world, _ = a_world_with("will", 1)
    world.client("c", expiry=LASTING, will=WillMessage("will", b"gone", 1)).disconnect()
    world.crash()
    assert not world.back("sub").messages()


def test_a_will_with_a_delay() -> None:
    world, _ = a_world_with("will", 1)
    world.client("c", expiry=LASTING, will=WillMessage("will", b"gone", 1, False, Properties(will_delay_interval=100))).detach()
    world.after(50)
    world.crash(away_s=30)
    sub = world.back("sub")
    assert not sub.messages()
    world.after(21)
    assert sub.payloads() == [b"gone"]


def test_a_will_with_a_delay_of_who_comes_back() -> None:
    world, _ = a_world_with("will", 1)
    world.client("c", expiry=LASTING, will=WillMessage("will", b"gone", 1, False, Properties(will_delay_interval=100)))
    world.crash(away_s=30)
    world.back("c")
    world.after(200)
    world.crash()
    assert not world.back("sub").messages()


def test_a_will_that_goes_out_with_its_session() -> None:
    world, _ = a_world_with("will", 1)
    sub = world.client("c", expiry=100, will=WillMessage("will", b"gone", 1, False, Properties(will_delay_interval=1000)))
    sub.detach()
    world.crash(away_s=200)
    assert world.back("sub").payloads() == [b"gone"]


def test_a_retained_will() -> None:
    world = LastingWorld()
    world.client("c", will=WillMessage("will", b"gone", 1, True))
    world.crash()
    assert [row.topic for row in world.shelf.retained] == ["will"]


# ---- what is noted, and for how long ----------------------------------------------------------------------------------


def test_what_came_from_the_store_is_no_change() -> None:
    """Or whoever reads on only when there are few would wait for a write that nobody has a reason to make."""
    world = LastingWorld()
    pub = world.client("pub", MQTT_311)
    for number in range(20):
        pub.publish(f"t/{number}", b"x", retain=True)
    sub = world.lasting("sub")
    sub.subscribe(("t/+", 1))
    sub.detach()
    world.crash()
    assert not world.engine.has_changes
    assert world.engine.changes_count == 0


def test_each_filter_counts() -> None:
    """A packet may have ten thousand of them."""
    world = LastingWorld()
    sub = world.lasting("sub", MQTT_311)
    world.disk_works = False
    before = world.engine.changes_count
    sub.give(encode(Subscribe(1, tuple(SubscriptionRequest(f"t/{number}") for number in range(100))), MQTT_311))
    sub.give(encode(Unsubscribe(2, tuple(f"t/{number}" for number in range(100))), MQTT_311))
    assert world.engine.changes_count >= before + 200


def test_the_time_when_a_client_left_is_written_once() -> None:
    world, sub = a_world_with()
    sub.detach()
    pub = world.client("pub")
    for number in range(1, 4):
        world.now += 1.1
        world.unix_ahead += 0.0001  # no two clocks go alike
        world.disk_works = False
        pub.publish("t", b"x", 1, number)
        changes = world.engine.take_changes(world.now, world.now + world.unix_ahead)
        assert changes is not None
        assert not changes.sessions
        assert len(changes.messages) + len(changes.runs) == 1
        world.engine.committed(changes.number)


# ---- while the disk does not work -------------------------------------------------------------------------------------


def _answers(peer: Peer) -> list[type]:
    return [type(packet) for packet in peer.take()]


def test_nothing_is_answered_before_it_is_written() -> None:
    world = LastingWorld()
    sub = world.lasting("sub")
    pub = world.lasting("pub")
    world.disk_works = False
    steps: list[tuple[Peer, Any, list[type]]] = [
        (sub, Subscribe(1, (SubscriptionRequest("t", 2),)), [SubAck]),
        (pub, Publish("t", b"x", 1, packet_id=1), [PubAck]),
        (pub, Publish("t", b"x", 2, packet_id=2), [PubRec]),
        (pub, PubRel(2), [PubComp]),
        (pub, Publish("kept", b"x", 1, True, packet_id=3), [PubAck]),
        (sub, PubRec(2), [PubRel]),
        (sub, Unsubscribe(4, ("t",)), [UnsubAck]),
    ]
    for peer, packet, expected in steps:
        peer.send(packet)
        assert not peer.take(), packet
        assert not sub.take(), packet
        world.write()
        world.settle()
        assert _answers(peer) == expected
        sub.take()
    peer = world.peer("new")
    peer.send(_connect("new"))
    assert not peer.take()
    world.write()
    world.settle()
    assert _answers(peer) == [ConnAck]


def _connect(client_id: str, *, clean: bool = True, expiry: int = LASTING, will: WillMessage | None = None) -> Connect:
    return Connect(client_id, MQTT_5, clean, 0, will, None, None, Properties(session_expiry_interval=expiry))


def test_who_keeps_nothing_waits_for_nobody() -> None:
    world, sub = a_world_with()
    world.disk_works = False
    sub.send(Subscribe(9, (SubscriptionRequest("other"),)))
    assert not sub.take()
    peer = world.peer("new")
    peer.send(_connect("new", expiry=0))
    assert _answers(peer) == [ConnAck]


@pytest.mark.parametrize("ended", ["by its client", "by DISCONNECT", "by its time", "by the administrator"])
def test_whose_session_has_ended_is_told_when_that_is_written(ended: str) -> None:
    world, sub = a_world_with()
    if ended != "by DISCONNECT":
        sub.detach()
    world.disk_works = False
    if ended == "by DISCONNECT":
        sub.disconnect(session_expiry_interval=0)
    elif ended == "by its time":
        world.after(LASTING + 1)
    elif ended == "by the administrator":
        world.engine.disconnect("sub", ReasonCode.ADMINISTRATIVE_ACTION, world.now, drop_session=True)
    taken = world.engine.take_changes(world.now, world.now) if ended != "by its client" else None
    peer = world.peer("sub")
    peer.send(_connect("sub", clean=ended == "by its client", expiry=0))
    assert not peer.take()
    if taken is not None:
        world.engine.committed(taken.number)
    else:
        world.write()
    world.settle()
    assert _answers(peer) == [ConnAck]
    assert not peer.link.gate > world.state.committed


def test_who_has_a_will_is_told_when_that_is_written() -> None:
    world = LastingWorld()
    world.disk_works = False
    peer = world.peer("new")
    peer.send(_connect("new", expiry=0, will=WillMessage("will", b"x")))
    assert not peer.take()


def test_those_who_come_and_go_leave_nothing() -> None:
    """They come again and again: nobody answers them."""
    world, sub = a_world_with()
    world.disk_works = False
    sub.publish("t", b"x", 1, 1)
    for number in range(100):
        peer = world.peer()
        peer.send(_connect(f"c{number % 3}", expiry=number % 2 * 100, will=WillMessage("will", b"x")))
        peer.detach()
        world.client("sub-0", expiry=0).disconnect()
    world.after(1000)
    journal = world.engine.state.journal
    assert journal is not None
    assert len(world.state.gated) == 1
    assert len(journal._wills) <= 3
    assert len(journal._will_numbers) <= 3
    assert len(journal._ended) <= 3
    world.write()
    world.settle()
    assert not world.state.gated
    assert not list(world.shelf.wills)
    assert [row.client_id for row in world.shelf.sessions] == ["sub"]


def test_a_connection_that_is_to_be_closed_is_named_though_its_last_words_wait() -> None:
    world, sub = a_world_with()
    world.disk_works = False
    sub.publish("t", b"x", 1, 1)
    world.engine.disconnect("sub", ReasonCode.ADMINISTRATIVE_ACTION, world.now)
    assert world.engine.take_ready() == [sub.link]
    assert world.engine.held_back(sub.link)
    assert not world.engine.data_to_send(sub.link)
    world.write()
    assert world.engine.take_ready() == [sub.link]
    sub.flush()
    assert _answers(sub)[-1] is Disconnect


def test_a_groups_message_is_not_sent_to_another_member_before_its_own_has_ended_on_disk() -> None:
    world = LastingWorld()
    first = world.lasting("first")
    first.subscribe(("$share/team/t/#", 2))
    first.detach()
    world.client("pub").publish("t/1", b"x", 2, 1)
    other = world.client("other")
    other.subscribe(("$share/team/t/#", 2))
    world.disk_works = False
    world.after(LASTING + 1)
    assert not other.take()
    world.write()
    world.settle()
    assert other.payloads() == [b"x"]


def test_a_groups_message_goes_on_when_its_member_expires_while_the_broker_is_away() -> None:
    world = LastingWorld()
    other = world.lasting("other", expiry=100_000)
    other.subscribe(("$share/team/t/#", 1))
    first = world.lasting("first")
    first.subscribe(("$share/team/t/#", 1))
    other.detach()
    world.client("pub").publish("t/1", b"sent", 1, 1)  # to the one that is there
    first.detach()
    for number in range(2):
        world.client("pub").publish("t/1", b"%d" % number, 1, 1)
    world.crash(away_s=LASTING + 1)
    assert "first" not in world.state.sessions
    assert sorted(world.back("other").payloads()) == [b"0", b"1", b"sent"]


# ---- rights of their own ----------------------------------------------------------------------------------------------


def _only_public(username: str | None, client_id: str, action: str, topic: str) -> bool:
    return action == "subscribe" or topic.startswith("public/")


def _only_secret(username: str | None, client_id: str, action: str, topic: str) -> bool:
    return action == "subscribe" or topic.startswith("secret/")


RIGHTS: Final = {"public": _only_public, "secret": _only_secret}


def _own(rights: str) -> Access:
    """As a token gives them."""
    return Access(RIGHTS[rights], refuses_wills=False, own=rights)


class WorldOfRights(LastingWorld):
    """Whoever has no rights of its own may do nothing, which the listener says."""

    def __init__(self) -> None:
        super().__init__(authorize=lambda *_: False)
        self.rules_of = lambda listener, own: (_own(own) if own else self.state.access, self.state.allowance)

    def with_rights(self, client_id: str, rights: str, clean: bool = True, **options: Any) -> Peer:
        peer = Peer(self, self.engine.attach(client_id, self.now, access=_own(rights)))
        peer.send(_connect(client_id, clean=clean, **options))
        return peer


def test_rights_of_ones_own_hold_while_their_client_is_away_and_after_a_crash() -> None:
    world = WorldOfRights()
    sub = world.with_rights("sub", "public")
    sub.take()
    sub.subscribe(("#", 1))
    sub.detach()
    for number in range(3):
        world.engine.publish(ApplicationMessage("public/1", b"%d" % number, 1), world.now)
        world.engine.publish(ApplicationMessage("secret/1", b"no", 1), world.now)
        world.settle()
        assert world.state.sessions["sub"].queue.count == number + 1
        world.crash()
    sub = world.with_rights("sub", "public", clean=False)
    assert [message.payload for message in sub.take() if isinstance(message, Publish)] == [b"0", b"1", b"2"]
    assert world.state.sessions["sub"].dropped is None


@pytest.mark.parametrize("crashes", [False, True])
def test_other_rights_of_ones_own_hold_for_what_waits_too(crashes: bool) -> None:
    world = WorldOfRights()
    sub = world.with_rights("sub", "public")
    sub.take()
    sub.subscribe(("#", 1))
    sub.detach()
    world.engine.publish(ApplicationMessage("public/1", b"before", 1), world.now)
    world.settle()
    if crashes:
        world.crash()
    sub = world.with_rights("sub", "secret", clean=False)
    assert not [message for message in sub.take() if isinstance(message, Publish)]
    assert world.state.sessions["sub"].dropped == {"not-authorized": 1}
    sub.detach()
    if crashes:
        world.crash()
    world.engine.publish(ApplicationMessage("secret/1", b"after", 1), world.now)
    world.settle()
    assert world.state.sessions["sub"].queue.count == 1


def test_rights_that_came_over_auth_are_those_that_are_kept() -> None:
    world = WorldOfRights()
    link = world.engine.attach("sub", world.now, access=_own("public"))
    sub = Peer(world, link)
    properties = Properties(session_expiry_interval=LASTING, authentication_method="JWT")
    world.engine.set_authentication(True)
    sub.send(Connect("sub", 5, True, properties=properties, will=WillMessage("secret/will", b"gone", 1, True)))
    world.engine.authenticated(link, "ann", world.now, access=_own("public"))
    world.settle()
    sub.subscribe(("#", 1))
    sub.send(Auth(ReasonCode.REAUTHENTICATE, Properties(authentication_method="JWT")))
    world.engine.authenticated(link, "ann", world.now, access=_own("secret"))
    world.settle()
    world.crash()
    assert [row.topic for row in world.shelf.retained] == ["secret/will"]
    assert world.state.sessions["sub"].access.own == "secret"


def test_a_replay_goes_on() -> None:
    """Whoever was told that it is subscribed is owed what was retained."""
    world = LastingWorld(inflight_count_max=3)
    pub = world.client("pub", MQTT_311)
    for number in range(1, 9):
        pub.publish(f"kept/{number}", b"%d" % number, 1, number, retain=True)
    sub = world.lasting("sub")
    sub.subscribe(("kept/+", 1))
    got = {message.payload for message in sub.messages()}
    assert len(got) == 3
    world.crash()
    sub = world.back("sub")
    while messages := sub.messages():
        for message in messages:
            got.add(message.payload)
            sub.acknowledge(message)
    assert got == {b"%d" % number for number in range(1, 9)}


def test_a_replay_that_is_over_does_not_begin_again() -> None:
    world = LastingWorld(inflight_count_max=3)
    pub = world.client("pub", MQTT_311)
    for number in range(1, 9):
        pub.publish(f"kept/{number}", b"%d" % number, 1, number, retain=True)
    sub = world.lasting("sub")
    sub.subscribe(("kept/+", 1))
    while messages := sub.messages():
        for message in messages:
            sub.acknowledge(message)
    world.crash()
    assert not world.back("sub").take()


@pytest.mark.parametrize("lasting", [False, True])
def test_a_will_goes_out_after_a_crash_by_rights_of_ones_own(lasting: bool) -> None:
    world = WorldOfRights()
    for client_id, topic in (("may", "public/will"), ("may-not", "secret/will")):
        world.with_rights(client_id, "public", will=WillMessage(topic, b"gone", 1, True), expiry=LASTING if lasting else 0)
    world.write()
    world.crash()
    assert [row.topic for row in world.shelf.retained] == ["public/will"]


@pytest.mark.parametrize("pieces", [False, True])
def test_a_gate_opens_though_there_is_always_something_new(pieces: bool) -> None:
    """While one change is being written the next one comes: what waited for the first may go, and nothing of the second."""
    world, sub = a_world_with()
    pub = world.client("pub", MQTT_311)
    world.disk_works = False
    if pieces:
        sub.takes = 10
    pub.publish("t", b"0", 2, 1)
    for number in range(1, 20):
        changes = world.engine.take_changes(world.now, world.now)
        assert changes is not None
        pub.publish("t", b"%d" % number, 2, 1 + number)
        world.shelf.write(changes)
        world.engine.committed(changes.number)
        world.settle()
        if pieces:
            sub.read(3)
            sub.read(1000)
        assert [message.payload for message in sub.messages()] == [b"%d" % (number - 1)]
        assert [packet.packet_id for packet in pub.take() if isinstance(packet, PubRec)] == [number]
        assert world.engine.held_back(sub.link)
    world.write()
    world.settle()
    assert sub.payloads() == [b"19"]
    assert not world.state.gated
    for peer in (sub, pub):
        peer.detach()
    assert world.state.waiting.unsent_bytes == 0


def test_who_may_be_read_again_is_told_so_though_its_gate_is_closed() -> None:
    """There may be no moment in which it is not: and what it has to say may be what its own messages wait for."""
    world = LastingWorld(outbox_bytes_high=1024, slow_subscriber_grace_s=1000)
    pub = world.lasting("pub")
    pub.subscribe(("own", 1))
    slow = world.client("slow")
    slow.subscribe("s")
    slow.takes = 0
    for _ in range(4):
        pub.publish("s", bytes(1000))
    assert pub.link.paused
    world.disk_works = False
    world.engine.publish(ApplicationMessage("own", b"x", 1), world.now)
    world.settle()
    assert world.engine.held_back(pub.link)
    while pub.link.paused:
        assert not world.engine.take_ready()
        data = world.engine.data_to_send(slow.link)
        world.engine.bytes_sent(slow.link, len(data), world.now)
    assert pub.link in world.engine.take_ready()
    assert not world.engine.data_to_send(pub.link)


def test_a_message_in_the_place_of_another_is_one_row() -> None:
    """And not all that waits, anew with each: that may be a hundred thousand."""
    world, sub = a_world_with(queue_count_max=100, overflow={"#": "latest"})
    sub.detach()
    pub = world.client("pub", MQTT_311)
    for number in range(1, 102):
        pub.publish(f"t/{number % 100}", b"%d" % number, 1, number)
    world.disk_works = False
    for number in (7, 50, 7):
        pub.publish(f"t/{number}", b"new", 1, 200 + number)
    changes = world.engine.take_changes(world.now, world.now + world.unix_ahead)
    assert changes is not None
    assert len(changes.messages) == 2
    assert not changes.cut
    world.shelf.write(changes)
    expected = [delivery.message.payload for delivery in world.state.sessions["sub"].queue.deliveries()]
    world.crash()
    assert [delivery.message.payload for delivery in world.state.sessions["sub"].queue.deliveries()] == expected


def test_a_row_in_which_bits_were_turned_costs_no_other() -> None:
    world, sub = a_world_with()
    pub = world.client("pub", MQTT_311)
    pub.publish("t", b"sent", 1, 1)
    pub.publish("t", b"sent too", 1, 2)
    sub.detach()
    for number in range(3):
        pub.publish("t", b"%d" % number, 1, 3 + number)
        pub.publish(f"kept/{number}", b"%d" % number, 1, 6 + number, retain=True)
    waiting = min(key for key in world.shelf._messages if key[1] == WAITING)
    for key in ((1, SENT, 1), waiting):
        world.shelf._messages[key] = world.shelf._messages[key]._replace(frame=b"\x32")
    world.shelf._retained["kept/1"] = world.shelf._retained["kept/1"]._replace(frame=b"")
    world.shelf._retained["kept/2"] = world.shelf._retained["kept/2"]._replace(frame=b"\x31\x02\xff\xff\xff")
    world.crash()
    assert world.dropped("damaged") == 2
    assert len(world.state.retained) == 1
    sub = world.back("sub")
    got = [message.payload for message in sub.take() if isinstance(message, Publish)]
    assert got == [b"sent too", b"0", b"1", b"1", b"2", b"2"]
    world.crash()
    assert world.dropped("damaged") == 0
