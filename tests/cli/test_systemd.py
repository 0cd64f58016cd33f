"""Under systemd: sockets that are handed over, and the words on the notify socket. systemd's part is played with real sockets and environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from broker import Config, ConfigError
from broker.cli.systemd import Notifier, inherited, placed
from broker.net.listener import Listener
from tests.cli.conftest import BROKER, SECONDS_MAX, only_line, run
from tests.conftest import find_program
from tests.e2e.tools import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is Linux's")

UNITS = ROOT / "config"


class Manager:
    """systemd, as far as a service can see: a notify socket, and a process that is started with descriptors from 3 on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.words = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.words.bind("\0" + address[1:] if address.startswith("@") else address)
        self.words.settimeout(SECONDS_MAX)
        self.process: subprocess.Popen[str] | None = None

    def start(self, *words: str, sockets: dict[str, list[socket.socket]] | None = None, env: dict[str, str] | None = None) -> None:
        given = [(name, one.fileno()) for name, several in (sockets or {}).items() for one in several]
        for _, number in given:
            os.set_inheritable(number, True)
        moves = " ".join(f"{3 + place}<&{number}" for place, (_, number) in enumerate(given))
        variables = {"NOTIFY_SOCKET": self.address}
        if given:
            variables |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(name for name, _ in given)}
        # The shell keeps its number when it becomes the broker, so it can say for whom the sockets are.
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", f'export LISTEN_PID=$$; exec "$@" {moves}', "bash", *BROKER, "serve", *words],
            cwd=ROOT, env={**os.environ, **variables, **(env or {})}, pass_fds=[number for _, number in given],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def word(self) -> dict[str, str]:
        """The next datagram, by its keys."""
        return dict(line.split("=", 1) for line in self.words.recv(4096).decode().splitlines())

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and all that was printed."""
        assert self.process is not None
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=SECONDS_MAX)
        return self.process.returncode, output

    def close(self) -> None:
        self.words.close()
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.communicate(timeout=SECONDS_MAX)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@broker-test-{os.getpid()}"
    one = Manager(address)
    yield one
    one.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def listening(stack: ExitStack, family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> socket.socket:
    one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    one.bind(address)
    one.listen()
    return one


# ---- the notify socket -----------------------------------------------------------------------------------------------------


def test_ready_reload_and_stop(manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "b.toml"
    config.write_text("[[listeners]]\nport = 0\n")
    manager.start("-c", str(config))
    ready = manager.word()
    assert ready["READY"] == "1"
    assert ready["STATUS"].startswith("listening on mqtt://127.0.0.1:")
    assert manager.process is not None
    for text, status in (("[[listeners]]\nport = 0\n", ready["STATUS"]), ("nonsense = 1\n", f"not reloaded: {config}: nonsense: unknown key")):
        config.write_text(text)
        manager.process.send_signal(signal.SIGHUP)
        reloading = manager.word()
        assert reloading["RELOADING"] == "1"
        assert int(reloading["MONOTONIC_USEC"]) > 0
        again = manager.word()
        assert again["READY"] == "1"
        assert again["STATUS"].startswith(status)
    code, output = manager.end()
    assert manager.word()["STOPPING"] == "1"
    assert (code, "Traceback" in output) == (0, False), output


def test_signs_of_life_go_on_while_clients_are_told_goodbye(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("shutdown_grace_s = 600\n[[listeners]]\nport = 0\n")
    manager.start("-c", str(tmp_path / "b.toml"), env={"WATCHDOG_USEC": "40000"})
    words = [manager.word() for _ in range(4)]
    status = next(word["STATUS"] for word in words if "READY" in word)
    assert sum("WATCHDOG" in word for word in words) == 3
    with socket.create_connection(("127.0.0.1", int(status.rpartition(":")[2]))) as silent:
        silent.sendall(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
        assert silent.recv(1) == b"\x20"
        assert manager.process is not None
        manager.process.send_signal(signal.SIGTERM)  # it never hangs up, which holds the goodbye
        while "STOPPING" not in manager.word():
            pass
        assert [manager.word().get("WATCHDOG") for _ in range(3)] == ["1"] * 3
        assert manager.end()[0] == 130


def test_a_watchdog_for_somebody_else(manager: Manager) -> None:
    manager.start("-p", "0", env={"WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"})
    assert "READY" in manager.word()
    assert manager.end()[0] == 0
    assert "STOPPING" in manager.word()


def test_a_loop_that_hangs_gives_no_sign(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
        words.bind(str(tmp_path / "notify"))
        words.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "10000000"}, 1)
        assert notifier.watchdog_s == 10
        counts = []

        def signs() -> int:
            count = 0
            with suppress(BlockingIOError):
                while words.recv(100):
                    count += 1
            return count

        async def main() -> None:
            async with notifier.living():
                await trio.sleep(1)
                counts.append(signs())
                await trio.sleep(20)
                counts.append(signs())

        trio.run(main, clock=MockClock(autojump_threshold=0))
        assert counts == [1, 4]


async def test_without_systemd_nothing_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for address, said in (("", ""), ("vsock:2:1", "neither a path nor an abstract address"), (str(tmp_path / "none"), "cannot be told READY=1")):
        caplog.clear()
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "nonsense"}, 1)
        async with notifier.living():
            await notifier.ready("x")
        assert said in caplog.text
        assert bool(said) is bool(caplog.text)


async def test_systemd_that_does_not_listen_holds_nobody_up(autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        words.bind(str(tmp_path / "notify"))
        filler.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", str(tmp_path / "notify"))
        await Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}, 1).ready("x")
    assert "systemd does not take what it is told (READY=1)" in caplog.text


# ---- sockets that were handed over -----------------------------------------------------------------------------------------


def test_without_a_config_all_that_is_handed_over_is_served(manager: Manager, stack: ExitStack, tmp_path: Path) -> None:
    path, hidden = tmp_path / "mqtt.sock", f"\0broker-test-mqtt-{os.getpid()}"
    tcp, unix = listening(stack), listening(stack, socket.AF_UNIX, str(path))
    abstract = listening(stack, socket.AF_UNIX, hidden)
    manager.start(sockets={"broker.socket": [tcp, unix], "other": [abstract]})
    port = tcp.getsockname()[1]
    assert manager.word()["STATUS"] == f"listening on mqtt://127.0.0.1:{port}, unix://{path}, unix://@{hidden[1:]}"
    assert run("pub", "-h", "127.0.0.1", "-p", str(port), "-t", "x", "-q", "1", "-m", "y").returncode == 0
    assert run("pub", "--unix", str(path), "-t", "x", "-q", "1", "-m", "y").returncode == 0
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(hidden)
        peer.sendall(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
        assert peer.recv(1) == b"\x20"
    assert manager.end()[0] == 0
    assert path.exists()  # systemd's, which hands it to the next one
    with socket.create_connection(("127.0.0.1", port)):
        pass  # and here connections wait for it


def test_a_listener_names_its_sockets_and_a_reload_keeps_them(manager: Manager, stack: ExitStack, tmp_path: Path) -> None:
    config = tmp_path / "b.toml"
    config.write_text('[[listeners]]\nsystemd = "web"\nprotocol = "websocket"\n[[listeners]]\nport = 0\n')
    web = listening(stack)
    manager.start("-c", str(config), sockets={"web": [web]})
    status = manager.word()["STATUS"]
    assert f"ws://127.0.0.1:{web.getsockname()[1]}/mqtt, mqtt://127.0.0.1:" in status
    config.write_text(config.read_text().replace('protocol = "websocket"', 'protocol = "websocket"\nconnections_count_max = 0'))
    assert manager.process is not None
    manager.process.send_signal(signal.SIGHUP)
    manager.word()
    assert manager.word()["STATUS"].startswith("not reloaded: ")
    config.write_text(config.read_text().replace("count_max = 0", "count_max = 5"))
    manager.process.send_signal(signal.SIGHUP)
    manager.word()
    assert manager.word()["STATUS"] == status
    code, output = manager.end()
    assert (code, "need a restart" in output) == (0, False), output


def test_a_second_signal_leaves_the_path_to_systemd(manager: Manager, stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    (tmp_path / "b.toml").write_text("shutdown_grace_s = 600\n")
    manager.start("-c", str(tmp_path / "b.toml"), sockets={"x": [listening(stack, socket.AF_UNIX, str(path))]})
    manager.word()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        silent.sendall(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
        assert silent.recv(1) == b"\x20"
        assert manager.process is not None
        manager.process.send_signal(signal.SIGTERM)
        assert "STOPPING" in manager.word()
        assert manager.end()[0] == 130
    assert path.exists()


def test_sockets_for_another_process_are_not_ours() -> None:
    env = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "HOME": "/"}
    assert inherited(env, 2) == {}
    assert env == {"HOME": "/"}
    assert inherited({"LISTEN_FDS": "1"}, 2) == {}
    with pytest.raises(ConfigError, match="LISTEN_FDS: expected a number"):
        inherited({"LISTEN_FDS": "many", "LISTEN_PID": "2"}, 2)


def test_what_does_not_fit_together_is_told_at_once(stack: ExitStack) -> None:
    tcp = listening(stack)
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    silent = stack.enter_context(socket.socket())
    with open(os.devnull) as file, pytest.raises(ConfigError) as caught:
        placed(
            [Listener(systemd=name) for name in ("none", "udp", "silent", "file")],
            {"tcp": [tcp.fileno()], "udp": [datagrams.fileno()], "silent": [silent.fileno()], "file": [file.fileno()]},
            default=False,
        )
    found = [f"{key}: {text}" for key, text in caught.value.problems]
    assert found[0] == "listeners[0].systemd: systemd handed over no socket 'none'; it handed over 'tcp', 'udp', 'silent', 'file'"
    assert found[1] == "listeners[1].systemd: 'udp': expected a stream socket that listens (in a unit: ListenStream= with Accept=no)"
    assert found[2] == "listeners[2].systemd: 'silent': expected a stream socket that listens (in a unit: ListenStream= with Accept=no)"
    assert found[3].startswith("listeners[3].systemd: 'file': ")
    assert found[4] == "listeners: systemd handed over 'tcp', which nobody serves; give a listener systemd = 'tcp'"


def test_a_socket_that_others_reach_is_asked_for_its_lock(stack: ExitStack) -> None:
    (found,) = placed([Listener(systemd="x")], {"x": [listening(stack, address=("0.0.0.0", 0)).fileno()]}, default=False)
    assert not found.is_private
    (found,) = placed([Listener(systemd="x")], {"x": [listening(stack).fileno()]}, default=False)
    assert found.is_private


def test_nothing_was_handed_over(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('[[listeners]]\nsystemd = "mqtt"\n')
    assert run("check", str(tmp_path / "b.toml")).returncode == 0
    done = run("serve", "-c", str(tmp_path / "b.toml"))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "b.toml: listeners[0].systemd: systemd handed over no socket 'mqtt'; it handed over nothing: is the .socket unit started?" in line


@pytest.mark.parametrize(
    ("listener", "said"),
    [
        ({"systemd": "a:b"}, "expected the name of a socket"),
        ({"systemd": ""}, "expected the name of a socket"),
        ({"systemd": "x", "port": 1884}, "is instead of host, port and unix"),
        ({"systemd": "x", "unix": "/run/x"}, "is instead of host, port and unix"),
    ],
)
def test_mistakes(listener: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"listeners": [listener]})
    assert said in dict(caught.value.problems)["listeners[0].systemd"]


def test_systemd_hands_over(tmp_path: Path) -> None:
    """By systemd's own tool, which waits for the first connection and then becomes the broker."""
    program = find_program("systemd-socket-activate", "systemd")
    path = tmp_path / "mqtt.sock"
    with subprocess.Popen(
        [program, "-l", str(path), "--fdname=mqtt", *BROKER, "serve"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if "Listening on" in line)
            assert run("pub", "--unix", str(path), "-t", "x", "-q", "1", "-m", "y").returncode == 0
        finally:
            process.send_signal(signal.SIGTERM)
        assert f"listening on unix://{path}" in process.communicate(timeout=SECONDS_MAX)[0]
        assert process.returncode == 0


# ---- the unit files --------------------------------------------------------------------------------------------------------


def test_the_units_are_good(tmp_path: Path) -> None:
    program = find_program("systemd-analyze", "systemd")
    service = (UNITS / "broker.service").read_text()
    # What is there on this machine, in the place of what `useradd` and `pip` would bring.
    for there, here in (("/opt/broker/bin/broker serve", "/bin/true"), ("User=broker", "User=root"), ("Group=broker", "Group=root")):
        assert there in service
        service = service.replace(there, here)
    (tmp_path / "broker.service").write_text(service)
    (tmp_path / "broker.socket").write_text((UNITS / "broker.socket").read_text())

    def analyze(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS_MAX)

    done = analyze("verify", "--recursive-errors=no", "broker.service", "broker.socket")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = analyze("security", "--offline=yes", "--json=short", "--threshold=20", "broker.service")
    assert done.returncode == 0, "\n".join(str(row) for row in json.loads(done.stdout) if row.get("exposure"))
