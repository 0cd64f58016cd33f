"""`broker passwd` and `broker explain` as people run them; Mosquitto's broker takes what the first one writes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from getpass import getuser
from pathlib import Path

import pytest

from broker.auth.passwords import load_passwords
from broker.cli.running import run_command_line
from tests.cli.conftest import BROKER, SECONDS_MAX, only_line, run
from tests.conftest import find_program


@pytest.mark.parametrize("scheme", ["sha512-pbkdf2", "sha512"])
def test_mosquitto_takes_what_passwd_wrote(tmp_path: Path, mosquitto_pub: str, scheme: str) -> None:
    program = find_program("mosquitto", "mosquitto")
    path = tmp_path / "passwords"
    assert run("passwd", "-H", scheme, "-c", "-b", str(path), "ann", "Gehei:m$ü").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"user {getuser()}\nlistener {port} 127.0.0.1\npassword_file {path}\nlog_dest stderr\nlog_type notice\nlog_type information\n")
    with subprocess.Popen([program, "-c", str(config)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("running" in line for line in process.stderr)
            words = [mosquitto_pub, "-p", str(port), "-t", "x", "-m", "y", "-u", "ann", "-P"]
            assert subprocess.run([*words, "Gehei:m$ü"], timeout=SECONDS_MAX, check=False).returncode == 0
            assert subprocess.run([*words, "wrong"], timeout=SECONDS_MAX, check=False, capture_output=True).returncode != 0
        finally:
            process.kill()


def test_users_come_and_go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "passwords"
    file = str(path)
    quick = ("-I", "10")
    assert "there is no such file; -c makes one" in only_line(run("passwd", "-b", file, "ann", "x").stderr)
    assert run("passwd", *quick, "-c", file, "ann", stdin=b"from a pipe\n").returncode == 0
    assert run_command_line(["passwd", *quick, "-b", file, "ben", "y"]) == 0
    users = load_passwords(path)
    ann = users.get("ann")
    assert ann is not None
    assert ann.verifies(b"from a pipe")
    assert run_command_line(["passwd", "-D", file, "ann"]) == 0
    assert "ann" not in load_passwords(path)
    assert run_command_line(["passwd", "-D", file, "ann"]) == 1
    assert "there is no user 'ann'" in capfd.readouterr().err
    path.write_text("carl:plain\n")
    assert run_command_line(["passwd", *quick, "-U", file]) == 0
    carl = load_passwords(path).get("carl")
    assert carl is not None
    assert carl.verifies(b"plain")
    assert run("passwd", *quick, file, "dora", stdin=b"\xff\r\n").returncode == 0  # bytes, as MQTT has them
    dora = load_passwords(path).get("dora")
    assert dora is not None
    assert dora.verifies(b"\xff")


def test_what_is_no_file_does_not_become_one(tmp_path: Path) -> None:
    """As root, `passwd -c /dev/null` put a file in its place."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for words in (["-c", "-b", str(path), "ann", "x"], ["-D", str(path), "ann"], ["-U", str(path)]):
        done = run("passwd", *words)
        assert (done.returncode, only_line(done.stderr)) == (1, f"broker: {path}: is not a file")
    assert path.is_fifo()


def test_argon2id_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "passwords"
    assert run_command_line(["passwd", "-H", "argon2id", "-I", "1", "-c", "-b", str(path), "ann", "geheim"]) == 0
    ann = load_passwords(path).get("ann")
    assert ann is not None
    assert ann.verifies(b"geheim")
    assert run_command_line(["passwd", "-H", "argon2id", "-I", "101", "-b", str(path), "ann", "other"]) == 1
    assert "1 to 100 passes" in only_line(capfd.readouterr().err.encode())
    monkeypatch.setitem(sys.modules, "argon2", None)
    text = path.read_text()
    assert run_command_line(["passwd", "-H", "argon2id", "-c", "-b", str(path), "ann", "other"]) == 1
    assert "pip install 'trio-mqtt-broker[argon2]'" in only_line(capfd.readouterr().err.encode())
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-c", "-D", "F", "ann"], "exclude each other"),
        (["-b", "F", "ann"], "needs a password"),
        (["F", "ann", "secret"], "needs -b"),
        (["F"], "USER"),
        (["-U", "F", "ann"], "nothing else"),
        (["-c", "-b", "F", "a:b", "x"], "colon"),
        (["-I", "0", "-c", "-b", "F", "a", "x"], "-I"),
        (["-c", "-b", "F", "a\udcff", "x"], "must be UTF-8"),
    ],
)
def test_wrong_usage(words: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["passwd", *words]) == 2
    assert line in only_line(capfd.readouterr().err.encode())


