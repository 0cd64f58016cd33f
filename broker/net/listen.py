"""Where to listen: what a Listener says, and the sockets it becomes. All addresses of all listeners are bound, or none stay open.

An address that could not be bound is the first thing a newcomer meets, so each failure is one line that names the address
and says what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import os
import re
import socket
import ssl
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec
import trio
from msgspec import Struct

from broker.auth.client_ids import pattern_fault
from broker.auth.tokens import Jwt
from broker.core.allowance import LimitOverrides
from broker.core.mount import mount_point_fault
from broker.errors import ConfigError, ListenError
from broker.net.origins import origin_fault
from broker.net.proxy_protocol import trust_fault
from broker.net.tls import TlsFiles
from broker.net.transport import set_options, strerror
from broker.net.unix import bind_unix, parse_mode, parse_owner, shown_name

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.net.locks import Lock

PORT_ZERO_ATTEMPTS_MAX: Final = 50
_HAS_UNIX: Final = hasattr(socket, "AF_UNIX")
HANDS_DOWN: Final = sys.platform == "linux"
"""Whether an accepted socket has the options of the one that listens, all of them. (Two system calls for each connection are saved.)"""


class Listener(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place to listen.

    host: a name or address; "localhost" is 127.0.0.1, and ::1 where the machine has it; "*" is every interface. port: 0
    asks for a free one, the same on every address of the host. unix: a path, instead of host and port. unix_mode: the
    permissions of that path, "0660". unix_owner: whose it is, "user", "user:group" or ":group", names or numbers; None: this process's.
    systemd: the name of sockets that systemd hands over, instead of host, port and unix; only `broker serve` fills it in. descriptor: of a
    stream socket that listens already and becomes the broker's own; where that is, it says itself.
    protocol, path: MQTT over WebSocket, at this path of the URL. origins: of the web pages that may use it,
    as browsers write them, ("https://dashboard.example",), "*" is any; None: any where there are passwords or allow_anonymous is written,
    else those of this machine. tls: over the socket;
    from `TlsFiles` the certificates are read anew when they change. allow_anonymous: overrides the broker's; False refuses a CONNECT
    without user name before anybody is asked. password_file, acl_file: Mosquitto's, instead of the broker's; jwt: likewise, and with a
    password_file or jwt of its own it uses neither of the broker's. client_ids, username_as_client_id: instead of the broker's.
    proxy_protocol_from: addresses, networks ("10.0.0.0/8") and "unix", from which connections begin with HAProxy's PROXY header, v1 or v2, and
    are those of whom it names; others are served as themselves. mount_point: "factory1/" is put before every topic that a client of this
    listener says, and taken off what it is sent; rules and hooks see the whole. backlog is capped by
    the system. nodelay: TCP_NODELAY. receive_buffer_bytes, send_buffer_bytes, tcp_keepalive_s: 0 leaves the system's.
    connections_count_max: more are closed at once.
    limits: what differs from [limits] for those who come in here, `LimitOverrides(packet_bytes_max=65_536)`.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    unix: str | None = None
    unix_mode: str = "0660"
    unix_owner: str | None = None
    systemd: str | None = None
    descriptor: int | None = None
    protocol: Literal["mqtt", "websocket"] = "mqtt"
    path: str = "/mqtt"
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
        """ "mqtt://127.0.0.1:1883", "wss://[::1]:443/mqtt"."""
        if self.protocol == "websocket":
            return f"{'ws' if self.tls is None else 'wss'}://{url_host(host)}:{port}{self.path}"
        return f"{'mqtt' if self.tls is None else 'mqtts'}://{url_host(host)}:{port}"

    @property
    def is_private(self) -> bool:
        """Reached from this machine only: a Unix socket or a loopback address, and no proxy that brings others there.

        What systemd will hand over is not known before it has.
        """
        if self.systemd is not None and self.descriptor is None:
            return True
        return not self.proxy_protocol_from and (self.unix is not None or is_loopback(self.host))


_DEFAULT: Final = Listener()
NOT_WITH_UNIX: Final = "a listener has unix, or host and port; make two of them, or leave this one out"
_RANGES: Final[dict[str, tuple[int, float]]] = {
    "receive_buffer_bytes": (0, 2**31 - 1),
    "send_buffer_bytes": (0, 2**31 - 1),
    "tcp_keepalive_s": (0, 32_767),  # the most that Linux takes
    "backlog": (1, 2**31 - 1),
    "connections_count_max": (1, math.inf),
}


class ListeningSocket(socket.socket):
    """Takes a socket over. `accept` asks its socket for family and type, which are made members of an enum anew each time: a third of
    its cost, in Python. Here they are numbers."""

    family = type = 0  # type: ignore[assignment]

    def __init__(self, listening: socket.socket) -> None:
        family, kind = int(listening.family), int(listening.type)
        super().__init__(family, kind, listening.proto, listening.detach())
        self.setblocking(False)
        self.family, self.type = family, kind


class BoundSocket:
    """A listening, non-blocking socket of one Listener, and how many of its connections are open."""

    __slots__ = (
        "access", "address", "allowance", "connections_count", "family", "inode", "is_tcp", "listener", "lock", "origins", "socket", "tls", "url",
    )  # fmt: skip

    def __init__(self, listening: socket.socket, listener: Listener, url: str, inode: tuple[int, int] | None = None) -> None:
        self.socket = ListeningSocket(listening)
        self.family: int = self.socket.family
        self.is_tcp = self.family in (socket.AF_INET, socket.AF_INET6)
        if self.is_tcp and HANDS_DOWN:
            set_options(self.socket, nodelay=listener.nodelay, tcp_keepalive_s=listener.tcp_keepalive_s)
        self.listener = listener
        self.url = url
        self.address = url.partition("://")[2]
        self.inode = inode
        """Device and inode of the Unix path that we made."""
        self.connections_count = 0
        # Given by whoever knows the configuration, and anew when it changes.
        self.tls = listener.tls if isinstance(listener.tls, ssl.SSLContext) else None
        self.lock: Lock | None = None
        self.origins = listener.origins
        """None: pages of this machine."""
        self.access: Access | None = None
        """None: what holds for all."""
        self.allowance: Allowance | None = None
        """Likewise."""

    def use(self, listener: Listener) -> None:
        """What it says anew, for those who come from now on."""
        before, self.listener = self.listener, listener
        if not (self.is_tcp and HANDS_DOWN) or self.socket.fileno() < 0:  # not ours to set, or closed: the broker is ending
            return
        if (before.nodelay, before.tcp_keepalive_s) != (listener.nodelay, listener.tcp_keepalive_s):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            set_options(self.socket, nodelay=listener.nodelay, tcp_keepalive_s=listener.tcp_keepalive_s)

    def close(self) -> None:
        """Stop listening; a Unix path goes too, unless somebody has put another there since."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        if self.inode is not None and self.listener.unix is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.listener.unix)
                if (found.st_dev, found.st_ino) == self.inode:
                    os.unlink(self.listener.unix)
            self.inode = None


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
    """ "mqtt://127.0.0.1:1883", "mqtt://[::1]:0", "ws://127.0.0.1:8080/mqtt" or "unix:///run/mqtt.sock". ConfigError for anything else."""
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
    if parts.scheme not in ("mqtt", "ws"):
        what = "expected mqtt://host:port, ws://host:port/path or unix:///absolute/path"
        if parts.scheme in ("mqtts", "wss"):
            what = "a URL has no certificate: use Listener(tls=...)"
        raise ConfigError([("", f"{text!r}: {what}")], "listener")
    try:
        port = parts.port
    except ValueError:
        raise ConfigError([("", f"{text!r}: the port is not a number from 0 to 65535")], "listener") from None
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError([("", f"expected mqtt://host:port or ws://host:port/path, got {text!r}")], "listener")
    if parts.scheme == "ws":
        return Listener(host=unquote(parts.hostname), port=80 if port is None else port, protocol="websocket", path=parts.path or "/")
    if parts.path not in ("", "/"):
        raise ConfigError([("", f"expected mqtt://host:port, got {text!r}")], "listener")
    return Listener(host=unquote(parts.hostname), port=1883 if port is None else port)


