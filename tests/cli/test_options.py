"""The command lines of pub, sub and rr: what they come to, and what is refused in one line."""

from __future__ import annotations

import math
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest

from broker.cli import pub, rr, sub, values
from broker.cli.options import gather_properties
from broker.cli.pub import Publication, publication_of
from broker.cli.settings import Connection, connection_of
from broker.cli.sub import Listening, listening_of
from broker.wire.packets import Properties

COMMANDS = {"pub": pub.command, "sub": sub.command, "rr": rr.command}


def params_of(name: str, *words: str) -> dict[str, Any]:
    """The parsed options of one command, without running it."""
    return COMMANDS[name].make_context(name, list(words)).params


def connection(*words: str) -> Connection:
    return connection_of(params_of("sub", *words))


def secret(found: Connection) -> bytes | None:
    return None if found.password is None else found.password.newest()


def publication(*words: str) -> Publication:
    params = params_of("pub", *words)
    return publication_of(params, connection_of(params))


def listening(*words: str) -> Listening:
    params = params_of("sub", *words)
    return listening_of(params, connection_of(params))


# ---- -D, of three words or four -----------------------------------------------------------------------------------

FLAGS = {"-v": False, "-d": False, "-m": True, "-D": True, "--property": True, "--message": True, "--quiet": False}
GATHERED = [
    (["-D", "publish", "content-type", "x", "-v"], ["--property=publish\0content-type\0x", "-v"]),
    (["-D", "publish", "user-property", "k", "w", "-v"], ["--property=publish\0user-property\0k\0w", "-v"]),
    (["--property", "publish", "content-type", "-x"], ["--property=publish\0content-type\0-x"]),
    (["--property=publish", "content-type", "x"], ["--property=publish\0content-type\0x"]),
    (["-Dpublish", "content-type", "x"], ["--property=publish\0content-type\0x"]),
    (["-vdD", "publish", "content-type", "x"], ["-vd", "--property=publish\0content-type\0x"]),
    (["-m", "-D", "-v"], ["-m", "-D", "-v"]),
    (["-vm", "-D"], ["-vm", "-D"]),
    (["-mD", "a"], ["-mD", "a"]),
    (["--message", "-D"], ["--message", "-D"]),
    (["--message=-D", "-v"], ["--message=-D", "-v"]),
    (["--", "-D", "a"], ["--", "-D", "a"]),
    (["-D", "publish"], ["--property=publish"]),
    (["-D"], ["--property="]),
    (["-v", "-"], ["-v", "-"]),
]


@pytest.mark.parametrize(("words", "gathered"), GATHERED, ids=[" ".join(words) for words, _ in GATHERED])
def test_a_property_becomes_one_word(words: list[str], gathered: list[str]) -> None:
    assert gather_properties(words, FLAGS) == gathered


def test_properties_reach_their_commands() -> None:
    found = connection("-D", "connect", "receive-maximum", "5", "-t", "x", "-D", "SUBSCRIBE", "user-property", "a", "b").properties
    assert found == {"connect": Properties(receive_maximum=5), "subscribe": Properties(user_properties=(("a", "b"),))}


# ---- where and who ------------------------------------------------------------------------------------------------

WHERE = [
    ([], "localhost", 1883, None, False),
    (["-h", "example.org"], "example.org", 1883, None, False),
    (["-h", "::1", "-p", "2000"], "::1", 2000, None, False),
    (["-h", "fe80::1%eth0"], "fe80::1%eth0", 1883, None, False),
    (["--unix", "/run/x"], "localhost", 1883, "/run/x", False),
    (["-p", "8883"], "localhost", 8883, None, True),
    (["--cafile", "ca.pem"], "localhost", 8883, None, True),
    (["--tls-use-os-certs", "-p", "1"], "localhost", 1, None, True),
    (["-L", "mqtt://example.org/a"], "example.org", 1883, None, False),
    (["-L", "mqtts://example.org/a"], "example.org", 8883, None, True),
    (["-L", "mqtts://[::1]:99/a"], "::1", 99, None, True),
    (["-L", "mqtt://example.org"], "example.org", 1883, None, False),
]


