"""How fast the codec is: frames a second, by kind, each the median of several runs. No socket, no engine.

    python -m benchmarks.codec            the table
    python -m benchmarks.codec --runs 9   steadier

A figure is for comparing on one machine, before and after. The broker relays known PUBLISH frames without decoding them, so
its own throughput is not these numbers; they are what everything else costs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).parent.parent))

from broker.reasons import ReasonCode
from broker.wire.codec import decode, encode
from broker.wire.framing import FrameDecoder
from broker.wire.packets import MQTT_5, MQTT_311, Connect, Packet, Properties, PubAck, Publish, Subscribe, SubscriptionRequest

TOPIC = "sensors/kitchen/temperature"
FRAMES_PER_RUN = 20_000
READ_BYTES = 65_536

MESSAGE_PROPERTIES = Properties(
    message_expiry_interval=3600, content_type="application/json", correlation_data=b"0123456789abcdef", user_properties=(("unit", "celsius"),)
)

CASES: tuple[tuple[str, int, Packet], ...] = (
    ("PUBLISH 64 bytes, QoS 0", MQTT_311, Publish(TOPIC, bytes(64))),
    ("PUBLISH 64 bytes, QoS 0", MQTT_5, Publish(TOPIC, bytes(64))),
    ("PUBLISH 64 bytes, QoS 1", MQTT_5, Publish(TOPIC, bytes(64), 1, packet_id=7)),
    ("PUBLISH 64 bytes, 4 properties", MQTT_5, Publish(TOPIC, bytes(64), properties=MESSAGE_PROPERTIES)),
    ("PUBLISH 16 KiB, QoS 0", MQTT_5, Publish(TOPIC, bytes(16_384))),
    ("PUBACK", MQTT_5, PubAck(7)),
    ("PUBACK with a reason", MQTT_5, PubAck(7, ReasonCode.NO_MATCHING_SUBSCRIBERS)),
    ("CONNECT", MQTT_5, Connect("client-0001", keep_alive_s=60, properties=Properties(session_expiry_interval=60))),
    ("SUBSCRIBE, 1 filter", MQTT_5, Subscribe(1, (SubscriptionRequest("sensors/+/temperature", 1),))),
)


def body_of(frame: bytes) -> bytes:
    decoder = FrameDecoder(len(frame))
    decoder.feed(frame)
    whole = decoder.next_frame()
    if whole is None:
        raise ValueError("not one whole frame")
    return whole[1]


def time_encode(packet: Packet, version: int, frame: bytes) -> float:
    start = perf_counter()
    for _ in range(FRAMES_PER_RUN):
        encode(packet, version)
    return FRAMES_PER_RUN / (perf_counter() - start)


def time_decode(packet: Packet, version: int, frame: bytes) -> float:
    first_byte = frame[0]
    body = body_of(frame)
    start = perf_counter()
    for _ in range(FRAMES_PER_RUN):
        decode(first_byte, body, version)
    return FRAMES_PER_RUN / (perf_counter() - start)


def time_stream(packet: Packet, version: int, frame: bytes) -> float:
    """As a connection does it: reads of 64 KiB that end inside frames, framed and decoded."""
    count = min(FRAMES_PER_RUN, max(100, 32 * READ_BYTES // len(frame)))
    stream = frame * count
    reads = [stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES)]
    decoder = FrameDecoder(1 << 20)
    decoded = 0
    start = perf_counter()
    for data in reads:
        decoder.feed(data)
        while (whole := decoder.next_frame()) is not None:
            decode(whole[0], whole[1], version)
            decoded += 1
    elapsed = perf_counter() - start
    if decoded != count:
        raise ValueError(f"{decoded} frames of {count} came out")
    return count / elapsed


def median(measure: Callable[[Packet, int, bytes], float], packet: Packet, version: int, runs: int) -> float:
    frame = encode(packet, version)
    return statistics.median(measure(packet, version, frame) for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Codec speed: frames a second, medians.")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each case (default 5)")
    runs: int = parser.parse_args().runs
    print(f"{'thousand frames a second':<34}{'bytes':>7}{'encode':>9}{'decode':>9}{'frame + decode':>16}")
    for name, version, packet in CASES:
        size = len(encode(packet, version))
        figures = [median(measure, packet, version, runs) / 1000 for measure in (time_encode, time_decode, time_stream)]
        label = f"{name}, {'5.0' if version == MQTT_5 else '3.1.1'}"
        print(f"{label:<36}{size:>7,}{figures[0]:>9,.0f}{figures[1]:>9,.0f}{figures[2]:>14,.0f}")


if __name__ == "__main__":
    main()
