"""SCRAM-SHA-256: the RFC's own example, an independent implementation at either end, and whatever else may come."""

from __future__ import annotations

import base64
import contextlib
from base64 import b64encode

import pytest
import scramp  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth import scram
from broker.auth.hashes import ScramHash, hash_password, parse_hash, salted_password
from broker.auth.passwords import Passwords, load_passwords, parse_passwords, with_plain_hashed
from broker.auth.saslprep import saslprep
from broker.auth.scram import ClientExchange, SaltedPassword, ScramFault, ServerExchange, new_nonce
from broker.errors import ConfigError

QUICK = 4096
NONCE = "3rfcNHYJY1ZVvWVs7j"


def users(**passwords: str) -> Passwords:
    return Passwords({name: hash_password(password.encode(), "scram-sha-256", QUICK) for name, password in passwords.items()})


@pytest.fixture(scope="module")
def ann() -> Passwords:
    return users(ann="geheim")


# RFC 7677, 3.
FIRST = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
CHALLENGE = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
FINAL = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
PROVEN = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def entry_of(password: bytes, salt: str) -> ScramHash:
    import hashlib
    import hmac

    salted = salted_password(password, base64.b64decode(salt), 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    return ScramHash(4096, base64.b64decode(salt), stored, hmac.digest(salted, b"Server Key", "sha256"))


def test_the_example_of_the_rfc_from_both_sides() -> None:
    client = ClientExchange("user", SaltedPassword("pencil"), "rOprNGfwEbeRWgbNEkqO")
    server = ServerExchange(Passwords({"user": entry_of(b"pencil", "W22ZaJ0SNY7soEsUEjb6gQ==")}), "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    assert client.first() == FIRST.encode()
    assert server.first(FIRST.encode()) == CHALLENGE.encode()
    assert client.final(CHALLENGE.encode()) == FINAL.encode()
    assert server.final(FINAL.encode()) == PROVEN.encode()
    assert client.accepts(PROVEN.encode())
    assert not client.accepts(b"v=" + b64encode(b"x" * 32))
    assert not client.accepts(b"e=other-error")


@pytest.mark.parametrize(("name", "password"), [("ann", "geheim"), ("a,n=n", "Gehei:m$ü"), ("ünal", "I\u00adX\u2168"), ("ann", "\u00a0 x")])
def test_scramp_comes_in_and_lets_in(name: str, password: str) -> None:
    known = users(**{name: password})
    theirs = scramp.ScramClient(["SCRAM-SHA-256"], name, password)
    server = ServerExchange(known, NONCE)
    theirs.set_server_first(server.first(theirs.get_client_first().encode()).decode())
    proof = server.final(theirs.get_client_final().encode())
    assert proof is not None
    theirs.set_server_final(proof.decode())
    assert server.name == name

    mechanism = scramp.ScramMechanism("SCRAM-SHA-256")
    salt, stored_key, server_key, iterations = mechanism.make_auth_info(password, iteration_count=QUICK)
    their_server = mechanism.make_server(lambda user: (salt, stored_key, server_key, iterations))
    client = ClientExchange(name, SaltedPassword(password), new_nonce(b"x" * 18))
    their_server.set_client_first(client.first().decode())
    their_server.set_client_final(client.final(their_server.get_server_first().encode()).decode())
    assert client.accepts(their_server.get_server_final().encode())


def test_the_slow_part_is_done_once_for_a_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bytes, int]] = []

    def salted(password: bytes, salt: bytes, iterations: int) -> bytes:
        asked.append((salt, iterations))
        return password + salt

    monkeypatch.setattr(scram, "salted_password", salted)
    password = SaltedPassword("geheim")
    assert [password.of(salt, count) for salt, count in [(b"a", 1), (b"a", 1), (b"b", 1), (b"b", 2), (b"a", 1)]] == [
        b"geheima", b"geheima", b"geheimb", b"geheimb", b"geheima",
    ]  # fmt: skip
    assert asked == [(b"a", 1), (b"b", 1), (b"b", 2), (b"a", 1)]


def dialogue(known: Passwords, name: str, password: str) -> tuple[bytes, bytes | None]:
    client, server = ClientExchange(name, SaltedPassword(password), NONCE), ServerExchange(known, "s" * 20)
    challenge = server.first(client.first())
    return challenge, server.final(client.final(challenge))


