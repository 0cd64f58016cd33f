"""config/production.toml as it stands, served by the command with real files beside it; passwords change while it runs."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import trustme

from broker.cli.running import run_command_line
from tests.cli.conftest import SECONDS_MAX, Start
from tests.e2e.tools import ROOT


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, with the files it names; the environment moves it to free ports of this machine."""
    file = Path(shutil.copy(ROOT / "config" / "production.toml", tmp_path))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    (tmp_path / "server.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    (tmp_path / "acl").write_text("pattern readwrite home/%u/#\n")
    assert run_command_line(["passwd", "-c", "-b", str(tmp_path / "passwords"), "ann", "first"]) == 0
    monkeypatch.setenv("BROKER__LISTENERS__0__HOST", "127.0.0.1")
    monkeypatch.setenv("BROKER__STORE__PATH", "broker.db")
    for index in "01":
        monkeypatch.setenv(f"BROKER__LISTENERS__{index}__PORT", "0")
    return file


def test_it_serves_and_takes_a_new_password(config: Path, start: Start, mosquitto_pub: str) -> None:
    assert run_command_line(["check", str(config)]) == 0
    broker = start("serve", "-c", str(config))
    line = broker.wait("listening on")["line"]
    assert "mqtts://127.0.0.1:" in line

    def publish(password: str, topic: str = "home/ann/x") -> bool:
        words = [mosquitto_pub, "-h", "127.0.0.1", "-p", line.rpartition(":")[2], "--cafile", str(config.parent / "ca.pem"), "-V", "5", "-q", "1"]
        words += ["-u", "ann", "-P", password, "-t", topic, "-m", "x"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        return done.returncode == 0 and "Not authorized" not in done.stderr

    assert publish("first")
    assert not publish("first", "home/ben/x")
    assert not publish("second")
    assert run_command_line(["passwd", "-b", str(config.parent / "passwords"), "ann", "second"]) == 0
    broker.process.send_signal(signal.SIGHUP)
    assert "need a restart" not in broker.wait("reloaded")["line"]
    assert publish("second")
    assert not publish("first")
    broker.stop(signal.SIGTERM)
    assert broker.process.returncode == 0


def test_it_does_not_start_without_its_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = shutil.copy(ROOT / "config" / "production.toml", tmp_path)
    assert run_command_line(["serve", "-c", str(file)]) == 1
    said = capfd.readouterr().err
    assert all(f"{name} cannot be read" in said for name in ("passwords", "acl", "server.pem"))