def check(listener: Listener) -> list[str]:
    """What is wrong with a listener in itself; empty when nothing is."""
    faults = []
    if not re.fullmatch(r"/[!$%-.0-;=@-Z_a-z~/]*", listener.path):
        faults.append(f"path: expected the path of a URL, as /mqtt, got {listener.path!r}")
    if listener.origins is not None and listener.protocol != "websocket":
        faults.append('origins: means something only with protocol = "websocket"')
    fault = mount_point_fault(listener.mount_point)
    if fault is not None:
        faults.append(f"mount_point: {fault}")
    faults += [f"client_ids: {fault}" for fault in map(pattern_fault, listener.client_ids or ()) if fault is not None]
    faults += [f"proxy_protocol_from: {fault}" for fault in map(trust_fault, listener.proxy_protocol_from) if fault is not None]
    faults += [f"origins: {fault}" for fault in map(origin_fault, listener.origins or ()) if fault is not None]
    if listener.unix is None and not 0 <= listener.port <= 65_535:
        faults.append(f"port: expected 0 to 65535, got {listener.port}")
    if listener.unix is None and listener.descriptor is None and not _is_host(listener.host):
        faults.append(f"host: expected a name or an address, without brackets and port, got {listener.host!r}")
    if listener.systemd is not None:
        if not re.fullmatch(r"[!-9;-~]{1,255}", listener.systemd):
            faults.append(f"systemd: expected the name of a socket, FileDescriptorName= or that of the .socket unit, got {listener.systemd!r}")
        if listener.descriptor is None and (listener.unix is not None or (listener.host, listener.port) != (_DEFAULT.host, _DEFAULT.port)):
            faults.append("systemd: is instead of host, port and unix")
    if listener.unix is not None:
        faults += [f"{name}: {NOT_WITH_UNIX}" for name in ("host", "port") if getattr(listener, name) != getattr(_DEFAULT, name)]
        if not _HAS_UNIX:
            faults.append("unix: this system has no Unix sockets")
        elif len(os.fsencode(listener.unix)) > 107:
            faults.append("unix: the path is longer than 107 bytes, which the system does not take")
    try:
        parse_mode(listener.unix_mode)
    except ValueError as error:
        faults.append(f"unix_mode: {error}")
    if listener.unix_owner is not None and _HAS_UNIX:
        if listener.unix is None:
            faults.append("unix_owner: means something only with unix")
        try:
            parse_owner(listener.unix_owner)
        except ValueError as error:
            faults.append(f"unix_owner: {error}")
    for name, (least, most) in _RANGES.items():
        value = getattr(listener, name)
        if not least <= value <= most:
            wanted = f"{least} or more" if most == math.inf or value < least else f"{least} to {most:,}"
            faults.append(f"{name}: expected {wanted}, got {value}")
    return faults


