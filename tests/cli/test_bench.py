"""`broker bench` as a process: against our broker, and against Mosquitto's if it is there."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.bench.load import Load
from broker.bench.plan import Plan
from broker.cli import bench
from broker.cli.benching import status
from tests.cli.conftest import BROKER, SECONDS_MAX, Start, only_line, run
from tests.conftest import find_program
from tests.e2e.tools import ROOT, Program


def figures(*words: str) -> dict[str, Any]:
    done = run("bench", *words, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("version", ["5", "311", "31"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_every_message_is_accounted_for(port: str, version: str, qos: str) -> None:
    found = figures("-p", port, "-V", version, "-q", qos, "-n", "500")
    assert (found["published"], found["expected"], found["delivered"]) == (500, 500, 500)
    assert (found["lost"], found["duplicated"], found["out_of_order"], found["foreign"], found["unexpected"]) == (0, 0, 0, 0, 0)
    assert 0 < found["latency_us"]["p50"] <= found["latency_us"]["p99.9"] <= found["latency_us"]["max"]


@pytest.mark.parametrize(
    ("shape", "published", "delivered"), [(("--pairs", "3"), 300, 300), (("--fan-out", "5"), 100, 500), (("--fan-in", "5"), 500, 500)]
)
def test_shapes(port: str, shape: tuple[str, str], published: int, delivered: int) -> None:
    found = figures("-p", port, *shape, "-n", "100", "-q", "1")
    assert (found["published"], found["delivered"]) == (published, delivered)


def test_a_time_and_a_rate(port: str) -> None:
    found = figures("-p", port, "--time", "0.5", "--warm-up", "0.1", "-r", "200", "--pairs", "2")
    assert 0 < found["published"] <= 122  # the schedule itself: tests/bench, in virtual time
    assert found["lost"] == 0


def test_the_report_for_people(port: str) -> None:
    done = run("bench", "-p", port, "-n", "100", "-D", "publish", "content-type", "text/plain")
    assert (done.returncode, done.stderr) == (0, b"")
    words = [line.split()[0] for line in done.stdout.decode().splitlines()]
    assert words[:5] == [f"localhost:{port},", "published", "delivered", "latency", "faults"]


def test_by_websocket(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[[listeners]]\nport = 0\nprotocol = "websocket"\n')
    port = start("serve", "-c", str(file)).wait("listening on")["line"].rpartition(":")[2].removesuffix("/mqtt")
    found = figures("--ws", "-p", port, "-h", "127.0.0.1", "-q", "1", "-n", "300", "--pairs", "2")
    assert (found["published"], found["delivered"], found["lost"], found["out_of_order"]) == (600, 600, 0, 0)
    done = run("bench", "--ws", "--ws-path", "/other", "-h", "127.0.0.1", "-p", port, "-n", "1")
    assert done.returncode == 1
    assert "404" in only_line(done.stderr)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[str]:
    """The port of Debian's mosquitto, with its own bounds. It takes no port 0, so a free one is found first."""
    program = find_program("mosquitto", "mosquitto")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest stderr\n")
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        try:
            # To a pipe, stderr is not held back: the line stands there once it listens.
            assert any("running" in line for line in process.stderr)
            yield str(port)
        finally:
            process.terminate()


@pytest.mark.parametrize(("version", "qos"), [("5", "0"), ("5", "2"), ("311", "1")])
def test_another_broker(mosquitto: str, version: str, qos: str) -> None:
    found = figures("-h", "127.0.0.1", "-p", mosquitto, "-V", version, "-q", qos, "-n", "300", "-w", "50")
    assert (found["delivered"], found["lost"], found["duplicated"], found["out_of_order"]) == (300, 0, 0, 0)


def test_nobody_there(closed_port: str) -> None:
    done = run("bench", "-p", closed_port, "-n", "1")
    assert done.returncode == 1
    assert "no broker answers there" in only_line(done.stderr)


# ---- cut short ------------------------------------------------------------------------------------------------------


def test_the_time_of_w_runs_out_with_27_and_the_figures_so_far(port: str) -> None:
    done = run("bench", "-p", port, "--time", "20", "-r", "100", "-W", "1", "--json", "--warm-up", "0")
    assert (done.returncode, only_line(done.stderr)) == (27, "broker: timed out after 1 s (-W)")
    found = json.loads(done.stdout)
    assert found["cut_short"] == "by -W after 1 s"
    assert 0 < found["delivered"] <= found["published"]


def running(start: Start, port: str, topic: str, *words: str) -> Program:
    """A load whose messages have begun to come."""
    seen = start("sub", "-p", port, "-t", f"{topic}/#", "-F", "it runs", "-d", "-C", "1")
    seen.wait("SUBACK")
    load = start("bench", "-p", port, "-t", topic, "--time", "60", "-q", "1", *words)
    while seen.wait("line")["line"] != "it runs":
        pass
    return load


