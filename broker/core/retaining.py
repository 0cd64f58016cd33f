"""The hot path to the retained store: PUBLISH at QoS 0 and 1 with RETAIN, kept as the bytes that came.

What the general way asks of such a message is asked here in the same order and where it stands: its topic, permission, room. It goes
on from here to whoever subscribed. Whatever is not plain (an alias, an empty payload, a topic of `$...`, a full store)
stays at the decoder's position and goes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.kept import KEPT_PLAIN, KEPT_PLAIN_5, WITH_PROPERTIES, Expiring, Kept, framed, message_of
from broker.core.link import CONNECTED
from broker.core.plain_properties import plain_stop
from broker.core.publish import answer_puback, may_publish, replaced, route
from broker.reasons import ReasonCode
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

_AT_QOS_1: Final = KEPT_PLAIN | 1 << 1
RETAINED_WORK: Final = 4
"""To keep a message costs as much as so many deliveries."""
_DOLLAR: Final = 0x24
_FIRST_5: Final = bytes((KEPT_PLAIN_5,))
_EXPIRY: Final = 0x02
_EXPIRY_BYTES: Final = 5
"""Message Expiry Interval: its identifier, and how long a property set is that has nothing else."""


def retain(state: State, link: Link, now: float) -> bool:
    """Keep what stands at the decoder's position and is plain. False: nothing was."""
    decoder = link.decoder
    data = decoder.data
    position = decoder.position
    end = len(data)
    if end - position < 6 or data[position] not in (KEPT_PLAIN, _AT_QOS_1) or link.mount_point or not link.promised.retain_available:
        return False
    store = state.retained
    places = state.limits.retained_count_max - len(store)
    is_mqtt_5 = link.version >= MQTT_5
    taken = 0
    while end - position >= 6 and places > 0:
        first = data[position]
        if first != KEPT_PLAIN and (first != _AT_QOS_1 or link.promised.maximum_qos == 0):
            break
        body = position + 2
        length = data[position + 1]
        if length >= 0x80:  # up to 16 KiB
            second = data[position + 2]
            if second >= 0x80 or second == 0:
                break
            length = (length & 0x7F) | second << 7
            body += 1
        stop = body + length
        topic_stop = body + 2 + (data[body] << 8 | data[body + 1])
        properties_at = payload_at = topic_stop if first == KEPT_PLAIN else topic_stop + 2
        if stop > end or payload_at >= stop or topic_stop == body + 2 or stop - position > decoder.packet_bytes_max:
            break
        expires_in_s = -1
        if is_mqtt_5:
            if data[payload_at] == 0:
                payload_at += 1
            elif data[payload_at] == _EXPIRY_BYTES and stop - payload_at > 1 + _EXPIRY_BYTES and data[payload_at + 1] == _EXPIRY:
                expires_in_s = int.from_bytes(data[payload_at + 2 : payload_at + 6], "big")
                payload_at += 1 + _EXPIRY_BYTES
            else:
                payload_at = plain_stop(data, payload_at, stop, link.limits.properties_bytes_max)
            if payload_at == 0 or payload_at == stop:
                break
        packet_id = 0 if first == KEPT_PLAIN else data[topic_stop] << 8 | data[topic_stop + 1]
        if (first != KEPT_PLAIN and packet_id == 0) or (not taken and state.over_memory_for_later(end - position)):
            break
        topic = _topic(link, data[body + 2 : topic_stop])
        if not topic:
            break
        topic_field = data[body:topic_stop]
        kept: Kept
        if expires_in_s >= 0:
            kept = Expiring(framed(first | WITH_PROPERTIES, topic_field, b"\x00", data[payload_at:stop]), now + expires_in_s)
        elif packet_id:
            kept = framed(first | WITH_PROPERTIES if is_mqtt_5 else first, topic_field, data[properties_at:payload_at], data[payload_at:stop])
        else:
            kept = _FIRST_5 + data[position + 1 : stop] if is_mqtt_5 else data[position:stop]
        previous = store.put(topic, topic_field, kept)
        if previous is None:
            places -= 1
        if expires_in_s >= 0 or isinstance(previous, Expiring):
            replaced(state, kept, previous)
        decoder.position = position = stop
        taken += 1
        state.work += RETAINED_WORK
        if not _hand_on(state, link, topic, kept, packet_id, now) or state.work >= state.work_max:
            break
    state.counters.packets_received += taken
    state.counters.publish_received += taken
    return taken > 0


def _topic(link: Link, encoded: bytes) -> str:
    """The topic, if it is well-formed and this client may publish there; "" for one that the general way has to look at."""
    if encoded[0] == _DOLLAR:
        return ""
    try:
        topic = str(encoded, "utf-8")
    except UnicodeDecodeError:
        return ""
    if "\0" in topic or "+" in topic or "#" in topic or topic.count("/") >= link.limits.filter_levels_max:
        return ""
    return topic if link.access.allows_all or may_publish(link, topic) else ""


def _hand_on(state: State, link: Link, topic: str, kept: Kept, packet_id: int, now: float) -> bool:
    """Give it to whoever subscribed, and answer. False: go no further, for now or at all."""
    if not state.topics.may_be_wanted(topic):
        if packet_id:
            answer_puback(state, link, packet_id, ReasonCode.NO_MATCHING_SUBSCRIBERS)
        return True
    reason = route(state, message_of(kept, link.client_id), link, now, True)
    if link.phase != CONNECTED:
        return False  # its own overflow rule has closed it, and nothing comes after a DISCONNECT [MQTT5-3.14.4-1]
    if packet_id:
        answer_puback(state, link, packet_id, reason)
    return not link.paused and not state.over_memory_for_later(len(link.decoder.data) - link.decoder.position)
