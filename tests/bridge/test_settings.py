"""What may be written of a bridge, and what each mistake is called; which filters have topics in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import Bridge, BridgeTls, BridgeTopic, Config, ConfigError, open_broker
from broker.bridge.mapping import TOPICS_COUNT_MAX, Mapping, covers, overlap
from broker.bridge.settings import check_bridges
from broker.wire.topics import matches

GOOD: dict[str, Any] = {"name": "a", "url": "mqtt://far.example", "topics": [{"filter": "a/#"}]}


def problems_of(*bridges: dict[str, Any], **others: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"bridges": list(bridges), **others})
    return dict(caught.value.problems)


def test_the_least_that_is_said() -> None:
    (bridge,) = Config.from_dict({"bridges": [GOOD]}).bridges
    assert bridge == Bridge(name="a", url="mqtt://far.example", topics=(BridgeTopic(filter="a/#"),))
    assert (bridge.address, bridge.local_client_id) == ("mqtt://far.example:1883", "bridge:a")
    assert bridge.remote_client_id.endswith("-a")


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"name": "a/b"}, "name", "expected 1 to 100 characters without / + #, which a topic is made of, got 'a/b'"),
        ({"name": ""}, "name", "expected 1 to 100 characters"),
        ({"url": "http://x"}, "url", "a broker's URL begins with mqtt://"),
        ({"url": "mqtt://ann:t0psecret@x"}, "url", "expected no user, password or ?key=value in it"),
        ({"url": "mqtt://x?client_id=5"}, "url", "expected no user, password or ?key=value in it"),
        ({"client_id": ""}, "client_id", 'expected a Client Identifier, got ""'),
        ({"version": "3.1"}, "version", 'expected 5.0, 3.1.1, got "3.1"'),
        ({"keepalive_s": -1}, "keepalive_s", "expected 0 to 65,535, got -1"),
        ({"session_expiry_s": -1}, "session_expiry_s", "expected 0 to 4,294,967,295, or inf, got -1"),
        ({"session_expiry_s": 5e9}, "session_expiry_s", "expected 0 to 4,294,967,295, or inf, got 5e+09"),
        ({"fallback_urls": ["x://y"]}, "fallback_urls[0]", "a broker's URL begins with mqtt://"),
        ({"fallback_urls": ["mqtt://ann:t0psecret@y"]}, "fallback_urls[0]", "expected no user, password or ?key=value in it"),
        ({"fallback_urls": ["mqtt://y", "mqtt://far.example:1883"]}, "fallback_urls", "expected other brokers than url, each once"),
        ({"fallback_urls": "mqtt://y"}, "fallback_urls", "expected a list"),
        ({"answer_timeout_s": 0}, "answer_timeout_s", "expected 1 or more, and an end, got 0"),
        ({"notification_topic": "a/#"}, "notification_topic", "must not contain"),
        ({"auth_method": "SCRAM-SHA-256", "password_file": __file__}, "username", "is missing; SCRAM-SHA-256 proves who that is"),
        ({"auth_method": "JWT"}, "password_file", "is missing; auth_method shows what is in it"),
        ({"auth_method": "", "password_file": __file__}, "auth_method", "expected an Authentication Method"),
        ({"auth_method": "JWT", "password_file": __file__, "username": "u", "version": "3.1.1"}, "auth_method", 'needs version = "5.0"'),
        ({"local_address": "here"}, "local_address", "expected an address of this machine, such as 192.0.2.1, got 'here'"),
        ({"password_file": "/nowhere"}, "password_file", "/nowhere cannot be read: no such file or directory"),
        ({"topics": []}, "topics", "expected at least one"),
        ({"topics": [{}]}, "topics[0].filter", "is missing"),
        ({"topics": [{"filter": "a", "qqs": 1}]}, "topics[0].qqs", "unknown key; did you mean qos?"),
        ({"topics": [{"filter": "a#"}]}, "topics[0].filter", "# must stand alone or after a /"),
        ({"topics": [{"filter": "a", "remote_prefix": "b/#/"}]}, "topics[0].remote_prefix", "must not contain the wildcards + and #, got 'b/#/'"),
        ({"topics": [{"filter": "#", "local_prefix": "a"}]}, "topics[0].filter", "# must stand alone or after a / (with its prefix: 'a#')"),
        ({"topics": [{"filter": ""}]}, "topics[0].filter", "a topic filter must not be empty"),
        ({"topics": [{"filter": "$share/g/a"}]}, "topics[0].filter", "a bridge's filter is no shared subscription"),
        ({"topics": [{"filter": "a", "qos": 3}]}, "topics[0].qos", "expected 0, 1 or 2, got 3"),
        ({"topics": [{"filter": "a", "direction": "up"}]}, "topics[0].direction", 'expected out, in, both, got "up"'),
        ({"version": "3.1.1", "topics": [{"filter": "a", "direction": "both"}]}, "topics[0].direction", '"both" needs version = "5.0"'),
        ({"version": "3.1.1", "topics": [{"filter": "a/#"}, {"filter": "+/b", "direction": "in"}]}, "topics[1].filter", "would come back"),
        ({"tls": {"ca": "x"}}, "tls", "goes with mqtts:// and wss://, and the url says mqtt://"),
        (
            {"url": "mqtts://x", "fallback_urls": ["mqtt://y"], "tls": {}},
            "tls",
            "goes with mqtts:// and wss://, and one of fallback_urls says mqtt://",
        ),
        ({"url": "mqtts://x", "tls": {"ca": "/nowhere"}}, "tls.ca", "/nowhere cannot be read: no such file or directory"),
        ({"url": "mqtts://x", "tls": {"key": "/nowhere"}}, "tls.certificate", "is missing; a key alone shows nothing"),
        ({"url": "mqtts://x", "tls": {"certificate": "/nowhere"}}, "tls.certificate", "/nowhere cannot be read"),
        ({"url": "mqtts://x", "tls": {"kee": "x"}}, "tls.kee", "unknown key"),
    ],
)
def test_a_mistake(changes: dict[str, Any], key: str, text: str) -> None:
    found = problems_of({**GOOD, **changes})
    assert list(found) == [f"bridges[0].{key}"]
    assert text in found[f"bridges[0].{key}"]
    assert "t0psecret" not in str(found)


def test_an_entry_keeps_its_number_though_one_before_it_has_a_mistake() -> None:
    found = problems_of({**GOOD, "topics": [{"filter": 5}, {"filter": "a", "qos": 7}]})
    assert set(found) == {"bridges[0].topics[0].filter", "bridges[0].topics[1].qos"}


def test_two_that_are_in_each_others_way() -> None:
    other = {**GOOD, "name": "b", "topics": [{"filter": "a/b", "direction": "in"}]}
    assert problems_of(GOOD, GOOD)["bridges[1].name"] == '"a" is the name of bridges[0] too'
    named = problems_of({**GOOD, "client_id": "x"}, {**GOOD, "name": "b", "client_id": "x"})
    assert "bridges[0] has the same one at mqtt://far.example:1883" in named["bridges[1].client_id"]
    ring = "goes out here and comes back in by bridges[1]: messages would go round for ever"
    assert problems_of(GOOD, other) == {"bridges[0].topics[0].filter": ring}
    assert Config.from_dict({"bridges": [GOOD, {**other, "url": "mqtt://elsewhere.example"}]}).bridges
    elsewhere = {**other, "url": "mqtt://elsewhere.example", "fallback_urls": ["mqtt://far.example"]}
    assert problems_of(GOOD, elsewhere) == {"bridges[0].topics[0].filter": ring}
    both = problems_of({**GOOD, "client_id": "x"}, {**GOOD, **elsewhere, "topics": GOOD["topics"], "client_id": "x"})
    assert "bridges[0] has the same one at mqtt://far.example:1883" in both["bridges[1].client_id"]
    assert Config.from_dict({"bridges": [GOOD, {**other, "topics": [{"filter": "a/b", "direction": "in", "local_prefix": "from/"}]}]}).bridges


def test_a_bridge_to_itself() -> None:
    found = problems_of({**GOOD, "url": "mqtt://localhost:1999"}, listeners=[{"port": 1999}])
    assert "is this broker itself" in found["bridges[0].url"]
    found = problems_of({**GOOD, "fallback_urls": ["mqtt://localhost:1999"]}, listeners=[{"port": 1999}])
    assert "is this broker itself" in found["bridges[0].fallback_urls[0]"]
    assert Config.from_dict({"bridges": [{**GOOD, "url": "mqtt://localhost:1998"}], "listeners": [{"port": 1999}]}).bridges


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"secret\r\nmore\n")
    keys = ('name = "a"', 'url = "mqtt://x"', 'password_file = "password"', 'username = "u"', 'topics = [{ filter = "#" }]')
    (tmp_path / "broker.toml").write_text("\n".join(["[[bridges]]", *keys]))
    (bridge,) = Config.load(tmp_path / "broker.toml", env={}).bridges
    assert bridge.password_file == str(tmp_path / "password")


def test_from_the_environment() -> None:
    env = {"BROKER__BRIDGES__0__NAME": "7", "BROKER__BRIDGES__0__URL": "mqtt://x", "BROKER__BRIDGES__0__TOPICS__0__FILTER": "1/#"}
    (bridge,) = Config.from_dict({}, env=env).bridges
    assert (bridge.name, bridge.topics) == ("7", (BridgeTopic(filter="1/#"),))


async def test_a_program_is_told_too() -> None:
    for wrong, text in (("mqtt://x", "bridges is a list"), (["mqtt://x"], "a bridge is a Bridge, not str")):
        with pytest.raises(TypeError, match=text):
            async with open_broker(bridges=wrong):  # type: ignore[arg-type]
                pass
    with pytest.raises(ConfigError, match=r"bridges\[0\].topics: expected at least one"):
        check_bridges([Bridge(name="a", url="mqtt://x", topics=[])])
    with pytest.raises(ConfigError, match=r"bridges\[0\].url: the URL's \?bogus= is none of"):
        check_bridges([Bridge(name="a", url="mqtt://x?bogus=1", topics=[BridgeTopic(filter="a")])])
    check_bridges([Bridge(name="a", url="mqtts://ann:secret@x", topics=[BridgeTopic(filter="a")], tls=BridgeTls())])


# ---- topics -------------------------------------------------------------------------------------------------------------


def test_names_are_remembered_and_not_without_end() -> None:
    mapping = Mapping([("a/#", "a/", "b/", 1), ("a/x", "a/", "never/", 1)])
    for number in range(TOPICS_COUNT_MAX + 10):
        assert mapping.target(f"a/{number}") == (f"b/{number}", 1)
    assert mapping.target("a/x") == ("b/x", 1)
    assert mapping.target("c") is None
    assert len(mapping._known) < 100


LEVELS = st.sampled_from(["a", "b", "+", "$x", ""])
FILTERS = st.builds(lambda levels, rest: "/".join([*levels, *rest]) or "#", st.lists(LEVELS, max_size=3), st.sampled_from([[], ["#"]]))


@given(FILTERS, FILTERS, st.lists(st.sampled_from(["a", "b", "$x", ""]), min_size=1, max_size=4).map("/".join))
def test_filters_with_a_topic_in_common_overlap(one: str, other: str, topic: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)
    if covers(one, other) and matches(other, topic):
        assert matches(one, topic)
    assert covers(one, one)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/#", "a", True),
        ("a/b", "a/+", True),
        ("a/+", "b/#", False),
        ("#", "$SYS/#", False),
        ("+/b", "a/#", True),
        ("a", "a/b", False),
        ("$SYS/+", "$SYS/a", True),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("#", "a/b", True),
        ("#", "+/#", True),
        ("+/#", "#", False),
        ("a/#", "a", True),
        ("a/+", "a/b", True),
        ("a/b", "a/+", False),
        ("a/+", "a/#", False),
        ("a", "a/b", False),
        ("a/b", "a", False),
        ("#", "$x", False),
        ("$x/#", "$x/+", True),
    ],
)
def test_covers(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected
