"""JSON Web Tokens as proof of who a client is: signed by somebody whose key stands in a file, for a time, and never asked about.

A key decides which algorithms count, never the token: with a public key no HMAC is ever tried, and "none" is nothing. What is wrong
with a token is said in words of ours, for the log; neither the token nor what is in it stands there. Checking one costs less than
handing it to another thread would, but for a few kinds of keys (`is_slow`).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct

from broker.auth.acl import READ, WRITE, AccessRules, Rule
from broker.auth.files import read_bounded
from broker.errors import ConfigError
from broker.wire.topics import topic_filter_fault
from broker.words import strerror

if TYPE_CHECKING:
    from jwt.types import Options

METHOD: Final = "JWT"
"""As MQTT's Authentication Method; the token is the Authentication Data."""
TOKEN_BYTES_MAX: Final = 16_384
KEYS_COUNT_MAX: Final = 100
CANDIDATES_COUNT_MAX: Final = 8
"""Keys that are tried for one token: a stranger's is tried with each."""
RULES_COUNT_MAX: Final = 1000
KEY_BYTES_MAX: Final = 1024 * 1024
SECRET_BYTES_MIN: Final = 32
"""RFC 7518, 3.2: as long as the hash."""
RSA_BITS_MIN: Final = 2048
RSA_BITS_QUICK: Final = 4096

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_HMAC: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
ALGORITHMS: Final = (*_HMAC, *_RSA, *_CURVES.values(), "EdDSA")
_RIGHTS: Final = {"pub": WRITE, "sub": READ, "all": READ | WRITE}


class Jwt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[jwt] of the config. key_file: a public key or certificate (PEM), or a shared secret; jwks_file: a JSON Web Key Set; one of them.
    algorithms: of those that fit the keys; empty for all. issuer, audience: what `iss` and `aud` must say; without an audience a token that has
    one is refused. username: only CONNECTs with this User Name bring a token; None for any. user_claim: whose value the client is known by.
    access_claim: {"pub": [...], "sub": [...], "all": [...]} of Topic Filters, instead of the rules of files; None for files only."""

    key_file: str | None = None
    jwks_file: str | None = None
    algorithms: tuple[str, ...] = ()
    issuer: str | None = None
    audience: str | None = None
    leeway_s: float = 10
    require_expiry: bool = True
    username: str | None = None
    user_claim: str = "sub"
    access_claim: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for path in (self.key_file, self.jwks_file) if path is not None)


class TokenFault(Exception):
    """Why a token is not taken; for a log line."""


class TokenRules(AccessRules):
    """What a token allows, instead of the files. text: the same again, for `kept_rules`."""

    __slots__ = ("text",)

    def __init__(self, name: str, table: object) -> None:
        """name: of the claim that has the table. TokenFault."""
        if not isinstance(table, dict) or not set(table) <= set(_RIGHTS):
            raise TokenFault(f"its {name} is no table of pub, sub and all")
        rules = []
        for word, filters in table.items():
            if not isinstance(filters, list) or len(filters) > RULES_COUNT_MAX:
                raise TokenFault(f"its {name}.{word} is no list of at most {RULES_COUNT_MAX:,} filters")
            for filter in filters:
                if not isinstance(filter, str) or topic_filter_fault(filter) is not None:
                    raise TokenFault(f"its {name}.{word} has something that is no Topic Filter")
                filled = filter.replace("${username}", "%u").replace("${clientid}", "%c")  # as others write them
                rules.append(Rule(filled, _RIGHTS[word], None, True, f"token: {name}.{word}", filter))
        super().__init__(rules)
        self.text = json.dumps([name, table], separators=(",", ":"))


def kept_rules(text: str) -> AccessRules:
    """Those of `TokenRules.text`, which lay in a store; where it is damaged, nothing is allowed."""
    try:
        name, table = json.loads(text)
        return TokenRules(str(name), table)
    except (ValueError, TypeError, RecursionError, TokenFault):
        return AccessRules(())


class Claims(NamedTuple):
    """ends_at_s: Unix time, `math.inf` for never. rules: None leaves it to the files."""

    username: str
    ends_at_s: float
    rules: TokenRules | None


class Key(NamedTuple):
    """slow: checking with it takes more than 0.2 ms, so not on the event loop."""

    kid: str | None
    material: Any
    algorithms: tuple[str, ...]
    slow: bool = False


class Tokens:
    """What [jwt] of the broker or a listener says, with its keys."""

    __slots__ = ("_keys", "_options", "_settings")

    def __init__(self, settings: Jwt, keys: list[Key]) -> None:
        self._settings = settings
        self._keys = keys
        required = [settings.user_claim] + (["exp"] if settings.require_expiry else [])
        self._options: Options = {"require": required, "verify_sub": False, "verify_jti": False}

    @property
    def bring_rules(self) -> bool:
        return self._settings.access_claim is not None

    def is_for(self, username: str | None, password: bytes | None) -> bool:
        """Is this CONNECT to be judged by a token, and not by a password?"""
        if password is None or self._settings.username not in (None, username):
            return False
        return self._settings.username is not None or _looks_like_one(password)

    def is_slow(self, token: bytes) -> bool:
        """Is `check` better called from another thread?"""
        try:
            candidates = self._candidates(token)
        except TokenFault:
            return False
        return len(candidates) > 2 or any(key.slow for key in candidates)

    def check(self, token: bytes) -> Claims:
        """From any thread. TokenFault says why not."""
        claims = self._verified(token)
        name = claims.get(self._settings.user_claim)
        if not isinstance(name, str) or not name or not _can_be_sent(name):
            raise TokenFault(f"its {self._settings.user_claim} is no user name")
        ends_at_s = math.inf
        if "exp" in claims:
            ends_at_s = float(min(int(claims["exp"]), 1 << 53)) + self._settings.leeway_s
        claim = self._settings.access_claim
        return Claims(name, ends_at_s, None if claim is None or claim not in claims else TokenRules(claim, claims[claim]))

    def _verified(self, token: bytes) -> dict[str, Any]:
        import jwt

        candidates = self._candidates(token)
        try:
            for key in candidates:
                try:
                    return jwt.decode(
                        token,
                        key.material,
                        list(key.algorithms),
                        self._options,
                        audience=self._settings.audience,
                        issuer=self._settings.issuer,
                        leeway=self._settings.leeway_s,
                    )
                except jwt.InvalidSignatureError:
                    continue
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TokenFault(_words(error)) from None
        raise TokenFault("no key of ours has signed it")

    def _candidates(self, token: bytes) -> list[Key]:
        """The keys that may have signed it: with a `kid` those of that name, and those that have none. Raises TokenFault."""
        import jwt

        if len(token) > TOKEN_BYTES_MAX:
            raise TokenFault(f"it has more than {TOKEN_BYTES_MAX:,} bytes")
        try:
            header = _header(token)
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenFault(_words(error)) from None
        kid, algorithm = header.get("kid"), header.get("alg")
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        named = [key for key in fitting if key.kid == kid and kid is not None]
        found = named or [key for key in fitting if kid is None or key.kid is None]
        if len(found) > CANDIDATES_COUNT_MAX:
            raise TokenFault(f"it does not say (kid) which of {len(found)} keys has signed it")
        return found


def _can_be_sent(name: str) -> bool:
    """As a string of MQTT's; JSON writes lone surrogates too."""
    try:
        return "\0" not in name and len(name.encode()) <= 65_535
    except UnicodeEncodeError:
        return False


