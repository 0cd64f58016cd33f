"""What may stand behind the colon of a password file: the forms of a hash, each known by its first characters.

`$7$` (PBKDF2-SHA512) and `$6$` (one salted SHA-512) are Mosquitto's, `$argon2id$` is the PHC's form of the contest's winner, and
`SCRAM-SHA-256$` is what RFC 5803 (and PostgreSQL) writes: it serves plain passwords too, which is more than the others can do for SCRAM. All of
them verify the same way: slowly, on purpose. The bounds are for files: a line is no place for a value that stops the broker.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from contextlib import suppress
from typing import Final, Literal, Protocol, TypeAlias

from broker.auth.saslprep import saslprep

Scheme: TypeAlias = Literal["sha512-pbkdf2", "sha512", "argon2id", "scram-sha-256"]

ITERATIONS: Final = 210_000
"""What OWASP asks of PBKDF2-HMAC-SHA512 (2023). Mosquitto 2.0 writes 101, and reads any number."""
ITERATIONS_MAX: Final = 10_000_000
"""More would be a file that stops the broker: at this each attempt takes seconds."""
SALT_BYTES: Final = 12
"""Mosquitto 2.0 reads no other."""
DIGEST_BYTES: Final = 64

ARGON2_PASSES: Final = 2
ARGON2_KIB: Final = 19_456
"""What OWASP asks of argon2id (2023): 19 MiB, two passes, one lane. Our own limit of threads says how many run at a time."""
ARGON2_PASSES_MAX: Final = 100
ARGON2_KIB_MAX: Final = 1_048_576
"""1 GiB for an attempt, in each of the threads that hash."""
ARGON2_LANES_MAX: Final = 64
ARGON2_SALT_BYTES: Final = 16
ARGON2_DIGEST_BYTES: Final = 32

SCRAM_PREFIX: Final = "SCRAM-SHA-256$"
SCRAM_ITERATIONS: Final = 600_000
"""What OWASP asks of PBKDF2-HMAC-SHA256 (2023). With SCRAM it is the client that does this work."""
SCRAM_ITERATIONS_MIN: Final = 4096
"""RFC 7677."""
SCRAM_SALT_BYTES: Final = 16
SCRAM_KEY_BYTES: Final = 32


class ExtraMissing(ValueError):
    """The hash may be right, and cannot be read here."""


class PasswordHash(Protocol):
    """One user's. `text` is the form of the file."""

    @property
    def text(self) -> str: ...

    def verifies(self, password: bytes) -> bool:
        """Slow on purpose, tens of milliseconds: not on the event loop. Releases the GIL."""


def hash_password(password: bytes, scheme: Scheme = "sha512-pbkdf2", iterations: int | None = None) -> PasswordHash:
    """A new hash with a new salt. iterations: of PBKDF2, passes of argon2id; None for what is right today. ValueError for too many or too
    few, for a password that SCRAM cannot have, and where an extra is missing."""
    if scheme == "argon2id":
        return _hash_argon2(password, ARGON2_PASSES if iterations is None else iterations)
    if scheme == "scram-sha-256":
        return _hash_scram(password, SCRAM_ITERATIONS if iterations is None else iterations)
    if iterations is None:
        iterations = ITERATIONS
    if not 1 <= iterations <= ITERATIONS_MAX:
        raise ValueError(f"expected 1 to {ITERATIONS_MAX:,} iterations, got {iterations:,}")
    salt = secrets.token_bytes(SALT_BYTES)
    rounds = iterations if scheme == "sha512-pbkdf2" else 0
    return MosquittoHash(salt, _digest(password, salt, rounds), rounds)


def parse_hash(text: str) -> PasswordHash:
    """`$7$101$salt$digest` and the like. ValueError says what was expected, and does not repeat the text: it may be a password."""
    if text.startswith(SCRAM_PREFIX):
        return _parse_scram(text)
    parts = text.split("$")
    if len(parts) < 3 or parts[0]:
        raise ValueError("expected a hash that begins with $7$, $6$, $argon2id$ or SCRAM-SHA-256$; for plain passwords run: broker passwd -U FILE")
    if parts[1] in ("6", "7"):
        return _parse_mosquitto(parts)
    if parts[1] == "argon2id":
        return _parse_argon2(text)
    raise ValueError("expected a hash that begins with $7$, $6$, $argon2id$ or SCRAM-SHA-256$")