@pytest.mark.parametrize(("words", "host", "port", "unix", "tls"), WHERE, ids=[" ".join(row[0]) for row in WHERE])
def test_where(words: list[str], host: str, port: int, unix: str | None, tls: bool) -> None:
    found = connection(*words, "-t", "x")
    assert (found.host, found.port, found.unix, found.tls is not None) == (host, port, unix, tls)


def test_a_url_says_everything_at_once() -> None:
    found = connection("-L", "mqtt://us%40er:p%3Aw@h:7/a/+/b?c%23")
    assert (found.username, secret(found), found.port, found.url_topic) == ("us@er", b"p:w", 7, "a/+/b?c#")


def test_a_url_keeps_a_hash_that_a_shell_let_through() -> None:
    assert connection("-L", "mqtt://h/sensors/#").url_topic == "sensors/#"


def test_defaults_are_mosquittos_but_for_the_version() -> None:
    found = connection("-t", "x")
    assert (found.version, found.keep_alive_s, found.clean_start, found.session_expiry_s, found.client_id) == ("5.0", 60, True, 0, "")
    assert (found.username, found.password, found.will, found.timeout_s, found.debug) == (None, None, None, math.inf, 0)


VERSIONS = [("5", "5.0"), ("mqttv5", "5.0"), ("311", "3.1.1"), ("mqttv311", "3.1.1"), ("31", "3.1"), ("mqttv31", "3.1")]


@pytest.mark.parametrize(("word", "version"), VERSIONS)
def test_versions(word: str, version: str) -> None:
    assert connection("-V", word).version == version


def test_before_5_0_a_client_id_is_made_that_3_1_takes_too() -> None:
    first, second = connection("-V", "31").client_id, connection("-V", "31").client_id
    assert first != second
    assert 1 <= len(first) <= 23


def test_an_id_prefix_is_followed_by_the_process_id() -> None:
    assert connection("-I", "me-").client_id == f"me-{os.getpid()}"


SESSIONS = [
    (["-c", "-i", "me"], False, math.inf),
    (["-c", "-i", "me", "-x", "10"], False, 10),
    (["-x", "10"], True, 10),
    (["-x", "-1", "-i", "me"], True, math.inf),
    (["-x", "∞", "-i", "me"], True, math.inf),
    (["-x", "4294967295", "-i", "me"], True, math.inf),
    (["-x", "0", "-c", "-i", "me"], False, 0),
    (["-V", "311", "-c", "-i", "me"], False, 0),
]


@pytest.mark.parametrize(("words", "clean", "expiry"), SESSIONS, ids=[" ".join(row[0]) for row in SESSIONS])
def test_sessions(words: list[str], clean: bool, expiry: float) -> None:
    found = connection(*words)
    assert (found.clean_start, found.session_expiry_s) == (clean, expiry)


def test_a_will() -> None:
    found = connection(
        "--will-topic", "w", "--will-payload", "gone", "--will-qos", "1", "--will-retain", "-D", "will", "will-delay-interval", "3"
    ).will
    assert found is not None
    assert (found.topic, found.payload, found.qos, found.retain, found.properties.will_delay_interval) == ("w", b"gone", 1, True, 3)


def test_words_that_are_not_utf8_are_sent_as_they_were() -> None:
    assert secret(connection("-u", "x", "-P", "\udcff")) == b"\xff"
    assert publication("-t", "x", "-m", "\udcff").payload == b"\xff"


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(connection("-u", "x", "-P", "secret"))


def test_a_password_from_a_file_is_its_first_line_as_it_is_by_then(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b" one\xff \r\nand no more")
    found = connection("--pw-file", str(file))
    assert secret(found) == b" one\xff "
    file.write_bytes(b"two")
    assert secret(found) == b"two"
    for gone in (lambda: file.write_bytes(b""), file.unlink):  # while it is replaced
        gone()
        assert secret(found) == b"two"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no path of a pipe that is open")
