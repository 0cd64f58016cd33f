"""Strangers who come and go: subscribes and unsubscribes, so many a second, to filters that match nothing that is published.

    python benchmarks/compare/churn.py --port 1883 --rate 1000

Half of the filters are literal, half have a wildcard. One MQTT 3.1.1 connection over a plain socket; what the broker answers is read and
thrown away. Ends when it is killed or the broker goes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from typing import Final

TICK_S: Final = 0.01
HELLO: Final = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05churn"


def changes(prefix: str) -> Iterator[bytes]:
    """SUBSCRIBE and UNSUBSCRIBE in turn, each for one filter."""
    for number in itertools.count():
        packet_id = (number % 65_535 + 1).to_bytes(2, "big")
        filter = f"{prefix}/{number % 10_000}{'/+' if number % 2 else ''}".encode()
        field = len(filter).to_bytes(2, "big") + filter
        yield b"\x82" + bytes((2 + len(field) + 1,)) + packet_id + field + b"\x00"
        yield b"\xa2" + bytes((2 + len(field),)) + packet_id + field


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--rate", type=int, default=1000, help="changes a second")
    parser.add_argument("--prefix", default="strangers", help="the first level of the filters")
    options = parser.parse_args()
    packets = changes(options.prefix)
    with socket.create_connection(("127.0.0.1", options.port)) as connected:
        connected.sendall(HELLO)
        connected.settimeout(5)
        connected.recv(4)
        begun = time.monotonic()
        made = 0
        while True:
            due = int((time.monotonic() - begun) * options.rate) - made
            connected.sendall(b"".join(itertools.islice(packets, due)))
            made += due
            with contextlib.suppress(BlockingIOError):
                if not connected.recv(65_536, socket.MSG_DONTWAIT):
                    return
            time.sleep(TICK_S)


if __name__ == "__main__":
    main()