def _is_host(host: str) -> bool:
    """Or "*"."""
    if ":" not in host:
        return not any(letter.isspace() or letter in "/@?#[]" for letter in host)
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


# ---- binding ----------------------------------------------------------------------------------------------------------


async def bind_all(listeners: Sequence[Listener | trio.SocketListener]) -> list[BoundSocket]:
    """Every address of every listener, listening. ListenError or ConfigError, and nothing stays open."""
    bound: list[BoundSocket] = []
    own = [listener for listener in listeners if isinstance(listener, Listener)]
    problems = [(f"listeners[{index}]", fault) for index, listener in enumerate(own) for fault in check(listener)]
    if problems:
        raise ConfigError(problems, "listeners")
    try:
        for listener in own:
            try:
                if listener.descriptor is not None:
                    bound.append(_inherit(listener, listener.descriptor))
                elif listener.systemd is not None:
                    raise ListenError(listener.url, "only `broker serve` takes sockets from systemd; a program gives Listener(descriptor=...)")
                else:
                    bound += [_bind_unix(listener)] if listener.unix is not None else await _bind_tcp(listener)
            except ListenError as error:
                if error.address in map(_asked_for, bound):
                    raise ListenError(error.address, "two of the listeners asked for are this one; leave one of them out") from None
                raise
    except BaseException:
        for one in bound:
            one.close()
        raise
    # Last, since taking the socket out of somebody's SocketListener cannot be undone.
    bound += [_adopt(given) for given in listeners if isinstance(given, trio.SocketListener)]
    return bound


