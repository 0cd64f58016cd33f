"""A real `broker serve` on a free port, and every outside client that can be found, opened by name.

BROKER_E2E_URL=mqtt://host:port runs the same scenarios against another broker: that is how they were checked themselves.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_program
from tests.e2e.tools import BROKER, ROOT, Client, CommandClient, DrivenClient, Options, serving

DRIVERS = Path(__file__).parent / "drivers"
Open = Callable[..., Client]


def listening(line: str) -> dict[str, Any]:
    found = re.search(r"listening on mqtt://127\.0\.0\.1:(\d+)", line)
    return {"event": "listening", "port": int(found[1])} if found else {"event": "log"}


@pytest.fixture(scope="session")
def address() -> Iterator[tuple[str, int]]:
    """(host, port) of a broker that has been told nothing but a port of 0."""
    if url := os.environ.get("BROKER_E2E_URL"):
        host, port = url.removeprefix("mqtt://").split(":")
        yield host, int(port)
        return
    with serving(["--host", "127.0.0.1", "-p", "0"], listening) as program:
        yield "127.0.0.1", program.wait("listening")["port"]


@pytest.fixture
def topic() -> str:
    """Nobody else's: retained messages and sessions of one test do not meet another's."""
    return f"e2e/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def open_client(address: tuple[str, int], request: pytest.FixtureRequest) -> Iterator[Open]:
    """open_client(name, version=..., ...) connects one; all are gone after the test."""
    host, port = address

    def open_one(name: str, **options: Any) -> Client:
        client = make(name, Options(host, port, **options), request)
        stack.callback(client.kill)
        return client

    with ExitStack() as stack:
        yield open_one


def make(name: str, options: Options, request: pytest.FixtureRequest) -> Client:
    if name == "mqttjs":
        return DrivenClient([request.getfixturevalue("node"), str(ROOT / "tests/e2e/mqttjs/driver.js")], options)
    if name == "mosquitto":
        # Into a pipe its debug lines, SUBACK among them, would wait for a full buffer.
        subscriber = [find_program("stdbuf", "coreutils"), "-oL", request.getfixturevalue("mosquitto_sub")]
        return CommandClient([request.getfixturevalue("mosquitto_pub")], subscriber, options)
    if name == "broker":
        return CommandClient([*BROKER, "pub"], [*BROKER, "sub"], options)
    return DrivenClient([sys.executable, "-m", f"tests.e2e.drivers.{name}_driver"], options)
