"""The comparison's table: medians, spreads, ratios and notes out of raw results. (Running it needs the peers and quiet cores.)"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pytest

from benchmarks.compare.__main__ import brokers_of, rows_of
from benchmarks.compare.churn import changes
from benchmarks.compare.loads import COLUMNS, LOADS, Outcome, figure
from benchmarks.compare.running import given
from broker.wire.codec import decode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_311, Subscribe, Unsubscribe


def flow(rate: float, cpu: float, **more: object) -> Outcome:
    return {"out_per_s": rate, "broker_us_per_msg": cpu, "wall_s": 2.0, "latency_us": {"p50": 1.5, "p99.9": 9.0}, **more}


def test_medians_spreads_and_ratios() -> None:
    results = {
        "ours": [flow(300, 2), flow(100, 1), flow(200, 3)],
        "mosquitto": [flow(50, 20)],
        "nats": [{"error": "nats-server is missing: apt-get install nats-server", "rc": 2}],
    }
    head, ours, mosquitto, nats = rows_of(LOADS["pair-1"], results, ["mosquitto", "nats"])
    assert head[-5:] == ["delivered/s × mosquitto", "CPU µs/msg × mosquitto", "delivered/s × nats", "CPU µs/msg × nats", "note"]
    assert ours[:4] == ["ours", "3/3", "200 (100-300)", "2 (1-3)"]
    assert ours[-5:] == ["4.00", "0.10", "-", "-", ""]
    assert mosquitto[-5:-1] == ["1.00", "1.00", "-", "-"]
    assert nats[1] == "0/1"
    assert "apt-get install nats-server" in nats[-1]


def test_a_noisy_run_is_marked() -> None:
    rows = rows_of(LOADS["pair-1"], {"ours": [flow(1, 1, other_cpu_s=0.5)]}, [])
    assert rows[1][-1] == "noisy"


def test_figures() -> None:
    outcome = flow(10, 1, lost=1, expected=200, broker_exec_s=1.0, broker_peak_rss_kb=2048)
    assert figure(outcome, "latency_us/p99.9") == 9.0
    assert (figure(outcome, "@lost"), figure(outcome, "@busy"), figure(outcome, "@peak"), figure(outcome, "absent/x")) == (0.5, 0.5, 2.0, None)


def test_every_workload_has_its_columns() -> None:
    assert {load.mode for load in LOADS.values()} <= COLUMNS.keys()


def test_brokers_are_named_or_given(tmp_path: Path) -> None:
    options = argparse.Namespace(ours="x/broker", brokers="mosquitto", broker=["mine=run --port {port} --in {directory}"])
    brokers = brokers_of(options)
    assert list(brokers) == ["ours", "mosquitto", "mine"]
    assert brokers["ours"](7, tmp_path) == ["x/broker", "serve", "--host", "127.0.0.1", "--port", "7"]
    assert brokers["mine"](7, tmp_path) == ["run", "--port", "7", "--in", str(tmp_path)]
    assert given("a 'b c'")(1, tmp_path) == ["a", "b c"]
    with pytest.raises(ValueError, match="no broker 'rabbit'"):
        brokers_of(argparse.Namespace(ours="", brokers="rabbit", broker=[]))


def test_strangers_subscribe_and_leave_again() -> None:
    decoder = FrameDecoder(1000)
    decoder.feed(b"".join(itertools.islice(changes("strangers"), 6)))
    packets = []
    while (frame := decoder.next_frame()) is not None:
        packets.append(decode(*frame, MQTT_311))
    subscribed = [packet.subscriptions[0].filter for packet in packets if isinstance(packet, Subscribe)]
    assert subscribed == ["strangers/0", "strangers/1/+", "strangers/2"]
    assert [packet.filters[0] for packet in packets if isinstance(packet, Unsubscribe)] == subscribed


def test_what_goes_on_beside_a_workload_is_said() -> None:
    assert LOADS["known-1k-churn"].describe(4).endswith("-V 4, beside churn")
    assert LOADS["pair-1-props"].describe().endswith("-V 5")
