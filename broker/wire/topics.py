"""Topic Names and Topic Filters (MQTT 5.0, 4.7 and 4.8): their faults, the parts of a shared filter, and plain matching.

`matches` is the rule written down as simply as it can be: clients use it, and the tests hold every faster look-up
against it. Characters are compared one by one, never normalized [MQTT5-4.7.3-4].
"""

from __future__ import annotations

from typing import Final

from broker.wire.primitives import STRING_BYTES_MAX

_SHARE: Final = "$share/"


def topic_name_fault(topic: str) -> str | None:
    """Why `topic` cannot be published to, as a sentence for people; None if it can."""
    if topic and topic.isascii() and len(topic) <= STRING_BYTES_MAX and "\0" not in topic and "+" not in topic and "#" not in topic:
        return None  # as most are
    fault = _string_fault(topic, "topic")
    if fault is None and ("+" in topic or "#" in topic):
        return "a topic must not contain the wildcards + and #"  # [MQTT5-3.3.2-2] [MQTT311-4.7.1-1]
    return fault


def topic_filter_fault(filter: str) -> str | None:
    """Why `filter` cannot be subscribed to, as a sentence for people; None if it can. `$share/group/filter` is checked as such."""
    if not filter or len(filter) > STRING_BYTES_MAX or not filter.isascii() or "\0" in filter:  # most have none of this
        fault = _string_fault(filter, "topic filter")
        if fault is not None:
            return fault
    if filter.startswith(_SHARE):
        group, separator, filter = filter[len(_SHARE) :].partition("/")
        if not group:
            return "a shared subscription needs a group: $share/group/filter"  # [MQTT5-4.8.2-1]
        if "+" in group or "#" in group:
            return "the group of a shared subscription must not contain + or #"  # [MQTT5-4.8.2-2]
        if not separator or not filter:
            return "a shared subscription needs a topic filter after its group: $share/group/filter"  # [MQTT5-4.8.2-2]
    if "#" in filter:
        if filter.index("#") != len(filter) - 1:
            return "# must be the last character of a topic filter"  # [MQTT5-4.7.1-1]
        if filter != "#" and not filter.endswith("/#"):
            return "# must stand alone or after a /"  # [MQTT5-4.7.1-1]
    if "+" in filter and filter.split("/").count("+") != filter.count("+"):
        return "+ must be a whole level"  # [MQTT5-4.7.1-2]
    return None


def split_shared(filter: str) -> tuple[str | None, str]:
    """("group", "a/b") of a well-formed `$share/group/a/b`; (None, filter) of any other."""
    if filter.startswith(_SHARE):
        group, separator, rest = filter[len(_SHARE) :].partition("/")
        if group and separator and rest:
            return group, rest
    return None, filter


def matches(filter: str, topic: str) -> bool:
    """Whether a well-formed, not shared `filter` matches the topic. `a/#` matches `a`; `+` and `#` match no first level with a $."""
    if topic.startswith("$") and filter.startswith(("+", "#")):
        return False  # [MQTT5-4.7.2-1]
    filter_levels = filter.split("/")
    topic_levels = topic.split("/")
    for index, level in enumerate(filter_levels):
        if level == "#":
            return True
        if index == len(topic_levels) or (level != "+" and level != topic_levels[index]):
            return False
    return len(filter_levels) == len(topic_levels)


def _string_fault(text: str, what: str) -> str | None:
    if not text:
        return f"a {what} must not be empty"  # [MQTT5-4.7.3-1]
    if "\0" in text:
        return f"a {what} must not contain U+0000"  # [MQTT5-4.7.3-2]
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return f"a {what} must not contain surrogates"  # [MQTT5-1.5.4-1]
    if size > STRING_BYTES_MAX:
        return f"a {what} of {size} bytes is too long: at most {STRING_BYTES_MAX}"  # [MQTT5-4.7.3-3]
    return None
