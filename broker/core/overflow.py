"""What happens to a message that a recipient's queue has no place for: the rule of the first Topic Filter that matches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.errors import ConfigError
from broker.wire.topics import matches, topic_filter_fault

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
