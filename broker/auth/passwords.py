"""Password files: Mosquitto's as they are, one `name:hash` a line, and the users in them.

A line that cannot be used is a mistake with its number: a user who is silently left out is an incident on Monday. Passwords
themselves are bytes (MQTT 5.0, 3.1.3.6), and never stand in an error. Whoever asks for an unknown name pays as much as for a
known one: `find` answers with the hash of somebody, chosen by the name, whose verification then counts for nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker.auth.files import read_bounded
from broker.auth.hashes import (
    DIGEST_BYTES,
    ITERATIONS,
    SALT_BYTES,
    SCRAM_KEY_BYTES,
    ExtraMissing,
    MosquittoHash,
    PasswordHash,
    Scheme,
    ScramHash,
    hash_password,
    parse_hash,
)  # fmt: skip
from broker.auth.saslprep import saslprep
from broker.errors import ConfigError
from broker.words import strerror

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
NAME_BYTES_MAX: Final = 65_535


def name_fault(name: str) -> str | None:
    """Why a password file cannot hold this user name; None if it can."""
    if not name:
        return "a user name must not be empty"
    if ":" in name:
        return "a user name in a password file must not contain a colon"
    if any(ord(character) < 32 or ord(character) == 127 for character in name) or name != name.strip():
        return "a user name in a password file must not contain control characters, nor begin or end with a space"
    if name.startswith("#"):
        return "a line that begins with # is a comment: choose another user name"
    if any("\ud800" <= character <= "\udfff" for character in name):  # of a command line that was not UTF-8
        return "a user name must be UTF-8"
    return f"a user name of more than {NAME_BYTES_MAX:,} bytes is too long" if len(name.encode()) > NAME_BYTES_MAX else None


def scram_name_fault(name: str) -> str | None:
    """Why SCRAM cannot ask for this user name; None if it can. Its clients send names as SASLprep makes them."""
    try:
        prepared = saslprep(name)
    except ValueError as error:
        return f"a user name for SCRAM {error}"
    return None if prepared == name else f"SCRAM's clients write this user name {prepared!r}: use that"


class Passwords:
    """The users of one file."""

    __slots__ = ("_anchor", "_key", "_others", "_proofs", "_scram_shapes", "_users")

    def __init__(self, users: Mapping[str, PasswordHash]) -> None:
        self._users = dict(users)
        # Nobody's password: only its cost counts. Where users cost differently, so do strangers, each name always the same.
        self._others = list(self._users.values()) or [MosquittoHash(bytes(SALT_BYTES), bytes(DIGEST_BYTES), ITERATIONS)]
        self._key = secrets.token_bytes(32)
        scram = [entry for entry in self._users.values() if isinstance(entry, ScramHash)]
        # A stranger's salt must not change when a user's would not: not at a restart, nor when others come and go. So it hangs on a secret of
        # the file that seldom leaves it.
        self._anchor = min((entry.server_key for entry in scram), default=b"")
        self._scram_shapes = sorted({(entry.iterations, len(entry.salt)) for entry in scram})
        self._proofs: dict[str, bytes] = {}
        """Users whose password was right, and its keyed digest; at most one each, and gone with this object and its key."""

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, name: str) -> bool:
        return name in self._users

    def get(self, name: str) -> PasswordHash | None:
        return self._users.get(name)

    def find(self, name: str) -> tuple[PasswordHash, bool]:
        """(whose hash to verify, does the result count?)."""
        known = self._users.get(name)
        mark = hmac.digest(self._key, name.encode("utf-8", "surrogatepass"), "sha256")  # for everybody, so that it tells nobody anything
        other = self._others[int.from_bytes(mark[:8], "big") % len(self._others)]
        return (other, False) if known is None else (known, True)

    @property
    def has_scram(self) -> bool:
        """Can anybody come in by SCRAM?"""
        return bool(self._scram_shapes)

    def find_scram(self, name: str) -> tuple[ScramHash, bool]:
        """As `find`, for SCRAM, where the first answer already shows salt and iterations: a stranger's stay the same, and look like a user's."""
        mark = hmac.digest(self._anchor, b"salt of a stranger" + name.encode("utf-8", "surrogatepass"), "sha512")
        iterations, size = self._scram_shapes[int.from_bytes(mark[:8], "big") % len(self._scram_shapes)]
        known = self._users.get(name)
        if isinstance(known, ScramHash):
            return known, True
        salt = (mark[8:] * (size // len(mark[8:]) + 1))[:size]
        return ScramHash(iterations, salt, bytes(SCRAM_KEY_BYTES), bytes(SCRAM_KEY_BYTES)), False

    def is_proven(self, name: str, password: bytes) -> bool:
        """Was this the right password before? Quick, and False says nothing."""
        proof = self._proofs.get(name)
        return proof is not None and hmac.compare_digest(proof, self._proof(name, password))

    def prove(self, name: str, password: bytes) -> None:
        """It was right."""
        if name in self._users:
            self._proofs[name] = self._proof(name, password)

    def _proof(self, name: str, password: bytes) -> bytes:
        return hmac.digest(self._key, name.encode("utf-8", "surrogatepass") + b"\0" + password, "sha256")


def read_text(path: str | Path) -> str:
    """A file of ours as text. ConfigError."""
    source = os.fspath(path)
    try:
        data = read_bounded(path, FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError([("", f"cannot be read: {strerror(error)}")], source) from None
    except ValueError as error:
        raise ConfigError([("", str(error))], source) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([("", f"line {line}: is not UTF-8")], source) from None


def load_passwords(path: str | Path) -> Passwords:
    """ConfigError names every line that is wrong."""
    return parse_passwords(read_text(path), os.fspath(path))


def parse_passwords(text: str, source: str) -> Passwords:
    users: dict[str, PasswordHash] = {}
    problems: list[tuple[str, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, rest = line.partition(":")
        name = name.strip()
        if not separator:
            problems.append((f"line {number}", "expected name:hash"))
        elif (fault := name_fault(name)) is not None:
            problems.append((f"line {number}", fault))
        elif name in users:
            problems.append((f"line {number}", f"{name!r} is here a second time"))
        else:
            try:
                users[name] = parse_hash(rest.strip())
            except ValueError as error:
                problems.append((f"line {number}", str(error)))
            if isinstance(users.get(name), ScramHash) and (fault := scram_name_fault(name)) is not None:
                problems.append((f"line {number}", fault))
    if problems:
        raise ConfigError(problems, source)
    return Passwords(users)


# ---- changing a file -------------------------------------------------------------------------------------------------------


def with_user(text: str, name: str, entry: PasswordHash | None) -> tuple[str, bool]:
    """(the text of a file with this user set, or without them for None; were they there?). Everything else stays as it is."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    kept: list[str] = []
    found = False
    for line in lines:
        if line.startswith("#") or line.partition(":")[0].strip() != name:
            kept.append(line)
            continue
        if entry is not None and not found:
            kept.append(f"{name}:{entry.text}")
        found = True
    if entry is not None and not found:
        kept.append(f"{name}:{entry.text}")
    return "".join(line + "\n" for line in kept), found


