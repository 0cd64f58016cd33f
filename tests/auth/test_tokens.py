"""Tokens: what a key lets count, what a claim must say, and what a file must hold."""

from __future__ import annotations

import base64
import json
import math
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from broker.auth.tokens import Claims, Jwt, TokenFault, Tokens, load_tokens
from broker.errors import ConfigError

SECRET = "a shared secret that is long enough for all of them: sixty-four!"
ISSUERS: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
RIGHT = {
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    "P-256": ["ES256"],
    "P-384": ["ES384"],
    "P-521": ["ES512"],
    "Ed25519": ["EdDSA"],
}


def pem_of(kind: str) -> bytes:
    data = ISSUERS[kind].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(data, bytes)
    return data


def token(key: Any, algorithm: str, headers: dict[str, Any] | None = None, **claims: Any) -> bytes:
    return jwt.encode({"sub": "ann", "exp": int(time.time()) + 60} | claims, key, algorithm, headers).encode()


def forged(header: dict[str, Any], **claims: Any) -> bytes:
    parts = (header, {"sub": "ann", "exp": int(time.time()) + 60} | claims)
    return b".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts), b"AAAA"])


def with_key(tmp_path: Path, data: bytes, **settings: Any) -> Tokens:
    path = tmp_path / "key"
    path.write_bytes(data)
    return load_tokens(Jwt(key_file=str(path), **settings))


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return with_key(tmp_path, SECRET.encode())


def why_not(tokens: Tokens, token: bytes) -> str:
    with pytest.raises(TokenFault) as caught:
        tokens.check(token)
    assert token[-20:].decode("latin-1") not in str(caught.value)
    return str(caught.value)


# ---- the key decides ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "algorithm"), [(kind, algorithm) for kind in RIGHT for algorithm in RIGHT[kind]])
def test_every_key_with_its_algorithms(tmp_path: Path, kind: str, algorithm: str) -> None:
    tokens = with_key(tmp_path, pem_of(kind))
    good = token(ISSUERS[kind], algorithm)
    assert tokens.check(good).username == "ann"
    header, claims, signature = good.split(b".")
    other = base64.urlsafe_b64encode(b'{"sub":"root","exp":99999999999}').rstrip(b"=")
    assert why_not(tokens, b".".join((header, other, signature))) == "no key of ours has signed it"
    assert why_not(tokens, b".".join((header, claims, b""))) == "no key of ours has signed it"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_shared_secret(tokens: Tokens, algorithm: str) -> None:
    assert tokens.check(token(SECRET, algorithm)).username == "ann"
    assert why_not(tokens, token("another shared secret of enough bytes for each of the three: 64!", algorithm)) == "no key of ours has signed it"


@pytest.mark.parametrize("kind", list(RIGHT))
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_secret(tmp_path: Path, kind: str, algorithm: str) -> None:
    """The confusion of algorithms: the key that everybody may know, used as HMAC's."""
    import hashlib
    import hmac

    tokens = with_key(tmp_path, pem_of(kind))
    for secret in (pem_of(kind), pem_of(kind).rstrip(b"\n")):
        signed = forged({"alg": algorithm, "typ": "JWT"}).rpartition(b".")[0]
        digest = hmac.digest(secret, signed, getattr(hashlib, f"sha{algorithm[2:]}"))
        assert why_not(tokens, signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")) == "no key of ours has signed it"


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 70_000, "é" * 40_000, "\ud800", 5, None, ["ann"]])
def test_a_user_name_is_one_that_a_packet_can_hold(tokens: Tokens, name: object) -> None:
    """A lone surrogate came in, and where user names are Client Identifiers none could be told."""
    with pytest.raises(TokenFault, match=r"sub is no user name|more than 16,384 bytes|lacks sub|no token"):
        tokens.check(token(SECRET, "HS256", sub=name))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "RS256", "ES256K", None, 5, ["HS256"], {"a": 1}])
def test_what_does_not_count(tokens: Tokens, algorithm: object) -> None:
    assert why_not(tokens, forged({"alg": algorithm}))
    assert why_not(tokens, forged({"alg": algorithm, "kid": "x", "jwk": {"kty": "oct", "k": "AAAA"}, "jku": "http://127.0.0.1/"}))


