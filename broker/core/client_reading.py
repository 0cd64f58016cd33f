"""What comes by the thousand is read in place: messages, and the acknowledgements of ours that say nothing but an id.

One loop over the bytes of a read, without a frame, a decoder and a handler for each packet. It takes only what is right and usual: the first
packet that is anything else stays where it is, for the general way to read it, which also knows what to say of what is wrong. A topic is
decoded and checked once, and known by its bytes from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.client_state import Delivery
from broker.reasons import PUBACK_CODES, PUBREL_CODES, ReasonCode
from broker.wire.codec import decode
from broker.wire.packets import MQTT_5, NO_PROPERTIES, PUBLISH, Properties, Publish
from broker.wire.primitives import read_string
from broker.wire.properties import decode_properties

if TYPE_CHECKING:
    from broker.core.client import ClientProtocol

_TOPICS_COUNT_MAX: Final = 1000
_TOPIC_BYTES_MAX: Final = 256
_SET_BYTES_MAX: Final = 6
"""Of the property sets that are known by their bytes: one Subscription Identifier, in most. `wire.properties` knows the others."""
_SETS_COUNT_MAX: Final = 256

# The first bytes of the packets that are read here; of PUBLISH without DUP.
_PUBLISH: Final = frozenset((0x30, 0x31, 0x32, 0x33, 0x34, 0x35))
_PUBACK: Final = 0x40
_PUBREC: Final = 0x50
_PUBREL: Final = 0x62
_PUBCOMP: Final = 0x70

_RECEIVED: Final[dict[int, ReasonCode]] = {code: ReasonCode(code) for code in PUBACK_CODES}
_RELEASED: Final[dict[int, ReasonCode]] = {code: ReasonCode(code) for code in PUBREL_CODES}
_ACKNOWLEDGEMENTS: Final = {_PUBACK: _RECEIVED, _PUBREC: _RECEIVED, _PUBREL: _RELEASED, _PUBCOMP: _RELEASED}
"""The reason codes of each."""


class ClientReading:
    __slots__ = ("_client", "_sets", "_topics")

    def __init__(self, client: ClientProtocol) -> None:
        self._client = client
        self._topics: dict[bytes, str] = {}
        self._sets: dict[bytes, Properties] = {}

    def run(self, count_max: int) -> int:
        """Act on so many packets at most, of those that stand at the beginning of what was fed; how many they were.

        Long, because it is gone through for each packet, and calls add up.
        """
        client = self._client
        frames = client.frames
        data, position, packet_bytes_max = frames.data, frames.position, frames.packet_bytes_max
        size = len(data)
        is_new = client.version >= MQTT_5
        inbox, outbox, events, topics = client.inbox, client.outbox, client.events, self._topics
        count = 0
        head, head_first_byte = b"", -1  # of the last message of QoS 0, up to its payload: mostly the next one's too
        topic: str | None = None
        properties = NO_PROPERTIES
        while count < count_max and position + 4 <= size:
            first_byte = data[position]
            length = data[position + 1]
            start = position + 2
            if length > 127:
                upper = data[start]
                if upper > 127 or upper == 0:
                    break
                length = length & 127 | upper << 7
                start += 1
            end = start + length
            if end > size or end - position > packet_bytes_max:
                break
            if first_byte == head_first_byte and data.startswith(head, start, end):
                assert topic is not None
                publish = Publish(topic, data[start + len(head) : end], 0, first_byte == 0x31, False, 0, properties)
                if client.on_packet is not None:
                    client.on_packet("received", publish, data[position:end])
                frames.position = end
                events.append(Delivery(publish, inbox.connection))
            elif first_byte in _PUBLISH:
                after = start + 2 + (data[start] << 8 | data[start + 1])
                if after > end:
                    break
                key = data[start:after]
                topic = topics.get(key)
                if topic is None:
                    topic = self._new_topic(key)
                    if topic is None:
                        break
                packet_id = 0
                if first_byte > 0x31:
                    if after + 2 > end:
                        break
                    packet_id = data[after] << 8 | data[after + 1]
                    if not packet_id:
                        break
                    after += 2
                properties = NO_PROPERTIES
                if is_new:
                    if after == end:
                        break
                    length = data[after]
                    if length:
                        if length > 127 or after + 1 + length > end:
                            break
                        properties = self._properties(data[after : after + 1 + length])
                        if properties.topic_alias is not None:
                            break
                    after += 1 + length
                head_first_byte = -1
                if not packet_id:
                    head, head_first_byte = data[start:after], first_byte
                publish = Publish(topic, data[after:end], first_byte >> 1 & 3, first_byte & 1 != 0, False, packet_id, properties)
                frames.position = end
                if client.on_packet is not None:
                    client.on_packet("received", publish, data[position:end])
                delivery = inbox.on_publish(publish)
                if delivery is not None:
                    events.append(delivery)
                else:
                    client.sending.acknowledge()
            elif first_byte in _ACKNOWLEDGEMENTS and (length == 2 or (length == 3 and is_new)):
                reason = ReasonCode.SUCCESS
                if length == 3:
                    known = _ACKNOWLEDGEMENTS[first_byte].get(data[start + 2])
                    if known is None:
                        break
                    reason = known
                packet_id = data[start] << 8 | data[start + 1]
                if not packet_id:
                    break
                frames.position = end
                if client.on_packet is not None:
                    client.on_packet("received", decode(first_byte, data[start:end], client.version), data[position:end])
                if first_byte == _PUBACK:
                    outbox.on_puback(packet_id, reason)
                elif first_byte == _PUBCOMP:
                    outbox.on_pubcomp(packet_id)
                elif first_byte == _PUBREC:
                    client.sending.send_acknowledgements(outbox.on_pubrec(packet_id, reason))
                else:
                    client.sending.send_acknowledgements(inbox.on_pubrel(packet_id))
            else:
                break
            count += 1
            position = end
            if client.state != "connected":
                break
        return count

    def _new_topic(self, key: bytes) -> str | None:
        """A Topic Name that came with its length; None for what the general way has to look at. MalformedPacket as in `decode`."""
        topic, _ = read_string(key, 0)
        if not topic or "+" in topic or "#" in topic:
            return None
        if len(key) <= _TOPIC_BYTES_MAX:
            if len(self._topics) >= _TOPICS_COUNT_MAX:
                self._topics.clear()
            self._topics[key] = topic
        return topic

    def _properties(self, block: bytes) -> Properties:
        """A set that came with its length. MalformedPacket and ProtocolError as in `decode`."""
        properties = self._sets.get(block)
        if properties is None:
            properties, _ = decode_properties(block, 0, PUBLISH)
            if len(block) <= _SET_BYTES_MAX:
                if len(self._sets) >= _SETS_COUNT_MAX:
                    self._sets.clear()
                self._sets[block] = properties
        return properties
