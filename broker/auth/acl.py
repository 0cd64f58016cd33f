"""Mosquitto's access rules as they are, read once and compiled, with the line that decides for every answer.

A client is asked for by its own rules first (those under its `user`, or for a client without user name those before the first
`user`), then by the patterns, which hold for all. Among either, a `deny` that matches comes before all others; then any rule that
grants what is asked; what nothing grants is refused. Mosquitto grants every SUBSCRIBE and looks at each message when it is
delivered, so a filter wider than what may be read is no mistake; so do we. A dollar in front (`$SYS`) is matched only by a rule that
has one too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from broker.auth.passwords import read_text
from broker.core.access import Action, is_bridge_state
from broker.errors import ConfigError
from broker.wire.topics import matches, topic_filter_fault

May: TypeAlias = Literal["read", "write", "readwrite", "deny"]

READ: Final = 1
WRITE: Final = 2
_BLANKS: Final = " \t\r\n\v\f"
BITS: Final[dict[str, int]] = {"read": READ, "write": WRITE, "readwrite": READ | WRITE, "deny": 0}


class Rule(NamedTuple):
    """user: None for those without a user name. pattern: `%u` and `%c` stand for user name and Client Identifier, and `user` means nothing.
    bits: READ and WRITE, 0 denies. place: "/etc/broker/acl:12"."""

    filter: str
    bits: int
    user: str | None
    pattern: bool
    place: str
    text: str


class Decision(NamedTuple):
    """cause: for people, when no rule decided."""

    allowed: bool
    rule: Rule | None
    cause: str = ""


class _RuleSet:
    """The rules of one user, denials first. Those without wildcards are found by their topic, so that a long file of them costs nothing."""

    __slots__ = ("_exact", "_wild", "_wild_denials")

    def __init__(self) -> None:
        self._exact: dict[str, list[Rule]] = {}
        self._wild: list[Rule] = []
        self._wild_denials: list[Rule] = []

    def add(self, rule: Rule) -> None:
        if "+" in rule.filter or "#" in rule.filter:
            (self._wild if rule.bits else self._wild_denials).append(rule)
        else:
            self._exact.setdefault(rule.filter, []).append(rule)

    def decide(self, topic: str, wanted: int) -> Rule | None:
        """The rule that decides; None if none does."""
        exact = self._exact.get(topic, ())
        for rule in exact:
            if not rule.bits:
                return rule
        for rule in self._wild_denials:
            if matches(rule.filter, topic):
                return rule
        for rule in exact:
            if rule.bits & wanted:
                return rule
        for rule in self._wild:
            if rule.bits & wanted and matches(rule.filter, topic):
                return rule
        return None


class AccessRules:
    """All rules of a broker or a listener. An instance is an `Authorize`."""

    __slots__ = ("_patterns", "_users")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._users: dict[str | None, _RuleSet] = {}
        patterns: list[Rule] = []
        for rule in rules:
            if rule.pattern:
                patterns.append(rule)
            else:
                self._users.setdefault(rule.user, _RuleSet()).add(rule)
        self._patterns = [rule for rule in patterns if not rule.bits] + [rule for rule in patterns if rule.bits]

    def __call__(self, username: str | None, client_id: str, action: Action, topic: str) -> bool:
        return self.decide(username, client_id, action, topic).allowed

    def decide(self, username: str | None, client_id: str, action: Action, topic: str) -> Decision:
        if action == "subscribe":
            return _SUBSCRIBE
        if topic.startswith("$share"):
            return Decision(False, None, "$share is for subscriptions only")
        if action == "publish" and topic.startswith("$SYS") and not is_bridge_state(topic):
            return Decision(False, None, "$SYS is the broker's own")
        wanted = WRITE if action == "publish" else READ
        own = self._users.get(username)
        rule = None if own is None else own.decide(topic, wanted)
        if rule is not None:
            return Decision(rule.bits != 0, rule)
        if self._patterns:
            # Such a name would turn `%u` into a wildcard (CVE-2017-7650).
            if username is not None and ("+" in username or "#" in username):
                return Decision(False, None, "a user name with + or # matches no pattern, and nothing after it")
            if "+" in client_id or "#" in client_id:
                return Decision(False, None, "a Client Identifier with + or # matches no pattern, and nothing after it")
            for rule in self._patterns:
                if rule.bits and not rule.bits & wanted:
                    continue
                filter = _filled(rule.filter, username, client_id)
                if filter is not None and matches(filter, topic):
                    return Decision(rule.bits != 0, rule)
        return Decision(False, None, "no rule allows it")


_SUBSCRIBE: Final = Decision(True, None, "every subscription is granted; each message is checked when it is delivered")


def _filled(filter: str, username: str | None, client_id: str) -> str | None:
    """With the names put in, each once: what a name brings is not looked at again. None: it needs a user name that is not there."""
    if "%u" not in filter:
        return filter.replace("%c", client_id)
    if username is None:
        return None
    return username.join(part.replace("%c", client_id) for part in filter.split("%u"))


# ---- reading -------------------------------------------------------------------------------------------------------------------


def load_rules(path: str | Path) -> list[Rule]:
    """ConfigError names every line that is wrong."""
    return parse_rules(read_text(path), os.fspath(path))


def parse_rules(text: str, source: str) -> list[Rule]:
    rules: list[Rule] = []
    problems: list[tuple[str, str]] = []
    user: str | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(_BLANKS)
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        rest = rest.strip(_BLANKS)
        fault: str | None = None
        if word == "user":
            user = rest
            fault = None if rest else "expected user NAME"
        elif word in ("topic", "pattern"):
            rule = _rule(rest, user, word == "pattern", f"{source}:{number}", line)
            if isinstance(rule, str):
                fault = rule
            else:
                rules.append(rule)
        else:
            fault = f"expected topic, user or pattern and a space, got {_quoted(word)}"
        if fault is not None:
            problems.append((f"line {number}", fault))
    if problems:
        raise ConfigError(problems, source)
    return rules


def _rule(rest: str, user: str | None, pattern: bool, place: str, line: str) -> Rule | str:
    """Of `[read|write|readwrite|deny] FILTER`; or what is wrong with it. A single word is the filter, whatever it is, as in Mosquitto."""
    first, _, filter = rest.partition(" ")
    filter = filter.strip(_BLANKS)
    if not filter:
        first, filter = "readwrite", first
    if first not in BITS:
        return f"expected read, write, readwrite or deny before the filter, got {_quoted(first)}"
    fault = topic_filter_fault(filter)
    if fault is not None:
        return fault
    return Rule(filter, BITS[first], None if pattern else user, pattern, place, line)


def table_rules(tables: Sequence[tuple[str | None, str, May]], source: str) -> list[Rule]:
    """Of (user, filter, may): the same rules, written in TOML. A filter with `%u` or `%c` and no user is a pattern."""
    rules = []
    for index, (user, filter, may) in enumerate(tables):
        pattern = user is None and ("%u" in filter or "%c" in filter)
        text = f"{'pattern' if pattern else 'topic'} {may} {filter}"
        rules.append(Rule(filter, BITS[may], user, pattern, f"{source}: access[{index}]", text))
    return rules


def _quoted(text: str) -> str:
    """A word that was meant for one of ours, and nothing else: the file may be one of passwords, or a key, and this goes into the log."""
    return repr(text) if re.fullmatch(r"[A-Za-z\t]{1,20}", text) else "something else"
