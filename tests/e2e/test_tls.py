"""MQTT over TLS, and over WebSocket over TLS, with the clients that speak them; who listens at the other end has come by plain TCP."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.e2e.conftest import Open, make
from tests.e2e.tools import Client, Options, Program, Received

CONFIG = """
[[listeners]]
port = 0
[listeners.tls]
certificate = "server.pem"

[[listeners]]
port = 0
protocol = "websocket"
[listeners.tls]
certificate = "server.pem"

[[listeners]]
port = 0
"""

BY = {"mqtts": ("tcp", True), "wss": ("websockets", True), "mqtt": ("tcp", False)}
ways = pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "mqtts") for name in ("paho", "aiomqtt", "mosquitto", "mqttjs", "broker")] + [(name, "wss") for name in ("paho", "mqttjs", "broker")],
)


def listening(line: str) -> dict[str, Any]:
    found = re.search(r"listening on (wss|mqtts?)://127\.0\.0\.1:(\d+)(/mqtt)?$", line)
    return {"event": found[1], "port": int(found[2])} if found else {"event": "log"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    (folder / "broker.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def ports(folder: Path) -> Iterator[dict[str, int]]:
    program = Program([sys.executable, "-m", "broker", "serve", "-c", str(folder / "broker.toml")], listening)
    try:
        yield {scheme: program.wait(scheme)["port"] for scheme in BY}
    finally:
        program.stop(signal.SIGTERM)
    assert program.process.returncode == 0, "".join(program.log)
    assert "Traceback" not in "".join(program.log), "".join(program.log)


@pytest.fixture
def open_client(ports: dict[str, int], folder: Path, request: pytest.FixtureRequest) -> Iterator[Open]:
    def open_one(name: str, scheme: str, **options: Any) -> Client:
        transport, secured = BY[scheme]
        cafile = str(folder / "ca.pem") if secured else ""
        client = make(name, Options("localhost" if secured else "127.0.0.1", ports[scheme], transport=transport, cafile=cafile, **options), request)
        stack.callback(client.kill)
        return client

    with ExitStack() as stack:
        yield open_one


@ways
@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
def test_every_qos_from_it_and_to_it(name: str, scheme: str, version: str, open_client: Open, topic: str) -> None:
    other = open_client("paho", "mqtt")
    other.subscribe(f"{topic}/to/+", 2)
    client = open_client(name, scheme, version=version)
    client.subscribe(f"{topic}/from/#", 2)
    for qos in (0, 1, 2):
        client.publish(f"{topic}/to/{qos}", f"grüße {qos}", qos)
        assert other.wait(1) == [Received(f"{topic}/to/{qos}", f"grüße {qos}", qos, False)]
        other.publish(f"{topic}/from/{qos}", f"grüße {qos}", qos)
        assert client.wait(1) == [Received(f"{topic}/from/{qos}", f"grüße {qos}", qos, False)]


@ways
def test_a_message_of_many_records(name: str, scheme: str, open_client: Open, topic: str) -> None:
    client = open_client(name, scheme)
    client.subscribe(topic, 1)
    payload = "0123456789" * 100_000
    open_client("paho", "mqtts").publish(topic, payload, 1)
    assert client.wait(1) == [Received(topic, payload, 1, False)]
