"""Dialling: a URL to a connected byte stream, over TCP, TLS, WebSocket or a Unix socket, and every way it can fail in one clear line.

A TCP socket that dials a local port nobody listens on may be given that very port as its own, and then it is connected to
itself (TCP's simultaneous open): that counts as refused, else the dialler would talk MQTT to its own echo.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import trio
from msgspec import Struct

from broker.errors import ConnectError, NotSupported
from broker.net.tls import cause_of, reason_of, verify_fault
from broker.net.unix import HAS_UNIX
from broker.net.websocket_path import PATH
from broker.words import strerror

PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}

Scheme = Literal["mqtt", "mqtts", "ws", "wss", "unix"]


class Target(Struct, frozen=True):
    """Where to dial. path: of the Unix socket, or of the WebSocket. options: the query, undecided what they mean."""

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""
    username: str | None = None
    password: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> str:
        """For people and errors; never holds a password."""
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def __repr__(self) -> str:
        return f"Target({self.address})"


def parse_url(url: str) -> Target:
    """`mqtt[s]://[user[:password]@]host[:port][?key=value]`, `ws[s]://host[:port][/path]`, `unix:///absolute/path`.

    Parts are percent-decoded. No path is /mqtt. ValueError says what is wrong, without repeating the URL, for it may hold a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its words repeat what stands before the host
        raise ValueError("the host in the URL is none, or a character before it should be percent-encoded") from None
    scheme = parts.scheme.lower()
    try:
        options = tuple(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else ()
    except ValueError:
        raise ValueError("what follows the ? of the URL is not key=value, or several with & between them") from None
    if parts.fragment:
        raise ValueError("a broker's URL has no #fragment")
    if scheme == "unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError("a Unix socket is written unix:///absolute/path" if HAS_UNIX else "this system has no Unix sockets")
        return Target("unix", path=unquote(parts.path, errors="surrogateescape"), options=options)  # a path need not be UTF-8
    if scheme not in PORTS:
        other = f"{scheme}:" if scheme else "none of them"
        raise ValueError(f"a broker's URL begins with mqtt://, mqtts://, ws://, wss:// or unix://, and this one with {other}")
    if scheme in ("mqtt", "mqtts") and parts.path not in ("", "/"):
        raise ValueError(f"{scheme}:// takes no path")
    if not parts.hostname:
        raise ValueError("the URL names no host")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port in the URL is not a number from 0 to 65535") from None
    return Target(
        scheme,  # type: ignore[arg-type]  # one of PORTS' keys
        host=unquote(parts.hostname),
        port=PORTS[scheme] if port is None else port,
        path=quote(parts.path or PATH, safe="/%:@!$&'()*+,;=") if scheme in ("ws", "wss") else "",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        options=options,
    )


async def dial(
    target: Target,
    *,
    tls: ssl.SSLContext | None = None,
    bind_address: str | None = None,
    nodelay: bool = True,
    keeper: trio.Nursery | None = None,
    headers: Mapping[str, str] | None = None,
) -> trio.abc.Stream:
    """A connected stream, with its handshakes done. ConnectError, with the cause in words; bounded by the caller's scope.

    tls: given for mqtt:// and ws:// too, it is used there; mqtts:// and wss:// without one trust what the system trusts. keeper: where the
    reading task of a WebSocket lives, as long as the stream; NotSupported without one. headers: go into its handshake.
    """
    if target.scheme in ("ws", "wss") and keeper is None:
        raise NotSupported("WebSocket is not spoken here; use mqtt:// or mqtts://")
    try:
        if target.scheme == "unix":
            if not HAS_UNIX:
                raise NotSupported("this system has no Unix sockets")
            return await trio.open_unix_socket(target.path)
        stream = await trio.open_tcp_stream(target.host, target.port, local_address=bind_address)
    except OSError as error:
        raise ConnectError(target.address, _cause(error, bind_address)) from error
    except UnicodeError:
        raise ConnectError(target.address, "this is not a host name") from None
    try:
        prepared = await _prepare(stream, target, tls, nodelay)
        return prepared if keeper is None or target.scheme not in ("ws", "wss") else await _upgrade(keeper, prepared, target, headers)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _prepare(stream: trio.SocketStream, target: Target, tls: ssl.SSLContext | None, nodelay: bool) -> trio.abc.Stream:
    if is_self_connected(stream.socket):
        raise ConnectError(target.address, "connection refused (the socket was connected to itself: nobody listens there)")
    if not nodelay:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)  # Trio sets it by itself
    if target.scheme not in ("mqtts", "wss") and tls is None:
        return stream
    context = _default_context() if tls is None else tls
    secured = trio.SSLStream(stream, context, server_hostname=target.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except (trio.BrokenResourceError, ssl.SSLError, OSError) as error:
        raise ConnectError(target.address, f"TLS failed: {_tls_cause(error)}") from error
    return secured


def _default_context() -> ssl.SSLContext:
    """Trusts whom the system trusts, alike on every Python: Python 3.13 also asks for extensions that the authority does not have which
    Mosquitto's manual has people make (docs/decisions/0037-what-certificates-must-have.md)."""
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    return context


async def _upgrade(keeper: trio.Nursery, stream: trio.abc.Stream, target: Target, headers: Mapping[str, str] | None) -> trio.abc.Stream:
    from broker.net import websocket  # late: see there

    host = f"[{target.host}]" if ":" in target.host else target.host
    if target.port != PORTS[target.scheme]:
        host = f"{host}:{target.port}"
    try:
        return await websocket.upgrade(keeper, stream, host, target.path, websocket.header_list(headers or {}))
    except websocket.HandshakeFailed as error:
        raise ConnectError(target.address, f"WebSocket handshake failed: {error}") from error


def is_self_connected(connected: trio.socket.SocketType) -> bool:
    """Are both ends of this TCP connection the same socket?"""
    try:
        return bool(connected.getsockname() == connected.getpeername())
    except OSError:  # reset already; the first read will tell
        return False


def _cause(error: BaseException, bind_address: str | None) -> str:
    """One line for people, of an OSError or the several that trying several addresses gave: the last tells most."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif isinstance(error, OSError) and error.errno is None and error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    if isinstance(error, socket.gaierror):
        return f"host name not found ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ECONNREFUSED:
            return "connection refused"
        return strerror(error)
    if bind_address is not None and "local_address" in str(error):  # Trio's words for its own argument, and no number
        return f"cannot connect from {bind_address}: an address of this machine is wanted, of the broker's kind (IPv4 or IPv6)"
    return str(error) or type(error).__name__


def _tls_cause(error: BaseException) -> str:
    cause = cause_of(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the broker's certificate was not accepted: {verify_fault(cause)}"
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):  # Python 3.11.2 raises the latter
        return reason_of(cause)
    return "the other end broke off the handshake; does it speak TLS?"
