"""The TLS options, against a broker with a certificate of our own making."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from broker import Listener, broker_thread
from tests.cli.conftest import Run, only_line


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """(a CA, a directory with its certificate ca.pem and a client's client.pem and client.key)."""
    authority = trustme.CA()
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client = authority.issue_cert("client@example.org")
    client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    client.private_key_pem.write_to_path(str(folder / "client.key"))
    return authority, folder


@pytest.fixture(scope="module")
def port(authority: tuple[trustme.CA, Path]) -> Iterator[str]:
    """A broker that calls itself localhost and asks its clients for a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority[0].issue_cert("localhost").configure_cert(context)
    authority[0].configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["mqtt"])
    with broker_thread(listeners=[Listener(host="127.0.0.1", port=0, tls=context)]) as broker:
        yield str(broker.port)


GOOD = [
    ["--cafile", "ca.pem"],
    ["--cafile", "ca.pem", "--cert", "client.pem", "--key", "client.key", "--keyform", "pem"],
    ["--cafile", "ca.pem", "-h", "127.0.0.1", "--insecure"],
    ["--cafile", "ca.pem", "--tls-version", "tlsv1.3", "--tls-alpn", "mqtt", "--ciphers", "HIGH"],
]


@pytest.mark.parametrize("words", GOOD, ids=[" ".join(words) for words in GOOD])
def test_a_message_goes_over_tls(words: list[str], port: str, authority: tuple[trustme.CA, Path], run_here: Run) -> None:
    words = [str(authority[1] / word) if word.endswith((".pem", ".key")) else word for word in words]
    done = run_here("pub", "-t", "x", "-m", "y", "-q", "1", "-p", port, *words)
    assert (done.returncode, done.stderr) == (0, b"")


BAD = [
    (["--tls-use-os-certs"], "--cafile FILE says whom to trust"),
    (["--cafile", "ca.pem", "-h", "127.0.0.1"], "certificate was not accepted"),
    ([], "the broker closed the connection before a CONNACK came; does it ask for TLS there (--cafile FILE, --tls-use-os-certs)?"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(row[0]) or "no TLS" for row in BAD])
def test_what_is_wrong_with_the_certificate_is_said(
    words: list[str], said: str, port: str, authority: tuple[trustme.CA, Path], run_here: Run
) -> None:
    words = [str(authority[1] / word) if word.endswith(".pem") else word for word in words]
    done = run_here("pub", "-t", "x", "-m", "y", "-q", "1", "-p", port, *words)
    assert done.returncode == 1
    assert said in only_line(done.stderr)


ASKING = [("TLSv1_3", "asks for a certificate, and was shown none"), ("TLSv1_2", "it may ask for a certificate")]


@pytest.mark.parametrize(("version", "said"), ASKING, ids=[row[0] for row in ASKING])
def test_a_broker_that_asks_for_a_certificate_is_understood(version: str, said: str, authority: tuple[trustme.CA, Path], run_here: Run) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority[0].issue_cert("localhost").configure_cert(context)
    authority[0].configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion[version]
    with broker_thread(listeners=[Listener(host="127.0.0.1", port=0, tls=context)]) as broker:
        done = run_here("pub", "-t", "x", "-m", "y", "-p", str(broker.port), "--cafile", str(authority[1] / "ca.pem"))
    assert done.returncode == 1
    assert said in only_line(done.stderr)
    assert "_ssl" not in only_line(done.stderr)
