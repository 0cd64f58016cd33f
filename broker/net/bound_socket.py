"""A socket that listens, with what it hands down to those it accepts."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Final

import trio

from broker.net.transport import set_options

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.net.listener import Listener
    from broker.net.locks import Lock

HANDS_DOWN: Final = sys.platform == "linux"
"""Whether an accepted socket has the options of the one that listens, all of them. (Two system calls for each connection are saved.)"""


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

    @property
    def place(self) -> str:
        """Its URL, and what is spoken there where that does not say it; for people."""
        protocol = self.listener.protocol
        is_told = protocol == "mqtt" or (protocol != "control" and not self.url.startswith("unix:"))
        return self.url if is_told else f"{self.url} ({protocol})"

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
