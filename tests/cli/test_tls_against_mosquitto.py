"""The TLS options of `pub` and of mosquitto_pub, each against a TLS listener of Debian's mosquitto and of ours: all four agree."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from broker import Listener, TlsFiles, broker_thread
from tests.cli.conftest import SECONDS_MAX, Run
from tests.conftest import find_program
from tests.mosquitto import mosquitto

LISTENERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": ([], {}),
    "asks": (["cafile {}/ca.pem", "require_certificate true"], {"client_ca": "{}/ca.pem", "require_certificate": True}),
    "tlsv1.3": (["tls_version tlsv1.3"], {"tls_version": "tlsv1.3"}),
    "ciphers": (["ciphers ECDHE-ECDSA-AES128-GCM-SHA256"], {"ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"}),
}
"""What mosquitto.conf says of it, and what TlsFiles: its certificate is for localhost."""

CA = ("--cafile", "ca.pem")
MINE = ("--cert", "client.pem", "--key", "client.key")
ROWS: list[tuple[str, Sequence[str], bool]] = [
    ("plain", CA, True),
    ("plain", ("--capath", "authorities"), True),
    ("plain", ("--cafile", "other.pem"), False),
    ("plain", ("--cafile", "none.pem"), False),
    ("plain", ("--capath", "none"), False),
    ("plain", (*CA, "-h", "127.0.0.1"), False),
    ("plain", (*CA, "-h", "127.0.0.1", "--insecure"), True),
    ("plain", ("--cafile", "other.pem", "--insecure"), False),
    ("plain", ("--tls-use-os-certs",), False),
    ("plain", ("SSL_CERT_FILE=ca.pem", "--tls-use-os-certs"), True),
    ("plain", (), False),
    ("asks", (*CA, *MINE), True),
    ("asks", (*CA, *MINE, "--keyform", "pem"), True),
    ("asks", (*CA, *MINE, "--keyform", "engine"), False),
    ("asks", CA, False),
    ("asks", (*CA, "--cert", "stranger.pem", "--key", "stranger.key"), False),
    ("plain", (*CA, "--cert", "client.pem"), False),
    ("plain", (*CA, "--cert", "client.pem", "--key", "stranger.key"), False),
    ("plain", (*CA, "--tls-version", "tlsv1.2"), True),
    ("plain", (*CA, "--tls-version", "tlsv1.3"), True),
    ("plain", (*CA, "--tls-version", "nonsense"), False),
    ("tlsv1.3", (*CA, "--tls-version", "tlsv1.2"), True),
    ("tlsv1.3", (*CA, "--tls-version", "tlsv1.3"), True),
    ("ciphers", (*CA, "--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256"), True),
    ("plain", (*CA, "--ciphers", "nonsense"), False),
    ("plain", (*CA, "--tls-alpn", "mqtt"), True),
    ("plain", (*CA, "--tls-alpn", "other"), True),
    ("plain", ("-L", *CA), True),
    ("plain", ("-L",), False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    for name, issuer in (("ca", authority), ("other", other)):
        issuer.cert_pem.write_to_path(str(folder / f"{name}.pem"))
    leaves = {"server": authority.issue_cert("localhost"), "client": authority.issue_cert("device-7"), "stranger": other.issue_cert("device-7")}
    for name, leaf in leaves.items():
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    (folder / "authorities").mkdir()
    (folder / "authorities" / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
    subprocess.run([find_program("openssl", "openssl"), "rehash", str(folder / "authorities")], check=True)
    return folder


@pytest.fixture(scope="module")
def ports(folder: Path) -> Iterator[dict[tuple[str, str], int]]:
    """(whose broker, which of LISTENERS) to its port."""
    found = {}
    with ExitStack() as stack:
        for name, (lines, keywords) in LISTENERS.items():
            own = folder / f"mosquitto-{name}"
            own.mkdir()
            said = [f"certfile {folder}/server.pem", f"keyfile {folder}/server.key", *(line.format(folder) for line in lines)]
            found["mosquitto", name] = stack.enter_context(mosquitto(own, *said))
            keywords = {key: value.format(folder) if isinstance(value, str) else value for key, value in keywords.items()}
            files = TlsFiles(certificate=f"{folder}/server.pem", key=f"{folder}/server.key", **keywords)
            found["ours", name] = stack.enter_context(broker_thread(listeners=[Listener(port=0, tls=files)])).port
        yield found


@pytest.mark.parametrize(("listener", "given", "through"), ROWS, ids=[f"{row[0]}: {' '.join(row[1]) or 'no TLS'}" for row in ROWS])
@pytest.mark.parametrize("whose", ["mosquitto", "ours"])
def test_both_tools_get_through_or_not(
    whose: str,
    listener: str,
    given: Sequence[str],
    through: bool,
    folder: Path,
    ports: dict[tuple[str, str], int],
    mosquitto_pub: str,
    run_here: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    port = ports[whose, listener]
    words = list(given)
    if words and words[0].startswith("SSL_CERT_FILE="):
        monkeypatch.setenv("SSL_CERT_FILE", words.pop(0).partition("=")[2])
    where = ["-p", str(port), "-t", "a"]
    if words and words[0] == "-L":
        where = [words.pop(0), f"mqtts://localhost:{port}/a"]
    command = [*where, "-m", "x", "-q", "1", *words]
    theirs = subprocess.run([mosquitto_pub, *command], capture_output=True, timeout=SECONDS_MAX, check=False)
    mine = run_here("pub", *command)
    assert (theirs.returncode == 0, mine.returncode == 0) == (through, through), (theirs.stderr, mine.stderr)
    assert len(mine.stderr.decode().splitlines()) == (0 if through else 1)


@pytest.mark.parametrize("transport", ["wss", "unix"])
def test_our_tools_and_mosquittos_other_doors(transport: str, folder: Path, tmp_path: Path, run_here: Run) -> None:
    path = tmp_path / "mqtt.sock"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    lines = {
        # Beside a plain listener: with WebSocket ones alone, 2.0.11 says that it listens nowhere, and ends.
        "wss": [f"listener {port} 127.0.0.1", "protocol websockets", f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"],
        "unix": [f"listener 0 {path}"],
    }
    words = {"wss": ["-p", str(port), "--ws", "--cafile", f"{folder}/ca.pem"], "unix": ["--unix", str(path)]}[transport]
    with mosquitto(tmp_path, *lines[transport]):
        done = run_here("pub", *words, "-t", "a", "-m", "kept", "-q", "1", "-r")
        assert (done.returncode, done.stderr) == (0, b"")
        done = run_here("sub", *words, "-t", "a", "-C", "1")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"kept\n", b"")


def test_mosquittos_tools_and_our_unix_socket(tmp_path: Path, mosquitto_pub: str) -> None:
    path = tmp_path / "mqtt.sock"
    with broker_thread(listeners=[f"unix://{path}"]) as broker:
        subprocess.run([mosquitto_pub, "--unix", str(path), "-t", "a", "-m", "x", "-q", "1"], check=True, timeout=SECONDS_MAX)
        assert broker.wait_for("a")[0].text == "x"
