"""TLS from files: real certificates, OpenSSL's and Mosquitto's and paho's clients, names from certificates, renewal under a live connection."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import paho.mqtt.client as paho
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa
from paho.mqtt.enums import CallbackAPIVersion

from broker import Broker, Config, ConfigError, open_broker
from broker import connect as connect_client
from broker.net.doorkeeper import WATCH_INTERVAL_S
from broker.net.listener import Listener
from broker.net.tls import TlsFiles, TlsName, dns_names_of, identity_of
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import ConnAck, Connect
from tests.conftest import find_program
from tests.net.mqtt import Client

SECONDS_MAX = 15


class Pki:
    """A certificate authority, and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_path))
        self.renew()

    def renew(self) -> None:
        """A new certificate and key in the same files."""
        self.issue("server", self.ca.issue_cert("127.0.0.1", "localhost"))

    def issue(self, name: str, certificate: trustme.LeafCert) -> TlsFiles:
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        paths[1].write_bytes(certificate.private_key_pem.bytes())
        return TlsFiles(certificate=str(paths[0]), key=str(paths[1]))

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(certificate=str(self.folder / "server.pem"), key=str(self.folder / "server.key"))

    def context(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_path))
        if certificate is not None:
            certificate.configure_cert(context)
        return context


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@asynccontextmanager
async def tls_client(hub: Broker, context: ssl.SSLContext) -> AsyncIterator[Client]:
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port_of(hub), ssl_context=context, https_compatible=True)
    try:
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def refused(hub: Broker, context: ssl.SSLContext) -> None:
    """In TLS 1.3 a client learns only when it reads that its certificate did not please."""
    async with tls_client(hub, context) as client:
        with contextlib.suppress(trio.BrokenResourceError):
            await client.send(Connect("c", 5))
            assert await client.receive() is None


def port_of(hub: Broker) -> int:
    return int(hub.urls[0].rpartition(":")[2])


