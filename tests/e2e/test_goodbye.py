"""How `broker serve` ends, seen from outside: a 5.0 client is told why, nothing is left behind, and the exit code is 0."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import listening
from tests.e2e.tools import BROKER, DrivenClient, Options, Program, Received

SERVE = [*BROKER, "serve"]
SERVER_SHUTTING_DOWN = 0x8B


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.stop(signal.SIGKILL)


def paho(port: int, version: str, programs: list[Program]) -> DrivenClient:
    client = DrivenClient([sys.executable, "-m", "tests.e2e.drivers.paho_driver"], Options("127.0.0.1", port, version))
    programs.append(client.program)
    return client


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_clients_are_told(how: signal.Signals, programs: list[Program]) -> None:
    program = Program([*SERVE, "--host", "127.0.0.1", "-p", "0"], listening)
    programs.append(program)
    port = program.wait("listening")["port"]
    five, three = paho(port, "5.0", programs), paho(port, "3.1.1", programs)
    five.subscribe("last/words", 1)
    three.publish("last/words", "are delivered", 1)
    program.stop(how)
    assert program.process.returncode == 0, "".join(program.log)
    assert "Traceback" not in "".join(program.log), "".join(program.log)
    assert five.wait(1) == [Received("last/words", "are delivered", 1, False)]
    assert five.program.wait("disconnected")["reason"] == SERVER_SHUTTING_DOWN
    three.program.wait("disconnected")


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets are not served on Windows")
def test_a_unix_path_is_gone(tmp_path: Path, mosquitto_pub: str, mosquitto_sub: str, programs: list[Program]) -> None:
    path = tmp_path / "mqtt.sock"
    program = Program([*SERVE, "--unix", str(path)], lambda line: {"event": "listening" if f"unix://{path}" in line else "log"})
    programs.append(program)
    program.wait("listening")
    hearing = Program([mosquitto_sub, "--unix", str(path), "-t", "a", "-C", "1"], lambda line: {"event": line})
    programs.append(hearing)
    speaking = Program([mosquitto_pub, "--unix", str(path), "-t", "a", "-m", "hello", "-r"], lambda line: {"event": line})
    programs.append(speaking)
    hearing.wait("hello")  # retained, so that it does not matter who came first
    hearing.stop(None)
    speaking.stop(None)
    program.stop(signal.SIGTERM)
    assert program.process.returncode == 0, "".join(program.log)
    assert not path.exists()