def test_a_password_from_a_pipe_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"p\nmore\n")
    with closing(os.fdopen(reading)), closing(os.fdopen(writing)):
        found = connection("-u", "x", "--pw-file", f"/dev/fd/{reading}")
        assert (secret(found), secret(found)) == (b"p", b"p")


def test_a_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "geheim")
    assert secret(connection("-u", "x", "--pw-env", "MY_PASSWORD")) == b"geheim"


METHODS = [(["--auth", "scram-sha-256", "-u", "ann", "-P", "x"], "SCRAM-SHA-256"), (["--auth", "JWT", "-P", "x"], "JWT"), (["-P", "x"], None)]


@pytest.mark.parametrize(("words", "method"), METHODS)
def test_methods_of_authentication(words: list[str], method: str | None) -> None:
    assert connection(*words).auth_method == method


# ---- what ---------------------------------------------------------------------------------------------------------


def test_values_may_start_with_a_dash_and_flags_may_be_joined() -> None:
    found = publication("-t", "x", "-m", "-5", "-rq1")
    assert (found.payload, found.retain, found.qos) == (b"-5", True, 1)


def test_a_file_is_the_message(tmp_path: Any) -> None:
    (tmp_path / "payload").write_bytes(b"\x00\n")
    assert publication("-t", "x", "-f", str(tmp_path / "payload")).payload == b"\x00\n"


def test_lines_have_no_payload_yet() -> None:
    assert publication("-t", "x", "-l").payload is None


def test_repetition() -> None:
    found = publication("-L", "mqtt://h/t", "-n", "--repeat", "3", "--repeat-delay", "0.5")
    assert (found.topic, found.payload, found.repeat_count, found.repeat_delay_s) == ("t", b"", 3, 0.5)


def test_a_subscription() -> None:
    found = listening("-t", "a", "-t", "b/#", "-t", "a", "-T", "b/c", "-U", "d", "-C", "2", "-R", "--random-filter", "50")
    assert (found.filters, found.filter_out, found.unsubscribe) == (("a", "b/#"), ("b/c",), ("d",))
    assert (found.count_max, found.no_retained, found.percentage) == (2, True, 50)


def test_a_url_adds_its_topic() -> None:
    assert listening("-t", "a", "-L", "mqtt://h/b").filters == ("a", "b")


PRINTED = [
    (["-N"], b"", True),
    ([], b"\n", True),
    (["-v"], b"\n", False),
    (["-v", "-N"], b"", True),
    (["-F", "%p"], b"\n", False),
    (["--json", "--pretty"], b"\n", False),
    (["-F", "%J", "--pretty"], b"\n", False),
]


@pytest.mark.parametrize(("words", "end", "skip_empty"), PRINTED, ids=[" ".join(row[0]) for row in PRINTED])
def test_how_it_is_printed(words: list[str], end: bytes, skip_empty: bool) -> None:
    printed = listening("-t", "a", *words).printed
    assert (printed.end, printed.skip_empty) == (end, skip_empty)


# ---- what is refused ----------------------------------------------------------------------------------------------

