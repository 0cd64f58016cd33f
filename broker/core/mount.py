"""Mount points: all topics of a listener's clients lie below one prefix, of which those clients see nothing.

"factory1/" is put before every Topic Name and Topic Filter that such a client says, as it comes in, and taken off the topics that it
is sent, as they are encoded; in between (routes, retained messages, access rules, overflow rules) everything is called by its full name.
One rule looks at how a topic begins, and is kept for such a client's names: `is_hidden`.
The fast paths relay bytes as they came, which is no good where one side calls a topic otherwise: a link with a mount point knows
no topics by their bytes, and a route that leads to one is not plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from broker.wire.topics import split_shared, topic_name_fault

if TYPE_CHECKING:
    from broker.core.message import ApplicationMessage
    from broker.wire.packets import WillMessage

MOUNT_POINT_LENGTH_MAX: Final = 1024


def mount_point_fault(mount_point: str) -> str | None:
    """What is wrong with it, or None; "" is none."""
    if not mount_point:
        return None
    if not mount_point.endswith("/"):
        return f'expected a "/" at the end, or "a1" would lie below "a": got {mount_point!r}'
    if mount_point.startswith("$"):
        return "topics that begin with $ are the broker's"
    if len(mount_point) > MOUNT_POINT_LENGTH_MAX:
        return f"expected at most {MOUNT_POINT_LENGTH_MAX} characters, got {len(mount_point)}"
    return topic_name_fault(mount_point)


def mounted_filter(mount_point: str, filter: str) -> str:
    """`$share/group/a/b` is still a shared one: `$share/group/factory1/a/b`."""
    group, plain = split_shared(filter)
    return mount_point + filter if group is None else f"$share/{group}/{mount_point}{plain}"


def mounted_will(mount_point: str, will: WillMessage) -> WillMessage:
    return structs.replace(will, topic=mount_point + will.topic)


def is_below(mount_point: str, topic: str) -> bool:
    """Is there anything left of a topic that a mounted filter matches? "factory1/#" matches "factory1" and "factory1/" too."""
    return len(topic) > len(mount_point)


def is_hidden(mount_point: str, topic: str) -> bool:
    """Does it begin with $, as the client calls it? Then no filter of its that begins with a wildcard matches it [MQTT5-4.7.2-1]
    [MQTT311-4.7.2-1]."""
    return topic.startswith("$", len(mount_point))


def own_topic_field(mount_point: str, message: ApplicationMessage) -> bytes:
    """The topic as the client calls it, encoded with its length."""
    encoded = message.topic_field[2 + len(mount_point.encode()) :]
    return len(encoded).to_bytes(2, "big") + encoded
