"""Tokens at a broker's socket: as password and over AUTH, their end, their rules, and keys that change."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from trio.testing import MockClock

from broker import Broker, Config, ConfigError, Listener, open_broker
from broker.auth.tokens import Jwt, Tokens
from broker.config.kinds import StoreConfig
from broker.net import doorkeeper
from broker.reasons import ReasonCode
from broker.wire.packets import Auth, ConnAck, Connect, Disconnect, PingReq, PingResp, Properties, PubAck, Publish, WillMessage
from tests.net.mqtt import Client
from tests.net.test_locks import answer_to, client_of, write_users

SECRET = "a shared secret of at least thirty-two bytes"
OTHER = "another shared secret, not of this broker..."
BAD = ReasonCode.BAD_USER_NAME_OR_PASSWORD
NO = ReasonCode.NOT_AUTHORIZED
YES = ReasonCode.SUCCESS


def token(lasts_s: float = 60, secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": int(time.time() + lasts_s)} | claims, secret, "HS256")


@pytest.fixture
def settings(tmp_path: Path) -> Jwt:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return Jwt(key_file=str(path), leeway_s=0, access_claim="acl")


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.auth.throttle.DELAY_S_MIN", 0.0)


@pytest.fixture(params=[False, True], ids=["on the loop", "in a thread"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token is checked, whatever its key is. (Not with a clock that jumps: it does not wait for threads.)"""
    monkeypatch.setattr(Tokens, "is_slow", lambda self, token: request.param)


def config_of(settings: Jwt, **more: Any) -> Config:
    return Config(listeners=(Listener(port=0),), jwt=settings, sys_interval_s=0, **more)


def with_token(text: str | None, name: str = "JWT") -> Properties:
    return Properties(authentication_method=name, authentication_data=None if text is None else text.encode())


@asynccontextmanager
async def inside(hub: Broker, version: int = 5) -> AsyncIterator[Client]:
    """A client over memory, for virtual time."""
    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(hub.attach, theirs)
        yield Client(ours, version)
        await ours.aclose()


async def reason_of(client: Client, *packets: Connect) -> ReasonCode:
    await client.send(*packets)
    answer = await client.receive()
    assert isinstance(answer, ConnAck)
    return answer.reason


async def may_publish(client: Client, topic: str) -> bool:
    await client.send(Publish(topic, b"", qos=1, packet_id=1))
    answer = await client.receive()
    assert isinstance(answer, PubAck)
    return answer.reason != NO


# ---- who comes in ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("where")
async def test_a_token_is_a_password_under_any_name_or_none(settings: Jwt, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "broker.auth")
    async with open_broker(config_of(settings)) as hub:
        for name in ("ann", "whoever", None):
            async with client_of(hub) as client:
                assert await reason_of(client, Connect("c1", 5, True, username=name, password=token().encode())) == YES
                (one,) = hub.clients()
                assert one.username == "ann"
        bad = token(secret=OTHER)
        assert await answer_to(hub, "ann", bad) == BAD
        assert await answer_to(hub, "ann", token(-5)) == BAD
        # There is no other way to be somebody.
        assert await answer_to(hub, "ann", "geheim") == BAD
        assert await answer_to(hub, "ann", None) == BAD
        assert await answer_to(hub, None, None) == NO
    said = [record.message for record in caplog.records if "token" in record.message]
    assert [line.rpartition(": ")[2] for line in said] == ["no key of ours has signed it", "it has expired"]
    assert bad[-20:] not in caplog.text


@pytest.mark.usefixtures("where")
async def test_who_claims_no_name_may_come_in_where_strangers_may_and_who_does_must_show_it(settings: Jwt) -> None:
    async with open_broker(config_of(settings, allow_anonymous=True)) as hub:
        assert await answer_to(hub, None, None) == YES
        assert await answer_to(hub, "ann", None) == BAD
        assert await answer_to(hub, "ann", token(secret=OTHER)) == BAD
        assert await answer_to(hub, "ann", token()) == YES


@pytest.mark.usefixtures("where")
async def test_passwords_and_tokens_stand_side_by_side(settings: Jwt, tmp_path: Path) -> None:
    async with open_broker(config_of(settings, password_file=write_users(tmp_path / "p", ben="1.2.3"))) as hub:
        assert await answer_to(hub, "ben", "1.2.3") == YES
        assert await answer_to(hub, "ben", "3.2.1") == BAD
        assert await answer_to(hub, "ben", token()) == YES


