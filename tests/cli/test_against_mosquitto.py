"""Golden comparisons: the same messages, printed by Debian's mosquitto_sub and by ours, are the same bytes.

They are those of mosquitto_sub 2.0. What 2.1 prints otherwise is said here: a true or false for `retain`, a list of User Properties, and the width of
`%x`, which counts bytes there.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from broker.cli.formatting import FormatFault, compile_format
from tests.cli.conftest import BROKER, SECONDS_MAX, run
from tests.e2e.tools import ROOT
from tests.mosquitto import is_2_0

PROPERTIES = [
    "content-type text/plain",
    "correlation-data id",
    "response-topic re/ply",
    "user-property k v",
    "user-property k w",
    "payload-format-indicator 1",
    "message-expiry-interval 4000000000",
]
PAYLOADS = {
    "plain": b"hello",
    "binary": b"\x01\xff\xfe\x02",  # at least as long as the widths below: a shorter one loses half its hexadecimal digits in 2.0.11
    "escapes": 'x"\\/\x07\x7f\té\n'.encode(),
    "json": b'{"b":[1,2],"a":null}',
    "long": b"0123456789" * 20,
}


@pytest.fixture(scope="session")
def tree(port: str) -> str:
    """A topic under which each payload is retained, with and without properties."""
    root = "cli/golden"
    words = [word for text in PROPERTIES for word in ("-D", "publish", *text.split())]
    for name, payload in PAYLOADS.items():
        assert run("pub", "-p", port, "-t", f"{root}/{name}", "-r", "-q", "1", "-s", stdin=payload).returncode == 0
    assert run("pub", "-p", port, "-t", f"{root}/properties", "-r", "-q", "2", "-m", "hello", *words).returncode == 0
    return root


def both(mosquitto_sub: str, port: str, *words: str) -> tuple[bytes, bytes]:
    theirs = subprocess.run([mosquitto_sub, "-p", port, "-V", "5", *words], capture_output=True, timeout=SECONDS_MAX, check=False)
    ours = run("sub", "-p", port, *words)
    assert (ours.returncode, theirs.returncode) == (0, 0)
    return ours.stdout, theirs.stdout


HEXADECIMAL = "%4x|%04X|%-4x|%2x"
PRINTED = [
    (),
    ("-v",),
    ("-N",),
    ("-v", "-N"),
    ("-F", "%t|%p|%x|%X|%l|%q|%r|%m|%C|%D|%F|%P|%R|%S|%A|%%|@@|\\t|\\0\\e\\a"),
    ("-F", "%20t|%-20t|%.3t|%20.3t|%-20.3t"),
    ("-F", "%6l|%06l|%-6l|%5q|%5r|%8m|%08m|%-8m"),
    ("-F", "%4p|%04p|%-4p|%300p"),
    ("-F", HEXADECIMAL),
    ("-F", "%20C|%-20C|%20R|%3S|%03A|%-3A|%6F|%06F"),
    ("-F", "@Y-@m-@d @H:@M"),
]


@pytest.mark.parametrize("words", PRINTED, ids=[" ".join(words) or "payload" for words in PRINTED])
def test_the_same_bytes_are_printed(words: tuple[str, ...], mosquitto_sub: str, port: str, tree: str) -> None:
    if HEXADECIMAL in words and not is_2_0(mosquitto_sub):
        pytest.skip("mosquitto_sub 2.1 takes the width of %x for bytes")
    # A clock may pass a minute between the two, but not twice.
    for _ in range(2):
        ours, theirs = both(mosquitto_sub, port, "-t", f"{tree}/#", "-C", str(len(PAYLOADS) + 1), "-q", "2", *words)
        if ours == theirs:
            break
    assert ours == theirs


def as_2_0(name: str, value: Any) -> Any:
    if name == "retain":
        return int(value)
    if name == "user-properties":
        return [pair for entry in value for pair in (entry if isinstance(entry, list) else [entry])]
    return value


def without_time(text: bytes) -> Any:
    """JSON as pairs, so that repeated names count; the time left out, and the order of the properties. What 2.1 writes otherwise, as 2.0 does."""

    def sort(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return sorted(((name, as_2_0(name, value)) for name, value in pairs if name != "tst"), key=lambda pair: pair[0])

    return json.loads(text, object_pairs_hook=sort)


@pytest.mark.parametrize("pretty", [[], ["--pretty"]], ids=["flat", "pretty"])
def test_the_same_json_is_printed(pretty: list[str], mosquitto_sub: str, port: str, tree: str) -> None:
    # All but the binary one, for which theirs is no JSON; -N and a separator of our own, for pretty takes many lines.
    ours, theirs = both(mosquitto_sub, port, "-t", f"{tree}/#", "-T", f"{tree}/binary", "-C", str(len(PAYLOADS)), "-N", "-F", "%j\\0", *pretty)
    # The expiry interval runs down meanwhile.
    printed = [[without_time(part) for part in re.sub(rb"39999\d{5}|4000000000", b"1", text).split(b"\0")[:-1]] for text in (ours, theirs)]
    assert len(printed[0]) == len(PAYLOADS)
    assert printed[0] == printed[1]


def test_a_json_payload_is_part_of_the_same_object(mosquitto_sub: str, port: str, tree: str) -> None:
    ours, theirs = both(mosquitto_sub, port, "-t", f"{tree}/json", "-C", "1", "-F", "%J")
    assert without_time(ours) == without_time(theirs)


def test_json_keys_stand_in_the_same_order(mosquitto_sub: str, port: str, tree: str) -> None:
    ours, theirs = both(mosquitto_sub, port, "-t", f"{tree}/properties", "-C", "1", "-q", "1", "-F", "%j")
    assert list(json.loads(ours)) == list(json.loads(theirs))


@pytest.mark.parametrize("layout", ["%", "%z", "\\z", "@", "%5", "x\\"])
def test_the_same_formats_are_refused(layout: str, mosquitto_sub: str) -> None:
    assert subprocess.run([mosquitto_sub, "-t", "x", "-F", layout], capture_output=True, timeout=SECONDS_MAX, check=False).returncode == 1
    with pytest.raises(FormatFault):
        compile_format(layout)


def test_an_empty_message(mosquitto_sub: str, port: str, topic: str) -> None:
    """Mosquitto prints nothing at all for one, but for -v and -F."""
    for words in ((), ("-v",)):
        theirs, ours = (empty_message_as_printed(command, port, topic, *words) for command in ([mosquitto_sub, "-V", "5"], [*BROKER, "sub"]))
        assert ours == theirs


def empty_message_as_printed(command: list[str], port: str, topic: str, *words: str) -> bytes:
    """It is kept in a session first, so that nothing must be timed."""
    client = topic.replace("/", "-")
    session = [*command, "-p", port, "-t", topic, "-q", "1", "-i", client, "-c"]
    subprocess.run([*session, "-E", "-x", "60"], cwd=ROOT, timeout=SECONDS_MAX, check=True)
    subprocess.run(["mosquitto_pub", "-p", port, "-t", topic, "-q", "1", "-n"], timeout=SECONDS_MAX, check=True)
    return subprocess.run([*session, "-C", "1", "-x", "0", *words], cwd=ROOT, capture_output=True, timeout=SECONDS_MAX, check=True).stdout
