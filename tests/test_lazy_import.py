"""`import broker`, its help and its version come without trio: nothing that need not run is imported. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

import broker

CHECK = "import sys; {}; heavy = [m for m in ('trio', 'msgspec', 'ssl', 'asyncio', 'rich', 'sqlite3') if m in sys.modules]; print(','.join(heavy))"


def imported_by(statement: str) -> str:
    done = subprocess.run([sys.executable, "-c", CHECK.format(statement)], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def test_import_broker_is_light() -> None:
    assert imported_by("import broker") == ""


def test_a_name_brings_only_its_room() -> None:
    assert imported_by("from broker import ReasonCode, ConfigError") == ""
    assert "trio" in imported_by("from broker import open_broker")


def test_websocket_is_for_those_who_ask() -> None:
    """wsproto, h11 and the rest cost every start of every program a twentieth of a second; so it is with the page's library."""
    names = ("trio_websocket", "wsproto", "h11", "prometheus_client")
    check = f"import broker.cli.serving, broker.cli.connecting, sys; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", broker.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(broker, name) is not None
    assert name in dir(broker)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        _ = broker.bogus
