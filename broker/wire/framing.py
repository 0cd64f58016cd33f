"""FrameDecoder: bytes in as they come, whole frames out. It reads fixed headers and nothing else.

Unread bytes are always `data[position:]`, except inside a frame that has not come in full: its parts wait in a list and are
joined once, so that a frame of n bytes costs O(n) however it is split, and no memory is taken before it has arrived.
The version is not known here: a Remaining Length in a longer form than need be is right in 3.1.1 and malformed in 5.0, so
`overlong` tells the engine.
"""

from __future__ import annotations

from typing import Final

from broker.errors import IncompletePacket, MalformedPacket, PacketTooLarge

PACKET_BYTES_LARGEST: Final = 268_435_460
"""The protocol's own limit: one byte, four of length, 268,435,455 of body (MQTT 5.0, 2.1.4)."""

_PIECES_MAX: Final = 256
"""So many pieces are made one. A peer that sends two bytes at a time would else make us hold twenty-five times as much."""


class FrameDecoder:
    """packet_bytes_max counts the whole packet, fixed header included, and may be changed between frames.

    A caller that reads in place takes `data` and `position`, moves `position` past each whole frame it understands, and
    calls `next_frame()` for all else, a frame that is not complete too; `next_frame` may replace `data`. After an error
    was raised the stream has no next frame: the same error is raised again.
    """

    __slots__ = ("_blocks", "_gathered", "_pieces", "data", "missing_bytes", "overlong", "packet_bytes_max", "position")

    def __init__(self, packet_bytes_max: int) -> None:
        self.packet_bytes_max = packet_bytes_max
        self.data = b""
        self.position = 0
        self.overlong = False
        """Whether the Remaining Length of the last frame had more bytes than it needs [MQTT5-1.5.5-1]."""
        self.missing_bytes = 0
        """What the frame that is being gathered still lacks; 0: none is being gathered."""
        self._gathered = 0  # bytes of it that have come
        self._blocks: list[bytes] | None = None  # pieces that were made one
        self._pieces: list[bytes] | None = None  # None: no list, of which an idle connection would keep two

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fed and not yet given out."""
        return len(self.data) - self.position + self._gathered

    @property
    def frame_bytes(self) -> int:
        """Of the frame that is being gathered, when it will have come in full; 0: none is being gathered."""
        return self._gathered + self.missing_bytes

    @property
    def held_bytes(self) -> int:
        """What is kept in memory: of a read all, however little of it was not given out."""
        return len(self.data) + self._gathered

    def abandon_frame(self) -> None:
        """Let go of a frame that has not come in full: nothing more will be fed."""
        self.missing_bytes = 0
        self._gathered = 0
        self._blocks = self._pieces = None

    def abandon(self) -> None:
        """Let go of everything. Not while somebody reads in place."""
        self.abandon_frame()
        self.data = b""
        self.position = 0

    def take_rest(self) -> bytes:
        """What was fed and not given out, but for a frame that has begun to come: for the caller to feed again."""
        rest = self.data[self.position :]
        self.data = b""
        self.position = 0
        return rest

    def feed(self, data: bytes) -> None:
        """Take more of the stream. `next_frame()` until None should follow before the next feed."""
        if self.missing_bytes > 0:
            self._gather(data)
        elif self.position == len(self.data):
            self.data = data
            self.position = 0
        elif data:
            self.data = self.data[self.position :] + data
            self.position = 0

    def is_drained(self) -> bool:
        """Was everything that was fed given out? Then what was read is let go of."""
        if self.position < len(self.data) or self.missing_bytes > 0:
            return False
        self.data = b""
        self.position = 0
        return True

    def next_frame(self) -> tuple[int, bytes] | None:
        """(first byte, what follows the fixed header), or None while there is no whole frame.

        Raises PacketTooLarge as soon as the header says so, MalformedPacket for a length of more than four bytes.
        """
        data = self.data
        position = self.position
        size = len(data)
        if size - position < 2:
            self._keep_rest()
            return None
        length = data[position + 1]
        start = position + 2
        overlong = False
        if length & 0x80:
            length &= 0x7F
            shift = 7
            while True:
                if start >= size:
                    self._keep_rest()
                    return None
                byte = data[start]
                start += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    overlong = byte == 0
                    break
                if shift == 21:
                    raise MalformedPacket("the remaining length has more than four bytes")
                shift += 7
        end = start + length
        if end - position > self.packet_bytes_max:
            raise PacketTooLarge(f"a packet of {end - position} bytes; at most {self.packet_bytes_max} are accepted")
        if end > size:
            self.missing_bytes = end - size
            self._gathered = size - position
            self._pieces = [data[position:]]
            self._blocks = []
            self.data = b""
            self.position = 0
            return None
        self.position = end
        self.overlong = overlong
        return data[position], data[start:end]

    def _keep_rest(self) -> None:
        """The first bytes of a fixed header, and not the read that they were the end of."""
        self.data = self.data[self.position :]
        self.position = 0

    def end_of_stream(self) -> None:
        """Nothing more will come; call it when `next_frame()` has given all. IncompletePacket if the stream ended inside a frame."""
        left = self.buffered_bytes
        if left:
            raise IncompletePacket(f"the stream ended inside a packet, after {left} bytes of it")

    def _gather(self, data: bytes) -> None:
        pieces, blocks = self._pieces, self._blocks
        assert pieces is not None
        assert blocks is not None
        pieces.append(data)
        self.missing_bytes -= len(data)
        self._gathered += len(data)
        if self.missing_bytes <= 0:
            self.data = b"".join(blocks + pieces)
            self.position = 0
            self.missing_bytes = 0
            self._gathered = 0
            self._blocks = self._pieces = None
        elif len(pieces) == _PIECES_MAX:
            blocks.append(b"".join(pieces))
            pieces.clear()
