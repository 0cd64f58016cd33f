"""pub, sub and rr as processes: bytes in and out, exit codes, signals, lost connections."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from broker.cli.connecting import url_of
from broker.cli.settings import connection_of
from broker.cli.sub import command as sub_command
from broker.net.dial import parse_url
from broker.wire.packets import CONNECT, DISCONNECT, PUBLISH, SUBSCRIBE
from tests.cli.conftest import BROKER, SECONDS_MAX, Run, Start, only_line, run
from tests.e2e.tools import ROOT

CONNACK_5 = b"\x20\x07\x00\x00\x04\x12\x00\x01a"  # the client id is a
CONNACK_3 = b"\x20\x02\x00\x00"
SUBACK_5 = b"\x90\x04PP\x00\x00"

# ---- through a broker ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "qos"), [("5", "0"), ("5", "2"), ("311", "1"), ("31", "2")])
def test_a_message_arrives_as_it_was_published(start: Start, port: str, topic: str, version: str, qos: str) -> None:
    listening = start("sub", "-p", port, "-V", version, "-t", topic, "-q", qos, "-F", "%t %q %x", "-C", "1", "-d")
    listening.wait("SUBACK")
    published = run("pub", "-p", port, "-V", version, "-t", topic, "-q", qos, "-s", stdin=b"\x00\xff\n")
    assert (published.returncode, published.stdout, published.stderr) == (0, b"", b"")
    listening.stop(None)
    assert listening.process.returncode == 0
    assert f"{topic} {qos} 00ff0a\n" in listening.log


def test_each_message_is_flushed(start: Start, port: str, topic: str) -> None:
    listening = start("sub", "-p", port, "-t", topic, "-v", "-d")
    listening.wait("SUBACK")
    for text in ("one", "two"):
        run("pub", "-p", port, "-t", topic, "-m", text)
        while listening.wait("line")["line"] != f"{topic} {text}":
            pass


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_sub_with_a_goodbye(start: Start, port: str, topic: str, ending: signal.Signals) -> None:
    listening = start("sub", "-p", port, "-t", topic, "-d")
    listening.wait("SUBACK")
    listening.stop(ending)
    assert listening.process.returncode == 0
    assert listening.log[-1].endswith("sending DISCONNECT\n")


def test_a_closed_pipe_ends_sub_quietly(port: str, topic: str) -> None:
    run("pub", "-p", port, "-t", topic, "-r", "-m", "x")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(
            [*BROKER, "sub", "-p", port, "-t", topic], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, timeout=SECONDS_MAX, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_stdout_and_stdin_are_no_crash(port: str, topic: str) -> None:
    words = f"{shlex.join(BROKER)} sub -p {port} -t {topic} >&-"
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, stderr=subprocess.PIPE, timeout=SECONDS_MAX, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    words = f"{shlex.join(BROKER)} pub -p {port} -t {topic} -s <&-"
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, stderr=subprocess.PIPE, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 2
    assert "stdin is closed" in only_line(done.stderr)


def test_a_closed_stderr_sends_nothing_to_stdout(closed_port: str) -> None:
    for words in (f"sub -p {closed_port} -t x", "sub", "pub -t x -m y -V 9", "nonsense"):
        done = subprocess.run(["sh", "-c", f"{shlex.join(BROKER)} {words} 2>&-"], cwd=ROOT, capture_output=True, timeout=SECONDS_MAX, check=False)
        assert done.returncode in (1, 2)
        assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("words", ["--help", "--version", "sub --help", "check config/broker.toml", "sub -t $SYS/#", "bench -n 10"])
def test_a_full_disk_behind_stdout_is_a_failure(words: str, port: str) -> None:
    where = ["-p", port] if words.startswith(("sub -t", "bench")) else []
    with open("/dev/full", "wb") as stdout:
        done = subprocess.run([*BROKER, *words.split(), *where], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 1
    assert only_line(done.stderr).endswith("no space left on device")


@pytest.mark.parametrize("words", ["--help", "--version", "sub --help", "check config/broker.toml"])
def test_a_closed_stdout_is_no_failure(words: str) -> None:
    done = subprocess.run(["sh", "-c", f"{shlex.join(BROKER)} {words} >&-"], cwd=ROOT, capture_output=True, timeout=SECONDS_MAX, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_pipe_ends_help_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run([*BROKER, "sub", "--help"], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, timeout=SECONDS_MAX, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_time_of_w_runs_out_with_27(port: str, topic: str, run_here: Run) -> None:
    done = run_here("sub", "-p", port, "-t", topic, "-W", "0.2")
    assert (done.returncode, done.stdout, only_line(done.stderr)) == (27, b"", "broker: timed out after 0.2 s (-W)")


@pytest.mark.parametrize("words", ["sub -t x", "pub -t x -m y", "rr -t x -m y", "pub -t x -l", "bench"])
def test_a_host_that_says_nothing_costs_no_more_than_the_time_of_w(words: str, scripted: Callable[..., str], run_here: Run) -> None:
    done = run_here(*words.split(), "-h", "127.0.0.1", "-p", scripted({}), "-W", "0.2")
    assert done.returncode == 27
    assert only_line(done.stderr).endswith("(-W)")


def test_lines_arrive_in_order_at_every_qos(start: Start, port: str, topic: str) -> None:
    lines = [f"line {number}" for number in range(500)]
    for qos in ("0", "1", "2"):
        listening = start("sub", "-p", port, "-t", topic, "-q", qos, "-C", str(len(lines)), "-d")
        listening.wait("SUBACK")
        # The last line has no line end, and is one all the same.
        published = run("pub", "-p", port, "-t", topic, "-q", qos, "-l", stdin="\n".join(lines).encode())
        assert (published.returncode, published.stderr) == (0, b"")
        listening.stop(None)
        assert [line[:-1] for line in listening.log if line.startswith("line ")] == lines


def test_an_empty_stdin_is_no_message(port: str, topic: str) -> None:
    assert run("pub", "-p", port, "-t", topic, "-l").returncode == 0


def test_repetition(start: Start, port: str, topic: str) -> None:
    listening = start("sub", "-p", port, "-t", topic, "-C", "3", "-d")
    listening.wait("SUBACK")
    assert run("pub", "-p", port, "-t", topic, "-m", "again", "--repeat", "3", "--repeat-delay", "0.01").returncode == 0
    listening.stop(None)
    assert listening.log.count("again\n") == 3


def test_retained_messages_can_be_left_out_waited_for_and_removed(port: str, topic: str, run_here: Run) -> None:
    for name in ("a", "b", "c"):
        assert run_here("pub", "-p", port, "-t", f"{topic}/{name}", "-r", "-q", "1", "-m", name).returncode == 0
    shown = run_here("sub", "-p", port, "-t", f"{topic}/#", "-T", f"{topic}/b", "-C", "2")
    assert sorted(shown.stdout.split()) == [b"a", b"c"]
    assert run_here("sub", "-p", port, "-t", f"{topic}/#", "-R", "-W", "0.3").stdout == b""
    assert run_here("sub", "-p", port, "-t", f"{topic}/#", "-T", f"{topic}/b", "-C", "2", "--remove-retained", "-q", "1").returncode == 0
    assert run_here("sub", "-p", port, "-t", f"{topic}/#", "-W", "0.3").stdout == b"b\n"


def test_retained_only_ends_at_the_first_fresh_message(start: Start, port: str, topic: str) -> None:
    run("pub", "-p", port, "-t", topic, "-r", "-m", "stale")
    listening = start("sub", "-p", port, "-t", topic, "--retained-only", "-d")
    while listening.wait("line")["line"] != "stale":
        pass
    run("pub", "-p", port, "-t", topic, "-m", "fresh")
    listening.stop(None)
    assert listening.process.returncode == 0
    assert "fresh\n" not in listening.log


def test_a_session_keeps_what_came_meanwhile(port: str, topic: str, run_here: Run) -> None:
    client = topic.replace("/", "-")
    assert run_here("sub", "-p", port, "-t", topic, "-q", "1", "-c", "-i", client, "-E").returncode == 0
    assert run_here("pub", "-p", port, "-t", topic, "-q", "1", "-m", "kept").returncode == 0
    resumed = run_here("sub", "-p", port, "-t", topic, "-q", "1", "-c", "-i", client, "-x", "0", "-C", "1")
    assert (resumed.returncode, resumed.stdout) == (0, b"kept\n")


def test_unsubscribing_ends_a_kept_subscription(port: str, topic: str, run_here: Run) -> None:
    client = topic.replace("/", "-")
    session = ("-p", port, "-q", "1", "-c", "-i", client, "-x", "60")
    assert run_here("sub", *session, "-t", topic, "-E").returncode == 0
    assert run_here("sub", *session, "-U", topic).returncode == 0
    assert run_here("pub", "-p", port, "-t", topic, "-q", "1", "-m", "lost").returncode == 0
    assert run_here("sub", *session, "-t", f"{topic}/other", "-x", "0", "-W", "0.3").stdout == b""


def test_properties_arrive(port: str, topic: str, run_here: Run) -> None:
    words = ("content-type text/plain", "user-property k v", "user-property k w", "correlation-data id", "response-topic re/ply")
    properties = [word for text in words for word in ("-D", "publish", *text.split())]
    assert run_here("pub", "-p", port, "-t", topic, "-r", "-m", "x", *properties).returncode == 0
    shown = run_here("sub", "-p", port, "-t", topic, "-C", "1", "-F", "%C|%P|%D|%R|%S")
    assert shown.stdout == b"text/plain|k:v k:w|id|re/ply|\n"
    shown = run_here("sub", "-p", port, "-t", topic, "-C", "1", "--json", "-D", "subscribe", "subscription-identifier", "9")
    assert json.loads(shown.stdout)["properties"]["subscription-identifier"] == 9


def test_the_goodbye_carries_what_it_is_given(port: str, topic: str, run_here: Run) -> None:
    given = ("-D", "disconnect", "user-property", "k", "v", "-D", "disconnect", "session-expiry-interval", "5")
    done = run_here("pub", "-p", port, "-t", topic, "-m", "x", "-i", topic[-12:], "-x", "60", "-dd", *given)
    assert done.returncode == 0
    assert "11 00 00 00 05" in done.stderr.decode().partition("sending DISCONNECT")[2]
    assert "26 00 01 6b 00 01 76" in done.stderr.decode().partition("sending DISCONNECT")[2]
    refused = run_here("pub", "-p", port, "-t", topic, "-m", "x", *given)
    assert refused.returncode == 2
    assert "needs -x" in only_line(refused.stderr)


def test_the_last_message_is_acknowledged_in_full_before_the_goodbye(start: Start, port: str, topic: str) -> None:
    listening = start("sub", "-p", port, "-t", topic, "-q", "2", "-C", "1", "-d")
    listening.wait("SUBACK")
    run("pub", "-p", port, "-t", topic, "-q", "2", "-m", "x")
    listening.stop(None)
    words = [line.split("sending ")[1].split()[0] for line in listening.log if "sending " in line]
    assert words == ["CONNECT", "SUBSCRIBE", "PUBREC", "PUBCOMP", "DISCONNECT"]


def test_a_request_gets_its_answer_and_not_anothers(start: Start, port: str, topic: str) -> None:
    listening = start("sub", "-p", port, "-t", f"{topic}/ask", "-C", "1", "-F", "%R %D %p", "-d")
    listening.wait("SUBACK")
    asking = start("rr", "-p", port, "-t", f"{topic}/ask", "-m", "how warm?", "-q", "1", "-W", "15")
    while not (line := listening.wait("line")["line"]).endswith("how warm?"):
        pass
    answer_topic, correlation, _ = line.split(" ", 2)
    assert answer_topic.startswith("reply/")
    for data, text in (("someone else's", "wrong"), (correlation, "21.5")):
        run("pub", "-p", port, "-t", answer_topic, "-q", "1", "-m", text, "-D", "publish", "correlation-data", data)
    asking.stop(None)
    assert (asking.process.returncode, asking.log) == (0, ["21.5\n"])


def test_a_request_that_nobody_hears_says_so_at_once(port: str, topic: str, run_here: Run) -> None:
    done = run_here("rr", "-p", port, "-t", topic, "-m", "?", "-q", "1", "-W", "15")
    assert (done.returncode, done.stdout) == (16, b"")
    assert "no matching subscribers" in only_line(done.stderr)


def test_progress_is_shown_on_stderr(port: str, topic: str) -> None:
    done = run("pub", "-p", port, "-t", topic, "-l", "--progress", stdin=b"a\nb\n")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"2 messages" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("words", [["-v"], ["-v", "-N"]])
def test_progress_on_the_terminal_of_the_messages_stays_below_them(words: list[str], port: str, topic: str) -> None:
    ours, theirs = os.openpty()
    argv = [*BROKER, "sub", "-p", port, "-t", topic, "-C", "2", "-d", "--progress", *words]
    with subprocess.Popen(argv, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as program:
        os.close(theirs)
        shown = b""
        while b"SUBACK" not in shown:
            shown += os.read(ours, 1000)
        assert run("pub", "-p", port, "-t", topic, "-l", "-q", "1", stdin=b"one\ntwo\n").returncode == 0
        with contextlib.suppress(OSError):  # EIO is how a terminal ends
            while data := os.read(ours, 1000):
                shown += data
        assert program.wait(20) == 0
    os.close(ours)
    end = b"" if "-N" in words else b"\r\n"
    for text in (b"one", b"two"):
        before, _, after = shown.partition(f"{topic} ".encode() + text)
        assert after.startswith(end)
        if end:
            assert before.endswith(b"\r\x1b[2K")  # the line of progress gives way
    assert b"2 messages, 6 bytes" in shown


def test_bytes_are_shown_and_the_password_is_not(port: str, topic: str) -> None:
    done = run("pub", "-p", port, "-t", topic, "-m", "hi", "-u", "me", "-P", "secret", "-dd", "-i", "dd")
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "Client dd sending CONNECT"
    assert f"Client dd sending PUBLISH (d0, q0, r0, m0, '{topic}', ... (2 bytes))" in lines
    assert "** ** ** **" in done.stderr.decode()
    assert b"secret".hex(" ").encode() not in done.stderr


# ---- through a broker that refuses --------------------------------------------------------------------------------

REFUSED = [
    (["sub", "-t", "x"], {CONNECT: b"\x20\x03\x00\x87\x00"}, 135, "not authorized"),
    (["sub", "-t", "x", "-u", "me", "-P", "secret"], {CONNECT: b"\x20\x03\x00\x86\x00"}, 134, "bad user name or password"),
    (["pub", "-t", "x", "-m", "y", "-V", "311"], {CONNECT: b"\x20\x02\x00\x05"}, 5, "not authorized"),
    (["pub", "-t", "x", "-m", "y", "-V", "31"], {CONNECT: b"\x20\x02\x00\x04"}, 4, "bad user name or password"),
    (["sub", "-t", "x/#"], {CONNECT: CONNACK_5, SUBSCRIBE: b"\x90\x04PP\x00\x87"}, 135, "subscription to 'x/#' refused: not authorized"),
    (["sub", "-t", "x", "-V", "311"], {CONNECT: CONNACK_3, SUBSCRIBE: b"\x90\x03PP\x80"}, 128, "subscription to 'x' refused"),
    (["pub", "-t", "x", "-m", "y", "-q", "1"], {CONNECT: CONNACK_5, PUBLISH: b"\x40\x03PP\x97"}, 151, "publish to 'x' refused: quota exceeded"),
    (["pub", "-t", "x", "-m", "y", "-q", "2"], {CONNECT: CONNACK_5, PUBLISH: b"\x50\x03PP\x87"}, 135, "publish to 'x' refused: not authorized"),
    (["rr", "-t", "x", "-m", "y"], {CONNECT: CONNACK_5, SUBSCRIBE: b"\x90\x04PP\x00\x87"}, 135, "refused: not authorized"),
    (["pub", "-t", "x", "-m", "y", "-q", "1"], {CONNECT: CONNACK_5, PUBLISH: b"\xe0\x02\x8b\x00"}, 139, "server shutting down"),
    (["pub", "-t", "x", "-m", "y", "-q", "1"], {CONNECT: CONNACK_5, PUBLISH: None}, 1, ""),
    (["sub", "-t", "x"], {CONNECT: None}, 1, ""),
    (["sub", "-t", "x"], {CONNECT: b"HTTP/1.1 400 Bad Request\r\n\r\n"}, 1, ""),
]


@pytest.mark.parametrize(("words", "answers", "code", "said"), REFUSED, ids=[f"{' '.join(row[0])} {row[2]}" for row in REFUSED])
def test_a_refusal_is_the_exit_code(
    words: list[str], answers: dict[int, bytes | None], code: int, said: str, scripted: Callable[..., str], run_here: Run
) -> None:
    done = run_here(*words, "-p", scripted(answers))
    assert done.returncode == code, done.stderr.decode()
    line = only_line(done.stderr)
    assert said in line
    assert line.startswith("broker: ")
    assert "secret" not in line


def test_the_first_refused_line_ends_a_stream(scripted: Callable[..., str]) -> None:
    port = scripted({CONNECT: CONNACK_5, PUBLISH: b"\x40\x03PP\x87"})
    done = run("pub", "-t", "x", "-q", "1", "-l", "-p", port, stdin=b"a\n" * 1000)
    assert done.returncode == 135
    assert "not authorized" in only_line(done.stderr)


def test_quiet_is_quiet(closed_port: str, run_here: Run) -> None:
    done = run_here("pub", "-p", closed_port, "-t", "x", "-m", "y", "--quiet")
    assert (done.returncode, done.stderr) == (1, b"")


def test_sub_comes_back_and_says_so(start: Start, scripted: Callable[..., str]) -> None:
    first = {CONNECT: CONNACK_5, SUBSCRIBE: b"\x90\x04PP\x00\x00\xe0\x02\x8b\x00"}
    listening = start("sub", "-t", "x", "-p", scripted(first, {CONNECT: CONNACK_5, SUBSCRIBE: SUBACK_5, DISCONNECT: None}))
    assert "connection to localhost:" in listening.wait("lost; trying again")["line"]
    assert "connected to localhost:" in listening.wait("again")["line"]
    listening.stop(signal.SIGINT)
    assert listening.process.returncode == 0


def test_a_sub_that_was_taken_over_does_not_say_that_it_tries_again(scripted: Callable[..., str]) -> None:
    port = scripted({CONNECT: CONNACK_5, SUBSCRIBE: b"\x90\x04PP\x00\x00\xe0\x02\x8e\x00"})
    done = run("sub", "-t", "x", "-p", port)
    assert done.returncode == 142
    assert only_line(done.stderr) == "broker: the broker disconnected: session taken over (0x8E)"


# ---- where there is no broker -------------------------------------------------------------------------------------


def test_nobody_answers(closed_port: str, run_here: Run) -> None:
    done = run_here("sub", "-t", "x", "-p", closed_port)
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert f"localhost:{closed_port}" in line
    assert "refused" in line
    assert "broker serve" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "ann", "-P", "x" * 70_000], "-P: the password is longer than 65,535 bytes"),
        (["-L", f"mqtt://{'x' * 70_000}@localhost:1/a"], "username: a string of 70000 bytes"),
        (["-L", "mqtt://a%00b@localhost:1/a"], "username: a string with U+0000"),
        (["-t", "a", "-c", "-i", ""], "-c needs a client id"),
    ],
    ids=["password", "user in URL", "U+0000", "empty client id"],
)
def test_what_no_packet_can_say_is_wrong_usage(words: list[str], said: str, run_here: Run) -> None:
    done = run_here("pub", *([] if "-L" in words or "-t" in words else ["-t", "a"]), "-m", "x", *words)
    assert done.returncode == 2
    assert said in only_line(done.stderr)


def test_a_name_is_not_found(run_here: Run) -> None:
    done = run_here("pub", "-t", "x", "-m", "y", "-h", "nobody.invalid")
    assert done.returncode == 1
    assert "nobody.invalid" in only_line(done.stderr)


def test_a_unix_path_is_not_there(tmp_path: os.PathLike[str], run_here: Run) -> None:
    done = run_here("pub", "-t", "x", "-m", "y", "--unix", os.path.join(tmp_path, "none"))
    assert done.returncode == 1
    assert "none: no such file or directory" in only_line(done.stderr)


@pytest.mark.parametrize("words", [["--cafile", "/nowhere.pem"], ["--cert", "/nowhere.pem", "--key", "/nowhere.key"], ["--cafile", __file__]])
def test_a_certificate_that_cannot_be_used_is_named(words: list[str], closed_port: str, run_here: Run) -> None:
    done = run_here("pub", "-t", "x", "-m", "y", "-p", closed_port, *words)
    assert done.returncode == 1
    assert words[1] in only_line(done.stderr)


URLS = [
    (["-h", "example.org"], "mqtt://example.org:1883"),
    (["-h", "::1", "-p", "5"], "mqtt://[::1]:5"),
    (["-h", "fe80::1%eth0"], "mqtt://[fe80::1%25eth0]:1883"),
    (["-L", "mqtts://user:secret@example.org/t"], "mqtts://example.org:8883"),
    (["--unix", "/run/a b"], "unix:///run/a%20b"),
    (["-L", "ws://example.org/t"], "ws://example.org:80/mqtt"),
    (["-L", "wss://example.org:8443/t", "--ws-path", "/a"], "wss://example.org:8443/a"),
    (["--ws", "-h", "::1", "--cafile", "x"], "wss://[::1]:443/mqtt"),
]


@pytest.mark.parametrize(("words", "url"), URLS, ids=[row[1] for row in URLS])
def test_the_url_for_the_library(words: list[str], url: str) -> None:
    connection = connection_of(sub_command.make_context("sub", words).params)
    assert url_of(connection) == url
    parse_url(url)