def serial_of(port: int, ca: Path) -> int:
    """The certificate that a new client is shown."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        certificate = wrapped.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def config_of(files: TlsFiles) -> Config:
    return Config(listeners=(Listener(port=0, tls=files),), sys_interval_s=0)


# ---- from the config file ------------------------------------------------------------------------------------------------


async def test_a_config_file_opens_a_tls_port(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('[[listeners]]\nport = 0\n[listeners.tls]\ncertificate = "server.pem"\nkey = "server.key"\n')
    async with open_broker(Config.load(tmp_path / "broker.toml", env={})) as hub:
        assert hub.urls[0].startswith("mqtts://127.0.0.1:")
        async with connect_client(hub.urls[0], tls=pki.context()) as client:
            await client.publish("a", b"x", qos=1)


GOOD = 'certificate = "server.pem"\nkey = "server.key"\n'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('certificate = "none.pem"', "listeners[0].tls.certificate"),
        ('certificate = "none.pem"\nkey = "none.key"', "listeners[0].tls.key: {0}none.key cannot be read"),
        ('certificate = "ca.pem"\nkey = "server.key"', "does not belong to the certificate"),
        ('certificate = "server.pem"', "expected"),
        ('certificate = "server.pem"\nkey = "garbage"', "listeners[0].tls."),
        ('certificate = "server.pem"\nkey = "server.key"\nclient_ca = "garbage"', "client_ca: expected certificates"),
        ('certificate = "server.pem"\nkey = "server.key"\nrequire_certificate = true', "client_ca: is missing"),
        ('certificate = "server.pem"\nkey = "server.key"\nidentity = "cn"', "require_certificate: expected true"),
        ('key = "server.key"', "listeners[0].tls.certificate: is missing"),
        (GOOD + 'client_ca = "."', "listeners[0].tls.client_ca: expected a directory with certificates, named as `openssl rehash` does"),
        (GOOD + 'crl = "server.pem"', "listeners[0].tls.client_ca: is missing; crl needs"),
        (GOOD + 'client_ca = "ca.pem"\ncrl = "none.pem"', "listeners[0].tls.crl: {0}none.pem cannot be read: no such file"),
        (GOOD + 'client_ca = "ca.pem"\ncrl = "ca.pem"', "listeners[0].tls.crl: expected a certificate revocation list (PEM) in {0}ca.pem"),
        (GOOD + 'tls_version = "tlsv1.1"', 'listeners[0].tls.tls_version: expected tlsv1.2, tlsv1.3, got "tlsv1.1"'),
        (GOOD + 'ciphers = "none such"', "listeners[0].tls.ciphers: OpenSSL knows none of 'none such'"),
        (GOOD + 'ciphers = "HIGH"\ntls_version = "tlsv1.3"', "listeners[0].tls.ciphers: means nothing with"),
        (GOOD + "names = 3", "listeners[0].tls.names: expected a list of tables"),
    ],
)
def test_mistakes(pki: Pki, tmp_path: Path, lines: str, expected: str) -> None:
    (tmp_path / "garbage").write_text("garbage")
    (tmp_path / "broker.toml").write_text(f"[[listeners]]\n[listeners.tls]\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "broker.toml", env={})
    assert expected.format(f"{tmp_path}{os.sep}") in str(caught.value)


def test_mistakes_in_each_further_certificate_are_told_at_once(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("garbage")
    pki.issue("nameless", pki.ca.issue_cert("someone@example.org"))
    tables = [
        'certificate = "none.pem"\nserver_names = ["a.example"]',
        'certificate = "ca.pem"\nkey = "server.key"\nserver_names = ["a.example", "not a name", "*.*.example"]',
        'key = "garbage"',
        'certificate = "nameless.pem"\nkey = "nameless.key"',
        'certificate = "server.pem"\nkey = "server.key"\nserver_nmes = ["x"]',
        'certificate = "server.pem"\nkey = "garbage"\nserver_names = "b.example"',
        'certificate = "server.pem"\nkey = "garbage"',
    ]
    text = "[[listeners]]\n[listeners.tls]\n" + GOOD + "".join(f"[[listeners.tls.names]]\n{table}\n" for table in tables)
    (tmp_path / "broker.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "broker.toml", env={})
    found = [f"{key.removeprefix('listeners[0].tls.')}: {text}" for key, text in caught.value.problems]
    assert [line.replace(f"{tmp_path}{os.sep}", "/") for line in found] == [
        "names[2].certificate: is missing",
        "names[4].server_nmes: unknown key; did you mean server_names?",
        'names[5].server_names: expected a list, got "b.example"',
        "names[0].certificate: /none.pem cannot be read: no such file or directory",
        "names[1].key: /server.key does not belong to the certificate /ca.pem",
        "names[5].key: /garbage has a passphrase, or is no private key (PEM); expected one without",
        "names[6].key: /garbage has a passphrase, or is no private key (PEM); expected one without",
        "names[1].server_names: a.example stands in names[0] too",
        "names[1].server_names: expected host names, as mqtt.example.org or *.example.org, got 'not a name'",
        "names[1].server_names: expected host names, as mqtt.example.org or *.example.org, got '*.*.example'",
        "names[3].server_names: is missing; /nameless.pem has no DNS name in its Subject Alternative Name",
    ]


def test_a_key_with_a_passphrase_is_a_mistake_and_asks_nobody(pki: Pki, tmp_path: Path) -> None:
    openssl = find_program("openssl", "openssl")
    subprocess.run(
        [openssl, "ec", "-aes256", "-passout", "pass:x", "-in", str(tmp_path / "server.key"), "-out", str(tmp_path / "locked.key")],
        check=True,
        capture_output=True,
    )
    (tmp_path / "broker.toml").write_text('[[listeners]]\n[listeners.tls]\ncertificate = "server.pem"\nkey = "locked.key"\n')
    with pytest.raises(ConfigError, match="passphrase"):
        Config.load(tmp_path / "broker.toml", env={})


async def test_a_context_that_is_not_for_servers_is_a_mistake(pki: Pki) -> None:
    """The first who came ended the broker."""
    for tls in (ssl.create_default_context(), "server.pem"):
        with pytest.raises(ConfigError, match=r"listeners\[1\]\.tls: expected TlsFiles, or a context for servers"):
            async with open_broker(listeners=[Listener(port=0), Listener(port=0, tls=tls)]):  # type: ignore[arg-type]
                pass
    async with open_broker(config_of(pki.files)) as hub:
        mistaken = config_of(pki.files).replaced(listeners=[Listener(port=0, tls=ssl.create_default_context())])
        with pytest.raises(ConfigError, match="context for servers"):
            hub.reload(mistaken)


# ---- handshakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "served"),
    [(["-tls1_3"], True), (["-tls1_2"], True), (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], False), (["-alpn", "mqtt"], True), (["-alpn", "x"], True)],
)
async def test_s_client(pki: Pki, words: list[str], served: bool) -> None:
    openssl = find_program("openssl", "openssl")
    async with open_broker(config_of(pki.files)) as hub:
        # -quit is not there in every version: the end of stdin ends it.
        done = await trio.run_process(
            [openssl, "s_client", "-connect", f"127.0.0.1:{port_of(hub)}", "-CAfile", str(pki.ca_path), "-verify_return_error", *words],
            stdin=b"Q\n",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    printed = done.stdout.decode("utf-8", "replace")
    assert ("Verify return code: 0 (ok)" in printed and "Cipher is (NONE)" not in printed) is served, printed
    if words[0] == "-alpn":
        assert ("ALPN protocol: mqtt" in printed) is (words[1] == "mqtt")


async def test_garbage_and_plain_mqtt_at_the_tls_port_end_their_own_connection(pki: Pki) -> None:
    async with open_broker(config_of(pki.files)) as hub, tls_client(hub, pki.context()) as bystander:
        await bystander.connect("bystander")
        for data in (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 100, b"\x16\x03\x01\xff\xff"):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(hub))
            async with stream:
                await stream.send_all(data)
                await stream.send_eof()
                with trio.fail_after(SECONDS_MAX):
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass
        await bystander.subscribe("a")


async def test_the_whole_chain_is_sent(pki: Pki) -> None:
    """The client knows only the root."""
    files = pki.issue("server", pki.ca.create_child_ca().create_child_ca().issue_cert("127.0.0.1"))
    async with open_broker(config_of(files)) as hub, tls_client(hub, pki.context()) as client:
        assert (await client.connect("c")).reason == ReasonCode.SUCCESS


@pytest.mark.parametrize("version", ["mqttv5", "mqttv311"])
async def test_mosquitto_pub(pki: Pki, mosquitto_pub: str, version: str) -> None:
    async with open_broker(config_of(pki.files)) as hub, hub.subscribe("a") as messages:
        words = [mosquitto_pub, "-h", "127.0.0.1", "-p", str(port_of(hub)), "-V", version, "-t", "a", "-m", "x", "-q", "1"]
        await trio.run_process([*words, "--cafile", str(pki.ca_path)])
        with trio.fail_after(SECONDS_MAX):
            assert (await anext(aiter(messages))).payload == b"x"


async def test_paho_with_its_certificate(pki: Pki) -> None:
    mine = pki.issue("mine", pki.ca.issue_cert("device-7", common_name="device seven"))
    files = TlsFiles(certificate=pki.files.certificate, key=pki.files.key, client_ca=str(pki.ca_path), require_certificate=True, identity="cn")
    async with open_broker(config_of(files)) as hub:
        done = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="p")
        client.tls_set(str(pki.ca_path), mine.certificate, mine.key)
        client.on_connect = lambda *arguments: done.set()
        await trio.to_thread.run_sync(client.connect, "127.0.0.1", port_of(hub))
        client.loop_start()
        try:
            assert await trio.to_thread.run_sync(done.wait, SECONDS_MAX)
            assert [found.username for found in hub.clients()] == ["device seven"]
        finally:
            client.disconnect()
            await trio.to_thread.run_sync(client.loop_stop)


# ---- who a client is -------------------------------------------------------------------------------------------------------


@pytest.fixture
def required(pki: Pki) -> TlsFiles:
    return TlsFiles(certificate=pki.files.certificate, key=pki.files.key, client_ca=str(pki.ca_path), require_certificate=True, identity="san")


async def test_the_name_is_the_certificates_and_no_password_is_asked_for(pki: Pki, required: TlsFiles) -> None:
    async with open_broker(config_of(required)) as hub, tls_client(hub, pki.context(pki.ca.issue_cert("device-7"))) as client:
        assert (await client.connect("c", username="somebody else")).reason == ReasonCode.SUCCESS
        assert [found.username for found in hub.clients()] == ["device-7"]


async def test_without_a_certificate_or_with_a_strangers_there_is_no_connection(pki: Pki, required: TlsFiles) -> None:
    async with open_broker(config_of(required)) as hub:
        for certificate in (None, trustme.CA().issue_cert("device-7")):
            await refused(hub, pki.context(certificate))
        assert hub.clients() == []


async def test_authorities_may_stand_in_a_directory(pki: Pki, required: TlsFiles, tmp_path: Path) -> None:
    (tmp_path / "authorities").mkdir()
    (tmp_path / "authorities" / "ca.pem").write_bytes(pki.ca.cert_pem.bytes())
    subprocess.run([find_program("openssl", "openssl"), "rehash", str(tmp_path / "authorities")], check=True)
    files = msgspec.structs.replace(required, client_ca=str(tmp_path / "authorities"))
    async with open_broker(config_of(files)) as hub:
        async with tls_client(hub, pki.context(pki.ca.issue_cert("device-7"))) as client:
            assert (await client.connect("c")).reason == ReasonCode.SUCCESS
        await refused(hub, pki.context(trustme.CA().issue_cert("device-7")))


async def test_a_certificate_that_is_not_required_may_be_missing(pki: Pki) -> None:
    files = TlsFiles(certificate=pki.files.certificate, key=pki.files.key, client_ca=str(pki.ca_path))
    async with open_broker(config_of(files)) as hub, tls_client(hub, pki.context()) as client:
        assert (await client.connect("c")).reason == ReasonCode.SUCCESS


def test_names_in_certificates() -> None:
    certificate = {
        "subject": ((("organizationName", "x"),), (("commonName", "ann"),)),
        "subjectAltName": (("email", "a@b"), ("DNS", "first"), ("DNS", "second")),
    }
    assert identity_of(certificate, "cn") == "ann"
    assert identity_of(certificate, "san") == "first"
    assert identity_of({"subject": ()}, "cn") is None
    assert identity_of({"subjectAltName": (("email", "a@b"),)}, "san") == "a@b"
    assert identity_of(None, "cn") is None


@pytest.fixture
def crl(pki: Pki, tmp_path: Path) -> Callable[[trustme.LeafCert], str]:
    """The path of a list by which the authority has revoked that certificate."""

    def written(*revoked: trustme.LeafCert) -> str:
        authority = x509.load_pem_x509_certificate(pki.ca.cert_pem.bytes())
        key = serialization.load_pem_private_key(pki.ca.private_key_pem.bytes(), None)
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder(authority.subject, now, now + datetime.timedelta(days=1))
        for leaf in revoked:
            serial = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now).build())
        path = tmp_path / "crl.pem"
        path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))  # type: ignore[arg-type]  # an EC key
        return str(path)

    return written


@pytest.mark.parametrize("required", [True, False])
async def test_a_revoked_certificate_lets_nobody_in(pki: Pki, required: bool, crl: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    good, stolen = pki.ca.issue_cert("device-7"), pki.ca.issue_cert("device-8")
    files = TlsFiles(certificate=pki.files.certificate, key=pki.files.key, client_ca=str(pki.ca_path), crl=crl(), require_certificate=required)
    async with open_broker(config_of(files)) as hub, tls_client(hub, pki.context(stolen)) as before:
        await before.connect("before")
        crl(stolen)
        assert hub.reload(config_of(files)) == []
        with caplog.at_level(logging.INFO, "broker"):
            await refused(hub, pki.context(stolen))
        assert "the certificate was not accepted: certificate revoked" in caplog.text
        async with tls_client(hub, pki.context(good)) as client:
            assert (await client.connect("c")).reason == ReasonCode.SUCCESS
        await before.subscribe("who is in, stays")


async def test_a_session_ticket_of_before_a_reload_opens_nothing(pki: Pki, required: TlsFiles, tmp_path: Path) -> None:
    """A client that resumes a session shows no certificate again."""
    (tmp_path / "clients.pem").write_bytes(pki.ca.cert_pem.bytes())
    files = msgspec.structs.replace(required, client_ca=str(tmp_path / "clients.pem"))
    context = pki.context(pki.ca.issue_cert("device-7"))

    def resumed(port: int, session: ssl.SSLSession | None) -> tuple[bool | None, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured,
        ):
            secured.sendall(encode(Connect("resuming"), 5))
            assert secured.recv(1000)[0] == 0x20
            return secured.session_reused, secured.session

    async with open_broker(config_of(files)) as hub:
        _, session = await trio.to_thread.run_sync(resumed, port_of(hub), None)
        reused, session = await trio.to_thread.run_sync(resumed, port_of(hub), session)
        assert reused
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "clients.pem"))
        assert hub.reload(config_of(files)) == []
        with pytest.raises(OSError):
            await trio.to_thread.run_sync(resumed, port_of(hub), session)


async def test_the_least_version_and_the_ciphers(pki: Pki) -> None:
    old = pki.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    files = msgspec.structs.replace(pki.files, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    async with open_broker(config_of(files)) as hub, tls_client(hub, old) as client:
        assert isinstance(client.stream, trio.SSLStream)
        assert (await client.connect("c")).reason == ReasonCode.SUCCESS
        assert client.stream.cipher()[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    async with open_broker(config_of(msgspec.structs.replace(pki.files, tls_version="tlsv1.3"))) as hub:
        await refused(hub, old)
        async with tls_client(hub, pki.context()) as client:
            assert (await client.connect("c")).reason == ReasonCode.SUCCESS


# ---- several certificates --------------------------------------------------------------------------------------------------


def shown_to(port: int, ca: Path, name: str | None) -> str:
    """The first name in the certificate that a client is shown who asks for that one."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as plain, context.wrap_socket(plain, server_hostname=name) as wrapped:
        return str(dict(wrapped.getpeercert() or {})["subjectAltName"][0][1])


