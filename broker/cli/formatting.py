"""What `sub` and `rr` print for a message: the payload, `-v`, or Mosquitto's `-F` language.

A format is compiled once into a list of small functions, so that a mistake in it is found before anything is received. Everything is
bytes: a payload is printed as it came, whatever it holds.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import msgspec

from broker.wire.packets import Properties


class FormatFault(ValueError):
    """A -F that cannot be used; str() is the reason, for one line."""


class NotJson(ValueError):
    """%J met a payload that is not JSON; str() is the reason, for one line."""


class Printable(Protocol):
    """What of a Message is printed (`broker.Message` has it all)."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def qos(self) -> int: ...
    @property
    def retain(self) -> bool: ...
    @property
    def packet_id(self) -> int: ...
    @property
    def properties(self) -> Properties: ...


Part: TypeAlias = Callable[[Printable, int], bytes]
"""(message, Unix time in nanoseconds) -> what to print."""


class Layout:
    """How wide, which side, which filler: what may stand between % and its letter."""

    __slots__ = ("left", "precision", "width", "zeros")

    def __init__(self, left: bool, zeros: bool, width: int, precision: int | None) -> None:
        self.left = left
        self.zeros = zeros
        self.width = width
        self.precision = precision

    def of_text(self, text: str) -> bytes:
        text = text if self.precision is None else text[: self.precision]
        return (text.ljust(self.width) if self.left else text.rjust(self.width)).encode()

    def of_number(self, number: int | None) -> bytes:
        text = "" if number is None else str(number)
        if self.left:
            return text.ljust(self.width).encode()
        return text.rjust(self.width, "0" if self.zeros else " ").encode()

    def of_payload(self, payload: bytes, whole: int = 1) -> bytes:
        """A width also cuts a payload, as Mosquitto does; `whole` (2 for hexadecimal) is what may not be cut in two."""
        if self.width == 0:
            return payload
        payload = payload[: self.width - self.width % whole]
        if self.left:
            return payload.ljust(self.width)
        return payload.rjust(self.width, b"0" if self.zeros else b" ")


def compile_format(text: str, *, pretty: bool = False, show_identifiers: bool = True) -> Callable[[Printable, int], bytes]:
    """A function of (message, Unix time in ns) for one -F. Raises FormatFault."""
    parts: list[Part] = []
    plain = bytearray()
    position = 0
    while position < len(text):
        mark = text[position]
        if mark not in "%@\\":
            plain += mark.encode("utf-8", "surrogateescape")
            position += 1
            continue
        if plain:
            parts.append(_constant(bytes(plain)))
            plain.clear()
        if mark == "%":
            part, position = _percent(text, position + 1, pretty, show_identifiers)
        elif position + 1 == len(text):
            raise FormatFault(f"the format ends after {mark!r}; write it twice to print it")
        else:
            part = _clock(text[position + 1]) if mark == "@" else _escape(text[position + 1])
            position += 2
        parts.append(part)
    if plain:
        parts.append(_constant(bytes(plain)))
    return lambda message, now_ns: b"".join([part(message, now_ns) for part in parts])


def payload_only(message: Printable, now_ns: int) -> bytes:
    """No -v, no -F."""
    return message.payload


def verbose(message: Printable, now_ns: int) -> bytes:
    """-v: Mosquitto says (null) for a message without payload."""
    return message.topic.encode() + b" " + (message.payload or b"(null)")


def _constant(value: bytes) -> Part:
    return lambda message, now_ns: value


# ---- after a backslash and after an @ -----------------------------------------------------------------------------