@pytest.mark.parametrize("keys", [(b"\x04",), (b"\x03",), (b"geheim\n", b"\x04")], ids=["end of file", "interrupt", "end of file, the second time"])
def test_a_terminal_that_gives_none_is_a_failure(tmp_path: Path, keys: tuple[bytes, ...]) -> None:
    pty = pytest.importorskip("pty")
    path = tmp_path / "passwords"
    child, master = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that runs this in the background has it ignored
        os.execv(sys.executable, [*BROKER, "passwd", "-I", "10", "-c", str(path), "ann"])
    seen = b""
    for prompt, key in zip((b"Password for ann: ", b"Again: "), keys, strict=False):
        while prompt not in seen:
            seen += os.read(master, 1000)
        os.write(master, key)
    while b"no password was given; nothing was changed" not in seen:
        seen += os.read(master, 1000)
    _, status = os.waitpid(child, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 1
    assert not path.exists()


def test_a_terminal_is_asked_twice_without_echo(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    path = tmp_path / "passwords"
    child, master = pty.fork()
    if child == 0:
        os.execv(sys.executable, [*BROKER, "passwd", "-I", "10", "-c", str(path), "ann"])
    seen = b""
    for prompt in (b"Password for ann: ", b"Again: "):
        while prompt not in seen:
            seen += os.read(master, 1000)
        os.write(master, b"geheim\n")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(master)
    assert b"geheim" not in seen
    ann = load_passwords(path).get("ann")
    assert ann is not None
    assert ann.verifies(b"geheim")


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "acl").write_text("topic read news\n\nuser ann\ntopic write sensors/#\npattern read own/%c\n")
    (tmp_path / "broker.toml").write_text('allow_anonymous = true\nacl_file = "acl"\n[[access]]\nuser = "ben"\ntopic = "x/+"\nmay = "read"\n')
    return str(tmp_path / "broker.toml")


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["-u", "ann", "publish", "sensors/a"], 0, ["allowed: user 'ann'", "may publish 'sensors/a'", "acl:4: topic write sensors/#"]),
        (["-u", "ann", "receive", "sensors/a"], 1, ["refused", "may not receive", "no rule allows it"]),
        (["-i", "d1", "receive", "own/d1"], 0, ["an anonymous client ('d1')", "acl:5: pattern read own/%c"]),
        (["-u", "ben", "receive", "x/y"], 0, ["broker.toml: access[0]"]),
        (["-u", "ann", "subscribe", "news"], 0, ["every subscription is granted", "but nothing will come"]),
        (["-u", "ann", "publish", "$SYS/x"], 1, ["$SYS is the broker's own"]),
    ],
)
def test_explain(config: str, words: list[str], code: int, parts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["explain", "-c", config, *words]) == code
    printed = capfd.readouterr().out
    assert all(part in printed for part in parts), printed


def test_explain_takes_the_topic_as_the_clients_of_the_listener_call_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acl").write_text("topic readwrite factory1/a/#\n")
    (tmp_path / "broker.toml").write_text('acl_file = "acl"\n[[listeners]]\nport = 1\n[[listeners]]\nport = 2\nmount_point = "factory1/"\n')
    asked = ["explain", "-c", str(tmp_path / "broker.toml")]
    for words, code, part in (
        (["-l", "1", "publish", "a/b"], 0, "may publish 'factory1/a/b'"),
        (["-l", "1", "subscribe", "$share/g/x"], 0, "the same client may not receive 'factory1/x'"),
        (["-l", "0", "publish", "a/b"], 1, "may not publish 'a/b'"),
        (["publish", "factory1/a/b"], 0, "may publish 'factory1/a/b'"),
    ):
        assert run_command_line([*asked, *words]) == code
        assert part in capfd.readouterr().out


def test_explain_has_nothing_to_say_of_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broker.toml").write_text('[[listeners]]\nprotocol = "http"\nport = 9883\n')
    assert run_command_line(["explain", "-c", str(tmp_path / "broker.toml"), "-l", "0", "publish", "a"]) == 2
    assert "where no MQTT is spoken" in capfd.readouterr().err


def test_explain_says_wrong_usage_and_mistakes(config: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["explain", "-c", config, "publish", "a/#"]) == 2
    (Path(config).parent / "acl").write_text("topic raed x\n")
    assert run_command_line(["explain", "-c", config, "publish", "a"]) == 1
    assert "line 1: expected read" in capfd.readouterr().err
