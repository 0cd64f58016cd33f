"""MQTT over WebSocket with the clients that speak it, against a broker told so by its file; TCP beside it, and between the two."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.conftest import Open, make
from tests.e2e.tools import SECONDS_MAX, Client, Options, Received, Will, serving

CONFIG = """
[[listeners]]
port = 0
protocol = "websocket"
path = "/mqtt"

[[listeners]]
port = 0
"""

clients = pytest.mark.parametrize("name", ["paho", "mqttjs", "broker"])
both_versions = pytest.mark.parametrize("version", ["5.0", "3.1.1"])


def listening(line: str) -> dict[str, Any]:
    found = re.search(r"listening on (ws|mqtt)://127\.0\.0\.1:(\d+)(/mqtt)?$", line)
    return {"event": found[1], "port": int(found[2])} if found else {"event": "log"}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """{"websockets": its port, "tcp": its port}."""
    file = tmp_path_factory.mktemp("websocket") / "broker.toml"
    file.write_text(CONFIG)
    with serving(["-c", str(file)], listening) as program:
        yield {"websockets": program.wait("ws")["port"], "tcp": program.wait("mqtt")["port"]}


@pytest.fixture
def open_client(ports: dict[str, int], request: pytest.FixtureRequest) -> Iterator[Open]:
    def open_one(name: str, *, transport: str = "websockets", **options: Any) -> Client:
        client = make(name, Options("127.0.0.1", ports[transport], transport=transport, **options), request)
        stack.callback(client.kill)
        return client

    with ExitStack() as stack:
        yield open_one


@clients
@both_versions
def test_every_qos_from_it(name: str, version: str, open_client: Open, topic: str) -> None:
    other = open_client("paho", transport="tcp")
    other.subscribe(f"{topic}/+", 2)
    client = open_client(name, version=version)
    for qos in (0, 1, 2):
        client.publish(f"{topic}/{qos}", f"grüße {qos}", qos)
        assert other.wait(1) == [Received(f"{topic}/{qos}", f"grüße {qos}", qos, False)]


@clients
@both_versions
def test_every_qos_to_it(name: str, version: str, open_client: Open, topic: str) -> None:
    client = open_client(name, version=version)
    client.subscribe(f"{topic}/#", 2)
    other = open_client("paho", transport="tcp")
    for qos in (0, 1, 2):
        other.publish(f"{topic}/{qos}", f"grüße {qos}", qos)
        assert client.wait(1) == [Received(f"{topic}/{qos}", f"grüße {qos}", qos, False)]


@clients
def test_a_message_of_many_frames(name: str, open_client: Open, topic: str) -> None:
    client = open_client(name)
    client.subscribe(topic, 1)
    payload = "0123456789" * 10_000
    open_client("mqttjs").publish(topic, payload, 1)
    assert client.wait(1) == [Received(topic, payload, 1, False)]


@clients
def test_will(name: str, open_client: Open, topic: str) -> None:
    other = open_client("paho")
    other.subscribe(f"{topic}/#", 2)
    for how in ("close", "kill"):
        client = open_client(name, will=Will(f"{topic}/{how}", "gone", 1))
        client.subscribe(f"{topic}/nothing", 0)
        client.close() if how == "close" else client.kill()
    assert other.wait(1) == [Received(f"{topic}/kill", "gone", 1, False)], "a proper goodbye has no will"


def test_a_browser_that_asks_for_a_page_gets_an_answer(ports: dict[str, int]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{ports['websockets']}/mqtt", timeout=SECONDS_MAX)
    caught.value.close()
