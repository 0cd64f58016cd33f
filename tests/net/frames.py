"""One end of a WebSocket by hand, bytes and all (RFC 6455): a test of frames should not use the library that it tests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import trio

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = base64.b64encode(b"0123456789abcdef")


def frame(payload: bytes, opcode: int = BINARY, *, fin: bool = True, masked: bool = True) -> bytes:
    """masked: as a client's frames are; a server's are not."""
    if len(payload) < 126:
        size = bytes([len(payload) | 0x80 * masked])
    elif len(payload) < 65_536:
        size = bytes([126 | 0x80 * masked]) + len(payload).to_bytes(2)
    else:
        size = bytes([127 | 0x80 * masked]) + len(payload).to_bytes(8)
    mask = b"\x11\x22\x33\x44"
    # Payloads of megabytes are masked here too, so as one number.
    hidden = (int.from_bytes(payload) ^ int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)])).to_bytes(len(payload))
    return bytes([opcode | 0x80 * fin]) + size + (mask + hidden if masked else payload)


def request(path: str = "/mqtt", subprotocols: str | None = "mqtt", *, host: str = "localhost", origins: Sequence[str] = ()) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY.decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocols is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocols}")
    lines += [f"Origin: {origin}" for origin in origins]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def response(asked: bytes, subprotocol: str | None = "mqtt") -> bytes:
    """The 101 to that request."""
    key = next(line.partition(b":")[2].strip() for line in asked.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    chosen = "" if subprotocol is None else f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    return f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{chosen}\r\n".encode()


class Peer:
    """is_client: frames are masked."""

    def __init__(self, stream: trio.abc.Stream, *, is_client: bool = True) -> None:
        self.stream = stream
        self.is_client = is_client
        self._buffer = bytearray()

    async def _read(self) -> bool:
        data = await self.stream.receive_some(65_536)
        self._buffer += data
        return bool(data)

    async def head(self) -> bytes:
        """An HTTP message up to its empty line; what there is of one at the end of the stream."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._read():
                break
        end = self._buffer.find(b"\r\n\r\n")
        end = len(self._buffer) if end < 0 else end + 4
        found = bytes(self._buffer[:end])
        del self._buffer[:end]
        return found

    async def handshake(self, path: str = "/mqtt", subprotocols: str | None = "mqtt") -> bytes:
        await self.stream.send_all(request(path, subprotocols))
        return await self.head()

    async def send(self, payload: bytes, opcode: int = BINARY, *, fin: bool = True) -> None:
        await self.stream.send_all(frame(payload, opcode, fin=fin, masked=self.is_client))

    async def receive(self) -> tuple[int, bytes] | None:
        """(opcode, payload) of the next frame; None at the end of the stream."""
        while True:
            found = self._take()
            if found is not None:
                return found
            if not await self._read():
                return None

    def _take(self) -> tuple[int, bytes] | None:
        data = self._buffer
        if len(data) < 2:
            return None
        masked, size, start = bool(data[1] & 0x80), data[1] & 0x7F, 2
        if size > 125:
            start += 2 if size == 126 else 8
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start])
        mask = bytes(data[start : start + 4]) if masked else b""
        start += len(mask)
        if len(data) < start + size:
            return None
        opcode, payload = data[0] & 0x0F, bytes(data[start : start + size])
        del data[: start + size]
        assert masked is not self.is_client, "a client masks its frames, a server does not"
        if masked:
            payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        return opcode, payload

    async def receive_bytes(self, count: int) -> bytes:
        """That many bytes of binary messages."""
        found = b""
        while len(found) < count:
            one = await self.receive()
            assert one is not None, f"ended after {len(found)} bytes"
            assert one[0] == BINARY, one
            found += one[1]
        assert len(found) == count, f"{len(found)} bytes came, not {count}"
        return found
