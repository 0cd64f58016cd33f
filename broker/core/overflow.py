"""What happens to a message that a recipient's queue has no place for: the rule of the first Topic Filter that matches it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from broker.errors import ConfigError
from broker.wire.topics import matches, topic_filter_fault

if TYPE_CHECKING:
    from broker.core.outbox import Delivery

RULES: Final = ("drop-oldest", "drop-newest", "latest", "disconnect", "refuse")
DEFAULT_RULE: Final = "drop-oldest"


class OverflowRules:
    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[str, str] | None = None) -> None:
        """rules: Topic Filter to one of `RULES`, the first match decides. ConfigError names every mistake."""
        problems = []
        for filter, rule in (rules or {}).items():
            fault = topic_filter_fault(filter)
            if fault is not None:
                problems.append((f"overflow[{filter!r}]", fault))
            if rule not in RULES:
                problems.append((f"overflow[{filter!r}]", f"expected one of {', '.join(RULES)}, got {rule!r}"))
        if problems:
            raise ConfigError(problems)
        self._rules = list((rules or {}).items())

    def rule_for(self, topic: str) -> str:
        for filter, rule in self._rules:
            if matches(filter, topic):
                return rule
        return DEFAULT_RULE


def keep_latest(queue: deque[Delivery]) -> tuple[deque[Delivery], int]:
    """The queue with only the newest message of each topic, in order, and the bytes that went."""
    seen: set[str] = set()
    kept: deque[Delivery] = deque()
    freed_bytes = 0
    for delivery in reversed(queue):
        topic = delivery.message.topic
        if topic in seen:
            freed_bytes += delivery.message.size
        else:
            seen.add(topic)
            kept.appendleft(delivery)
    return kept, freed_bytes
