"""atheris targets: `decoder` (any bytes as frames of any version) and `engine` (any bytes on three connections of one broker).

`make fuzz SECONDS=600`, or `python fuzz/targets.py engine fuzz/corpus -max_total_time=600`. What may happen: a PeerError from the decoder; from the
engine nothing at all. Anything else is a fault, and atheris writes the input that made it.
"""

from __future__ import annotations

import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["broker"]):
    from broker.core.engine import Engine
    from broker.core.limits import Limits
    from broker.errors import PeerError
    from broker.wire.codec import decode, encode
    from broker.wire.framing import FrameDecoder
    from broker.wire.packets import Connect, Subscribe, SubscriptionRequest


def decoder(data: bytes) -> None:
    """What is decoded is encoded again, and means the same."""
    for version in (3, 4, 5):
        frames = FrameDecoder(1 << 20)
        frames.feed(data)
        try:
            while (frame := frames.next_frame()) is not None:
                packet = decode(frame[0], frame[1], version)
                spoken = packet.version if isinstance(packet, Connect) else version
                again = FrameDecoder(1 << 28)
                again.feed(encode(packet, spoken))
                first_byte, body = again.next_frame() or (0, b"")
                assert decode(first_byte, body, spoken) == packet
        except PeerError:
            continue


def engine(data: bytes) -> None:
    """The first byte of each piece of 20 says whose it is, and how long until then; the very first one, whether clients are held to a rate."""
    rate = 3 if data[:1] >= b"\x80" else 0
    limits = Limits(work_per_turn_max=50, outbox_bytes_high=1024, outbox_bytes_max=4096, publish_per_s_max=rate, receive_bytes_per_s_max=rate * 50)
    under_test = Engine(limits, new_client_id=lambda: "assigned")
    now = 0.0
    links = [under_test.attach(str(number), now) for number in range(3)]
    for number, link in enumerate(links):
        if number:
            packets = encode(Connect(f"c{number}", 3 + number), 3 + number) + encode(Subscribe(1, (SubscriptionRequest("#", 2),)), 3 + number)
            under_test.receive(link, packets, now)
    for start in range(0, len(data), 20):
        control = data[start]
        now += control >> 4
        link = links[control % 3]
        more = under_test.receive(link, data[start + 1 : start + 20], now)
        while more:
            more = under_test.receive(link, b"", now)
        while under_test.next_deadline() <= now:
            under_test.tick(now)
        for ready in under_test.take_ready():
            if not ready.paused:
                under_test.receive(ready, b"", now)  # it may have been, and holds what came meanwhile
            while piece := under_test.data_to_send(ready):
                under_test.bytes_sent(ready, len(piece), now)
    for link in links:
        under_test.detach(link, now)
    while under_test.next_deadline() <= now + 1e10:
        under_test.tick(now + 1e10)
    state = under_test.state
    assert (state.waiting.count, len(state.links), len(state.sessions), state.topics.subscriptions_count) == (0, 0, 0, 0)


TARGETS: dict[str, Any] = {"decoder": decoder, "engine": engine}

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
