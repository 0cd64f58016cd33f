"""examples/plain_socket.py, which has no library at all, is understood by the broker, and says so when there is none."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.e2e.tools import ROOT, SECONDS_MAX


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-X", "utf8", "examples/plain_socket.py", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS_MAX, check=False)


def test_it_publishes_and_receives(address: tuple[str, int]) -> None:
    done = run(address[0], str(address[1]))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nreceived on greetings/world: hello, 世界\n" in done.stdout
    assert done.stdout.endswith("> e0 00\n> e0 00\n")


def test_nobody_there() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # taken, and nobody listens
        done = run("127.0.0.1", str(sock.getsockname()[1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("plain_socket: ")
    assert "Traceback" not in done.stderr


def test_a_port_that_is_no_number() -> None:
    done = run("127.0.0.1", "mqtt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("plain_socket: ")
    assert "Traceback" not in done.stderr
