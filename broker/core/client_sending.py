"""What a client has to say, from the packet to the bytes that its caller sends.

Frames are put one behind the other, and joined to a batch when bytes are asked for; a batch is the same until the kernel has all of it. What
has been settled meanwhile is acknowledged then, all at once, or before whatever else is said. A broker that does not read ends its
connection: answers to it would pile up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.wire.codec import decode_frame, encode
from broker.wire.packets import Connect, Packet, Publish, Subscribe, Unsubscribe

if TYPE_CHECKING:
    from broker.core.client import ClientProtocol

ACKNOWLEDGEMENT_BYTES_MAX: Final = 5
"""With a reason code, and no properties."""


class ClientSending:
    __slots__ = ("_client", "_frames", "acknowledges", "batch", "waiting_bytes")

    def __init__(self, client: ClientProtocol) -> None:
        self._client = client
        self._frames: list[bytes] = []
        self.waiting_bytes = 0
        """Behind the batch."""
        self.batch = b""
        """What the kernel has not taken yet of the bytes that are being sent."""
        self.acknowledges = False
        """Something is settled that has not been said."""

    def clear(self) -> None:
        """Another connection, or none: nothing of this is for it."""
        self._frames, self.waiting_bytes, self.batch, self.acknowledges = [], 0, b"", False

    def begin_batch(self) -> None:
        """Of all that waits; the last one is gone."""
        self.batch = self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)
        self._frames, self.waiting_bytes = [], 0

    def send(self, packet: Packet, frame: bytes | None = None) -> int:
        """How many bytes wait after it. frame: its bytes, within what the broker takes."""
        client = self._client
        if self.acknowledges:
            self.acknowledge()
        if client.state == "closing":
            return self.waiting_bytes
        if frame is None:
            frame = encode(packet, client.version)
            bytes_max = client.capabilities.packet_bytes_max
            if len(frame) > bytes_max and client.state == "connected":  # not CONNECT: nothing was announced yet
                # It may be neither sent [MQTT5-3.2.2-15] nor left out: nobody would know how things stand.
                client.abandon(f"the broker takes packets of {bytes_max} bytes, and {type(packet).__name__} has {len(frame)}")
                return self.waiting_bytes
        self._frames.append(frame)
        self.waiting_bytes += len(frame)
        if client.on_packet is not None:
            client.on_packet("sent", packet, frame)
        if self.waiting_bytes > client.options.unsent_bytes_max and not isinstance(packet, (Publish, Connect, Subscribe, Unsubscribe)):
            self._abandon_deaf()
        return self.waiting_bytes

    def send_publish(self, frame: bytes) -> int:
        """A new PUBLISH, within what the broker takes. How many bytes wait after it."""
        client = self._client
        if client.state != "closing":
            if client.on_packet is not None:
                return self.send(decode_frame(frame, client.version), frame)
            self._frames.append(frame)
            self.waiting_bytes += len(frame)
        return self.waiting_bytes

    def send_acknowledgements(self, frames: bytes) -> None:
        """Whole ones, as many as there are."""
        client = self._client
        if not frames or client.state == "closing":
            return
        if client.on_packet is not None or client.capabilities.packet_bytes_max < ACKNOWLEDGEMENT_BYTES_MAX:
            position = 0
            while position < len(frames):
                end = position + 2 + frames[position + 1]
                self.send(decode_frame(frames[position:end], client.version))
                position = end
            return
        self._frames.append(frames)
        self.waiting_bytes += len(frames)
        if self.waiting_bytes > client.options.unsent_bytes_max:
            self._abandon_deaf()

    def acknowledge(self) -> None:
        """What is settled and may leave now."""
        self.acknowledges = False
        if self._client.state == "connected":
            self.send_acknowledgements(self._client.inbox.due())

    def _abandon_deaf(self) -> None:
        self._client.abandon("the broker does not read, and more answers wait for it than may")
