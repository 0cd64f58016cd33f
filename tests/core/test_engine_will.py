"""The Will: when it goes out, when it does not, and that it goes out once."""

from __future__ import annotations

from typing import Any

import pytest

from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, MQTT_311, Connect, Disconnect, PingReq, PingResp, Properties, Publish, Unsubscribe, WillMessage
from tests.core.harness import Peer, World

NEVER = 0xFFFF_FFFF


class Watched(World):
    """A world with somebody who sees all Wills, at QoS 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[tuple[str, bytes]] = []
        self.engine.subscribe_internal(
            "watch", ["will/#"], 2, lambda message, qos, retain, now: self.seen.append((message.topic, message.payload)), 0
        )

    def mortal(self, *, delay: int | None = None, version: int = MQTT_5, client_id: str = "m", clean: bool = True, expiry: int | None = None) -> Peer:
        properties = Properties(will_delay_interval=delay) if delay is not None else Properties()
        return self.client(client_id, version, clean=clean, expiry=expiry, will=WillMessage("will/m", b"gone", properties=properties), keep_alive=10)


GONE = [("will/m", b"gone")]


@pytest.mark.parametrize("version", [MQTT_5, MQTT_311])
@pytest.mark.parametrize(
    ("how", "goes_out"),
    [
        ("lost", True),
        ("disconnect", False),
        ("silence", True),
        ("malformed", True),
        ("takeover", True),
        ("thrown out", True),
        ("inside a packet", True),
    ],
)
def test_each_way_to_end(version: int, how: str, goes_out: bool) -> None:
    world = Watched()
    peer = world.mortal(version=version)
    if how == "lost":
        peer.detach()
    elif how == "disconnect":
        peer.disconnect()  # [MQTT5-3.14.4-3] [MQTT311-3.14.4-3]
    elif how == "silence":
        world.after(16)
    elif how == "malformed":
        peer.give(b"\x00\x00")
    elif how == "takeover":
        world.client("m", version)
    elif how == "thrown out":
        world.engine.disconnect("m", ReasonCode.ADMINISTRATIVE_ACTION, world.now)
    else:
        peer.give(encode(Publish("t", b"x" * 10), version)[:5])
        peer.detach()
    world.after(100)
    assert world.seen == (GONE if goes_out else [])
    peer.detach()
    world.after(100)
    assert world.seen == (GONE if goes_out else [])


@pytest.mark.parametrize("reason", [ReasonCode.DISCONNECT_WITH_WILL, ReasonCode.UNSPECIFIED_ERROR, ReasonCode.MESSAGE_RATE_TOO_HIGH])
def test_disconnect_with_another_reason_publishes_it(reason: ReasonCode) -> None:
    world = Watched()
    world.mortal().disconnect(reason)
    assert world.seen == GONE


def test_a_delayed_will_waits_and_a_return_cancels_it() -> None:
    world = Watched()
    world.mortal(delay=30, expiry=100).detach()
    world.after(29.9)
    assert world.seen == []
    world.mortal(delay=30, clean=False, expiry=100).detach()  # [MQTT5-3.1.3-9]
    world.after(29.9)
    assert world.seen == []
    world.after(0.2)
    assert world.seen == GONE
    world.after(100)
    assert world.seen == GONE


def test_a_return_without_a_will_has_none() -> None:
    world = Watched()
    world.mortal(delay=30, expiry=100).detach()
    world.client("m", clean=False, expiry=100).detach()
    world.after(200)
    assert world.seen == []


@pytest.mark.parametrize(
    ("delay", "expiry", "after"), [(30, 10, 10), (30, 0, 0), (30, None, 0), (0, 50, 0), (None, 50, 0), (30, NEVER, 30), (30, 30, 30)]
)
def test_the_delay_or_the_end_of_the_session_whichever_comes_first(delay: int | None, expiry: int | None, after: float) -> None:
    world = Watched(session_expiry_s_max=NEVER)
    world.mortal(delay=delay, expiry=expiry).detach()
    if after:
        world.after(after - 0.1)
        assert world.seen == []
        world.after(0.1)
    assert world.seen == GONE  # [MQTT5-3.1.2-8]


def test_a_clean_start_ends_the_session_and_sends_its_will() -> None:
    world = Watched()
    world.mortal(delay=30, expiry=100).detach()
    world.client("m", expiry=100)
    assert world.seen == GONE


@pytest.mark.parametrize(
    ("delay", "expiry", "clean", "goes_out"), [(0, 100, False, True), (30, 100, False, False), (30, 0, False, True), (30, 100, True, True)]
)
def test_takeover(delay: int, expiry: int, clean: bool, goes_out: bool) -> None:
    world = Watched()
    world.mortal(delay=delay, expiry=expiry)
    world.client("m", clean=clean, expiry=expiry)
    assert world.seen == (GONE if goes_out else [])
    world.after(1000)
    assert world.seen == (GONE if goes_out else [])


def test_disconnect_can_change_when_the_session_ends() -> None:
    world = Watched()
    world.mortal(delay=30, expiry=100).disconnect(ReasonCode.DISCONNECT_WITH_WILL, session_expiry_interval=5)
    world.after(5)
    assert world.seen == GONE
    assert not world.state.sessions


def test_a_disconnect_that_is_none_publishes_the_will() -> None:
    world = Watched()
    peer = world.mortal()
    peer.send(Disconnect(ReasonCode.SUCCESS, Properties(session_expiry_interval=5)))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)
    assert world.seen == GONE


def test_a_will_is_a_message_like_any_other() -> None:
    world = World()
    watcher = world.client("w")
    watcher.subscribe(("will/#", 1))
    kept = Properties(content_type="text", user_properties=(("a", "1"), ("a", "2")), payload_format_indicator=1, message_expiry_interval=60)
    sent = Properties(**{field: getattr(kept, field) for field in kept.__struct_fields__} | {"will_delay_interval": 10})
    world.client("m", expiry=100, will=WillMessage("will/m", b"gone", 2, True, sent)).detach()
    world.after(10)
    [message] = watcher.messages()
    assert (message.topic, message.payload, message.qos, message.retain, message.properties) == ("will/m", b"gone", 1, False, kept)
    world.after(10)
    late = world.client("late")
    late.subscribe("will/#")
    [message] = late.messages()
    assert message.retain
    assert message.properties.message_expiry_interval == 50  # counted from when it was published


def test_wills_of_many_that_leave_at_once_come_in_slices() -> None:
    world = Watched(work_per_turn_max=10)
    for number in range(100):
        world.client(f"c{number}", will=WillMessage(f"will/{number}", b""), keep_alive=10)
    world.most_work = 0
    world.after(16)
    assert len(world.seen) == 100
    assert world.most_work <= 10 + 3


def test_a_retained_will_takes_no_more_than_its_place() -> None:
    world = World(retained_count_max=2)
    watcher = world.client("w")
    watcher.subscribe("#")
    for number in range(5):
        world.client("m", will=WillMessage(f"will/{number}", b"x", 0, True)).detach()
    assert len(watcher.messages()) == 5
    assert len(world.state.retained) == 2


def test_a_forbidden_will_is_refused_at_connect() -> None:
    world = World(authorize=lambda user, client, action, topic: topic != "will/m")
    peer = world.peer()
    peer.send(Connect("m", will=WillMessage("will/m", b"")))
    assert peer.ends_with(ReasonCode.NOT_AUTHORIZED)
    world.client("m").send(PingReq())


def test_an_expired_session_sends_its_delayed_will_to_who_is_left() -> None:
    world = World()
    watcher = world.client("w")
    watcher.subscribe("will/#")
    world.client("m", expiry=5, will=WillMessage("will/m", b"gone", properties=Properties(will_delay_interval=50))).detach()
    world.after(5)
    assert watcher.payloads() == [b"gone"]
    watcher.send(Unsubscribe(9, ("will/#",)), PingReq())
    assert watcher.take()[-1] == PingResp()
    assert len(world.state.deadlines) == 0