def _asked_for(bound: BoundSocket) -> str:
    """The address as a ListenError names it."""
    if bound.listener.unix is not None:
        return bound.url
    host, port = bound.socket.getsockname()[:2]
    return f"{url_host(host)}:{port}"


def _adopt(given: trio.SocketListener) -> BoundSocket:
    listening = socket.socket(fileno=given.socket.detach())
    listening.setblocking(False)
    name = listening.getsockname()
    if _HAS_UNIX and listening.family == socket.AF_UNIX:
        path = shown_name(name)
        return BoundSocket(listening, Listener(unix=path), f"unix://{path}")
    return BoundSocket(listening, Listener(host=name[0], port=name[1]), f"mqtt://{url_host(name[0])}:{name[1]}")


def at_descriptor(listener: Listener, descriptor: int) -> Listener:
    """With the descriptor, and the address that the socket itself says: who can reach it is not to be believed of anybody else.
    ValueError for what cannot be listened on."""
    try:
        copy = socket.socket(fileno=os.dup(descriptor))
    except (OSError, OverflowError) as error:
        raise ValueError(f"{descriptor} is no socket: {strerror(error) if isinstance(error, OSError) else error}") from None
    with copy:
        if copy.type != socket.SOCK_STREAM or not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("expected a stream socket that listens (in a unit: ListenStream= with Accept=no)")
        name = copy.getsockname()
    if isinstance(name, tuple):
        return msgspec.structs.replace(listener, descriptor=descriptor, host=name[0], port=name[1], unix=None)
    return msgspec.structs.replace(listener, descriptor=descriptor, host=_DEFAULT.host, port=_DEFAULT.port, unix=shown_name(name))


def _inherit(listener: Listener, descriptor: int) -> BoundSocket:
    """One that `at_descriptor` has seen. The path of a Unix socket is not ours to remove: whoever opened it has others to hand it to."""
    listening = socket.socket(fileno=descriptor)
    listening.setblocking(False)
    _set_buffers(listening, listener)
    return BoundSocket(listening, listener, listener.url)


def adopted_is_private(given: trio.SocketListener) -> bool:
    name = given.socket.getsockname()
    return not isinstance(name, tuple) or is_loopback(str(name[0]))


async def _addresses(listener: Listener) -> list[tuple[int, str]]:
    """(family, numeric address) of the host, each once."""
    host = listener.host
    if host.lower() == "localhost":  # RFC 6761: loopback, whatever a file or a name server says
        found = [(int(socket.AF_INET), "127.0.0.1"), (int(socket.AF_INET6), "::1")]
    elif host in ("*", ""):
        found = [(int(socket.AF_INET), "0.0.0.0"), (int(socket.AF_INET6), "::")]
    else:
        try:
            answers = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError):
            raise ListenError(
                f"{host}:{listener.port}", f"no address is known for {host!r}; check the name, or use a number such as 127.0.0.1"
            ) from None
        found = []
        for family, _, _, _, address in answers:
            scope = f"%{address[3]}" if len(address) > 3 and address[3] and "%" not in str(address[0]) else ""
            if family in (socket.AF_INET, socket.AF_INET6):
                found.append((int(family), f"{address[0]}{scope}"))
    return list(dict.fromkeys(found))


