"""Messages on topics that have not been published to lately, where one client is to have each: relayed as they came.

Most topics have one subscriber, and many are published to once in a long while: an alarm, a device's own answer. To resolve a route
for such a topic and to keep it costs ten times what the message does. Here the filter's own entry in the topic table says who
gets it, which for a literal filter is no dearer than a route. A topic that comes twice in a row is learned, and so is one that comes again
soon where it is dearer (a wildcard had to be looked for) or comes by itself, or that has several recipients: they go by their route, in
runs (`core.relay`), or past all this when they come alone (`Engine.sole_recipient`).

Whatever is not plain stays at the decoder's position and goes the general way: access rules, mount points, properties that belong to
this hop, a topic that nobody wants or that begins with `$`. The frame's head is taken apart in place, here as in `relay` and `retaining`:
a call for each frame costs a twelfth of such a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.plain_properties import plain_stop
from broker.core.publish import learn
from broker.core.runs import OTHER_FORM_BYTES_MAX, at_qos_0
from broker.core.subscription import Subscription
from broker.wire.packets import MQTT_5

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State
    from broker.core.subscription import Entry

PASSED_COUNT_MAX: Final = 4096
_DOLLAR: Final = 0x24


def relay_firsts(state: State, link: Link) -> None:
    """Give the QoS 0 messages that stand at the decoder's position, and whose topics are not known, each to the one client that is to have it.

    Where it stops at one whose topic is valid and permitted, and that is to go by a route, the topic is known.
    """
    if link.mount_point or not link.access.allows_all:
        return
    decoder = link.decoder
    data = decoder.data
    position = decoder.position
    end = len(data)
    topics = state.topics
    literals = topics.literals
    wildcards = topics.wildcards if topics.wildcards.filters_count else None
    known = link.known_topics
    remembered = topics.remembered
    passed = link.passed
    last = link.passed_last
    passed_to = link.passed_to
    version = link.version
    is_mqtt_5 = version >= MQTT_5
    levels_max = link.limits.filter_levels_max
    packet_bytes_max = decoder.packet_bytes_max
    count_max = state.limits.work_per_turn_max - state.work
    ready = state.ready
    count = 0
    while end - position >= 6 and data[position] == 0x30 and count < count_max:
        body = position + 2
        length = data[position + 1]
        if length >= 0x80:  # up to 16 KiB
            second = data[position + 2]
            if second >= 0x80 or second == 0:
                break
            length = (length & 0x7F) | second << 7
            body += 1
        stop = body + length
        topic_at = body + 2
        payload_at = topic_stop = topic_at + (data[body] << 8 | data[body + 1])
        if stop > end or topic_stop > stop or topic_stop == topic_at or stop - position > packet_bytes_max or data[topic_at] == _DOLLAR:
            break
        if is_mqtt_5:
            if topic_stop == stop:
                break
            payload_at = topic_stop + 1 if data[topic_stop] == 0 else plain_stop(data, topic_stop, stop, link.limits.properties_bytes_max)
            if payload_at == 0:
                break
        try:
            topic = str(data[topic_at:topic_stop], "utf-8")
        except UnicodeDecodeError:
            break
        if len(topic) >= levels_max and topic.count("/") >= levels_max:
            break
        # A topic that equals a filter without wildcards is valid.
        entry: Entry | None = literals.get(topic)
        searched = entry is None
        if searched and (wildcards is None or "+" in topic or "#" in topic or "\0" in topic):
            break
        again = topic == last
        noted = searched or (count == 0 and stop == end)
        if noted:
            key = data[body:topic_stop]
            if key in known or key in remembered:
                break
            again = again or (passed is not None and key in passed)
        recipient: Link | None = None
        if not again:
            if wildcards is not None:
                entry = wildcards.sole(topic, entry)
                if entry is None:
                    break
            if isinstance(entry, Subscription) and entry.plain and entry.session.access.allows_all:
                recipient = entry.session.link
        if recipient is None or recipient.aliases_out is not None:
            learn(state, link, topic, data[body:topic_stop])
            break
        outbox = recipient.outbox
        size = stop - position
        grown = size + OTHER_FORM_BYTES_MAX
        if (
            outbox.committed_bytes + grown >= recipient.outbox_bytes_high
            or recipient.packet_bytes_max < grown
            or outbox.waiting.count
            or outbox.counted_bytes
        ):
            learn(state, link, topic, data[body:topic_stop])
            break
        frame = data[position:stop]
        if recipient.version != version and (recipient.version >= MQTT_5) is not is_mqtt_5:
            frame = at_qos_0(frame, size, topic, b"" if is_mqtt_5 else b"\x00", payload_at - position)
        outbox.append(frame)
        if not recipient.ready:
            recipient.ready = True
            ready.append(recipient)
        if noted:
            if passed is None:
                passed = link.passed = set()
            elif len(passed) >= PASSED_COUNT_MAX:
                passed.clear()
            passed.add(key)
        last = topic
        if passed_to != "" and recipient.client_id != passed_to and recipient is not link:
            passed_to = recipient.client_id if passed_to is None else ""
        count += 1
        position = stop
    link.passed_last = last
    link.passed_to = passed_to
    decoder.position = position
    state.work += count
    counters = state.counters
    counters.packets_received += count
    counters.publish_received += count
    counters.packets_sent += count
    counters.publish_sent += count
