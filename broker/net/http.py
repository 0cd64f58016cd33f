"""HTTP/1.1 for those who ask the broker how it is: requests that have a small body or none, answers that are short or come in pieces.

h11 knows the protocol; here are the bounds. A visitor is known to nobody, so each step has a deadline, a request a size, and an answer is made
only when the one before it has been taken.

Nothing imports this file before there is a listener with protocol = "http" or "control": h11 costs every start something.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple, TypeAlias

import h11
import trio

from broker.core.strangers import other_than_a_request
from broker.net.tls import fault_of, identity_of
from broker.net.tls_transport import TlsTransport
from broker.net.transport import BROKEN, Transport, receive
from broker.words import strerror

HEAD_BYTES_MAX: Final = 8_192
PIECE_BYTES: Final = 8_192
HEAD_TIMEOUT_S: Final = 10.0
"""For a request to be there: from the beginning of the connection, its TLS handshake included; of a further one, from its first byte."""
IDLE_TIMEOUT_S: Final = 90.0
"""From one request to the next: longer than the minute in which most scrapers come again."""
WRITE_TIMEOUT_S: Final = 10.0
"""For an answer to be taken, or a piece of one."""
LINGER_S: Final = 1.0
"""To read what a peer still says after an answer that ends the connection: else the kernel's reset may overtake the answer."""

FROM_BROWSERS: Final = (b"origin", b"sec-fetch-site")
"""Headers."""

logger = logging.getLogger("broker")


class Request(NamedTuple):
    """path, query: what stands before and behind "?". accept: all of its headers of that name. peer: who asks, for people. from_browser: it has what
    browsers send, and other clients need not."""

    method: str
    path: str
    accept: str
    query: str = ""
    body: bytes = b""
    peer: str = ""
    from_browser: bool = False


class Answer(NamedTuple):
    """body: text of one line or more, with its end; or its pieces, some of which may be empty: each is made when the one before has been taken, and
    not before everybody else had a turn. headers: beside those that every answer has."""

    status: int
    body: bytes | Iterator[bytes]
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


Answering: TypeAlias = Callable[[Request], Awaitable[Answer]]


def plain_fault(status: int, line: str) -> Answer:
    return Answer(status, f"{line}\n".encode())


class Reception(NamedTuple):
    """answer: to a request. fault: to what is none, and where `answer` failed, as (status, line). body_bytes_max: of a request; 0: it has none.
    head_bytes_max: of its first line and headers, and maybe PIECE_BYTES more."""

    answer: Answering
    fault: Callable[[int, str], Answer] = plain_fault
    body_bytes_max: int = 0
    head_bytes_max: int = HEAD_BYTES_MAX


async def serve(transport: Transport, peer: str, reception: Reception) -> None:
    """One visitor, to the end; closes the transport. Raises nothing but a cancellation."""
    try:
        until = trio.current_time() + HEAD_TIMEOUT_S
        if isinstance(transport, TlsTransport):
            if not await _secure(transport, peer, until):
                return
            name = identity_of(transport.getpeercert(), "cn")
            peer = peer if name is None else f"{peer}, {name!r}"
        await _Visit(transport, peer, reception).run(until)
    except BROKEN as error:
        logger.debug("%s is gone, which asked over HTTP: %s", peer, strerror(error) if isinstance(error, OSError) else error)
    except Exception as error:
        logger.error("a fault of the broker ended the connection of %s", peer, exc_info=error)
    finally:
        await transport.aclose()


def _split(target: str) -> tuple[str, str]:
    """(path, query). A proxy may ask for the whole URL (RFC 9112, 3.2.2)."""
    if not target.startswith("/"):
        target = re.sub(r"(?i)^https?://[^/?]*", "", target)
    path, _, query = target.partition("?")
    return path, query


async def _secure(transport: TlsTransport, peer: str, until: float) -> bool:
    with trio.CancelScope(deadline=until) as patience:
        try:
            await transport.do_handshake()
        except BROKEN as error:
            logger.info("TLS handshake failed with %s: %s", peer, fault_of(error))
            return False
    return not patience.cancelled_caught


