"""MQTT over TLS, and over WebSocket over TLS, with the clients that speak them; who listens at the other end has come by plain TCP."""

from __future__ import annotations

import re
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from tests.e2e.conftest import Open, make
from tests.e2e.tools import SECONDS_MAX, Client, Options, Program, Received, serving

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
    if found:
        return {"event": found[1], "port": int(found[2])}
    return {"event": "reloaded" if "reloaded" in line else "log"}


def issue(authority: trustme.CA, folder: Path) -> int:
    """A new certificate and key in the broker's file, all at once; its serial number."""
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "new.pem"))
    (folder / "new.pem").replace(folder / "server.pem")
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issue(authority, folder)
    (folder / "broker.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[Program]:
    with serving(["-c", str(folder / "broker.toml")], listening) as program:
        yield program


@pytest.fixture(scope="module")
def ports(program: Program) -> dict[str, int]:
    return {scheme: program.wait(scheme)["port"] for scheme in BY}


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


def serial_of(port: int, cafile: Path) -> int:
    """Of the certificate that a new client is shown."""
    context = ssl.create_default_context(cafile=str(cafile))
    with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
        return int(str((secured.getpeercert() or {})["serialNumber"]), 16)


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
def test_a_renewed_certificate_is_shown_after_sighup_and_who_is_in_stays(
    scheme: str, open_client: Open, program: Program, ports: dict[str, int], authority: trustme.CA, folder: Path, topic: str
) -> None:
    client = open_client("paho", scheme)
    client.subscribe(topic, 1)
    serial = issue(authority, folder)
    program.process.send_signal(signal.SIGHUP)
    program.wait("reloaded")
    assert serial_of(ports[scheme], folder / "ca.pem") == serial
    open_client("paho", scheme).publish(topic, "still here", 1)
    assert client.wait(1) == [Received(topic, "still here", 1, False)]