def test_a_wrong_password_and_an_unknown_name_fail_at_the_end_and_alike(ann: Passwords) -> None:
    for name in ("ann", "ben"):
        challenge, proof = dialogue(ann, name, "waffle")
        assert proof is None
        assert challenge.startswith(b"r=" + NONCE.encode() + b"s" * 20 + b",s=")
        assert challenge.endswith(b",i=4096")
        assert len(challenge) == len(dialogue(ann, "ann", "x")[0])


def test_a_strangers_salt_is_the_same_after_a_restart_and_beside_other_users() -> None:
    entries = {f"user{number}": ScramHash(4096 + number % 2, bytes([number]) * 16, bytes(32), bytes([number]) * 32) for number in range(20)}
    known = Passwords(entries)

    def seen(of: Passwords) -> list[tuple[int, bytes]]:
        found = [of.find_scram(f"stranger{number}") for number in range(50)]
        assert not any(counts for _, counts in found)
        return [(entry.iterations, entry.salt) for entry, _ in found]

    assert seen(known) == seen(Passwords(dict(reversed(entries.items()))))
    assert len({salt for _, salt in seen(known)}) == 50
    assert {iterations for iterations, _ in seen(known)} == {4096, 4097}
    fewer = {name: entry for name, entry in entries.items() if name != "user7"}
    assert seen(Passwords(fewer | {"zoe": ScramHash(4096, b"z" * 16, bytes(32), b"z" * 32)})) == seen(known)
    # Somebody who is there, and has a hash that is not SCRAM's, is a stranger to SCRAM.
    assert Passwords(entries | {"ann": hash_password(b"x", iterations=5)}).find_scram("ann")[1] is False


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (b"", "header"),
        (b"n,,n=ann", "lacks"),
        (b"p=tls-unique,,n=ann,r=abc", "channel binding"),
        (b"x,,n=ann,r=abc", "none of n, y and p"),
        (b"n,,m=ext,n=ann,r=abc", "extension"),
        (b"n,,r=abc,n=ann", "n= is not"),
        (b"n,,n=,r=abc", "empty"),
        (b"n,,n=an=3dn,r=abc", "=2C"),
        (b"n,,n=ann,r=", "nonce"),
        (b"n,,n=ann,r=a\xc3\xbcb", "nonce"),
        (b"n,a=ben,n=ann,r=abc", "another user"),
        (b"n,,n=ann,r=\xff", "UTF-8"),
        (b"n,,n=a\0n,r=abc", "zero"),
        (b"n,,n=ann,r=" + b"a" * 5000, "more than"),
    ],
)
def test_a_first_message_that_is_none(ann: Passwords, message: bytes, cause: str) -> None:
    with pytest.raises(ScramFault, match=cause):
        ServerExchange(ann, NONCE).first(message)


@pytest.mark.parametrize("header", ["n,,", "y,,", "n,a=ann,"])
def test_the_headers_that_may_come(ann: Passwords, header: str) -> None:
    server = ServerExchange(ann, NONCE)
    server.first(f"{header}n=ann,r=abc".encode())
    binding = b64encode(header.encode()).decode()
    assert server.final(f"c={binding},r=abc{NONCE},p={b64encode(bytes(32)).decode()}".encode()) is None


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("c=biws,r=abcNONCE", "no proof"),
        ("c=eSws,r=abcNONCE,p=PROOF", "binding"),
        ("c=!,r=abcNONCE,p=PROOF", "base64"),
        ("c=biws,r=abc,p=PROOF", "nonce"),
        ("c=biws,r=abdNONCE,p=PROOF", "nonce"),
        ("r=abcNONCE,c=biws,p=PROOF", "c= is not"),
        ("c=biws,r=abcNONCE,p=AAAA", "32 bytes"),
        ("c=biws,r=abcNONCE,p=\u00fc", "base64"),
    ],
)
def test_a_final_message_that_is_none(ann: Passwords, message: str, cause: str) -> None:
    server = ServerExchange(ann, NONCE)
    server.first(b"n,,n=ann,r=abc")
    with pytest.raises(ScramFault, match=cause):
        server.final(message.replace("NONCE", NONCE).replace("PROOF", b64encode(bytes(32)).decode()).encode())


