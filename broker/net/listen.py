"""Listening: what a Listener says becomes sockets. All addresses of all listeners are bound, or none stay open.

An address that could not be bound is the first thing a newcomer meets, so each failure is one line that names the address
and says what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence
from typing import Final

import trio
from msgspec import structs

from broker.errors import ConfigError, ListenError
from broker.net.bound_socket import BoundSocket
from broker.net.listener import DEFAULT, Listener, check, is_loopback, url_host
from broker.net.unix import AF_UNIX, bind_unix, shown_name
from broker.words import strerror

PORT_ZERO_ATTEMPTS_MAX: Final = 50


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
    if listening.family == AF_UNIX:
        path = shown_name(name)
        return BoundSocket(listening, Listener(unix=path), f"unix://{path}")
    return BoundSocket(listening, Listener(host=name[0], port=name[1]), f"mqtt://{url_host(name[0])}:{name[1]}")


def at_descriptor(listener: Listener, descriptor: int) -> Listener:
    """With the descriptor, and the address that the socket itself says: who can reach it is not to be believed of anybody else.
    ValueError for what cannot be listened on."""
    try:
        copy = _copy(descriptor)
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{descriptor} is no socket: {strerror(error) if isinstance(error, OSError) else error}") from None
    with copy:
        if copy.type != socket.SOCK_STREAM or not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("expected a stream socket that listens (in a unit: ListenStream= with Accept=no)")
        name = copy.getsockname()
    if isinstance(name, tuple):
        return structs.replace(listener, descriptor=descriptor, host=name[0], port=name[1], unix=None)
    return structs.replace(listener, descriptor=descriptor, host=DEFAULT.host, port=DEFAULT.port, unix=shown_name(name))


def _copy(descriptor: int) -> socket.socket:
    if sys.platform == "win32":  # a handle, which is no descriptor of `os`'s
        given = socket.socket(fileno=descriptor)
        try:
            return given.dup()
        finally:
            given.detach()
    else:
        return socket.socket(fileno=os.dup(descriptor))


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
        listening = socket.socket(AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            _set_buffers(listening, listener)
            inode = bind_unix(listening, path, listener.mode, listener.unix_owner)
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
    return ListenError(address, _advice(error, host, port), error.errno)


def _advice(error: OSError, host: str, port: int) -> str:
    """What is wrong and what to do about it, in words that hold in a program, in a file and on a command line."""
    code = error.errno
    unix = port < 0
    if code == errno.EADDRINUSE:
        if unix:
            return "another program is listening there; stop it, or choose another path"
        return "another program is listening there; stop it, or choose another port (0 is a free one)"
    if code in (errno.EACCES, errno.EPERM):
        if unix:
            return f"permission denied; {os.path.dirname(host) or '.'} must be writable for this user, or choose another path"
        if sys.platform == "win32":
            return (
                "permission denied; another program has it for itself, or Windows keeps it back "
                "(netsh interface ipv4 show excludedportrange protocol=tcp): choose another port"
            )
        return "permission denied; ports below 1024 belong to root: choose another port, such as 1883"
    if code == errno.EADDRNOTAVAIL:
        return f'this machine has no address {host}; use one of its own, or "*" for all of them'
    if code == errno.EAFNOSUPPORT:
        return "this machine does not speak that address family; use an IPv4 address"
    if unix and code in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no directory {os.path.dirname(host)}; make it, or choose another path"
    return strerror(error)
