"""Client core against broker core, without Trio: the same tables from both ends, under any order of steps and any loss of connection.

Nothing is scripted: two clients publish, subscribe, settle, lose their connections in mid-frame and come back. At the end all
is let through, and then: whatever was acknowledged arrived; nothing of QoS 2 arrived twice; no id, no quota, no message is left.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.client import ClientProtocol
from broker.core.client_state import ClientOptions, Connected, Delivery, ExchangeDone, Outgoing
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.core.link import Link
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5, MQTT_311, Publish, SubscriptionRequest


class End:
    """One client with its link, and all it has seen."""

    def __init__(self, house: House, name: str, version: int, *, expiry_s: int = 3600, receive_maximum: int = 3) -> None:
        self.house = house
        self.core = ClientProtocol(
            ClientOptions(
                client_id=name,
                version=version,
                clean_start=False,
                keep_alive_s=0,
                session_expiry_s=expiry_s if version >= MQTT_5 else 0,
                receive_maximum=receive_maximum,
            )
        )
        self.link: Link | None = None
        self.received: list[Delivery] = []
        self.unsettled: list[Delivery] = []
        self.published: list[Outgoing] = []
        self.granted = 0

    def connect(self) -> None:
        if self.link is None:
            self.link = self.house.engine.attach(f"{self.core.client_id} on a wire", self.house.now)
            self.core.begin_connection(self.house.now)

    def cut(self) -> None:
        if self.link is not None:
            link, self.link = self.link, None
            self.house.engine.detach(link, self.house.now)
            self.core.connection_lost(self.house.now)
            self.take_events()

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self.published.append(self.core.publish(Publish(topic, payload, qos)))

    def settle(self, index: int) -> None:
        if self.unsettled:
            self.core.settle(self.unsettled.pop(index % len(self.unsettled)))

    def send(self, count: int) -> bool:
        """At most `count` bytes to the broker."""
        data = self.core.data_to_send()[:count]
        if not data or self.link is None:
            return False
        self.core.bytes_sent(len(data), self.house.now)
        self.take_events()
        while self.house.engine.receive(self.link, data, self.house.now):
            data = b""
        return True

    def take(self, count: int) -> bool:
        """At most `count` bytes from the broker."""
        engine = self.house.engine
        engine.take_ready()
        if self.link is None:
            return False
        data = bytes(engine.data_to_send(self.link, count))[:count]
        if not data:
            return False
        engine.bytes_sent(self.link, len(data), self.house.now)
        self.core.receive(data, self.house.now)
        self.take_events()
        return True

    def take_events(self) -> None:
        for event in self.core.take_events():
            if isinstance(event, Delivery):
                self.received.append(event)
                if not event.settled:
                    self.unsettled.append(event)
            elif isinstance(event, ExchangeDone):
                assert all(reason < 0x80 for reason in event.exchange.reasons)
                self.granted += 1
            else:
                assert isinstance(event, (Outgoing, Connected)) or type(event).__name__ == "Resubscribed", event


class House:
    def __init__(self) -> None:
        numbers = iter(range(1_000_000))
        self.engine = Engine(Limits(inflight_count_max=3), new_client_id=lambda: f"auto-{next(numbers)}")
        self.now = 0.0

    def settle_down(self, *ends: End) -> None:
        """Let everything through, until nobody has anything to say."""
        for end in ends:
            end.connect()
        for _ in range(10_000):
            moved = False
            for end in ends:
                moved |= end.send(1_000_000)
                moved |= end.take(1_000_000)
                while end.unsettled:
                    end.settle(0)
                    moved = True
            if not moved:
                return
        raise AssertionError("it never settles down")


VERBS = ["publish", "publish", "publish", "send", "send", "take", "take", "settle", "cut", "connect", "connect", "all", "all"]


def steps() -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Long plans from the first: short ones seldom reach a lost connection with something under way."""
    return st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 1), st.integers(0, 60)), min_size=40, max_size=120)


def play(house: House, ends: list[End], plan: list[tuple[str, int, int]]) -> None:
    payloads: Iterator[int] = iter(range(1_000_000))
    for verb, who, number in plan:
        end = ends[who]
        house.now += 0.01
        if verb == "publish":
            end.publish("t", f"{who}:{next(payloads)}".encode(), number % 3)
        elif verb == "send":
            end.send(number + 1)
        elif verb == "take":
            end.take(number + 1)
        elif verb == "settle":
            end.settle(number)
        elif verb == "cut":
            end.cut()
        elif verb == "connect":
            end.connect()
        else:
            end.send(1_000_000)
            end.take(1_000_000)


@given(plan=steps(), version=st.sampled_from([MQTT_5, MQTT_311]), qos=st.integers(0, 2))
@settings(max_examples=60)
def test_nothing_is_lost_doubled_or_left(plan: list[tuple[str, int, int]], version: int, qos: int) -> None:
    house = House()
    ends = [End(house, "publisher", MQTT_5), End(house, "subscriber", version)]
    subscriber = ends[1]
    subscriber.core.subscribe((SubscriptionRequest("t", qos),), 1)
    house.settle_down(*ends)
    assert subscriber.granted == 1
    play(house, ends, plan)
    house.settle_down(*ends)

    arrived = [delivery.publish.payload for delivery in subscriber.received]
    for end in ends:
        assert end.core.state == "connected", end.core.cause
        assert end.core.idle
        assert end.core.inbox.unsettled_count == 0
        assert end.core.sender.quota == end.core.sender.quota_max
        for outgoing in end.published:
            assert outgoing.done
            if outgoing.qos:
                assert outgoing.outcome == "acknowledged"
                assert outgoing.reason in (ReasonCode.SUCCESS, ReasonCode.NO_MATCHING_SUBSCRIBERS)
            times = arrived.count(outgoing.publish.payload)
            if min(outgoing.qos, qos) == 2:
                assert times == 1
            elif min(outgoing.qos, qos) == 1:
                assert times >= 1
            else:
                # At most once on each hop; a repeated QoS 1 PUBLISH of the publisher's may double it.
                assert times <= 1 or outgoing.qos == 1
    exactly_once = [payload for payload in arrived if any(out.publish.payload == payload and min(out.qos, qos) == 2 for out in ends[0].published)]
    assert exactly_once == sorted(exactly_once, key=lambda payload: int(payload.split(b":")[1]))  # [MQTT5-4.6.0-6]


@given(plan=steps())
@settings(max_examples=40)
def test_sessions_that_end_with_their_connection(plan: list[tuple[str, int, int]]) -> None:
    """Each loss is the Session's too: QoS 1 is sent anew, QoS 2 may be unknown, the subscription is made again; nothing hangs."""
    house = House()
    ends = [End(house, "publisher", MQTT_5, expiry_s=0), End(house, "subscriber", MQTT_5, expiry_s=0)]
    ends[1].core.subscribe((SubscriptionRequest("t", 2),), 1)
    house.settle_down(*ends)
    play(house, ends, plan)
    house.settle_down(*ends)
    for end in ends:
        assert end.core.state == "connected", end.core.cause
        assert end.core.idle
        assert end.core.inbox.unsettled_count == 0
        for outgoing in end.published:
            assert outgoing.done
            assert outgoing.outcome in ({"acknowledged"} if outgoing.qos < 2 else {"acknowledged", "unknown"})
            assert outgoing.qos < 2 or [delivery.publish.payload for delivery in ends[1].received].count(outgoing.publish.payload) <= 1
    before = len(ends[1].received)
    ends[0].publish("t", b"last", 1)
    house.settle_down(*ends)
    assert [delivery.publish.payload for delivery in ends[1].received[before:]] == [b"last"]