@pytest.fixture
def several(pki: Pki) -> TlsFiles:
    """Its own for localhost; one for two names, one for a wildcard, and one whose names are written."""
    names = []
    for number, hosts in enumerate([("a.example", "also.example"), ("*.b.example",), ("inside.example",)]):
        issued = pki.issue(f"other{number}", pki.ca.issue_cert(*hosts))
        assert issued.key is not None
        names.append(TlsName(certificate=issued.certificate, key=issued.key, server_names=("C.example",) if number == 2 else ()))
    pki.issue("server", pki.ca.issue_cert("main.example", "127.0.0.1", "deep.b.example"))
    return msgspec.structs.replace(pki.files, names=tuple(names))


@pytest.mark.parametrize("protocol", ["mqtt", "websocket"])
async def test_the_certificate_of_the_name_that_is_asked_for(pki: Pki, several: TlsFiles, protocol: Literal["mqtt", "websocket"]) -> None:
    asked = {
        None: "main.example",
        "main.example": "main.example",
        "unknown.example": "main.example",
        "a.example": "a.example",
        "ALSO.example": "a.example",
        "x.b.example": "*.b.example",
        "deep.b.example": "main.example",  # by its whole name before the wildcard
        "x.y.b.example": "main.example",
        "b.example": "main.example",
        "c.example": "inside.example",
        "inside.example": "main.example",
    }
    async with open_broker(Config(listeners=(Listener(port=0, tls=several, protocol=protocol),), sys_interval_s=0)) as hub:
        port = int(hub.urls[0].split(":")[2].partition("/")[0])
        for name, shown in asked.items():
            assert await trio.to_thread.run_sync(shown_to, port, pki.ca_path, name) == shown, name


