"""Topic Names and Filters: what is refused and why, shared filters, and matching by the standard's own examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.topics import matches, split_shared, topic_filter_fault, topic_name_fault

LEVEL = st.sampled_from(["", "a", "b", "$x", "long level", "é"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=5).map("/".join).filter(bool)
FILTER = (
    st.lists(LEVEL | st.just("+"), min_size=1, max_size=5)
    .flatmap(lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"])]))
    .filter(bool)
)


@pytest.mark.parametrize("topic", ["a", "/", "//", "a/", "/a", "a b", "$SYS/x", "$share/g/a", "é", "\ufeff", "x" * 65_535, "a\x01"])
def test_topics(topic: str) -> None:
    assert topic_name_fault(topic) is None


@pytest.mark.parametrize(
    ("topic", "word"),
    [
        ("", "empty"),
        ("a\0", "U+0000"),
        ("+", "wildcards"),
        ("a/#", "wildcards"),
        ("a+b", "wildcards"),
        ("x" * 65_536, "65536 bytes"),
        ("é" * 32_768, "65536 bytes"),
        ("\ud800", "surrogates"),
    ],
)
def test_topics_that_are_not(topic: str, word: str) -> None:
    assert word in (topic_name_fault(topic) or "")


@pytest.mark.parametrize(
    "filter",
    [
        "a",
        "#",
        "+",
        "/",
        "a/#",
        "/#",
        "+/#",
        "+/+",
        "/+",
        "a/+/b",
        "+//+",
        "$SYS/#",
        "x" * 65_535,
        "$share/g/a",
        "$share/g//a",
        "$share/g/#",
        "$share/g/+/a",
        "$share/g/$SYS/#",
        "$share",
        "$shared/+",
        "$Share/#",
    ],
)
def test_filters(filter: str) -> None:
    assert topic_filter_fault(filter) is None


@pytest.mark.parametrize(
    ("filter", "word"),
    [
        ("", "empty"),
        ("a\0", "U+0000"),
        ("a#", "alone"),
        ("#/a", "last"),
        ("a/#/b", "last"),
        ("##", "last"),
        ("a/b#", "alone"),
        ("a+", "whole"),
        ("+a/b", "whole"),
        ("a/++", "whole"),
        ("+#", "alone"),
        ("x" * 65_536, "too long"),
        ("\udfff", "surrogates"),
        ("$share/", "needs a group"),
        ("$share//a", "needs a group"),
        ("$share/g", "after its group"),
        ("$share/g/", "after its group"),
        ("$share/+/a", "group"),
        ("$share/g#/a", "group"),
        ("$share/#", "group"),
        ("$share/g/a#", "alone"),
        ("$share/g/#/a", "last"),
        ("$share/g/+a", "whole"),
    ],
)
def test_filters_that_are_not(filter: str, word: str) -> None:
    assert word in (topic_filter_fault(filter) or "")


@pytest.mark.parametrize(
    ("filter", "parts"),
    [
        ("a/b", (None, "a/b")),
        ("$share/g/a/b", ("g", "a/b")),
        ("$share/g//a", ("g", "/a")),
        ("$share/g/#", ("g", "#")),
        ("$share", (None, "$share")),
        ("$share/g", (None, "$share/g")),
        ("$share/g/", (None, "$share/g/")),
        ("$share//a", (None, "$share//a")),
        ("$SHARE/g/a", (None, "$SHARE/g/a")),
    ],
)
def test_split_shared(filter: str, parts: tuple[str | None, str]) -> None:
    assert split_shared(filter) == parts


@pytest.mark.parametrize(
    ("filter", "topics"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1 sport/tennis/player1/ranking sport/tennis/player1/score/wimbledon"),
        ("sport/#", "sport sport/ sport/a/b"),
        ("#", "sport sport/a / /a //"),
        ("sport/tennis/+", "sport/tennis/player1 sport/tennis/"),
        ("sport/+", "sport/"),
        ("+/+", "/finance a/b /"),
        ("/+", "/finance /"),
        ("+", "a finance"),
        ("+/a/#", "x/a x/a/b /a"),
        ("$SYS/#", "$SYS $SYS/a/b"),
        ("$SYS/monitor/+", "$SYS/monitor/Clients"),
        ("a/$x", "a/$x"),
        ("a/+", "a/$x"),
        ("é", "é"),
    ],
)
def test_matches(filter: str, topics: str) -> None:
    for topic in topics.split():
        assert matches(filter, topic), topic


@pytest.mark.parametrize(
    ("filter", "topics"),
    [
        ("sport/tennis/+", "sport/tennis/player1/ranking sport/tennis"),
        ("sport/+", "sport sport/a/b"),
        ("+", "/finance a/b $SYS"),
        ("#", "$SYS $SYS/a $"),
        ("+/monitor/Clients", "$SYS/monitor/Clients"),
        ("+/#", "$SYS/a"),
        ("a/#", "ab b"),
        ("a", "A a/ /a"),
        ("e\u0301", "\u00e9"),
        ("/a", "a"),
    ],
)
def test_does_not_match(filter: str, topics: str) -> None:
    for topic in topics.split():
        assert not matches(filter, topic), topic


def by_rewriting(filter: list[str], topic: list[str]) -> bool:
    """The same rule, said recursively."""
    if filter == ["#"]:
        return True
    if not filter or not topic:
        return filter == topic
    return filter[0] in ("+", topic[0]) and by_rewriting(filter[1:], topic[1:])


@given(FILTER, TOPIC)
def test_matching_said_in_another_way(filter: str, topic: str) -> None:
    assert topic_filter_fault(filter) is None
    assert topic_name_fault(topic) is None
    hidden = topic.startswith("$") and filter[0] in "+#"
    assert matches(filter, topic) == (by_rewriting(filter.split("/"), topic.split("/")) and not hidden)


@given(st.text(alphabet="a/+#$", max_size=8))
def test_a_filter_without_fault_matches_without_surprise(filter: str) -> None:
    if topic_filter_fault(filter) is None and not filter.startswith("$share/"):
        literal = filter.replace("+", "x").replace("#", "x")
        assert matches(filter, literal) == (not (literal.startswith("$") and filter[0] in "+#"))