def _header(token: bytes) -> dict[str, Any]:
    """Of its first part alone: PyJWT looks at each letter of the others too, which takes a millisecond where they are long. Raises what that does."""
    import jwt

    return jwt.get_unverified_header(token.partition(b".")[0] + b"..")


def _looks_like_one(password: bytes) -> bool:
    import jwt

    if password.count(b".") != 2 or len(password) > TOKEN_BYTES_MAX:
        return False
    try:
        return "alg" in _header(password)
    except (jwt.PyJWTError, ValueError):
        return False


def _words(error: Exception) -> str:
    import jwt

    if isinstance(error, jwt.ExpiredSignatureError):
        return "it has expired"
    if isinstance(error, jwt.ImmatureSignatureError):
        return "it is not valid yet"
    if isinstance(error, jwt.InvalidAudienceError):
        return "it is for another audience"
    if isinstance(error, jwt.InvalidIssuerError):
        return "it is of another issuer"
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it lacks {error.claim}"
    return "it is no token"


# ---- keys ------------------------------------------------------------------------------------------------------------------------


def load_tokens(settings: Jwt) -> Tokens:
    """ConfigError names the keys of [jwt] that are wrong."""
    problems = _faults(settings)
    keys: list[Key] = []
    if not problems:
        try:
            keys = _read_pem_or_secret(settings.key_file) if settings.key_file is not None else _read_set(settings.jwks_file or "")
        except ValueError as error:
            path = settings.key_file or settings.jwks_file
            problems.append(("key_file" if settings.key_file is not None else "jwks_file", f"{path}: {error}"))
    if not problems and settings.algorithms:
        keys = [key._replace(algorithms=tuple(name for name in key.algorithms if name in settings.algorithms)) for key in keys]
        if not any(key.algorithms for key in keys):
            problems.append(("algorithms", f"none of {', '.join(settings.algorithms)} fits the keys"))
    if problems:
        raise ConfigError(problems, "jwt")
    return Tokens(settings, keys)


