"""What one slow reader costs the others: a publisher that sends all it can to several readers, without and with one beside them that takes 100 kB/s.

    python -m benchmarks.slow_reader                    three rounds of 12 s each way, in turn
    python -m benchmarks.slow_reader --readers 50 --bytes-per-s 0

Real sockets of 127.0.0.1; the broker has a process of its own, and this one a thread for each socket, which does little but wait in the kernel.
QoS 0, messages of 1 KiB. Printed is how much each reader of full speed got; the ratio is what is promised to stay above a half
(docs/reliability.md). A run is as long as it is because the slow one's credit, a second of grace, is spent at once and then refilled at a tenth
of time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from benchmarks.compare.running import Running, given
from broker.wire.codec import encode
from broker.wire.packets import MQTT_311, Connect, Publish, Subscribe, SubscriptionRequest

PAYLOAD_BYTES: Final = 1024
BATCH_COUNT: Final = 50
WARM_S: Final = 0.5
STEP_S: Final = 0.02
TOPIC: Final = "load"


def dial(port: int, client_id: str, *, subscribed: bool) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port))
    connected.settimeout(10)
    connected.sendall(encode(Connect(client_id, MQTT_311), MQTT_311))
    connected.recv(4, socket.MSG_WAITALL)
    if subscribed:
        connected.sendall(encode(Subscribe(1, (SubscriptionRequest(TOPIC),)), MQTT_311))
        connected.recv(5, socket.MSG_WAITALL)
    connected.settimeout(None)
    return connected


class Reader(threading.Thread):
    """bytes_per_s: how much it takes; None: all it can."""

    def __init__(self, connected: socket.socket, bytes_per_s: int | None = None) -> None:
        super().__init__(daemon=True)
        self.connected = connected
        self.bytes_per_s = bytes_per_s
        self.bytes = 0

    def run(self) -> None:
        begun = time.monotonic()
        buffer = bytearray(1 << 18)
        with contextlib.suppress(OSError):
            while True:
                place = memoryview(buffer)
                if self.bytes_per_s is not None:
                    due = int((time.monotonic() - begun) * self.bytes_per_s) - self.bytes
                    if due <= 0:
                        time.sleep(STEP_S)
                        continue
                    place = place[:due]
                count = self.connected.recv_into(place)
                if not count:
                    return
                self.bytes += count


def publish(connected: socket.socket, stopped: threading.Event) -> None:
    batch = encode(Publish(TOPIC, bytes(PAYLOAD_BYTES)), MQTT_311) * BATCH_COUNT
    with contextlib.suppress(OSError):
        while not stopped.is_set():
            connected.sendall(batch)


def run(port: int, readers_count: int, slow_bytes_per_s: int | None, seconds: float) -> float:
    """Bytes a second, of the reader of full speed that got the least."""
    readers = [Reader(dial(port, f"reader{number}", subscribed=True)) for number in range(readers_count)]
    everybody = list(readers)
    if slow_bytes_per_s is not None:
        everybody.append(Reader(dial(port, "slow", subscribed=True), slow_bytes_per_s))
    publisher = dial(port, "publisher", subscribed=False)
    stopped = threading.Event()
    sending = threading.Thread(target=publish, args=(publisher, stopped), daemon=True)
    for thread in (*everybody, sending):
        thread.start()
    time.sleep(WARM_S)
    before, begun = [reader.bytes for reader in readers], time.monotonic()
    time.sleep(seconds)
    taken = [reader.bytes - first for reader, first in zip(readers, before, strict=True)]
    elapsed = time.monotonic() - begun
    stopped.set()
    for connected in (publisher, *(reader.connected for reader in everybody)):
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
        connected.close()
    for thread in (*everybody, sending):
        thread.join(10)
    return min(taken) / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=10, help="of full speed")
    parser.add_argument("--bytes-per-s", type=int, default=100_000, help="of the slow one")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18_831)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    alone: list[float] = []
    beside: list[float] = []
    command = given(f"{sys.executable} -m broker serve --host 127.0.0.1 --port {{port}}")
    with tempfile.TemporaryDirectory() as directory:
        broker = Running("slow_reader", command, options.port, None, Path(directory))
        try:
            for _ in range(options.rounds):
                alone.append(run(options.port, options.readers, None, options.seconds))
                beside.append(run(options.port, options.readers, options.bytes_per_s, options.seconds))
                if not options.json:
                    figures = f"alone {alone[-1] / 1e6:7.1f} MB/s   beside the slow one {beside[-1] / 1e6:7.1f} MB/s"
                    print(f"each of {options.readers}: {figures}", flush=True)
        finally:
            broker.stop()
    ratio = statistics.median(beside) / statistics.median(alone)
    if options.json:
        print(json.dumps({"alone_bytes_per_s": alone, "beside_bytes_per_s": beside, "ratio": ratio}))
    else:
        print(f"the others keep {ratio:.0%} of their pace beside one that takes {options.bytes_per_s / 1000:g} kB/s")


if __name__ == "__main__":
    main()
