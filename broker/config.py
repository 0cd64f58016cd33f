"""The configuration: a TOML file, the environment over it, and every mistake in them told at once, each with its key and what was expected.

Order: command line > BROKER__LISTENERS__0__PORT > file > default. A key that we do not know is a mistake:
a misspelt `password_file` that is silently ignored is an open door.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from broker.auth.acl import May, load_rules
from broker.auth.bans import Ban, ban_fault
from broker.auth.client_ids import pattern_fault
from broker.auth.passwords import load_passwords
from broker.auth.tokens import Jwt, load_tokens
from broker.core.allowance import LimitOverrides, UserLimits
from broker.core.limits import OF_ALL, OF_STRANGERS, Limits
from broker.errors import ConfigError
from broker.net.listener import NOT_WITH_UNIX, Listener, check
from broker.net.settings import BEFORE_CONNECT, WHOLE_BROKER, limit_faults
from broker.net.tls import TlsFiles, TlsName, make_context
from broker.wire.topics import topic_filter_fault

Overflow: TypeAlias = Literal["drop-oldest", "drop-newest", "latest", "disconnect", "refuse"]
Problems: TypeAlias = list[tuple[str, str]]

ENV_PREFIX: Final = "BROKER__"

_NOT_OF_LISTENERS: Final = dict.fromkeys(sorted(OF_ALL), WHOLE_BROKER)
_NOT_OF_USERS: Final = _NOT_OF_LISTENERS | dict.fromkeys(sorted(OF_STRANGERS), BEFORE_CONNECT)

_TABLES: Final = ("listeners", "limits", "limits_for", "log", "store", "overflow", "access", "banned", "jwt")

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


class ListenerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[listeners]]; `net.listener.Listener` has the same fields and says what they mean."""

    host: str | None = None
    port: int | None = None
    """None: not written, and then Listener's default, unless there is `unix`."""
    unix: str | None = None
    unix_mode: str = "0660"
    unix_owner: str | None = None
    systemd: str | None = None
    protocol: Literal["mqtt", "websocket"] = "mqtt"
    path: str = "/mqtt"
    origins: tuple[str, ...] | None = None
    tls: dict[str, Any] | None = None
    """`net.tls.TlsFiles`."""
    allow_anonymous: bool | None = None
    password_file: str | None = None
    acl_file: str | None = None
    jwt: dict[str, Any] | None = None
    """`auth.tokens.Jwt`."""
    client_ids: tuple[str, ...] | None = None
    username_as_client_id: bool | None = None
    proxy_protocol_from: tuple[str, ...] = ()
    mount_point: str = ""
    backlog: int = 1024
    nodelay: bool = True
    receive_buffer_bytes: int = 0
    send_buffer_bytes: int = 0
    tcp_keepalive_s: float = 0
    connections_count_max: int = 100_000
    limits: dict[str, Any] | None = None
    """Keys of [limits]."""


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    target: str = "stderr"
    """stderr, syslog or a path."""
    connections: bool = True
    """One line a connect and disconnect."""


class StoreConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str | None = None
    """The file that sessions, retained messages and Wills are kept in; None: in memory only, and a restart forgets them."""


class OverflowConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    filter: str
    rule: Overflow


class AccessConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of an ACL file. user: None means clients without a user name, or for a topic with %u or %c everybody."""

    user: str | None = None
    topic: str
    may: May


class _Top(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys above the first [table]."""

    allow_anonymous: bool | None = None
    password_file: str | None = None
    acl_file: str | None = None
    client_ids: tuple[str, ...] | None = None
    username_as_client_id: bool = False
    shutdown_grace_s: float = 5
    sys_interval_s: float = 10


S = TypeVar("S", bound=Struct)

DEFAULT_LISTENERS: Final = (Listener(host="localhost"),)
"""127.0.0.1:1883, and [::1]:1883 where the machine has IPv6."""


