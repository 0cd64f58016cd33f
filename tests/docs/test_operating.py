"""docs/operating.md: its tables are a configuration, every number that it names is on the page, and every question is answered."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from broker import Bridge, BridgeTopic
from broker.cli import controlling, ctl
from broker.config import Config
from broker.control.room import Room
from broker.net.unix import HAS_UNIX
from broker.opening import open_broker
from tests.metrics.visitor import asked

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "operating.md").read_text("utf-8")


def test_its_tables_are_a_configuration() -> None:
    first, tls, control = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (page,) = Config.from_dict(tomllib.loads(first)).listeners
    assert (page.url, page.is_private) == ("http://127.0.0.1:9883", True)
    assert tomllib.loads(first + tls)["listeners"][0]["tls"]["require_certificate"] is True
    if HAS_UNIX:
        (listener,) = Config.from_dict(tomllib.loads(control)).listeners
        assert listener.unix == controlling.SOCKET


def test_the_example_beside_every_key_is_one_too() -> None:
    lines = re.findall(r"^#   (.*)$", (ROOT / "config" / "broker.toml").read_text("utf-8"), re.MULTILINE)
    page, control = tomllib.loads("\n".join(lines))["listeners"]
    assert Config.from_dict({"listeners": [page]}).listeners[0].url == "http://127.0.0.1:9883"
    if HAS_UNIX:
        assert Config.from_dict({"listeners": [control]}).listeners[0].unix == controlling.SOCKET


async def test_what_can_be_asked_is_named_and_nothing_else() -> None:
    async with open_broker() as hub:
        served = {f"{method} {place}" for place, verbs in Room(hub)._verbs.items() for method in verbs}
    named = set()
    for cell in re.findall(r"^\| ((?:`[A-Z]+.*`) )\|", TEXT, re.MULTILINE):
        for methods, place in re.findall(r"((?:[A-Z]+`?,? ?`?)+) (/\w+(?:/ID)?)", cell):
            named |= {f"{method} {place}" for method in re.findall(r"[A-Z]+", methods)}
    assert named == served


def test_its_commands_are_there() -> None:
    words = set(re.findall(r"\bbroker ctl (\w+)", TEXT))
    assert words == ctl.command.commands.keys()


async def test_what_it_names_is_on_the_page(tmp_path: Path) -> None:
    bridge = Bridge(name="cloud", url="mqtt://127.0.0.1:1", topics=[BridgeTopic(filter="a/#")])
    async with open_broker(listeners=["http://127.0.0.1:0"], store=tmp_path / "store", bridges=[bridge]) as hub:
        found = {name.partition("{")[0] for name in (await asked(hub, "/metrics")).samples}
    if sys.platform != "linux":
        found |= {"process_open_fds", "process_max_fds", "process_cpu_seconds_total"}
    named = set(re.findall(r"\b(?:mqtt_broker|process)_[a-z][a-z_]+\b", TEXT))
    assert len(named) > 10
    assert named <= found
