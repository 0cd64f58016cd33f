"""ctl against a broker in a process of its own; and one line for everything that can be in the way."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from broker.cli import controlling, ctl
from broker.cli.controlling import NO_BROKER, TABLES, WIDTH_MAX, cell, table
from broker.cli.ctl import Where
from tests.cli.conftest import Run, Start, only_line, run
from tests.systems import unix_only

pytestmark = unix_only


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "c.sock")


def columns(text: bytes) -> list[list[str]]:
    """Cells of each line; no cell of the tests has two spaces in it."""
    return [re.split(r"\s{2,}", line) for line in text.decode().splitlines()]


# ---- with a broker -------------------------------------------------------------------------------------------------------


def test_clients_are_seen_thrown_out_and_banned(start: Start, run_here: Run, path: str) -> None:
    broker = start("serve", "-p", "0", "--host", "127.0.0.1", "--control", path)
    port = broker.wait("listening on")["line"].rpartition(":")[2]
    assert broker.wait("listening on")["line"] == f"listening on unix://{path} (control)"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    def ctl(*words: str) -> tuple[int, list[list[str]]]:
        done = run_here("ctl", "--socket", path, *words)
        return done.returncode, columns(done.stdout or done.stderr)

    listener = start("sub", "-p", port, "-i", "dev/1", "-u", "ann", "-t", "a/#", "-t", "$share/g/b", "-q", "1", "-d")
    listener.wait("SUBACK")
    code, (head, row) = ctl("clients")
    assert code == 0
    assert head == ["CLIENT", "USER", "ADDRESS", "MQTT", "SINCE", "FILTERS", "WAITING", "BYTES", "UNACKED", "DROPPED"]
    assert (row[:2], row[3], row[5:]) == (["dev/1", "ann"], "5.0", ["2", "0", "0", "0", "0"])
    assert ctl("clients", "--away")[1] == [head]
    assert ctl("clients", "--connected", "-u", "ann", "--prefix", "dev", "--limit", "1")[1] == [head, row]
    lines = ctl("client", "dev/1")[1]
    assert {"client": "dev/1", "user": "ann", "session": "ends with its connection", "dropped": "none"}.items() <= {
        cells[0]: cells[1] for cells in lines if len(cells) == 2
    }.items()
    assert [cells[:2] for cells in lines[-2:]] == [["a/#", "1"], ["$share/g/b", "1"]]
    assert [cells[:3] for cells in ctl("subscribers", "a/b")[1][1:]] == [["dev/1", "a/#", "1"]]
    assert run_here("pub", "-p", port, "-t", "a/b", "-m", "hello", "-q", "1", "-r").returncode == 0
    assert ctl("retained")[1] == [["TOPIC", "BYTES", "QOS", "EXPIRES IN"], ["a/b", "5", "1", "never"]]
    assert ctl("retained", "b/#")[1][1:] == []
    assert ["clients_total", "1"] in ctl("statistics")[1]
    assert ctl("bridges")[1] == [["NAME", "TO", "STATE", "SINCE", "OUT", "IN", "DROPPED", "CAUSE"]]
    assert ctl("ban", "-u", "ann", "--until", "2901-01-01T00:00Z") == (0, [["banned; 1 thrown out"]])
    (_, (ban,)) = ctl("bans")[0], ctl("bans")[1][1:]
    assert (ban[1], ban[3][:4], ban[4]) == ("ann", datetime(2901, 1, 1, tzinfo=UTC).astimezone().strftime("%Y"), "request")
    assert ctl("kick", "dev/1") == (1, [["broker: there is no client 'dev/1', and no session of it"]])
    assert ctl("unban", "-u", "ann") == (0, [["no longer banned"]])
    assert ctl("unban", "-u", "ann") == (1, [["broker: there is no ban of exactly username 'ann'"]])
    broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 0
    assert not os.path.exists(path)


def test_for_programs_and_by_the_file(start: Start, run_here: Run, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[[listeners]]\nport = 0\n[[listeners]]\nprotocol = "control"\nunix = "own.sock"\n')
    broker = start("serve", "-c", str(file), "--control", str(tmp_path / "other.sock"))
    port = broker.wait("listening on")["line"].rpartition(":")[2]
    for _ in range(2):
        assert "sock" in broker.wait("listening on")["line"]
    words = ("sub", "-p", port, "-c", "-i", "kept", "-x", "60", "-t", "x", "-q", "1", "-E")
    assert run_here(*words).returncode == 0

    def asked(*words: str) -> dict[str, object]:
        done = run_here("ctl", *words)
        assert (done.returncode, done.stderr) == (0, b"")
        found: dict[str, object] = json.loads(done.stdout)
        return found

    own = ("-c", str(file), "--json")
    while not (away := asked(*own, "clients", "--away")["clients"]):
        pass  # its goodbye is still to be read
    assert isinstance(away, list)
    assert [one["client_id"] for one in away] == ["kept"]
    assert asked("clients", "--json", "--socket", str(tmp_path / "other.sock")) == asked("clients", *own)
    for name, payload in (("less", "x"), ("more", "x" * 100)):
        assert run_here("sub", "-p", port, "-c", "-i", name, "-x", "60", "-t", name, "-q", "1", "-E").returncode == 0
        assert run_here("pub", "-p", port, "-t", name, "-m", payload, "-q", "1").returncode == 0
    done = run_here("ctl", "-c", str(file), "clients", "--waiting")
    assert [cells[0] for cells in columns(done.stdout)] == ["CLIENT", "more", "less"]
    done = run_here("ctl", "-c", str(file), "clients", "--waiting", "--limit", "1")
    assert [cells[0] for cells in columns(done.stdout)] == ["CLIENT", "more"]
    assert only_line(done.stderr) == "broker: there are more than 1 (--limit)"
    assert (asked("clients", "--waiting", "--limit", "1", *own)["more"], asked("clients", "--limit", "9", *own)["more"]) == (True, False)
    assert asked("client", "kept", *own)["session_expiry_s"] == 60
    assert asked(*own, "statistics")["clients_total"] == 3
    assert asked(*own, "ban", "-i", "other") == {"disconnected_count": 0}
    assert asked(*own, "unban", "-i", "other") == {}
    assert asked(*own, "bans") == {"bans": [], "more": False}
    assert run_here("ctl", "-c", str(file), "kick", "kept").stdout == b"kept: was away; its session stays\n"
    assert asked(*own, "kick", "kept", "--drop-session") == {"was_connected": False, "session_dropped": True}
    if hasattr(signal, "SIGHUP"):
        broker.process.send_signal(signal.SIGHUP)
        assert "restart" not in broker.wait("reloaded")["line"]


def test_there_may_be_more_than_is_shown(start: Start, run_here: Run, path: str) -> None:
    broker = start("serve", "-p", "0", "--host", "127.0.0.1", "--control", path)
    port = broker.wait("listening on")["line"].rpartition(":")[2]
    for topic in ("a", "b"):
        assert run_here("pub", "-p", port, "-t", topic, "-m", "x", "-q", "1", "-r").returncode == 0
    done = run_here("ctl", "--socket", path, "retained", "--limit", "1")
    assert (done.returncode, len(done.stdout.splitlines()), only_line(done.stderr)) == (0, 2, "broker: there are more than 1 (--limit)")


def test_a_path_that_is_taken_is_told_with_its_flag(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(path)
        taken.listen()
        done = run("serve", "-p", "0", "--control", path)  # in a process of its own, whose logging it sets up
    assert done.returncode == 1
    assert "another program is listening there" in only_line(done.stderr)
    assert only_line(done.stderr).endswith(": --control PATH")


# ---- without one ---------------------------------------------------------------------------------------------------------


def test_no_socket_and_nobody_behind_it(run_here: Run, path: str) -> None:
    done = run_here("ctl", "clients", "--socket", path)
    assert done.returncode == 1
    assert f"{path}: there is no such socket; a broker opens one with 'broker serve --control {path}'" in only_line(done.stderr)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    done = run_here("ctl", "clients", "--socket", path)
    assert (done.returncode, only_line(done.stderr)) == (1, f"broker: {path}: nobody listens there; is the broker running?")
    done = run_here("ctl", "clients", "--socket", "x" * 200)
    assert done.returncode == 1
    assert only_line(done.stderr).endswith("path too long")


@pytest.mark.skipif(os.path.exists(controlling.SOCKET), reason="a broker of this machine's is there")
def test_where_nothing_says_it_is_looked_for_at_the_services_place(run_here: Run) -> None:
    done = run_here("ctl", "clients")
    assert done.returncode == 1
    assert only_line(done.stderr).startswith(f"broker: {controlling.SOCKET}: there is no such socket; --socket PATH, or -c FILE, says where it is")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, ""), "p: permission denied; its owner and mode say who may ask"),
        (TimeoutError(), "p: no answer within 30 s"),
        (ConnectionResetError(errno.ECONNRESET, ""), "p: what answers there is no control listener"),
        (OSError(errno.EMFILE, "Too many open files"), "p: too many open files"),
    ],
)
def test_what_the_system_says_is_told_with_what_to_do(error: OSError, said: str) -> None:
    assert controlling._advice(error, "p", Where(socket="p")).startswith(said)


@contextmanager
def answering(path: str, said: bytes | None) -> Iterator[None]:
    """Whoever comes is told that; None: nothing."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            connected, _ = listening.accept()
            with connected:
                connected.recv(65_536)
                if said is None:
                    connected.recv(1)  # until it gives up
                else:
                    connected.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (b"", "what answers there is no control listener of a broker"),
        (b"\x20\x02\x00\x05", "what answers there is no control listener of a broker"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "or ended in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000000\r\n\r\n{", "or ended in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "or ended in the middle of its answer"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nwhat?", NO_BROKER),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]", NO_BROKER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhat?", NO_BROKER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", NO_BROKER),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n{"clients":[{}],"more":false}', NO_BROKER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000, NO_BROKER),
        (b'HTTP/1.1 400 Bad Request\r\nContent-Length: 15\r\n\r\n{"error":"hm!"}', "broker: hm!"),
        (b'HTTP/1.1 409 Conflict\r\nContent-Length: 23\r\n\r\n{"error":"a\\u001b[2Jb"}', "broker: a\\x1b[2Jb"),
        (None, "no answer within 0.05 s"),
    ],
)
def test_who_answers_something_else(run_here: Run, monkeypatch: pytest.MonkeyPatch, path: str, said: bytes | None, line: str) -> None:
    if said is None:
        monkeypatch.setattr(controlling, "TIMEOUT_S", 0.05)
    with answering(path, said):
        done = run_here("ctl", "clients", "--socket", path)
    assert line in only_line(done.stderr)
    assert done.returncode == (2 if line == "broker: hm!" else 1)


