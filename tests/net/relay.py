"""An engine of a page with the verbs of the real one, to show what the net layer does by itself: every byte goes to every link.

Words at the start of what is received make it do what MQTT would: !crash, !close (say "bye" first), !pause (until `unpause`),
!auth (ask who it is).
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import trio
from trio.testing import wait_all_tasks_blocked

from broker.core.auth import AuthRequest
from broker.core.engine import Engine
from broker.core.limits import Limits
from broker.net.listen import bind_all
from broker.net.listener import Listener
from broker.net.locks import Guard, Lock
from broker.net.memory import MemoryStream, memory_stream_pair
from broker.net.server import Server
from broker.net.transport import StreamTransport
from broker.wire.framing import FrameDecoder


class RelayLink:
    def __init__(self, peer: str, transport: object, limits: Limits) -> None:
        self.peer = peer
        self.limits = limits
        self.transport = transport
        self.out = bytearray()
        self.closing = self.paused = self.ready = False
        self.attached = True
        self.cause = ""
        self.auth: AuthRequest | None = None
        self.client_id = ""
        self.access: object = None
        self.decoder = FrameDecoder(limits.packet_bytes_max)

    def describe(self) -> str:
        return f"({self.peer})"


class RelayEngine:
    """relays: False keeps what comes in to itself (`received`)."""

    def __init__(self, *, relays: bool = True) -> None:
        self.relays = relays
        self.limits = Limits()
        self.access: object = None
        self.links: list[RelayLink] = []
        self.received = bytearray()
        self.detached: list[RelayLink] = []
        self.verdicts: list[tuple[str | None, Any]] = []
        self.deadline = math.inf
        self.ticks: list[float] = []
        self.held: dict[RelayLink, bytes] = {}
        self._ready: deque[RelayLink] = deque()

    def mark(self, link: RelayLink) -> None:
        if not link.ready:
            link.ready = True
            self._ready.append(link)

    def attach(
        self,
        peer: str,
        now: float,
        *,
        listener: str = "",
        transport: object = None,
        access: object = None,
        allowance: object = None,
        refusal: object = None,
        mount_point: str = "",
    ) -> RelayLink:
        link = RelayLink(peer, transport, self.limits)
        self.links.append(link)
        return link

    def sole_recipient(self, link: RelayLink, data: bytes) -> None:
        """Everything goes by `receive`."""

    def receive(self, link: RelayLink, data: bytes, now: float) -> bool:
        if data.startswith(b"!crash"):
            raise ValueError("a fault on purpose")
        if data.startswith(b"!close"):
            self.close(link, b"bye")
        elif data.startswith(b"!pause"):
            link.paused = True
        elif data.startswith(b"!auth"):
            link.auth = AuthRequest("someone", "user", b"secret", "method", b"")
        elif link.auth is not None and data:
            link.auth.answers.append(data)
            self.mark(link)
        else:
            self.received += data
            for one in self.links if self.relays else ():
                self.send(one, data)
        return False

    def held_back(self, link: RelayLink) -> bool:
        return False

    def is_behind(self, link: RelayLink) -> bool:
        return False

    def send(self, link: RelayLink, data: bytes) -> None:
        link.out += data
        self.mark(link)

    def close(self, link: RelayLink, last: bytes = b"") -> None:
        link.closing = True
        self.send(link, last)

    def unpause(self, link: RelayLink) -> None:
        link.paused = False
        self.mark(link)

    def take_ready(self) -> list[RelayLink]:
        ready = list(self._ready)
        self._ready.clear()
        for link in ready:
            link.ready = False
        return ready

    def take_to_send(self, links: list[RelayLink], limit: int) -> list[bytes]:
        taken = []
        for link in links:
            taken.append(bytes(link.out) if len(link.out) <= limit else b"")
            del link.out[: len(taken[-1])]
        return taken

    def give_back(self, link: RelayLink, data: bytes, count: int) -> None:
        link.out[:0] = data[count:]

    def data_to_send(self, link: RelayLink, limit: int = 262_144) -> bytes:
        return bytes(link.out[:limit])

    def bytes_sent(self, link: RelayLink, count: int, now: float) -> bool:
        del link.out[:count]
        return bool(link.out)

    def detach(self, link: RelayLink, now: float, *, still_reads: bool = False) -> None:
        if link.attached:
            link.attached = False
            self.links.remove(link)
            self.detached.append(link)
            if link.auth is not None:
                link.auth.done = True

    def authenticated(self, link: RelayLink, username: str | None, now: float, *, refused: Any = None, data: bytes | None = None, **_: Any) -> None:
        assert link.auth is not None
        link.auth.done = True
        link.auth = None
        self.verdicts.append((username, refused))
        self.send(link, f"{username} {refused} {data!r}".encode())

    def challenge(self, link: RelayLink, data: bytes, now: float) -> None:
        self.send(link, data)

    def next_deadline(self) -> float:
        return self.deadline

    def tick(self, now: float) -> bool:
        self.ticks.append(now)
        self.deadline = math.inf
        return False

    def shutdown(self, now: float) -> None:
        for link in self.links:
            self.close(link, b"shutdown")


def make_server(engine: RelayEngine, *, authenticate: Any = None, **limits: Any) -> Server:
    engine.limits = Limits(**limits)
    return Server(cast("Engine", engine), engine.limits, lock=Lock(Guard(), authenticate, None, None, "none"))


_peers: dict[Server, list[trio.abc.Stream]] = {}
"""The test's own ends, by the server they lead to."""