def _faults(settings: Jwt) -> list[tuple[str, str]]:
    try:
        import jwt  # noqa: F401
        from cryptography.hazmat.primitives import serialization  # noqa: F401
    except ImportError:
        return [("", "needs an extra that is not installed: pip install 'trio-mqtt-broker[jwt]'")]
    found = []
    if (settings.key_file is None) == (settings.jwks_file is None):
        found.append(("", "expected one of key_file and jwks_file"))
    found += [("algorithms", f"{name!r} is none of {', '.join(ALGORITHMS)}") for name in settings.algorithms if name not in ALGORITHMS]
    if not 0 <= settings.leeway_s <= 300:
        found.append(("leeway_s", f"expected 0 to 300, got {settings.leeway_s:g}"))
    if not settings.user_claim:
        found.append(("user_claim", "is empty"))
    return found


def _read(path: str) -> bytes:
    try:
        return read_bounded(path, KEY_BYTES_MAX)
    except OSError as error:
        raise ValueError(f"cannot be read: {strerror(error)}") from None


def _read_pem_or_secret(path: str) -> list[Key]:
    data = _read(path)
    if b"-----BEGIN " in data:
        return [_public_key(data)]
    if all(32 <= one < 127 for one in data.rstrip(b"\r\n")):
        data = data.rstrip(b"\r\n")  # an editor's; in a secret that is no text they may belong to it
    return [_secret(data, None)]


def _secret(secret: bytes, kid: str | None) -> Key:
    from jwt import InvalidKeyError
    from jwt.algorithms import HMACAlgorithm

    if len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"a shared secret needs {SECRET_BYTES_MIN} bytes or more, it has {len(secret)}; openssl rand -base64 48 makes one")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError:
        raise ValueError("is a key of another kind, and no shared secret; expected it as PEM, or in jwks_file") from None
    return Key(kid, secret, tuple(name for name, size in _HMAC.items() if len(secret) >= size))


def _public_key(data: bytes) -> Key:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if b"PRIVATE KEY-----" in data:
        raise ValueError("is a private key, which only the issuer should have; openssl pkey -pubout -in FILE gives the public one")
    try:
        material = x509.load_pem_x509_certificate(data).public_key() if b"BEGIN CERTIFICATE" in data else serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("expected a public key or a certificate (PEM)") from None
    return Key(None, material, _algorithms_of(material), _is_slow(material))


def _is_slow(material: object) -> bool:
    """What is not slow: RSA 4096, P-256 and Ed25519 take 0.05 to 0.1 ms; P-384, P-521 and Ed448 0.2 to 0.6."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

    if isinstance(material, rsa.RSAPublicKey):
        return material.key_size > RSA_BITS_QUICK
    return isinstance(material, ed448.Ed448PublicKey) or (isinstance(material, ec.EllipticCurvePublicKey) and material.curve.key_size > 256)


def _algorithms_of(material: object) -> tuple[str, ...]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(material, rsa.RSAPublicKey):
        if material.key_size < RSA_BITS_MIN:
            raise ValueError(f"an RSA key needs {RSA_BITS_MIN:,} bits or more, it has {material.key_size:,}")
        return _RSA
    if isinstance(material, ec.EllipticCurvePublicKey) and material.curve.name in _CURVES:
        return (_CURVES[material.curve.name],)
    if isinstance(material, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return ("EdDSA",)
    raise ValueError("expected a public key of RSA, P-256, P-384, P-521, Ed25519 or Ed448")


def _read_set(path: str) -> list[Key]:
    try:
        found = json.loads(_read(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("is not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries or len(entries) > KEYS_COUNT_MAX:
        raise ValueError(f'expected {{"keys": [...]}} with 1 to {KEYS_COUNT_MAX} keys')
    keys = []
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("use") == "enc":
            continue
        try:
            keys.append(_key_of_set(entry))
        except ValueError as error:
            raise ValueError(f"keys[{index}]: {error}") from None
    if not keys:
        raise ValueError("has no key for signatures")
    return keys


def _key_of_set(entry: object) -> Key:
    """What PyJWT says of one that it cannot use would repeat it, so it is not passed on."""
    import jwt

    if not isinstance(entry, dict):
        raise ValueError("expected a table")
    if "d" in entry:
        raise ValueError("is a private key, which only the issuer should have")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("expected text as kid")
    try:
        material = jwt.PyJWK(entry).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise ValueError("expected a public key of RSA, P-256, P-384, P-521 or Ed25519, or a secret (kty oct)") from None
    key = _secret(material, kid) if isinstance(material, bytes) else Key(kid, material, _algorithms_of(material), _is_slow(material))
    if entry.get("alg") is None:
        return key
    return key._replace(algorithms=tuple(name for name in key.algorithms if name == entry["alg"]))
