"""What the words of a command line may be: one function for each kind of value, which raises click.BadParameter with what was expected.

(Functions and not click's types: those write their ranges into the help page, and cannot say what a Topic Filter lacks.)
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from typing import Final

import click

from broker.errors import shown
from broker.messages import Version
from broker.wire.topics import topic_filter_fault, topic_name_fault

TEXT_BYTES_MAX: Final = 65_535  # of any string in a packet [MQTT5-1.5.4]
_VERSIONS: Final[dict[str, Version]] = {
    "5": "5.0", "mqttv5": "5.0", "5.0": "5.0",
    "311": "3.1.1", "mqttv311": "3.1.1", "3.1.1": "3.1.1",
    "31": "3.1", "mqttv31": "3.1", "3.1": "3.1",
}  # fmt: skip


def is_text(value: str) -> bool:
    """False for what came from a command line that was not UTF-8 (such bytes arrive as lone surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def quoted(value: object) -> str:
    """What was given, for a line that has to stay one: cut where it is long."""
    return shown(printable(value))


def checked_topic(topic: str, *, option: str | None = None) -> str:
    """A Topic Name. `option` is named in the message where click does not know it."""
    return _checked(topic, "Topic Name", topic_name_fault, option)


def checked_filter(topic_filter: str, *, option: str | None = None) -> str:
    """A Topic Filter, $share included."""
    return _checked(topic_filter, "Topic Filter", topic_filter_fault, option)


def _checked(value: str, what: str, fault_of: Callable[[str], str | None], option: str | None) -> str:
    fault = fault_of(value) if is_text(value) else "it is not UTF-8"
    if fault is None:
        return value
    message = f"{quoted(value)} is no {what}: {fault}"
    raise click.BadParameter(message) if option is None else click.UsageError(f"{option}: {message}")


def text(value: str) -> str:
    """UTF-8 for a field of a packet."""
    if not is_text(value) or len(value.encode()) > TEXT_BYTES_MAX or "\0" in value:
        raise click.BadParameter(f"text in UTF-8 of at most {TEXT_BYTES_MAX:,} bytes expected")
    return value


def host(value: str) -> str:
    """A name or an address, not a URL and not host:port."""
    if "://" in value:
        raise click.BadParameter("a host expected, not a URL; a URL goes with -L")
    if ":" in value:
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            raise click.BadParameter(f"a host name or address expected, not {quoted(value)}; the port goes with -p") from None
    if not is_text(value) or not value or any(letter.isspace() or letter in "/@?#[]" for letter in value):
        raise click.BadParameter(f"a host name or address expected, not {quoted(value)}")
    return value


def path(value: str) -> str:
    """Of a file."""
    if not value:
        raise click.BadParameter("the path of a file expected")
    return value


def version(value: str) -> Version:
    """-V, as `connect` names it."""
    found = _VERSIONS.get(value.lower())
    if found is None:
        raise click.BadParameter(f"5, 311, 31, mqttv5, mqttv311 or mqttv31 expected, not {quoted(value)}")
    return found


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= maximum:
            raise click.BadParameter(f"a whole number from {minimum} to {maximum} expected, not {quoted(value)}")
        return number

    return read


port: Final = whole(1, 65_535)
qos: Final = whole(0, 2)
count: Final = whole(1, 2**63 - 1)


def session_expiry(value: str) -> float:
    """-x: seconds, math.inf for ever."""
    if value in ("-1", "∞", "4294967295", "inf"):
        return math.inf
    if not (value.isascii() and value.isdecimal() and len(value) <= 10 and int(value) <= 0xFFFF_FFFF):
        raise click.BadParameter(f"0 to 4294967294 seconds, or -1 or ∞ for a session that does not expire, expected, not {quoted(value)}")
    return float(value)


def seconds(value: str) -> float:
    """A duration of more than no time, and finite."""
    return _more_than_0(value, "seconds")


def seconds_or_none(value: str) -> float:
    """A duration that may be 0."""
    number = _number(value)
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"seconds, at least 0, expected, not {quoted(value)}")
    return number


def rate(value: str) -> float:
    return _more_than_0(value, "messages a second")


def percent(value: str) -> float:
    number = _number(value)
    if not 0.1 <= number <= 100:
        raise click.BadParameter(f"a number from 0.1 to 100 expected, not {quoted(value)}")
    return number


def _more_than_0(value: str, what: str) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        raise click.BadParameter(f"{what}, more than 0, expected, not {quoted(value)}")
    return number


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
