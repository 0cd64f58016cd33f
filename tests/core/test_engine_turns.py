"""A round, in which every link has its turn, stays short however many have a lot to do: shown by what is counted as work, and not by time."""

from __future__ import annotations

import pytest

from broker.core.limits import Limits
from broker.core.link import Link
from broker.core.publish_run import RUN_SHARES, RUN_WORK
from broker.core.receiving import PACKET_WORK
from broker.core.turns import BUSY_S, ROUND_WORK, TURN_WORK_MIN
from broker.wire.codec import encode
from broker.wire.packets import MQTT_311, PubAck, PubComp, Publish, PubRec, PubRel, Subscribe, SubscriptionRequest
from tests.core.test_engine_bounds import Crowd

SLACK = 32
"""By so much the last thing in a turn may go beyond its share."""


def read(*packets: Publish | PubRec | PubComp | PubRel | PubAck, size: int = 16_384) -> bytes:
    """As many of them in turn as one read takes."""
    data = b"".join(encode(packet, MQTT_311) for packet in packets)
    return data * (size // len(data))


QOS_1 = read(Publish("f/42", b"", 1, packet_id=1))
QOS_2 = read(Publish("f/42", b"", 2, packet_id=1), PubRel(1))
QOS_0 = read(*(Publish(f"f/{number}", b"", 0) for number in range(1000)), size=18_000)
"""Each on a topic of its own, which nobody wants."""
RETAINED = read(Publish("f/42", b"x", 0, retain=True))
ANSWERS = read(PubRec(1), PubComp(1), PubAck(2))
"""To what was never sent."""


def flood(crowd: Crowd, links: list[Link], data: bytes, now: float) -> tuple[int, int]:
    """A turn for each; what all of them did, and the longest one. Who has not been through with the last read goes on with that."""
    total = longest = 0
    for link in links:
        crowd.engine.receive(link, b"" if link.decoder.buffered_bytes else data, now)
        total += crowd.state.work
        longest = max(longest, crowd.state.work)
        crowd.flush()
    return total, longest


@pytest.mark.parametrize("data", [QOS_1, QOS_2, QOS_0, RETAINED, ANSWERS], ids=["qos 1", "qos 2", "qos 0", "retained", "answers"])
def test_a_round_of_a_hundred_that_flood_is_no_longer_than_one_of_a_few(data: bytes) -> None:
    """QoS 1 on topics that nobody wants: 100 reads of 16 KiB were 180,000 packets, and seconds, in one round."""
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(100)]
    flood(crowd, links, data, 0.0)  # here it is seen who is busy
    for number in range(1, 5):
        total, longest = flood(crowd, links, data, number * 0.05)
        assert ROUND_WORK // 2 < total <= ROUND_WORK + 100 * SLACK  # a busy round, and a short one
        assert longest <= ROUND_WORK // 100 + SLACK


def test_even_the_first_round_is_cut_while_it_goes_on() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(100)]
    total, _ = flood(crowd, links, QOS_1, 0.0)
    assert total <= 6 * ROUND_WORK  # the harmonic sum, and not a hundred of 10,000


def test_everybody_who_floods_goes_on_and_none_much_faster_than_another() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(50)]
    flood(crowd, links, QOS_1, 0.0)
    before = [link.decoder.buffered_bytes for link in links]
    flood(crowd, links, QOS_1, 0.05)
    taken = {old - link.decoder.buffered_bytes for old, link in zip(before, links, strict=True)}
    assert min(taken) > 0
    assert max(taken) == min(taken)


def test_all_of_it_is_answered_in_the_end() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(20)]
    before = crowd.state.counters.publish_received
    flood(crowd, links, QOS_1, 0.0)
    while any(link.decoder.buffered_bytes for link in links):
        flood(crowd, [link for link in links if link.decoder.buffered_bytes], b"", 0.0)
    count = len(QOS_1) // len(encode(Publish("f/42", b"", 1, packet_id=1), MQTT_311))
    assert crowd.state.counters.publish_received - before == 20 * count
    assert all(crowd.bytes[link] == 4 + 4 * count for link in links)  # CONNACK, and a PUBACK for each


