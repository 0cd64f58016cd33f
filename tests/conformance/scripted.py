"""Our client's rules against a broker that a test plays by hand: bytes in, bytes out, no stream and no clock.

`ScriptedBroker` says what a test tells it to, and shows each frame that the client sends, whole and in order.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from broker.core.client import ClientProtocol
from broker.core.client_state import ClientOptions, Connected, Delivery, Event, ExchangeDone, Outgoing
from broker.wire.framing import FrameDecoder
from broker.wire.packets import Publish

CONNACK: Final = {5: bytes.fromhex("20 03 00 00 00"), 4: bytes.fromhex("20 02 00 00")}
CONNACK_RESUMED: Final = {5: bytes.fromhex("20 03 01 00 00"), 4: bytes.fromhex("20 02 01 00")}


class ScriptedBroker:
    def __init__(self, version: int = 5, **options: Any) -> None:
        options.setdefault("client_id", "c")
        self.version = version
        self.client = ClientProtocol(ClientOptions(version=version, **options))
        self.now = 0.0
        self.events: list[Event] = []

    def sent(self) -> list[bytes]:
        """The frames that the client has sent since the last call."""
        decoder = FrameDecoder(268_435_460)
        frames = []
        while data := self.client.data_to_send():
            decoder.feed(data)
            self.client.bytes_sent(len(data), self.now)
        while (frame := decoder.next_frame()) is not None:
            first_byte, body = frame
            frames.append(bytes((first_byte,)) + _varint(len(body)) + body)
        assert decoder.buffered_bytes == 0
        self.events += self.client.take_events()
        return frames

    def say(self, *frames: bytes | str) -> list[bytes]:
        """Send these (hex or bytes) to the client; what it answers."""
        for frame in frames:
            self.client.receive(bytes.fromhex(frame) if isinstance(frame, str) else frame, self.now)
        return self.sent()

    def connect(self, connack: bytes | str | None = None) -> list[bytes]:
        """A connection stands and is accepted; what the client sends after its CONNECT."""
        self.client.begin_connection(self.now)
        first = self.sent()
        assert [frame[0] for frame in first] == [0x10]
        return self.say(CONNACK[self.version] if connack is None else connack)

    def resume(self) -> list[bytes]:
        """The connection is lost and comes again, with the session present."""
        self.client.connection_lost(self.now)
        return self.connect(CONNACK_RESUMED[self.version])

    def publish(self, topic: str = "t", payload: bytes = b"", qos: int = 0, **fields: Any) -> tuple[Outgoing, list[bytes]]:
        outgoing = self.client.publish(Publish(topic, payload, qos), **fields)
        return outgoing, self.sent()

    @property
    def received(self) -> list[bytes]:
        """Payloads of the messages given to the program."""
        return [event.publish.payload for event in self.events if isinstance(event, Delivery)]

    @property
    def done(self) -> list[Outgoing]:
        return [event for event in self.events if isinstance(event, Outgoing)]

    @property
    def exchanges_done(self) -> int:
        return sum(isinstance(event, ExchangeDone) for event in self.events)

    @property
    def connected(self) -> bool:
        return any(isinstance(event, Connected) for event in self.events) and self.client.state == "connected"

    def settle_all(self) -> list[bytes]:
        """The program is done with all that it was given; what the client answers."""
        for event in self.events:
            if isinstance(event, Delivery) and not event.settled:
                self.client.settle(event)
        return self.sent()

    def message(self, packet_id: int, qos: int, payload: bytes = b"m", dup: bool = False, topic: bytes = b"t") -> bytes:
        """A PUBLISH to the client."""
        properties = b"\x00" if self.version == 5 else b""
        body = struct.pack(">H", len(topic)) + topic + (struct.pack(">H", packet_id) if qos else b"") + properties + payload
        return bytes((0x30 | dup << 3 | qos << 1,)) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while True:
        number, low = divmod(number, 128)
        encoded.append(low | (0x80 if number else 0))
        if not number:
            return bytes(encoded)
