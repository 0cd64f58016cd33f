"""A key of mosquitto.conf in our file: the line that refuses it names ours. The table is held against the keys that exist and against the
guide for those who move over."""

from __future__ import annotations

import re

import pytest

from broker.config import Config, habits
from broker.config.kinds import TABLES
from broker.config.tables import _HOMES
from broker.errors import ConfigError
from tests.e2e.tools import ROOT

TABLES_ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)
GUIDE = (ROOT / "config" / "mosquitto-migration.md").read_text()


def problem(data: dict[str, object], key: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(data, env={})
    return dict(caught.value.problems)[key]


@pytest.mark.parametrize("key", habits.COUNTERPARTS)
def test_what_is_named_is_a_key_there(key: str) -> None:
    keys, where, more = habits.parts(habits.COUNTERPARTS[key])
    assert set(keys) <= set(_HOMES[where])
    assert all(home in _HOMES or home == "in [listeners.limits]" for home in re.findall(r"in \[.+\]+", more))


@pytest.mark.parametrize("key", [*habits.COUNTERPARTS, *habits.WITHOUT])
def test_no_key_of_ours_is_taken_for_one_of_mosquittos(key: str) -> None:
    assert key not in TABLES
    assert key == "user" or not any(key in keys for keys in _HOMES.values())


def rows() -> list[tuple[list[str], str]]:
    """(keys of mosquitto.conf, what the guide says of them)."""
    part = GUIDE.partition("## Key by key")[2].partition("\n## What decides")[0]
    found = [([words.split()[0] for words in re.findall("`(.+?)`", theirs)], ours) for theirs, ours in TABLES_ROW.findall(part)]
    assert len(found) > 20
    return found


def test_the_guide_names_the_same_keys() -> None:
    said: dict[str, str] = {}
    for keys, ours in rows():
        for key in keys:
            said[key] = said.get(key, "") + ours
    for key in said.keys() & habits.COUNTERPARTS.keys():
        names, _, _ = habits.parts(habits.COUNTERPARTS[key])
        missing = [name for name in names if name not in said[key] and "the same names" not in said[key] and "leave them out" not in said[key]]
        assert not missing, f"{key}: the guide says {said[key]}"


def test_every_key_of_the_guide_is_in_the_table_or_has_our_name() -> None:
    ours = {key for keys in _HOMES.values() for key in keys}
    known = ours | habits.COUNTERPARTS.keys() | habits.WITHOUT.keys()
    keys = {key for keys, _ in rows() for key in keys}
    assert not [key for key in keys - known if re.fullmatch("[a-z_]+", key)]


SAID = [
    ({"persistence": True}, "persistence", "unknown key; Mosquitto's persistence is here path in [store]; without it everything is in memory"),
    ({"listener": 1883}, "listener", "unknown key; Mosquitto's listener is here host, port in [[listeners]]; or unix, a path"),
    ({"sys_interval": 5}, "sys_interval", "unknown key; Mosquitto's sys_interval is here sys_interval_s above the first [table]"),
    ({"port": 1883}, "port", "unknown key here; it belongs in [[listeners]]"),
    ({"connection": "cloud"}, "connection", "unknown key; Mosquitto's connection is here name, url in [[bridges]]"),
    (
        {"bridges": [{"name": "a", "url": "mqtts://b", "topics": [{"filter": "#"}], "tls": {"cafile": "x"}}]},
        "bridges[0].tls.cafile",
        "unknown key; Mosquitto's bridge_cafile is here ca in [bridges.tls]",
    ),
    ({"listeners": [{"certfile": "x"}]}, "listeners[0].certfile", "unknown key; Mosquitto's certfile is here certificate in [listeners.tls]"),
    (
        {"allow_zero_length_clientid": True},
        "allow_zero_length_clientid",
        "unknown key; Mosquitto's allow_zero_length_clientid has no counterpart here: who brings no Client Identifier is given one",
    ),
    (
        {"user": "mosquitto"},
        "user",
        "unknown key here; it belongs in [[access]]; Mosquitto's user has no counterpart here: whoever starts the broker says as whom, "
        "as config/broker.service does",
    ),
]


@pytest.mark.parametrize(("data", "key", "said"), SAID, ids=[row[1] for row in SAID])
def test_what_is_said(data: dict[str, object], key: str, said: str) -> None:
    assert problem(data, key) == said