class Config(Struct, frozen=True, kw_only=True):
    """All settings of a broker. listeners: none written means this machine only, port 1883. allow_anonymous: None allows clients without
    authentication while every listener is loopback or Unix and there are no password file and no tokens. password_file, acl_file: paths of
    Mosquitto's. jwt: tokens (`broker.auth.tokens.Jwt`); None takes none. client_ids: patterns of the Client Identifiers that may come, "%u-*";
    username_as_client_id: each is called as its user. banned: who may not come in (`broker.auth.bans.Ban`). access: rules after those of acl_file.
    overflow: (Topic Filter, rule), the first match counts. limits: `Limits`. limits_for: (user name, what differs for that user). log: where the
    command's log goes; in a program only its `connections` counts. store: where what outlives a restart is kept. shutdown_grace_s: how long clients
    get what is queued for them when it ends. sys_interval_s: between two rounds of $SYS/broker/..., 0 is off. Made by `load` and `from_dict`."""

    listeners: tuple[Listener, ...] = DEFAULT_LISTENERS
    limits: Limits = Limits()
    limits_for: UserLimits = ()
    log: LogConfig = LogConfig()
    store: StoreConfig = StoreConfig()
    overflow: tuple[OverflowConfig, ...] = ()
    access: tuple[AccessConfig, ...] = ()
    allow_anonymous: bool | None = None
    password_file: str | None = None
    acl_file: str | None = None
    jwt: Jwt | None = None
    client_ids: tuple[str, ...] | None = None
    username_as_client_id: bool = False
    banned: tuple[Ban, ...] = ()
    shutdown_grace_s: float = 5
    sys_interval_s: float = 10

    @classmethod
    def load(cls, path: str | PathLike[str], *, env: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file. env: by default this process's environment. ConfigError names every mistake; relative paths start at the file."""
        source = os.fspath(path)
        try:
            data = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))  # Windows' editors put a byte order mark first
        except OSError as error:
            raise ConfigError([("", f"cannot be read: {os.strerror(error.errno).lower() if error.errno else error}")], source) from None
        except UnicodeDecodeError as error:
            raise ConfigError([("", f"is not UTF-8 at byte {error.start}")], source) from None
        except tomllib.TOMLDecodeError as error:
            advice = "; from a mosquitto.conf to TOML: config/mosquitto-migration.md" if source.endswith(".conf") else ""
            raise ConfigError([("", f"is not TOML: {error}{advice}")], source) from None
        except RecursionError:
            raise ConfigError([("", "is nested too deep")], source) from None
        return cls._read(data, os.environ if env is None else env, source, Path(path).absolute().parent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, env: Mapping[str, str] | None = None) -> Self:
        """The same keys as the TOML; env: by default none, `os.environ` for the variables of a process. ConfigError."""
        return cls._read(data, {} if env is None else env, "config", None)

    def replaced(
        self, *, listeners: Sequence[Listener] | None = None, allow_anonymous: bool | None = None, store: str | PathLike[str] | None = None
    ) -> Self:
        """With what a command line says instead; None leaves what is there."""
        changes: dict[str, Any] = {}
        if listeners is not None:
            changes["listeners"] = tuple(listeners)
        if allow_anonymous is not None:
            changes["allow_anonymous"] = allow_anonymous
        if store is not None:
            changes["store"] = StoreConfig(path=os.fspath(store))
        return msgspec.structs.replace(self, **changes)

    @classmethod
    def _read(cls, data: Mapping[str, Any], env: Mapping[str, str], source: str, folder: Path | None) -> Self:
        problems: Problems = []
        tables = _with_environment(data, env, problems)
        limits = _table(Limits, tables.pop("limits", {}), "limits", problems)
        log = _table(LogConfig, tables.pop("log", {}), "log", problems)
        store = _table(StoreConfig, tables.pop("store", {}), "store", problems)
        listeners = _tables(ListenerConfig, tables.pop("listeners", []), "listeners", problems)
        overflow = _tables(OverflowConfig, tables.pop("overflow", []), "overflow", problems)
        access = _tables(AccessConfig, tables.pop("access", []), "access", problems)
        limits_for = _limits_for(tables.pop("limits_for", []), limits or Limits(), problems)
        banned = _tables(Ban, tables.pop("banned", []), "banned", problems)
        problems += [(f"{place}.{fault[0]}".rstrip("."), fault[1]) for place, ban in banned if (fault := ban_fault(ban)) is not None]
        jwt = _jwt(tables.pop("jwt", None), folder, "jwt", problems)
        top = _table(_Top, tables, "", problems)
        if log is not None and not log.target:
            problems.append(("log.target", 'expected stderr, syslog or a path, got ""'))
        if store is not None and store.path == "":
            problems.append(("store.path", 'expected the path of a file, got ""; without a path nothing is kept'))
        if limits is not None:
            problems += limit_faults(limits)
        if top is not None:
            _check_not_negative("", {"shutdown_grace_s": top.shutdown_grace_s, "sys_interval_s": top.sys_interval_s}, problems)
        _check_filters([(place, rule.filter) for place, rule in overflow], "filter", problems)
        _check_filters([(place, rule.topic) for place, rule in access], "topic", problems)
        opened = _listeners(listeners, limits or Limits(), folder, problems)
        if top is not None:
            problems += [("client_ids", fault) for fault in map(pattern_fault, top.client_ids or ()) if fault is not None]
            _check_file(load_passwords, _at(folder, top.password_file), "password_file", problems)
            _check_file(load_rules, _at(folder, top.acl_file), "acl_file", problems)
        if problems or top is None or limits is None or log is None or store is None:
            said_by = _variables(env)
            raise ConfigError([(key, f"{text} (set by {said_by[key]})" if key in said_by else text) for key, text in problems], source)
        if folder is not None and log.target not in ("stderr", "syslog"):
            log = msgspec.structs.replace(log, target=str(folder / log.target))
        return cls(
            listeners=opened or DEFAULT_LISTENERS,
            limits=limits,
            limits_for=limits_for,
            log=log,
            store=StoreConfig(path=_at(folder, store.path)),
            overflow=tuple(rule for _, rule in overflow),
            access=tuple(rule for _, rule in access),
            allow_anonymous=top.allow_anonymous,
            password_file=_at(folder, top.password_file),
            acl_file=_at(folder, top.acl_file),
            jwt=jwt,
            client_ids=top.client_ids,
            username_as_client_id=top.username_as_client_id,
            banned=tuple(ban for _, ban in banned),
            shutdown_grace_s=top.shutdown_grace_s,
            sys_interval_s=top.sys_interval_s,
        )