@asynccontextmanager
async def running(engine: RelayEngine, *listeners: Listener, grace_s: float = 5, authenticate: Any = None, **limits: Any) -> AsyncIterator[Server]:
    """A server over it, listening on 127.0.0.1 unless told otherwise; at the end of the block its peers go, and then it."""
    server = make_server(engine, authenticate=authenticate, **limits)
    bound = await bind_all(listeners or (Listener(port=0),))
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(server.run, bound)
            yield server
        finally:
            for peer in _peers.pop(server, []):
                await trio.aclose_forcefully(peer)
            server.begin_shutdown(grace_s)


def port_of(server: Server) -> int:
    return urlsplit(server.bound[0].url).port or 0


async def dial(server: Server, receive_buffer_bytes: int = 0) -> trio.SocketStream:
    raw = socket.socket()
    if receive_buffer_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    connected = trio.socket.from_stdlib_socket(raw)
    await connected.connect(("127.0.0.1", port_of(server)))
    await wait_all_tasks_blocked()  # the server has it: what others send from now on reaches it
    stream = trio.SocketStream(connected)
    _peers.setdefault(server, []).append(stream)
    return stream


async def attach(server: Server, buffer_bytes_max: int = 65_536) -> MemoryStream:
    """A peer over memory streams, its task already waiting for it."""
    ours, theirs = memory_stream_pair(buffer_bytes_max)
    assert server.admit(StreamTransport(theirs), "in-process") is not None
    _peers.setdefault(server, []).append(ours)
    await wait_all_tasks_blocked()
    return ours


async def admit(server: Server, buffer_bytes_max: int = 65_536) -> MemoryStream:
    """A connection that came in by the server's first listener, over memory, so that time can be virtual."""
    ours, theirs = memory_stream_pair(buffer_bytes_max)
    bound = server.bound[0]
    bound.connections_count += 1
    assert server.admit(StreamTransport(theirs), "192.0.2.7:50123", bound.url, bound) is not None
    await wait_all_tasks_blocked()
    return ours


async def wait_until_gone(server: Server) -> None:
    """Until the only connection's task is over."""
    (connection,) = server.connections
    connection.finished = trio.Event()
    await connection.finished.wait()


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        assert part, f"the stream ended after {data!r}"
        data += part
    return data


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while part := await stream.receive_some(65_536):
        data += part
    return bytes(data)
