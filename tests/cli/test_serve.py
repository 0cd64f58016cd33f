"""serve and check as processes: the address, the signals, and every way not to start."""

from __future__ import annotations

import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from broker import Config, StoreError, open_broker
from broker.cli import logs, serving
from broker.cli.serve import Order
from broker.net.unix import HAS_UNIX
from tests.cli.conftest import Run, Start, only_line, run

CONNECT_5 = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def port_of(line: str) -> int:
    return int(line.rpartition(":")[2])


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_the_real_address_and_ends_with_0(start: Start, ending: signal.Signals) -> None:
    broker = start("serve", "-p", "0")
    line = broker.wait("listening on")["line"]
    assert re.fullmatch(r"listening on mqtt://127\.0\.0\.1:\d+", line)
    if has_ipv6():
        assert broker.wait("listening on")["line"] == f"listening on mqtt://[::1]:{port_of(line)}"
    socket.create_connection(("127.0.0.1", port_of(line))).close()
    broker.stop(ending)
    assert broker.process.returncode == 0
    assert "Traceback" not in "".join(broker.log)


def test_several_hosts_and_a_unix_path(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    broker = start("serve", "--host", "127.0.0.1", "--host", "127.0.0.2", "-p", "0", "--unix", str(path))
    lines = [broker.wait("listening on")["line"] for _ in range(3)]
    assert [re.sub(r":\d+$", "", line) for line in lines[:2]] == ["listening on mqtt://127.0.0.1", "listening on mqtt://127.0.0.2"]
    assert lines[2] == f"listening on unix://{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert run("pub", "--unix", str(path), "-t", "x", "-q", "1", "-m", "y").returncode == 0
    broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 0
    assert not path.exists()


def test_a_second_broker_says_that_the_address_is_in_use(start: Start) -> None:
    broker = start("serve", "--host", "127.0.0.1", "-p", "0")
    port = port_of(broker.wait("listening on")["line"])
    second = run("serve", "--host", "127.0.0.1", "-p", str(port))
    assert second.returncode == 1
    line = only_line(second.stderr)
    assert f"127.0.0.1:{port}" in line
    assert "another program is listening" in line
    assert line.endswith(": --port PORT")


def test_what_is_in_use_is_told_in_the_words_of_whoever_chose_it(start: Start, tmp_path: Path) -> None:
    path, file = tmp_path / "mqtt.sock", tmp_path / "b.toml"
    file.write_text(f'[[listeners]]\nunix = "{path}"\n')
    broker = start("serve", "--unix", str(path))
    broker.wait("listening on")
    assert only_line(run("serve", "--unix", str(path)).stderr).endswith("choose another path: --unix PATH")
    assert only_line(run("serve", "-c", str(file)).stderr).endswith(f"choose another path; unix of [[listeners]] in {file}")
    path_of_no_socket = tmp_path / "file"
    path_of_no_socket.write_text("mine")
    assert only_line(run("serve", "--unix", str(path_of_no_socket)).stderr).endswith("choose another path: --unix PATH")
    assert path_of_no_socket.read_text() == "mine"


def test_a_second_signal_ends_at_once(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text("shutdown_grace_s = 600\n[[listeners]]\nhost = '127.0.0.1'\nport = 0\n")
    broker = start("serve", "-c", str(tmp_path / "slow.toml"))
    with socket.create_connection(("127.0.0.1", port_of(broker.wait("listening on")["line"]))) as silent:
        # A client that has connected and never hangs up holds the goodbye.
        silent.sendall(CONNECT_5)
        assert silent.recv(1) == b"\x20"
        broker.process.send_signal(signal.SIGTERM)
        broker.wait("stopping")
        broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 130


def test_it_does_not_listen_to_strangers_until_told_whom_to_trust(start: Start) -> None:
    refused = run("serve", "--host", "0.0.0.0", "-p", "0")
    assert refused.returncode == 1
    line = only_line(refused.stderr)
    assert "password_file" in line
    assert "--allow-anonymous" in line
    assert "open_broker" not in line
    broker = start("serve", "--host", "0.0.0.0", "-p", "0", "--allow-anonymous")
    assert broker.wait("listening on")["line"].startswith("listening on mqtt://0.0.0.0:")
    broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 0


BAD_HOSTS = [(["--host", "nobody.invalid"], "nobody.invalid"), (["--host", "192.0.2.1", "--allow-anonymous"], "192.0.2.1")]


@pytest.mark.parametrize(("words", "said"), BAD_HOSTS)
def test_an_address_that_is_not_ours(words: list[str], said: str) -> None:
    done = run("serve", "-p", "0", *words, "--allow-anonymous")
    assert done.returncode == 1
    assert said in only_line(done.stderr)


@pytest.mark.parametrize("host", ["localhost:1883", "[::1]", "mqtt://localhost", ""])
def test_a_host_is_no_url(host: str) -> None:
    """It was said to be reachable from other machines."""
    done = run("serve", "--host", host)
    assert done.returncode == 2
    assert "invalid value for '--host': a host" in only_line(done.stderr)


@pytest.mark.skipif(not HAS_UNIX, reason="there are no Unix sockets here")
@pytest.mark.parametrize("flag", ["--control", "--unix"])
def test_a_path_that_is_too_long_is_told_with_its_flag(tmp_path: Path, flag: str) -> None:
    """It was one of the file's listeners, by a number that is not there."""
    file = tmp_path / "broker.toml"
    file.write_text("[[listeners]]\nport = 0\n")
    done = run("serve", "-c", str(file), flag, "x" * 200)
    assert done.returncode == 2
    assert only_line(done.stderr).startswith(f"broker: {flag}: the path is longer than ")


def test_a_unix_path_that_cannot_be_made(tmp_path: Path) -> None:
    done = run("serve", "--unix", str(tmp_path / "no" / "where"))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert str(tmp_path / "no" / "where") in line
    assert line.count("another") == 1, line  # one piece of advice


@pytest.mark.parametrize(
    ("words", "variable", "setter"),
    [(["--store", "x.db"], "y.db", "--store"), (["-c", "b.toml"], None, "path of [store] in b.toml"), ([], "y.db", "BROKER__STORE__PATH")],
)
def test_a_store_that_cannot_be_opened_is_told_in_the_words_of_whoever_chose_it(
    words: list[str], variable: str | None, setter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Run
) -> None:
    given: list[str | None] = []

    def refuse(config: Config) -> NoReturn:
        given.append(config.store.path)
        raise StoreError("x.db", "is a folder")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "open_broker", refuse)
    for name in ("lighten", "configure"):  # what they do would outlive this test
        monkeypatch.setattr(logs, name, lambda *words: None)
    if variable is not None:
        monkeypatch.setenv("BROKER__STORE__PATH", variable)
    (tmp_path / "b.toml").write_text("[store]\npath = 'z.db'\n")
    done = run_here("serve", *words)
    assert (done.returncode, only_line(done.stderr)) == (1, f"broker: store x.db: is a folder (set by {setter})")
    # A path of a config file starts there, one of a command line where that was written; with no file they are the same.
    assert given == [str(tmp_path / "x.db") if "--store" in words else variable if not words else str(tmp_path / "z.db")]


def test_a_store_needs_a_path() -> None:
    done = run("serve", "--store", "")
    assert done.returncode == 2
    assert "invalid value for '--store': the path of a file expected" in only_line(done.stderr)


# ---- the config file ----------------------------------------------------------------------------------------------


def test_the_command_line_replaces_the_listeners_of_the_file(start: Start, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("[[listeners]]\nhost = '127.0.0.3'\nport = 0\n")
    broker = start("serve", "-c", str(tmp_path / "b.toml"), "--host", "127.0.0.1", "-p", "0")
    assert broker.wait("listening on")["line"].startswith("listening on mqtt://127.0.0.1:")
    broker.stop(signal.SIGTERM)
    assert sum("listening on" in line for line in broker.log) == 1


def test_hangup_reads_the_file_again_and_a_mistake_changes_nothing(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    text = "[[listeners]]\nhost = '127.0.0.1'\nport = 0\n"
    file.write_text(text)
    broker = start("serve", "-c", str(file))
    broker.wait("listening on")
    file.write_text("nonsense = 1\n" + text)
    broker.process.send_signal(signal.SIGHUP)
    assert "nonsense" in broker.wait("reloaded")["line"]
    file.write_text('password_file = "a\\u0000b"\n' + text)
    broker.process.send_signal(signal.SIGHUP)
    assert "password_file: must not contain U+0000" in broker.wait("reloaded")["line"]
    file.write_text("sys_interval_s = 1\n" + text)
    broker.process.send_signal(signal.SIGHUP)
    assert "not reloaded" not in broker.wait("reloaded")["line"]
    broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 0


async def test_a_fault_of_ours_in_a_reload_ends_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def break_down(*args: object) -> Config:
        raise ValueError("unforeseen")

    monkeypatch.setattr(serving, "load", break_down)
    async with open_broker() as hub:
        assert serving._reload(hub, Order("b.toml", (), None, (), False, False), {}) == "a fault of the broker"
    assert "unforeseen" in caplog.text


@contextmanager
def hangup_is(what: signal.Handlers) -> Iterator[None]:
    """What a child inherits: SIG_IGN is nohup's, and these tests may run under it themselves."""
    before = signal.signal(signal.SIGHUP, what)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_hangup_without_a_file_ends_it_with_a_goodbye(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    with hangup_is(signal.SIG_DFL):
        broker = start("serve", "--unix", str(path))
    broker.wait("listening on")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(CONNECT_5)
        assert client.recv(1) == b"\x20"
        broker.process.send_signal(signal.SIGHUP)
        broker.wait("stopping")
        # A shell that goes away with its terminal sends a second one.
        broker.process.send_signal(signal.SIGHUP)
        said = b""
        while data := client.recv(100):
            said += data
    assert said.endswith(b"\xe0\x01\x8b")  # DISCONNECT: the server is shutting down
    broker.stop(signal.SIGHUP)
    assert broker.process.returncode == 0
    assert not path.exists()


def test_nohup_keeps_it(start: Start) -> None:
    with hangup_is(signal.SIG_IGN):
        broker = start("serve", "--host", "127.0.0.1", "-p", "0")
    where = port_of(broker.wait("listening on")["line"])
    broker.process.send_signal(signal.SIGHUP)
    assert run("pub", "-p", str(where), "-t", "x", "-q", "1", "-m", "y").returncode == 0
    broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 0


def test_check_is_content_with_a_good_file(tmp_path: Path, run_here: Run) -> None:
    (tmp_path / "b.toml").write_text("[[listeners]]\nport = 0\n")
    done = run_here("check", str(tmp_path / "b.toml"))
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{tmp_path / 'b.toml'}: ok\n", b"")


BAD_FILES = [
    ("[[listeners]]\nport = 'x'\n", ["listeners[0].port"]),
    ("nonsense = 1\n", ["nonsense"]),
    ("[limits\n", ["line 1"]),
    ("[[listeners]]\nhost = '0.0.0.0'\n", ["listeners[0]: mqtt://0.0.0.0:1883 can be reached from other machines"]),
    ("[[listeners]]\nunix = '/tmp/x'\nport = 1883\n", ["listeners[0].port: a listener has unix, or host and port"]),
    ("shutdown_grace_s = -1\n[log]\nlevel = 'loud'\n", ["shutdown_grace_s", "log.level"]),
]


@pytest.mark.parametrize(("text", "said"), BAD_FILES, ids=[text.splitlines()[0] for text, _ in BAD_FILES])
def test_every_mistake_of_a_file_is_a_line(text: str, said: list[str], tmp_path: Path, run_here: Run) -> None:
    file = tmp_path / "b.toml"
    file.write_text(text)
    for words in (["check", str(file)], ["serve", "-c", str(file)]):
        done = run_here(*words)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1
        assert len(lines) == len(said), lines
        assert all(line.startswith(f"broker: {file}: ") for line in lines)
        assert all(any(key in line for line in lines) for key in said)


def test_check_looks_where_the_log_and_the_store_would_go(tmp_path: Path, run_here: Run) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[store]\npath = 'no/broker.db'\n")
    line = only_line(run_here("check", str(file)).stderr)
    assert line == f"broker: {file}: store.path: there is no directory {tmp_path / 'no'}; make it, or choose another path"
    file.write_text("[log]\ntarget = 'no/broker.log'\n[[listeners]]\nhost = '*'\n")
    lines = run_here("check", str(file)).stderr.decode().splitlines()
    assert lines[0] == f"broker: {file}: log.target: there is no directory {tmp_path / 'no'}; make it, or choose another path"
    assert "listeners[0]: mqtt://*:1883 can be reached" in lines[1]
    file.write_text("[log]\ntarget = ''\n")
    assert only_line(run_here("check", str(file)).stderr) == f'broker: {file}: log.target: expected stderr, syslog or a path, got ""'


@pytest.mark.parametrize("words", [["check"], ["serve", "-c"]])
def test_a_file_that_cannot_be_read(words: list[str], tmp_path: Path, run_here: Run) -> None:
    done = run_here(*words, str(tmp_path / "none.toml"))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "none.toml" in line
    assert "no such file" in line.lower()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_the_file_limit_is_raised_as_far_as_the_system_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS says that there is no hard limit, and refuses more than the kernel's own."""
    resource = pytest.importorskip("resource")
    tried: list[int] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        tried.append(limits[0])
        if limits[0] > 12_288:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    serving.raise_file_limit()
    assert tried == [65_536, 10_240]