# ---- tables, key by key, so that every mistake is found ---------------------------------------------------------------


def _table(kind: type[S], data: Any, path: str, problems: Problems) -> S | None:
    """A struct from what is right in one table; None if that is not enough for one. Mistakes go to `problems`."""
    if not isinstance(data, Mapping):
        problems.append((path, f"expected a table, got {_kind_of(data)}"))
        return None
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    known = _known(fields, data, path, problems)
    required = [name for name, field in fields.items() if field.required]
    problems.extend((f"{path}.{name}", "is missing") for name in required if name not in data)
    return kind(**known) if all(name in known for name in required) else None


def _known(fields: Mapping[str, FieldInfo], data: Mapping[str, Any], path: str, problems: Problems) -> dict[str, Any]:
    """What is right in one table."""
    known: dict[str, Any] = {}
    for key, value in data.items():
        place = f"{path}.{key}" if path else str(key)
        if key not in fields:
            problems.append((place, _unknown(str(key), [*fields, *([] if path else _TABLES)])))
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


def _overrides(data: Any, limits: Limits, path: str, misplaced: Mapping[str, str], problems: Problems) -> LimitOverrides:
    """Keys of [limits] in another table, to be laid over it. misplaced: those that mean nothing there, and why."""
    if not isinstance(data, Mapping):
        problems.append((path, f"expected a table, got {_kind_of(data)}"))
        return LimitOverrides()
    fields = {field.name: field for field in msgspec.structs.fields(Limits) if field.name not in misplaced}
    problems.extend((f"{path}.{name}", text) for name, text in misplaced.items() if name in data)
    known = _known(fields, {key: value for key, value in data.items() if key not in misplaced}, path, problems)
    overrides = LimitOverrides(**known)
    problems += limit_faults(overrides.over(limits), path, overrides.names)
    return overrides