def test_algorithms_may_be_narrowed_and_never_widened(tmp_path: Path) -> None:
    narrow = with_key(tmp_path, pem_of("RSA"), algorithms=("PS512", "HS256"))
    assert narrow.check(token(ISSUERS["RSA"], "PS512")).username == "ann"
    assert why_not(narrow, token(ISSUERS["RSA"], "RS256")) == "no key of ours has signed it"
    with pytest.raises(ConfigError, match="none of HS256 fits"):
        with_key(tmp_path, pem_of("RSA"), algorithms=("HS256",))
    with pytest.raises(ConfigError, match="'none' is none of HS256"):
        with_key(tmp_path, pem_of("RSA"), algorithms=("none",))


@given(st.binary(max_size=300) | st.tuples(st.binary(max_size=40), st.binary(max_size=40)).map(b".".join))
def test_any_bytes_are_refused(data: bytes) -> None:
    tokens = Tokens(Jwt(), [])
    with pytest.raises(TokenFault):
        tokens.check(data)
    assert tokens.is_for("ann", data) in (True, False)


def test_deep_and_large_ones_are_refused(tokens: Tokens) -> None:
    for header in (b"[" * 6000, b'{"alg":' + b"[" * 6000, b'{"alg":"HS256","exp":1e400}'):
        encoded = base64.urlsafe_b64encode(header).rstrip(b"=")
        assert why_not(tokens, encoded + b".e30.AAAA")
        assert not tokens.is_for(None, encoded + b".e30.AAAA") or header.endswith(b"}")
    assert why_not(tokens, token(SECRET, "HS256", text="x" * 20_000)) == "it has more than 16,384 bytes"


# ---- what a claim must say -----------------------------------------------------------------------------------------------------------


def test_time_with_a_little_leeway(tmp_path: Path) -> None:
    tokens = with_key(tmp_path, SECRET.encode(), leeway_s=30)
    now = int(time.time())
    assert tokens.check(token(SECRET, "HS256", exp=now - 10, nbf=now + 10)) == Claims("ann", now - 10 + 30.0, None)
    assert why_not(tokens, token(SECRET, "HS256", exp=now - 31)) == "it has expired"
    assert why_not(tokens, token(SECRET, "HS256", nbf=now + 60)) == "it is not valid yet"
    assert why_not(tokens, token(SECRET, "HS256", exp="soon")) == "it is no token"
    forever = jwt.encode({"sub": "ann"}, SECRET, "HS256").encode()
    assert why_not(tokens, forever) == "it lacks exp"
    lax = with_key(tmp_path, SECRET.encode(), require_expiry=False)
    assert lax.check(forever).ends_at_s == math.inf
    assert lax.check(token(SECRET, "HS256", exp=10**400)).ends_at_s > 1e15


def test_issuer_and_audience(tmp_path: Path) -> None:
    tokens = with_key(tmp_path, SECRET.encode(), issuer="https://issuer.example", audience="mqtt")
    good: dict[str, Any] = {"iss": "https://issuer.example", "aud": ["web", "mqtt"]}
    assert tokens.check(token(SECRET, "HS256", **good)).username == "ann"
    assert why_not(tokens, token(SECRET, "HS256", **good | {"iss": "https://other.example"})) == "it is of another issuer"
    assert why_not(tokens, token(SECRET, "HS256", **good | {"aud": "web"})) == "it is for another audience"
    assert why_not(tokens, token(SECRET, "HS256", iss=good["iss"])) == "it lacks aud"
    assert why_not(tokens, token(SECRET, "HS256", aud="mqtt")) == "it lacks iss"
    assert why_not(with_key(tmp_path, SECRET.encode()), token(SECRET, "HS256", aud="mqtt")) == "it is for another audience"


def test_whose_name(tmp_path: Path) -> None:
    tokens = with_key(tmp_path, SECRET.encode(), user_claim="device")
    assert tokens.check(token(SECRET, "HS256", device="d1", sub=5)).username == "d1"
    assert why_not(tokens, token(SECRET, "HS256")) == "it lacks device"
    for name in ("", 5, None, ["d1"], "a\0b", "x" * 70_000):
        assert why_not(tokens, token(SECRET, "HS256", device=name)[:16_384])


def test_which_connects_bring_a_token(tmp_path: Path) -> None:
    anyone = with_key(tmp_path, SECRET.encode())
    one = token(SECRET, "HS256")
    assert anyone.is_for(None, one)
    assert anyone.is_for("ann", one)
    for password in (None, b"", b"geheim", b"1.2.3", b"e30.e30.e30", b"\xff.\xff.\xff", b"." * 2):
        assert not anyone.is_for("ann", password)
    named = with_key(tmp_path, SECRET.encode(), username="jwt")
    assert named.is_for("jwt", one)
    assert named.is_for("jwt", b"geheim")
    assert not named.is_for("ann", one)
    assert not named.is_for(None, one)


