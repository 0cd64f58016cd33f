"""--pw-file, --pw-env and --auth: passwords, tokens and SCRAM, against a broker that asks for them, and who sees what."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from broker import Config, broker_thread
from broker.auth.hashes import hash_password
from broker.auth.tokens import Jwt
from broker.thread import BrokerThread
from tests.cli.conftest import SECONDS_MAX, Run, Start, only_line

SECRET = "a shared secret of at least thirty-two bytes"
COMMANDS = {
    "pub": ("pub", "-t", "x", "-m", "y", "-q", "1"),
    "sub": ("sub", "-t", "x", "-E"),
    "rr": ("rr", "-t", "x", "-e", "x", "-m", "y"),
    "bench": ("bench", "-n", "10", "--pairs", "3", "--json"),
}


def token(lasts_s: float = 600, name: str = "ann") -> str:
    return jwt.encode({"sub": name, "exp": int(time.time() + lasts_s)}, SECRET, "HS256")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerThread]:
    """A broker that asks for tokens."""
    secret = tmp_path_factory.mktemp("tokens") / "secret"
    secret.write_text(SECRET)
    with broker_thread(Config(jwt=Jwt(key_file=str(secret)))) as broker:
        yield broker


@pytest.fixture(scope="module")
def ports(tokens: BrokerThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Of that one, and of one that asks for a password, or SCRAM."""
    users = tmp_path_factory.mktemp("passwords") / "users"
    users.write_text(f"ann:{hash_password(b'geheim', 'scram-sha-256', 4096).text}\n")
    with broker_thread(Config(password_file=str(users))) as passwords:
        yield str(tokens.port), str(passwords.port)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("words", [(), ("--auth", "JWT"), ("-u", "ann", "-V", "311")], ids=["password", "AUTH", "3.1.1"])
def test_a_token_from_a_file(name: str, words: tuple[str, ...], ports: tuple[str, str], tmp_path: Path, run_here: Run) -> None:
    (tmp_path / "token").write_text(token() + "\n")
    done = run_here(*COMMANDS[name], "-p", ports[0], "--pw-file", str(tmp_path / "token"), *words)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("words", [(), ("--auth", "SCRAM-SHA-256")], ids=["password", "SCRAM"])
def test_a_password_from_the_environment(
    name: str, words: tuple[str, ...], ports: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run_here: Run
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "geheim")
    done = run_here(*COMMANDS[name], "-p", ports[1], "-u", "ann", "--pw-env", "MY_PASSWORD", *words)
    assert (done.returncode, done.stderr) == (0, b"")
    if name == "bench":
        assert json.loads(done.stdout)["delivered"] == 30


REFUSED = [
    (1, ("-u", "ann", "--pw-env", "WRONG", "--auth", "SCRAM-SHA-256"), 135, "not authorized"),
    (1, ("-u", "ann", "--pw-env", "WRONG", "--auth", "JWT"), 140, "bad authentication method"),
    (0, ("--pw-env", "WRONG", "--auth", "JWT"), 135, "not authorized"),
    (0, ("--pw-env", "LATIN", "--auth", "JWT"), 1, "--pw-env: what --auth shows must be UTF-8"),
    (1, ("-u", "ann", "--pw-env", "BELL", "--auth", "SCRAM-SHA-256"), 2, "SASLprep forbids"),
]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("place", "words", "code", "said"), REFUSED)
def test_a_refusal_is_one_line_and_no_secret_in_it(
    name: str, place: int, words: tuple[str, ...], code: int, said: str, ports: tuple[str, str], monkeypatch: pytest.MonkeyPatch, run_here: Run
) -> None:
    secrets = {"WRONG": "waffle", "LATIN": os.fsdecode(b"waffle\xff"), "BELL": "waffle\a"}
    for variable, value in secrets.items():
        monkeypatch.setenv(variable, value)
    done = run_here(*COMMANDS[name], "-p", ports[place], *words)
    assert done.returncode == code
    assert said in only_line(done.stderr)
    assert b"waffle" not in done.stderr


@pytest.mark.parametrize(("words", "code"), [((), 134), (("--auth", "JWT"), 135)], ids=["password", "AUTH"])
def test_each_connection_shows_the_newest_token(words: tuple[str, ...], code: int, tokens: BrokerThread, tmp_path: Path, start: Start) -> None:
    (tmp_path / "token").write_text(token())
    running = start("sub", "-t", "x", "-d", "-p", str(tokens.port), "--pw-file", str(tmp_path / "token"), *words)
    running.wait("SUBACK")
    (tmp_path / "token").write_text(token() + "x")  # one that is refused, so that it is seen
    tokens.drop_clients()
    assert running.process.wait(SECONDS_MAX) == code