REFUSED = [
    ("sub", "", "-t to subscribe"),
    ("sub", "-t a/#/b", "last character"),
    ("sub", "-t a -T b+", "no Topic Filter"),
    ("sub", "-t a -h mqtt://h", "a URL goes with -L"),
    ("sub", "-t a -h example.org:1883", "the port goes with -p"),
    ("sub", "-t a -h user@host", "a host name"),
    ("sub", "-t a -q 3", "0 to 2 expected"),
    ("sub", "-t a -p 0", "1 to 65535"),
    ("sub", "-t a -p x", "not 'x'"),
    ("sub", "-t a -k 70000", "0 to 65535"),
    ("sub", "-t a -V 4", "5, 311, 31"),
    ("sub", "-t a -i a -I b", "-i and -I"),
    ("sub", "-t a -c", "-c needs a client id"),
    ("sub", "-t a -c -I b", "-c needs a client id"),
    ("sub", "-t a -x -1", "-x needs a client id"),
    ("sub", "-t a -x -2", "0 to 4294967294"),
    ("sub", "-t a -V 311 -x 5", "needs MQTT 5.0"),
    ("sub", "-t a -V 311 -P pw", "-P needs -u"),
    ("sub", "-t a -V 311 --pw-file /dev/null", "its first line is empty"),
    ("sub", "-t a -V 311 --pw-file README.md", "--pw-file needs -u"),
    ("sub", "-t a --pw-file /nowhere/at/all", "/nowhere/at/all: no such file"),
    ("sub", "-t a --pw-file /dev/zero", "longer than 65,535 bytes"),
    ("sub", "-t a --pw-env NO_SUCH_VARIABLE", "no environment variable NO_SUCH_VARIABLE"),
    ("sub", "-t a -P x --pw-env PATH", "-P and --pw-env all say the password"),
    ("sub", "-L mqtt://u:p@h/a --pw-file x", "-L and --pw-file all say the password"),
    ("sub", "-t a --auth JWT", "--auth JWT needs a password or a token"),
    ("sub", "-t a --auth SCRAM-SHA-256 -P x", "needs a user name (-u)"),
    ("sub", "-t a --auth SCRAM-SHA-512 -P x -u y", "SCRAM-SHA-256 is"),
    ("sub", "-t a --auth JWT -P x -V 311", "--auth needs MQTT 5.0"),
    ("sub", "-t a --auth JWT -P x -D connect authentication-data y", "both say how"),
    ("sub", "-t a -V 311 -D connect receive-maximum 5", "needs MQTT 5.0"),
    ("sub", "-t a -V 311 --retain-as-published", "needs MQTT 5.0"),
    ("sub", "-t a -W 0", "more than 0"),
    ("sub", "-t a -W nan", "more than 0"),
    ("sub", "-t a -C 0", "from 1"),
    ("sub", "-t a -R --retained-only", "nothing to print"),
    ("sub", "-t a --random-filter 0", "0.1 to 100"),
    ("sub", "-t a -F %z", "'%z'"),
    ("sub", "-t a -F %t --json", "-F and --json"),
    ("sub", "-t a --pretty", "needs --json"),
    ("sub", "-t a --will-payload x", "--will-payload needs --will-topic"),
    ("sub", "-t a --will-retain", "--will-retain needs --will-topic"),
    ("sub", "-t a --will-topic x/#", "no Topic Name"),
    ("sub", "-t a -D will content-type x", "needs --will-topic"),
    ("sub", "-t a -D foo bar baz", "no such command: 'foo'"),
    ("sub", "-t a --cert x", "go together"),
    ("sub", "-t a --cert c --key k --keyform engine", "PEM files"),
    ("sub", "-t a --tls-version tlsv1.0", "tlsv1.0"),
    ("sub", "-t a --psk 00", "--psk is not available"),
    ("sub", "-t a --psk-identity x", "--psk-identity is not available"),
    ("sub", "-t a --proxy socks5h://x", "--proxy is not available"),
    ("sub", "-t a --tls-engine x", "--tls-engine is not available"),
    ("sub", "-t a --tls-engine-kpass-sha1 x", "is not available"),
    ("sub", "-t a --ws --unix /x", "WebSocket over a Unix socket"),
    ("sub", "-t a --ws-path /x", "--ws-path needs --ws"),
    ("sub", "-t a --ws --ws-path x", "a path expected"),
    ("sub", "-L mqtt://h/a --ws", "--ws WebSocket"),
    ("sub", "-L ws://h/a --cafile x", "wss://"),
    ("sub", "-t a --unix /x -h y", "-h means nothing with --unix"),
    ("sub", "-t a --unix /x --cafile y", "TLS over a Unix socket"),
    ("sub", "-L mqtt://h/a/#/b", "no Topic Filter"),
    ("sub", "-L http://h/a", "mqtt://localhost:1883/topic"),
    ("sub", "-L h/a", "a URL expected"),
    ("sub", "-L mqtt:///a", "the host or the port"),
    ("sub", "-L mqtt://h:99999/a", "the host or the port"),
    ("sub", "-L mqtt://h/a -p 5", "-p and -L"),
    ("sub", "-L mqtt://h/a -h x", "-h and -L"),
    ("sub", "-L mqtt://h/a --cafile x", "mqtts://"),
    ("pub", "-t a", "a message is missing"),
    ("pub", "-m a", "a topic is missing"),
    ("pub", "-t a -m x -n", "-m and -n"),
    ("pub", "-t a/+ -m x", "no Topic Name"),
    ("pub", "-L mqtt://h/a/+ -m x", "no Topic Name"),
    ("pub", "-t a -L mqtt://h/a -m x", "-t and -L"),
    ("pub", "-t a -f /nowhere/at/all", "/nowhere/at/all: no such file"),
    ("pub", "-t a -f -", "-s and -l read stdin"),
    ("pub", "-t a -l --repeat 2", "--repeat goes with"),
    ("pub", "-t a -m x --repeat-delay 2", "needs --repeat"),
    ("pub", "-t a -m x --repeat 2 --repeat-delay -2", "at least 0"),
    ("rr", "-t a -m x -V 311", "-e is missing"),
    ("rr", "-t a -e b", "a message is missing"),
    ("rr", "-t a -e b/# -m x", "no Topic Name"),
    ("rr", "-t a -e b -m x -D publish response-topic c", "response topic"),
]