async def test_all_else_is_the_same_for_every_name(pki: Pki, several: TlsFiles) -> None:
    files = msgspec.structs.replace(several, client_ca=str(pki.ca_path), require_certificate=True, identity="san")

    async def client_of(certificate: trustme.LeafCert | None) -> trio.SSLStream[trio.SocketStream]:
        context = pki.context(certificate)
        context.set_alpn_protocols(["x", "mqtt"])
        return trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port_of(hub)), context, server_hostname="a.example", https_compatible=True)

    async with open_broker(config_of(files)) as hub:
        async with await client_of(pki.ca.issue_cert("device-7")) as stream:
            assert (await Client(stream).connect("c")).reason == ReasonCode.SUCCESS
            assert stream.selected_alpn_protocol() == "mqtt"
            assert [found.username for found in hub.clients()] == ["device-7"]
        stranger = await client_of(trustme.CA().issue_cert("device-7"))
        with contextlib.suppress(trio.BrokenResourceError):
            await stranger.send_all(encode(Connect("d"), 5))
            assert await stranger.receive_some() == b""
        await trio.aclose_forcefully(stranger)


NAMES = ("a.example", "*.b.example", "127.0.0.1", "someone@c.example", "xn--bcher-kva.example")
LONG_AGO, LATER = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2001, 2002))
KINDS: dict[str, Callable[[trustme.CA], trustme.LeafCert]] = {
    "EC": lambda ca: ca.issue_cert(*NAMES, key_type=trustme.KeyType.ECDSA),
    "RSA": lambda ca: ca.issue_cert(*NAMES, key_type=trustme.KeyType.RSA),
    "expired": lambda ca: ca.issue_cert(*NAMES, not_before=LONG_AGO, not_after=LATER),
    "below another authority": lambda ca: ca.create_child_ca().issue_cert(*NAMES),
    "without an intermediate": lambda ca: trustme.CA().create_child_ca().issue_cert(*NAMES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_in_a_certificate_are_read(kind: str, pki: Pki) -> None:
    assert dns_names_of(pki.issue("it", KINDS[kind](pki.ca))) == ["a.example", "*.b.example", "xn--bcher-kva.example"]


@pytest.mark.parametrize("authority", [False, True])
@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()])
def test_the_names_in_a_certificate_that_has_signed_itself_are_read(key: Any, authority: bool, tmp_path: Path) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "not a name")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 5, LONG_AGO, LATER)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("*.a.example"), x509.UniformResourceIdentifier("urn:b")]), critical=True)
    made = made.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    signed = made.sign(key, hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None)
    path = tmp_path / "one.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    assert dns_names_of(TlsName(certificate=str(path))) == ["*.a.example"]


