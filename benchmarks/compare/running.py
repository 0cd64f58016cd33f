"""One run: a fresh broker on one core, mqload on another, both ended whatever happens. What is built and logged lies in a directory given."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.compare.loads import Load, Outcome

HERE: Final = Path(__file__).resolve().parent
START_S_MAX: Final = 40.0
RUN_S_MAX: Final = 150.0
STOP_S_MAX: Final = 5.0
BESIDE_LEAD_S: Final = 3.0

Command = Callable[[int, Path], list[str]]
"""(port, directory of its own) to a broker's command line. Raises Missing."""


class Missing(Exception):
    """A program is not installed; str() says which package has it."""


def program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(f"{name} is missing: apt-get install {package}")
    return found


def build(name: str, directory: Path) -> str:
    """Compile a C file of this directory, once for each version of it."""
    source, binary = HERE / f"{name}.c", directory / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run([program("cc", "gcc"), "-O2", "-o", str(binary), str(source), "-lm"], check=True)
    return str(binary)


def mosquitto(port: int, directory: Path, log: str = "log_type none\n") -> list[str]:
    config = directory / "mosquitto.conf"
    # Its defaults drop QoS 1 beyond 1,000 queued messages; a comparison in which one side drops is none.
    config.write_text(
        f"listener {port} 127.0.0.1\nuser root\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n"
        f"max_inflight_messages 1000\nmax_connections -1\nset_tcp_nodelay true\n{log}"
    )
    return [program("mosquitto", "mosquitto"), "-c", str(config)]


def mosquitto_log(port: int, directory: Path) -> list[str]:
    """With the log that it writes unless told otherwise, a line or two for each client."""
    return mosquitto(port, directory, "")


def nats(port: int, directory: Path) -> list[str]:
    config = directory / "nats.conf"
    config.write_text(
        f'server_name: bench\nlisten: "127.0.0.1:{port + 1}"\njetstream {{ store_dir: "{directory}/js" }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}", max_ack_pending: 1000 }}\n'
    )
    return [program("nats-server", "nats-server"), "-c", str(config)]


def light(port: int, directory: Path) -> list[str]:
    """The least that a broker could do, in C: the physical limit. Built beside mqload."""
    return [build("light", directory.parent.parent), str(port)]


BROKERS: Final[dict[str, Command]] = {"mosquitto": mosquitto, "mosquitto-log": mosquitto_log, "nats": nats, "light": light}


def given(command: str) -> Command:
    """A broker by its command line, with {port} and {directory} in it."""
    return lambda port, directory: shlex.split(command.format(port=port, directory=directory))


def prepare(core: int | None) -> Callable[[], None]:
    """For the child: its core, and as many descriptors as it may have."""

    def in_child() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for wanted in (1 << 20, hard):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
                return
            except (ValueError, OSError):
                continue

    return in_child


def wait_quiet(seconds_max: float) -> None:
    """Until all processes together take less than a tenth of a core, or for so long."""
    end = time.monotonic() + seconds_max
    while time.monotonic() < end:
        before, start = _busy_s(), time.monotonic()
        time.sleep(0.3)
        if (_busy_s() - before) / (time.monotonic() - start) < 0.10:
            return


def _busy_s() -> float:
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / os.sysconf("SC_CLK_TCK")


def answers(port: int) -> bool:
    """Does a CONNECT get its CONNACK?"""
    hello = b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06hello1"
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connected:
            connected.settimeout(2)
            connected.sendall(hello)
            answered = connected.recv(4)[:1] == b"\x20"
            connected.sendall(b"\xe0\x00")
            return answered
    except OSError:
        return False


class Running:
    """A broker process, ready. Raises Missing or RuntimeError."""

    def __init__(self, name: str, command: Command, port: int, core: int | None, work: Path) -> None:
        self.directory = work / "run" / name
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        words = command(port, self.directory)
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare(core))
        end = time.monotonic() + START_S_MAX
        while not answers(port):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"{name} did not start; see {self.directory}/log")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the process group that we started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                try:
                    os.killpg(self.process.pid, number)
                    self.process.wait(STOP_S_MAX)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
        shutil.rmtree(self.directory / "js", ignore_errors=True)


def load_words(flags: str, version: int, port: int, work: Path) -> list[str]:
    return [build("mqload", work), *shlex.split(flags), "-H", "127.0.0.1", "-p", str(port), "-V", str(version)]


@contextmanager
def load_beside(beside: str, version: int, port: int, core: int | None, work: Path) -> Iterator[None]:
    """What loads the broker beside the load that is measured, on the generator's core; given time to connect and be under way."""
    if not beside:
        yield
        return
    words = load_words(beside, version, port, work) if beside != "churn" else [sys.executable, str(HERE / "churn.py"), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, preexec_fn=prepare(core)) as other:
        try:
            time.sleep(BESIDE_LEAD_S)
            if other.poll() is not None:
                raise RuntimeError(f"the load beside it ended with {other.returncode}")
            yield
        finally:
            other.kill()


def run_once(name: str, command: Command, load: Load, version: int, port: int, cores: tuple[int | None, int | None], work: Path) -> Outcome:
    """mqload's result, or {"error": ..., "rc": ...}."""
    try:
        broker = Running(name, command, port, cores[0], work)
    except (Missing, RuntimeError) as error:
        return {"error": str(error), "rc": 2}
    try:
        time.sleep(0.2)
        words = [*load_words(load.flags, version, port, work), "--pid", str(broker.process.pid), "--label", name]
        with load_beside(load.beside, version, port, cores[1], work):
            done = subprocess.run(words, capture_output=True, text=True, timeout=RUN_S_MAX, preexec_fn=prepare(cores[1]), check=False)
        try:
            outcome: Outcome = json.loads(done.stdout)
        except ValueError:
            outcome = {"error": (done.stderr or "no output").strip()[-200:], "rc": done.returncode}
        if broker.process.poll() is not None:
            outcome["error"] = f"the broker ended with {broker.process.returncode}"
        return outcome
    except subprocess.TimeoutExpired:
        return {"error": f"mqload took longer than {RUN_S_MAX:g} s", "rc": 3}
    except RuntimeError as error:
        return {"error": str(error), "rc": 3}
    finally:
        broker.stop()