_ESCAPES: Final = {"\\": b"\\", "0": b"\0", "a": b"\a", "e": b"\x1b", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v"}


def _escape(letter: str) -> Part:
    value = _ESCAPES.get(letter)
    if value is None:
        known = " ".join("\\" + name for name in _ESCAPES)
        raise FormatFault(f"no such escape in a format: '\\{letter}' (there are {known})")
    return _constant(value)


def _clock(letter: str) -> Part:
    if letter == "@":
        return _constant(b"@")
    if letter == "N":
        return lambda message, now_ns: b"%09d" % (now_ns % 1_000_000_000)
    return lambda message, now_ns: _local("%" + letter, now_ns).encode("utf-8", "surrogateescape")


def _local(pattern: str, now_ns: int) -> str:
    return time.strftime(pattern, time.localtime(now_ns // 1_000_000_000))


# ---- after a % ----------------------------------------------------------------------------------------------------


def _percent(text: str, position: int, pretty: bool, show_identifiers: bool) -> tuple[Part, int]:
    """The part that starts after the % at position - 1, and where the text goes on."""
    left = zeros = False
    if text[position : position + 1] in ("0", "-"):
        left, zeros = text[position] == "-", text[position] == "0"
        position += 1
    width, position = _digits(text, position)
    precision: int | None = None
    if text[position : position + 1] == ".":
        precision, position = _digits(text, position + 1)
    if position == len(text):
        raise FormatFault("the format ends inside a % sequence; write %% to print one")
    letter = text[position]
    layout = Layout(left, zeros, width, precision)
    if letter in "jJ":
        return _json_part(letter, pretty, show_identifiers), position + 1
    if letter == "S" and not show_identifiers:
        return lambda message, now_ns: layout.of_number(None), position + 1
    make = _LETTERS.get(letter)
    if make is None:
        known = " ".join("%" + name for name in [*_LETTERS, "j", "J"])
        raise FormatFault(f"no such sequence in a format: '%{letter}' (there are {known})")
    return make(layout), position + 1


_WIDTH_MAX: Final = 65_535  # of a column; more is a slip of the finger, and costs memory with every message


def _digits(text: str, position: int) -> tuple[int, int]:
    start = position
    while position < len(text) and text[position] in "0123456789":
        position += 1
    digits = text[start:position]
    if len(digits) > 6 or int(digits or 0) > _WIDTH_MAX:
        raise FormatFault(f"a width of at most {_WIDTH_MAX:,} expected in a format, not {digits}")
    return int(digits or 0), position


def _pairs(message: Printable) -> bytes:
    return " ".join(f"{name}:{value}" for name, value in message.properties.user_properties).encode()


def _optional_text(layout: Layout, text: str | None, *, pad_absent: bool) -> bytes:
    if text is None:
        return b" " * layout.width if pad_absent else b""
    return layout.of_text(text)


_LETTERS: Final[dict[str, Callable[[Layout], Part]]] = {
    "%": lambda layout: _constant(b"%"),
    "A": lambda layout: lambda message, now_ns: layout.of_number(message.properties.topic_alias),
    "C": lambda layout: lambda message, now_ns: _optional_text(layout, message.properties.content_type, pad_absent=True),
    "D": lambda layout: lambda message, now_ns: message.properties.correlation_data or b"",
    "E": lambda layout: lambda message, now_ns: layout.of_number(message.properties.message_expiry_interval),
    "F": lambda layout: lambda message, now_ns: layout.of_number(message.properties.payload_format_indicator),
    "I": lambda layout: lambda message, now_ns: layout.of_text(_local("%Y-%m-%dT%H:%M:%S%z", now_ns)),
    "l": lambda layout: lambda message, now_ns: layout.of_number(len(message.payload)),
    "m": lambda layout: lambda message, now_ns: layout.of_number(message.packet_id),
    "P": lambda layout: lambda message, now_ns: _pairs(message),
    "p": lambda layout: lambda message, now_ns: layout.of_payload(message.payload),
    "q": lambda layout: lambda message, now_ns: b"%d" % message.qos,
    "R": lambda layout: lambda message, now_ns: _optional_text(layout, message.properties.response_topic, pad_absent=False),
    "r": lambda layout: lambda message, now_ns: b"1" if message.retain else b"0",
    "S": lambda layout: lambda message, now_ns: layout.of_number(next(iter(message.properties.subscription_identifiers), None)),
    "t": lambda layout: lambda message, now_ns: layout.of_text(message.topic),
    "U": lambda layout: lambda message, now_ns: b"%d.%09d" % divmod(now_ns, 1_000_000_000),
    "x": lambda layout: lambda message, now_ns: layout.of_payload(message.payload.hex().encode(), 2),
    "X": lambda layout: lambda message, now_ns: layout.of_payload(message.payload.hex().upper().encode(), 2),
}


# ---- JSON ---------------------------------------------------------------------------------------------------------


def _json_part(letter: str, pretty: bool, show_identifiers: bool) -> Part:
    def part(message: Printable, now_ns: int) -> bytes:
        payload = _payload_quoted(message.payload) if letter == "j" else _payload_as_json(message)
        text = "{" + ",".join([*_json_head(message, now_ns, show_identifiers), *payload]) + "}"
        return msgspec.json.format(text, indent=2).encode() if pretty else text.encode()

    return part


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json_head(message: Printable, now_ns: int, show_identifiers: bool) -> list[str]:
    """All members but the payload, under Mosquitto's names."""
    stamp = f"{_local('%Y-%m-%dT%H:%M:%S', now_ns)}.{now_ns % 1_000_000_000 // 1000:06d}{_local('%z', now_ns)}"
    members = [
        f'"tst":"{stamp}"',
        f'"topic":{_quote(message.topic)}',
        f'"qos":{int(message.qos)}',
        f'"retain":{int(message.retain)}',
        f'"payloadlen":{len(message.payload)}',
    ]
    if message.qos > 0:
        members.append(f'"mid":{message.packet_id}')
    properties = _json_properties(message.properties, show_identifiers)
    if properties:
        members.append('"properties":{' + ",".join(properties) + "}")
    return members


def _json_properties(properties: Properties, show_identifiers: bool) -> list[str]:
    members: list[str] = []
    numbers: list[tuple[str, int | None]] = [
        ("payload-format-indicator", properties.payload_format_indicator),
        ("message-expiry-interval", properties.message_expiry_interval),
        ("topic-alias", properties.topic_alias),
    ]
    if show_identifiers:
        numbers += [("subscription-identifier", identifier) for identifier in properties.subscription_identifiers]
    members += [f'"{name}":{number}' for name, number in numbers if number is not None]
    correlation = None if properties.correlation_data is None else properties.correlation_data.decode("utf-8", "replace")
    texts = (("content-type", properties.content_type), ("response-topic", properties.response_topic), ("correlation-data", correlation))
    members += [f'"{name}":{_quote(text)}' for name, text in texts if text is not None]
    if properties.user_properties:
        # A name may come twice, and then stands here twice, as Mosquitto prints it.
        members.append('"user-properties":{' + ",".join(f"{_quote(name)}:{_quote(value)}" for name, value in properties.user_properties) + "}")
    return members


def _payload_quoted(payload: bytes) -> list[str]:
    """%j: Mosquitto prints raw bytes between quotes, which is no JSON where they are not UTF-8; then ours is null and base64."""
    if not payload:
        return ['"payload":null']
    try:
        return [f'"payload":{_quote(payload.decode())}']
    except UnicodeDecodeError:
        return ['"payload":null', f'"payload_base64":"{base64.b64encode(payload).decode()}"']


def _payload_as_json(message: Printable) -> list[str]:
    """%J: the payload is JSON and becomes part of the object, its numbers as they were written."""
    if not message.payload:
        return ['"payload":null']
    try:
        msgspec.json.decode(message.payload)
        return [f'"payload":{msgspec.json.format(message.payload, indent=-1).decode()}']
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotJson(f"the payload on topic {message.topic!r} is not JSON (%J); %j prints any") from None