async def test_tokens_are_enough_to_listen_for_others(settings: Jwt) -> None:
    async with open_broker(Config(listeners=(Listener(host="0.0.0.0", port=0),), jwt=settings)):
        pass


@pytest.mark.usefixtures("where")
async def test_a_listener_decides_for_itself(settings: Jwt, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(OTHER)
    own = Listener(port=0, jwt=Jwt(key_file=str(tmp_path / "other")))
    files = Listener(port=0, host="127.0.0.2", password_file=write_users(tmp_path / "p", ben="x"))
    async with open_broker(Config(listeners=(Listener(port=0), own, files), jwt=settings)) as hub:
        assert [await answer_to(hub, "ann", token(), url) for url in hub.urls] == [YES, BAD, BAD]
        assert [await answer_to(hub, "ann", token(secret=OTHER), url) for url in hub.urls] == [BAD, YES, BAD]
        assert [await answer_to(hub, "ben", "x", url) for url in hub.urls] == [BAD, BAD, YES]


async def test_a_slow_key_is_used_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    (tmp_path / "key").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    seen: list[int] = []
    check = Tokens.check
    monkeypatch.setattr(Tokens, "check", lambda self, token: seen.append(threading.get_ident()) or check(self, token))  # type: ignore[func-returns-value]
    async with open_broker(config_of(Jwt(key_file=str(tmp_path / "key")))) as hub:
        assert await answer_to(hub, "ann", jwt.encode({"sub": "ann", "exp": int(time.time() + 60)}, key, "ES512")) == YES
    assert len(seen) == 1
    assert seen[0] != threading.get_ident()


@pytest.mark.usefixtures("where")
async def test_over_auth(settings: Jwt) -> None:
    async with open_broker(config_of(settings)) as hub:
        for text, reason in ((token(), YES), (token(secret=OTHER), NO), ("", NO), (None, NO)):
            async with client_of(hub) as client:
                assert await reason_of(client, Connect("c1", 5, True, properties=with_token(text))) == reason
        async with client_of(hub) as client:
            assert await reason_of(client, Connect("c1", 5, True, properties=with_token(token(), "jwt?"))) == ReasonCode.BAD_AUTHENTICATION_METHOD


# ---- its end -----------------------------------------------------------------------------------------------------------------------


async def test_the_connection_ends_with_the_token_and_the_session_stays(settings: Jwt, autojump_clock: MockClock) -> None:
    async with open_broker(config_of(settings), listeners=[]) as hub, hub.subscribe("gone") as wills, inside(hub) as client:
        properties = Properties(session_expiry_interval=1000)
        will = WillMessage("gone", b"")
        began = trio.current_time()
        assert await reason_of(client, Connect("c1", 5, True, username="x", password=token(60).encode(), properties=properties, will=will)) == YES
        answer = await client.receive()
        assert answer == Disconnect(ReasonCode.MAXIMUM_CONNECT_TIME)
        assert trio.current_time() - began == pytest.approx(60, abs=5)
        assert await client.receive() is None
        assert (await wills.receive()).topic == "gone"
        assert [one.client_id for one in hub.clients()] == ["c1"]


async def test_before_5_0_it_just_closes(settings: Jwt, autojump_clock: MockClock) -> None:
    async with open_broker(config_of(settings), listeners=[]) as hub, inside(hub, 4) as client:
        assert await reason_of(client, Connect("c1", 4, True, username="x", password=token(60).encode())) == YES
        assert await client.receive() is None


async def test_a_new_token_prolongs_it(settings: Jwt, autojump_clock: MockClock) -> None:
    async with open_broker(config_of(settings), listeners=[]) as hub, inside(hub) as client:
        assert await reason_of(client, Connect("c1", 5, True, properties=with_token(token(60)))) == YES
        await trio.sleep(30)
        await client.send(Auth(ReasonCode.REAUTHENTICATE, with_token(token(1000))))
        assert await client.receive() == Auth(ReasonCode.SUCCESS, Properties(authentication_method="JWT"))
        await trio.sleep(300)
        await client.send(PingReq())
        assert isinstance(await client.receive(), PingResp)
        began = trio.current_time()
        assert await client.receive() == Disconnect(ReasonCode.MAXIMUM_CONNECT_TIME)
        assert trio.current_time() - began == pytest.approx(700, abs=10)
        assert hub.statistics()["deadlines_count"] == 0


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("claims", [{"sub": "ben"}, {"exp": 5}, {"acl": "nonsense"}])
async def test_a_new_token_that_is_not_right_ends_it(settings: Jwt, claims: dict[str, Any]) -> None:
    async with open_broker(config_of(settings)) as hub, client_of(hub) as client:
        assert await reason_of(client, Connect("c1", 5, True, properties=with_token(token()))) == YES
        await client.send(Auth(ReasonCode.REAUTHENTICATE, with_token(token(**claims))))
        assert await client.receive() == Disconnect(NO)


async def test_a_hook_may_say_when_it_ends_too(autojump_clock: MockClock) -> None:
    async def authenticate(request: Any) -> str:
        request.ends_at_s = time.time() + 60
        return "ann"

    async with open_broker(authenticate=authenticate) as hub, inside(hub) as client:
        assert await reason_of(client, Connect("c1", 5, True)) == YES
        assert await client.receive() == Disconnect(ReasonCode.MAXIMUM_CONNECT_TIME)


# ---- what they may do --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("where")
async def test_rules_of_a_token_stand_instead_of_the_files_and_change_with_a_new_one(settings: Jwt, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic readwrite file\nuser ann\ntopic readwrite file\n")
    config = config_of(settings, acl_file=str(tmp_path / "acl"))
    async with open_broker(config) as hub, client_of(hub) as client:
        first = token(acl={"pub": ["up/%c"], "sub": ["down"]})
        assert await reason_of(client, Connect("c1", 5, True, properties=with_token(first))) == YES
        await client.subscribe("#")
        assert [await may_publish(client, topic) for topic in ("up/c1", "up/c2", "file")] == [True, False, False]

        async def arrives(topic: str) -> bool:
            await hub.publish(topic)
            await client.send(PingReq())
            found = await client.receive()
            if isinstance(found, Publish):
                assert isinstance(await client.receive(), PingResp)
                return True
            assert isinstance(found, PingResp)
            return False

        assert [await arrives(topic) for topic in ("down", "file", "up/c1")] == [True, False, False]
        for text, publish, receive in (
            (token(acl={"pub": ["other"]}), [False, True], [False, False, False]),
            (token(), [False, False], [False, True, False]),
        ):
            await client.send(Auth(ReasonCode.REAUTHENTICATE, with_token(text)))
            assert isinstance(await client.receive(), Auth)
            assert [await arrives(topic) for topic in ("down", "file", "other")] == receive
            assert [await may_publish(client, topic) for topic in ("up/c1", "other")] == publish


async def test_a_resumed_session_may_receive_what_its_newest_token_allows(settings: Jwt) -> None:
    async with open_broker(config_of(settings)) as hub:
        for allowed in ("one", "two"):
            async with client_of(hub) as client:
                properties = Properties(session_expiry_interval=100)
                text = token(acl={"sub": [allowed]}).encode()
                assert await reason_of(client, Connect("c1", 5, False, username="ann", password=text, properties=properties)) == YES
                await client.subscribe("+")
                await hub.publish("one")
                await hub.publish("two")
                found = await client.receive()
                assert isinstance(found, Publish)
                assert found.topic == allowed
                await client.send(Disconnect(YES))
                assert await client.receive() is None


def config_with_store(settings: Jwt, tmp_path: Path) -> Config:
    """The files allow nobody anything."""
    (tmp_path / "acl").write_text("user nobody\ntopic nothing\n")
    return config_of(settings, acl_file=str(tmp_path / "acl"), store=StoreConfig(path=str(tmp_path / "store.db")))


async def come(client: Client, text: str) -> list[str]:
    """What waited for it."""
    properties = Properties(session_expiry_interval=1000)
    assert await reason_of(client, Connect("c1", 5, False, username="ann", password=text.encode(), properties=properties)) == YES
    await client.send(PingReq())
    found = []
    while isinstance(message := await client.receive(), Publish):
        found.append(message.topic)
        await client.send(PubAck(message.packet_id))
    assert isinstance(message, PingResp)
    return found


async def test_what_a_token_allows_holds_after_a_restart_as_before(settings: Jwt, tmp_path: Path) -> None:
    """By the files nothing would wait for its client; by its newest token some of what waits is not for it."""
    config = config_with_store(settings, tmp_path)
    async with open_broker(config) as hub, client_of(hub) as client:
        assert not await come(client, token(acl={"sub": ["%u/%c/#"]}))
        await client.subscribe("#", 1)
    for _ in range(2):
        async with open_broker(config) as hub:
            await hub.publish("ann/c1/1", qos=1)
            await hub.publish("ben/c1", qos=1)
            await hub.publish("ann/c1/2", qos=1)
    async with open_broker(config) as hub, client_of(hub) as client:
        assert await come(client, token(acl={"sub": ["+/+/1"]})) == ["ann/c1/1", "ann/c1/1"]


@pytest.mark.parametrize("change", [{"access_claim": None}, {"damaged": True}])
async def test_rights_that_nobody_has_any_more_are_not_given_by_a_store(settings: Jwt, tmp_path: Path, change: dict[str, Any]) -> None:
    config = config_with_store(settings, tmp_path)
    async with open_broker(config) as hub, client_of(hub) as client:
        assert not await come(client, token(acl={"sub": ["#"]}))
        await client.subscribe("#", 1)
    if "damaged" in change:
        with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
            connection.execute("UPDATE sessions SET rights = '[' || rights")
    else:
        config = config_with_store(msgspec.structs.replace(settings, **change), tmp_path)
    async with open_broker(config) as hub:
        await hub.publish("secret", qos=1)
        assert hub.statistics()["queued_count"] == 0


async def test_where_a_program_authorizes_tokens_bring_no_rules(settings: Jwt) -> None:
    async with open_broker(config_of(settings), authorize=lambda *_: True) as hub, client_of(hub) as client:
        assert await reason_of(client, Connect("c1", 5, True, username="x", password=token(acl={"pub": []}).encode())) == YES
        assert await may_publish(client, "anything")


# ---- keys that change --------------------------------------------------------------------------------------------------------------


async def test_a_new_key_is_taken_over_and_a_wrong_one_is_not(settings: Jwt, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(settings.key_file or "")

    async def answer(hub: Broker, secret: str) -> ReasonCode:
        async with inside(hub) as client:
            return await reason_of(client, Connect("c1", 5, True, username="x", password=token(secret=secret).encode()))

    async with open_broker(config_of(settings), listeners=[]) as hub:
        assert await answer(hub, SECRET) == YES
        path.write_text("short")
        await trio.sleep(doorkeeper.WATCH_INTERVAL_S * 3)
        assert "is not used" in caplog.text
        assert "short" not in caplog.text.replace(str(path), "")
        assert await answer(hub, SECRET) == YES
        path.write_text(OTHER)
        await trio.sleep(doorkeeper.WATCH_INTERVAL_S * 3)
        assert [await answer(hub, secret) for secret in (SECRET, OTHER)] == [BAD, YES]
        with pytest.raises(ConfigError, match="user_claim"):
            hub.reload(config_of(Jwt(key_file=str(path), user_claim="")))
        hub.reload(config_of(Jwt(key_file=str(path), issuer="https://issuer.example")))
        assert await answer(hub, OTHER) == BAD


def test_the_config_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short")
    (tmp_path / "broker.toml").write_text(
        '[jwt]\nkey_file = "key"\n'
        '[[listeners]]\n[listeners.jwt]\njwks_file = "nowhere"\n'
        '[[listeners]]\n[listeners.jwt]\nkeyfile = "key"\naudience = 5\n'
    )
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "broker.toml")
    found = dict(caught.value.problems)
    assert "32 bytes" in found["jwt.key_file"]
    assert "cannot be read" in found["listeners[0].jwt.jwks_file"]
    assert "did you mean key_file?" in found["listeners[1].jwt.keyfile"]
    assert found["listeners[1].jwt.audience"] == "expected text in quotes, got 5"
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "broker.toml").write_text(
        '[jwt]\nkey_file = "key"\nalgorithms = ["HS256"]\n[[listeners]]\nport = 0\n[listeners.jwt]\nkey_file = "key"\n'
    )
    config = Config.load(tmp_path / "broker.toml", env={"BROKER__JWT__USERNAME": "12"})
    assert config.jwt == Jwt(key_file=str(tmp_path / "key"), algorithms=("HS256",), username="12")
    assert config.listeners[0].jwt == Jwt(key_file=str(tmp_path / "key"))