# ---- Mosquitto's -----------------------------------------------------------------------------------------------------------


class MosquittoHash:
    __slots__ = ("digest", "iterations", "salt")

    def __init__(self, salt: bytes, digest: bytes, iterations: int) -> None:
        """iterations: of PBKDF2; 0 is the single SHA-512 of `$6$`."""
        self.salt = salt
        self.digest = digest
        self.iterations = iterations

    def __repr__(self) -> str:
        return f"MosquittoHash(iterations={self.iterations})"

    @property
    def text(self) -> str:
        salt, digest = b64encode(self.salt).decode(), b64encode(self.digest).decode()
        return f"$7${self.iterations}${salt}${digest}" if self.iterations else f"$6${salt}${digest}"

    def verifies(self, password: bytes) -> bool:
        return hmac.compare_digest(_digest(password, self.salt, self.iterations), self.digest)


def _digest(password: bytes, salt: bytes, iterations: int) -> bytes:
    if iterations:
        return hashlib.pbkdf2_hmac("sha512", password, salt, iterations)
    return hashlib.sha512(password + salt).digest()


def _parse_mosquitto(parts: list[str]) -> MosquittoHash:
    kind = parts[1]
    if len(parts) != (5 if kind == "7" else 4):
        raise ValueError(f"expected {'$7$iterations$salt$hash' if kind == '7' else '$6$salt$hash'}")
    iterations = 0
    if kind == "7":
        if not (parts[2].isascii() and parts[2].isdigit() and len(parts[2]) < 10 and 1 <= int(parts[2]) <= ITERATIONS_MAX):
            raise ValueError(f"expected 1 to {ITERATIONS_MAX:,} iterations after $7$")
        iterations = int(parts[2])
    try:
        salt, digest = (b64decode(part, validate=True) for part in parts[-2:])
    except (binascii.Error, ValueError):
        raise ValueError("the salt and the hash must be base64") from None
    if not salt or len(digest) != DIGEST_BYTES:
        raise ValueError(f"expected a salt, and a hash of {DIGEST_BYTES} bytes, got {len(digest)}")
    return MosquittoHash(salt, digest, iterations)


# ---- argon2id, by the extra of that name --------------------------------------------------------------------------------------


