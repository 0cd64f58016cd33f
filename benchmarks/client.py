"""What a client library costs the process that uses it: CPU for each message, and messages a second, ours beside paho, aiomqtt and gmqtt.

    python -m benchmarks.client                           three rounds of each load, the libraries in turn
    python -m benchmarks.client --only receive --rounds 5
    python -m benchmarks.client --broker mosquitto --version 311

The client has a core of its own, the broker and whoever else speaks to it share another one. CPU is that of the client's process with its
threads. A library that is not installed is left out, by name. What each of them is told to do stands in `benchmarks.client_loads`. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.client_loads import LIBRARIES, PAYLOAD, TOPIC, WARM_SHARE
from broker.wire.codec import encode
from broker.wire.packets import MQTT_311, Connect, Publish, PubRel

RUN_S_MAX: Final = 120.0
WINDOW: Final = 500
"""Messages of QoS 1 and 2 that are fed without waiting for their acknowledgements."""


class Load(NamedTuple):
    name: str
    verb: str
    qos: int
    messages: int


LOADS: Final = (
    *(Load(f"publish QoS {qos}, one by one", "publish", qos, count) for qos, count in ((0, 6_000), (1, 1_500), (2, 1_000))),
    *(Load(f"publish QoS {qos}, 100 tasks", "tasks", qos, count) for qos, count in ((0, 8_000), (1, 4_000), (2, 2_000))),
    *(Load(f"publish QoS {qos}, a stream", "stream", qos, count) for qos, count in ((0, 20_000), (1, 6_000), (2, 4_000))),
    *(Load(f"receive QoS {qos}", "receive", qos, count) for qos, count in ((0, 30_000), (1, 8_000), (2, 4_000))),
    Load("request and reply", "request", 1, 1_000),
)


# ---- the broker, and who feeds the client -----------------------------------------------------------------------------


@contextlib.contextmanager
def served(kind: str, cores: list[int]) -> Iterator[str]:
    """Its URL."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "mosquitto":
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            config = Path(folder) / "mosquitto.conf"
            config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n")
            command = ["mosquitto", "-c", str(config)]
        else:
            config = Path(folder) / "broker.toml"
            config.write_text('[[listeners]]\nhost = "127.0.0.1"\nport = 0\n[log]\nconnections = false\n')
            command = [sys.executable, "-m", "broker", "serve", "-c", str(config)]
        with pinned(command, cores) as process:
            assert process.stdout is not None
            if kind == "mosquitto":
                yield wait_for(port)
            else:
                found = re.search(r"mqtt://\S+", process.stdout.readline())
                if found is None:
                    raise SystemExit("the broker did not say where it listens")
                yield found[0]


@contextlib.contextmanager
def pinned(command: list[str], cores: list[int]) -> Iterator[subprocess.Popen[str]]:
    """A process on these cores, ended with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            os.sched_setaffinity(process.pid, cores)
            yield process
        finally:
            process.kill()


def wait_for(port: int) -> str:
    until = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return f"mqtt://127.0.0.1:{port}"


def feed(port: int, qos: int, count: int) -> None:
    """So many messages, as fast as the broker takes them: at QoS 1 and 2 by the window, each packet of a window at once."""
    with socket.create_connection(("127.0.0.1", port), RUN_S_MAX) as stream:
        stream.sendall(encode(Connect("bench-feeder", version=MQTT_311), MQTT_311))
        take(stream, 4)
        window = min(count, WINDOW)
        ids = range(1, window + 1)
        if not qos:
            stream.sendall(encode(Publish(TOPIC, PAYLOAD), MQTT_311) * count)
            take(stream, 1, stop=True)
            return
        frames = [encode(Publish(TOPIC, PAYLOAD, qos, packet_id=number), MQTT_311) for number in ids]
        releases = [encode(PubRel(number), MQTT_311) for number in ids]
        while count:
            part = min(count, window)
            count -= part
            stream.sendall(b"".join(frames[:part]))
            take(stream, 4 * part)
            if qos == 2:
                stream.sendall(b"".join(releases[:part]))
                take(stream, 4 * part)


def take(stream: socket.socket, size: int, *, stop: bool = False) -> None:
    """So many bytes. stop: say that nothing more comes from us, and wait for the end."""
    if stop:
        stream.sendall(b"\xe0\x00")
    while size:
        part = len(stream.recv(size))
        if not part:
            if stop:
                return
            raise SystemExit("the broker closed a connection")
        size -= part


# ---- one run ----------------------------------------------------------------------------------------------------------


def run(library: str, load: Load, url: str, version: str, cores: tuple[list[int], list[int]]) -> tuple[float, float]:
    """(CPU microseconds a message, messages a second)."""
    words = [sys.executable, "-m", "benchmarks.client_loads"]
    with contextlib.ExitStack() as stack:
        if load.verb == "request":
            answering = stack.enter_context(pinned([*words, "ours", "answer", "0", url, "0", "5"], cores[1]))
            assert answering.stdout is not None
            answering.stdout.readline()
        client = stack.enter_context(pinned([*words, library, load.verb, str(load.qos), url, str(load.messages), version], cores[0]))
        assert client.stdout is not None
        if load.verb == "receive":
            client.stdout.readline()
            feed(int(url.rpartition(":")[2]), load.qos, load.messages + load.messages // WARM_SHARE)
        said, _ = client.communicate(timeout=RUN_S_MAX)
        if not said:
            raise SystemExit(f"{library} failed at {load.name!r}")
        found = json.loads(said)
        return found["cpu_s"] / load.messages * 1e6, load.messages / found["elapsed_s"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="loads whose name holds this")
    parser.add_argument("--libraries", default=",".join(LIBRARIES), help="default: %(default)s")
    parser.add_argument("--broker", choices=("ours", "mosquitto"), default="ours")
    parser.add_argument("--version", choices=("5", "311"), default="5", help="of MQTT, for all of them; request and reply needs 5")
    options = parser.parse_args()
    wanted = options.libraries.split(",")
    libraries = [name for name in wanted if find_spec(LIBRARIES[name][1].partition(".")[0]) is not None]
    if missing := [name for name in wanted if name not in libraries]:
        print(f"not installed, so left out: {', '.join(missing)}")
    cpus = sorted(os.sched_getaffinity(0))
    cores = [cpus[0]], [cpus[-1]]
    os.sched_setaffinity(0, cores[1])  # the feeder
    print(f"{'client CPU, µs a message (messages/s)':34}" + "".join(f"{name:>{20 if name == libraries[0] else 28}}" for name in libraries))
    with served(options.broker, cores[1]) as url:
        for load in LOADS:
            if options.only not in load.name or (load.verb == "request" and options.version != "5"):
                continue
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in libraries}
            for _ in range(options.rounds):
                for name in libraries:
                    found[name].append(run(name, load, url, options.version, cores))
            line, first = f"{load.name:34}", 0.0
            for runs in found.values():
                cost, rate = (statistics.median(figures) for figures in zip(*runs, strict=True))
                first = first or cost
                line += f"{cost:10.1f} ({rate:7,.0f})" + (f" × {cost / first:<5.2f}" if cost != first else "")
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
