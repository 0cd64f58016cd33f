"""Environment variables over the file: BROKER__LISTENERS__0__PORT=1884 is port 1884 in the first [[listeners]]."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker.auth.bans import Ban
from broker.auth.tokens import Jwt
from broker.bridge.settings import BridgeTls, BridgeTopic
from broker.config.kinds import AccessConfig, BridgeConfig, ListenerConfig, LogConfig, OverflowConfig, StoreConfig, Top
from broker.config.tables import Problems
from broker.net.tls import TlsFiles, TlsName

ENV_PREFIX: Final = "BROKER__"


def with_environment(data: Mapping[str, Any], env: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    """A copy of the tables with BROKER__A__0__B=value put at a[0].b; other variables are not ours."""
    copied: dict[str, Any] = _copied(data)
    for name in sorted(env):
        if name.startswith(ENV_PREFIX):
            steps = name[len(ENV_PREFIX) :].lower().split("__")
            fault = _put(copied, steps, _value(steps[-1], env[name]))
            if fault:
                problems.append((name, fault))
    return copied


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Key path to the variable that sets it: whoever looks into the file for such a mistake does not find it."""
    found = {}
    for name in env:
        if name.startswith(ENV_PREFIX):
            path = ""
            for step in name[len(ENV_PREFIX) :].lower().split("__"):
                path += f"[{step}]" if step.isdecimal() else f".{step}" if path else step
            found[path] = name
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


_TABLES: Final = (
    Top, ListenerConfig, TlsFiles, TlsName, LogConfig, StoreConfig, OverflowConfig, AccessConfig, Jwt, Ban, BridgeConfig, BridgeTls, BridgeTopic,
)  # fmt: skip
_TEXT_KEYS: Final = {"certificate", "filter", "rule", "topic", "may", "name", "url", "direction", "version"} | {
    field.name for kind in _TABLES for field in msgspec.structs.fields(kind) if isinstance(field.default, str) or field.type == str | None
}


def _value(key: str, text: str) -> Any:
    """TOML if it is (numbers, true, lists), else the text itself: BROKER__LOG__LEVEL=debug needs no quotes, and a text key takes all."""
    if key in _TEXT_KEYS:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(into: Any, steps: list[str], value: Any) -> str | None:
    """Set one value; what is wrong with its path, or None."""
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        empty: Any = [] if not last and steps[depth + 1].isdecimal() else {}
        if isinstance(into, list):
            if not step.isdecimal() or int(step) > len(into):
                return f"expected a number from 0 to {len(into)} after the name of a list"
            if int(step) == len(into):
                into.append(empty)
            key: Any = int(step)
        elif isinstance(into, dict) and step:
            into.setdefault(step, empty)
            key = step
        else:
            return "there is no such key"
        if last:
            into[key] = value
        else:
            into = into[key]
    return None
