"""The tables of the configuration: their keys, types and defaults."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from broker.auth.acl import May
from broker.bridge.settings import ANSWER_TIMEOUT_S
from broker.net.websocket_path import PATH

Overflow: TypeAlias = Literal["drop-oldest", "drop-newest", "latest", "disconnect", "refuse"]

TABLES: Final = ("listeners", "limits", "limits_for", "log", "store", "overflow", "access", "banned", "bridges", "jwt")
"""Those of the file, beside what stands above the first one (`Top`)."""


class ListenerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[listeners]]; `net.listener.Listener` has the same fields and says what they mean."""

    host: str | None = None
    port: int | None = None
    """None: not written, and then Listener's default, unless there is `unix`."""
    unix: str | None = None
    unix_mode: str | None = None
    unix_owner: str | None = None
    systemd: str | None = None
    protocol: Literal["mqtt", "websocket", "http", "control"] = "mqtt"
    path: str = PATH
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


class BridgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[bridges]]; `bridge.settings.Bridge` has the same fields and says what they mean."""

    name: str
    url: str
    client_id: str | None = None
    username: str | None = None
    password_file: str | None = None
    version: Literal["5.0", "3.1.1"] = "5.0"
    keepalive_s: int = 60
    session_expiry_s: float = math.inf
    fallback_urls: tuple[str, ...] = ()
    answer_timeout_s: float = ANSWER_TIMEOUT_S
    notification_topic: str | None = None
    outgoing_retain: bool = True
    local_address: str | None = None
    auth_method: str | None = None
    tls: dict[str, Any] | None = None
    """`bridge.settings.BridgeTls`."""
    topics: list[Any] | None = None
    """`bridge.settings.BridgeTopic`, one at least."""


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


class Top(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys above the first [table]."""

    allow_anonymous: bool | None = None
    password_file: str | None = None
    acl_file: str | None = None
    client_ids: tuple[str, ...] | None = None
    username_as_client_id: bool = False
    shutdown_grace_s: float = 5
    sys_interval_s: float = 10
