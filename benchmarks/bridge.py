"""What a bridge costs the broker that has it: messages a second and CPU a message, both ways, at each QoS.

    python -m benchmarks.bridge                 20,000 messages each time

Two brokers in processes of their own on 127.0.0.1, a publisher at the one and a subscriber at the other, both in this process; 64 bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from broker import Client, connect

PAYLOAD = bytes(64)
SECONDS_MAX = 60.0


def serve(*options: str) -> tuple[subprocess.Popen[str], str]:
    """(process, URL)."""
    argv = [sys.executable, "-m", "broker", "serve", *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    found = re.search(r"mqtt://\S+", process.stdout.readline())
    assert found is not None, "it does not listen"
    return process, found[0]


def cpu_s(process: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def carry(source: Client, sink: Client, qos: int, count: int) -> int:
    """How many came."""
    came = 0
    async with sink.subscribe("load", qos=qos, ack="on_receipt", buffer_count_max=count) as subscription, trio.open_nursery() as nursery:

        async def publish() -> None:
            async with source.pipeline(count_max=500) as pipeline:
                for _ in range(count):
                    await pipeline.publish("load", PAYLOAD, qos=qos)

        nursery.start_soon(publish)
        with trio.move_on_after(SECONDS_MAX):
            while came < count:
                await subscription.receive()
                came += 1
    return came


async def measure(near: subprocess.Popen[str], near_url: str, far_url: str, count: int) -> None:
    async with connect(near_url) as here, connect(far_url) as there:
        async with here.subscribe("$SYS/broker/connection/far/state") as states:
            while (await states.receive()).payload != b"1":
                pass
        for name, source, sink in (("out", here, there), ("in", there, here)):
            for qos in (0, 1, 2):
                cpu_before, began_at = cpu_s(near), time.perf_counter()
                came = await carry(source, sink, qos, count)
                rate, cost_us = came / (time.perf_counter() - began_at), (cpu_s(near) - cpu_before) / max(1, came) * 1e6
                print(f"{name:3}  QoS {qos}  {came:,} of {count:,}  {rate:7,.0f} msg/s  {cost_us:5.0f} us CPU a message")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    arguments = parser.parse_args()
    far, far_url = serve("--host", "127.0.0.1", "-p", "0")
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "broker.toml"
            bridge = f'[[bridges]]\nname = "far"\nurl = "{far_url}"\ntopics = [{{ filter = "#", direction = "both", qos = 2 }}]\n'
            config.write_text(f'[[listeners]]\nhost = "127.0.0.1"\nport = 0\n{bridge}')
            near, near_url = serve("-c", str(config))
            try:
                trio.run(measure, near, near_url, far_url, arguments.count)
            finally:
                near.terminate()
                near.wait()
    finally:
        far.terminate()
        far.wait()


if __name__ == "__main__":
    main()
