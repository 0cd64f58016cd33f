"""`-D command identifier value`: which properties each command takes, and how their words become values.

One table, as the standard's Table 2-4 reads it for a client, with Mosquitto's spelling of the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from broker.cli.values import TEXT_BYTES_MAX, is_text
from broker.wire.packets import Properties

Reader: TypeAlias = Callable[[str], Any]


class PropertyFault(ValueError):
    """A -D that cannot be used; str() is the reason, for one line."""


def _whole_number(maximum: int, minimum: int = 0) -> Reader:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -1
        if not minimum <= value <= maximum:
            raise PropertyFault(f"a whole number from {minimum} to {maximum:,} expected, not {text!r}")
        return value

    return read


def _text(text: str) -> str:
    if not is_text(text) or "\0" in text or len(text.encode()) > TEXT_BYTES_MAX:
        raise PropertyFault(f"text in UTF-8 of at most {TEXT_BYTES_MAX:,} bytes expected")
    return text


def _binary(text: str) -> bytes:
    # The words of a command line are bytes; what was not UTF-8 comes back as it was given.
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > TEXT_BYTES_MAX:
        raise PropertyFault(f"at most {TEXT_BYTES_MAX:,} bytes expected")
    return data


_FLAG: Final = _whole_number(1)
_SHORT: Final = _whole_number(65_535, 1)
_SECONDS: Final = _whole_number(0xFFFF_FFFF)

_MESSAGE: Final[dict[str, Reader]] = {
    "content-type": _text,
    "correlation-data": _binary,
    "message-expiry-interval": _SECONDS,
    "payload-format-indicator": _FLAG,
    "response-topic": _text,
}
TABLE: Final[dict[str, dict[str, Reader]]] = {
    "connect": {
        "authentication-data": _binary,
        "authentication-method": _text,
        "maximum-packet-size": _whole_number(0xFFFF_FFFF, 1),
        "receive-maximum": _SHORT,
        "request-problem-information": _FLAG,
        "request-response-information": _FLAG,
        "session-expiry-interval": _SECONDS,
        "topic-alias-maximum": _whole_number(65_535),
    },
    "disconnect": {"session-expiry-interval": _SECONDS},
    "publish": {**_MESSAGE, "topic-alias": _SHORT},
    "subscribe": {"subscription-identifier": _whole_number(268_435_455, 1)},
    "unsubscribe": {},
    "will": {**_MESSAGE, "will-delay-interval": _SECONDS},
}
"""Besides these, every command takes user-property."""

_UNSUPPORTED: Final = frozenset({"auth", "puback", "pubrec", "pubrel", "pubcomp"})  # Mosquitto's tools refuse them, too


def words_wanted(words: list[str]) -> int:
    """How many words a -D takes, told by its first two."""
    return 4 if len(words) > 1 and words[1].lower() == "user-property" else 3


def collect(given: Iterable[list[str]], allowed: Iterable[str]) -> dict[str, Properties]:
    """All -D of one command line as {command: Properties}. Raises PropertyFault; `allowed` names the commands that this tool sends."""
    fields: dict[str, dict[str, Any]] = {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for words in given:
        _add(words, tuple(allowed), fields, pairs)
    return {command: Properties(**fields.get(command, {}), user_properties=tuple(pairs.get(command, ()))) for command in fields.keys() | pairs.keys()}


def _add(words: list[str], allowed: tuple[str, ...], fields: dict[str, dict[str, Any]], pairs: dict[str, list[tuple[str, str]]]) -> None:
    if len(words) < words_wanted(words):
        form = "COMMAND user-property NAME VALUE" if words_wanted(words) == 4 else "COMMAND IDENTIFIER VALUE"
        raise PropertyFault(f"wants {words_wanted(words)} words: {form}")
    command, name = words[0].lower(), words[1].lower()
    if command in _UNSUPPORTED:
        raise PropertyFault(f"properties of {command} are not available here")
    if command not in allowed:
        raise PropertyFault(f"no such command: {words[0]!r} (there are {', '.join(allowed)})")
    if name == "user-property":
        pairs.setdefault(command, []).append((_named(command, name, _text, words[2]), _named(command, name, _text, words[3])))
        return
    reader = TABLE[command].get(name)
    if reader is None:
        known = ", ".join([*TABLE[command], "user-property"])
        raise PropertyFault(f"{command} has no property {words[1]!r} (it has {known})")
    value = _named(command, name, reader, words[2])
    if name == "subscription-identifier":
        field, value = "subscription_identifiers", (value,)
    else:
        field = name.replace("-", "_")
    if field in fields.setdefault(command, {}):
        raise PropertyFault(f"{command} {name} may be given once only")
    fields[command][field] = value


def _named(command: str, name: str, reader: Reader, word: str) -> Any:
    try:
        return reader(word)
    except PropertyFault as fault:
        raise PropertyFault(f"{command} {name}: {fault}") from None
