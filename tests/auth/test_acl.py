"""ACL files by hand: what a line means, what decides, and what is no line at all. (The comparison with Mosquitto has the breadth.)"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.acl import AccessRules, parse_rules, table_rules
from broker.errors import ConfigError

FILE = """\
# anybody without a name
topic read news/#
topic deny news/secret

user ann
topic write sensors/ann/+
topic sensors/ann/state
topic readwrite   a b/c
user ben
topic deny #
topic #

pattern readwrite own/%c/#
pattern read home/%u
"""


@pytest.fixture(scope="module")
def rules() -> AccessRules:
    return AccessRules(parse_rules(FILE, "acl"))


@pytest.mark.parametrize(
    ("user", "action", "topic", "allowed", "line"),
    [
        (None, "receive", "news/today", True, 2),
        (None, "publish", "news/today", False, 0),
        (None, "receive", "news/secret", False, 3),
        ("ann", "receive", "news/today", False, 0),  # a user has nothing of the anonymous part
        ("ann", "publish", "sensors/ann/x", True, 6),
        ("ann", "receive", "sensors/ann/x", False, 0),
        ("ann", "receive", "sensors/ann/state", True, 7),
        ("ann", "publish", "a b/c", True, 8),
        ("ben", "receive", "x", False, 10),  # a denial comes first, wherever it stands
        ("ann", "publish", "own/dev1/x", True, 13),
        (None, "publish", "own/dev1", True, 13),
        ("ann", "publish", "own/dev2/x", False, 0),
        ("ann", "receive", "home/ann", True, 14),
        (None, "receive", "home/%u", False, 0),
        ("stranger", "receive", "home/stranger", True, 14),
        ("a+", "receive", "home/a+", False, 0),
    ],
)
def test_the_line_that_decides(rules: AccessRules, user: str | None, action: str, topic: str, allowed: bool, line: int) -> None:
    decision = rules.decide(user, "dev1", action, topic)  # type: ignore[arg-type]  # one of two literals
    assert (decision.allowed, 0 if decision.rule is None else int(decision.rule.place.rpartition(":")[2])) == (allowed, line)
    assert decision.rule is not None or decision.cause


def test_every_subscription_is_granted_as_mosquitto_does(rules: AccessRules) -> None:
    assert rules("nobody", "x", "subscribe", "#")


def test_names_are_put_in_once() -> None:
    """A user called %c is not given the Client Identifier's place."""
    tricky = AccessRules(parse_rules("pattern x/%u/%c", "acl"))
    assert tricky("%c", "id", "publish", "x/%c/id")
    assert not tricky("%c", "id", "publish", "x/id/id")
    assert tricky("%u", "%u", "publish", "x/%u/%u")


def test_mistakes_are_named_by_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules("topic read a\nuser\nTopic a\ntopic\ntopic raed a\ntopic a/#/b\npattern\ttab %c\n  # indented\n", "acl")
    assert caught.value.problems == (
        ("line 2", "expected user NAME"),
        ("line 3", "expected topic, user or pattern and a space, got 'Topic'"),
        ("line 4", "a topic filter must not be empty"),
        ("line 5", "expected read, write, readwrite or deny before the filter, got 'raed'"),
        ("line 6", "# must be the last character of a topic filter"),
        ("line 7", "expected topic, user or pattern and a space, got 'pattern\\ttab'"),
    )


@pytest.mark.parametrize("line", ["ann:hunter2", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7", "topic hunter2: a/b", "-----BEGIN"])
def test_a_mistake_does_not_say_what_may_be_a_secret(line: str) -> None:
    """A file of passwords, or a key, that was given for one of rules: what is wrong with it goes into the log."""
    with pytest.raises(ConfigError) as caught:
        parse_rules(line, "acl")
    assert "got something else" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "MIIE" not in str(caught.value)


def test_the_same_in_tables() -> None:
    rules = AccessRules(table_rules([("ann", "a/#", "read"), (None, "home/%u", "readwrite"), (None, "b", "write"), ("ann", "a/b", "deny")], "config"))
    assert rules("ann", "x", "receive", "a/c")
    assert not rules("ann", "x", "receive", "a/b")
    assert rules("ben", "x", "publish", "home/ben")
    assert rules(None, "x", "publish", "b")
    assert not rules("ben", "x", "publish", "b")
    found = rules.decide("ann", "x", "receive", "a/c").rule
    assert found is not None
    assert (found.place, found.text) == ("config: access[0]", "topic read a/#")


@given(st.text())
def test_any_text_is_rules_or_mistakes(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert all(rule.filter for rule in parse_rules(text, "acl"))