def test_what_is_no_certificate_has_no_names(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("garbage")
    assert dns_names_of(TlsName(certificate=str(tmp_path / "garbage"))) is None
    assert dns_names_of(TlsName(certificate=str(tmp_path / "none"))) is None
    assert dns_names_of(pki.issue("nameless", pki.ca.issue_cert("someone@example.org"))) == []


async def test_a_name_may_be_added_to_a_listener_that_is_open(pki: Pki, several: TlsFiles) -> None:
    async with open_broker(config_of(pki.files)) as hub, tls_client(hub, pki.context()) as client:
        await client.connect("c")
        assert await trio.to_thread.run_sync(shown_to, port_of(hub), pki.ca_path, "a.example") == "main.example"
        assert hub.reload(config_of(several)) == []
        assert await trio.to_thread.run_sync(shown_to, port_of(hub), pki.ca_path, "a.example") == "a.example"
        await client.subscribe("still here")


async def test_a_further_certificate_is_renewed_too(pki: Pki, several: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.net.doorkeeper.WATCH_INTERVAL_S", 0.01)
    async with open_broker(config_of(several)) as hub:
        assert await trio.to_thread.run_sync(shown_to, port_of(hub), pki.ca_path, "d.example") == "main.example"
        pki.issue("other1", pki.ca.issue_cert("d.example"))
        while await trio.to_thread.run_sync(shown_to, port_of(hub), pki.ca_path, "d.example") != "d.example":
            await trio.lowlevel.checkpoint()
        assert await trio.to_thread.run_sync(shown_to, port_of(hub), pki.ca_path, "x.b.example") == "main.example"


# ---- renewal ---------------------------------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_shown_and_nobody_is_dropped(pki: Pki) -> None:
    config = config_of(pki.files)
    async with open_broker(config) as hub, tls_client(hub, pki.context()) as client:
        await client.connect("c")
        old = await trio.to_thread.run_sync(serial_of, port_of(hub), pki.ca_path)
        pki.renew()
        assert hub.reload(config) == []
        assert await trio.to_thread.run_sync(serial_of, port_of(hub), pki.ca_path) != old
        await client.subscribe("still here")


async def test_half_a_renewal_changes_nothing(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    """A new certificate whose key has not come yet: the old pair goes on serving."""
    config = config_of(pki.files)
    async with open_broker(config) as hub:
        old = await trio.to_thread.run_sync(serial_of, port_of(hub), pki.ca_path)
        Path(pki.files.certificate).write_bytes(pki.ca.issue_cert("127.0.0.1").cert_chain_pems[0].bytes())
        with pytest.raises(ConfigError, match="does not belong"):
            hub.reload(config)
        assert await trio.to_thread.run_sync(serial_of, port_of(hub), pki.ca_path) == old


async def test_files_are_watched(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WATCH_INTERVAL_S <= 5
    monkeypatch.setattr("broker.net.doorkeeper.WATCH_INTERVAL_S", 0.01)
    async with open_broker(config_of(pki.files)) as hub:
        port = port_of(hub)
        old = await trio.to_thread.run_sync(serial_of, port, pki.ca_path)
        pki.renew()
        with trio.fail_after(SECONDS_MAX):
            while await trio.to_thread.run_sync(serial_of, port, pki.ca_path) == old:
                await trio.lowlevel.checkpoint()


async def test_an_authority_that_was_taken_away_lets_nobody_in(pki: Pki, required: TlsFiles, tmp_path: Path) -> None:
    certificate = pki.ca.issue_cert("device-7")
    (tmp_path / "clients.pem").write_bytes(pki.ca.cert_pem.bytes())
    files = TlsFiles(
        certificate=required.certificate, key=required.key, client_ca=str(tmp_path / "clients.pem"), require_certificate=True, identity="san"
    )
    async with open_broker(config_of(files)) as hub:
        async with tls_client(hub, pki.context(certificate)) as client:
            assert isinstance(await client.connect("c"), ConnAck)
            trustme.CA().cert_pem.write_to_path(str(tmp_path / "clients.pem"))
            assert hub.reload(config_of(files)) == []
            await client.subscribe("who is in, stays")
        await refused(hub, pki.context(certificate))


@pytest.mark.parametrize("protocol", ["mqtt", "websocket"])
async def test_reload_under_load_loses_no_client(pki: Pki, several: TlsFiles, protocol: Literal["mqtt", "websocket"]) -> None:
    """Clients publish, a subscriber counts, and others come and go, while certificates are renewed and taken over again and again."""
    config = Config(listeners=(Listener(port=0, tls=several, protocol=protocol),), sys_interval_s=0)
    sent, received, came = [0] * 8, [0] * 8, 0
    async with open_broker(config) as hub, trio.open_nursery() as nursery:
        url = hub.urls[0]

        async def publisher(number: int) -> None:
            async with connect_client(url, tls=pki.context(), reconnect=None) as client:
                while True:
                    await client.publish(f"load/{number}", str(sent[number]), qos=1)
                    sent[number] += 1

        async def subscriber(task_status: trio.TaskStatus[None]) -> None:
            async with connect_client(url, tls=pki.context(), reconnect=None) as client, client.subscribe("load/#", qos=1) as messages:
                task_status.started()
                async for message in messages:
                    number = int(message.topic.rpartition("/")[2])
                    assert message.text == str(received[number])
                    received[number] += 1

        async def newcomers() -> None:
            nonlocal came
            while True:
                async with connect_client(url, tls=pki.context(), reconnect=None):
                    came += 1

        await nursery.start(subscriber)
        for number in range(len(sent)):
            nursery.start_soon(publisher, number)
        nursery.start_soon(newcomers)
        for _ in range(10):
            pki.issue("server", pki.ca.issue_cert("127.0.0.1", "localhost"))
            pki.issue("other0", pki.ca.issue_cert("a.example"))
            assert hub.reload(config) == []
            wanted = [count + 3 for count in received], came + 1
            while came < wanted[1] or any(count < least for count, least in zip(received, wanted[0], strict=True)):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
