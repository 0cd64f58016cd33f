"""MQTT over WebSocket as a byte stream [MQTT5-6.0.0-1, MQTT311-6.0.0-1], so that everything above knows nothing of frames.

A packet may lie in several frames and a frame hold many packets [MQTT5-6.0.0-2, MQTT311-6.0.0-2], so messages mean nothing: each
piece of one is handed on as it comes. That is also what bounds memory. trio-websocket gathers a message until its end, and a
peer that never ends one, or sends it in millions of small or empty pieces, would fill the machine before it has said who it is.

Nothing imports this file before somebody asks for WebSocket: the library costs every start a twentieth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

import h11
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, WebSocketRequest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, RejectConnection, RejectData, TextMessage
from wsproto.utilities import ProtocolError, RemoteProtocolError

from broker.core.strangers import other_than_http
from broker.net.origins import allows
from broker.net.websocket_path import serves

SUBPROTOCOL: Final = "mqtt"
SUBPROTOCOLS: Final = (SUBPROTOCOL, "mqttv3.1")
"""What we serve; the second is what clients of MQTT 3.1 offer, and mqtt.js, beside the first."""
READ_BYTES: Final = 65_536
PIECES_COUNT_MAX: Final = 1
"""Pieces of at most READ_BYTES that wait for the reader; then TCP makes the peer wait."""
DEAF_CLOSE_S: Final = 1.0
"""For the peer to close after it broke WebSocket's own rules: then its answer cannot be understood any more."""
CLOSE_TIMEOUT_S: Final = 5.0
UNSUPPORTED_DATA: Final = 1003
INVALID_TEXT: Final = 1007
NOT_FOUND: Final = 404