async def _bind_tcp(listener: Listener) -> list[BoundSocket]:
    addresses = await _addresses(listener)
    for attempt in range(PORT_ZERO_ATTEMPTS_MAX):
        bound: list[BoundSocket] = []
        missing: ListenError | None = None
        port = listener.port
        try:
            for family, host in addresses:
                try:
                    one = _listen_tcp(listener, family, host, port)
                except OSError as error:
                    failure = _explain(error, f"{url_host(host)}:{port}", host, port)
                    # A machine, or a container, without IPv6 still resolves names to it.
                    if family == socket.AF_INET6 and len(addresses) > 1 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        missing = failure
                        continue
                    if error.errno == errno.EADDRINUSE and listener.port == 0 and bound and attempt + 1 < PORT_ZERO_ATTEMPTS_MAX:
                        break  # free on the first address, taken on the next: ask for another port
                    raise failure from None
                bound.append(one)
                port = one.socket.getsockname()[1]
            else:
                if bound:
                    return bound
                raise missing or ListenError(f"{listener.host}:{listener.port}", "this machine has no such address")
        except BaseException:
            _close_all(bound)
            raise
        _close_all(bound)
    raise AssertionError("the last attempt returns or raises")


def _close_all(bound: list[BoundSocket]) -> None:
    for one in bound:
        one.close()


def _listen_tcp(listener: Listener, family: int, host: str, port: int) -> BoundSocket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        if sys.platform == "win32":
            # There SO_REUSEADDR lets two programs listen on one port, at the same time; this forbids it.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # A restart must not wait for the TIME_WAIT of old connections; a second listener is refused all the same.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Each family has its own socket, so that "::" does not also take 0.0.0.0 on some systems.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit these; after accept would be too late for the TCP window's scale.
        _set_buffers(listening, listener)
        address, _, scope = host.partition("%")
        if scope:
            listening.bind((address, port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope)))
        else:
            listening.bind((address, port))
        listening.listen(listener.backlog)
        real = listening.getsockname()[1]
    except BaseException:
        listening.close()
        raise
    return BoundSocket(listening, listener, listener.url_at(host, real))


def _set_buffers(listening: socket.socket, listener: Listener) -> None:
    if listener.receive_buffer_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, listener.receive_buffer_bytes)
    if listener.send_buffer_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, listener.send_buffer_bytes)


def _bind_unix(listener: Listener) -> BoundSocket:
    path = listener.unix
    assert path is not None
    try:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            _set_buffers(listening, listener)
            inode = bind_unix(listening, path, parse_mode(listener.unix_mode), listener.unix_owner)
            listening.listen(listener.backlog)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise _explain(error, f"unix://{path}", path, -1) from None
    return BoundSocket(listening, listener, f"unix://{path}", inode)


def _explain(error: OSError, address: str, host: str, port: int) -> ListenError:
    if isinstance(error, ListenError):
        return error
    return ListenError(address, _advice(error, address, host, port), error.errno)


def _advice(error: OSError, address: str, host: str, port: int) -> str:
    """What is wrong and what to do about it, in words that hold in a program, in a file and on a command line."""
    code = error.errno
    unix = port < 0
    if code == errno.EADDRINUSE:
        if unix:
            return "another program is listening there; stop it, or choose another path"
        return f"another program is listening on {address}; stop it, or choose another port (0 is a free one)"
    if code in (errno.EACCES, errno.EPERM):
        if unix:
            return f"permission denied; {os.path.dirname(host) or '.'} must be writable for this user, or choose another path"
        return "permission denied; ports below 1024 belong to root: choose another port, such as 1883"
    if code == errno.EADDRNOTAVAIL:
        return f'this machine has no address {host}; use one of its own, or "*" for all of them'
    if code == errno.EAFNOSUPPORT:
        return "this machine does not speak that address family; use an IPv4 address"
    if unix and code in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no directory {os.path.dirname(host)}; make it, or choose another path"
    return strerror(error)
