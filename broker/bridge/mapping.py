"""From a topic of one broker to that of the other; and which Topic Filters have topics in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.wire.topics import matches

TOPICS_COUNT_MAX: Final = 10_000
"""Whose other name is remembered."""


class Mapping:
    """rules: (filter at the source, what is taken off, what is put before, at which QoS at the most). The first that fits counts, as Mosquitto
    has it."""

    def __init__(self, rules: Sequence[tuple[str, str, str, int]]) -> None:
        self._rules = tuple(rules)
        self._known: dict[str, tuple[str, int] | None] = {}

    def target(self, topic: str) -> tuple[str, int] | None:
        """Its name at the other broker, and the most it may be carried with; None if nothing is said of it."""
        try:
            return self._known[topic]
        except KeyError:
            pass
        if len(self._known) >= TOPICS_COUNT_MAX:
            self._known.clear()
        found = next(((_renamed(topic, before, after), qos) for filter, before, after, qos in self._rules if matches(filter, topic)), None)
        self._known[topic] = found
        return found


def _renamed(topic: str, before: str, after: str) -> str:
    """ "home/#" fits "home" too, which has no prefix "home/" to lose: there the one parent is the other's name."""
    return after + topic[len(before) :] if topic.startswith(before) else after.removesuffix("/")


def covers(wide: str, narrow: str) -> bool:
    """Does each topic that the one Topic Filter matches match the other, wide one too?"""
    if narrow.startswith("$") and wide[:1] in "+#":
        return False  # [MQTT5-4.7.2-1]
    ours, theirs = wide.split("/"), narrow.split("/")
    for index, level in enumerate(ours):
        if level == "#":
            return True
        if index == len(theirs) or theirs[index] == "#" or level not in ("+", theirs[index]):
            return False
    return len(ours) == len(theirs)


def overlap(one: str, other: str) -> bool:
    """Is there a topic that both Topic Filters match?"""
    if one.startswith("$") != other.startswith("$") and (one[:1] in "+#" or other[:1] in "+#"):
        return False  # [MQTT5-4.7.2-1]
    ours, theirs = one.split("/"), other.split("/")
    for index in range(max(len(ours), len(theirs))):
        left = ours[index] if index < len(ours) else None
        right = theirs[index] if index < len(theirs) else None
        if left == "#" or right == "#":
            return True
        if left is None or right is None or (left != right and "+" not in (left, right)):
            return False
    return True
