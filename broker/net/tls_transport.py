"""TLS over a socket that is written to directly: what is made for a client is encrypted and sent at once, by whoever made it.

An `ssl.SSLObject` between two memory buffers, so that no lock, no task and no second stream stands between a message and the kernel:
TLS then costs what encryption costs. What is encrypted but not yet the kernel's is still the outbox's to count: `send_nowait` says that
bytes are taken only when they have left, and wants the same bytes again until then. So nothing reads as sent that is not, the writer
goes on while anything is left, and what is kept here beside the outbox is one part of at most CHUNK_BYTES.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Awaitable, Mapping
from typing import Any, Final

import trio

from broker.net.tls import reason_of
from broker.net.transport import READ_BYTES, Commons, SocketTransport, checkpoint

RECORD_BYTES: Final = 16_384
"""The most that one record holds (RFC 8446, 5.1). OpenSSL's memory buffers keep the size that they have grown to, so they get no more at a time."""
CHUNK_BYTES: Final = 4 * RECORD_BYTES
"""Encrypted at a time, and sent with one call."""
PROTOCOL_BYTES_MAX: Final = 65_536
"""Of alerts and key updates that a peer asks for and does not read."""
PLAIN_BYTES: Final = READ_BYTES + 2 * RECORD_BYTES
"""Never filled: one read of ciphertext, and the part of a record that an earlier one left, are longer than what they hold."""


class TlsTransport(SocketTransport):
    """The server's side of TLS on a connected socket, which it owns. `do_handshake` comes first."""

    __slots__ = (
        "_certificate", "_early", "_encrypted_bytes", "_ended", "_fault", "_incoming", "_outgoing", "_plain", "_said_goodbye", "_tls", "_unsent",
    )  # fmt: skip

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, commons: Commons | None = None) -> None:
        super().__init__(connected, commons)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._plain = self._commons.scratch(PLAIN_BYTES)
        self._certificate: Mapping[str, Any] | None = None
        self._early = b""
        """What came together with the end of the handshake."""
        self._unsent: bytes | memoryview = b""
        """Ciphertext that the kernel has not taken."""
        self._encrypted_bytes = 0
        """How many of the next bytes that `send_nowait` will be given are encrypted already."""
        self._ended = False
        """The peer has said that it sends no more."""
        self._said_goodbye = False
        self._fault = ""
        """Why nothing that comes can be understood any more."""

    async def do_handshake(self) -> None:
        """Raises one of BROKEN; the peer was sent the alert that says why. The caller's scope bounds it."""
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    self._push()
                raise trio.BrokenResourceError(reason_of(error)) from error
            while not self._push():
                await trio.lowlevel.wait_writable(self.socket)
            if not done:
                await super().arrival()
                ciphertext = super().take()
                if ciphertext == b"":
                    raise trio.BrokenResourceError("it left")
                self._incoming.write(ciphertext or b"")
        self._certificate = self._tls.getpeercert()  # now: after a fault in what follows it would not be told
        self._early = self._decrypt(b"")

    def getpeercert(self) -> Mapping[str, Any] | None:
        """What is in the client's certificate, if it showed one that was asked for."""
        return self._certificate

    # ---- reading ----

    def arrival(self, silent: bool = False) -> Awaitable[None]:
        return checkpoint() if self._early or self._fault or self._ended else super().arrival(silent)

    def read_more(self, size: int) -> None:
        pass

    def take(self) -> bytes | None:
        """One read of ciphertext, decrypted to its end. A peer that leaves without close_notify has ended all the same: MQTT's packets
        say themselves whether they are whole."""
        data, self._early = self._early, b""
        if data:
            return data
        if self._fault:
            raise trio.BrokenResourceError(self._fault)
        if self._ended:
            return b""
        ciphertext = super().take()
        return self._decrypt(ciphertext) or None if ciphertext else ciphertext

    def _decrypt(self, ciphertext: bytes) -> bytes:
        """What came before the peer's end, or before a fault, is handed on first."""
        incoming, read, plain = self._incoming, self._tls.read, self._plain
        position = start = 0
        while not self._ended and not self._fault:
            incoming.write(ciphertext[start : start + RECORD_BYTES])
            start += RECORD_BYTES
            try:
                # Asked only while there is something: OpenSSL takes one record at a time, and an exception costs as much as three.
                while incoming.pending:
                    count: int = read(PLAIN_BYTES - position, plain[position:])  # type: ignore[assignment]  # into a buffer it is
                    if not count:
                        self._ended = True
                        break
                    position += count
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                self._ended = True
            except ssl.SSLError as error:
                self._fault = f"TLS: {reason_of(error)}"
            if start >= len(ciphertext):
                break
        if self._outgoing.pending:
            self._answer()
        return bytes(plain[:position])

    def _answer(self) -> None:
        """An alert, or a key update that the peer asked for; what is left of it goes with the next data."""
        with contextlib.suppress(OSError):  # reading will tell
            self._push()
        if len(self._unsent) - self._encrypted_bytes > PROTOCOL_BYTES_MAX:
            self._fault = "TLS: it asks for more answers than it reads"

    # ---- writing ----

    def send_nowait(self, data: bytes | memoryview) -> int:
        """As ever; but what it did not take comes again, and first, until it has: some of it may be encrypted already."""
        taken = 0
        while True:
            if not self._push():
                # What it holds of the data is no more than its own length.
                out = max(0, self._encrypted_bytes - len(self._unsent))
                self._encrypted_bytes -= out
                return taken + out
            taken += self._encrypted_bytes
            self._encrypted_bytes = 0
            if taken >= len(data):
                return taken
            self._encrypt(data if not taken and len(data) <= RECORD_BYTES else memoryview(data)[taken : taken + CHUNK_BYTES])

    def _encrypt(self, part: bytes | memoryview) -> None:
        records = []
        try:
            for start in range(0, len(part), RECORD_BYTES):
                self._tls.write(part[start : start + RECORD_BYTES])
                records.append(self._outgoing.read())
        except ssl.SSLWantReadError:  # an embedder's context allows it; ours does not
            raise trio.BrokenResourceError("TLS: renegotiation is not served") from None
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS: {reason_of(error)}") from error
        self._unsent = records[0] if len(records) == 1 else b"".join(records)
        self._encrypted_bytes = len(part)

    def _push(self) -> bool:
        """Hand the kernel what is encrypted. Is that all of it? Raises OSError."""
        if self._outgoing.pending:
            self._unsent = b"".join((self._unsent, self._outgoing.read()))
        if not self._unsent:
            return True
        count = super().send_nowait(self._unsent)
        if count == len(self._unsent):
            self._unsent = b""
            return True
        if count:
            self._unsent = memoryview(self._unsent)[count:]
        return False

    # ---- ending ----

    def shutdown_write_nowait(self) -> bool:
        """close_notify, and the end of the TCP stream: a peer that reads one of them knows."""
        self._say_goodbye()
        try:
            if not self._push():
                return False
        except OSError:
            self._unsent = b""  # the peer has reset the connection; the reading task will see that for itself
        return super().shutdown_write_nowait()

    async def end(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.shutdown_write_nowait():
            await trio.lowlevel.wait_writable(self.socket)

    def _say_goodbye(self) -> None:
        if not self._said_goodbye:
            self._said_goodbye = True
            # It wants to see the peer's close_notify too, which comes when it comes. In a handshake there is nothing to say.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()

    def close(self) -> None:
        if self.socket.fileno() >= 0 and not self._unsent:
            self._say_goodbye()
            with contextlib.suppress(OSError):
                self._push()
        super().close()
