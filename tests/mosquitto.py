"""Debian's mosquitto, started by a test on a free port and gone after it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import find_program

START_ATTEMPTS: Final = 5
OPENS_WITHIN_S: Final = 10.0


def wait_until_open(port: int) -> None:
    """Mosquitto 2.1 says that it runs before it listens, and nothing after that."""
    end = time.monotonic() + OPENS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=OPENS_WITHIN_S).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def is_2_0(program: str) -> bool:
    """Is it of Mosquitto 2.0, as Debian 12 and 13 have it, and not of 2.1? program: any of Mosquitto's."""
    said = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    return " version 2.0." in said


@contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[int]:
    """Its port on 127.0.0.1. lines: what mosquitto.conf says of the listener and besides."""
    program = find_program("mosquitto", "mosquitto")
    seen: list[str] = []
    for _ in range(START_ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        config = folder / "mosquitto.conf"
        said = [
            f"user {getuser()}",
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            "persistence false",
            "sys_interval 0",
            "log_dest stderr",
            *(f"log_type {kind}" for kind in ("notice", "error", "information")),
            "max_queued_messages 10000",
            *lines,
        ]
        config.write_text("\n".join(said) + "\n")
        with subprocess.Popen([program, "-c", str(config)], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                seen.append(line)
                if "running" in line:
                    try:
                        wait_until_open(port)
                        yield port
                    finally:
                        process.kill()
                    return
    pytest.fail(f"mosquitto did not start: {''.join(seen)}")
