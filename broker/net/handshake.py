"""What comes before MQTT on a connection: a PROXY header, TLS, WebSocket. All of it lies under the timeout of CONNECT."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import trio

from broker.net import proxy_protocol
from broker.net.tls import fault_of
from broker.net.tls_transport import TlsTransport
from broker.net.transport import BROKEN, StreamTransport
from broker.net.transport_stream import TransportStream

if TYPE_CHECKING:
    from broker.net.bound_socket import BoundSocket
    from broker.net.connection import Connection

logger = logging.getLogger("broker")


async def shake_hands(connection: Connection, nursery: trio.Nursery, proxied: socket.socket | None, deadline: float) -> bool:
    """Is the connection ready for MQTT? Otherwise the log says why not. proxied: the socket from which a PROXY header must come first."""
    transport = connection.transport
    bound = connection.bound
    secured = transport if isinstance(transport, TlsTransport) else None
    over_websocket = bound is not None and bound.listener.protocol == "websocket"
    if secured is None and not over_websocket and proxied is None:
        return True
    kind = ""
    with trio.CancelScope(deadline=deadline) as scope:
        if proxied is not None:
            kind = "PROXY"
            if not await _take_proxy_header(connection, proxied):
                return False
        if secured is not None:
            kind = "TLS"
            if not await _secure(connection, secured):
                return False
        if over_websocket:
            kind = "WebSocket"
            assert bound is not None
            if not await _upgrade(connection, nursery, bound):
                return False
    if scope.cancelled_caught:
        logger.info("%s handshake timed out with %s", kind, connection.peer)
        return False
    return True


async def _take_proxy_header(connection: Connection, proxied: socket.socket) -> bool:
    try:
        named = await proxy_protocol.receive(proxied)
    except proxy_protocol.ProxyFault as error:
        logger.info("no connection by the proxy at %s: %s", connection.peer, error)
        return False
    if named is not None:
        connection.peer = named
        connection.address, connection.refusal = connection.server.count_address(named, connection.bound)
        if connection.refusal is not None and connection.bound is not None:
            return not connection.server.refuses_silently(connection.bound)
    return True


async def _secure(connection: Connection, secured: TlsTransport) -> bool:
    try:
        await secured.do_handshake()
    except BROKEN as error:
        logger.info("TLS handshake failed with %s: %s", connection.peer, fault_of(error))
        return False
    connection.certificate = secured.getpeercert() or None
    return True


async def _upgrade(connection: Connection, nursery: trio.Nursery, bound: BoundSocket) -> bool:
    from broker.net import websocket  # late: see there

    stream: trio.abc.Stream
    below: socket.socket | None
    transport = connection.transport
    if isinstance(transport, TlsTransport):
        stream, below = TransportStream(transport), transport.socket
    else:
        assert isinstance(transport, StreamTransport)
        stream, below = transport.stream, transport.below
    try:
        path, close_timeout_s = bound.listener.path, connection.limits.close_timeout_s
        upgraded = await websocket.accept(nursery, stream, path, bound.origins, close_timeout_s=close_timeout_s)
    except websocket.HandshakeFailed as error:
        logger.info("WebSocket handshake failed with %s: %s", connection.peer, error)
        return False
    connection.transport = StreamTransport(upgraded, below)
    return True