def test_an_answer_without_an_end_is_not_kept(run_here: Run, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(controlling, "ANSWER_BYTES_MAX", 100)
    with answering(path, b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 101 + b'{"clients":[],"more":false}'):
        done = run_here("ctl", "clients", "--socket", path)
    assert NO_BROKER in only_line(done.stderr)


def test_programs_get_json_or_nothing(run_here: Run, path: str) -> None:
    with answering(path, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhat?"):
        done = run_here("ctl", "clients", "--socket", path, "--json")
    assert (done.returncode, done.stdout) == (1, b"")
    assert NO_BROKER in only_line(done.stderr)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[[listeners]]\nport = 0\n", "has no control listener: [[listeners]] with protocol"),
        (
            '[[listeners]]\nprotocol = "control"\nsystemd = "control"\n',
            "its control socket is one of systemd's; say where that is with --socket PATH",
        ),
        ("[[listener]]\n", "listener: unknown key"),
    ],
)
def test_a_file_that_does_not_say_where(run_here: Run, tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(text)
    done = run_here("ctl", "-c", str(file), "clients")
    assert done.returncode == 1
    assert line in only_line(done.stderr)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("bogus",), "no such command 'bogus'; see 'broker ctl --help'"),
        (("client",), "missing argument 'ID'; see 'broker ctl client --help'"),
        (("ban",), "say whom: --client ID, --user NAME or --address ADDRESS; of several all must fit; see 'broker ctl ban --help'"),
        (("subscribers", "a/+"), "'a/+' is no Topic Name"),
        (("retained", "a#"), "'a#' is no Topic Filter"),
        (("clients", "--limit", "0"), "a whole number from 1"),
        (("ban", "-u", "x", "--until", "soon"), "a date and time as 2027-01-31T12:00, or how long as 90m, 12h, 7d, expected, not 'soon'"),
        (("ban", "-u", "x", "--until", "2001-01-01"), "'2001-01-01' is over already"),
        (("--socket", "x", "-c", "y", "clients"), "--socket, or -c and the file that names it"),
    ],
)
def test_words_that_make_no_question(run_here: Run, words: tuple[str, ...], line: str) -> None:
    done = run_here("ctl", *words)
    assert done.returncode == 2
    assert line in only_line(done.stderr)