def test_rules_of_a_token(tmp_path: Path) -> None:
    tokens = with_key(tmp_path, SECRET.encode(), access_claim="acl")
    table = {"pub": ["up/%u/%c", "${username}/${clientid}"], "sub": ["down/#"], "all": ["both"]}
    rules = tokens.check(token(SECRET, "HS256", acl=table)).rules
    assert rules is not None
    for action, topic, allowed in [
        ("publish", "up/ann/d1", True),
        ("publish", "ann/d1", True),
        ("publish", "up/ben/d1", False),
        ("publish", "down/x", False),
        ("receive", "down/x", True),
        ("receive", "up/ann/d1", False),
        ("publish", "both", True),
        ("receive", "both", True),
        ("publish", "$SYS/x", False),
    ]:
        assert rules("ann", "d1", action, topic) is allowed, (action, topic)  # type: ignore[arg-type]
    nothing = tokens.check(token(SECRET, "HS256", acl={})).rules
    assert nothing is not None
    assert not nothing("ann", "d1", "publish", "x")
    assert tokens.check(token(SECRET, "HS256")).rules is None
    assert with_key(tmp_path, SECRET.encode()).check(token(SECRET, "HS256", acl="nonsense")).rules is None


@pytest.mark.parametrize("table", ["x", [], {"publish": []}, {"pub": "x"}, {"pub": [5]}, {"pub": ["a/#/b"]}, {"pub": ["a"] * 1001}, None])
def test_rules_that_cannot_be_read_refuse_the_token(tmp_path: Path, table: object) -> None:
    tokens = with_key(tmp_path, SECRET.encode(), access_claim="acl")
    assert "its acl" in why_not(tokens, token(SECRET, "HS256", acl=table))


# ---- files of keys -----------------------------------------------------------------------------------------------------------------


def jwk(kind: str, **more: Any) -> dict[str, Any]:
    makers: dict[str, Any] = {"RSA": RSAAlgorithm, "Ed25519": OKPAlgorithm}
    made = makers.get(kind, ECAlgorithm).to_jwk(ISSUERS[kind].public_key(), as_dict=True)
    return {**made, **more}


def with_set(tmp_path: Path, *keys: Any, **settings: Any) -> Tokens:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": keys}))
    return load_tokens(Jwt(jwks_file=str(path), **settings))


def test_a_set_of_keys_and_kid(tmp_path: Path) -> None:
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode(), "kid": "hmac", "alg": "HS512"}
    encryption = {"kty": "RSA", "use": "enc", "kid": "e"}
    tokens = with_set(tmp_path, jwk("RSA", kid="r"), jwk("P-256", kid="e", use="sig"), secret, jwk("Ed25519"), encryption)
    assert tokens.check(token(ISSUERS["RSA"], "PS256", {"kid": "r"})).username == "ann"
    assert tokens.check(token(ISSUERS["RSA"], "PS256")).username == "ann"
    assert tokens.check(token(ISSUERS["P-256"], "ES256", {"kid": "e"})).username == "ann"
    assert tokens.check(token(SECRET, "HS512", {"kid": "hmac"})).username == "ann"
    assert why_not(tokens, token(SECRET, "HS256", {"kid": "hmac"})) == "no key of ours has signed it"  # its alg says which
    assert tokens.check(token(ISSUERS["Ed25519"], "EdDSA", {"kid": "whatever"})).username == "ann"  # a key without a name
    assert why_not(tokens, token(ISSUERS["RSA"], "RS256", {"kid": "e"})) == "no key of ours has signed it"
    assert why_not(tokens, token(ISSUERS["RSA"], "RS256", {"kid": "gone"})) == "no key of ours has signed it"


def test_which_tokens_are_not_for_the_event_loop(tmp_path: Path) -> None:
    slow = [kind for kind, algorithms in RIGHT.items() if with_key(tmp_path, pem_of(kind)).is_slow(token(ISSUERS[kind], algorithms[0]))]
    assert slow == ["P-384", "P-521"]
    large = rsa.RSAPublicNumbers(65537, (1 << 4103) + 1).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert with_key(tmp_path, large).is_slow(token(ISSUERS["RSA"], "RS256"))
    several = with_set(tmp_path, jwk("P-256", kid="a"), jwk("P-256"), jwk("P-256"))
    assert several.is_slow(token(ISSUERS["P-256"], "ES256"))
    assert not several.is_slow(token(ISSUERS["P-256"], "ES256", {"kid": "a"}))
    assert not several.is_slow(b"nonsense")


