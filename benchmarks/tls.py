"""What TLS costs the broker, beside plain TCP: CPU for each message, and memory for each idle connection. Needs trustme; Linux.

    python -m benchmarks.tls                        three rounds of each load, alternating between TCP and TLS
    python -m benchmarks.tls --rounds 1 --only ping

`broker bench` makes the load, `mqtt://` and `mqtts://` in turn, against one broker that listens on both; each run is bounded by a number of
messages. CPU is what the broker's process used meanwhile, so how fast the generator encrypts does not matter. Where it does, in streams, whose
batches are what the generator makes them, two blocking sockets are the generator: one thread sends all it can, one takes it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trustme

from broker.wire.codec import encode
from broker.wire.packets import Connect, Publish, Subscribe, SubscriptionRequest

RUN_S_MAX: Final = 120.0
LOADS: Final = {
    "pair: QoS 0, at most 100 under way": ["-w", "100", "-n", "40000"],
    "QoS 1, window 100": ["-q", "1", "-w", "100", "-n", "20000"],
    "fan-out to 100, QoS 0": ["--fan-out", "100", "-w", "1000", "-n", "3000"],
    "ping: QoS 0, one outstanding": ["-w", "1", "-n", "3000"],
}
STREAMS: Final = {
    "stream: QoS 0, 64 bytes": (64, 200_000),
    "stream: QoS 0, 1 KiB": (1024, 40_000),
    "stream: QoS 0, 16 KiB": (16_384, 6_000),
}
"""(payload bytes, messages)"""
PER_MESSAGE: Final = {"fan-out to 100, QoS 0": 100}
"""Delivered for each one published; 1 where nothing stands."""


class Served:
    """A broker of its own, on a TCP and a TLS port."""

    def __init__(self, process: subprocess.Popen[str], ports: dict[str, int], ca: Path) -> None:
        self.process = process
        self.ports = ports
        self.ca = ca

    def cpu_s(self) -> float:
        """Used since its start; it is one thread."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def resident_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    ca.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    config = folder / "broker.toml"
    config.write_text('[[listeners]]\nport = 0\n[[listeners]]\nport = 0\n[listeners.tls]\ncertificate = "server.pem"\n[log]\nconnections = false\n')
    command = [sys.executable, "-m", "broker", "serve", "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            ports = {}
            for _ in range(2):
                found = re.search(r"(mqtts?)://127\.0\.0\.1:(\d+)", process.stdout.readline())
                if found is None:
                    raise SystemExit("the broker did not say where it listens")
                ports[found[1]] = int(found[2])
            yield Served(process, ports, folder / "ca.pem")
        finally:
            process.terminate()


def cost_of(broker: Served, scheme: str, words: list[str], deliveries: int) -> float:
    """CPU microseconds of the broker for each message delivered."""
    where = ["-h", "127.0.0.1", "-p", str(broker.ports[scheme])] + (["--cafile", str(broker.ca)] if scheme == "mqtts" else [])
    before = broker.cpu_s()
    done = subprocess.run([sys.executable, "-m", "broker", "bench", "--json", *where, *words], capture_output=True, timeout=RUN_S_MAX, check=False)
    if done.returncode != 0:
        raise SystemExit(f"broker bench {' '.join(words)}: {done.stderr.decode()}")
    report = json.loads(done.stdout)
    return (broker.cpu_s() - before) / (int(report["published"]) * deliveries) * 1e6


def connection(broker: Served, scheme: str, client_id: str) -> socket.socket:
    """Accepted, blocking."""
    one = socket.create_connection(("127.0.0.1", broker.ports[scheme]), RUN_S_MAX)
    if scheme == "mqtts":
        one = ssl.create_default_context(cafile=str(broker.ca)).wrap_socket(one, server_hostname="127.0.0.1")
    one.sendall(encode(Connect(client_id), 5))
    one.recv(100)
    return one


def cost_of_stream(broker: Served, scheme: str, payload_bytes: int, count: int) -> float:
    """The same as `cost_of`; all of them arrive, since a sole recipient paces its publisher."""
    frame = encode(Publish("t", bytes(payload_bytes)), 5)
    with connection(broker, scheme, "taker") as taker, connection(broker, scheme, "sender") as sender:
        taker.sendall(encode(Subscribe(1, (SubscriptionRequest("t"),)), 5))
        taker.recv(100)
        before = broker.cpu_s()
        sending = threading.Thread(target=sender.sendall, args=(frame * count,))
        sending.start()
        left = count * len(frame)
        while left:
            part = len(taker.recv(65_536))
            if not part:
                raise SystemExit("the broker closed a connection")
            left -= part
        sending.join()
        return (broker.cpu_s() - before) / count * 1e6


def idle_bytes(broker: Served, scheme: str, count: int) -> float:
    """Resident memory of the broker for each connection that was accepted and says nothing more."""
    before = broker.resident_bytes()
    kept = [connection(broker, scheme, f"{scheme}-{number}") for number in range(count)]
    each = (broker.resident_bytes() - before) / count
    for one in kept:
        one.close()
    return each


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="loads whose name holds this")
    parser.add_argument("--connections", type=int, default=400, help="idle, for the memory")
    options = parser.parse_args()
    print(f"{'broker CPU, µs a message':42}{'TCP':>8}{'TLS':>8}{'TLS/TCP':>9}")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as broker:
        for name in (*STREAMS, *LOADS):
            if options.only not in name:
                continue
            found: dict[str, list[float]] = {"mqtt": [], "mqtts": []}
            for _ in range(options.rounds):
                for scheme, costs in found.items():
                    if name in STREAMS:
                        costs.append(cost_of_stream(broker, scheme, *STREAMS[name]))
                    else:
                        costs.append(cost_of(broker, scheme, LOADS[name], PER_MESSAGE.get(name, 1)))
            plain, secured = (statistics.median(costs) for costs in found.values())
            print(f"{name:42}{plain:8.2f}{secured:8.2f}{secured / plain:9.2f}", flush=True)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as broker:
        each = {scheme: idle_bytes(broker, scheme, options.connections) for scheme in ("mqtt", "mqtts")}
        print(f"{'idle connection, kB':42}{each['mqtt'] / 1000:8.1f}{each['mqtts'] / 1000:8.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
