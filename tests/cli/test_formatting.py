"""-F, -v and JSON, against expected text; and against the real mosquitto_sub in test_against_mosquitto.py."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from broker.cli.formatting import FormatFault, NotJson, compile_format, payload_only, verbose
from broker.wire.packets import NO_PROPERTIES, Properties
from tests.systems import WINE, zones_are_signed

NOW_NS = 1_470_818_943_786_368_637  # 2016-08-10 08:49:03.786368637 UTC


class Sample:
    """The part of a Message that is printed."""

    def __init__(
        self,
        topic: str = "a/b",
        payload: bytes = b"hello",
        qos: int = 0,
        retain: bool = False,
        packet_id: int = 0,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.packet_id = packet_id
        self.properties = properties


FULL = Sample(
    "room/1",
    b"\x00\xffhi",
    qos=2,
    retain=True,
    packet_id=7,
    properties=Properties(
        content_type="text/plain",
        correlation_data=b"\x01x",
        message_expiry_interval=90,
        payload_format_indicator=1,
        response_topic="re/ply",
        subscription_identifiers=(3, 4),
        topic_alias=5,
        user_properties=(("k", "v"), ("k", "w")),
    ),
)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dates in the tests are in UTC, wherever they run."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        _read_zone()
        yield
    _read_zone()


def _read_zone() -> None:
    if hasattr(time, "tzset"):
        time.tzset()


FORMATS = [
    ("%t", b"room/1"),
    ("%p", b"\x00\xffhi"),
    ("%x %X", b"00ff6869 00FF6869"),
    ("%l %q %r %m", b"4 2 1 7"),
    ("%C|%D|%E|%F|%P|%R|%S|%A", b"text/plain|\x01x|90|1|k:v k:w|re/ply|3|5"),
    ("%%@@\\\\", b"%@\\"),
    ("\\0\\a\\e\\n\\r\\t\\v", b"\x00\x07\x1b\n\r\t\x0b"),
    ("%8t|%-8t|%.3t|%8.3t|%-8.3t|%08t", b"  room/1|room/1  |roo|     roo|roo     |  room/1"),
    ("%3l|%03l|%-3l", b"  4|004|4  "),
    ("%6p|%06p|%-6p|%2p", b"  \x00\xffhi|00\x00\xffhi|\x00\xffhi  |\x00\xff"),
    ("%10x|%010X|%-10x|%4x|%5x", b"  00ff6869|0000FF6869|00ff6869  |00ff| 00ff"),
    ("%5q|%5r", b"2|1"),
    ("%12C|%12R", b"  text/plain|      re/ply"),
    ("%I", b"2016-08-10T08:49:03-0000" if WINE else b"2016-08-10T08:49:03+0000"),
    ("%U", b"1470818943.786368637"),
    ("@Y-@m-@dT@H:@M:@S.@N", b"2016-08-10T08:49:03.786368637"),
    ("é %t \udcff", "é room/1 ".encode() + b"\xff"),
    ("", b""),
]


@pytest.mark.parametrize(("layout", "expected"), FORMATS, ids=[ascii(layout) for layout, _ in FORMATS])
def test_a_format_prints(layout: str, expected: bytes) -> None:
    # %5x: five places, of which two bytes fill four; the rest is padding.
    assert compile_format(layout)(FULL, NOW_NS) == expected


def test_what_a_message_does_not_have_is_blank_and_keeps_its_width() -> None:
    bare = Sample()
    assert compile_format("[%C%D%E%F%P%R%S%A]")(bare, NOW_NS) == b"[]"
    assert compile_format("[%3C|%3E|%03E|%3F|%3S|%3R]")(bare, NOW_NS) == b"[   |   |000|   |   |]"


def test_identifiers_that_nobody_asked_for_are_not_shown() -> None:
    assert compile_format("[%S]", show_identifiers=False)(FULL, NOW_NS) == b"[]"
    assert b"subscription-identifier" not in compile_format("%j", show_identifiers=False)(FULL, NOW_NS)


FAULTS = [
    ("%", "ends inside"),
    ("%0", "ends inside"),
    ("%5.", "ends inside"),
    ("%z", "'%z'"),
    ("x@", "ends after '@'"),
    ("x\\", "ends after"),
    ("\\q", "'\\q'"),
    ("%9999999t", "width"),
]


@pytest.mark.parametrize(("layout", "said"), FAULTS, ids=[layout for layout, _ in FAULTS])
def test_a_wrong_format_is_found_before_anything_is_received(layout: str, said: str) -> None:
    with pytest.raises(FormatFault) as caught:
        compile_format(layout)
    assert said in str(caught.value)


def test_without_a_format() -> None:
    assert payload_only(FULL, NOW_NS) == b"\x00\xffhi"
    assert verbose(Sample("é", b"\xff"), NOW_NS) == "é ".encode() + b"\xff"
    assert verbose(Sample("t", b""), NOW_NS) == b"t (null)"


def pairs_of(text: bytes) -> list[tuple[str, object]]:
    """A JSON object as pairs, so that order and repeated names can be seen."""
    pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=lambda found: found)
    return pairs


@zones_are_signed
def test_json_has_mosquittos_keys() -> None:
    message = Sample('tó"pic', 'x"\\/\x07\x7f\té\n'.encode(), qos=1, retain=True, packet_id=9, properties=FULL.properties)
    printed = compile_format("%j")(message, NOW_NS)
    assert b"\n" not in printed
    assert pairs_of(printed) == [
        ("tst", "2016-08-10T08:49:03.786368+0000"),
        ("topic", 'tó"pic'),
        ("qos", 1),
        ("retain", 1),
        ("payloadlen", 10),
        ("mid", 9),
        (
            "properties",
            [
                ("payload-format-indicator", 1),
                ("message-expiry-interval", 90),
                ("topic-alias", 5),
                ("subscription-identifier", 3),
                ("subscription-identifier", 4),
                ("content-type", "text/plain"),
                ("response-topic", "re/ply"),
                ("correlation-data", "\x01x"),
                ("user-properties", [("k", "v"), ("k", "w")]),
            ],
        ),
        ("payload", 'x"\\/\x07\x7f\té\n'),
    ]


def test_json_leaves_out_what_there_is_not() -> None:
    assert [name for name, _ in pairs_of(compile_format("%j")(Sample(), NOW_NS))] == ["tst", "topic", "qos", "retain", "payloadlen", "payload"]
    assert json.loads(compile_format("%j")(Sample(payload=b""), NOW_NS))["payload"] is None


def test_a_payload_that_is_not_utf8_is_base64_beside_null() -> None:
    printed = json.loads(compile_format("%j")(Sample(payload=b"\x00\xff"), NOW_NS))
    assert printed["payload"] is None
    assert printed["payload_base64"] == "AP8="
    assert printed["payloadlen"] == 2


def test_a_json_payload_becomes_part_of_the_object_with_its_numbers_as_they_were() -> None:
    printed = compile_format("%J")(Sample(payload=b'{ "a": 1.0,\n "b": [1, 12345678901234567890123] }'), NOW_NS)
    assert printed.endswith(b'"payload":{"a":1.0,"b":[1,12345678901234567890123]}}')


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"nan", b"1 2", b"[" * 100_000])
def test_a_payload_that_is_not_json_says_on_which_topic(payload: bytes) -> None:
    with pytest.raises(NotJson, match="'a/b'"):
        compile_format("%J")(Sample(payload=payload), NOW_NS)


def test_pretty_is_the_same_over_several_lines() -> None:
    flat, pretty = (compile_format("%j", pretty=choice)(FULL, NOW_NS) for choice in (False, True))
    assert pairs_of(flat) == pairs_of(pretty)
    assert len(pretty.splitlines()) > 10
