"""The real command in processes of its own: against our broker on a free port, or against a scripted one that refuses what it is told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest

from broker.cli.running import run_command_line
from tests.e2e.tools import BROKER as BROKER
from tests.e2e.tools import KILL, ROOT, Program
from tests.e2e.tools import SECONDS_MAX as SECONDS_MAX

Start = Callable[..., Program]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


def run(*words: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """One command to its end; its output as bytes."""
    return subprocess.run(
        [*BROKER, *words], cwd=ROOT, input=stdin, capture_output=True, timeout=SECONDS_MAX, check=False, env={**os.environ, **(env or {})}
    )


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """The same in this process, which is quicker by the time that Python takes to start; for commands without stdin and signals."""

    def one(*words: str) -> subprocess.CompletedProcess[bytes]:
        code = run_command_line(words)
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(list(words), code, printed.out.encode(), printed.err.encode())

    return one


def only_line(output: bytes) -> str:
    """The one line that a failure may say, and never a traceback."""
    lines = output.decode().splitlines()
    assert len(lines) == 1, output.decode()
    return lines[0]


def line_event(line: str) -> dict[str, Any]:
    """Each line of output is an event named by what can be waited for."""
    for word in ("SUBACK", "PUBACK", "listening on", "stopping", "reloaded", "lost; trying again", "again", "timed out"):
        if word in line:
            return {"event": word, "line": line}
    return {"event": "line", "line": line}


@pytest.fixture
def start() -> Iterator[Start]:
    """start("sub", "-t", "x") runs one command until the test is over; its lines, stderr included, are events."""
    with ExitStack() as stack:

        def start_one(*words: str) -> Program:
            program = Program([*BROKER, *words], line_event)
            stack.callback(program.stop, KILL)
            return program

        yield start_one


@pytest.fixture(scope="session")
def port() -> Iterator[str]:
    """The port of a broker of ours on 127.0.0.1; BROKER_E2E_URL=mqtt://127.0.0.1:port takes another one."""
    if url := os.environ.get("BROKER_E2E_URL"):
        yield url.rpartition(":")[2]
        return
    program = Program([*BROKER, "serve", "--host", "127.0.0.1", "-p", "0"], line_event)
    try:
        yield program.wait("listening on")["line"].rpartition(":")[2]
    finally:
        program.stop(signal.SIGTERM)


@pytest.fixture
def topic() -> str:
    """Nobody else's."""
    return f"cli/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def closed_port() -> Iterator[str]:
    """A port that is taken and not listened on, so that nobody answers there."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield str(taken.getsockname()[1])


class Scripted:
    """A broker of few words: to each packet, by its type, it answers the given bytes, and hangs up after `None`."""

    def __init__(self, *connections: dict[int, bytes | None]) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = str(self.listening.getsockname()[1])
        self.connections = connections
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with suppress(OSError):
            for answers in self.connections:
                connected, _ = self.listening.accept()
                with connected:
                    connected.settimeout(SECONDS_MAX)
                    self.converse(connected, answers)

    def converse(self, connected: socket.socket, answers: dict[int, bytes | None]) -> None:
        with suppress(OSError):
            while data := connected.recv(65_536):
                while data:  # the packets are short: one length byte each
                    first, length = data[0], data[1]
                    answer = answers.get(first >> 4, b"")
                    if answer is None:
                        return
                    # A packet identifier stands where the test wrote PP.
                    connected.sendall(answer.replace(b"PP", data[2:4] if first >> 4 != 3 else identifier_of(data)))
                    data = data[2 + length :]

    def stop(self) -> None:
        self.listening.close()


def identifier_of(publish: bytes) -> bytes:
    end = 4 + int.from_bytes(publish[2:4], "big")
    return publish[end : end + 2]


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """scripted({CONNECT: bytes, ...}, ...) is the port of a broker with these answers, one table a connection."""
    with ExitStack() as stack:

        def one(*connections: dict[int, bytes | None]) -> str:
            broker = Scripted(*connections)
            stack.callback(broker.stop)
            return broker.port

        yield one
