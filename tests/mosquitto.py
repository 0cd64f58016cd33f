"""Debian's mosquitto, started by a test on a free port and gone after it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import find_program

START_ATTEMPTS: Final = 5


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
                        yield port
                    finally:
                        process.kill()
                    return
    pytest.fail(f"mosquitto did not start: {''.join(seen)}")
