"""SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, as three messages in and out: a password is proven, and never sent.

The server keeps what checks a proof and makes none (StoredKey, ServerKey). It answers names that it does not know as it does others, up
to the end. Channel binding is not there: "n" and "y" come in, "p" is refused. Whoever drives an exchange bounds its time.
"""

from __future__ import annotations

import binascii
import hmac
import threading
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Final, Protocol

from broker.auth.hashes import ITERATIONS_MAX, SCRAM_ITERATIONS_MIN, ScramHash, salted_password
from broker.auth.saslprep import saslprep

METHOD: Final = "SCRAM-SHA-256"
"""As MQTT's Authentication Method."""
MESSAGE_BYTES_MAX: Final = 4096
_NONCE_BYTES: Final = 18


class ScramFault(Exception):
    """What came is no message of SCRAM's, or one that does not belong here. `str()` is the cause; it repeats nothing of the message."""


class Users(Protocol):
    def find_scram(self, name: str) -> tuple[ScramHash, bool]:
        """(whose keys to check with, does the result count?)."""


def new_nonce(random: bytes) -> str:
    """random: `secrets.token_bytes(18)` or more, which is the caller's so that a test may say what it was."""
    assert len(random) >= _NONCE_BYTES
    return b64encode(random).decode()


# ---- the server ------------------------------------------------------------------------------------------------------------------


class ServerExchange:
    """`first`, then `final`. ScramFault ends it."""

    __slots__ = ("_bare", "_challenge", "_counts", "_entry", "_header", "_nonce", "_users", "name")

    def __init__(self, users: Users, nonce: str) -> None:
        self._users = users
        self._nonce = nonce
        self.name = ""
        """Who the client says it is."""

    def first(self, message: bytes) -> bytes:
        """The client-first-message; what to answer."""
        flag, authorization, bare = _split(_text(message), ",", 3, "the first message needs a header and its parts")
        if flag.startswith("p="):
            raise ScramFault("channel binding is not supported")
        if flag not in ("n", "y"):
            raise ScramFault("the first message begins with none of n, y and p")
        parts = bare.split(",")
        if parts[0].startswith("m="):
            raise ScramFault("an extension that must be understood is not")
        if len(parts) < 2:
            raise ScramFault("the first message lacks a name or a nonce")
        self.name = _unescaped(_value(parts[0], "n"))
        if authorization and _unescaped(_value(authorization, "a")) != self.name:
            raise ScramFault("nobody may act for another user")
        nonce = _value(parts[1], "r")
        _check_nonce(nonce)
        self._entry, self._counts = self._users.find_scram(self.name)
        self._bare = bare
        self._header = f"{flag},{authorization},"
        self._nonce = nonce + self._nonce
        self._challenge = f"r={self._nonce},s={b64encode(self._entry.salt).decode()},i={self._entry.iterations}"
        return self._challenge.encode()

    def final(self, message: bytes) -> bytes | None:
        """The client-final-message; the server's own proof, or None for a wrong password or a name that is not there."""
        spoken, separator, proof = _text(message).rpartition(",p=")
        if not separator:
            raise ScramFault("the final message has no proof")
        binding, nonce = _split(spoken, ",", 2, "the final message needs a binding and a nonce")
        if _base64(_value(binding, "c")) != self._header.encode():
            raise ScramFault("the binding is not that of the first message")
        if _value(nonce.partition(",")[0], "r") != self._nonce:
            raise ScramFault("the nonce is not that of the first message")
        given = _base64(proof)
        if len(given) != 32:
            raise ScramFault("a proof has 32 bytes")
        transcript = f"{self._bare},{self._challenge},{spoken}".encode()
        key = _xor(given, hmac.digest(self._entry.stored_key, transcript, "sha256"))
        right = hmac.compare_digest(sha256(key).digest(), self._entry.stored_key)
        signature = hmac.digest(self._entry.server_key, transcript, "sha256")
        return b"v=" + b64encode(signature) if right and self._counts else None


# ---- the client ------------------------------------------------------------------------------------------------------------------


