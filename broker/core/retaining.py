"""The hot path to the retained store: PUBLISH at QoS 0 with RETAIN, kept as the bytes that came.

What the general way asks of such a message is asked here in the same order and where it stands: its topic, permission, room. It goes
on from here to whoever subscribed. Whatever is not plain (an alias, an expiry, an empty payload, a topic of `$...`, a full store)
stays at the decoder's position and goes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.kept import KEPT_PLAIN, KEPT_PLAIN_5, message_of
from broker.core.link import CONNECTED
from broker.core.plain_properties import plain_stop
from broker.core.publish import forget_expiry, may_publish, route
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State

_DOLLAR: Final = 0x24
_FIRST_5: Final = bytes((KEPT_PLAIN_5,))


def retain(state: State, link: Link, now: float) -> bool:
    """Keep what stands at the decoder's position and is plain. False: nothing was."""
    decoder = link.decoder
    data = decoder.data
    position = decoder.position
    end = len(data)
    if end - position < 6 or data[position] != KEPT_PLAIN or link.mount_point or not link.promised.retain_available:
        return False
    limits = link.limits
    store = state.retained
    topics = state.topics
    places = state.limits.retained_count_max - len(store)
    if state.over_memory_for_later(end - position):
        return False
    is_mqtt_5 = link.version >= MQTT_5
    allows_all = link.access.allows_all
    levels_max = limits.filter_levels_max
    packet_bytes_max = decoder.packet_bytes_max
    work_max = state.limits.work_per_turn_max
    taken = 0
    while end - position >= 6 and data[position] == KEPT_PLAIN and places > 0:
        body = position + 2
        length = data[position + 1]
        if length >= 0x80:  # up to 16 KiB
            second = data[position + 2]
            if second >= 0x80 or second == 0:
                break
            length = (length & 0x7F) | second << 7
            body += 1
        stop = body + length
        payload_at = topic_stop = body + 2 + (data[body] << 8 | data[body + 1])
        if stop > end or topic_stop >= stop or topic_stop == body + 2 or stop - position > packet_bytes_max or data[body + 2] == _DOLLAR:
            break
        if is_mqtt_5:
            payload_at = topic_stop + 1 if data[topic_stop] == 0 else plain_stop(data, topic_stop, stop, limits.properties_bytes_max)
            if payload_at == 0 or payload_at == stop:
                break
        topic_field = data[body:topic_stop]
        try:
            topic = str(data[body + 2 : topic_stop], "utf-8")
        except UnicodeDecodeError:
            break
        if "\0" in topic or "+" in topic or "#" in topic or topic.count("/") >= levels_max:
            break
        if not allows_all and not may_publish(state, link, topic):
            break
        kept = data[position:stop] if not is_mqtt_5 else _FIRST_5 + data[position + 1 : stop]
        previous = store.put(topic, topic_field, kept, topic_stop - body - 2 + stop - payload_at)
        if previous is None:
            places -= 1
        else:
            forget_expiry(state, previous)
        decoder.position = position = stop
        taken += 1
        state.work += 1
        if topics.may_be_wanted(topic):
            message = message_of(kept)
            message.origin = link.client_id
            route(state, message, link, now, True)
            if link.phase != CONNECTED or link.paused or state.over_memory_for_later(end - position):
                break
        if state.work >= work_max:
            break
    state.counters.packets_received += taken
    state.counters.publish_received += taken
    return taken > 0