@pytest.mark.parametrize(("name", "words", "said"), REFUSED, ids=[f"{name} {words}" for name, words, _ in REFUSED])
def test_wrong_usage_is_refused_in_one_line(name: str, words: str, said: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        COMMANDS[name].main(words.split(), prog_name=name, standalone_mode=False)
    message = caught.value.format_message()
    assert said in message
    assert "\n" not in message


def test_a_wrong_url_does_not_give_its_password_away() -> None:
    with pytest.raises(click.UsageError) as caught:
        connection("-L", "mqtt://user:secret@host:port/x")
    assert "secret" not in caught.value.format_message()


# Every flag of the three tools of Debian 12 (2.0.11), as their --help has them.
MOSQUITTO = {
    "pub": "-A -c -d -D -f -h -i -I -k -L -l -m -M -n -p -P -q -r -s -t -u -V -x --repeat --repeat-delay",
    "sub": "-A -c -C -d -D -E -F -h -i -I -k -L -N -p -P -q -R -t -T -u -U -v -V -W -x --pretty --random-filter --retained-only --remove-retained"
    " --retain-as-published",
    "rr": "-A -c -d -D -e -F -h -i -I -k -L -m -f -n -s -N -p -P -q -R -t -u -v -V -W -x --pretty",
}
MOSQUITTO_ALL = (
    "--help --nodelay --quiet --unix --will-payload --will-qos --will-retain --will-topic --cafile --capath --cert --key --keyform --ciphers"
    " --tls-version --insecure --tls-engine --tls-engine-kpass-sha1 --tls-use-os-certs --tls-alpn --psk --psk-identity --proxy --property"
)


@pytest.mark.parametrize("name", ["pub", "sub", "rr"])
def test_every_flag_of_mosquitto_is_known(name: str) -> None:
    command = COMMANDS[name]
    known = {word for parameter in command.get_params(click.Context(command)) for word in parameter.opts} | {"--help"}
    assert set(f"{MOSQUITTO[name]} {MOSQUITTO_ALL}".split()) <= known


def test_options_have_no_letter_twice() -> None:
    for command in COMMANDS.values():
        words = [word for parameter in command.params for word in parameter.opts]
        assert len(words) == len(set(words))


def test_text_for_a_packet_is_bounded() -> None:
    with pytest.raises(click.UsageError, match="65,535"):
        values.text("x" * 65_536)


def test_a_very_long_word_is_cut_in_the_line_that_refuses_it() -> None:
    with pytest.raises(click.BadParameter) as caught:
        values.checked_topic("a" * 70_000 + "/#")
    assert len(caught.value.message) < 300