def test_alone_it_shows_its_help(run_here: Run) -> None:
    done = run_here("ctl")
    assert done.returncode == 2
    assert b"subscribers" in done.stdout


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43_200), ("7d", 604_800), ("30s", 30)])
def test_how_long_a_ban_holds(text: str, seconds: int) -> None:
    assert abs(ctl.until(text) - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(minutes=1)


@pytest.mark.parametrize("text", ["", "-1h", "1w", "999999999d", "2027-13-01"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter):
        ctl.until(text)


# ---- tables ----------------------------------------------------------------------------------------------------------------


def test_a_table_holds_what_a_terminal_would_obey_as_letters() -> None:
    assert cell("a\x1b[2Jb\n\x9bc\u202e") == "a\\x1b[2Jb\\n\\x9bc\\u202e"
    assert cell("grün 温度") == "grün 温度"
    rows = [
        {"topic": "温度", "payload_bytes": 1234, "qos": 0, "expires_in_s": None},
        {"topic": "x\n", "payload_bytes": 5, "qos": 1, "expires_in_s": 60},
    ]
    assert table(TABLES["retained"], rows).splitlines() == [
        "TOPIC  BYTES  QOS  EXPIRES IN",
        "温度   1,234  0         never",
        "x\\n        5  1          60 s",
    ]


def test_a_name_that_is_very_long_fills_up_nobody_elses_line() -> None:
    rows = [{"topic": topic, "payload_bytes": 5, "qos": 1, "expires_in_s": None} for topic in ("x" * 65_535, "y")]
    head, long, short = table(TABLES["retained"], rows).splitlines()
    assert long.split() == ["x" * 65_535, "5", "1", "never"]
    assert len(head) == len(short) < WIDTH_MAX + 40


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be changed here")
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_the_ends_of_the_calendar_are_times_in_every_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        ban = {"client_id": "c", "username": None, "address": None, "in_config": False}
        assert ctl.until("9999-12-31T23:59:59") > datetime.now(UTC)
        for until in ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59", "9999-12-31T00:00:00-05:00"):
            assert " 9999-12-31 " in table(TABLES["bans"], [{**ban, "until": until}])
        with pytest.raises(click.BadParameter, match="over already"):
            ctl.until("0001-01-01")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_options_of_a_subscription() -> None:
    row = {"filter": "a", "qos": 1, "no_local": True, "retain_as_published": False, "identifier": 7}
    assert table(TABLES["subscriptions"], [row]).splitlines()[1].split("  ")[-1] == "no_local, identifier 7"


def test_bridges_and_bans_of_the_config() -> None:
    bridge = {"name": "n", "address": "x:1", "connected": False, "since_s": None, "out_count": 1, "in_count": 2, "dropped": {"a": 3}, "cause": "lost"}
    assert table(TABLES["bridges"], [bridge]).splitlines()[1].split() == ["n", "x:1", "away", "-", "1", "2", "3", "lost"]
    ban = {"client_id": None, "username": None, "address": "192.0.2.0/24", "until": None, "in_config": True}
    assert table(TABLES["bans"], [ban]).splitlines()[1].split() == ["-", "-", "192.0.2.0/24", "-", "config"]