def test_a_token_that_many_keys_may_have_signed_is_not_tried_with_all(tmp_path: Path) -> None:
    many = with_set(tmp_path, *(jwk("P-256", kid=f"{number}") for number in range(9)))
    assert "which of 9 keys" in why_not(many, token(ISSUERS["P-256"], "ES256"))
    assert many.check(token(ISSUERS["P-256"], "ES256", {"kid": "8"})).username == "ann"


def test_two_keys_while_one_takes_over_from_the_other(tmp_path: Path) -> None:
    new = ec.generate_private_key(ec.SECP256R1())
    tokens = with_set(tmp_path, jwk("P-256"), json.loads(ECAlgorithm.to_jwk(new.public_key())))
    assert tokens.check(token(ISSUERS["P-256"], "ES256")).username == "ann"
    assert tokens.check(token(new, "ES256")).username == "ann"


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ([], "1 to 100 keys"),
        ([{}] * 101, "1 to 100 keys"),
        (["x"], "keys\\[0\\]: expected a table"),
        ([{"kty": "RSA", "use": "enc"}], "no key for signatures"),
        ([{"kty": "XXX", "k": "secret-text"}], "keys\\[0\\]: expected a public key"),
        ([{"kty": "oct", "k": "c2hvcnQ"}], "keys\\[0\\]: a shared secret needs 32"),
        ([{"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}], "expected a public key"),
        ([{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "d": "AA"}], "private key"),
        ([{"kty": "oct", "k": "AAAA", "kid": 5}], "kid"),
    ],
)
def test_a_set_that_is_wrong(tmp_path: Path, keys: list[Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause) as caught:
        with_set(tmp_path, *keys)
    assert "secret-text" not in str(caught.value)
    assert [key for key, _ in caught.value.problems] == ["jwks_file"]


def test_a_secret_is_text_without_its_last_line_break_or_bytes_as_they_are(tmp_path: Path) -> None:
    for end in (b"", b"\n", b"\r\n"):
        assert with_key(tmp_path, SECRET.encode() + end).check(token(SECRET, "HS256")).username == "ann"
    binary = bytes(range(31)) + b"\n"
    assert with_key(tmp_path, binary).check(token(binary, "HS256")).username == "ann"
    short = b"x" * 32  # enough for SHA-256 only
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        longer = token(short, "HS512")
    assert why_not(with_key(tmp_path, short), longer) == "no key of ours has signed it"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"short\n", "needs 32 bytes or more, it has 5"),
        (ISSUERS["RSA"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "expected a public key or a certificate"),
        (ISSUERS["RSA"].public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), "another kind"),
        (
            ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "expected a public key of",
        ),
        (rsa.generate_private_key(65537, 1024).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "2,048 bits or more"),
    ],
)
def test_a_key_that_is_wrong(tmp_path: Path, data: bytes, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause) as caught:
        with_key(tmp_path, data)
    assert [key for key, _ in caught.value.problems] == ["key_file"]


def test_a_certificate_is_a_public_key(tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("issuer.example")
    key = leaf.private_key_pem.bytes()
    algorithm = "RS256" if b"RSA" in key else "ES256"
    assert with_key(tmp_path, leaf.cert_chain_pems[0].bytes()).check(token(key, algorithm)).username == "ann"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Jwt(), ""),
        (Jwt(key_file="a", jwks_file="b"), ""),
        (Jwt(key_file="/nowhere/at/all"), "key_file"),
        (Jwt(jwks_file="/nowhere/at/all"), "jwks_file"),
        (Jwt(key_file="a", leeway_s=1000), "leeway_s"),
        (Jwt(key_file="a", leeway_s=-1), "leeway_s"),
        (Jwt(key_file="a", user_claim=""), "user_claim"),
    ],
)
def test_settings_that_are_wrong(settings: Jwt, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokens(settings)
    assert key in [place for place, _ in caught.value.problems]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"pip install 'trio-mqtt-broker\[jwt\]'"):
        load_tokens(Jwt(key_file="a"))