_FAULTS: Final = (ProtocolError, h11.ProtocolError, UnicodeError)
"""What wsproto and h11 raise for what a peer did; the last for bytes in a header that are no ASCII."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS: Final = re.compile(r"(host|upgrade|connection|content-length|transfer-encoding|sec-websocket-.*)", re.IGNORECASE)


class HandshakeFailed(Exception):
    """No WebSocket with MQTT in it came about; why, in one line."""


class _Protocol(WSConnection):
    """wsproto, made to give the bytes of each read as a message of their own, and to keep what was wrong."""

    def __init__(self, kind: ConnectionType) -> None:
        super().__init__(kind)
        self.fault = ""
        """Why the handshake failed."""
        self.refusal: tuple[int, str] | None = None
        """Code and reason to close with: what came is no MQTT over WebSocket."""
        self.deaf = False
        """Frames can no longer be told apart."""
        self._begun = False

    def receive_data(self, data: bytes | None) -> None:
        if self.deaf:
            return  # wsproto would keep it for ever
        if not self._begun and data and not self.client:
            self._begun = True
            stranger = other_than_http(data)
            if stranger is not None:  # now: it may never send the empty line that a request ends with
                self.fault = stranger
                raise RemoteProtocolError(stranger, event_hint=RejectConnection())
        try:
            super().receive_data(data)
        except _FAULTS as error:
            self.fault = "a header is not ASCII" if isinstance(error, UnicodeError) else str(error)
            hint = error.event_hint if isinstance(error, RemoteProtocolError) else RejectConnection()
            # A client has no answer to a bad answer; wsproto's hint would have it send one.
            raise RemoteProtocolError(self.fault, event_hint=None if self.client else hint) from error

    def events(self) -> Iterator[Event]:  # type: ignore[override]  # nobody sends into the generator
        pieces: list[bytes] = []  # of one read; a peer that sends a frame a packet costs a handful of steps a frame less
        for event in super().events():
            if isinstance(event, BytesMessage):
                pieces.append(bytes(event.data))
                continue
            opened = self.state is ConnectionState.OPEN  # now: it may change while what was good is handed on
            yield from _joined(pieces)
            if isinstance(event, TextMessage):
                yield from self._refuse(UNSUPPORTED_DATA, "MQTT travels in binary messages, and a text message came")
            elif isinstance(event, CloseConnection) and opened:
                self.deaf = True  # not the peer's word: wsproto's, for a frame that cannot be
                text = event.code == INVALID_TEXT
                yield from self._refuse(event.code, "a text message came, and no UTF-8 in it" if text else event.reason or "malformed frame")
            elif isinstance(event, RejectConnection):
                yield RejectConnection(status_code=event.status_code, headers=event.headers)  # without a body of any length
            elif not isinstance(event, RejectData):
                yield event
        yield from _joined(pieces)

    def _refuse(self, code: int, reason: str) -> Iterator[Event]:
        """Put a mark behind what was good."""
        if self.refusal is None:
            self.refusal = code, reason
            yield TextMessage(data=reason)


def _joined(pieces: list[bytes]) -> Iterator[Event]:
    data = b"".join(pieces)
    pieces.clear()
    if data:
        yield BytesMessage(data=data)


class WebSocketStream(trio.abc.Stream):
    """The bytes of binary messages. One task receives and one sends. It cannot half-close: WebSocket has no such thing.

    `read` has to run in a nursery for as long as the stream is used; `aclose` ends it.
    """

    def __init__(self, below: trio.abc.Stream, connection: WebSocketConnection, protocol: _Protocol, close_timeout_s: float) -> None:
        self.below = below
        self.connection = connection
        self._protocol = protocol
        self._close_timeout_s = close_timeout_s
        self._reading = trio.CancelScope()
        self._read_ended = False
        self._closed = False
        self._rest = memoryview(b"")

    async def read(self, ended: Callable[[], None]) -> None:
        """Take frames from the network, answer pings, until there are no more."""
        try:
            with self._reading:
                await self.connection._reader_task()
        except ConnectionRejected as error:
            elsewhere = "; is MQTT at another path there?" if error.status_code == NOT_FOUND else ""
            self._protocol.fault = f"the answer was HTTP status {error.status_code}{elsewhere}"
        except _FAULTS as error:
            self._protocol.fault = str(error)
        finally:
            self._read_ended = True
            ended()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come of a message, b"" after the peer's close. BrokenResourceError for what is no MQTT; it was told so."""
        size = READ_BYTES if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if not self._rest:
            try:
                message = await self.connection.get_message()
            except ConnectionClosed:
                if self._closed:
                    raise trio.ClosedResourceError("this stream was closed") from None
                return b""
            if isinstance(message, str):
                code, reason = self._protocol.refusal or (UNSUPPORTED_DATA, message)
                await self._close(code, reason, DEAF_CLOSE_S if self._protocol.deaf else self._close_timeout_s)
                raise trio.BrokenResourceError(reason)
            if len(message) <= size:
                return message
            self._rest = memoryview(message)
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """All of it in one binary message: frames cost, bytes hardly do."""
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if not data:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.connection.send_message(bytes(data))
        except (ConnectionClosed, ProtocolError):
            raise trio.BrokenResourceError("the other side has closed the WebSocket") from None

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close frame, the peer's in return (close_timeout_s at most), then the connection below. Cancelled: that one at once."""
        await self._close(1000, None, self._close_timeout_s)

    async def _close(self, code: int, reason: str | None, seconds: float) -> None:
        self._closed = True
        try:
            if not self._read_ended:
                with trio.move_on_after(seconds):
                    await self.connection.aclose(code, reason)
        except _FAULTS:
            pass  # in a handshake that came to nothing there is nobody to tell
        finally:
            self._reading.cancel()
            await trio.aclose_forcefully(self.below)


# ---- both handshakes; the caller's scope bounds them ------------------------------------------------------------------