class _Visit:
    """Raises one of BROKEN where the peer is gone, or does not read."""

    def __init__(self, transport: Transport, peer: str, reception: Reception) -> None:
        self._transport = transport
        self._peer = peer
        self._reception = reception
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=reception.head_bytes_max)
        self._unread = b""
        """What has come and h11 has not been given: it gets so little at a time that it notices a head that is too large."""
        self._first = b""
        """What came first, for the log."""
        self._wants_head = False

    async def run(self, until: float) -> None:
        """until: when the first request has to be there."""
        http = self._http
        first = True
        while True:
            try:
                with trio.CancelScope(deadline=until) as patience:
                    request = await self._request(None if first else patience)
                if patience.cancelled_caught or request is None:
                    return
                answer = await self._answer(request)
            except h11.RemoteProtocolError as error:
                logger.info("no request of HTTP from %s: %s", self._peer, (first and other_than_a_request(self._first)) or error)
                told = self._reception.fault(error.error_status_hint, str(error))
                await self._send(told._replace(headers={"Connection": "close"}))
            else:
                await self._send(answer)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                await self._linger()
                return
            http.start_next_cycle()
            first = False
            until = trio.current_time() + IDLE_TIMEOUT_S

    async def _request(self, patience: trio.CancelScope | None) -> Request | None:
        """None: there is none to come. patience: to be shortened when it has begun. RemoteProtocolError for what is none, and for one whose body is
        too large."""
        http = self._http
        head: h11.Request | None = None
        body = bytearray()
        self._wants_head = False
        while True:
            event = http.next_event()
            if isinstance(event, h11.Request):
                self._wants_head = event.method == b"HEAD"
                head = event
                if self._reception.body_bytes_max:
                    await self._welcome_body(head)
                    continue
                event = http.next_event()
                if not isinstance(event, h11.EndOfMessage):
                    raise h11.RemoteProtocolError("a request here has no body")
            if head is not None and isinstance(event, h11.EndOfMessage):
                return self._read(head, bytes(body))
            if isinstance(event, h11.Data):
                body += event.data
                self._check_length(len(body))
                continue
            if isinstance(event, h11.ConnectionClosed):
                return None
            if not self._unread:
                self._unread = await receive(self._transport)
                self._first = self._first or self._unread[:16]
                if patience is not None:
                    patience.deadline = trio.current_time() + HEAD_TIMEOUT_S
                    patience = None
            piece, self._unread = self._unread[:PIECE_BYTES], self._unread[PIECE_BYTES:]
            http.receive_data(piece)  # nothing is its end

    async def _welcome_body(self, head: h11.Request) -> None:
        """RemoteProtocolError for one that would be too large: nobody has to wait for the rest of it."""
        self._check_length(sum(int(value) for name, value in head.headers if name == b"content-length"))  # there is one at most
        if self._http.they_are_waiting_for_100_continue:
            await self._write(self._http.send(h11.InformationalResponse(status_code=100, reason="Continue", headers=[])) or b"")

    def _check_length(self, bytes_count: int) -> None:
        """Of a body."""
        if bytes_count > self._reception.body_bytes_max:
            raise h11.RemoteProtocolError(f"the body of a request has {self._reception.body_bytes_max:,} bytes at most", 413)

    def _read(self, head: h11.Request, body: bytes) -> Request:
        path, query = _split(head.target.decode("ascii"))
        accept = ",".join(value.decode("ascii", "ignore") for name, value in head.headers if name == b"accept")
        from_browser = any(name in FROM_BROWSERS for name, _ in head.headers)
        return Request(head.method.decode("ascii"), path, accept, query, body, self._peer, from_browser)

    async def _answer(self, request: Request) -> Answer:
        try:
            return await self._reception.answer(request)
        except Exception as error:
            logger.error("a fault of the broker: %s could not be answered", request.path, exc_info=error)
            return self._reception.fault(500, "a fault of the broker; its log says more")

    async def _send(self, answer: Answer) -> None:
        http = self._http
        in_pieces = not isinstance(answer.body, bytes)
        pieces: Iterable[bytes] = (answer.body,) if isinstance(answer.body, bytes) else answer.body
        headers = {"Date": formatdate(usegmt=True), "Content-Type": answer.content_type}
        if isinstance(answer.body, bytes):  # else h11 says how the end is found
            headers["Content-Length"] = str(len(answer.body))
        headers |= {"Cache-Control": "no-store", **answer.headers}
        head = h11.Response(status_code=answer.status, reason=HTTPStatus(answer.status).phrase, headers=list(headers.items()))
        data = http.send(head) or b""
        if not self._wants_head:
            for piece in pieces:
                data += http.send(h11.Data(piece)) or b""
                if in_pieces:
                    await self._write(data)
                    data = b""
        data += http.send(h11.EndOfMessage()) or b""
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        with trio.move_on_after(WRITE_TIMEOUT_S) as patience:
            await trio.lowlevel.checkpoint()  # who sends many requests at once gets one answer a turn
            left = memoryview(data)
            while left:
                left = left[self._transport.send_nowait(left) or await self._transport.send_some(left) :]
        if patience.cancelled_caught:
            raise trio.BrokenResourceError("it does not read")

    async def _linger(self) -> None:
        with trio.move_on_after(LINGER_S):
            if not self._transport.shutdown_write_nowait():
                await self._transport.end()
            while await receive(self._transport):
                pass