def _limits_for(data: Any, limits: Limits, problems: Problems) -> UserLimits:
    """[[limits_for]], one entry a user."""
    if not isinstance(data, list):
        problems.append(("limits_for", f"expected a list of tables ([[limits_for]]), got {_kind_of(data)}"))
        return ()
    found: dict[str, LimitOverrides] = {}
    for index, entry in enumerate(data):
        place = f"limits_for[{index}]"
        users: Any = None
        if isinstance(entry, Mapping):
            users = entry.get("users")
            entry = {key: value for key, value in entry.items() if key != "users"}
            if not isinstance(users, list) or not users or not all(isinstance(name, str) for name in users):
                got = "is missing" if users is None else f"expected a list of user names, got {_kind_of(users)}"
                problems.append((f"{place}.users", got))
                users = None
        overrides = _overrides(entry, limits, place, _NOT_OF_USERS, problems)
        for name in users or ():
            if name in found:
                problems.append((f"{place}.users", f'"{name}" has limits already'))
            found.setdefault(name, overrides)
    return tuple(found.items())


def _tables(kind: type[S], data: Any, path: str, problems: Problems) -> list[tuple[str, S]]:
    """(key path, struct) of a list of tables; those with a mistake are left out."""
    if not isinstance(data, list):
        problems.append((path, f"expected a list of tables ([[{path}]]), got {_kind_of(data)}"))
        return []
    found = []
    for index, entry in enumerate(data):
        place = f"{path}[{index}]"
        struct = _table(kind, entry, place, problems)
        if struct is not None:
            found.append((place, struct))
    return found


_HOMES: Final[dict[str, tuple[str, ...]]] = {
    "above the first [table]": _Top.__struct_fields__,
    "in [[listeners]]": ListenerConfig.__struct_fields__,
    "in [listeners.tls]": TlsFiles.__struct_fields__,
    "in [[listeners.tls.names]]": TlsName.__struct_fields__,
    "in [limits]": Limits.__struct_fields__,
    "in [log]": LogConfig.__struct_fields__,
    "in [store]": StoreConfig.__struct_fields__,
    "in [[overflow]]": OverflowConfig.__struct_fields__,
    "in [[access]]": AccessConfig.__struct_fields__,
    "in [[banned]]": Ban.__struct_fields__,
    "in [jwt]": Jwt.__struct_fields__,
    "in [[limits_for]]": ("users",),
}
"""A key whose table's line is still a comment lands in the table before it."""