async def accept(
    nursery: trio.Nursery, below: trio.abc.Stream, path: str, origins: Sequence[str] | None, *, close_timeout_s: float = CLOSE_TIMEOUT_S
) -> WebSocketStream:
    """The server's side, on a connected stream, which is closed unless this succeeds. HandshakeFailed; the peer got an HTTP status.

    A client has to ask for `path` (see `websocket_path`), and to offer MQTT, which is then chosen [MQTT5-6.0.0-4, MQTT311-6.0.0-4]: another
    protocol that happens to come by is turned away before it takes our bytes for its own. origins: see `origins.allows`.
    """
    protocol = _Protocol(ConnectionType.SERVER)
    stream = WebSocketStream(below, _connection(below, protocol), protocol, close_timeout_s)
    why_not = ""
    try:
        with trio.CancelScope() as waiting:
            nursery.start_soon(stream.read, waiting.cancel)
            request = await stream.connection._get_request()
            chosen = next((one for one in SUBPROTOCOLS if one in request.proposed_subprotocols), None)
            stranger = next((one for one in _origins(request) if not allows(origins, one)), None)
            if stranger is not None:  # before all else: it need not learn what is here
                why_not = f"pages of {stranger[:100]!r} may not use this listener; `origins` says which may"
                await _reject(request, 403, "pages of this origin may not use this listener\n")
            elif not serves(path, request.path):
                why_not = f"it asked for {request.path[:100]!r}, and MQTT is at {path!r}"
                await _reject(request, 404, f"MQTT is at {path}\n")
            elif chosen is None:
                why_not = "it did not offer the subprotocol mqtt"
                await _reject(request, 400, "offer the subprotocol mqtt\n")
            else:
                await request.accept(subprotocol=chosen)
                return stream
        raise HandshakeFailed(why_not or protocol.fault or "it left")
    except _FAULTS as error:
        await trio.aclose_forcefully(stream)
        raise HandshakeFailed(str(error)) from error
    except ConnectionClosed:
        await trio.aclose_forcefully(stream)
        raise HandshakeFailed("it left") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def _origins(request: WebSocketRequest) -> list[str]:
    """Each, should there be several: then all have to be allowed."""
    return [value.decode("ascii", "replace") for name, value in request.headers if name.lower() == b"origin"]


async def _reject(request: WebSocketRequest, status: int, text: str) -> None:
    await request.reject(status, extra_headers=[(b"Content-Type", b"text/plain"), (b"Connection", b"close")], body=text.encode())


async def upgrade(
    nursery: trio.Nursery, below: trio.abc.Stream, host: str, path: str, headers: list[tuple[bytes, bytes]] | None = None
) -> WebSocketStream:
    """The client's side, on a connected stream, which is closed unless this succeeds. host: for the Host header, with its port.

    Offers the subprotocol `mqtt` [MQTT5-6.0.0-3, MQTT311-6.0.0-3]. HandshakeFailed for any answer that does not choose it.
    """
    protocol = _Protocol(ConnectionType.CLIENT)
    target = quote(path or "/", safe="/%:@!$&'()*+,;=~")
    connection = _connection(below, protocol, host, target, headers)
    stream = WebSocketStream(below, connection, protocol, CLOSE_TIMEOUT_S)
    try:
        with trio.CancelScope() as waiting:
            nursery.start_soon(stream.read, waiting.cancel)
            await connection._open_handshake.wait()
            if connection.subprotocol == SUBPROTOCOL:
                return stream
            raise HandshakeFailed("the server did not choose the subprotocol mqtt; is there an MQTT broker at this path?")
        raise HandshakeFailed(protocol.fault or "the server closed the connection; does it speak WebSocket here?")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def header_list(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As they go out. ValueError for what is no header, and for those that make the handshake."""
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not value.isprintable() or not value.isascii():
            raise ValueError(f"the header {name!r} is no name and printable ASCII value")
        if _OURS.fullmatch(name):
            raise ValueError(f"the header {name!r} is made by the WebSocket handshake")
    return [(name.encode(), value.strip().encode()) for name, value in headers.items()]


def _connection(
    below: trio.abc.Stream, protocol: _Protocol, host: str | None = None, path: str | None = None, headers: list[tuple[bytes, bytes]] | None = None
) -> WebSocketConnection:
    return WebSocketConnection(
        below,
        protocol,
        host=host,
        path=path,
        client_subprotocols=[SUBPROTOCOL],
        client_extra_headers=headers,
        message_queue_size=PIECES_COUNT_MAX,
        max_message_size=2 * READ_BYTES,  # of a piece
        receive_buffer_size=READ_BYTES,
    )