def with_plain_hashed(text: str, source: str, scheme: Scheme = "sha512-pbkdf2", iterations: int | None = None) -> tuple[str, int]:
    """(a file of `name:password` lines with each password hashed, how many were). Lines that are hashed already stay. ConfigError."""
    lines = text.split("\n")
    problems: list[tuple[str, str]] = []
    count = 0
    for index, line in enumerate(lines):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, password = line.partition(":")
        fault = name_fault(name.strip()) if separator else "expected name:password"
        if fault is None and scheme == "scram-sha-256":
            fault = scram_name_fault(name.strip())
        if fault is not None:
            problems.append((f"line {index + 1}", fault))
            continue
        password = password.removesuffix("\r")
        try:
            parse_hash(password.strip())
        except ExtraMissing as error:
            problems.append((f"line {index + 1}", str(error)))
        except ValueError:
            try:
                lines[index] = f"{name.strip()}:{hash_password(password.encode(), scheme, iterations).text}"
                count += 1
            except ValueError as error:
                problems.append((f"line {index + 1}", str(error)))
    if problems:
        raise ConfigError(problems, source)
    return "\n".join(lines), count


def write_atomically(path: str | Path, text: str) -> None:
    """All or nothing, also when the power fails: a broker that reloads never sees half a file. Mode and owner stay; a new file is
    its owner's only (0600). OSError."""
    target = os.path.realpath(path)
    try:
        before: os.stat_result | None = os.stat(target)
    except FileNotFoundError:
        before = None
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=os.path.dirname(target))  # 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode())
            if before is not None:
                _keep_owner_and_mode(file.fileno(), before)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _keep_owner_and_mode(descriptor: int, before: os.stat_result) -> None:
    if hasattr(os, "fchown") and (before.st_uid, before.st_gid) != (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, before.st_mode & 0o7777)
