"""The commands where the machine around them is odd: bytes that are no text, a locale without letters, a full disk, a Ctrl-C before anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SECONDS_MAX, Run, Start, only_line, run
from tests.e2e.tools import BROKER, ROOT

LATIN_1 = b"caf\xe9"
FILE = "config/broker.toml"


def run_bytes(*words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*BROKER, *words], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS_MAX, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is text")
def test_a_unix_path_need_not_be_text(start: Start, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/" + LATIN_1
    start("serve", "--unix", os.fsdecode(path)).wait("listening on")
    done = run_bytes("pub", "--unix", path, "-t", "a", "-m", "b", "-q", "1")
    assert (done.returncode, done.stderr) == (0, b"")
    missing = run_bytes("pub", "--unix", path + b"2", "-t", "a", "-m", "b")
    assert missing.returncode == 1
    assert "caf?2: no such file or directory" in only_line(missing.stderr)


def test_a_host_that_is_no_text_is_wrong_usage() -> None:
    done = run_bytes("pub", "-L", b"mqtt://" + LATIN_1 + b"/a", "-m", "x")
    assert done.returncode == 2
    assert "the host or the port is wrong" in only_line(done.stderr)


@pytest.mark.parametrize(("option", "words"), [("-f", ["-t", "a", "-f"]), ("--pw-file", ["-t", "a", "-m", "b", "-u", "ann", "--pw-file"])])
@pytest.mark.skipif(sys.platform != "linux", reason="a file that can be opened and not read")
def test_a_file_that_cannot_be_read_is_named(option: str, words: list[str]) -> None:
    done = run("pub", *words, "/proc/self/mem")
    assert done.returncode == 2
    assert f"{option}: cannot read /proc/self/mem: input/output error" in only_line(done.stderr)


def test_a_locale_without_letters_is_no_fault_of_the_broker(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").touch()
    words = ["explain", "-c", str(tmp_path / "broker.toml"), "-u", "café", "publish", "a"]
    done = run(*words, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"user 'caf" in done.stdout


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["check", "config/broker.toml"], ["explain", "-c", "config/broker.toml", "publish", "a"]]
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_as_such(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*BROKER, *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 1
    assert only_line(done.stderr) == "broker: stdout: no space left on device"


@pytest.mark.parametrize(
    "words", [["check"], ["explain", "publish", "a", "-c"], ["pub", "-t", "a", "-f"], ["serve", "--store"], ["pub", "-t", "a", "-m", "b", "-h"]]
)
def test_a_word_without_end_is_cut(words: list[str]) -> None:
    done = run(*words, "x" * 100_000)
    assert done.returncode in (1, 2)
    assert len(only_line(done.stderr)) < 5_000


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--unix", ""], ["serve", "-c", ""], ["check", ""], ["explain", "publish", "a", "-c", ""], ["passwd", "-c", "", "ann"],
        ["pub", "--unix", "", "-t", "a", "-m", "b"],
    ],
)  # fmt: skip
def test_a_path_that_is_empty_is_wrong_usage(run_here: Run, words: list[str]) -> None:
    done = run_here(*words)
    assert done.returncode == 2
    assert "the path of a file expected" in only_line(done.stderr)


def test_what_click_writes_in_columns_is_one_line(run_here: Run) -> None:
    assert "Choose from: publish, receive, subscribe; see" in only_line(run_here("explain").stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_check_refuses_a_store_that_is_no_file(run_here: Run, tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('[store]\npath = "/dev/full"\n')
    done = run_here("check", str(tmp_path / "broker.toml"))
    assert done.returncode == 1
    assert only_line(done.stderr).endswith("broker.toml: store.path: /dev/full is no file; choose another path")


def test_a_ctrl_c_before_anything_has_begun_is_not_done() -> None:
    """A script must not take it for a file that was found right."""
    code = """
import sys
import broker.config
from broker.cli.running import run_command_line

def interrupted(*_):
    raise KeyboardInterrupt

broker.config.Config.load = interrupted
sys.exit(run_command_line(["check", "x"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=SECONDS_MAX, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b"", b"")


@pytest.mark.parametrize("watched", [False, True])
def test_a_ctrl_c_while_the_store_hangs_ends_the_start(watched: bool, tmp_path: Path) -> None:
    """With systemd's watchdog it comes through a nursery more."""
    code = """
import signal, sys, threading
import broker.store.sqlite
from broker.cli.running import run_command_line

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as CI's may be, begins with it ignored

class Hanging(broker.store.sqlite.SqliteStore):
    def __init__(self, path):
        signal.raise_signal(signal.SIGINT)
        threading.Event().wait()

broker.store.sqlite.SqliteStore = Hanging
sys.exit(run_command_line(["serve", "-p", "0", "--store", sys.argv[1]]))
"""
    env = {**os.environ, **({"NOTIFY_SOCKET": "@nobody-is-there", "WATCHDOG_USEC": "30000000"} if watched else {})}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "db")], capture_output=True, timeout=SECONDS_MAX, check=False, env=env)
    assert (done.returncode, done.stdout) == (130, b"")
    assert b"Traceback" not in done.stderr