@pytest.mark.parametrize(
    ("challenge", "cause"),
    [
        ("r=abcd,s=AAAA,i=4096", "go on with ours"),
        (f"r={NONCE},s=AAAA,i=4096", "go on with ours"),
        (f"r={NONCE}x,s=AAAA,i=4095", "iterations"),
        (f"r={NONCE}x,s=AAAA,i=99999999", "iterations"),
        (f"r={NONCE}x,s=,i=4096", "empty"),
        (f"r={NONCE}x,s=AAAA", "needs"),
        ("e=unknown-user", "needs"),
    ],
)
def test_the_client_takes_no_weak_or_foreign_challenge(challenge: str, cause: str) -> None:
    client = ClientExchange("ann", SaltedPassword("geheim"), NONCE)
    client.first()
    with pytest.raises(ScramFault, match=cause):
        client.final(challenge.encode())
    assert not client.accepts(b"v=")


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_end_well(first: bytes, final: bytes) -> None:
    server = ServerExchange(Passwords({"ann": ScramHash(4096, b"s", bytes(32), bytes(32))}), NONCE)
    with contextlib.suppress(ScramFault):
        server.first(first)
    server = ServerExchange(Passwords({"ann": ScramHash(4096, b"s", bytes(32), bytes(32))}), NONCE)
    server.first(b"n,,n=ann,r=abc")
    with contextlib.suppress(ScramFault):
        assert server.final(final) is None


# ---- SASLprep, by the examples of RFC 4013, 3 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prepared"), [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b"), ("", "")]
)
def test_saslprep(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


@pytest.mark.parametrize(("text", "cause"), [("\u0007", "U\\+0007"), ("\u0627\u0031", "right to left"), ("\ue000", "forbids"), ("\ud800", "forbids")])
def test_saslprep_forbids(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        saslprep(text)


# ---- the line of the file ------------------------------------------------------------------------------------------------------


def test_the_line_reads_back_and_serves_plain_passwords() -> None:
    made = hash_password("I\u00adX ü".encode(), "scram-sha-256", QUICK)
    read = parse_passwords(f"ann:{made.text}\n", "users").get("ann")
    assert isinstance(read, ScramHash)
    assert read.text == made.text
    assert read.verifies("IX ü".encode())
    assert not read.verifies(b"x")
    assert not read.verifies(b"\xff\x07")
    # RFC 5803's form, with the keys to the example of RFC 7677.
    assert entry_of(b"pencil", "W22ZaJ0SNY7soEsUEjb6gQ==").text == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("SCRAM-SHA-256$4096:AAAA", "expected SCRAM-SHA-256\\$iterations"),
        ("SCRAM-SHA-256$4095:AAAA$AAAA:AAAA", "4,096"),
        ("SCRAM-SHA-256$x:AAAA$AAAA:AAAA", "4,096"),
        ("SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "32 bytes"),
        ("SCRAM-SHA-256$4096:AAAA$!:AAAA", "base64"),
    ],
)
def test_a_wrong_line(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        parse_hash(text)


def test_names_and_passwords_that_scram_cannot_have() -> None:
    line = hash_password(b"x", "scram-sha-256", QUICK).text
    with pytest.raises(ConfigError, match="line 1: SCRAM's clients write this user name 'IX'"):
        parse_passwords(f"\u2168:{line}\n", "users")
    for password in (b"\xff", b"\x07"):
        with pytest.raises(ValueError, match="a password for SCRAM"):
            hash_password(password, "scram-sha-256", QUICK)
    with pytest.raises(ConfigError) as caught:
        with_plain_hashed("ann:ok\nben:a\x07b\n\u2168:ok\n", "users", "scram-sha-256", QUICK)
    assert [place for place, _ in caught.value.problems] == ["line 2", "line 3"]
    with pytest.raises(ValueError, match="4,096"):
        hash_password(b"x", "scram-sha-256", 101)


def test_passwd_makes_it(tmp_path: object) -> None:
    from pathlib import Path

    from broker.cli.running import run_command_line

    assert isinstance(tmp_path, Path)
    path = tmp_path / "users"
    assert run_command_line(["passwd", "-H", "scram-sha-256", "-I", "4096", "-c", "-b", str(path), "ann", "geheim"]) == 0
    known = load_passwords(path)
    assert known.has_scram
    assert dialogue(known, "ann", "geheim")[1] is not None
    assert run_command_line(["passwd", "-H", "scram-sha-256", "-b", str(path), "\u2168", "geheim"]) == 2
