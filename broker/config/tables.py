"""Tables read key by key, so that every mistake in them is found: each with its key and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from broker.auth.bans import Ban
from broker.auth.tokens import Jwt
from broker.bridge.settings import BridgeTls, BridgeTopic
from broker.config.habits import counterpart
from broker.config.kinds import TABLES, AccessConfig, BridgeConfig, ListenerConfig, LogConfig, OverflowConfig, StoreConfig, Top
from broker.core.limits import Limits
from broker.net.tls import TlsFiles, TlsName

Problems: TypeAlias = list[tuple[str, str]]

S = TypeVar("S", bound=Struct)

_NAMES: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
    "datetime": "a date and time",
}


def read_table(kind: type[S], data: Any, path: str, problems: Problems) -> S | None:
    """A struct from what is right in one table; None if that is not enough for one. Mistakes go to `problems`."""
    if not isinstance(data, Mapping):
        problems.append((path, f"expected a table, got {kind_of(data)}"))
        return None
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    known = read_known(fields, data, path, problems)
    required = [name for name, field in fields.items() if field.required]
    problems.extend((f"{path}.{name}", "is missing") for name in required if name not in data)
    return kind(**known) if all(name in known for name in required) else None


def read_known(fields: Mapping[str, FieldInfo], data: Mapping[str, Any], path: str, problems: Problems) -> dict[str, Any]:
    """What is right in one table."""
    known: dict[str, Any] = {}
    for key, value in data.items():
        place = f"{path}.{key}" if path else str(key)
        if key not in fields:
            problems.append((place, _unknown(str(key), [*fields, *([] if path else TABLES)], path)))
        elif isinstance(value, str) and "\0" in value:
            problems.append((place, "must not contain U+0000"))  # no path, topic or user name does
        else:
            try:
                known[key] = msgspec.convert(value, fields[key].type)
            except msgspec.ValidationError as error:
                problems.append((place, _expected(str(error), fields[key].type, value)))
            except UnicodeEncodeError:  # of an environment variable
                problems.append((place, "is not UTF-8"))
    return known


def read_tables(kind: type[S], data: Any, path: str, problems: Problems) -> list[tuple[str, S]]:
    """(key path, struct) of a list of tables; those with a mistake are left out."""
    if not isinstance(data, list):
        problems.append((path, f"expected a list of tables ([[{path}]]), got {kind_of(data)}"))
        return []
    found = []
    for index, entry in enumerate(data):
        place = f"{path}[{index}]"
        struct = read_table(kind, entry, place, problems)
        if struct is not None:
            found.append((place, struct))
    return found


_HOMES: Final[dict[str, tuple[str, ...]]] = {
    "above the first [table]": Top.__struct_fields__,
    "in [[listeners]]": ListenerConfig.__struct_fields__,
    "in [listeners.tls]": TlsFiles.__struct_fields__,
    "in [[listeners.tls.names]]": TlsName.__struct_fields__,
    "in [limits]": Limits.__struct_fields__,
    "in [log]": LogConfig.__struct_fields__,
    "in [store]": StoreConfig.__struct_fields__,
    "in [[overflow]]": OverflowConfig.__struct_fields__,
    "in [[access]]": AccessConfig.__struct_fields__,
    "in [[banned]]": Ban.__struct_fields__,
    "in [[bridges]]": BridgeConfig.__struct_fields__,
    "in [[bridges.topics]]": BridgeTopic.__struct_fields__,
    "in [bridges.tls]": BridgeTls.__struct_fields__,
    "in [jwt]": Jwt.__struct_fields__,
    "in [[limits_for]]": ("users",),
}
"""A key whose table's line is still a comment lands in the table before it."""


def _unknown(key: str, known: Sequence[str], path: str) -> str:
    homes = [home for home, keys in _HOMES.items() if key in keys]
    habit = counterpart(key, path)
    if homes and not path and habit is not None:  # "user"
        return f"unknown key here; it belongs {' or '.join(homes)}; {habit}"
    if homes:
        longer = next((name for name in known if key in name), None)  # "user" is a key of [[access]], and "username" of [[banned]]
        return f"unknown key here; it belongs {' or '.join(homes)}" + (f"; or did you mean {longer}?" if longer else "")
    alike = next((name for name in known if name.replace("_", "") == key), None)  # "keyfile" in [jwt] is no certificate's
    if habit is not None and alike is None:
        return f"unknown key; {habit}"
    near = difflib.get_close_matches(key, known, 1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; expected one of {', '.join(sorted(known))}"


def _expected(text: str, wanted: Any, value: Any) -> str:
    """msgspec's words as ours: what was expected, what was found."""
    if get_origin(wanted) is Literal:
        return f"expected {', '.join(get_args(wanted))}, got {kind_of(value)}"
    if text.startswith("Expected `"):
        names = [_NAMES.get(name, name) for name in text.split("`")[1].split(" | ") if name != "null"]
        if "`$[" in text:
            return f"expected a list of nothing but {' or '.join(names)}"
        return f"expected {' or '.join(names)}, got {kind_of(value)}"
    return text[:1].lower() + text[1:].replace("`", "")


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else "text"
    return "a table" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else type(value).__name__
