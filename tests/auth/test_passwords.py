"""Password files: Mosquitto's own program reads and writes what we do, and whatever cannot be used is named by its line."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth import hashes, passwords
from broker.auth.hashes import MosquittoHash, PasswordHash, hash_password, parse_hash
from broker.auth.passwords import Passwords, parse_passwords
from broker.errors import ConfigError
from tests.conftest import find_program
from tests.systems import has_modes

QUICK = 5
"""Iterations, where their number is not what is tested."""


@pytest.fixture(scope="module")
def mosquitto_passwd() -> str:
    return find_program("mosquitto_passwd", "mosquitto")


@pytest.mark.parametrize("scheme", ["sha512-pbkdf2", "sha512"])
def test_what_mosquitto_wrote_verifies(mosquitto_passwd: str, scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    subprocess.run([mosquitto_passwd, "-H", scheme, "-c", "-b", str(path), "ann", "Gehei:m$ü"], check=True)
    users = passwords.load_passwords(path)
    ann = users.get("ann")
    assert ann is not None
    assert ann.verifies("Gehei:m$ü".encode())
    assert not ann.verifies(b"geheim")


def test_mistakes_are_named_by_line_and_without_the_password() -> None:
    good = hash_password(b"x", iterations=QUICK).text
    text = f"# users\n\nann:{good}\nbob\ncarl:hunter2\nann:{good}\n:{good}\ndora:$7$0$AA==$AA==\nemil:$5$a$b\nfritz:$6$AA==$AA==\ngert:$6$A$!\n"
    with pytest.raises(ConfigError) as caught:
        parse_passwords(text, "users")
    found = dict(caught.value.problems)
    assert list(found) == [f"line {number}" for number in range(4, 12)]
    assert found["line 4"] == "expected name:hash"
    assert "broker passwd -U" in found["line 5"]
    assert "second time" in found["line 6"]
    assert "empty" in found["line 7"]
    assert "iterations" in found["line 8"]
    assert "64 bytes" in found["line 10"]
    assert "base64" in found["line 11"]
    assert "hunter2" not in str(caught.value)


@given(st.text().filter(lambda text: "\n" not in text), st.sampled_from(["sha512-pbkdf2", "sha512"]))
def test_a_hash_reads_back(password: str, scheme: hashes.Scheme) -> None:
    data = password.encode("utf-8", "surrogatepass")
    made = parse_hash(hash_password(data, scheme, QUICK).text)
    assert made.verifies(data)
    assert not made.verifies(data + b"x")


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_any_text_is_a_file_or_a_mistake(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert len(parse_passwords(text, "users")) == 0 or "$" in text


def rounds(entry: PasswordHash) -> int:
    assert isinstance(entry, MosquittoHash)
    return entry.iterations


def test_a_stranger_costs_what_a_user_costs() -> None:
    """The work for an unknown name is that of one of the users, and the same each time."""
    users = Passwords({"old": MosquittoHash(b"a" * 12, b"b" * 64, 0), "new": MosquittoHash(b"a" * 12, b"b" * 64, 1000)})
    costs = {name: rounds(users.find(name)[0]) for name in map(str, range(200))}
    assert set(costs.values()) == {0, 1000}
    assert all(users.find(name) == (users.find(name)[0], False) for name in costs)
    assert {name: rounds(users.find(name)[0]) for name in costs} == costs
    assert users.find("new")[1] is True
    assert rounds(Passwords({}).find("x")[0]) == hashes.ITERATIONS


# ---- argon2id ------------------------------------------------------------------------------------------------------------


def test_argon2id_reads_back_and_costs_what_owasp_asks() -> None:
    made = hash_password("Gehei:m$ü".encode(), "argon2id")
    assert made.text.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert parse_hash(made.text).verifies("Gehei:m$ü".encode())
    assert not parse_hash(made.text).verifies(b"geheim")
    assert made.text.rpartition("$")[2] not in repr(made)
    assert "t=3," in hash_password(b"x", "argon2id", 3).text


def test_argon2id_of_others_verifies() -> None:
    """Of the reference implementation's tests: 64 MiB would be slow here, 256 KiB is one of them."""
    text = "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc"
    assert parse_hash(text).verifies(b"password")
    assert not parse_hash(text).verifies(b"passwort")


@pytest.mark.parametrize(
    "text",
    [
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ",
        "$argon2id$m=64,t=1,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=16$m=64,t=1,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m=-64,t=1,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m=8388608,t=1,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m=64,t=100000,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m=64,t=1,p=100$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m= 64,t=1,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m=64,t=1,p=1$!!$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$bQk8",
        "$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
    ],
)
def test_a_wrong_argon2id_line_is_a_mistake_when_the_file_is_read(text: str) -> None:
    with pytest.raises(ConfigError, match="line 1: expected"):
        parse_passwords(f"ann:{text}\n", "users")


def test_without_the_extra_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"ann:{hash_password(b'x', 'argon2id', 1).text}\n"
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(ConfigError, match=r"line 1: argon2id needs .* pip install 'trio-mqtt-broker\[argon2\]'"):
        parse_passwords(text, "users")
    with pytest.raises(ConfigError, match="pip install"):  # and is not taken for a plain password
        passwords.with_plain_hashed(text, "users", iterations=QUICK)
    with pytest.raises(ValueError, match="pip install"):
        hash_password(b"x", "argon2id")


# ---- changing files ------------------------------------------------------------------------------------------------------


def test_a_change_keeps_all_other_lines() -> None:
    entry = MosquittoHash(b"a", b"b" * 64, 7)
    text = "# ours\nann:x\n\n bob :y\ncarl:z"
    assert passwords.with_user(text, "bob", entry) == (f"# ours\nann:x\n\nbob:{entry.text}\ncarl:z\n", True)
    assert passwords.with_user(text, "dora", entry) == (f"# ours\nann:x\n\n bob :y\ncarl:z\ndora:{entry.text}\n", False)
    assert passwords.with_user(text, "ann", None) == ("# ours\n\n bob :y\ncarl:z\n", True)
    assert passwords.with_user("", "ann", None) == ("", False)


def test_plain_passwords_are_hashed_once() -> None:
    text, count = passwords.with_plain_hashed("# c\nann:se:cret\nbob:plain\n", "users", iterations=QUICK)
    assert count == 2
    users = parse_passwords(text, "users")
    ann = users.get("ann")
    assert ann is not None
    assert ann.verifies(b"se:cret")
    assert passwords.with_plain_hashed(text, "users") == (text, 0)


@has_modes
def test_a_new_file_is_its_owners_only_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    passwords.write_atomically(path, "one\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    passwords.write_atomically(link, "two\n")
    assert link.is_symlink()
    assert path.read_text() == "two\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "passwords"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passwords"
    path.write_text("old\n")

    def fail(descriptor: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        passwords.write_atomically(path, "new\n")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["passwords"]