def _unknown(key: str, known: Sequence[str]) -> str:
    homes = [home for home, keys in _HOMES.items() if key in keys]
    if homes:
        longer = next((name for name in known if key in name), None)  # "user" is a key of [[access]], and "username" of [[banned]]
        return f"unknown key here; it belongs {' or '.join(homes)}" + (f"; or did you mean {longer}?" if longer else "")
    near = difflib.get_close_matches(key, known, 1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; expected one of {', '.join(sorted(known))}"


def _expected(text: str, wanted: Any, value: Any) -> str:
    """msgspec's words as ours: what was expected, what was found."""
    if get_origin(wanted) is Literal:
        return f"expected {', '.join(get_args(wanted))}, got {_kind_of(value)}"
    if text.startswith("Expected `"):
        names = [_NAMES.get(name, name) for name in text.split("`")[1].split(" | ") if name != "null"]
        if "`$[" in text:
            return f"expected a list of nothing but {' or '.join(names)}"
        return f"expected {' or '.join(names)}, got {_kind_of(value)}"
    return text[:1].lower() + text[1:].replace("`", "")


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else "text"
    return "a table" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else type(value).__name__


# ---- what a type cannot say ---------------------------------------------------------------------------------------------


def _check_not_negative(path: str, values: Mapping[str, float], problems: Problems) -> None:
    problems.extend((f"{path}{key}", f"expected 0 or more, got {value}") for key, value in values.items() if not value >= 0)


def _check_filters(filters: Sequence[tuple[str, str]], key: str, problems: Problems) -> None:
    for place, filter in filters:
        fault = topic_filter_fault(filter)
        if fault is not None:
            problems.append((f"{place}.{key}", fault))


def _at(folder: Path | None, path: str | None) -> str | None:
    """Relative paths start at the file."""
    return path if path is None or folder is None else str(folder / path)


def _check_file(load: Callable[[str], object], path: str | None, place: str, problems: Problems) -> None:
    """What the broker will read when it starts is a part of its configuration."""
    if path is None:
        return
    try:
        load(path)
    except ConfigError as error:
        problems += [(place, f"{path}: {where}: {expected}" if where else f"{path} {expected}") for where, expected in error.problems]


def _tls(data: dict[str, Any] | None, folder: Path | None, protocol: str, place: str, problems: Problems) -> TlsFiles | None:
    """None for none, and for one with a mistake."""
    if data is None:
        return None
    names = _tables(TlsName, data.get("names", []), f"{place}.names", problems)
    files = _table(TlsFiles, {key: value for key, value in data.items() if key != "names"}, place, problems)
    if files is None or set(data) - set(files.__struct_fields__):
        return None
    paths = {name: _at(folder, getattr(files, name)) for name in ("certificate", "key", "client_ca", "crl")}
    others = [msgspec.structs.replace(name, certificate=_at(folder, name.certificate), key=_at(folder, name.key)) for _, name in names]
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


def _jwt(data: Any, folder: Path | None, place: str, problems: Problems) -> Jwt | None:
    """None for none, and for one with a mistake."""
    if data is None:
        return None
    before = len(problems)
    jwt = _table(Jwt, data, place, problems)
    if jwt is None or len(problems) > before:
        return None
    jwt = msgspec.structs.replace(jwt, key_file=_at(folder, jwt.key_file), jwks_file=_at(folder, jwt.jwks_file))
    try:
        load_tokens(jwt)
    except ConfigError as error:
        problems += [(f"{place}.{key}" if key else place, expected) for key, expected in error.problems]
    return jwt


def _listeners(found: Sequence[tuple[str, ListenerConfig]], limits: Limits, folder: Path | None, problems: Problems) -> tuple[Listener, ...]:
    listeners = []
    for place, entry in found:
        unix = entry.unix
        if unix is not None and folder is not None:
            unix = str(folder / unix)
        passwords, rules = _at(folder, entry.password_file), _at(folder, entry.acl_file)
        _check_file(load_passwords, passwords, f"{place}.password_file", problems)
        _check_file(load_rules, rules, f"{place}.acl_file", problems)
        tls = _tls(entry.tls, folder, entry.protocol, f"{place}.tls", problems)
        own = LimitOverrides() if entry.limits is None else _overrides(entry.limits, limits, f"{place}.limits", _NOT_OF_LISTENERS, problems)
        jwt = _jwt(entry.jwt, folder, f"{place}.jwt", problems)
        files = {"unix": unix, "password_file": passwords, "acl_file": rules, "tls": tls, "jwt": jwt}
        fields = msgspec.structs.asdict(entry) | files | {"limits": own}
        for key in ("host", "port"):
            if (fields[key] is None or unix is not None) and fields.pop(key) is not None:
                problems.append((f"{place}.{key}", NOT_WITH_UNIX))
        listener = Listener(**fields)
        for fault in check(listener):
            key, _, text = fault.partition(": ")
            problems.append((f"{place}.{key}", text))
        listeners.append(listener)
    return tuple(listeners)


# ---- the environment ------------------------------------------------------------------------------------------------------


def _with_environment(data: Mapping[str, Any], env: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    """A copy of the tables with BROKER__A__0__B=value put at a[0].b; other variables are not ours."""
    copied: dict[str, Any] = _copied(data)
    for name in sorted(env):
        if name.startswith(ENV_PREFIX):
            steps = name[len(ENV_PREFIX) :].lower().split("__")
            fault = _put(copied, steps, _value(steps[-1], env[name]))
            if fault:
                problems.append((name, fault))
    return copied


def _variables(env: Mapping[str, str]) -> dict[str, str]:
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


_TEXT_KEYS: Final = {"certificate", "filter", "rule", "topic", "may"} | {
    field.name
    for kind in (_Top, ListenerConfig, TlsFiles, TlsName, LogConfig, StoreConfig, OverflowConfig, AccessConfig, Jwt, Ban)
    for field in msgspec.structs.fields(kind)
    if isinstance(field.default, str) or field.type == str | None
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
