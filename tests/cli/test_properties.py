"""-D: every kind of value, and every way to get it wrong."""

from __future__ import annotations

import pytest

from broker.cli.properties import TABLE, PropertyFault, collect, words_wanted
from broker.wire.packets import Properties

ALL = ("connect", "disconnect", "publish", "subscribe", "unsubscribe", "will")

GOOD = [
    (["publish", "content-type", "text/plain"], "publish", Properties(content_type="text/plain")),
    (["PUBLISH", "Content-Type", "é"], "publish", Properties(content_type="é")),
    (["publish", "correlation-data", "a\udcff"], "publish", Properties(correlation_data=b"a\xff")),
    (["publish", "message-expiry-interval", "4294967295"], "publish", Properties(message_expiry_interval=4294967295)),
    (["publish", "payload-format-indicator", "0"], "publish", Properties(payload_format_indicator=0)),
    (["publish", "topic-alias", "65535"], "publish", Properties(topic_alias=65535)),
    (["publish", "user-property", "a", "b"], "publish", Properties(user_properties=(("a", "b"),))),
    (["connect", "receive-maximum", "1"], "connect", Properties(receive_maximum=1)),
    (["connect", "topic-alias-maximum", "0"], "connect", Properties(topic_alias_maximum=0)),
    (["subscribe", "subscription-identifier", "7"], "subscribe", Properties(subscription_identifiers=(7,))),
    (["will", "will-delay-interval", "5"], "will", Properties(will_delay_interval=5)),
]


@pytest.mark.parametrize(("words", "command", "expected"), GOOD, ids=lambda value: value if isinstance(value, str) else None)
def test_words_become_a_property(words: list[str], command: str, expected: Properties) -> None:
    assert collect([words], ALL) == {command: expected}


def test_several_gather_by_command_and_user_properties_keep_their_order_and_repeat() -> None:
    given = [
        ["publish", "user-property", "k", "1"],
        ["will", "content-type", "x"],
        ["publish", "content-type", "y"],
        ["publish", "user-property", "k", "2"],
    ]
    assert collect(given, ALL) == {
        "publish": Properties(content_type="y", user_properties=(("k", "1"), ("k", "2"))),
        "will": Properties(content_type="x"),
    }


BAD = [
    (["publish"], "wants 3 words"),
    (["publish", "user-property", "a"], "wants 4 words"),
    (["pub", "content-type", "x"], "no such command: 'pub'"),
    (["puback", "user-property", "a", "b"], "not available"),
    (["auth", "authentication-method", "x"], "not available"),
    (["disconnect", "reason-string", "bye"], "disconnect has no property 'reason-string'"),
    (["publish", "colour", "x"], "no property 'colour' (it has content-type"),
    (["connect", "content-type", "x"], "no property"),
    (["connect", "receive-maximum", "0"], "from 1 to 65,535"),
    (["connect", "receive-maximum", "many"], "not 'many'"),
    (["publish", "payload-format-indicator", "2"], "from 0 to 1"),
    (["publish", "content-type", "\udcff"], "UTF-8"),
    (["publish", "content-type", "x" * 70_000], "publish content-type: text in UTF-8 of at most 65,535 bytes expected"),
    (["publish", "user-property", "a", "x\0"], "publish user-property: text in UTF-8"),
    (["publish", "correlation-data", "x" * 70_000], "publish correlation-data: at most 65,535 bytes expected"),
    (["publish", "message-expiry-interval", "-1"], "from 0 to"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: value if isinstance(value, str) else None)
def test_a_fault_says_which_word(words: list[str], said: str) -> None:
    with pytest.raises(PropertyFault) as caught:
        collect([words], ALL)
    assert said in str(caught.value)


def test_a_property_given_twice_is_a_fault() -> None:
    with pytest.raises(PropertyFault, match="once only"):
        collect([["publish", "content-type", "a"], ["publish", "content-type", "b"]], ALL)


@pytest.mark.parametrize(("words", "count"), [([], 3), (["publish"], 3), (["publish", "user-property"], 4), (["publish", "topic-alias"], 3)])
def test_only_user_property_takes_four_words(words: list[str], count: int) -> None:
    assert words_wanted(words) == count


def test_every_name_of_the_table_is_a_field_of_the_packets() -> None:
    fields = set(Properties.__struct_fields__)
    named = {name.replace("-", "_") for readers in TABLE.values() for name in readers}
    assert named - {"subscription_identifier"} <= fields