def last_lines(program: Program) -> tuple[int, list[str]]:
    """stderr and stdout are one."""
    code = program.process.wait(SECONDS_MAX)
    program.reader.join(SECONDS_MAX)
    return code, [line.rstrip("\n") for line in program.log]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cuts_it_short_and_the_figures_so_far_are_said(start: Start, port: str, topic: str, number: signal.Signals, code: int) -> None:
    load = running(start, port, topic)
    load.process.send_signal(number)
    found, said = last_lines(load)
    assert found == code
    assert said[1].startswith(f"cut short  by {number.name}; what follows is of ")
    assert [line.split()[0] for line in said[2:4]] == ["published", "delivered"]


def test_a_signal_cuts_it_short_in_json(start: Start, port: str, topic: str) -> None:
    load = running(start, port, topic, "--warm-up", "0", "--json")
    load.process.send_signal(signal.SIGINT)
    code, said = last_lines(load)
    found = json.loads("\n".join(said))
    assert (code, found["cut_short"], found["broken_promises"]) == (130, "by SIGINT", [])
    assert found["published"] == found["delivered"] + found["lost"] + found["under_way"] > 0


def test_a_broker_that_dies_cuts_it_short(start: Start, topic: str) -> None:
    broker = start("serve", "-p", "0", "--host", "127.0.0.1")
    load = running(start, broker.wait("listening on")["line"].rpartition(":")[2], topic, "--warm-up", "0", "--json")
    broker.process.kill()
    code, said = last_lines(load)
    found = json.loads(said[0])
    assert code == 1
    assert "the connection was lost" in found["cut_short"] or "closed the connection" in found["cut_short"]
    assert said[1] == f"broker: {found['cut_short']}"
    assert len(said) == 2
    assert found["delivered"] > 0


def test_a_signal_before_anything_was_published_leaves_nothing_to_say(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        load = start("bench", "-h", "127.0.0.1", "-p", str(mute.getsockname()[1]), "--json")
        mute.settimeout(SECONDS_MAX)
        connected, _ = mute.accept()
        with connected:
            connected.recv(100)
            load.process.send_signal(signal.SIGINT)
            assert last_lines(load) == (130, [])


def test_a_refusal_is_the_exit_code(scripted: Any) -> None:
    done = run("bench", "-p", scripted({1: b"\x20\x03\x00\x87\x00"}), "-n", "1")
    assert done.returncode == 135
    assert "not authorized" in only_line(done.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pairs", "2", "--fan-out", "2"), "--pairs and --fan-out both give the shape"),
        (("--fan-in", "2", "--topics", "2"), "--fan-in and --topics both give the shape"),
        (("-n", "5", "--time", "5"), "-n and --time both say when to end"),
        (("--publishers", "0"), "leaves nothing to measure"),
        (("-s", "19"), "a whole number from 20"),
        (("-r", "0"), "messages a second, more than 0, expected"),
        (("-t", "a/#"), "is no Topic Name"),
        (("-c",), "no such option"),
        (("--will-topic", "x"), "no such option"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = run("bench", *words)
    assert done.returncode == 2
    assert said in only_line(done.stderr)


def test_options_that_mean_nothing_here_are_not_on_the_page() -> None:
    page = run("bench", "--help").stdout.decode()
    assert "--pairs" in page
    assert "--will-topic" not in page
    assert not {parameter.name for parameter in bench.command.params} & set(bench.NOT_HERE)


# ---- the line that is shown meanwhile -------------------------------------------------------------------------------


def test_the_live_line_says_what_happens_now() -> None:
    load = Load(Plan(publishers_count=2, subscribers_count=3, duration_s=5, warmup_s=1), no_dial, "here")
    assert status(load, (0.0, 0, 0), (0.25, 0, 0)) == "connecting: 0 of 5"
    load.phase, load.began_at, load.stop_at = "measuring", 10.0, 16.0
    load.recent.add(1_500_000, 10)
    line = status(load, (12.0, 1000, 3000), (12.5, 2000, 6000))
    assert line == "measuring: 2.5 s of 6   published 2,000/s   delivered 6,000/s   p50 1.50 ms   p99 1.50 ms"
    load.stop_at = math.inf
    assert status(load, (12.0, 0, 0), (12.5, 0, 0)).startswith("measuring: 2.5 s   published 0/s")


async def no_dial(_: trio.Nursery) -> trio.abc.Stream:
    raise AssertionError("nothing is dialled here")


def test_it_is_shown_on_a_terminal_and_gone_after_it(port: str) -> None:
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    shown, ours = pty.openpty()
    with subprocess.Popen(
        [*BROKER, "bench", "-p", port, "--time", "0.8", "--warm-up", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=ours
    ) as process:
        os.close(ours)
        output, _ = process.communicate(timeout=SECONDS_MAX)
        seen = b""
        with suppress(OSError):  # a terminal without its other side answers EIO
            while data := os.read(shown, 65_536):
                seen += data
    os.close(shown)
    assert process.returncode == 0
    assert b"published" in output
    assert b"measuring:" in seen