def test_a_short_turn_does_not_make_busy() -> None:
    """A thousand sensors that send one message each take nothing from who has a lot to do."""
    crowd = Crowd()
    sensors = [crowd.client(f"s{number}") for number in range(1000)]
    flooder = crowd.client("f")
    flood(crowd, sensors, encode(Publish("f/42", b"", 1, packet_id=1), MQTT_311), 0.0)
    flood(crowd, [flooder], QOS_1, 0.0)
    assert list(crowd.state.busy) == [flooder]
    assert crowd.state.work_max == Limits().work_per_turn_max


def test_who_is_left_alone_has_the_whole_turn_again() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(100)]
    flood(crowd, links, QOS_1, 0.0)
    flood(crowd, links, QOS_1, BUSY_S / 2)
    assert crowd.state.work_max == ROUND_WORK // 100
    flood(crowd, links[:1], QOS_1, BUSY_S)  # the others still count
    assert crowd.state.work <= ROUND_WORK // 100 + SLACK
    now = BUSY_S * 1.75
    flood(crowd, links[:1], QOS_1, now)
    assert list(crowd.state.busy) == links[:1]
    assert crowd.state.work > ROUND_WORK // 100 + SLACK
    flood(crowd, links[:1], b"\xc0\x00", now + 2 * BUSY_S)  # and when nobody is busy, nobody is counted
    flood(crowd, links[:1], b"\xc0\x00", now + 4 * BUSY_S)
    assert not crowd.state.busy
    assert crowd.state.work_max == Limits().work_per_turn_max


def test_who_is_gone_is_not_busy() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(10)]
    flood(crowd, links, QOS_1, 0.0)
    for link in links[1:]:
        crowd.engine.detach(link, 0.0)
    assert list(crowd.state.busy) == links[:1]


def test_a_turn_is_never_cut_to_less_than_is_worth_one() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(2 * ROUND_WORK // TURN_WORK_MIN)]
    flood(crowd, links, QOS_1, 0.0)
    assert crowd.state.work_max == TURN_WORK_MIN
    total, longest = flood(crowd, links, QOS_1, 0.1)
    assert longest <= TURN_WORK_MIN + SLACK
    assert total >= len(links) * TURN_WORK_MIN


def test_a_limit_below_the_share_is_the_limit() -> None:
    crowd = Crowd()
    links = [crowd.client(f"c{number}") for number in range(10)]
    flood(crowd, links, QOS_1, 0.0)
    assert crowd.state.work_max == ROUND_WORK // 10
    crowd.engine.set_limits(Limits(work_per_turn_max=40), 0.0)
    _, longest = flood(crowd, links, QOS_1, 0.0)
    assert longest <= 40 + PACKET_WORK
    crowd.engine.set_limits(Limits(), 0.0)
    assert crowd.state.work_max == ROUND_WORK // 10


def test_a_run_to_many_is_cut_with_its_turn_but_not_to_single_messages() -> None:
    """One send for each recipient is what it costs, so it is worth the more the more messages go in it."""
    crowd = Crowd(inflight_count_max=65_535, outbox_bytes_high=1 << 30)
    share = ROUND_WORK // 100
    for number in range(100):
        crowd.client(f"s{number}", Subscribe(1, (SubscriptionRequest("f/#", 1),)))
    links = [crowd.client(f"p{number}") for number in range(100)]
    data = b"".join(encode(Publish("f/42", b"", 1, packet_id=number), MQTT_311) for number in range(1, 1001))
    flood(crowd, links, data, 0.0)
    before = crowd.delivered()
    _, longest = flood(crowd, links, data, 0.1)
    assert longest <= RUN_SHARES * share + RUN_WORK
    assert crowd.delivered() - before == 100 * (RUN_SHARES * share // 100) * 100  # each of a hundred takes so many messages for a hundred
