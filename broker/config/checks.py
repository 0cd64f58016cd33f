"""What a type cannot say of a table: limits laid over others, the files that it names, listeners as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from broker.auth.acl import load_rules
from broker.auth.passwords import load_passwords
from broker.auth.tokens import Jwt, load_tokens
from broker.bridge.settings import Bridge, BridgeTls, BridgeTopic, bridge_faults
from broker.config.kinds import BridgeConfig, ListenerConfig
from broker.config.tables import Problems, kind_of, read_known, read_table, read_tables
from broker.core.allowance import LimitOverrides, UserLimits
from broker.core.limits import OF_ALL, OF_STRANGERS, Limits
from broker.errors import ConfigError
from broker.net.dial import parse_url
from broker.net.listener import NOT_WITH_UNIX, Listener, check, is_loopback
from broker.net.settings import BEFORE_CONNECT, WHOLE_BROKER, limit_faults
from broker.net.tls import TlsFiles, TlsName, make_context
from broker.wire.topics import split_shared, topic_filter_fault

_NOT_OF_LISTENERS: Final = dict.fromkeys(sorted(OF_ALL), WHOLE_BROKER)
_NOT_OF_USERS: Final = _NOT_OF_LISTENERS | dict.fromkeys(sorted(OF_STRANGERS), BEFORE_CONNECT)


def read_overrides(data: Any, limits: Limits, path: str, misplaced: Mapping[str, str], problems: Problems) -> LimitOverrides:
    """Keys of [limits] in another table, to be laid over it. misplaced: those that mean nothing there, and why."""
    if not isinstance(data, Mapping):
        problems.append((path, f"expected a table, got {kind_of(data)}"))
        return LimitOverrides()
    fields = {field.name: field for field in msgspec.structs.fields(Limits) if field.name not in misplaced}
    problems.extend((f"{path}.{name}", text) for name, text in misplaced.items() if name in data)
    known = read_known(fields, {key: value for key, value in data.items() if key not in misplaced}, path, problems)
    overrides = LimitOverrides(**known)
    problems += limit_faults(overrides.over(limits), path, overrides.names)
    return overrides


def read_limits_for(data: Any, limits: Limits, problems: Problems) -> UserLimits:
    """[[limits_for]], one entry a user."""
    if not isinstance(data, list):
        problems.append(("limits_for", f"expected a list of tables ([[limits_for]]), got {kind_of(data)}"))
        return ()
    found: dict[str, LimitOverrides] = {}
    for index, entry in enumerate(data):
        place = f"limits_for[{index}]"
        users: Any = None
        if isinstance(entry, Mapping):
            users = entry.get("users")
            entry = {key: value for key, value in entry.items() if key != "users"}
            if not isinstance(users, list) or not users or not all(isinstance(name, str) for name in users):
                got = "is missing" if users is None else f"expected a list of user names, got {kind_of(users)}"
                problems.append((f"{place}.users", got))
                users = None
        overrides = read_overrides(entry, limits, place, _NOT_OF_USERS, problems)
        for name in users or ():
            if name in found:
                problems.append((f"{place}.users", f'"{name}" has limits already'))
            found.setdefault(name, overrides)
    return tuple(found.items())


def check_filters(filters: Sequence[tuple[str, str]], key: str, problems: Problems) -> None:
    """Of rules, which are about topics: those of a shared subscription stand behind its group."""
    for place, filter in filters:
        fault = topic_filter_fault(filter)
        if fault is None and split_shared(filter)[0] is not None:
            fault = f"no message has a topic that begins so; the rule for this shared subscription is one for {split_shared(filter)[1]!r}"
        if fault is not None:
            problems.append((f"{place}.{key}", fault))


def at(folder: Path | None, path: str | None) -> str | None:
    """Relative paths start at the file."""
    return path if path is None or folder is None else str(folder / path)


def check_file(load: Callable[[str], object], path: str | None, place: str, problems: Problems) -> None:
    """What the broker will read when it starts is a part of its configuration."""
    if path is None:
        return
    try:
        load(path)
    except ConfigError as error:
        problems += [(place, f"{path}: {where}: {expected}" if where else f"{path} {expected}") for where, expected in error.problems]


def _read_tls(data: dict[str, Any] | None, folder: Path | None, protocol: str, place: str, problems: Problems) -> TlsFiles | None:
    """None for none, and for one with a mistake."""
    if data is None:
        return None
    names = read_tables(TlsName, data.get("names", []), f"{place}.names", problems)
    files = read_table(TlsFiles, {key: value for key, value in data.items() if key != "names"}, place, problems)
    if files is None or set(data) - set(files.__struct_fields__):
        return None
    paths = {name: at(folder, getattr(files, name)) for name in ("certificate", "key", "client_ca", "crl")}
    others = [msgspec.structs.replace(name, certificate=at(folder, name.certificate), key=at(folder, name.key)) for _, name in names]
    files = msgspec.structs.replace(files, **paths, names=tuple(others))
    try:
        make_context(files, protocol)
    except ConfigError as error:
        places = {f"names[{index}]": found for index, (found, _) in enumerate(names)}
        for key, text in error.problems:
            head, dot, rest = key.partition(".")
            problems.append((places.get(head, f"{place}.{head}") + dot + rest, text))
        return None
    return files


def read_jwt(data: Any, folder: Path | None, place: str, problems: Problems) -> Jwt | None:
    """None for none, and for one with a mistake."""
    if data is None:
        return None
    before = len(problems)
    jwt = read_table(Jwt, data, place, problems)
    if jwt is None or len(problems) > before:
        return None
    jwt = msgspec.structs.replace(jwt, key_file=at(folder, jwt.key_file), jwks_file=at(folder, jwt.jwks_file))
    try:
        load_tokens(jwt)
    except ConfigError as error:
        problems += [(f"{place}.{key}" if key else place, expected) for key, expected in error.problems]
    return jwt


def read_bridges(
    found: Sequence[tuple[str, BridgeConfig]], listeners: Sequence[Listener], folder: Path | None, problems: Problems
) -> tuple[Bridge, ...]:
    bridges: list[tuple[str, Bridge]] = []
    places: dict[str, str] = {}
    for place, entry in found:
        topics = read_tables(BridgeTopic, entry.topics or [], f"{place}.topics", problems)
        if not entry.topics:
            problems.append((f"{place}.topics", "is missing; expected at least one" if entry.topics is None else "expected at least one"))
        places |= {f"{place}.topics[{index}]": own for index, (own, _) in enumerate(topics)}  # one with a mistake is left out
        tls = None if entry.tls is None else read_table(BridgeTls, entry.tls, f"{place}.tls", problems)
        if tls is not None:
            tls = msgspec.structs.replace(tls, **{name: at(folder, getattr(tls, name)) for name in ("ca", "certificate", "key")})
        fields = msgspec.structs.asdict(entry) | {
            "topics": tuple(topic for _, topic in topics), "tls": tls, "password_file": at(folder, entry.password_file)
        }  # fmt: skip
        bridge = Bridge(**fields)
        bridges.append((place, bridge))
        for key, url in (("url", entry.url), *((f"fallback_urls[{index}]", url) for index, url in enumerate(entry.fallback_urls))):
            problems.extend((f"{place}.{key}", text) for text in _url_faults(url, listeners))
    for key, text in bridge_faults(bridges):
        head, dot, rest = key.rpartition(".")
        if not key.endswith(".topics"):  # told above
            problems.append((places.get(head, head) + dot + rest, text))
    return tuple(bridge for _, bridge in bridges)


def _url_faults(url: str, listeners: Sequence[Listener]) -> list[str]:
    """What a program may say, and a file may not; and a broker that is this one."""
    try:
        target = parse_url(url)
    except ValueError:
        return []
    faults = []
    if target.username is not None or target.password is not None or target.options:
        faults.append("expected no user, password or ?key=value in it: they are keys of their own (username, password_file)")
    for listener in listeners:
        same_host = target.host == listener.host or (is_loopback(target.host) and (is_loopback(listener.host) or listener.host in ("*", "0.0.0.0")))
        here = target.path == listener.unix if target.scheme == "unix" else listener.unix is None and listener.port == target.port and same_host
        if here and listener.speaks_mqtt:
            faults.append(f"{target.address} is this broker itself: what it sends would come back to it for ever")
            break
    return faults


def read_listeners(found: Sequence[tuple[str, ListenerConfig]], limits: Limits, folder: Path | None, problems: Problems) -> tuple[Listener, ...]:
    listeners = []
    places: dict[str | tuple[str, int], str] = {}
    for place, entry in found:
        unix = entry.unix
        if unix and folder is not None:
            unix = str(folder / unix)
        passwords, rules = at(folder, entry.password_file), at(folder, entry.acl_file)
        check_file(load_passwords, passwords, f"{place}.password_file", problems)
        check_file(load_rules, rules, f"{place}.acl_file", problems)
        tls = _read_tls(entry.tls, folder, entry.protocol, f"{place}.tls", problems)
        own = LimitOverrides() if entry.limits is None else read_overrides(entry.limits, limits, f"{place}.limits", _NOT_OF_LISTENERS, problems)
        jwt = read_jwt(entry.jwt, folder, f"{place}.jwt", problems)
        files = {"unix": unix, "password_file": passwords, "acl_file": rules, "tls": tls, "jwt": jwt}
        fields = msgspec.structs.asdict(entry) | files | {"limits": own}
        for key in ("host", "port"):
            if (fields[key] is None or unix is not None) and fields.pop(key) is not None:
                problems.append((f"{place}.{key}", NOT_WITH_UNIX))
        if entry.protocol == "http" and entry.port is None and unix is None and entry.systemd is None:
            problems.append((f"{place}.port", 'is missing: protocol = "http" needs a port that is not MQTT\'s, such as 9883'))
        if entry.protocol == "control" and entry.port is None and entry.tls is not None and unix is None and entry.systemd is None:
            problems.append((f"{place}.port", 'is missing: protocol = "control" over TLS needs a port that is not MQTT\'s, such as 9884'))
        listener = Listener(**fields)
        for fault in check(listener):
            key, _, text = fault.partition(": ")
            problems.append((f"{place}.{key}", text))
        if listener.systemd is None and (listener.unix is not None or listener.port):
            address = listener.unix or (listener.host, listener.port)
            if address in places:
                problems.append((f"{place}.{'unix' if listener.unix else 'port'}", f"{places[address]} listens there already"))
            places.setdefault(address, place)
        listeners.append(listener)
    return tuple(listeners)