class Argon2Hash:
    """text: `$argon2id$v=19$m=19456,t=2,p=1$salt$digest`, looked at by `parse_hash`."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Argon2Hash({self.text.rsplit('$', 2)[0]!r})"

    def verifies(self, password: bytes) -> bool:
        from argon2 import exceptions, low_level

        try:
            return low_level.verify_secret(self.text.encode(), password, low_level.Type.ID)
        except exceptions.VerifyMismatchError:
            return False


def _need_argon2() -> None:
    """Imported where it is needed only: most brokers have no such line."""
    try:
        import argon2  # noqa: F401
    except ImportError:
        raise ExtraMissing("argon2id needs an extra that is not installed: pip install 'trio-mqtt-broker[argon2]'") from None


def _hash_argon2(password: bytes, passes: int) -> Argon2Hash:
    _need_argon2()
    from argon2 import low_level

    if not 1 <= passes <= ARGON2_PASSES_MAX:
        raise ValueError(f"expected 1 to {ARGON2_PASSES_MAX:,} passes of argon2id, got {passes:,}")
    salt = secrets.token_bytes(ARGON2_SALT_BYTES)
    made = low_level.hash_secret(password, salt, passes, ARGON2_KIB, 1, ARGON2_DIGEST_BYTES, low_level.Type.ID)
    return Argon2Hash(made.decode())


def _parse_argon2(text: str) -> Argon2Hash:
    _need_argon2()
    from argon2 import exceptions, extract_parameters

    try:
        found = extract_parameters(text)
        parts = text.split("$")
        salt, digest = (b64decode(part + "=" * (-len(part) % 4), validate=True) for part in parts[-2:])
    except (exceptions.InvalidHashError, binascii.Error, ValueError):
        raise ValueError("expected $argon2id$v=19$m=KIB,t=PASSES,p=LANES$salt$hash") from None
    if not text.startswith(f"$argon2id$v=19$m={found.memory_cost},t={found.time_cost},p={found.parallelism}$") or len(salt) < 8 or len(digest) < 12:
        raise ValueError("expected argon2id of version 19, with a salt of 8 bytes and a hash of 12 bytes at least")
    if not (1 <= found.time_cost <= ARGON2_PASSES_MAX and 1 <= found.parallelism <= ARGON2_LANES_MAX):
        raise ValueError(f"expected t from 1 to {ARGON2_PASSES_MAX} and p from 1 to {ARGON2_LANES_MAX}")
    if not 8 * found.parallelism <= found.memory_cost <= ARGON2_KIB_MAX:
        raise ValueError(f"expected m from 8 times p to {ARGON2_KIB_MAX:,} (KiB)")
    return Argon2Hash(text)


# ---- SCRAM-SHA-256 -----------------------------------------------------------------------------------------------------------


class ScramHash:
    """What a server of SCRAM keeps: neither the password nor anything that proves to know it, unless the client's proof is heard too."""

    __slots__ = ("iterations", "salt", "server_key", "stored_key")

    def __init__(self, iterations: int, salt: bytes, stored_key: bytes, server_key: bytes) -> None:
        self.iterations = iterations
        self.salt = salt
        self.stored_key = stored_key
        self.server_key = server_key

    def __repr__(self) -> str:
        return f"ScramHash(iterations={self.iterations})"

    @property
    def text(self) -> str:
        salt, stored_key, server_key = (b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key))
        return f"{SCRAM_PREFIX}{self.iterations}:{salt}${stored_key}:{server_key}"

    def verifies(self, password: bytes) -> bool:
        with suppress(ValueError):  # the password of nobody, which costs no less
            password = saslprep(password.decode("utf-8")).encode()
        return hmac.compare_digest(_stored_key(salted_password(password, self.salt, self.iterations)), self.stored_key)


def salted_password(password: bytes, salt: bytes, iterations: int) -> bytes:
    """RFC 5802's `Hi`, of a password that SASLprep has seen."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def _stored_key(salted: bytes) -> bytes:
    return hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()


def _hash_scram(password: bytes, iterations: int) -> ScramHash:
    if not SCRAM_ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
        raise ValueError(f"expected {SCRAM_ITERATIONS_MIN:,} to {ITERATIONS_MAX:,} iterations for SCRAM, got {iterations:,}")
    try:
        prepared = saslprep(password.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("a password for SCRAM must be UTF-8") from None
    except ValueError as error:
        raise ValueError(f"a password for SCRAM {error}") from None
    salt = secrets.token_bytes(SCRAM_SALT_BYTES)
    salted = salted_password(prepared.encode(), salt, iterations)
    return ScramHash(iterations, salt, _stored_key(salted), hmac.digest(salted, b"Server Key", "sha256"))


def _parse_scram(text: str) -> ScramHash:
    fault = "expected SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey"
    parts = text.removeprefix(SCRAM_PREFIX).replace("$", ":").split(":")
    if len(parts) != 4 or text.count("$") != 2:
        raise ValueError(fault)
    if not (parts[0].isascii() and parts[0].isdigit() and len(parts[0]) < 10 and SCRAM_ITERATIONS_MIN <= int(parts[0]) <= ITERATIONS_MAX):
        raise ValueError(f"expected {SCRAM_ITERATIONS_MIN:,} to {ITERATIONS_MAX:,} iterations after {SCRAM_PREFIX}")
    try:
        salt, stored_key, server_key = (b64decode(part, validate=True) for part in parts[1:])
    except (binascii.Error, ValueError):
        raise ValueError("the salt and the keys must be base64") from None
    if not salt or len(stored_key) != SCRAM_KEY_BYTES or len(server_key) != SCRAM_KEY_BYTES:
        raise ValueError(f"{fault}, a salt and two keys of {SCRAM_KEY_BYTES} bytes")
    return ScramHash(int(parts[0]), salt, stored_key, server_key)
