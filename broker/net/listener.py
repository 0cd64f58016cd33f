"""What is said about one place to listen: by a program, by the config file, by a URL; and what is wrong with it in itself."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import ssl
import stat
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from broker.auth.client_ids import pattern_fault
from broker.auth.tokens import Jwt
from broker.core.allowance import LimitOverrides
from broker.core.mount import mount_point_fault
from broker.errors import ConfigError
from broker.net.origins import origin_fault
from broker.net.proxy_protocol import trust_fault
from broker.net.tls import TlsFiles
from broker.net.unix import HAS_UNIX, PATH_BYTES_MAX, parse_mode, parse_owner
from broker.net.websocket_path import PATH

PAGE_CONNECTIONS_MAX: Final = 32
"""Of a listener with protocol = "http" or "control"."""
NOT_WITH_HTTP: Final = (
    "path", "origins", "password_file", "acl_file", "jwt", "client_ids", "username_as_client_id", "proxy_protocol_from", "mount_point", "limits",
)  # fmt: skip
"""What is about MQTT."""
NOT_WITH_UNIX: Final = "a listener has unix, or host and port; make two of them, or leave this one out"
_RANGES: Final[dict[str, tuple[int, int]]] = {
    "receive_buffer_bytes": (0, 2**31 - 1),
    "send_buffer_bytes": (0, 2**31 - 1),
    "tcp_keepalive_s": (0, 32_767),  # the most that Linux takes
    "backlog": (1, 2**31 - 1),
    "connections_count_max": (1, 2**31 - 1),
}


class Listener(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place to listen.

    host: a name or address; "localhost" is 127.0.0.1, and ::1 where the machine has it; "*" is every interface. port: 0
    asks for a free one, the same on every address of the host. unix: a path, instead of host and port. unix_mode: the
    permissions of that path, "0660". unix_owner: whose it is, "user", "user:group" or ":group", names or numbers; None: this process's.
    systemd: the name of sockets that systemd hands over, instead of host, port and unix; only `broker serve` fills it in. descriptor: of a
    stream socket that listens already and becomes the broker's own; where that is, it says itself.
    protocol, path: "websocket" is MQTT over WebSocket, at this path of the URL; "/mqtt" also at "/". "http" is no MQTT, but what the broker tells
    of itself, at /metrics and /health: to everybody who comes, since nobody is asked for a password there. "control" is for whoever runs it: who is
    here, throw them out, ban them (docs/operating.md); to whoever may open its Unix socket, or shows the certificate that its tls requires.
    unix_mode: None is "0660", and for "control" "0600". origins: of the web pages that may use it,
    as browsers write them, ("https://dashboard.example",), "*" is any; None: any where there are passwords or allow_anonymous is written,
    else those of this machine. tls: over the socket;
    from `TlsFiles` the certificates are read anew when they change. allow_anonymous: overrides the broker's; False refuses a CONNECT
    without user name before anybody is asked. password_file, acl_file: Mosquitto's, instead of the broker's; jwt: likewise, and with a
    password_file or jwt of its own it uses neither of the broker's. client_ids, username_as_client_id: instead of the broker's.
    proxy_protocol_from: addresses, networks ("10.0.0.0/8") and "unix", from which connections begin with HAProxy's PROXY header, v1 or v2, and
    are those of whom it names; others are served as themselves. mount_point: "factory1/" is put before every topic that a client of this
    listener says, and taken off what it is sent; rules and hooks see the whole. backlog is capped by
    the system. nodelay: TCP_NODELAY. receive_buffer_bytes, send_buffer_bytes, tcp_keepalive_s: 0 leaves the system's.
    connections_count_max: more are closed at once; of "http" and "control" there are PAGE_CONNECTIONS_MAX at most.
    limits: what differs from [limits] for those who come in here, `LimitOverrides(packet_bytes_max=65_536)`.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    unix: str | None = None
    unix_mode: str | None = None
    unix_owner: str | None = None
    systemd: str | None = None
    descriptor: int | None = None
    protocol: Literal["mqtt", "websocket", "http", "control"] = "mqtt"
    path: str = PATH
    origins: tuple[str, ...] | None = None
    tls: ssl.SSLContext | TlsFiles | None = None
    allow_anonymous: bool | None = None
    password_file: str | None = None
    acl_file: str | None = None
    jwt: Jwt | None = None
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
    limits: LimitOverrides = LimitOverrides()

    def __post_init__(self) -> None:
        if self.origins is not None and not isinstance(self.origins, tuple):  # a text would be a list of letters, and a list has no hash
            raise TypeError('origins is a tuple: origins=("https://dashboard.example",)')
        if not isinstance(self.proxy_protocol_from, tuple):
            raise TypeError('proxy_protocol_from is a tuple: proxy_protocol_from=("10.0.0.0/8",)')

    @property
    def url(self) -> str:
        """As it was asked for; the real ports are in `Broker.urls`."""
        if self.systemd is not None and self.descriptor is None:
            return f"systemd:{self.systemd}"
        if self.unix is not None:
            return f"unix://{self.unix}"
        return self.url_at(self.host, self.port)

    def url_at(self, host: str, port: int) -> str:
        """ "mqtt://127.0.0.1:1883", "wss://[::1]:443/mqtt", "http://127.0.0.1:9883"."""
        if self.protocol == "websocket":
            return f"{'ws' if self.tls is None else 'wss'}://{url_host(host)}:{port}{self.path}"
        scheme = "http" if self.protocol == "control" else self.protocol
        return f"{scheme}{'' if self.tls is None else 's'}://{url_host(host)}:{port}"

    @property
    def speaks_mqtt(self) -> bool:
        """Do clients come there?"""
        return self.protocol in ("mqtt", "websocket")

    @property
    def asks_certificate(self) -> bool:
        """Does its TLS let nobody in without one?"""
        tls = self.tls
        return tls is not None and (tls.require_certificate if isinstance(tls, TlsFiles) else tls.verify_mode is ssl.CERT_REQUIRED)

    @property
    def mode(self) -> int:
        """Of the path of its Unix socket. ValueError."""
        return parse_mode(self.unix_mode or ("0600" if self.protocol == "control" else "0660"))

    @property
    def is_private(self) -> bool:
        """Reached from this machine only: a Unix socket or a loopback address, and no proxy that brings others there.

        What systemd will hand over is not known before it has.
        """
        if self.systemd is not None and self.descriptor is None:
            return True
        return not self.proxy_protocol_from and (self.unix is not None or is_loopback(self.host))


DEFAULT: Final = Listener()


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_listener(text: str) -> Listener:
    """ "mqtt://127.0.0.1:1883", "mqtt://[::1]:0", "ws://127.0.0.1:8080/mqtt", "http://127.0.0.1:9883" or "unix:///run/mqtt.sock". ConfigError for
    anything else."""
    try:
        parts = urlsplit(text)
    except ValueError:  # its words repeat what may be a password
        raise ConfigError([("", "the host of a listener's URL is none; IPv6 is written mqtt://[::1]:1883")], "listener") from None
    if "@" in parts.netloc:  # not repeated: it may hold a password
        raise ConfigError([("", "a user name in a listener's URL means nothing; use mqtt://host:port")], "listener")
    if parts.scheme == "unix":
        path = unquote(parts.netloc + parts.path)
        if not path.startswith("/"):
            raise ConfigError([("", f"expected unix:///absolute/path, got {text!r}")], "listener")
        return Listener(unix=path)
    if parts.scheme not in ("mqtt", "ws", "http"):
        what = "expected mqtt://host:port, ws://host:port/path, http://host:port or unix:///absolute/path"
        if parts.scheme in ("mqtts", "wss", "https"):
            what = "a URL has no certificate: use Listener(tls=...)"
        raise ConfigError([("", f"{text!r}: {what}")], "listener")
    try:
        port = parts.port
    except ValueError:
        raise ConfigError([("", f"{text!r}: the port is not a number from 0 to 65535")], "listener") from None
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError([("", f"expected mqtt://host:port, ws://host:port/path or http://host:port, got {text!r}")], "listener")
    if parts.scheme == "ws":
        return Listener(host=unquote(parts.hostname), port=80 if port is None else port, protocol="websocket", path=parts.path or PATH)
    if parts.path not in ("", "/"):
        raise ConfigError([("", f"expected {parts.scheme}://host:port, got {text!r}")], "listener")
    if parts.scheme == "http":
        return Listener(host=unquote(parts.hostname), port=80 if port is None else port, protocol="http")
    return Listener(host=unquote(parts.hostname), port=1883 if port is None else port)


def check(listener: Listener) -> list[str]:
    """What is wrong with a listener in itself; empty when nothing is."""
    faults = []
    if not re.fullmatch(r"/[!$%-.0-;=@-Z_a-z~/]*", listener.path):
        faults.append(f"path: expected the path of a URL, as /mqtt, got {listener.path!r}")
    if not listener.speaks_mqtt:
        faults += _page_faults(listener)
    elif listener.origins is not None and listener.protocol != "websocket":
        faults.append('origins: means something only with protocol = "websocket"')
    if listener.protocol == "mqtt" and listener.path != PATH:
        faults.append('path: means something only with protocol = "websocket"')
    fault = mount_point_fault(listener.mount_point)
    if fault is not None:
        faults.append(f"mount_point: {fault}")
    faults += [f"client_ids: {fault}" for fault in map(pattern_fault, listener.client_ids or ()) if fault is not None]
    faults += [f"proxy_protocol_from: {fault}" for fault in map(trust_fault, listener.proxy_protocol_from) if fault is not None]
    faults += [f"origins: {fault}" for fault in map(origin_fault, listener.origins or ()) if fault is not None]
    numbers = ("port", *_RANGES)
    wrong = [name for name in numbers if isinstance(getattr(listener, name), bool) or not isinstance(getattr(listener, name), (int, float))]
    if wrong:
        return faults + [f"{name}: expected a number, got {getattr(listener, name)!r}" for name in wrong]
    if listener.unix is None and not 0 <= listener.port <= 65_535:
        faults.append(f"port: expected 0 to 65535, got {listener.port}")
    if listener.unix is None and listener.descriptor is None and not _is_host(listener.host):
        faults.append(f'host: expected a name or an address, without brackets and port, or "*" for every interface, got {listener.host!r}')
    if listener.systemd is not None:
        if not re.fullmatch(r"[!-9;-~]{1,255}", listener.systemd):
            faults.append(f"systemd: expected the name of a socket, FileDescriptorName= or that of the .socket unit, got {listener.systemd!r}")
        if listener.descriptor is None and (listener.unix is not None or (listener.host, listener.port) != (DEFAULT.host, DEFAULT.port)):
            faults.append("systemd: is instead of host, port and unix")
    if listener.unix is not None:
        faults += [f"{name}: {NOT_WITH_UNIX}" for name in ("host", "port") if getattr(listener, name) != getattr(DEFAULT, name)]
        if not listener.unix:
            faults.append("unix: expected the path of a socket, got ''")
        elif not HAS_UNIX:
            faults.append("unix: this system has no Unix sockets")
        elif len(os.fsencode(listener.unix)) > PATH_BYTES_MAX:
            faults.append(f"unix: the path is longer than {PATH_BYTES_MAX} bytes, which the system does not take")
    try:
        _ = listener.mode
    except ValueError as error:
        faults.append(f"unix_mode: {error}")
    if listener.unix_owner is not None and HAS_UNIX:
        if listener.unix is None:
            faults.append("unix_owner: means something only with unix")
        try:
            parse_owner(listener.unix_owner)
        except ValueError as error:
            faults.append(f"unix_owner: {error}")
    for name, (least, most) in _RANGES.items():
        value = getattr(listener, name)
        if not least <= value <= most:
            wanted = f"{least} or more" if value < least else f"{least} to {most:,}"
            faults.append(f"{name}: expected {wanted}, got {value if isinstance(value, float) or value < 1 << 64 else 'far more'}")
    return faults


def _page_faults(listener: Listener) -> list[str]:
    wrong = [name for name in NOT_WITH_HTTP if getattr(listener, name) != getattr(DEFAULT, name)]
    faults = [f'{name}: means nothing with protocol = "{listener.protocol}", where no MQTT is spoken' for name in wrong]
    if isinstance(listener.tls, TlsFiles) and listener.tls.identity != "none":
        faults.append(f'tls.identity: means nothing with protocol = "{listener.protocol}"; require_certificate asks for one')
    if listener.protocol == "control":
        return faults + control_faults(listener)
    if importlib.util.find_spec("prometheus_client") is None:
        faults.append("protocol: http needs an extra that is not installed: pip install 'trio-mqtt-broker[metrics]'")
    return faults


def control_faults(listener: Listener) -> list[str]:
    """Whoever comes in at a control listener may do all there is, so nothing that lets in strangers can be written."""
    faults = []
    if listener.allow_anonymous is not None:
        faults.append('allow_anonymous: means nothing with protocol = "control": who may open its Unix socket may come in, and nobody else')
    if listener.unix is not None and listener.unix.startswith("\0" if listener.descriptor is None else "@"):
        faults.append("protocol: control needs a Unix socket that has a path, whose mode says who may open it")
    elif listener.unix is None and not listener.asks_certificate and (listener.systemd is None or listener.descriptor is not None):
        faults.append(
            'protocol: control needs a Unix socket (unix = "/run/broker/control.sock"), whose mode says who may open it, or TLS that requires a '
            "certificate (client_ca, require_certificate): any user of this machine, and any page in a browser, can open a port"
        )
    elif listener.unix is not None and listener.descriptor is not None and _is_open_to_all(listener.unix):
        faults.append(f"protocol: anybody on this machine may open {listener.unix}; SocketMode=0600 in the .socket unit says who may (unset: all)")
    return faults


def _is_open_to_all(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IWOTH)
    except OSError:  # nobody finds it
        return False


def _is_host(host: str) -> bool:
    """Or "*"."""
    if ":" not in host:
        return bool(host) and not any(letter.isspace() or letter in "/@?#[]" for letter in host)
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