class SaltedPassword:
    """The slow part of a proof, kept for the salt that was asked last (RFC 5802, 5.1), so that it is done once for many connections."""

    __slots__ = ("_asked", "_lock", "_password", "_salted")

    def __init__(self, password: str) -> None:
        """ValueError where SASLprep forbids it."""
        self._password = saslprep(password).encode()
        self._lock = threading.Lock()
        self._asked: tuple[bytes, int] | None = None
        self._salted = b""

    def of(self, salt: bytes, iterations: int) -> bytes:
        """From any thread; those that come meanwhile wait for the first, at most as long as one takes each."""
        with self._lock:
            if self._asked != (salt, iterations):
                self._salted = salted_password(self._password, salt, iterations)
                self._asked = salt, iterations
            return self._salted


class ClientExchange:
    """`first`, `final`, `accepts`, in this order. ScramFault ends it: what is at the other end does not know the password."""

    __slots__ = ("_bare", "_name", "_nonce", "_password", "_signature")

    def __init__(self, name: str, password: SaltedPassword, nonce: str) -> None:
        """ValueError where SASLprep forbids the name."""
        self._name = saslprep(name)
        self._password = password
        self._nonce = nonce
        self._bare = ""
        self._signature = b""

    def first(self) -> bytes:
        escaped = self._name.replace("=", "=3D").replace(",", "=2C")
        self._bare = f"n={escaped},r={self._nonce}"
        return f"n,,{self._bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        """Slow on purpose: not on the event loop."""
        text = _text(challenge)
        parts = text.split(",")
        if len(parts) < 3:
            raise ScramFault("the server's first message needs a nonce, a salt and iterations")
        nonce, salt, count = _value(parts[0], "r"), _base64(_value(parts[1], "s")), _value(parts[2], "i")
        _check_nonce(nonce)
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ScramFault("the server's nonce does not go on with ours")
        # Fewer would give a guess away cheaply to whoever plays the server, more would be an attack on our time.
        if not (count.isascii() and count.isdigit() and len(count) < 10 and SCRAM_ITERATIONS_MIN <= int(count) <= ITERATIONS_MAX):
            raise ScramFault(f"the server asks for other than {SCRAM_ITERATIONS_MIN:,} to {ITERATIONS_MAX:,} iterations")
        if not salt:
            raise ScramFault("the server's salt is empty")
        salted = self._password.of(salt, int(count))
        spoken = f"c=biws,r={nonce}"  # "n,," in base64
        transcript = f"{self._bare},{text},{spoken}".encode()
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        proof = _xor(client_key, hmac.digest(sha256(client_key).digest(), transcript, "sha256"))
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), transcript, "sha256")
        return f"{spoken},p={b64encode(proof).decode()}".encode()

    def accepts(self, message: bytes) -> bool:
        """Does the server's last message show that it knows the password?"""
        if not self._signature:
            return False
        try:
            return hmac.compare_digest(_base64(_value(_text(message).partition(",")[0], "v")), self._signature)
        except ScramFault:
            return False


# ---- parts of messages -------------------------------------------------------------------------------------------------------------


def _text(message: bytes) -> str:
    if len(message) > MESSAGE_BYTES_MAX:
        raise ScramFault(f"a message of more than {MESSAGE_BYTES_MAX:,} bytes")
    try:
        text = message.decode("utf-8")
    except UnicodeDecodeError:
        raise ScramFault("a message that is not UTF-8") from None
    if "\0" in text:
        raise ScramFault("a message with a zero byte")
    return text


def _split(text: str, separator: str, count: int, fault: str) -> list[str]:
    parts = text.split(separator, count - 1)
    if len(parts) != count:
        raise ScramFault(fault)
    return parts


def _value(part: str, name: str) -> str:
    if not part.startswith(f"{name}="):
        raise ScramFault(f"{name}= is not where it belongs")
    return part[2:]


def _unescaped(name: str) -> str:
    if not name or "=" in name.replace("=2C", "").replace("=3D", ""):
        raise ScramFault("a name that is empty, or with = that is neither =2C nor =3D")
    return name.replace("=2C", ",").replace("=3D", "=")


def _check_nonce(nonce: str) -> None:
    if not nonce or not all("!" <= one <= "~" for one in nonce):
        raise ScramFault("a nonce that is empty or not printable")


def _base64(text: str) -> bytes:
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise ScramFault("what should be base64 is not") from None


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
