"""Certificates made letter by letter as mosquitto-tls(7) says. Their authority has no key usage and the others are of version 1, which
Python 3.13 refuses where a context comes from `ssl.create_default_context()`; ours take them on every Python."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from broker import Broker, Config, ConnectError, connect, open_broker
from broker.net.listener import Listener
from broker.net.tls import TlsFiles
from tests.conftest import find_program

STEPS = (
    "req -new -x509 -days 2 -extensions v3_ca -keyout ca.key -out ca.crt -nodes -subj /CN=home",
    "genrsa -out server.key 2048",
    "req -out server.csr -key server.key -new -subj /CN=localhost",
    "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2",
    "genrsa -out client.key 2048",
    "req -out client.csr -key client.key -new -subj /CN=thermostat",
    "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out client.crt -days 2",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual")
    for step in STEPS:
        subprocess.run([find_program("openssl", "openssl"), *step.split()], cwd=folder, check=True, capture_output=True)
    return folder


def listening(made: Path, tls: TlsFiles | ssl.SSLContext | None = None) -> Config:
    files = TlsFiles(
        certificate=str(made / "server.crt"), key=str(made / "server.key"), client_ca=str(made / "ca.crt"), require_certificate=True, identity="cn"
    )
    return Config(listeners=(Listener(host="localhost", port=0, tls=tls or files),), sys_interval_s=0)


def url_of(hub: Broker) -> str:
    return f"mqtts://localhost:{hub.urls[0].rpartition(':')[2]}"


async def test_both_ends_take_them(made: Path) -> None:
    mine = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    mine.load_verify_locations(made / "ca.crt")
    mine.load_cert_chain(made / "client.crt", made / "client.key")
    async with open_broker(listening(made)) as hub, connect(url_of(hub), tls=mine):
        assert [client.username for client in hub.clients()] == ["thermostat"]


async def test_an_authority_of_the_system_needs_no_more_than_that(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(made / "server.crt", made / "server.key")
    async with open_broker(listening(made, theirs)) as hub:
        with pytest.raises(ConnectError, match="accepted: unable to get local issuer certificate$"):
            async with connect(url_of(hub)):
                pytest.fail("trusted by nobody")
        monkeypatch.setenv("SSL_CERT_FILE", str(made / "ca.crt"))
        async with connect(url_of(hub)) as client:
            await client.publish("a", "b", qos=1)


async def test_a_strict_context_of_the_programs_own_is_told_how_to_be_less_so(made: Path) -> None:
    mine = ssl.create_default_context(cafile=made / "ca.crt")
    mine.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # as it is from Python 3.13 on
    async with open_broker(listening(made)) as hub:
        with pytest.raises(ConnectError, match=r"include key usage extension \(.*; verify_flags &= ~ssl.VERIFY_X509_STRICT takes it back\)$"):
            async with connect(url_of(hub), tls=mine):
                pytest.fail("refused")
