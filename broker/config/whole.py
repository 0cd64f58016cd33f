"""All that a configuration says, from a file or a dict, and every mistake in it told at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from broker.auth.acl import load_rules
from broker.auth.bans import Ban, ban_fault
from broker.auth.client_ids import pattern_fault
from broker.auth.files import read_bounded
from broker.auth.passwords import FILE_BYTES_MAX, load_passwords
from broker.auth.tokens import Jwt
from broker.bridge.settings import Bridge
from broker.config.checks import at, check_file, check_filters, read_bridges, read_jwt, read_limits_for, read_listeners
from broker.config.environment import variables, with_environment
from broker.config.kinds import AccessConfig, BridgeConfig, ListenerConfig, LogConfig, OverflowConfig, StoreConfig, Top
from broker.config.tables import Problems, read_table, read_tables
from broker.core.allowance import UserLimits
from broker.core.limits import Limits
from broker.errors import ConfigError
from broker.net.listener import Listener
from broker.net.settings import SHUTDOWN_GRACE_S, SYS_INTERVAL_S, limit_faults, range_fault
from broker.words import strerror

DEFAULT_LISTENERS: Final = (Listener(host="localhost"),)
"""127.0.0.1:1883, and [::1]:1883 where the machine has IPv6."""

SINGLE_QUOTES: Final = r"a path with \ stands in single quotes: 'C:\broker\store.db'"
_PATH_WITH_ESCAPES: Final = re.compile(r"[A-Za-z]:.*[\x08\t\n\f\r]", re.DOTALL)


class Config(Struct, frozen=True, kw_only=True):
    """All settings of a broker. listeners: none written means this machine only, port 1883. allow_anonymous: None allows clients without
    authentication while every listener is loopback or Unix and there are no password file and no tokens. password_file, acl_file: paths of
    Mosquitto's. jwt: tokens (`broker.auth.tokens.Jwt`); None takes none. client_ids: patterns of the Client Identifiers that may come, "%u-*";
    username_as_client_id: each is called as its user. banned: who may not come in (`broker.auth.bans.Ban`). bridges: to other brokers
    (`broker.Bridge`). access: rules after those of acl_file.
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
    bridges: tuple[Bridge, ...] = ()
    shutdown_grace_s: float = 5
    sys_interval_s: float = 10

    @classmethod
    def load(cls, path: str | PathLike[str], *, env: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file. env: by default this process's environment. ConfigError names every mistake; relative paths start at the file."""
        source = os.fspath(path)
        try:
            text = read_bounded(path, FILE_BYTES_MAX).decode("utf-8-sig")  # Windows' editors put a byte order mark first
        except OSError as error:
            raise ConfigError([("", f"cannot be read: {strerror(error)}")], source) from None
        except UnicodeDecodeError as error:
            raise ConfigError([("", f"is not UTF-8 at byte {error.start}")], source) from None
        except ValueError as error:
            raise ConfigError([("", str(error))], source) from None
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            advice = "; from a mosquitto.conf to TOML: config/mosquitto-migration.md" if source.endswith(".conf") else ""
            if "\\" in text and not advice:
                advice = f"; {SINGLE_QUOTES}"
            raise ConfigError([("", f"is not TOML: {error}{advice}")], source) from None
        except ValueError:
            raise ConfigError([("", "a number in it has more digits than any key takes")], source) from None
        except RecursionError:
            raise ConfigError([("", "is nested too deep")], source) from None
        if problems := list(_with_escapes(data, "")):
            raise ConfigError(problems, source)
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
        tables = with_environment(data, env, problems)
        limits = read_table(Limits, tables.pop("limits", {}), "limits", problems)
        log = read_table(LogConfig, tables.pop("log", {}), "log", problems)
        store = read_table(StoreConfig, tables.pop("store", {}), "store", problems)
        listeners = read_tables(ListenerConfig, tables.pop("listeners", []), "listeners", problems)
        overflow = read_tables(OverflowConfig, tables.pop("overflow", []), "overflow", problems)
        access = read_tables(AccessConfig, tables.pop("access", []), "access", problems)
        limits_for = read_limits_for(tables.pop("limits_for", []), limits or Limits(), problems)
        banned = read_tables(Ban, tables.pop("banned", []), "banned", problems)
        problems += [(f"{place}.{wrong[0]}".rstrip("."), wrong[1]) for place, ban in banned if (wrong := ban_fault(ban)) is not None]
        found = read_tables(BridgeConfig, tables.pop("bridges", []), "bridges", problems)
        jwt = read_jwt(tables.pop("jwt", None), folder, "jwt", problems)
        top = read_table(Top, tables, "", problems)
        if log is not None and not log.target:
            problems.append(("log.target", 'expected stderr, syslog or a path, got ""'))
        if store is not None and store.path == "":
            problems.append(("store.path", 'expected the path of a file, got ""; without a path nothing is kept'))
        if limits is not None:
            problems += limit_faults(limits)
        if top is not None:
            if (fault := range_fault(top.shutdown_grace_s, *SHUTDOWN_GRACE_S)) is not None:
                problems.append(("shutdown_grace_s", fault))
            if top.sys_interval_s != 0 and (fault := range_fault(top.sys_interval_s, *SYS_INTERVAL_S)) is not None:
                problems.append(("sys_interval_s", f"{fault}; 0 is off"))
        check_filters([(place, rule.filter) for place, rule in overflow], "filter", problems)
        check_filters([(place, rule.topic) for place, rule in access], "topic", problems)
        opened = read_listeners(listeners, limits or Limits(), folder, problems)
        bridges = read_bridges(found, opened, folder, problems)
        if top is not None:
            problems += [("client_ids", fault) for fault in map(pattern_fault, top.client_ids or ()) if fault is not None]
            check_file(load_passwords, at(folder, top.password_file), "password_file", problems)
            check_file(load_rules, at(folder, top.acl_file), "acl_file", problems)
        if problems or top is None or limits is None or log is None or store is None:
            said_by = variables(env)
            raise ConfigError([(key, f"{text} (set by {said_by[key]})" if key in said_by else text) for key, text in problems], source)
        if folder is not None and log.target not in ("stderr", "syslog"):
            log = msgspec.structs.replace(log, target=str(folder / log.target))
        return cls(
            listeners=opened or DEFAULT_LISTENERS,
            limits=limits,
            limits_for=limits_for,
            log=log,
            store=StoreConfig(path=at(folder, store.path)),
            overflow=tuple(rule for _, rule in overflow),
            access=tuple(rule for _, rule in access),
            allow_anonymous=top.allow_anonymous,
            password_file=at(folder, top.password_file),
            acl_file=at(folder, top.acl_file),
            jwt=jwt,
            client_ids=top.client_ids,
            username_as_client_id=top.username_as_client_id,
            banned=tuple(ban for _, ban in banned),
            bridges=bridges,
            shutdown_grace_s=top.shutdown_grace_s,
            sys_interval_s=top.sys_interval_s,
        )


def _with_escapes(found: object, place: str) -> Iterator[tuple[str, str]]:
    """Paths of Windows that TOML has read otherwise than they are written: in "C:\\temp" it finds a tab."""
    if isinstance(found, str) and _PATH_WITH_ESCAPES.match(found):
        yield place, f"expected a path, got {found!r}; {SINGLE_QUOTES}"
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _with_escapes(value, f"{place}.{key}" if place else key)
    elif isinstance(found, list):
        for index, value in enumerate(found):
            yield from _with_escapes(value, f"{place}[{index}]")
