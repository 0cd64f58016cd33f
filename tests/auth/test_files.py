"""A file without an end is a mistake like others, and no reason to read until memory is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.auth.acl import load_rules
from broker.auth.files import read_bounded
from broker.auth.passwords import load_passwords
from broker.auth.tokens import Jwt, load_tokens
from broker.config import Config
from broker.errors import ConfigError

ENDLESS = "/dev/zero"


def test_up_to_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_bounded(path, 4)


@pytest.mark.skipif(not os.path.exists(ENDLESS), reason="no /dev/zero")
@pytest.mark.parametrize("load", [load_passwords, load_rules, Config.load], ids=["passwords", "rules", "config"])
def test_one_without_an_end_is_a_mistake(load: object) -> None:
    assert callable(load)
    with pytest.raises(ConfigError, match="is larger than 67,108,864 bytes"):
        load(ENDLESS)


@pytest.mark.skipif(not os.path.exists(ENDLESS), reason="no /dev/zero")
def test_a_key_without_an_end_is_one_too() -> None:
    with pytest.raises(ConfigError, match="key_file: .*is larger than"):
        load_tokens(Jwt(key_file=ENDLESS))


def test_a_number_without_an_end_in_the_config_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text("sys_interval_s = " + "9" * 10_000)
    with pytest.raises(ConfigError, match="a number in it has more digits"):
        Config.load(path)
