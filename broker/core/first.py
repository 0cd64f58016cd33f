"""Messages on topics that have not been published to lately, where one client is to have each: relayed as they came.

Most topics have one subscriber, and many are published to once in a long while: an alarm, a device's own answer. To resolve a route
for such a topic and to keep it costs ten times what the message does. Here the filter's own entry in the topic table says who
gets it, which is no dearer than a route. A topic that comes twice in a row is learned, and so is one that comes by itself and did so
lately, or that has several recipients: they go by their route, in runs (`core.relay`), or past all this when they come alone
(`Engine.sole_recipient`).

Messages are taken in blocks, whose topics are decoded together and looked up one right after the other: between a look-up and the next
lies so little that the processor waits for the memory of several at a time. Whatever is not plain stays at the decoder's position and
goes the general way: access rules, mount points, properties that belong to this hop, a topic that nobody wants or that begins with `$`.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final

from broker.core.outbox import JOINED_BYTES_MAX
from broker.core.plain_properties import plain_stop
from broker.core.publish import learn
from broker.core.runs import alike, at_qos_0, cells
from broker.core.subscription import Subscription
from broker.wire.packets import MQTT_5
from broker.wire.primitives import encode_string

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.state import State
    from broker.core.subscription import Entry

PASSED_COUNT_MAX: Final = 4096
PASSED_BYTES_MAX: Final = 1024
"""Longer topics are never learned, and not noted: four thousand of 16 KiB would be 64 MB, for each client."""
_BLOCK_COUNT_MIN: Final = 4
_BLOCK_COUNT_MAX: Final = 128
"""Messages looked at together. Blocks grow, so that what was looked at in vain is never much more than what was not."""
_ROWS_COUNT_MIN: Final = 4
"""Fewer frames of one size are taken one by one."""
_DOLLAR: Final = 0x24


def relay_firsts(state: State, link: Link) -> None:
    """Give the QoS 0 messages that stand at the decoder's position, and whose topics are not known, each to the one client that is to have it.

    Where it stops at one whose topic is valid and permitted, and that is to go by a route, the topic is known.
    """
    if link.mount_point or not link.access.allows_all:
        return
    decoder = link.decoder
    count_max = state.work_max - state.work
    block = max(_BLOCK_COUNT_MIN, link.passed_count)
    total = 0
    while True:
        names, frames = _block(link, min(block, count_max - total))
        if not frames:
            break
        alone = total == 0 and len(frames) == 1 and decoder.position + len(frames[0]) == len(decoder.data)
        given = _give(state, link, names, frames, alone)
        total += given
        decoder.position += sum(map(len, frames[:given]))
        if given < len(frames):
            break
        block = min(4 * block, _BLOCK_COUNT_MAX)
    link.passed_count = min(total, _BLOCK_COUNT_MAX)
    state.work += total
    counters = state.counters
    counters.packets_received += total
    counters.publish_received += total
    counters.packets_sent += total
    counters.publish_sent += total


def _block(link: Link, count_max: int) -> tuple[list[bytes], list[bytes]]:
    """The next messages, at most so many, as their topics and their frames: as far as they are in order and nothing in them is of one hop."""
    decoder = link.decoder
    data = decoder.data
    end = len(data)
    position = decoder.position
    packet_bytes_max = decoder.packet_bytes_max
    levels_max = link.limits.filter_levels_max
    is_mqtt_5 = link.version >= MQTT_5
    singly_until = 0
    names: list[bytes] = []
    frames: list[bytes] = []
    while len(frames) < count_max and end - position >= 6 and data[position] == 0x30:
        topic_at = position + 4
        length = data[position + 1]
        if length >= 0x80:  # up to 16 KiB
            second = data[position + 2]
            if second >= 0x80 or second == 0:
                break
            length = (length & 0x7F) | second << 7
            topic_at += 1
        stop = topic_at - 2 + length
        payload_at = topic_stop = topic_at + (data[topic_at - 2] << 8 | data[topic_at - 1])
        if stop > end or topic_stop > stop or topic_stop == topic_at or stop - position > packet_bytes_max or data[topic_at] == _DOLLAR:
            break
        if is_mqtt_5:
            if topic_stop == stop:
                break
            payload_at = topic_stop + 1 if data[topic_stop] == 0 else plain_stop(data, topic_stop, stop, link.limits.properties_bytes_max)
            if payload_at == 0:
                break
        size = stop - position
        if topic_stop - topic_at >= levels_max and data.count(b"/", topic_at, topic_stop) >= levels_max:
            break
        rows = 1
        if stop + size <= end and data[stop + 1] == data[position + 1] and position >= singly_until:
            # Mostly they are of one size, and so are their topics: then they are a table (`core.runs`).
            most = count_max - len(frames) if topic_stop - topic_at < levels_max else 1
            rows = alike(data, position, size, topic_at - position, topic_stop - position, payload_at - position, most)
            singly_until = position + rows * size
            if rows > 1:
                dollar_at = data[topic_at:singly_until:size].find(_DOLLAR)
                if dollar_at > 0:
                    rows = dollar_at
        if rows < _ROWS_COUNT_MIN:
            names.append(data[topic_at:topic_stop])
            frames.append(data[position:stop])
            position = stop
        else:
            names += cells(data, position, size, topic_at - position, topic_stop - topic_at, rows)
            frames += cells(data, position, size, 0, size, rows)
            position += rows * size
    return names, frames


def _came_before(link: Link, name: bytes) -> bool:
    """Did this topic come by itself lately?"""
    if len(name) > PASSED_BYTES_MAX:
        return False
    passed = link.passed
    if passed is None:
        passed = link.passed = set()
    elif name in passed:
        return True
    elif len(passed) >= PASSED_COUNT_MAX:
        passed.clear()
    passed.add(name)
    return False


def _give(state: State, link: Link, names: list[bytes], frames: list[bytes], alone: bool) -> int:
    """Give each frame to the one client that is to have it, as far as that is plain; how many were. alone: it is all that a read brought."""
    try:
        text = str(b"\0".join(names), "utf-8")
    except UnicodeDecodeError:
        return 0
    topics = text.split("\0")
    if len(topics) != len(names):
        return 0  # U+0000 in one of them
    entries = _literal_entries(state.topics.literals, topics)
    wildcards = state.topics.wildcards
    if wildcards.filters_count:
        if "+" in text or "#" in text:
            return 0
        entries = [wildcards.sole(topic, entry) for topic, entry in zip(topics, entries)]  # noqa: B905  # all these are of one length
    version = link.version
    access = link.access
    last = topics[0] if alone and _came_before(link, names[0]) else link.passed_last
    ready = state.ready
    sole = link.passed_to != ""
    count = 0
    for frame, topic, entry in zip(frames, topics, entries):  # noqa: B905
        if isinstance(entry, Subscription) and entry.plain and topic != last:
            session = entry.session
            recipient = session.link if session.access is access or session.access.allows_all else None
        elif entry is None:
            break
        else:
            recipient = None
        if recipient is None:
            learn(state, link, topic, encode_string(topic))
            break
        outbox = recipient.outbox
        grown = outbox.committed_bytes + len(frame)
        if grown >= recipient.passing_bytes_max or outbox.waiting.count or outbox.counted_bytes:
            learn(state, link, topic, encode_string(topic))
            break
        if recipient.version != version and (recipient.version >= MQTT_5) is not (version >= MQTT_5):
            frame = _other_form(link, frame, topic, len(names[count]))
            grown = outbox.committed_bytes + len(frame)
        chunks = outbox.chunks  # as `outbox.append`, a call less
        if chunks is not None:
            chunks.append(frame)
        elif not outbox.joined:
            outbox.joined = frame
        elif grown <= JOINED_BYTES_MAX:
            outbox.joined += frame
        else:
            outbox.chunks = [outbox.joined, frame]
            outbox.joined = b""
        outbox.committed_bytes = grown
        if not recipient.ready:
            recipient.ready = True
            ready.append(recipient)
        if sole and recipient.client_id != link.passed_to and recipient is not link:
            sole = link.passed_to is None
            link.passed_to = recipient.client_id if sole else ""
        last = topic
        count += 1
    link.passed_last = last
    return count


def _literal_entries(literals: dict[str, Entry], topics: list[str]) -> list[Entry | None]:
    """What topics find that equal a filter without wildcards, and so are valid. All are looked up at once, if all are there: then so little
    lies between two look-ups that the processor waits for the memory of several at a time."""
    if len(topics) > 1 and literals:
        try:
            return list(itemgetter(*topics)(literals))
        except KeyError:
            pass
    return [literals.get(topic) for topic in topics]


def _other_form(link: Link, frame: bytes, topic: str, topic_bytes: int) -> bytes:
    """For a recipient whose protocol has properties where its publisher's has none, or none where that has them."""
    payload_at = (4 if frame[1] < 0x80 else 5) + topic_bytes
    if link.version < MQTT_5:
        return at_qos_0(frame, len(frame), topic, b"\x00", payload_at)
    payload_at = payload_at + 1 if frame[payload_at] == 0 else plain_stop(frame, payload_at, len(frame), link.limits.properties_bytes_max)
    return at_qos_0(frame, len(frame), topic, b"", payload_at)
