"""Who comes by HTTP: taken in at every listener of one protocol, so many at a time, for as long as clients are served."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.net.http import Reception, serve
from broker.net.listener import PAGE_CONNECTIONS_MAX
from broker.net.transport import peer_name
from broker.net.unix import AF_UNIX, peer_process

if TYPE_CHECKING:
    from broker.net.bound_socket import BoundSocket
    from broker.net.server import Server


async def receive_visitors(server: Server, protocol: str, reception: Reception) -> None:
    """A chore of the server, which has all the listeners of that protocol to itself."""
    async with trio.open_nursery() as visitors:
        for one in server.bound:
            if one.listener.protocol == protocol:
                visitors.start_soon(server.accept, one, partial(_let_in, server, visitors, reception))


def _let_in(server: Server, visitors: trio.Nursery, reception: Reception, bound: BoundSocket) -> OSError | None:
    try:
        connected, address = bound.socket.accept()
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as error:
        return server.accept_failed(error)
    if bound.connections_count >= min(PAGE_CONNECTIONS_MAX, bound.listener.connections_count_max):
        server.refuse_full(bound, connected)
        return None
    bound.connections_count += 1
    peer = peer_process(connected) if bound.family == AF_UNIX else peer_name(address, bound.family)
    visitors.start_soon(_serve, server, bound, connected, peer, reception, name="visitor")
    return None


async def _serve(server: Server, bound: BoundSocket, connected: socket.socket, peer: str, reception: Reception) -> None:
    try:
        await serve(server.transport_of(bound, connected), peer, reception)
    finally:
        bound.connections_count -= 1
